"""Fixtures: small datasets, sharded through the whole path."""

import gzip
import struct

import numpy as np
import pytest

from genmod import storage
from genmod.data.format.shards import quarantine_file
from genmod.data.sharding.finish import make_manifest
from genmod.data.sharding.ingest import make_shard
from genmod.data.sharding.plan import make_plan
from genmod.data.sharding.previous_version import load_previous_version
from genmod.data.sources.config import DataConfig
from genmod.manifest import publish


@pytest.fixture(scope="session")
def images():
    """Returns (count, side) -> uint8 images that all differ, and labels."""

    def make(count, side=6, channels=None, classes=3, seed=0):
        shape = (count, side, side) + ((channels,) if channels else ())
        random = np.random.default_rng(seed)
        pixels = random.integers(0, 256, shape, dtype=np.uint8)
        return pixels, random.permutation(np.arange(count) % classes)

    return make


@pytest.fixture(scope="session")
def build():
    """Returns a function that shards a source in this process: (root, data section) -> manifest."""

    def make(root, seed=0, previous=None, previous_root=None, **data):
        version = load_previous_version(str(previous_root), previous) if previous else None
        plan = make_plan(DataConfig(**data), seed, version)
        receipts = [make_shard(plan.job(shard, str(root))) for shard in plan.shards]
        rejected = [*plan.rejected, *(row for receipt in receipts for row in receipt.rejected)]
        return publish(
            str(root),
            make_manifest(plan, str(root), receipts, quarantine_file(str(root), rejected)),
        )

    return make


@pytest.fixture(scope="session")
def write_idx():
    """Returns a function that writes an MNIST-format file."""

    def write(path, values, packed=True):
        head = struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape)
        data = head + values.astype(np.uint8).tobytes()
        path.write_bytes(gzip.compress(data, mtime=0) if packed else data)

    return write


@pytest.fixture(scope="session")
def dataset(tmp_path_factory, images, build):
    """(root, manifest) of 100 labelled images in several shards."""
    folder = tmp_path_factory.mktemp("dataset")
    pixels, labels = images(100)
    np.savez(folder / "source.npz", images=pixels, labels=labels)
    root = str(folder / "data")
    return root, build(root, source=f"npz:{folder}/source.npz", shard_rows=16)


@pytest.fixture
def check_digests():
    """Returns a function that turns the check of digests on or off in this process."""
    yield lambda on: storage.configure(storage.StorageConfig(check_digests=on))
    storage.configure(None)
