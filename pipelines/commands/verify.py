"""``genmod verify URL``: checks every file below a URL against the digests in its manifests."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any, cast

from pydantic import ConfigDict, Field, ValidationError

from genmod import storage
from genmod.budget import BUDGET
from genmod.config import Config, fingerprint
from genmod.data.format.verify_dataset import dataset_problems
from genmod.documents import parse_json, validate
from genmod.errors import DataError, sanitize
from genmod.manifest import (
    MANIFEST_NAMES,
    DatasetManifest,
    FileEntry,
    find_problems,
    is_claimed,
)
from genmod.promotion import LEDGER_FILE, ledger_problems
from pipelines.tracking.place import ARTIFACTS

_FILE_FIELDS = set(FileEntry.model_fields)
_REMEDY = "remove its folder and run its stage again"


def verify(url: str) -> list[str]:
    """The problems at a URL, one line each; empty if every file matches its digest.

    Checks the manifests in that folder; if it has none, all manifests and promotion ledgers below it. For a
    shard whose bytes changed it names the samples that did.

    Args:
        url: a folder, a manifest, or the folder of a model's promotion ledger.
    """
    storage.check_url(url)
    name = url.rpartition("/")[2]
    if name in MANIFEST_NAMES.values():
        return _verify_one(url, _read(url)) if storage.exists(url) else [f"{url}: missing"]
    here = storage.list_names(url)
    if any(LEDGER_FILE.fullmatch(name) for name in here):
        return ledger_problems(url)
    names = [name for name in here if name in MANIFEST_NAMES.values()]
    if names:
        urls = [storage.join(url, name) for name in names]
        return [problem for each in urls for problem in _verify_one(each, _read(each))]
    manifests, ledgers, problems = _below(url)
    if not manifests and not ledgers and not problems:
        return [f"{url}: no manifest ({', '.join(sorted(MANIFEST_NAMES.values()))}) in or below it"]
    problems += [problem for folder in ledgers for problem in ledger_problems(folder)]
    contents = {manifest: _read(manifest) for manifest in manifests}
    problems += [problem for each in contents.items() for problem in _verify_one(*each)]
    return problems + _lost_parents(contents.values())


def _below(url: str) -> tuple[list[str], list[str], list[str]]:
    """What is in all folders below.

    Returns:
        Manifests, folders of promotion ledgers, and a line for each folder that lacks the manifest it
        should have.
    """
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
    manifests = [f"{folder}/{n}" for folder, names in folders for n in kinds if n in names]
    ledgers = [folder for folder, names in folders if any(map(LEDGER_FILE.fullmatch, names))]
    return manifests, ledgers, unfinished


class _Links(Config):
    """What connects a manifest with others. Other fields are checked by the readers of each kind."""

    model_config = ConfigDict(extra="ignore")

    kind: str
    digest: str = Field(pattern="^[0-9a-f]{64}$")
    parents: dict[str, str] = {}
    metadata: dict[str, Any] = {}


def _read(url: str) -> dict[str, Any] | str:
    """The JSON object in a manifest, with its links checked; text about the error if it is none."""
    try:
        content = parse_json(storage.read_bytes(url, BUDGET.document_bytes), url, _REMEDY)
        validate(_Links, content, "a manifest", url, _REMEDY)
    except DataError as error:
        return f"{url}: not a manifest ({error})"
    except FileNotFoundError:
        return f"{url}: missing"
    return content


def _lost_parents(contents: Iterable[dict[str, Any] | str]) -> list[str]:
    """A line for each lost input of an evaluation whose feature space exists."""
    known = {c["digest"]: _Links.model_validate(c) for c in contents if isinstance(c, dict)}
    return [
        f"{links.metadata.get('model')}: the {name} {digest[:12]} that its evaluation read are missing"
        for links in known.values()
        if links.kind == "evaluation" and links.parents.get("features") in known
        for name, digest in links.parents.items()
        if digest not in known
    ]


def _verify_one(url: str, content: dict[str, Any] | str) -> list[str]:
    if isinstance(content, str):
        return [content]
    root = url.rpartition("/")[0]
    problems: list[str] = []
    if fingerprint({key: content[key] for key in content if key != "digest"}) != content["digest"]:
        problems = [f"{url}: does not match its own digest; it was changed after it was written"]
    if content["kind"] != "dataset":
        entries = list(_entries(content))
        problems += [f"{url}: {entry}" for entry in entries if isinstance(entry, str)]
        return problems + find_problems(root, [e for e in entries if isinstance(e, FileEntry)])
    try:
        hint = "restore or re-create the dataset"
        manifest = validate(DatasetManifest, content, "a valid dataset manifest", url, hint)
        return [*problems, *dataset_problems(root, manifest)]
    except DataError as error:
        return problems or [str(error)]


def _entries(value: Any) -> Iterator[FileEntry | str]:
    """Every file that a manifest lists, in any of its fields; text about one that is not valid."""
    if isinstance(value, dict):
        fields = cast("dict[str, Any]", value)
        if set(fields) == _FILE_FIELDS:
            try:
                yield FileEntry.model_validate(fields)
            except ValidationError as error:
                reason = error.errors(include_url=False, include_input=False)[0]
                yield f"the file {sanitize(str(fields['path']))[:200]!r} is not valid ({reason['msg']})"
            return
        value = list(fields.values())
    if isinstance(value, list):
        for item in cast("list[Any]", value):
            yield from _entries(item)
