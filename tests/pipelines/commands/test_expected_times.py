"""Expected times are counts of steps and micro-batches times what one of them was measured to take.

Expected against real times are the benchmark ``expected_times``.
"""

import pytest

from genmod.config import as_json, parse
from genmod.costs.measured import CallTime, call_time, extrapolated
from genmod.generation.config import SampleConfig
from genmod.generation.request import resolve_request
from genmod.interface.model import DataStats
from genmod.interface.registry import ModelConfig, families, family
from genmod.manifest import ImageSpec
from genmod.scoring.config import ScoreConfig
from genmod.training.plan import TrainConfig
from pipelines.commands import expected_times
from pipelines.commands.expected_times import (
    Cores,
    sampling_time,
    scoring_time,
    training_time,
)

SPEC = ImageSpec(channels=1, height=8, width=8, classes=3)
ONE_CORE = Cores(count=1, threads=1, slots=1)
TWO_CORES = Cores(count=2, threads=1, slots=2)


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    monkeypatch.setattr(expected_times, "BUDGET_S", 0.1)


def build(name):
    net = as_json(family(name).Config.tiny())
    stats = DataStats(mean=(0.0,), std=(0.5,))
    return ModelConfig(family=name, net=net, spec=SPEC, stats=stats).build(0)


class EvenClock:
    """Every lap takes a tenth of a millisecond."""

    def lap(self):
        return 1e-4


@pytest.mark.parametrize("name", families())
def test_training_counts_its_steps(name, monkeypatch):
    monkeypatch.setattr(expected_times, "Clock", EvenClock)
    model, config = build(name), TrainConfig(nimg=60 * 32, batch=32)
    assert training_time(model, config, ONE_CORE).total_s == pytest.approx(6e-3)
    two = config.model_copy(update={"workers": 2})
    exchange_s = training_time(model, two, TWO_CORES).total_s - 6e-3
    gradient_bytes = 4 * sum(parameter.numel() for parameter in model.parameters())
    assert exchange_s == pytest.approx(60 * gradient_bytes / expected_times.EXCHANGE_BYTES_PER_S)
    assert training_time(model, two, ONE_CORE).total_s == pytest.approx(12e-3 + exchange_s)


@pytest.fixture
def measured_rows(monkeypatch):
    """Rows of the calls that were measured; a call takes a tenth of a second, the first one 0.3 s more."""
    rows = []

    def timed(call, size, budget_s):
        call(size)
        rows.append(size)
        return CallTime(first_s=0.3, usual_s=0.1)

    monkeypatch.setattr(expected_times, "call_time", timed)
    return rows


@pytest.mark.parametrize("name", families())
def test_sampling_counts_its_micro_batches(name, measured_rows):
    model, options = build(name), family(name).Sample()
    config = SampleConfig(count=160, shard_rows=40, micro_batch=20, workers=2)
    request = resolve_request(config, SPEC)
    expected = [sampling_time(model, options, request, config, c) for c in (ONE_CORE, TWO_CORES)]
    assert [e.usual_s for e in expected] == pytest.approx([0.8, 0.4])
    assert [e.first_s for e in expected] == [0.3, 0.3]
    assert measured_rows == [20, 20]


@pytest.mark.parametrize("name", families())
def test_scoring_counts_its_micro_batches_and_its_draws(name, measured_rows):
    model, score = build(name), family(name).Score
    config = ScoreConfig(micro_batch=20, workers=2, rows_per_task=40)
    for options in (*score.variants()[:1], score.tiny()):
        _, factor = options.probe()
        expected = [scoring_time(model, options, 80, config, c) for c in (ONE_CORE, TWO_CORES)]
        assert [e.usual_s for e in expected] == pytest.approx([0.4 * factor, 0.2 * factor])
    assert set(measured_rows) == {20}


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


def test_a_large_batch_of_a_small_net_is_measured_at_its_size(monkeypatch):
    """A VAE of plain layers: in proportion to a few rows, its training would be announced as one of hours."""
    monkeypatch.setattr(expected_times, "Clock", EvenClock)
    net = {"latents": 8, "hidden": [128]}
    spec = ImageSpec(channels=1, height=28, width=28)
    stats = DataStats(mean=(0.0,), std=(0.5,))
    model = ModelConfig(family="vae", net=net, spec=spec, stats=stats).build(0)
    config = parse(TrainConfig, {"nimg": 3_000_064, "batch": 256}, "train")
    assert training_time(model, config, ONE_CORE).total_s == pytest.approx(11_719 * 1e-4)
