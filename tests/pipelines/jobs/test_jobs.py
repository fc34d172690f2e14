"""Bulk sampling and scoring: bytes depend on the recipe alone, every row once, interrupted jobs resume."""

import json
import math
import re
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset

from genmod.config import as_json
from genmod.data.format.codecs import Codec
from genmod.data.format.shards import Row, write_shard
from genmod.data.reading.reader import RowReader, read_rows, split_reader
from genmod.errors import ConfigError, Unscorable
from genmod.generation.config import SampleConfig
from genmod.interface.model import DataStats
from genmod.interface.model_store import load_model
from genmod.interface.registry import ModelConfig, families, family
from genmod.interface.snapshot import ManifestSnapshot
from genmod.manifest import (
    DatasetManifest,
    ImageSpec,
    Manifest,
    dataset_metadata,
    find_problems,
    load_manifest,
    publish,
)
from genmod.rng import rng_for
from genmod.scoring.config import ScoreConfig
from genmod.scoring.ood_scores import CalibrationConfig
from genmod.scoring.table import read_parquet
from genmod.scoring.work_units import SCORE_PURPOSE
from genmod.training.publish import publish_model
from genmod.training.state import TrainState
from pipelines.jobs.bulk import BulkOptions
from pipelines.jobs.sample_plan import SampleJob, plan_sample
from pipelines.jobs.sampling import bulk_sample_job, regenerate, sample_models
from pipelines.jobs.scoring import bulk_score_job, score_models
from pipelines.stages.score import ScoreJob, plan_score
from tests.processes import TIMEOUT_S

SPEC = ImageSpec(channels=1, height=8, width=8, classes=3)
SEED = 11
SAMPLE = SampleConfig(count=22, shard_rows=6, micro_batch=4, workers=2)
SCORE = ScoreConfig(rows_per_task=3, micro_batch=2, workers=2)


def scorable(name):
    model_class = family(name)
    try:
        model_class.check_scorable(model_class.Config.tiny(), model_class.Score.tiny())
    except Unscorable:
        return False
    return True


def tiny(name):
    return as_json(family(name).Score.tiny())


SCORABLE = [name for name in families() if scorable(name)]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder with a model of each family and a dataset of 11 rows in two shards."""
    root = tmp_path_factory.mktemp("jobs")
    for name in families():
        net = family(name).Config.tiny().model_dump()
        stats = DataStats(mean=(0.0,), std=(0.5,))
        config = ModelConfig(family=name, net=net, spec=SPEC, stats=stats)
        state = TrainState(0, config.build(1), config.build(2), ())
        publish_model(
            str(root / "models" / name), config, state, fingerprint=name, parents={}, metadata={}
        )
    publish_dataset(str(root / "data"), SPEC, (7, 4))
    return root


def publish_dataset(where, spec, sizes):
    pixels = rng_for(0, "pixels", range(sum(sizes))).integers(256, 8, 8, 1).to(torch.uint8)
    shards, stats, first = [], {}, 0
    for number, size in enumerate(sizes):
        rows = [
            Row(f"k{i}", 2 * i, pixels[i].numpy(), label=i % spec.classes if spec.classes else None)
            for i in range(first, first + size)
        ]
        shard, metadata = write_shard(where, f"val-{number:06d}", "val", spec, rows)
        shards.append(shard)
        stats["val"] = stats["val"] + metadata if stats else metadata
        first += size
    metadata = dataset_metadata(stats)
    publish(
        where, DatasetManifest(fingerprint="d", spec=spec, shards=tuple(shards), metadata=metadata)
    )


def sample_jobs(root, out):
    return [
        SampleJob(name, str(root / "models" / name), str(out / name), {}) for name in families()
    ]


def score_jobs(root, out):
    return [
        ScoreJob(name, str(root / "models" / name), str(root / "data"), str(out / name), tiny(name))
        for name in SCORABLE
    ]


def only(folder):
    """The one folder in a folder."""
    (path,) = folder.iterdir()
    return path


def files(folder):
    """Every file's bytes, except of what a process that was killed had not renamed yet."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(Path(folder).rglob("*"))
        if path.is_file() and not path.name.startswith(".pending-")
    }


class Recorder:
    """Progress that keeps task, done and total of every update."""

    def __init__(self, updates):
        self.updates = updates

    def update(self, task, done, total, unit, note="", left_s=None):
        self.updates.append((task, done, total))

    def log(self, text):
        """What the job says besides; nothing is done with it."""


@pytest.fixture(scope="module")
def sampled(root, ray_session):
    """All families sampled by two actors, and the progress that was reported."""
    updates = []
    options = BulkOptions(progress=Recorder(updates))
    out = root / "samples"
    manifests = sample_models(sample_jobs(root, out), SAMPLE, seed=SEED, options=options)
    return out, manifests, updates


@pytest.fixture(scope="module")
def scored(root, ray_session):
    out = root / "scores"
    return out, score_models(score_jobs(root, out), SCORE, seed=SEED)


@pytest.mark.ray
@pytest.mark.slow
def test_one_actor_or_two_write_the_same_bytes(root, sampled, scored, tmp_path):
    alone = SAMPLE.model_copy(update={"workers": 1})
    sample_models(sample_jobs(root, tmp_path / "samples"), alone, seed=SEED)
    assert files(tmp_path / "samples") == files(sampled[0])
    alone = SCORE.model_copy(update={"workers": 1})
    score_models(score_jobs(root, tmp_path / "scores"), alone, seed=SEED)
    assert files(tmp_path / "scores") == files(scored[0])


@pytest.mark.ray
def test_a_synthetic_dataset_is_whole_and_has_its_metadata(root, sampled):
    out, manifests, updates = sampled
    for name in families():
        counts = [done for task, done, total in updates if task == f"sample {name}"]
        assert (counts[0], counts[-1]) == (0, SAMPLE.count)
        assert counts == sorted(counts)
    assert {total for _, _, total in updates} == {SAMPLE.count}
    for name, manifest in zip(families(), manifests, strict=True):
        here = str(out / name)
        assert load_manifest(DatasetManifest, here, "dataset") == manifest
        assert [shard.rows for shard in manifest.shards] == [6, 6, 6, 4]
        entries = [file for shard in manifest.shards for file in (shard.tar, shard.index)]
        assert find_problems(here, entries) == []
        digest = json.loads((root / "models" / name / "model.json").read_bytes())["digest"]
        assert manifest.parents == {"model": digest}
        options = family(name).Sample()
        metadata = manifest.metadata["sample"]
        assert metadata["seed"] == SEED
        assert (metadata["weights"], metadata["labels"]) == ("ema", "balanced")
        assert (metadata["sampler"], metadata["draws_from_p"]) == (
            options.sampler,
            options.draws_from_p,
        )
        assert manifest.metadata["splits"]["train"]["rows_K"] == [8, 7, 7]


@pytest.mark.ray
@pytest.mark.parametrize("name", families())
def test_a_regenerated_image_equals_the_one_in_the_tar(root, sampled, name):
    here, model = str(sampled[0] / name), str(root / "models" / name)
    for index in (0, 7, 21):
        again = regenerate(here, model, index)
        batch = read_rows(here, sampled[1][families().index(name)], "train", [index])
        assert np.array_equal(again.image_HWC, batch.pixels_BCHW[0].permute(1, 2, 0).numpy())
        assert again.label == int(batch.labels_B[0]) == index % 3
    beyond = regenerate(here, model, 1_000_000)
    assert beyond.image_HWC.shape == (8, 8, 1)
    other = next(other for other in families() if other != name)
    with pytest.raises(ConfigError, match="was made by"):
        regenerate(here, str(root / "models" / other), 0)


@pytest.mark.ray
@pytest.mark.parametrize("name", families())
def test_webdataset_reads_the_tars(sampled, name):
    tars = sorted(str(path) for path in (sampled[0] / name).glob("*.tar"))
    samples = list(webdataset.WebDataset(tars, shardshuffle=False))
    assert [json.loads(sample["json"])["index"] for sample in samples] == list(range(22))
    digest = sampled[1][families().index(name)].parents["model"]
    assert {json.loads(sample["json"])["model"] for sample in samples} == {digest}
    pixels_BCHW = Codec(SPEC).decode([sample["png"] for sample in samples])
    whole = split_reader(str(sampled[0] / name), sampled[1][families().index(name)], "train")
    assert np.array_equal(pixels_BCHW, whole.pixels(np.arange(22)))


@pytest.mark.ray
@pytest.mark.parametrize("name", SCORABLE)
def test_every_row_has_the_score_that_the_model_returns(root, scored, name):
    out, manifests = scored
    manifest = manifests[SCORABLE.index(name)]
    names = [
        "val-000000-000",
        "val-000000-001",
        "val-000000-002",
        "val-000001-000",
        "val-000001-001",
    ]
    assert [file.path.rpartition("-")[0] for file in manifest.files] == names
    assert find_problems(str(out / name), manifest.files) == []
    tables = [
        read_parquet((out / name / file.path).read_bytes(), file.path) for file in manifest.files
    ]
    rows = [row for table, _ in tables for row in table.to_pylist()]
    assert [row["key"] for row in rows] == [f"k{i}" for i in range(11)]
    assert [row["index"] for row in rows] == list(range(0, 22, 2))
    assert [row["label"] for row in rows] == [i % 3 for i in range(11)]

    dataset = load_manifest(DatasetManifest, str(root / "data"), "dataset")
    model = load_model(str(root / "models" / name))
    options, direct = family(name).Score.tiny(), []
    for shard in dataset.stored(str(root / "data"), "val"):  # 7 and 4 rows in micro-batches of 2
        reader = RowReader(SPEC, [shard])
        for batch in reader.batches(2):
            full = batch.rows(torch.arange(2) % len(batch))
            log_prob = model.log_prob(full, rng_for(SEED, SCORE_PURPOSE, full.index_B), options)
            pairs = zip(log_prob.nats_B.tolist(), log_prob.stderr_B.tolist(), strict=True)
            direct += list(pairs)[: len(batch)]
    assert [(row["nats"], row["stderr"]) for row in rows] == direct

    nats = np.array([row["nats"] for row in rows])
    assert manifest.metadata["n"] == 11
    assert manifest.metadata["mean_nats"] == pytest.approx(nats.mean())
    assert manifest.metadata["mean_nats_stderr"] == pytest.approx(nats.std(ddof=1) / math.sqrt(11))
    assert manifest.metadata["mean_bits_per_dim"] == pytest.approx(-nats.mean() / 64 / math.log(2))
    whole = manifest.metadata["split_mean_nats"]
    noise = math.sqrt(sum(row["stderr"] ** 2 for row in rows)) / 11
    assert manifest.metadata["split_rows"] == 11
    assert whole["high"] - nats.mean() == pytest.approx(2.2281 * noise, rel=1e-3, abs=1e-9)
    for _, metadata in tables:
        for key in ("label", "estimator", "of", "measure", "budget", "split", "model", "dataset"):
            assert metadata[key] == manifest.metadata[key]
        assert metadata["label"] == log_prob.label
        assert {
            name: metadata[name] for name in ("model", "dataset")
        }.items() <= manifest.parents.items()

    order = np.argsort(np.argsort(nats))  # the calibration rows are these very rows
    assert [row["percentile"] for row in rows] == pytest.approx((100 * order / 10).tolist())
    least = np.minimum(order, 10 - order)
    assert [row["p_two_sided"] for row in rows] == pytest.approx(
        np.minimum(1, 2 * (1 + least) / 11).tolist()
    )
    assert manifest.metadata["calibrated"]["rows"] == 11
    assert manifest.metadata["recommended"] in rows[0]
    inner = load_manifest(Manifest, str(only(out / name / "calibration")), "scores")
    assert manifest.parents["calibration"] == inner.digest
    assert inner.metadata["mean_nats"] == manifest.metadata["mean_nats"]


@pytest.mark.ray
def test_other_data_is_compared_with_rows_of_the_model_s_own_data(root, ray_session, tmp_path):
    """And what is fitted before rows are scored is fitted to the model's own data, once."""
    publish_dataset(str(tmp_path / "other"), SPEC, (5,))
    options = tiny("gan") | {"sigma": "fit", "fit_rows": 4, "fit_rounds": 8, "max_rows": 5}
    model, data = str(root / "models" / "gan"), str(root / "data")
    job = ScoreJob("gan", model, str(tmp_path / "other"), str(tmp_path / "out"), options, data)
    config = SCORE.model_copy(update={"calibration": CalibrationConfig(rows=20)})
    plan = plan_score(job, config, seed=SEED)
    assert (plan.rows, plan.calibration.rows) == (5, 5)  # max_rows holds for both
    assert not plan.is_calibrated_by_own_rows
    jobs = [bulk_score_job(one, ManifestSnapshot()) for one in (plan, plan.calibration)]
    assert [job.setup_task is None for job in jobs] == [True, False]
    (manifest,) = score_models([job], config, seed=SEED)
    calibration = load_manifest(Manifest, str(only(tmp_path / "out" / "calibration")), "scores")
    assert calibration.parents["dataset"] == load_manifest(DatasetManifest, data, "dataset").digest
    assert manifest.parents["dataset"] != calibration.parents["dataset"]
    assert manifest.metadata["prepared"] == calibration.metadata["prepared"]
    assert {"sigma", "gap_nats", "gap_rows"} <= manifest.metadata["prepared"].keys()
    assert f"sigma {manifest.metadata['prepared']['sigma']:.6g}" in manifest.metadata["of"]
    assert not (tmp_path / "out" / "receipts" / "prepared.json").exists()
    restarted = bulk_score_job(plan.calibration, ManifestSnapshot())
    assert restarted.setup_task is None  # its receipt exists
    assert set(manifest.metadata["rare"]) == {"p_two_sided", "p_corrected"}


def test_impossible_calibration_is_refused_in_the_plan(root, tmp_path):
    job = score_jobs(root, tmp_path)[0]
    config = SCORE.model_copy(update={"calibration": CalibrationConfig(split="test")})
    with pytest.raises(ConfigError, match=r"score\.calibration\.split is test, which has 0 rows"):
        plan_score(job, config, seed=0)
    without = SCORE.model_copy(update={"calibration": None})
    plan = plan_score(job, without, seed=0)
    assert plan.calibration is None
    assert plan.fingerprint != plan_score(job, SCORE, seed=0).fingerprint
    shared = replace(job, calibration_root=str(tmp_path / "shared"))
    plans = [
        plan_score(replace(shared, out_root=str(tmp_path / folder)), SCORE, seed=seed)
        for folder, seed in (("a", 0), ("b", 0), ("b", 1))
    ]
    roots = [plan.calibration.out_root for plan in plans]
    assert roots[0] == roots[1] != roots[2]
    many = {**tiny("gan"), "sigma": "fit", "fit_rows": 12}
    wants = ScoreJob("gan", str(root / "models" / "gan"), job.data_root, str(tmp_path), many)
    with pytest.raises(ConfigError, match="fits to 12 held-out rows"):
        plan_score(wants, SCORE, seed=0)


@pytest.mark.ray
def test_finished_jobs_need_no_ray(root, sampled, scored):
    def refuse():
        raise AssertionError("connected without work")

    before = files(sampled[0]), files(scored[0])
    options = BulkOptions(connect=refuse)
    again = sample_models(sample_jobs(root, sampled[0]), SAMPLE, seed=SEED, options=options)
    assert again == sampled[1]
    more = SCORE.model_copy(update={"workers": 7, "deadline_s": 5})
    assert score_models(score_jobs(root, scored[0]), more, seed=SEED, options=options) == scored[1]
    assert (files(sampled[0]), files(scored[0])) == before


@pytest.mark.ray
def test_a_folder_with_other_work_is_refused(root, sampled, scored):
    with pytest.raises(ConfigError, match="made from other inputs"):
        sample_models(sample_jobs(root, sampled[0]), SAMPLE, seed=SEED + 1)
    with pytest.raises(ConfigError, match="made from other inputs"):
        score_models(
            score_jobs(root, scored[0]), SCORE.model_copy(update={"max_rows": 3}), seed=SEED
        )


DRIVER = """
    import os, signal, sys
    from cluster.environment import set_environment
    set_environment()
    from pathlib import Path
    from cluster.session import LOCAL, ClusterConfig, connect
    from genmod.generation.config import SampleConfig
    from pipelines.jobs.bulk import BulkOptions
    from pipelines.jobs.sample_plan import SampleJob
    from pipelines.jobs.sampling import sample_models

    class Die:
        def update(self, task, done, total, unit, note="", left_s=None):
            if done:
                os.kill(os.getpid(), signal.SIGKILL)

        def log(self, text):
            print(text)

    connect(ClusterConfig(address=LOCAL, cpus=2))
    jobs = [SampleJob(n, f"{sys.argv[1]}/models/{n}", f"{sys.argv[2]}/{n}", {}) for n in sys.argv[4:]]
    config = SampleConfig.model_validate_json(sys.argv[3])
    sample_models(jobs, config, seed=11, options=BulkOptions(progress=Die()))
"""


@pytest.mark.ray
@pytest.mark.slow
def test_a_job_whose_driver_is_killed_resumes(root, sampled, tmp_path):
    slow = SAMPLE.model_copy(update={"workers": 1})  # one at a time, so that some are missing
    command = [sys.executable, "-c", textwrap.dedent(DRIVER), str(root), str(tmp_path)]
    command += [slow.model_dump_json(), *families()]
    driver = subprocess.run(command, timeout=TIMEOUT_S, check=False)
    assert driver.returncode == -signal.SIGKILL
    time.sleep(2)  # its actors end
    receipts = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/receipts/*.json")}
    assert 0 < len(receipts) < 4 * len(families())
    assert not list(tmp_path.glob("*/dataset.json"))
    first = sample_jobs(root, tmp_path)[0]
    last = sampled[1][0].shards[-1].tar.path
    if not (Path(first.out_root) / last).exists():
        (Path(first.out_root) / last).write_bytes(b"half a tar")

    again = sample_models(sample_jobs(root, tmp_path), SAMPLE, seed=SEED)
    assert [m.digest for m in again] == [m.digest for m in sampled[1]]
    assert files(tmp_path) == files(sampled[0])
    assert {path: path.stat().st_mtime_ns for path in receipts} == receipts


def test_unsupported_sampling_options_are_refused_in_the_plan(root, tmp_path):
    rejected = []
    for job in sample_jobs(root, tmp_path):
        model_class = family(job.name)
        for options in model_class.Sample.variants():
            label_request = replace(job, options=as_json(options))
            try:
                model_class.check_sampling(model_class.Config.tiny(), options, SPEC)
            except ConfigError as reason:
                with pytest.raises(ConfigError, match=re.escape(str(reason))):
                    plan_sample(label_request, SAMPLE, seed=0)
                rejected.append(options)
            else:
                assert plan_sample(label_request, SAMPLE, seed=0).sampler == options.sampler
    assert rejected


def test_impossible_jobs_are_refused_in_the_plan(root, tmp_path):
    name = families()[0]
    job = sample_jobs(root, tmp_path)[0]
    with pytest.raises(ConfigError, match="classes 0 to 2"):
        plan_sample(job, SampleConfig(labels=3), seed=0)
    with pytest.raises(ConfigError, match=f"model.{name}.sample.nonsense"):
        plan_sample(replace(job, options={"nonsense": 1}), SAMPLE, seed=0)
    with pytest.raises(ConfigError, match="no model at"):
        plan_sample(replace(job, model_root=str(tmp_path)), SAMPLE, seed=0)
    score = score_jobs(root, tmp_path)[0]
    with pytest.raises(ConfigError, match="no dataset at"):
        plan_score(replace(score, data_root=str(tmp_path)), SCORE, seed=0)
    with pytest.raises(ConfigError, match="is empty"):
        plan_score(score, SCORE.model_copy(update={"split": "test"}), seed=0)
    publish_dataset(str(tmp_path / "plain"), SPEC.model_copy(update={"classes": 0}), (3,))
    with pytest.raises(ConfigError, match="no labels; score a dataset of the same images"):
        plan_score(replace(score, data_root=str(tmp_path / "plain")), SCORE, seed=0)
    assert not list(tmp_path.glob(f"{name}*"))


@pytest.mark.parametrize("name", [name for name in families() if name not in SCORABLE])
def test_a_model_without_a_density_is_refused_in_the_plan(root, tmp_path, name):
    job = ScoreJob(name, str(root / "models" / name), str(root / "data"), str(tmp_path), {})
    with pytest.raises(Unscorable):
        plan_score(job, SCORE, seed=0)


def test_plans_contain_the_amount_of_work(root, tmp_path):
    plan = plan_sample(sample_jobs(root, tmp_path)[0], SAMPLE, seed=SEED)
    units = bulk_sample_job(plan, ManifestSnapshot()).units
    assert (plan.rows, [unit.num_rows for unit in units]) == (22, [6, 6, 6, 4])
    same = SAMPLE.model_copy(update={"workers": 1, "labels": "balanced"})
    assert (
        plan_sample(sample_jobs(root, tmp_path)[0], same, seed=SEED).fingerprint == plan.fingerprint
    )
    zero = SAMPLE.model_copy(update={"labels": 0})
    for other, seed in ((SAMPLE, SEED + 1), (zero, SEED)):
        changed = plan_sample(sample_jobs(root, tmp_path)[0], other, seed=seed)
        assert changed.fingerprint != plan.fingerprint
    own_seed = SAMPLE.model_copy(update={"seed": SEED + 1})
    as_recipe_s = plan_sample(sample_jobs(root, tmp_path)[0], SAMPLE, seed=SEED + 1)
    assert plan_sample(sample_jobs(root, tmp_path)[0], own_seed, seed=SEED).fingerprint == (
        as_recipe_s.fingerprint
    )
    assert plan_sample(sample_jobs(root, tmp_path)[0], own_seed, seed=SEED).seed == SEED + 1
    scores = plan_score(score_jobs(root, tmp_path)[0], SCORE, seed=SEED)
    assert (scores.rows, scores.tables) == (11, 5)
    assert not list(tmp_path.iterdir())
