"""Checkpoints under faults: torn, changed, foreign, doubled."""

import copy
import json
import threading
import uuid
from dataclasses import replace

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given, settings
from hypothesis import strategies as st

from genmod import storage
from genmod.errors import ConfigError, StorageError
from genmod.storage import urls
from genmod.storage.objects import PENDING
from genmod.training.checkpoint import Checkpoints
from genmod.training.loop import Plan, train
from genmod.training.metric_log import read_metrics
from genmod.training.monitors.validation import Validation
from genmod.training.plan import TrainConfig
from genmod.training.state import StateSnapshot
from genmod.world import SingleProcess
from tests.stores.proxy import Fault

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
        train(copy.deepcopy(gaussian), gaussian_stream(stop=28), SingleProcess(), plan)
    assert checkpoints.nimgs() == [8, 16, 24]
    return train(copy.deepcopy(gaussian), gaussian_stream(), SingleProcess(), Plan(CONFIG, 0))


def resumed_at(checkpoints, gaussian, gaussian_stream) -> tuple[int, dict[str, bytes]]:
    """Where a new run goes on, and the state that it ends with."""
    starts = []

    def batches(start):
        starts.append(start)
        return gaussian_stream()(start)

    state = train(
        copy.deepcopy(gaussian), batches, SingleProcess(), Plan(CONFIG, 0, None, checkpoints)
    )
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


def test_files_of_a_user_stay(tmp_path, checkpoints, crashed):
    """Also where a link leads to a folder of another."""
    if checkpoints.root.startswith("memory:"):
        pytest.skip("memory has no links")
    other = tmp_path / "other"
    (tmp_path / "checkpoints").rename(other)
    (tmp_path / "checkpoints").symlink_to(other)
    (other / "thesis.tex").write_text("mine")
    (other / "0123").mkdir()
    (other / f"{PENDING}abc").write_text("of a killed writer")
    checkpoints.remove()
    assert sorted(path.name for path in other.iterdir()) == ["0123", "thesis.tex"]
    assert (tmp_path / "checkpoints").is_symlink()
    checkpoints.remove()


def test_nothing_is_left_of_the_folder(tmp_path, checkpoints, crashed):
    checkpoints.remove()
    assert not (tmp_path / "checkpoints").exists()


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
    receipt = json.loads(storage.read_bytes(older))
    receipt["metadata"]["nimg"] = 20
    storage.write_bytes(older, json.dumps(receipt).encode())
    assert resumed_at(checkpoints, gaussian, gaussian_stream) == (8, crashed.files())


def test_folder_without_a_receipt_does_not_count_and_goes(
    checkpoints, crashed, gaussian, gaussian_stream
):
    storage.write_bytes(
        storage.join(checkpoints.url, f"{4:012d}-{'aa' * 6}", "model.safetensors"), b"half"
    )
    storage.write_bytes(
        storage.join(checkpoints.url, f"{28:012d}-{'bb' * 6}", "model.safetensors"), b"half"
    )
    assert resumed_at(checkpoints, gaussian, gaussian_stream)[0] == 24
    names = storage.list_names(checkpoints.url)
    assert not [name for name in names if name.startswith(f"{4:012d}")]


def test_only_files_that_checkpoints_make_are_deleted(
    checkpoints, crashed, gaussian, gaussian_stream
):
    """A user's files among them stay, however their names start."""
    others = ["0000-notes/a.txt", f"{4:012d}-best/b.txt", "00000000.json", "backup.json", "٣.json"]
    for name in others:
        storage.write_bytes(storage.join(checkpoints.url, name), b"mine")
    assert checkpoints.nimgs() == [8, 16, 24]
    assert resumed_at(checkpoints, gaussian, gaussian_stream)[0] == 24
    assert all(storage.exists(storage.join(checkpoints.url, name)) for name in others)


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
    names = storage.list_names(folder)
    assert {name.rpartition(".")[2] for name in names} == {"json", "safetensors"}
    for name in names:
        data = storage.read_bytes(storage.join(folder, name))
        header = data[8 : 8 + int.from_bytes(data[:8], "little")]
        json.loads(data if name.endswith(".json") else header)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.none() | st.integers(0, 5), min_size=1, max_size=9), st.integers(1, 3))
def test_the_newest_and_the_best_are_kept(losses, keep):
    """Against the law said otherwise; after every save what is kept is whole."""
    snapshot = StateSnapshot(0, {}, b"{}")
    kept = Checkpoints(f"memory://{uuid.uuid4().hex}", "mine", CONFIG, keep)
    for number, loss in enumerate(losses):
        kept.save(replace(snapshot, nimg=number), loss)
        known = {at: value for at, value in enumerate(losses[: number + 1]) if value is not None}
        newest = set(range(max(0, number + 1 - keep), number + 1))
        if not known:
            assert set(kept.nimgs()) == newest
        else:
            nimgs = set(kept.nimgs())
            assert nimgs - newest <= {at for at in known if known[at] == min(known.values())}
            assert min(known[at] for at in nimgs & known.keys()) == min(known.values())
            assert newest <= nimgs
            assert len(nimgs) <= keep + 1
        folders = {name.partition("-")[0] for name in storage.list_names(kept.url) if "-" in name}
        assert folders == {f"{at:012d}" for at in kept.nimgs()}


def test_the_validation_loss_of_the_averaged_weights_says_which_is_best(
    gaussian, gaussian_stream, tmp_path
):
    config = CONFIG.model_copy(update={"validate_every_nimg": 16})
    checkpoints = Checkpoints(str(tmp_path), "mine", config, keep=1)
    rows = next(gaussian_stream()(1000))
    plan = Plan(config, 0, str(tmp_path), checkpoints, Validation(rows, 0, "fp32"))
    train(gaussian, gaussian_stream(), SingleProcess(), plan)
    losses = {p.nimg: p.metrics.get("val/fit/loss") for p in read_metrics(str(tmp_path))}
    measured = {nimg: loss for nimg, loss in losses.items() if loss is not None}
    assert set(measured) == {16, 32, 40}
    assert checkpoints.kept() == sorted({40, min(measured, key=measured.__getitem__)})


class Slow(MemoryFileSystem):
    """A store in memory that takes a write only when the gate is open."""

    protocol = "slow"
    store: dict = {}
    pseudo_dirs = [""]
    gate = threading.Event()
    at_once, most_at_once = 0, 0

    def pipe_file(self, path, value, mode="overwrite", **more):
        Slow.at_once += 1
        Slow.most_at_once = max(Slow.most_at_once, Slow.at_once)
        assert self.gate.wait(60), "training waited for the store"
        Slow.at_once -= 1
        return super().pipe_file(path, value, mode=mode, **more)


def test_training_goes_on_while_a_checkpoint_is_written(gaussian, gaussian_stream, monkeypatch):
    """The gate opens when training has come seven images short of the next checkpoint."""
    monkeypatch.setattr(urls, "SCHEMES", (*urls.SCHEMES, "slow"))
    fsspec.register_implementation("slow", Slow, clobber=True)
    checkpoints = Checkpoints("slow://root", "mine", CONFIG)
    straight = train(copy.deepcopy(gaussian), gaussian_stream(), SingleProcess(), Plan(CONFIG, 0))
    shut_at = []

    def batches(start):
        for nimg, batch in zip(range(start, 10**6, 4), gaussian_stream()(start), strict=False):
            if nimg == 12:
                shut_at.append(checkpoints.nimgs())
                Slow.gate.set()
            yield batch

    state = train(gaussian, batches, SingleProcess(), Plan(CONFIG, 0, None, checkpoints))
    assert shut_at == [[]]
    assert checkpoints.nimgs() == [32, 40], "the end waits for the last"
    assert Slow.most_at_once == 1
    restored = copy.deepcopy(state)
    checkpoints.restore(40, restored)
    assert restored.files() == straight.files() == state.files()


def test_a_write_that_fails_ends_training(gaussian, gaussian_stream, tmp_path):
    (tmp_path / "checkpoints").write_bytes(b"no folder")
    plan = Plan(CONFIG, 0, None, Checkpoints(str(tmp_path), "mine", CONFIG))
    with pytest.raises(StorageError, match="cannot write the checkpoint at 8 images to"):
        train(gaussian, gaussian_stream(), SingleProcess(), plan)
    assert "writer" not in {thread.name for thread in threading.enumerate()}


@pytest.mark.slow
def test_a_bucket_that_goes_away_is_an_error_and_the_last_checkpoint_stays(
    proxied_root, proxy, monkeypatch, gaussian, gaussian_stream
):
    limits = storage.StorageConfig(read_timeout_s=20, request_timeout_s=30, retry_timeout_s=2)
    for name, value in storage.environment_of(limits).items():
        monkeypatch.setenv(name, value)
    config = CONFIG.model_copy(update={"nimg": 12})
    checkpoints = Checkpoints(proxied_root, "mine", config, keep=3)
    straight = train(copy.deepcopy(gaussian), gaussian_stream(), SingleProcess(), Plan(config, 0))
    first = Plan(config.model_copy(update={"nimg": 8}), 0, None, checkpoints)
    train(copy.deepcopy(gaussian), gaussian_stream(), SingleProcess(), first)
    assert checkpoints.nimgs() == [8]
    proxy.faults.append(Fault("refuse", part="/checkpoints/000000000012", times=10**6))
    with pytest.raises(StorageError, match=r"cannot write the checkpoint at 12 images .*rerun"):
        train(
            copy.deepcopy(gaussian),
            gaussian_stream(),
            SingleProcess(),
            Plan(config, 0, None, checkpoints),
        )
    assert proxy.injected
    proxy.faults.clear()
    assert checkpoints.nimgs() == [8]
    ended = train(
        copy.deepcopy(gaussian),
        gaussian_stream(),
        SingleProcess(),
        Plan(config, 0, None, checkpoints),
    )
    assert ended.files() == straight.files()
    assert checkpoints.nimgs() == [8, 12]
