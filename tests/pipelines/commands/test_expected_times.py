"""Expected times against real runs of tiny models, with a wide bound: other work shares this machine."""

import pytest

from genmod.config import as_json, parse
from genmod.costs.measured import CallTime, Clock, call_time, extrapolated
from genmod.data.format.shards import write_shard
from genmod.generation.synthetic import SAMPLE_SPLIT, LabelRequest, SampleConfig, SampleGenerator
from genmod.interface.model import DataStats
from genmod.interface.registry import ModelConfig, families, family
from genmod.manifest import ImageSpec
from genmod.rng import rng_for
from genmod.scoring.table import ScoreConfig
from genmod.training.loop import Plan, train
from genmod.training.plan import TrainConfig
from genmod.world import SingleProcess
from pipelines.commands import expected_times
from pipelines.commands.expected_times import (
    Cores,
    noise_batch,
    sampling_time,
    scoring_time,
    training_time,
)

SPEC = ImageSpec(channels=1, height=8, width=8, classes=3)
ONE_CORE = Cores(count=1, threads=1, slots=1)


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    monkeypatch.setattr(expected_times, "BUDGET_S", 0.4)


def build(name):
    net = as_json(family(name).Config.tiny())
    stats = DataStats(mean=(0.0,), std=(0.5,))
    return ModelConfig(family=name, net=net, spec=SPEC, stats=stats).build(0)


def seconds(call):
    clock = Clock()
    call()
    return clock.lap()


def assert_within_factor_3(expect, run):
    """One retry, since other processes may disturb either side."""
    ratios = []
    for _ in range(2):
        ratios.append(expect() / seconds(run))
        if 1 / 3 < ratios[-1] < 3:
            return
    pytest.fail(f"expected over real time: {ratios}")


class Noise:
    """Batches of noise."""

    def __init__(self, nimg, batch=32):
        self.nimg, self.batch = nimg, batch

    def __iter__(self):
        return self

    def __next__(self):
        self.nimg += self.batch
        return noise_batch(SPEC, self.batch, self.nimg - self.batch)

    def close(self):
        pass


@pytest.mark.parametrize("name", families())
def test_training(name):
    config = TrainConfig(nimg=60 * 32, batch=32)
    model = build(name)
    assert_within_factor_3(
        lambda: training_time(model, config, ONE_CORE).total_s,
        lambda: train(build(name), Noise, SingleProcess(), Plan(config, 0)),
    )


@pytest.mark.parametrize("name", families())
def test_sampling(name, tmp_path):
    model, options, request = build(name), family(name).Sample(), LabelRequest(SPEC.classes)
    config = SampleConfig(count=160, shard_rows=160, micro_batch=40)
    generator = SampleGenerator(model, options, request, 0, config.micro_batch)

    def sample():
        rows = (generator.row(*image, "0" * 64) for image in generator.images(range(config.count)))
        write_shard(str(tmp_path), "images", SAMPLE_SPLIT, SPEC, rows)

    assert_within_factor_3(
        lambda: sampling_time(model, options, request, config, ONE_CORE).usual_s, sample
    )


@pytest.mark.parametrize("name", families())
def test_scoring(name):
    model, score = build(name), family(name).Score
    options = (*score.variants(), score.tiny())[0]
    config = ScoreConfig(micro_batch=20)

    def score():
        for start in range(0, 80, 20):
            batch = noise_batch(SPEC, 20, start)
            model.log_prob(batch, rng_for(0, "score", batch.index_B), options)

    assert_within_factor_3(
        lambda: scoring_time(model, options, 80, config, ONE_CORE).usual_s, score
    )


def test_measuring_leaves_the_model_as_it_was():
    model = build("vae")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    training_time(model, TrainConfig(nimg=320, batch=32, workers=2, accumulate=2), ONE_CORE)
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())


def test_workers_share_the_cores():
    two, four = Cores(count=2, threads=1, slots=2), Cores(count=4, threads=2, slots=4)
    assert [two.slowdown(workers) for workers in (1, 2, 4)] == [1, 1, 2]
    assert [four.slowdown(workers) for workers in (1, 2, 4)] == [1, 1, 2]
    assert two.active(workers=4, units=100) == 2
    assert two.active(workers=4, units=1) == 1


def test_a_call_is_measured_at_its_size_or_extrapolated():
    sizes = []
    assert isinstance(call_time(sizes.append, 50, budget_s=0.5), CallTime)
    assert max(sizes) == 50
    assert extrapolated([(4, 1.0), (16, 1.0)], 32) == 2.0


def test_a_training_of_minutes_is_not_announced_as_one_of_hours():
    """A VAE of plain layers at a large batch: a few rows alone say nothing of it."""
    net = {"latents": 8, "hidden": [128]}
    spec = ImageSpec(channels=1, height=28, width=28)
    stats = DataStats(mean=(0.0,), std=(0.5,))
    model = ModelConfig(family="vae", net=net, spec=spec, stats=stats).build(0)
    config = parse(TrainConfig, {"nimg": 3_000_000, "batch": 256}, "train")
    assert training_time(model, config, ONE_CORE).total_s < 1_800
