"""``genmod selftest gate``: does a policy refuse bad candidates and promote a better model?

A small model is trained on real digits and is the champion. The candidates of :mod:`genmod.selftest.sabotage`
are as good as a better model except for one fault each. Each candidate passes through the evaluation, the
comparison and the decision of a real promotion.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from genmod import units
from genmod.config import Config, fingerprint
from genmod.data.sources.arrays import Builtin
from genmod.data.sources.census import Census
from genmod.evaluation.comparison import compare_samples
from genmod.evaluation.differences import MetricDifference
from genmod.evaluation.gate import Decision, decide
from genmod.evaluation.images import Images
from genmod.evaluation.measure import Baselines, evaluate_samples
from genmod.evaluation.memorised import CopyTest, RowSource, leakage_test
from genmod.evaluation.meter import Reference
from genmod.evaluation.policy import PromoteConfig
from genmod.generation.labels import LabelRequest
from genmod.generation.synthetic import SampleGenerator
from genmod.interface.batch import Batch
from genmod.interface.model import DataStats, GenerativeModel
from genmod.interface.registry import ModelConfig
from genmod.manifest import ImageSpec
from genmod.metrics.features import FeaturesConfig, fit_extractor
from genmod.metrics.protocol import EvaluateConfig, MetricResult
from genmod.permutation import shuffle
from genmod.rng import Rng
from genmod.selftest.sabotage import Material, by_label, sabotaged
from genmod.selftest.training import train_briefly

ExpectedDecision = Literal["refused", "kept", "promoted"]
"""What the gate must do: refuse the candidate, keep an equal champion, promote the candidate."""

SPEC = ImageSpec(channels=1, height=28, width=28, classes=10)

TRAIN_ROWS, FRESH_ROWS, TEST_ROWS = 3_000, 1_000, 1_000
"""Digits that models are trained on, that stand in for a better model, and that samples are compared with."""

SAMPLES = 1_000

EVALUATION = EvaluateConfig(images=SAMPLES, features=FeaturesConfig(train_images=30_000))

FAMILY, NET = "vae", {"latents": 16, "unshuffle": 4, "widths": [32], "components": 3}
"""The champion."""

CHAMPION_STEPS, EARLY_STEPS = 400, 100
"""Steps of training of the champion, and of its early checkpoint; 256 images each."""


class Case(Config):
    """A candidate as it was measured, and what the gate must decide about it."""

    candidate: str
    expected: ExpectedDecision
    against: tuple[str, ...] = ()
    """Metrics of which at least one must speak against the candidate, if it must be refused."""
    metrics: tuple[MetricResult, ...]
    gains: tuple[MetricDifference, ...] = ()
    """Paired with the champion's samples; empty for samples of other noise."""
    seconds: float = 0.0


@dataclass(frozen=True)
class GateCheck:
    """What the gate decided about one candidate, and whether it must."""

    case: Case
    decision: Decision

    @property
    def seconds(self) -> float:
        """Time of the measurement."""
        return self.case.seconds

    @property
    def passed(self) -> bool:
        """Whether the decision is the expected one, for a right reason."""
        if self.case.expected == "promoted":
            return self.decision.promote
        if self.case.expected == "kept":
            worse = any(check.outcome == "worse" for check in self.decision.checks)
            return not self.decision.promote and not worse
        return not self.decision.promote and not _named(self.decision).isdisjoint(self.case.against)

    def as_json(self) -> dict[str, object]:
        """The check as JSON values."""
        return {
            "candidate": self.case.candidate,
            "expected": self.case.expected,
            "passed": self.passed,
            "promote": self.decision.promote,
            "reasons": list(self.decision.reasons),
            "seconds": self.seconds,
        }


class CandidateMeter:
    """Measures sets of samples by one reference; what they share is measured once."""

    def __init__(self, reference: Reference) -> None:
        train, real = (RowSource.of(each) for each in (reference.train, reference.images))
        config, digest = reference.config, reference.digest
        self._reference, self._baselines = reference, Baselines()
        self._copies = CopyTest(train, real, config, digest)
        self._leakage = leakage_test(train, real, config, digest)

    def metrics(self, images: Images) -> tuple[MetricResult, ...]:
        """All metrics, those of copies included."""
        samples = RowSource.of(images)
        others = [test.measure(samples).value for test in (self._copies, self._leakage)]
        return evaluate_samples(images, self._reference, others, self._baselines).metrics


@dataclass(frozen=True)
class Bench:
    """What all candidates are compared with."""

    reference: Reference
    measure: CandidateMeter
    champion: Images
    champion_metrics: tuple[MetricResult, ...]
    equal: Images
    """Samples of the champion with other noise."""
    material: Material


@dataclass(frozen=True)
class Parts:
    """Real images in three disjoint parts; samples of models, with the labels that were asked for."""

    train: Images
    """What both models were trained on."""
    fresh: Images
    """What no model has seen; they stand in for a better model."""
    test: Images
    """What samples are compared with."""
    champion: Images
    equal: Images
    """Samples of the champion with other noise."""
    early: Images
    """Samples of the champion after a part of its training."""


def digit_parts(seed: int = 0) -> Parts:
    """Handwritten digits and a small model of them, trained in about two minutes on one core.

    Raises:
        ConfigError: the package with the digits is not installed.
    """
    train, fresh, test = _digits(seed)
    model = _trained(train, CHAMPION_STEPS, seed)
    early = _samples(_trained(train, EARLY_STEPS, seed), seed)
    return Parts(train, fresh, test, _samples(model, seed), _samples(model, seed + 1), early)


def build_bench(
    parts: Parts, spec: ImageSpec = SPEC, config: EvaluateConfig = EVALUATION, seed: int = 0
) -> Bench:
    """Fit the feature space, make the better model, measure the champion."""
    champion, train = parts.champion, parts.train
    # The better model: real images in place of every other sample.
    real = by_label(parts.fresh, champion.labels_N)
    is_real_N = torch.arange(len(champion)) // spec.classes % 2 == 0
    better_NCHW = torch.where(
        is_real_N[:, None, None, None], real.pixels_NCHW, champion.pixels_NCHW
    )
    good = Images(better_NCHW, champion.labels_N)
    extractor = fit_extractor(config.features, spec, train.pixels_NCHW, train.labels_N, seed)
    digest = fingerprint("selftest/gate", seed)
    reference = Reference(train, parts.test, digest, extractor, config, seed)
    measure = CandidateMeter(reference)
    material = Material(train, parts.test, good, parts.early, spec, seed)
    metrics = measure.metrics(champion)
    return Bench(reference, measure, champion, metrics, parts.equal, material)


def run_gate(policy: PromoteConfig) -> Iterator[GateCheck]:
    """Measure all candidates and decide on them by a policy; about three minutes on one core."""
    bench = build_bench(digit_parts())
    for case in gate_cases(bench):
        yield check_case(policy, case, bench.champion_metrics)


def gate_cases(bench: Bench) -> Iterator[Case]:
    """Measure the candidates one by one: those with a fault, an equal one, a better one."""
    for candidate in sabotaged(bench.material):
        yield _case(candidate.name, "refused", candidate.images, bench, candidate.metrics)
    equal = _case("an equal model", "kept", bench.equal, bench)
    yield equal.model_copy(update={"gains": ()})
    yield _case("a better model", "promoted", bench.material.good, bench)


def check_case(policy: PromoteConfig, case: Case, champion: Sequence[MetricResult]) -> GateCheck:
    """Decide on a candidate by a policy.

    Args:
        policy: the recipe's ``promote``.
        case: the candidate.
        champion: metrics of the champion that it was compared with.

    Raises:
        ConfigError: a rule names a metric that was not measured.
    """
    return GateCheck(case, decide(case.metrics, champion, policy, case.gains))


def _case(
    name: str,
    expected: ExpectedDecision,
    images: Images,
    bench: Bench,
    against: Iterable[str] = (),
) -> Case:
    start_s = time.monotonic()
    metrics = bench.measure.metrics(images)
    gains = compare_samples(images, bench.champion, bench.reference)
    seconds = round(time.monotonic() - start_s, 2)
    return Case(
        candidate=name,
        expected=expected,
        against=tuple(sorted(against)),
        metrics=metrics,
        gains=gains,
        seconds=seconds,
    )


def _named(decision: Decision) -> set[str]:
    """The metrics that speak against a candidate, without their feature spaces."""
    against = [c for c in decision.checks if c.outcome == "beyond limit" or not c.loss_ruled_out]
    return {check.metric.split("[")[0] for check in against}


def _digits(seed: int) -> tuple[Images, Images, Images]:
    """Three disjoint random parts of the digits."""
    arrays = Builtin("mnist5k").load(Census())
    assert arrays.labels_N is not None
    images = Images(torch.from_numpy(arrays.images[0])[:, None], torch.from_numpy(arrays.labels_N))
    row_N = shuffle(torch.arange(len(images)), len(images), seed, "selftest/digits")
    sizes = (TRAIN_ROWS, FRESH_ROWS, TEST_ROWS)
    train, fresh, test = (images.rows(part_N) for part_N in row_N.split(sizes))
    return train, fresh, test


def _trained(train: Images, steps: int, seed: int) -> GenerativeModel:
    x_NCHW = units.to_network(train.pixels_NCHW)
    stats = DataStats(mean=(float(x_NCHW.mean()),), std=(float(x_NCHW.std()),))
    model = ModelConfig(family=FAMILY, net=NET, spec=SPEC, stats=stats).build(seed)

    def draw(rng: Rng) -> Batch:
        row_B = rng.integers(len(train))
        labels_N = train.labels_N
        assert labels_N is not None
        return Batch(train.pixels_NCHW[row_B], labels_N[row_B], torch.arange(len(rng)))

    return train_briefly(model, draw, seed=seed, steps=steps, lr=4e-3).eval()


def _samples(model: GenerativeModel, seed: int) -> Images:
    request, options = LabelRequest(SPEC.classes), type(model).Sample()
    generator = SampleGenerator(model, options, request, seed, 100)
    pixels = [generator.pixels_BCHW(number) for number in range(-(-SAMPLES // 100))]
    return Images(torch.cat(pixels)[:SAMPLES], request.labels_B(torch.arange(SAMPLES)))
