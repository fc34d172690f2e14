"""Manifests that one command has read: each is read once, so a check and the work after it see one state."""

from __future__ import annotations

from genmod import storage
from genmod.errors import DataError
from genmod.interface.model_store import PublishedModel, open_model
from genmod.manifest import (
    MANIFEST_NAMES,
    DatasetManifest,
    Manifest,
    ManifestT,
    check_done,
    load_manifest,
    missing_manifest,
)


class ManifestSnapshot:
    """Manifests by URL, as one command sees them. Not safe to share between threads.

    A manifest is read on its first use, and its absence is kept too. What the command publishes after that is
    added by :meth:`add`; what its workers publish is read by :meth:`reload`.
    """

    def __init__(self) -> None:
        self._manifests: dict[str, Manifest | None] = {}
        self._models: dict[str, PublishedModel] = {}

    def load(self, schema: type[ManifestT], root: str, kind: str) -> ManifestT | None:
        """The manifest in a folder, None if there is none. DataError if it is broken."""
        url = _url(root, kind)
        if url not in self._manifests:
            self._manifests[url] = load_manifest(schema, root, kind)
        manifest = self._manifests[url]
        assert manifest is None or isinstance(manifest, schema), url
        return manifest

    def require(self, schema: type[ManifestT], root: str, kind: str, made_by: str) -> ManifestT:
        """The manifest in a folder. ConfigError that names the stage ``made_by`` if there is none."""
        manifest = self.load(schema, root, kind)
        if manifest is None:
            raise missing_manifest(root, kind, made_by)
        return manifest

    def find_done(
        self,
        schema: type[ManifestT],
        root: str,
        kind: str,
        fingerprint: str,
        *,
        claimed_by: str | None = None,
    ) -> ManifestT | None:
        """The manifest if this work is done, None if not. ConfigError if the folder contains other work.

        ``claimed_by`` is as for :func:`~genmod.manifest.check_done`.
        """
        manifest = self.load(schema, root, kind)
        return check_done(manifest, root, kind, fingerprint, claimed_by=claimed_by)

    def dataset(self, root: str, made_by: str = "shard") -> DatasetManifest:
        """The manifest of a dataset. ConfigError if there is none."""
        return self.require(DatasetManifest, root, "dataset", made_by)

    def model(self, root: str, made_by: str = "train") -> PublishedModel:
        """A published model: its manifest and its configuration. ConfigError if there is none."""
        manifest = self.require(Manifest, root, "model", made_by)
        if root not in self._models or self._models[root].manifest is not manifest:
            self._models[root] = open_model(root, manifest)
        return self._models[root]

    def add(self, root: str, manifest: ManifestT) -> ManifestT:
        """Keep a manifest that this command has published, and return it."""
        self._manifests[_url(root, manifest.kind)] = manifest
        return manifest

    def reload(self, schema: type[ManifestT], root: str, kind: str) -> ManifestT | None:
        """Read a manifest again, after this command's workers have published it."""
        self._manifests.pop(_url(root, kind), None)
        return self.load(schema, root, kind)


def check_unchanged(root: str, manifest: Manifest, planned: str) -> None:
    """Check in a worker that a folder has the manifest that its job was planned with.

    Args:
        root: URL of the folder.
        manifest: the one that is there now.
        planned: digest of the one that the driver has read.

    Raises:
        DataError: it has another one.
    """
    if manifest.digest != planned:
        raise DataError(
            f"{root} contains {manifest.kind} {manifest.digest[:12]}, but the job was planned for "
            f"{planned[:12]}; rerun the command"
        )


def _url(root: str, kind: str) -> str:
    return storage.join(root, MANIFEST_NAMES[kind])
