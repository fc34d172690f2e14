"""The recipe section ``about``: the source of its settings and the published result."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from genmod.config import Config

if TYPE_CHECKING:
    pass


class AboutConfig(Config):
    """The recipe's ``about``: where its settings are from and what they gave. Of no effect on results."""

    source: str
    """The paper, and where in it."""
    published: str
    """The result to compare with, and by what protocol."""
    published_cost: str = ""
    """What its authors spent."""
    published_parameters: int | None = Field(default=None, gt=0)
    """Of the authors' net."""
    differs: str = ""
    """In what this recipe is not theirs."""
    gpu: Literal["v100", "a100", "h100"] = "a100"
    """What the price is told in."""
