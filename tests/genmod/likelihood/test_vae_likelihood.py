"""Bounds by an encoder's samples, with k given and with k chosen, on a model whose marginal is known."""

from __future__ import annotations

import math

import pytest
import torch

from genmod.config import parse
from genmod.distributions.closed_form import LinearGaussian
from genmod.distributions.gaussian import Gaussian
from genmod.errors import ConfigError
from genmod.likelihood import vae_likelihood
from genmod.likelihood.ais import AISOptions
from genmod.likelihood.vae_likelihood import VAEBoundOptions
from genmod.rng import rng_for

ROWS = 40
TRUTH = LinearGaussian.example(dims=6, latents=3, noise=0.5)
RNG = rng_for(7, "encoded", range(40, 40 + ROWS))
X_BD = TRUTH.draw(RNG)
MEAN_BZ, COVARIANCE_ZZ = TRUTH.posterior(X_BD)
SHIFT_B1 = torch.linspace(0, 0.6, ROWS, dtype=torch.float64)[:, None]
ENCODER = Gaussian(
    MEAN_BZ + SHIFT_B1, (1.2 * COVARIANCE_ZZ.diagonal().sqrt()).log().expand(ROWS, 3)
)
"""The farther down, the worse it is."""


def log_joint(z_NZ, row_N):
    return TRUTH.log_joint(X_BD[row_N], z_NZ)


def bound(**options):
    return vae_likelihood.vae_bound(
        ENCODER, log_joint, RNG, VAEBoundOptions(chunk=16384, **options)
    )


def test_chosen_k_meets_the_target_standard_error():
    target = 0.06
    found = bound(k=64, target_stderr_nats=target, most_k=65536)
    k_B = found.columns["k"]
    assert set(k_B.tolist()) <= {64.0 * 2**n for n in range(11)}
    assert float(k_B[-10:].mean()) > 4 * float(k_B[:10].mean())  # bad encoders need more
    assert float(found.stderr_B.median()) < target
    assert float((found.stderr_B < 2 * target).double().mean()) > 0.9
    error_B = found.nats_B - TRUTH.nats(X_BD)
    assert float(error_B.std()) < 2 * target
    assert found.label == "stochastic_lower_bound"
    assert found.budget == {
        "k": "chosen", "k_least": 64, "k_most": 65536, "target_stderr_nats": target,
    }  # fmt: skip


def test_a_chosen_k_stays_a_bound():
    """Mean of exp(bound) over many evaluations is at most p(x): stopping on one's own samples breaks it."""
    options = VAEBoundOptions(k=8, target_stderr_nats=0.2, most_k=64, chunk=16384)
    errors = [
        vae_likelihood.vae_bound(ENCODER, log_joint, RNG.fold(f"{step}"), options).nats_B
        - TRUTH.nats(X_BD)
        for step in range(60)
    ]
    ratio_SB = torch.stack(errors).exp()
    mean, stderr = float(ratio_SB.mean()), float(ratio_SB.mean(1).std()) / math.sqrt(60)
    assert abs(mean - 1) < 4 * stderr  # mean weights are unbiased for every k
    assert float(torch.stack(errors).mean()) < 0


def test_k_is_limited_by_most_k():
    found = bound(k=8, target_stderr_nats=1e-3, most_k=20)
    assert found.columns["k"].unique().tolist() == [16.0]
    assert float(found.stderr_B.median()) > 1e-3


def test_chosen_k_is_independent_of_other_rows():
    whole = bound(k=16, target_stderr_nats=0.05)
    part = slice(30, 33)
    alone = vae_likelihood.vae_bound(
        ENCODER.rows(torch.arange(30, 33)),
        lambda z_NZ, row_N: log_joint(z_NZ, row_N + 30),
        RNG.rows(part),
        VAEBoundOptions(k=16, target_stderr_nats=0.05, chunk=7),
    )
    assert torch.equal(alone.columns["k"], whole.columns["k"][part])
    torch.testing.assert_close(alone.nats_B, whole.nats_B[part], rtol=1e-12, atol=1e-12)


def test_ais_agrees_with_iwae():
    chains = AISOptions(temperatures=80, radius=3, pilot_temperatures=30)
    annealed, weighted = bound(estimator="ais", ais=chains), bound(k=4096)
    gap = float((annealed.nats_B - weighted.nats_B).mean())
    stderr = float((annealed.stderr_B.square() + weighted.stderr_B.square()).sum().sqrt()) / ROWS
    assert abs(gap) < 3 * stderr + 0.02
    assert annealed.budget["temperatures"] == 80


@pytest.mark.parametrize(
    "values",
    [
        {"k": 1},
        {"k": 4, "target_stderr_nats": 0.1},
        {"target_stderr_nats": 0.1, "repeats": 2},
        {"target_stderr_nats": 0.1, "most_k": 10},
    ],
)
def test_inconsistent_options_are_refused(values):
    with pytest.raises(ConfigError, match="recipe"):
        parse(VAEBoundOptions, values, "score")


def test_a_probe_of_chains_is_a_small_part_of_them():
    little, times = VAEBoundOptions(estimator="ais").probe()
    assert little.ais.moves() * times == pytest.approx(VAEBoundOptions().ais.moves())
    assert times > 10
    assert VAEBoundOptions(target_stderr_nats=0.1).probe()[0].target_stderr_nats is None
