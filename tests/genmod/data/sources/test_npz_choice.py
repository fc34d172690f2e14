"""Archives of arrays under the names that people give them, and what is refused with the key that chooses."""

import zipfile

import numpy as np
import pytest

from genmod.data.sources.names import HIDDEN
from genmod.data.sources.source import BAD_LABEL, BAD_TEXT, NO_LABEL, UNNAMED
from genmod.errors import ConfigError, DataError
from tests.genmod.data.sources.tables import Listed


def pixels(*shape, first=0):
    """Images whose values count up."""
    return ((np.arange(np.prod(shape)) + first) % 256).astype(np.uint8).reshape(shape)


def listed(tmp_path, options=None, **arrays):
    np.savez_compressed(tmp_path / "a.npz", **arrays)
    return Listed(f"npz:{tmp_path}/a.npz", **(options or {}))


X, Y = pixels(4, 8, 8), np.array([3, 1, 0, 1])

SINGLE = {
    "ours": {"images": X, "labels": Y},
    "short": {"x": X, "y": Y},
    "positional": {"arr_0": X, "arr_1": Y},
    "other names": {"pictures": X, "digit": Y},
    "capitals": {"X": X, "Y": Y},
    "data and target": {"data": X, "target": Y},
    "column of labels": {"images": X, "labels": Y[:, None]},
    "small labels": {"imgs": X, "digits": Y.astype(np.uint8)},
    "with masks": {"images": X, "masks": X[:, ::-1], "labels": Y},
    "with features": {"images": X, "embeddings": np.ones((4, 7, 7)), "flat": np.ones((4, 64)), "labels": Y},
    "with other columns": {"images": X, "labels": Y, "writer": Y[::-1]},
    "with numbers of another length": {"images": X, "ids": np.arange(9), "digit": Y},
    "with objects": {"images": X, "labels": Y, "meta": np.array([{}], dtype=object)},
}  # fmt: skip


@pytest.mark.parametrize("name", SINGLE)
def test_arrays_are_found(tmp_path, name):
    found = listed(tmp_path, **SINGLE[name])
    assert np.array_equal(found.images, X)
    assert found.labels == Y.tolist()
    assert found.names[:2] == ["00000000", "00000001"]
    assert found.splits == [None] * 4


def test_what_was_chosen_is_reported(tmp_path):
    found = listed(
        tmp_path, digits=X, cls_id=Y, weights=np.ones(4), meta=np.array([{}], dtype=object)
    )
    assert found.decisions == (
        "images are those of digits, labels those of cls_id; not used: weights float64 (4,): "
        "data.image and data.label choose others"
    )
    assert found.census.passed_over["arrays of objects, or that cannot be read"].first == "meta"


def test_hidden_and_other_members_are_passed_over(tmp_path):
    np.savez(tmp_path / "a.npz", images=X, labels=Y)
    before = Listed(f"npz:{tmp_path}/a.npz")
    with zipfile.ZipFile(tmp_path / "a.npz", "a") as archive:
        for name in ("__MACOSX/._images.npy", "._labels.npy", ".DS_Store", "readme.txt"):
            archive.writestr(name, b"\0\x05\x16\x07")
        archive.mkdir("empty")
    found = Listed(f"npz:{tmp_path}/a.npz")
    assert np.array_equal(found.images, X)
    assert (found.labels, found.names) == (Y.tolist(), before.names)
    counts = {kind: passed.count for kind, passed in found.census.passed_over.items()}
    assert counts == {HIDDEN: 3, "text files (.txt)": 1}


def test_channels(tmp_path):
    last = pixels(4, 8, 6, 3)
    found = listed(tmp_path, x=np.moveaxis(last, 3, 1))
    assert np.array_equal(found.images, last)
    assert "with axes N, channels, H, W (4, 3, 8, 6)" in found.decisions
    found = listed(tmp_path, x=last)
    assert np.array_equal(found.images, last)
    assert "axes" not in found.decisions
    found = listed(tmp_path, x=X[:, None])
    assert np.array_equal(found.images, X[..., None])


def test_channels_first_are_sharded_as_images(tmp_path, build):
    last = pixels(20, 8, 6, 3)
    for name, array in {"first": np.moveaxis(last, 3, 1), "last": last}.items():
        np.savez(tmp_path / f"{name}.npz", x=array)
    first, second = (
        build(tmp_path / name, source=f"npz:{tmp_path}/{name}.npz") for name in ("first", "last")
    )
    assert (first.spec.channels, first.spec.height, first.spec.width) == (3, 8, 6)
    assert [shard.tar.sha256 for shard in first.shards] == [s.tar.sha256 for s in second.shards]


LAYOUTS = {
    "keras": {"x_train": X, "y_train": Y, "x_test": X[:2], "y_test": Y[:2]},
    "medmnist": {
        "train_images": X, "train_labels": Y[:, None].astype(np.uint8),
        "test_images": X[:2], "test_labels": Y[:2, None].astype(np.uint8),
    },
    "capitals": {"X_train": X, "Y_train": Y, "X_test": X[:2], "Y_test": Y[:2]},
}  # fmt: skip


@pytest.mark.parametrize("name", LAYOUTS)
def test_splits_of_arrays(tmp_path, name):
    found = listed(tmp_path, **LAYOUTS[name])
    assert found.splits == ["train"] * 4 + ["test"] * 2
    assert found.labels == [3, 1, 0, 1, 3, 1]
    assert found.names[3:5] == ["train-00000003", "test-00000000"]
    assert np.array_equal(found.images, np.concatenate([X, X[:2]]))
    assert "declare the splits train, test: data.splits=source keeps them" in found.decisions


def test_declared_splits_of_arrays_are_kept(tmp_path, build):
    parts = {"train": 9, "val": 4, "test": 2}
    arrays = {f"{split}_images": pixels(n, 8, 8, first=ord(split[1])) for split, n in parts.items()}
    labels = {f"{split}_labels": np.arange(n)[:, None] % 2 for split, n in parts.items()}
    np.savez(tmp_path / "a.npz", **arrays, **labels)
    manifest = build(tmp_path / "d", source=f"npz:{tmp_path}/a.npz", splits="source")
    assert {split: manifest.rows(split) for split in parts} == parts
    np.savez(tmp_path / "b.npz", images=X, labels=Y)
    with pytest.raises(ConfigError, match="is in no split"):
        build(tmp_path / "e", source=f"npz:{tmp_path}/b.npz", splits="source")


def test_one_split_alone(tmp_path):
    found = listed(tmp_path, x_train=X, labels=Y)
    assert (found.names[0], found.splits[0], found.labels) == (
        "train-00000000",
        "train",
        Y.tolist(),
    )


def test_labels_that_are_texts(tmp_path):
    texts = np.array(["no", "01", "", "x" * 2000])
    found = listed(tmp_path, x=X, y=texts)
    assert (found.labels, found.class_names) == (["no", "01", NO_LABEL, BAD_TEXT], ())
    found = listed(tmp_path, x=X, y=np.array([b"b", b"\xff", b"a", b"b"]))
    assert found.labels == ["b", BAD_TEXT, "a", "b"]
    found = listed(tmp_path, x=X, y=np.array([True, False, True, True]))
    assert (found.labels, found.class_names) == (
        ["true", "false", "true", "true"],
        ("false", "true"),
    )


def test_names_of_class_numbers(tmp_path):
    found = listed(tmp_path, x=X, y=Y, class_names=np.array(["zebra", "ant", "emu"]))
    assert found.labels == [UNNAMED, "ant", "zebra", "ant"]
    assert found.class_names == ("zebra", "ant", "emu")
    with pytest.raises(DataError, match="two classes have the same name"):
        listed(tmp_path, x=X, y=Y, class_names=np.array(["a", "a"]))


def test_numbers_of_classes_keep_their_value(tmp_path):
    found = listed(tmp_path, x=X, y=np.array([1, 26, -1, -2]))
    assert found.labels == [1, 26, NO_LABEL, BAD_LABEL]
    found = listed(tmp_path, x=X, y=np.array([2**63 + 1, 0, 1, 2], np.uint64))
    assert found.labels == [BAD_LABEL, 0, 1, 2]


@pytest.mark.parametrize(
    ("option", "key", "rows"),
    [("left", "image", X), ("right", "image", X[::-1])],
)
def test_the_recipe_chooses_images(tmp_path, option, key, rows):
    arrays = {"left": X, "right": X[::-1], "labels": Y}
    with pytest.raises(DataError) as error:
        listed(tmp_path, **arrays)
    assert str(error.value).endswith(
        "the image could be array left uint8 (4, 8, 8), right uint8 (4, 8, 8); choose with data.image, "
        "e.g. data.image=left"
    )
    assert np.array_equal(listed(tmp_path, {key: option}, **arrays).images, rows)


def test_the_recipe_chooses_labels(tmp_path):
    arrays = {"x": X, "fine": Y, "coarse": Y // 2}
    with pytest.raises(
        DataError, match=r"label could be array fine int64 \(4,\), coarse int64 \(4,\)"
    ):
        listed(tmp_path, **arrays)
    assert listed(tmp_path, {"label": "coarse"}, **arrays).labels == [1, 0, 0, 0]


def test_the_recipe_chooses_in_all_splits(tmp_path):
    arrays = {
        f"{split}_{name}": array[:rows]
        for split, rows in {"train": 4, "test": 2}.items()
        for name, array in {"images": X, "masks": X[::-1], "labels": Y, "sites": Y // 2}.items()
    }
    found = listed(tmp_path, {"image": "masks", "label": "sites"}, **arrays)
    assert found.labels == [1, 0, 0, 0, 1, 0]
    assert np.array_equal(found.images[4:], X[::-1][:2])
    found = listed(tmp_path, {"image": "test_masks"}, **arrays)
    assert (len(found.images), found.labels, found.splits) == (2, [3, 1], ["test", "test"])
    with pytest.raises(DataError, match=r"data\.label=train_sites has no array for test_images"):
        listed(tmp_path, {"label": "train_sites"}, **arrays)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"x": X / 255}, r"images are float64 \(4, 8, 8\) .*\(255 \* x\)\.round\(\)\.astype\('uint8'\)"),
        ({"images": X.astype(np.float32), "masks": X}, r"images are float32 \(4, 8, 8\)"),
        ({"x": X.astype(int)}, r"images are int64 .*x\.astype\('uint8'\) if they are 0 to 255"),
        ({"x": X > 9}, r"images are bool .*\(255 \* x\)"),
        ({"x": X.reshape(4, 64), "y": Y}, r"contains x uint8 \(4, 64\), y int64 \(4,\); expected one array"),
        ({"images": pixels(4, 8, 8, 4)}, r"contains images uint8 \(4, 8, 8, 4\)"),
        ({"image": pixels(8, 8, 3)}, r"image uint8 \(8, 8, 3\) could be one image"),
        ({"x": X, "y": np.eye(4)}, r"labels are float64 \(4, 4\) .*labels\.argmax\(axis=1\)"),
        ({"x": X, "labels": np.zeros((4, 14), np.uint8)}, r"labels are uint8 \(4, 14\) .*one per image"),
        ({"x": X, "y": Y.astype(float)}, r"labels are float64 \(4,\) .*astype\(int\)"),
        ({"x": X, "y": Y[:2]}, r"labels are int64 \(2,\) .*expected integers or texts \(4,\)"),
        ({"x": X, "y": np.array(["a", None, 1, 2], dtype=object)}, r"npz file \(y\.npy is object"),
        ({"x_train": X, "x_test": X, "y_train": Y}, "only some of the arrays of images have labels"),
        ({"x": X, "x_test": X}, "image could be array x uint8"),
        ({"x_train": X, "train_images": X}, "image could be array x_train uint8"),
        ({"x_train": X, "y_train": Y, "x_test": X, "y_test": Y.astype(str)}, "numbers in one array"),
    ],
)  # fmt: skip
def test_what_could_be_meant_otherwise_is_refused(tmp_path, arrays, words):
    with pytest.raises(DataError, match=words) as error:
        listed(tmp_path, **arrays)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 700


@pytest.mark.parametrize("key", ["image", "label"])
def test_a_chosen_array_that_is_missing(tmp_path, key):
    with pytest.raises(DataError, match=rf"data\.{key}=pics is no array of it; arrays: x uint8"):
        listed(tmp_path, {key: "pics"}, x=X, y=Y)


def test_one_array_is_refused_with_what_to_do(tmp_path):
    np.save(tmp_path / "a.npy", X)
    with pytest.raises(
        DataError, match=r"a\.npy is one array; write it .*numpy\.savez\('a\.npz', images="
    ):
        Listed(f"npz:{tmp_path}/a.npy")


def test_pixels_that_are_nearly_black_are_reported(tmp_path):
    found = listed(tmp_path, imgs=X % 2)
    assert "all pixels are 0 or 1 of 255" in found.decisions


def test_builtin_sources_have_no_choice():
    with pytest.raises(ConfigError, match=r"data\.label does not apply to builtin:digits"):
        Listed("builtin:digits", label="y")
