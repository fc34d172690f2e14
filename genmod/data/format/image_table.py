"""A shard's images as Parquet, for readers that want a table: Hugging Face's datasets, Ray Data, pandas.

A table has the columns ``image`` (a struct of ``bytes``, the encoded image as in the tar, and ``path``, its
name), ``label`` if the dataset has labels, ``index`` and ``key``, in the order of the tar. The metadata of
its schema says to ``datasets`` that these are images and classes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

TABLE_SUFFIX = ".images.parquet"
"""End of the name of a table."""

_GROUP_ROWS, _GROUP_BYTES = 1_000, 64 << 20
"""Rows and bytes of images of a row group, at most; one image alone may have more bytes."""

_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@dataclass(frozen=True)
class ImageTable:
    """The tables of one dataset."""

    classes: int
    """Number of labels; 0 without labels."""
    class_names: tuple[str, ...] = ()
    """Empty if the classes have numbers only."""

    def encoded(
        self,
        keys: Sequence[str],
        indices: Sequence[int],
        images: Sequence[bytes],
        labels: Sequence[int] | None,
        suffix: str,
    ) -> bytes:
        """The table of a shard as a Parquet file; the same rows yield the same bytes."""
        schema, sink = self._schema(), pa.BufferOutputStream()
        # Encoded images do not compress any further.
        compression = dict.fromkeys(("label", "index", "key", "image.path"), "zstd")
        options: Any = {
            "compression": compression | {"image.bytes": "none"},
            "use_dictionary": False,
            "write_statistics": False,
        }
        with pq.ParquetWriter(sink, schema, **options) as writer:
            for rows in _groups(images):
                path = [f"{key}{suffix}" for key in keys[rows]]
                image = [pa.array(images[rows], pa.binary()), pa.array(path, pa.string())]
                columns = [
                    pa.StructArray.from_arrays(image, fields=list(_IMAGE)),
                    *([] if labels is None else [pa.array(labels[rows], pa.int64())]),
                    pa.array(indices[rows], pa.int64()),
                    pa.array(keys[rows], pa.string()),
                ]
                writer.write_table(pa.table(columns, schema=schema))
        return sink.getvalue().to_pybytes()

    def _schema(self) -> Any:
        fields: dict[str, Any] = {"image": _IMAGE}
        features: dict[str, Any] = {"image": {"_type": "Image"}}
        if self.classes:
            names = self.class_names or [str(number) for number in range(self.classes)]
            fields["label"] = pa.int64()
            features["label"] = {"names": list(names), "_type": "ClassLabel"}
        fields |= {"index": pa.int64(), "key": pa.string()}
        for name, kind in (("index", "int64"), ("key", "string")):
            features[name] = {"dtype": kind, "_type": "Value"}
        metadata = {"huggingface": json.dumps({"info": {"features": features}})}
        return pa.schema(list(fields.items()), metadata=metadata)


def _groups(images: Sequence[bytes]) -> Iterator[slice]:
    """Row groups, each of some consecutive rows."""
    start, size_bytes = 0, 0
    for row, image in enumerate(images):
        is_full = row - start == _GROUP_ROWS or size_bytes + len(image) > _GROUP_BYTES
        if is_full and row > start:
            yield slice(start, row)
            start, size_bytes = row, 0
        size_bytes += len(image)
    yield slice(start, len(images))
