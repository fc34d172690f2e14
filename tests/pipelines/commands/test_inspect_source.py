"""``genmod inspect KIND:WHERE``: what would be made of a source, before anything is written."""

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from genmod.data.format.image_grid import SHEET_BACKGROUND
from pipelines.cli import main
from tests.genmod.data.builders import encode

CLASSES = ("bird", "cat", "dog")
SIDE = 8
"""Pixels of an image; on the sheet each one is a square of 64 / SIDE."""


def grey(level, side=SIDE):
    return encode(np.full((side, side), level, np.uint8))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Folder photos with 3, 10 and 12 images, of which two are not readable; the current folder above it.

    All pixels of image i of class k are 50 k + i.
    """
    for k, (name, count) in enumerate(zip(CLASSES, (3, 10, 12), strict=True)):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(count):
            (tmp_path / "photos" / name / f"{i}.png").write_bytes(grey(50 * k + i))
    (tmp_path / "photos" / "dog" / "empty.png").write_bytes(b"")
    (tmp_path / "photos" / "cat" / "large.png").write_bytes(grey(255, 16))
    (tmp_path / "photos" / "notes.txt").write_text("hello")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "photos"


def levels_of(png, rows, columns, side=SIDE):
    """Grey level of each cell of a sheet; every cell must have one level."""
    picture = np.asarray(Image.open(io.BytesIO(png)))
    scale = max(1, 64 // side) * side
    assert picture.shape == (rows * (scale + 1) - 1, columns * (scale + 1) - 1)
    levels = np.zeros((rows, columns), dtype=int)
    for row in range(rows):
        for column in range(columns):
            top, left = row * (scale + 1), column * (scale + 1)
            cell = picture[top : top + scale, left : left + scale]
            assert cell.min() == cell.max()
            levels[row, column] = cell[0, 0]
    return levels


def test_what_would_be_made_of_a_folder(folder, tmp_path, capsys):
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert main(["inspect", "folder:photos"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        f"source    folder:{folder}: 27 inputs, 27 taken (train 19, val 3, test 5)",
        "images    1x8x8, 256 levels, 3 classes; sampled 26: 0 RGB, 26 grey; 25 of 8x8, 1 of 16x16; "
        "1 unreadable, the first an empty file",
        "splits    by a hash of the name: val 0.1, test 0.1",
        "passed    1 text files (.txt); the first is notes.txt",
        "decided   8x8 pixels: 25 of 26 sampled images have this size, others (1 of 16x16) are rejected; "
        "data.resize=fit, crop or pad scales them",
        "class     0 (bird): 3 (train 2, val 0, test 1)",
        "class     1 (cat): 11 (train 9, val 1, test 1)",
        "class     2 (dog): 13 (train 8, val 2, test 3)",
        "refused   folder:photos: 1 of 26 sampled images are not 8x8 (1 of 16x16), more than "
        "data.max_quarantined=0.01 allows; set data.resize to fit, crop or pad, or data.image_size to "
        "another size",
        f"sheet     {tmp_path}/contact-sheet.png: 19 images of all splits, one row per class, 0 to 2",
    ]
    # Eight images of each class or all of them, none of another class; rejected ones are left out.
    levels = levels_of((tmp_path / "contact-sheet.png").read_bytes(), 3, 8)
    assert sorted(levels[0, :3]) == [0, 1, 2]
    assert (levels[0, 3:] == SHEET_BACKGROUND).all()
    for k, count in ((1, 10), (2, 12)):
        assert len({*levels[k]} & {50 * k + i for i in range(count)}) == 8
    # Nothing else is written.
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    assert {path.name for path in tmp_path.iterdir()} == {"photos", "contact-sheet.png"}


def test_other_settings_and_json(folder, tmp_path, capsys):
    words = ["--set", "data.resize=fit", "--set", "data.image_size=4", "--json"]
    assert main(["inspect", "folder:photos", "--out", "sheets/a.png", *words]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (result["stage"], result["status"]) == ("inspect", "done")
    assert (result["output"], result["fingerprint"]) == ("folder:photos", None)
    assert (result["inputs"], result["refused"]) == (27, None)
    assert result["spec"]["height"] == 4
    assert [(part["name"], sum(part["rows"].values())) for part in result["classes"]] == [
        ("bird", 3),
        ("cat", 11),
        ("dog", 13),
    ]
    assert result["passed_over"] == [
        {"kind": "text files (.txt)", "count": 1, "first": "notes.txt"}
    ]
    assert result["sheet"] == str(tmp_path / "sheets" / "a.png")
    levels = levels_of((tmp_path / "sheets" / "a.png").read_bytes(), 3, 8, side=4)
    assert {*levels[1]} <= {255, *range(50, 60)}


def test_a_recipe_gives_the_settings(folder, capsys):
    words = ["--recipe", "quickstart", "--set", "data.labels=false"]
    assert main(["inspect", "folder:photos", "--json", *words, "--set", "data.resize=pad"]) == 0
    out = capsys.readouterr().out
    assert json.loads(out.splitlines()[-1])["spec"]["classes"] == 0
    assert "contact-sheet.png: 26 images of all splits\n" in out


def test_a_table_reads_one_row_group_per_class(tmp_path, monkeypatch, capsys):
    """Labels are sorted in the first file, so that each class is in other row groups."""
    labels = np.repeat([0, 1, 4], 20)
    rows = [{"image": grey(10 * k + n % 10), "label": int(k)} for n, k in enumerate(labels)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet", row_group_size=4)
    monkeypatch.chdir(tmp_path)
    assert main(["inspect", "parquet:a.parquet"]) == 0
    text = capsys.readouterr().out
    assert "class     4: 20 (train " in text
    assert "class     3: 0 (train 0, val 0, test 0)" in text
    assert "warning   no rows of class 2, class 3: " in text
    assert "contact-sheet.png: 12 images of all splits, one row per class, 0 to 1, 4\n" in text
    levels = levels_of((tmp_path / "contact-sheet.png").read_bytes(), 3, 4)
    assert (levels // 10).tolist() == [[0] * 4, [1] * 4, [4] * 4]


def test_of_many_classes_the_first_are_shown(tmp_path, capsys):
    images = np.repeat(np.arange(100, dtype=np.uint8), 3)[:, None, None] + np.zeros((1, 8, 8), "u1")
    np.savez(tmp_path / "a.npz", images=images, labels=np.arange(300) // 3)
    out = tmp_path / "sheet.png"
    assert main(["inspect", f"npz:{tmp_path}/a.npz", "--out", str(out)]) == 0
    assert (
        f"{out}: 60 images of all splits, one row per class, 0 to 19\n" in capsys.readouterr().out
    )
    assert levels_of(out.read_bytes(), 20, 3).tolist() == [[k] * 3 for k in range(20)]


def test_no_image_can_be_used(tmp_path, capsys):
    (tmp_path / "a.png").write_bytes(b"")
    words = ["--set", "data.image_size=8", "--set", "data.channels=1"]
    out = tmp_path / "sheet.png"
    assert main(["inspect", f"folder:{tmp_path}", "--out", str(out), *words]) == 0
    assert "sheet     none: no sampled image can be used" in capsys.readouterr().out
    assert not out.exists()


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("photos/1.jpg", "genmod inspect folder:{}"),
        ("tars/train-0.tar", "genmod inspect webdataset:{}"),
        ("part-0.parquet", "genmod inspect parquet:{}"),
        ("arrays.npz", "genmod inspect npz:{}/arrays.npz"),
        ("train-images-idx3-ubyte.gz", "genmod inspect idx:{}"),
        ("notes.txt", "create it first: genmod shard"),
    ],
)
def test_files_without_a_dataset_are_named_as_a_source(tmp_path, capsys, name, advice):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"x")
    assert main(["inspect", str(tmp_path)]) == 2
    message = capsys.readouterr().err.splitlines()[0]
    assert message.startswith(f"genmod: error: no dataset at {tmp_path}")
    assert message.endswith(advice.format(tmp_path))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("fodler:photos",), "'fodler' is no kind of source; did you mean 'folder'?"),
        (("folder:nowhere",), "nowhere: no such folder"),
        (("folder:photos", "--split", "val"), "--split is for datasets"),
        (("folder:photos", "--set", "train.batch=3"), "--set changes keys of data only"),
        (("folder:photos", "--set", "data.resiez=fit"), "data.resiez"),
        (("photos", "--set", "data.resize=fit"), "photos is none; leave them out"),
        (("folder:photos", "--set", "data.splits=source"), "data.splits is source, but"),
    ],
)
def test_what_is_refused(folder, tmp_path, capsys, words, says):
    assert main(["inspect", *words]) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "contact-sheet.png").exists()


def test_names_from_outside_are_printed_without_control_characters(folder, capsys):
    (folder / "notes.txt").rename(folder / "no\x1b[2Jtes.txt")
    assert main(["inspect", "folder:photos", "--json"]) == 0
    out = capsys.readouterr().out
    assert "passed    1 text files (.txt); the first is no\\x1b[2Jtes.txt\n" in out
    assert "\x1b" not in out
