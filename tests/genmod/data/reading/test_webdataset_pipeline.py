"""Our datasets as pipelines of the webdataset package: the same samples as our own reader."""

import pickle
from itertools import pairwise

import numpy as np
import pytest
import torch
from fsspec import filesystem

from genmod.data import webdataset
from genmod.data.format.shards import Row
from genmod.data.reading.reader import split_reader
from genmod.errors import ConfigError, DataError
from genmod.manifest import ImageSpec, publish
from tests.genmod.data.builders import write_dataset


@pytest.fixture
def copied(dataset):
    """URL of the dataset in another store, one that webdataset itself cannot open."""
    fs = filesystem("memory")
    fs.put(f"{dataset[0]}/", "/wds/", recursive=True)
    yield "memory://wds"
    fs.rm("/wds", recursive=True)


def check_equal(samples, reader):
    """Keys, pixels and labels of all rows, in order."""
    assert [sample["__key__"] for sample in samples] == reader.keys()
    batch = reader.read(np.arange(len(reader)))
    for sample, pixels_CHW in zip(samples, batch.pixels_BCHW.numpy(), strict=True):
        assert sample["png"].dtype == np.uint8
        assert np.array_equal(sample["png"], pixels_CHW.transpose(1, 2, 0))
    labels = [sample.get("cls") for sample in samples]
    assert labels == (len(reader) * [None] if batch.labels_B is None else batch.labels_B.tolist())


@pytest.mark.parametrize("split", ["train", "val"])
def test_samples_are_those_of_the_reader(dataset, split):
    root, manifest = dataset
    samples = list(webdataset(root, split))
    check_equal(samples, split_reader(root, manifest, split))
    tars = [sample["__url__"] for sample in samples]
    assert sum(a != b for a, b in pairwise(tars)) == len(manifest.of_split(split)) - 1


@pytest.mark.parametrize("scheme", ["memory", "file"])
def test_a_remote_dataset(dataset, copied, scheme):
    url = copied if scheme == "memory" else f"file://{dataset[0]}"
    check_equal(list(webdataset(url)), split_reader(*dataset, "train"))


def test_unlabelled_colour_images(tmp_path, images, build):
    pixels, _ = images(30, channels=3)
    np.savez(tmp_path / "a.npz", images=pixels)
    root = str(tmp_path / "data")
    manifest = build(root, source=f"npz:{tmp_path}/a.npz", shard_rows=8)
    samples = list(webdataset(root))
    assert samples[0]["png"].shape == (6, 6, 3)
    check_equal(samples, split_reader(root, manifest, "train"))


def test_sidecars(tmp_path):
    spec = ImageSpec(channels=1, height=2, width=3)
    image_HWC = np.arange(6, dtype=np.uint8).reshape(2, 3, 1)
    rows = [Row(key="a", index=0, image_HWC=image_HWC, sidecar={"seed": 7})]
    root = str(tmp_path)
    write_dataset(root, spec, rows)
    (sample,) = webdataset(root)
    assert sample["json"] == {"seed": 7}
    assert np.array_equal(sample["png"], image_HWC)


def test_the_methods_of_webdataset_work_on_it(dataset):
    import webdataset as wds

    pipeline = webdataset(dataset[0]).shuffle(50).to_tuple("png", "cls").batched(16)
    assert isinstance(pipeline, wds.WebDataset)
    counts = [(len(images), len(labels)) for images, labels in pipeline]
    assert sum(count for count, _ in counts) == dataset[1].rows("train")
    assert counts[0] == (16, 16)


def test_workers_share_the_shards(dataset):
    """Workers of a DataLoader get the pipeline by pickle or by fork; each reads its own shards."""
    pipeline = pickle.loads(pickle.dumps(webdataset(dataset[0]).to_tuple("__key__")))
    loader = torch.utils.data.DataLoader(pipeline, batch_size=None, num_workers=2)
    keys = [key for (key,) in loader]
    assert sorted(keys) == sorted(split_reader(*dataset, "train").keys())


def test_errors_name_what_is_wrong(tmp_path, images, build, check_digests):
    with pytest.raises(ConfigError, match="no dataset at"):
        webdataset(str(tmp_path))
    np.savez(tmp_path / "a.npz", images=images(20)[0])
    source = f"npz:{tmp_path}/a.npz"
    root = tmp_path / "data"
    manifest = build(root, source=source, splits={"val": 0, "test": 0}, shard_rows=10)
    with pytest.raises(ConfigError, match="the val split has no rows"):
        webdataset(str(root), "val")
    (root / manifest.shards[1].tar.path).unlink()
    with pytest.raises(DataError, match=f"{manifest.shards[1].tar.path} is missing"):
        list(webdataset(str(root)))
    tar = root / manifest.shards[0].tar.path
    data = bytearray(tar.read_bytes())
    data[512:532] = bytes(20)
    tar.write_bytes(data)
    key = split_reader(str(root), manifest, "train").keys()[0]
    with pytest.raises(
        DataError, match=rf"{manifest.shards[0].tar.path} does not match its digest"
    ):
        list(webdataset(str(root)))
    check_digests(False)
    with pytest.raises(DataError, match=rf"{manifest.shards[0].tar.path}: member {key}\.png"):
        list(webdataset(str(root)))


def test_no_shell_command_in_a_manifest_is_run(tmp_path, dataset):
    _, manifest = dataset
    ran = tmp_path / "ran"
    tar = manifest.shards[0].tar.model_copy(update={"path": f"pipe:touch {ran}"})
    shard = manifest.shards[0].model_copy(update={"tar": tar})
    root = str(tmp_path / "data")
    publish(root, manifest.model_copy(update={"shards": (shard,)}))
    with pytest.raises(DataError, match="expected a relative path"):
        list(webdataset(root, shard.split))
    assert not ran.exists()
