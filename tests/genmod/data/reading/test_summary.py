"""The summary of a dataset matches its contents; the contact sheet shows its images."""

import io

import numpy as np
import pytest
from PIL import Image

from genmod import storage
from genmod.data.format.image_grid import SHEET_BACKGROUND
from genmod.data.format.shards import Row
from genmod.data.reading.reader import split_reader
from genmod.data.reading.summary import (
    SHEET_COLUMNS,
    SHEET_ROWS,
    contact_sheet,
    dataset_summary,
)
from genmod.errors import ConfigError
from genmod.manifest import SPLITS, ImageSpec
from tests.genmod.data.builders import write_dataset


def cells_of(sheet, side, scale, columns):
    """The images of a sheet, (rows, columns, side, side), scaled back."""
    picture = np.asarray(Image.open(io.BytesIO(sheet.png)))
    step = side * scale + 1
    rows = (picture.shape[0] + 1) // step
    assert (picture.shape[1] + 1) // step == columns
    whole = np.zeros((rows * step, columns * step), np.uint8)
    whole[: picture.shape[0], : picture.shape[1]] = picture
    cells = whole.reshape(rows, step, columns, step).transpose(0, 2, 1, 3)
    return cells[:, :, : side * scale : scale, : side * scale : scale]


def test_numbers_are_those_of_the_images(dataset):
    root, manifest = dataset
    summary = dataset_summary(root, manifest)
    assert summary["rows"] == 100
    assert summary["spec"] == {"channels": 1, "height": 6, "width": 6, "classes": 3, "levels": 256}
    assert set(summary["splits"]) == {s for s in SPLITS if manifest.rows(s)}
    assert summary["size_bytes"] == sum(
        storage.size_bytes(f"{root}/{name}")
        for name in storage.list_names(root)
        if name.endswith((".tar", ".idx.parquet"))
    )
    for split, values in summary["splits"].items():
        reader = split_reader(root, manifest, split)
        pixels = reader.pixels(np.arange(len(reader))).astype(np.float64)
        assert values["rows"] == len(reader)
        assert (
            values["rows_by_class"]
            == np.bincount(reader.find(np.arange(len(reader))).label_N, minlength=3).tolist()
        )
        assert values["pixel_mean_C"] == pytest.approx([pixels.mean()])
        assert values["pixel_std_C"] == pytest.approx([pixels.std()])
        assert values["rows_per_shard"][1] <= 16
    assert summary["rejected"] == 0
    assert summary["reasons"] == {}


def test_rejected_inputs_are_counted_by_reason(tmp_path, images, build):
    pixels, _ = images(8)
    for i in range(8):
        Image.fromarray(pixels[i]).save(tmp_path / f"{i}.png")
    for i in range(3):
        (tmp_path / f"empty{i}.png").write_bytes(b"")
    root = str(tmp_path / "out")
    manifest = build(root, source=f"folder:{tmp_path}", max_quarantined=0.5)
    summary = dataset_summary(root, manifest)
    assert summary["rejected"] == 3
    assert summary["reasons"] == {"an empty file": 3}


def test_the_sheet_has_a_row_of_images_for_each_class(dataset):
    root, manifest = dataset
    sheet = contact_sheet(root, manifest)
    assert (sheet.split, sheet.classes, sheet.images) == ("train", 3, 3 * SHEET_COLUMNS)
    reader = split_reader(root, manifest, "train")
    pixels = reader.pixels(np.arange(len(reader)))[:, 0]
    cells = cells_of(sheet, 6, 10, SHEET_COLUMNS)
    for k in range(3):
        own = {
            image.tobytes() for image in pixels[reader.find(np.arange(len(reader))).label_N == k]
        }
        assert len({image.tobytes() for image in cells[k]} & own) == SHEET_COLUMNS
    assert contact_sheet(root, manifest).png == sheet.png
    assert contact_sheet(root, manifest, "val").png != sheet.png


def grey_levels(root, count, side, labels=None, rows_per_shard=10):
    """Write a dataset in which every pixel of image i is i."""
    classes = 0 if labels is None else max(labels) + 1
    spec = ImageSpec(channels=3, height=side, width=2 * side, classes=classes)
    rows = [
        Row(f"k{i}", i, np.full((side, 2 * side, 3), i, np.uint8), labels and labels[i])
        for i in range(count)
    ]
    return write_dataset(root, spec, rows, rows_per_shard)


def test_images_without_labels_are_shown_in_a_shuffled_order_from_all_shards(tmp_path):
    root = str(tmp_path)
    sheet = contact_sheet(root, grey_levels(root, 200, 4))
    assert (sheet.classes, sheet.images) == (0, SHEET_COLUMNS * SHEET_ROWS)
    picture = np.asarray(Image.open(io.BytesIO(sheet.png)))[:: 4 * 8 + 1, :: 8 * 8 + 1, 0]
    assert picture.shape == (SHEET_ROWS, SHEET_COLUMNS)
    assert len(np.unique(picture)) == SHEET_COLUMNS * SHEET_ROWS
    assert len(np.unique(picture // 10)) >= 16
    small = str(tmp_path / "small")
    assert contact_sheet(small, grey_levels(small, 3, 4)).images == 3


def test_large_images_become_small_and_rare_classes_are_found(tmp_path):
    root, labels = str(tmp_path), [0] * 119 + [1]
    sheet = contact_sheet(root, grey_levels(root, 120, 90, labels, rows_per_shard=4))
    assert sheet.images == SHEET_COLUMNS + 1
    picture = np.asarray(Image.open(io.BytesIO(sheet.png)))
    assert picture.shape == (2 * 33 - 1, SHEET_COLUMNS * 65 - 1, 3)
    assert (picture[33:, :64] == 119).all()
    assert (picture[33:, 65:] == SHEET_BACKGROUND).all()


def test_a_split_without_rows(tmp_path):
    root = str(tmp_path)
    manifest = grey_levels(root, 5, 4)
    with pytest.raises(ConfigError, match="the val split has no rows; splits with rows: train"):
        contact_sheet(root, manifest, "val")
    with pytest.raises(ConfigError, match="splits with rows: none"):
        contact_sheet(root, manifest.model_copy(update={"shards": ()}))
