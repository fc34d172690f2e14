"""Source of WebDataset tars: members with the same key form one sample."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from itertools import groupby, repeat
from typing import Any, cast

from genmod import storage
from genmod.config import canonical_json, fingerprint
from genmod.data.sources.fetch import fetch_bytes, fetch_ranges
from genmod.data.sources.folder_classes import FOLDER, FolderClasses
from genmod.data.sources.identity import file_stamp, identify, is_unchanged
from genmod.data.sources.labels import LabelKinds
from genmod.data.sources.names import split_of_folder, split_of_tar
from genmod.data.sources.patterns import source_files
from genmod.data.sources.source import Entry, Image, Ref, Scan, Source, readable_name
from genmod.data.sources.split_names import report_splits
from genmod.data.sources.tar_samples import TarReader, TarSample
from genmod.errors import DataError, sanitize
from genmod.manifest import Split


class WebDatasetSource(Source):
    """Tars with images KEY.png, KEY.jpg, ... and labels KEY.cls, if any; other members are counted.

    Tars are not unpacked: members are read at their offsets, and their names are never used as paths. The
    members of a key may be anywhere in a tar. If samples have several images, ``data.image`` says which one
    is meant. A sample with duplicate members, or with a link in place of an image or label, is rejected.

    A folder stands for the tars in it and below. The name of a sample is the path of its tar, relative to
    that folder, or to the folder in front of the pattern's first brace or wildcard, and its key. So equal
    keys in tars of the same name in two folders are two samples. With ``data.label=folder`` the folder of a
    member is its class.
    """

    kind = "webdataset"
    random_access = False

    def entries(self, scan: Scan) -> Iterator[Entry]:
        """List every sample in the order of the tars; reads headers and labels, not images."""
        content = hashlib.sha256()
        reader, kinds = TarReader(self.options, scan.census), LabelKinds(self.text)
        classes = FolderClasses(self.text, self.options, scan.census)
        has_images, splits = False, set[Split | None]()
        for tar, url, identity in self._tars(scan):
            # The fingerprint covers the bytes of the tars, and names, labels and splits of the samples.
            fs, path = storage.filesystem(url)
            content.update(canonical_json([readable_name(tar), identity]))
            stamp = [file_stamp(url, identity)] if identity else []
            with fs.open(path, "rb") as stream:
                samples = reader.samples(cast(Any, stream), url)
            tar_split = split_of_tar(tar)
            for key, sample in samples.items():
                name = readable_name(f"{tar.removesuffix('.tar')}/{key}")
                path = key.removeprefix("./")
                split = split_of_folder(path.partition("/")[0]) if "/" in path else None
                if self.options.label == FOLDER:
                    sample.label, split = classes.place(path)
                split = tar_split or split
                content.update(canonical_json([name, sample.label, split]))
                kinds.check(sample.label, name)
                if sample.image is None:
                    yield Entry(name, None, reason=sample.reason or "has no image member")
                    continue
                has_images = True
                splits.add(split)
                self._measure(scan, sample)
                ref = [url, *sample.image, *stamp]
                yield Entry(name, ref, sample.label, sample.reason, split)
        if not has_images:
            raise reader.no_images(self.text)
        reader.report(kinds.is_labelled)
        classes.report_merged()
        report_splits(scan.census, splits, "names of tars or of folders in them")
        scan.fingerprint = fingerprint(self.kind, content.hexdigest()) if scan.identify else ""

    def _tars(self, scan: Scan) -> Iterator[tuple[str, str, str]]:
        """Relative name, URL and identity of each tar; no identity where the scan needs none."""
        tars = list(source_files(self.text, self.where, ".tar", scan.census))
        urls = [url for _, url in tars]
        identities = identify(urls, self.options.identity) if scan.identify else repeat("")
        for (name, url), identity in zip(tars, identities, strict=False):
            yield name, url, identity

    def _measure(self, scan: Scan, sample: TarSample) -> None:
        assert sample.image is not None
        size_bytes = sample.image[1]
        scan.size_bytes += size_bytes
        scan.max_fetch_bytes = max(scan.max_fetch_bytes, fetch_bytes(size_bytes))

    def fetch(self, refs: Sequence[Ref], fingerprint: str) -> Iterator[Image]:
        """Fetch members; a ref is [tar, offset, size, stamp of the tar], the stamp if tars are identified."""
        for (url, *stamp), group in groupby(refs, key=lambda ref: (ref[0], *ref[3:])):
            fs, path = storage.filesystem(url)
            if stamp and not is_unchanged(url, stamp[0]):
                raise DataError(
                    f"{self.text}: {sanitize(url)} changed while it was sharded; run genmod shard again"
                )
            parts = list(group)
            starts, sizes = [ref[1] for ref in parts], [ref[2] for ref in parts]
            yield from fetch_ranges(fs, [path] * len(parts), starts, sizes)
