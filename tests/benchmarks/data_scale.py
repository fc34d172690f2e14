"""How the data plane grows: cost per sample from 10 thousand to 10 million, and opening a billion.

The big datasets are synthetic manifests whose shards all name one real tar and index of 10,000 samples, so
index, order, reading and decoding are real while the disk holds one shard. Manifests of a billion have shards
of 100,000 and are opened by a fresh process, whose peak memory counts everything, torch and pyarrow included.
A folder of a million files, links to one image per class, is previewed as ``genmod inspect folder:...`` does.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from genmod.config import fingerprint
from genmod.data.format.codecs import Codec
from genmod.data.format.shards import EncodedRows, pack_shard
from genmod.data.order.row_order import RankSlice, UniformOrder
from genmod.data.reading.reader import RowReader
from genmod.data.reading.training_stream import read_chunks
from genmod.manifest import (
    DatasetManifest,
    ImageSpec,
    ShardEntry,
    StoredShard,
    dataset_metadata,
    publish,
)
from tests.benchmarks._data_sets import pin

SPEC = ImageSpec(channels=1, height=28, width=28, classes=10)
SHARD_ROWS, BATCH, BATCHES, GOAL = 10_000, 256, 40, "goal: at most"
GROWTH, OPENED, WARM_UP = (10**4, 10**5, 10**6, 10**7), (10**6, 10**8, 10**9), 63
FILES, CLASSES = 10**6, 100
QUICK = {
    "GROWTH": (10**4,), "OPENED": (10**6,), "BATCHES": 1, "WARM_UP": 1, "FILES": 200,
}  # fmt: skip

PREVIEW = r"""
import json, re, sys, time
from pathlib import Path
from genmod.data.sharding.preview import preview
from genmod.data.sources.config import DataConfig
start_s = time.process_time()
census = preview(DataConfig(source=sys.argv[1])).census
spent_s = time.process_time() - start_s
peak = int(re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())[1]) / 1024
print(json.dumps({"inputs": census.inputs, "preview_s": spent_s, "peak_mb": peak}))
"""

OPEN = r"""
import json, re, sys, time
from pathlib import Path
import numpy as np
from genmod.data.order.row_order import WindowOrder
from genmod.data.reading.reader import open_dataset
from genmod.data.reading.row_index import RowIndex
start_s = time.process_time()
manifest = open_dataset(sys.argv[1])
shards = manifest.stored(sys.argv[1], "train")
index = RowIndex(manifest.spec, shards)
order = WindowOrder([shard.rows for shard in shards], 8, 0)
order.rows_at(index.rows // 2 + np.arange(256))
spent_s = time.process_time() - start_s
peak = int(re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())[1]) / 1024  # not the parent's
print(json.dumps({"rows": index.rows, "open_s": spent_s, "peak_mb": peak}))
"""


def bench() -> list[dict[str, Any]]:
    pin()
    with tempfile.TemporaryDirectory() as scratch:
        shard = _shard(scratch)
        rows = _growth(scratch, shard)
        for total in OPENED:
            rows += _opening(Path(scratch) / f"open-{total}", shard, total)
        rows += _previewing(Path(scratch) / "images")
    return rows


def _shard(root: str) -> ShardEntry:
    codec, rng = Codec(SPEC), np.random.default_rng(0)
    made = rng.integers(0, 256, (64, 28, 28, 1)) * (rng.random((64, 28, 28, 1)) < 0.4)
    blobs = [codec.encode(image) for image in made.astype(np.uint8)]
    rows = range(SHARD_ROWS)
    keys, images = [f"{i:08d}" for i in rows], [blobs[i % 64] for i in rows]
    samples = EncodedRows(keys, rows, images, [i % 10 for i in rows])
    return pack_shard(root, "train-000000", "train", samples)


def _row(name: str, unit: str, ours: float, peer: float, peer_name: str) -> dict[str, Any]:
    return {
        "name": name, "unit": unit, "ours": ours, "peer": peer, "peer_name": peer_name,
        "ratio": peer / max(ours, 1e-9),
    }  # fmt: skip


def _growth(root: str, shard: ShardEntry) -> list[dict[str, Any]]:
    """Order, index, read and decode of uniformly shuffled rows, once the index is in memory."""
    found, first = [], 0.0
    for total in GROWTH:
        reader = RowReader(SPEC, [StoredShard(shard, root)] * (total // SHARD_ROWS))
        start_s = time.process_time()
        reader.find(np.arange(0, total, SHARD_ROWS))
        loading_us = (time.process_time() - start_s) / total * 1e6
        stream = read_chunks(reader, UniformOrder(total, 0), RankSlice(BATCH, 0, 1), 0)
        for _ in range(WARM_UP):  # until order is computed in full pieces
            next(stream)
        start_s = time.process_time()
        for _ in range(BATCHES):
            next(stream)
        us = (time.process_time() - start_s) / (BATCHES * BATCH) * 1e6
        first = first or us
        reader.close()
        name = f"{total:,} samples"
        found.append(_row(f"{name}: read, shuffled", "CPU us/image", us, first, "10,000 samples"))
        found.append(_row(f"{name}: load the index, once", "CPU us/row", loading_us, 1.0, GOAL))
    return found


def _opening(folder: Path, shard: ShardEntry, total: int) -> list[dict[str, Any]]:
    per_shard = 100_000
    shards = tuple(
        ShardEntry(
            split="train",
            rows=per_shard,
            tar=shard.tar.model_copy(
                update={"path": f"train-{k:06d}.tar", "sha256": fingerprint(k)}
            ),
            index=shard.index.model_copy(update={"path": f"train-{k:06d}.idx.parquet"}),
        )
        for k in range(total // per_shard)
    )
    publish(
        str(folder),
        DatasetManifest(
            fingerprint="bench", spec=SPEC, shards=shards, metadata=dataset_metadata({})
        ),
    )
    words = [sys.executable, "-c", OPEN, str(folder)]
    result = json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
    assert result["rows"] == total
    name = f"{total:,} samples in {len(shards):,} shards"
    return [
        _row(f"{name}: open, to the first rows", "CPU s", result["open_s"], 2.0, GOAL),
        _row(f"{name}: peak memory", "MB", result["peak_mb"], 500.0, GOAL),
    ]


def _previewing(folder: Path) -> list[dict[str, Any]]:
    """List a folder of classes, without its content, and sample its images."""
    image = Codec(SPEC).encode(np.full((28, 28, 1), 99, np.uint8))
    for k in range(CLASSES):
        first = folder / f"class{k}" / "0.png"
        first.parent.mkdir(parents=True)
        first.write_bytes(image)
        for number in range(1, FILES // CLASSES):
            os.link(first, first.with_name(f"{number}.png"))
    words = [sys.executable, "-c", PREVIEW, f"folder:{folder}"]
    result = json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
    assert result["inputs"] == FILES
    return [
        _row(f"inspect a source of {FILES:,} files", "CPU s", result["preview_s"], 60.0, GOAL),
        _row(
            f"inspect a source of {FILES:,} files: peak memory",
            "MB",
            result["peak_mb"],
            500.0,
            GOAL,
        ),
    ]
