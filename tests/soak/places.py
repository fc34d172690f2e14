"""Folders of the soak test's jobs, local and in an S3 store: their inputs, and what they delivered."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from genmod import storage
from genmod.config import as_json
from genmod.interface.model import DataStats
from genmod.interface.registry import ModelConfig, family
from genmod.manifest import DatasetManifest, Manifest, find_problems, load_manifest
from genmod.training.publish import publish_model
from genmod.training.state import TrainState
from tests.builders import write_noise
from tests.soak.ranks import SPEC
from tests.stores.proxy import Kind, Proxy
from tests.stores.weed import BUCKET

FAULTS: tuple[Kind, ...] = ("late", "lose", "503", "cut", "refuse")
FAULT_EVERY = 150
"""One of this many requests to the faulty store fails."""


class Places:
    """The folders of one soak test."""

    def __init__(self, folder: Path, proxy: Proxy | None, rows: int) -> None:
        self._folder, self._proxy, self._rows = folder, proxy, rows
        self._made: set[str] = set()

    @contextmanager
    def faults(self, place: str) -> Generator[None]:
        """Some requests to the store fail, if the place is the faulty store."""
        if self._proxy is None or place != "faulty s3":
            yield
            return
        self._proxy.every, self._proxy.cycle = FAULT_EVERY, FAULTS
        try:
            yield
        finally:
            self._proxy.every = 0

    def root(self, name: str, place: str) -> str:
        """URL of a folder."""
        return str(self._folder / name) if place == "local" else f"s3://{BUCKET}/soak/{name}"

    def inputs(self, name: str, place: str) -> dict[str, Any]:
        """The model of a family and the dataset, written where they are not there yet, for a driver."""
        assert place == "local" or self._proxy, "a configuration needs a store"
        model, data = self.root(f"model-{name}", place), self.root("rows", place)
        self._once(data, lambda: write_noise(data, SPEC, {"train": self._rows, "val": 40}))
        self._once(model, lambda: _publish(model, name))
        return {"model": model, "data": data}

    def _once(self, root: str, write: Callable[[], object]) -> None:
        if root not in self._made:
            write()
            self._made.add(root)

    def whole(self, root: str, kind: str | None) -> Manifest | None:
        """The manifest of a folder; None if there is none, or if a file is not as listed."""
        for each in ("dataset", "scores") if kind is None else (kind,):
            schema = DatasetManifest if each == "dataset" else Manifest
            manifest = load_manifest(schema, root, each)
            if manifest is not None:
                files = list(manifest.files)
                if isinstance(manifest, DatasetManifest):
                    files += [f for shard in manifest.shards for f in (shard.tar, shard.index)]
                return None if find_problems(root, files) else manifest
        return None

    def rows(self, root: str, manifest: Manifest) -> Counter[str]:
        """Keys of a dataset or of scores, and their numbers of occurrences."""
        rows: Counter[str] = Counter()
        if isinstance(manifest, DatasetManifest):
            tables = [(shard.split, shard.index.path) for shard in manifest.shards]
        else:
            names = [entry.path for entry in manifest.files]
            tables = [("", name) for name in names if name != "quarantine.parquet"]
        for split, name in tables:
            data = storage.read_below(root, name, limit_bytes=1 << 24)
            table = pq.read_table(io.BytesIO(data), columns=["key"])
            rows.update(f"{split}/{key}" for key in table["key"].to_pylist())
        return rows


def _publish(root: str, name: str) -> None:
    """Publish a model of random weights."""
    stats = DataStats(mean=(0.0,), std=(0.5,))
    net = as_json(family(name).Config.tiny())
    config = ModelConfig(family=name, net=net, spec=SPEC, stats=stats)
    state = TrainState(0, config.build(1), config.build(2), ())
    publish_model(root, config, state, fingerprint="soak", parents={}, metadata={})
