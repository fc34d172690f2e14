"""``genmod selftest gate`` on small digits: the default policy passes, looser policies are found."""

from __future__ import annotations

import pytest
import torch
from sklearn.datasets import load_digits

from genmod.evaluation.images import Images
from genmod.evaluation.policy import PromoteConfig, Rule, default_rules
from genmod.manifest import ImageSpec
from genmod.metrics.features import FeaturesConfig
from genmod.metrics.protocol import EvaluateConfig
from genmod.rng import rng_for
from genmod.selftest.gate import Parts, build_bench, check_case, gate_cases
from genmod.selftest.sabotage import by_label

SPEC = ImageSpec(channels=1, height=8, width=8, classes=10)
CONFIG = EvaluateConfig(images=500, features=FeaturesConfig(train_images=8_000))


@pytest.fixture(scope="module")
def bench():
    found = load_digits()
    pixels_NCHW = torch.tensor(found.images).mul(255 / 16).to(torch.uint8)[:, None]
    images = Images(pixels_NCHW, torch.tensor(found.target, dtype=torch.int64))
    train, fresh, test = images.part(0, 797), images.part(797, 1297), images.part(1297, 1797)
    other = by_label(fresh, torch.arange(500) % 10)
    models = noisy(other, 70), noisy(other, 70, "other"), noisy(other, 130)
    bench = build_bench(Parts(train, fresh, test, *models), SPEC, CONFIG)
    return bench.champion_metrics, list(gate_cases(bench))


def noisy(images, sigma, purpose="noise"):
    noise_NCHW = rng_for(0, f"test/{purpose}", range(len(images))).normal(*SPEC.shape)
    pixels_NCHW = images.pixels_NCHW + sigma * noise_NCHW
    return Images(pixels_NCHW.round().clamp(0, 255).to(torch.uint8), images.labels_N)


def failures(policy, bench):
    champion, cases = bench
    checks = [check_case(policy, case, champion) for case in cases]
    return {check.case.candidate: check for check in checks if not check.passed}


def test_the_default_policy_passes(bench):
    failed = failures(PromoteConfig(), bench)
    assert not failed, {name: check.decision.reasons for name, check in failed.items()}


@pytest.mark.parametrize(
    ("without", "let_through"),
    [
        ("memorisation", {"training images", "one training image among 1,000"}),
        ("label_accuracy", {"labels permuted"}),
    ],
)
def test_a_policy_that_lets_candidates_through_is_found(bench, without, let_through):
    rules = {name: rule for name, rule in default_rules().items() if name != without}
    assert let_through <= set(failures(PromoteConfig(rules=rules), bench))


def test_a_policy_that_promotes_nothing_is_found(bench):
    strict = PromoteConfig(rules={**default_rules(), "fd": Rule(improve_by=1e6, limit=0)})
    assert "a better model" in failures(strict, bench)
