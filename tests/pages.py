"""The code blocks of the pages: where they are, and what kind each is."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    path
    for pattern in (
        "*.md",
        "genmod/*.md",
        "cluster/*.md",
        "pipelines/**/*.md",
        "tests/*.md",
        "infra/*.md",
    )
    for path in ROOT.glob(pattern)
)

_SHELL = re.compile(
    r"(genmod|make|pip|export|python|\.venv/bin/\w+|cd|git|docker|kubectl|ray|prometheus|promtool|infra/[a-z/]+|df|rm|mkdir|truncate|\.)(?=\s|$)"
)


@dataclass(frozen=True)
class Block:
    """A code block of a page."""

    page: str
    line: int
    text: str

    @property
    def kind(self) -> str:
        """``python``, ``shell``, ``yaml``, or ``text`` for a drawing or a list of files."""
        first = self.text.splitlines()[0]
        if first.startswith(("import ", "from ")):
            return "python"
        if _SHELL.match(first):
            return "shell"
        if re.match(r"[a-z_.]+:(\s|$)", first):
            return "yaml"
        return "text"

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks() -> list[Block]:
    """All code blocks: indented by four spaces after an empty line, or between fences."""
    found: list[Block] = []
    for path in PAGES:
        page = str(path.relative_to(ROOT))
        found += [Block(page, line, text) for line, text in _blocks_of(path.read_text())]
    return found


def _blocks_of(text: str) -> list[tuple[int, str]]:
    found: list[tuple[int, list[str]]] = []
    previous, is_fenced, is_open = "", False, False
    for number, line in enumerate(text.splitlines(), start=1):
        if line.lstrip().startswith("```"):
            is_fenced = not is_fenced
            is_open = False
            if is_fenced:
                found.append((number, []))
                is_open = True
        elif is_fenced:
            found[-1][1].append(line)
        elif line.startswith("    ") and (is_open or not previous.strip()):
            if not is_open:
                found.append((number, []))
                is_open = True
            found[-1][1].append(line)
        elif line.strip():
            is_open = False
        elif is_open:
            found[-1][1].append(line)
        previous = line
    return [(number, dedent("\n".join(lines)).strip("\n")) for number, lines in found]
