"""Errors for users. Each message is one line: what failed, where, what was expected, what to do."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable


class GenmodError(Exception):
    """A foreseen failure; ``exit_code`` is the exit code of the command."""

    exit_code = 1


class ConfigError(GenmodError):
    """The recipe or the command line is invalid. Never retried."""

    exit_code = 2


class DataError(GenmodError):
    """The data is invalid or does not fit the recipe. Never retried."""

    exit_code = 2


class UnreadableRow(DataError):
    """One row of a dataset is corrupt. Other rows may be intact."""


class StorageError(GenmodError):
    """Storage refuses a request, or lacks a guarantee that genmod requires."""

    exit_code = 2


class StoreUnavailable(GenmodError, ConnectionError):
    """Storage stayed unavailable until the retry timeout. Running again later may succeed."""


class Unscorable(ConfigError):
    """The model has no density of the requested kind. Raised when the plan is made.

    Args:
        text: the error in full.
        hint: what to do, in a few words; ``NAME`` stands for the model's name in the recipe.
    """

    def __init__(self, text: str, hint: str = "") -> None:
        super().__init__(text)
        self.hint = hint

    def summary(self, name: str) -> str:
        """The error in a few words, for a model of this name."""
        return f"no density ({self.hint.replace('NAME', name) or self})"


class TrainingDiverged(GenmodError):
    """The loss is not finite. Never retried, because a restart repeats it bit by bit."""


class TrainingCollapsed(GenmodError):
    """Samples lost their diversity, and the rollbacks that the recipe allows did not restore it."""


def did_you_mean(got: str, valid: Iterable[str]) -> str:
    """The end of an error message: the nearest valid name, or all valid names.

    >>> did_you_mean("stpes", ["steps", "seed"])
    "did you mean 'steps'?"
    """
    names = sorted(valid)
    near = difflib.get_close_matches(got, names, n=1, cutoff=0.6)
    if near:
        return f"did you mean {near[0]!r}?"
    return "valid: " + ", ".join(names)


LINE_CHARS = 4000
"""Characters of untrusted text that are shown of one line."""

_COLOR = re.compile(r"\x1b\[[0-9;]*m")


def escape(text: str, keep: str = "") -> str:
    r"""Text in which every character that is not printable is escaped, except those to ``keep``.

    Not printable are control characters (C0 and C1), marks of text direction, characters without width, line
    separators and lone surrogates: all that moves a cursor, hides text or reorders it.

    >>> escape("a\u202eb\x9b2J\n", keep="\n")
    'a\\u202eb\\x9b2J\n'
    """
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() or char in keep else repr(char)[1:-1] for char in text
    )


def without_colors(text: str) -> str:
    """Text without the codes that color it on a terminal."""
    return _COLOR.sub("", text)


def sanitize(text: str) -> str:
    r"""Untrusted text as one printable line; control characters are escaped, a long line is cut.

    >>> sanitize("name\x1b[2J")
    'name\\x1b[2J'
    """
    if len(text) > LINE_CHARS:
        text = f"{text[:LINE_CHARS]} ... ({len(text) - LINE_CHARS:,} more characters)"
    return escape(text)


def sanitize_log(text: str) -> str:
    r"""Log text of another process: like :func:`sanitize`, but without colors and with its lines and tabs.

    >>> sanitize_log("\x1b[36m(worker 1)\x1b[0m step\t7\n\x1b[2J")
    '(worker 1) step\t7\n\\x1b[2J'
    """
    lines = without_colors(text).replace("\r\n", "\n").split("\n")
    return "\n".join("\t".join(map(sanitize, line.split("\t"))) for line in lines)
