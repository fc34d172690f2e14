"""Real faults in real processes: kills at every step of a write, full disks, lost stores, other world sizes.

The ranks are forked by tests/soak/forge.py, without Ray; tests/pipelines/stages/test_train.py has Ray's side.
"""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from genmod import storage
from genmod.interface.registry import families
from genmod.manifest import DatasetManifest, Manifest, find_problems, load_manifest
from genmod.training.checkpoint import Checkpoints
from genmod.training.job import TrainJob
from genmod.training.metric_log import MetricFollower, read_metrics
from tests.soak.ranks import TRAIN, Forge, make_dataset, make_job

SHORT = TRAIN.model_copy(
    update={
        "nimg": 96,
        "log_every_nimg": 24,
        "validate_every_nimg": 24,
        "checkpoint_every_nimg": 24,
        "keep_checkpoints": 1,
    }
)


@pytest.fixture(scope="module")
def forge():
    forge = Forge()
    yield forge
    forge.close()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> tuple[str, DatasetManifest]:
    root = str(tmp_path_factory.mktemp("faults") / "data")
    return root, make_dataset(root)


@pytest.fixture(scope="module")
def straight(forge, dataset, tmp_path_factory) -> tuple[Manifest, list[str]]:
    """What an undisturbed training makes, and each step that it takes on the disk."""
    folder = tmp_path_factory.mktemp("straight")
    job, steps = make_job(*dataset, folder / "m", SHORT), folder / "steps"
    assert forge.run(job, steps=str(steps)) == 0
    return made(job), steps.read_text().splitlines()


def made(job: TrainJob) -> Manifest:
    """A finished job's model, whole and alone in its folder."""
    manifest = load_manifest(Manifest, job.root, "model")
    assert manifest is not None
    assert find_problems(job.root, manifest.files) == []
    assert not storage.exists(storage.join(job.root, "checkpoints"))
    return manifest


def checkpoints_of(job: TrainJob) -> Checkpoints:
    return Checkpoints(job.root, job.fingerprint, job.model, job.train.keep_checkpoints)


def whole(job: TrainJob) -> list[int]:
    """The checkpoints whose every file fits its digest."""
    nimgs = []
    for nimg in checkpoints_of(job).nimgs():
        url = storage.join(job.root, "checkpoints", f"{nimg:012d}.json")
        receipt = Manifest.model_validate(json.loads(storage.read_bytes(url)))
        if receipt.is_whole() and not find_problems(f"{job.root}/checkpoints", receipt.files):
            nimgs.append(nimg)
    return nimgs


@pytest.mark.slow
def test_a_kill_at_any_step_of_a_checkpoint_leaves_no_trace(forge, dataset, straight, tmp_path):
    manifest, steps = straight
    ours = [step for step in steps if "/000000000072" in step]
    later = steps[steps.index(ours[-1]) + 1 :]
    removals = [step for step in steps if step.startswith(("os.remove checkpoints/0", "os.rmdir"))]
    publishing = [step for step in later if "/" not in step]
    points = [*dict.fromkeys([*ours, *removals, *publishing])]
    assert {step.split()[0] for step in points} >= {"open", "fsync", "os.rename", "os.link"}
    assert len(points) > 40
    for number, step in enumerate(points):
        job = make_job(*dataset, tmp_path / str(number), SHORT)
        assert forge.run(job, die_at=step) == -9, step
        if not storage.exists(storage.join(job.root, "model.json")):
            assert whole(job) == checkpoints_of(job).nimgs() != [], step
        assert forge.run(job) == 0, step
        assert made(job) == manifest, step


def test_a_kill_at_any_write_of_the_metric_log_loses_and_doubles_no_point(
    forge, dataset, straight, tmp_path
):
    """The manifest has the digest of history.json, which has every point."""
    manifest, steps = straight
    kills = [step for step in steps if " metrics" in step]
    assert {step.split()[0] for step in kills} >= {"open", "fsync"}
    assert len(kills) >= 8
    for number, step in enumerate(kills):
        job = make_job(*dataset, tmp_path / str(number), SHORT)
        assert forge.run(job, die_at=step) == -9, step
        for path in (tmp_path / str(number)).glob("metrics/*/*.jsonl"):
            with path.open("ab") as stream:
                stream.write(b'{"metrics":{"train/all/l')  # as if the kill had torn the write
        follower = MetricFollower(job.root)
        seen = [point.nimg for point in follower.read()]
        assert forge.run(job) == 0, step
        assert made(job) == manifest, step
        for _ in range(4):  # it lists the folder again only after some reads without a new point
            seen += [point.nimg for point in follower.read()]
        assert seen == [24, 48, 72, 96], step


def rows_of_steps(folder: Path) -> list[dict[int, dict[str, str]]]:
    """For each group in order: a step's first position -> place in the stream -> digest of the pixels."""
    groups: dict[str, dict[int, dict[str, str]]] = {}
    for path in sorted(folder.iterdir()):
        group = groups.setdefault(path.name.rpartition("-")[0], {})
        for line in path.read_text().splitlines():
            rows = json.loads(line)
            step = group.setdefault(min(map(int, rows)) // TRAIN.batch * TRAIN.batch, {})
            assert not step.keys() & rows.keys(), "a row was dealt to two ranks"
            step |= rows
    return [groups[name] for name in sorted(groups)]


def test_any_number_of_ranks_goes_on_with_the_same_rows(forge, dataset, tmp_path):
    """4 ranks are killed, then 2, then 3 finish: as one process does it, up to rounding."""
    config = SHORT.model_copy(update={"nimg": 144})
    jobs = [make_job(*dataset, tmp_path / name, config) for name in ("alone", "groups")]
    alone, groups = tmp_path / "alone-ids", tmp_path / "groups-ids"
    alone.mkdir(), groups.mkdir()
    assert forge.run(jobs[0], ids=str(alone / "only-0")) == 0
    for number, size in enumerate((4, 2, 3)):
        options = {} if size == 3 else {"die_at": "fsync checkpoints #2"}
        pids = forge.start_group(
            jobs[1], size, tmp_path / f"store{number}", ids=str(groups), **options
        )
        statuses = [forge.wait(pid) for pid in pids]
        assert statuses == [0, 0, 0] if size == 3 else statuses[0] == -9 and 0 not in statuses
    (expected,) = rows_of_steps(alone)
    assert sorted(expected) == list(range(0, 144, 24))
    assert all(len(rows) == 24 for rows in expected.values())
    group_rows = rows_of_steps(groups)
    assert [min(steps) for steps in group_rows] == [0, 48, 96]
    for steps in group_rows:
        whole_steps = {at: rows for at, rows in steps.items() if len(rows) == 24}
        assert whole_steps == {at: expected[at] for at in whole_steps}
        for at, rows in steps.items():
            assert rows.items() <= expected[at].items()
    assert {at for steps in group_rows for at, rows in steps.items() if len(rows) == 24} == set(
        expected
    )
    points = [read_metrics(job.root) for job in jobs]
    assert [p.nimg for p in points[1]] == [p.nimg for p in points[0]] == list(range(24, 145, 24))
    for one, other in zip(*points, strict=True):
        losses = [key for key in one.metrics if key.endswith(("/loss", "/grad_norm", "/lr"))]
        assert len(losses) == 4
        for key in losses:
            assert other.metrics[key] == pytest.approx(one.metrics[key], rel=2e-4)
    assert made(jobs[1]).fingerprint == made(jobs[0]).fingerprint


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 3])
def test_a_group_that_is_killed_and_goes_on_ends_bitwise_the_same(size, forge, dataset, tmp_path):
    """Three ranks add in an order that the layout of gradients decides; a start may not change it."""
    made_by = []
    for name, steps in (("straight", ()), ("killed", ("fsync checkpoints #2",) * 2)):
        job = make_job(*dataset, tmp_path / name, TRAIN.model_copy(update={"nimg": 480}))
        for number, step in enumerate((*steps, None)):
            options = {"die_at": step} if step else {}
            store = tmp_path / f"{name}-{number}"
            statuses = [forge.wait(pid) for pid in forge.start_group(job, size, store, **options)]
            assert (statuses[0] == -9) if step else (statuses == [0] * size)
        made_by.append(made(job))
    assert made_by[0] == made_by[1]


ONE_LINE = re.compile(r"StorageError: .*resumes from the newest whole checkpoint\n", re.DOTALL)


def error_line(path: Path) -> str:
    """The error output of a process: one line without a traceback."""
    text = path.read_text()
    assert ONE_LINE.fullmatch(text), text
    assert text.count("\n") == 1
    return text


def test_a_full_disk_is_one_line_and_the_last_checkpoint_stays(forge, dataset, straight, tmp_path):
    disk, errors = tmp_path / "disk", tmp_path / "errors"
    disk.mkdir()
    probe = make_job(*dataset, tmp_path / "probe", SHORT)
    assert forge.run(probe, die_at="fsync checkpoints #1") == -9
    size = sum(f.stat().st_blocks * 512 for f in (tmp_path / "probe").rglob("*") if f.is_file())
    kib = size * 5 // 4 // 1024
    mount = ("mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(disk))
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this user cannot mount a small disk")
    try:
        job = make_job(*dataset, disk / "m", SHORT)
        assert forge.run(job, stderr=str(errors)) == 2
        assert "No space left on device" in error_line(errors)
        assert whole(job) == checkpoints_of(job).nimgs() == [24]
        assert not list(disk.rglob(".pending-*"))
        subprocess.run(("mount", "-o", "remount,size=64m", str(disk)), check=True)
        assert forge.run(job) == 0
        assert made(job) == straight[0]
    finally:
        subprocess.run(("umount", str(disk)), check=True)


def test_a_file_that_may_not_grow_is_one_line(forge, dataset, straight, tmp_path):
    job, errors = make_job(*dataset, tmp_path / "m", SHORT), tmp_path / "errors"
    assert forge.run(job, die_at="fsync checkpoints #2") == -9
    before = whole(job)
    assert forge.run(job, file_bytes=2_000, stderr=str(errors)) == 2
    assert "File too large" in error_line(errors)
    assert whole(job) == checkpoints_of(job).nimgs() == before != []
    assert forge.run(job) == 0
    assert made(job) == straight[0]


@pytest.mark.parametrize("step", ["open checkpoints/000000000072-*/.pending-* #3",
                                  "os.link checkpoints/000000000072.json #1"])  # fmt: skip
def test_a_store_that_goes_away_is_one_line(step, forge, dataset, straight, tmp_path):
    job, errors = make_job(*dataset, tmp_path / "m", SHORT), tmp_path / "errors"
    assert forge.run(job, lose_at=step, stderr=str(errors)) == 2
    assert re.search(
        r"cannot write the checkpoint at 72 images to \S+/checkpoints \(", error_line(errors)
    )
    (tmp_path / "m").unlink()
    (tmp_path / "m.away").rename(tmp_path / "m")
    assert 48 in whole(job)
    assert whole(job) == checkpoints_of(job).nimgs()
    assert forge.run(job) == 0
    assert made(job) == straight[0]


def test_a_store_that_goes_away_under_the_metrics_is_one_line(forge, dataset, straight, tmp_path):
    job, errors = make_job(*dataset, tmp_path / "m", SHORT), tmp_path / "errors"
    step = "open metrics/000000000000-*/000000.jsonl #3"
    assert forge.run(job, lose_at=step, stderr=str(errors)) == 2
    assert re.search("the (metrics at 72|checkpoint at 48) images", error_line(errors))
    (tmp_path / "m").unlink()
    (tmp_path / "m.away").rename(tmp_path / "m")
    assert whole(job)
    assert forge.run(job) == 0
    assert made(job) == straight[0]


@pytest.mark.slow
def test_every_family_is_forked_and_killed(forge, dataset, tmp_path):
    """One kill each in the middle of a checkpoint's files; test_laws.py has resuming as such."""
    for at in range(len(families())):
        manifests = []
        for name, step in (("a", None), ("b", "fsync checkpoints/000000000048-*/.pending-* #3")):
            job = make_job(*dataset, tmp_path / f"{at}-{name}", SHORT, at)
            if step:
                assert forge.run(job, die_at=step) == -9
            assert forge.run(job) == 0
            manifests.append(made(job))
        assert manifests[0] == manifests[1]
