"""The importance-weighted bound (IWAE) on log p(x) of a latent variable model.

    L_k = E[log (1/k) sum_i w_i],   w_i = p(x, z_i) / q(z_i | x),   z_i ~ q(z | x)

L_1 is the ELBO; L_k grows with k towards log p(x) (Theorem 1, Burda, Grosse and Salakhutdinov 2016,
Importance weighted autoencoders, https://arxiv.org/abs/1509.00519). One evaluation is random; its expectation
is at most log p(x). Letters: B rows, Z latents, K samples, M repeats, N = rows of one call.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from genmod.distributions.gaussian import Posterior
from genmod.rng import Rng

LogJoint = Callable[..., Tensor]
"""The joint density: (z_NZ, row_N) -> log p(x[row] | z) + log p(z), (N,) in nats.

An optional third argument is further randomness of each sample, such as dequantisation noise.
"""


def importance_log_weights(
    posterior: Posterior,
    log_joint: LogJoint,
    rng: Rng,
    samples: int,
    chunk: int,
    *,
    extra: Callable[[Rng], Tensor] | None = None,
) -> Tensor:
    """Log importance weights log p(x, z_i) - log q(z_i | x) of all rows.

    Sample i of row b is addressed by (row b of ``rng``, step i). It depends neither on ``chunk`` nor on
    ``samples``.

    Args:
        posterior: q(z | x), B rows.
        log_joint: log p(x, z) of the model.
        rng: B rows.
        samples: samples per row.
        chunk: approximate rows of one call of ``log_joint``; memory grows with it.
        extra: draws further randomness of a sample, rng -> (B, ...); its density must be 1.

    Returns:
        (samples, B) float64 in nats.
    """
    rows = len(rng)
    per_call = max(1, chunk // max(1, rows))
    parts: list[Tensor] = []
    for first in range(0, samples, per_call):
        steps = range(first, min(first + per_call, samples))
        z_NZ = torch.cat([posterior.draw(rng.at(step)) for step in steps])
        row_N = torch.arange(rows, device=z_NZ.device).repeat(len(steps))
        q_N = posterior.rows(row_N).double().nats(z_NZ.double())
        more = () if extra is None else (torch.cat([extra(rng.at(step)) for step in steps]),)
        parts.append((log_joint(z_NZ, row_N, *more).double() - q_N).view(len(steps), rows))
    return torch.cat(parts)


def iwae_bound(log_weights_SB: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The bound L_k of each row, with its standard error.

    Args:
        log_weights_SB: (M k, B) from :func:`importance_log_weights`. Each k consecutive samples are one
            evaluation of the bound; the M evaluations are averaged.
        k: samples within the logarithm.

    Returns:
        (B,) bound and (B,) standard error, float64 in nats. With M > 1 the standard error is the standard
        deviation of the evaluations over sqrt(M). With M = 1 it comes from the delta method (the relative
        standard error of the mean weight); for k = 1 it is then NaN.
    """
    weights_MKB = log_weights_SB.double().unflatten(0, (-1, k))
    bounds_MB = torch.logsumexp(weights_MKB, 1) - math.log(k)
    repeats = bounds_MB.shape[0]
    if repeats > 1:
        return bounds_MB.mean(0), bounds_MB.std(0) / math.sqrt(repeats)
    if k == 1:
        return bounds_MB[0], torch.full_like(bounds_MB[0], math.nan)
    relative_KB = (weights_MKB[0] - bounds_MB).exp()
    return bounds_MB[0], relative_KB.std(0) / math.sqrt(k)
