"""GAN: a relativistic pairing loss with two gradient penalties (RpGAN + R1 + R2, Huang et al. 2024, R3GAN).

    L_D = E softplus(-(D(x) - D(G(z)))) + gamma/2 (E ||grad_x D(x)||^2 + E ||grad_x D(G(z))||^2)
    L_G = E softplus(-(D(G(z)) - D(x)))

A real image is paired with one fake of the same label. Squared gradient norms are sums over C, H, W.
That loss is the default; the others and the augmentations are in :mod:`genmod.adversarial`.
D sees real images at the middle of their pixels' bins: the penalties already smooth it over distances
far above half a bin, so dequantising them would add only noise.

D's value is no log p up to a constant, so no likelihood is labelled ``unnormalised``: the best D of the
relativistic and of the non-saturating loss is log p_data - log p_G up to one (Goodfellow et al. 2014,
Proposition 1), flat when G is right; that of the others is no logarithm at all. Densities are of G under
declared noise.

Letters: B batch, C channels, H height, W width, Z latent dimensions.
"""

from __future__ import annotations

from typing import Any, ClassVar, Self, final

import torch
from pydantic import Field
from torch import Tensor

from genmod import units
from genmod.errors import ConfigError
from genmod.interface.batch import Batch
from genmod.interface.log_prob import LogProb, Prepared
from genmod.interface.model import DataStats, GenerativeModel, Losses, Phase, Problem
from genmod.interface.options import FamilyConfig, SampleOptions, ScoreOptions
from genmod.likelihood.noisy_generator import NoisyGenerator, NoisyGeneratorScore
from genmod.manifest import ImageSpec
from genmod.models.gan.augment import adapted, augmented
from genmod.models.gan.config import GanConfig
from genmod.models.gan.losses import Critic, discriminator_loss, generator_loss, judge
from genmod.models.gan.nets import Discriminator, Generator
from genmod.rng import Rng

NO_DENSITY = "a GAN has no density of its own"


class GanSample(SampleOptions):
    """How to sample a GAN."""

    psi: float = Field(default=1.0, ge=0)
    """Truncation: scales z. Below 1, images are more typical and less varied, and no draws from p(x)."""

    @classmethod
    def variants(cls) -> tuple[Self, ...]:
        """Truncated."""
        return (cls(psi=0.7),)

    @property
    def draws_from_p(self) -> bool:
        """Only without truncation."""
        return self.psi == 1.0

    @property
    def sampler(self) -> str:
        """One pass of G, and the truncation if there is one."""
        return "generator" if self.psi == 1.0 else f"generator-psi={self.psi:g}"


class GanScore(NoisyGeneratorScore):
    """How to bound the density of the generator under declared noise."""


@final
class Model(GenerativeModel):
    """Generator G and discriminator D, each moved in a phase of its own."""

    Config: ClassVar[type[FamilyConfig]] = GanConfig
    Sample: ClassVar[type[SampleOptions]] = GanSample
    Score: ClassVar[type[ScoreOptions]] = GanScore

    config: GanConfig
    gamma_scale: Tensor
    augment_probability: Tensor

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
        """Raise ConfigError unless the sides can be folded as often as the nets do."""
        for name, tower in (
            ("generator", config.generator),
            ("discriminator", config.discriminator),
        ):
            by = tower.multiple
            if spec.height % by or spec.width % by:
                near = "x".join(
                    str(max(by, round(side / by) * by)) for side in (spec.height, spec.width)
                )
                raise ConfigError(
                    f"gan: net.{name} has patch {tower.patch} and {len(tower.widths)} levels, which "
                    f"needs sides that are multiples of {by}, but images are "
                    f"{spec.height}x{spec.width}; use fewer levels or a smaller patch, "
                    f"or resize the data to {near}"
                )

    @classmethod
    def check_scorable(cls, config: Any, options: GanScore) -> None:
        """Raise Unscorable unless observation noise is declared."""
        options.require_sigma(NO_DENSITY)

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
        """D first, so that G follows the gradient of a D that knows its newest images."""
        critic = Phase("discriminator", ("discriminator",))
        return critic, Phase("generator", ("generator",), every=self.config.generator_every)

    def loss(self, phase: str, batch: Batch, rng: Rng, nimg: int) -> Losses:
        """L_D or L_G; ``total`` of D includes the penalties."""
        if phase == "discriminator":
            return self._discriminator_loss(batch, rng.fold(phase), self.config.gamma.at(nimg))
        assert phase == "generator", f"no phase is called {phase!r}"
        return self._generator_loss(batch, rng.fold(phase))

    def _discriminator_loss(self, batch: Batch, rng: Rng, gamma_now: float) -> Losses:
        with torch.no_grad():
            fake_BCHW = self._generate(batch.labels_B, rng, 1.0)
        penalty, every = self.config.penalties
        judged = judge(
            (self._critic(batch, rng.fold("real")), self._critic(batch, rng.fold("fake"))),
            batch.x_BCHW(self._dtype),
            fake_BCHW,
            penalty=penalty,
            every=every,
            index_B=rng.index_B,
            mix_B=rng.fold("mix").uniform(dtype=self._dtype),
        )
        gap_B = judged.real_B - judged.fake_B
        pairing = discriminator_loss(self.config.loss, judged.real_B, judged.fake_B)
        gamma = self.gamma_scale * gamma_now
        sure_B = gap_B if self.config.loss == "rpgan" else judged.real_B
        terms = {
            "adversarial_loss": pairing,
            "logit_gap": gap_B.mean(),
            "logit_real": judged.real_B.mean(),
            "logit_fake": judged.fake_B.mean(),
            "overfitting_heuristic": sure_B.sign().mean(),
            "gamma": gamma,
        }
        norms = {"r1_sq_norm": judged.r1, "r2_sq_norm": judged.r2, "gradient_penalty": judged.gp}
        terms |= {name: value for name, value in norms.items() if value is not None}
        if self.config.augment is not None:
            terms["augment_probability"] = self.augment_probability
        total = pairing + judged.penalty(gamma)
        return Losses(total, {name: value.detach().clone() for name, value in terms.items()})

    def _critic(self, batch: Batch, rng: Rng) -> Critic:
        """D of augmented images, for some rows of a batch."""

        def critic(x_NCHW: Tensor, rows_N: Tensor) -> Tensor:
            labels_N = None if batch.labels_B is None else batch.labels_B[rows_N]
            if self.config.augment is not None:
                draws = rng.fold("augment").rows(rows_N)
                kinds = self.config.augment.kinds
                x_NCHW = augmented(x_NCHW, draws, kinds, self.augment_probability)
            return self.discriminator(x_NCHW, labels_N)

        return critic

    def _generator_loss(self, batch: Batch, rng: Rng) -> Losses:
        rows_B = torch.arange(len(batch), device=rng.index_B.device)
        fake_BCHW = self._generate(batch.labels_B, rng, 1.0)
        fake_B = self._critic(batch, rng.fold("fake"))(fake_BCHW, rows_B)
        if self.config.loss != "rpgan":
            total = generator_loss(self.config.loss, fake_B, None)
            return Losses(total, {"logit_fake": fake_B.mean().detach()})
        with torch.no_grad():
            critic = self._critic(batch, rng.fold("real"))
            real_B = critic(batch.x_BCHW(self._dtype), rows_B)
        total = generator_loss(self.config.loss, fake_B, real_B)
        gap = (fake_B - real_B).mean().detach()
        return Losses(total, {"adversarial_loss": total.detach(), "logit_gap": gap})

    def adapts(self) -> tuple[str, ...]:
        """D's sureness, if the augmentation follows it."""
        adaptive = self.config.augment is not None and self.config.augment.target is not None
        return ("discriminator/overfitting_heuristic",) if adaptive else ()

    @torch.no_grad()
    def adapt(self, means_K: Tensor, images: int) -> None:
        """Augment more often if D is too sure, else less often."""
        assert self.config.augment is not None
        p = self.augment_probability
        p.copy_(adapted(p, means_K[0].to(p.dtype), self.config.augment, images))

    def strengthen(self, factor: float) -> None:
        """Raise gamma."""
        self.gamma_scale.mul_(factor)

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.generator.parameters()).dtype

    def _generate(self, labels_B: Tensor | None, rng: Rng, psi: float) -> Tensor:
        z_BZ = rng.fold("z").normal(self.config.z_dim, dtype=self._dtype)
        return self.generator(z_BZ * psi, labels_B)

    @torch.no_grad()
    def sample(self, labels_B: Tensor | None, rng: Rng, options: GanSample) -> Tensor:
        """G(psi z, label) cut to [-1, 1], z addressed by ``rng``."""
        x_BCHW = self._generate(labels_B, rng, options.psi)
        if self.spec.levels == 2:
            # The model of binary data is G followed by the nearer of the two levels.
            return units.to_network((x_BCHW >= 0).to(torch.uint8) * 255, x_BCHW.dtype)
        return x_BCHW.clamp(-1.0, 1.0)

    def log_prob(self, batch: Batch, rng: Rng, options: GanScore) -> LogProb:
        """A stochastic lower bound on the log density of G under noise, by annealed importance sampling."""
        options.require_sigma(NO_DENSITY)
        return self._augmentation().log_prob(batch, rng, options)

    def prepare_scores(self, batch: Batch | None, rng: Rng, options: GanScore) -> Prepared:
        """Fit sigma, measure the gap between lower and upper bound."""
        return self._augmentation().prepare(batch, rng, options)

    def _augmentation(self) -> NoisyGenerator:
        return NoisyGenerator(self.generator, self.config.z_dim, self.spec, self._dtype)
