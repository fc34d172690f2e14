"""The fields that every manifest has, with their bounds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Self, TypeVar

from pydantic import Field, model_validator

from genmod.budget import BUDGET
from genmod.config import Config, fingerprint
from genmod.storage import RelativePath

FORMAT = 1
"""Version of everything that is written below a root. Readers refuse newer versions."""

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
"""SHA-256 of a file, 64 lowercase hex digits."""


class FileEntry(Config):
    """Path below the manifest's folder, size and digest of one file."""

    path: RelativePath
    size_bytes: int = Field(ge=0, le=BUDGET.file_bytes)
    sha256: Sha256


class Manifest(Config):
    """Result of a stage. ``digest`` covers all other fields."""

    kind: str
    """A key of :data:`~genmod.manifest.publishing.MANIFEST_NAMES`, e.g. ``dataset`` or ``model``."""
    format: int = Field(default=FORMAT, ge=1)
    fingerprint: str
    """Of the configuration and the digests of the inputs."""
    parents: dict[str, str] = {}
    """Digest of each input, by name."""
    files: tuple[FileEntry, ...] = Field(default=(), fail_fast=True)
    metadata: dict[str, Any] = {}
    """JSON values that readers of this kind need, e.g. metrics with their labels."""
    digest: str = ""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.format > FORMAT:
            raise ValueError(
                f"format {self.format}, but this genmod reads up to {FORMAT}; update it"
            )
        return self

    def sealed(self) -> Self:
        """A copy with the digest filled in. ValueError if a number is not finite."""
        return self.model_copy(update={"digest": self._digest()})

    def _digest(self) -> str:
        return fingerprint(self.model_dump(mode="json", exclude={"digest"}))

    def is_whole(self) -> bool:
        """Whether the digest matches the fields."""
        return has_own_digest(self.model_dump(mode="json"))


def has_own_digest(values: Mapping[str, Any]) -> bool:
    """Whether the digest in a manifest's JSON values is that of the other ones."""
    others = {key: value for key, value in values.items() if key != "digest"}
    try:
        return values.get("digest") == fingerprint(others)
    except (ValueError, RecursionError):  # values that no manifest of ours contains
        return False


ManifestT = TypeVar("ManifestT", bound=Manifest)
