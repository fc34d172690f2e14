"""A job that reads published inputs and publishes one manifest, in one process and without Ray."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

from genmod.config import Config
from genmod.interface.snapshot import ManifestSnapshot
from genmod.manifest import Manifest, claim, publish


class ManifestJob(Config, ABC):
    """Work that is done if and only if its manifest is in ``out_root``."""

    kind: ClassVar[str]
    """Kind of its manifest."""
    out_root: str
    """URL of the folder that it writes."""

    @abstractmethod
    def inputs(self, snapshot: ManifestSnapshot) -> dict[str, Manifest]:
        """The manifests of all inputs, by name. ConfigError if one is absent or does not fit."""

    @abstractmethod
    def fingerprint(self, inputs: Mapping[str, Manifest]) -> str:
        """Fingerprint of the work on these inputs."""

    @abstractmethod
    def make(
        self, inputs: Mapping[str, Manifest], expected: str, snapshot: ManifestSnapshot
    ) -> Manifest:
        """Do the work and write its files; the manifest, which is not published yet.

        Args:
            inputs: their manifests.
            expected: fingerprint of the work.
            snapshot: the manifests that the job has read.
        """

    def done(self, snapshot: ManifestSnapshot | None = None) -> Manifest | None:
        """The manifest if the work is done, else None. ConfigError if the folder contains other work.

        Args:
            snapshot: the manifests that the command has read; new ones are read where it is not given.
        """
        snapshot = snapshot or ManifestSnapshot()
        expected = self.fingerprint(self.inputs(snapshot))
        return snapshot.find_done(Manifest, self.out_root, self.kind, expected)

    def do(self) -> Manifest:
        """Work, write, publish. Does nothing if it is done."""
        snapshot = ManifestSnapshot()
        if (manifest := self.done(snapshot)) is not None:
            return manifest
        inputs = self.inputs(snapshot)
        expected = self.fingerprint(inputs)
        claim(self.out_root, expected)
        return publish(self.out_root, self.make(inputs, expected, snapshot))
