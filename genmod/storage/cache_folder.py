"""The folder of the node's cache: which files are the cache's own, and which folders are refused.

    FOLDER/genmod-cache/                 made by genmod, only for this user (mode 0700)
    FOLDER/genmod-cache/.genmod-cache    the mark: genmod made this folder
    FOLDER/genmod-cache/SHA256           a complete copy, named by its content
    FOLDER/genmod-cache/.pending-SHA256  a copy in progress; has the final size from the start
    FOLDER/genmod-cache/.lock            locked while copies are evicted or renamed

A folder without the mark, a link, or the folder of another user is never used. Files with other names are
neither counted nor removed. All files are reached through a descriptor of the folder and never through links.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
import uuid
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from genmod.errors import ConfigError, sanitize
from genmod.storage.objects import PENDING
from genmod.storage.settings import CacheConfig

NAME = "genmod-cache"
"""The cache's own folder, below the folder that the recipe names."""

LOCK = ".lock"

_MARK = ".genmod-cache"
_MARK_TEXT = b"This folder belongs to genmod's cache. Its files are removed without notice.\n"
_COPY = re.compile(rf"(?:{re.escape(PENDING)})?[0-9a-f]{{64}}")
_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE_FLAGS = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


class ForeignFolder(OSError):
    """The folder, or a file with a name of the cache, was not made by genmod for this user."""


def is_copy(name: str) -> bool:
    """Whether a name is one that the cache gives to its copies, finished or not."""
    return _COPY.fullmatch(name) is not None


def check_folder(config: CacheConfig) -> None:
    """Check the cache's folder on this machine, without making or changing anything.

    Raises:
        ConfigError: it exists and cannot be the cache's: foreign content, a link, or no access.
    """
    remedy = "set storage.cache.folder to another folder on a local disk"
    try:
        base = _base(config)
        if not base.exists():
            return  # made on first use; a node where that fails warns and reads without a cache
        if not base.is_dir():
            raise ForeignFolder(f"{base} is not a folder")
        if not os.path.lexists(base / NAME):
            if not os.access(base, os.W_OK | os.X_OK):
                raise ForeignFolder(f"{base} is not writable")
            return
        with _opened(base / NAME) as folder:
            known = {_MARK, LOCK} | {name for name, _ in own_copies(folder)}
            for name in sorted(set(os.listdir(folder)) - known):
                raise ForeignFolder(
                    f"{base / NAME} contains {sanitize(name)}, which genmod did not write"
                )
            if not os.access(base / NAME, os.W_OK | os.X_OK):
                raise ForeignFolder(f"{base / NAME} is not writable")
    except OSError as error:
        foreign = isinstance(error, ForeignFolder)
        reason = error if foreign else f"{config.folder} cannot be used ({error})"
        raise ConfigError(f"storage.cache.folder: {reason}; {remedy}") from None


@contextmanager
def opened_folder(config: CacheConfig) -> Generator[int]:
    """A descriptor of the cache's folder, which is made and marked first if it is missing.

    Raises:
        ForeignFolder: the folder is not the cache's.
        OSError: it cannot be made or read.
    """
    base = _base(config)
    if not os.path.lexists(base / NAME):
        _make(base)
    with _opened(base / NAME) as folder:
        yield folder


def open_file(folder: int, name: str, flags: int) -> int:
    """Open a file of the cache's folder; a new one has mode 0600.

    Raises:
        ForeignFolder: it is a link, not a regular file, or of another user.
        FileNotFoundError: there is no such file.
    """
    try:
        handle = os.open(name, flags | _FILE_FLAGS, 0o600, dir_fd=folder)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EISDIR):
            raise ForeignFolder(f"{name} in it is not a file that genmod wrote") from None
        raise
    if not _is_own(os.fstat(handle)):
        os.close(handle)
        raise ForeignFolder(f"{name} in it is not a file that genmod wrote")
    return handle


def own_copies(folder: int) -> list[tuple[str, os.stat_result]]:
    """Names and metadata of the copies, finished or not. Files of others are left out."""
    copies: list[tuple[str, os.stat_result]] = []
    for name in os.listdir(folder):
        with suppress(FileNotFoundError):
            metadata = os.stat(name, dir_fd=folder, follow_symlinks=False)
            if is_copy(name) and _is_own(metadata):
                copies.append((name, metadata))
    return copies


def _base(config: CacheConfig) -> Path:
    """The folder that the recipe names."""
    try:
        if "\0" in config.folder:
            raise RuntimeError("it contains a null byte")
        return Path(config.folder).expanduser()
    except RuntimeError as error:  # also for an unknown user in ~USER
        raise ForeignFolder(f"{sanitize(config.folder)} is no path ({error})") from None


def _is_own(metadata: os.stat_result) -> bool:
    return stat.S_ISREG(metadata.st_mode) and metadata.st_uid == os.geteuid()


@contextmanager
def _opened(path: Path) -> Generator[int]:
    """A descriptor of a cache's folder, after its owner, mode and mark were checked."""
    if not stat.S_ISDIR(os.lstat(path).st_mode):
        raise ForeignFolder(f"{path} is a link or not a folder")
    folder = os.open(path, _FOLDER_FLAGS)
    try:
        metadata = os.fstat(folder)
        if metadata.st_uid != os.geteuid():
            raise ForeignFolder(f"{path} belongs to another user")
        if metadata.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise ForeignFolder(f"{path} can be written by other users")
        if not _is_marked(folder):
            raise ForeignFolder(f"{path} was not made by genmod")
        yield folder
    finally:
        os.close(folder)


def _is_marked(folder: int) -> bool:
    try:
        mark = open_file(folder, _MARK, os.O_RDONLY)
    except (FileNotFoundError, ForeignFolder):
        return False
    try:
        return os.read(mark, len(_MARK_TEXT) + 1) == _MARK_TEXT
    finally:
        os.close(mark)


def _make(base: Path) -> None:
    """Make the folder and its mark under another name, then rename it: no process sees it unmarked."""
    base.mkdir(parents=True, exist_ok=True)
    new = base / f".{NAME}-{uuid.uuid4().hex}"
    new.mkdir(mode=0o700)
    try:
        mark = os.open(new / _MARK, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.write(mark, _MARK_TEXT)
        finally:
            os.close(mark)
        os.rename(new, base / NAME)
    except OSError as error:
        shutil.rmtree(new, ignore_errors=True)
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):  # else another process was first
            raise
