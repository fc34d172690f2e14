"""Variational autoencoder: latents in one group or a ladder of groups, an honest likelihood of pixels.

    z ~ p(z), x ~ p(x | z, y)          -log p(x | y) <= E_q[-log p(x | z, y)] + KL(q(z | x, y) || p(z))

All likelihoods and divergences are sums over dimensions; only the batch is averaged over.
Letters: B batch, C, H, W an image, Z latents, G groups of free bits, E embedding, N rows, F features.

Reference:
    Auto-encoding variational Bayes, Kingma and Welling 2014, https://arxiv.org/abs/1312.6114
"""

from __future__ import annotations

from typing import Any, Literal, Self, final

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from genmod import units
from genmod.distributions import pixels
from genmod.distributions.gaussian import Posterior, at_least_float32, free_bits, narrow
from genmod.distributions.noise import Sigma
from genmod.distributions.pixels import LikelihoodName, likelihood_of
from genmod.distributions.prior import Mixture, Prior, Standard
from genmod.errors import ConfigError, Unscorable
from genmod.interface.batch import Batch
from genmod.interface.latents import Latents
from genmod.interface.log_prob import LogProb
from genmod.interface.model import DataStats, GenerativeModel, Losses, Phase
from genmod.interface.options import FamilyConfig, SampleOptions
from genmod.likelihood import vae_likelihood as encoded
from genmod.likelihood.vae_likelihood import EncodedScore
from genmod.manifest import ImageSpec
from genmod.models.vae.hierarchical import HierarchicalPosterior
from genmod.models.vae.hierarchical_net import TopDownNet
from genmod.nets import dense, resnet
from genmod.rng import Rng


class VAEConfig(FamilyConfig):
    """The nets and the objective."""

    latents: int = Field(default=32, ge=1)
    """Z, length of the latent vector."""
    groups: int = Field(default=1, ge=1, le=12)
    """Of latents, one given the other, top down; divides ``latents``. 1 is a plain VAE. In two short runs
    4, with ``ladder_width`` 64, gained 1.8 nats at equal CPU time (tests/benchmarks/vae-options.md)."""
    ladder_width: int = Field(default=128, ge=1)
    """Length of the states between groups, if there are several."""
    prior_components: int = Field(default=0, ge=0)
    """Gaussians of a trained mixture as the prior of all latents; 0 for N(0, 1)."""
    unshuffle: int = Field(default=2, ge=1)
    """Side of the pixel squares that the nets fold into channels; 1 for none."""
    widths: tuple[int, ...] = Field(default=(32, 64), min_length=1)
    """Channels of each level, finest first; each level after the first halves height and width."""
    blocks: int = Field(default=1, ge=0)
    """Residual blocks in each level of the encoder and of the decoder."""
    hidden: tuple[int, ...] = ()
    """Lengths of plain layers instead of all that, from pixels to latents; the decoder mirrors them."""
    activation: dense.Activation = "silu"
    """After each plain layer."""
    embedding: int = Field(default=16, ge=1)
    """Length of a class's embedding, for data with labels."""
    likelihood: LikelihoodName = "auto"
    """Of a pixel, see :mod:`genmod.distributions.pixels`."""
    components: int = Field(default=3, ge=1)
    """Logistics that are mixed in each pixel of 8-bit data; 1 is the plain discretised logistic."""
    beta: float = Field(default=1.0, gt=0)
    """Weight of the KL term in training, after its warm-up. Above 1 latents are used less and draws from
    the prior look cleaner, at the price of likelihood; scores always use 1."""
    kl_warmup_nimg: int = Field(default=0, ge=0)
    """Images over which the weight of the KL term grows linearly from 0 to ``beta``."""
    free_bits_nats: float = Field(default=0.0, ge=0)
    """KL below which a group of latents costs no less, for each image."""
    free_bits_group: int = Field(default=1, ge=1)
    """Adjacent latents that share one allowance of free bits; divides ``latents``."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name in ("free_bits_group", "groups"):
            if self.latents % getattr(self, name):
                raise ValueError(f"{name} must divide latents ({self.latents})")
        if min(self.widths + self.hidden) < 1:
            raise ValueError("widths and hidden must be positive")
        if self.free_bits_nats and self.prior_components:
            raise ValueError("free bits are of single latents, so they need prior_components 0")
        return self

    @classmethod
    def tiny(cls) -> Self:
        """4 latents, one level of 8 channels."""
        return cls(latents=4, widths=(8,), embedding=4, kl_warmup_nimg=16)

    @classmethod
    def variants(cls) -> tuple[Self, ...]:
        """Other likelihoods of grey pixels, groups of latents, a trained prior, plain layers, free bits."""
        likelihoods = {"likelihood": "gaussian_sigma"}, {"likelihood": "categorical_256"}
        others = {"groups": 2, "ladder_width": 8}, {"prior_components": 3, "hidden": (12, 8)}
        one: dict[str, Any] = {"components": 1, "beta": 2.0, "free_bits_nats": 0.1}
        changes = *likelihoods, *others, one | {"free_bits_group": 2}
        return tuple(cls.tiny().model_copy(update=change) for change in changes)


class VAESample(SampleOptions):
    """How to sample: z from the prior, then pixels."""

    output: Literal["draw", "mean"] = "draw"
    """``draw``: pixels from p(x | z). ``mean``: the expected image given z, smoother than any draw."""
    temperature: float = Field(default=1.0, gt=0)
    """Factor on the standard deviation of the prior's Gaussians; 1 is the prior itself."""

    @classmethod
    def variants(cls) -> tuple[Self, ...]:
        """The decoder's mean, and a narrower prior."""
        return cls(output="mean"), cls(temperature=0.7)

    @property
    def draws_from_p(self) -> bool:
        """Only pixels drawn from p(x | z) with z from the unchanged prior."""
        return self.output == "draw" and self.temperature == 1.0

    @property
    def sampler(self) -> str:
        """What was done to draw."""
        name = "ancestral" if self.output == "draw" else "decoder-mean"
        return name if self.temperature == 1.0 else f"{name}, temperature {self.temperature:g}"


class VAEScore(EncodedScore):
    """How to bound log p, always with beta = 1."""


@final
class Model(GenerativeModel):
    """p(x | y) = E_z p(x | z, y) with z from the prior."""

    Config = VAEConfig
    Sample = VAESample
    Score = VAEScore
    encodes = True

    def __init__(self, config: VAEConfig, spec: ImageSpec, stats: DataStats) -> None:
        super().__init__(config, spec, stats)
        self.net = config
        noise = Sigma(stats.sigma) if config.likelihood == "gaussian_sigma" else None
        self.noise = noise or nn.Identity()
        self.likelihood = likelihood_of(config.likelihood, spec, config.components, noise)
        embedding = config.embedding if spec.classes else 0
        size = (spec.height, spec.width)
        names = {"hidden", "activation"} if config.hidden else {"unshuffle", "widths", "blocks"}
        shape: dict[str, Any] = config.model_dump(include=names)
        nets = dense if config.hidden else resnet
        self.classes = nn.Embedding(spec.classes, embedding) if spec.classes else nn.Identity()
        latents, out = config.latents, 2 * config.latents
        mixed = config.prior_components
        self.prior: Prior = Mixture(mixed, latents) if mixed else Standard()
        self.top_down_net: nn.Module = nn.Identity()
        if config.groups > 1:
            self.top_down_net = TopDownNet(
                config.groups, latents // config.groups, config.ladder_width
            )
            latents = out = config.ladder_width
        self.encoder = nets.Encoder(spec.channels, size, out, embedding=embedding, **shape)
        self.decoder = nets.Decoder(
            latents + embedding, self.likelihood.parameters * spec.channels, size, **shape
        )

    @classmethod
    def check(cls, config: VAEConfig, spec: ImageSpec) -> None:
        """Refuse a likelihood that is none for such pixels, and images smaller than the nets' grid."""
        pixels.check(config.likelihood, spec, "vae")
        stride = resnet.stride_of(config.unshuffle, config.widths)
        if not config.hidden and stride > min(spec.height, spec.width):
            raise ConfigError(
                f"vae: widths and unshuffle reduce images {stride}-fold, which is more than images "
                f"of {spec.height}x{spec.width} have; give fewer net.widths or less net.unshuffle"
            )

    @classmethod
    def check_scorable(cls, config: VAEConfig, options: VAEScore) -> None:
        """Chains need a joint density that is not random: no dequantisation."""
        if config.likelihood == "gaussian_sigma" and options.estimator == "ais":
            raise Unscorable(
                "likelihood gaussian_sigma is dequantised, so ais has no density to anneal to; "
                "set score.estimator to iwae"
            )

    def phases(self) -> tuple[Phase, ...]:
        """One: descend the negative ELBO."""
        names = "encoder", "decoder", "classes", "noise", "top_down_net", "prior"
        return (Phase("elbo", tuple(n for n in names if list(self.get_submodule(n).parameters()))),)

    def loss(self, phase: str, batch: Batch, rng: Rng, nimg: int) -> Losses:
        """Negative ELBO with beta and free bits; terms without them under their own names."""
        assert phase == "elbo", phase
        x_BCHW = batch.x_BCHW(self._dtype)
        e_BE = self._embed(batch.labels_B)
        posterior = self._posterior(x_BCHW, e_BE)
        z_BZ, q = posterior.drawn(rng.fold("posterior"))
        if self.likelihood.is_density:
            x_BCHW = units.dequantise(x_BCHW, self._in_bins(rng))
        rec_B = self.likelihood.nats(self._decode(z_BZ, e_BE), x_BCHW)
        kl_BZ = self.prior.kl_nats(q, z_BZ)
        kl_B = floored_B = kl_BZ.sum(1)
        if self.net.free_bits_nats:
            floored_B = free_bits(kl_BZ, self.net.free_bits_nats, self.net.free_bits_group)
        beta = self.beta(nimg)
        total = (beta * floored_B - rec_B).mean()
        with torch.no_grad():
            elbo = (rec_B - kl_B).mean()
            active = (q.mean_BZ.var(0, correction=0) > 0.01).sum()
            terms = {
                "rec_nats": rec_B.mean(),
                "kl_nats": kl_B.mean(),
                "elbo_nats": elbo,
                "elbo_bits_per_dim": torch.as_tensor(units.bits_per_dim(elbo, self.spec.dims)),
                "beta": torch.full_like(elbo, beta),
                "active_units": active.to(elbo.dtype),
            }
        return Losses(total, {name: term.detach() for name, term in terms.items()})

    def beta(self, nimg: int) -> float:
        """Weight of the KL term, linear in images seen until the end of its warm-up."""
        warmup_nimg = self.net.kl_warmup_nimg
        return self.net.beta * (min(1.0, nimg / warmup_nimg) if warmup_nimg else 1.0)

    @torch.no_grad()
    def sample(self, labels_B: Tensor | None, rng: Rng, options: VAESample) -> Tensor:
        """Latents from the prior, pixels from the decoder; both addressed by ``rng``'s rows."""
        z_BZ = self.prior.draw(
            rng.fold("latent"), self.net.latents, self._dtype, options.temperature
        )
        raw_BPHW = self._decode(z_BZ, self._embed(labels_B))
        if options.output == "mean":
            return self.likelihood.mean(raw_BPHW)
        return self.likelihood.draw(raw_BPHW, rng.fold("pixels"))

    def codes(self, batch: Batch, rng: Rng) -> Latents:
        """Of q(z | x, y)."""
        posterior = self._posterior(batch.x_BCHW(self._dtype), self._embed(batch.labels_B))
        z_BZ, q = posterior.drawn(rng.fold("posterior"))
        lengths = (self.net.latents // self.net.groups,) * self.net.groups
        return Latents(q, z_BZ, lengths, self.prior)

    def decoded(self, z_BZ: Tensor, labels_B: Tensor | None) -> Tensor:
        """The expectation of p(x | z, y), grey where pixels are binary."""
        return self.likelihood.expected(self._decode(z_BZ, self._embed(labels_B)))

    @torch.no_grad()
    def log_prob(self, batch: Batch, rng: Rng, options: VAEScore) -> LogProb:
        """A bound on log P(pixels | label), with beta = 1."""
        self.check_scorable(self.net, options)
        x_BCHW = batch.x_BCHW(self._dtype)
        e_BE = self._embed(batch.labels_B)
        posterior = self._posterior(x_BCHW, e_BE)

        def log_joint(z_NZ: Tensor, row_N: Tensor, u_NCHW: Tensor | None = None) -> Tensor:
            e_NE = None if e_BE is None else e_BE[row_N]
            x_NCHW = x_BCHW[row_N] if u_NCHW is None else units.dequantise(x_BCHW[row_N], u_NCHW)
            rec_N = self.likelihood.nats(self._decode(z_NZ, e_NE), x_NCHW)
            return rec_N.double() + self.prior.nats(z_NZ.double())

        extra = self._in_bins if self.likelihood.is_density else None
        of = "decoder and prior, beta 1" + (", given the label" if self.spec.classes else "")
        of += ", uniform dequantisation" if extra else ""
        return encoded.bound(posterior, log_joint, rng, options, extra).log_prob(of)

    def _in_bins(self, rng: Rng) -> Tensor:
        """Where in its bin each pixel lies, uniform in [0, 1)."""
        return rng.fold("dequantise").uniform(*self.spec.shape, dtype=self._dtype)

    @property
    def _dtype(self) -> torch.dtype:
        return self.encoder.head.weight.dtype

    def _embed(self, labels_B: Tensor | None) -> Tensor | None:
        """Class embeddings, or None for data without labels."""
        if not self.spec.classes:
            return None
        assert labels_B is not None, "a class-conditional model needs labels"
        return self.classes(labels_B)

    def _posterior(self, x_BCHW: Tensor, e_BE: Tensor | None) -> Posterior:
        """q(z | x, y)."""
        h_BF = self.encoder(x_BCHW, e_BE)
        top_down_net = self.top_down_net
        return (
            HierarchicalPosterior(top_down_net, h_BF)
            if isinstance(top_down_net, TopDownNet)
            else narrow(h_BF)
        )

    def _decode(self, z_BZ: Tensor, e_BE: Tensor | None) -> Tensor:
        """The likelihood's parameters, in at least float32."""
        z_BZ = self.top_down_net(z_BZ)
        inputs = z_BZ if e_BE is None else torch.cat((z_BZ, e_BE.to(z_BZ.dtype)), dim=1)
        return at_least_float32(self.decoder(inputs))
