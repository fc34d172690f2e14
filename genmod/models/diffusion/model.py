"""Diffusion: a denoiser with EDM's preconditioning, its samplers, and the density of its flow.

    D(x; sigma) = c_skip x + c_out F(c_in x; c_noise)                        Eq. 7, Karras et al. 2022
    loss = E lambda(sigma) |D(y + n; sigma) - y|^2,  ln sigma ~ N(P_mean, P_std^2),  n ~ N(0, sigma^2 I)

y is an image spread over its pixels' bins, so that the model has a density. Images are made by solving the
probability-flow equation from sigma_max down, and log p by solving it up. Both start or end in one prior:
at sigma_max, data plus noise is nearly N(mean, (sigma_max^2 + sigma_data^2) I), the Gaussian of the same
mean and total variance, with the mean of each channel from the training data.
Letters: B batch, C channels, H height, W width.

References:
    Elucidating the design space of diffusion-based generative models, Karras et al. 2022,
    https://arxiv.org/abs/2206.00364
    Classifier-free diffusion guidance, Ho and Salimans 2022, https://arxiv.org/abs/2207.12598
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Literal, Self, final

import torch
from pydantic import Field, model_validator
from torch import Tensor

from genmod import units
from genmod.errors import ConfigError, Unscorable
from genmod.interface.batch import Batch
from genmod.interface.estimator_check import EstimatorCheck
from genmod.interface.log_prob import LogProb
from genmod.interface.model import DataStats, GenerativeModel, Losses, Phase, TrainBriefly
from genmod.interface.options import FamilyConfig, SampleOptions
from genmod.likelihood import diffusion as likelihood
from genmod.likelihood import vlb
from genmod.likelihood.diffusion import DiffusionScore
from genmod.likelihood.process import GaussianPrior, Process
from genmod.manifest import ImageSpec
from genmod.models.diffusion.preconditioning import Denoiser, PredictionType
from genmod.models.diffusion.selftest import checks
from genmod.nets.blocks import stride_of
from genmod.nets.unet import UNet
from genmod.rng import Rng
from genmod.samplers.consistency import consistency_loss, previous_level
from genmod.samplers.guidance import GuidedSolver, guided
from genmod.samplers.ode import Denoise
from genmod.samplers.schedule import TrainingNoise


class DiffusionConfig(FamilyConfig):
    """The net, the noise it is trained on, and the range of noise that the model consists of."""

    unshuffle: int = Field(default=1, ge=1)
    """Side of the pixel squares that the stem folds into channels, 1 for none; 2 is about 4 times cheaper."""
    widths: tuple[int, ...] = Field(default=(64, 128, 128), min_length=1)
    """Channels of each level, finest first; each level after the first halves height and width."""
    blocks: int = Field(default=2, ge=1)
    """Residual blocks of each level, on the way down and again on the way up."""
    attention: tuple[int, ...] = (1,)
    """Levels with self-attention, counted from 0, the finest; () for none."""
    head: int = Field(default=32, ge=1)
    """Channels of each attention head; divides the widths of those levels."""
    embedding: int = Field(default=256, ge=2)
    """Length of the vector that carries noise level and class to every block."""
    sigma_data: float | None = Field(default=None, gt=0)
    """Standard deviation of the data in network units; measured on the training data if not given."""
    sigma_min: float = Field(default=0.002, gt=0)
    """The least noise of the model; half a bin of an 8-bit pixel is 0.0039."""
    sigma_max: float = Field(default=80.0, gt=0)
    """The most noise of the model, where the prior is."""
    objective: Literal["quality", "likelihood", "consistency"] = "quality"
    """What is descended. ``quality``: EDM's weights of noise levels. ``likelihood``: the variational bound on
    log P(pixels), for which ``fourier: [6]``, ``sigma_min: 0.0013`` and ``sigma_max: 12`` are usual.
    ``consistency``: for a model that distills another, so that 2 calls make an image; it has no density."""
    halve_nimg: int = Field(default=50_000, ge=1)
    """Of ``consistency``: after so many images, levels learn from others half as far away."""
    prediction: PredictionType = "edm"
    """What the net gives: EDM's mixture of image and noise, or DDPM's ``eps``, ``x0`` or ``v``."""
    noise: TrainingNoise = TrainingNoise()
    """Which noise levels training is on; not for ``likelihood``, which has all of them alike, in ln sigma."""
    fourier: tuple[int, ...] = ()
    """n of the waves sin and cos(2^n pi x) that the net sees too; a wave of n = 6 is 4 pixel values long."""
    label_drop: float = Field(default=0.1, ge=0, lt=1)
    """Share of rows trained without their label, for guidance and for p(x)."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if min(self.widths) < 1:
            raise ValueError("widths must be positive")
        for level in self.attention:
            if not 0 <= level < len(self.widths):
                raise ValueError(f"attention names level {level}, but there are {len(self.widths)}")
            if self.widths[level] % self.head:
                raise ValueError(f"head must divide the width of level {level}")
        if self.sigma_min >= self.sigma_max:
            raise ValueError("sigma_min must be below sigma_max")
        self.noise.check_range(self.sigma_min, self.sigma_max)
        return self

    @classmethod
    def tiny(cls) -> Self:
        """Two levels of 8 channels, attention on the coarser."""
        return cls(widths=(8, 8), blocks=1, attention=(1,), head=4, embedding=8)

    @classmethod
    def variants(cls) -> tuple[Self, ...]:
        """Trained for likelihood; DDPM's predictions and schedules; a consistency function."""
        ddpm = {"sigma_min": 0.02, "sigma_max": 80.0}
        changes: tuple[dict[str, Any], ...] = (
            {"objective": "likelihood", "fourier": (2, 6), "sigma_max": 12.0},
            {"prediction": "eps", "noise": TrainingNoise(schedule="linear"), **ddpm},
            {"prediction": "x0", "noise": TrainingNoise(schedule="cosine"), **ddpm},
            {"prediction": "v", "noise": TrainingNoise(schedule="cosine"), **ddpm},
            {"objective": "consistency", "halve_nimg": 16},
        )
        return tuple(cls.tiny().model_copy(update=change) for change in changes)


class DiffusionSample(GuidedSolver, SampleOptions):
    """How to solve the flow from noise to an image, and how strongly to follow the label."""


@final
class Model(GenerativeModel):
    """p(x | label) as the density of a probability flow."""

    Config = DiffusionConfig
    Sample = DiffusionSample
    Score = DiffusionScore
    config: DiffusionConfig

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
            raise ConfigError("diffusion: all training images are alike; set net.sigma_data")
        self.denoiser = Denoiser(unet, stats.mean, sigma_data, config.fourier, config.prediction)

    @classmethod
    def check(cls, config: DiffusionConfig, spec: ImageSpec) -> None:
        """Refuse images whose sides the net's levels do not divide."""
        stride = stride_of(config.unshuffle, config.widths)
        if spec.height % stride or spec.width % stride:
            raise ConfigError(
                f"diffusion: images of {spec.height}x{spec.width} do not divide by {stride} "
                f"(net.unshuffle {config.unshuffle}, {len(config.widths)} levels); "
                "give fewer net.widths or less net.unshuffle, or resize the images"
            )

    @classmethod
    def check_sampling(
        cls, config: DiffusionConfig, options: DiffusionSample, spec: ImageSpec
    ) -> None:
        """Refuse solver, noise levels and guidance that are not for such a net."""
        if (config.objective == "consistency") != (options.solver == "consistency"):
            raise ConfigError(
                f"diffusion: net.objective is {config.objective}, but sample.solver is {options.solver}; "
                "consistency goes with consistency, and nothing else does"
            )
        options.sigmas(config.sigma_min, config.sigma_max)
        options.require_guidable(spec.classes, config.label_drop)

    @classmethod
    def check_scorable(cls, config: DiffusionConfig, options: DiffusionScore) -> None:
        """Refuse p(x) of a net that was never trained without labels."""
        if config.objective == "consistency":
            raise Unscorable(
                "diffusion: a net tuned for few calls denoises no more and has no density; "
                "score the model that it distills",
                hint="score the model that it distills",
            )
        if options.unconditional and config.label_drop == 0:
            raise Unscorable(
                "diffusion: score.unconditional needs a net trained without labels now and then, but "
                "net.label_drop is 0; train with 0.1, or score p(x | label)"
            )

    @classmethod
    def density_checks(cls, seed: int, train: TrainBriefly) -> Iterator[EstimatorCheck]:
        """A new model, which is a Gaussian, and the bound with the true denoiser."""
        return checks(seed)

    def phases(self) -> tuple[Phase, ...]:
        """One: denoise."""
        return (Phase("denoise", ("denoiser",)),)

    def loss(self, phase: str, batch: Batch, rng: Rng, nimg: int) -> Losses:
        """Squared error of what the net gives, per dimension. Sec. 5 and Table 1, Karras et al. 2022.

        Terms: ``edm_loss`` is the loss; ``noise_mse`` is |D - y|^2 / sigma^2 per dimension, the squared
        error of the implied noise, what log p weighs. Both have no unit. For the objective ``likelihood`` the
        loss is the variational bound in nats per dimension.
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
        """Solve from the prior down; the prior's draw and any churn are addressed by ``rng``'s rows."""
        denoise = self._solvable(labels_B, options)
        prior = self._prior()
        noise_BCHW = rng.fold("prior").normal(*self.spec.shape, dtype=torch.float64)
        x_BCHW = prior.mean_C11 + prior.std * noise_BCHW
        x_BCHW = options.solve(denoise, x_BCHW, rng, self.config.sigma_min, self.config.sigma_max)
        # Outside [-1, 1] lie the bins of the edge pixels.
        binary = self.spec.levels == 2
        return (units.binarise(x_BCHW) if binary else x_BCHW.clamp(-1, 1)).to(self._dtype)

    @torch.no_grad()
    def log_prob(self, batch: Batch, rng: Rng, options: DiffusionScore) -> LogProb:
        """Of the flow, or of the noisy process: see :mod:`genmod.likelihood.diffusion`."""
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
        """These rows' denoiser and all else that a likelihood needs."""
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
        """Images spread over their pixels' bins."""
        u_BCHW = rng.uniform(*self.spec.shape, dtype=dtype)
        return units.dequantise(batch.x_BCHW(dtype), u_BCHW, self.spec.levels)

    def _classes(self, labels_B: Tensor | None) -> Tensor | None:
        """Rows of the class embedding, None for data without labels."""
        assert labels_B is not None or not self.spec.classes, "a conditional model needs labels"
        return labels_B if self.spec.classes else None

    def _at(self, class_B: Tensor | None) -> Denoise:
        """The denoiser of these rows' classes, at one noise level for all of them."""

        def denoise(x_BCHW: Tensor, sigma: float) -> Tensor:
            return self.denoiser(x_BCHW, x_BCHW.new_full(x_BCHW.shape[:1], sigma), class_B)

        return denoise

    def _solvable(self, labels_B: Tensor | None, options: DiffusionSample) -> Denoise:
        """The denoiser that the sampler solves, guided if it is asked for."""
        class_B = self._classes(labels_B)
        options.require_guidable(self.spec.classes, self.config.label_drop)
        if class_B is None or options.guidance == 1.0:
            return self._at(class_B)
        unconditional = self._at(torch.full_like(class_B, self.spec.classes))
        interval = options.guidance_low, options.guidance_high
        return guided(self._at(class_B), unconditional, options.guidance, interval)
