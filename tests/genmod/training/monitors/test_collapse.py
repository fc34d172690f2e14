"""Collapse: measured on known samples, provoked for real, one rollback, and a state that resumes exactly."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from genmod.config import as_json
from genmod.errors import ConfigError, StorageError, TrainingCollapsed
from genmod.interface.batch import Batch
from genmod.interface.model import DataStats
from genmod.interface.model_store import weights_bytes
from genmod.interface.registry import ModelConfig, family
from genmod.manifest import ImageSpec
from genmod.models.gan.config import GanConfig
from genmod.rng import rng_for
from genmod.storage import sha256
from genmod.training.checkpoint import Checkpoints
from genmod.training.job import check_rows
from genmod.training.loop import Plan, train
from genmod.training.metric_log import read_metrics
from genmod.training.monitors.collapse import (
    CollapseConfig,
    CollapseMonitor,
    MonitorState,
    collapse_problems,
    record_check,
    record_rollback,
    sample_statistics,
)
from genmod.training.monitors.rollback import run_collapse_monitor
from genmod.training.plan import OptimConfig, TrainConfig
from genmod.world import Group, SingleProcess, World

SPEC = ImageSpec(channels=1, height=8, width=8)
BATCH = 16


def rows(index) -> Batch:
    """Four by four squares, each dark or bright, and a little noise."""
    rng = rng_for(4, "squares", index)
    bits = rng.fold("bits").integers(2, 1, 4, 4) * 160 + 40
    big = bits.repeat_interleave(2, 2).repeat_interleave(2, 3)
    pixels = big + rng.fold("noise").integers(30, *SPEC.shape)
    return Batch(pixels.to(torch.uint8), None, rng.index_B)


def points(count: int, seed: int) -> torch.Tensor:
    return torch.randn(count, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_good_samples_cover_and_collapsed_ones_do_not():
    real, labels = points(400, 0), torch.arange(400) % 4
    real[:, 0] += 10 * labels
    good = points(400, 1)
    good[:, 0] += 10 * labels
    fine = sample_statistics(good, real, labels, 4, k=5)
    assert fine["coverage"] > 0.9
    assert fine["recall"] > 0.9
    assert fine["duplicates"] < 0.05
    assert fine["class_distance"] < 0.02
    one_mode = sample_statistics(points(400, 2), real, labels, 4, k=5)
    assert one_mode["coverage"] == pytest.approx(0.25, abs=0.05)
    assert one_mode["class_distance"] == pytest.approx(0.75, abs=0.01)
    assert one_mode["classes_made"] == 1
    copies = sample_statistics(good[:20].repeat(20, 1), real, labels, 4, k=5)
    assert copies["duplicates"] == 1.0


def test_real_images_of_few_kinds_are_no_collapse():
    """Six distinct images: every ball has radius 0, and every sample has copies."""
    six = 100 + 10 * points(6, 0) / 3
    real, good = six[torch.arange(120) % 6], six[torch.arange(90) % 6]
    fine = sample_statistics(good, real, torch.arange(120) % 6, 6, k=5)
    assert fine == {
        "coverage": 1.0, "recall": 1.0, "duplicates": 0.0, "class_distance": 0.0, "classes_made": 6.0
    }  # fmt: skip
    assert collapse_problems(CollapseConfig(), 1.0, fine, 10**6) == []
    one = sample_statistics(six[:1].repeat(90, 1), real, torch.arange(120) % 6, 6, k=5)
    assert one["coverage"] == one["recall"] == pytest.approx(1 / 6)
    assert collapse_problems(CollapseConfig(), 1.0, one, 10**6)


def test_coverage_and_recall_are_their_definitions_where_distances_tie():
    real = rng_for(1, "real", range(30)).integers(3, 2).double()
    fake = rng_for(1, "fake", range(30)).integers(3, 2).double()
    found = sample_statistics(fake, real, None, 0, k=3)

    def reached(rows, others):
        """Share of rows that another row is as close to as their third neighbour."""
        balls = [sorted((row - r).norm() for r in rows)[3] for row in rows]
        return [
            [(o - row).norm() <= ball for o in others]
            for row, ball in zip(rows, balls, strict=True)
        ]

    covered = [any(row) for row in reached(real, fake)]
    recalled = [any(column) for column in zip(*reached(fake, real), strict=True)]
    assert found["coverage"] == sum(covered) / 30
    assert found["recall"] == sum(recalled) / 30


def test_consecutive_checks_the_start_and_the_last_rollback():
    config = CollapseConfig(start_nimg=100, consecutive_checks=2, max_rollbacks=1)
    monitors = MonitorState(best_coverage=0.8, best_nimg=50, best={"w": torch.zeros(1)})
    bad, good = {"coverage": 0.3, "duplicates": 0.0}, {"coverage": 0.7, "duplicates": 0.0}

    def collapsed(statistics: dict[str, float], nimg: int) -> bool:
        problems = collapse_problems(config, monitors.best_coverage, statistics, nimg)
        return record_check(monitors, config, problems, nimg)

    assert not collapsed(bad, 60)
    assert not collapsed(bad, 100)
    assert not collapsed(good, 120)
    assert not collapsed(bad, 140)
    assert collapsed(bad, 160)
    record_rollback(monitors, config, 160, "lower lr")
    assert (monitors.lr_scale, monitors.rollbacks, monitors.failed_checks) == (0.5, 1, 0)
    with pytest.raises(TrainingCollapsed) as caught:
        record_rollback(monitors, config, 200, "lower lr")
    message = str(caught.value)
    assert "\n" not in message
    for part in (
        "collapsed at 200 images",
        "at 140 images: coverage 0.300",
        "rolled back to the EMA",
        "no rollback is left; lower lr",
    ):
        assert part in message
    assert monitors.events[-1] == "at 200 images: training ended, no rollback is left"


def go(
    root: str,
    *,
    lr: float,
    penalty: str,
    nimg: int,
    rollbacks: int,
    stop: int | None = None,
    grace: int | None = 1280,
    broken: int | None = None,
    world: World | None = None,
    least: float = 0.1,
):
    """Train; ``broken`` is where a weight of G becomes not a number, on the last rank alone."""
    world = world or SingleProcess()
    net = GanConfig.tiny().model_copy(update={"loss": "hinge", "penalty": penalty})
    stats = DataStats(mean=(0.0,), std=(0.5,))
    model = ModelConfig(family="gan", net=as_json(net), spec=SPEC, stats=stats)
    monitors = CollapseConfig(
        every_nimg=640,
        rows=128,
        start_nimg=grace or 0,
        consecutive_checks=2,
        max_rollbacks=rollbacks,
        max_duplicates=1.0,
        min_coverage=least,
        min_relative_coverage=0.3,
    )
    config = TrainConfig(
        nimg=nimg, batch=BATCH, log_every_nimg=640, checkpoint_every_nimg=640, collapse_monitor=monitors,
        validate_every_nimg=None, ema_halflife_nimg=100,
        optim=OptimConfig(lr=lr, betas=(0.0, 0.99), warmup_nimg=0, decay="none", clip_norm=None),
    )  # fmt: skip

    def batches(start: int):
        for first in itertools.count(start, BATCH):
            if first == stop:
                raise ConnectionError("the power failed")
            if first == broken and world.rank == world.size - 1:
                with torch.no_grad():
                    next(made.parameters()).view(-1)[0] = torch.nan
            yield rows(range(first + world.rank, first + BATCH, world.size))

    held = rows(range(10**6, 10**6 + 128))
    samples = None if grace is None else CollapseMonitor(monitors, held, 5, family("gan").Sample())
    checkpoints = Checkpoints(root, "collapse", model)
    plan = Plan(config, 5, root, checkpoints, collapse=samples)
    made = model.build(1)
    return train(made, batches, world, plan)


def test_a_real_collapse_rolls_back_and_then_ends_training(tmp_path):
    """No penalties and a high rate: the nets run away from each other."""
    with pytest.raises(TrainingCollapsed) as caught:
        go(str(tmp_path), lr=0.05, penalty="none", nimg=12_800, rollbacks=1)
    message = str(caught.value)
    assert "rolled back to the EMA weights" in message
    events = json.loads((tmp_path / "collapse.json").read_bytes())
    assert events["rollbacks"] == 1
    assert events["lr_scale"] == 0.5
    assert len(events["events"]) >= 5


def test_a_rollback_resumes_bitwise(tmp_path):
    """Stopped after the rollback and resumed: the same bytes as the uninterrupted run."""
    straight = go(str(tmp_path / "a"), lr=0.05, penalty="none", nimg=5_120, rollbacks=9)
    assert straight.monitor_state.rollbacks >= 1
    with pytest.raises(ConnectionError):
        go(str(tmp_path / "b"), lr=0.05, penalty="none", nimg=5_120, rollbacks=9, stop=4_800)
    assert (
        go(str(tmp_path / "b"), lr=0.05, penalty="none", nimg=5_120, rollbacks=9).files()
        == straight.files()
    )


def test_a_number_that_is_not_finite_rolls_back_too(tmp_path):
    calm = {"lr": 2e-3, "penalty": "r1r2", "nimg": 2_560}
    state = go(str(tmp_path / "a"), rollbacks=1, broken=1_600, **calm)
    assert state.nimg == 2_560
    assert all(bool(weight.isfinite().all()) for weight in state.model.state_dict().values())
    assert (state.monitor_state.rollbacks, state.monitor_state.lr_scale) == (1, 0.5)
    seen, done = state.monitor_state.events
    assert "loss is not finite in the step that ended at 1,616 images" in seen
    assert done.startswith("at 1,920 images: rolled back to the EMA weights of ")
    assert float(state.model.gamma_scale) == 4.0
    with pytest.raises(TrainingCollapsed, match="no rollback is left"):
        go(str(tmp_path / "b"), rollbacks=0, broken=1_600, **calm)
    state = json.loads((tmp_path / "b" / "collapse.json").read_bytes())
    assert state["events"][-1] == "at 1,920 images: training ended, no rollback is left"
    with pytest.raises(TrainingCollapsed, match="no check has found good weights"):
        go(str(tmp_path / "c"), rollbacks=1, broken=16, **calm)


@pytest.mark.slow
def test_two_ranks_roll_back_alike(tmp_path):
    """No check passes, then a weight of one rank becomes not a number: the same events and bytes on both."""
    command = [sys.executable, __file__, str(tmp_path)]
    ranks = [subprocess.Popen([*command, str(rank)]) for rank in range(2)]
    try:
        assert [process.wait(timeout=600) for process in ranks] == [0, 0]
    finally:
        for process in ranks:
            process.kill()
    states = [json.loads((tmp_path / f"rank-{rank}.json").read_bytes()) for rank in range(2)]
    assert states[0] == states[1]
    assert states[0]["rollbacks"] == 2
    assert states[0]["events"][0].startswith("at 1,280 images: coverage")
    assert "not finite in the step that ended at 2,016 images" in states[0]["events"][3]


def one_of_two(folder: str, rank: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    try:
        world = Group(torch.device("cpu"))
        options = {"lr": 2e-3, "penalty": "r1r2", "nimg": 2_560, "rollbacks": 2, "broken": 2_000}
        state = go(folder, world=world, least=1.0, **options)
    finally:
        dist.destroy_process_group()
    metadata = state.monitor_state.as_json() | {"digest": sha256(b"".join(state.files().values()))}
    Path(f"{folder}/rank-{rank}.json").write_text(json.dumps(metadata))


def test_monitoring_alone_changes_no_weights(tmp_path):
    """Before ``start_nimg``, the monitor does not change training."""
    watched = go(str(tmp_path / "a"), lr=2e-3, penalty="r1r2", nimg=1_280, rollbacks=0, grace=10**6)
    blind = go(str(tmp_path / "b"), lr=2e-3, penalty="r1r2", nimg=1_280, rollbacks=0, grace=None)
    assert weights_bytes(watched.model) == weights_bytes(blind.model)
    assert weights_bytes(watched.ema) == weights_bytes(blind.ema)
    assert watched.monitor_state.best_nimg > 0
    assert blind.monitor_state == MonitorState()
    seen = [point.metrics for point in read_metrics(str(tmp_path / "a"))]
    assert seen
    assert all(0 <= metrics["samples/coverage"] <= 1 for metrics in seen)


def test_with_penalties_it_is_not_called_a_collapse(tmp_path):
    """By the very rule that catches the run without penalties."""
    assert (
        go(str(tmp_path), lr=2e-3, penalty="r1r2", nimg=4_480, rollbacks=0).monitor_state.events
        == []
    )


def test_a_state_that_cannot_be_written_is_one_line(tmp_path):
    state = go(str(tmp_path / "a"), lr=2e-3, penalty="r1r2", nimg=640, rollbacks=0)
    samples = CollapseMonitor(CollapseConfig(rows=16), rows(range(32)), 5, family("gan").Sample())
    (tmp_path / "b").write_text("not a folder")
    with pytest.raises(
        StorageError, match=r"cannot write the monitor's state at 640 images to .*collapse\.json \("
    ):
        run_collapse_monitor(samples, state, SingleProcess(), str(tmp_path / "b"))


def test_too_few_validation_rows_are_an_error_before_training():
    config = TrainConfig(
        nimg=640, batch=BATCH, validate_every_nimg=None, collapse_monitor=CollapseConfig()
    )
    check_rows(config, "here", {"train": 100, "val": 6, "test": 0})
    with pytest.raises(ConfigError, match=r"more than 5 rows in the val split, got 5"):
        check_rows(config, "here", {"train": 100, "val": 5, "test": 0})


if __name__ == "__main__":
    one_of_two(sys.argv[1], int(sys.argv[2]))
