"""Score tables: what goes in comes out with its label; sums are right; bad numbers are refused."""

import json
import math
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from genmod import storage, units
from genmod.errors import DataError, GenmodError
from genmod.interface.log_prob import LogProb
from genmod.manifest import ImageSpec, Manifest, write_file
from genmod.scoring.calibrated import read_scores
from genmod.scoring.config import ScoreConfig
from genmod.scoring.label import ScoreLabel, common_label
from genmod.scoring.moments import RunningMoments
from genmod.scoring.table import Rows, Scores, read_parquet, summary

KEYS = ["a", "b", "c", "d", "e"]
ROWS = Rows(KEYS, torch.tensor([3, 1, 4, 10, 5]), torch.tensor([0, 1, 2, 0, 1]))


def log_prob(nats, k=8, stderr=None):
    nats_B = torch.tensor(nats, dtype=torch.float64)
    stderr_B = torch.zeros_like(nats_B) if stderr is None else torch.tensor(stderr).double()
    return LogProb(nats_B, stderr_B, "lower_bound", "iwae", "decoder", units.COUNTS, {"k": k})


def scores():
    return Scores.from_log_probs(ROWS, [log_prob([-1.5, -2.0]), log_prob([-3.0, -4.0, 0.25])])


def test_a_table_contains_rows_and_label():
    data = scores().to_parquet(4, {"model": "m", "seed": 3})
    assert data == scores().to_parquet(4, {"model": "m", "seed": 3})
    table, metadata = read_parquet(data, "t")
    rows = table.to_pydict()
    assert rows["key"] == KEYS
    assert rows["index"] == [3, 1, 4, 10, 5]
    assert rows["label"] == [0, 1, 2, 0, 1]
    assert rows["nats"] == [-1.5, -2.0, -3.0, -4.0, 0.25]
    assert rows["bits_per_dim"] == pytest.approx([-n / 4 / math.log(2) for n in rows["nats"]])
    assert metadata["model"] == "m"
    assert metadata["label"] == "lower_bound"
    assert metadata["estimator"] == "iwae"
    assert metadata["measure"] == units.COUNTS
    assert metadata["budget"] == {"k": 8}
    assert metadata["units"].startswith("nats")


def test_rows_without_labels_have_none():
    plain = Scores.from_log_probs(Rows(["a"], torch.tensor([0]), None), [log_prob([-1.0])])
    assert read_parquet(plain.to_parquet(4, {}), "t")[0]["label"].to_pylist() == [None]


def test_an_estimators_own_numbers_are_columns_too():
    parts = [
        replace(log_prob([-1.0, -2.0]), columns={"nfe": torch.tensor([12, 18])}),
        replace(log_prob([-3.0] * 3), columns={"nfe": torch.tensor([6, 24, 30])}),
    ]
    table, _ = read_parquet(Scores.from_log_probs(ROWS, parts).to_parquet(4, {}), "t")
    assert table.column("nfe").to_pylist() == [12, 18, 6, 24, 30]
    assert table.column("nats").to_pylist() == [-1, -2, -3, -3, -3]


def test_uniform_pixels_cost_eight_bits_per_dim():
    uniform = Scores.from_log_probs(
        Rows(["a"], torch.tensor([0]), None), [log_prob([-784 * math.log(256)])]
    )
    bits = read_parquet(uniform.to_parquet(784, {}), "t")[0]["bits_per_dim"].to_pylist()
    assert bits == pytest.approx([8.0], abs=1e-12)


def test_a_density_has_the_bits_of_its_range():
    density = replace(log_prob([-784 * math.log(2)]), measure=units.NETWORK)
    table = Scores.from_log_probs(Rows(["a"], torch.tensor([0]), None), [density])
    for levels, expected in ((256, 8.0), (2, 1.0)):
        bits = read_parquet(table.to_parquet(784, {}, levels), "t")[0]["bits_per_dim"].to_pylist()
        assert bits == pytest.approx([expected])
        moments = [RunningMoments.of(density.nats_B)]
        found = summary(moments, 784, ScoreLabel.from_log_prob(density), levels)
        assert found["mean_bits_per_dim"] == pytest.approx(expected)
        assert found["measure"] == "lebesgue[-1,1]"
    spec = ImageSpec(channels=1, height=28, width=28, classes=0)
    assert density.bits_per_dim(spec).tolist() == pytest.approx([8.0])


def test_wrong_shapes_and_dtypes_are_asserted():
    good = log_prob([-1.0, -2.0])
    for wrong in (
        {"stderr_B": torch.zeros(3, dtype=torch.float64)},
        {"nats_B": good.nats_B.float()},
        {"columns": {"nfe": torch.zeros(1)}},
        {"label": "exact", "stderr_B": torch.ones(2, dtype=torch.float64)},
    ):
        with pytest.raises(AssertionError):
            replace(good, **wrong)


@pytest.mark.parametrize("data", [b"", b"PAR1", b"x" * 100])
def test_other_files_are_refused(data):
    with pytest.raises(DataError):
        read_parquet(data, "t")


def rewritten(change, metadata=None):
    """The bytes of a score table after a change of its pyarrow table."""
    table = pq.read_table(pa.BufferReader(scores().to_parquet(4, {"model": "m"})))
    header = table.schema.metadata if metadata is None else {b"genmod": metadata}
    sink = pa.BufferOutputStream()
    pq.write_table(change(table).replace_schema_metadata(header), sink)
    return sink.getvalue().to_pybytes()


def with_column(name, values, kind=None):
    def change(table):
        column = pa.array(values, kind or table.schema.field(name).type)
        kept = table.drop_columns([name]) if name in table.column_names else table
        return kept.append_column(pa.field(name, column.type), column)

    return change


LABEL = scores().label.model_dump()

HOSTILE_TABLES = {
    "nats that are infinite": (with_column("nats", [-math.inf] * 5), None),
    "errors that are no numbers": (with_column("stderr", [math.nan] * 5), None),
    "empty nats": (with_column("nats", [None] * 5), None),
    "texts as numbers": (with_column("nats", ["1"] * 5, pa.string()), None),
    "an infinite column of an estimator": (with_column("nfe", [math.inf] * 5, pa.float64()), None),
    "a column of texts": (with_column("nfe", ["x"] * 5, pa.string()), None),
    "no keys": (lambda table: table.drop_columns(["key"]), None),
    "other rows": (lambda table: table.slice(1), None),
    "no metadata": (lambda table: table, b""),
    "metadata that is a list": (lambda table: table, b"[1]"),
    "metadata without a label": (lambda table: table, b"{}"),
    "a label of another type": (
        lambda table: table,
        json.dumps(LABEL | {"budget": {"k": [1]}}).encode(),
    ),
    "an infinite setting": (lambda table: table, b'{"budget": {"k": NaN}}'),
    "deep metadata": (lambda table: table, b"[" * 10_000),
}


@pytest.mark.parametrize("name", HOSTILE_TABLES)
def test_tables_that_are_none_are_one_error(name):
    data = rewritten(*HOSTILE_TABLES[name])
    with pytest.raises(DataError, match=r"^run/scores/a\.parquet") as error:
        Scores.from_parquet(data, "run/scores/a.parquet", rows=5)
    assert "\n" not in str(error.value)


def test_a_table_that_was_changed_is_not_read(tmp_path):
    root = str(tmp_path)
    entry = write_file(root, "a.parquet", scores().to_parquet(4, {}))
    manifest = Manifest(
        kind="scores", fingerprint="f", files=(entry,), metadata={"rows_of_files": [5]}
    )
    assert read_scores(root, manifest).nats_B.tolist() == [-1.5, -2.0, -3.0, -4.0, 0.25]
    # A valid table of other numbers.
    storage.write_bytes(f"{root}/a.parquet", rewritten(with_column("nats", [1.0] * 5)))
    with pytest.raises(DataError, match=r"a\.parquet does not match its digest"):
        read_scores(root, manifest)


def test_a_wrong_number_of_rows_is_an_error():
    with pytest.raises(GenmodError, match="got 4 log-likelihoods, expected 5"):
        Scores.from_log_probs(ROWS, [log_prob([-1.0] * 4)])
    with pytest.raises(GenmodError, match="got 6 log-likelihoods, expected 5"):
        Scores.from_log_probs(ROWS, [log_prob([-1.0] * 6)])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_is_an_error(bad):
    with pytest.raises(GenmodError, match="log-likelihood of d: got"):
        Scores.from_log_probs(ROWS, [log_prob([-1.0, -1.0, -1.0, bad, -1.0])])
    with pytest.raises(GenmodError, match="log-likelihood of b: got"):
        Scores.from_log_probs(ROWS, [log_prob([-1.0] * 5, stderr=[0, bad, 0, 0, 0])])


def test_different_labels_are_refused():
    with pytest.raises(GenmodError, match="2 different labels"):
        Scores.from_log_probs(ROWS, [log_prob([-1.0] * 2), log_prob([-1.0] * 3, k=9)])
    with pytest.raises(GenmodError, match="0 different labels"):
        common_label([])


@given(st.lists(st.lists(st.floats(-1e6, 1e6), max_size=6), min_size=1, max_size=6))
def test_moments_of_parts_are_those_of_the_whole(parts):
    total = RunningMoments()
    for part in parts:
        total = total.merged(RunningMoments.of(torch.tensor(part, dtype=torch.float64)))
    whole = torch.tensor([x for part in parts for x in part], dtype=torch.float64)
    assert total.n == len(whole)
    if len(whole):
        assert total.mean == pytest.approx(float(whole.mean()), rel=1e-9, abs=1e-6)
    if len(whole) > 1:
        expected = float(whole.std()) / math.sqrt(len(whole))
        assert total.stderr == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_the_summary_is_over_all_rows_with_units_and_label():
    made = scores()
    parts = [RunningMoments.of(made.nats_B[:2]), RunningMoments.of(made.nats_B[2:])]
    found = summary(parts, 4, ScoreLabel.from_log_prob(log_prob([0.0])))
    assert found["n"] == 5
    assert found["mean_nats"] == pytest.approx(-2.05)
    assert found["mean_bits_per_dim"] == pytest.approx(2.05 / 4 / math.log(2))
    assert found["mean_nats_stderr"] == pytest.approx(float(made.nats_B.std()) / math.sqrt(5))
    ratio = found["mean_bits_per_dim_stderr"] / found["mean_nats_stderr"]
    assert ratio == pytest.approx(1 / 4 / math.log(2))
    assert found["label"] == "lower_bound"
    assert found["budget"] == {"k": 8}


def test_fingerprint_excludes_options_that_do_not_change_scores():
    base = ScoreConfig()
    assert ScoreConfig(workers=9, device="cpu", deadline_s=1).result() == base.result()
    for change in ({"split": "test"}, {"max_rows": 3}, {"micro_batch": 3}, {"rows_per_task": 3}):
        assert ScoreConfig(**change).result() != base.result()


@pytest.mark.parametrize(
    "change", [{"squares": -1.0}, {"n": -1}, {"mean": math.inf}, {"squares": math.nan}]
)
def test_moments_that_cannot_be_are_refused(change):
    """A receipt's moments, whose error of the mean is a root."""
    moments = RunningMoments.of(torch.tensor([1.0, 2.0])).model_dump()
    assert RunningMoments.model_validate(moments).stderr == 0.5
    with pytest.raises(ValueError, match=r"greater|finite"):
        RunningMoments.model_validate(moments | change)
