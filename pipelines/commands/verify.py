"""``genmod verify URL``: checks every file below a URL against the digests in its manifests."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
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
)
from pipelines.tracking.tracker import ARTIFACTS

_FILE_FIELDS = set(FileEntry.model_fields)


def verify(url: str) -> list[str]:
    """The problems at a URL, one line each; empty if every file matches its digest.

    Checks the manifests in that folder; if it has none, all manifests below it. For a shard whose bytes
    changed it names the samples that did.

    Args:
        url: a folder, or a manifest.
    """
    name = url.rpartition("/")[2]
    if name in MANIFEST_NAMES.values():
        return _verify_one(url, _read(url)) if storage.exists(url) else [f"{url}: missing"]
    names = [name for name in storage.list_names(url) if name in MANIFEST_NAMES.values()]
    if names:
        urls = [storage.join(url, name) for name in names]
        return [problem for each in urls for problem in _verify_one(each, _read(each))]
    manifests, problems = _below(url)
    if not manifests and not problems:
        return [f"{url}: no manifest ({', '.join(sorted(MANIFEST_NAMES.values()))}) in or below it"]
    contents = {manifest: _read(manifest) for manifest in manifests}
    problems += [problem for each in contents.items() for problem in _verify_one(*each)]
    return problems + _lost_parents(contents.values())


def _below(url: str) -> tuple[list[str], list[str]]:
    """The manifests of all folders below, and a line for each folder that lacks the one it should have."""
    names_of: dict[str, set[str]] = defaultdict(set)
    for file in storage.walk_files(url):
        # MLflow's copies of manifests are there without the files that they list.
        copied = f"/{ARTIFACTS}/" in file.removeprefix(url)
        folder, _, name = file.removeprefix("file://").rpartition("/")
        if not copied:
            names_of[folder].add(name)
    folders = sorted(names_of.items())
    unfinished = [
        f"{folder}: unfinished, or its manifest is lost; rerun the command that wrote it"
        for folder, names in folders
        if is_claimed(names)
    ]
    kinds = MANIFEST_NAMES.values()
    return [f"{folder}/{n}" for folder, names in folders for n in kinds if n in names], unfinished


def _read(url: str) -> dict[str, Any] | str:
    """The JSON object in a manifest, with a ``digest``; text about the error if it is none."""
    try:
        content = json.loads(storage.read_bytes(url))
        hash(content["digest"])
    except (ValueError, KeyError, TypeError) as error:
        return f"{url}: not a manifest ({type(error).__name__}: {error})"
    return cast("dict[str, Any]", content)


def _lost_parents(contents: Iterable[dict[str, Any] | str]) -> list[str]:
    """A line for each lost input of an evaluation whose feature space exists."""
    known = {content["digest"]: content for content in contents if isinstance(content, dict)}
    return [
        f"{content['metadata']['model']}: the {name} {digest[:12]} that its evaluation read are missing"
        for content in known.values()
        if content.get("kind") == "evaluation" and content["parents"].get("features") in known
        for name, digest in content["parents"].items()
        if digest not in known
    ]


def _verify_one(url: str, content: dict[str, Any] | str) -> list[str]:
    if isinstance(content, str):
        return [content]
    root = url.rpartition("/")[0]
    problems = find_problems(root, list(_entries(content)))
    if fingerprint({key: content[key] for key in content if key != "digest"}) != content["digest"]:
        return [
            f"{url}: does not match its own digest; it was changed after it was written",
            *problems,
        ]
    if content.get("kind") == "dataset":
        problems += _dataset_problems(url, root, content)
    return problems


def _entries(value: Any) -> Iterator[FileEntry]:
    """Every file that a manifest lists, in any of its fields."""
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


def _dataset_problems(url: str, root: str, content: dict[str, Any]) -> list[str]:
    try:
        manifest = DatasetManifest.model_validate(content)
        return [
            problem
            for shard in manifest.shards
            for problem in shard_problems(root, manifest, shard)
        ]
    except ValidationError as error:
        return [f"{url}: not a valid dataset manifest ({str(error).splitlines()[0]})"]
    except DataError as error:
        return [str(error)]
