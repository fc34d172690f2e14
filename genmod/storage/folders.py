"""Folders of a store: whether one can be written, and removing what genmod wrote into one."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable
from contextlib import suppress

from fsspec.implementations.local import LocalFileSystem

from genmod.errors import StorageError
from genmod.storage import urls
from genmod.storage.objects import PENDING, create, list_names, read_bytes, remove, written_s


def remove_named(url: str, is_ours: Callable[[str], bool]) -> None:
    """Remove what a folder contains under certain names, and a local folder that is empty then.

    A neighbour can put a link in place of a folder that genmod made, so a folder is never removed as a whole.

    Args:
        url: the folder; a link to one is followed, but not removed.
        is_ours: whether genmod made a name; pending writes are always its own.
    """
    for name in list_names(url, pending=True):
        if name.startswith(PENDING) or is_ours(name):
            remove(urls.join(url, name))
    fs, path = urls.filesystem(url)
    if isinstance(fs, LocalFileSystem) and not os.path.islink(path):
        with suppress(OSError):  # it does not exist, or contains other files
            os.rmdir(path)


def age_s(url: str) -> float:
    """Seconds since an object was written, by its store's clock and ours. Raises FileNotFoundError."""
    if (written := written_s(url)) is None:
        raise StorageError(f"{url}: the store does not tell when it was written")
    return max(0.0, time.time() - written)


def check_writable(url: str) -> None:
    """Check that a folder can be written and that its store enforces create-if-absent.

    Raises:
        StorageError: one of the two does not hold.
    """
    name = urls.join(url, f"{PENDING}probe-{uuid.uuid4().hex}")
    try:
        first, second = create(name, b"1"), create(name, b"2")
        content = read_bytes(name)
        remove(name)
    except (OSError, NotImplementedError, ValueError) as error:
        raise StorageError(
            f"{url} cannot be written ({error}); fix the storage, or choose another root with --set root=URL"
        ) from error
    if not first or second or content != b"1":
        raise StorageError(
            f"{url} does not enforce create-if-absent, so two writers could both win; "
            "use local files or an S3 store that supports If-None-Match"
        )
