"""An index or tar from a shared store: what does not match its digest, or cannot be, is not read."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from genmod import storage
from genmod.config import canonical_json
from genmod.data.format.index import read_keys
from genmod.data.format.shards import ShardReceipt
from genmod.data.format.verify_dataset import dataset_problems
from genmod.data.order.training_order import MixturePart, OrderConfig, make_training_order
from genmod.data.reading.reader import split_reader
from genmod.errors import DataError
from genmod.manifest import (
    DatasetManifest,
    FileEntry,
    RowStats,
)
from genmod.manifest.statistics import network_stats
from genmod.receipts import commit, load_receipt
from tests.builders import write_two_shards


@pytest.fixture
def dataset(tmp_path):
    """(folder, manifest) of 13 rows in two shards."""
    return tmp_path, write_two_shards(str(tmp_path))


def with_index(folder, manifest, table):
    """The manifest after somebody replaced the first shard's index and its digest."""
    path = manifest.shards[0].index.path
    pq.write_table(table, folder / path)
    data = (folder / path).read_bytes()
    index = FileEntry(path=path, size_bytes=len(data), sha256=storage.sha256(data))
    first = manifest.shards[0].model_copy(update={"index": index})
    return manifest.model_copy(update={"shards": (first, *manifest.shards[1:])}).sealed()


def column(table, name, change):
    """The table with the values of a column changed by a function of the list."""
    values = change(table[name].to_pylist())
    at = table.schema.get_field_index(name)
    return table.set_column(
        at, table.schema.field(name), pa.array(values, table.schema.field(name).type)
    )


def put(row, value):
    return lambda values: [*values[:row], value, *values[row + 1 :]]


HOSTILE = {
    "a negative offset": ("offset", put(0, -512)),
    "an offset in the first header": ("offset", put(0, 0)),
    "an offset between blocks": ("offset", put(2, 513)),
    "an offset behind the tar": ("offset", put(6, 1 << 62)),
    "a negative size": ("bytes", put(3, -1)),
    "a size beyond the tar": ("bytes", put(6, 1 << 62)),
    "two images at one place": ("offset", lambda values: [values[1], *values[1:]]),
    "images that overlap": ("bytes", put(0, 4000)),
    "rows in another order": ("offset", lambda values: values[::-1]),
    "a negative index": ("index", put(0, -1)),
    "an index twice": ("index", lambda values: [values[1], *values[1:]]),
    "a huge index": ("index", put(0, 1 << 62)),
    "a label beyond the classes": ("label", put(0, 2)),
    "a negative label": ("label", put(0, -1)),
    "no label": ("label", put(0, None)),
}
KEYS = {
    "a key twice": ("key", lambda values: [values[1], *values[1:]]),
    "a key with a path": ("key", put(0, "../x")),
    "a key with an escape": ("key", put(0, "\x1b[2J")),
    "an empty key": ("key", put(0, "")),
    "a long key": ("key", put(0, "x" * 10_000)),
}


@pytest.mark.parametrize("name", [*HOSTILE, *KEYS])
def test_rows_that_cannot_be_are_refused_and_found(dataset, name):
    folder, manifest = dataset
    table = pq.read_table(folder / manifest.shards[0].index.path)
    changed = with_index(folder, manifest, column(table, *(HOSTILE | KEYS)[name]))
    (first, _) = changed.stored(str(folder))
    reader = split_reader(str(folder), changed, "train")
    with pytest.raises(DataError, match=r"train-000000\.idx\.parquet") as error:
        read_keys(first) if name in KEYS else reader.read(np.arange(13))
    assert "\n" not in str(error.value)
    assert "\x1b" not in str(error.value)
    problems = list(dataset_problems(str(folder), changed))
    assert problems
    assert all("\n" not in problem and "\x1b" not in problem for problem in problems)


def test_an_index_with_more_rows_than_its_manifest_is_not_decoded(dataset):
    folder, manifest = dataset
    rows = 3_000_000
    schema = pq.read_schema(folder / manifest.shards[0].index.path)
    table = pa.table(
        {
            field.name: pa.repeat(pa.scalar(1, pa.int64()).cast(field.type), rows)
            for field in schema
        },
        schema=schema,
    )
    changed = with_index(folder, manifest, table)
    assert changed.shards[0].index.size_bytes < 1 << 20
    with pytest.raises(DataError, match="3000000 rows, expected 7"):
        split_reader(str(folder), changed, "train").read(np.arange(3))


@pytest.mark.parametrize("file", ["tar", "index"])
def test_training_reads_nothing_that_was_changed(dataset, file, check_digests):
    """A bit of a label file, which no checksum of an image covers; a checksum in the index."""
    folder, manifest = dataset
    first = manifest.shards[0]
    if file == "tar":
        data = bytearray((folder / first.tar.path).read_bytes())
        data[data.index(b"0-0.cls") + 512] ^= 1
        (folder / first.tar.path).write_bytes(data)
    else:
        table = pq.read_table(folder / first.index.path)
        damaged = column(table, "label", lambda values: [1 - value for value in values])
        # With the right size, so that the digest alone is wrong.
        changed = with_index(folder, manifest, damaged).shards[0].index
        index = changed.model_copy(update={"sha256": first.index.sha256})
        first = first.model_copy(update={"index": index})
        manifest = manifest.model_copy(update={"shards": (first, manifest.shards[1])})
    url = getattr(first, file).path
    with pytest.raises(DataError, match=f"{url} does not match its digest"):
        split_reader(str(folder), manifest, "train").read(np.arange(3))
    check_digests(False)
    split_reader(str(folder), manifest, "train").read(np.arange(3))


def test_a_tar_that_is_changed_later_is_checked_again(dataset):
    folder, manifest = dataset
    split_reader(str(folder), manifest, "train").read(np.arange(13))
    tar = folder / manifest.shards[1].tar.path
    data = bytearray(tar.read_bytes())
    data[-1] ^= 1
    tar.write_bytes(data)
    with pytest.raises(DataError, match=f"{tar} does not match its digest"):
        split_reader(str(folder), manifest, "train").read(np.arange(13))


def test_balanced_training_checks_the_indexes_that_it_reads(dataset):
    folder, manifest = dataset
    path = folder / manifest.shards[0].index.path
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    part = MixturePart(str(folder), manifest)
    config = OrderConfig(balance="classes")
    with pytest.raises(DataError, match="does not match its digest"):
        make_training_order([part], "train", config, seed=0, global_batch=4)


def statistics_of(manifest):
    return RowStats.model_validate(manifest.metadata["splits"]["train"])


@pytest.mark.parametrize(
    "change",
    [
        {"pixel_sum_C": lambda value: (value[0] + 1,)},
        {"pixel_square_sum_C": lambda value: (value[0] + 1,)},
        {"rows_K": lambda value: value[::-1]},
        {"next_index": lambda value: value - 1},
    ],
)
def test_statistics_that_do_not_match_the_images_are_found(dataset, change):
    """They may be right in themselves, so only the images tell."""
    folder, manifest = dataset
    stats = statistics_of(manifest)
    ((name, function),) = change.items()
    # An index further up, so that the next one can be stated too low.
    if name == "next_index":
        table = pq.read_table(folder / manifest.shards[0].index.path)
        manifest = with_index(folder, manifest, column(table, "index", lambda v: [*v[:-1], 100]))
        stats = stats.model_copy(update={"next_index": 101})
    assert (name == "next_index") or list(dataset_problems(str(folder), manifest)) == []
    stats = stats.model_copy(update={name: function(getattr(stats, name))})
    metadata = {
        "splits": {"train": stats.model_dump(mode="json")},
        "stats": network_stats(stats),
    }
    changed = DatasetManifest.model_validate(
        manifest.model_copy(update={"metadata": metadata}).model_dump()
    )
    (problem,) = dataset_problems(str(folder), changed)
    assert f"metadata.splits.train.{name} is " in problem


@pytest.mark.parametrize("name", ["key", "index"])
def test_rows_of_two_shards_with_one_key_or_index_are_found(dataset, name):
    folder, manifest = dataset
    table = pq.read_table(folder / manifest.shards[1].index.path)
    again = table[name].to_pylist()[0]
    first = pq.read_table(folder / manifest.shards[0].index.path)
    changed = with_index(folder, manifest, column(first, name, put(0, again)))
    problems = list(dataset_problems(str(folder), changed))
    assert any(f"{name} {again} is also in" in problem for problem in problems)


IMPOSSIBLE = {
    "no pixels": {"pixels": 0},
    "too large a sum": {"pixel_sum_C": (10**9,)},
    "too few squares": {"pixel_square_sum_C": (0,)},
    "sums of no channel": {"pixel_square_sum_C": ()},
    "a negative number of rows": {"rows": -1},
}


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_statistics_that_cannot_be_are_refused_in_receipts_too(dataset, name):
    """Their mean and deviation would be computed before a manifest is made of them."""
    folder, manifest = dataset
    receipt = ShardReceipt(
        fingerprint="f", shard=manifest.shards[0], metadata=statistics_of(manifest)
    )
    commit(str(folder), "good", receipt)
    content = receipt.model_dump(mode="json")
    content["metadata"] |= IMPOSSIBLE[name]
    (folder / "receipts" / "bad.json").write_bytes(canonical_json(content))
    assert load_receipt(ShardReceipt, str(folder), "good", "f") == receipt
    with pytest.raises(DataError, match=r"bad\.json"):
        load_receipt(ShardReceipt, str(folder), "bad", "f")
