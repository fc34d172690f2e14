"""What the page shows of other files is checked first: one error that names the file and the field."""

from __future__ import annotations

import copy
import json

import pytest

from genmod.errors import DataError
from genmod.evaluation.measure import metrics_from
from genmod.report.evaluated import (
    check_latent_use,
    family_and_events,
    read_history,
    shown_evaluation,
)

EVALUATION = {
    "model": "m",
    "metrics": [],
    "samples": {"rows": 16, "sampler": "ancestral", "draws_from_p": True, "seed": 0},
    "features": {"label": "pca-v1@1a2b", "rows": 16},
    "class_counts": {"samples": [6, 4], "reference": [7, 3]},
    "class_names": ["a", "b"],
    "scores": {
        "label": "exact",
        "estimator": "flow",
        "of": "model",
        "measure": "lebesgue[-1,1]",
        "budget": {"k": 2, "tolerance": 0.5, "rule": "x"},
        "n": 10,
        "mean_nats": -572.5,
        "mean_nats_stderr": 11.0,
        "mean_bits_per_dim": 12.9,
        "mean_bits_per_dim_stderr": 0.2,
        "histogram": {"low": -1.0, "high": 1.0, "counts": [1, 0], "below": 1, "above": 0},
    },
    "unscored": "",
    "ood": None,
    "quality_vs_nfe": [{"curve": "heun", "nfe": 3, "fd": 1.5}],
}
HISTORY = [{"nimg": 10, "metrics": {"train/d/loss": 3.0}}]
LATENTS = {
    "active_units": 3.0,
    "kl_nats": 1.5,
    "mutual_information_nats": 1.0,
    "mutual_information_limit_nats": 2.0,
    "collapsed": 1.0,
    "kl_nats_of_unit/000": 1.5,
}


def changed(tree, path, value):
    tree = copy.deepcopy(tree)
    inner = tree
    for key in path[:-1]:
        inner = inner[key]
    if value is None:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return tree


def test_an_evaluation_is_shown_as_it_is():
    shown = shown_evaluation(EVALUATION, "evaluation.json")
    assert shown["scores"]["budget"] == EVALUATION["scores"]["budget"]
    assert shown["samples"] == {"rows": 16, "sampler": "ancestral", "draws_from_p": True}
    assert shown["features"] == {"label": "pca-v1@1a2b", "rows": 16}
    assert shown["class_counts"]["samples"] == (6, 4)
    assert shown["ood"] is None
    assert shown_evaluation(changed(EVALUATION, ["scores"], None), "x").get("scores") is None


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["samples"], None),
        (["samples", "rows"], "many"),
        (["samples", "rows"], -1),
        (["features", "val_accuracy"], 0.5),
        (["class_counts", "samples"], [1, 2, 3]),
        (["class_counts", "samples"], []),
        (["class_counts", "samples"], [-1, 2]),
        (["class_shares"], {"classes": "x", "samples": -1}),
        (["class_names"], ["a"]),
        (["scores", "mean_nats"], None),
        (["scores", "mean_nats"], 1e308),
        (["scores", "mean_nats"], float("nan")),
        (["scores", "n"], 10**400),
        (["scores", "measure"], "lebesgue[1,1]x"),
        (["scores", "measure"], "lebesgue[1,1]"),
        (["scores", "measure"], "lebesgue[2,1]"),
        (["scores", "budget"], [1]),
        (["scores", "histogram", "counts"], []),
        (["scores", "histogram", "low"], "0"[:0]),
        (["quality_vs_nfe"], [{"curve": "heun"}]),
        (["ood"], {"columns": 1}),
    ],
)
def test_other_evaluations_are_refused(path, value):
    field = path[0].replace("_", ".")
    with pytest.raises(DataError, match=rf"^evaluation\.json is not an evaluation \(.*{field}"):
        shown_evaluation(changed(EVALUATION, path, value), "evaluation.json")


@pytest.mark.parametrize(
    "history",
    [
        None,
        {},
        "text",
        [1],
        [{"nimg": 1}],
        [{"nimg": -1, "metrics": {}}],
        [{"nimg": 1, "metrics": {"train/d/loss": "3"}}, {"nimg": 2, "metrics": {"a": "x"}}],
        [{"nimg": 1, "metrics": {"train/d/loss": 1e300}}],
        [{"nimg": 1, "metrics": {"train/d/loss": [1]}}],
    ],
)
def test_other_histories_are_refused(history):
    assert read_history(json.dumps(HISTORY).encode(), "h")[0].metrics == {"train/d/loss": 3.0}
    with pytest.raises(DataError, match=r"^history\.json is not a training history"):
        read_history(json.dumps(history).encode(), "history.json")


def test_a_history_that_is_cut_off_is_refused():
    with pytest.raises(DataError, match=r"^history\.json is not valid JSON"):
        read_history(json.dumps(HISTORY).encode()[:-2], "history.json")


@pytest.mark.parametrize("entries", [None, 1, {}, [1], [{"value": 1}], [[]]])
def test_other_metrics_are_refused(entries):
    with pytest.raises(DataError, match=r"^the evaluation of m is not a list of metrics"):
        metrics_from({"model": "m", "metrics": entries})


def test_other_models_and_latents_are_refused():
    assert family_and_events({"family": "vae", "monitor_events": ["x"]}, "m") == ("vae", ("x",))
    check_latent_use(LATENTS, "h")
    for metadata in ({}, {"family": 3}, {"family": "vae", "monitor_events": [1]}):
        with pytest.raises(DataError, match="is not a trained model"):
            family_and_events(metadata, "m")
    for name in LATENTS.keys() - {"kl_nats_of_unit/000"}:
        fewer = {key: value for key, value in LATENTS.items() if key != name}
        with pytest.raises(DataError, match=f"is not the use of latents .{name}: Field required"):
            check_latent_use(fewer, "h")
