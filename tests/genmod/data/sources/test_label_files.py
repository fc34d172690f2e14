"""Files with labels that dataset tools write next to images: used, refused with the key, or counted."""

import dataclasses
import json

import fsspec
import pytest

from genmod.budget import BUDGET
from genmod.data.sources import label_table
from genmod.data.sources.config import SourceOptions
from genmod.data.sources.registry import open_source
from genmod.data.sources.source import BAD_LABEL, NO_LABEL, SEVERAL_LABELS, Scan
from genmod.errors import ConfigError, DataError
from tests.genmod.data.sources.test_folder import PNG, write

FLAT = ("images/1.png", "images/2.png", "images/3.png")
CLASSES = ("cat/1.png", "dog/2.png", "dog/3.png")


def scanned(root, **options):
    """Labels by name, and the census."""
    scan = Scan()
    entries = list(open_source(f"folder:{root}", SourceOptions(**options)).entries(scan))
    return {entry.name: entry.label for entry in entries}, scan.census


def labelled(root, texts, images=FLAT, **options):
    write(root, {**dict.fromkeys(images, PNG), **{k: v.encode() for k, v in texts.items()}})
    return scanned(root, **options)


def jsonl(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


USED = {
    "file_name,label": "file_name,label\nimages/1.png,cat\nimages/2.png,dog\nimages/3.png,cat\n",
    "file names alone": "filename,class\n1.png,cat\n2.png,dog\n3.png,cat\n",
    "ids without extension": "id,category\n1,cat\n2,dog\n3,cat\n",
    "other order and columns": "width,Target,  Image \n4,cat,1.png\n4,dog,2.png\n4,cat,3.png\n",
    "semicolons, BOM, quotes": '\ufeff"file name";"label"\r\n"1.png";"cat"\r\n2.png;dog\r\n3.png;cat\r\n',
    "tabs": "path\tlabel\n./images/1.png\tcat\nimages\\2.png\tdog\nimages/3.png\tcat\n",
}


@pytest.mark.parametrize("kind", USED)
@pytest.mark.parametrize("name", ["labels.csv", "my data.tsv"])
def test_a_table_of_files_and_labels_is_used(tmp_path, kind, name):
    labels, census = labelled(tmp_path, {name: USED[kind]})
    assert labels == {"images/1.png": "cat", "images/2.png": "dog", "images/3.png": "cat"}
    assert census.decisions == [
        f"labels are read from {name}; data.label=folder takes the names of folders"
    ]
    assert census.passed_over == {}


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be"])
def test_a_table_of_a_spreadsheet_in_utf16(tmp_path, encoding):
    text = "file_name\tlabel\n" + "".join(f"{n}.png\t{'kä'[n % 2]}\n" for n in (1, 2, 3))
    mark = "" if encoding == "utf-16" else "\ufeff"
    write(tmp_path, {**dict.fromkeys(FLAT, PNG), "labels.csv": (mark + text).encode(encoding)})
    labels, _ = scanned(tmp_path)
    assert labels == {"images/1.png": "ä", "images/2.png": "k", "images/3.png": "ä"}


def test_hugging_face_metadata(tmp_path):
    rows = jsonl(
        {"file_name": "1.png", "label": 0, "text": "x"}, {"label": 7, "file_name": "2.png"}
    )
    write(tmp_path, {"train/1.png": PNG, "train/2.png": PNG, "test/1.png": PNG})
    write(
        tmp_path,
        {"train/metadata.jsonl": rows.encode(), "test/metadata.csv": b"file_name,label\n1.png,3\n"},
    )
    labels, _ = scanned(tmp_path)
    assert labels == {"test/1.png": 3, "train/1.png": 0, "train/2.png": 7}


@pytest.mark.parametrize("pairs", [list, dict])
def test_the_labels_of_stylegan(tmp_path, pairs):
    rows = [["00000/a.png", 6], ["00000/b.png", 2], ["00001/c.png", 6]]
    document = json.dumps({"labels": rows if pairs is list else dict(rows)})
    images = ("00000/a.png", "00000/b.png", "00001/c.png")
    labels, _ = labelled(tmp_path, {"dataset.json": document}, images)
    assert labels == {"00000/a.png": 6, "00000/b.png": 2, "00001/c.png": 6}
    labels, census = labelled(tmp_path, {"dataset.json": '{"labels": null}'}, images)
    assert set(labels.values()) == {NO_LABEL}
    assert census.decisions == ["dataset.json declares no labels: data without labels"]
    labels, _ = labelled(tmp_path, {"dataset.json": document}, images, label="folder")
    assert labels == {name: name[:5] for name in images}


def test_another_dataset_json_is_no_file_of_labels(tmp_path):
    labels, census = labelled(
        tmp_path, {"dataset.json": '{"format": 1}', "coco.json": "{}"}, CLASSES
    )
    assert labels == {name: name[:3] for name in CLASSES}
    assert census.passed_over["annotations that are not read (.json)"].count == 2


OTHER = "file_name,label,kind\ncat/1.png,x,a\ndog/2.png,y,b\ndog/3.png,x,b\n"


def test_labels_that_differ_from_folders_are_refused_or_chosen(tmp_path):
    with pytest.raises(
        DataError,
        match=r"cat/1\.png another label .* data\.label=labels\.csv or data\.label=folder",
    ):
        labelled(tmp_path, {"labels.csv": OTHER}, CLASSES)
    by_folder = {name: name[:3] for name in CLASSES}
    assert scanned(tmp_path, label="folder")[0] == by_folder
    by_file = dict(zip(CLASSES, "xyx", strict=True))
    assert scanned(tmp_path, label="labels.csv")[0] == by_file
    assert scanned(tmp_path, label="labels.csv:label")[0] == by_file
    assert scanned(tmp_path, label="labels.csv:Kind")[0] == dict(zip(CLASSES, "abb", strict=True))
    assert scanned(tmp_path, label=f"{tmp_path}/labels.csv:kind")[0]["dog/3.png"] == "b"


def test_labels_that_are_the_folders_are_no_contradiction(tmp_path):
    text = "file,label\n" + "".join(f"{name},{name[:3]}\n" for name in CLASSES)
    labels, _ = labelled(tmp_path, {"train.csv": text}, CLASSES)
    assert labels == {name: name[:3] for name in CLASSES}


def test_several_files_or_columns_are_refused(tmp_path):
    text = "id,label\n1,a\n2,b\n3,a\n"
    with pytest.raises(
        ConfigError,
        match=r"several files may contain the labels; set one of data\.label=a\.csv:label, ",
    ):
        labelled(tmp_path / "a", {"a.csv": text, "sample_submission.csv": text})
    assert scanned(tmp_path / "a", label="a.csv")[0]["images/2.png"] == "b"
    two = "file,class_id,class_name\n1.png,0,cat\n2.png,1,dog\n3.png,0,cat\n"
    with pytest.raises(
        ConfigError, match=r"columns file, class_id, class_name; set data\.label to one of them"
    ):
        labelled(tmp_path / "b", {"labels.csv": two})
    assert scanned(tmp_path / "b", label="labels.csv:class_id")[0]["images/2.png"] == 1
    with pytest.raises(
        ConfigError, match=r"has no column 'colour'; columns: file, class_id, class_name"
    ):
        scanned(tmp_path / "b", label="labels.csv:colour")
    with pytest.raises(DataError, match=r"none\.csv: No such file or directory; check data\.label"):
        scanned(tmp_path / "b", label="none.csv:label")


def test_a_file_for_each_split_declares_splits(tmp_path):
    write(tmp_path, dict.fromkeys(FLAT, PNG))
    write(tmp_path, {"train.csv": b"id,label\n1,a\n2,b\n", "test_labels.csv": b"id,label\n3,a\n"})
    entries = list(open_source(f"folder:{tmp_path}").entries(Scan()))
    assert [(e.label, e.split) for e in entries] == [("a", "train"), ("b", "train"), ("a", "test")]


def test_a_file_name_in_two_folders_needs_paths(tmp_path):
    images = ("a/1.png", "b/1.png")
    with pytest.raises(
        DataError, match=r"the row 1\.png fits a/1\.png and b/1\.png; write paths relative"
    ):
        labelled(tmp_path, {"labels.csv": "file,label\n1.png,x\n"}, images, label="labels.csv")
    text = "file,label\na/1.png,x\nb/1.png,y\n"
    assert labelled(tmp_path, {"labels.csv": text}, images, label="labels.csv")[0] == {
        "a/1.png": "x",
        "b/1.png": "y",
    }


def test_images_without_a_row_and_rows_without_an_image_are_reported(tmp_path):
    labels, census = labelled(
        tmp_path, {"labels.csv": "file,label\n1.png,a\n9.png,b\n8.png,b\n2.png,\n"}
    )
    assert labels == {"images/1.png": "a", "images/2.png": NO_LABEL, "images/3.png": NO_LABEL}
    assert census.decisions[1] == "1 images have no row in labels.csv: no label"
    passed = census.passed_over["rows of labels.csv without an image"]
    assert (passed.count, passed.first) == (2, "9.png")
    with pytest.raises(
        DataError, match=r"no image has a row in labels\.csv \(the first row is 'x/9\.png'\)"
    ):
        labelled(tmp_path, {"labels.csv": "file,label\nx/9.png,b\n"})


def test_paths_that_begin_above_the_folder(tmp_path):
    text = f"path,label\nin/images/1.png,a\n{tmp_path}/in/images/2.png,b\nimages/3.png,c\n"
    labels, _ = labelled(tmp_path / "in", {"labels.csv": text})
    assert list(labels.values()) == ["a", "b", "c"]


def test_numbers_names_and_other_cells(tmp_path):
    def of(*cells):
        text = "file,label\n" + "".join(f"{n + 1}.png,{cell}\n" for n, cell in enumerate(cells))
        return list(labelled(tmp_path, {"labels.csv": text})[0].values())

    assert of("3", "3.0", "007") == [3, 3, 7]
    assert of("-1", "-5", "9" * 30) == [NO_LABEL, BAD_LABEL, BAD_LABEL]
    assert of(" tabby cat ", "a-1", "2e") == ["tabby cat", "a-1", "2e"]
    with pytest.raises(DataError, match=r"labels are numbers .* and names"):
        of("cat", "3", "dog")
    rows = jsonl({"file_name": "1.png", "label": "3"}, {"file_name": "2.png", "label": ["a"]},
                 {"file_name": "3.png", "label": {"a": 1}})  # fmt: skip
    (tmp_path / "labels.csv").unlink()
    assert list(labelled(tmp_path, {"metadata.jsonl": rows})[0].values()) == ["3", "a", BAD_LABEL]


def test_an_image_with_two_labels_has_several(tmp_path):
    text = "filename,class\n1.png,cat\n1.png,dog\n2.png,cat\n2.png,cat\n3.png,dog\n"
    labels, _ = labelled(tmp_path, {"boxes.csv": text})
    assert list(labels.values()) == [SEVERAL_LABELS, "cat", "dog"]


def test_tables_without_labels_are_counted(tmp_path):
    texts = {"a.csv": "id,width\n1,4\n", "b.csv": "1.png,cat\n2.png,dog\n", "c.csv": "", "d.jsonl": "[1]\n",
             "labels/1.txt": "0 0.5 0.5 0.1 0.1", "1.xml": "<annotation/>"}  # fmt: skip
    labels, census = labelled(tmp_path, texts, CLASSES)
    assert labels == {name: name[:3] for name in CLASSES}
    assert {kind: passed.count for kind, passed in census.passed_over.items()} == {
        "tables that are not read as labels (.csv)": 2, "tables that are not read as labels (.jsonl)": 1,
        "empty files": 1, "text files (.txt)": 1, "annotations that are not read (.xml)": 1,
    }  # fmt: skip


FIRST = b'{"file": "1.png", "label": 1}\n'
HOSTILE = {
    "bytes that are no UTF-8": ("l.csv", b"file,label\n\xff\xfe,1\n", "is not UTF-8 at byte 11"),
    "a field without end": ("l.csv", b'file,label\n1.png,"' + b"a" * 200_000, "not a readable CSV file"),
    "JSON that is none": ("l.jsonl", FIRST + b'{"file"\n', "line 2, is not valid JSON"),
    "a list": ("l.jsonl", FIRST + b'[1]\n', "line 2, is no JSON object"),
    "deep JSON": ("l.jsonl", FIRST + b"[" * 300 + b"]" * 300, "line 2, "),
    "pairs that are none": ("dataset.json", b'{"labels": [["1.png", 1, 2]]}', "expected"),
    "more rows than the limit": ("l.csv", b"file,label\n" + b"1.png,2\n" * 30, "rows of labels, more than"),
}  # fmt: skip


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_files_of_labels_are_one_error(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(label_table, "BUDGET", dataclasses.replace(BUDGET, label_rows=20))
    name, data, words = HOSTILE[kind]
    write(tmp_path, {"images/1.png": PNG, name: data})
    with pytest.raises(DataError, match=words) as error:
        scanned(tmp_path)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 500


def test_a_folder_in_a_store(tmp_path):
    files = {"train/1.png": PNG, "test/2.png": PNG, "labels.csv": b"id,label\n1,a\n2,b\n"}
    fsspec.filesystem("memory").pipe(
        {f"/{tmp_path.name}/{name}": data for name, data in files.items()}
    )
    assert scanned(f"memory://{tmp_path.name}")[0] == {"test/2.png": "b", "train/1.png": "a"}


def test_a_file_of_labels_is_part_of_the_identity(tmp_path):
    fingerprints = []
    for text in ("file,label\n1.png,a\n", "file,label\n1.png,b\n"):
        write(tmp_path, {"images/1.png": PNG, "labels.csv": text.encode()})
        scan = Scan()
        list(open_source(f"folder:{tmp_path}").entries(scan))
        fingerprints.append(scan.fingerprint)
    assert fingerprints[0] != fingerprints[1]


SPLIT_ROWS = "file_name,label,split\n1.png,cat,train\n2.png,dog,Validation\n3.png,cat,test\n"


@pytest.mark.parametrize("labels", [True, False])
@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_column_of_splits_declares_them(tmp_path, kind, labels):
    header, *rows = (line.split(",") for line in SPLIT_ROWS.splitlines())
    values = jsonl(*(dict(zip(header, row, strict=True)) for row in rows))
    text = SPLIT_ROWS if kind == "csv" else values
    write(tmp_path, {**dict.fromkeys(FLAT, PNG), f"metadata.{kind}": text.encode()})
    scan = Scan()
    options = SourceOptions(labels=labels)
    entries = list(open_source(f"folder:{tmp_path}", options).entries(scan))
    assert [entry.split for entry in entries] == ["train", "val", "test"]
    assert (
        f"the rows of metadata.{kind} declare the splits train, val, test: data.splits=source keeps them, "
        "shares ignore them"
    ) in scan.census.decisions


def test_rows_of_no_split_and_rows_of_another_split_than_their_folder_have_none(tmp_path):
    images = ("train/a/1.png", "train/a/2.png", "test/b/3.png", "test/b/4.png")
    text = "".join(
        f"{name},{name.split('/')[1]},{split}\n"
        for name, split in zip(images, ("train", "test", "", "holdout"), strict=True)
    )
    write(tmp_path, {**dict.fromkeys(images, PNG), "l.csv": f"file,label,split\n{text}".encode()})
    scan = Scan()
    entries = list(open_source(f"folder:{tmp_path}").entries(scan))
    assert {entry.name: entry.split for entry in entries} == {
        "train/a/1.png": "train", "train/a/2.png": None, "test/b/3.png": "test", "test/b/4.png": "test",
    }  # fmt: skip
    (line,) = [line for line in scan.census.decisions if "another split" in line]
    assert line.startswith("1 images are in the folder of another split than their row of l.csv")


def test_names_of_either_unicode_form_are_found(tmp_path):
    """Files from macOS have decomposed names, tables of other programs composed ones, or the reverse."""
    composed, decomposed = "k\u00e4se/\u00fc.png", "ka\u0308se/u\u0308.png"
    for folder, image, row in (("a", composed, decomposed), ("b", decomposed, composed)):
        texts = {"labels.csv": f"file_name,label\n{row},cat\n"}
        labels, census = labelled(tmp_path / folder, texts, images=(image,))
        assert labels == {image: "cat"}
        assert census.passed_over == {}
    with pytest.raises(DataError, match=r"fits .* write paths relative to the file"):
        labelled(
            tmp_path / "c", {"labels.csv": f"file,label\n{composed},x\n"}, (composed, decomposed)
        )
