"""``data.labels=false``: what is unclear about labels does not matter, and images and splits are the same."""

import struct

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from genmod.data.sharding.plan import make_plan
from genmod.data.sources.config import DataConfig, SourceOptions
from genmod.data.sources.registry import open_source
from genmod.data.sources.source import NO_LABEL, Scan
from genmod.errors import ConfigError, DataError
from tests.genmod.data.builders import encode, write_tar

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 8, 8), dtype=np.uint8)
FILES = [encode(pixels) for pixels in PIXELS]


def write_folder(folder, names):
    for name, data in zip(names, FILES, strict=False):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def several_columns(root):
    pq.write_table(
        pa.table({"image": FILES, "fine_label": [0] * 12, "x_label": [1] * 12}), root / "a.parquet"
    )
    return f"parquet:{root}/a.parquet"


def several_arrays(root):
    np.savez(root / "a.npz", images=PIXELS, a=np.arange(12), b=np.arange(12))
    return f"npz:{root}/a.npz"


def names_and_numbers(root):
    members = [(f"{n}.png", data) for n, data in enumerate(FILES)]
    write_tar(root / "a.tar", [*members, ("0.cls", b"cat"), ("1.cls", b"1")])
    return f"webdataset:{root}/a.tar"


def several_tables(root):
    write_folder(root, [f"{n}.png" for n in range(12)])
    for name in ("a", "b"):
        (root / f"{name}.csv").write_text("file_name,label\n0.png,cat\n")
    return f"folder:{root}"


def class_or_split(root):
    write_folder(root, [f"{'cat' if n % 2 else 'test'}/{n}.png" for n in range(12)])
    return f"folder:{root}"


def table_against_folders(root):
    write_folder(root, [f"{'cat' if n % 2 else 'dog'}/{n}.png" for n in range(12)])
    (root / "metadata.csv").write_text("file_name,label\ncat/1.png,ant\ndog/2.png,bee\n")
    return f"folder:{root}"


def several_labels_in_idx(root):
    head = struct.pack(">4B3I", 0, 0, 8, 3, *PIXELS.shape)
    (root / "train-images-idx3-ubyte").write_bytes(head + PIXELS.tobytes())
    (root / "train-labels-idx2-ubyte").write_bytes(
        struct.pack(">4B2I", 0, 0, 8, 2, 12, 2) + bytes(24)
    )
    return f"idx:{root}"


@pytest.mark.parametrize(
    "write",
    [several_columns, several_arrays, names_and_numbers, several_tables, class_or_split,
     table_against_folders, several_labels_in_idx],
)  # fmt: skip
def test_unclear_labels_do_not_matter(tmp_path, write):
    source = write(tmp_path)
    with pytest.raises((ConfigError, DataError)):
        make_plan(DataConfig(source=source), 0)
    plan = make_plan(DataConfig(source=source, labels=False), 0)
    assert (plan.spec.classes, plan.class_names, plan.rows) == (0, (), 12)
    assert not plan.rejected
    assert not any("label" in text and "without" not in text for text in plan.census.decisions)


def test_tables_still_declare_splits(tmp_path):
    write_folder(tmp_path, [f"{n}.png" for n in range(12)])
    for name, numbers in (("train", range(8)), ("test", range(8, 12))):
        rows = "".join(f"{n}.png,{n % 2}\n" for n in numbers)
        (tmp_path / f"{name}.csv").write_text(f"file_name,label\n{rows}")
    plan = make_plan(DataConfig(source=f"folder:{tmp_path}", labels=False, splits="source"), 0)
    assert plan.rows_by_split == {"train": 8, "val": 0, "test": 4}
    assert plan.spec.classes == 0


def test_a_label_is_not_chosen_and_unwanted():
    with pytest.raises(ValueError, match="labels=false contradicts label"):
        DataConfig(source="folder:/x", labels=False, label="folder")


def test_labels_of_a_builtin_source_are_not_read():
    (label,) = {
        entry.label
        for entry in open_source("builtin:digits", SourceOptions(labels=False)).entries(Scan())
    }
    assert label == NO_LABEL
