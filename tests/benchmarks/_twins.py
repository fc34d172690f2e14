"""Retrained twins: how often the gate promotes one over the other, or calls it worse.

Protocol: a small VAE is trained on scikit-learn's digits with 24 seeds, which change its initial weights, the
order of the data and the noise of training, as a retrain on the same rows does. Each is the candidate against
the next one, in a ring: 24 decisions with the margins of the default rules, by 1,000 samples of the same
noise, with a probability of error of 0.01 for one decision. Twins differ in truth too: seeds make better and
worse models. Their true gain is that of ten other draws of as many samples on average, and a promotion is
false if it is at most the gain that counts; a twin is equal if no metric differs by more than is tolerated.
Intervals are Clopper and Pearson's. Peer: two numbers.
"""

from __future__ import annotations

import json
import time

import torch
from torch import Tensor

from genmod import units
from genmod.evaluation.comparison import compare_samples
from genmod.evaluation.gate import decide
from genmod.evaluation.images import Images
from genmod.evaluation.meter import Meter, Reference
from genmod.evaluation.policy import PromoteConfig
from genmod.interface.batch import Batch
from genmod.interface.model import DataStats, GenerativeModel
from genmod.interface.registry import ModelConfig
from genmod.manifest import ImageSpec
from genmod.metrics.features import FeaturesConfig, fit_extractor
from genmod.metrics.paired import GroupedMeter, jackknife_groups
from genmod.metrics.protocol import EvaluateConfig, MetricResult
from genmod.permutation import shuffle
from genmod.rng import Rng, rng_for
from genmod.selftest.training import train_briefly
from tests.benchmarks._gate import RULES, rate

SEEDS, STEPS, TRAIN, SAMPLES, DRAWS = 24, 300, 900, 1_000, 10
NET = {"latents": 8, "widths": [16], "embedding": 8}
POLICY = PromoteConfig(rules=RULES, false_promotion=0.01, planned_decisions=1)
QUICK = {"SEEDS": 2, "STEPS": 3, "TRAIN": 200, "SAMPLES": 60, "DRAWS": 1}
QUICK_ARGS: list[str] = []

SPEC = ImageSpec(channels=1, height=8, width=8, classes=10)


def _digits() -> tuple[Images, Images]:
    """Training and test images."""
    from sklearn.datasets import load_digits

    found = load_digits()
    pixels_NCHW = torch.tensor(found.images).mul(255 / 16).to(torch.uint8)[:, None]
    images = Images(pixels_NCHW, torch.tensor(found.target, dtype=torch.int64))
    row_N = shuffle(torch.arange(len(images)), len(images), 0, "bench/twins")
    return images.rows(row_N[:TRAIN]), images.rows(row_N[TRAIN:])


def _twin(train: Images, seed: int) -> GenerativeModel:
    x_NCHW = units.to_network(train.pixels_NCHW)
    stats = DataStats(mean=(float(x_NCHW.mean()),), std=(float(x_NCHW.std()),))
    model = ModelConfig(family="vae", net=NET, spec=SPEC, stats=stats).build(seed)
    labels_N = train.labels_N
    assert labels_N is not None

    def draw(rng: Rng) -> Batch:
        row_B = rng.integers(len(train), 1)[:, 0]
        return Batch(train.pixels_NCHW[row_B], labels_N[row_B], torch.arange(len(rng)))

    return train_briefly(model, draw, seed=seed, steps=STEPS, lr=4e-3).eval()


@torch.no_grad()
def _samples(model: GenerativeModel, first: int, rows: int) -> Images:
    """Samples with the noise of some indices, the same for all models."""
    parts: list[Tensor] = []
    index_N = torch.arange(first, first + rows)
    for index_B in index_N.split(500):
        rng = rng_for(0, "bench/twins/sample", index_B)
        x_BCHW = model.sample(index_B % SPEC.classes, rng, type(model).Sample())
        parts.append(units.to_pixels(x_BCHW))
    return Images(torch.cat(parts), index_N % SPEC.classes)


def _reference(train: Images, test: Images) -> Reference:
    features = FeaturesConfig(train_images=min(30_000, 30 * TRAIN))
    config = EvaluateConfig(images=SAMPLES, features=features)
    extractor = fit_extractor(features, SPEC, train.pixels_NCHW, train.labels_N, 0)
    return Reference(train, test, "ab" * 32, extractor, config, seed=0)


def _true_values(model: GenerativeModel, reference: Reference) -> dict[str, float]:
    """Fréchet distance and coverage of so many samples, on average over other draws."""
    extractor, k = reference.extractor, reference.config.neighbours
    real = extractor.extract(reference.images.first(SAMPLES).pixels_NCHW)
    meter = GroupedMeter(real, k, jackknife_groups(SAMPLES, 0))
    found = {"fd": 0.0, "coverage": 0.0}
    for draw in range(1, DRAWS + 1):
        drawn = _samples(model, draw * SAMPLES, SAMPLES)
        fake_ND = extractor.extract(drawn.pixels_NCHW).features_ND
        values = {"fd": meter.frechet(fake_ND), **meter.fidelity_and_coverage(fake_ND)}
        for name in found:
            found[name] += values[name].value / DRAWS
    return found


def _metrics(samples: Images, reference: Reference) -> list[MetricResult]:
    """The metrics that rules name."""
    values = Meter(reference, reference.images).measure(samples)
    return [
        MetricResult(value=values[name], floor=None, ceiling=None, better=better)
        for name, better in (("fd", "lower"), ("coverage", "higher"))
    ]


def main(names: list[str]) -> None:
    """Train all twins, decide on each pair, print the rates."""
    del names
    torch.set_num_threads(1)
    start_s = time.process_time()
    train, test = _digits()
    reference = _reference(train, test)
    twins = [_twin(train, seed) for seed in range(SEEDS)]
    drawn = [_samples(twin, 0, SAMPLES) for twin in twins]
    true = [_true_values(twin, reference) for twin in twins]
    counted = {name: rule.improve_by or 0.0 for name, rule in RULES.items()}
    promoted = false = equal = worse = numbers = 0
    for seed in range(SEEDS):
        other = (seed + 1) % SEEDS
        metrics = [_metrics(drawn[side], reference) for side in (seed, other)]
        gains = compare_samples(drawn[seed], drawn[other], reference)
        decision = decide(*metrics, POLICY, gains)
        fd = 1 - true[seed]["fd"] / true[other]["fd"]
        coverage = true[seed]["coverage"] - true[other]["coverage"]
        is_equal = abs(fd) <= 0.05 and abs(coverage) <= 0.05
        has_gain = fd > counted["fd"] or coverage > counted["coverage"]
        promoted += decision.promote
        false += decision.promote and not has_gain
        equal += is_equal
        worse += is_equal and any(check.outcome == "worse" for check in decision.checks)
        numbers += gains[0].gain > 0
        row: dict[str, object] = {"candidate": seed, "promoted": decision.promote}
        row |= {"true_fd": true[seed]["fd"], "true_gains": [fd, coverage]}
        row["outcomes"] = {c.metric.partition("[")[0]: c.outcome for c in decision.checks}
        print(json.dumps(row), flush=True)
    for row in (
        rate("twins promoted without a true gain that counts", false, SEEDS, "<= 0.01"),
        rate("equal twins called worse", worse, max(1, equal), "<= 0.05"),
        rate("twins promoted", promoted, SEEDS, ""),
        rate("twins promoted by two numbers (peer)", numbers, SEEDS, ""),
    ):
        print(json.dumps(row | {"cpu_s": round(time.process_time() - start_s, 1)}), flush=True)


if __name__ == "__main__":
    main([])
