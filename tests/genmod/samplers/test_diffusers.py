"""Every sampler against the scheduler of the same name in diffusers, with the same denoiser, to 1e-5.

Theirs scale images down by alpha while noise is added; ours do not. So theirs start from alpha x.
"""

import math

import pytest
import torch

from genmod.rng import rng_for
from genmod.samplers.ancestral import ancestral
from genmod.samplers.ddpm import ddpm_denoiser, ddpm_schedule
from genmod.samplers.multistep import dpm_solver, unipc
from genmod.samplers.ode import ddim, heun

diffusers = pytest.importorskip("diffusers")
schedulers = pytest.importorskip("diffusers.schedulers")

KINDS = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}
BETAS = {"linear": "linear", "cosine": "squaredcos_cap_v2"}


def net(x_BCHW, t_B):
    """A net of DDPM's kind: not linear in the image, and of the time."""
    t_B111 = t_B.to(x_BCHW.dtype)[:, None, None, None] / 1000
    mixed = x_BCHW.roll(1, 2) * 0.3 + (2.0 * x_BCHW + t_B111).sin() * 0.6
    return (0.5 + t_B111) * mixed


def clean(x_BCHW, sigma):
    """A denoiser of any noise level."""
    return (x_BCHW / math.hypot(1, sigma) + 0.1 * x_BCHW.roll(1, 3) / (1 + sigma)).tanh()


def starts(sigma):
    return sigma * rng_for(3, "x", range(2)).normal(1, 4, 4, dtype=torch.float64)


def theirs(scheduler, x_BCHW, alpha):
    """A run of a scheduler over a net of DDPM's kind, from our x."""
    x_BCHW = alpha * x_BCHW
    for t in scheduler.timesteps:
        model_input = scheduler.scale_model_input(x_BCHW, t)
        x_BCHW = scheduler.step(net(model_input, t.expand(len(x_BCHW))), t, x_BCHW).prev_sample
    return x_BCHW


def sigmas_at(timesteps, schedule="linear"):
    """Our levels at their times, and 0."""
    own = ddpm_schedule(schedule).sigma_T[timesteps.long()]
    return torch.cat((own, own.new_zeros(1)))


@pytest.mark.parametrize("schedule", BETAS)
def test_noise_levels(schedule):
    scheduler = schedulers.DDPMScheduler(beta_schedule=BETAS[schedule])
    kept = scheduler.alphas_cumprod.double()
    ours = ddpm_schedule(schedule).sigma_T
    assert torch.allclose(1 / (1 + ours**2), kept, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("schedule", BETAS)
def test_ddim(kind, schedule):
    scheduler = schedulers.DDIMScheduler(
        beta_schedule=BETAS[schedule], prediction_type=KINDS[kind], clip_sample=False,
        set_alpha_to_one=True,
    )  # fmt: skip
    exactly(scheduler, schedule)
    scheduler.set_timesteps(20)
    sigmas = sigmas_at(scheduler.timesteps, schedule)
    x = starts(sigmas[0].item())
    ours = ddim(ddpm_denoiser(net, kind, schedule, torch.float64), x, sigmas)
    assert torch.allclose(ours, theirs(scheduler, x, 1 / math.hypot(1, sigmas[0])), atol=1e-5)


def exactly(scheduler, schedule):
    """Their tables in float64, so that what is compared is the method and not the rounding of a table."""
    kept = 1 / (1 + ddpm_schedule(schedule).sigma_T ** 2)
    alphas = torch.cat((kept[:1], kept[1:] / kept[:-1]))
    scheduler.alphas_cumprod, scheduler.alphas, scheduler.betas = kept, alphas, 1 - alphas
    scheduler.one = scheduler.final_alpha_cumprod = torch.tensor(1.0, dtype=torch.float64)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("schedule", BETAS)
def test_ancestral_in_a_thousand_steps(kind, schedule, monkeypatch):
    scheduler = schedulers.DDPMScheduler(
        beta_schedule=BETAS[schedule], prediction_type=KINDS[kind], clip_sample=False,
        variance_type="fixed_small",
    )  # fmt: skip
    exactly(scheduler, schedule)
    scheduler.set_timesteps(1000)
    sigmas = sigmas_at(scheduler.timesteps, schedule)
    assert torch.allclose(
        sigmas, ddpm_schedule(schedule).spaced(1000, sigmas[-2].item(), sigmas[0].item())
    )
    rng, step = rng_for(4, "noise", range(2)), iter(range(1000))

    def same_noise(shape, **_):
        return rng.fold("step").at(next(step)).normal(*shape[1:], dtype=torch.float64)

    monkeypatch.setattr(f"{schedulers.DDPMScheduler.__module__}.randn_tensor", same_noise)
    x = starts(sigmas[0].item())
    ours = ancestral(ddpm_denoiser(net, kind, schedule, torch.float64), x, sigmas, rng)
    assert torch.allclose(ours, theirs(scheduler, x, 1 / math.hypot(1, sigmas[0])), atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("steps", [5, 12])
def test_unipc(kind, order, steps):
    scheduler = schedulers.UniPCMultistepScheduler(
        beta_schedule="linear", prediction_type=KINDS[kind], solver_order=order
    )
    scheduler.set_timesteps(steps)
    sigmas = sigmas_at(scheduler.timesteps)
    scheduler.sigmas = sigmas
    x = starts(sigmas[0].item())
    ours = unipc(ddpm_denoiser(net, kind, "linear", torch.float64), x, sigmas, order)
    assert torch.allclose(ours, theirs(scheduler, x, 1 / math.hypot(1, sigmas[0])), atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [5, 25])
def test_dpm_solver(kind, steps):
    scheduler = schedulers.DPMSolverMultistepScheduler(
        beta_schedule="linear", prediction_type=KINDS[kind], final_sigmas_type="zero"
    )
    scheduler.set_timesteps(steps)
    sigmas = sigmas_at(scheduler.timesteps)
    scheduler.sigmas = sigmas
    x = starts(sigmas[0].item())
    ours = dpm_solver(ddpm_denoiser(net, kind, "linear", torch.float64), x, sigmas)
    assert torch.allclose(ours, theirs(scheduler, x, 1 / math.hypot(1, sigmas[0])), atol=1e-5)


@pytest.mark.parametrize(
    ("method", "name"),
    [(ddim, "EDMEulerScheduler"), (dpm_solver, "EDMDPMSolverMultistepScheduler")],
)
def test_on_edm_levels(method, name):
    """The schedulers precondition the net themselves; their net is what gives our denoiser."""
    scheduler = getattr(schedulers, name)(sigma_min=0.002, sigma_max=80.0, sigma_data=0.5)
    scheduler.set_timesteps(18)
    sigmas = scheduler.sigmas.double()
    x = theirs = starts(80.0)
    for i, t in enumerate(scheduler.timesteps):
        sigma = sigmas[i].item()
        c_skip, c_out = 0.25 / (sigma**2 + 0.25), 0.5 * sigma / math.sqrt(sigma**2 + 0.25)
        scheduler.scale_model_input(theirs, t)
        raw = (clean(theirs, sigma) - c_skip * theirs) / c_out
        theirs = scheduler.step(raw, t, theirs).prev_sample.double()
    assert torch.allclose(method(clean, x, sigmas), theirs, atol=1e-5)


@pytest.mark.parametrize("kind", ["eps", "x0"])
def test_heun(kind):
    scheduler = schedulers.HeunDiscreteScheduler(
        beta_schedule="linear", beta_start=1e-4, beta_end=0.02, prediction_type=KINDS[kind]
    )
    scheduler.set_timesteps(12)
    sigmas = torch.cat((scheduler.sigmas[:1], scheduler.sigmas[1::2])).double()
    scheduler.sigmas = torch.cat((sigmas[:1], sigmas[1:-1].repeat_interleave(2), sigmas[-1:]))
    x = ours = starts(sigmas[0].item())
    denoise = ddpm_denoiser(net, kind, "linear", torch.float64)
    for i, t in enumerate(scheduler.timesteps):
        sigma = scheduler.sigmas[i].item()
        given = denoise(ours, sigma) if kind == "x0" else (ours - denoise(ours, sigma)) / sigma
        ours = scheduler.step(given, t, ours).prev_sample
    assert torch.allclose(heun(denoise, x, sigmas), ours, atol=1e-5)


def trained_elsewhere(folder, kind, schedule):
    """A small U-Net of theirs that learnt something, saved by their own means."""
    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8, 16), norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), attention_head_dim=4,
        up_block_types=("AttnUpBlock2D", "UpBlock2D"), layers_per_block=1,
    )  # fmt: skip
    scheduler = schedulers.DDPMScheduler(beta_schedule=BETAS[schedule], prediction_type=KINDS[kind])
    image_BCHW = torch.linspace(-1, 1, 64).view(1, 1, 8, 8).expand(16, -1, -1, -1)
    optimiser, losses = torch.optim.Adam(unet.parameters(), 3e-3), []
    for _ in range(40):
        t_B, noise_BCHW = torch.randint(1000, (16,)), torch.randn(image_BCHW.shape)
        noisy_BCHW = scheduler.add_noise(image_BCHW, noise_BCHW, t_B)
        wanted = {"eps": noise_BCHW, "x0": image_BCHW}.get(kind)
        if wanted is None:
            wanted = scheduler.get_velocity(image_BCHW, noise_BCHW, t_B)
        loss = (unet(noisy_BCHW, t_B).sample - wanted).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    unet.save_pretrained(folder)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("schedule", BETAS)
def test_diffusers_weights_sample_alike(kind, schedule, tmp_path):
    trained_elsewhere(tmp_path, kind, schedule)
    unet = diffusers.UNet2DModel.from_pretrained(tmp_path).eval()
    scheduler = schedulers.DDIMScheduler(
        beta_schedule=BETAS[schedule], prediction_type=KINDS[kind], clip_sample=False,
        set_alpha_to_one=True,
    )  # fmt: skip
    exactly(scheduler, schedule)
    scheduler.set_timesteps(10)
    sigmas = sigmas_at(scheduler.timesteps, schedule)
    alpha = 1 / math.hypot(1, sigmas[0].item())
    x_BCHW = sigmas[0] * rng_for(3, "x", range(2)).normal(1, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        denoise = ddpm_denoiser(lambda x, t_B: unet(x, t_B).sample, kind, schedule)
        ours = ddim(denoise, x_BCHW, sigmas)
        theirs_BCHW = alpha * x_BCHW
        for t in scheduler.timesteps:
            given = unet(theirs_BCHW.float(), t).sample.double()
            theirs_BCHW = scheduler.step(given, t, theirs_BCHW).prev_sample
        torch.testing.assert_close(ours, theirs_BCHW, rtol=1e-4, atol=1e-4)
        finer = [solve(denoise, x_BCHW, sigmas) for solve in (heun, unipc, dpm_solver)]
    assert all(x.isfinite().all() for x in finer)
