"""Evaluations and their report, from real datasets on disk: scikit-learn's digits as data and as samples."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
import shutil
import tarfile
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from genmod import storage
from genmod.data.format.image_grid import png
from genmod.data.format.shards import Row, write_shard
from genmod.errors import ConfigError, DataError
from genmod.evaluation.features_job import FeaturesJob
from genmod.evaluation.jobs import EvaluationJob
from genmod.evaluation.measure import metrics_from
from genmod.interface.log_prob import LogProb
from genmod.interface.snapshot import ManifestSnapshot
from genmod.manifest import DatasetManifest, ImageSpec, Manifest, load_manifest, publish, write_file
from genmod.metrics.features import FeaturesConfig
from genmod.metrics.protocol import EvaluateConfig
from genmod.report.model_page import ModelPage
from genmod.report.page import ReportContent, render
from genmod.scoring.calibrated import add_ood_scores
from genmod.scoring.label import ScoreLabel
from genmod.scoring.moments import RunningMoments
from genmod.scoring.ood_scores import COMPRESSED_COLUMN, count_rare
from genmod.scoring.table import Rows, Scores, summary
from pipelines.commands.verify import verify
from pipelines.jobs.report import ReportJob
from pipelines.recipe.context import Context
from pipelines.recipe.progress import ProgressDisplay
from pipelines.recipe.recipe import Recipe
from pipelines.stages.evaluate import stage

SPEC = ImageSpec(channels=1, height=8, width=8, classes=10)
CONFIG = EvaluateConfig(
    images=300,
    memorisation_calibration=600,
    features=FeaturesConfig(rows=600, train_images=3_000),
)
MODELS = ("vae", "gan")
UNSCORED = "it has no density"


def digits(begin, end):
    found = load_digits()
    pixels_NHW = (found.images[begin:end] * (255 / 16)).astype(np.uint8)
    return pixels_NHW[..., None], found.target[begin:end]


def dataset(root, parts, metadata=None, spec=SPEC, parents=None):
    shards = []
    for split, (begin, end) in parts.items():
        images, labels = digits(begin, end)
        rows = [
            Row(f"{split}{i}", i, image[: spec.height], int(label))
            for i, (image, label) in enumerate(zip(images, labels, strict=True))
        ]
        shards.append(write_shard(root, f"{split}-000000", split, spec, rows)[0])
    return publish(
        root,
        DatasetManifest(
            fingerprint=f"{root}{parts}",
            spec=spec,
            shards=tuple(shards),
            metadata=metadata or {"source": "builtin:digits"},
            parents=parents or {},
        ),
    )


def model(root, family, **more):
    history = [
        {
            "nimg": n,
            "metrics": {"train/all/loss": 1e3 / n, "val/all/loss": 2e3 / n, "train/all/lr": 0.1},
        }
        for n in range(100, 2000, 100)
    ]
    if family == "vae":
        used = {"active_units": 0, "kl_nats": 0.25, "kl_nats_of_unit/000": 0.25, "collapsed": 1.0}
        used |= {"mutual_information_nats": 0.125, "mutual_information_limit_nats": 5.5}
        history[-1]["metrics"] |= {f"latents/{key}": value for key, value in used.items()}
    entry = write_file(root, "history.json", json.dumps(history).encode())
    metadata = {"family": family, **more}
    files = [entry]
    if family == "vae":
        names = "latents/reconstructions.png", "latents/traversals.png"
        files += [
            write_file(root, name, png(torch.zeros(1, 4, 4, dtype=torch.uint8))) for name in names
        ]
    return publish(
        root, Manifest(kind="model", fingerprint=root, files=tuple(files), metadata=metadata)
    )


def scores(root, model="", data="", rows=97, split="val"):
    nats_B = torch.linspace(-140, -90, rows, dtype=torch.float64)
    log_prob = LogProb(
        nats_B, nats_B * 0, "stochastic_lower_bound", "iwae", "prior", "counts", {"k": 64}
    )
    keys = [f"{split}{i}" for i in range(rows)]
    made = Scores.from_log_probs(Rows(keys, torch.arange(rows), None), [log_prob])
    entry = write_file(root, "val-000000.parquet", made.to_parquet(SPEC.dims, {}))
    label = ScoreLabel.from_log_prob(log_prob)
    metadata = summary([RunningMoments.of(nats_B)], SPEC.dims, label) | {
        "split": split,
        "rows_of_files": [rows],
    }
    parents = {"model": model, "dataset": data}
    return publish(
        root,
        Manifest(
            kind="scores", fingerprint=root, files=(entry,), metadata=metadata, parents=parents
        ),
    )


def calibrated_scores(root, model, data, shift):
    """Likelier by ``shift`` nats and twice that simpler than what belongs."""
    nats_B = torch.linspace(-140, -90, 60, dtype=torch.float64) + shift
    log_prob = LogProb(nats_B, nats_B * 0, "lower_bound", "iwae", "prior", "counts", {"k": 1})
    rows = Rows([f"val{i}" for i in range(60)], torch.arange(60), None)
    joined = Scores.from_log_probs(rows, [log_prob])
    known = joined.with_columns({COMPRESSED_COLUMN: -1.5 * (nats_B - shift)})
    sized = joined.with_columns({COMPRESSED_COLUMN: -1.5 * nats_B - 3 * shift})
    made = add_ood_scores(sized, replace(known, nats_B=nats_B - shift), SPEC, own=False)
    entry = write_file(root, "t.parquet", made.to_parquet(SPEC.dims, {}))
    metadata = summary([RunningMoments.of(nats_B)], SPEC.dims, made.label)
    metadata["prepared"] = {"gap_nats": 1.25, "gap_nats_stderr": 0.5, "gap_rows": 4}
    metadata |= {
        "split": "val",
        "rows_of_files": [60],
        "rare": {k: v / 60 for k, v in count_rare(made.columns).items()},
    }
    parents = {"model": model, "dataset": data, "calibration": "c"}
    publish(
        root,
        Manifest(
            kind="scores", fingerprint=root, files=(entry,), metadata=metadata, parents=parents
        ),
    )


def page_of(name, metadata):
    pictures = {"samples.png": b"", "nearest.png": b""}
    return ModelPage(name, name, metrics_from(metadata), metadata, pictures)


def fill(root):
    """What the stages before leave behind: a scored model and one without a density."""
    parts = {"train": (0, 1000), "val": (1000, 1200), "test": (1200, 1500)}
    data = dataset(f"{root}/data", parts)
    for name in ("vae", "gan"):
        events = (
            {"monitor_events": [f"at 9,000 images: coverage < {name}"]} if name == "gan" else {}
        )
        made = model(f"{root}/models/{name}", name, **events)
        metadata = {"sample": {"sampler": "ancestral", "draws_from_p": True, "seed": 0}}
        parents = {"model": made.digest}
        dataset(f"{root}/samples/{name}", {"train": (1500, 1790)}, metadata, parents=parents)
    of = load_manifest(Manifest, f"{root}/models/vae", "model")
    scores(f"{root}/scores/vae", of.digest, data.digest)
    return root


def features_job(root):
    return FeaturesJob(data_root=f"{root}/data", out_root=f"{root}/features", config=CONFIG)


def evaluation_job(root, name, **changes):
    options = {
        "name": name,
        "data_root": f"{root}/data",
        "samples_root": f"{root}/samples/{name}",
        "features_root": f"{root}/features",
        "out_root": f"{root}/evaluation/{name}",
        "scores_root": f"{root}/scores/vae" if name == "vae" else None,
        "unscored": "" if name == "vae" else UNSCORED,
        "config": CONFIG,
    }
    return EvaluationJob(**options | changes)


def report_job(root, title="genmod report"):
    return ReportJob(
        title=title,
        root=root,
        models=("vae", "gan"),
        out_root=f"{root}/report",
        tracking="mlflow ui",
    )


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    root = fill(str(tmp_path_factory.mktemp("evaluated")))
    features_job(root).do()
    for name in ("vae", "gan"):
        evaluation_job(root, name).do()
    report_job(root).do()
    return root


def test_an_evaluation_contains_its_metrics_and_its_inputs(evaluated):
    job = evaluation_job(evaluated, "vae")
    manifest = job.done()
    inputs = job.inputs(ManifestSnapshot())
    assert manifest.parents == {name: each.digest for name, each in inputs.items()}
    assert manifest.metadata["model_digest"] == inputs["samples"].parents["model"]
    assert manifest.metadata["features"]["val_accuracy"] > 0.4
    assert manifest.metadata["reference"]["rows"] == 300
    by_name = {r.value.protocol.metric: r for r in metrics_from(manifest.metadata)}
    assert by_name["fd"].value.protocol.n_fake == 290
    assert by_name["precision"].value.protocol.n_real == 290
    assert by_name["coverage"].relative_position < 0.2  # real digits were given as samples
    assert by_name["c2st"].value.protocol.n_fake == 290
    assert by_name["duplicates"].value.value == 0
    assert by_name["support_size"].value.interval.high == pytest.approx(64 * math.log10(256))
    assert by_name["memorisation"].value.value == 0
    assert by_name["memorisation"].value.protocol.settings["n_train"] == 1000
    assert "memorisation.parquet" in {entry.path for entry in manifest.files}


def test_scores_have_their_label_and_a_histogram_of_every_row(evaluated):
    metadata = evaluation_job(evaluated, "vae").done().metadata["scores"]
    assert metadata["mean_nats"] == pytest.approx(-115)
    assert (metadata["label"], metadata["estimator"]) == ("stochastic_lower_bound", "iwae")
    extremes = evaluation_job(evaluated, "vae").done().metadata["extremes"]
    assert extremes["most"][0] == {"key": "val96", "nats": -90.0}
    assert extremes["least"][0] == {"key": "val0", "nats": -140.0}
    histogram = metadata["histogram"]
    assert sum(histogram["counts"]) + histogram["below"] + histogram["above"] == 97
    without = evaluation_job(evaluated, "gan").done().metadata
    assert without["scores"] is None
    assert without["unscored"] == UNSCORED


def test_scores_of_the_reference_rows_are_a_metric(evaluated, tmp_path):
    job = evaluation_job(evaluated, "vae")
    assert "bits_per_dim" not in {
        r.value.protocol.metric for r in metrics_from(job.done().metadata)
    }
    made = job.inputs(ManifestSnapshot())
    root = str(tmp_path / "scores")
    scores(root, made["samples"].parents["model"], made["data"].digest, rows=300, split="test")
    other = evaluation_job(
        evaluated, "vae", scores_root=root, out_root=str(tmp_path / "evaluation")
    )
    metadata = other.do().metadata
    (found,) = [
        r.value for r in metrics_from(metadata) if r.value.protocol.metric == "bits_per_dim"
    ]
    assert found.value == pytest.approx(115 / 64 / math.log(2))
    assert found.name.startswith("bits_per_dim[stochastic_lower_bound@")
    assert found.protocol.settings["budget.k"] == 64
    assert found.value == pytest.approx(metadata["scores"]["mean_bits_per_dim"])


def test_scores_of_other_data_get_a_section_of_the_report(evaluated, tmp_path_factory):
    root = fill(str(tmp_path_factory.mktemp("ood")))
    of = load_manifest(Manifest, f"{root}/models/vae", "model").digest
    data = load_manifest(DatasetManifest, f"{root}/data", "dataset").digest
    for folder, dataset_digest, shift in (("own", data, 0.0), ("other", "digits", 30.0)):
        calibrated_scores(f"{root}/{folder}/vae", of, dataset_digest, shift)
    features_job(root).do()
    roots = {"scores_root": f"{root}/own/vae", "ood_root": f"{root}/other/vae"}
    job = evaluation_job(root, "vae", **roots)
    ood = job.do().metadata["ood"]
    assert (
        job.done().parents["ood"] == load_manifest(Manifest, f"{root}/other/vae", "scores").digest
    )
    raw, recommended = (
        next(c for c in ood["columns"] if c["name"] == name)
        for name in ("nats", "corrected_bits_per_dim")
    )
    assert raw["auroc"] < 0.2
    assert recommended["auroc"] > 0.9
    content = ReportContent(
        title="t",
        dims=SPEC.dims,
        levels=SPEC.levels,
        data=[],
        reference_png=b"",
        models=[page_of("vae", job.done().metadata)],
        provenance=[],
        tracking="nowhere",
    )
    page = render(content)
    assert "Out-of-distribution detection" in page
    assert f"{recommended['auroc']:.3f}" in page
    assert "(recommended)" in page
    assert re.search(
        r"gap between upper and lower bound on 4 samples of the model:\s+1\.25 ± 0\.500 nats", page
    )
    with pytest.raises(ConfigError, match="cannot be compared"):
        evaluation_job(root, "vae", ood_root=f"{root}/other/vae").check_inputs(ManifestSnapshot())


def test_everything_that_was_written_verifies(evaluated):
    for folder in ("features", "evaluation/vae", "evaluation/gan", "report"):
        assert verify(f"{evaluated}/{folder}") == []


def test_a_finished_evaluation_is_skipped(evaluated):
    root = f"{evaluated}/evaluation/vae"
    before = {url: storage.read_bytes(url) for url in storage.walk_files(root)}
    assert (
        evaluation_job(evaluated, "vae").do().digest
        == evaluation_job(evaluated, "vae").done().digest
    )
    assert {url: storage.read_bytes(url) for url in storage.walk_files(root)} == before


def test_the_same_work_in_another_folder_gives_the_same_result(evaluated, tmp_path):
    again = evaluation_job(evaluated, "gan", out_root=str(tmp_path)).do()
    first = evaluation_job(evaluated, "gan").done()
    assert again.metadata == first.metadata
    assert [f.sha256 for f in again.files] == [f.sha256 for f in first.files]


def test_other_settings_are_refused_in_the_same_folder(evaluated):
    other = CONFIG.model_copy(update={"neighbours": 3})
    with pytest.raises(ConfigError, match="made from other inputs"):
        evaluation_job(evaluated, "vae", config=other).do()


def test_missing_or_misshapen_inputs_are_refused_before_anything_is_written(evaluated, tmp_path):
    out = str(tmp_path / "out")
    with pytest.raises(ConfigError, match="genmod sample --model vae"):
        evaluation_job(evaluated, "vae", samples_root=str(tmp_path / "none"), out_root=out).do()
    with pytest.raises(ConfigError, match="genmod score --model vae"):
        evaluation_job(evaluated, "vae", scores_root=str(tmp_path / "none"), out_root=out).do()
    odd = ImageSpec(channels=1, height=6, width=8, classes=10)
    dataset(str(tmp_path / "odd"), {"train": (0, 20)}, spec=odd)
    with pytest.raises(ConfigError, match="1x6x8"):
        evaluation_job(evaluated, "vae", samples_root=str(tmp_path / "odd"), out_root=out).do()
    assert not storage.exists(out)


def test_scores_of_another_model_or_dataset_are_refused(evaluated, tmp_path):
    parents = evaluation_job(evaluated, "vae").inputs(ManifestSnapshot())["scores"].parents
    for what in ("model", "dataset"):
        other = str(tmp_path / what)
        changed = parents | {what: "0" * 64}
        scores(other, changed["model"], changed["dataset"])
        job = evaluation_job(evaluated, "vae", scores_root=other, out_root=str(tmp_path / "out"))
        with pytest.raises(ConfigError, match=f"of {what} 000000000000"):
            job.do()
    assert not (tmp_path / "out").exists()


def test_an_empty_reference_is_refused(evaluated, tmp_path):
    root = str(tmp_path)
    dataset(f"{root}/data", {"train": (0, 300)})
    job = evaluation_job(evaluated, "gan", data_root=f"{root}/data", out_root=f"{root}/out")
    with pytest.raises(ConfigError, match="the test split has no rows"):
        job.do()


class Page(HTMLParser):
    """Collects tags with attributes, and text."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.texts = [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.texts.append(data)


def test_the_report_is_one_file_and_shows_the_models_side_by_side(evaluated):
    html = storage.read_bytes(report_job(evaluated).page_url).decode()
    page = Page(html)
    sources = [attrs[key] for _, attrs in page.tags for key in ("src", "href") if key in attrs]
    assert all(re.match(r"data:image/png;base64,|#", source) for source in sources)
    assert "@import" not in html
    assert "url(" not in html
    assert sum(source.startswith("data:") for source in sources) == 8
    assert all(attrs.get("alt") for tag, attrs in page.tags if tag == "img")
    text = " ".join("".join(page.texts).split())
    label = features_job(evaluated).done().metadata["label"]
    happened = "at 9,000 images: coverage < gan"
    no_density = "No log-likelihood: it has no density"
    for expected in (
        f"fd[{label}]",
        "Coverage",
        "Two-sample test",
        "duplicates[pixels], 290 samples 0.0%",
        no_density,
        "-115.0",
        happened,
        "Posterior collapse",
        "0 of 1 units",
    ):
        assert expected in text
    assert "FID" not in text.replace("not FID scores", "")
    assert [tag for tag, _ in page.tags].count(
        "polyline"
    ) == 6  # loss in training and validation, rate


def test_the_report_allows_its_own_style_and_pictures_alone(evaluated):
    html = storage.read_bytes(report_job(evaluated).page_url).decode()
    page = Page(html)
    (policy,) = [
        a["content"] for t, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"
    ]
    style = html.partition("<style>")[2].partition("</style>")[0]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert policy.split("; ") == [
        "default-src 'none'",
        "img-src data:",
        f"style-src 'sha256-{digest}'",
        "base-uri 'none'",
        "form-action 'none'",
    ]
    assert html.index(policy) < html.index("<style>")
    # Nothing in the page needs what the policy forbids.
    assert [tag for tag, _ in page.tags].count("style") == 1
    assert {tag for tag, _ in page.tags} & {
        "script",
        "link",
        "iframe",
        "object",
        "form",
        "base",
    } == set()
    keys = {key for _, attrs in page.tags for key in attrs}
    assert "style" not in keys
    assert [key for key in keys if key.startswith("on")] == []


def test_hostile_names_are_escaped(evaluated, tmp_path):
    title = "<script>alert(1)</script>\"'&"
    job = report_job(evaluated, title).model_copy(update={"out_root": str(tmp_path)})
    job.do()
    html = storage.read_bytes(job.page_url).decode()
    page = Page(html)
    assert "script" not in {tag for tag, _ in page.tags}
    assert title in "".join(page.texts)


def test_a_moved_root_keeps_its_evaluations_and_its_report(evaluated, tmp_path):
    root = str(tmp_path / "elsewhere")
    shutil.copytree(evaluated, root)
    assert (
        evaluation_job(root, "vae").done().digest == evaluation_job(evaluated, "vae").done().digest
    )
    assert report_job(root, title="elsewhere").done(ManifestSnapshot()) is not None


def test_a_report_with_changed_pictures_is_refused(tmp_path):
    root = fill(str(tmp_path))
    features_job(root).do()
    for name in ("vae", "gan"):
        evaluation_job(root, name).do()
    storage.write_bytes(f"{root}/evaluation/gan/samples.png", b"x")
    with pytest.raises(DataError, match=r"samples\.png does not match its digest"):
        report_job(root).do()


def recipe(root):
    return Recipe.model_validate(
        {
            "root": root,
            "data": {"source": "builtin:digits"},
            "model": {"vae": {"family": "vae"}, "gan": {"family": "gan"}},
            "evaluate": CONFIG.model_dump(),
            "tracking": {"enabled": False},
        }
    )


@pytest.mark.ray
def test_the_stage_runs_all_jobs_as_tasks_and_then_skips_them(tmp_path, ray_session, capsys):
    root = fill(str(tmp_path))
    context = Context(recipe(root), MODELS, ProgressDisplay(every_s=0))
    first = stage(context)
    assert first["status"] == "done"
    assert storage.exists(first["report"])
    assert set(first["models"]) == {"vae", "gan"}
    again = stage(Context(recipe(root), MODELS))
    assert again["status"] == "already done"
    assert again["fingerprint"] == first["fingerprint"]
    assert "2/2 models" in capsys.readouterr().err


@pytest.mark.ray
def test_an_error_in_a_task_becomes_one_line(tmp_path, ray_session):
    root = fill(str(tmp_path))
    context = Context(recipe(root), MODELS)
    (tar,) = (tmp_path / "samples" / "gan").glob("*.tar")
    data = bytearray(tar.read_bytes())
    with tarfile.open(tar) as members:
        data[members.getmembers()[0].offset_data + 50] ^= 1
    tar.write_bytes(bytes(data))
    with pytest.raises(DataError, match="does not match its digest") as error:
        stage(context)
    assert "\n" not in str(error.value)


def test_the_error_names_the_missing_stage(tmp_path):
    root = str(tmp_path)
    with pytest.raises(ConfigError, match="genmod shard"):
        stage(Context(recipe(root), MODELS))
    dataset(f"{root}/data", {"train": (0, 100), "test": (100, 200)})
    with pytest.raises(ConfigError, match="genmod sample --model vae"):
        stage(Context(recipe(root), MODELS))
    assert storage.list_names(root) == ["data"]


def test_decisions_of_an_evaluation_are_said():
    from pipelines.stages.evaluate import _Evaluation

    shares = {"classes": "in the reference's shares, only 0, 2", "samples": 120, "of_samples": 1200}
    shares |= {"reference": 80, "of_reference": 90}
    metadata = {
        "features": {"digest": "d", "refused": "the training images have one class only"},
        "reference": {"digest": "r"},
        "class_shares": shares,
    }
    assert _Evaluation.model_validate(metadata).lines("vae") == [
        "evaluate vae: principal components instead of a classifier's features: the training images have "
        "one class only",
        "evaluate vae: compared in the reference's shares, only 0, 2: 120 of 1,200 samples with 80 of 90 "
        "images",
    ]
    plain = {"features": {"digest": "d"}, "reference": {"digest": "r"}}
    assert _Evaluation.model_validate(plain).lines("vae") == []
