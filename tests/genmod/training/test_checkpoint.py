"""Checkpoints under faults: torn, changed, foreign, doubled."""

import copy
import json

import pytest

from genmod import storage
from genmod.errors import ConfigError
from genmod.training.checkpoint import Checkpoints
from genmod.training.loop import Plan, train
from genmod.training.plan import TrainConfig
from genmod.world import Alone

CONFIG = TrainConfig(nimg=40, batch=4, log_every_nimg=12, checkpoint_every_nimg=8)


@pytest.fixture(params=["file", "memory"])
def checkpoints(request, tmp_path):
    url = str(tmp_path) if request.param == "file" else f"memory://{tmp_path}"
    return Checkpoints(url, "mine", CONFIG, keep=3)


@pytest.fixture
def crashed(checkpoints, gaussian, gaussian_stream):
    """Checkpoints at 8, 16 and 24 of a run that stopped at 28; gives the state of the straight run."""
    plan = Plan(CONFIG, 0, None, checkpoints)
    with pytest.raises(ConnectionError):
        train(copy.deepcopy(gaussian), gaussian_stream(stop=28), Alone(), plan)
    assert checkpoints.nimgs() == [8, 16, 24]
    return train(copy.deepcopy(gaussian), gaussian_stream(), Alone(), Plan(CONFIG, 0))


def resumed_at(checkpoints, gaussian, gaussian_stream) -> tuple[int, dict[str, bytes]]:
    """Where a new run goes on, and the state that it ends with."""
    starts = []

    def batches(start):
        starts.append(start)
        return gaussian_stream()(start)

    state = train(copy.deepcopy(gaussian), batches, Alone(), Plan(CONFIG, 0, None, checkpoints))
    return starts[0], state.files()


def folder_of(checkpoints, nimg):
    names = storage.list_names(checkpoints.url)
    (name,) = [name for name in names if name.startswith(f"{nimg:012d}-")]
    return storage.join(checkpoints.url, name)


def test_goes_on_from_the_newest(checkpoints, crashed, gaussian, gaussian_stream):
    assert resumed_at(checkpoints, gaussian, gaussian_stream) == (24, crashed.files())
    assert checkpoints.nimgs() == [24, 32, 40]
    assert len(storage.list_names(checkpoints.url)) == 6
    checkpoints.remove()
    assert checkpoints.nimgs() == []


@pytest.mark.parametrize("file", ["model.safetensors", "optimiser.safetensors", "state.json"])
@pytest.mark.parametrize("fault", ["gone", "torn", "changed"])
def test_walks_back_over_faults(file, fault, checkpoints, crashed, gaussian, gaussian_stream):
    url = storage.join(folder_of(checkpoints, 24), file)
    data = storage.read_bytes(url)
    if fault == "gone":
        storage.remove(url)
    else:
        torn = data[: len(data) // 2]
        changed = data[:-1] + bytes([data[-1] ^ 1])
        storage.write_bytes(url, torn if fault == "torn" else changed)
    assert resumed_at(checkpoints, gaussian, gaussian_stream) == (16, crashed.files())
    assert checkpoints.nimgs() == [24, 32, 40]


def test_changed_receipt_does_not_count(checkpoints, crashed, gaussian, gaussian_stream):
    newest, older = (storage.join(checkpoints.url, f"{nimg:012d}.json") for nimg in (24, 16))
    storage.write_bytes(newest, b"{")
    told = json.loads(storage.read_bytes(older))
    told["facts"]["nimg"] = 20
    storage.write_bytes(older, json.dumps(told).encode())
    assert resumed_at(checkpoints, gaussian, gaussian_stream) == (8, crashed.files())


def test_folder_without_a_receipt_does_not_count_and_goes(
    checkpoints, crashed, gaussian, gaussian_stream
):
    storage.write_bytes(storage.join(checkpoints.url, f"{4:012d}-aa", "model.safetensors"), b"half")
    storage.write_bytes(
        storage.join(checkpoints.url, f"{28:012d}-bb", "model.safetensors"), b"half"
    )
    assert resumed_at(checkpoints, gaussian, gaussian_stream)[0] == 24
    names = storage.list_names(checkpoints.url)
    assert not [name for name in names if name.startswith(f"{4:012d}")]


def test_second_writer_loses_and_cleans_up(checkpoints, crashed):
    before = storage.list_names(checkpoints.url)
    state = copy.copy(crashed)
    state.nimg = 24
    checkpoints.save(state.snapshot())
    assert storage.list_names(checkpoints.url) == before


def test_another_runs_checkpoints_are_refused(checkpoints, crashed, gaussian, gaussian_stream):
    other = Checkpoints(checkpoints.root, "yours", CONFIG)
    with pytest.raises(ConfigError, match="checkpoints of another recipe"):
        resumed_at(other, gaussian, gaussian_stream)
    assert checkpoints.nimgs() == [8, 16, 24]


def test_nothing_is_pickled(checkpoints, crashed):
    folder = folder_of(checkpoints, 24)
    for name in storage.list_names(folder):
        data = storage.read_bytes(storage.join(folder, name))
        header = data[8 : 8 + int.from_bytes(data[:8], "little")]
        json.loads(data if name.endswith(".json") else header)
