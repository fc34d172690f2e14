"""Files anywhere: fsspec URLs, whole-object writes and the one atomic step that publishes a result.

Two kinds of object are written. *Data* goes under a name that fixes its bytes (or that no other attempt
uses), so writing it twice does no harm. A *receipt* says that data is whole; it is created only if nobody
has created it before, and of several writers exactly one wins. Readers trust receipts alone.
"""

from __future__ import annotations

import hashlib
import os
import posixpath
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import fsspec
from fsspec.implementations.local import LocalFileSystem
from fsspec.spec import AbstractFileSystem

from genmod.errors import StorageError


def resolve(url: str) -> str:
    """A local path made absolute; a URL as it is. Trailing slashes go."""
    if "://" in url:
        return url.rstrip("/") if not url.endswith("://") else url
    return str(Path(url).expanduser().absolute())


def filesystem(url: str) -> tuple[AbstractFileSystem, str]:
    """The file system of a URL and the path on it."""
    try:
        fs, path = fsspec.core.url_to_fs(url)
    except ImportError as error:
        scheme = url.split("://", maxsplit=1)[0]
        raise StorageError(
            f"{url}: reading {scheme}:// needs a package that is not installed ({error}); "
            f"install genmod[{scheme}]"
        ) from error
    except ValueError as error:
        raise StorageError(f"{url}: {error}") from error
    return cast(AbstractFileSystem, fs), str(path)


def join(url: str, *parts: str) -> str:
    """Put relative parts after a URL. An absolute part (path or URL) replaces what is before it."""
    for part in parts:
        absolute = "://" in part or posixpath.isabs(part)
        url = part if absolute else f"{url.rstrip('/')}/{part}"
    return url


def exists(url: str) -> bool:
    """Whether an object or folder is there."""
    fs, path = filesystem(url)
    return bool(fs.exists(path))


def read_bytes(url: str) -> bytes:
    """The whole object. Raises FileNotFoundError."""
    fs, path = filesystem(url)
    return cast(bytes, fs.cat_file(path))


def size_bytes(url: str) -> int:
    """The object's size. Raises FileNotFoundError."""
    fs, path = filesystem(url)
    return int(cast(Any, fs.size(path)))


def sha256(data: bytes | memoryview) -> str:
    """Hex digest of bytes."""
    return hashlib.sha256(data).hexdigest()


def sha256_of(url: str, block_bytes: int = 1 << 22) -> str:
    """Hex digest of an object, read in blocks."""
    fs, path = filesystem(url)
    digest = hashlib.sha256()
    with fs.open(path, "rb") as stream:
        while block := cast(bytes, stream.read(block_bytes)):
            digest.update(block)
    return digest.hexdigest()


def list_names(url: str) -> list[str]:
    """Sorted names of what lies directly in a folder; empty if there is no such folder."""
    fs, path = filesystem(url)
    fs.invalidate_cache()
    try:
        found = cast(list[str], fs.ls(path, detail=False))
    except (FileNotFoundError, NotADirectoryError):
        return []
    names = {posixpath.basename(name.rstrip("/")) for name in found}
    return sorted(name for name in names if name and not name.startswith(_PENDING))


def walk_files(url: str) -> Iterator[str]:
    """URLs of every file below a folder, sorted within each folder."""
    fs, path = filesystem(url)
    for folder, _, names in cast(Any, fs.walk(path)):
        for name in sorted(cast(list[str], names)):
            yield str(fs.unstrip_protocol(f"{folder}/{name}"))


def write_bytes(url: str, data: bytes | memoryview) -> None:
    """Write a whole object: it is there with all its bytes or not at all. Replaces what was there."""
    fs, path = filesystem(url)
    if isinstance(fs, LocalFileSystem):
        pending = _write_pending(path, data)
        os.replace(pending, path)
        return
    fs.pipe_file(path, bytes(data))


def create(url: str, data: bytes) -> bool:
    """Create an object if and only if nothing has that name. True for the one writer that wins.

    On local files an exclusive hard link, elsewhere the store's conditional put (``If-None-Match: *``).
    """
    fs, path = filesystem(url)
    if isinstance(fs, LocalFileSystem):
        pending = _write_pending(path, data)
        try:
            os.link(pending, path)
        except FileExistsError:
            return False
        finally:
            os.unlink(pending)
        return True
    try:
        fs.pipe_file(path, data, mode="create")
    except FileExistsError:
        return False
    return True


def make_durable(folder_url: str) -> None:
    """Make the names in a local folder outlive a power cut; other stores do that by themselves."""
    fs, path = filesystem(folder_url)
    if isinstance(fs, LocalFileSystem):
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def remove(url: str) -> None:
    """Remove an object or a folder with all that is in it; nothing happens if it is not there."""
    fs, path = filesystem(url)
    with suppress(FileNotFoundError):
        fs.rm(path, recursive=True)


def probe(url: str) -> None:
    """Refuse a store that cannot be written or that does not enforce create-if-absent.

    Raises:
        StorageError: and says which of the two.
    """
    name = join(url, f"{_PENDING}probe-{uuid.uuid4().hex}")
    try:
        first, second = create(name, b"1"), create(name, b"2")
        held = read_bytes(name)
        remove(name)
    except (OSError, NotImplementedError, ValueError) as error:
        raise StorageError(
            f"{url} cannot be written ({error}); give a root that can: --set root=URL"
        ) from error
    if not first or second or held != b"1":
        raise StorageError(
            f"{url} does not enforce create-if-absent, so two writers could both win; "
            "use a store that does (local files, S3 with If-None-Match)"
        )


_PENDING = ".pending-"


def _write_pending(path: str, data: bytes | memoryview) -> str:
    """Write and fsync a temporary neighbour of a local path."""
    folder = os.path.dirname(path)
    os.makedirs(folder, exist_ok=True)
    pending = os.path.join(folder, f"{_PENDING}{uuid.uuid4().hex}")
    try:
        with open(pending, "xb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
    except OSError:
        with suppress(OSError):
            os.unlink(pending)
        raise
    return pending
