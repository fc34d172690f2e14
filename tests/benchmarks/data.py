"""Shard writer and reader against webdataset, on the same MNIST images in one run: CPU seconds, one core.

Every competitor gets the same pixels and labels and gives the same batches (uint8, B 1 28 28, with labels).
Shuffles differ in strength: ours is over the whole split, webdataset's over a buffer of 2,000.
"""

from __future__ import annotations

import io
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import pyspng
import torch
import webdataset as wds
from PIL import Image

from genmod.data.codecs import Codec
from genmod.data.reader import TrainingStream
from genmod.data.shards import (
    INDEX_SCHEMA,
    Row,
    dataset_facts,
    table_bytes,
    write_shard,
)
from genmod.data.sources import open_source
from genmod.data.tars import TarBuilder
from genmod.manifest import DatasetManifest, ImageSpec, write_file

SPEC = ImageSpec(channels=1, height=28, width=28, classes=10)
ROUNDS = 5
SHARD_ROWS = 1000
BATCH = 256
READ_IMAGES = 40 * BATCH

Images = tuple[np.ndarray, list[int]]
PILLOW, FAST = "webdataset", "webdataset, mtime=0 and the fast codec"
SYNCED = "{}, each tar synced to disk as ours is"


def bench() -> list[dict[str, Any]]:
    listing = open_source("builtin:mnist5k").listing()
    source = open_source("builtin:mnist5k")
    pixels = np.stack(list(source.fetch(listing.refs, listing.fingerprint)))
    images = pixels, listing.labels_N.tolist()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        rows = compare("arrays to PNG to tar", writers(images, folder), len(pixels))
        rows += compare("ready PNG bytes to tar", packers(images, folder), len(pixels))
        rows.append(size_of_tars(folder))
        rows += compare("shuffled decoded batches", readers(images, folder), READ_IMAGES)
        rows.append(wait(folder))
    return rows


def compare(
    name: str, competitors: dict[str, Callable[[], object]], images: int
) -> list[dict[str, Any]]:
    """Ours (the first) against each other: medians of interleaved rounds, the first one only warms up."""
    times: dict[str, list[float]] = {who: [] for who in competitors}
    for turn in range(ROUNDS + 1):
        for who, work in competitors.items():
            begun_s = time.process_time()
            work()
            if turn:
                times[who].append((time.process_time() - begun_s) / images * 1e6)
    ours, *peers = times
    mine = statistics.median(times[ours])
    return [
        {
            "name": name,
            "unit": "CPU us/image",
            "ours": mine,
            "peer": statistics.median(times[peer]),
            "peer_name": peer,
            "ratio": statistics.median(
                t / o for t, o in zip(times[peer], times[ours], strict=True)
            ),
        }
        for peer in peers
    ]


def ours_rows(images: Images, start: int, stop: int) -> Iterator[Row]:
    pixels, labels = images
    for i in range(start, stop):
        yield Row(f"{i:08d}", i, pixels[i][:, :, None], labels[i])


def write_ours(images: Images, folder: Path) -> DatasetManifest:
    root, made = str(folder / "ours"), []
    for number, start in enumerate(range(0, len(images[0]), SHARD_ROWS)):
        rows = ours_rows(images, start, start + SHARD_ROWS)
        made.append(write_shard(root, f"train-{number:06d}", "train", SPEC, rows))
    facts = dataset_facts({"train": made[0][1]})
    shards = tuple(entry for entry, _ in made)
    return DatasetManifest(fingerprint="bench", spec=SPEC, shards=shards, facts=facts)


def write_peer(images: Images, pattern: str, encode: Callable[[Any], bytes], **how: Any) -> None:
    pixels, labels = images
    with wds.ShardWriter(pattern, maxcount=SHARD_ROWS, verbose=0, **how) as writer:
        for i, label in enumerate(labels):
            writer.write({"__key__": f"{i:08d}", "png": encode(pixels[i]), "cls": label})


def sync(file: str) -> None:
    with open(file, "rb") as stream:
        os.fsync(stream.fileno())


def pillow_png(image: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, format="PNG")
    return stream.getvalue()


def writers(images: Images, folder: Path) -> dict[str, Callable[[], object]]:
    codec = Codec(SPEC)
    return {
        "ours": lambda: write_ours(images, folder),
        PILLOW: lambda: write_peer(images, f"{folder}/pillow-%06d.tar", pillow_png),
        SYNCED.format(PILLOW): lambda: write_peer(
            images, f"{folder}/synced-%06d.tar", pillow_png, post=sync
        ),
        FAST: lambda: write_peer(
            images, f"{folder}/fast-%06d.tar", lambda x: codec.encode(x[:, :, None]), mtime=0
        ),
    }


def packers(images: Images, folder: Path) -> dict[str, Callable[[], object]]:
    """From encoded images, as a converter of files does; ours with index, checksums and digests."""
    codec, labels = Codec(SPEC), images[1]
    blobs = [codec.encode(image[:, :, None]) for image in images[0]]
    ready = (np.arange(len(blobs)), labels)

    def ours() -> None:
        for start in range(0, len(blobs), SHARD_ROWS):
            tar = TarBuilder()
            lines = []
            for i in range(start, start + SHARD_ROWS):
                key, blob = f"{i:08d}", blobs[i]
                offset = tar.add(f"{key}.png", blob)
                tar.add(f"{key}.cls", b"%d" % labels[i])
                lines.append((key, i, offset, len(blob), labels[i], crc32(blob), None))
            columns = dict(zip(INDEX_SCHEMA.names, zip(*lines, strict=True), strict=True))
            write_file(str(folder / "packed"), f"{start}.tar", tar.finish())
            write_file(str(folder / "packed"), f"{start}.idx", table_bytes(columns, INDEX_SCHEMA))

    def peer(name: str, **how: Any) -> None:
        write_peer(ready, f"{folder}/{name}-%06d.tar", lambda i: blobs[i], **how)

    return {
        "ours": ours,
        PILLOW: lambda: peer("packed-default"),
        SYNCED.format(PILLOW): lambda: peer("packed-default", post=sync),
        "webdataset, mtime=0": lambda: peer("packed-mtime0", mtime=0),
        SYNCED.format("webdataset, mtime=0"): lambda: peer("packed-mtime0", mtime=0, post=sync),
    }


def size_of_tars(folder: Path) -> dict[str, Any]:
    ours = sum(path.stat().st_size for path in (folder / "ours").glob("*.tar"))
    peer = sum(path.stat().st_size for path in folder.glob("pillow-*.tar"))
    return {
        "name": "bytes of the tars",
        "unit": "bytes",
        "ours": ours,
        "peer": peer,
        "peer_name": PILLOW,
        "ratio": peer / ours,
    }


def read_peer(folder: Path, prefix: str, decode: Any) -> Callable[[], None]:
    urls = [str(path) for path in sorted(folder.glob(f"{prefix}-*.tar"))]
    keep = isinstance(decode, str)

    def run() -> None:
        data = wds.WebDataset(urls, shardshuffle=len(urls), seed=0, empty_check=False)
        data = data.repeat().shuffle(2000)
        data = data.decode(decode) if keep else data.decode(wds.handle_extension("png", decode))
        batches = iter(data.to_tuple("png", "cls").batched(BATCH))
        for _ in range(READ_IMAGES // BATCH):
            images, labels = next(batches)
            batch = torch.from_numpy(np.asarray(images)).reshape(-1, 1, 28, 28)
            assert batch.shape[0] == len(torch.as_tensor(np.asarray(labels)))

    return run


def stream(folder: Path, batch: int) -> TrainingStream:
    root = str(folder / "ours")
    manifest = MANIFESTS[root]
    return TrainingStream(root, manifest, "train", global_batch=batch, seed=0)


MANIFESTS: dict[str, DatasetManifest] = {}


def readers(images: Images, folder: Path) -> dict[str, Callable[[], object]]:
    MANIFESTS[str(folder / "ours")] = write_ours(images, folder)

    def ours() -> None:
        with stream(folder, BATCH) as batches:
            for _ in range(READ_IMAGES // BATCH):
                assert next(batches).pixels_BCHW.shape == (BATCH, 1, 28, 28)

    return {
        "ours": ours,
        PILLOW: read_peer(folder, "pillow", "l8"),
        FAST: read_peer(folder, "fast", pyspng.load),
    }


def wait(folder: Path) -> dict[str, Any]:
    """How long a step of about 20 ms waits for its batch of 64, after the first; the same data in line."""
    a = torch.rand(512, 512)

    def work() -> None:
        end_s = time.monotonic() + 0.02
        while time.monotonic() < end_s:
            a @ a

    urls = [str(path) for path in sorted(folder.glob("pillow-*.tar"))]
    peer = iter(
        wds.WebDataset(urls, shardshuffle=len(urls), seed=0, empty_check=False)
        .repeat().shuffle(2000).decode("l8").to_tuple("png", "cls").batched(64)
    )  # fmt: skip
    steps, waited_s = 100, 0.0
    next(peer)
    for _ in range(steps):
        begun_s = time.monotonic()
        next(peer)
        waited_s += time.monotonic() - begun_s
        work()
    with stream(folder, 64) as batches:
        next(batches)
        before_s = batches.waited_s
        for _ in range(steps):
            work()
            next(batches)
        ours = (batches.waited_s - before_s) / steps * 1e3
    return {
        "name": "wait of a 20 ms step for its 64 images",
        "unit": "wall ms/step",
        "ours": ours,
        "peer": waited_s / steps * 1e3,
        "peer_name": f"{PILLOW}, in line",
        "ratio": waited_s / steps * 1e3 / max(ours, 1e-3),
    }
