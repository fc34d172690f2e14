"""Opens a dataset of ours as a pipeline of the webdataset package, for code that is built on it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, cast

from genmod import storage
from genmod.data.format.codecs import Codec
from genmod.data.format.encodings import IMAGE_EXTENSIONS
from genmod.data.format.index import HINT
from genmod.data.reading.tar_files import open_local
from genmod.documents import parse_json
from genmod.errors import ConfigError, DataError
from genmod.manifest import DatasetManifest, ImageSpec, Split, StoredShard, require

if TYPE_CHECKING:
    from webdataset.compat import WebDataset


_LABEL_DIGITS = 9


def webdataset(url: str, split: Split = "train") -> WebDataset:
    """Open a split of a dataset as a ``webdataset.WebDataset`` of decoded samples, in the manifest's order.

    Each sample is a dict: ``__key__`` (text), ``png``, ``jpg``, ``webp`` or ``npy`` (the image, a uint8 array
    (H, W, C)), ``cls`` (int) if the dataset has labels, ``json`` (dict) if the sample has a sidecar. Binary
    data with a draw seed yields its greys. Tars are opened through fsspec, so any URL works that genmod
    reads; no shell command is run. Shards are divided among ranks and DataLoader workers.

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
    shards = {shard.tar_url: shard for shard in manifest.stored(root, split)}
    if not shards:
        raise ConfigError(f"{root}: the {split} split has no rows; see data.splits in the recipe")
    # shardshuffle=0: manifest order. empty_check: a worker may get no shard.
    dataset = compat.WebDataset(
        list(shards), shardshuffle=0, nodesplitter=shardlists.split_by_node, empty_check=False
    )
    # The package would open remote URLs with shell commands; open all tars through fsspec instead.
    stages = dataset.pipeline
    openers = [i for i, stage in enumerate(stages) if isinstance(stage, (StreamingOpen, FileCache))]
    assert len(openers) == 1, "webdataset has changed: its pipeline has no opener"
    stages[openers[0]] = _TarOpener(shards)
    return cast("WebDataset", dataset.map(_Decoder(manifest.spec)))


class _TarOpener:
    """Pipeline stage: opens each tar for streaming. Local tars are compared with their digests."""

    def __init__(self, shards: Mapping[str, StoredShard]) -> None:
        self._shards = dict(shards)

    def __call__(self, sources: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
        for source in sources:
            url = str(source["url"])
            try:
                stream = self._open(url)
            except FileNotFoundError:
                raise DataError(f"{url} is missing, but its manifest lists it; {HINT}") from None
            with stream:
                yield {"url": url, "stream": stream}

    def _open(self, url: str) -> Any:
        descriptor = open_local(self._shards[url])
        if descriptor is not None:
            return os.fdopen(descriptor, "rb")
        fs, path = storage.filesystem(url)
        return fs.open(path, "rb")


class _Decoder:
    """Decodes the members of a sample. Each process makes its own codec, which is not thread-safe."""

    def __init__(self, spec: ImageSpec) -> None:
        self._codec = Codec(spec)

    def __call__(self, sample: Mapping[str, Any]) -> dict[str, Any]:
        return {name: self._decode(name, value, sample) for name, value in sample.items()}

    def _decode(self, name: str, value: Any, sample: Mapping[str, Any]) -> Any:
        if name in IMAGE_EXTENSIONS:
            try:
                return self._codec.decode([value])[0].transpose(1, 2, 0)
            except DataError as error:
                where = f"{sample['__url__']}: member {sample['__key__']}.{name}"
                raise DataError(f"{where}: {error}") from None
        if name not in ("cls", "json"):
            return value
        member = f"{sample['__url__']}: member {sample['__key__']}.{name}"
        if name == "json":
            return parse_json(value, member, HINT)
        if not value.isdigit() or len(value) > _LABEL_DIGITS:
            raise DataError(f"{member}: {value[:16]!r} is not a label; {HINT}")
        return int(value)
