"""Deterministic tar files (USTAR): a vectorised writer, and a reader that finds members without unpacking.

Headers follow POSIX.1-1988 (USTAR) in 512-byte blocks; owner and time fields are zero, so that the bytes
depend only on the contents. The reader also supports the PAX and GNU extensions for long names and sizes.
Letters: N samples, M members per sample, K blocks, B bytes of a block, L bytes of a text, U bytes of a
header that are not all zero, D octal digits, S bytes of a suffix.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from genmod.errors import DataError

BLOCK = 512
_MAX_NAME_BYTES = 100
_MAX_EXTENDED_BYTES = 1 << 16
"""Bytes of an extended header that is read; it contains a name."""

_ZEROS = bytes(BLOCK)
_SIZE_AT, _SUM_AT = 124, 148
# The fields after the name: mode, uid, gid / (size) / mtime, checksum as spaces, type, link name / magic,
# owner and group names, device numbers, name prefix.
_OWNER = b"0000644\x00" + b"0000000\x00" * 2
_AFTER_SIZE = b"00000000000\x00" + b" " * 8 + b"0" + bytes(100)
_AFTER_LINK = b"ustar\x0000" + bytes(64) + b"0000000\x00" * 2 + bytes(155 + 12)
_EMPTY = bytes(_MAX_NAME_BYTES) + _OWNER + bytes(12) + _AFTER_SIZE + _AFTER_LINK
_USED = len(_EMPTY.rstrip(b"\x00"))
_SHIFT_D = 3 * np.arange(10, -1, -1)


class Members(NamedTuple):
    """One kind of member: the files KEY + suffix of all samples of a tar."""

    suffix: str
    bodies: Sequence[bytes | None] | NDArray[np.bytes_]
    """One per sample; None where the sample lacks the file. An array contains texts up to ``BLOCK`` bytes."""


def build_tar(
    keys: Sequence[str], members: Sequence[Members]
) -> tuple[memoryview, NDArray[np.int64]]:
    """Build a tar in memory, sample by sample; the same samples yield the same bytes.

    Args:
        keys: ASCII keys of the samples; key and suffix have at most 100 bytes together.
        members: the files of every sample, in their order in the tar.

    Returns:
        The bytes of the tar, and int64 (N, M) offsets of the bodies in it.
    """
    key_N = np.array(keys, dtype=np.bytes_)
    length_N = np.char.str_len(key_N)
    longest = max((len(suffix) for suffix, _ in members), default=0)
    assert key_N.dtype.itemsize + longest <= _MAX_NAME_BYTES
    # Sizes of the bodies, -1 for absent members.
    size_NM = np.empty((len(keys), len(members)), dtype=np.int64)
    for size_N, (_, bodies) in zip(size_NM.T, members, strict=True):
        size_N[:] = _sizes(bodies)
    assert size_NM.max(initial=0) < 8**11
    # First block of each member: a header block, then the body in whole blocks.
    blocks_NM = np.where(size_NM < 0, 0, 1 + (size_NM + BLOCK - 1) // BLOCK)
    end_NM = np.cumsum(blocks_NM).reshape(blocks_NM.shape)
    begin_NM = end_NM - blocks_NM
    # The tar ends with two zero blocks.
    tar_KB = np.zeros((int(end_NM.max(initial=0)) + 2, BLOCK), dtype=np.uint8)
    tar = tar_KB.data.cast("B")
    for m, (suffix, bodies) in enumerate(members):
        # Write the headers of this kind of member.
        is_present_N = size_NM[:, m] >= 0
        begin_N, size_N = begin_NM[is_present_N, m], size_NM[is_present_N, m]
        header_NU = _headers(key_N[is_present_N], length_N[is_present_N], suffix, size_N)
        tar_KB[begin_N, :_USED] = header_NU
        # Short texts fill one block each: write all at once.
        if isinstance(bodies, np.ndarray):
            text_NL = _letters(bodies)
            tar_KB[begin_N + 1, : text_NL.shape[1]] = text_NL
            continue
        # Copy the other bodies one by one.
        begins, ends = (begin_N + 1) * BLOCK, (begin_N + 1) * BLOCK + size_N
        present = cast(Sequence[bytes], bodies)
        if not is_present_N.all():
            present = [body for body in bodies if body is not None]
        for begin, end, body in zip(begins.tolist(), ends.tolist(), present, strict=True):
            tar[begin:end] = body
    return tar, (begin_NM + 1) * BLOCK


def _sizes(bodies: Sequence[bytes | None] | NDArray[np.bytes_]) -> NDArray[np.int64]:
    """Size of each body in bytes; -1 for None."""
    if isinstance(bodies, np.ndarray):
        assert bodies.dtype.itemsize <= BLOCK
        return np.char.str_len(bodies)
    try:
        return np.fromiter(map(len, bodies), np.int64, len(bodies))  # type: ignore[arg-type]
    except TypeError:
        return np.array([-1 if body is None else len(body) for body in bodies], dtype=np.int64)


def _letters(text_N: NDArray[np.bytes_]) -> NDArray[np.uint8]:
    """Bytes of each text as one row, padded with zeros."""
    return np.ascontiguousarray(text_N).view(np.uint8).reshape(-1, text_N.dtype.itemsize)


def _headers(
    key_N: NDArray[np.bytes_],
    length_N: NDArray[np.int64],
    suffix: str,
    size_N: NDArray[np.int64],
) -> NDArray[np.uint8]:
    """One header per row, without its trailing zeros."""
    key_NL, suffix_S = _letters(key_N), np.frombuffer(suffix.encode("ascii"), dtype=np.uint8)
    size_N11 = _octal(size_N, 11)
    # Constant fields, then name and size.
    header_NU = np.empty((len(key_N), _USED), dtype=np.uint8)
    header_NU[:] = np.frombuffer(_EMPTY, dtype=np.uint8)[:_USED]
    header_NU[:, : key_NL.shape[1]] = key_NL
    header_NU[np.arange(len(key_N))[:, None], length_N[:, None] + np.arange(len(suffix_S))] = (
        suffix_S
    )
    header_NU[:, _SIZE_AT : _SIZE_AT + 11] = size_N11
    # Checksum: the sum of all header bytes, with spaces in the checksum field.
    sum_N = key_NL.sum(axis=1, dtype=np.int64) + size_N11.sum(axis=1, dtype=np.int64)
    header_NU[:, _SUM_AT : _SUM_AT + 6] = _octal(sum_N + (int(suffix_S.sum()) + sum(_EMPTY)), 6)
    header_NU[:, _SUM_AT + 6] = 0
    return header_NU


def _octal(value_N: NDArray[np.int64], digits: int) -> NDArray[np.uint8]:
    """ASCII octal digits, one number per row."""
    return ((value_N[:, None] >> _SHIFT_D[-digits:]) & 7).astype(np.uint8) + np.uint8(ord("0"))


@dataclass(frozen=True)
class Member:
    """One member of a tar."""

    name: str
    offset: int
    """Offset of the body in bytes from the start of the tar."""
    size_bytes: int
    regular: bool = True
    """A regular file: not a link, folder, device or sparse file."""


_REGULAR = (b"0", b"\x00", b"7")


def walk(stream: IO[bytes], where: str, every: bool = False, begin: int = 0) -> Iterator[Member]:
    """List the regular files of a seekable tar, in order. Bodies are skipped, not read.

    Args:
        stream: the tar.
        where: name of the tar in errors.
        every: also list links, folders and devices.
        begin: offset of the first header to read.

    Raises:
        DataError: not a tar, or a truncated one.
    """
    end = stream.seek(0, 2)
    at, extended = begin, _ExtendedHeader()
    while True:
        # Read the next header. A zero block, or the end of the file, ends the tar.
        stream.seek(at)
        header = stream.read(BLOCK)
        if len(header) < BLOCK or header == _ZEROS:
            if header.strip(b"\x00") or (not header and at == 0):
                raise DataError(f"{where}: truncated in a header at byte {at}; download it again")
            return
        # Take the size from the header, or from the extended header before it.
        size_bytes = _check_header(header, where, at)
        kind, body_at = header[156:157], at + BLOCK
        if kind in _REGULAR and extended.size_bytes is not None:
            size_bytes = extended.size_bytes
        if body_at + size_bytes > end:
            raise DataError(f"{where}: truncated in the member at byte {at}; download it again")
        if kind in (b"x", b"L"):  # extended headers (PAX, GNU) of the next member
            if size_bytes > _MAX_EXTENDED_BYTES:
                raise DataError(
                    f"{where}: the extended header at byte {at} has {size_bytes:,} bytes, more than "
                    f"{_MAX_EXTENDED_BYTES:,}; write the tar again with shorter names"
                )
            extended.read(kind, stream.read(size_bytes))
        elif kind in (b"K", b"g"):  # a long link target (GNU), global defaults (PAX): not needed
            pass
        else:
            if every or kind in _REGULAR:
                name = extended.name or _name(header)
                yield Member(name, body_at, size_bytes, kind in _REGULAR)
            extended = _ExtendedHeader()
        # Bodies are padded to whole blocks.
        at = body_at + size_bytes + -size_bytes % BLOCK


class _ExtendedHeader:
    """Name and size that a PAX or GNU header sets for the next member."""

    name: str | None = None
    size_bytes: int | None = None

    def read(self, kind: bytes, body: bytes) -> None:
        if kind == b"L":
            self.name = body.rstrip(b"\x00").decode("utf-8", "replace")
            return
        at = 0
        while at < len(body):  # records "LENGTH key=value\n"
            digits = body[at : at + 20].partition(b" ")[0]
            count = int(digits) if digits.isdigit() else 0
            if count < 5:
                return
            key, _, value = body[at + len(digits) + 1 : at + count - 1].partition(b"=")
            if key == b"path":
                self.name = value.decode("utf-8", "replace")
            elif key == b"size" and value.isdigit() and len(value) < 20:
                self.size_bytes = int(value)
            at += count


def _check_header(header: bytes, where: str, at: int) -> int:
    """Verify the checksum of a header and return the size of its member in bytes."""
    stored, field = _number(header[148:156]), header[124:136]
    size_bytes = int.from_bytes(field[1:]) if field[0] & 0x80 else _number(field)
    checksum = sum(header[:148]) + 8 * ord(" ") + sum(header[156:])
    if stored != checksum or size_bytes is None:
        is_gzip = header[:2] == b"\x1f\x8b"
        hint = "it is compressed; decompress it" if is_gzip else "not a tar, or a corrupt one"
        raise DataError(f"{where}: no tar header at byte {at}: {hint}")
    return size_bytes


def _number(field: bytes) -> int | None:
    """Parse octal digits; None for anything else, e.g. a sign."""
    digits = field.strip(b"\x00 ") or b"0"
    return int(digits, 8) if re.fullmatch(rb"[0-7]+", digits) else None


def _name(header: bytes) -> str:
    name = header[:100].partition(b"\x00")[0]
    prefix = b""
    if header[257:263] == b"ustar\x00":
        prefix = header[345:500].partition(b"\x00")[0]
    return (prefix + b"/" + name if prefix else name).decode("utf-8", "replace")
