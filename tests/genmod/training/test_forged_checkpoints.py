"""Checkpoints that are not what they say: skipped for the next older one, and nothing of them is loaded."""

import copy
import json
import os

import pytest
import torch
from safetensors import torch as safetensors

from genmod import storage
from genmod.budget import BUDGET
from genmod.config import canonical_json, fingerprint
from genmod.errors import DataError
from genmod.training.checkpoint import Checkpoints
from genmod.training.ema import averaged
from genmod.training.loop import Plan, train
from genmod.training.optim import PhaseOptimiser
from genmod.training.plan import TrainConfig
from genmod.training.state import TrainState
from genmod.world import SingleProcess

CONFIG = TrainConfig(nimg=40, batch=4, log_every_nimg=12, checkpoint_every_nimg=8)


def folder_of(checkpoints, nimg):
    names = storage.list_names(checkpoints.url)
    (name,) = [name for name in names if name.startswith(f"{nimg:012d}-")]
    return storage.join(checkpoints.url, name)


def reseal(checkpoints, nimg, contents=None, **changes):
    """Replace a checkpoint by a forged one: other contents, but right digests."""
    url = storage.join(checkpoints.url, f"{nimg:012d}.json")
    receipt = json.loads(storage.read_bytes(url))
    by_name = {entry["path"].rpartition("/")[2]: entry for entry in receipt["files"]}
    for name, data in (contents or {}).items():
        if data is None:
            receipt["files"].remove(by_name[name])
            continue
        entry = by_name.get(name)
        if entry is None:
            folder = receipt["files"][0]["path"].partition("/")[0]
            entry = {"path": f"{folder}/{name}"}
            receipt["files"].append(entry)
        storage.write_bytes(storage.join(checkpoints.url, entry["path"]), data)
        entry |= {"size_bytes": len(data), "sha256": storage.sha256(data)}
    for key, value in changes.items():
        part, _, name = key.partition("__")
        target = receipt[part] if name else receipt
        target[name or part] = value
    digest = fingerprint({key: value for key, value in receipt.items() if key != "digest"})
    storage.write_bytes(url, canonical_json(receipt | {"digest": digest}))


def tensors_with(data, change):
    tensors = safetensors.load(data)
    change(tensors)
    return safetensors.save(tensors)


def first(tensors, ends=""):
    return next(name for name in sorted(tensors) if name.endswith(ends))


def filled(value, ends=""):
    return lambda tensors: tensors[first(tensors, ends)].fill_(value)


def cast(tensors):
    tensors[first(tensors)] = tensors[first(tensors)].half()


def longer(tensors):
    tensors[first(tensors)] = torch.zeros(7, 7)


def state_with(data, **changes):
    state = json.loads(data)
    for key, value in changes.items():
        part, _, name = key.partition("__")
        target = state[part] if name else state
        target[name or part] = value
    return canonical_json(state)


TENSORS = {
    "NaN": filled(float("nan")),
    "infinity": filled(float("inf")),
    "float16": cast,
    "shape": longer,
    "missing": lambda tensors: tensors.pop(first(tensors)),
    "extra": lambda tensors: tensors.update(extra=torch.zeros(2)),
}
MOMENTS = {"negative": filled(-1.0, "exp_avg_sq"), "negative step": filled(-1.0, "step")}
STATES = {
    "nimg": {"nimg": 16},
    "negative": {"nimg": -24},
    "text": {"nimg": "many"},
    "no number": {"nimg": None},
    "metrics": {"step_metrics": []},
    "other phase": {"step_metrics__keys": ["other/loss"]},
    "unknown quantity": {"step_metrics__reduced": [[20, {"fit/other": 1.0}]]},
    "row": {"step_metrics__reduced": [[20]]},
    "monitors": {"monitors": {"lr_scale": 1.0}},
    "unknown field": {"monitors__other": 1},
    "scale": {"monitors__lr_scale": -1.0},
    "events": {"monitors__events": [1]},
    "best without weights": {"monitors__best_nimg": 8},
}
FORGED = {
    **{
        f"{file} {name}": (f"{file}.safetensors", lambda data, c=change: tensors_with(data, c))
        for file in ("model", "ema", "optimiser")
        for name, change in (TENSORS | (MOMENTS if file == "optimiser" else {})).items()
    },
    **{
        f"state {name}": ("state.json", lambda data, c=changes: state_with(data, **c))
        for name, changes in STATES.items()
    },
    "state is a list": ("state.json", lambda data: b"[]"),
    "state is deep": ("state.json", lambda data: b"[" * 100_000),
    "state is gone": ("state.json", lambda data: None),
    "optimiser is gone": ("optimiser.safetensors", lambda data: None),
    "unknown file": ("other.bin", lambda data: b"x"),
    "best is unexpected": ("best.safetensors", lambda data: safetensors.save({})),
    "header of 2^60": (
        "model.safetensors",
        lambda data: (1 << 60).to_bytes(8, "little") + data[8:],
    ),
}


@pytest.fixture
def on_disk(tmp_path, gaussian, gaussian_stream):
    """Checkpoints at 8, 16 and 24 of a run that stopped at 28, in files."""
    checkpoints = Checkpoints(str(tmp_path), "mine", CONFIG, keep=3)
    with pytest.raises(ConnectionError):
        train(
            copy.deepcopy(gaussian),
            gaussian_stream(stop=28),
            SingleProcess(),
            Plan(CONFIG, 0, None, checkpoints),
        )
    return checkpoints


@pytest.fixture
def fresh(gaussian):
    """A state that has seen nothing."""
    return new_state(gaussian)


def new_state(gaussian):
    model = copy.deepcopy(gaussian)
    optimisers = [PhaseOptimiser(model, p, CONFIG.optim_of(p.name)) for p in model.phases()]
    return TrainState(0, model, averaged(model), optimisers)


@pytest.mark.parametrize("forged", FORGED)
def test_a_checkpoint_with_another_state_is_skipped(forged, on_disk, fresh, gaussian, caplog):
    """It has the right digests. The next older one is used; nothing of it stays in the state."""
    file, change = FORGED[forged]
    url = storage.join(folder_of(on_disk, 24), file)
    data = storage.read_bytes(url) if storage.exists(url) else b""
    reseal(on_disk, 24, {file: change(data)})
    before = fresh.files()
    with pytest.raises(DataError) as error:
        on_disk.restore(24, fresh)
    assert "an older checkpoint is used" in str(error.value)
    assert len(str(error.value).splitlines()) == 1
    assert fresh.files() == before, "half of it was loaded"
    assert on_disk.newest(fresh) == 16
    assert caplog.text.count("skipping a damaged checkpoint") == 1
    expected = new_state(gaussian)
    on_disk.restore(16, expected)
    assert fresh.files() == expected.files()


def entry(path):
    return {"path": path, "size_bytes": 1, "sha256": "a" * 64}


RECEIPTS = {
    "nimg": {"metadata__nimg": 16},
    "loss is text": {"metadata__val_loss": "low"},
    "no metadata": {"metadata": {}},
    "no files": {"files": []},
    "other folder": {
        "files": [{"path": "../model.safetensors", "size_bytes": 1, "sha256": "a" * 64}]
    },
    "absolute": {"files": [entry("/etc/hostname")]},
    "digest of a file": {
        "files": [{"path": f"{24:012d}-{'a' * 12}/state.json", "size_bytes": 1, "sha256": "a"}]
    },
    "kind": {"kind": "model"},
    "format": {"format": 99},
}


@pytest.mark.parametrize("forged", RECEIPTS)
def test_a_forged_receipt_is_skipped(forged, on_disk, fresh, caplog):
    reseal(on_disk, 24, **RECEIPTS[forged])
    assert on_disk.kept() == [8, 16, 24]
    assert on_disk.newest(fresh) == 16
    assert caplog.text.count("skipping a damaged checkpoint") == 1


def test_a_receipt_without_end_is_skipped(on_disk, fresh, caplog):
    os.truncate(f"{on_disk.url}/{24:012d}.json", BUDGET.document_bytes + 1)
    assert on_disk.newest(fresh) == 16
    assert "is longer than" in caplog.text


@pytest.mark.parametrize("file", ["model", "ema", "optimiser"])
def test_tensors_of_another_size_are_not_read(file, on_disk, fresh, caplog):
    """A sparse file takes no space on disk, and more memory than there is."""
    url = storage.join(on_disk.url, f"{24:012d}.json")
    receipt = json.loads(storage.read_bytes(url))
    (entry,) = [e for e in receipt["files"] if e["path"].endswith(f"/{file}.safetensors")]
    os.truncate(f"{on_disk.url}/{entry['path']}", 1 << 35)
    entry["size_bytes"] = 1 << 35
    digest = fingerprint({key: value for key, value in receipt.items() if key != "digest"})
    storage.write_bytes(url, canonical_json(receipt | {"digest": digest}))
    assert on_disk.newest(fresh) == 16
    assert f"{file}.safetensors has 34,359,738,368 bytes, but its net has" in caplog.text


def test_without_a_whole_checkpoint_the_state_stays_new(on_disk, fresh):
    for nimg in (8, 16, 24):
        reseal(on_disk, nimg, {"state.json": None})
    before = fresh.files()
    assert on_disk.newest(fresh) is None
    assert fresh.files() == before
