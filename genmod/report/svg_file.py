"""Charts as files of their own, with the style of the pages in them."""

from __future__ import annotations

from importlib import resources

from markupsafe import Markup

_START = Markup('<svg class="chart"')


def svg_file(chart: Markup) -> bytes:
    """A chart as an SVG file, which browsers show alone.

    Args:
        chart: of :mod:`genmod.report.charts`, one ``svg`` element.
    """
    assert chart.startswith(_START)
    assert chart.count("<svg") == 1
    head, body = chart.split(Markup(">"), 1)
    style = resources.files("genmod.report").joinpath("style.css").read_text()
    attributes = head[len(_START) :]
    opened = f'<svg xmlns="http://www.w3.org/2000/svg" class="chart"{attributes}>'
    return f"{opened}<style>{style}\nsvg {{ background: var(--paper); }}</style>{body}\n".encode()
