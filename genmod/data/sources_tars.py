"""WebDataset tars as a source: members that share a key are one sample."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np

from genmod import storage
from genmod.config import fingerprint
from genmod.data.codecs import EXTENSIONS
from genmod.data.sources import Image, Listing, Ref, Source
from genmod.data.sources_files import fetch_ranges
from genmod.data.tars import walk
from genmod.errors import DataError

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)\Z")
MAX_TARS = 1_000_000


def expand_braces(pattern: str) -> list[str]:
    """``a-{000..002}.tar`` and ``{x,y}.tar`` written out, in order.

    >>> expand_braces("a{8..10}{x,y}")
    ['a8x', 'a8y', 'a9x', 'a9y', 'a10x', 'a10y']
    """
    found = _BRACES.search(pattern)
    if found is None:
        return [pattern]
    before, inside, after = pattern[: found.start()], found[1], pattern[found.end() :]
    bounds = _RANGE.match(inside)
    if bounds:
        first, last = bounds.groups()
        if int(last) - int(first) >= MAX_TARS:
            raise DataError(f"{pattern}: more than {MAX_TARS} files")
        width = len(first) if first.startswith("0") else 0
        options = [f"{number:0{width}d}" for number in range(int(first), int(last) + 1)]
    else:
        options = inside.split(",")
    return [before + option + rest for option in options for rest in expand_braces(after)]


def expand(text: str, where: str) -> list[str]:
    """URLs of files: braces written out, then ``*`` and ``?`` matched. DataError if one is not there."""
    urls: list[str] = []
    for pattern in expand_braces(where):
        fs, path = storage.filesystem(pattern)
        fs.invalidate_cache()
        if any(sign in path for sign in "*?"):
            found = [
                str(fs.unstrip_protocol(name)) for name in sorted(cast(list[str], fs.glob(path)))
            ]
        else:
            found = [pattern] if fs.isfile(path) else []
        if not found:
            raise DataError(f"{text}: no such file: {pattern}")
        urls += found
    return urls


@dataclass
class _Found:
    """What the scan of the tars has found so far."""

    names: list[str] = field(default_factory=list[str])
    refs: list[Ref] = field(default_factory=list[Ref])
    labels: list[int] = field(default_factory=list[int])
    refused: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    size_bytes: int = 0


class WebDataset(Source):
    """Tars of KEY.png, .jpg, ... with KEY.cls where there are labels; other members are passed over."""

    kind = "webdataset"
    scattered = False

    def listing(self) -> Listing:
        """Every sample, in the order of the tars; reads their headers and labels, not their images."""
        found = _Found()
        content: list[Any] = []
        for url in expand(self.text, self.where):
            fs, path = storage.filesystem(url)
            tar = posixpath.basename(path)
            content.append([tar, int(cast(Any, fs.size(path)))])
            with fs.open(path, "rb") as stream:
                self._scan(cast(Any, stream), url, found)
        if not found.names:
            raise DataError(f"{self.text}: no images in the tars")
        labelled = any(label >= 0 for label in found.labels)
        return Listing(
            names=found.names,
            refs=found.refs,
            labels_N=np.array(found.labels, dtype=np.int64) if labelled else None,
            fingerprint=fingerprint(self.kind, content, found.names, found.labels),
            size_bytes=found.size_bytes,
            refused=tuple(found.refused),
        )

    def _scan(self, stream: Any, url: str, found: _Found) -> None:
        """Group a tar's members: the key is the path up to the first dot of the file's name."""
        tar = posixpath.basename(url).removesuffix(".tar")
        open_key, image, label = None, None, -1

        def close() -> None:
            if open_key is None:
                return
            name = f"{tar}/{open_key}"
            if image is None:
                found.refused.append((name, "has no image member"))
                return
            found.names.append(name)
            found.refs.append([url, *image])
            found.labels.append(label)
            found.size_bytes += image[1]

        for member in walk(stream, url):
            folder, slash, file = member.name.rpartition("/")
            stem, _, extension = file.partition(".")
            key = folder + slash + stem
            if key != open_key:
                close()
                open_key, image, label = key, None, -1
            last = extension.lower().rpartition(".")[2]
            if last in EXTENSIONS and image is None:
                image = (member.offset, member.size_bytes)
            elif extension == "cls":
                stream.seek(member.offset)
                text = stream.read(min(member.size_bytes, 32)).strip()
                label = int(text) if text.isdigit() and len(text) < 10 else -1
        close()

    def fetch(self, refs: Sequence[Ref], fingerprint: str) -> Iterator[Image]:
        """Members by [tar, offset, size]."""
        if not refs:
            return
        fs, _ = storage.filesystem(refs[0][0])
        paths = [storage.filesystem(url)[1] for url, _, _ in refs]
        starts = [offset for _, offset, _ in refs]
        yield from fetch_ranges(fs, paths, starts, [offset + size for _, offset, size in refs])


KINDS = {WebDataset.kind: WebDataset}
