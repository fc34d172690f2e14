"""Which feature space is fitted: none of a classifier that has learned nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from genmod.data.format.shards import Row, write_shard
from genmod.errors import DataError
from genmod.evaluation.features_job import FeaturesJob, fit_features
from genmod.evaluation.images import Images
from genmod.manifest import DatasetManifest, ImageSpec, publish
from genmod.metrics.features import FeaturesConfig, fit_extractor, load_extractor
from genmod.metrics.protocol import EvaluateConfig
from genmod.rng import rng_for

SPEC = ImageSpec(channels=1, height=8, width=8, classes=10)
CONFIG = FeaturesConfig(train_images=6_000)


@pytest.fixture(scope="module")
def digits():
    found = load_digits()
    pixels_NCHW = torch.tensor(found.images).mul(255 / 16).to(torch.uint8)[:, None]
    images = Images(pixels_NCHW, torch.tensor(found.target, dtype=torch.int64))
    return images.part(0, 800), images.part(800, 1000)


def shuffled(images, purpose):
    labels_N = rng_for(0, purpose, range(len(images))).integers(10)
    return Images(images.pixels_NCHW, labels_N)


def test_a_classifier_that_has_learned_is_as_it_was(digits):
    train, held = digits
    extractor, found = fit_features(CONFIG, SPEC, train, held, seed=0)
    wanted = fit_extractor(CONFIG, SPEC, train.pixels_NCHW, train.labels_N, 0)
    assert extractor.digest == wanted.digest
    seen_N = wanted.extract(held.pixels_NCHW).classes_N
    accuracy = float((seen_N == held.labels_N).double().mean())
    assert found == {"val_accuracy": accuracy, "val_rows": 200}


def test_random_convolutions_are_fitted_with_and_without_labels(digits):
    train, held = digits
    config = FeaturesConfig(kind="random_conv")
    for images in (train, Images(train.pixels_NCHW, None)):
        extractor, found = fit_features(config, SPEC, images, held, seed=0)
        assert (extractor.config.kind, found) == ("random_conv", {})


def test_random_labels_give_principal_components(digits):
    train, held = shuffled(digits[0], "train"), shuffled(digits[1], "held")
    extractor, found = fit_features(CONFIG, SPEC, train, held, seed=0)
    components = FeaturesConfig(kind="pca")
    assert extractor.digest == fit_extractor(components, SPEC, train.pixels_NCHW, None, 0).digest
    assert list(found) == ["refused"]
    assert found["refused"].endswith("of 200 validation images, no more than by chance")
    demanded = CONFIG.model_copy(update={"kind": "classifier"})
    with pytest.raises(
        DataError, match=r"kind is 'classifier', but a classifier sees .* use 'auto'"
    ):
        fit_features(demanded, SPEC, train, held, seed=0)


def test_a_constant_guess_of_the_usual_class_is_chance(digits):
    """Nine to one by random labels: always the usual class is right in 90 %."""
    train, held = (
        Images(d.pixels_NCHW, (shuffled(d, "rare").labels_N == 3).long()) for d in digits
    )
    extractor, found = fit_features(CONFIG, SPEC.model_copy(update={"classes": 2}), train, held, 0)
    assert extractor.label.startswith("pca-v1@")
    assert "no more than by chance" in found["refused"]


@pytest.mark.parametrize("held_rows", [0, 5])
def test_few_validation_images_leave_it_to_the_training_images(digits, held_rows):
    train, held = digits
    few = held.first(held_rows) if held_rows else None
    extractor, found = fit_features(CONFIG, SPEC, train, few, seed=0)
    assert extractor.label.startswith("classifier-v1@")
    assert found.get("val_rows", 0) == held_rows
    short = CONFIG.model_copy(update={"train_images": 64, "learning_rate": 1e-9})
    extractor, found = fit_features(short, SPEC, shuffled(train, "none"), few, seed=0)
    assert extractor.label.startswith("pca-v1@")
    assert "of 800 training images" in found["refused"]


@pytest.mark.parametrize("classes", [1, 3])
def test_a_dataset_with_one_class_in_training_says_so_in_the_manifest(classes, tmp_path, digits):
    """With names of three classes or of one, all its rows are of class 0."""
    spec = SPEC.model_copy(update={"classes": classes})
    shards = [
        write_shard(
            f"{tmp_path}/data",
            f"{split}-000000",
            split,
            spec,
            [
                Row(f"{split}{i}", i, np.asarray(pixels.permute(1, 2, 0)), 0)
                for i, pixels in enumerate(images.pixels_NCHW[:40])
            ],
        )[0]
        for split, images in zip(("train", "val"), digits, strict=True)
    ]
    publish(f"{tmp_path}/data", DatasetManifest(fingerprint="d", spec=spec, shards=tuple(shards)))
    job = FeaturesJob(
        data_root=f"{tmp_path}/data",
        out_root=f"{tmp_path}/features",
        config=EvaluateConfig(features=CONFIG),
    )
    metadata = job.do().metadata
    assert metadata["refused"] == "the training images have one class only"
    assert metadata["label"] == load_extractor(job.out_root).label
    assert metadata["label"].startswith("pca-v1@")
    assert set(metadata) == {"label", "digest", "rows", "refused"}
    assert job.do().metadata == metadata
