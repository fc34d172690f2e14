"""Label columns as the common table writers make them are read as meant."""

import decimal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from genmod.data.sources.source import (
    BAD_LABEL,
    BAD_TEXT,
    FRACTION,
    LABEL_REASONS,
    NO_LABEL,
    SEVERAL_LABELS,
    UNNAMED,
)
from genmod.errors import DataError
from tests.genmod.data.sources.tables import Listed, class_label, hugging_face, pngs, write


def labels_of(tmp_path, column):
    write(tmp_path / "t.parquet", label=column)
    return Listed(f"parquet:{tmp_path}/t.parquet").labels


LONG = "x" * 2000

COLUMNS = {
    "integers": (pa.array([3, 0, -1, None, -9]), [3, 0, NO_LABEL, NO_LABEL, BAD_LABEL]),
    "small integers": (pa.array([1, 255], pa.uint8()), [1, 255]),
    "large integers": (pa.array([2**63 + 1, 7], pa.uint64()), [BAD_LABEL, 7]),
    "floats": (
        pa.array([3.0, float("nan"), None, 2.5, float("inf"), -1.0, 1e300]),
        [3, NO_LABEL, NO_LABEL, FRACTION, FRACTION, NO_LABEL, BAD_LABEL],
    ),
    "half floats": (pa.array(np.array([2, 0.5], np.float16)), [2, FRACTION]),
    "decimals": (pa.array([decimal.Decimal("3.0"), decimal.Decimal("2.5"), None]), [3, FRACTION, NO_LABEL]),
    "booleans": (pa.array([True, False, None]), ["true", "false", NO_LABEL]),
    "texts of YAML": (
        pa.array(["no", "1e3", "01", "1", "true", "~", "", None]),
        ["no", "1e3", "01", "1", "true", "~", NO_LABEL, NO_LABEL],
    ),
    "large texts": (pa.array(["cat", None], pa.large_string()), ["cat", NO_LABEL]),
    "views of texts": (pa.array(["cat", None], pa.string_view()), ["cat", NO_LABEL]),
    "long texts": (pa.array([LONG, "a"]), [BAD_TEXT, "a"]),
    "bytes": (pa.array([b"cat", None, b"\xff", LONG.encode()]), ["cat", NO_LABEL, BAD_TEXT, BAD_TEXT]),
    "bytes of one size": (pa.array([b"cat", b"dog"], pa.binary(3)), ["cat", "dog"]),
    "dictionary": (pa.array(["b", "a", None, "b"]).dictionary_encode(), ["b", "a", NO_LABEL, "b"]),
    "dictionary of integers": (pa.array([7, 5, None, 7]).dictionary_encode(), [7, 5, NO_LABEL, 7]),
    "nulls": (pa.nulls(2), [NO_LABEL, NO_LABEL]),
    "lists": (pa.array([[3], [], None, [1, 2], [0]]), [3, NO_LABEL, NO_LABEL, SEVERAL_LABELS, 0]),
    "lists of texts": (
        pa.array([["cat"], ["cat", "dog"], None, ["no"]]), ["cat", SEVERAL_LABELS, NO_LABEL, "no"],
    ),
    "lists of floats": (pa.array([[3.0], [2.5], [None]]), [3, FRACTION, NO_LABEL]),
    "lists of booleans": (pa.array([[True]]), ["true"]),
    "lists of one": (pa.array([[3], [4]], pa.list_(pa.int64(), 1)), [3, 4]),
    "large lists": (pa.array([[3], [1]], pa.large_list(pa.int32())), [3, 1]),
}  # fmt: skip


@pytest.mark.parametrize("name", COLUMNS)
def test_values_become_labels(tmp_path, name):
    column, labels = COLUMNS[name]
    found = labels_of(tmp_path, column)
    assert found == labels
    assert [type(label) for label in found] == [type(label) for label in labels]


def test_every_number_that_is_no_label_has_a_reason(tmp_path, build):
    write(tmp_path / "t.parquet", label=[2.5, *[float(n % 3) for n in range(40)], None])
    with pytest.raises(DataError, match="1 its label is a number with a fraction, 1 has no label"):
        build(tmp_path / "d", source=f"parquet:{tmp_path}/t.parquet")
    source = f"parquet:{tmp_path}/t.parquet"
    manifest = build(tmp_path / "d", source=source, max_quarantined=0.1)
    assert (manifest.quarantined, manifest.spec.classes) == (2, 3)
    reasons = pq.read_table(tmp_path / "d" / "quarantine.parquet")["reason"].to_pylist()
    assert reasons == [LABEL_REASONS[FRACTION], LABEL_REASONS[NO_LABEL]]
    unlabelled = build(tmp_path / "e", source=source, labels=False)
    assert (unlabelled.quarantined, unlabelled.spec.classes) == (0, 0)


@pytest.mark.parametrize(
    "column",
    [
        pa.array([[[1]], [[2]]]),
        pa.array([{"id": 1, "name": "a"}] * 2),
        pa.array([0, 1], pa.timestamp("s")),
        pa.array([[("a", 1)]] * 2, pa.map_(pa.string(), pa.int64())),
    ],
)
def test_other_types_are_refused_by_name(tmp_path, column):
    write(tmp_path / "t.parquet", label=column, other=[1, 2])
    with pytest.raises(DataError, match=r"t\.parquet: column label"):
        Listed(f"parquet:{tmp_path}/t.parquet")
    assert Listed(f"parquet:{tmp_path}/t.parquet", label="other").labels == [1, 2]


def test_a_field_of_a_struct_is_chosen_by_its_path(tmp_path):
    column = pa.array([{"id": 4, "name": "a"}, None, {"id": None, "name": "b"}])
    write(tmp_path / "t.parquet", label=column)
    source = f"parquet:{tmp_path}/t.parquet"
    assert Listed(source, label="label.id").labels == [4, NO_LABEL, NO_LABEL]
    assert Listed(source, label="label.name").labels == ["a", NO_LABEL, "b"]


def test_boolean_classes_are_false_and_true(tmp_path):
    write(tmp_path / "t.parquet", label=[True, True])
    assert Listed(f"parquet:{tmp_path}/t.parquet").class_names == ("false", "true")


@pytest.mark.parametrize("row_group_size", [2, 100])
@pytest.mark.parametrize("ordered", [True, False])
def test_categories_of_pandas_are_names_in_their_order(tmp_path, row_group_size, ordered):
    values = ["dog", "cat", None, "dog", "cat"]
    categories = pd.Categorical(values, ["zebra", "dog", "cat"], ordered=ordered)
    frame = pd.DataFrame({"image": pngs(5), "label": categories})
    frame.to_parquet(tmp_path / "t.parquet", row_group_size=row_group_size)
    listed = Listed(f"parquet:{tmp_path}/t.parquet")
    assert listed.labels == ["dog", "cat", NO_LABEL, "dog", "cat"]
    assert listed.class_names == ("zebra", "dog", "cat")


def test_categories_of_numbers_are_numbers(tmp_path):
    frame = pd.DataFrame({"image": pngs(3), "label": pd.Categorical([7, 5, 7])})
    frame.to_parquet(tmp_path / "t.parquet")
    listed = Listed(f"parquet:{tmp_path}/t.parquet")
    assert (listed.labels, listed.class_names) == ([7, 5, 7], ())


def test_missing_values_of_pandas(tmp_path):
    for name, values in {"a": [1, None], "b": [2, 3]}.items():
        frame = pd.DataFrame({"image": pngs(2), "label": values})  # floats, then integers
        frame.to_parquet(tmp_path / f"{name}.parquet")
    pd.DataFrame({"image": pngs(2), "label": [None, None]}).to_parquet(tmp_path / "c.parquet")
    pd.DataFrame({"image": pngs(1), "label": pd.array([4], "Int64")}).to_parquet(
        tmp_path / "d.parquet"
    )
    assert Listed(f"parquet:{tmp_path}").labels == [1, NO_LABEL, 2, 3, NO_LABEL, NO_LABEL, 4]


def test_a_dictionary_without_pandas_declares_no_order(tmp_path):
    write(tmp_path / "t.parquet", label=pa.array(["b", "a"]).dictionary_encode())
    listed = Listed(f"parquet:{tmp_path}/t.parquet")
    assert (listed.labels, listed.class_names) == (["b", "a"], ())


def test_names_of_hugging_face(tmp_path):
    names = ("T - shirt / top", "Trouser", "Bag", "Ankle boot")
    features = {"image": {"_type": "Image"}, "label": class_label(*names)}
    columns = {"image": [{"bytes": b, "path": None} for b in pngs(4)], "label": [2, 0, -1, 4]}
    hugging_face(tmp_path / "t.parquet", columns, features)
    listed = Listed(f"parquet:{tmp_path}/t.parquet")
    assert listed.labels == ["Bag", "T - shirt / top", NO_LABEL, UNNAMED]
    assert listed.class_names == names
    assert listed.images == pngs(4)


@pytest.mark.parametrize(
    "feature",
    [
        {"feature": class_label("a", "b"), "_type": "Sequence"},
        {"feature": class_label("a", "b"), "length": -1, "_type": "List"},
        [class_label("a", "b")],
    ],
)
def test_names_of_lists_of_hugging_face(tmp_path, feature):
    hugging_face(
        tmp_path / "t.parquet", {"image": pngs(2), "labels": [[1], [0]]}, {"labels": feature}
    )
    listed = Listed(f"parquet:{tmp_path}/t.parquet")
    assert (listed.labels, listed.class_names) == (["b", "a"], ("a", "b"))


def test_files_that_differ_in_their_names_are_matched_by_name(tmp_path):
    columns = {"image": pngs(2), "label": [0, 1]}
    hugging_face(tmp_path / "a.parquet", columns, {"label": class_label("dog", "cat")})
    hugging_face(tmp_path / "b.parquet", columns, {"label": class_label("cat", "emu", "dog")})
    write(tmp_path / "c.parquet", label=["dog", "bat"])
    listed = Listed(f"parquet:{tmp_path}")
    assert listed.labels == ["dog", "cat", "cat", "emu", "dog", "bat"]
    assert listed.class_names == ("dog", "cat", "emu", "bat")
    assert "different names of classes" in listed.decisions


def test_names_and_numbers_do_not_mix(tmp_path):
    columns = {"image": pngs(2), "label": [0, 1]}
    hugging_face(tmp_path / "a.parquet", columns, {"label": class_label("dog", "cat")})
    write(tmp_path / "b.parquet", label=[0, 1])
    with pytest.raises(
        DataError, match=r"b\.parquet has integer labels, but .*a\.parquet has class n"
    ):
        Listed(f"parquet:{tmp_path}")


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ("cat", "no list"),
        ([1, 2], "no text"),
        (["a" * 2000], "too long"),
        (["a", "a"], "the same name"),
    ],
)
def test_damaged_names_are_refused(tmp_path, names, words):
    feature = {"names": names, "_type": "ClassLabel"}
    hugging_face(tmp_path / "t.parquet", {"image": pngs(1), "label": [0]}, {"label": feature})
    with pytest.raises(DataError, match=words):
        Listed(f"parquet:{tmp_path}/t.parquet")


def write_metadata(path, text):
    table = pa.table({"image": pngs(1), "label": [2]})
    pq.write_table(table.replace_schema_metadata({"huggingface": text, "pandas": text}), path)


@pytest.mark.parametrize(
    "text",
    [
        b"[1, 2]",
        b'{"info": 3, "columns": {}}',
        b'{"info": {"features": [1]}, "columns": [1]}',
        b'{"info": {"features": {"label": 3, "image": [[]]}}}',
    ],
)
def test_metadata_of_another_form_declares_nothing(tmp_path, text):
    write_metadata(tmp_path / "t.parquet", text)
    assert Listed(f"parquet:{tmp_path}/t.parquet").labels == [2]


@pytest.mark.parametrize("text", [b"{", b"[" * 100_000, b"\xff"])
def test_metadata_that_is_not_json_is_refused(tmp_path, text):
    write_metadata(tmp_path / "t.parquet", text)
    with pytest.raises(DataError, match=r"t\.parquet: metadata huggingface is not"):
        Listed(f"parquet:{tmp_path}/t.parquet")
