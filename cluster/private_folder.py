"""A folder of this process that no other user can enter: session files and sockets of a local Ray.

It is removed when the process ends. A process that is killed leaves it behind; the next one removes it,
because the owner's lock on it is gone.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from genmod.errors import ConfigError

PREFIX = "genmod-ray-"
"""How the names of these folders start."""

_LOCK = "lock"
"""A file that the owner locks as long as it runs. Folders without it are left alone."""

_PATH_BYTES = (107 if sys.platform == "linux" else 103) - 66
"""Longest path of a folder: the limit for paths of sockets, less what Ray adds to it."""

_NAME_BYTES = len(f"/{PREFIX}12345678")

_FREE_BYTES = 16 << 20
"""What must be free on the disk of the folder: with less Ray's processes end while they start."""

_REMOVE_S = 5.0
"""How long processes of Ray that are about to end may still write files, in seconds."""


class PrivateFolder:
    """A new folder with mode 0700. Folders of processes that were killed are removed.

    Raises:
        ConfigError: the folder for temporary files is full or not writable, or its path is too long for
            sockets.
    """

    def __init__(self) -> None:
        parent = _parent()
        sweep(parent)
        names = ("RAY_TMPDIR", "TMPDIR")
        named_by = next((name for name in names if os.environ.get(name)), "the default")
        try:
            self.path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))  # mode 0700
        except OSError as error:
            raise ConfigError(
                f"Ray needs a folder for its session, but {parent}, by {named_by}, is not writable "
                f"({error.strerror}); set RAY_TMPDIR to another folder"
            ) from error
        if (free_bytes := shutil.disk_usage(self.path).free) < _FREE_BYTES:
            self.path.rmdir()
            raise ConfigError(
                f"Ray needs a folder for its session, but the disk of {parent}, by {named_by}, has "
                f"{free_bytes >> 20} MiB free, expected at least {_FREE_BYTES >> 20}; free some, or set "
                "RAY_TMPDIR to a folder of another disk"
            )
        self._owner = os.getpid()
        # Locked before it has its name, so that no sweep finds it unlocked.
        handle, unnamed = tempfile.mkstemp(dir=self.path)
        fcntl.flock(handle, fcntl.LOCK_EX)
        os.rename(unnamed, self.path / _LOCK)
        self._lock = handle

    def remove(self) -> None:
        """Remove the folder with its contents. Does nothing in a fork of the owner."""
        if os.getpid() != self._owner:
            return
        deadline_s = time.monotonic() + _REMOVE_S
        while not _remove(self.path) and time.monotonic() < deadline_s:
            time.sleep(0.1)
        os.close(self._lock)


def sweep(parent: Path) -> None:
    """Remove the folders below ``parent`` whose owners were killed, if they are this user's."""
    for path in parent.glob(f"{PREFIX}*"):
        with suppress(OSError):  # another process removes it, or it is another user's
            info = path.lstat()
            if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.getuid():
                continue
            handle = os.open(path / _LOCK, os.O_RDONLY | os.O_NOFOLLOW)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails while the owner runs
                _remove(path)
            finally:
                os.close(handle)


def _remove(path: Path) -> bool:
    """Remove a folder, its lock last, because a sweep finds only folders with a lock."""
    for entry in path.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
        elif entry.name != _LOCK:
            entry.unlink()
    if len(list(path.iterdir())) > 1:
        return False
    shutil.rmtree(path, ignore_errors=True)
    return not path.exists()


def _parent() -> Path:
    """RAY_TMPDIR, or the folder for temporary files, or /tmp if the path of the latter is too long."""
    chosen = os.environ.get("RAY_TMPDIR")
    # Only the parent of a folder that this process makes by itself, with mode 0700.
    short = "/tmp"  # nosec B108
    try:
        parents = [chosen] if chosen else [tempfile.gettempdir(), short]
    except FileNotFoundError:
        raise ConfigError(
            "no folder for temporary files is writable: neither TMPDIR nor /tmp nor the current folder; set "
            "TMPDIR to a folder that is"
        ) from None
    for parent in map(os.path.realpath, parents):
        if len(os.fsencode(parent)) + _NAME_BYTES <= _PATH_BYTES:
            return Path(parent)
    raise ConfigError(
        f"RAY_TMPDIR is {chosen}, too long a path for Ray's sockets; set it to a folder whose path has at "
        f"most {_PATH_BYTES - _NAME_BYTES} bytes"
    )
