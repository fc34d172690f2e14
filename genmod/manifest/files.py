"""Files that manifests list: written, read and checked against size and digest."""

from __future__ import annotations

import os
from collections.abc import Sequence

from genmod import storage
from genmod.errors import DataError, StorageError
from genmod.manifest.schema import FileEntry, Manifest
from genmod.stopwatch import WRITE, measured
from genmod.storage import digests


def write_file(root: str, path: str, data: bytes | memoryview) -> FileEntry:
    """Write one file of a stage below its root, and return its entry for the manifest."""
    with measured(WRITE):
        storage.write_bytes(storage.join_below(root, path), data)
    return FileEntry(path=path, size_bytes=len(data), sha256=storage.sha256(data))


def content_name(stem: str, data: bytes | memoryview) -> str:
    """A file name without extension that contains the content's digest, so two contents have two names."""
    return f"{stem}-{storage.sha256(data)[:12]}"


def read_checked(root: str, entry: FileEntry, hint: str) -> bytes:
    """The bytes of a listed file.

    Raises:
        DataError: ends in ``hint``; the file is missing, or has another size or digest.
        StorageError: the file is a device, or a link out of the folder.
    """
    return read_entry(root, entry, hint, check=True)


def read_entry(root: str, entry: FileEntry, hint: str, *, check: bool) -> bytes:
    """As :func:`read_checked`; the digest is compared only if ``check``, the size always."""
    url = storage.join_below(root, entry.path)
    try:
        data = storage.read_below(root, entry.path, limit_bytes=entry.size_bytes)
    except FileNotFoundError:
        raise DataError(f"{url} is missing, but its manifest lists it; {hint}") from None
    except DataError:  # the only one of a file that can be read
        problem = f"it is longer than {entry.size_bytes} bytes"
        raise DataError(f"{url} does not match its digest: {problem}; {hint}") from None
    if len(data) != entry.size_bytes:
        problem = f"it is truncated, {len(data)} of {entry.size_bytes} bytes"
        raise DataError(f"{url} does not match its digest: {problem}; {hint}")
    if check and storage.sha256(data) != entry.sha256:
        raise DataError(f"{url} does not match its digest: it was changed; {hint}")
    return data


def read_listed(root: str, manifest: Manifest, path: str, hint: str) -> bytes:
    """As :func:`read_checked`, for the file with this path. DataError if the manifest does not list it."""
    entry = next((entry for entry in manifest.files if entry.path == path), None)
    if entry is None:
        raise DataError(f"{root}: its manifest lists no {path}; {hint}")
    return read_checked(root, entry, hint)


def find_problems(root: str, files: Sequence[FileEntry]) -> list[str]:
    """One line for each listed file that is missing, unreadable, or of another size or digest."""
    problems: list[str] = []
    for entry in files:
        url = storage.join_below(root, entry.path)
        try:
            size_bytes = storage.size_bytes(url)
            if size_bytes != entry.size_bytes:
                problems.append(f"{url}: {size_bytes} bytes, expected {entry.size_bytes}")
            elif _sha256_of(root, entry) != entry.sha256:
                problems.append(f"{url}: its sha256 is not {entry.sha256[:12]}…")
        except FileNotFoundError:
            problems.append(f"{url}: missing")
        except (StorageError, DataError) as error:
            problems.append(str(error))
        except OSError as error:
            problems.append(f"{url}: cannot be read ({error.strerror or error})")
    return problems


def _sha256_of(root: str, entry: FileEntry) -> str:
    handle = storage.open_below(root, entry.path)
    if handle is None:  # not a local file
        return storage.sha256_of(storage.join_below(root, entry.path))
    try:
        return digests.file_sha256(handle)
    finally:
        os.close(handle)
