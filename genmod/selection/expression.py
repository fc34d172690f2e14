"""Conditions on columns, as a person types them: parsed by a grammar of a few lines, never evaluated as code.

    condition  = part { "or" part }
    part       = term { "and" term }
    term       = "not" term | "(" condition ")" | COLUMN operator value
    operator   = "<" | "<=" | ">" | ">=" | "=" | "==" | "!="
    value      = NUMBER | TEXT in single or double quotes, doubled to mean themselves

Texts are compared by ``=`` and ``!=`` only. A comparison with NaN is false, also by ``!=``. Letters: N rows.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from genmod.errors import ConfigError, did_you_mean, sanitize

MAX_CHARS = 4096
"""Characters of a condition."""

_EXAMPLE = "p_corrected > 0.01 and label = 3"

_MAX_DEPTH = 32
"""Nested parentheses and negations."""

Mask = NDArray[np.bool_]
ColumnKind = Literal["number", "text"]


@dataclass(frozen=True)
class Comparison:
    """A column compared with a value."""

    column: str
    symbol: str
    value: float | int | str

    def __str__(self) -> str:
        text = repr(self.value) if not isinstance(self.value, str) else _quoted(self.value)
        return f"{self.column} {self.symbol} {text}"

    def comparisons(self) -> Iterator[Comparison]:
        """All comparisons of the condition."""
        yield self

    def is_met(self, value: float | int | str) -> bool:
        """Whether one value of the column meets the condition."""
        return bool(_OPERATORS[self.symbol](value, self.value))

    def mask(self, columns: Mapping[str, NDArray[Any]]) -> Mask:
        """Which of N rows meet the condition, given the values of its columns, (N,) each."""
        value_N = columns[self.column]
        met_N = np.asarray(_OPERATORS[self.symbol](value_N, self.value), dtype=np.bool_)
        if self.symbol == "!=" and value_N.dtype.kind == "f":
            return met_N & ~np.isnan(value_N)
        return met_N


@dataclass(frozen=True)
class Negation:
    """Rows that do not meet a condition."""

    term: Condition

    def __str__(self) -> str:
        return f"not ({self.term})"

    def comparisons(self) -> Iterator[Comparison]:
        """All comparisons of the condition."""
        yield from self.term.comparisons()

    def mask(self, columns: Mapping[str, NDArray[Any]]) -> Mask:
        """Which of N rows meet the condition, given the values of its columns, (N,) each."""
        return ~self.term.mask(columns)


@dataclass(frozen=True)
class Junction:
    """Rows that meet all of several conditions, or any of them."""

    word: Literal["and", "or"]
    terms: tuple[Condition, ...]

    def __str__(self) -> str:
        texts = (f"({term})" if isinstance(term, Junction) else str(term) for term in self.terms)
        return f" {self.word} ".join(texts)

    def comparisons(self) -> Iterator[Comparison]:
        """All comparisons of the condition."""
        for term in self.terms:
            yield from term.comparisons()

    def mask(self, columns: Mapping[str, NDArray[Any]]) -> Mask:
        """Which of N rows meet the condition, given the values of its columns, (N,) each."""
        masks = [term.mask(columns) for term in self.terms]
        return (np.logical_and if self.word == "and" else np.logical_or).reduce(masks)


Condition = Comparison | Negation | Junction

_OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
    "=": operator.eq, "!=": operator.ne,
}  # fmt: skip

_TOKEN = re.compile(
    r"""\s*(?:
      (?P<number>[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?(?![A-Za-z0-9_.]))
    | (?P<name>[A-Za-z_][A-Za-z0-9_]*)
    | (?P<text>"(?:[^"]|"")*"|'(?:[^']|'')*')
    | (?P<symbol><=|>=|!=|==|<|>|=|\(|\))
    | (?P<end>\Z)
    )""",
    re.VERBOSE,
)
"""One token at a place; each character is looked at once, whatever the text."""

_INTEGER = re.compile(r"[-+]?[0-9]{1,15}\Z")


@dataclass(frozen=True)
class _Token:
    kind: str
    text: str
    at: int

    @property
    def word(self) -> str:
        """The word or symbol in lower case; empty for numbers and texts."""
        return self.text.lower() if self.kind in ("name", "symbol") else ""

    def __str__(self) -> str:
        return "the end" if self.kind == "end" else sanitize(repr(self.text[:40]))


class _Parser:
    """Recursive descent over the tokens. Raises ConfigError at the first that does not fit."""

    def __init__(self, text: str) -> None:
        self._tokens = list(_tokens(text))
        self._next = 0

    def parse(self) -> Condition:
        condition = self._junction("or", 0)
        if self._peek().kind != "end":
            raise self._unexpected("and, or, or the end")
        return condition

    def _peek(self) -> _Token:
        return self._tokens[self._next]

    def _take(self) -> _Token:
        self._next += 1
        return self._tokens[self._next - 1]

    def _junction(self, word: Literal["and", "or"], depth: int) -> Condition:
        """Terms joined by a word; those of ``or`` are joined by ``and``."""

        def term() -> Condition:
            return self._junction("and", depth) if word == "or" else self._term(depth)

        terms = [term()]
        while self._peek().word == word:
            self._take()
            terms.append(term())
        return terms[0] if len(terms) == 1 else Junction(word, tuple(terms))

    def _term(self, depth: int) -> Condition:
        if depth > _MAX_DEPTH:
            raise ConfigError(
                f"condition: more than {_MAX_DEPTH} levels of parentheses at character "
                f"{self._peek().at + 1}; write it with fewer"
            )
        if self._peek().word == "not":
            self._take()
            return Negation(self._term(depth + 1))
        if self._peek().word == "(":
            self._take()
            condition = self._junction("or", depth + 1)
            if self._peek().word != ")":
                raise self._unexpected("')'")
            self._take()
            return condition
        return self._comparison()

    def _comparison(self) -> Comparison:
        if self._peek().kind != "name" or self._peek().word in ("and", "or"):
            raise self._unexpected("a column, not, or '('")
        column = self._take().text
        if self._peek().text not in (*_OPERATORS, "=="):
            raise self._unexpected(f"one of {' '.join(_OPERATORS)} after the column {column[:40]}")
        symbol = self._take().text.replace("==", "=")
        if self._peek().kind == "number":
            return Comparison(column, symbol, self._number())
        if self._peek().kind == "text":
            return Comparison(column, symbol, _unquoted(self._take().text))
        raise self._unexpected("a number, or a text in quotes")

    def _number(self) -> float | int:
        token = self._take()
        value = int(token.text) if _INTEGER.match(token.text) else float(token.text)
        if not math.isfinite(value):
            raise ConfigError(
                f"condition: {token} at character {token.at + 1} is too large; write a finite number"
            )
        return value

    def _unexpected(self, expected: str) -> ConfigError:
        token = self._peek()
        return ConfigError(
            f"condition: got {token} at character {token.at + 1}, expected {expected}; e.g. {_EXAMPLE}"
        )


def _tokens(text: str) -> Iterator[_Token]:
    at = 0
    while True:
        match = _TOKEN.match(text, at)
        if match is None or match.lastgroup is None:
            start = at + len(text[at:]) - len(text[at:].lstrip())
            hint = "; close the quotes" if text[start] in "\"'" else ""
            raise ConfigError(
                f"condition: got {sanitize(repr(text[start]))} at character {start + 1}, expected a column, "
                f"a comparison, a number or a text in quotes{hint}"
            )
        kind = match.lastgroup
        yield _Token(kind, match[kind], match.start(kind))
        if kind == "end":
            return
        at = match.end()


def parse_condition(text: str) -> Condition:
    """Parse a condition on columns.

    >>> str(parse_condition("p_corrected>.01 and (label == 3 or not nats < -1e2)"))
    'p_corrected > 0.01 and (label = 3 or not (nats < -100.0))'

    Raises:
        ConfigError: names the place and what is expected there.
    """
    if len(text) > MAX_CHARS:
        raise ConfigError(
            f"condition: {len(text):,} characters, more than the limit of {MAX_CHARS:,}; shorten it"
        )
    return _Parser(text).parse()


def check_columns(condition: Condition, kinds: Mapping[str, ColumnKind]) -> None:
    """Check a condition against the columns that there are.

    Args:
        condition: as parsed.
        kinds: what each column holds, by name.

    Raises:
        ConfigError: a column does not exist, or is compared with a value of the other kind.
    """
    for each in condition.comparisons():
        if each.column not in kinds:
            hint = did_you_mean(each.column, kinds)
            names = "" if hint.startswith("valid") else f" (valid: {', '.join(sorted(kinds))})"
            raise ConfigError(f"condition: no column {each.column[:80]!r}; {hint}{names}")
        kind: ColumnKind = "text" if isinstance(each.value, str) else "number"
        if kind != kinds[each.column]:
            expected = "a text in quotes" if kind == "number" else "a number"
            raise ConfigError(f"condition: {sanitize(str(each))[:160]}: expected {expected}")
        if kind == "text" and each.symbol not in ("=", "!="):
            raise ConfigError(
                f"condition: {sanitize(str(each))[:160]}: texts are compared by = and != only"
            )


def _quoted(text: str) -> str:
    doubled = text.replace('"', '""')
    return f'"{doubled}"'


def _unquoted(text: str) -> str:
    quote = text[0]
    return text[1:-1].replace(2 * quote, quote)
