"""Templates of the pages: one self-contained HTML file each, whose policy allows its own style and images."""

from __future__ import annotations

import base64
import hashlib
import re
from importlib import resources
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup


def render_template(name: str, **values: Any) -> str:
    """A page as HTML. All text is escaped, and its Content-Security-Policy allows no scripts and no requests.

    Args:
        name: file of the template in this folder.
        values: what the template uses, besides the functions below. Text in them is escaped.
    """
    environment = Environment(
        loader=FunctionLoader(_read), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    style = environment.get_template("style.css").render()
    shared: dict[str, Any] = {
        "picture": embed_png,
        "number": format_number,
        "style_sha256": base64.b64encode(hashlib.sha256(style.encode()).digest()).decode(),
    }
    return environment.get_template(name, globals=shared).render(**values)


def embed_png(png: bytes, alt: str) -> Markup:
    """A PNG file as an image of the page, with its text for people who do not see it."""
    return Markup('<img alt="{}" src="{}">').format(alt, data_url(png))


def data_url(png: bytes) -> str:
    """A PNG file as the URL that contains it."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def format_number(value: float, percent: bool = False) -> str:
    """A value with a number of digits that suits its size.

    >>> format_number(1234.5), format_number(-0.0), format_number(0.05, percent=True)
    ('1,234.5', '0', '5.0%')
    """
    value += 0.0  # no minus before a zero
    if percent:
        return f"{value:.1%}"
    size = abs(value)
    if size >= 100:
        return f"{value:,.1f}"
    return f"{value:.2f}" if size >= 1 else f"{value:.3f}" if size >= 1e-3 else f"{value:.1g}"


def _read(name: str) -> str:
    assert re.fullmatch(r"[a-z]+\.(html|css)", name)
    return resources.files("genmod.report").joinpath(name).read_text("utf-8")
