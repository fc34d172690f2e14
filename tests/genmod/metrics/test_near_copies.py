"""Copies planted among real images: found by kind, with the right row; real and empty images are not named.

``builtin:mnist5k``: 1,500 training rows, 600 held-out rows for calibration, 600 honest samples.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import binomtest, ks_2samp, kstest

from genmod.data.sources.registry import open_source
from genmod.metrics import near_copies
from genmod.metrics.copy_forms import Likeness, likeness
from genmod.metrics.memorisation import Tail, memorisation
from genmod.metrics.near_copies import CopySearch, blocks
from genmod.rng import rng_for

TRAIN, HELD_OUT, PLANTED = 1500, 600, 60


def shifted(images_BCHW):
    """By one pixel, in each of eight directions in turn."""
    moved = torch.nn.functional.pad(images_BCHW, (1, 1, 1, 1))
    height, width = images_BCHW.shape[-2:]
    starts = [(down, right) for down in range(3) for right in range(3) if (down, right) != (1, 1)]
    return torch.stack(
        [
            image_CHW[:, down : down + height, right : right + width]
            for image_CHW, (down, right) in zip(moved, starts * len(moved), strict=False)
        ]
    )


def noisy(images_BCHW, sigma=8.0):
    noise = rng_for(0, "noise", range(len(images_BCHW))).normal(*images_BCHW.shape[1:])
    return (images_BCHW + sigma * noise).round().clamp(0, 255).to(torch.uint8)


def rescaled(images_BCHW, gain, offset):
    return (images_BCHW * gain + offset).round().clamp(0, 255).to(torch.uint8)


PLANTS = {
    "exact": lambda x: x.clone(),
    "shifted": shifted,
    "noisy": noisy,
    "contrast less": lambda x: rescaled(x, 0.7, 0),
    "contrast more": lambda x: rescaled(x, 1.3, -20),
    "contrast brighter": lambda x: rescaled(x, 1.0, 30),
    "flipped": lambda x: x.flip(-1),
}


@pytest.fixture(scope="module")
def images():
    source = open_source("builtin:mnist5k")
    listing = source.listing()
    pixels = np.stack(list(source.fetch(listing.refs, listing.fingerprint))).reshape(-1, 1, 28, 28)
    order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(0))
    return torch.from_numpy(pixels.copy())[order]


@pytest.fixture(scope="module")
def search(images):
    return CopySearch(images[:TRAIN].__getitem__, TRAIN)


@pytest.fixture(scope="module")
def real(images, search):
    """Likeness of held-out images, of training rows to the others, and of honest samples."""
    parts = images[TRAIN : TRAIN + 2 * HELD_OUT].split(HELD_OUT)
    row_T = torch.arange(TRAIN)
    others = [likeness(search, images[row_B], row_B) for row_B in row_T.split(500)]
    return likeness(search, parts[0]), Likeness.join(others), likeness(search, parts[1])


@pytest.mark.parametrize("plant", PLANTS)
def test_planted_copies_are_found_with_their_row_and_kind(images, search, real, plant):
    held_out, others, honest = real
    row_B = torch.arange(PLANTED) * (TRAIN // PLANTED)
    planted = likeness(search, PLANTS[plant](images[row_B]))
    found = memorisation(Likeness.join([honest, planted]), held_out, others, 0.05)
    named_B = found.named_N[HELD_OUT:]
    assert float(named_B.to(torch.float64).mean()) >= (0.95 if plant == "noisy" else 0.99)
    assert torch.equal(planted.row_B, row_B)
    assert planted.kinds.count(plant.split()[0]) >= 0.95 * PLANTED
    assert not found.named_N[:HELD_OUT].any()
    one = Likeness.join([honest, likeness(search, PLANTS[plant](images[row_B[7:8]]))])
    assert memorisation(one, held_out, others, 0.05).named_N.nonzero()[:, 0].tolist() == [HELD_OUT]


def test_no_honest_sample_is_named(real):
    held_out, others, honest = real
    assert not memorisation(honest, held_out, others, 0.05).named_N.any()


def test_p_values_of_held_out_images_are_uniform(real):
    """Training rows against the others are as close as held-out images, so ranks among them are p-values."""
    held_out, others, honest = real
    new = Likeness.join([held_out, honest])
    assert ks_2samp(new.closeness_B, others.closeness_B).pvalue > 1e-3
    p_N = Tail.fit(others.closeness_B).p_values(new.closeness_B)
    assert kstest(p_N, "uniform").statistic < 0.08
    found = memorisation(honest, held_out, others, 0.05)
    for level in (0.01, 0.1, 0.5):
        hits = int((found.p_N <= level).sum())
        assert binomtest(hits, HELD_OUT, level, alternative="greater").pvalue > 1e-3, level


@pytest.mark.parametrize("value", [0, 77, 255])
def test_images_without_structure_are_no_copies(images, real, value):
    """Also if the training set has such an image, which is then a copy of nothing else."""
    blank = torch.full((20, 1, 28, 28), value, dtype=torch.uint8)
    train = torch.cat((images[:499], blank[:1]))
    found = likeness(CopySearch(train.__getitem__, 500), torch.cat((blank, noisy(blank, 3.0))))
    named_N = memorisation(found, real[0], real[1], 0.05).named_N
    assert not named_N.any()
    assert set(found.kinds) == {"similar"}


def test_any_blocks_give_the_same(images, search, real, monkeypatch):
    held_out, others, _ = real
    made = torch.cat((images[-40:], noisy(images[:20])))
    whole = likeness(search, made)
    monkeypatch.setattr(near_copies, "_BLOCK_ROWS", 700)
    monkeypatch.setattr(near_copies, "_BLOCK_IMAGES", 13)
    parts = Likeness.join([likeness(search, made[row_B]) for row_B in blocks(len(made), 37)])
    assert torch.equal(whole.row_B, parts.row_B)
    assert whole.kinds == parts.kinds
    torch.testing.assert_close(whole.closeness_B, parts.closeness_B, rtol=0, atol=2e-6)
    named = [memorisation(each, held_out, others, 0.05).named_N for each in (whole, parts)]
    assert torch.equal(*named)


def test_a_training_row_is_not_its_own_neighbour(images, search, real):
    """Nor is it if there are fewer rows than candidates."""
    assert not (real[1].row_B == torch.arange(TRAIN)).any()
    few = CopySearch(images[:3].__getitem__, 3)
    assert not (likeness(few, images[:3], torch.arange(3)).row_B == torch.arange(3)).any()


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 2, 5), (3, 40, 40)])
def test_other_shapes_have_copies_too(shape):
    train = rng_for(0, "shapes", range(300)).integers(256, *shape).to(torch.uint8)
    search = CopySearch(train.__getitem__, 300)
    found = likeness(search, train[:20])
    if min(shape[1:]) > 1:
        assert torch.equal(found.row_B, torch.arange(20))
        assert set(found.kinds) == {"exact"}
    assert found.closeness_B.isfinite().all()
