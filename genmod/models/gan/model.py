"""GAN with a relativistic loss and two gradient penalties (RpGAN + R1 + R2, Huang et al. 2024, R3GAN).

    L_D = E softplus(-(D(x) - D(G(z)))) + gamma/2 (E ||grad_x D(x)||^2 + E ||grad_x D(G(z))||^2)
    L_G = E softplus(-(D(G(z)) - D(x)))

Each real image is paired with one generated image of the same label. Squared gradient norms are sums over
C, H, W. This loss is the default; :mod:`genmod.models.gan.losses` has the others, and
:mod:`genmod.models.gan.augment` the augmentations.
D sees real images at the middle of their pixels' bins. The penalties smooth D over distances far above half
a bin, so dequantisation would only add noise.

D's logit is not log p up to a constant, so no likelihood has the label ``unnormalised``. The optimal D of
the relativistic and of the non-saturating loss is log p_data - log p_G up to a constant (Goodfellow et al.
2014, Proposition 1), which is flat when G is right; the optimal D of the other losses is no logarithm.
Densities are those of G under declared noise.

Letters: B batch, C channels, H height, W width, Z latent dimensions.
"""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor

from genmod import units
from genmod.errors import ConfigError
from genmod.interface.batch import Batch
from genmod.interface.log_prob import LogProb, Prepared
from genmod.interface.model import DataStats, GenerativeModel, Losses, Phase, Problem
from genmod.interface.portable import NetInput, PortableNet, label_input
from genmod.likelihood.noisy_generator import NoisyGenerator
from genmod.manifest import ImageSpec
from genmod.models.gan.augment import adapted, augmented
from genmod.models.gan.config import GanConfig, GanSample, GanScore
from genmod.models.gan.losses import LogitsFn, discriminate, discriminator_loss, generator_loss
from genmod.models.gan.nets import ClampedGenerator, Discriminator, Generator
from genmod.rng import Rng

_NO_DENSITY = "a GAN has no density"


@final
class Model(GenerativeModel):
    """Generator G and discriminator D, each trained in its own phase."""

    Config, Sample, Score = GanConfig, GanSample, GanScore
    not_diffusers = "diffusers has no class for the generator of a GAN"

    config: GanConfig
    gamma_scale: Tensor
    """Factor on the scheduled gamma; :meth:`strengthen` raises it."""
    augment_probability: Tensor
    """Current probability of each augmentation; only with ``config.augment``."""

    def __init__(self, config: GanConfig, spec: ImageSpec, stats: DataStats) -> None:
        super().__init__(config, spec, stats)
        self.generator = Generator(
            spec.shape,
            spec.classes,
            z_dim=config.z_dim,
            widths=config.generator.widths,
            blocks=config.generator.blocks,
            patch=config.generator.patch,
        )
        self.discriminator = Discriminator(
            spec.shape,
            spec.classes,
            features=config.features,
            widths=config.discriminator.widths,
            blocks=config.discriminator.blocks,
            patch=config.discriminator.patch,
        )
        self.register_buffer("gamma_scale", torch.ones(()))
        if config.augment is not None:
            start = torch.tensor(config.augment.probability)
            self.register_buffer("augment_probability", start)

    @classmethod
    def check(cls, config: GanConfig, spec: ImageSpec) -> None:
        """Raise ConfigError unless height and width are multiples of each net's stride."""
        for name, tower in (
            ("generator", config.generator),
            ("discriminator", config.discriminator),
        ):
            by = tower.multiple
            if spec.height % by or spec.width % by:
                nearest = "x".join(
                    str(max(by, round(side / by) * by)) for side in (spec.height, spec.width)
                )
                raise ConfigError(
                    f"gan: net.{name} with patch {tower.patch} and {len(tower.widths)} levels needs "
                    f"image sides that are multiples of {by}, got {spec.height}x{spec.width}; "
                    f"use fewer levels or a smaller patch, or resize the data to {nearest}"
                )

    @classmethod
    def check_scorable(cls, config: Any, options: GanScore) -> None:
        """Raise Unscorable unless observation noise is declared."""
        options.require_sigma(_NO_DENSITY)

    @classmethod
    def hint(cls, problem: Problem) -> str:
        """For mode collapse: a stronger gradient penalty, or augmented images."""
        if problem == "collapsed":
            return (
                "raise the gradient penalty (net.gamma), lower train.optim.lr, "
                "or use more data or augmentation (net.augment)"
            )
        return super().hint(problem)

    def phases(self) -> tuple[Phase, ...]:
        """D first, so that G follows the gradient of the newest D."""
        discriminator = Phase("discriminator", ("discriminator",))
        every = self.config.generator_every
        return discriminator, Phase("generator", ("generator",), every=every)

    def loss(self, phase: str, batch: Batch, rng: Rng, nimg: int) -> Losses:
        """L_D or L_G; ``total`` of D includes the penalties."""
        if phase == "discriminator":
            return self._discriminator_loss(batch, rng.fold(phase), self.config.gamma.at(nimg))
        assert phase == "generator", f"unknown phase {phase!r}"
        return self._generator_loss(batch, rng.fold(phase))

    def _discriminator_loss(self, batch: Batch, rng: Rng, scheduled_gamma: float) -> Losses:
        with torch.no_grad():
            fake_BCHW = self._generate(batch.labels_B, rng, 1.0)
        penalty, every = self.config.penalties
        output = discriminate(
            self._logits_fn(batch, rng.fold("real")),
            self._logits_fn(batch, rng.fold("fake")),
            batch.x_BCHW(self._dtype),
            fake_BCHW,
            penalty=penalty,
            every=every,
            index_B=rng.index_B,
            mix_B=rng.fold("mix").uniform(dtype=self._dtype),
        )
        gap_B = output.real_B - output.fake_B
        adversarial = discriminator_loss(self.config.loss, output.real_B, output.fake_B)
        gamma = self.gamma_scale * scheduled_gamma
        # ADA's r_t; logits of the relativistic loss have no zero, so it uses their difference.
        sign_B = (gap_B if self.config.loss == "rpgan" else output.real_B).sign()
        terms = {
            "adversarial_loss": adversarial,
            "logit_gap": gap_B.mean(),
            "logit_real": output.real_B.mean(),
            "logit_fake": output.fake_B.mean(),
            "overfitting_heuristic": sign_B.mean(),
            "gamma": gamma,
        }
        norms = {"r1_sq_norm": output.r1, "r2_sq_norm": output.r2, "gradient_penalty": output.gp}
        terms |= {name: value for name, value in norms.items() if value is not None}
        if self.config.augment is not None:
            terms["augment_probability"] = self.augment_probability
        total = adversarial + output.penalty(gamma)
        return Losses(total, {name: value.detach().clone() for name, value in terms.items()})

    def _logits_fn(self, batch: Batch, rng: Rng) -> LogitsFn:
        """D of augmented images, as a function of images and of their rows in the batch."""

        def logits(x_NCHW: Tensor, rows_N: Tensor) -> Tensor:
            labels_N = None if batch.labels_B is None else batch.labels_B[rows_N]
            if self.config.augment is not None:
                draws = rng.fold("augment").rows(rows_N)
                kinds = self.config.augment.kinds
                x_NCHW = augmented(x_NCHW, draws, kinds, self.augment_probability)
            return self.discriminator(x_NCHW, labels_N)

        return logits

    def _generator_loss(self, batch: Batch, rng: Rng) -> Losses:
        rows_B = torch.arange(len(batch), device=rng.index_B.device)
        fake_BCHW = self._generate(batch.labels_B, rng, 1.0)
        fake_B = self._logits_fn(batch, rng.fold("fake"))(fake_BCHW, rows_B)
        if self.config.loss != "rpgan":
            total = generator_loss(self.config.loss, fake_B, None)
            return Losses(total, {"logit_fake": fake_B.mean().detach()})
        with torch.no_grad():
            logits_of_real = self._logits_fn(batch, rng.fold("real"))
            real_B = logits_of_real(batch.x_BCHW(self._dtype), rows_B)
        total = generator_loss(self.config.loss, fake_B, real_B)
        gap = (fake_B - real_B).mean().detach()
        return Losses(total, {"adversarial_loss": total.detach(), "logit_gap": gap})

    def adapts(self) -> tuple[str, ...]:
        """The overfitting heuristic of D, if the augmentation adapts to it."""
        adaptive = self.config.augment is not None and self.config.augment.target is not None
        return ("discriminator/overfitting_heuristic",) if adaptive else ()

    @torch.no_grad()
    def adapt(self, means_K: Tensor, images: int) -> None:
        """Raise the augmentation probability if D overfits, else lower it."""
        assert self.config.augment is not None
        p = self.augment_probability
        p.copy_(adapted(p, means_K[0].to(p.dtype), self.config.augment, images))

    def strengthen(self, factor: float) -> None:
        """Multiply gamma, the weight of the gradient penalties."""
        self.gamma_scale.mul_(factor)

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.generator.parameters()).dtype

    def _generate(self, labels_B: Tensor | None, rng: Rng, psi: float) -> Tensor:
        z_BZ = rng.fold("z").normal(self.config.z_dim, dtype=self._dtype)
        return self.generator(z_BZ * psi, labels_B)

    @torch.no_grad()
    def sample(self, labels_B: Tensor | None, rng: Rng, options: GanSample) -> Tensor:
        """G(psi z, label) clamped to [-1, 1], z addressed by ``rng``."""
        x_BCHW = self._generate(labels_B, rng, options.psi)
        if self.spec.levels == 2:
            # The model of binary data is G followed by the nearer of the two levels.
            return units.to_network((x_BCHW >= 0).to(torch.uint8) * 255, x_BCHW.dtype)
        return x_BCHW.clamp(-1.0, 1.0)

    def portable_net(self) -> PortableNet:
        """The generator, clamped as samples are."""
        latent = NetInput(
            "z",
            lambda rng: rng.fold("z").normal(self.config.z_dim),
            f"(B, {self.config.z_dim}) float32, independent draws of N(0, 1)",
        )
        labels = (label_input(self.spec.classes),) if self.spec.classes else ()
        output = "G(z, label), clamped to [-1, 1]"
        if self.spec.levels == 2:
            output += "; a pixel is on where it is 0 or more"
        usage = "Draw z, run the net. Multiply z by psi < 1 for images nearer to the mean."
        return PortableNet(ClampedGenerator(self.generator), (latent, *labels), output, usage)

    def log_prob(self, batch: Batch, rng: Rng, options: GanScore) -> LogProb:
        """A stochastic lower bound on the log density of G under noise, by annealed importance sampling."""
        options.require_sigma(_NO_DENSITY)
        return self._augmentation().log_prob(batch, rng, options)

    def prepare_scores(self, batch: Batch | None, rng: Rng, options: GanScore) -> Prepared:
        """Fit sigma, and measure the gap between the lower and the upper bound."""
        return self._augmentation().prepare(batch, rng, options)

    def _augmentation(self) -> NoisyGenerator:
        return NoisyGenerator(self.generator, self.config.z_dim, self.spec, self._dtype)
