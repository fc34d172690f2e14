"""One entry of the promotion ledger."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field

from genmod import storage
from genmod.config import Config, fingerprint
from genmod.manifest.schema import Sha256

LEDGER_FORMAT = 1
"""Version of the entries. Readers refuse newer ones."""

MAX_ENTRIES = 999_999
"""Entries of one chain: six digits in their names."""

ENTRY_BYTES = 64 << 10
"""Most bytes of one entry."""

Action = Literal["promote", "adopt", "rollback", "pin", "unpin", "repair"]
"""What an entry records.

``promote``: a decision of the gate made a model the champion. ``adopt``: the champion is the one that
MLflow's alias names. ``rollback``: back to the champion before. ``pin``, ``unpin``: a person chooses the
champion, and no decision replaces it until it is unpinned. ``repair``: MLflow's aliases were set to what the
ledger says.
"""

_Text = Annotated[storage.Line, Field(max_length=256)]


class Evidence(Config):
    """A manifest that an entry refers to."""

    root: storage.Url
    """URL of the manifest's folder."""
    digest: Sha256


class LedgerModel(Config):
    """A model that is or was the champion."""

    digest: Sha256
    """Digest of the model's manifest."""
    root: storage.Url
    """URL of the model's folder."""
    evaluation: Evidence | None = None
    registered: _Text = ""
    """Registered name in MLflow; empty if the model was not registered when the entry was written."""
    version: int | None = Field(default=None, ge=1, lt=10**18)
    """Number of the registered version."""

    @property
    def label(self) -> str:
        """The model in words: ``version 3 (1a2b3c4d5e6f)``, or its digest alone."""
        short = self.digest[:12]
        return f"version {self.version} ({short})" if self.version else f"model {short}"


class Author(Config):
    """Who wrote an entry."""

    user: _Text
    """``USER@HOST``."""
    job: _Text = ""
    """Id of the Ray job, with its attempt; empty outside of jobs."""

    def __str__(self) -> str:
        return f"{self.user}, job {self.job}" if self.job else self.user


class LedgerEntry(Config):
    """One change of the champion, or of what holds it. ``digest`` covers all other fields."""

    format: int = Field(default=LEDGER_FORMAT, ge=1, le=LEDGER_FORMAT)
    number: int = Field(ge=1, le=MAX_ENTRIES)
    """1 for the first entry of a chain."""
    before: Sha256 | None
    """Digest of the entry before; None for the first."""
    name: storage.Name
    """The model in the recipe, e.g. ``vae``."""
    action: Action
    model: LedgerModel
    """The champion after this entry."""
    replaces: Sha256 | None
    """Digest of the champion before this entry; None if there was none."""
    decision: Evidence | None = None
    """Of a promotion: the decision on the model."""
    reason: Annotated[storage.Line, Field(min_length=1, max_length=4000)]
    author: Author
    time: str = Field(pattern=r"^[0-9]{4}-[01][0-9]-[0-3][0-9]T[0-2][0-9]:[0-5][0-9]:[0-6][0-9]Z$")
    """UTC, e.g. ``2026-11-30T08:00:00Z``."""
    digest: str = ""

    def sealed(self) -> Self:
        """A copy with the digest filled in."""
        return self.model_copy(update={"digest": self._digest()})

    def is_whole(self) -> bool:
        """Whether the digest matches the fields."""
        return self.digest == self._digest()

    def _digest(self) -> str:
        return fingerprint("ledger", self.model_dump(mode="json", exclude={"digest"}))
