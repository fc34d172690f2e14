"""The peers' side of the data benchmarks: runs under their own python, knows nothing of genmod.

Reads names of work from stdin, does it, and answers with the CPU seconds it took. Loaders are made before the
clock starts. "as shipped" decodes with Pillow, as each library does or shows; "fast" is the same with
pyspng or simplejpeg plugged in. litdata and mosaicml-streaming store bytes; datasets is map-style.
"""

# ruff: noqa: E402

from __future__ import annotations

import gc
import importlib.machinery
import io
import os
import shutil
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
BATCH = 256
stdout, sys.stdout = sys.stdout, sys.stderr

import datasets
import litdata
import numpy as np
import pyspng
import simplejpeg
import torch
from litdata.streaming.writer import BinaryWriter
from PIL import Image
from torch.utils.data import BatchSampler, DataLoader, RandomSampler


def stub_torchvision() -> None:
    """mosaicml-streaming imports torchvision for datasets that are not used here."""
    members = {
        "torchvision": {},
        "torchvision.datasets": {"VisionDataset": object},
        "torchvision.transforms": {},
        "torchvision.transforms.functional": {"to_tensor": None},
    }
    for name, values in members.items():
        module = types.ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        module.__dict__.update(values)
        sys.modules[name] = module


stub_torchvision()
import streaming

Work = Callable[[], object]
torch.set_num_threads(1)


def pillow(blob: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(blob)))


def pillow_png(image_HWC: np.ndarray, level: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image_HWC[:, :, 0]).save(stream, format="PNG", compress_level=level)
    return stream.getvalue()


class Bench:
    def __init__(self, folder: Path) -> None:
        data = np.load(folder / "set.npz")
        everything, ends = data["blobs"].tobytes(), data["ends"].tolist()
        self.blobs = [everything[a:b] for a, b in zip([0, *ends[:-1]], ends, strict=True)]
        self.labels = data["labels"].tolist()
        self.is_png = str(data["suffix"]) == "png"
        self.level = int(data["level"])
        self.folder = folder
        pixels = folder / "pixels.npy"
        self.pixels_NHWC = np.load(pixels) if self.is_png else None
        self.decoders = {"as shipped": pillow, "fast": pyspng.load if self.is_png else self._jpeg}
        self.work: dict[str, Work] = {
            "write:streaming's MDSWriter": self.write_mds,
            "write:streaming's MDSWriter, synced to disk as ours": self.write_mds_synced,
        }
        if self.is_png:
            self.work["encode:streaming's MDSWriter, Pillow"] = self.encode_mds
        self.write_mds()
        self.write_litdata()
        self.write_hf()
        for how, decode in self.decoders.items():
            self.work[f"read:mosaicml-streaming, {how}"] = self.read_mds(decode)
            self.work[f"read:litdata, {how}"] = self.read_litdata(decode)
        self.work["read:datasets, as shipped"] = self.read_hf_shipped()
        self.work["read:datasets, fast"] = self.read_hf_fast(self.decoders["fast"])

    @staticmethod
    def _jpeg(blob: bytes) -> np.ndarray:
        return simplejpeg.decode_jpeg(blob, "RGB")

    def write_mds(self) -> None:
        self._write_mds("mds", self.blobs)

    def write_mds_synced(self) -> None:
        self.write_mds()
        for path in (self.folder / "mds").iterdir():
            with path.open("rb") as stream:
                os.fsync(stream.fileno())

    def encode_mds(self) -> None:
        self._write_mds("mds-png", (pillow_png(image, self.level) for image in self.pixels_NHWC))

    def _write_mds(self, name: str, blobs: Any) -> None:
        shutil.rmtree(self.folder / name, ignore_errors=True)
        columns = {"image": "bytes", "label": "int"}
        with streaming.MDSWriter(out=str(self.folder / name), columns=columns) as writer:
            for blob, label in zip(blobs, self.labels, strict=True):
                writer.write({"image": blob, "label": label})

    def write_litdata(self) -> None:
        writer = BinaryWriter(str(self.folder / "litdata"), chunk_bytes=64 << 20)
        for i, (blob, label) in enumerate(zip(self.blobs, self.labels, strict=True)):
            writer.add_item(i, {"image": blob, "label": label})
        writer.done()
        writer.merge(num_workers=1)

    def write_hf(self) -> None:
        made = datasets.Dataset.from_dict({"image": self.blobs, "label": self.labels})
        made = made.cast_column("image", datasets.Value("binary"))
        made.save_to_disk(str(self.folder / "hf"))

    def _drain(self, loader: Any) -> Work:
        shape = (BATCH, 1, 28, 28) if self.is_png else (BATCH, 3, 32, 32)

        def run() -> None:
            seen = 0
            for found, labels in loader:
                images = found[:, None] if found.ndim == 3 else found
                channels_last = images.shape[-1] in (1, 3)
                images = (images.permute(0, 3, 1, 2) if channels_last else images).contiguous()
                seen += len(images)
                assert len(images) < BATCH or images.shape == shape
                assert images.dtype == torch.uint8
                assert len(labels) == len(images)
            assert seen == len(self.blobs), seen

        return run

    @staticmethod
    def _collate(rows: list[tuple[np.ndarray, int]]) -> tuple[torch.Tensor, torch.Tensor]:
        images, labels = zip(*rows, strict=True)
        return torch.from_numpy(np.stack(images)), torch.tensor(labels)

    def read_mds(self, decode: Callable[[bytes], np.ndarray]) -> Work:
        class Rows(streaming.StreamingDataset):
            def __getitem__(self, at: int) -> Any:
                row = super().__getitem__(at)
                return decode(row["image"]), row["label"]

        rows = Rows(local=str(self.folder / "mds"), shuffle=True, batch_size=BATCH)
        return self._drain(DataLoader(rows, batch_size=BATCH, collate_fn=self._collate))

    def read_litdata(self, decode: Callable[[bytes], np.ndarray]) -> Work:
        class Rows(litdata.StreamingDataset):
            def __getitem__(self, at: Any) -> Any:
                row = super().__getitem__(at)
                return decode(row["image"]), row["label"]

        rows = Rows(str(self.folder / "litdata"), shuffle=True)
        return self._drain(
            litdata.StreamingDataLoader(rows, batch_size=BATCH, collate_fn=self._collate)
        )

    def read_hf_shipped(self) -> Work:
        rows = datasets.load_from_disk(str(self.folder / "hf"))
        pictures = [{"bytes": blob, "path": None} for blob in rows["image"]]
        rows = datasets.Dataset.from_dict({"image": pictures, "label": self.labels})
        rows = rows.cast_column("image", datasets.Image())
        rows.save_to_disk(str(self.folder / "hf-image"))
        rows = datasets.load_from_disk(str(self.folder / "hf-image")).with_format("torch")
        loader = DataLoader(rows, batch_size=BATCH, shuffle=True)
        return self._drain(_Pairs(loader))

    def read_hf_fast(self, decode: Callable[[bytes], np.ndarray]) -> Work:
        def transform(rows: dict[str, list[Any]]) -> dict[str, Any]:
            images = np.stack([decode(blob) for blob in rows["image"]])
            return {"image": torch.from_numpy(images), "label": torch.tensor(rows["label"])}

        rows = datasets.load_from_disk(str(self.folder / "hf")).with_transform(transform)
        sampler = BatchSampler(RandomSampler(rows), BATCH, drop_last=False)
        whole = _Batches(rows)
        return self._drain(_Pairs(DataLoader(whole, sampler=sampler, batch_size=None)))


class _Batches(torch.utils.data.Dataset):
    """Indexed by lists, so that a batch is one call."""

    def __init__(self, rows: Any) -> None:
        self.rows = rows

    def __getitem__(self, at: list[int]) -> Any:
        return self.rows[at]


class _Pairs:
    def __init__(self, loader: Any) -> None:
        self.loader = loader

    def __iter__(self) -> Any:
        return ((rows["image"], rows["label"]) for rows in self.loader)


def main() -> None:
    bench = Bench(Path(sys.argv[1]))
    gc.collect()
    gc.freeze()
    for line in sys.stdin:
        wanted = line.strip()
        answer = ";".join(bench.work)
        if wanted != "names":
            start_s = time.process_time()
            bench.work[wanted]()
            answer = repr(time.process_time() - start_s)
        print("ANSWER", answer, file=stdout, flush=True)


if __name__ == "__main__":
    main()
