"""Columns of score tables judged by how well they tell other data from the model's own."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from genmod.errors import ConfigError, DataError
from genmod.evaluation.ood import ood_auroc, require_comparable_scores
from genmod.manifest import ImageSpec, Manifest, write_file
from genmod.rng import rng_for
from genmod.scoring.calibrated import add_ood_scores
from genmod.scoring.label import ScoreLabel
from genmod.scoring.ood_scores import COMPRESSED_COLUMN, OOD_COLUMN, count_rare
from genmod.scoring.table import Rows, Scores

SPEC = ImageSpec(channels=1, height=4, width=4)
LABEL = ScoreLabel(
    label="lower_bound", estimator="iwae", of="it", measure="counts", budget={"k": 1}
)


def table(name, nats_B, sizes_B):
    rows = Rows([f"{name}{i}" for i in range(len(nats_B))], torch.arange(len(nats_B)), None)
    return Scores(rows, nats_B, torch.zeros_like(nats_B), LABEL, {COMPRESSED_COLUMN: sizes_B})


def noisy(name, nats, size, rows=200):
    rng = rng_for(0, name, range(rows))
    nats_B = nats + rng.normal(dtype=torch.float64)
    return table(name, nats_B, size + rng.fold("size").normal(dtype=torch.float64))


KNOWN = noisy("known", -50.0, 60.0)
MAIN = add_ood_scores(noisy("own", -50.0, 60.0), KNOWN, SPEC, own=False)
OTHER = add_ood_scores(noisy("other", -48.0, 20.0), KNOWN, SPEC, own=False)
"""Likelier than the model's own, and far simpler."""


def published(root, scores, **changes):
    entries = [
        write_file(
            root, f"{part}.parquet", scores.take(torch.arange(part, part + 100)).to_parquet(16, {})
        )
        for part in (0, 100)
    ]
    metadata = {
        "rows_of_files": [100, 100],
        "split": "test",
        "rare": count_rare(scores.columns),
        **LABEL.model_dump(),
    }
    parents = {"model": "m", "dataset": root, "calibration": "c"} | changes.pop("parents", {})
    return Manifest(
        kind="scores",
        fingerprint="f",
        files=tuple(entries),
        metadata=metadata | changes,
        parents=parents,
    )


def test_likely_is_not_familiar_and_the_recommended_column_knows():
    roots = "memory://unfamiliar/own", "memory://unfamiliar/other"
    own, other = published(roots[0], MAIN), published(roots[1], OTHER)
    require_comparable_scores(own, other, ("here", "there"))
    found = ood_auroc(roots, own, other)
    by_name = {column["name"]: column for column in found["columns"]}
    assert by_name["nats"]["auroc"] < 0.15  # upside down
    assert by_name[OOD_COLUMN]["auroc"] > 0.99
    assert [c["name"] for c in found["columns"] if c["recommended"]] == [OOD_COLUMN]
    assert by_name["p_two_sided"]["auroc"] > 0.8
    assert by_name["nats"]["own"] == pytest.approx(float(MAIN.nats_B.mean()))
    assert 0 < by_name["typicality_bits_per_dim"]["stderr"] < 0.05
    assert found["rows"] == {"own": 200, "other": 200}
    assert found["rare"]["other"]["p_corrected"] > 190


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"parents": {"model": "n"}}, "another model"),
        ({"budget": {"k": 2}}, "budget"),
        ({"estimator": "ais-hmc"}, "estimator ais-hmc against iwae"),
        ({"parents": {"calibration": None}}, "not both calibrated"),
    ],
)
def test_unlike_scores_are_not_compared(changes, says):
    own = published("memory://unfamiliar/a", MAIN)
    parents = own.parents | changes.pop("parents", {})
    parents = {name: digest for name, digest in parents.items() if digest is not None}
    other = own.model_copy(update={"metadata": own.metadata | changes, "parents": parents})
    with pytest.raises(ConfigError, match=says):
        require_comparable_scores(own, other, ("here", "there"))


def test_tables_come_back_as_they_were_written():
    data = MAIN.to_parquet(16, {})
    again = Scores.from_parquet(data, "t")
    assert again.to_parquet(16, {}) == data
    assert again.label == LABEL
    halves = [again.take(torch.arange(100, 200)), again.take(torch.arange(100))]
    whole = Scores.concatenate(halves)
    assert whole.rows.keys == [*again.rows.keys[100:], *again.rows.keys[:100]]
    assert torch.equal(whole.columns[OOD_COLUMN][:100], again.columns[OOD_COLUMN][100:])
    labelled = replace(MAIN, rows=replace(MAIN.rows, labels_B=torch.arange(200) % 3))
    assert Scores.from_parquet(labelled.to_parquet(16, {}), "t").rows.labels_B.tolist() == [
        i % 3 for i in range(200)
    ]


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.metadata.pop("label"),
        lambda m: m.metadata.update(budget=3),
        lambda m: m.metadata.pop("split"),
        lambda m: m.metadata.update(rare=None),
        lambda m: m.metadata.update(rare={"nats": float("nan")}),
        lambda m: m.metadata.update(rare={"nats": -1}),
        lambda m: m.parents.pop("model"),
        lambda m: m.parents.pop("dataset"),
    ],
)
def test_a_manifest_without_what_is_read_is_an_error_that_names_its_folder(change, tmp_path):
    own, other = published(str(tmp_path / "own"), MAIN), published(str(tmp_path / "other"), OTHER)
    change(other)
    roots = str(tmp_path / "own"), str(tmp_path / "other")

    def compare():
        require_comparable_scores(own, other, roots)
        ood_auroc(roots, own, other)

    with pytest.raises(DataError, match=r"other.*remove that folder and run its stage again"):
        compare()
