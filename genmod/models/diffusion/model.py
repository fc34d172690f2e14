"""Diffusion: a denoiser with EDM's preconditioning, its samplers, and the density of its flow.

    D(x; sigma) = c_skip x + c_out F(c_in x; c_noise)                        Eq. 7, Karras et al. 2022
    loss = E lambda(sigma) |D(y + n; sigma) - y|^2,  ln sigma ~ N(P_mean, P_std^2),  n ~ N(0, sigma^2 I)

y is an image dequantised over its pixels' bins, so the model has a density. Sampling solves the
probability-flow equation from sigma_max down, log p solves it up. Both use the same prior: at sigma_max,
data plus noise is nearly N(mean, (sigma_max^2 + sigma_data^2) I), the Gaussian of the same mean and total
variance, with the mean of each channel from the training data.
Letters: B batch, C channels, H height, W width.

References:
    Elucidating the design space of diffusion-based generative models, Karras et al. 2022,
    https://arxiv.org/abs/2206.00364
    Classifier-free diffusion guidance, Ho and Salimans 2022, https://arxiv.org/abs/2207.12598
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import final

import torch
from torch import Tensor

from genmod import units
from genmod.errors import ConfigError, Unscorable
from genmod.interface.batch import Batch
from genmod.interface.estimator_check import EstimatorCheck
from genmod.interface.log_prob import LogProb
from genmod.interface.model import DataStats, GenerativeModel, Losses, Phase, TrainBriefly
from genmod.interface.portable import NetInput, PortableNet, label_input
from genmod.likelihood import diffusion as likelihood
from genmod.likelihood import vlb
from genmod.likelihood.diffusion import DiffusionScore
from genmod.likelihood.process import GaussianPrior, Process
from genmod.manifest import ImageSpec
from genmod.models.diffusion.config import DiffusionConfig, DiffusionSample
from genmod.models.diffusion.preconditioning import Denoiser
from genmod.models.diffusion.selftest import checks
from genmod.nets.blocks import stride_of
from genmod.nets.unet import UNet
from genmod.rng import Rng
from genmod.samplers.consistency import consistency_loss, previous_level
from genmod.samplers.guidance import guided
from genmod.samplers.ode import Denoise


@final
class Model(GenerativeModel):
    """p(x | label) as the density of a probability flow."""

    Config = DiffusionConfig
    Sample = DiffusionSample
    Score = DiffusionScore
    config: DiffusionConfig
    not_diffusers = (
        "UNet2DModel embeds noise levels at other frequencies, joins other skips and resizes by other "
        "layers, so no weights make it the same function"
    )

    def __init__(self, config: DiffusionConfig, spec: ImageSpec, stats: DataStats) -> None:
        super().__init__(config, spec, stats)
        unet = UNet(
            spec.channels,
            unshuffle=config.unshuffle,
            widths=config.widths,
            blocks=config.blocks,
            attention=config.attention,
            head=config.head,
            embedding=config.embedding,
            classes=spec.classes + 1 if spec.classes else 0,  # the last one: no label
            inputs_per_channel=1 + 2 * len(config.fourier),
        )
        sigma_data = config.sigma_data or stats.sigma
        if sigma_data <= 0:
            raise ConfigError("diffusion: the training images have no variance; set net.sigma_data")
        self.denoiser = Denoiser(unet, stats.mean, sigma_data, config.fourier, config.prediction)

    @classmethod
    def check(cls, config: DiffusionConfig, spec: ImageSpec) -> None:
        """Refuse images whose sides are not multiples of the net's stride."""
        stride = stride_of(config.unshuffle, config.widths)
        if spec.height % stride or spec.width % stride:
            raise ConfigError(
                f"diffusion: net.unshuffle {config.unshuffle} with {len(config.widths)} levels needs image "
                f"sides that are multiples of {stride}, got {spec.height}x{spec.width}; "
                "use fewer net.widths or a smaller net.unshuffle, or resize the images"
            )

    @classmethod
    def check_sampling(
        cls, config: DiffusionConfig, options: DiffusionSample, spec: ImageSpec
    ) -> None:
        """Refuse a solver, noise levels or guidance that do not fit the net."""
        if (config.objective == "consistency") != (options.solver == "consistency"):
            raise ConfigError(
                f"diffusion: net.objective is {config.objective}, but sample.solver is {options.solver}; "
                "set both or neither to consistency"
            )
        options.sigmas(config.sigma_min, config.sigma_max)
        options.require_guidable(spec.classes, config.label_drop)

    @classmethod
    def check_scorable(cls, config: DiffusionConfig, options: DiffusionScore) -> None:
        """Refuse consistency functions, and p(x) of a net that was always trained with labels."""
        if config.objective == "consistency":
            raise Unscorable(
                "diffusion: a consistency function is no denoiser and has no density; "
                "score the model that it distills",
                hint="score the model that it distills",
            )
        if options.unconditional and config.label_drop == 0:
            raise Unscorable(
                "diffusion: score.unconditional needs a net trained with net.label_drop above 0, got 0; "
                "train with 0.1, or score p(x | label)"
            )

    @classmethod
    def density_checks(cls, seed: int, train: TrainBriefly) -> Iterator[EstimatorCheck]:
        """A new model, which is a Gaussian, and the bound with the true denoiser."""
        return checks(seed)

    def phases(self) -> tuple[Phase, ...]:
        """One phase, which trains the denoiser."""
        return (Phase("denoise", ("denoiser",)),)

    def loss(self, phase: str, batch: Batch, rng: Rng, nimg: int) -> Losses:
        """Weighted squared error of the denoiser, per dimension. Sec. 5 and Table 1, Karras et al. 2022.

        Terms: ``edm_loss`` is the loss; ``noise_mse`` is |D - y|^2 / sigma^2 per dimension, the squared
        error of the implied noise, which log p depends on. Both have no unit. For the objective
        ``likelihood`` the loss is the variational bound in nats per dimension.
        """
        assert phase == "denoise", phase
        dtype = torch.promote_types(self._dtype, torch.float32)
        config = self.config
        u_2B = rng.fold("level").uniform(2, dtype=torch.float64).T + 2.0**-33  # never 0
        sigma_B = config.noise.quantile(u_2B[0], config.sigma_min, config.sigma_max).to(dtype)
        noise_BCHW = rng.fold("noise").normal(*self.spec.shape, dtype=dtype)
        class_B = self._classes(batch.labels_B)
        if class_B is not None:
            class_B = class_B.where(u_2B[1] >= config.label_drop, self.spec.classes)
        if config.objective == "likelihood":
            process = self._process(class_B, "")
            return Losses(*vlb.training_loss(process, batch.x_BCHW(dtype), rng))
        y_BCHW = self._continuous(batch, rng.fold("dequantise"), dtype)
        if config.objective == "consistency":
            r_B = previous_level(sigma_B, 1 + nimg // config.halve_nimg, config.sigma_min)
            f = self._process(class_B, "").denoise
            return Losses(consistency_loss(f, y_BCHW, noise_BCHW, sigma_B, r_B).mean())
        noisy_BCHW = y_BCHW + sigma_B[:, None, None, None] * noise_BCHW
        clean_BCHW = self.denoiser(noisy_BCHW, sigma_B, class_B)
        error_B = (clean_BCHW - y_BCHW).square().flatten(1).mean(1)
        total = (self.denoiser.loss_weight(sigma_B) * error_B).mean()
        noise_mse = (error_B / sigma_B**2).mean()
        return Losses(total, {"edm_loss": total.detach(), "noise_mse": noise_mse.detach()})

    @torch.no_grad()
    def sample(self, labels_B: Tensor | None, rng: Rng, options: DiffusionSample) -> Tensor:
        """Solve from a draw of the prior down; the draw and any churn are addressed by ``rng``'s rows."""
        denoise = self._denoiser_for(labels_B, options)
        prior = self._prior()
        noise_BCHW = rng.fold("prior").normal(*self.spec.shape, dtype=torch.float64)
        x_BCHW = prior.mean_C11 + prior.std * noise_BCHW
        x_BCHW = options.solve(denoise, x_BCHW, rng, self.config.sigma_min, self.config.sigma_max)
        # Values outside [-1, 1] belong to the outermost bins.
        binary = self.spec.levels == 2
        return (units.binarise(x_BCHW) if binary else x_BCHW.clamp(-1, 1)).to(self._dtype)

    def portable_net(self) -> PortableNet:
        """The denoiser D(x; sigma), with its preconditioning."""
        config, prior = self.config, self._prior()
        span = math.log(config.sigma_max / config.sigma_min)

        def sigma(rng: Rng) -> Tensor:
            u_B = rng.fold("sigma").uniform(1)[:, 0]
            return config.sigma_min * torch.exp(u_B * span)

        def noisy(rng: Rng) -> Tensor:
            noise_BCHW = rng.fold("prior").normal(*self.spec.shape)
            return prior.mean_C11.float() + sigma(rng)[:, None, None, None] * noise_BCHW

        shape = ", ".join(map(str, self.spec.shape))
        labels = ()
        if self.spec.classes:
            extra = f"; {self.spec.classes} for no label" if config.label_drop else ""
            labels = (label_input(self.spec.classes, extra),)
        inputs = (
            NetInput(
                "x", noisy, f"(B, {shape}) float32, images plus noise of standard deviation sigma"
            ),
            NetInput("sigma", sigma, f"(B,) float32, {config.sigma_min:g} to {config.sigma_max:g}"),
            *labels,
        )
        mean = ", ".join(f"{value:.9g}" for value in self.stats.mean)
        usage = (
            f"Draw x from N(m, s^2) with m = ({mean}) by channel and s = {prior.std:.9g}; solve "
            f"dx / dsigma = (x - D(x; sigma)) / sigma from sigma = {config.sigma_max:g} down to "
            f"{config.sigma_min:g}, e.g. by Heun's method, and take D there."
        )
        if config.objective == "consistency":
            usage = (
                f"The net is a consistency function. Draw x from N(m, s^2) with m = ({mean}) by channel and "
                f"s = {prior.std:.9g}; its value at sigma = {config.sigma_max:g} is a sample."
            )
        output = "the expected image D(x; sigma), not clamped"
        return PortableNet(self.denoiser, inputs, output, usage)

    @torch.no_grad()
    def log_prob(self, batch: Batch, rng: Rng, options: DiffusionScore) -> LogProb:
        """Log p of the flow, or a bound of the noisy process: see :mod:`genmod.likelihood.diffusion`."""
        self.check_scorable(self.config, options)
        class_B = self._classes(batch.labels_B)
        given = "" if class_B is None else ", given the label"
        if class_B is not None and options.unconditional:
            class_B, given = torch.full_like(class_B, self.spec.classes), ", without its label"
        return likelihood.log_prob(self._process(class_B, given), batch, rng, options)

    @property
    def _dtype(self) -> torch.dtype:
        return self.denoiser.unet.stem.weight.dtype

    def _prior(self) -> GaussianPrior:
        std = math.hypot(self.config.sigma_max, self.denoiser.sigma_data)
        return GaussianPrior(self.denoiser.mean_C11.double(), std)

    def _process(self, class_B: Tensor | None, given: str) -> Process:
        """The denoiser of these rows' classes, and the settings that a likelihood needs."""
        return Process(
            denoise=lambda x_BCHW, sigma_B: self.denoiser(x_BCHW, sigma_B, class_B),
            prior=self._prior(),
            sigma_min=self.config.sigma_min,
            sigma_max=self.config.sigma_max,
            sigma_data=self.denoiser.sigma_data,
            spec=self.spec,
            given=given,
        )

    def _continuous(self, batch: Batch, rng: Rng, dtype: torch.dtype) -> Tensor:
        """Images dequantised over their pixels' bins."""
        u_BCHW = rng.uniform(*self.spec.shape, dtype=dtype)
        return units.dequantise(batch.x_BCHW(dtype), u_BCHW, self.spec.levels)

    def _classes(self, labels_B: Tensor | None) -> Tensor | None:
        """Rows of the class embedding, None for data without labels."""
        assert labels_B is not None or not self.spec.classes, "a conditional model needs labels"
        return labels_B if self.spec.classes else None

    def _at(self, class_B: Tensor | None) -> Denoise:
        """The denoiser of these rows' classes, at one noise level for all rows."""

        def denoise(x_BCHW: Tensor, sigma: float) -> Tensor:
            return self.denoiser(x_BCHW, x_BCHW.new_full(x_BCHW.shape[:1], sigma), class_B)

        return denoise

    def _denoiser_for(self, labels_B: Tensor | None, options: DiffusionSample) -> Denoise:
        """The denoiser for the solver, with guidance if it is on."""
        class_B = self._classes(labels_B)
        options.require_guidable(self.spec.classes, self.config.label_drop)
        if class_B is None or options.guidance == 1.0:
            return self._at(class_B)
        unconditional = self._at(torch.full_like(class_B, self.spec.classes))
        interval = options.guidance_low, options.guidance_high
        return guided(self._at(class_B), unconditional, options.guidance, interval)
