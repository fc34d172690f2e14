"""Errors that a person can act on. Each message is one line: what, where, got, wanted, how to mend it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable


class GenmodError(Exception):
    """A failure that genmod foresaw. ``exit_code`` is what the command line ends with."""

    exit_code = 1


class ConfigError(GenmodError):
    """The recipe or the command asks for something that cannot be. Never retried."""

    exit_code = 2


class DataError(GenmodError):
    """The data is not what the recipe says. Never retried."""

    exit_code = 2


class StorageError(GenmodError):
    """A store refused or broke a promise that genmod relies on."""

    exit_code = 2


class StoreUnavailable(GenmodError, ConnectionError):
    """A store has not answered for as long as anybody was patient. It may answer tomorrow."""


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
    """The loss stopped being a finite number. Restarting would do the same again, so nobody does."""


class TrainingCollapsed(GenmodError):
    """Samples have lost their variety, and the one way back that the recipe allows did not help."""


def did_you_mean(got: str, valid: Iterable[str]) -> str:
    """The end of an error message: the nearest valid name, or all of them.

    >>> did_you_mean("stpes", ["steps", "seed"])
    "did you mean 'steps'?"
    """
    names = sorted(valid)
    near = difflib.get_close_matches(got, names, n=1, cutoff=0.6)
    if near:
        return f"did you mean {near[0]!r}?"
    return "valid: " + ", ".join(names)


def sanitize(text: str) -> str:
    """A line for people that may hold what others wrote: what a terminal would act on is written out."""
    return text if text.isprintable() else repr(text)[1:-1]


def sanitize_log(text: str) -> str:
    r"""Log text of another process: like :func:`sanitize`, but without colors and with its lines and tabs.

    >>> sanitize_log("\x1b[36m(worker 1)\x1b[0m step\t7\n\x1b[2J")
    '(worker 1) step\t7\n\\x1b[2J'
    """
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text).replace("\r", "\n")
    return "".join(char if char in "\n\t" else sanitize(char) for char in plain)
