"""Formats of synthetic datasets: every one is whole, grows, is filtered, and can be made again."""

import io
import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import webdataset as wds

from genmod.data.format.index import read_index
from genmod.data.format.verify_dataset import dataset_problems
from genmod.data.reading.reader import split_reader
from genmod.errors import ConfigError
from genmod.generation.card import CardSource, dataset_card
from genmod.generation.config import SampleConfig
from genmod.interface.model import DataStats
from genmod.interface.registry import ModelConfig, family
from genmod.interface.snapshot import ManifestSnapshot
from genmod.manifest import DatasetManifest, ImageSpec, claim, load_manifest, publish
from genmod.training.publish import publish_model
from genmod.training.state import TrainState
from pipelines.cli import main
from pipelines.jobs.sample_plan import SampleJob, plan_sample
from pipelines.jobs.sampling import SampleActor, bulk_sample_job, regenerate
from tests.builders import write_scores

SPEC = ImageSpec(channels=1, height=8, width=8, classes=3)
NAMES = ("cat", "dog", "cow")
LOSSLESS = ("webp", "npy")
SETTINGS = {
    "jpeg": {"image_format": "jpeg", "jpeg_quality": 60, "parquet": True},
    "webp": {"image_format": "webp", "parquet": True},
    "npy": {"image_format": "npy"},
    "png": {"parquet": True},
}
EXTENSIONS = {"jpeg": "jpg", "webp": "webp", "npy": "npy", "png": "png"}


@pytest.fixture(scope="module")
def model_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("models") / "vae"
    net = family("vae").Config.tiny().model_dump()
    stats = DataStats(mean=(0.0,), std=(0.5,))
    config = ModelConfig(family="vae", net=net, spec=SPEC, stats=stats)
    state = TrainState(0, config.build(1), config.build(2), ())
    metadata = {"class_names": list(NAMES)}
    publish_model(str(root), config, state, fingerprint="vae", parents={}, metadata=metadata)
    return root


def made(model_root, out, **settings):
    """Run all units of a job in this process, and return root, manifest and {index: pixels}."""
    config = SampleConfig(**{"shard_rows": 12, "micro_batch": 4, **settings})
    sample_job = SampleJob("vae", str(model_root), str(out), {})
    plan = plan_sample(sample_job, config, seed=5)
    job = bulk_sample_job(plan, ManifestSnapshot())
    claim(plan.out_root, plan.stream)
    actor = SampleActor(plans=[plan], device="cpu", threads=1, deadline_s=60.0)
    units, receipts = list(job.units), {}
    while units:
        wave = [_done(actor, job, unit) for unit in units]
        receipts |= {unit.name: receipt for unit, receipt in zip(units, wave, strict=True)}
        units = job.division.next_units(wave)
    manifest = publish(plan.out_root, job.finish(receipts, None))
    assert list(dataset_problems(plan.out_root, manifest)) == []
    reader = split_reader(plan.out_root, manifest, "train")
    pixels_NCHW = reader.pixels(np.arange(len(reader)))
    reader.close()
    shards = manifest.stored(plan.out_root)
    indices = [i for shard in shards for i in read_index(shard, ["index"])["index"].to_pylist()]
    assert len(set(indices)) == len(pixels_NCHW)
    return plan.out_root, manifest, dict(zip(indices, pixels_NCHW, strict=True))


def _done(actor, job, unit):
    task = {"name": unit.name, "job": 0, "unit": unit.name, "num_rows": unit.num_rows}
    return job.receipt.model_validate(actor.do(task | {"parameters": unit.parameters})["receipt"])


def blobs_of(root, manifest, extension):
    """{index: encoded image} as the webdataset package reads them, in whatever folder they are."""
    tars = [shard.tar_url for shard in manifest.stored(root)]
    samples = wds.WebDataset(tars, shardshuffle=False, empty_check=False)
    return {json.loads(sample["json"])["index"]: sample[extension] for sample in samples}


def tables_of(root, manifest):
    folders = manifest.stored(root)
    paths = [f"{shard.folder}/{shard.entry.table.path}" for shard in folders]
    return [row for path in paths for row in pq.read_table(path).to_pylist()]


def same(left, right):
    return left.keys() == right.keys() and all(np.array_equal(left[i], right[i]) for i in left)


@pytest.mark.parametrize("name", SETTINGS)
def test_each_format_is_whole_and_each_image_can_be_made_again(model_root, tmp_path, name):
    _, _, plain = made(model_root, tmp_path / "plain", count=30)
    root, manifest, images = made(model_root, tmp_path / name, count=30, **SETTINGS[name])
    if name == "jpeg":
        assert not same(images, plain)
        assert max(np.abs(images[i].astype(int) - plain[i]).max() for i in plain) < 100
    else:
        assert same(images, plain)
    blobs = blobs_of(root, manifest, EXTENSIONS[name])
    for index in (0, 17):
        again = regenerate(root, str(model_root), index)
        assert again.encoded == blobs[index]
        assert np.array_equal(again.image_HWC.transpose(2, 0, 1), images[index])
    settings = manifest.metadata["sample"]
    assert settings.get("image_format", "png") == name
    assert ("jpeg_quality" in settings) == (name == "jpeg")
    card = dataset_card(manifest, CardSource(title="t"))
    assert ("which is lossy" in card) == (name == "jpeg")
    assert ("path: '*.images.parquet'" in card) == ("parquet" in SETTINGS[name])
    if "parquet" in SETTINGS[name]:
        rows = tables_of(root, manifest)
        assert {row["index"]: row["image"]["bytes"] for row in rows} == blobs
        assert [row["label"] for row in rows] == [row["index"] % 3 for row in rows]


@pytest.mark.parametrize("name", SETTINGS)
def test_a_larger_request_shares_tars_and_tables(model_root, tmp_path, name):
    out = tmp_path / "grown"
    _, first, small = made(model_root, out, count=24, **SETTINGS[name])
    root, larger, large = made(model_root, out, count=60, **SETTINGS[name])
    shared = [shard for shard in larger.shards if shard.folder]
    assert [shard.files for shard in shared] == [shard.files for shard in first.shards]
    assert same({i: large[i] for i in small}, small)
    if "parquet" in SETTINGS[name]:
        assert len(tables_of(root, larger)) == 60


@pytest.mark.parametrize("name", SETTINGS)
def test_filters_see_the_images_that_are_stored(model_root, tmp_path, name):
    """So the accepted images are the same ones when a request grows. Trimmed tars have unchanged images."""
    settings = SETTINGS[name] | {"filters": {"min_contrast": 1.0, "earlier_copies": True}}
    root, manifest, straight = made(
        model_root, tmp_path / "straight", request={"cat": 30, "cow": 8}, **settings
    )
    out = tmp_path / "grown"
    made(model_root, out, request={"cat": 11, "cow": 7}, **settings)
    _, larger, grown = made(model_root, out, request={"cat": 30, "cow": 8}, **settings)
    assert any(shard.folder for shard in larger.shards)
    assert same(grown, straight)
    assert list((tmp_path / "straight").glob("receipts/kept-*.json")), "no unit was trimmed"
    for index, blob in blobs_of(root, manifest, EXTENSIONS[name]).items():
        assert regenerate(root, str(model_root), index).encoded == blob
    assert all(pixels.std() >= 1.0 for pixels in straight.values())


def test_another_format_is_another_stream(model_root, tmp_path):
    job = SampleJob("vae", str(model_root), str(tmp_path / "x"), {})
    settings = [
        {},
        {"jpeg_quality": 3},  # of no JPEG
        {"image_format": "webp"},
        {"image_format": "jpeg"},
        {"image_format": "jpeg", "jpeg_quality": 3},
        {"parquet": True},
    ]
    plans = [plan_sample(job, SampleConfig(**each), seed=5) for each in settings]
    assert plans[0].stream == plans[1].stream
    assert len({plan.stream for plan in plans}) == 5
    made(model_root, tmp_path / "x", count=8)
    with pytest.raises(ConfigError, match="made from other inputs or settings"):
        plan_sample(job, SampleConfig(image_format="webp"), seed=5)
    with pytest.raises(ValueError, match="parquet needs images that readers of tables decode"):
        SampleConfig(image_format="npy", parquet=True)


@pytest.mark.parametrize("name", SETTINGS)
def test_one_image_has_the_bytes_of_the_tar(model_root, tmp_path, name):
    shutil.copytree(model_root, tmp_path / "models" / "vae")
    root, manifest, _ = made(model_root, tmp_path / "samples" / "vae", count=24, **SETTINGS[name])
    recipe = tmp_path / "recipe.yaml"
    sample = {"count": 24, "shard_rows": 12, "micro_batch": 4, **SETTINGS[name]}
    model = {"vae": {"family": "vae"}}
    tree = {"root": str(tmp_path), "seed": 5, "data": {"source": "builtin:digits"}, "model": model}
    recipe.write_text(json.dumps(tree | {"sample": sample, "tracking": {"enabled": False}}))
    blobs = blobs_of(root, manifest, EXTENSIONS[name])
    out = tmp_path / "image"
    for index in (3, 23):
        words = ["sample", "--recipe", str(recipe), "--index", str(index), "--out", str(out)]
        assert main(words) == 0
        assert out.read_bytes() == blobs[index]


@pytest.mark.parametrize("name", SETTINGS)
def test_a_selection_keeps_encoded_images_and_tables(model_root, tmp_path, name):
    root, manifest, _ = made(model_root, tmp_path / "all", count=24, **SETTINGS[name])
    write_scores(str(tmp_path / "scores"), manifest, root, "train")
    for folder, whole in (("kept", 1), ("far/away/kept", 0)):  # one shard is shared, or copied
        out = tmp_path / folder
        words = ["select", root, "--scores", str(tmp_path / "scores"), "--keep", "index >= 5"]
        assert main([*words, "--out", str(out)]) == 0
        kept = load_manifest(DatasetManifest, str(out), "dataset")
        assert list(dataset_problems(str(out), kept)) == []
        assert [bool(shard.folder) for shard in kept.shards] == [False, bool(whole)]
        before = blobs_of(root, manifest, EXTENSIONS[name])
        after = blobs_of(str(out), kept, EXTENSIONS[name])
        assert after == {index: before[index] for index in range(5, 24)}
        if "parquet" in SETTINGS[name]:
            rows = tables_of(str(out), kept)
            assert {row["index"]: row["image"]["bytes"] for row in rows} == after


@pytest.mark.ray
@pytest.mark.parametrize("name", SETTINGS)
def test_ray_data_reads_tars_and_tables(model_root, ray_session, tmp_path, name):
    import ray

    root, manifest, images = made(model_root, tmp_path / name, count=20, **SETTINGS[name])
    tars = [shard.tar_url for shard in manifest.stored(root)]
    rows = ray.data.read_webdataset(tars).take_all()
    assert {row["json"]["index"] for row in rows} == set(images)
    for row in rows:
        image = row[EXTENSIONS[name]]
        if isinstance(image, bytes):  # Ray has no decoder of WebP
            assert name == "webp"
            image = _decoded(image)[..., :1]
        pixels_HWC = np.asarray(image).reshape(8, 8, 1)
        difference = pixels_HWC.transpose(2, 0, 1).astype(int) - images[row["json"]["index"]]
        assert np.abs(difference).max() <= (2 if name == "jpeg" else 0)
        assert row["cls"] == row["json"]["index"] % 3
    if "parquet" not in SETTINGS[name]:
        return
    tables = [f"{root}/{shard.table.path}" for shard in manifest.shards]
    rows = ray.data.read_parquet(tables).take_all()
    blobs = blobs_of(root, manifest, EXTENSIONS[name])
    assert {row["index"]: row["image"]["bytes"] for row in rows} == blobs
    assert all(row["label"] == row["index"] % 3 for row in rows)


def _decoded(data):
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(data)))


@pytest.mark.parametrize("name", SETTINGS)
def test_datasets_of_hugging_face_reads_tars_and_tables(model_root, tmp_path, monkeypatch, name):
    """Skipped without the package, which wants other versions of ours: see tests/benchmarks/peers.txt."""
    for variable in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(variable, "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    datasets = pytest.importorskip("datasets", reason="the package datasets is not installed")
    root, manifest, images = made(model_root, tmp_path / name, count=20, **SETTINGS[name])
    cache = str(tmp_path / "cache")
    files = [shard.tar_url for shard in manifest.stored(root)]
    found = datasets.load_dataset("webdataset", data_files=files, split="train", cache_dir=cache)
    assert {row["json"]["index"] for row in found} == set(images)
    tolerance = 2 if name == "jpeg" else 0
    for row in found:
        pixels_HWC = np.asarray(row[EXTENSIONS[name]]).reshape(8, 8, -1)[..., :1]
        difference = pixels_HWC.transpose(2, 0, 1).astype(int) - images[row["json"]["index"]]
        assert np.abs(difference).max() <= tolerance
    if "parquet" not in SETTINGS[name]:
        return
    files = [f"{root}/{shard.table.path}" for shard in manifest.shards]
    found = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=cache)
    assert isinstance(found.features["image"], datasets.Image)
    assert found.features["label"].names == list(NAMES)
    for row in found:
        pixels_HWC = np.asarray(row["image"]).reshape(8, 8, -1)[..., :1]
        difference = pixels_HWC.transpose(2, 0, 1).astype(int) - images[row["index"]]
        assert np.abs(difference).max() <= tolerance
    # The card says which files are the dataset.
    card = dataset_card(manifest, CardSource(title="t"))
    (tmp_path / name / "README.md").write_text(card)
    whole = datasets.load_dataset(root, split="train", cache_dir=cache)
    assert len(whole) == 20
    assert whole.features == found.features
