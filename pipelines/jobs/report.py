"""The report job: gathers the results of the stages for some models and writes one page."""

from __future__ import annotations

from genmod import storage
from genmod.config import Config, fingerprint
from genmod.interface.snapshot import ManifestSnapshot
from genmod.manifest import (
    SPLITS,
    DatasetManifest,
    Manifest,
    claim,
    publish,
    write_file,
)
from genmod.report.page import ReportContent, render
from pipelines.jobs.model_pages import read_model_page, read_page_file

PAGE = "report.html"

VERSION = 6
"""Version of the page. Raise it when the page changes, so that reports are rendered again."""


class ReportJob(Config):
    """One page about some models below a root."""

    title: str
    root: str
    """URL of the recipe's root."""
    models: tuple[str, ...]
    out_root: str
    tracking: str
    """Command or URL that shows the tracked runs."""

    @property
    def page_url(self) -> str:
        """URL of the page."""
        return storage.join(self.out_root, PAGE)

    def fingerprint(self, snapshot: ManifestSnapshot) -> str:
        """Fingerprint of the work. A root that was moved keeps its report."""
        digests = {name: manifest.digest for name, _, manifest in self._inputs(snapshot)}
        return fingerprint("report", VERSION, digests)

    def done(self, snapshot: ManifestSnapshot) -> Manifest | None:
        """The manifest if the work is done, else None. ConfigError if the folder contains other work."""
        return snapshot.find_done(Manifest, self.out_root, "report", self.fingerprint(snapshot))

    def do(self, snapshot: ManifestSnapshot | None = None) -> Manifest:
        """Gather, render, write, publish. Does nothing if it is done.

        Args:
            snapshot: the manifests that the command has read; new ones are read where it is not given.
        """
        snapshot = snapshot or ManifestSnapshot()
        if (done := self.done(snapshot)) is not None:
            return done
        expected = self.fingerprint(snapshot)
        claim(self.out_root, expected)
        page = write_file(self.out_root, PAGE, render(self.content(snapshot)).encode())
        parents = {name: manifest.digest for name, _, manifest in self._inputs(snapshot)}
        manifest = Manifest(kind="report", fingerprint=expected, parents=parents, files=(page,))
        return snapshot.add(self.out_root, publish(self.out_root, manifest))

    def content(self, snapshot: ManifestSnapshot) -> ReportContent:
        """The content of the page, gathered from the published manifests and files."""
        data = snapshot.dataset(self._at("data"))
        first = self._at("evaluation", self.models[0])
        return ReportContent(
            title=self.title,
            dims=data.spec.dims,
            levels=data.spec.levels,
            data=_about(data),
            reference_png=read_page_file(first, _evaluation(snapshot, first), "reference.png"),
            models=[
                read_model_page(
                    snapshot, name, self._at("models", name), self._at("evaluation", name)
                )
                for name in self.models
            ],
            provenance=[
                (name, root, manifest.digest) for name, root, manifest in self._inputs(snapshot)
            ],
            tracking=self.tracking,
        )

    def _at(self, *parts: str) -> str:
        return storage.join(self.root, *parts)

    def _inputs(self, snapshot: ManifestSnapshot) -> list[tuple[str, str, Manifest]]:
        """Name, URL and manifest of every input. ConfigError if one is absent."""
        inputs: list[tuple[str, str, Manifest]] = []

        def add(name: str, manifest: Manifest, *folder: str) -> None:
            inputs.append((name, self._at(*folder), manifest))

        add("data", snapshot.dataset(self._at("data")), "data")
        features = snapshot.require(Manifest, self._at("features"), "features", "evaluate")
        add("features", features, "features")
        for name in self.models:
            add(f"model {name}", self._model(snapshot, name), "models", name)
            samples = snapshot.dataset(self._at("samples", name), f"sample --model {name}")
            add(f"samples of {name}", samples, "samples", name)
            evaluation = _evaluation(snapshot, self._at("evaluation", name))
            if "scores" in evaluation.parents:
                root = self._at("scores", name)
                scores = snapshot.require(Manifest, root, "scores", f"score --model {name}")
                add(f"scores of {name}", scores, "scores", name)
            add(f"evaluation of {name}", evaluation, "evaluation", name)
        return inputs

    def _model(self, snapshot: ManifestSnapshot, name: str) -> Manifest:
        made_by = f"train --model {name}"
        return snapshot.require(Manifest, self._at("models", name), "model", made_by)


def _evaluation(snapshot: ManifestSnapshot, root: str) -> Manifest:
    return snapshot.require(Manifest, root, "evaluation", "evaluate")


def _about(data: DatasetManifest) -> list[tuple[str, str]]:
    """A dataset in words."""
    rows = ", ".join(f"{split} {data.rows(split):,}" for split in SPLITS if data.rows(split))
    size_bytes = sum(shard.tar.size_bytes for shard in data.shards)
    metadata = [
        ("Source", str(data.metadata.get("source", "unknown"))),
        ("Images", str(data.spec)),
        ("Rows", rows),
        ("Rejected inputs", f"{data.quarantined:,}"),
        ("Shards", f"{len(data.shards):,} tars, {size_bytes / 1e6:,.1f} MB"),
    ]
    if data.class_names:
        metadata.append(("Classes", ", ".join(data.class_names)))
    return metadata
