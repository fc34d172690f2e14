"""Drift of new rows: an exact test by ranks, and the job that reads and scores the rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from genmod.data.sources.config import SourceOptions
from genmod.data.sources.registry import open_source
from genmod.errors import DataError
from genmod.manifest import ImageSpec
from genmod.rng import rng_for
from genmod.scoring.drift import measure_drift
from genmod.scoring.drift_job import NewRows, read_new_rows
from genmod.scoring.label import ScoreLabel
from genmod.scoring.ood_scores import COMPRESSED_COLUMN
from genmod.scoring.table import Rows, Scores

SPEC = ImageSpec(channels=1, height=8, width=8, classes=0)
LABEL = ScoreLabel(label="exact", estimator="e", of="o", measure="counts", budget={})


def table(nats_N, compressed_N=None):
    count = len(nats_N)
    rows = Rows([str(row) for row in range(count)], torch.arange(count), None)
    column = torch.full((count,), 300.0) if compressed_N is None else compressed_N
    nats_N = nats_N.to(torch.float64)
    columns = {COMPRESSED_COLUMN: column.to(torch.float64)}
    return Scores(rows, nats_N, torch.zeros(count), LABEL, columns)


def draws(seed, count):
    """log p of honest rows."""
    return 20 * rng_for(seed, "test/drift", range(count)).normal() - 200


def test_false_alarms_are_as_rare_as_stated():
    p_values = []
    for batch in range(300):
        scores = draws(batch, 400)
        p_values.append(measure_drift(table(scores[:250]), table(scores[250:]), SPEC).p_value)
    rare = torch.tensor(p_values)
    assert 0 < (rare <= 0.2).sum() <= 0.2 * 300  # a bound, since the tests are not independent
    assert (rare <= 0.01).sum() <= 8  # binomial: more has a probability of 0.4 %


@pytest.mark.parametrize(
    ("change", "score"),
    [
        (lambda nats_N: nats_N - 100, "bits per dimension (high)"),
        (lambda nats_N: nats_N + 100, "bits per dimension (low)"),
    ],
)
def test_ten_percent_of_foreign_rows_are_noticed(change, score):
    new = draws(1, 500)
    new[::10] = change(new[::10])
    drift = measure_drift(table(draws(2, 500)), table(new), SPEC)
    assert drift.p_value < 0.001
    assert drift.score == score
    assert (drift.rows, drift.found > 40) == (500, True)
    assert f"{drift.found} of 500 new rows have an extreme {score}" in drift.text


def test_simple_images_of_the_same_likelihood_show_in_the_corrected_score():
    compressed = torch.full((500,), 300.0)
    compressed[::10] = 100.0
    drift = measure_drift(table(draws(3, 500)), table(draws(4, 500), compressed), SPEC)
    assert (drift.score, drift.p_value < 0.001) == ("corrected score", True)


def test_equal_scores_are_no_drift():
    same = torch.full((100,), -5.0)
    assert measure_drift(table(same), table(same), SPEC).p_value == 1


def test_new_rows_are_read_as_the_dataset_will_have_them(tmp_path):
    images = np.full((6, 8, 8), 128, dtype=np.uint8)
    np.savez(tmp_path / "new.npz", images=images, labels=np.arange(6) % 2)
    source = open_source(f"npz:{tmp_path}/new.npz")
    listing = source.listing()
    rows = NewRows(
        source=source.text,
        options=SourceOptions(),
        source_fingerprint=listing.fingerprint,
        resize="none",
        refs=tuple(listing.refs[1:4]),
        names=tuple(listing.names[1:4]),
        labels=(1, 0, 1),
    )
    grey = ImageSpec(channels=1, height=8, width=8, classes=2)
    batch = read_new_rows(rows, grey)
    assert batch.pixels_BCHW.unique().tolist() == [128]
    assert batch.labels_B.tolist() == [1, 0, 1]
    drawn = read_new_rows(rows, grey.model_copy(update={"levels": 2, "draw_seed": 3}))
    assert drawn.pixels_BCHW.unique().tolist() == [0, 255]
    with pytest.raises(DataError, match="none of 3 new images is readable"):
        read_new_rows(rows, grey.model_copy(update={"height": 9}))
