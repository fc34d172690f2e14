import io
import shutil
from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from genmod import storage
from genmod.data.format.shards import EncodedRows, pack_shard
from genmod.data.order.row_order import UniformOrder
from genmod.data.reading import row_index as rowindex
from genmod.data.reading import tar_files as tarfiles
from genmod.data.reading.reader import (
    RowReader,
    iter_split,
    open_dataset,
    read_rows,
    shard_reader,
    split_reader,
)
from genmod.data.reading.training_stream import TrainingStream
from genmod.errors import ConfigError, DataError
from genmod.manifest import SPLITS, ImageSpec, StoredShard


def stream(dataset, batches, **options):
    root, manifest = dataset
    with TrainingStream(root, manifest, "train", **options) as source:
        return list(islice(source, batches))


def joined(batches):
    batches = list(batches)
    pixels = torch.cat([b.pixels_BCHW for b in batches])
    return pixels, torch.cat([b.labels_B for b in batches]), torch.cat([b.index_B for b in batches])


def test_all_rows_are_the_source_with_labels(dataset, images):
    root, manifest = dataset
    pixels, labels = images(100)
    for split in SPLITS:
        reader = split_reader(root, manifest, split)
        for key, image, label in zip(
            reader.keys(), *joined(iter_split(root, manifest, split, 7))[:2], strict=True
        ):
            assert np.array_equal(image[0].numpy(), pixels[int(key)])
            assert label == labels[int(key)]


def test_the_batches_of_a_split_are_every_row_once(dataset):
    root, manifest = dataset
    rows = manifest.rows("train")
    batches = list(iter_split(root, manifest, "train", 16))
    assert [len(b) for b in batches] == [16] * (rows // 16) + [rows % 16] * bool(rows % 16)
    assert joined(batches)[2].tolist() == list(range(rows))
    part = list(iter_split(root, manifest, "train", 16, start=5, stop=30))
    assert joined(part)[2].tolist() == list(range(5, 30))
    by_shard = [
        b for s in manifest.stored(root, "train") for b in shard_reader(manifest, s).batches(9)
    ]
    assert torch.equal(joined(by_shard)[0], joined(batches)[0])


def test_fixed_rows(dataset):
    root, manifest = dataset
    everything = joined(iter_split(root, manifest, "train", 50))
    batch = read_rows(root, manifest, "train", [40, 3, 3, 17])
    assert torch.equal(batch.pixels_BCHW, everything[0][[40, 3, 3, 17]])
    assert batch.index_B.tolist() == [40, 3, 3, 17]
    with pytest.raises(DataError, match="has rows 0 to"):
        read_rows(root, manifest, "val", [1000])


def test_the_stream_is_the_order(dataset):
    root, manifest = dataset
    pixels, labels, index = joined(stream(dataset, 12, global_batch=20, seed=5))
    assert index.tolist() == list(range(240))
    row_N = UniformOrder(manifest.rows("train"), 5).rows_at(np.arange(240))
    expected = split_reader(root, manifest, "train").read(row_N)
    assert torch.equal(pixels, expected.pixels_BCHW)
    assert torch.equal(labels, expected.labels_B)


@settings(
    max_examples=5,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.data())
def test_any_world_and_any_resume_point_give_the_same_ids(dataset, data):
    """Batches of 60; the run is cut at one position and goes on with another number of ranks."""
    cut = data.draw(st.integers(0, 4))
    before, after = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 5))
    if 60 % before or 60 % after:
        return
    straight = joined(stream(dataset, 5, global_batch=60, seed=1))

    def ranks(size, start, count):
        parts = [
            stream(dataset, count, global_batch=60, rank=r, size=size, seed=1, start_nimg=start)
            for r in range(size)
        ]
        return [batch for together in zip(*parts, strict=True) for batch in together]

    resumed = ranks(before, 0, cut) + ranks(after, 60 * cut, 5 - cut)
    for actual, expected in zip(joined(resumed), straight, strict=True):
        assert torch.equal(actual, expected)


def test_more_ranks_than_shards_and_than_rows_of_a_shard(dataset):
    parts = [
        stream(dataset, 2, global_batch=64, rank=rank, size=64, seed=1)[1] for rank in (0, 13, 63)
    ]
    whole = stream(dataset, 2, global_batch=64, seed=1)[1]
    for rank, part in zip((0, 13, 63), parts, strict=True):
        assert torch.equal(part.pixels_BCHW, whole.pixels_BCHW[rank : rank + 1])


def test_a_far_position_costs_no_more_than_the_first(dataset):
    (batch,) = stream(dataset, 1, global_batch=8, start_nimg=10**15)
    assert batch.index_B.tolist() == list(range(10**15, 10**15 + 8))


def test_an_empty_split_and_no_dataset(dataset, tmp_path):
    root, manifest = dataset
    bare = manifest.model_copy(update={"shards": manifest.of_split("train")})
    with pytest.raises(ConfigError, match="val split is empty"):
        TrainingStream(root, bare, "val", global_batch=4)
    assert list(iter_split(root, bare, "val", 4)) == []
    with pytest.raises(ConfigError, match="create it first: genmod shard"):
        open_dataset(str(tmp_path))


@pytest.mark.parametrize("count", [0, 1, 40, 1000])
def test_cached_pixels_are_the_same_pixels(dataset, count):
    manifest = dataset[1]
    epochs = 3 * manifest.rows("train") // 16
    plain = joined(stream(dataset, epochs, global_batch=16, decoded_bytes=0))
    kept = stream(dataset, epochs, global_batch=16, decoded_bytes=count * manifest.spec.dims)
    for actual, expected in zip(joined(kept), plain, strict=True):
        assert torch.equal(actual, expected)


def test_later_epochs_read_no_tar(dataset, tmp_path):
    root, manifest = dataset
    shutil.copytree(root, tmp_path / "copy")
    reader = RowReader(manifest.spec, manifest.stored(str(tmp_path / "copy"), "train"), 1 << 20)
    row_N = np.arange(len(reader))
    before = reader.read(row_N)
    reader.close()
    for tar in (tmp_path / "copy").glob("*.tar"):
        tar.unlink()
    assert torch.equal(reader.read(row_N[::-1].copy()).pixels_BCHW, before.pixels_BCHW.flip(0))


@settings(
    deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(st.data())
def test_an_index_that_does_not_fit_in_memory_finds_the_same(dataset, data):
    """Rows in any order, while the ring fits a few shards or one."""
    root, manifest = dataset
    shards = manifest.stored(root, "train")
    whole = RowReader(manifest.spec, shards)
    expected = whole.find(np.arange(len(whole)))
    rows = st.lists(st.integers(0, len(whole) - 1), max_size=40)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rowindex, "INDEX_CACHE_ROWS", data.draw(st.integers(1, len(whole))))
        small = RowReader(manifest.spec, shards)
    for _ in range(4):
        row_N = np.array(data.draw(rows), dtype=np.int64)
        for found_N, all_N in zip(small.find(row_N), expected, strict=True):
            assert np.array_equal(found_N, all_N[row_N])


def test_an_order_that_thrashes_the_index_cache_is_a_warning(dataset, monkeypatch, caplog):
    root, manifest = dataset
    monkeypatch.setattr(rowindex, "INDEX_CACHE_ROWS", 1)
    reader = RowReader(manifest.spec, manifest.stored(root, "train"))
    assert len(manifest.of_split("train")) > 1
    for _ in range(300):
        reader.find(np.array([0, len(reader) - 1]))
    assert [r.message for r in caplog.records if "train.order.shuffle_window_shards" in r.message]


def test_jpegs_packed_as_they_are_are_read(tmp_path, images):
    spec, blobs = ImageSpec(channels=1, height=8, width=8, classes=3), []
    smooth = np.add.outer(np.arange(8), np.arange(8)).astype(np.uint8) * 15
    for number in range(5):
        stream = io.BytesIO()
        Image.fromarray(smooth + number).save(stream, "JPEG", quality=98)
        blobs.append(stream.getvalue())
    keys = [f"k{number}" for number in range(5)]
    samples = EncodedRows(keys, range(0, 15, 3), blobs, [0, 1, 2, 0, 1])
    shard = pack_shard(str(tmp_path), "train-000000", "train", samples, ".jpg")
    batch = RowReader(spec, [StoredShard(shard, str(tmp_path))]).read(np.arange(5))
    assert batch.index_B.tolist() == [0, 3, 6, 9, 12]
    assert batch.labels_B.tolist() == [0, 1, 2, 0, 1]
    for number, image in enumerate(batch.pixels_BCHW[:, 0].numpy()):
        assert np.abs(image.astype(int) - smooth - number).max() <= 6
    twice = EncodedRows(keys * 2, range(10), blobs * 2)
    with pytest.raises(DataError, match="unique keys"):
        pack_shard(str(tmp_path), "train-000001", "train", twice, ".jpg")


@pytest.fixture
def in_memory(dataset):
    """A copy of the dataset in fsspec's memory, which is read as a remote store is."""
    root, _ = dataset
    for name in storage.list_names(root):
        if not name.startswith("receipts"):
            storage.write_bytes(f"memory://reader/{name}", storage.read_bytes(f"{root}/{name}"))
    yield "memory://reader"
    storage.remove("memory://reader")


@pytest.mark.parametrize("cache_bytes", [1 << 30, 0])
def test_a_remote_dataset_reads_the_same(dataset, in_memory, cache_bytes, monkeypatch):
    monkeypatch.setattr(tarfiles, "MEMORY_CACHE_BYTES", cache_bytes)
    remote = (in_memory, open_dataset(in_memory))
    for actual, expected in zip(
        joined(stream(remote, 9, global_batch=32)),
        joined(stream(dataset, 9, global_batch=32)),
        strict=True,
    ):
        assert torch.equal(actual, expected)


def corrupt(in_memory, manifest, change):
    stored = manifest.stored(in_memory, "train")[1]
    shard, url = stored.entry, stored.tar_url
    data = bytearray(storage.read_bytes(url))
    reader = shard_reader(manifest, stored)
    storage.write_bytes(url, bytes(change(data, int(reader.find(np.array([4])).offset_N[0]))))
    return shard, reader.keys()[4]


def flip(data, offset):
    data[offset + 45] ^= 1
    return data


def test_a_corrupt_member_is_named_to_the_consumer(dataset, in_memory, check_digests):
    manifest = dataset[1]
    shard, key = corrupt(in_memory, manifest, flip)
    with pytest.raises(DataError, match=f"{shard.tar.path} does not match its digest"):
        list(iter_split(in_memory, manifest, "train", 16))
    check_digests(False)
    with pytest.raises(DataError, match=f"{shard.tar.path}: member {key} does not match"):
        list(iter_split(in_memory, manifest, "train", 16))
    with (
        TrainingStream(in_memory, manifest, "train", global_batch=16) as source,
        pytest.raises(DataError, match=key),
    ):
        list(islice(source, 20))


def test_a_truncated_or_missing_tar(dataset, in_memory):
    manifest = dataset[1]
    shard, _ = corrupt(in_memory, manifest, lambda data, offset: data[: offset + 10])
    with pytest.raises(DataError, match=rf"{shard.tar.path} .*truncated"):
        list(iter_split(in_memory, manifest, "train", 16))
    storage.remove(f"{in_memory}/{shard.tar.path}")
    with pytest.raises(DataError, match=f"{shard.tar.path} is missing"):
        list(iter_split(in_memory, manifest, "train", 16))


def test_files_are_closed(dataset):
    import os

    before = len(os.listdir("/proc/self/fd"))
    stream(dataset, 10, global_batch=32)
    list(iter_split(*dataset, "val", 3))
    assert len(os.listdir("/proc/self/fd")) <= before + 1
