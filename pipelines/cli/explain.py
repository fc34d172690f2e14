"""Errors that are not genmod's own, in one line for people, with what to do and an exit code."""

from __future__ import annotations

import errno
import os

from genmod.errors import ConfigError, GenmodError

_CTRL_C = 130
"""Exit code of a command that Ctrl-C ends, as shells report it."""

_ACCESS = "permission denied; give this user access to it"
_SPACE = "no space left there; free some or choose another folder, then rerun to resume"
_OPEN_FILES = "too many open files; raise the limit (ulimit -n)"

_REMEDIES = {
    errno.EACCES: _ACCESS,
    errno.EPERM: _ACCESS,
    errno.ENOSPC: _SPACE,
    errno.EDQUOT: _SPACE,
    errno.EFBIG: "the file is larger than its file system allows; choose another folder",
    errno.EROFS: "the file system is read-only; choose a folder that can be written",
    errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
    errno.ENOTDIR: "a part of this path is a file, not a folder; choose another path",
    errno.EISDIR: "it is a folder, expected a file; name a file",
    errno.EEXIST: "a file or link of this name exists; choose another path, or remove it",
    errno.ELOOP: "symbolic links form a circle; repair the links or choose another path",
    errno.EMFILE: _OPEN_FILES,
    errno.ENFILE: _OPEN_FILES,
    errno.ENOENT: "no such file or folder; check the path",
    errno.ENXIO: "it is a device or pipe, expected a file; name a file",
}
"""Error number -> what is wrong and what the user can change."""

_BY_TYPE: tuple[tuple[type[OSError], int], ...] = (
    (PermissionError, errno.EACCES),
    (FileNotFoundError, errno.ENOENT),
    (NotADirectoryError, errno.ENOTDIR),
    (IsADirectoryError, errno.EISDIR),
    (FileExistsError, errno.EEXIST),
)
"""Errors that packages raise without a number."""


def explain(error: BaseException) -> tuple[str, int]:
    """The error in one line, and the exit code: 2 where the user can act."""
    text = " ".join(str(error).split())
    if isinstance(error, GenmodError):
        return text or type(error).__name__, error.exit_code
    if isinstance(error, KeyboardInterrupt):
        code = getattr(error, "exit_code", _CTRL_C)
        return "interrupted; run the same command again to resume", code
    if isinstance(error, OSError) and (remedy := _REMEDIES.get(_number(error), "")):
        return f"{_where(error)}: {remedy}", ConfigError.exit_code
    if isinstance(error, UnicodeError):
        return (
            f"a name or text is not UTF-8 ({text}); rename the file or change the text",
            ConfigError.exit_code,
        )
    if isinstance(error, MemoryError):
        return "out of memory; set smaller batches or fewer workers, or use a larger machine", 1
    if isinstance(error, RecursionError):
        return "a file or the recipe is nested too deeply (--debug prints the traceback)", 1
    return f"{type(error).__name__}: {text or '?'} (--debug prints the traceback)", 1


def _number(error: OSError) -> int:
    """The error number, by the error's type where it has none."""
    number = error.errno if isinstance(error.errno, int) else 0
    return number or next((n for kind, n in _BY_TYPE if isinstance(error, kind)), 0)


def _where(error: OSError) -> str:
    """The path of an error; in other words if it has none."""
    names = [os.fsdecode(name) for name in (error.filename, error.filename2) if _is_path(name)]
    if not names and error.errno is None:
        names = [" ".join(str(error).split())]
    return " -> ".join(filter(None, names)) or "a file or folder"


def _is_path(name: object) -> bool:
    return isinstance(name, str | bytes | os.PathLike)
