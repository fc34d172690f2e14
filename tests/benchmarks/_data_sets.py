"""What the data benchmarks share: two sets of images, interleaved rounds, and peers in an environment of
their own.

The sets are 20,480 images of Fashion-MNIST (Debian's package ``dataset-fashion-mnist``; without it, the
builtin digits, and the rows say so): 28x28 grey as PNG, written by our codec, and the same pictures scaled to
32x32, tinted by class and rotated a little, as RGB JPEG of Pillow's default
quality. All get these very bytes.

mosaicml-streaming, litdata and datasets want other versions of much that we use, so they get their own
environment, which sees ours for the rest. Make it once, and name its python in GENMOD_BENCH_PEERS::

    .venv/bin/python -m venv PEERS
    echo "$PWD/.venv/lib/python3.11/site-packages" > PEERS/lib/python3.11/site-packages/ours.pth
    PEERS/bin/python -m pip install --no-deps -r tests/benchmarks/peers.txt
    GENMOD_BENCH_PEERS=PEERS/bin/python make bench
"""

from __future__ import annotations

import gc
import gzip
import io
import os
import random
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from PIL import Image

from genmod.data.format.codecs import PNG_LEVEL, Codec
from genmod.data.format.shards import EncodedRows, pack_shard
from genmod.data.sources.registry import open_source
from genmod.manifest import DatasetManifest, ImageSpec, dataset_metadata, publish

IMAGES, SHARD_ROWS, BATCH, ROUNDS = 20_480, 10_240, 256, 7
FASHION = Path("/usr/share/datasets/fashion-mnist")
PEERS = "GENMOD_BENCH_PEERS"
CONTROL = "ours once more: what differs is noise"


@dataclass(frozen=True)
class Set:
    """Images of one kind, encoded."""

    name: str
    spec: ImageSpec
    suffix: str
    blobs: list[bytes]
    labels: list[int]
    pixels_NHWC: np.ndarray | None = None
    """Where they were encoded without loss."""

    def samples(self, rows: range) -> EncodedRows:
        some = slice(rows.start, rows.stop)
        keys = [f"{i:08d}" for i in rows]
        return EncodedRows(keys, rows, self.blobs[some], self.labels[some])


def pin() -> None:
    """This process, and those it starts, on one core; collections pass by what is imported."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    gc.collect()
    gc.freeze()


def sets() -> list[Set]:
    if FASHION.exists():
        name = "Fashion-MNIST"
        raw = gzip.decompress((FASHION / "train-images-idx3-ubyte.gz").read_bytes())
        pixels_NHW = np.frombuffer(raw, np.uint8, offset=16).reshape(-1, 28, 28)[:IMAGES]
        raw = gzip.decompress((FASHION / "train-labels-idx1-ubyte.gz").read_bytes())
        labels = np.frombuffer(raw, np.uint8, offset=8)[:IMAGES].tolist()
    else:
        name, source = "builtin digits (no Fashion-MNIST here)", open_source("builtin:mnist5k")
        listing = source.listing()
        pixels_NHW = np.stack(list(source.fetch(listing.refs, listing.fingerprint)))
        pixels_NHW = np.resize(pixels_NHW, (IMAGES, 28, 28))
        labels = np.resize(listing.labels_N, IMAGES).tolist()
    grey = ImageSpec(channels=1, height=28, width=28, classes=10)
    codec, pixels_NHWC = Codec(grey), pixels_NHW[..., None]
    pngs = [codec.encode(image) for image in pixels_NHWC]
    jpegs = [
        _jpeg(image, i, label)
        for i, (image, label) in enumerate(zip(pixels_NHW, labels, strict=True))
    ]
    colour = ImageSpec(channels=3, height=32, width=32, classes=10)
    return [
        Set(f"{name} PNG", grey, "png", pngs, labels, pixels_NHWC),
        Set(f"{name} 32x32 JPEG", colour, "jpg", jpegs, labels),
    ]


def _jpeg(image: np.ndarray, number: int, label: int) -> bytes:
    tint = (1.0, 0.6 + 0.04 * label, 1.0 - 0.05 * label)
    picture = Image.fromarray(image).rotate(number % 40 - 20, resample=Image.Resampling.BILINEAR)
    grey = np.asarray(picture.resize((32, 32)), dtype=float)
    stream = io.BytesIO()
    colour = np.multiply.outer(grey, tint).astype(np.uint8)
    Image.fromarray(colour).save(stream, "JPEG")
    return stream.getvalue()


def publish_set(root: str, images: Set) -> DatasetManifest:
    """As a dataset of ours, its tars holding the images as they are."""
    rows, suffix = range(len(images.blobs)), f".{images.suffix}"
    parts = [rows[start : start + SHARD_ROWS] for start in range(0, len(rows), SHARD_ROWS)]
    shards = tuple(
        pack_shard(root, f"train-{k:06d}", "train", images.samples(part), suffix)
        for k, part in enumerate(parts)
    )
    return publish(
        root,
        DatasetManifest(
            fingerprint="bench", spec=images.spec, shards=shards, metadata=dataset_metadata({})
        ),
    )


class Peers:
    """A process of the peers' environment that does named work on request and says what it cost."""

    def __init__(self, folder: Path, images: Set) -> None:
        ends_N = np.cumsum([len(blob) for blob in images.blobs])
        np.savez(folder / "set.npz", blobs=np.frombuffer(b"".join(images.blobs), np.uint8), ends=ends_N,
                 labels=images.labels, suffix=images.suffix, level=PNG_LEVEL)  # fmt: skip
        if images.pixels_NHWC is not None:
            np.save(folder / "pixels.npy", images.pixels_NHWC)
        self.names: list[str] = []
        python = os.environ.get(PEERS)
        if not python:
            print(
                f"peers not installed: mosaicml-streaming, litdata, datasets (see {PEERS})",
                flush=True,
            )
            return
        worker = Path(__file__).with_name("_data_peers.py")
        self._process = subprocess.Popen(
            [python, str(worker), str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.names = self._ask("names").split(";")

    def _ask(self, what: str) -> str:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin
        assert stdout
        print(what, file=stdin, flush=True)
        while not (line := stdout.readline()).startswith("ANSWER "):
            if not line:
                raise RuntimeError(f"the peers' process ended while it was asked for {what}")
            print(f"peers: {line}", end="", flush=True)
        return line.removeprefix("ANSWER ").strip()

    def of(self, kind: str) -> dict[str, Callable[[], float]]:
        """Work of one kind; each call returns CPU seconds."""
        mine = [name for name in self.names if name.startswith(f"{kind}:")]
        return {name.split(":", 1)[1]: lambda name=name: float(self._ask(name)) for name in mine}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.names:
            assert self._process.stdin
            self._process.stdin.close()
            self._process.wait(timeout=30)


def compare(
    name: str,
    ours: Callable[[], object],
    peers: dict[str, Callable[[], object]],
    goals: dict[str, float],
    images: int | None = None,
) -> list[dict[str, Any]]:
    """Ours, twice, and the others: medians of rounds, the first one only warms up.

    Each round has an order of its own, for caches are cold after another process's work. Work that returns a
    float has measured its own CPU seconds, in another process.
    """
    images = images or IMAGES
    everybody = {"ours": ours, CONTROL: ours, **peers}
    times: dict[str, list[float]] = {who: [] for who in everybody}
    names, order = list(everybody), random.Random(0)
    for turn in range(ROUNDS + 1):
        for who in order.sample(names, len(names)):
            work = everybody[who]
            start_s = time.process_time()
            result = work()
            spent_s = result if isinstance(result, float) else time.process_time() - start_s
            if turn:
                times[who].append(spent_s / images * 1e6)
    mine = times.pop("ours")
    return [
        {
            "name": name,
            "unit": "CPU us/image",
            "ours": statistics.median(mine),
            "peer": statistics.median(timings),
            "peer_name": peer + (f" [goal {goals[peer]:g}x]" if peer in goals else ""),
            "ratio": statistics.median(t / o for t, o in zip(timings, mine, strict=True)),
        }
        for peer, timings in times.items()
    ]
