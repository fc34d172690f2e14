import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from genmod.config import as_json, parse
from genmod.errors import ConfigError
from genmod.interface.model import DataStats
from genmod.interface.registry import ModelConfig
from genmod.manifest import ImageSpec
from genmod.training.plan import OptimConfig, TrainConfig, due, training_fingerprint
from genmod.training.schedule import lr_at


def test_learning_rate():
    cosine = OptimConfig(lr=2.0, warmup_nimg=100, decay="cosine", floor=0.1)
    assert lr_at(cosine, 0, 1100) == 0
    assert lr_at(cosine, 25, 1100) == 0.5
    assert lr_at(cosine, 100, 1100) == 2
    assert lr_at(cosine, 600, 1100) == pytest.approx(2 * (0.1 + 0.9 * 0.5))
    assert lr_at(cosine, 350, 1100) == pytest.approx(2 * (0.1 + 0.45 * (1 + math.cos(math.pi / 4))))
    assert lr_at(cosine, 1100, 1100) == lr_at(cosine, 5000, 1100) == pytest.approx(0.2)
    linear = OptimConfig(lr=2.0, warmup_nimg=0, decay="linear")
    assert lr_at(linear, 0, 1000) == 2
    assert lr_at(linear, 250, 1000) == 1.5
    stages = OptimConfig(lr=2.0, warmup_nimg=0, decay="stages")
    ends = [sum(3**i for i in range(stage)) for stage in range(9)]
    for stage in range(8):
        rate = pytest.approx(2 * 10 ** (-stage / 7))
        assert lr_at(stages, ends[stage], 3280) == lr_at(stages, ends[stage + 1] - 1, 3280) == rate
    constant = OptimConfig(lr=2.0, warmup_nimg=0, decay="none")
    assert lr_at(constant, 10**9, 1000) == 2


@given(st.integers(1, 50), st.integers(1, 200), st.integers(1, 100))
def test_cadence_is_met_once_for_each_multiple_at_or_after_it(batch, every, steps):
    hits = [n * batch for n in range(1, steps + 1) if due((n - 1) * batch, n * batch, every)]
    wanted = {-(-k * every // batch) * batch for k in range(1, steps * batch // every + 1)}
    assert set(hits) == wanted
    assert not due(0, batch, None)


def test_batch_must_divide():
    with pytest.raises(ConfigError, match=r"workers x accumulate = 12; the nearest is 96"):
        parse(TrainConfig, {"batch": 100, "workers": 4, "accumulate": 3}, "train")
    with pytest.raises(ConfigError, match=r"unknown key 'train\.optim\.warmup'; did you mean"):
        parse(TrainConfig, {"optim": {"warmup": 3}}, "train")
    with pytest.raises(ConfigError, match="betas"):
        parse(OptimConfig, {"betas": [0.9, 1.0]}, "train.optim")


def test_phase_changes_only_what_it_names():
    config = TrainConfig(optim=OptimConfig(lr=0.5, eps=1e-3), phase_optim={"d": {"lr": 0.25}})
    assert config.optim_of("g") == OptimConfig(lr=0.5, eps=1e-3)
    assert config.optim_of("d") == OptimConfig(lr=0.25, eps=1e-3)


def test_fingerprint_is_of_what_the_weights_depend_on():
    model = ModelConfig(
        family="any",
        net={},
        spec=ImageSpec(channels=1, height=8, width=8),
        stats=DataStats(mean=(0.0,), std=(1.0,)),
    )
    base = training_fingerprint(model, TrainConfig(), "digest", 0)
    shared = TrainConfig(workers=2, accumulate=2, max_failures=9, log_every_nimg=5)
    assert training_fingerprint(model, shared, "digest", 0) == base
    others = (
        (model, TrainConfig(nimg=1), "digest", 0),
        (model, TrainConfig(batch=64), "digest", 0),
        (model, TrainConfig(optim=OptimConfig(lr=1.0)), "digest", 0),
        (model, TrainConfig(), "other", 0),
        (model, TrainConfig(), "digest", 1),
        (model.model_copy(update={"net": {"width": 1}}), TrainConfig(), "digest", 0),
    )
    assert len({base, *(training_fingerprint(*other) for other in others)}) == 7


def test_every_number_of_workers_of_a_range_shares_the_batch():
    config = TrainConfig.model_validate({"batch": 12, "workers": {"min": 1, "max": 4}})
    assert (config.least_workers, config.most_workers) == (1, 4)
    assert TrainConfig.model_validate(as_json(config)) == config
    fixed = TrainConfig(workers=3, batch=12)
    assert (fixed.least_workers, fixed.most_workers) == (3, 3)
    assert fixed.result() == config.result(), "the number of workers is no part of the result"
    with pytest.raises(
        ValidationError, match="a multiple of workers x accumulate = 3; the nearest is 129"
    ):
        TrainConfig.model_validate({"batch": 128, "workers": {"min": 1, "max": 4}})
    with pytest.raises(ValidationError, match="min 3 above max 2"):
        TrainConfig.model_validate({"workers": {"min": 3, "max": 2}})
    with pytest.raises(ConfigError, match=r"train\.workers\.min"):
        parse(TrainConfig, {"workers": {"min": 0, "max": 2}}, "train")
