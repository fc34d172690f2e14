"""Tar files, written and read by hand: USTAR with nothing in it that differs from one run to the next.

Header fields as POSIX.1-1988 (USTAR) lays them out, 512-byte blocks. The reader also follows the PAX and GNU
extensions for names and sizes that other writers use.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO

import numpy as np
from numpy.typing import NDArray

from genmod.errors import DataError

BLOCK = 512
MAX_NAME_BYTES = 100

_ZEROS = bytes(BLOCK)
_SMALL = 16
"""Bytes of a body, at most, that is copied together with others: a label."""

_SIZE_AT, _SUM_AT = 124, 148
# mode, uid, gid / size / mtime, checksum as spaces, type, link name, magic, names, device.
_OWNER = b"0000644\x00" + b"0000000\x00" * 2
_AFTER_SIZE = b"00000000000\x00" + b" " * 8 + b"0" + bytes(100)
_AFTER_LINK = b"ustar\x0000" + bytes(64) + b"0000000\x00" * 2 + bytes(155 + 12)
_EMPTY = bytes(MAX_NAME_BYTES) + _OWNER + bytes(12) + _AFTER_SIZE + _AFTER_LINK
_USED = len(_EMPTY.rstrip(b"\x00"))
_SHIFT_D = 3 * np.arange(10, -1, -1)


class TarBuilder:
    """A tar that grows in memory; the same members give the same bytes."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._bodies: list[bytes] = []
        self._size_bytes = 0

    def add(self, name: str, body: bytes) -> int:
        """Append a member, name in ASCII. Returns the offset of its body."""
        length = len(body)
        offset = self._size_bytes + BLOCK
        self._names.append(name)
        self._bodies.append(body)
        self._size_bytes = offset + length + -length % BLOCK
        return offset

    def finish(self) -> memoryview:
        """The whole file."""
        return tar_of(self._names, self._bodies)[0]


def tar_of(names: Sequence[str], bodies: Sequence[bytes]) -> tuple[memoryview, NDArray[np.int64]]:
    """A tar of members, all headers made at once: the same bytes as from a :class:`TarBuilder`.

    Args:
        names: in ASCII, at most ``MAX_NAME_BYTES`` long.
        bodies: of each.

    Returns:
        The whole file, and the offset of each body.
    """
    assert max(map(len, names), default=0) <= MAX_NAME_BYTES
    size_N = np.fromiter(map(len, bodies), np.int64, len(bodies))
    assert size_N.max(initial=0) < 8**11
    end_N = np.cumsum(1 + -(-size_N // BLOCK))  # in blocks
    offset_N = BLOCK * (np.append(0, end_N[:-1]) + 1) if len(end_N) else end_N
    whole_KB = np.zeros((int(end_N[-1] if len(end_N) else 0) + 2, BLOCK), dtype=np.uint8)
    whole_KB[offset_N // BLOCK - 1, :_USED] = _headers(names, size_N)
    is_large_N = size_N > _SMALL
    is_small_N = (size_N > 0) & ~is_large_N
    small_S = np.array([body for body in bodies if 0 < len(body) <= _SMALL], dtype=f"S{_SMALL}")
    whole_KB[offset_N[is_small_N] // BLOCK, :_SMALL] = small_S.view(np.uint8).reshape(-1, _SMALL)
    whole = whole_KB.data.cast("B")
    large = (body for body in bodies if len(body) > _SMALL)
    ends = (offset_N + size_N)[is_large_N].tolist()
    for offset, end, body in zip(offset_N[is_large_N].tolist(), ends, large, strict=True):
        whole[offset:end] = body
    return whole, offset_N


def _headers(names: Sequence[str], size_N: NDArray[np.int64]) -> NDArray[np.uint8]:
    """One header a row, as far as there is anything but zeros in it."""
    header_NU = np.empty((len(names), _USED), dtype=np.uint8)
    header_NU[:] = np.frombuffer(_EMPTY, dtype=np.uint8)[:_USED]
    name_N = np.array(names, dtype=f"S{MAX_NAME_BYTES}")
    name_NL = name_N.view(np.uint8).reshape(-1, MAX_NAME_BYTES)
    name_NL = name_NL[:, : max(map(len, names), default=0)]
    size_N11 = _octal(size_N, 11)
    header_NU[:, : name_NL.shape[1]] = name_NL
    header_NU[:, _SIZE_AT : _SIZE_AT + 11] = size_N11
    sum_N = name_NL.sum(axis=1, dtype=np.int64) + size_N11.sum(axis=1, dtype=np.int64) + sum(_EMPTY)
    header_NU[:, _SUM_AT : _SUM_AT + 6] = _octal(sum_N, 6)
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
    try:
        stored = int(header[148:156].strip(b"\x00 ") or b"0", 8)
        field = header[124:136]
        size_bytes = (
            int.from_bytes(field[1:]) if field[0] & 0x80 else int(field.strip(b"\x00 ") or b"0", 8)
        )
    except ValueError:
        stored, size_bytes = -1, 0
    if stored != sum(header[:148]) + 8 * ord(" ") + sum(header[156:]):
        hint = "it is compressed; unpack it" if header[:2] == b"\x1f\x8b" else "not a whole tar"
        raise DataError(f"{where}: no tar header at byte {at}: {hint}")
    return size_bytes


def _name(header: bytes) -> str:
    name = header[:100].partition(b"\x00")[0]
    prefix = b""
    if header[257:263] == b"ustar\x00":
        prefix = header[345:500].partition(b"\x00")[0]
    return (prefix + b"/" + name if prefix else name).decode("utf-8", "replace")
