"""Variational autoencoder with one group of latents or a hierarchy of groups, and a likelihood of pixels.

    z ~ p(z), x ~ p(x | z, y)          -log p(x | y) <= E_q[-log p(x | z, y)] + KL(q(z | x, y) || p(z))

All likelihoods and divergences are sums over dimensions; only the batch is averaged over.
Letters: B batch, C, H, W an image, Z latents, G groups of free bits, E embedding, N rows, F features.

Reference:
    Auto-encoding variational Bayes, Kingma and Welling 2014, https://arxiv.org/abs/1312.6114
"""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor, nn

from genmod import units
from genmod.distributions import pixels
from genmod.distributions.gaussian import Posterior, at_least_float32, bounded_posterior, free_bits
from genmod.distributions.noise import LearnedSigma
from genmod.distributions.pixels import likelihood_of
from genmod.distributions.prior import MixturePrior, Prior, StandardNormalPrior
from genmod.errors import ConfigError, Unscorable
from genmod.interface.batch import Batch
from genmod.interface.latents import Latents
from genmod.interface.log_prob import LogProb
from genmod.interface.model import DataStats, GenerativeModel, Losses, Phase, Problem
from genmod.interface.portable import NetInput, PortableNet, label_input
from genmod.likelihood import vae_likelihood
from genmod.manifest import ImageSpec
from genmod.models.vae.config import VAEConfig, VAESample, VAEScore
from genmod.models.vae.hierarchical import HierarchicalPosterior
from genmod.models.vae.hierarchical_net import TopDownNet
from genmod.nets.blocks import stride_of
from genmod.nets.dense import DenseDecoder, DenseEncoder
from genmod.nets.resnet import ResNetDecoder, ResNetEncoder
from genmod.rng import Rng


def _nets(config: VAEConfig) -> tuple[type[Any], type[Any], dict[str, Any]]:
    """Classes of encoder and decoder, and the sizes that both take: plain layers or convolutions."""
    if config.hidden:
        sizes = {"hidden": config.hidden, "activation": config.activation}
        return DenseEncoder, DenseDecoder, sizes
    names = "unshuffle", "widths", "blocks"
    return ResNetEncoder, ResNetDecoder, {name: getattr(config, name) for name in names}


class MeanDecoder(nn.Module):
    """The map from latents and labels to expected images, as one network."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, z_BZ: Tensor, labels_B: Tensor | None = None) -> Tensor:
        """(B, Z) to (B, C, H, W) in [-1, 1]."""
        return self.model.decode_latents(z_BZ, labels_B)


@final
class Model(GenerativeModel):
    """p(x | y) = E_z p(x | z, y), with z from the prior."""

    Config = VAEConfig
    Sample = VAESample
    Score = VAEScore
    has_latents = True
    not_diffusers = (
        "the autoencoders of diffusers end in an image, this decoder in a distribution of pixels"
    )
    config: VAEConfig

    def __init__(self, config: VAEConfig, spec: ImageSpec, stats: DataStats) -> None:
        super().__init__(config, spec, stats)
        noise = LearnedSigma(stats.sigma) if config.likelihood == "gaussian_sigma" else None
        self.noise = noise or nn.Identity()
        self.likelihood = likelihood_of(config.likelihood, spec, config.components, noise)
        embedding = config.embedding if spec.classes else 0
        size = (spec.height, spec.width)
        self.classes = nn.Embedding(spec.classes, embedding) if spec.classes else nn.Identity()
        latents, out = config.latents, 2 * config.latents
        mixed = config.prior_components
        self.prior: Prior = MixturePrior(mixed, latents) if mixed else StandardNormalPrior()
        self.top_down_net: nn.Module = nn.Identity()
        if config.groups > 1:
            self.top_down_net = TopDownNet(
                config.groups, latents // config.groups, config.ladder_width
            )
            latents = out = config.ladder_width
        encoder, decoder, sizes = _nets(config)
        self.encoder = encoder(spec.channels, size, out, embedding=embedding, **sizes)
        self.decoder = decoder(
            latents + embedding, self.likelihood.parameters * spec.channels, size, **sizes
        )

    @classmethod
    def check(cls, config: VAEConfig, spec: ImageSpec) -> None:
        """Refuse a likelihood that does not fit the pixels, and images smaller than the nets' stride."""
        pixels.check_likelihood(config.likelihood, spec, "vae")
        stride = stride_of(config.unshuffle, config.widths)
        if not config.hidden and stride > min(spec.height, spec.width):
            raise ConfigError(
                f"vae: net.widths and net.unshuffle reduce images {stride}-fold, but images are "
                f"{spec.height}x{spec.width}; use fewer net.widths or a smaller net.unshuffle"
            )

    @classmethod
    def check_scorable(cls, config: VAEConfig, options: VAEScore) -> None:
        """Refuse annealed importance sampling of dequantised pixels, whose joint density is random."""
        if config.likelihood == "gaussian_sigma" and options.estimator == "ais":
            raise Unscorable(
                "vae: estimator ais needs a density without dequantisation, but likelihood is "
                "gaussian_sigma; "
                "set score.estimator to iwae"
            )

    @classmethod
    def hint(cls, problem: Problem) -> str:
        """For a collapsed posterior: a weaker KL term."""
        if problem == "posterior_collapse":
            return (
                "increase the KL weight gradually (net.kl_warmup_nimg) or allow free bits "
                "(net.free_bits_nats)"
            )
        return super().hint(problem)

    def phases(self) -> tuple[Phase, ...]:
        """One phase, which minimises the negative ELBO."""
        names = "encoder", "decoder", "classes", "noise", "top_down_net", "prior"
        return (Phase("elbo", tuple(n for n in names if list(self.get_submodule(n).parameters()))),)

    def loss(self, phase: str, batch: Batch, rng: Rng, nimg: int) -> Losses:
        """Negative ELBO with beta and free bits; the logged terms are without them."""
        assert phase == "elbo", phase
        x_BCHW = batch.x_BCHW(self._dtype)
        e_BE = self._embed(batch.labels_B)
        posterior = self._posterior(x_BCHW, e_BE)
        z_BZ, q = posterior.draw_with_conditionals(rng.fold("posterior"))
        if self.likelihood.is_density:
            x_BCHW = units.dequantise(x_BCHW, self._in_bins(rng))
        rec_B = self.likelihood.nats(self._decode(z_BZ, e_BE), x_BCHW)
        kl_BZ = self.prior.kl_nats(q, z_BZ)
        kl_B = floored_B = kl_BZ.sum(1)
        if self.config.free_bits_nats:
            floored_B = free_bits(kl_BZ, self.config.free_bits_nats, self.config.free_bits_group)
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
        """Weight of the KL term: linear in images seen until the end of its warm-up, then constant."""
        warmup_nimg = self.config.kl_warmup_nimg
        return self.config.beta * (min(1.0, nimg / warmup_nimg) if warmup_nimg else 1.0)

    @torch.no_grad()
    def sample(self, labels_B: Tensor | None, rng: Rng, options: VAESample) -> Tensor:
        """Latents from the prior, pixels from the decoder; both addressed by ``rng``'s rows."""
        z_BZ = self.prior.draw(
            rng.fold("latent"), self.config.latents, self._dtype, options.temperature
        )
        raw_BPHW = self._decode(z_BZ, self._embed(labels_B))
        if options.output == "mean":
            return self.likelihood.mean(raw_BPHW)
        return self.likelihood.draw(raw_BPHW, rng.fold("pixels"))

    def latents(self, batch: Batch, rng: Rng) -> Latents:
        """q(z | x, y) and one draw of each row."""
        posterior = self._posterior(batch.x_BCHW(self._dtype), self._embed(batch.labels_B))
        z_BZ, q = posterior.draw_with_conditionals(rng.fold("posterior"))
        lengths = (self.config.latents // self.config.groups,) * self.config.groups
        return Latents(q, z_BZ, lengths, self.prior)

    def decode_latents(self, z_BZ: Tensor, labels_B: Tensor | None) -> Tensor:
        """The mean of p(x | z, y); for binary pixels the probability of white, as grey."""
        return self.likelihood.expected(self._decode(z_BZ, self._embed(labels_B)))

    def portable_net(self) -> PortableNet:
        """The decoder, to the mean of p(x | z, y)."""
        size, prior = self.config.latents, self.prior
        tensors: dict[str, Tensor] = {}
        text = "independent draws of N(0, 1)"
        if isinstance(prior, MixturePrior):
            tensors = prior.tensors()
            text = "draws of the mixture in prior.safetensors: row k of mean_KZ + std_KZ eps, k by weight_K"
        latent = NetInput(
            "z",
            lambda rng: prior.draw(rng.fold("latent"), size, torch.float32),
            f"(B, {size}) float32, {text}",
        )
        labels = (label_input(self.spec.classes),) if self.spec.classes else ()
        output = "the mean of p(x | z), in [-1, 1]"
        if self.spec.levels == 2:
            output = "255 / 256 (2 p - 1), with p the probability that a pixel is on"
        usage = "Draw z, run the net. The images are smoother than the draws of p(x | z) of genmod sample."
        return PortableNet(MeanDecoder(self), (latent, *labels), output, usage, tensors)

    @torch.no_grad()
    def log_prob(self, batch: Batch, rng: Rng, options: VAEScore) -> LogProb:
        """A bound on log P(pixels | label), with beta = 1."""
        self.check_scorable(self.config, options)
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
        return vae_likelihood.vae_bound(posterior, log_joint, rng, options, extra).log_prob(of)

    def _in_bins(self, rng: Rng) -> Tensor:
        """Position of each pixel within its bin, uniform in [0, 1)."""
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
            else bounded_posterior(h_BF)
        )

    def _decode(self, z_BZ: Tensor, e_BE: Tensor | None) -> Tensor:
        """Parameters of the pixels' likelihood, in at least float32."""
        z_BZ = self.top_down_net(z_BZ)
        inputs = z_BZ if e_BE is None else torch.cat((z_BZ, e_BE.to(z_BZ.dtype)), dim=1)
        return at_least_float32(self.decoder(inputs))
