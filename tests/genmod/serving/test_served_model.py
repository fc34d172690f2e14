"""A served model gives what the jobs give, refuses the rest, and loads nothing without a digest."""

import json
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch

from genmod.config import as_json, parse
from genmod.data.format.codecs import Codec
from genmod.errors import ConfigError, DataError, Unscorable
from genmod.generation.labels import LabelRequest
from genmod.generation.synthetic import SampleGenerator
from genmod.interface.batch import Batch
from genmod.interface.model_store import load_model
from genmod.interface.registry import families, family
from genmod.manifest import ImageSpec
from genmod.rng import rng_for
from genmod.scoring.work_units import SCORE_PURPOSE
from genmod.serving import served_model
from genmod.serving.served_model import ModelBusy, ServedModel
from genmod.serving.settings import MAX_MICRO_BATCHES, SETTINGS_FILE, Overrides
from tests.served import MICRO_BATCH, SEED, SPEC, write_served

PLAIN = Overrides()
GREYS = [np.full((8, 8, 1), value, np.uint8) for value in (0, 100, 255)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("served")
    for name in families():
        write_served(root / name, name)
    return root


def generator_of(root, micro_batch=MICRO_BATCH, seed=SEED, only=None, **options):
    model = load_model(str(root))
    parsed = parse(type(model).Sample, options, "options")
    return SampleGenerator(model, parsed, LabelRequest(3, only), seed, micro_batch)


def decoded(record):
    return torch.from_numpy(Codec(SPEC).decode([record["image"]])[0])


@pytest.mark.parametrize("name", families())
def test_an_index_has_the_image_of_the_job(folder, name):
    indices = [7, 0, 13, 7]
    records = ServedModel(str(folder / name)).sample(indices, None, PLAIN)
    expected = generator_of(folder / name)
    assert [record["index"] for record in records] == indices
    for record in records:
        image_CHW = expected.image(record["index"])
        row = expected.row(record["index"], image_CHW, "d")
        assert record["image"] == Codec(SPEC).encode(row.image_HWC)
        assert record["label"] == record["index"] % 3


@pytest.mark.parametrize("name", families())
def test_a_label_changes_its_row_alone(folder, name):
    model = ServedModel(str(folder / name))
    records = model.sample([7, 6, 7, 7], [2, 0, 0, 2], PLAIN)
    assert [record["label"] for record in records] == [2, 0, 0, 2]
    assert records[0] == records[3]
    assert (decoded(records[0]) == generator_of(folder / name, only=2).image(7)).all()
    assert (decoded(records[2]) == generator_of(folder / name, only=0).image(7)).all()
    assert (decoded(records[1]) == generator_of(folder / name).image(6)).all()  # 6 % 3 is 0


NUMBERED = {"class_names": [str(number) for number in range(1, 13)], "empty_classes": [4]}


@pytest.fixture(scope="module")
def numbered(tmp_path_factory):
    """A model of classes that are called 1 to 12."""
    root = tmp_path_factory.mktemp("numbered")
    write_served(root, "vae", SPEC.model_copy(update={"classes": 12}), metadata=NUMBERED)
    return ServedModel(str(root))


def test_a_class_by_name(numbered):
    records = numbered.sample([3, 3, 8], ["10", "12", "1"], PLAIN)
    assert [(r["label"], r["class"]) for r in records] == [(9, "10"), (11, "12"), (0, "1")]
    assert numbered.sample([3], None, PLAIN)[0]["class"] == "4"  # classes take turns
    # No class is called 0, so the number is clear.
    assert numbered.sample([8], [0], PLAIN) == records[2:]
    image = records[0]["image"]
    by_name, other = (numbered.score([image], [name], [0], PLAIN) for name in ("1", "2"))
    assert by_name == numbered.score([image], [0], [0], PLAIN) != other


UNCLEAR = {
    10: "label is 10, which is the name of class number 9 and the number of class '11'; send column class",
    12: "label is 12, which is the name of class number 11; send column class with the name",
    1: "label is 1, which is the name of class number 0 and the number of class '2'",
    13: "label is 13, expected 0 to 11",
    "11a": "the model has no class '11a'; did you mean '11'",
    "0": "the model has no class '0'",
}


@pytest.mark.parametrize("label", UNCLEAR)
def test_a_number_that_is_the_name_of_another_class_is_refused(numbered, label):
    for ask in (
        lambda: numbered.sample([3, 4], ["2", label], PLAIN),
        lambda: numbered.score([PNG], [label], None, PLAIN),
    ):
        with pytest.raises(DataError) as caught:
            ask()
        assert str(caught.value).startswith(UNCLEAR[label])
        assert str(caught.value).isprintable()


def test_a_class_without_training_rows_is_refused(numbered):
    with pytest.raises(DataError, match=r"class 4 \('5'\) has no training rows"):
        numbered.sample([3], ["5"], PLAIN)


def test_names_for_a_model_without_names_are_refused(folder, tmp_path):
    with pytest.raises(DataError, match="classes have no names; send column label with numbers"):
        ServedModel(str(folder / "vae")).sample([3], ["1"], PLAIN)
    write_served(tmp_path, "vae", SPEC.model_copy(update={"classes": 0}))
    for label in (0, "0"):
        with pytest.raises(DataError, match="no classes; leave columns label and class out"):
            ServedModel(str(tmp_path)).sample([3], [label], PLAIN)


def test_a_request_by_class_decides_the_labels(tmp_path):
    write_served(tmp_path, "vae", request={"0": 9, "2": 9, "1": 9})
    records = ServedModel(str(tmp_path)).sample([0, 3, 4, 8, 12], None, PLAIN)
    assert [record["label"] for record in records] == [0, 0, 1, 2, 0]


def test_a_request_may_change_seed_micro_batch_and_options(folder):
    model = ServedModel(str(folder / "vae"))
    options = json.dumps({"output": "mean"})
    (record,) = model.sample([5], None, Overrides(seed=3, micro_batch=2, options=options))
    expected = generator_of(folder / "vae", micro_batch=2, seed=3, output="mean")
    assert (decoded(record) == expected.image(5)).all()
    (plain,) = model.sample([5], None, PLAIN)
    assert record["image"] != plain["image"]


def scorable(name):
    model_class = family(name)
    try:
        model_class.check_scorable(model_class.Config.tiny(), model_class.Score.tiny())
    except Unscorable:
        return False
    return not model_class.Score.tiny().held_out_rows


@pytest.mark.parametrize("name", filter(scorable, families()))
def test_a_score_is_that_of_the_job(folder, name):
    images = [Codec(SPEC).encode(grey) for grey in GREYS]
    labels, indices = [0, 1, 2], [4, 5, 60]
    records = ServedModel(str(folder / name)).score(images, labels, indices, PLAIN)
    model = load_model(str(folder / name))
    options = parse(type(model).Score, as_json(type(model).Score.tiny()), "options")
    pixels_BCHW = torch.stack([torch.from_numpy(grey).permute(2, 0, 1) for grey in GREYS])
    batch = Batch(pixels_BCHW, torch.tensor(labels), torch.tensor(indices))
    expected = model.log_prob(batch, rng_for(SEED, SCORE_PURPOSE, batch.index_B), options)
    nats = torch.tensor([record["nats"] for record in records], dtype=torch.float64)
    torch.testing.assert_close(nats, expected.nats_B, rtol=1e-5, atol=0)
    label = [expected.label, expected.estimator, expected.of, expected.measure]
    keys = ["likelihood", "estimator", "density", "measure"]
    assert all([record[key] for key in keys] == label for record in records)


def test_equal_images_have_equal_scores_wherever_they_are(folder):
    model = ServedModel(str(folder / "vae"))
    black, grey, _ = (Codec(SPEC).encode(image) for image in GREYS)
    first = model.score([black, black, grey, black], [0] * 4, None, PLAIN)
    (alone,) = model.score([black], [0], None, PLAIN)
    assert first[0]["nats"] == first[1]["nats"] != first[2]["nats"]
    for record in (first[0], first[3]):
        assert record["nats"] == pytest.approx(alone["nats"], rel=1e-5)


MANY = list(range(0, MICRO_BATCH * (MAX_MICRO_BATCHES + 1), MICRO_BATCH))
WRONG_SAMPLES = {
    "no row": ([], None, PLAIN, "0 rows"),
    "too many rows": (list(range(257)), None, PLAIN, "257 rows"),
    "below zero": ([-1], None, PLAIN, "index is -1"),
    "beyond 62 bits": ([1 << 62], None, PLAIN, "less than 2"),
    "far apart": (MANY, None, PLAIN, "17 micro-batches of 4 images, expected at most 16"),
    "an unknown class": ([1], [3], PLAIN, "label is 3, expected 0 to 2"),
    "a negative class": ([1], [-1], PLAIN, "label is -1"),
    "a larger micro-batch": ([1], None, Overrides(micro_batch=5), "micro_batch is 5"),
    "an empty micro-batch": ([1], None, Overrides(micro_batch=0), "micro_batch is 0"),
    "an unknown option": ([1], None, Overrides(options='{"stepz": 3}'), "did you mean 'steps'"),
    "more steps": ([1], None, Overrides(options='{"steps": 10000}'), "steps is 10000, expected at"),
    "options that are none": ([1], None, Overrides(options="[]"), "not a JSON object"),
    "another solver": ([1], None, Overrides(options='{"solver": "consistency"}'), "solver"),
}


@pytest.mark.parametrize("case", WRONG_SAMPLES.values(), ids=WRONG_SAMPLES)
def test_a_wrong_request_for_samples_is_one_line(folder, case):
    indices, labels, overrides, expected = case
    with pytest.raises(DataError) as caught:
        ServedModel(str(folder / "diffusion")).sample(indices, labels, overrides)
    assert expected in str(caught.value)
    assert str(caught.value).isprintable()


PNG = Codec(SPEC).encode(GREYS[1])
LARGER = Codec(ImageSpec(channels=1, height=9, width=8)).encode(np.zeros((9, 8, 1), np.uint8))
COLOURED = Codec(ImageSpec(channels=3, height=8, width=8)).encode(np.zeros((8, 8, 3), np.uint8))
HUGE = PNG[:16] + bytes([0, 1, 0, 0] * 2) + PNG[24:]
WRONG_SCORES = {
    "no label": ([PNG], None, None, PLAIN, "send column label"),
    "no image": ([PNG, b"hello"], [0, 0], None, PLAIN, "image 1: not a readable"),
    "half an image": ([PNG[:-20]], [0], None, PLAIN, "image 0: "),
    "another size": ([LARGER], [0], None, PLAIN, "image of 9x8, expected 1x8x8"),
    "colours": ([COLOURED], [0], None, PLAIN, "image 0: image of"),
    "a size of gigabytes": ([HUGE], [0], None, PLAIN, "image of 65536x65536"),
    "options": ([PNG], [0], None, Overrides(options="{}"), "are for samples"),
}


@pytest.mark.parametrize("case", WRONG_SCORES.values(), ids=WRONG_SCORES)
def test_a_wrong_request_for_scores_is_one_line(folder, case):
    *arguments, expected = case
    with pytest.raises(DataError) as caught:
        ServedModel(str(folder / "vae")).score(*arguments)
    assert expected in str(caught.value)
    assert str(caught.value).isprintable()


def test_a_model_without_a_density_says_so(tmp_path):
    settings = write_served(tmp_path, "gan")
    score = settings.score.model_copy(update={"options": {}})
    changed = settings.model_copy(update={"score": score})
    (tmp_path / SETTINGS_FILE).write_text(changed.model_dump_json())
    with pytest.raises(DataError, match="cannot be scored"):
        ServedModel(str(tmp_path)).score([PNG], [0], None, PLAIN)
    fitted = score.model_copy(update={"options": {"sigma": "fit"}})
    changed = settings.model_copy(update={"score": fitted})
    (tmp_path / SETTINGS_FILE).write_text(changed.model_dump_json())
    with pytest.raises(DataError, match="fitted to held-out rows"):
        ServedModel(str(tmp_path)).score([PNG], [0], None, PLAIN)


def test_one_request_is_computed_at_a_time(folder, monkeypatch):
    model = ServedModel(str(folder / "vae"))
    monkeypatch.setattr(served_model, "_WAIT_S", 0.01)
    entered, leave = threading.Event(), threading.Event()

    def slow(*_):
        entered.set()
        assert leave.wait(60)
        return []

    model._sampler.records = slow
    thread = threading.Thread(target=model.sample, args=([1], None, PLAIN))
    thread.start()
    assert entered.wait(60)
    with pytest.raises(ModelBusy, match="later"):
        model.sample([1], None, PLAIN)
    leave.set()
    thread.join()
    assert model.sample([1], None, PLAIN) == []


def test_weights_that_were_not_copied_are_read_where_they_were_trained(folder, tmp_path):
    settings = write_served(tmp_path / "here", "vae", trained=str(folder / "vae"))
    (tmp_path / "here" / "ema.safetensors").unlink()
    served = ServedModel(str(tmp_path / "here"))
    there = ServedModel(str(folder / "vae"))
    assert served.sample([1], None, PLAIN) == there.sample([1], None, PLAIN)
    elsewhere = settings.model_copy(update={"root": str(folder / "gan")})
    (tmp_path / "here" / SETTINGS_FILE).write_text(elsewhere.model_dump_json())
    with pytest.raises(DataError, match="is registered; register the model again"):
        ServedModel(str(tmp_path / "here"))


def damage(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("file", ["ema.safetensors", "config.json", "model.json"])
def test_a_changed_file_is_not_served(tmp_path, file):
    write_served(tmp_path, "vae")
    damage(tmp_path / file)
    with pytest.raises(DataError, match=file):
        ServedModel(str(tmp_path))


def test_settings_of_another_model_are_refused(tmp_path):
    settings = write_served(tmp_path, "vae")
    other = settings.model_copy(update={"model_digest": "0" * 64})
    (tmp_path / SETTINGS_FILE).write_text(other.model_dump_json())
    with pytest.raises(DataError, match="model 000000000000 is registered"):
        ServedModel(str(tmp_path))
    (tmp_path / SETTINGS_FILE).write_text('{"format": 1}')
    with pytest.raises(DataError, match="not serving settings"):
        ServedModel(str(tmp_path))
    (tmp_path / SETTINGS_FILE).unlink()
    with pytest.raises(ConfigError, match="is missing"):
        ServedModel(str(tmp_path))


def test_binary_images_have_two_values(tmp_path):
    spec = ImageSpec(channels=1, height=8, width=8, levels=2)
    write_served(tmp_path, "vae", spec)
    model = ServedModel(str(tmp_path))
    (record,) = model.sample([3], None, PLAIN)
    assert record["label"] is None
    assert len(model.score([record["image"]], None, None, PLAIN)) == 1
    with pytest.raises(DataError, match="black and white"):
        model.score([PNG], None, None, PLAIN)
    with pytest.raises(DataError, match="no classes"):
        model.sample([3], [0], PLAIN)


def test_weights_follow_the_settings(tmp_path):
    settings = write_served(tmp_path, "vae", weights="raw")
    assert settings.files == ("config.json", "model.json", "ema.safetensors", "raw.safetensors")
    (record,) = ServedModel(str(tmp_path)).sample([2], None, PLAIN)
    model = load_model(str(tmp_path), "raw")
    generator = replace(generator_of(tmp_path), model=model)
    assert (decoded(record) == generator.image(2)).all()
