"""Annealed importance sampling on a linear generator, whose p(x) is known in closed form."""

from __future__ import annotations

import math

import pytest
import torch

from genmod.distributions.closed_form import LinearGaussian
from genmod.distributions.gaussian import Gaussian
from genmod.likelihood import ais, hmc, iwae
from genmod.likelihood.ais import AISOptions
from genmod.likelihood.hmc import Target
from genmod.rng import rng_for
from genmod.selftest.annealing import target

ROWS = 30
MODEL = LinearGaussian.example(dims=12, latents=3, noise=0.3)
RNG = rng_for(3, "ais", range(100, 100 + ROWS))
Z_BZ, X_BD = MODEL.draw_joint(RNG.fold("data"))
PRIOR = Gaussian(torch.zeros_like(Z_BZ), torch.zeros_like(Z_BZ))
TARGET = target(MODEL, X_BD, PRIOR)
OPTIONS = AISOptions(temperatures=150, chains=8, pilot_temperatures=40)
CHEAP = AISOptions(temperatures=5, chains=3, leapfrog=2, pilot_temperatures=4, radius=3)


def test_the_schedule_is_the_sigmoid_of_the_literature():
    """Eq. in sec. 3 of Wu et al. 2017 with radius 4, written out for T = 4."""
    s = [1 / (1 + math.exp(-x)) for x in (-4, -2, 0, 2, 4)]
    wanted = [(value - s[0]) / (s[4] - s[0]) for value in s]
    assert ais.sigmoid_schedule(4, 4.0) == pytest.approx(wanted)
    steep = ais.sigmoid_schedule(1000, 8.0)
    assert steep == sorted(steep)
    assert (steep[0], steep[-1]) == (0.0, 1.0)
    assert steep[1] < 1e-8 * 1000


def test_both_bounds_hold_and_close_on_the_truth():
    found = ais.sandwich(TARGET, Z_BZ, RNG, OPTIONS)
    below_B, above_B = found.lower_B - MODEL.nats(X_BD), found.upper_B - MODEL.nats(X_BD)
    for error_B, sign in ((below_B, -1), (above_B, 1)):
        stderr = float(error_B.std()) / math.sqrt(ROWS)
        assert sign * float(error_B.mean()) > -3 * stderr  # never on the wrong side
        assert abs(float(error_B.mean())) < 0.7
    assert 0 < float(found.gap_B.mean()) < 1.2
    assert found.lower_stderr_B.isfinite().all()
    assert found.upper_stderr_B.isfinite().all()


def test_more_temperatures_close_the_gap():
    few = ais.sandwich(TARGET, Z_BZ, RNG, OPTIONS.model_copy(update={"temperatures": 20}))
    many = ais.sandwich(TARGET, Z_BZ, RNG, OPTIONS)
    assert float(few.gap_B.mean()) > 3 * float(many.gap_B.mean())


def test_weights_have_the_mean_p_of_x_however_few_temperatures():
    """Unbiased by construction, also where the chains are far from their posterior."""
    model = LinearGaussian.example(dims=3, latents=3, noise=0.7)
    z_BZ, x_BD = model.draw_joint(RNG)
    easy = target(model, x_BD, PRIOR)
    options = AISOptions(
        temperatures=20, chains=200, leapfrog=2, pilot_temperatures=4, radius=2, chunk=6000
    )
    log_step_BP = ais.tune_step_sizes(easy, RNG, options)
    for exact_BZ, sign in ((None, 1), (z_BZ, -1)):
        log_w_KB = ais.annealed_log_weights(easy, RNG, options, log_step_BP, exact_BZ)
        row_B = (sign * (log_w_KB - model.nats(x_BD))).exp().mean(0)
        stderr = float(row_B.std()) / math.sqrt(ROWS)  # chains of a backward row share their start
        assert stderr < 0.2
        assert abs(float(row_B.mean()) - 1) < 4 * stderr


def test_started_at_the_exact_posterior_every_weight_is_p_of_x():
    slopes = torch.tensor([1.5, -0.8], dtype=torch.float64)  # diagonal, so that the posterior is
    model = LinearGaussian(slopes.diag(), torch.zeros(2, dtype=torch.float64), 0.7)
    x_BD = model.draw(RNG)
    mean_BZ, covariance_ZZ = model.posterior(x_BD)
    posterior = Gaussian(mean_BZ, (0.5 * covariance_ZZ.diagonal().log()).expand(ROWS, 2))
    nats_B, stderr_B = ais.lower_bound(target(model, x_BD, posterior), RNG, CHEAP)
    torch.testing.assert_close(nats_B, model.nats(x_BD), rtol=0, atol=1e-10)
    assert float(stderr_B.max()) < 1e-10


def test_start_at_an_encoder_reaches_the_same_value():
    """As with an encoder's q(z | x): shifted and too narrow, it is still a bound that closes."""
    wrong = Gaussian(Z_BZ + 0.1, torch.full_like(Z_BZ, math.log(0.3)))
    nats_B, _ = ais.lower_bound(target(MODEL, X_BD, wrong), RNG, OPTIONS)
    error_B = nats_B - MODEL.nats(X_BD)
    assert abs(float(error_B.mean())) < 0.3


def test_pilot_reaches_the_target_acceptance():
    log_step_BP = ais.tune_step_sizes(TARGET, RNG, OPTIONS)
    assert log_step_BP.shape == (ROWS, 40)
    assert float(log_step_BP[:, -1].mean()) < float(log_step_BP[:, 0].mean()) - 1


def test_rows_chains_and_chunks_are_independent():
    log_step_BP = ais.tune_step_sizes(TARGET, RNG, CHEAP)
    whole_KB = ais.annealed_log_weights(TARGET, RNG, CHEAP, log_step_BP)
    small = CHEAP.model_copy(update={"chunk": 2})
    assert torch.equal(ais.tune_step_sizes(TARGET, RNG, small), log_step_BP)
    close = {"rtol": 1e-10, "atol": 1e-10}
    torch.testing.assert_close(
        ais.annealed_log_weights(TARGET, RNG, small, log_step_BP), whole_KB, **close
    )
    more = CHEAP.model_copy(update={"chains": 5})
    more_KB = ais.annealed_log_weights(TARGET, RNG, more, log_step_BP)
    torch.testing.assert_close(more_KB[:3], whole_KB, **close)
    part = slice(4, 7)
    alone = target(MODEL, X_BD[part], PRIOR.rows(torch.arange(3)))
    nats_B, stderr_B = ais.lower_bound(alone, RNG.rows(part), CHEAP)
    bound_B, error_B = iwae.iwae_bound(whole_KB, CHEAP.chains)
    torch.testing.assert_close(nats_B, bound_B[part], **close)
    torch.testing.assert_close(stderr_B, error_B[part], **close)


def test_a_decoder_overflow_rejects_the_move():
    def wild(z_NZ, row_N):
        return torch.where(z_NZ[:, 0] > 0.5, torch.nan, 0.0) - 0.5 * z_NZ.square().sum(1)

    cliff = Target(PRIOR.rows(torch.arange(2)), wild)
    rng = rng_for(0, "wild", range(2))
    log_step_BP = torch.zeros(2, 4, dtype=torch.float64)
    chains = hmc.chains_at(cliff, torch.full((2, 3), -1.0).double(), torch.arange(2))
    for step in range(20):
        chains, _ = hmc.move(
            cliff, chains, rng.at(step), b=1.0, step_B=log_step_BP[:, 0].exp(), leapfrog=3
        )
    assert chains.u_NZ.isfinite().all()
    assert float(chains.u_NZ[:, 0].max()) <= 0.5
    assert float((chains.u_NZ + 1).abs().max()) > 0.1
