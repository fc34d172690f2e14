"""Memorisation of published samples: every sample against every training row, with the keys of both."""

from __future__ import annotations

import uuid

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from pyarrow import BufferReader
from sklearn.datasets import load_digits

from genmod.data.format.shards import Row, write_shard
from genmod.errors import ConfigError
from genmod.evaluation.images import Images
from genmod.evaluation.memorised import (
    MOST_SHOWN,
    SHOWN,
    CopyTest,
    RowSource,
    leakage_test,
    measure_memorisation,
)
from genmod.manifest import DatasetManifest, ImageSpec, publish
from genmod.metrics.protocol import EvaluateConfig

SPEC = ImageSpec(channels=1, height=8, width=8, classes=10)
CONFIG = EvaluateConfig(memorisation_calibration=900)


@pytest.fixture(scope="module")
def digits():
    pixels = (load_digits().images * (255 / 16)).astype(np.uint8)[..., None]
    return pixels[np.random.default_rng(0).permutation(len(pixels))]


def dataset(prefix, **splits):
    """A dataset in two shards for each split; keys are out of order, as digests are."""
    root, shards = f"memory://{uuid.uuid4().hex}", []
    for split, images in splits.items():
        rows = [
            Row(f"{prefix}{(7 * i) % len(images):05d}", i, image, 0)
            for i, image in enumerate(images)
        ]
        half = len(rows) // 2
        for number, part in enumerate((rows[:half], rows[half:])):
            shards.append(write_shard(root, f"{split}-{number:06d}", split, SPEC, part)[0])
    manifest = DatasetManifest(fingerprint=root, spec=SPEC, shards=tuple(shards))
    return root, publish(root, manifest)


def key(prefix, row, rows):
    return f"{prefix}{(7 * row) % rows:05d}"


def test_copies_are_listed_with_the_keys_of_both(digits):
    """All samples count, and all training rows: the copies are the last samples, of rows throughout."""
    train, held_out, honest = digits[:1000], digits[1000:1300], digits[1300:1700]
    of = [3, 333, 777, 999]
    copies = np.stack([train[of[0]], train[of[1]], train[of[2]][:, ::-1], train[of[3]]])
    data = dataset("real", train=train, test=held_out)
    made = np.concatenate([honest, copies])
    found, leaked = measure_memorisation(dataset("made", train=made), data, data, CONFIG)
    assert (leaked.protocol.metric, leaked.value) == ("leakage", 0)
    assert found.value.value == 4 / 404
    assert found.value.interval.low < 4 / 404 < found.value.interval.high
    protocol = found.value.protocol
    assert (protocol.n_fake, protocol.n_real) == (404, 300)
    assert protocol.settings["n_train"] == 1000
    assert protocol.settings["n_train_against_others"] == 600
    keys = [key("made", i, 404) for i in range(404)], [key("real", i, 1000) for i in range(1000)]
    rows = pq.read_table(BufferReader(found.evidence(*keys))).to_pylist()
    assert [row["sample_key"] for row in rows] == keys[0]
    named = [row for row in rows if row["named"]]
    assert [row["index"] for row in named] == [400, 401, 402, 403]
    assert [row["train_key"] for row in named] == [key("real", row, 1000) for row in of]
    assert [row["kind"] for row in named] == ["exact", "exact", "flipped", "exact"]
    assert all(row["distance"] == 0 and row["q_value"] <= 0.05 for row in named)
    shown = found.metadata(*keys)["shown"]
    assert len(shown) == SHOWN
    assert {pair["sample"] for pair in shown[:4]} == {400, 401, 402, 403}
    assert not any(pair["named"] for pair in shown[4:])


def source(images):
    return RowSource.of(Images(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()), None))


def test_a_model_that_replays_is_named_whole_and_shown_in_part(digits):
    train, held_out = source(digits[:600]), source(digits[600:700])
    found = CopyTest(train, held_out, CONFIG, "ab" * 32).measure(source(digits[:120]))
    assert found.value.value == 1
    assert found.value.interval.low > 0.95
    assert len(found.shown()) == MOST_SHOWN


def test_one_training_image_is_too_few(digits):
    with pytest.raises(ConfigError, match="at least 2 training images, got 1"):
        CopyTest(*(source(digits[:1]),) * 2, CONFIG, "ab" * 32)


def test_samples_that_repeat_reference_rows_are_leaked_and_not_memorised(digits):
    train, held_out = digits[:1000], digits[1000:1300]
    made = np.concatenate([digits[1300:1700], held_out[[7, 77, 177, 277]]])
    sources = source(train), source(held_out)
    leakage = leakage_test(*sources, CONFIG, "ab" * 32)
    assert leakage.measure(source(made)).value.value == 4 / 404
    assert CopyTest(*sources, CONFIG, "ab" * 32).measure(source(made)).value.value == 0
    # The real images are compared once; another set of samples is measured as by a test of its own.
    other = source(made[350:])
    again = leakage_test(*sources, CONFIG, "ab" * 32).measure(other)
    assert leakage.measure(other).value == again.value
    assert again.value.value == 4 / 54
