"""Slices: every row once, however a split is cut; scores do not depend on the cut."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from genmod import storage
from genmod.config import fingerprint
from genmod.data.format.shards import Row, write_shard
from genmod.data.reading.reader import RowReader
from genmod.errors import ConfigError, DataError, Unscorable
from genmod.interface.model import DataStats
from genmod.interface.registry import ModelConfig, families, family
from genmod.manifest import DatasetManifest, FileEntry, ImageSpec, ShardEntry, StoredShard
from genmod.rng import rng_for
from genmod.scoring.config import ScoreConfig
from genmod.scoring.label import ScoreLabel
from genmod.scoring.row_scores import score_rows
from genmod.scoring.work_units import SCORE_PURPOSE, rows_to_score, shard_number, shard_slices

SPEC = ImageSpec(channels=1, height=8, width=8, classes=3)
ROOT = "memory://slices"


def file(path):
    return FileEntry(path=path, size_bytes=0, sha256=fingerprint(path))


def manifest(*rows):
    shards = tuple(
        ShardEntry(split="val", rows=n, tar=file(f"{i}.tar"), index=file(f"{i}.idx.parquet"))
        for i, n in enumerate(rows)
    )
    return DatasetManifest(fingerprint="", spec=SPEC, shards=shards)


def numbered(found, rows):
    """(number in the split) of every row of the slices, in order."""
    starts = dict(
        zip((f"val-{i:06d}" for i in range(len(rows))), np.cumsum([0, *rows]), strict=False)
    )
    return [int(starts[s.name[:10]]) + row for s in found for row in s.rows()]


SHARDS = st.lists(st.integers(1, 40), min_size=1, max_size=5)


@given(rows=SHARDS, per_task=st.integers(1, 50))
def test_every_row_is_scored_once(rows, per_task):
    found = list(shard_slices(ROOT, manifest(*rows), ScoreConfig(rows_per_task=per_task), 0))
    assert numbered(found, rows) == list(range(sum(rows)))
    assert len({part.name for part in found}) == len(found)
    assert all(0 < len(part) == len(part.rows()) <= per_task for part in found)


@given(rows=SHARDS, per_task=st.integers(1, 50), data=st.data())
def test_fewer_rows_are_some_of_more(rows, per_task, data):
    most = data.draw(st.integers(1, sum(rows)))
    few = data.draw(st.integers(1, most))
    drawn = []
    for count in (few, most):
        config = ScoreConfig(rows_per_task=per_task, max_rows=count)
        found = list(shard_slices(ROOT, manifest(*rows), config, 5))
        drawn.append(numbered(found, rows))
        assert drawn[-1] == sorted(set(drawn[-1]))
        assert len(drawn[-1]) == count
        assert all(0 < len(part) == len(part.rows()) <= per_task for part in found)
    assert set(drawn[0]) <= set(drawn[1])


def test_which_rows_are_drawn_is_the_seed_s_choice():
    config = ScoreConfig(max_rows=10)
    drawn = [numbered(shard_slices(ROOT, manifest(100), config, seed), [100]) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_a_whole_shard_is_one_table_of_its_name():
    assert [s.name for s in shard_slices(ROOT, manifest(250), ScoreConfig(), 0)] == ["val-000000"]
    names = [s.name for s in shard_slices(ROOT, manifest(250, 251), ScoreConfig(), 0)]
    assert names == ["val-000000", "val-000001-000", "val-000001-001"]


def test_missing_rows_are_refused():
    with pytest.raises(ConfigError, match="is empty"):
        rows_to_score(manifest(5), ScoreConfig(split="test"))
    with pytest.raises(ConfigError, match="expected at most 5"):
        rows_to_score(manifest(5), ScoreConfig(max_rows=6))


@pytest.fixture(scope="module")
def reader():
    storage.remove(ROOT)
    pixels = rng_for(0, "pixels", range(6)).integers(256, 8, 8, 1).to(torch.uint8).numpy()
    rows = [Row(f"k{i}", 3 * i, pixels[i], label=i % 3) for i in range(6)]
    entry, _ = write_shard(ROOT, "val-000000", "val", SPEC, rows)
    return RowReader(SPEC, [StoredShard(entry, ROOT)])


@pytest.mark.parametrize("name", families())
def test_scores_are_the_model_s_own_and_do_not_depend_on_the_cut(name, reader):
    model_class = family(name)
    stats = DataStats(mean=(0.0,), std=(0.5,))
    net, options = model_class.Config.tiny(), model_class.Score.tiny()
    try:
        model_class.check_scorable(net, options)
    except Unscorable:
        pytest.skip("no density, and it says so when the plan is made")
    config = ModelConfig(family=name, net=net.model_dump(), spec=SPEC, stats=stats)
    model = config.build(1).double().eval().requires_grad_(False)
    batch = reader.read(np.arange(6))
    direct = model.log_prob(batch, rng_for(4, SCORE_PURPOSE, batch.index_B), options)
    some = score_rows(model, options, reader, [5, 2, 3], 2, seed=4).scores
    close = {"rtol": 1e-10, "atol": 1e-10}
    torch.testing.assert_close(some.nats_B, direct.nats_B[[5, 2, 3]], **close)
    torch.testing.assert_close(some.stderr_B, direct.stderr_B[[5, 2, 3]], **close)
    assert some.rows.keys == ["k5", "k2", "k3"]
    assert some.rows.index_B.tolist() == [15, 6, 9]
    assert some.rows.labels_B.tolist() == [2, 2, 0]
    assert some.label == ScoreLabel.from_log_prob(direct)


@given(rows=SHARDS, per_task=st.integers(1, 50), data=st.data())
def test_halves_have_the_same_rows_in_order_and_names_of_their_own(rows, per_task, data):
    count = data.draw(st.integers(1, sum(rows)))
    config = ScoreConfig(rows_per_task=per_task, max_rows=count)
    parts = list(shard_slices(ROOT, manifest(*rows), config, 5))
    whole = numbered(parts, rows)
    while any(len(part) > 1 for part in parts):
        number = data.draw(st.sampled_from([n for n, part in enumerate(parts) if len(part) > 1]))
        parts[number : number + 1] = parts[number].halves()
        assert numbered(parts, rows) == whole
        assert len({part.name for part in parts}) == len(parts)
    assert all(part.halves() == [] for part in parts)
    assert len(parts) == count
    for part in parts:
        number = shard_number(f"{part.name}-0123456789ab.parquet", "val", len(rows))
        assert part.shard == manifest(*rows).stored(ROOT, "val")[number]


def test_a_file_that_is_no_table_of_a_shard_is_refused():
    for path in (
        "val-000002-ab.parquet",
        "test-000000-ab.parquet",
        "val-x-ab.parquet",
        "quarantine.parquet",
    ):
        with pytest.raises(DataError, match="not the name of a table"):
            shard_number(path, "val", 2)


def test_parts_below_a_micro_batch_cost_as_much_as_one():
    (part,) = shard_slices(ROOT, manifest(250), ScoreConfig(), 0)
    assert part.micro_batches(50) == 5
    first, second = part.halves()
    assert [half.micro_batches(50) for half in (first, second)] == [3, 3]
    assert first.halves()[0].halves()[0].halves()[0].micro_batches(50) == 1
