"""A root whose models are only folders: evaluated and promoted without Ray, with the real MLflow."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from genmod import storage
from genmod.config import fingerprint
from genmod.lease import Lease
from genmod.manifest import Manifest, publish, write_file
from genmod.metrics.protocol import Interval, MetricResult, MetricValue, Protocol
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


def metric(name: str, value: float, samples: int = 100) -> MetricResult:
    """A metric with an interval of 0.1 to either side."""
    protocol = Protocol(
        metric=name,
        features="pca@1a2b3c4d",
        features_digest="1a2b3c4d",
        reference_digest="5e6f",
        reference_split="test",
        n_real=100,
        n_fake=samples,
    )
    interval = Interval(low=value - 0.1, high=value + 0.1, method="normal")
    measured = MetricValue.of(protocol, value, interval)
    return MetricResult(value=measured, floor=None, ceiling=None, better="lower")


def add_model(root: str, text: str, fd: float, samples: int = 100) -> str:
    """Publish a model and its evaluation below a root; the model's digest."""
    folder, evaluation = f"{root}/models/vae", f"{root}/evaluation/vae"
    files = [
        write_file(folder, name, f"{name} of {text}".encode())
        for name in ("config.json", "ema.safetensors")
    ]
    work = fingerprint("model", text)
    parents = {"dataset": fingerprint("data", root)}
    manifest = Manifest(kind="model", fingerprint=work, parents=parents, files=tuple(files))
    model = publish(folder, manifest)
    values = {"fd": fd, "kid": fd / 100, "bits_per_dim": fd / 4}
    metrics = [metric(name, value, samples) for name, value in values.items()]
    metadata = {
        "model": "vae",
        "model_digest": model.digest,
        "metrics": [each.model_dump(mode="json") for each in metrics],
    }
    parents = {"samples": fingerprint("samples", text)}
    publish(
        evaluation,
        Manifest(
            kind="evaluation", fingerprint=fingerprint(text), parents=parents, metadata=metadata
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

    def add(self, number: int, fd: float, samples: int = 100) -> str:
        """Train and evaluate version NUMBER; the model's digest."""
        return add_model(self.at(number), f"version {number}", fd, samples)

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
