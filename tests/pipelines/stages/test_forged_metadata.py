"""Metadata of manifests that other stages read is checked: one error that names the folder, no KeyError."""

from __future__ import annotations

import pytest

from genmod.errors import DataError
from genmod.interface.model import DataStats
from genmod.manifest import DatasetManifest, ImageSpec, Manifest
from pipelines.recipe.context import stats_of
from pipelines.stages.decisions import decided

SPEC = ImageSpec(channels=1, height=4, width=4)


@pytest.mark.parametrize(
    "stats",
    [
        None,
        [],
        {"mean": [0.0]},
        {"mean": [0.0], "std": [-1.0]},
        {"mean": [0.0], "std": [float("nan")]},
        {"mean": [], "std": []},
        {"mean": "0", "std": "1"},
        {"mean": [0.0] * 1000, "std": [0.5] * 1000},
    ],
)
def test_statistics_that_no_images_have_are_refused(stats):
    metadata = {} if stats is None else {"stats": stats}
    manifest = DatasetManifest(fingerprint="f", spec=SPEC, shards=(), metadata=metadata)
    with pytest.raises(DataError, match="the dataset's manifest is not one with pixel statistics"):
        stats_of(manifest)


def test_the_statistics_of_images_are_accepted():
    for mean, std in ((-0.99609375, 0.0), (0.0, 0.99609375), (0.3, 0.25)):
        stats = DataStats(mean=(mean,), std=(std,))
        manifest = DatasetManifest(
            fingerprint="f", spec=SPEC, shards=(), metadata={"stats": stats.model_dump(mode="json")}
        )
        assert stats_of(manifest) == stats


DECISION = {"promote": True, "reasons": ["better"], "candidate": {"version": "1"}, "champion": None}


@pytest.mark.parametrize(
    "change",
    [{"promote": [1]}, {"reasons": "better"}, {"reasons": [1]}, {"candidate": 1}, {"champion": 1}],
)
def test_other_decisions_are_refused(change):
    made = Manifest(kind="decision", fingerprint="f", metadata=DECISION).sealed()
    assert decided(made).reasons == ("better",)
    assert decided(made).model_dump(mode="json") == DECISION
    with pytest.raises(DataError, match="is not a decision on a model"):
        decided(Manifest(kind="decision", fingerprint="f", metadata=DECISION | change))
    with pytest.raises(DataError, match="is not a decision on a model"):
        decided(Manifest(kind="decision", fingerprint="f", metadata={}))
