"""``genmod verify URL``: every digest of what lies there, against its manifests."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, cast

from pydantic import ValidationError

from genmod import storage
from genmod.config import fingerprint
from genmod.data.format.verify import shard_problems
from genmod.errors import DataError
from genmod.manifest import (
    MANIFEST_NAMES,
    DatasetManifest,
    FileEntry,
    find_problems,
    is_claimed,
    load_manifest,
)
from pipelines.tracking.tracker import ARTIFACTS

_FILE_FIELDS = set(FileEntry.model_fields)


def verify(url: str) -> list[str]:
    """What is wrong at a URL: one line for each fault, none if all is whole.

    Looks at the manifest in that folder, of any kind; if it has none, at all manifests below it. For a shard
    whose bytes changed it says which samples did.
    """
    name = url.rpartition("/")[2]
    if name in MANIFEST_NAMES.values():
        return _verify_one(url) if storage.exists(url) else [f"{url}: missing"]
    there = [name for name in storage.list_names(url) if name in MANIFEST_NAMES.values()]
    if there:
        return [fault for name in there for fault in _verify_one(storage.join(url, name))]
    manifests, found = _below(url)
    if not manifests and not found:
        return [f"{url}: no manifest there ({', '.join(sorted(MANIFEST_NAMES.values()))})"]
    found += [fault for manifest in manifests for fault in _verify_one(manifest)]
    return found + _lost_parents(manifests)


def _below(url: str) -> tuple[list[str], list[str]]:
    """The manifests of all folders below, and a line for each folder that ought to have one."""
    names_of: dict[str, set[str]] = defaultdict(set)
    for file in storage.walk_files(url):
        copied = f"/{ARTIFACTS}/" in file.removeprefix(url)  # MLflow's, without what they name
        folder, _, name = file.removeprefix("file://").rpartition("/")
        if not copied:
            names_of[folder].add(name)
    folders = sorted(names_of.items())
    lost = [
        f"{folder}: unfinished, or its manifest is lost; make it again by the same command"
        for folder, names in folders
        if is_claimed(names)
    ]
    kinds = MANIFEST_NAMES.values()
    return [f"{folder}/{n}" for folder, names in folders for n in kinds if n in names], lost


def _lost_parents(manifests: Sequence[str]) -> list[str]:
    """A line for each input of an evaluation that is gone, where the feature space is not."""
    known: dict[str, Any] = {}
    for url in manifests:
        try:
            content = json.loads(storage.read_bytes(url))
            known[content["digest"]] = content
        except (ValueError, KeyError, TypeError):
            continue  # said by _verify_one
    return [
        f"{content['metadata']['model']}: the {name} {digest[:12]} that its evaluation was made from are gone"
        for content in known.values()
        if content["kind"] == "evaluation" and content["parents"].get("features") in known
        for name, digest in content["parents"].items()
        if digest not in known
    ]


def _verify_one(url: str) -> list[str]:
    root = url.rpartition("/")[0]
    try:
        content = json.loads(storage.read_bytes(url))
        digest = content.pop("digest")
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        return [f"{url}: not a manifest ({type(error).__name__}: {error})"]
    found: list[str] = []
    if fingerprint(content) != digest:
        found.append(f"{url}: does not fit its own digest, it was changed after it was written")
    bad = find_problems(root, list(_entries(content)))
    found += bad
    if content.get("kind") == "dataset" and not found[: len(found) - len(bad)]:
        found += _dataset_faults(root)
    return found


def _entries(value: Any) -> Iterator[FileEntry]:
    """Every file that a manifest names, wherever it stands in it."""
    if isinstance(value, dict):
        fields = cast("dict[str, Any]", value)
        if set(fields) == _FILE_FIELDS:
            try:
                yield FileEntry.model_validate(fields)
            except ValidationError:
                return
            return
        value = list(fields.values())
    if isinstance(value, list):
        for item in cast("list[Any]", value):
            yield from _entries(item)


def _dataset_faults(root: str) -> list[str]:
    try:
        manifest = load_manifest(DatasetManifest, root, "dataset")
        assert manifest is not None
        return [
            fault for shard in manifest.shards for fault in shard_problems(root, manifest, shard)
        ]
    except DataError as error:
        return [str(error)]
