"""Opens a dataset of ours as a pipeline of the webdataset package, for code that is built on it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, cast

from genmod import storage
from genmod.data.format.codecs import Codec
from genmod.errors import ConfigError, DataError
from genmod.manifest import DatasetManifest, ImageSpec, Split, require

if TYPE_CHECKING:
    from webdataset.compat import WebDataset


def webdataset(url: str, split: Split = "train") -> WebDataset:
    """Open a split of a dataset as a ``webdataset.WebDataset`` of decoded samples, in the manifest's order.

    Each sample is a dict: ``__key__`` (text), ``png`` or ``jpg`` (the image, a uint8 array (H, W, C)),
    ``cls`` (int) if the dataset has labels, ``json`` (dict) if the sample has a sidecar. Binary data with a
    draw seed yields its greys. Tars are opened through fsspec, so any URL works that genmod reads; no shell
    command is run. Shards are divided among ranks and DataLoader workers.

    Example::

        from genmod.data import webdataset

        dataset = webdataset("s3://bucket/run/data", "train")
        for image, label in dataset.shuffle(1000).to_tuple("png", "cls"):
            ...

    Args:
        url: root of the dataset: the URL or folder that contains dataset.json.
        split: ``train``, ``val`` or ``test``.

    Returns:
        The pipeline; all methods of ``WebDataset`` (shuffle, batched, map, ...) work on it.

    Raises:
        ConfigError: there is no dataset at ``url``, or the split has no rows.
        DataError: while iterating: a tar is missing, or an image cannot be decoded.
    """
    from webdataset import compat, shardlists
    from webdataset.cache import FileCache, StreamingOpen

    root = storage.resolve(url)
    manifest = require(DatasetManifest, root, "dataset", "shard")
    tar_urls = [storage.join(root, shard.tar.path) for shard in manifest.of_split(split)]
    if not tar_urls:
        raise ConfigError(f"{root}: the {split} split has no rows; see data.splits in the recipe")
    # shardshuffle=0: manifest order. empty_check: a worker may get no shard.
    dataset = compat.WebDataset(
        tar_urls, shardshuffle=0, nodesplitter=shardlists.split_by_node, empty_check=False
    )
    # The package would open remote URLs with shell commands; open all tars through fsspec instead.
    stages = dataset.pipeline
    openers = [i for i, stage in enumerate(stages) if isinstance(stage, (StreamingOpen, FileCache))]
    assert len(openers) == 1, "webdataset has changed: its pipeline has no opener"
    stages[openers[0]] = _open_tars
    return cast("WebDataset", dataset.map(_Decoder(manifest.spec)))


def _open_tars(sources: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Pipeline stage: open each tar for streaming."""
    for source in sources:
        url = str(source["url"])
        fs, path = storage.filesystem(url)
        try:
            stream = fs.open(path, "rb")
        except FileNotFoundError:
            raise DataError(f"{url} does not exist, but the dataset's manifest lists it") from None
        with cast(Any, stream):
            yield {"url": url, "stream": stream}


class _Decoder:
    """Decodes the members of a sample. Each process makes its own codec, which is not thread-safe."""

    def __init__(self, spec: ImageSpec) -> None:
        self._codec = Codec(spec)

    def __call__(self, sample: Mapping[str, Any]) -> dict[str, Any]:
        return {name: self._decode(name, value, sample) for name, value in sample.items()}

    def _decode(self, name: str, value: Any, sample: Mapping[str, Any]) -> Any:
        if name in ("png", "jpg"):
            try:
                return self._codec.decode([value])[0].transpose(1, 2, 0)
            except DataError as error:
                where = f"{sample['__url__']}: member {sample['__key__']}.{name}"
                raise DataError(f"{where}: {error}") from None
        if name == "cls":
            return int(value)
        return json.loads(value) if name == "json" else value
