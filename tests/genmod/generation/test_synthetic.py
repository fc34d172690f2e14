"""Synthetic datasets: an image depends on its index alone; labels cycle; sidecars allow to regenerate."""

import glob
import json

import pytest
import torch
import webdataset

from genmod.data.format.index import read_index
from genmod.data.format.shards import write_shard
from genmod.errors import ConfigError, DataError, GenmodError
from genmod.generation.config import SampleConfig
from genmod.generation.labels import LabelRequest, label_request
from genmod.generation.lanes import LaneRange, Lanes
from genmod.generation.request import size_bytes_at_most
from genmod.generation.synthetic import SampledBy, SampleGenerator
from genmod.generation.unit import write_sample_unit
from genmod.interface.model import DataStats, GenerativeModel
from genmod.interface.options import SampleOptions
from genmod.interface.registry import ModelConfig, families, family
from genmod.manifest import DatasetManifest, ImageSpec, StoredShard

SPEC = ImageSpec(channels=1, height=8, width=8, classes=3)


def generator_of(name, spec=SPEC, labels=None, micro_batch=4):
    model_class = family(name)
    stats = DataStats(mean=(0.0,) * spec.channels, std=(0.5,) * spec.channels)
    net = model_class.Config.tiny().model_dump()
    model = ModelConfig(family=name, net=net, spec=spec, stats=stats).build(1).eval()
    return SampleGenerator(
        model, model_class.Sample(), labels or LabelRequest(spec.classes), 7, micro_batch
    )


def images_of(generator, *ranges):
    """(index, pixels) of every image in some ranges."""
    for images, rows in generator.images(ranges):
        for row in rows:
            yield int(images.batch.index_B[row]), images.batch.pixels_BCHW[row]


@pytest.mark.parametrize("name", families())
def test_an_image_does_not_depend_on_the_division_of_the_work(name):
    generator = generator_of(name)
    whole = dict(images_of(generator, range(12)))
    assert list(whole) == list(range(12))
    for part in (range(3, 10), range(5, 6), range(8, 12)):
        for index, pixels_CHW in images_of(generator, part):
            assert index in part
            assert torch.equal(pixels_CHW, whole[index])
    assert torch.equal(generator.image(9), whole[9])
    pieces = dict(images_of(generator, range(1, 3), range(3, 4), range(9, 12)))
    assert list(pieces) == [1, 2, 3, 9, 10, 11]
    assert all(torch.equal(pixels, whole[index]) for index, pixels in pieces.items())
    assert len({pixels.numpy().tobytes() for pixels in whole.values()}) == 12


@pytest.mark.parametrize("levels", [2, 256])
@pytest.mark.parametrize("name", families())
def test_pixels_have_the_shape_and_levels_of_the_dataset(name, levels):
    spec = SPEC.model_copy(update={"levels": levels, "classes": 0})
    pixels_BCHW = generator_of(name, spec).micro_batch_of(0).batch.pixels_BCHW
    assert pixels_BCHW.shape == (4, 1, 8, 8)
    assert pixels_BCHW.dtype == torch.uint8
    if levels == 2:
        assert set(pixels_BCHW.unique().tolist()) <= {0, 255}


class Diverging(GenerativeModel):
    """Draws noise, but image 6 is not a number."""

    def __init__(self, spec):
        super().__init__(family("vae").Config.tiny(), spec, DataStats(mean=(0.0,), std=(1.0,)))
        self.scale = torch.nn.Parameter(torch.ones(()))

    def phases(self):
        return ()

    def loss(self, phase, batch, rng, nimg):
        raise NotImplementedError

    def log_prob(self, batch, rng, options):
        raise NotImplementedError

    def sample(self, labels_B, rng, options):
        x_BCHW = self.scale * rng.uniform(*self.spec.shape)
        x_BCHW[rng.index_B == 6, 0, 2, 1] = torch.nan
        return x_BCHW


def test_an_image_with_nan_goes_to_quarantine_and_the_others_are_written(tmp_path):
    generator = SampleGenerator(Diverging(SPEC), SampleOptions(), LabelRequest(3), 7, 4)
    with pytest.raises(GenmodError, match="image 6 contains NaN"):
        generator.image(6)
    (unit,) = Lanes().units([LaneRange(0, 2, 9)], 9)[:1] or [None]
    receipt = write_sample_unit(
        str(tmp_path), unit, generator, None, model_digest="digest", stream="stream"
    )
    assert receipt.quarantined == ((6, "not finite"),)
    assert receipt.parts == unit.intervals
    index = read_index(StoredShard(receipt.shard, str(tmp_path)))["index"].to_pylist()
    assert index == [2, 3, 4, 5, 7, 8]


@pytest.mark.parametrize("name", families())
def test_generating_ahead_of_the_encoder_changes_nothing(name, tmp_path):
    (unit,) = [Lanes().units([LaneRange(0, 2, 15)], 20)[0]]
    receipts = [
        write_sample_unit(
            str(tmp_path), unit, generator_of(name), None,
            model_digest="digest", stream="stream", overlaps=overlaps,
        )
        for overlaps in (True, False)
    ]  # fmt: skip
    assert receipts[0] == receipts[1]
    assert receipts[0].shard.rows == 13


def test_labels_are_a_function_of_the_index():
    index_B = torch.tensor([0, 4, 8, 2])
    assert label_request("auto", SPEC).labels_B(index_B).tolist() == [0, 1, 2, 2]
    assert label_request("balanced", SPEC) == label_request("auto", SPEC)
    assert [label_request(labels, SPEC).rule for labels in ("auto", 0, "2")] == ["balanced", 0, 2]
    for only in (1, "1", "cat"):
        request = label_request(only, SPEC, ["dog", "cat", "cow"])
        assert request.labels_B(index_B).tolist() == [1, 1, 1, 1]
    for request in (LabelRequest(3), LabelRequest(3, 0), LabelRequest(3, 2)):
        assert [request.label(int(i)) for i in index_B] == request.labels_B(index_B).tolist()
    plain = SPEC.model_copy(update={"classes": 0})
    for none in ("auto", "none"):
        assert label_request(none, plain).labels_B(index_B) is None


@pytest.mark.parametrize(
    ("labels", "classes", "message"),
    [
        (3, 3, "classes 0 to 2"),
        (-1, 3, "classes 0 to 2"),
        ("ct", 3, "did you mean 'cat'"),
        ("none", 3, "class-conditional"),
        ("balanced", 0, "trained without labels"),
        (1, 0, "trained without labels"),
    ],
)
def test_labels_that_the_model_does_not_have_are_rejected(labels, classes, message):
    spec = SPEC.model_copy(update={"classes": classes})
    with pytest.raises(ConfigError, match=message):
        label_request(labels, spec, ["dog", "cat", "cow"])


@pytest.mark.parametrize("name", families())
def test_sidecars_describe_how_each_image_was_generated(name, tmp_path):
    generator = generator_of(name, labels=LabelRequest(3, only=2))
    rows = [
        generator.row(index, pixels, "digest")
        for index, pixels in images_of(generator, range(2, 9))
    ]
    entry, metadata = write_shard(str(tmp_path), "train-000000", "train", SPEC, rows)
    assert metadata.rows_K == (0, 0, 7)
    assert entry.tar.size_bytes <= size_bytes_at_most(7, 1, SPEC)
    tars = glob.glob(str(tmp_path / "*.tar"))
    samples = list(webdataset.WebDataset(tars, shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == [f"{index:09d}" for index in range(2, 9)]
    for index, sample in zip(range(2, 9), samples, strict=True):
        assert sample["cls"] == b"2"
        assert json.loads(sample["json"]) == {
            "index": index,
            "seed": 7,
            "model": "digest",
            "sampler": generator.options.sampler,
            "draws_from_p": generator.options.draws_from_p,
            "label_asked": 2,
        }


def test_settings_without_effect_on_the_images_are_not_in_the_fingerprint():
    base = SampleConfig()
    same = SampleConfig(workers=9, device="cpu", deadline_s=1, count=3, shard_rows=3, request=9)
    assert same.stream() == base.stream()
    for change in ({"micro_batch": 3}, {"weights": "raw"}, {"filters": {"min_contrast": 3}}):
        assert SampleConfig(**change).stream() != base.stream()


RECORD = {"weights": "ema", "options": {}, "only_label": None, "seed": 3, "micro_batch": 8}


def synthetic(**changes):
    return DatasetManifest(
        fingerprint="f",
        spec=ImageSpec(channels=1, height=8, width=8, classes=3),
        shards=(),
        metadata={"sample": RECORD | {"count": 5} | changes},
    )


def test_what_a_manifest_says_about_its_samples_is_typed():
    assert SampledBy.of(synthetic(), "samples").micro_batch == 8


@pytest.mark.parametrize(
    "changes",
    [
        {"weights": "other"},
        {"options": []},
        {"only_label": 3},
        {"only_label": -1},
        {"seed": "x"},
        {"seed": 10**30},
        {"micro_batch": 0},
        {"micro_batch": 10**9},
        {"micro_batch": None},
    ],
)
def test_other_values_are_an_error_that_names_the_folder(changes):
    with pytest.raises(DataError, match=r"^samples.*remove the folder and run genmod sample again"):
        SampledBy.of(synthetic(**changes), "samples")


def test_a_micro_batch_of_too_many_pixels_is_refused():
    manifest = synthetic(micro_batch=1 << 16)
    large = manifest.model_copy(update={"spec": ImageSpec(channels=1, height=64, width=64)})
    SampledBy.of(manifest, "samples")
    with pytest.raises(DataError, match="268,435,456 pixels, more than the limit"):
        SampledBy.of(large, "samples")
