"""Splits in the names of folders, files, arrays and values."""

import pytest

from genmod.data.sources.census import Census
from genmod.data.sources.split_names import (
    partitions_of,
    report_splits,
    split_in_path,
    split_named,
    split_words,
)


@pytest.mark.parametrize(
    ("text", "split"),
    [
        ("train", "train"), ("TRAIN", "train"), (" Training ", "train"), ("val", "val"), ("valid", "val"),
        ("Validation", "val"), ("dev", "val"), ("test", "test"), ("extra", None), ("", None), ("0", None),
    ],
)  # fmt: skip
def test_names_of_splits(text, split):
    assert split_named(text) == split


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("x_train", ("train", "x")),
        ("train_images", ("train", "images")),
        ("emnist-letters-test", ("test", "emnist_letters")),
        ("t10k", ("test", "")),
        ("test2-images", ("test", "images")),
        ("contest", (None, "contest")),
        ("x_train_test", (None, "x_train_test")),
    ],
)
def test_a_word_of_a_name_is_a_split(name, expected):
    assert split_words(name) == expected


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("train-00000-of-00001.parquet", "train"),
        ("data/validation-00000-of-00002-ab12cd.parquet", "val"),
        ("mnist_test.parquet", "test"),
        ("test/part-0.parquet", "test"),
        ("test/train-of-thought.parquet", "test"),
        ("train/test/part-0.parquet", None),
        ("latest/part-0.parquet", None),
        ("part-0.parquet", None),
    ],
)
def test_paths_declare_splits(path, split):
    assert split_in_path(path) == split


def test_partitions():
    path = "split=dev/label=a%20b/x=/y/part=0.parquet"
    assert partitions_of(path) == {"split": "dev", "label": "a b", "x": ""}


def test_declared_splits_are_reported_with_the_key():
    census = Census()
    report_splits(census, [None], "file names")
    assert census.decisions == []
    report_splits(census, ["test", None, "train"], "file names")
    assert census.decisions == [
        "the file names declare the splits train, test: data.splits=source keeps them, "
        "shares ignore them"
    ]
