"""The report: gathers what the stages have said of some models and writes one page."""

from __future__ import annotations

import json
from typing import Any

from genmod import storage
from genmod.config import Config, fingerprint
from genmod.data.reading.reader import open_dataset
from genmod.evaluation.measure import metrics_from
from genmod.interface.model_store import HISTORY
from genmod.manifest import (
    SPLITS,
    DatasetManifest,
    Manifest,
    claim,
    find_done,
    publish,
    read_listed,
    require,
    write_file,
)
from genmod.report.curves import curves
from genmod.report.page import ModelPage, ReportContent, render
from genmod.training.monitors.latents import LATENT_IMAGES
from genmod.training.publish import MONITOR_EVENTS

PAGE = "report.html"

VERSION = 3
"""Of the page. A change of its look or its words makes reports anew."""


class ReportJob(Config):
    """One page about some models of a root."""

    title: str
    root: str
    """URL of the recipe's root."""
    models: tuple[str, ...]
    out_root: str
    tracking: str
    """How to see the runs."""

    @property
    def page_url(self) -> str:
        """Where the page is."""
        return storage.join(self.out_root, PAGE)

    def fingerprint(self) -> str:
        """Of the work; reads the inputs' manifests. A root that was moved keeps its report."""
        digests = {name: manifest.digest for name, _, manifest in self._inputs()}
        return fingerprint("report", VERSION, digests)

    def done(self) -> Manifest | None:
        """The manifest if the work is done."""
        return find_done(Manifest, self.out_root, "report", self.fingerprint())

    def do(self) -> Manifest:
        """Gather, render, write, publish. Does nothing if it is done."""
        wanted = self.fingerprint()
        if (found := find_done(Manifest, self.out_root, "report", wanted)) is not None:
            return found
        claim(self.out_root, wanted)
        page = write_file(self.out_root, PAGE, render(self.content()).encode())
        parents = {name: manifest.digest for name, _, manifest in self._inputs()}
        manifest = Manifest(kind="report", fingerprint=wanted, parents=parents, files=(page,))
        return publish(self.out_root, manifest)

    def content(self) -> ReportContent:
        """Everything that the page says."""
        inputs = self._inputs()
        data = open_dataset(self._at("data"))
        first = self._at("evaluation", self.models[0])
        return ReportContent(
            title=self.title,
            dims=data.spec.dims,
            levels=data.spec.levels,
            data=_about(data),
            reference_png=_file(first, _evaluation(first), "reference.png"),
            models=[self._page(name) for name in self.models],
            provenance=[(name, root, manifest.digest) for name, root, manifest in inputs],
            tracking=self.tracking,
        )

    def _at(self, *parts: str) -> str:
        return storage.join(self.root, *parts)

    def _inputs(self) -> list[tuple[str, str, Manifest]]:
        """Name, URL and manifest of everything that the page is made from."""
        root = self._at("data")
        found: list[tuple[str, str, Manifest]] = [("data", root, open_dataset(root))]
        root = self._at("features")
        found.append(("features", root, require(Manifest, root, "features", "evaluate")))
        for name in self.models:
            made_by = f"--model {name}"
            root = self._at("models", name)
            model = require(Manifest, root, "model", f"train {made_by}")
            found.append((f"model {name}", root, model))
            root = self._at("samples", name)
            samples = require(DatasetManifest, root, "dataset", f"sample {made_by}")
            found.append((f"samples of {name}", root, samples))
            evaluation_root = self._at("evaluation", name)
            evaluation = _evaluation(evaluation_root)
            if "scores" in evaluation.parents:
                root = self._at("scores", name)
                scores = require(Manifest, root, "scores", f"score {made_by}")
                found.append((f"scores of {name}", root, scores))
            found.append((f"evaluation of {name}", evaluation_root, evaluation))
        return found

    def _page(self, name: str) -> ModelPage:
        model_root, root = self._at("models", name), self._at("evaluation", name)
        model = require(Manifest, model_root, "model", f"train --model {name}")
        evaluation = _evaluation(root)
        history: list[dict[str, Any]] = json.loads(_file(model_root, model, HISTORY))
        losses, quantities = curves(history)
        return ModelPage(
            name=name,
            family=str(model.metadata["family"]),
            metrics=metrics_from(evaluation.metadata),
            metadata=evaluation.metadata,
            pictures={entry.path: _file(root, evaluation, entry.path) for entry in evaluation.files}
            | {
                entry.path: _file(model_root, model, entry.path)
                for entry in model.files
                if entry.path.startswith(f"{LATENT_IMAGES}/")
            },
            losses=losses,
            quantities=quantities,
            events=tuple(model.metadata.get(MONITOR_EVENTS, ())),
            latents={
                key.removeprefix("latents/"): value
                for key, value in (history[-1]["metrics"] if history else {}).items()
                if key.startswith("latents/")
            },
        )


def _evaluation(root: str) -> Manifest:
    return require(Manifest, root, "evaluation", "evaluate")


def _file(root: str, manifest: Manifest, path: str) -> bytes:
    """A file that a manifest lists. DataError if it is missing or was changed."""
    return read_listed(root, manifest, path, "remove that folder and run its stage again")


def _about(data: DatasetManifest) -> list[tuple[str, str]]:
    """A dataset in words."""
    rows = ", ".join(f"{split} {data.rows(split):,}" for split in SPLITS if data.rows(split))
    size_bytes = sum(shard.tar.size_bytes for shard in data.shards)
    metadata = [
        ("Source", str(data.metadata.get("source", "not said"))),
        ("Images", str(data.spec)),
        ("Rows", rows),
        ("Refused inputs", f"{data.quarantined:,}"),
        ("Shards", f"{len(data.shards):,} tars, {size_bytes / 1e6:,.1f} MB"),
    ]
    if data.class_names:
        metadata.append(("Classes", ", ".join(data.class_names)))
    return metadata
