"""Scores of rows: bits that do not depend on other rows, and rows that cannot be scored."""

from pathlib import Path

import numpy as np
import pytest
import torch

from genmod.data.format.shards import Row, write_shard
from genmod.data.reading.reader import RowReader
from genmod.errors import ConfigError, DataError, Unscorable
from genmod.interface.model import DataStats
from genmod.interface.registry import ModelConfig, families, family
from genmod.manifest import FileEntry, ImageSpec, StoredShard
from genmod.rng import rng_for
from genmod.scoring.row_scores import score_rows
from genmod.storage import sha256

SPEC = ImageSpec(channels=1, height=8, width=8, classes=3)
ROWS, SIZE, SEED = 11, 4, 4


@pytest.fixture(scope="module")
def shard(tmp_path_factory):
    root = str(tmp_path_factory.mktemp("rows"))
    pixels = rng_for(0, "pixels", range(ROWS)).integers(256, 8, 8, 1).to(torch.uint8).numpy()
    rows = [Row(f"k{i}", 3 * i, pixels[i], label=i % 3) for i in range(ROWS)]
    entry, _ = write_shard(root, "val-000000", "val", SPEC, rows)
    return StoredShard(entry, root)


def built(name, **net):
    """A model whose weights are far from their zeros, as after training."""
    config = family(name).Config.tiny().model_dump() | net
    config = ModelConfig(
        family=name, net=config, spec=SPEC, stats=DataStats(mean=(0.0,), std=(0.5,))
    )
    model = config.build(1).eval().requires_grad_(False)
    noise = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.add_(torch.randn(parameter.shape, generator=noise), alpha=0.1)
    return model


def scored(model, shard, rows, first=0, **more):
    options = type(model).Score.tiny()
    reader = RowReader(SPEC, [shard])
    return score_rows(model, options, reader, rows, SIZE, seed=SEED, first=first, **more)


@pytest.mark.parametrize("name", families())
def test_bits_do_not_depend_on_the_other_rows_of_a_micro_batch(name, shard):
    model_class = family(name)
    try:
        model_class.check_scorable(model_class.Config.tiny(), model_class.Score.tiny())
    except Unscorable:
        pytest.skip("no density, and it says so when the plan is made")
    model = built(name)
    whole = scored(model, shard, range(ROWS)).scores
    # In other parts, alone, and next to rows whose scores are known.
    parts = [scored(model, shard, range(a, b), a).scores for a, b in ((0, 3), (3, 9), (9, ROWS))]
    for field in ("nats_B", "stderr_B"):
        cut = torch.cat([getattr(part, field) for part in parts])
        assert torch.equal(cut, getattr(whole, field))
    for row in (0, 6, 10):
        assert scored(model, shard, [row], row).scores.nats_B[0] == whole.nats_B[row]
    known = whole.take(torch.tensor([1, 2, 3, 8]))
    reused = scored(model, shard, range(ROWS), known=known).scores
    assert torch.equal(reused.nats_B, whole.nats_B)
    assert reused.rows.keys == whole.rows.keys
    # A subset has other places in its micro-batches, and its kernels may round otherwise.
    some = scored(model, shard, [1, 4, 5, 10]).scores
    torch.testing.assert_close(some.nats_B, whole.nats_B[[1, 4, 5, 10]], rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [("not_finite_at", "its log-likelihood is not finite: nan"), ("refused_at", "planted refusal")],
)
def test_a_row_without_a_score_is_named_and_the_others_keep_their_bits(fault, reason, shard):
    good = scored(built("faulty"), shard, range(ROWS)).scores
    result = scored(built("faulty", of_scores=True, **{fault: 15}), shard, range(ROWS))
    (row,) = result.rejected
    assert (row.key, row.index) == ("k5", 15)
    assert reason in row.reason
    left = [i for i in range(ROWS) if i != 5]
    assert result.scores.rows.keys == [f"k{i}" for i in left]
    assert torch.equal(result.scores.nats_B, good.nats_B[left])
    assert torch.equal(
        result.scores.column("compressed_bits"), good.column("compressed_bits")[left]
    )
    alone = scored(built("faulty", of_scores=True, **{fault: 15}), shard, [5], 5)
    assert alone.scores is None
    assert alone.rejected == result.rejected


def test_an_image_that_does_not_match_its_checksum_is_named(shard, tmp_path):
    data = bytearray(Path(shard.tar_url).read_bytes())
    reader = RowReader(SPEC, [shard])
    data[int(reader.find(np.array([7])).offset_N[0]) + 45] ^= 1
    path = shard.entry.tar.path
    (tmp_path / path).write_bytes(data)
    index = shard.entry.index.path
    (tmp_path / index).write_bytes(Path(shard.index_url).read_bytes())
    tar = FileEntry(path=path, size_bytes=len(data), sha256=sha256(bytes(data)))
    damaged = StoredShard(shard.entry.model_copy(update={"tar": tar}), str(tmp_path))
    model = built("vae")
    good, result = scored(model, shard, range(ROWS)).scores, scored(model, damaged, range(ROWS))
    (row,) = result.rejected
    assert (row.key, row.index) == ("k7", 21)
    assert "member k7 does not match its checksum" in row.reason
    left = [i for i in range(ROWS) if i != 7]
    assert torch.equal(result.scores.nats_B, good.nats_B[left])
    # A tar that was changed after it was published is an error of the whole shard.
    (tmp_path / path).write_bytes(bytes(data[:-1]) + b"x")
    with pytest.raises(DataError, match="does not match its digest"):
        scored(model, damaged, range(ROWS))


def test_errors_of_settings_are_no_fault_of_a_row(shard, monkeypatch):
    model = built("vae")

    def refuse(*arguments):
        raise ConfigError("not these options")

    monkeypatch.setattr(model, "log_prob", refuse)
    with pytest.raises(ConfigError, match="not these options"):
        scored(model, shard, range(ROWS))
