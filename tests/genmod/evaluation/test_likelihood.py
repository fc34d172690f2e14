"""Bits per dimension as a metric: its rows, its kind, and what the gate makes of it."""

from __future__ import annotations

import math

import pytest
import torch

from genmod.errors import ConfigError
from genmod.evaluation.gate import decide
from genmod.evaluation.images import Images
from genmod.evaluation.likelihood import likelihood_gain, mean_bits_per_dim
from genmod.evaluation.meter import Reference
from genmod.evaluation.policy import PromoteConfig, Rule
from genmod.interface.log_prob import LogProb
from genmod.manifest import ImageSpec
from genmod.metrics.features import FeaturesConfig, fit_extractor
from genmod.metrics.protocol import EvaluateConfig, MetricResult
from genmod.rng import rng_for
from genmod.scoring.table import Rows, Scores

SPEC = ImageSpec(channels=1, height=4, width=4)
KEYS = [f"test{row}" for row in range(200)]


@pytest.fixture(scope="module")
def reference():
    pixels_NCHW = rng_for(0, "pixels", range(50)).integers(256, *SPEC.shape).to(torch.uint8)
    extractor = fit_extractor(FeaturesConfig(), SPEC, pixels_NCHW, None, seed=0)
    images = Images(pixels_NCHW, None)
    return Reference(images, images, "ab" * 32, extractor, EvaluateConfig(), seed=0)


def scores(bits, label="exact", k=1, keys=KEYS):
    """Scores of rows with these bits per dimension on average, and a standard deviation of 0.1."""
    noise_N = rng_for(0, "noise", range(len(keys))).normal(1, dtype=torch.float64)[:, 0]
    nats_N = -(bits + 0.1 * noise_N) * 16 * math.log(2)
    log_prob = LogProb(nats_N, nats_N * 0, label, "iwae", "prior", "counts", {"k": k})
    return Scores.from_log_probs(Rows(keys, torch.arange(len(keys)), None), [log_prob])


def result(value):
    return MetricResult(value=value, floor=None, ceiling=None, better="lower")


def compared(candidate, champion):
    rules = {"bits_per_dim": Rule(improve_by=0.01, max_regression=0.01)}
    return decide([result(candidate)], [result(champion)], PromoteConfig(rules=rules))


def test_the_mean_has_students_interval_and_names_its_kind(reference):
    value = mean_bits_per_dim(scores(3.0), "test", reference, KEYS)
    assert value.value == pytest.approx(3, abs=0.02)
    assert value.interval.high - value.interval.low == pytest.approx(2 * 1.97 * 0.1 / 200**0.5, 0.1)
    assert value.name.startswith("bits_per_dim[exact@")
    protocol = value.protocol
    assert protocol.settings["likelihood"] == "exact by iwae of prior, counts"
    assert protocol.settings["budget.k"] == 1
    assert (protocol.n_real, protocol.n_fake) == (200, 0)


def test_rows_that_a_later_dataset_added_are_left_out(reference):
    later = [f"later{row}" for row in range(100)]
    grown = scores(3.0, keys=[*later[:50], *KEYS, *later[50:]])
    value = mean_bits_per_dim(grown, "test", reference, KEYS)
    assert (
        value.protocol_digest
        == mean_bits_per_dim(scores(3.0), "test", reference, KEYS).protocol_digest
    )
    assert value.value == pytest.approx(-float(grown.nats_B[50:250].mean()) / 16 / math.log(2))
    assert mean_bits_per_dim(scores(3.0), "val", reference, KEYS) is None
    assert mean_bits_per_dim(scores(3.0, keys=later), "test", reference, KEYS) is None


def test_a_rule_promotes_the_likelier_model(reference):
    champion, better, equal = (
        mean_bits_per_dim(scores(bits), "test", reference, KEYS) for bits in (3.0, 2.5, 3.0)
    )
    assert compared(better, champion).promote
    assert not compared(equal, champion).promote
    assert compared(champion, better).checks[0].outcome == "worse"


def test_likelihoods_of_two_kinds_or_other_rows_are_refused(reference):
    champion = mean_bits_per_dim(scores(3.0), "test", reference, KEYS)
    bound = mean_bits_per_dim(scores(2.0, label="lower_bound"), "test", reference, KEYS)
    with pytest.raises(ConfigError, match=r"likelihoods of two kinds: .*lower_bound by .*exact by"):
        compared(bound, champion)
    cheaper = mean_bits_per_dim(scores(2.0, k=8), "test", reference, KEYS)
    with pytest.raises(ConfigError, match=r"settings\.budget\.k 8 against 1"):
        compared(cheaper, champion)
    fewer = mean_bits_per_dim(scores(2.0, keys=KEYS[:150]), "test", reference, KEYS)
    with pytest.raises(ConfigError, match=r"n_real 150 against 200.*settings\.rows"):
        compared(fewer, champion)


def test_paired_rows_show_a_gain_that_two_intervals_hide(reference):
    champion, candidate = (scores(bits) for bits in (3.0, 2.98))
    own = rng_for(1, "own", range(len(KEYS))).normal(1, dtype=torch.float64)[:, 0]
    candidate.nats_B.add_(0.01 * own * 16 * math.log(2))  # its own noise, a tenth of the common one
    gain = likelihood_gain((candidate, "test"), (champion, "test"), reference, KEYS)
    assert gain.gain == pytest.approx(0.02, abs=0.003)
    assert gain.stderr == pytest.approx(0.01 / 200**0.5, rel=0.2)
    assert (gain.paired, gain.rows, gain.freedom) == (True, 200, 199)
    values = [
        result(mean_bits_per_dim(each, "test", reference, KEYS)) for each in (candidate, champion)
    ]
    assert gain.metric == values[0].value.name
    config = PromoteConfig(rules={"bits_per_dim": Rule(improve_by=0.01, max_regression=0.01)})
    assert decide([values[0]], [values[1]], config, [gain]).promote
    hidden = decide([values[0]], [values[1]], config)
    assert not hidden.promote
    assert "reference rows, these are 200" in hidden.reasons[-1]


def test_rows_are_paired_by_key_and_only_of_one_kind(reference):
    champion = scores(3.0)
    turned = scores(3.0).take(torch.arange(len(KEYS) - 1, -1, -1))
    gain = likelihood_gain((turned, "test"), (champion, "test"), reference, KEYS)
    assert (gain.gain, gain.stderr) == (0, 0)
    for other in (scores(3.0, label="lower_bound"), scores(3.0, k=2), scores(3.0, keys=KEYS[:150])):
        assert likelihood_gain((other, "test"), (champion, "test"), reference, KEYS) is None
    assert likelihood_gain((champion, "val"), (champion, "test"), reference, KEYS) is None
