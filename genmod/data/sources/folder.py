"""Source of image files below a folder; the class of an image is the name of its parent folder."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any, NamedTuple

from fsspec.implementations.local import LocalFileSystem

from genmod import storage
from genmod.config import fingerprint
from genmod.data.format.foreign import EXTENSIONS, Rejected
from genmod.data.format.magic import HEAD_BYTES, image_format, unread_format
from genmod.data.sources.fetch import MAX_FILE_BYTES, fetch_bytes, fetch_ranges, open_image
from genmod.data.sources.folder_classes import FolderClasses
from genmod.data.sources.guess import guess_source
from genmod.data.sources.identity import SHORT_DIGITS, chunks, in_order, open_sha256, short_digest
from genmod.data.sources.label_files import LabelFiles
from genmod.data.sources.listing import File, check_listable, files_below
from genmod.data.sources.local_folder import NO_SIZE
from genmod.data.sources.names import extension_of, pass_over_file
from genmod.data.sources.source import (
    NO_LABEL,
    Entry,
    Image,
    Ref,
    Scan,
    Source,
    readable_name,
)
from genmod.errors import DataError
from genmod.manifest import Split

_CHUNK_FILES = 64
"""Files that one thread reads together."""

_CHUNK_NAMES = 1024
"""Files that are examined together, if most of them are known by their names."""

_CHANGED = "has changed since it was listed"


class _Content(NamedTuple):
    """What a file is by its first bytes, and its identity."""

    is_image: bool
    unread: str | None = None
    """Format of an image that is not read."""
    digest: str | None = None
    """SHA-256; None if the file was not read."""


_IMAGE = _Content(True)
"""A file with an image extension that is not read."""

_SUFFIXES = tuple(f".{extension}" for extension in EXTENSIONS)


class Folder(Source):
    """Image files below a folder, known by content or extension. Other files are counted."""

    kind = "folder"
    random_access = True

    def entries(self, scan: Scan) -> Iterator[Entry]:
        """List every image file in the order of paths; labels are names of folders, or in a file."""
        check_listable(self.text, self.where)
        fs, root = storage.filesystem(self.where)
        if not fs.isdir(root):
            raise DataError(f"{self.text}: no such folder")
        content = hashlib.sha256()
        tables = LabelFiles(self.text, self.where, self.options, scan.census)
        classes = FolderClasses(
            self.text, self.options, scan.census, is_used=self.options.labels and not tables
        )
        has_tables = bool(tables)
        images = without_extension = size_bytes = largest = 0
        folder: str | None = None
        placed: tuple[int | str, Split | None] = NO_LABEL, None
        for file, known in self._examined(scan):
            name = readable_name(file.name)
            if not known.is_image:
                if file.name not in tables:
                    _pass_over(scan, file, known)
                continue
            images += file.reason is None
            if known is not _IMAGE:
                without_extension += not _is_named(file.name)
            # Files of one folder are at one place.
            above = name[: name.rfind("/") + 1]
            if above != folder:
                folder, placed = above, classes.place(name)
            label, split = placed
            if has_tables:
                label, split = tables.place(name, label, split)
            # The fingerprint covers names, bytes, labels and splits.
            identity = row_content = None
            if scan.identify:
                identity = known.digest or self._state(file)
                row_content = f"{file.size_bytes} {identity} {label} {split}"
                content.update(f"{name}\x00{row_content}\n".encode())
                size_bytes += file.size_bytes
                if file.size_bytes > largest:
                    largest = max(largest, fetch_bytes(file.size_bytes))
            ref: tuple[Any, ...] = (file.name, file.size_bytes)
            if identity and isinstance(fs, LocalFileSystem):
                ref = *ref, identity[:SHORT_DIGITS] if known.digest else identity
            yield Entry(name, ref, label, file.reason, split, row_content)
        scan.size_bytes, scan.max_fetch_bytes = size_bytes, largest
        if not images:
            passed_over = scan.census.summary() or "nothing"
            other = guess_source(self.where)
            advice = f"; set data.source={other} to read those" if other else ""
            raise DataError(
                f"{self.text}: contains no images ({', '.join(EXTENSIONS)}), but {passed_over}{advice}"
            )
        if without_extension:
            scan.census.decide(f"{without_extension} images without an image extension are taken")
        classes.report()
        tables.report()
        scan.fingerprint = fingerprint(self.kind, content.hexdigest()) if scan.identify else ""

    def _examined(self, scan: Scan) -> Iterator[tuple[File, _Content]]:
        """Files in the order of paths, with what they are; many are read at once, a bounded number ahead."""
        fs, root = storage.filesystem(self.where)
        reads = scan.identify and self.options.identity == "content"
        is_local = isinstance(fs, LocalFileSystem)
        if scan.identify or not is_local:
            listed = files_below(self.where, scan.census)
        else:
            listed = files_below(self.where, scan.census, _is_named)
        if not is_local:
            for files in chunks(listed, _CHUNK_NAMES):
                yield from zip(files, _stored_contents(fs, root, files), strict=True)
            return

        def examine(files: Sequence[File]) -> list[_Content]:
            return [_local_content(f"{root}/{file.name}", file, reads) for file in files]

        if reads:
            parts = chunks(listed, _CHUNK_FILES)
            for files, contents in in_order(lambda files: (files, examine(files)), parts):
                yield from zip(files, contents, strict=True)
            return
        # Most files are known by their names; threads would only slow these down.
        for files in chunks(listed, _CHUNK_NAMES):
            is_known = [
                file.size_bytes == NO_SIZE or (file.reason is None and _is_named(file.name))
                for file in files
            ]
            unknown = [file for file, known in zip(files, is_known, strict=True) if not known]
            contents = chain.from_iterable(in_order(examine, chunks(unknown, _CHUNK_FILES)))
            for file, known in zip(files, is_known, strict=True):
                yield file, _IMAGE if known else next(contents)

    def _state(self, file: File) -> str | None:
        """State by the listing; a file of a store that knows no checksums is read."""
        if file.state is not None or file.reason is not None:
            return file.state
        return storage.sha256_of(storage.join(self.where, file.name))

    def content_digest(self, ref: Ref) -> str | None:
        """Start of the digest of a local file, if sources are identified by content."""
        return ref[2] if len(ref) > 2 and not ref[2].startswith("time ") else None

    def fetch(self, refs: Sequence[Ref], fingerprint: str) -> Iterator[Image]:
        """Fetch files; a ref is [name, size], of local files also the start of the digest, or the state."""
        fs, root = storage.filesystem(self.where)
        paths = [f"{root}/{ref[0]}" for ref in refs]
        sizes = [
            _size_bytes(path) if ref[1] == NO_SIZE else ref[1]
            for path, ref in zip(paths, refs, strict=True)
        ]
        images = fetch_ranges(fs, paths, [0] * len(paths), sizes)
        for ref, path, image in zip(refs, paths, images, strict=True):
            is_same = isinstance(image, Rejected) or len(ref) < 3 or _is_same(path, image, ref[2])
            yield image if is_same else Rejected(_CHANGED)


def _is_named(name: str) -> bool:
    """Whether a file that is not hidden has an image extension."""
    return name.lower().endswith(_SUFFIXES)


def _size_bytes(path: str) -> int:
    """Size of a local file; 0 if it is gone, which opening it reports."""
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


def _is_same(path: str, image: bytes, state: str) -> bool:
    if not state.startswith("time "):
        return short_digest(image) == state
    info = os.stat(path)
    return f"time {info.st_size} {info.st_mtime_ns}" == state


def _pass_over(scan: Scan, file: File, known: _Content) -> None:
    """Count a file that is no image."""
    if file.reason is not None:
        scan.census.pass_over(f"files that cannot be read ({file.reason})", file.name)
    elif file.size_bytes == 0:
        scan.census.pass_over("empty files", file.name)
    else:
        pass_over_file(scan.census, file.name, known.unread)


def _known(file: File, head: bytes | Rejected) -> _Content:
    """What a file without an image extension is by its first bytes."""
    extension = extension_of(file.name)
    data = b"" if isinstance(head, Rejected) else head
    unread = unread_format(data, extension)
    return _Content(unread is None and image_format(data, extension) is not None, unread)


def _stored_contents(fs: Any, root: str, files: Sequence[File]) -> Iterator[_Content]:
    """What objects of a store are; the first bytes of unknown ones are fetched together."""
    unknown = [file for file in files if not _is_named(file.name)]
    heads = fetch_ranges(
        fs,
        [f"{root}/{file.name}" for file in unknown],
        [0] * len(unknown),
        [min(HEAD_BYTES, file.size_bytes) for file in unknown],
    )
    for file in files:
        yield _IMAGE if _is_named(file.name) else _known(file, next(heads))


def _local_content(path: str, file: File, reads: bool) -> _Content:
    """What a local file is, and its digest if files are to be read and it is an image."""
    is_named = _is_named(file.name)
    # A link that leads nowhere or in a circle may be meant as a folder of images.
    if file.reason is not None:
        return _Content(is_named or "link" in file.reason)
    if is_named and not (reads and file.size_bytes <= MAX_FILE_BYTES):
        return _IMAGE
    handle = open_image(path)
    if isinstance(handle, Rejected):  # fetching it gives the reason
        return _Content(is_named)
    try:
        known = _Content(True) if is_named else _known(file, os.pread(handle, HEAD_BYTES, 0))
        if not known.is_image or not reads or file.size_bytes > MAX_FILE_BYTES:
            return known
        return _Content(True, None, open_sha256(handle))
    finally:
        os.close(handle)
