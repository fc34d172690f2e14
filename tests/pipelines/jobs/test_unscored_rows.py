"""Rows that cannot be scored: all others are delivered, the list is complete, and readers count right."""

import io
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from genmod.errors import ConfigError, GenmodError
from genmod.interface.model import DataStats
from genmod.interface.registry import ModelConfig, family
from genmod.interface.snapshot import ManifestSnapshot
from genmod.lineage.nodes import read_node
from genmod.manifest import ImageSpec, Manifest, find_problems, load_manifest, read_listed
from genmod.manifest.one_class import NUMERICS_FILE
from genmod.numerics import numeric_class
from genmod.scoring.calibrated import counted_tables, read_scores
from genmod.scoring.config import ScoreConfig
from genmod.scoring.ood_scores import CalibrationConfig
from genmod.selection.expression import parse_condition
from genmod.selection.job import count_rows
from genmod.selection.rows import RowSelection
from genmod.selection.split_scores import SplitScores
from genmod.storage import sha256
from genmod.training.publish import publish_model
from genmod.training.state import TrainState
from pipelines.jobs.job_state import BulkJobState
from pipelines.jobs.score_plan import ScoreJob, plan_score
from pipelines.jobs.scoring import ScoreActor, bulk_score_job, score
from pipelines.stages.first_lines import mean_line
from tests.builders import write_noise

SPEC = ImageSpec(channels=1, height=8, width=8, classes=3)
ROWS, BAD, SEED = 14, 5, 3
CONFIG = ScoreConfig(
    rows_per_task=4, micro_batch=4, calibration=CalibrationConfig(rows=20), workers=2
)


@pytest.fixture
def job(tmp_path):
    """Makes the job of a model with a fault at a row."""

    def make(name="out", **fault):
        write_noise(str(tmp_path / "data"), SPEC, {"val": ROWS})
        net = family("faulty").Config.tiny().model_dump() | {"of_scores": True} | fault
        stats = DataStats(mean=(0.0,), std=(0.5,))
        config = ModelConfig(family="faulty", net=net, spec=SPEC, stats=stats)
        state = TrainState(0, config.build(1), config.build(2), ())
        root = str(tmp_path / f"model-{fault}")
        publish_model(root, config, state, fingerprint=str(fault), parents={}, metadata={})
        return ScoreJob("faulty", root, str(tmp_path / "data"), str(tmp_path / name), {})

    return make


def actor_of(plan):
    return ScoreActor(plans=[plan], device="cpu", threads=1, deadline_s=60)


def run_without_ray(job, config, lost=()):
    """Publish the scores as the driver and one worker do it; a unit that raises is divided.

    Args:
        lost: names of units whose worker is lost, as often as they are listed.
    """
    plan = plan_score(job, config, seed=SEED)
    state = BulkJobState(bulk_score_job(plan, ManifestSnapshot()), None)
    actor, lost = actor_of(plan), Counter(lost)
    while (manifest := state.publish_if_done()) is None:
        for task in state.tasks(0):
            if lost[task["unit"]]:
                lost[task["unit"]] -= 1
                result = {"task": task, "error": "the worker was lost", "divisible": True}
            else:
                result = actor._with_retries(task)
            if "error" not in result:
                state.add(result)
            elif not state.failed(result):
                raise GenmodError(result["error"])
    assert not lost.total()
    return plan, manifest


def unscored(root, manifest):
    data = read_listed(root, manifest, "quarantine.parquet", "")
    table = pq.read_table(io.BytesIO(data)).to_pydict()
    return list(zip(table["key"], table["name"], table["reason"], strict=True))


PLAIN = CONFIG.model_copy(update={"calibration": None})


@pytest.mark.parametrize(
    ("fault", "reason", "tables"),
    [("not_finite_at", "not finite", 4), ("crashes_at", "ValueError: a planted error", 5)],
)
def test_one_row_is_listed_and_all_others_keep_their_bits(job, fault, reason, tables):
    _, good = run_without_ray(job("good"), PLAIN)
    plan, manifest = run_without_ray(job(**{fault: BAD}), PLAIN)
    root = plan.out_root
    assert (manifest.metadata["n"], manifest.metadata["quarantined"]) == (ROWS - 1, 1)
    assert find_problems(root, manifest.files) == []
    ((key, index, why),) = unscored(root, manifest)
    assert (key, index) == (f"val-{BAD}", str(BAD))
    assert reason in why
    left = [row for row in range(ROWS) if row != BAD]
    whole, scores = read_scores(job("good").out_root, good), read_scores(root, manifest)
    assert scores.rows.index_B.tolist() == left
    assert torch.equal(scores.nats_B, whole.nats_B[left])
    assert len(counted_tables(root, manifest)) == tables
    assert len(read_node(f"{root}/scores.json").tables) == tables
    # The interval is for the rows that have a score: all of them were scored.
    assert manifest.metadata["split_rows"] == ROWS
    assert "all 13 rows" in manifest.metadata["split_mean_nats"]["method"]
    assert "1 rows in quarantine; mean of 13 rows" in mean_line("score", manifest)
    assert "for the other rows of val" in mean_line("score", manifest)
    # A selection counts the row as one without a score.
    data = ManifestSnapshot().dataset(plan.data_root)
    for choice in ("refuse", "keep", "drop"):
        parts = (SplitScores(root, manifest),)
        selected = RowSelection(plan.data_root, data, parts, parse_condition("nats < 0"), choice)
        if choice == "refuse":
            with pytest.raises(ConfigError, match=r"1 of val \(1 of them could not be scored\)"):
                selected.check()
            continue
        selected.check()
        kept = sum(choice.kept for choice in selected.choices())
        assert kept == (ROWS if choice == "keep" else ROWS - 1)
        assert count_rows(selected, f"{root}-selected") is not None


@pytest.mark.parametrize("times", [2, 3])
def test_a_fault_that_passes_leaves_no_trace(job, times):
    _, good = run_without_ray(job("good"), PLAIN)
    plan, manifest = run_without_ray(job(), PLAIN, ["val-000000-001"] * times)
    assert manifest.digest == good.digest
    assert find_problems(plan.out_root, manifest.files) == []


def test_parts_stay_where_the_whole_unit_fails_again_and_again(job):
    _, good = run_without_ray(job("good"), PLAIN)
    plan, manifest = run_without_ray(job(), PLAIN, ["val-000000-001"] * 4)
    assert len(manifest.files) == len(good.files) + 1
    whole, scores = read_scores(job("good").out_root, good), read_scores(plan.out_root, manifest)
    assert scores.rows.keys == whole.rows.keys
    assert torch.equal(scores.nats_B, whole.nats_B)


def test_files_are_named_by_content_and_receipts_have_the_numeric_class(job):
    plan, manifest = run_without_ray(job(), PLAIN)
    for entry in manifest.files:
        data = Path(plan.out_root, entry.path).read_bytes()
        assert entry.path.endswith(f"-{sha256(data)[:12]}.parquet")
    assert manifest.metadata["numerics"] == [numeric_class("cpu")]


def test_a_strict_job_refuses_a_worker_of_another_class_and_any_lists_it(job):
    strict = plan_score(job("strict"), PLAIN, seed=SEED)
    Path(strict.out_root).mkdir(parents=True)
    Path(strict.out_root, NUMERICS_FILE).write_text("cpu other")
    with pytest.raises(GenmodError, match=r"numeric class 'cpu other'.*score\.numerics"):
        run_without_ray(job("strict"), PLAIN)
    lenient = PLAIN.model_copy(update={"numerics": "any"})
    plan, manifest = run_without_ray(job("strict"), lenient)
    assert manifest.metadata["numerics"] == [numeric_class("cpu")]
    assert plan.fingerprint == strict.fingerprint
    portable = PLAIN.model_copy(update={"numerics": "portable"})
    assert plan_score(job("strict"), portable, seed=SEED).fingerprint != plan.fingerprint


def test_a_model_that_scores_no_row_stops_after_a_few_tasks(job):
    made = job()
    plan = plan_score(made, PLAIN, seed=SEED)
    actor = actor_of(plan)
    model = actor.model(plan.model_root, plan.model_digest, plan.config.weights)
    for parameter in model.parameters():
        parameter.data.fill_(torch.nan)
    tasks = BulkJobState(bulk_score_job(plan, ManifestSnapshot()), None).tasks(0)
    results = [actor._with_retries(task) for task in tasks]
    assert ["error" in result for result in results] == [False, False, True, True]
    assert "no row of 3 tasks has a score; val-8: its log-likelihood is not" in results[2]["error"]
    assert not results[2].get("divisible")


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("not_finite_at", "not finite"),
        ("crashes_at", "a planted error"),
        ("hangs_at", "longer than its deadline"),
    ],
)
def test_rows_that_cannot_be_scored_are_listed_and_all_others_are_delivered(
    job, ray_session, fault, reason
):
    made = job(**{fault: BAD})
    config = CONFIG
    if fault != "not_finite_at":  # each of three rounds starts workers
        config = PLAIN.model_copy(update={"rows_per_task": 2})
    if fault == "hangs_at":
        config = config.model_copy(update={"deadline_s": 15})
    with pytest.raises(
        GenmodError, match=r"1 rows could not be scored, more than score\.max_quarantined=0"
    ):
        score(made, config, seed=SEED)
    manifest = load_manifest(Manifest, made.out_root, "scores")
    assert find_problems(made.out_root, manifest.files) == []
    scores = read_scores(made.out_root, manifest)
    assert scores.rows.index_B.tolist() == [row for row in range(ROWS) if row != BAD]
    if config.calibration is not None:
        assert manifest.metadata["calibrated"]["rows"] == ROWS - 1
    ((key, index, why),) = unscored(made.out_root, manifest)
    assert (key, index) == (f"val-{BAD}", str(BAD))
    assert reason in why
    # The same command says so again, and within the limit it is a success.
    with pytest.raises(GenmodError, match="could not be scored"):
        score(made, config, seed=SEED)
    allowed = config.model_copy(update={"max_quarantined": 1})
    assert score(made, allowed, seed=SEED).digest == manifest.digest
