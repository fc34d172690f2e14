"""Reads columns of foreign Parquet files, one row group at a time, after its pages are counted."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from genmod import storage
from genmod.budget import BUDGET
from genmod.data.sources.identity import short_digest
from genmod.errors import DataError, sanitize
from genmod.parquet_layout import check_footer, footer_bytes, read_pages

_pc: Any = pyarrow.compute  # its functions are made at import, so no type checker knows them

ResultT = TypeVar("ResultT")

_MAX_GROUP_BYTES = 1 << 31
_MAX_LIST = 100
"""Values of a list, on average over the rows of a row group."""

_SPARE_VALUES = 1 << 16
"""Values of lists that a row group may have above the average."""

_SMALLER = "write it with smaller row groups"


class _Stream(io.RawIOBase):
    """A file of which one part is in memory."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._start, self._part = 0, b""

    def hold(self, start: int, size_bytes: int) -> bytes:
        """Read a part of the file, and keep it until the next one."""
        self._part = b""
        self._stream.seek(start)
        self._start, self._part = start, self._stream.read(size_bytes)
        return self._part

    def read(self, size: int = -1) -> bytes:
        at = self._stream.tell()
        offset = at - self._start
        if size >= 0 and offset >= 0 and offset + size <= len(self._part):
            self._stream.seek(at + size)
            return self._part[offset : offset + size]
        return cast(bytes, self._stream.read(size))

    def seek(self, offset: int, whence: int = 0) -> int:
        return cast(int, self._stream.seek(offset, whence))

    def tell(self) -> int:
        return cast(int, self._stream.tell())

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        self._stream.close()
        super().close()


class ParquetFile:
    """A Parquet file whose metadata is checked."""

    def __init__(self, url: str) -> None:
        """Open a file and check its footer. Raises DataError."""
        self.url = url
        fs, path = storage.filesystem(url)
        self.stream = _Stream(cast(Any, fs.open(path, "rb")))
        self.digest = ""
        """Digest of the footer, to see a change between listing and fetching."""
        self._file = self.guard(self._open)
        self.metadata: Any = self._file.metadata
        self._schema: Any = self.guard(lambda: self._file.schema_arrow)
        self.names: list[str] = self.guard(lambda: list(self._schema.names))

    def _open(self) -> Any:
        end = self.stream.seek(0, 2)
        self.stream.seek(max(0, end - 8))
        size_bytes = footer_bytes(self.stream.read(8))
        footer = self.stream.hold(max(0, end - 8 - size_bytes), size_bytes)
        check_footer(footer)
        self.digest = short_digest(footer)
        return pq.ParquetFile(cast(Any, self.stream))

    def guard(self, read: Callable[[], ResultT]) -> ResultT:
        """Turn Parquet errors into a DataError that names the file. Errors of the storage pass through."""
        try:
            return read()
        except (
            pa.ArrowException,
            OSError,
            ValueError,
            KeyError,
            IndexError,
            OverflowError,
        ) as error:
            if isinstance(error, OSError) and (
                type(error) is not OSError or error.errno is not None
            ):
                raise
            reason = sanitize(" ".join(str(error).split()))[:160]
            raise DataError(f"{self.url} is not a readable Parquet file ({reason})") from None

    @property
    def groups(self) -> int:
        """Number of row groups."""
        return self._file.num_row_groups

    def rows(self, group: int) -> int:
        """Declared number of rows of a row group."""
        return int(self.metadata.row_group(group).num_rows)

    @property
    def schema_metadata(self) -> Mapping[bytes, bytes]:
        """Texts that the writer attached to the schema, e.g. ``huggingface``."""
        return self._schema.metadata or {}

    def type_of(self, path: str) -> Any:
        """The Arrow type of a column, or of a field of one by its path with dots; None if it has none."""
        parts = [path] if path in self.names else path.split(".")
        if self.names.count(parts[0]) != 1:
            return None
        kind = self._schema.field(parts[0]).type
        for part in parts[1:]:
            if not pa.types.is_struct(kind) or kind.get_field_index(part) < 0:
                return None
            kind = kind.field(part).type
        return kind

    def column(self, path: str, lists: bool = False) -> ParquetColumn:
        """A column, or a field by its path with dots; ``lists`` allows lists of values. Raises DataError."""
        return ParquetColumn(self, path, lists)

    def close(self) -> None:
        """Close the file and its stream."""
        self._file.close()
        self.stream.close()


class ParquetColumn:
    """One column of a Parquet file. Texts and bytes keep their dictionary: repeated ones take no memory."""

    def __init__(self, file: ParquetFile, path: str, lists: bool = False) -> None:
        self.path = path
        self._parent = file
        # The fields below the column of the table.
        self._top, *self._fields = [path] if path in file.names else path.split(".")
        self._number = self._leaf(lists)
        leaf = file.metadata.schema.column(self._number)
        self._has_lists = leaf.max_repetition_level > 0
        self._width = leaf.length if leaf.physical_type == "FIXED_LEN_BYTE_ARRAY" else 1
        self._leaf_path: str = leaf.path
        dictionary = [self._leaf_path] if leaf.physical_type == "BYTE_ARRAY" else []
        self._file = file.guard(
            lambda: pq.ParquetFile(
                cast(Any, file.stream), metadata=file.metadata, read_dictionary=dictionary
            )
        )

    def _leaf(self, lists: bool) -> int:
        """Number of the column of values. Raises DataError if there are several, or lists of lists."""
        file, path = self._parent, self.path
        schema: Any = file.metadata.schema
        is_list = is_list_type(file.type_of(path))
        numbers = file.guard(
            lambda: [
                n
                for n in range(len(schema))
                if schema.column(n).path == path
                or (is_list and schema.column(n).path.startswith(f"{path}."))
            ]
        )
        shown = sanitize(path)[:80]
        if len(numbers) != 1:
            raise DataError(f"{file.url}: column {shown} has levels, expected one value per row")
        if schema.column(numbers[0]).max_repetition_level > (1 if lists else 0):
            raise DataError(f"{file.url}: column {shown} has lists, expected one value per row")
        return numbers[0]

    @property
    def type(self) -> Any:
        """The Arrow type of the values."""
        return self._parent.type_of(self.path)

    def check_group(self, group: int) -> int:
        """Declared bytes of a row group. Raises DataError if it is too large to read as a whole."""
        url = self._parent.url
        if not 0 <= group < self._parent.groups:
            raise DataError(f"{url} changed while it was sharded; run genmod shard again")
        declared = self._parent.metadata.row_group(group)
        column = declared.column(self._number)
        rows, size_bytes = int(declared.num_rows), int(declared.total_byte_size)
        sizes = size_bytes, column.total_uncompressed_size, column.total_compressed_size
        size_bytes = max(size_bytes, *sizes)
        if min(sizes) < 0 or size_bytes > _MAX_GROUP_BYTES or rows * self._width > _MAX_GROUP_BYTES:
            raise DataError(
                f"{url}: row group {group} declares {size_bytes} bytes in {rows} rows, more than "
                f"{_MAX_GROUP_BYTES}; {_SMALLER}"
            )
        BUDGET.check(f"{url}: row group {group}", _SMALLER, shard_rows=rows)
        if rows > column.total_uncompressed_size:
            raise DataError(
                f"{url}: row group {group} declares {rows} rows in {column.total_uncompressed_size} "
                "bytes of images; write each image once"
            )
        return size_bytes

    def read(self, group: int) -> Any:
        """The values of a row group, whose pages are counted before they are decoded. Raises DataError."""
        url = self._parent.url
        values = self._parent.guard(lambda: self._read(group))
        size_bytes = sum(map(_decoded_bytes, values.chunks))
        if size_bytes > _MAX_GROUP_BYTES:
            raise DataError(
                f"{url}: row group {group} repeats values of {size_bytes} bytes in all, more than "
                f"{_MAX_GROUP_BYTES}; {_SMALLER}"
            )
        return values

    def _read(self, group: int) -> Any:
        declared = self._parent.metadata.row_group(group)
        column = declared.column(self._number)
        size_bytes, start = column.total_compressed_size, column.data_page_offset
        if column.has_dictionary_page and 0 < column.dictionary_page_offset < start:
            start = column.dictionary_page_offset
        if start < 0 or not 0 <= size_bytes <= _MAX_GROUP_BYTES:
            raise ValueError(f"column {self.path} declares {size_bytes} bytes at byte {start}")
        pages = read_pages(self._parent.stream.hold(start, size_bytes))
        is_count_right = pages.values == declared.num_rows or self._has_lists
        if pages.size_bytes > column.total_uncompressed_size or not is_count_right:
            raise ValueError(
                f"column {self.path} contains {pages.size_bytes} bytes and {pages.values} values, "
                f"declares {column.total_uncompressed_size} and {declared.num_rows}"
            )
        if pages.values > _MAX_LIST * declared.num_rows + _SPARE_VALUES:
            raise ValueError(
                f"column {self.path} has {pages.values} values in {declared.num_rows} rows"
            )
        BUDGET.check(f"{self._parent.url}: row group {group}", _SMALLER, shard_rows=pages.values)
        table = self._file.read_row_group(group, columns=[self._leaf_path], use_threads=False)
        if table.num_rows != declared.num_rows:
            raise ValueError(f"contains {table.num_rows} rows, declares {declared.num_rows}")
        values = table.column(self._top)
        for field in self._fields:
            values = _pc.struct_field(values, field)
        return values


def is_list_type(kind: Any) -> bool:
    """Whether an Arrow type is one of the types of lists."""
    tests = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return kind is not None and any(test(kind) for test in tests)


def texts(array: Any) -> list[str | None]:
    """Texts of an array of texts or bytes; None for nulls, and those too long for a name or not Unicode."""
    lengths = _pc.binary_length(array).to_pylist()
    return [
        _text(array, n) if length is not None and length <= BUDGET.name_chars else None
        for n, length in enumerate(lengths)
    ]


def _text(array: Any, number: int) -> str | None:
    try:
        value = array[number].as_py()
        return value.decode() if isinstance(value, bytes) else cast(str, value)
    except UnicodeDecodeError:
        return None


def _decoded_bytes(chunk: Any) -> int:
    """Bytes of the values of an array, with repeated ones counted each time."""
    if is_list_type(chunk.type):
        return _decoded_bytes(chunk.flatten())
    if not pa.types.is_dictionary(chunk.type):
        return int(chunk.nbytes)
    lengths = _pc.cast(_pc.binary_length(chunk.dictionary), pa.int64())
    return int(_pc.sum(_pc.take(lengths, chunk.indices)).as_py() or 0)
