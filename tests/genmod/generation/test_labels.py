"""A class is asked for by name or number; a number that is also another class's name is refused."""

import pytest
import torch

from genmod.errors import ConfigError
from genmod.generation.labels import LabelRequest, label_request
from genmod.generation.synthetic import SampledBy
from genmod.manifest import DatasetManifest, ImageSpec

NUMBERED = tuple(str(n) for n in range(1, 13))
PADDED = tuple(f"{n:02d}" for n in range(1, 13))
DIGITS = tuple(map(str, range(10)))


def only(labels, names, empty=()):
    spec = ImageSpec(channels=1, height=4, width=4, classes=len(names))
    return label_request(labels, spec, names, empty).only


@pytest.mark.parametrize(
    ("labels", "names", "expected"),
    [
        (7, DIGITS, 7),
        ("07", DIGITS, 7),
        (12, NUMBERED, 11),
        ("name:10", NUMBERED, 9),
        ("number:10", NUMBERED, 10),
        ("name:01", PADDED, 0),
        ("name:1", PADDED, 0),
        ("number:1", PADDED, 1),
        ("name:cat", ("dog", "cat"), 1),
        ("name:none", ("all", "none"), 1),
        ("name:x", ("x", "name:x"), 0),
        ("name:y", ("x", "name:y"), 1),
    ],
)
def test_a_class_by_name_or_number(labels, names, expected):
    assert only(labels, names) == expected


@pytest.mark.parametrize(
    ("labels", "names", "words"),
    [
        (
            10,
            NUMBERED,
            "name of class number 9 and the number of class '11'; set name:10 or number:10",
        ),
        (
            "1",
            PADDED,
            "name of class number 0 and the number of class '02'; set name:1 or number:1",
        ),
        ("none", ("all", "none"), "set name:none"),
        ("balanced", ("balanced", "not"), "set name:balanced for this class, or auto"),
        (13, NUMBERED, "classes 0 to 11, called 1, 2, 3, 4, 5, ..."),
        ("number:12", NUMBERED, "classes 0 to 11"),
        ("name:ct", ("dog", "cat"), "did you mean 'cat'"),
    ],
)
def test_what_could_be_meant_otherwise_is_refused(labels, names, words):
    with pytest.raises(ConfigError, match=words) as error:
        only(labels, names)
    assert "\n" not in str(error.value)


def test_classes_without_training_rows_are_not_dealt_out():
    spec = ImageSpec(channels=1, height=4, width=4, classes=4)
    request = label_request("balanced", spec, empty=(0, 2))
    assert [request.label(i) for i in range(5)] == [1, 3, 1, 3, 1]
    assert request.labels_B(torch.arange(5)).tolist() == [1, 3, 1, 3, 1]
    assert request.rule == "balanced"
    assert request.description(("a", "b", "c", "d")) == (
        "2 of 4 classes in turn, without those that have no training rows: 0 ('a'), 2 ('c')"
    )
    with pytest.raises(ConfigError, match=r"class 2 \('c'\) has no training rows"):
        only("c", ("a", "b", "c", "d"), (0, 2))
    assert only("d", ("a", "b", "c", "d"), (0, 2)) == 3


def test_a_synthetic_dataset_remembers_them():
    spec = ImageSpec(channels=1, height=4, width=4, classes=4)
    sample = {"weights": "ema", "options": {}, "seed": 1, "micro_batch": 2, "empty_classes": [0]}
    made = DatasetManifest(fingerprint="f", spec=spec, shards=(), metadata={"sample": sample})
    assert SampledBy.of(made, "r").labels(4) == LabelRequest(4, empty=(0,))
