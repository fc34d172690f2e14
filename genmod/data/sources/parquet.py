"""Source of Parquet tables: a column of encoded images, and a column of labels if there are any."""

from __future__ import annotations

import hashlib
import posixpath
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from genmod import storage
from genmod.config import canonical_json, fingerprint
from genmod.data.format.codecs import Rejected
from genmod.data.sources.arrays import row_name
from genmod.data.sources.folder import MAX_FILE_BYTES
from genmod.data.sources.patterns import expand_files
from genmod.data.sources.source import BAD_LABEL, NO_LABEL, Entry, Image, Ref, Scan, Source
from genmod.errors import DataError

_IMAGE_COLUMNS = ("image", "img", "png", "jpg", "bytes")
"""Names of the image column, by priority. It contains bytes, or structs with a field ``bytes``."""
_LABEL_COLUMNS = ("label", "labels", "cls", "class", "fine_label")
"""Names of the label column, by priority. It contains integers, or strings that name classes."""
_MAX_GROUP_BYTES = 1 << 31
_MAX_LABEL = (1 << 31) - 1


class Parquet(Source):
    """Rows of Parquet files, named by file and row number. Row groups are read as a whole."""

    kind = "parquet"
    random_access = False

    def entries(self, scan: Scan) -> Iterator[Entry]:
        """List every row in the order of the files; reads the labels, not the images."""
        content = hashlib.sha256()
        rows, kinds = 0, set[str]()
        for url in self._files():
            stem = posixpath.basename(url).removesuffix(".parquet")
            content.update(canonical_json([stem, storage.size_bytes(url)]))
            with closing(self._open(url)) as file:
                # Check the columns.
                if self._pick(file, _IMAGE_COLUMNS) is None:
                    raise DataError(
                        f"{url}: columns {', '.join(file.schema_arrow.names)}; "
                        f"expected a column of image bytes named {' or '.join(_IMAGE_COLUMNS)}"
                    )
                label_column = self._pick(file, _LABEL_COLUMNS)
                kinds.add(_label_kind(file, label_column, url))
                # List the rows, one row group at a time.
                number = 0
                for group in range(file.num_row_groups):
                    size_bytes = _check_group(file, group, url)
                    scan.size_bytes += size_bytes
                    scan.max_fetch_bytes = max(scan.max_fetch_bytes, size_bytes)
                    for row, label in enumerate(_labels(file, group, label_column, url)):
                        content.update(f"{label!r},".encode())
                        yield Entry(row_name(number, f"{stem}-"), [url, group, row], label)
                        number += 1
            rows += number
            if len(kinds) > 1:
                raise DataError(
                    f"{self.text}: {url} has {_label_kind(file, label_column, url)}, other files differ"
                )
        if rows == 0:
            raise DataError(f"{self.text} contains no rows")
        scan.fingerprint = fingerprint(self.kind, content.hexdigest())

    def _files(self) -> list[str]:
        fs, path = storage.filesystem(self.where)
        return expand_files(self.text, f"{self.where}/*.parquet" if fs.isdir(path) else self.where)

    def _open(self, url: str) -> Any:
        fs, path = storage.filesystem(url)
        with _naming(url):
            return pq.ParquetFile(cast(Any, fs.open(path, "rb")))

    @staticmethod
    def _pick(file: Any, names: Sequence[str]) -> str | None:
        return next((name for name in names if name in file.schema_arrow.names), None)

    def fetch(self, refs: Sequence[Ref], fingerprint: str) -> Iterator[Image]:
        """Fetch rows; a ref is [file, row group, row in the group]."""
        current: tuple[str, int] | None = None
        file, column = None, None
        for url, group, row in refs:
            # Open a file, or read a row group, only when it changes.
            if current is None or current[0] != url:
                file = self._open(url)
            if current != (url, group):
                name = self._pick(file, _IMAGE_COLUMNS)
                if name is None or group >= cast(Any, file).num_row_groups:
                    raise DataError(f"{url} changed while it was sharded; run genmod shard again")
                column = _column(file, group, name, url)
                current = (url, group)
            yield _image_bytes(column, row)


@contextmanager
def _naming(url: str) -> Generator[None]:
    """Turn Parquet errors into a DataError that names the file. Storage errors (with errno) pass through."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, pa.ArrowException) or (type(error) is OSError and error.errno is None):
            reason = " ".join(str(error).split())[:160]
            raise DataError(f"{url} is not a readable Parquet file ({reason})") from None
        raise


def _column(file: Any, group: int, name: str, url: str) -> Any:
    with _naming(url):
        return file.read_row_group(group, columns=[name])[name]


def _check_group(file: Any, group: int, url: str) -> int:
    """Return the declared size of a row group. Raises DataError if it is too large to read as a whole."""
    size_bytes = int(file.metadata.row_group(group).total_byte_size)
    if size_bytes > _MAX_GROUP_BYTES:
        raise DataError(
            f"{url}: row group {group} declares {size_bytes} bytes, more than {_MAX_GROUP_BYTES}; "
            "write it with smaller row groups"
        )
    return size_bytes


def _label_kind(file: Any, column: str | None, url: str) -> str:
    if column is None:
        return "no label column"
    kind = file.schema_arrow.field(column).type
    if pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        return "integer labels"
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return "string labels"
    raise DataError(f"{url}: labels are {kind}, expected integers or strings")


def _labels(file: Any, group: int, column: str | None, url: str) -> Iterator[int | str]:
    """Labels of the rows of a group; BAD_LABEL for integers that are not a class number."""
    if column is None:
        yield from [NO_LABEL] * file.metadata.row_group(group).num_rows
        return
    for value in _column(file, group, column, url).to_pylist():
        if isinstance(value, str):
            yield value
        elif value is None:
            yield NO_LABEL
        else:
            yield int(value) if NO_LABEL <= value <= _MAX_LABEL else BAD_LABEL


def _image_bytes(column: Any, row: int) -> Image:
    value = column[row].as_py() if row < len(column) else None
    if isinstance(value, dict):
        value = cast("dict[str, Any]", value).get("bytes")
    if not isinstance(value, bytes):
        return Rejected("has no image bytes")
    if len(value) > MAX_FILE_BYTES:
        return Rejected(f"a file of {len(value)} bytes, more than {MAX_FILE_BYTES}")
    return value
