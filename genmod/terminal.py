"""The way to the terminal. All text that the program prints passes here, so nothing that it read acts there.

Text of files, servers and other processes may contain control characters: they move the cursor, change the
title, fill the clipboard, or fake lines. They are escaped, see :func:`genmod.errors.escape`.
"""

from __future__ import annotations

import io
import json
import math
import sys
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any, TextIO, cast

from genmod.errors import escape, sanitize, sanitize_log, without_colors


def print_line(text: str, stream: TextIO | None = None) -> None:
    """Print text as one line, on stderr if no stream is given."""
    _write(sys.stderr if stream is None else stream, f"{sanitize(text)}\n")


def print_log(text: str) -> None:
    """Print a part of another process's log on stderr, with its lines and tabs."""
    _write(sys.stderr, sanitize_log(text))


def print_text(text: str) -> None:
    """Print text with its lines on stdout, in full."""
    _write(sys.stdout, escape(text, keep="\n\t"))


def print_json(value: Mapping[str, Any]) -> None:
    """Print a result on stdout: one line, ASCII, and JSON that every parser reads."""
    _write(sys.stdout, json.dumps(_json_value(value), allow_nan=False, default=str) + "\n")


@contextmanager
def guarded_streams() -> Generator[None]:
    """Until it ends, ``sys.stdout`` and ``sys.stderr`` escape what anything in the process writes to them.

    That covers warnings, log records, output of packages, and errors of threads.
    """
    streams = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = map(GuardedStream, streams)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = streams


class GuardedStream(io.TextIOBase):
    """A text stream that escapes control characters; lines and tabs stay.

    Args:
        stream: the terminal or file that receives the text.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    @property
    def encoding(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The encoding of the stream that receives the text."""
        return self.stream.encoding

    @property
    def closed(self) -> bool:
        """Whether the stream that receives the text is closed."""
        return self.stream.closed

    def write(self, text: str, /) -> int:
        """Write text without colors, with control characters escaped."""
        _write(self.stream, escape(without_colors(text), keep="\n\t"), flush=False)
        return len(text)

    def writable(self) -> bool:
        """Whether text can be written: always."""
        return True

    def flush(self) -> None:
        """Flush the stream that receives the text."""
        self.stream.flush()

    def isatty(self) -> bool:
        """Whether the text goes to a terminal."""
        return self.stream.isatty()

    def fileno(self) -> int:
        """The file descriptor of the stream that receives the text."""
        return self.stream.fileno()


def unguarded(stream: TextIO) -> TextIO:
    """The terminal itself, for a program that draws on it; it must escape text itself."""
    return stream.stream if isinstance(stream, GuardedStream) else stream


def _write(stream: TextIO, text: str, flush: bool = True) -> None:
    """Write text, escaped where the stream's encoding lacks a character."""
    try:
        stream.write(text)
    except UnicodeEncodeError:
        encoding = stream.encoding or "ascii"
        stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
    if flush:
        stream.flush()


def _json_value(value: Any) -> Any:
    """The value with numbers that JSON lacks as texts, as configurations write them."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, Mapping):
        fields = cast("Mapping[Any, Any]", value)
        return {str(key): _json_value(inner) for key, inner in fields.items()}
    if isinstance(value, list | tuple):
        return [_json_value(inner) for inner in cast("list[Any]", value)]
    return value
