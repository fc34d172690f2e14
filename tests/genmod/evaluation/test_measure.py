"""All metrics together, on scikit-learn's digits."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
from sklearn.datasets import load_digits
from torch.nn.functional import avg_pool2d

from genmod.config import canonical_json
from genmod.errors import ConfigError
from genmod.evaluation.gate import decide
from genmod.evaluation.images import Images, uniform_noise
from genmod.evaluation.measure import BETTER, Baselines, evaluate_samples, metrics_from
from genmod.evaluation.meter import Reference
from genmod.evaluation.policy import PromoteConfig, Rule
from genmod.manifest import ImageSpec
from genmod.metrics.features import FeaturesConfig, fit_extractor
from genmod.metrics.protocol import EvaluateConfig, difference
from genmod.report.metric_texts import METRIC_TEXTS

SPEC = ImageSpec(channels=1, height=8, width=8, classes=10)


@pytest.fixture(scope="module")
def digits():
    found = load_digits()
    pixels_NCHW = torch.tensor(found.images).mul(255 / 16).to(torch.uint8)[:, None]
    images = Images(pixels_NCHW, torch.tensor(found.target, dtype=torch.int64))
    return images.part(0, 1000), images.part(1000, 1400), images.part(1400, 1797)


@pytest.fixture(scope="module")
def reference(digits):
    train, _, reference = digits
    features = FeaturesConfig(train_images=8_000)
    extractor = fit_extractor(features, SPEC, train.pixels_NCHW, train.labels_N, seed=0)
    return Reference(train, reference, "ab" * 32, extractor, EvaluateConfig(), seed=0)


def by_name(evaluation):
    return {reading.value.protocol.metric: reading for reading in evaluation.metrics}


def test_real_held_out_images_are_near_the_floor_in_every_metric(digits, reference):
    found = by_name(evaluate_samples(digits[1], reference))
    assert list(found) == [
        name
        for name in BETTER
        if name not in ("memorisation", "leakage", "utility", "bits_per_dim")
    ]  # those were not handed in or not asked for
    for name in ("fd", "kid", "precision", "recall", "density", "coverage", "label_accuracy"):
        assert abs(found[name].relative_position) < 0.15, name


def test_noise_is_at_the_ceiling_in_every_metric(reference):
    for name, reading in by_name(
        evaluate_samples(uniform_noise(400, SPEC, seed=0), reference)
    ).items():
        if reading.ceiling is not None:
            assert difference(reading.value, reading.ceiling) == 0, name
            assert reading.relative_position == 1


def test_collapse_onto_one_class_is_caught_by_coverage_and_class_balance(digits, reference):
    """All classes were asked for, one came."""
    train = digits[0]
    threes = train.pixels_NCHW[train.labels_N == 3]
    found = evaluate_samples(Images(threes, torch.arange(len(threes)) % 10), reference)
    metrics = by_name(found)
    assert metrics["coverage"].value.interval.high < 0.4
    assert metrics["class_balance"].value.value > 0.8
    assert found.class_counts["samples"][3] > 0.8 * sum(found.class_counts["samples"])
    assert sum(found.class_counts["reference"]) == len(digits[2])
    assert "classes" not in metrics["fd"].value.protocol.settings


def test_samples_of_one_class_are_compared_with_that_class(digits, reference):
    fresh, real = digits[1], digits[2]
    only = fresh.labels_N == 3
    found = evaluate_samples(Images(fresh.pixels_NCHW[only], fresh.labels_N[only]), reference)
    metrics = by_name(found)
    protocol = metrics["fd"].value.protocol
    assert protocol.settings == {"classes": "in the reference's shares, only 3"}
    assert (protocol.n_fake, protocol.n_real) == (int(only.sum()), int((real.labels_N == 3).sum()))
    assert metrics["coverage"].value.value > 0.5
    assert metrics["class_balance"].value.value < 0.4  # by an imperfect classifier
    whole = by_name(evaluate_samples(fresh, reference))
    with pytest.raises(ConfigError, match=r"not comparable.*settings"):
        difference(metrics["fd"].value, whole["fd"].value)


def test_wrong_labels_are_caught_by_label_accuracy_alone(digits, reference):
    fresh = digits[1]
    right = by_name(evaluate_samples(fresh, reference))
    wrong = by_name(
        evaluate_samples(Images(fresh.pixels_NCHW, (fresh.labels_N + 1) % 10), reference)
    )
    assert right["label_accuracy"].value.value > 0.8 > 0.2 > wrong["label_accuracy"].value.value
    assert right["fd"].value == wrong["fd"].value


def test_class_balance_and_label_accuracy_are_their_definitions(digits, reference):
    made, real = digits[1].part(0, 90), digits[2]
    made = Images(made.pixels_NCHW, made.labels_N.roll(1))
    found = by_name(evaluate_samples(made, reference))
    assert "classes" not in found["fd"].value.protocol.settings
    seen = reference.extractor.extract(made.pixels_NCHW).classes_N.tolist()
    truth = reference.extractor.extract(real.pixels_NCHW).classes_N.tolist()
    shares = [(seen.count(c) / 90, truth.count(c) / len(truth)) for c in range(10)]
    wanted = sum(abs(a - b) for a, b in shares) / 2
    assert found["class_balance"].value.value == pytest.approx(wanted)
    hits = sum(a == b for a, b in zip(seen, made.labels_N.tolist(), strict=True))
    assert found["label_accuracy"].value.value == pytest.approx(hits / 90)


def test_a_two_sample_test_tells_blurred_images_from_real_ones(digits, reference):
    fresh = digits[1]
    blurred_NCHW = avg_pool2d(fresh.pixels_NCHW.float(), 3, 1, 1).to(torch.uint8)
    found = [
        by_name(evaluate_samples(images, reference))["c2st"]
        for images in (fresh, Images(blurred_NCHW, fresh.labels_N))
    ]
    for reading in found:
        protocol = reading.value.protocol
        assert (protocol.n_fake, protocol.n_real) == (397, 397)  # as many as there are real images
        assert reading.ceiling.value > 0.97
    # Digits of other writers are told apart too, but by few.
    assert found[0].value.interval.low < found[0].floor.value < 0.7
    assert found[1].value.interval.low > found[0].value.interval.high


def test_repeats_are_counted_and_can_be_refused(digits, reference):
    """Of 400 samples the last 100 are copies of the first 100: 200 have a copy, in 100 equal pairs."""
    fresh = digits[1]
    copied = fresh.rows(torch.cat((torch.arange(300), torch.arange(100))))
    evaluation = evaluate_samples(copied, reference)
    found = by_name(evaluation)
    assert "classes" not in found["duplicates"].value.protocol.settings
    assert found["duplicates"].value.value == 200 / 400
    assert found["duplicates"].floor.value == 0
    assert found["support_size"].value.value == pytest.approx(math.log10(400 * 399 / 2 / 101))
    assert found["support_size"].floor.value == pytest.approx(math.log10(400 * 399 / 2))
    for name, limit in (("duplicates", 0.1), ("support_size", 4.0), ("c2st", 0.4)):
        rules = PromoteConfig(rules={name: Rule(limit=limit)}, improvements=0)
        decision = decide(evaluation.metrics, None, rules)
        assert not decision.promote
        assert decision.reasons[0].startswith(f"{name}[")
    allowed = PromoteConfig(rules={"duplicates": Rule(limit=0.1)}, improvements=0)
    assert decide(evaluate_samples(fresh, reference).metrics, None, allowed).promote


def test_utility_is_the_accuracy_of_a_classifier_that_learned_from_samples(digits, reference):
    """Right samples teach as well as real images; of half permuted labels, less; of all, nothing."""
    fresh, real = digits[1], digits[2]
    asked = replace(reference, config=EvaluateConfig(utility_images=8_000))
    shuffled_N = torch.where(torch.arange(400) % 2 == 0, fresh.labels_N, (fresh.labels_N + 1) % 10)
    found = [
        by_name(evaluate_samples(Images(fresh.pixels_NCHW, labels_N), asked))["utility"]
        for labels_N in (fresh.labels_N, shuffled_N, (fresh.labels_N + 1) % 10)
    ]
    right, half, wrong = (each.value.value for each in found)
    assert right > 0.7
    assert right - 0.15 > half > wrong + 0.15
    assert wrong < 0.2
    value, floor = found[0].value, found[0].floor
    assert value.protocol_digest == floor.protocol_digest
    assert (value.protocol.n_fake, value.protocol.n_real) == (400, 397)
    as_training = FeaturesConfig(kind="classifier", train_images=8_000)
    train = digits[0].first(400)
    extractor = fit_extractor(as_training, SPEC, train.pixels_NCHW, train.labels_N, seed=0)
    hits_N = extractor.extract(real.pixels_NCHW).classes_N == real.labels_N
    assert floor.value == float(hits_N.double().mean())
    for labels_N in (None, torch.full((400,), 3)):
        unlabelled = Images(fresh.pixels_NCHW, labels_N)
        assert "utility" not in by_name(evaluate_samples(unlabelled, asked))


def test_every_metric_has_a_text_on_the_page():
    assert set(METRIC_TEXTS) == set(BETTER)
    assert all(text.meaning for text in METRIC_TEXTS.values())


def test_samples_without_labels_have_no_label_accuracy(digits, reference):
    assert "label_accuracy" not in by_name(
        evaluate_samples(Images(digits[1].pixels_NCHW, None), reference)
    )


def test_both_ends_are_measured_by_the_samples_own_protocol(digits, reference):
    for name, reading in by_name(evaluate_samples(digits[1], reference)).items():
        assert reading.value.name.startswith(name + "[")
        if reading.ceiling is not None:
            assert reading.value.protocol_digest == reading.ceiling.protocol_digest
        if reading.floor is not None and name != "label_accuracy":
            assert reading.value.protocol_digest == reading.floor.protocol_digest


def test_it_says_the_same_twice_and_survives_json(digits, reference):
    a, b = evaluate_samples(digits[1], reference), evaluate_samples(digits[1], reference)
    assert canonical_json(a.metadata()) == canonical_json(b.metadata())
    assert metrics_from(json.loads(canonical_json(a.metadata()))) == a.metrics


def test_shared_baselines_change_nothing(digits, reference):
    made, shared = digits[1], Baselines()
    flipped = Images(made.pixels_NCHW.flip(3), made.labels_N)
    others = Images(made.pixels_NCHW, (made.labels_N + 1) % 10)
    for samples in (made, flipped, others, made.part(0, 200), made):
        found = evaluate_samples(samples, reference, (), shared)
        assert found == evaluate_samples(samples, reference)


def test_too_few_samples_are_refused_in_words(digits, reference):
    with pytest.raises(ConfigError, match=r"evaluate\.neighbours=5"):
        evaluate_samples(digits[1].part(0, 4), reference)


def test_noise_of_binary_data_is_binary():
    spec = ImageSpec(channels=1, height=4, width=4, levels=2)
    assert set(uniform_noise(20, spec, 0).pixels_NCHW.unique().tolist()) == {0, 255}
