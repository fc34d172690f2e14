"""A whole training in one process, from a dataset on disk to a published model."""

import numpy as np
import pytest
import torch

from genmod import storage
from genmod.config import as_json
from genmod.data.format.shards import Row, write_shard
from genmod.data.order.training_order import OrderConfig
from genmod.errors import ConfigError, DataError
from genmod.interface.model import DataStats
from genmod.interface.model_store import classes_of, digest_of, load_model
from genmod.interface.registry import ModelConfig, families, family
from genmod.interface.snapshot import ManifestSnapshot
from genmod.manifest import ImageSpec, dataset_metadata, find_problems, publish
from genmod.training.job import InitialModel, TrainJob, check_start, plan_job, run_job
from genmod.training.plan import OptimConfig, TrainConfig
from genmod.world import SingleProcess
from tests.builders import write_noise

SPEC = ImageSpec(channels=1, height=8, width=8, classes=3)
TRAIN = TrainConfig(
    nimg=64, batch=8, log_every_nimg=16, validate_every_nimg=32, grid_every_nimg=32, grid_images=3
)


@pytest.fixture
def data(tmp_path):
    return write_noise(str(tmp_path / "data"), SPEC, {"train": 20, "val": 6}, ("a", "b", "c"))


def job(data, tmp_path, **changes) -> TrainJob:
    kind = families()[-1]
    values = {
        "name": "m",
        "root": str(tmp_path / "models" / "m"),
        "data_root": str(tmp_path / "data"),
        "data_digest": data.digest,
        "model": ModelConfig(
            family=kind,
            net=as_json(family(kind).Config.tiny()),
            spec=SPEC,
            stats=DataStats.model_validate(data.metadata["stats"]),
        ),
        "train": TRAIN,
        "seed": 0,
    }
    return TrainJob(**values | changes)


def test_from_data_to_model(data, tmp_path):
    planned = plan_job(job(data, tmp_path), data)
    assert TrainJob.model_validate(as_json(planned)) == planned
    made = run_job(planned, SingleProcess())
    assert find_problems(planned.root, made.files) == []
    paths = [entry.path for entry in made.files]
    assert paths[:4] == ["config.json", "ema.safetensors", "raw.safetensors", "history.json"]
    assert paths[4:6] == ["grids/000000000032.png", "grids/000000000064.png"]
    of_latents = ["latents/reconstructions.png", "latents/traversals.png"]
    assert paths[6:] == (of_latents if load_model(planned.root).has_latents else [])
    assert made.parents == {"data": data.digest}
    assert made.metadata["class_names"] == ["a", "b", "c"]
    assert made.metadata["final"].keys() >= {
        f"val/{p.name}/loss" for p in load_model(planned.root).phases()
    }
    assert ManifestSnapshot().model(planned.root).config == planned.model
    assert run_job(planned, SingleProcess()) == made
    assert not storage.exists(storage.join(planned.root, "checkpoints"))


def test_a_model_remembers_the_classes_without_training_rows(tmp_path):
    root = str(tmp_path / "data")
    rows = {"train": 2, "val": 6}  # the training rows are of classes 0 and 1
    data = write_noise(root, SPEC, rows, ("a", "b", "c"))
    made = run_job(plan_job(job(data, tmp_path), data), SingleProcess())
    assert made.metadata["empty_classes"] == [2]
    model = ManifestSnapshot().model(str(tmp_path / "models" / "m"))
    assert classes_of(model).empty_classes == (2,)
    two = data.model_copy(update={"class_names": ("b", "a", "c")})
    with pytest.raises(ConfigError, match="in another order"):
        check_start(job(data, tmp_path), model, two)


def test_model_digest_is_of_weights_and_configuration(data, tmp_path):
    made = run_job(plan_job(job(data, tmp_path), data), SingleProcess())
    others = {"grid_every_nimg": None, "accumulate": 1, "log_every_nimg": 8, "decoded_mib": 0}
    quiet = TRAIN.model_copy(update=others)
    other = job(data, tmp_path, root=str(tmp_path / "models" / "other"), train=quiet)
    again = run_job(plan_job(other, data), SingleProcess())
    assert again.digest != made.digest
    assert again.metadata["model_digest"] == made.metadata["model_digest"] == digest_of(made.files)
    seeded = job(data, tmp_path, root=str(tmp_path / "models" / "seeded"), seed=1)
    assert run_job(plan_job(seeded, data), SingleProcess()).metadata["model_digest"] != digest_of(
        made.files
    )


def test_changed_weights_are_not_loaded(data, tmp_path):
    planned = plan_job(job(data, tmp_path), data)
    run_job(planned, SingleProcess())
    url = storage.join(planned.root, "ema.safetensors")
    weights = storage.read_bytes(url)
    storage.write_bytes(url, weights[:-1] + bytes([weights[-1] ^ 1]))
    with pytest.raises(DataError, match=r"ema\.safetensors does not match its digest"):
        load_model(planned.root)
    load_model(planned.root, "raw")


def test_faults_are_errors_of_the_plan(data, tmp_path):
    no_val = data.model_copy(update={"shards": data.of_split("train")})
    with pytest.raises(DataError, match="the val split has no rows"):
        plan_job(job(data, tmp_path), no_val)
    with pytest.raises(DataError, match="the train split has no rows"):
        plan_job(job(data, tmp_path), data.model_copy(update={"shards": ()}))
    wrong = job(data, tmp_path).model.model_copy(update={"net": {"no_such": 1}})
    with pytest.raises(ConfigError, match=r"unknown key 'model\.m\.net\.no_such'"):
        plan_job(job(data, tmp_path, model=wrong), data)
    phases = TRAIN.model_copy(update={"phase_optim": {"none": {}}})
    with pytest.raises(ConfigError, match="no phase 'none'"):
        plan_job(job(data, tmp_path, train=phases), data)
    with pytest.raises(DataError, match="contains dataset"):
        run_job(job(data, tmp_path, data_digest="0" * 64), SingleProcess())
    assert not storage.exists(str(tmp_path / "models"))


def test_a_model_of_a_mix_is_made_from_all_its_datasets(data, tmp_path, monkeypatch):
    """The second dataset is named by a relative path, and counts by its content."""
    other = str(tmp_path / "other")
    rows = [Row(f"o{i}", i, np.full((8, 8, 1), i, np.uint8), label=i % 3) for i in range(9)]
    shard, made = write_shard(other, "train-000000", "train", SPEC, rows)
    metadata = dataset_metadata({"train": made})
    second = publish(
        other,
        data.model_copy(update={"fingerprint": "o", "metadata": metadata, "shards": (shard,)}),
    )
    monkeypatch.chdir(tmp_path)
    order = OrderConfig(
        mixture={"data": 1, "other": 2}, balance="classes", shuffle_window_shards=None
    )
    mixed = job(data, tmp_path, train=TRAIN.model_copy(update={"order": order}))
    planned = plan_job(mixed, data)
    assert planned.mixed == {other: second.digest}
    assert planned.train.order.mixture == {"data": 1, other: 2}
    assert planned.fingerprint != plan_job(job(data, tmp_path), data).fingerprint
    doubled = OrderConfig(mixture={other: 4, "data": 2}, balance="classes")
    again = mixed.model_copy(update={"train": TRAIN.model_copy(update={"order": doubled})})
    assert plan_job(again, data).fingerprint == planned.fingerprint
    model = run_job(planned, SingleProcess())
    assert model.parents == {"data": data.digest, f"mixed-{second.digest[:12]}": second.digest}

    moved = planned.model_copy(update={"root": str(tmp_path / "n"), "mixed": {other: "0" * 64}})
    with pytest.raises(DataError, match=f"{other} contains dataset {second.digest[:12]}"):
        run_job(moved, SingleProcess())


def test_an_order_that_does_not_fit_the_data_is_an_error_of_the_plan(data, tmp_path):
    def plan(manifest=data, **order):
        train = TRAIN.model_copy(update={"order": OrderConfig(**order), "batch": 32})
        plan_job(job(data, tmp_path, train=train), manifest)

    plan(last_batch="wrap")
    with pytest.raises(ConfigError, match="20 rows do not fill one batch of 32"):
        plan(last_batch="drop")
    with pytest.raises(ConfigError, match="no dataset at"):
        plan(mixture={"data": 1, str(tmp_path / "nowhere"): 1})
    bare = data.model_copy(update={"spec": SPEC.model_copy(update={"classes": 0})})
    with pytest.raises(ConfigError, match="the dataset has no labels"):
        plan(bare, balance="classes")


def test_a_model_that_starts_from_another(data, tmp_path):
    first = run_job(plan_job(job(data, tmp_path), data), SingleProcess())
    start = InitialModel(root=str(tmp_path / "models" / "m"), digest=first.digest)
    still = TRAIN.model_copy(update={"optim": OptimConfig(lr=1e-30)})
    values = {"root": str(tmp_path / "models" / "tuned"), "train": still, "start": start}
    planned = plan_job(job(data, tmp_path, **values), data)
    check_start(planned, ManifestSnapshot().model(planned.start.root), data)
    assert planned.fingerprint != plan_job(job(data, tmp_path, train=still), data).fingerprint
    made = run_job(planned, SingleProcess())
    assert made.parents == {"data": data.digest, "start": first.digest}
    theirs = load_model(start.root, "ema").state_dict()
    for weights in ("ema", "raw"):  # so small a rate moves nothing
        for name, value in load_model(planned.root, weights).state_dict().items():
            assert torch.allclose(value, theirs[name], rtol=0, atol=1e-12), name


def test_a_model_that_cannot_start_from_another(data, tmp_path):
    first = run_job(plan_job(job(data, tmp_path), data), SingleProcess())
    start = InitialModel(root=str(tmp_path / "models" / "m"), digest=first.digest)
    other = next(name for name in families() if name != families()[-1])
    model = job(data, tmp_path).model.model_copy(
        update={"family": other, "net": as_json(family(other).Config.tiny())}
    )
    root = str(tmp_path / "models" / "tuned")
    with pytest.raises(ConfigError, match="use the same net sizes"):
        check_start(
            job(data, tmp_path, root=root, start=start, model=model),
            ManifestSnapshot().model(start.root),
            data,
        )
    stale = start.model_copy(update={"digest": "0" * 64})
    with pytest.raises(DataError, match="but the job was planned for 000000000000"):
        run_job(plan_job(job(data, tmp_path, root=root, start=stale), data), SingleProcess())
