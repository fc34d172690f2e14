"""Source of WebDataset tars: members with the same key form one sample."""

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
    """The members of one key."""

    image: tuple[int, int] | None = None
    """Offset and size of the image in the tar."""
    label: int = NO_LABEL
    reason: str | None = None
    """Why the sample is rejected."""
    names: set[str] = field(default_factory=set[str])


class WebDatasetSource(Source):
    """Tars with images KEY.png, KEY.jpg, ... and labels KEY.cls, if any; other members are ignored.

    Tars are not unpacked: members are read at their offsets, and their names are never used as paths. The
    members of a key may be anywhere in a tar. Of several images the first counts. A sample with duplicate
    members, or with a link in place of an image or label, is rejected.
    """

    kind = "webdataset"
    random_access = False

    def entries(self, scan: Scan) -> Iterator[Entry]:
        """List every sample in the order of the tars; reads headers and labels, not images."""
        content = hashlib.sha256()
        is_empty = True
        for url in expand_files(self.text, self.where):
            # The fingerprint covers names and sizes of the tars, and names and labels of the samples.
            fs, path = storage.filesystem(url)
            tar = posixpath.basename(path)
            content.update(canonical_json([tar, int(cast(Any, fs.size(path)))]))
            with fs.open(path, "rb") as stream:
                samples = _samples(cast(Any, stream), url)
            for key, sample in samples.items():
                name = readable_name(f"{tar.removesuffix('.tar')}/{key}")
                content.update(canonical_json([name, sample.label]))
                if sample.image is None:
                    yield Entry(name, None, reason=sample.reason or "has no image member")
                    continue
                is_empty = False
                scan.size_bytes += sample.image[1]
                yield Entry(name, [url, *sample.image], sample.label, sample.reason)
        if is_empty:
            raise DataError(f"{self.text}: the tars contain no images")
        scan.fingerprint = fingerprint(self.kind, content.hexdigest())

    def fetch(self, refs: Sequence[Ref], fingerprint: str) -> Iterator[Image]:
        """Fetch members; a ref is [tar, offset, size]."""
        if not refs:
            return
        fs, _ = storage.filesystem(refs[0][0])
        path = {url: storage.filesystem(url)[1] for url in {url for url, _, _ in refs}}
        paths = [path[url] for url, _, _ in refs]
        starts = [offset for _, offset, _ in refs]
        yield from fetch_ranges(fs, paths, starts, [size for _, _, size in refs])


def _samples(stream: Any, url: str) -> dict[str, _Sample]:
    """Group the members of a tar by key: the path up to the first dot of the file name."""
    samples: dict[str, _Sample] = {}
    for member in walk(stream, url, every=True):
        # Split the name into key and extension; skip links and folders without relevance.
        folder, slash, file = member.name.rpartition("/")
        stem, _, extension = file.partition(".")
        extension = extension.lower()
        is_image = extension.rpartition(".")[2] in EXTENSIONS
        if not member.regular and not (is_image or extension == "cls"):
            continue
        sample = samples.setdefault(folder + slash + stem, _Sample())
        # Record the image or the label, or why the sample is rejected.
        if not member.regular:
            sample.reason = f"its member .{extension} is a link or not a regular file"
        elif member.name in sample.names:
            sample.reason = f"has two members .{extension}"
        elif is_image and sample.image is None:
            sample.image = (member.offset, member.size_bytes)
        elif extension == "cls":
            stream.seek(member.offset)
            text = stream.read(min(member.size_bytes, 32)).strip()
            sample.label = int(text) if text.isdigit() and len(text) < 10 else BAD_LABEL
        sample.names.add(member.name)
    return samples
