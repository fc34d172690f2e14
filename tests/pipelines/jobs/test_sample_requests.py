"""Requests of the sampling job: exact numbers by class, filters, ranges, growth, views, interruption."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from genmod.data.format.index import read_index, read_rejected
from genmod.data.format.verify_dataset import dataset_problems
from genmod.data.reading.reader import split_reader
from genmod.errors import ConfigError, GenmodError
from genmod.generation.config import SampleConfig
from genmod.generation.filters import FilterConfig, Filters
from genmod.interface.batch import Batch
from genmod.interface.model import DataStats
from genmod.interface.registry import ModelConfig, family
from genmod.interface.snapshot import ManifestSnapshot
from genmod.manifest import DatasetManifest, ImageSpec, Manifest, load_manifest, publish
from genmod.training.publish import publish_model
from genmod.training.state import TrainState
from pipelines.jobs.bulk import BulkOptions
from pipelines.jobs.sample_plan import FilterInputs, SampleJob, plan_sample
from pipelines.jobs.sampling import regenerate, sample
from pipelines.stages.evaluate import larger_dataset_line

SPEC = ImageSpec(channels=1, height=8, width=8, classes=3)
SEED = 5
BASE = {"shard_rows": 12, "micro_batch": 4}
NAMES = ("cat", "dog", "cow")


def publish_small(root, name, **net):
    """A small model with three named classes."""
    config = family(name).Config.tiny().model_dump() | net
    stats = DataStats(mean=(0.0,), std=(0.5,))
    config = ModelConfig(family=name, net=config, spec=SPEC, stats=stats)
    state = TrainState(0, config.build(1), config.build(2), ())
    metadata = {"class_names": list(NAMES)}
    publish_model(str(root), config, state, fingerprint=name, parents={}, metadata=metadata)
    return root


@pytest.fixture(scope="module")
def model_root(tmp_path_factory):
    return publish_small(tmp_path_factory.mktemp("models") / "vae", "vae")


def job_of(model_root, out):
    return SampleJob("vae", str(model_root), str(out), {})


def made(model_root, out, **settings):
    """Sample and return the plan, the manifest and {index: (label, pixels)}."""
    config = SampleConfig(**(BASE | settings))
    job = job_of(model_root, out)
    manifest = sample(job, config, seed=SEED, options=BulkOptions())
    plan = plan_sample(job, config, seed=SEED)
    assert plan.done
    assert list(dataset_problems(plan.out_root, manifest)) == []
    return plan, manifest, images_of(plan.out_root, manifest)


def images_of(root, manifest):
    found = {}
    reader = split_reader(root, manifest, "train")
    indices = [
        index
        for shard in manifest.stored(root)
        for index in read_index(shard, ["index"])["index"].to_pylist()
    ]
    batch = reader.read(np.arange(len(indices)))
    for row, index in enumerate(indices):
        label = None if batch.labels_B is None else int(batch.labels_B[row])
        found[index] = (label, batch.pixels_BCHW[row].numpy().tobytes())
    reader.close()
    assert len(found) == len(indices) == manifest.rows("train")
    return found


def receipts_of(root):
    return {path.name for path in Path(root).glob("receipts/*.json")}


@pytest.mark.ray
def test_a_request_by_class_is_exact_and_each_image_can_be_made_again(
    model_root, ray_session, tmp_path
):
    plan, manifest, images = made(model_root, tmp_path / "a", request={"cow": 9, 0: 5}, workers=2)
    assert Counter(label for label, _ in images.values()) == {2: 9, 0: 5}
    assert manifest.metadata["splits"]["train"]["rows_K"] == [5, 0, 9]
    assert list(images) == sorted(images)
    for index in (min(images), max(images)):
        again = regenerate(plan.out_root, str(model_root), index)
        assert (again.label, again.image_HWC.transpose(2, 0, 1).tobytes()) == images[index]
    # The same classes, alone and in other numbers: the same images.
    _, _, cows = made(model_root, tmp_path / "b", request={"cow": 3})
    assert cows == dict([item for item in images.items() if item[1][0] == 2][:3])


@pytest.mark.ray
def test_growing_generates_the_rest_alone_and_a_smaller_request_is_a_view(
    model_root, ray_session, tmp_path
):
    out = tmp_path / "grown"
    first, manifest, small = made(model_root, out, count=30)
    assert first.out_root == str(out)
    assert larger_dataset_line("vae", str(out), ManifestSnapshot()) == ""
    work = receipts_of(out)
    grown, larger, large = made(model_root, out, count=100, shard_rows=20)
    assert grown.out_root.startswith(f"{out}-100-")
    assert larger_dataset_line("vae", str(out), ManifestSnapshot()) == (
        f"evaluate vae: the 30 images of {out}, not the 100 of {grown.out_root}; to evaluate more, "
        "request them first, in a new root"
    )
    assert receipts_of(out) == work
    shared = [shard for shard in larger.shards if shard.folder]
    assert [shard.tar for shard in shared] == [shard.tar for shard in manifest.shards]
    assert sum(shard.rows for shard in larger.shards if not shard.folder) == 70
    assert {index: large[index] for index in small} == small
    assert list(large) == list(range(100))
    # What is done is found; fewer images are a view that generates the odd end alone.
    view, viewed, few = made(model_root, out, count=50)
    assert few == {index: large[index] for index in range(50)}
    assert sum(shard.rows for shard in viewed.shards if not shard.folder) == 10
    assert view.out_root != grown.out_root
    straight, _, once = made(model_root, tmp_path / "straight", count=100)
    assert once == large
    assert straight.stream == grown.stream


@pytest.mark.ray
def test_classes_grow_each_on_its_own(model_root, ray_session, tmp_path):
    out = tmp_path / "classes"
    _, _, some = made(model_root, out, request={"cat": 10, "dog": 3})
    _, larger, more = made(model_root, out, request={"cat": 12, "dog": 9, "cow": 4})
    assert Counter(label for label, _ in more.values()) == {0: 12, 1: 9, 2: 4}
    assert {index: more[index] for index in some} == some
    assert sum(shard.rows for shard in larger.shards if not shard.folder) == 25 - 13


@pytest.mark.ray
def test_ranges_of_indices_are_generated_and_overlap_is_refused(model_root, ray_session, tmp_path):
    _, _, whole = made(model_root, tmp_path / "whole", count=40)
    _, _, parts = made(model_root, tmp_path / "parts", request=[[33, 40], [2, 9]])
    assert parts == {index: whole[index] for index in (*range(2, 9), *range(33, 40))}
    for ranges, message in (([[0, 5], [4, 9]], "overlap"), ([[5, 5]], "is empty")):
        config = SampleConfig(request=ranges)
        with pytest.raises(ConfigError, match=message):
            plan_sample(job_of(model_root, tmp_path / "no"), config, seed=SEED)
    assert not (tmp_path / "no").exists()


FILTERS = {"min_contrast": 40.0, "earlier_copies": True}


@pytest.mark.ray
def test_the_accepted_set_is_the_first_accepted_images_whatever_the_division(
    model_root, ray_session, tmp_path
):
    # What the filter accepts, by its definition, of images that are there without filters.
    _, _, plain = made(model_root, tmp_path / "plain", request={"cat": 80, "dog": 80})
    contrast = {i: np.frombuffer(p, np.uint8).std() for i, (_, p) in plain.items()}
    limit = float(np.median(list(contrast.values())))
    filters = {"min_contrast": limit}
    request = {"cat": 20, "dog": 15}
    expected = {}
    for label, count in ((0, 20), (1, 15)):
        passed = [i for i in plain if plain[i][0] == label and contrast[i] >= limit]
        expected |= {i: plain[i] for i in sorted(passed)[:count]}
    results = []
    for workers, rows in ((1, 12), (2, 12), (2, 40)):
        out = tmp_path / f"w{workers}r{rows}"
        plan, manifest, images = made(
            model_root, out, request=request, filters=filters, workers=workers, shard_rows=rows
        )
        assert images == expected
        results.append(manifest.digest)
        rejected = pq.read_table(Path(plan.out_root) / "rejected.parquet").to_pydict()
        last = {label: max(i for i in expected if expected[i][0] == label) for label in (0, 1)}
        assert rejected["index"] == [
            i for i in sorted(plain) if i not in expected and i < last[plain[i][0]]
        ]
        assert set(rejected["reason"]) == {"flat"}
        assert rejected["label"] == [plain[i][0] for i in rejected["index"]]
        assert manifest.metadata["sample"]["draws_from_p"] is False
        sidecar = regenerate(plan.out_root, str(model_root), next(iter(expected))).sidecar
        assert sidecar["draws_from_p"] is False
    assert results[0] == results[1]


@pytest.mark.ray
def test_a_filtered_request_grows_and_shrinks_to_the_same_images(model_root, ray_session, tmp_path):
    settings = {"filters": FILTERS | {"min_contrast": 1.0}}
    out = tmp_path / "grown"
    made(model_root, out, request={"cat": 11, "cow": 7}, **settings)
    _, larger, grown = made(model_root, out, request={"cat": 30, "cow": 8}, **settings)
    assert any(shard.folder for shard in larger.shards)
    _, _, straight = made(
        model_root, tmp_path / "straight", request={"cat": 30, "cow": 8}, **settings
    )
    assert grown == straight
    _, _, fewer = made(model_root, out, request={"cat": 5, "cow": 5}, **settings)
    for label in (0, 2):
        of_class = [i for i in sorted(straight) if straight[i][0] == label][:5]
        assert [i for i in sorted(fewer) if fewer[i][0] == label] == of_class


@pytest.mark.ray
def test_a_rate_that_cannot_reach_the_request_ends_early(model_root, ray_session, tmp_path):
    config = SampleConfig(
        shard_rows=400, micro_batch=100, count=3000, filters={"min_contrast": 250.0}, max_tries=50
    )
    out = tmp_path / "never"
    with pytest.raises(ConfigError, match=r"accept 0 of .* cannot be reached within") as error:
        sample(job_of(model_root, out), config, seed=SEED)
    assert "flat" in str(error.value)
    generated = sum(
        sum(stop - start for _, start, stop in json.loads(path.read_bytes())["parts"])
        for path in out.glob("receipts/*.json")
    )
    assert 0 < generated <= 0.05 * 3000 * 50


@pytest.mark.ray
def test_time_that_is_over_leaves_a_smaller_dataset_that_grows(model_root, ray_session, tmp_path):
    out = tmp_path / "budget"
    config = SampleConfig(**BASE, count=12_000, budget={"hours": 1e-9})
    job = job_of(model_root, out)
    manifest = sample(job, config, seed=SEED)
    done = images_of(str(out), manifest)
    assert 0 < len(done) < 12_000
    assert list(done) == list(range(len(done)))
    count = len(done) + 10
    _, larger, grown = made(model_root, out, count=count)
    assert {index: grown[index] for index in done} == done
    assert sum(shard.rows for shard in larger.shards if not shard.folder) == 10


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "reason", "missing"),
    [
        ("not_finite_at", "not finite", [17]),
        ("crashes_at", "a planted error", [16, 17, 18, 19]),
        ("hangs_at", "longer than its deadline", [16, 17, 18, 19]),
    ],
)
def test_images_that_cannot_be_generated_are_listed_and_all_others_are_delivered(
    ray_session, tmp_path, fault, reason, missing
):
    root = publish_small(tmp_path / "model", "faulty", **{fault: 17})
    config = SampleConfig(**BASE, count=40, workers=2, deadline_s=12)
    out = tmp_path / "out"
    job = SampleJob("faulty", str(root), str(out), {})
    with pytest.raises(GenmodError, match=f"{len(missing)} images could not be generated"):
        sample(job, config, seed=SEED)
    manifest = load_manifest(DatasetManifest, str(out), "dataset")
    assert list(dataset_problems(str(out), manifest)) == []
    assert sorted(images_of(str(out), manifest)) == [i for i in range(40) if i not in missing]
    listed = read_rejected(str(out), manifest)
    assert [int(name) for _, name, _ in listed] == missing
    assert all(reason in text for _, _, text in listed)
    # The same command says so again, and within the limit it is a success.
    with pytest.raises(GenmodError, match="could not be generated"):
        sample(job, config, seed=SEED)
    allowed = config.model_copy(update={"max_quarantined": len(missing)})
    assert sample(job, allowed, seed=SEED).digest == manifest.digest


def test_requests_that_no_model_can_meet_are_refused_before_anything_is_written(
    model_root, tmp_path
):
    cases = [
        ({"request": {"bird": 3}}, "did you mean|valid"),
        ({"request": {7: 3}}, "classes 0 to 2"),
        ({"request": {"cat": 3, 0: 4}}, "twice"),
        ({"request": {"cat": 3}, "labels": "dog"}, "labels must be auto"),
        ({"request": [[0, 9]], "filters": {"earlier_copies": True}}, "earlier_copies"),
        ({"filters": {"training_copies": True}}, "training dataset"),
        ({"filters": {"classifier": True}}, "feature space"),
    ]
    for settings, message in cases:
        with pytest.raises(ConfigError, match=message):
            plan_sample(job_of(model_root, tmp_path / "no"), SampleConfig(**settings), seed=SEED)
    assert not list(tmp_path.iterdir())


def test_what_is_typical_is_read_from_the_scores_of_the_model(model_root, tmp_path):
    model = load_manifest(Manifest, str(model_root), "model")
    inputs = FilterInputs(scores_root=str(tmp_path / "scores"))
    job = replace(job_of(model_root, tmp_path / "x"), filter_inputs=inputs)
    config = SampleConfig(filters={"typicality_bits_per_dim": 0.5})

    def publish_scores(number, parents, **metadata):
        root = str(tmp_path / f"scores{number}")
        scores = Manifest(kind="scores", fingerprint="work", parents=parents, metadata=metadata)
        publish(root, scores)
        plan = replace(job, filter_inputs=replace(inputs, scores_root=root))
        return lambda: plan_sample(plan, config, seed=SEED)

    calibrated, own = {"mean_bits_per_dim": 3.25}, {"model": model.digest}
    plan = publish_scores(0, own, calibrated=calibrated)()
    assert plan.mean_bits_per_dim == 3.25
    other = publish_scores(1, own, calibrated={"mean_bits_per_dim": 3.5})()
    assert plan.stream != other.stream
    for failing, message in (
        (lambda: plan_sample(job, config, seed=SEED), "genmod score --model"),
        (publish_scores(2, own), "have no calibration rows"),
        (publish_scores(3, {"model": "0" * 64}, calibrated=calibrated), "are of another model"),
    ):
        with pytest.raises(ConfigError, match=message):
            failing()


def test_an_image_is_typical_within_a_distance_of_the_mean():
    bits_B = torch.tensor([3.0, 3.5, 3.6, 2.4, 2.5, float("nan")], dtype=torch.float64)
    pixels_BCHW = torch.arange(16, dtype=torch.uint8).reshape(1, 1, 4, 4).repeat(6, 1, 1, 1)
    batch = Batch(pixels_BCHW, None, torch.arange(6))
    config = FilterConfig(typicality_bits_per_dim=0.5)
    filters = Filters(config, bits_of=lambda _: bits_B, mean_bits_per_dim=3.0)
    bad = "typicality"
    assert filters.reasons(batch) == [None, None, bad, bad, None, bad]
    both = FilterConfig(typicality_bits_per_dim=0.5, bits_per_dim=(2.0, 3.2))
    filters = replace(filters, config=both)
    assert filters.reasons(batch) == [None, "likelihood", "likelihood", bad, None, "likelihood"]


def test_another_stream_is_not_shared_and_its_folder_is_refused(model_root, tmp_path):
    job = job_of(model_root, tmp_path / "x")
    plans = [
        plan_sample(job, SampleConfig(**settings), seed=SEED)
        for settings in ({}, {"count": 7}, {"seed": 9}, {"micro_batch": 7}, {"labels": 1})
    ]
    assert plans[0].stream == plans[1].stream
    assert len({plan.stream for plan in plans}) == 4
    assert len({plan.fingerprint for plan in plans}) == 5
    assert replace(job, name="other") != job
