"""A root whose models are only folders: evaluated and promoted without Ray, with the real MLflow."""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from genmod import storage
from genmod.config import fingerprint
from genmod.data.format.image_grid import grid, pixel_scale, png
from genmod.evaluation.images import uniform_noise
from genmod.lease import Lease
from genmod.manifest import FileEntry, ImageSpec, Manifest, publish, write_file
from genmod.metrics.protocol import LIKELIHOOD, Interval, MetricResult, MetricValue, Protocol
from pipelines.recipe.context import Context
from pipelines.recipe.recipe import load_recipe
from tests.processes import TIMEOUT_S

RECIPE = """
root: {root}
data: {{source: "builtin:digits"}}
model: {{vae: {{family: vae}}}}
promote:
  rules:
    fd: {{improve_by: 1, max_regression: 1}}
tracking: {tracking}
"""


HISTORY = [
    {"nimg": n, "metrics": {"train/all/loss": 1e3 / n, "val/all/loss": 2e3 / n}}
    for n in range(100, 2000, 100)
]

SHOWN: dict[str, Any] = {
    "family": "vae",
    "monitor_events": ["at 9,000 images: coverage fell"],
    "samples": {
        "rows": 100,
        "sampler": "heun-18",
        "draws_from_p": True,
        "seed": 0,
        "labels": "none",
    },
    "features": {"label": "pca@1a2b3c4d", "rows": 100},
    "scores": {
        **{"label": "exact", "estimator": "flow", "of": "model", "measure": "counts"},
        **{"budget": {}, "n": 100, "split": "val", "mean_nats": -115.0, "mean_nats_stderr": 1.0},
        **{"mean_bits_per_dim": 2.5, "mean_bits_per_dim_stderr": 0.1},
        "histogram": {"low": -140.0, "high": -90.0, "counts": [20, 60, 20]},
    },
    "extremes": {
        "most": [{"key": f"val{i}", "nats": -90.5 - i} for i in range(10)],
        "least": [{"key": f"val{i}", "nats": -1139.5 + i} for i in range(90, 100)],
    },
    "quality_vs_nfe": [
        {"curve": curve, "nfe": nfe, "fd": 40.0 / nfe}
        for curve in ("heun", "ddim")
        for nfe in (5, 9, 17, 33)
    ],
    "memorisation": {
        **{"samples": 100, "named": 1, "fdr": 0.05, "train_rows": 500, "held_out": 100},
        "train_against_others": 400,
        "shown": [
            {
                **{"sample": i, "sample_key": f"made{i}", "train_key": f"real{i}", "named": i == 0},
                **{"kind": "flipped", "p_value": 2e-7, "q_value": 2e-3, "distance": 0.25},
            }
            for i in range(10)
        ],
    },
}
"""What a page shows of a model and its evaluation, besides pictures and metrics."""


def _picture(name: str) -> bytes:
    """A grid like that of an evaluation, of noise that differs by name."""
    rows = {"samples.png": 10}.get(name, 2)
    spec = ImageSpec(channels=1, height=8, width=8, classes=0)
    return png(grid(uniform_noise(10 * rows, spec, seed=rows).pixels_NCHW, 10, pixel_scale(spec)))


def metric(
    name: str, value: float, samples: int = 100, settings: Mapping[str, str] | None = None
) -> MetricResult:
    """A metric with an interval of 0.1 to either side."""
    protocol = Protocol(
        metric=name,
        features="pca@1a2b3c4d",
        features_digest="1a2b3c4d",
        reference_digest="5e6f",
        reference_split="test",
        n_real=100,
        n_fake=samples,
        settings=dict(settings or {}),
    )
    interval = Interval(low=value - 0.1, high=value + 0.1, method="normal")
    measured = MetricValue.of(protocol, value, interval)
    return MetricResult(value=measured, floor=None, ceiling=None, better="lower")


def add_model(
    root: str,
    text: str,
    fd: float,
    samples: int = 100,
    shown: Mapping[str, Any] | None = None,
    likelihood: str = "",
) -> str:
    """Publish a model and its evaluation below a root; the model's digest.

    Args:
        root: of a version of the dataset.
        text: distinguishes the models.
        fd: Fréchet distance.
        samples: that it was measured with.
        shown: if given, both have what pages show; changes of :data:`SHOWN`.
        likelihood: kind of its likelihood.
    """
    folder, evaluation = f"{root}/models/vae", f"{root}/evaluation/vae"
    files = [
        write_file(folder, name, f"{name} of {text}".encode())
        for name in ("config.json", "ema.safetensors")
    ]
    pictures: tuple[FileEntry, ...] = ()
    facts: dict[str, Any] = {}
    if shown is not None:
        files.append(write_file(folder, "history.json", json.dumps(HISTORY).encode()))
        names = "samples.png", "nearest.png", "extremes.png"
        pictures = tuple(write_file(evaluation, name, _picture(name)) for name in names)
        facts = {**SHOWN, **shown}
    work = fingerprint("model", text)
    parents = {"dataset": fingerprint("data", root)}
    manifest = Manifest(
        kind="model", fingerprint=work, parents=parents, files=tuple(files), metadata=facts
    )
    model = publish(folder, manifest)
    values = {"fd": fd, "kid": fd / 100}
    metrics = [metric(name, value, samples) for name, value in values.items()]
    settings = {LIKELIHOOD: likelihood} if likelihood else {}
    metrics.append(metric("bits_per_dim", fd / 4, samples, settings))
    metadata = {
        **facts,
        "model": "vae",
        "model_digest": model.digest,
        "metrics": [each.model_dump(mode="json") for each in metrics],
    }
    parents = {"samples": fingerprint("samples", text)}
    publish(
        evaluation,
        Manifest(
            kind="evaluation",
            fingerprint=fingerprint(text),
            parents=parents,
            files=pictures,
            metadata=metadata,
        ),
    )
    return model.digest


class World:
    """A recipe and its root.

    Args:
        folder: of the recipe.
        root: URL of the root.
        tracking: the recipe's section, as YAML.
    """

    def __init__(self, folder: Path, root: str, tracking: str) -> None:
        self.root = root
        self.recipe = folder / "my.yaml"
        self.recipe.write_text(RECIPE.format(root=root, tracking=tracking))

    def at(self, number: int) -> str:
        """The root of a version of the dataset."""
        return self.root if number == 1 else f"{self.root}/retrain/v{number:04d}"

    def add(
        self, number: int, fd: float, samples: int = 100, shown: Mapping[str, Any] | None = None
    ) -> str:
        """Train and evaluate version NUMBER; the model's digest. ``shown`` as for :func:`add_model`."""
        return add_model(self.at(number), f"version {number}", fd, samples, shown)

    @contextmanager
    def command(
        self, number: int = 1, *changes: str, lease: Lease | None = None
    ) -> Generator[Context]:
        """A command whose results are below a version's root."""
        context = Context(load_recipe(str(self.recipe), changes), ("vae",), lease=lease)
        try:
            yield context.with_root(self.at(number))
        finally:
            assert context.tracker.close(TIMEOUT_S)

    def entries(self) -> list[str]:
        """Names of the ledger's entries."""
        return storage.list_names(f"{self.root}/promotions/vae")
