"""Binary pixels: thresholded, or drawn from greys once or at each visit."""

from itertools import islice

import numpy as np
import pytest
import torch
from scipy import stats

from genmod.data.format import binary
from genmod.data.reading.reader import iter_split, read_rows
from genmod.data.reading.training_stream import TrainingStream
from genmod.data.sources.config import DataConfig


@pytest.fixture(scope="module")
def drawn(tmp_path_factory, images, build):
    """(root, manifest, greys by key) of a dataset whose shards hold greys."""
    folder = tmp_path_factory.mktemp("drawn")
    pixels, labels = images(60)
    np.savez(folder / "set.npz", images=pixels, labels=labels)
    options = {"levels": 2, "draw_seed": 4, "shard_rows": 7}
    return (
        folder / "out",
        build(folder / "out", source=f"npz:{folder / 'set.npz'}", **options),
        pixels,
    )


def test_the_share_of_white_pixels_is_the_grey_level():
    rows = 4000
    grey_BCHW = torch.tensor([0, 1, 80, 254, 255], dtype=torch.uint8).repeat(rows, 1, 1, 1)
    drawn_BCHW = binary.draw(grey_BCHW, 0, "x", torch.arange(rows))
    assert set(drawn_BCHW.unique().tolist()) == {0, 255}
    for grey, on in zip(
        (0, 1, 80, 254, 255), (drawn_BCHW > 0).sum((0, 1, 2)).tolist(), strict=True
    ):
        assert stats.binomtest(on, rows, grey / 255).pvalue > 1e-4


def test_a_rows_one_draw_is_the_same_however_it_is_read(drawn):
    root, manifest, _ = drawn
    whole = torch.cat([b.pixels_BCHW for b in iter_split(str(root), manifest, "val", 64)])
    parts = torch.cat([b.pixels_BCHW for b in iter_split(str(root), manifest, "val", 1)])
    assert set(whole.unique().tolist()) == {0, 255}
    assert torch.equal(whole, parts)
    assert torch.equal(read_rows(str(root), manifest, "val", [1, 0]).pixels_BCHW, whole[[1, 0]])


def test_training_draws_by_position_and_seed_for_any_ranks(drawn):
    root, manifest, greys = drawn
    rows = manifest.rows("train")

    def stream(count, **options):
        with TrainingStream(str(root), manifest, "train", **options) as batches:
            return torch.cat([batch.pixels_BCHW for batch in islice(batches, count)])

    passes = stream(4, global_batch=rows)
    by_rank = [stream(6, global_batch=10, rank=rank, size=5).split(2) for rank in range(5)]
    dealt = torch.cat([torch.cat(parts) for parts in zip(*by_rank, strict=True)])
    assert torch.equal(dealt, passes[:60])
    later = stream(1, global_batch=rows, start_nimg=rows)
    assert torch.equal(later, passes[rows : 2 * rows])
    assert not torch.equal(stream(4, global_batch=rows, seed=1), passes)
    mean = passes.double().mean() / 255
    assert abs(float(mean) - greys.mean() / 255) < 0.02
    sums = [part.double().sum() for part in passes.split(rows)]
    assert len(set(map(float, sums))) == 4


def test_the_statistics_of_the_manifest_are_those_of_draws(drawn):
    root, manifest, greys = drawn
    assert "drawn from greys with seed 4" in str(manifest.spec)
    train = torch.cat([b.pixels_BCHW for b in iter_split(str(root), manifest, "train", 64)])
    p = greys.mean() / 255
    (std,) = manifest.metadata["stats"]["std"]
    assert std == pytest.approx(2 * np.sqrt(p * (1 - p)), rel=0.02)
    assert std == pytest.approx(float(train.double().std() / 127.5), rel=0.02)


def test_draw_seed_requires_two_levels():
    with pytest.raises(ValueError, match="set levels to 2"):
        DataConfig(source="builtin:digits", draw_seed=0)
    assert "draw_seed" not in DataConfig(source="builtin:digits").result()
