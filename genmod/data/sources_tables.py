"""Parquet tables as a source: a column of encoded images, one of labels if there are any."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Sequence
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from genmod import storage
from genmod.config import fingerprint
from genmod.data.codecs import Refused
from genmod.data.sources import Image, Listing, Ref, Source
from genmod.data.sources_array import row_names
from genmod.data.sources_tars import expand
from genmod.errors import DataError

IMAGE_COLUMNS = ("image", "img", "png", "jpg", "bytes")
"""Bytes, or a struct with a field ``bytes``. The first that is there is taken."""
LABEL_COLUMNS = ("label", "labels", "cls", "class", "fine_label")
"""Integers, or texts that name classes. The first that is there is taken."""


class Parquet(Source):
    """Rows of Parquet files, named by file and number. Row groups are read whole."""

    kind = "parquet"
    scattered = False

    def listing(self) -> Listing:
        """Every row, in the order of the files; reads the labels, not the images."""
        names: list[str] = []
        refs: list[Ref] = []
        labels: list[Any] = []
        content: list[Any] = []
        size_bytes = 0
        label_column = None
        for url in self._files():
            stem = posixpath.basename(url).removesuffix(".parquet")
            content.append([stem, storage.size_bytes(url)])
            file = self._open(url)
            image_column = self._pick(file, IMAGE_COLUMNS)
            if image_column is None:
                raise DataError(
                    f"{url}: columns {', '.join(file.schema_arrow.names)}; "
                    f"wanted one with image bytes called {' or '.join(IMAGE_COLUMNS)}"
                )
            label_column = self._pick(file, LABEL_COLUMNS)
            names += row_names(file.metadata.num_rows, f"{stem}-")
            for group in range(file.num_row_groups):
                metadata = file.metadata.row_group(group)
                refs += [[url, group, row] for row in range(metadata.num_rows)]
                size_bytes += metadata.total_byte_size
            if label_column is not None:
                labels += file.read(columns=[label_column])[label_column].to_pylist()
            file.close()
        if not names:
            raise DataError(f"{self.text} holds no rows")
        if labels and len(labels) != len(names):
            raise DataError(f"{self.text}: some files have a label column, others have none")
        labels_N, class_names = self._labels(labels) if label_column else (None, ())
        return Listing(
            names=names,
            refs=refs,
            labels_N=labels_N,
            fingerprint=fingerprint(self.kind, content, labels),
            size_bytes=size_bytes,
            class_names=class_names,
        )

    def _files(self) -> list[str]:
        fs, path = storage.filesystem(self.where)
        return expand(self.text, f"{self.where}/*.parquet" if fs.isdir(path) else self.where)

    def _open(self, url: str) -> Any:
        fs, path = storage.filesystem(url)
        try:
            return pq.ParquetFile(cast(Any, fs.open(path, "rb")))
        except pa.ArrowException as error:
            raise DataError(f"{url} is not a Parquet file that can be read ({error})") from None

    @staticmethod
    def _pick(file: Any, names: Sequence[str]) -> str | None:
        return next((name for name in names if name in file.schema_arrow.names), None)

    def _labels(self, values: list[Any]) -> tuple[NDArray[np.int64], tuple[str, ...]]:
        if all(value is None or isinstance(value, int) for value in values):
            return np.array([-1 if v is None else v for v in values], dtype=np.int64), ()
        if not all(value is None or isinstance(value, str) for value in values):
            raise DataError(f"{self.text}: labels are neither integers nor texts")
        class_names = tuple(sorted({value for value in values if value is not None}))
        number = {name: label for label, name in enumerate(class_names)}
        return np.array([number.get(value, -1) for value in values], dtype=np.int64), class_names

    def fetch(self, refs: Sequence[Ref], fingerprint: str) -> Iterator[Image]:
        """Rows by [file, row group, row in it]."""
        at: tuple[str, int] | None = None
        file, column = None, None
        for url, group, row in refs:
            if at is None or at[0] != url:
                file = self._open(url)
            if at != (url, group):
                name = self._pick(file, IMAGE_COLUMNS)
                if name is None or group >= cast(Any, file).num_row_groups:
                    raise DataError(f"{url} changed while it was being sharded; shard it again")
                column = cast(Any, file).read_row_group(group, columns=[name])[name]
                at = (url, group)
            yield _image_bytes(column, row)


def _image_bytes(column: Any, row: int) -> Image:
    value = column[row].as_py() if row < len(column) else None
    if isinstance(value, dict):
        value = cast("dict[str, Any]", value).get("bytes")
    if not isinstance(value, bytes):
        return Refused("has no image bytes")
    return value


KINDS = {Parquet.kind: Parquet}
