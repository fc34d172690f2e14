"""What a bundle takes of the store below a root: small documents, bounded; no images, weights or tables."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice

from genmod import storage
from genmod.errors import GenmodError
from genmod.manifest import MANIFEST_NAMES
from genmod.receipts import RECEIPTS_FOLDER, SEGMENTS_FOLDER

_LISTED = 50_000
"""Files below the root that are listed."""

_TAKEN = 2_000
"""Files that are taken."""

_OF_ONE_FOLDER = 100
"""Files that are taken of one folder, such as that of receipts."""

_READ_BYTES = 4 << 20
"""A larger document is left out."""

_HEAD_CHARS = 256 << 10
"""Of a document that are kept, from its beginning, after credentials were removed."""

_TOTAL_CHARS = 48 << 20

_DOCUMENTS = re.compile(r"\.(json|jsonl|txt|list|yaml)$")
_NOT_OURS = re.compile(r"(^|/)(mlartifacts|\.scratch/[^/]+/ray)/")
"""Folders whose files repeat others, or are Ray's."""

_FIRST = (
    *(rf"(^|/){re.escape(name)}$" for name in MANIFEST_NAMES.values()),
    r"(^|/)claim\.json$",
    r"(^|/)stacks/",
    r"(^|/)(leases|schedule|promotions)/",
)


def store_texts(
    root: str, clean: Callable[[str], str], report: Callable[[str], None]
) -> Iterator[tuple[str, str]]:
    """Name and content of the documents below a root, and a list of all files.

    Args:
        root: URL of a folder.
        clean: removes credentials. It is applied before a text is cut.
        report: called with one line about each document that cannot be read, and about limits.
    """
    files = list(islice(storage.walk_files(root), _LISTED + 1))
    if len(files) > _LISTED:
        report(f"{root}: more than {_LISTED:,} files; the others are not listed")
    start = len(storage.resolve(root).removeprefix("file://").rstrip("/")) + 1
    names = {url.removeprefix("file://")[start:]: url for url in files[:_LISTED]}
    yield "files.txt", clean("".join(f"{name}\n" for name in names))
    total, left_out = 0, Counter[str]()
    for name in _chosen(names, left_out):
        if total > _TOTAL_CHARS:
            report(
                f"{root}: documents after {name} are left out, the limit is {_TOTAL_CHARS:,} characters"
            )
            break
        try:
            data = storage.read_bytes(names[name], _READ_BYTES)
        except (OSError, GenmodError) as error:
            report(f"{name}: not read ({error})")
            continue
        text = clean(data.decode(errors="replace"))
        if len(text) > _HEAD_CHARS:
            text = f"{text[:_HEAD_CHARS]}\n({len(text) - _HEAD_CHARS:,} more characters are left out)\n"
        total += len(text)
        yield f"root/{name}", text
    for folder, count in left_out.items():
        report(f"{folder}: {count:,} further documents are left out")


def _chosen(names: dict[str, str], left_out: Counter[str]) -> list[str]:
    """The documents to take, the most telling first."""
    documents = [n for n in names if _DOCUMENTS.search(n) and not _NOT_OURS.search(n)]
    order = {name: _rank(name) for name in documents}
    taken: list[str] = []
    of_folder: Counter[str] = Counter()
    for name in sorted(documents, key=lambda name: (order[name], name)):
        folder = name.rpartition("/")[0]
        of_folder[folder] += 1
        if len(taken) < _TAKEN and of_folder[folder] <= _OF_ONE_FOLDER:
            taken.append(name)
        else:
            left_out[folder] += 1
    return taken


def _rank(name: str) -> int:
    """Manifests, claims, stacks, leases and decisions before all else; receipts last."""
    if any(re.search(pattern, name) for pattern in _FIRST):
        return 0
    return 2 if f"/{RECEIPTS_FOLDER}/" in name or f"/{SEGMENTS_FOLDER}/" in name else 1
