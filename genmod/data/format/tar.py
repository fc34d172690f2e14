"""Tar files, written and read by hand: USTAR with nothing in it that differs from one run to the next.

Header fields as POSIX.1-1988 (USTAR) lays them out, 512-byte blocks. The reader also follows the PAX and GNU
extensions for names and sizes that other writers use.
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
MAX_NAME_BYTES = 100

_ZEROS = bytes(BLOCK)
_SIZE_AT, _SUM_AT = 124, 148
# mode, uid, gid / size / mtime, checksum as spaces, type, link name, magic, names, device.
_OWNER = b"0000644\x00" + b"0000000\x00" * 2
_AFTER_SIZE = b"00000000000\x00" + b" " * 8 + b"0" + bytes(100)
_AFTER_LINK = b"ustar\x0000" + bytes(64) + b"0000000\x00" * 2 + bytes(155 + 12)
_EMPTY = bytes(MAX_NAME_BYTES) + _OWNER + bytes(12) + _AFTER_SIZE + _AFTER_LINK
_USED = len(_EMPTY.rstrip(b"\x00"))
_SHIFT_D = 3 * np.arange(10, -1, -1)


class Members(NamedTuple):
    """What every sample of a tar has one of: the files KEY + suffix."""

    suffix: str
    bodies: Sequence[bytes | None] | NDArray[np.bytes_]
    """One a sample, None where it has no such file. An array holds texts of at most ``BLOCK`` bytes."""


def tar_of(keys: Sequence[str], members: Sequence[Members]) -> tuple[memoryview, NDArray[np.int64]]:
    """A whole tar, sample by sample; the same samples give the same bytes.

    Args:
        keys: of the samples, in ASCII, with no suffix longer than ``MAX_NAME_BYTES``.
        members: each sample's files in their order.

    Returns:
        The file, and where each body begins in it: a sample a row, members in columns.
    """
    key_N = np.array(keys, dtype=np.bytes_)
    length_N = np.char.str_len(key_N)
    longest = max((len(suffix) for suffix, _ in members), default=0)
    assert key_N.dtype.itemsize + longest <= MAX_NAME_BYTES
    size_NM = np.empty((len(keys), len(members)), dtype=np.int64)
    for size_N, (_, bodies) in zip(size_NM.T, members, strict=True):
        size_N[:] = _sizes(bodies)
    assert size_NM.max(initial=0) < 8**11
    blocks_NM = np.where(size_NM < 0, 0, 1 + (size_NM + BLOCK - 1) // BLOCK)
    end_NM = np.cumsum(blocks_NM).reshape(blocks_NM.shape)
    begin_NM = end_NM - blocks_NM
    whole_KB = np.zeros((int(end_NM.max(initial=0)) + 2, BLOCK), dtype=np.uint8)
    whole = whole_KB.data.cast("B")
    for m, (suffix, bodies) in enumerate(members):
        is_there_N = size_NM[:, m] >= 0
        begin_N, size_N = begin_NM[is_there_N, m], size_NM[is_there_N, m]
        header_NU = _headers(key_N[is_there_N], length_N[is_there_N], suffix, size_N)
        whole_KB[begin_N, :_USED] = header_NU
        if isinstance(bodies, np.ndarray):
            text_NL = _letters(bodies)
            whole_KB[begin_N + 1, : text_NL.shape[1]] = text_NL
            continue
        begins, ends = (begin_N + 1) * BLOCK, (begin_N + 1) * BLOCK + size_N
        there = cast(Sequence[bytes], bodies)
        if not is_there_N.all():
            there = [body for body in bodies if body is not None]
        for begin, end, body in zip(begins.tolist(), ends.tolist(), there, strict=True):
            whole[begin:end] = body
    return whole, (begin_NM + 1) * BLOCK


def _sizes(bodies: Sequence[bytes | None] | NDArray[np.bytes_]) -> NDArray[np.int64]:
    """In bytes; -1 of one that is not there."""
    if isinstance(bodies, np.ndarray):
        assert bodies.dtype.itemsize <= BLOCK
        return np.char.str_len(bodies)
    try:
        return np.fromiter(map(len, bodies), np.int64, len(bodies))  # type: ignore[arg-type]
    except TypeError:
        return np.array([-1 if body is None else len(body) for body in bodies], dtype=np.int64)


def _letters(text_N: NDArray[np.bytes_]) -> NDArray[np.uint8]:
    """A text a row, zeros behind it."""
    return np.ascontiguousarray(text_N).view(np.uint8).reshape(-1, text_N.dtype.itemsize)


def _headers(
    key_N: NDArray[np.bytes_],
    length_N: NDArray[np.int64],
    suffix: str,
    size_N: NDArray[np.int64],
) -> NDArray[np.uint8]:
    """One header a row, as far as there is anything but zeros in it."""
    key_NL, suffix_S = _letters(key_N), np.frombuffer(suffix.encode("ascii"), dtype=np.uint8)
    size_N11 = _octal(size_N, 11)
    header_NU = np.empty((len(key_N), _USED), dtype=np.uint8)
    header_NU[:] = np.frombuffer(_EMPTY, dtype=np.uint8)[:_USED]
    header_NU[:, : key_NL.shape[1]] = key_NL
    header_NU[np.arange(len(key_N))[:, None], length_N[:, None] + np.arange(len(suffix_S))] = (
        suffix_S
    )
    header_NU[:, _SIZE_AT : _SIZE_AT + 11] = size_N11
    sum_N = key_NL.sum(axis=1, dtype=np.int64) + size_N11.sum(axis=1, dtype=np.int64)
    header_NU[:, _SUM_AT : _SUM_AT + 6] = _octal(sum_N + (int(suffix_S.sum()) + sum(_EMPTY)), 6)
    header_NU[:, _SUM_AT + 6] = 0
    return header_NU


def _octal(value_N: NDArray[np.int64], digits: int) -> NDArray[np.uint8]:
    """Digits in ASCII, one number a row."""
    return ((value_N[:, None] >> _SHIFT_D[-digits:]) & 7).astype(np.uint8) + np.uint8(ord("0"))


@dataclass(frozen=True)
class Member:
    """A file in a tar."""

    name: str
    offset: int
    """Of its body, in bytes from the tar's start."""
    size_bytes: int
    regular: bool = True
    """Not a link, a folder, a device or a sparse file."""


_REGULAR = (b"0", b"\x00", b"7")


def walk(stream: IO[bytes], where: str, every: bool = False, begin: int = 0) -> Iterator[Member]:
    """The regular files of a seekable tar, in order, or every member. Bodies are skipped, not read.

    Args:
        stream: the tar.
        where: what it is called in errors.
        every: links and folders too.
        begin: byte of the first header to look at.

    Raises:
        DataError: not a tar, or one that was cut off; ``where`` names it.
    """
    end = stream.seek(0, 2)
    at, extended = begin, _Extended()
    while True:
        stream.seek(at)
        header = stream.read(BLOCK)
        if len(header) < BLOCK or header == _ZEROS:
            if header.strip(b"\x00") or (not header and at == 0):
                raise DataError(f"{where}: cut off in a header at byte {at}; fetch it again")
            return
        size_bytes = _check_header(header, where, at)
        kind, body_at = header[156:157], at + BLOCK
        if kind in _REGULAR and extended.size_bytes is not None:
            size_bytes = extended.size_bytes
        if body_at + size_bytes > end:
            raise DataError(f"{where}: cut off in the member at byte {at}; fetch it again")
        if kind in (b"x", b"L"):
            extended.read(kind, stream.read(min(size_bytes, 1 << 20)))
        elif kind in (b"K", b"g"):  # the target of a link, defaults for all
            pass
        else:
            if every or kind in _REGULAR:
                name = extended.name or _name(header)
                yield Member(name, body_at, size_bytes, kind in _REGULAR)
            extended = _Extended()
        at = body_at + size_bytes + -size_bytes % BLOCK


class _Extended:
    """What a PAX or GNU header says of the member that follows it."""

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
    """The size in a header whose checksum fits."""
    stored, field = _number(header[148:156]), header[124:136]
    size_bytes = int.from_bytes(field[1:]) if field[0] & 0x80 else _number(field)
    wanted = sum(header[:148]) + 8 * ord(" ") + sum(header[156:])
    if stored != wanted or size_bytes is None:
        hint = "it is compressed; unpack it" if header[:2] == b"\x1f\x8b" else "not a whole tar"
        raise DataError(f"{where}: no tar header at byte {at}: {hint}")
    return size_bytes


def _number(field: bytes) -> int | None:
    """Octal digits; None if there is anything else, a sign for one."""
    digits = field.strip(b"\x00 ") or b"0"
    return int(digits, 8) if re.fullmatch(rb"[0-7]+", digits) else None


def _name(header: bytes) -> str:
    name = header[:100].partition(b"\x00")[0]
    prefix = b""
    if header[257:263] == b"ustar\x00":
        prefix = header[345:500].partition(b"\x00")[0]
    return (prefix + b"/" + name if prefix else name).decode("utf-8", "replace")
