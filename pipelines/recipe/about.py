"""The recipe section ``about``: the source of its settings and the published result."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from genmod.config import Config
from genmod.storage import Line


class AboutConfig(Config):
    """The recipe's ``about``: the source of its settings and the published result. Results ignore it."""

    source: Line
    """The paper, and the section or table in it."""
    published: Line
    """The published result to compare with, and its protocol."""
    published_cost: Line = ""
    """Computing time that the authors report."""
    published_parameters: int | None = Field(default=None, gt=0, lt=10**15)
    """Number of parameters of the authors' network."""
    differs: Line = ""
    """How this recipe differs from the paper."""
    gpu: Literal["v100", "a100", "h100"] = "a100"
    """The GPU for which ``--dry-run`` prints the price."""
