"""Builders of Parquet tables as the common writers make them, and what a source reads of them."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from genmod.data.sources.config import SourceOptions
from genmod.data.sources.registry import open_source
from genmod.data.sources.source import Scan
from tests.genmod.data.builders import encode


def pngs(count, first=0):
    """Encoded images that all differ: the first pixel is their number."""
    images = np.zeros((first + count, 4, 4), np.uint8)
    images[:, 0, 0] = np.arange(first + count)
    return [encode(image) for image in images[first:]]


def hugging_face(path, columns, features):
    """Write a table with the metadata of Hugging Face ``datasets``."""
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns).replace_schema_metadata(metadata), path)


def class_label(*names):
    """The feature of a column of class numbers."""
    return {"names": list(names), "_type": "ClassLabel"}


def write(path, **columns):
    """Write a table without metadata; images are added if it has none."""
    count = len(next(iter(columns.values())))
    path.parent.mkdir(parents=True, exist_ok=True)
    if not any(name in columns for name in ("image", "img")):
        columns["image"] = pngs(count)
    pq.write_table(pa.table(columns), path)


class Listed:
    """Everything that a source says of its rows."""

    def __init__(self, text, **options):
        scan = Scan()
        source = open_source(text, SourceOptions(**options))
        self.entries = list(source.entries(scan))
        self.names = [entry.name for entry in self.entries]
        self.labels = [entry.label for entry in self.entries]
        self.splits = [entry.split for entry in self.entries]
        self.class_names = scan.class_names
        self.census = scan.census
        self.decisions = " | ".join(scan.census.decisions)
        self.fingerprint = scan.fingerprint
        self.images = list(source.fetch([entry.ref for entry in self.entries], scan.fingerprint))
