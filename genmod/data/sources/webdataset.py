"""WebDataset tars as a source: members that share a key are one sample."""

from __future__ import annotations

import hashlib
import posixpath
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from genmod import storage
from genmod.config import canonical_json, fingerprint
from genmod.data.format.codecs import EXTENSIONS
from genmod.data.format.tar import walk
from genmod.data.sources.folder import fetch_ranges
from genmod.data.sources.patterns import expand_files
from genmod.data.sources.source import (
    BAD_LABEL,
    NO_LABEL,
    Entry,
    Image,
    Ref,
    Scan,
    Source,
    readable_name,
)
from genmod.errors import DataError


@dataclass
class _Sample:
    """What a tar's members say of one key."""

    image: tuple[int, int] | None = None
    """Offset and size."""
    label: int = NO_LABEL
    fault: str | None = None
    names: set[str] = field(default_factory=set[str])


class WebDatasetSource(Source):
    """Tars of KEY.png, .jpg, ... with KEY.cls where there are labels; other members are passed over.

    Nothing is unpacked: a member is read where it lies, and its name is no more than a name. The members of a
    key may lie anywhere in their tar. If it has several images the first is taken; two members of one name,
    or a link in the place of an image or a label, refuse the sample.
    """

    kind = "webdataset"
    random_access = False

    def entries(self, scan: Scan) -> Iterator[Entry]:
        """Every sample, in the order of the tars; reads their headers and labels, not their images."""
        content = hashlib.sha256()
        found = False
        for url in expand_files(self.text, self.where):
            fs, path = storage.filesystem(url)
            tar = posixpath.basename(path)
            content.update(canonical_json([tar, int(cast(Any, fs.size(path)))]))
            with fs.open(path, "rb") as stream:
                samples = _samples(cast(Any, stream), url)
            for key, sample in samples.items():
                name = readable_name(f"{tar.removesuffix('.tar')}/{key}")
                content.update(canonical_json([name, sample.label]))
                if sample.image is None:
                    yield Entry(name, None, fault=sample.fault or "has no image member")
                    continue
                found = True
                scan.size_bytes += sample.image[1]
                yield Entry(name, [url, *sample.image], sample.label, sample.fault)
        if not found:
            raise DataError(f"{self.text}: no images in the tars")
        scan.fingerprint = fingerprint(self.kind, content.hexdigest())

    def fetch(self, refs: Sequence[Ref], fingerprint: str) -> Iterator[Image]:
        """Members by [tar, offset, size]."""
        if not refs:
            return
        fs, _ = storage.filesystem(refs[0][0])
        path = {url: storage.filesystem(url)[1] for url in {url for url, _, _ in refs}}
        paths = [path[url] for url, _, _ in refs]
        starts = [offset for _, offset, _ in refs]
        yield from fetch_ranges(fs, paths, starts, [size for _, _, size in refs])


def _samples(stream: Any, url: str) -> dict[str, _Sample]:
    """A tar's members by key, which is the path up to the first dot of the file's name."""
    samples: dict[str, _Sample] = {}
    for member in walk(stream, url, every=True):
        folder, slash, file = member.name.rpartition("/")
        stem, _, extension = file.partition(".")
        extension = extension.lower()
        is_image = extension.rpartition(".")[2] in EXTENSIONS
        if not member.regular and not (is_image or extension == "cls"):
            continue
        sample = samples.setdefault(folder + slash + stem, _Sample())
        if not member.regular:
            sample.fault = f"its member .{extension} is a link or no regular file"
        elif member.name in sample.names:
            sample.fault = f"has two members .{extension}"
        elif is_image and sample.image is None:
            sample.image = (member.offset, member.size_bytes)
        elif extension == "cls":
            stream.seek(member.offset)
            text = stream.read(min(member.size_bytes, 32)).strip()
            sample.label = int(text) if text.isdigit() and len(text) < 10 else BAD_LABEL
        sample.names.add(member.name)
    return samples
