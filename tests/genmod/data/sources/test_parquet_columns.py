"""Which columns of a table are the images, the labels and the splits, and which files are its parts."""

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from genmod.data.format.foreign import Rejected
from genmod.data.sources.registry import open_source
from genmod.data.sources.source import NO_LABEL
from genmod.errors import ConfigError, DataError
from tests.genmod.data.sources.tables import Listed, class_label, hugging_face, pngs, write


def test_cifar_100_needs_a_choice_of_its_labels(tmp_path):
    features = {
        "img": {"_type": "Image"},
        "fine_label": class_label("apple", "bear"),
        "coarse_label": class_label("fruit", "animal"),
    }
    images = [{"bytes": data, "path": None} for data in pngs(2)]
    columns = {"img": images, "fine_label": [1, 0], "coarse_label": [1, 0]}
    hugging_face(tmp_path / "t.parquet", columns, features)
    source = f"parquet:{tmp_path}/t.parquet"
    with pytest.raises(DataError) as error:
        Listed(source)
    assert str(error.value) == (
        f"{tmp_path}/t.parquet: the label could be column fine_label, coarse_label; choose with data.label, "
        "e.g. data.label=fine_label"
    )
    assert Listed(source, label="coarse_label").labels == ["animal", "fruit"]
    listed = Listed(source, label="fine_label")
    assert listed.labels == ["bear", "apple"]
    assert listed.decisions == (
        "images are those of column img, labels those of column fine_label: data.image and data.label choose "
        "others"
    )


@pytest.mark.parametrize(
    ("columns", "label", "words"),
    [
        ({"label": [1], "fine_label": [2]}, 1, "labels those of column label, not of fine_label"),
        ({"fine_label": [2]}, 2, "labels those of column fine_label"),
        ({"Label": [4]}, 4, "labels those of column Label"),
        ({"category": ["a"], "width": [3]}, "a", "labels those of column category"),
        ({"breed": ["a"], "width": [3]}, NO_LABEL, "no column of labels (others: breed, width)"),
        ({}, NO_LABEL, "without labels"),
    ],
)
def test_labels_by_name(tmp_path, columns, label, words):
    write(tmp_path / "t.parquet", image=pngs(1), **columns)
    listed = Listed(f"parquet:{tmp_path}/t.parquet")
    assert listed.labels == [label]
    assert words in listed.decisions


def test_a_column_of_class_numbers_is_a_label_whatever_its_name(tmp_path):
    columns = {"image": pngs(2), "digit": [1, 0], "width": [4, 4]}
    hugging_face(tmp_path / "t.parquet", columns, {"digit": class_label("a", "b")})
    assert Listed(f"parquet:{tmp_path}/t.parquet").labels == ["b", "a"]


@pytest.mark.parametrize(
    "names", [("label", "Label"), ("class", "labels"), ("label_id", "label_name")]
)
def test_several_labels_are_refused(tmp_path, names):
    write(tmp_path / "t.parquet", **{name: [1] for name in names})
    with pytest.raises(DataError, match=f"column {names[0]}, {names[1]}; choose with data.label"):
        Listed(f"parquet:{tmp_path}/t.parquet")


@pytest.mark.parametrize("key", ["image", "label"])
def test_a_chosen_column_that_is_missing(tmp_path, key):
    write(tmp_path / "t.parquet", label=[1])
    with pytest.raises(DataError, match=f"no column labal, which data.{key} chooses; .*label"):
        Listed(f"parquet:{tmp_path}/t.parquet", **{key: "labal"})


JUNK = [b"\x01" * 16] * 2


@pytest.mark.parametrize(
    ("columns", "image"),
    [
        ({"photo": pngs(2)}, "photo"),
        ({"image": pngs(2), "mask": pngs(2, 5)}, "image"),
        ({"mask": pngs(2, 5), "IMG": pngs(2)}, "IMG"),
        ({"hash": JUNK, "photo": pngs(2)}, "photo"),
        ({"bytes": JUNK, "image": pngs(2)}, "image"),
        ({"image": ["a.png", "b.png"], "image_bytes": pngs(2)}, "image_bytes"),
        ({"sha": pa.array(JUNK, pa.binary(16)), "photo": [None, pngs(2)[1]]}, "photo"),
        ({"photo": [{"bytes": data, "path": "x"} for data in pngs(2)]}, "photo"),
    ],
)
def test_images_by_name_or_content(tmp_path, columns, image):
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    listed = Listed(f"parquet:{tmp_path}/t.parquet")
    assert listed.images[1] == pngs(2)[1]
    assert f"images are those of column {image}" in listed.decisions


@pytest.mark.parametrize("names", [("image", "img"), ("left", "right"), ("png", "jpg")])
def test_several_images_are_refused(tmp_path, names):
    columns = {name: pngs(1, number) for number, name in enumerate(names)}
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    with pytest.raises(
        DataError, match=f"the image could be column {names[0]}, {names[1]}; choose"
    ):
        Listed(f"parquet:{tmp_path}/t.parquet")
    assert Listed(f"parquet:{tmp_path}/t.parquet", image=names[1]).images == pngs(1, 1)


def test_declared_images_come_before_other_bytes(tmp_path):
    columns = {"left": pngs(1), "photo": pngs(1, 3)}
    hugging_face(tmp_path / "t.parquet", columns, {"photo": {"_type": "Image"}})
    assert Listed(f"parquet:{tmp_path}/t.parquet").images == pngs(1, 3)


def test_a_path_without_bytes_is_rejected(tmp_path):
    images = [{"bytes": None, "path": "a.png"}, {"bytes": pngs(1)[0], "path": None}, None]
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    pq.write_table(pa.table({"image": pa.array(images, kind)}), tmp_path / "t.parquet")
    first, second, third = Listed(f"parquet:{tmp_path}/t.parquet").images
    assert isinstance(first, Rejected)
    assert str(first) == str(third) == "has no image bytes; paths are not followed"
    assert second == pngs(1)[0]


def test_columns_with_dots_in_their_names(tmp_path):
    columns = {"label.x": [7], "label": [1], "image.bytes": pngs(1, 5), "image": pngs(1)}
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    source = f"parquet:{tmp_path}/t.parquet"
    assert (Listed(source).labels, Listed(source).images) == ([1], pngs(1))
    assert Listed(source, label="label.x").labels == [7]
    assert Listed(source, image="image.bytes").images == pngs(1, 5)


VALUES = ["train", "VAL", "valid", "Validation", "dev", "test", "extra", None]
SPLITS = ["train", "val", "val", "val", "val", "test", None, None]


@pytest.mark.parametrize("categories", [True, False])
def test_a_column_of_splits(tmp_path, categories):
    frame = pd.DataFrame({"image": pngs(8), "split": VALUES, "label": range(8)})
    if categories:
        frame["split"] = frame["split"].astype("category")
    frame.to_parquet(tmp_path / "test.parquet", row_group_size=3)
    listed = Listed(f"parquet:{tmp_path}/test.parquet")
    assert listed.splits == SPLITS
    assert "declare the splits train, val, test: data.splits=source keeps them" in listed.decisions


def test_a_column_of_splits_that_are_numbers_declares_nothing(tmp_path):
    write(tmp_path / "t.parquet", split=[0, 1])
    listed = Listed(f"parquet:{tmp_path}/t.parquet")
    assert listed.splits == [None, None]
    assert "splits" not in listed.decisions


def test_splits_of_files_become_those_of_the_dataset(tmp_path, build):
    for part, (name, count) in enumerate({"train-0": 6, "validation-0": 4, "test-0": 2}.items()):
        path = tmp_path / "in" / "data" / f"{name}.parquet"
        write(path, image=pngs(count, 10 * part), label=[1, 0] * (count // 2))
    source = f"parquet:{tmp_path}/in"
    manifest = build(tmp_path / "d", source=source, splits="source")
    assert {s: manifest.rows(s) for s in ("train", "val", "test")} == {
        "train": 6,
        "val": 4,
        "test": 2,
    }
    write(tmp_path / "in" / "data" / "part.parquet", label=[1])
    with pytest.raises(ConfigError, match=r"data/part-00000000 is in no split"):
        build(tmp_path / "e", source=source, splits="source")


def test_a_folder_lists_files_in_its_subfolders(tmp_path):
    paths = [
        "a.parquet",
        "test/part-0.parquet",
        "train/deep/part-0.parquet",
        "train/part-0.parquet",
    ]
    for number, path in enumerate(paths):
        write(tmp_path / path, label=[number], image=pngs(1, number))
    for path in ("README.md", "_temporary/0/part-0.parquet", ".cache/x.parquet"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(b"junk")
    listed = Listed(f"parquet:{tmp_path}")
    assert listed.names == [f"{path.removesuffix('.parquet')}-00000000" for path in paths]
    assert listed.labels == [0, 1, 2, 3]
    assert listed.splits == [None, "test", "train", "train"]
    assert listed.images == [pngs(1, n)[0] for n in range(4)]
    passed = {kind: (p.count, p.first) for kind, p in listed.census.passed_over.items()}
    assert passed["text files (.md)"] == (1, "README.md")
    assert passed["files of folders that start with _"] == (1, "_temporary/0/part-0.parquet")


def test_a_folder_without_tables(tmp_path):
    (tmp_path / "a.csv").write_text("")
    with pytest.raises(DataError, match=r"no such file: \*\.parquet in that folder or below"):
        Listed(f"parquet:{tmp_path}")


def test_equal_names_in_two_folders_are_both_kept(tmp_path):
    for number, folder in enumerate("ab"):
        write(
            tmp_path / folder / "part-0.parquet", label=[number, number], image=pngs(2, 3 * number)
        )
    expected = [f"{folder}/part-0-{row:08d}" for folder in "ab" for row in range(2)]
    for pattern in ("{a,b}/part-0.parquet", "*/part-*.parquet", "?/part-0.parquet", ""):
        listed = Listed(f"parquet:{tmp_path}/{pattern}")
        assert listed.names == expected
        assert listed.labels == [0, 0, 1, 1]
    for pattern in ("a/part-0.parquet", "a/*.parquet", "a/part-{0..0}.parquet", "a"):
        assert Listed(f"parquet:{tmp_path}/{pattern}").names == [
            "part-0-00000000",
            "part-0-00000001",
        ]


def test_partitions_of_hive_are_columns(tmp_path):
    frame = pd.DataFrame(
        {
            "image": pngs(4),
            "label": ["01", "a b", None, "01"],
            "split": ["train", "test", "train", "dev"],
        }
    )
    frame.to_parquet(tmp_path, partition_cols=["split", "label"])
    listed = Listed(f"parquet:{tmp_path}")
    assert list(zip(listed.images, listed.labels, listed.splits, strict=True)) == [
        (frame["image"][3], "01", "val"),
        (frame["image"][1], "a b", "test"),
        (frame["image"][0], "01", "train"),
        (frame["image"][2], NO_LABEL, "train"),
    ]


def test_a_file_replaced_by_one_of_equal_size_is_another_source(tmp_path):
    path = tmp_path / "t.parquet"
    data = pngs(1)[0]
    pq.write_table(pa.table({"image": [data]}), path, compression="none")
    first = Listed(f"parquet:{path}")
    path.write_bytes(path.read_bytes().replace(data, data[:-1] + b"x"))
    second = Listed(f"parquet:{path}")
    assert second.fingerprint != first.fingerprint
    write(path, label=[1], image=pngs(1))
    source = open_source(f"parquet:{path}")
    with pytest.raises(DataError, match="changed while it was sharded"):
        next(source.fetch([first.entries[0].ref], first.fingerprint))
