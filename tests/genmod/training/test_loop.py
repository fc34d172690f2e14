import math

import pytest
import torch

from genmod.errors import ConfigError, TrainingDiverged
from genmod.training.loop import Plan, train
from genmod.training.metric_log import read_metrics
from genmod.training.plan import OptimConfig, TrainConfig
from genmod.world import SingleProcess

CONFIG = TrainConfig(
    nimg=40,
    batch=4,
    optim=OptimConfig(lr=0.01, warmup_nimg=0, decay="none", clip_norm=None),
    log_every_nimg=8,
)


def test_metrics_are_averages_of_the_steps_since_the_last_ones(
    gaussian, gaussian_stream, gaussian_rows, tmp_path
):
    root = str(tmp_path)
    train(gaussian, gaussian_stream(), SingleProcess(), Plan(CONFIG, 0, root))
    points = read_metrics(root)
    assert [point.nimg for point in points] == [8, 16, 24, 32, 40]
    first = points[0].metrics
    # The first step of Adam moves by the learning rate: the mean is 2, then 1.99.
    assert first["train/fit/mean"] == pytest.approx((2 + 1.99) / 2, abs=1e-6)
    assert first["train/fit/lr"] == 0.01
    losses, norms = [], []
    for start, mean in ((0, 2.0), (4, 1.99)):
        x = gaussian_rows(range(start, start + 4)).x_BCHW(torch.float64)
        losses.append(float(0.5 * (x - mean).square().mean()))
        norms.append(abs(float((mean - x).mean())))
    assert first["train/fit/loss"] == pytest.approx(sum(losses) / 2, rel=1e-6)
    assert first["train/fit/grad_norm"] == pytest.approx(sum(norms) / 2, rel=1e-6)
    assert read_metrics(root, after_nimg=24) == points[3:]


def test_clipping_limits_the_gradient_but_not_the_norm_that_is_told(
    gaussian, gaussian_stream, tmp_path
):
    optim = OptimConfig(lr=0.01, eps=1.0, warmup_nimg=0, decay="none", clip_norm=1e-3)
    config = CONFIG.model_copy(update={"optim": optim, "nimg": 4, "log_every_nimg": 4})
    train(gaussian, gaussian_stream(), SingleProcess(), Plan(config, 0, str(tmp_path)))
    (point,) = read_metrics(str(tmp_path))
    assert point.metrics["train/fit/grad_norm"] > 1
    # Adam's first step is lr g / (|g| + eps).
    step = 0.01 * 1e-3 / (1e-3 + 1)
    assert 2 - float(gaussian.net.weight.detach()) == pytest.approx(step, rel=1e-3)


def test_loss_that_is_not_finite_stops_with_the_steps_facts(gaussian, gaussian_stream):
    gaussian.poisoned_nimg = 16
    with pytest.raises(TrainingDiverged) as caught:
        train(gaussian, gaussian_stream(), SingleProcess(), Plan(CONFIG, 0))
    text = str(caught.value)
    assert "fit/loss is not finite in the step that ended at 20 images" in text
    assert "mean 1.9" in text
    assert "lr 0.01" in text


def test_a_checkpoint_never_holds_a_loss_that_is_not_finite(gaussian, gaussian_stream, tmp_path):
    from genmod.training.checkpoint import Checkpoints

    gaussian.poisoned_nimg = 16
    checkpoints = Checkpoints(str(tmp_path), "f", CONFIG)
    config = CONFIG.model_copy(update={"log_every_nimg": 40, "checkpoint_every_nimg": 4})
    with pytest.raises(TrainingDiverged):
        train(gaussian, gaussian_stream(), SingleProcess(), Plan(config, 0, None, checkpoints))
    assert checkpoints.nimgs() == [12, 16]


def test_last_step_reaches_the_number_of_images_asked_for(gaussian, gaussian_stream, tmp_path):
    config = CONFIG.model_copy(update={"nimg": 37, "log_every_nimg": 16})
    state = train(gaussian, gaussian_stream(), SingleProcess(), Plan(config, 0, str(tmp_path)))
    assert state.nimg == 40
    assert [point.nimg for point in read_metrics(str(tmp_path))] == [16, 32, 40]


def test_bf16_computes_the_loss_by_autocast(gaussian, gaussian_stream):
    seen = []
    real = gaussian.loss

    def spied(*arguments):
        seen.append(torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu"))
        return real(*arguments)

    gaussian.loss = spied
    short = CONFIG.model_copy(update={"nimg": 4})
    train(gaussian, gaussian_stream(), SingleProcess(), Plan(short, 0))
    train(
        gaussian,
        gaussian_stream(),
        SingleProcess(),
        Plan(short.model_copy(update={"precision": "bf16"}), 0),
    )
    assert seen == [False, torch.bfloat16]


def test_settings_for_a_phase_that_is_not_there_are_refused(gaussian, gaussian_stream):
    config = CONFIG.model_copy(update={"phase_optim": {"fitt": {"lr": 1.0}}})
    with pytest.raises(ConfigError, match="no phase 'fitt'; did you mean 'fit'"):
        train(gaussian, gaussian_stream(), SingleProcess(), Plan(config, 0))


def test_gaussian_is_fitted(gaussian, gaussian_stream, gaussian_rows):
    config = TrainConfig(nimg=2000, batch=4, optim=OptimConfig(lr=0.05, warmup_nimg=100))
    state = train(gaussian, gaussian_stream(), SingleProcess(), Plan(config, 0))
    mean = gaussian_rows(range(2000)).x_BCHW(torch.float64).mean()
    for model in (state.model, state.ema):
        assert math.isclose(float(model.net.weight.detach()), float(mean), abs_tol=0.05)
