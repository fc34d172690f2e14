"""What a net gives, as a denoiser: against the definitions of eps, x0 and v."""

import math

import pytest
import torch
from torch import nn

from genmod.models.diffusion.preconditioning import Denoiser
from genmod.rng import rng_for
from genmod.samplers.ddpm import ddpm_denoiser, ddpm_schedule


class Net(nn.Module):
    """Stands where the U-Net does and notes what it is given."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 1, 1).double()
        self.answer = self.seen = None

    def forward(self, x_BCHW, noise_B, class_B):
        self.seen = x_BCHW
        return self.answer


def images(purpose):
    return rng_for(0, purpose, range(3)).normal(1, 2, 2, dtype=torch.float64)


@pytest.mark.parametrize("prediction", ["edm", "eps", "x0", "v"])
@pytest.mark.parametrize("mean", [0.0, 0.3])
def test_the_right_answer_gives_the_clean_image(prediction, mean):
    y, eps = images("y"), images("eps")
    sigma = torch.tensor([0.05, 1.0, 60.0], dtype=torch.float64)
    s, sd = sigma[:, None, None, None], 0.5
    alpha = 1 / (1 + s**2).sqrt()
    centred = y - mean
    answers = {
        "eps": eps,
        "x0": centred,
        "v": alpha * eps - alpha * s * centred,  # Appendix D, Salimans and Ho 2022
        "edm": (centred - sd**2 / (s**2 + sd**2) * (centred + s * eps)) * (s**2 + sd**2).sqrt() / (s * sd),
    }  # fmt: skip
    net = Net()
    net.answer = answers[prediction]
    denoiser = Denoiser(net, [mean], sd, prediction=prediction)
    assert torch.allclose(denoiser(y + s * eps, sigma, None), y, atol=1e-12)
    scale = sd if prediction == "edm" else 1
    assert torch.allclose(net.seen, (centred + s * eps) / (s**2 + scale**2).sqrt())


@pytest.mark.parametrize("prediction", ["edm", "eps", "x0", "v"])
def test_the_loss_is_the_squared_error_of_the_answer(prediction):
    """lambda |D(answer + error) - D(answer)|^2 = |error|^2 at every noise level."""
    x, error = images("x"), images("error")
    sigma = torch.tensor([0.05, 1.0, 60.0], dtype=torch.float64)
    net = Net()
    denoiser = Denoiser(net, [0.0], 0.5, prediction=prediction)
    net.answer = torch.zeros_like(x)
    without = denoiser(x, sigma, None)
    net.answer = error
    moved = (denoiser(x, sigma, None) - without).square().flatten(1).sum(1)
    expected = error.square().flatten(1).sum(1)
    assert torch.allclose(denoiser.loss_weight(sigma) * moved, expected)


@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_trained_here_and_trained_elsewhere_are_one_denoiser(prediction, schedule):
    """The same net by both ways; DDPM's is given its time, from 0."""
    x, net, given = images("x"), Net(), []
    net.answer = images("answer")

    def elsewhere(x_BCHW, t_B):
        given.append((x_BCHW, t_B))
        return net.answer

    denoiser = Denoiser(net, [0.0], 0.5, prediction=prediction)
    loaded = ddpm_denoiser(elsewhere, prediction, schedule, torch.float64)
    for time in (1, 400, 990):
        sigma = float(ddpm_schedule(schedule).sigma_T[time - 1])
        ours = denoiser(x, torch.full((3,), sigma, dtype=torch.float64), None)
        assert torch.allclose(loaded(x, sigma), ours)
        assert torch.allclose(given[-1][0], net.seen)
        assert (given[-1][1] == time - 1).all()
    between = math.sqrt(
        float(ddpm_schedule(schedule).sigma_T[399] * ddpm_schedule(schedule).sigma_T[400])
    )
    loaded(x, between)
    assert given[-1][1][0].item() == pytest.approx(399.5)
