"""Shard writer and reader against peers on the same images, in one run on one core: CPU seconds.

Every competitor gets the same bytes and labels and gives the same batches (uint8, B C H W, with labels).
Ours writes tar, index, a CRC per image and SHA-256 of each file, and syncs them to disk; peers write as they
do by default. Shuffles differ in strength: ours and datasets' are over the whole split, webdataset's over a
buffer of 2,000. The sets and the peers' environment: tests/benchmarks/_data_sets.py.
"""

from __future__ import annotations

import io
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyspng
import simplejpeg
import torch
import webdataset as wds
from PIL import Image

from genmod.data.format.codecs import PNG_LEVEL
from genmod.data.format.shards import Row, write_shard
from genmod.data.reading.reader import open_dataset
from genmod.data.reading.training_stream import TrainingStream
from genmod.interface.model import DataStats
from genmod.interface.registry import ModelConfig
from genmod.training.loop import Plan, train
from genmod.training.plan import TrainConfig
from genmod.world import SingleProcess
from pipelines.recipe.recipe import load_recipe
from tests.benchmarks._data_sets import (
    BATCH,
    IMAGES,
    SHARD_ROWS,
    Peers,
    Set,
    compare,
    pin,
    publish_set,
    sets,
)

QUICK = {
    name: value
    for constant, value in {"IMAGES": 256, "SHARD_ROWS": 128, "BATCH": 64}.items()
    for name in (constant, f"_data_sets.{constant}")
} | {"_data_sets.ROUNDS": 1, "WAIT_STEPS": 2, "OPENINGS": 1, "EPOCHS": 1}
WAIT_STEPS, OPENINGS, EPOCHS = 150, 7, 5
SHIPPED, FAST = "webdataset", "webdataset, mtime=0 and a fast decoder"
MTIME0 = "webdataset, mtime=0"
MDS = "streaming's MDSWriter"


def bench() -> list[dict[str, Any]]:
    pin()
    rows: list[dict[str, Any]] = []
    for images in sets():
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            with Peers(folder, images) as peers:
                rows += writing(images, folder, peers)
                rows += reading(images, folder, peers)
            rows += [cached(images, folder), first_batch(images, folder), wait(images, folder)]
    return rows


def write_wds(folder: Path, name: str, blobs: Any, images: Set, **how: Any) -> None:
    pattern = f"{folder}/{name}-%06d.tar"
    with wds.ShardWriter(pattern, maxcount=SHARD_ROWS, verbose=0, **how) as writer:
        for i, (blob, label) in enumerate(zip(blobs, images.labels, strict=True)):
            writer.write({"__key__": f"{i:08d}", images.suffix: blob, "cls": label})


def pillow_png(image_HWC: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image_HWC[:, :, 0]).save(stream, format="PNG", compress_level=PNG_LEVEL)
    return stream.getvalue()


def writing(images: Set, folder: Path, peers: Peers) -> list[dict[str, Any]]:
    is_png = images.suffix == "png"
    root = str(folder / "packed")

    def ours() -> None:
        (folder / "packed" / "dataset.json").unlink(missing_ok=True)
        publish_set(root, images)

    rows = compare(
        f"write {images.name}, ready bytes",
        ours,
        {
            SHIPPED: lambda: write_wds(folder, "shipped", images.blobs, images),
            MTIME0: lambda: write_wds(folder, "mtime0", images.blobs, images, mtime=0),
            **peers.of("write"),
        },
        {SHIPPED: 15 if is_png else 8, MTIME0: 8 if is_png else 5, MDS: 0.8},
    )
    ours_bytes = sum(path.stat().st_size for path in (folder / "packed").glob("*.tar"))
    peer_bytes = sum(path.stat().st_size for path in folder.glob("shipped-*.tar"))
    rows.append(
        row(f"tars of {images.name}", "bytes", ours_bytes, peer_bytes, "webdataset [goal 1.82x]")
    )
    if images.pixels_NHWC is None:
        return rows
    pixels_NHWC = images.pixels_NHWC

    def encode() -> None:
        for k, start in enumerate(range(0, IMAGES, SHARD_ROWS)):
            some = range(start, min(start + SHARD_ROWS, IMAGES))
            made = (Row(f"{i:08d}", i, pixels_NHWC[i], images.labels[i]) for i in some)
            write_shard(str(folder / "encoded"), f"train-{k:06d}", "train", images.spec, made)

    pillow = f"webdataset, Pillow at zlib level {PNG_LEVEL}"
    return rows + compare(
        f"write {images.name}, arrays",
        encode,
        {
            pillow: lambda: write_wds(folder, "arrays", map(pillow_png, pixels_NHWC), images),
            **peers.of("encode"),
        },
        {pillow: 6, f"{MDS}, Pillow": 2},
    )


def stream(folder: Path, batch: int, decoded_bytes: int = 0) -> TrainingStream:
    root = str(folder / "packed")
    manifest = open_dataset(root)
    return TrainingStream(root, manifest, "train", global_batch=batch, decoded_bytes=decoded_bytes)


def reading(images: Set, folder: Path, peers: Peers) -> list[dict[str, Any]]:
    def ours() -> None:
        with stream(folder, BATCH) as batches:
            for _ in range(IMAGES // BATCH):
                assert next(batches).pixels_BCHW.shape == (BATCH, *images.spec.shape)

    grey = images.spec.channels == 1
    fast = pyspng.load if grey else lambda blob: simplejpeg.decode_jpeg(blob, "RGB")
    best = peers.of("read")
    goals = {who: 4.0 if "as shipped" in who else 1.2 for who in best}
    return compare(
        f"read {images.name}, shuffled and decoded",
        ours,
        {
            SHIPPED: read_wds(images, folder, "shipped", "l8" if grey else "rgb8"),
            FAST: read_wds(images, folder, "mtime0", wds.handle_extension(images.suffix, fast)),
            **best,
        },
        {SHIPPED: 10, FAST: 6, **goals},
    )


def read_wds(images: Set, folder: Path, prefix: str, decode: Any) -> Callable[[], None]:
    urls = [str(path) for path in sorted(folder.glob(f"{prefix}-*.tar"))]

    def run() -> None:
        data = wds.WebDataset(urls, shardshuffle=len(urls), seed=0, empty_check=False)
        data = data.repeat().shuffle(2000).decode(decode)
        batches = iter(data.to_tuple(images.suffix, "cls").batched(BATCH))
        for _ in range(IMAGES // BATCH):
            some, labels = next(batches)
            batch = torch.from_numpy(np.asarray(some))
            batch = batch[:, None] if batch.ndim == 3 else batch.permute(0, 3, 1, 2)
            assert batch.contiguous().shape == (BATCH, *images.spec.shape)
            assert len(torch.as_tensor(np.asarray(labels))) == BATCH

    return run


def row(name: str, unit: str, ours: float, peer: float, peer_name: str) -> dict[str, Any]:
    return {
        "name": name, "unit": unit, "ours": ours, "peer": peer, "peer_name": peer_name,
        "ratio": peer / max(ours, 1e-9),
    }  # fmt: skip


def cached(images: Set, folder: Path) -> dict[str, Any]:
    """Epochs after the first, whose pixels are kept decoded."""
    per_epoch, timings = IMAGES // BATCH, []
    with stream(folder, BATCH, 256 << 20) as batches:
        for _ in range(2 * per_epoch):  # the thread reads ahead, so one more than an epoch
            next(batches)
        for _ in range(EPOCHS):
            start_s = time.process_time()
            for _ in range(per_epoch):
                next(batches)
            timings.append((time.process_time() - start_s) / IMAGES * 1e6)
    name = f"read {images.name}, later epochs"
    return row(name, "CPU us/image", statistics.median(timings), 5.0, "goal: at most")


def first_batch(images: Set, folder: Path) -> dict[str, Any]:
    """From the URL to the first batch of 64."""
    timings = []
    for _ in range(OPENINGS):
        start_s = time.monotonic()
        with stream(folder, 64) as batches:
            next(batches)
            timings.append(time.monotonic() - start_s)
    median_s = statistics.median(timings)
    return row(f"{images.name}: time to first batch", "wall s", median_s, 0.2, "goal: at most")


def wait(images: Set, folder: Path) -> dict[str, Any]:
    """Share of the time that training of the quickstart's smallest model waits for data, after the first."""
    recipe, root = load_recipe("quickstart"), str(folder / "packed")
    entry, batch = recipe.entry("vae"), recipe.train_config("vae").batch
    stats = DataStats(mean=(-0.5,) * images.spec.channels, std=(0.5,) * images.spec.channels)
    model = ModelConfig(family=entry.family, net=entry.net, spec=images.spec, stats=stats).build(0)
    config = TrainConfig(
        nimg=WAIT_STEPS * batch, batch=batch, log_every_nimg=batch * min(10, WAIT_STEPS)
    )
    with TrainingStream(root, open_dataset(root), "train", global_batch=batch) as batches:
        next(batches)
        before_s, start_s = batches.waited_s, time.monotonic()
        train(model, lambda _: batches, SingleProcess(), Plan(config, 0))
        share = (batches.waited_s - before_s) / (time.monotonic() - start_s)
    name = f"{images.name}: the quickstart's VAE waits"
    return row(name, "share of time", share, 0.02, "goal: at most")
