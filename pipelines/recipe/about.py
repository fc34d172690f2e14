"""The recipe section ``about``: the source of its settings and the published result."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from genmod.config import Config


class AboutConfig(Config):
    """The recipe's ``about``: the source of its settings and the published result. Results ignore it."""

    source: str
    """The paper, and the section or table in it."""
    published: str
    """The published result to compare with, and its protocol."""
    published_cost: str = ""
    """Computing time that the authors report."""
    published_parameters: int | None = Field(default=None, gt=0)
    """Number of parameters of the authors' network."""
    differs: str = ""
    """How this recipe differs from the paper."""
    gpu: Literal["v100", "a100", "h100"] = "a100"
    """The GPU for which ``--dry-run`` prints the price."""
