"""Tar files, written and read by hand: USTAR with nothing in it that differs from one run to the next.

Header fields as POSIX.1-1988 (USTAR) lays them out, 512-byte blocks. The reader also follows the PAX and GNU
extensions for names and sizes that other writers use.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

from genmod.errors import DataError

BLOCK = 512
MAX_NAME_BYTES = 100

_ZEROS = bytes(BLOCK)
_END = bytes(2 * BLOCK)
# mode, uid, gid / size goes between / mtime, checksum as spaces, type, link name, magic, names, device.
_OWNER = b"0000644\x00" + b"0000000\x00" * 2
_AFTER_SIZE = b"00000000000\x00"
_AFTER_CHECK = b"0" + bytes(100) + b"ustar\x0000" + bytes(64) + b"0000000\x00" * 2 + bytes(155 + 12)
_CONSTANT_SUM = sum(_OWNER) + sum(_AFTER_SIZE) + 8 * ord(" ") + sum(_AFTER_CHECK)


def _header(name: bytes, size_bytes: int) -> bytes:
    size = b"%011o\x00" % size_bytes
    check = b"%06o\x00 " % (_CONSTANT_SUM + sum(name) + sum(size))
    return b"".join((name.ljust(100, b"\x00"), _OWNER, size, _AFTER_SIZE, check, _AFTER_CHECK))


class TarBuilder:
    """A tar that grows in memory; the same members give the same bytes."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size_bytes = 0

    def add(self, name: str, body: bytes) -> int:
        """Append a member, name in ASCII. Returns the offset of its body."""
        encoded = name.encode("ascii")
        assert len(encoded) <= MAX_NAME_BYTES, name
        length = len(body)
        offset = self._size_bytes + BLOCK
        padding = -length % BLOCK
        self._parts += (_header(encoded, length), body, _ZEROS[:padding])
        self._size_bytes = offset + length + padding
        return offset

    def finish(self) -> bytes:
        """The whole file."""
        return b"".join((*self._parts, _END))


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


def walk(stream: IO[bytes], where: str, every: bool = False) -> Iterator[Member]:
    """The regular files of a seekable tar, in order, or every member. Bodies are skipped, not read.

    Raises:
        DataError: not a tar, or one that was cut off; ``where`` names it.
    """
    end = stream.seek(0, 2)
    at, extended = 0, _Extended()
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
