"""Builders of image files, tars and small datasets for the tests of the data plane."""

import io
import tarfile

import numpy as np
from PIL import Image

from genmod.data.format.shards import write_shard
from genmod.manifest import DatasetManifest, RowStats, dataset_metadata, publish


def encode(image, kind="PNG", **options):
    """Encode a Pillow image or an array as the bytes of an image file."""
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def write_tar(path, members):
    """Write a tar of (name, bytes), (name, link target, type), or (name, None) for a folder."""
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for name, body, *link in members:
            info = tarfile.TarInfo(name)
            if link:
                info.type, info.linkname = link[0], body
            elif body is None:
                info.type = tarfile.DIRTYPE
            else:
                info.size = len(body)
            tar.addfile(info, io.BytesIO(body) if isinstance(body, bytes) else None)


def write_dataset(root, spec, rows, rows_per_shard=10):
    """Write rows as the train split of a dataset, without a source, and return its manifest."""
    shards, total = [], RowStats()
    for number, first in enumerate(range(0, len(rows), rows_per_shard)):
        part = rows[first : first + rows_per_shard]
        shard, stats = write_shard(root, f"train-{number:06d}", "train", spec, part)
        shards.append(shard)
        total += stats
    metadata = dataset_metadata({"train": total})
    manifest = DatasetManifest(fingerprint="f", spec=spec, shards=tuple(shards), metadata=metadata)
    return publish(root, manifest)
