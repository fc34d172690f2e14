"""Drift of new rows: how often 10 % foreign images are noticed, and how often there is a false alarm.

Protocol: a small VAE is trained for two minutes on each of two sets. Held-out rows of its own set are scored
once, and rows of the other set. Each of 1,000 batches has 500 calibration rows and 500 new rows, drawn
without replacement from the held-out rows; in foreign batches 50 of the new rows are of the other set. An
alarm is a p-value of at most 0.001, the default. Bounds are Clopper and Pearson's of 95 %. Peer: the same
decision by a two-sample Kolmogorov-Smirnov test of log p. Fashion-MNIST is Debian's
``dataset-fashion-mnist``; the digits are MNIST if GENMOD_MNIST names a folder with its files, else the 5,000
that a package ships.
"""

from __future__ import annotations

import torch
from scipy.stats import ks_2samp
from torch import Tensor

from genmod import units
from genmod.interface.batch import Batch
from genmod.interface.model import DataStats, GenerativeModel
from genmod.interface.registry import ModelConfig
from genmod.metrics.intervals import share_interval
from genmod.permutation import shuffle
from genmod.rng import Rng, rng_for
from genmod.scoring.drift import measure_drift
from genmod.scoring.ood_scores import COMPRESSED_COLUMN, compressed_bits
from genmod.scoring.table import Rows, Scores
from genmod.selftest.training import train_briefly
from tests.benchmarks import _equal_time as shared

ALARM = 0.001
STEPS, TRAIN, HELD_OUT, OTHER = 400, 3_000, 2_000, 1_000
CALIBRATION, NEW, FOREIGN, BATCHES = 500, 500, 50, 1_000
NET = {"latents": 16, "unshuffle": 4, "widths": [32], "components": 3}
QUICK = shared.QUICK | {
    "STEPS": 4, "TRAIN": 250, "HELD_OUT": 200, "OTHER": 60, "CALIBRATION": 50, "NEW": 50, "FOREIGN": 5,
    "BATCHES": 10,
}  # fmt: skip


def _sets() -> dict[str, Tensor]:
    """Images in random order by name."""
    found = {"digits": shared.digits(1)[0], "clothes": shared.images("train")}
    return {
        title: images[shuffle(torch.arange(TRAIN + HELD_OUT), len(images), 0, "drift/order")]
        for title, images in found.items()
        if len(images) >= TRAIN + HELD_OUT
    }


def _trained(pixels_NCHW: Tensor) -> GenerativeModel:
    x_NCHW = units.to_network(pixels_NCHW)
    stats = DataStats(mean=(float(x_NCHW.mean()),), std=(float(x_NCHW.std()),))
    model = ModelConfig(family="vae", net=NET, spec=shared.GREY, stats=stats).build(0)

    def draw(rng: Rng) -> Batch:
        rows_B = rng.integers(len(pixels_NCHW), 1)[:, 0]
        return Batch(pixels_NCHW[rows_B], None, torch.arange(len(rng)))

    return train_briefly(model, draw, seed=0, steps=STEPS, lr=4e-3).eval()


def _scores(model: GenerativeModel, pixels_NCHW: Tensor) -> Scores:
    index_N, parts = torch.arange(len(pixels_NCHW)), []
    for index_B in index_N.split(100):
        batch = Batch(pixels_NCHW[index_B], None, index_B)
        parts.append(model.log_prob(batch, rng_for(0, "score", index_B), type(model).Score()))
    rows = Rows([str(index) for index in index_N.tolist()], index_N, None)
    found = Scores.from_log_probs(rows, parts)
    return found.with_columns({COMPRESSED_COLUMN: compressed_bits(pixels_NCHW)})


def _alarms(own: Scores, other: Scores, foreign: int) -> tuple[int, int]:
    """Alarms of our test, and of the peer's."""
    ours = peer = 0
    for number in range(BATCHES):
        picked = shuffle(
            torch.arange(CALIBRATION + NEW - foreign), len(own.nats_B), number, "drift"
        )
        others = shuffle(torch.arange(foreign), len(other.nats_B), number, "drift/foreign")
        known = own.take(picked[:CALIBRATION])
        new = Scores.concatenate([own.take(picked[CALIBRATION:]), other.take(others)])
        ours += measure_drift(known, new, shared.GREY).p_value <= ALARM
        peer += ks_2samp(known.nats_B.numpy(), new.nats_B.numpy()).pvalue <= ALARM
    return ours, peer


def _row(name: str, ours: int, peer: int) -> dict:
    interval = share_interval(ours, BATCHES)
    return {
        "name": f"drift/{name}",
        "unit": f"share of {BATCHES} batches with an alarm",
        "ours": ours / BATCHES,
        "low": interval.low,
        "high": interval.high,
        "peer": peer / BATCHES,
        "peer_name": "Kolmogorov-Smirnov test of log p",
        "ratio": ours / max(1, peer),
    }


def bench() -> list[dict]:
    """Shares of batches with an alarm, without and with foreign images."""
    torch.set_num_threads(1)
    rows: list[dict] = []
    sets = _sets()
    for title, pixels in sets.items():
        model = _trained(pixels[:TRAIN])
        own = _scores(model, pixels[TRAIN:])
        rows.append(_row(f"{title}, nothing foreign", *_alarms(own, own, 0)))
        for foreign, images in sets.items():
            if foreign != title:
                other = _scores(model, images[:OTHER])
                name = f"{title}, {FOREIGN / NEW:.0%} {foreign}"
                rows.append(_row(name, *_alarms(own, other, FOREIGN)))
    return rows


if __name__ == "__main__":
    import json

    print(json.dumps(bench(), indent=1))
