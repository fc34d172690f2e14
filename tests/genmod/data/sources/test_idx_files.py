"""Folders of MNIST-format files as people bring them: types, splits, copies, several datasets."""

import gzip
import struct

import numpy as np
import pytest

from genmod.data.sources.names import HIDDEN
from genmod.data.sources.source import BAD_LABEL, FRACTION, NO_LABEL
from genmod.errors import ConfigError, DataError
from tests.genmod.data.sources.tables import Listed

CODES = {"u1": 8, "i1": 9, "i2": 11, "i4": 12, "f4": 13, "f8": 14}
X = np.arange(4 * 6 * 5, dtype=np.uint8).reshape(4, 6, 5)
Y = np.array([1, 3, 2, 1], np.uint8)


def write_idx(path, values):
    """Write an IDX file of any type; gzipped if its name says so."""
    code = CODES[values.dtype.str[1:]]
    data = struct.pack(f">4B{values.ndim}I", 0, 0, code, values.ndim, *values.shape)
    data += values.astype(values.dtype.newbyteorder(">")).tobytes()
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def write_set(folder, prefix, images=X, labels=Y, end=""):
    write_idx(folder / f"{prefix}-images-idx3-ubyte{end}", images)
    write_idx(folder / f"{prefix}-labels-idx1-ubyte{end}", labels)


def test_splits_of_mnist(tmp_path, build):
    write_set(tmp_path / "in", "train", np.concatenate([X] * 3), np.concatenate([Y] * 3), ".gz")
    write_set(tmp_path / "in", "t10k", end=".gz")
    write_set(tmp_path / "in", "valid")
    listed = Listed(f"idx:{tmp_path}/in")
    assert listed.splits == ["test"] * 4 + ["train"] * 12 + ["val"] * 4
    assert listed.names[:1] == ["t10k-00000000"]
    assert "declare the splits train, val, test: data.splits=source keeps them" in listed.decisions
    manifest = build(tmp_path / "d", source=f"idx:{tmp_path}/in", splits="source")
    assert {s: manifest.rows(s) for s in ("train", "val", "test")} == {
        "train": 12,
        "val": 4,
        "test": 4,
    }


def test_splits_of_emnist_and_labels_from_one(tmp_path):
    write_set(tmp_path, "emnist-letters-train", end=".gz")
    write_set(tmp_path, "emnist-letters-test", end=".gz")
    listed = Listed(f"idx:{tmp_path}")
    assert listed.splits == ["test"] * 4 + ["train"] * 4
    assert listed.labels == [1, 3, 2, 1] * 2


def test_files_of_several_datasets_need_a_choice(tmp_path):
    for name in ("emnist-letters", "emnist-digits"):
        write_set(tmp_path, f"{name}-train")
        write_set(tmp_path, f"{name}-test")
    with pytest.raises(DataError) as error:
        Listed(f"idx:{tmp_path}")
    assert str(error.value) == (
        f"idx:{tmp_path}: the prefixes emnist-digits-test, emnist-digits-train, emnist-letters-test, "
        "emnist-letters-train are those of several datasets; choose with data.image, e.g. "
        "data.image=emnist-digits-test, or move the files to several folders"
    )
    listed = Listed(f"idx:{tmp_path}", image="emnist-letters")
    assert {name[:-9] for name in listed.names} == {"emnist-letters-test", "emnist-letters-train"}
    assert set(Listed(f"idx:{tmp_path}", image="emnist-letters-test").splits) == {"test"}
    with pytest.raises(DataError, match=r"data\.image=letters is none of the prefixes"):
        Listed(f"idx:{tmp_path}", image="letters")


def test_numbered_parts_of_one_dataset(tmp_path):
    write_set(tmp_path, "part1")
    write_set(tmp_path, "part2")
    assert Listed(f"idx:{tmp_path}").labels == [1, 3, 2, 1] * 2


LABELS = {
    "u1": ([0, 255, 3, 1], [0, 255, 3, 1]),
    "i1": ([0, -1, 3, -5], [0, NO_LABEL, 3, BAD_LABEL]),
    "i2": ([0, 300, 3, 1], [0, 300, 3, 1]),
    "i4": ([0, 70_000, 3, 1], [0, 70_000, 3, 1]),
    "f4": ([0, 2.5, 3, np.nan], [0, FRACTION, 3, NO_LABEL]),
    "f8": ([0, np.inf, 3, 1e12], [0, FRACTION, 3, BAD_LABEL]),
}


@pytest.mark.parametrize("kind", LABELS)
@pytest.mark.parametrize("end", ["", ".gz"])
def test_types_of_labels(tmp_path, kind, end):
    values, labels = LABELS[kind]
    write_idx(tmp_path / f"train-images-idx3-ubyte{end}", X)
    write_idx(tmp_path / f"train-labels-idx1-int{end}", np.array(values, kind))
    assert Listed(f"idx:{tmp_path}").labels == labels


def test_a_file_and_its_gzipped_copy_count_once(tmp_path):
    write_set(tmp_path, "train")
    write_set(tmp_path, "train", end=".gz")
    write_idx(tmp_path / "train-images.idx3-ubyte", X)
    (tmp_path / "t10k-images-idx3-ubyte").mkdir()
    listed = Listed(f"idx:{tmp_path}")
    assert (len(listed.names), listed.labels) == (4, Y.tolist())
    assert np.array_equal(listed.images, X)
    assert listed.census.passed_over["second copies of a file"].count == 3
    assert listed.census.passed_over["folders"].first == "t10k-images-idx3-ubyte"


JUNK = (
    "._{0}-images-idx3-ubyte",
    "._{0}-labels-idx1-ubyte",
    ".DS_Store",
    "Thumbs.db",
    "desktop.ini",
)


@pytest.mark.parametrize("end", ["", ".gz"])
def test_names_that_systems_hide_are_passed_over(tmp_path, end):
    write_set(tmp_path, "train", end=end)
    write_set(tmp_path, "t10k", end=end)
    before = Listed(f"idx:{tmp_path}")
    for name in JUNK:
        (tmp_path / (name.format("train") + (end if "{" in name else ""))).write_bytes(
            b"\0\x05\x16\x07"
        )
    (tmp_path / "__MACOSX").mkdir()
    (tmp_path / "raw").mkdir()
    listed = Listed(f"idx:{tmp_path}")
    assert (listed.names, listed.labels) == (before.names, before.labels)
    assert listed.fingerprint == before.fingerprint
    counts = {kind: passed.count for kind, passed in listed.census.passed_over.items()}
    assert counts == {HIDDEN: 6, "folders": 1}


def test_files_that_are_not_used_are_counted(tmp_path):
    for name in ("emnist-letters-train", "emnist-digits-train"):
        write_set(tmp_path, name)
    write_idx(tmp_path / "t10k-labels-idx1-ubyte", Y)
    (tmp_path / "README.md").write_text("letters")
    listed = Listed(f"idx:{tmp_path}", image="emnist-letters")
    counts = {kind: passed.count for kind, passed in listed.census.passed_over.items()}
    assert counts == {"IDX files of other prefixes": 3, "text files (.md)": 1}
    assert Listed(f"idx:{tmp_path}", image="emnist-letters", labels=False).census.passed_over == (
        listed.census.passed_over
    )


@pytest.mark.parametrize("part", ["images-idx3", "labels-idx1"])
def test_two_files_of_one_prefix_that_differ_are_refused(tmp_path, part):
    write_set(tmp_path, "train")
    values = X if "images" in part else Y
    write_idx(tmp_path / f"train-{part}-ubyte.gz", values[::-1])
    with pytest.raises(
        DataError, match=f"train-{part}-ubyte and train-{part}-ubyte.gz differ; remove"
    ):
        Listed(f"idx:{tmp_path}")


def test_images_of_colors(tmp_path):
    colors = np.arange(4 * 6 * 5 * 3, dtype=np.uint8).reshape(4, 6, 5, 3)
    write_idx(tmp_path / "train-images-idx4-ubyte", colors)
    assert np.array_equal(Listed(f"idx:{tmp_path}").images, colors)
    write_idx(tmp_path / "train-images-idx4-ubyte", np.moveaxis(colors, 3, 1))
    listed = Listed(f"idx:{tmp_path}")
    assert np.array_equal(listed.images, colors)
    assert "(4, 3, 6, 5) is read as N, channels, H, W" in listed.decisions


@pytest.mark.parametrize(
    ("images", "labels", "words"),
    [
        (X.astype("f4"), Y, r"images are >f4|images are float32"),
        (X, np.stack([Y, Y], 1), "several labels for each image"),
        (X, X, "not an IDX file of labels in 1 dimension"),
        (Y, Y, "not an IDX file of bytes in 3 dimensions"),
        (X, Y[:2], "2 labels for 4 images"),
        (
            np.zeros((2, 4, 4, 5), np.uint8),
            Y[:2],
            r"images are uint8 \(2, 4, 4, 5\), expected bytes",
        ),
    ],
)
def test_other_shapes_and_types_are_refused(tmp_path, images, labels, words):
    write_set(tmp_path, "train", images, labels)
    with pytest.raises(DataError, match=words):
        Listed(f"idx:{tmp_path}")


def test_labels_of_a_part_are_missing(tmp_path):
    write_set(tmp_path, "train")
    write_idx(tmp_path / "t10k-images-idx3-ubyte", X)
    with pytest.raises(DataError, match="only some of the image files have a labels file"):
        Listed(f"idx:{tmp_path}")


def test_a_label_is_not_chosen(tmp_path):
    write_set(tmp_path, "train")
    with pytest.raises(ConfigError, match=r"data\.label does not apply to idx:"):
        Listed(f"idx:{tmp_path}", label="train")
