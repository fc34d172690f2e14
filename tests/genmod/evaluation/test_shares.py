"""Samples, training images and reference in equal class shares."""

from __future__ import annotations

import pytest
import torch

from genmod.errors import ConfigError
from genmod.evaluation.images import Images
from genmod.evaluation.measure import evaluate_samples
from genmod.evaluation.meter import Reference
from genmod.evaluation.shares import equal_shares, labels_by_name
from genmod.manifest import ImageSpec
from genmod.metrics.features import FeaturesConfig, fit_extractor
from genmod.metrics.protocol import EvaluateConfig
from genmod.rng import rng_for

SPEC = ImageSpec(channels=1, height=8, width=8, classes=2)
SHADES = torch.tensor([210, 40])


def shades(purpose, labels_N):
    """A dark rare class and a bright usual one, with noise."""
    noise = rng_for(0, purpose, range(len(labels_N))).integers(25, *SPEC.shape) - 12
    return Images((SHADES[labels_N][:, None, None, None] + noise).to(torch.uint8), labels_N)


def nine_to_one(rows):
    return (torch.arange(rows) % 10 == 4).long()


def evenly(rows, classes=2):
    return torch.arange(rows) % classes


@pytest.fixture(scope="module", params=["classifier", "pca"])
def reference(request):
    train = shades("train", nine_to_one(400))
    features = FeaturesConfig(kind=request.param, train_images=2_000)
    extractor = fit_extractor(features, SPEC, train.pixels_NCHW, train.labels_N, seed=0)
    config = EvaluateConfig(images=200)
    real = shades("real", nine_to_one(180))
    return Reference(train, real, "ab" * 32, extractor, config, seed=0)


def test_a_perfect_model_of_nine_to_one_data_is_near_the_floor(reference):
    """Sampled evenly over classes."""
    found = evaluate_samples(shades("samples", evenly(200)), reference)
    metrics = {m.value.protocol.metric: m for m in found.metrics}
    value, floor = metrics["fd"].value, metrics["fd"].floor
    assert value.value < 2 * floor.value + 0.05
    for name in ("kid", "precision", "recall", "coverage"):
        found_value, real_value = metrics[name].value.value, metrics[name].floor.value
        assert abs(found_value - real_value) < 0.1, name
    for metric in found.metrics:
        assert metric.value.protocol.settings["classes"] == "in the reference's shares"
    assert value.protocol_digest == floor.protocol_digest
    assert (value.protocol.n_fake, value.protocol.n_real) == (111, 180)  # 100 and 11 of nine to one
    assert found.metadata()["class_shares"] == {
        "classes": "in the reference's shares",
        "samples": 111,
        "of_samples": 200,
        "reference": 180,
        "of_reference": 180,
    }
    if found.class_counts:
        assert found.class_counts == {"samples": [100, 11], "reference": [162, 18]}
        assert metrics["class_balance"].value.value < 0.01
    again = evaluate_samples(shades("samples", evenly(200)), reference)
    assert again.metadata() == found.metadata()


def test_a_model_without_its_rare_class_is_still_caught(reference):
    """Asked for both classes, it makes the usual one."""
    usual = shades("samples", evenly(200) * 0)
    found = evaluate_samples(Images(usual.pixels_NCHW, evenly(200)), reference)
    metrics = {m.value.protocol.metric: m for m in found.metrics}
    assert metrics["fd"].value.value > 10 * metrics["fd"].floor.value
    assert metrics["coverage"].value.value < 0.92


def test_equal_shares_and_missing_labels_change_nothing(reference):
    for labels_N in (nine_to_one(200), None):
        made = shades("samples", nine_to_one(200))
        found = evaluate_samples(Images(made.pixels_NCHW, labels_N), reference)
        assert "class_shares" not in found.metadata()
        assert found.class_shares is None
        for metric in found.metrics:
            assert "classes" not in metric.value.protocol.settings


def test_every_part_from_the_start_has_the_shares():
    samples, train, real = (
        shades(str(n), f(n)) for n, f in ((900, evenly), (800, nine_to_one), (300, nine_to_one))
    )
    same = equal_shares(samples, train, real, 2, rows=900)
    assert len(same.samples) == len(same.train) == 500  # 450 of 450 evenly drawn, and 50
    for images in (same.samples, same.train, same.real):
        rare_N = images.labels_N.cumsum(0)
        wanted_N = torch.arange(1, len(rare_N) + 1) / 10
        assert (rare_N - wanted_N).abs().max() <= 1
    assert torch.equal(same.samples.pixels_NCHW, samples.pixels_NCHW[same.sample_rows_N])
    assert (same.sample_rows_N[same.samples.labels_N == 1].diff() > 0).all()


def test_scarce_training_images_limit_the_floor_and_the_samples_alike():
    train = shades("train", nine_to_one(50))
    same = equal_shares(shades("s", evenly(900)), train, shades("r", nine_to_one(300)), 2, rows=900)
    assert same.samples.labels_N.bincount().tolist() == [45, 5]
    assert same.train.labels_N.bincount().tolist() == [45, 5]
    assert len(same.real) == 300


def test_classes_that_one_side_lacks_are_left_out_and_the_protocol_says_so():
    real = shades("r", evenly(90, 3) % 2)
    real = Images(real.pixels_NCHW, evenly(90, 3))
    train = Images(real.pixels_NCHW, evenly(90, 3).clamp(max=1))  # none of class 2
    unknown = torch.tensor([0, 1, 2, -1]).repeat(30)
    made = Images(torch.zeros(120, *SPEC.shape, dtype=torch.uint8), unknown)
    same = equal_shares(made, train, real, 3, rows=120)
    assert same.classes == "in the reference's shares, only 0, 1"
    assert same.samples.labels_N.bincount().tolist() == [30, 30]
    assert same.real.labels_N.bincount().tolist() == [30, 30]


def test_shares_that_leave_too_few_rows_are_refused_in_words(reference):
    with pytest.raises(ConfigError, match=r"got 8, 400 and 180 .*equal class shares 4 samples and"):
        evaluate_samples(shades("samples", evenly(8)), reference)


def test_labels_are_matched_by_name():
    labels_N = torch.tensor([0, 1, 2, 1])
    assert labels_by_name(labels_N, ("cat", "dog", "eel"), ("dog", "cat")).tolist() == [1, 0, -1, 0]
    assert labels_by_name(labels_N, (), ("dog",)).tolist() == labels_N.tolist()
    assert labels_by_name(labels_N, ("cat",), ()).tolist() == labels_N.tolist()
