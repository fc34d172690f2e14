"""Documents of retraining and tracking: written as commands write them, and read as others do.

A list of what a version replaces, a choice of a start, a finding about drift, a net in an ONNX file, and a
spool, whose replay speaks to a store of runs in memory instead of MLflow.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from genmod import storage
from genmod.config import canonical_json
from genmod.manifest import ImageSpec, Manifest, load_manifest, publish
from genmod.metrics.features import FeaturesConfig, fit_extractor, load_extractor, save_extractor
from genmod.metrics.onnx_file import OnnxConfig
from genmod.scoring.drift import Drift
from genmod.scoring.drift_job import drift_from
from pipelines.recipe.context import Context
from pipelines.recipe.recipe import load_recipe
from pipelines.stages.replaced import (
    REPLACED_NAME,
    ReplacedItem,
    ReplacedList,
    find_replaced,
    load_replaced,
    replaced_by,
    replaced_digests,
)
from pipelines.stages.warm_start import StartChoice, chosen_start
from pipelines.tracking import replay
from pipelines.tracking.place import TrackingConfig
from pipelines.tracking.records import (
    ArtifactRecord,
    ClosedRecord,
    DeliveredRecord,
    EndRecord,
    MetricsRecord,
    ModelRecord,
    OutcomeRecord,
    RunRecord,
)
from pipelines.tracking.spool import StoredSpool, stored_spools
from pipelines.tracking.tracker import Tracker
from tests.onnx_files import pooled_conv

VERSION = "retrain/v0002"
"""Folder of a version that replaces the one before."""

DRIFT = "drift/0123456789abcdef/m"
NET = "nets/net.onnx"
SPOOL = "spool/20261130T020000-0123456789ab.jsonl"

_SPEC = ImageSpec(channels=1, height=8, width=8, classes=2)


def write_version(folder: Path) -> None:
    """Write the list of what version 2 replaces, its choice of a start, and a finding about drift."""
    model = load_manifest(Manifest, str(folder / "models" / "m"), "model")
    assert model is not None
    items = (
        ReplacedItem(kind="dataset", path="data", digest="ab" * 32, version=1),
        ReplacedItem(kind="model", path="models/m", digest=model.digest, version=1),
        ReplacedItem(
            kind="synthetic dataset", path="samples/m", digest="cd" * 32, version=1,
            model=model.digest,
        ),
    )  # fmt: skip
    listed = ReplacedList(version=2, reason="3 rows of version 1 were removed", items=items)
    choice = StartChoice(path="models/m", digest=model.digest)
    for name, document in ((REPLACED_NAME, listed), ("start/m.json", choice)):
        data = canonical_json(document.model_dump(mode="json"))
        storage.write_bytes(str(folder / VERSION / name), data)
    drift = Drift(p_value=1e-5, score="corrected score", rows=500, expected=10.5, found=40)
    manifest = Manifest(
        kind="drift",
        fingerprint="f",
        parents={"model": model.digest},
        metadata={"model": "m", "drift": drift.model_dump(mode="json")},
    )
    publish(str(folder / DRIFT), manifest)


def read_version(folder: Path) -> None:
    """Read the list and the choice, as retrain, models and inspect do."""
    root = str(folder)
    load_replaced(f"{root}/{VERSION}")
    for digest, found in replaced_digests(root).items():
        if replaced_by(root, digest) is None or not found.mark.isprintable():
            raise RuntimeError("a list is read in two ways")
    find_replaced(f"{root}/samples/m", "cd" * 32)


def read_start(folder: Path) -> None:
    """Read where the training of version 2 starts from."""
    context = Context(load_recipe(str(folder / "ledger.yaml")), ("m",))
    start = chosen_start(context.with_root(str(folder / VERSION)), "m")
    if start is not None and not storage.is_below(start.root, str(folder)):
        raise RuntimeError(f"a start from {start.root}")


def read_drift(folder: Path) -> None:
    """Read a finding about drift."""
    root = str(folder / DRIFT)
    manifest = load_manifest(Manifest, root, "drift")
    assert manifest is not None
    if not drift_from(manifest, root).text.isprintable():
        raise RuntimeError("a finding that is not printable")


def write_net(folder: Path) -> None:
    """Write a net of one convolution, and the features' folder that has it."""
    weight = torch.linspace(-1, 1, 6 * 27).reshape(6, 3, 3, 3)
    storage.write_bytes(str(folder / NET), pooled_conv(weight))


def read_net(folder: Path, out: Path) -> None:
    """Use a net whose digest the recipe names, publish it as features, and load it from there."""
    data = (folder / NET).read_bytes()
    named = OnnxConfig(file=str(folder / NET), sha256=storage.sha256(data), size=8)
    config = FeaturesConfig(kind="onnx", onnx=named)
    pixels_NCHW = torch.arange(4 * 64).reshape(4, 1, 8, 8).to(torch.uint8)
    extractor = fit_extractor(config, _SPEC, pixels_NCHW, None, seed=0)
    features = extractor.extract(pixels_NCHW)
    root = str(out / "features")
    files = save_extractor(extractor, root)
    storage.remove(f"{root}/features.json")
    publish(root, Manifest(kind="features", fingerprint="f", files=files))
    again = load_extractor(root, named).extract(pixels_NCHW)
    if not torch.equal(again.features_ND, features.features_ND):
        raise RuntimeError("a net has other features when it is loaded again")


def write_spool(folder: Path) -> None:
    """Write what a command leaves that MLflow did not accept anything of."""
    file, model = str(folder / "evaluation" / "m" / "samples.png"), folder / "models" / "m"
    manifest = load_manifest(Manifest, str(model), "model")
    assert manifest is not None
    run = {"stage": "train", "name": "m", "fingerprint": "f1", "time_ms": 1_700_000_000_000}
    records = (
        RunRecord(run=1, params={"train.nimg": "32"}, inputs={"data": ("root", "ab")}, **run),
        RunRecord(run=2, parent=1, params={}, inputs={}, **run | {"stage": "evaluate"}),
        MetricsRecord(run=1, points=((1_700_000_000_001, 8, {"loss": 1.5, "lr": 1e-3}),)),
        ArtifactRecord(run=2, url=file, folder="plots", digest=storage.sha256_of(file)),
        ModelRecord(
            run=1, name="m", digest=manifest.digest, root=str(model), recipe_yaml="root: x\n"
        ),
        EndRecord(run=1, status="FINISHED", tags={"genmod.rows": "32"}, time_ms=1_700_000_000_002),
        OutcomeRecord(delivery="0" * 32, body="{}"),
        DeliveredRecord(delivery="0" * 32),
        ClosedRecord(),
    )  # fmt: skip
    lines = b"".join(record.model_dump_json().encode() + b"\n" for record in records)
    storage.write_bytes(str(folder / SPOOL), lines)


class _Runs:
    """Runs in memory, with the methods of a store of runs that a replay uses."""

    def __init__(self) -> None:
        self.runs: dict[str, Any] = {}
        self.metrics: dict[tuple[str, str], set[int]] = {}

    def find(self, record: RunRecord) -> list[Any]:
        key = f"{record.stage} {record.name} {record.fingerprint}"
        return [self.runs[key]] if key in self.runs else []

    def create(self, record: RunRecord, parent_id: str | None) -> Any:
        key = f"{record.stage} {record.name} {record.fingerprint}"
        info = SimpleNamespace(run_id=f"run{len(self.runs)}", status="RUNNING", parent=parent_id)
        return self.runs.setdefault(key, SimpleNamespace(info=info))

    def describe(self, run: Any, record: RunRecord) -> None:
        run.params = dict(record.params)

    def logged_nimg(self, run_id: str, key: str) -> set[int]:
        return self.metrics.setdefault((run_id, key), set())

    def log(self, run_id: str, values: Sequence[tuple[str, float, int, int]]) -> None:
        for key, value, _, nimg in values:
            _ = float(value)
            self.metrics[run_id, key].add(nimg)

    def upload(self, run_id: str, url: str, folder: str) -> None:
        del run_id, folder
        storage.size_bytes(url)

    def terminate(self, run_id: str, status: str, tags: dict[str, str], time_ms: int) -> None:
        del run_id, status, tags, time_ms


class _Tracker(Tracker):
    """A tracker whose requests are made at once, to runs in memory."""

    def query(self, request: Callable[[Any], Any]) -> Any:
        return request(None)


def replay_spool(folder: Path) -> None:
    """Replay the spools of a folder, twice for what stays."""
    tracker = _Tracker(TrackingConfig(enabled=False), str(folder))
    tracker.store = _Runs()  # type: ignore[assignment]
    before, replay.ensure_version = replay.ensure_version, _no_version
    try:
        for spool in stored_spools(str(folder)):
            list(StoredSpool(spool.urls).records())
            summary = replay.ReplaySummary()
            sender = replay.Replay(tracker, summary)
            sender.send(spool)
            if summary.problems:
                sender.send(spool)
            if not all(line.isprintable() for line in (summary.line(), *summary.problems)):
                raise RuntimeError("a summary that is not printable")
    finally:
        replay.ensure_version = before


def _no_version(tracker: Tracker, run_id: str, entry: Any) -> Any:
    del tracker, run_id
    return entry
