"""Synthetic datasets: an image depends on its index alone, labels are dealt out, rows can be made again."""

import glob
import json

import pytest
import torch
import webdataset
from hypothesis import given
from hypothesis import strategies as st

from genmod.data.format.shards import write_shard
from genmod.errors import ConfigError, GenmodError
from genmod.generation.synthetic import (
    LabelRequest,
    SampleConfig,
    SampleGenerator,
    label_request,
    shard_count,
    shard_range,
    size_bytes_at_most,
)
from genmod.interface.model import DataStats, GenerativeModel
from genmod.interface.options import SampleOptions
from genmod.interface.registry import ModelConfig, families, family
from genmod.manifest import ImageSpec

SPEC = ImageSpec(channels=1, height=8, width=8, classes=3)


def maker(name, spec=SPEC, want=None, micro_batch=4):
    model_class = family(name)
    stats = DataStats(mean=(0.0,) * spec.channels, std=(0.5,) * spec.channels)
    net = model_class.Config.tiny().model_dump()
    model = ModelConfig(family=name, net=net, spec=spec, stats=stats).build(1).eval()
    return SampleGenerator(
        model, model_class.Sample(), want or LabelRequest(spec.classes), 7, micro_batch
    )


@pytest.mark.parametrize("name", families())
def test_an_image_is_the_same_however_the_work_is_cut(name):
    make = maker(name)
    whole = dict(make.images(range(12)))
    assert list(whole) == list(range(12))
    for part in (range(3, 10), range(5, 6), range(8, 12)):
        for index, pixels_CHW in make.images(part):
            assert index in part
            assert torch.equal(pixels_CHW, whole[index])
    assert torch.equal(make.image(9), whole[9])
    assert len({pixels.numpy().tobytes() for pixels in whole.values()}) == 12


@pytest.mark.parametrize("levels", [2, 256])
@pytest.mark.parametrize("name", families())
def test_pixels_are_the_dataset_s(name, levels):
    spec = SPEC.model_copy(update={"levels": levels, "classes": 0})
    pixels_BCHW = maker(name, spec).pixels_BCHW(0)
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


def test_an_image_that_is_none_is_said_so_instead_of_written():
    make = SampleGenerator(Diverging(SPEC), SampleOptions(), LabelRequest(3), 7, 4)
    assert len(list(make.images(range(0, 4)))) == 4
    with pytest.raises(GenmodError, match="image 6 holds values that are not finite"):
        list(make.images(range(0, 5)))


def test_labels_are_a_function_of_the_index():
    index_B = torch.tensor([0, 4, 8, 2])
    assert label_request("auto", SPEC).labels_B(index_B).tolist() == [0, 1, 2, 2]
    assert label_request("balanced", SPEC) == label_request("auto", SPEC)
    assert [label_request(labels, SPEC).rule for labels in ("auto", 0, "2")] == ["balanced", 0, 2]
    for one in (1, "1", "cat"):
        assert label_request(one, SPEC, ["dog", "cat", "cow"]).labels_B(index_B).tolist() == [
            1,
            1,
            1,
            1,
        ]
    for want in (LabelRequest(3), LabelRequest(3, 0), LabelRequest(3, 2)):
        assert [want.label(int(index)) for index in index_B] == want.labels_B(index_B).tolist()
    plain = SPEC.model_copy(update={"classes": 0})
    for none in ("auto", "none"):
        assert label_request(none, plain).labels_B(index_B) is None


@pytest.mark.parametrize(
    ("labels", "classes", "says"),
    [
        (3, 3, "classes 0 to 2"),
        (-1, 3, "classes 0 to 2"),
        ("ct", 3, "did you mean 'cat'"),
        ("none", 3, "images of a class"),
        ("balanced", 0, "trained without labels"),
        (1, 0, "trained without labels"),
    ],
)
def test_labels_that_the_model_does_not_know_are_refused(labels, classes, says):
    spec = SPEC.model_copy(update={"classes": classes})
    with pytest.raises(ConfigError, match=says):
        label_request(labels, spec, ["dog", "cat", "cow"])


@given(count=st.integers(1, 500), shard_rows=st.integers(1, 100))
def test_shards_hold_every_index_once(count, shard_rows):
    config = SampleConfig(count=count, shard_rows=shard_rows)
    ranges = [shard_range(number, config) for number in range(shard_count(config))]
    assert [index for part in ranges for index in part] == list(range(count))
    assert all(part for part in ranges)


@pytest.mark.parametrize("name", families())
def test_a_shard_says_how_each_image_was_made(name, tmp_path):
    make = maker(name, want=LabelRequest(3, only=2))
    rows = [make.row(index, pixels, "digest") for index, pixels in make.images(range(2, 9))]
    entry, metadata = write_shard(str(tmp_path), "train-000000", "train", SPEC, rows)
    assert metadata.rows_K == (0, 0, 7)
    assert entry.tar.size_bytes <= size_bytes_at_most(SampleConfig(count=7), SPEC)
    tars = glob.glob(str(tmp_path / "*.tar"))
    samples = list(webdataset.WebDataset(tars, shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == [f"{index:09d}" for index in range(2, 9)]
    for index, sample in zip(range(2, 9), samples, strict=True):
        assert sample["cls"] == b"2"
        assert json.loads(sample["json"]) == {
            "index": index,
            "seed": 7,
            "model": "digest",
            "sampler": make.options.sampler,
            "draws_from_p": make.options.draws_from_p,
            "label_asked": 2,
        }


def test_what_does_not_change_the_images_is_not_in_the_fingerprint():
    base = SampleConfig()
    same = SampleConfig(workers=9, device="cpu", deadline_s=1)
    assert same.result() == base.result()
    for change in ({"count": 3}, {"shard_rows": 3}, {"micro_batch": 3}, {"weights": "raw"}):
        assert SampleConfig(**change).result() != base.result()
