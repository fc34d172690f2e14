import io
import json
import subprocess

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from genmod import units
from genmod.data.format.shards import Row, write_shard
from genmod.errors import DataError
from genmod.manifest import ImageSpec, RowStats, dataset_metadata, find_problems

SPEC = ImageSpec(channels=3, height=4, width=5, classes=3)


def rows(count, sidecar=False, seed=0):
    random = np.random.default_rng(seed)
    for number in range(count):
        yield Row(
            key=f"k{number:03d}",
            index=100 + number,
            image_HWC=random.integers(0, 256, (4, 5, 3), dtype=np.uint8),
            label=number % 3,
            sidecar={"seed": 7, "index": number, "draws_from_p": True} if sidecar else None,
        )


def test_the_same_rows_give_the_same_bytes(tmp_path):
    first = write_shard(str(tmp_path / "a"), "train-000000", "train", SPEC, rows(70, True))
    again = write_shard(str(tmp_path / "b"), "train-000000", "train", SPEC, rows(70, True))
    other = write_shard(str(tmp_path / "c"), "train-000000", "train", SPEC, rows(70, True, seed=1))
    assert first == again
    assert first[0].tar.sha256 != other[0].tar.sha256
    assert find_problems(str(tmp_path / "a"), [first[0].tar, first[0].index]) == []


def test_webdataset_reads_the_tars_unaided(tmp_path):
    import webdataset as wds

    write_shard(str(tmp_path), "train-000000", "train", SPEC, rows(10, sidecar=True))
    url = str(tmp_path / "train-000000.tar")
    samples = list(wds.WebDataset(url, shardshuffle=False).decode("rgb8"))
    assert [s["__key__"] for s in samples] == [f"k{n:03d}" for n in range(10)]
    for sample, row in zip(samples, rows(10), strict=True):
        assert np.array_equal(sample["png"], row.image_HWC)
        assert sample["cls"] == row.label
        assert sample["json"] == {"seed": 7, "index": row.index - 100, "draws_from_p": True}


def test_tar_itself_reads_the_tars(tmp_path):
    write_shard(str(tmp_path), "s", "train", SPEC, rows(3))
    done = subprocess.run(
        ["tar", "-tvf", str(tmp_path / "s.tar")], capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    assert [line.split()[-1] for line in done.stdout.splitlines()] == [
        f"k{n:03d}.{end}" for n in range(3) for end in ("png", "cls")
    ]


def test_the_index_points_at_the_images(tmp_path):
    entry, _ = write_shard(str(tmp_path), "s", "val", SPEC, rows(10, sidecar=True))
    data = (tmp_path / "s.tar").read_bytes()
    table = pq.read_table(tmp_path / entry.index.path).to_pylist()
    for line, row in zip(table, rows(10), strict=True):
        blob = data[line["offset"] : line["offset"] + line["bytes"]]
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(blob))), row.image_HWC)
        assert (line["key"], line["index"], line["label"]) == (row.key, row.index, row.label)


def test_statistics_are_the_moments_of_the_pixels(tmp_path):
    everything = list(rows(150))
    parts = [
        write_shard(str(tmp_path), f"s{n}", "train", SPEC, part)[1]
        for n, part in enumerate((everything[:70], everything[70:]))
    ]
    total = sum(parts, RowStats())
    metadata = dataset_metadata({"train": total})
    pixels = np.stack([row.image_HWC for row in everything])
    import torch

    x = units.to_network(torch.from_numpy(pixels), torch.float64).numpy().reshape(-1, 3)
    assert metadata["stats"]["mean"] == pytest.approx(x.mean(0).tolist(), rel=1e-12)
    assert metadata["stats"]["std"] == pytest.approx(x.std(0).tolist(), rel=1e-12)
    assert total.rows_K == (50, 50, 50)
    assert (total.rows, total.next_index) == (150, 250)
    assert json.loads(json.dumps(metadata)) == metadata


@pytest.mark.parametrize(
    "change",
    [
        {"key": "a.b"},
        {"key": "a/b"},
        {"key": ""},
        {"key": "é"},
        {"label": 3},
        {"label": -1},
        {"label": None},
        {"image_HWC": np.zeros((4, 5, 1), np.uint8)},
        {"image_HWC": np.zeros((4, 5, 3), np.float32)},
        {"key": "k000"},
    ],
)
def test_invalid_rows(tmp_path, change):
    good = list(rows(2))
    bad = Row(**({"key": "x", "index": 0, "image_HWC": good[0].image_HWC, "label": 0} | change))
    with pytest.raises(DataError):
        write_shard(str(tmp_path), "s", "train", SPEC, [*good, bad])
    assert list(tmp_path.iterdir()) == []
