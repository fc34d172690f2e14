"""Models of clothes are shown digits: is a digit seen to be strange? Raw log p against the other columns.

Protocol: Fashion-MNIST's training images without labels, the first 59,000 to train on, the next 500 for
calibration; 500 test images as the model's own data, 500 digits (every tenth of ``builtin:mnist5k``) as
other data. AUROC is the probability that a digit looks stranger than a test image of clothes, as the mean
and the extremes of 2 or 3 trainings. Raw log p is expected to be upside down (Nalisnick et al. 2019).
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from genmod.interface.batch import Batch
from genmod.interface.model import DataStats, GenerativeModel
from genmod.interface.registry import ModelConfig
from genmod.manifest import ImageSpec
from genmod.permutation import shuffle
from genmod.rng import rng_for
from genmod.scoring.ood_scores import OOD_COLUMN, BitsPerDim, Calibration, auroc, compressed_bits
from genmod.training.loop import Plan, train
from genmod.training.plan import OptimConfig, TrainConfig
from genmod.world import SingleProcess
from tests.benchmarks import _equal_time as shared
from tests.benchmarks._data_sets import FASHION

SPEC = ImageSpec(channels=1, height=28, width=28)
TRAIN, ROWS = 59_000, 500
MODELS: dict[str, dict[str, Any]] = {
    "vae": {
        "net": {"latents": 16, "unshuffle": 4, "widths": [32], "components": 3},
        "train": {"nimg": 96_000, "batch": 128, "ema_halflife_nimg": 4000},
        "optim": {"lr": 0.004, "weight_decay": 0.01, "clip_norm": 300, "warmup_nimg": 4000},
        "score": {"k": 32},
        "seeds": 3,
    },
    "diffusion": {
        "net": {
            "unshuffle": 2,
            "widths": [24, 48],
            "blocks": 1,
            "attention": [],
            "embedding": 64,
            "noise": {"P_mean": 0.0, "P_std": 1.3, "uniform_share": 0.1},
        },
        "train": {"nimg": 40_000, "batch": 64, "ema_halflife_nimg": 2000},
        "optim": {"lr": 0.002, "warmup_nimg": 4000},
        "score": {"steps": 16},
        "seeds": 2,
    },
}
QUICK = shared.QUICK | {
    "TRAIN": 400,
    "ROWS": 50,
    "MODELS": {
        name: {
            **model,
            "train": model["train"] | {"nimg": 256},
            "score": {"k": 2} if name == "vae" else {"steps": 3},
            "seeds": 1,
        }
        for name, model in MODELS.items()
    },
}
SIGNS = {"nats": -1, "p_two_sided": -1, "typicality_bits_per_dim": 1, OOD_COLUMN: 1}


def _digits() -> Tensor:
    return shared.digits(5000 // ROWS)[0]


def _trained(name: str, pixels_NCHW: Tensor, seed: int) -> GenerativeModel:
    how = MODELS[name]
    x = pixels_NCHW[:5000].float() / 127.5 - 1
    stats = DataStats(mean=(float(x.mean()),), std=(float(x.std()),))
    config = TrainConfig(optim=OptimConfig(**how["optim"]), **how["train"])

    def batches(start: int) -> Iterator[Batch]:
        for nimg in itertools.count(start, config.batch):
            index_B = torch.arange(nimg, nimg + config.batch)
            row_B = shuffle(index_B % TRAIN, TRAIN, seed, "familiarity", index_B // TRAIN)
            yield Batch(pixels_NCHW[row_B], None, index_B)

    model = ModelConfig(family=name, net=how["net"], spec=SPEC, stats=stats).build(seed)
    return train(model, batches, SingleProcess(), Plan(config, seed)).ema.requires_grad_(False)


def _nats(model: GenerativeModel, name: str, pixels_NCHW: Tensor) -> tuple[Tensor, str]:
    how = model.Score.model_validate(MODELS[name]["score"])
    found = []
    for first in range(0, len(pixels_NCHW), 50):
        index_B = torch.arange(first, first + 50)
        batch = Batch(pixels_NCHW[first : first + 50], None, index_B)
        found.append(model.log_prob(batch, rng_for(0, "familiarity", index_B), how))
    return torch.cat([part.nats_B for part in found]), found[0].measure


def _aurocs(model: GenerativeModel, name: str, sides: tuple[Tensor, ...]) -> dict[str, float]:
    """Of every column; sides are calibration rows, own rows, other rows."""
    scores = [_nats(model, name, pixels) for pixels in sides]
    sizes = [compressed_bits(pixels) for pixels in sides]
    known = Calibration.of(scores[0][0], sizes[0], BitsPerDim(SPEC.dims, scores[0][1]))
    own, other = (
        known.columns(nats_B, size_B, torch.zeros(ROWS, dtype=torch.bool)) | {"nats": nats_B}
        for (nats_B, _), size_B in zip(scores[1:], sizes[1:], strict=True)
    )
    return {c: auroc(sign * own[c], sign * other[c])[0] for c, sign in SIGNS.items()}


def bench() -> list[dict]:
    """For each model the AUROC of every column against that of raw log p."""
    if not (shared.SMALL or FASHION.exists()):
        print(f"  left out: {FASHION} is not there (Debian: dataset-fashion-mnist)")
        return []
    torch.set_num_threads(1)
    clothes, test = shared.images("train"), shared.images("t10k")[:ROWS]
    sides = clothes[TRAIN : TRAIN + ROWS], test, _digits()
    rows = []
    for name in MODELS:
        seeds = MODELS[name]["seeds"]
        found = [_aurocs(_trained(name, clothes, seed), name, sides) for seed in range(seeds)]
        raw = statistics.mean(aurocs["nats"] for aurocs in found)
        for column in SIGNS:
            values = [aurocs[column] for aurocs in found]
            rows.append(
                {
                    "name": f"familiarity/{name}/{column}",
                    "unit": "AUROC",
                    "ours": statistics.mean(values),
                    "least": min(values),
                    "most": max(values),
                    "seeds": seeds,
                    "recommended": column == OOD_COLUMN,
                    "peer": raw,
                    "peer_name": "raw log p",
                    "ratio": statistics.mean(values) / raw,
                }
            )
    return rows


if __name__ == "__main__":
    import json

    print(json.dumps(bench(), indent=2))
