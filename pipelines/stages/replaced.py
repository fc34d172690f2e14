"""What was made of rows that the source lost or changed: a list of it in the version that replaces them.

``retrain/vNNNN/replaced.json`` lists every dataset, model and synthetic dataset of the versions before. They
stay where they are; who may not keep them removes them by this list.
"""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import Field

from genmod import storage
from genmod.budget import BUDGET
from genmod.config import Config, canonical_json
from genmod.documents import parse_document
from genmod.errors import DataError
from genmod.manifest import DatasetManifest, Manifest
from genmod.manifest.folders import VERSIONS_FOLDER
from genmod.manifest.schema import Sha256
from genmod.storage import RelativePath
from pipelines.recipe.context import Context
from pipelines.stages.dataset_versions import versions
from pipelines.stages.version_plan import DatasetVersion

REPLACED_NAME = "replaced.json"
"""File in the folder of a version that replaces the ones before."""

_MOST = 100_000

_MOST_LEVELS = 4
"""A synthetic dataset of a later version is in ``ROOT/retrain/vNNNN/samples/NAME``."""


class ReplacedItem(Config):
    """A dataset, model or synthetic dataset that was made with the rows of an earlier version."""

    kind: str = Field(max_length=40)
    path: RelativePath
    """Of its folder, below the recipe's root."""
    digest: str = Field(pattern=r"^[0-9a-f]{64}$")
    version: int = Field(ge=1, lt=10**9)
    model: Sha256 | None = None
    """Of a synthetic dataset: digest of the model that generated it."""


class ReplacedList(Config):
    """What a version replaces, and why."""

    version: int = Field(ge=2, lt=10**9)
    reason: str = Field(max_length=1000)
    items: tuple[ReplacedItem, ...] = Field(max_length=_MOST, fail_fast=True)

    @property
    def mark(self) -> str:
        """What this list says about each of its items, in words."""
        return f"made with rows that version {self.version} does not have ({self.reason})"


def list_replaced(context: Context, version: DatasetVersion) -> ReplacedList:
    """Write the list of what the versions before were used for, unless it is there, and log it."""
    url = storage.join(version.root, REPLACED_NAME)
    items = [
        item
        for earlier in versions(context)
        if earlier.number < version.number
        for item in _items(context, earlier)
    ]
    made = ReplacedList(version=version.number, reason=version.data.reason, items=tuple(items))
    context.create(url, canonical_json(made.model_dump(mode="json")))
    found = load_replaced(version.root)
    assert found is not None, url
    kinds = [item.kind for item in found.items]
    counts = ", ".join(f"{kinds.count(kind)} x {kind}" for kind in dict.fromkeys(kinds))
    context.progress.log(f"  version {version.number} replaces {counts}: {url} lists them")
    return found


def load_replaced(version_root: str) -> ReplacedList | None:
    """The list of a version; None if it replaces nothing. DataError if it is invalid."""
    url = storage.join(version_root, REPLACED_NAME)
    try:
        data = storage.read_bytes(url, BUDGET.document_bytes)
    except FileNotFoundError:
        return None
    hint = "remove it and run genmod retrain again"
    return parse_document(ReplacedList, data, "a list of what a version replaces", url, hint)


def replaced_by(root: str, digest: str) -> ReplacedList | None:
    """The newest list below a recipe's root that has an item of this digest; None if there is none."""
    folder = storage.join(root, VERSIONS_FOLDER)
    for name in reversed(storage.list_names(folder)):
        found = load_replaced(storage.join(folder, name))
        if found is not None and any(item.digest == digest for item in found.items):
            return found
    return None


def replaced_digests(root: str) -> dict[str, ReplacedList]:
    """Digest of what was replaced below a recipe's root -> the newest list that has it."""
    folder = storage.join(root, VERSIONS_FOLDER)
    lists = [load_replaced(storage.join(folder, name)) for name in storage.list_names(folder)]
    known = [each for each in lists if each is not None]
    known.sort(key=lambda each: each.version)
    return {item.digest: each for each in known for item in each.items}


def find_replaced(url: str, digest: str) -> ReplacedList | None:
    """As :func:`replaced_by`, for a folder at most four levels below its recipe's root."""
    for _ in range(_MOST_LEVELS):
        url, _, name = url.rstrip("/").rpartition("/")
        if not name or not url.strip("/") or url.endswith(":/"):
            return None
        if (found := replaced_by(url, digest)) is not None:
            return found
    return None


def _items(context: Context, version: DatasetVersion) -> Iterator[ReplacedItem]:
    """The dataset of a version, and the models and synthetic datasets that were made of it."""

    def item(kind: str, root: str, digest: str, model: str | None = None) -> ReplacedItem:
        path = root.removeprefix(context.recipe.root.rstrip("/")).lstrip("/")
        return ReplacedItem(
            kind=kind, path=path, digest=digest, version=version.number, model=model
        )

    yield item("dataset", storage.join(version.root, "data"), version.data.digest)
    models = set[str]()
    for name in storage.list_names(storage.join(version.root, "models")):
        root = storage.join(version.root, "models", name)
        if (model := context.snapshot.load(Manifest, root, "model")) is not None:
            models.add(model.digest)
            yield item("model", root, model.digest)
    for folder in storage.list_names(version.root):
        for name in storage.list_names(storage.join(version.root, folder)):
            root = storage.join(version.root, folder, name)
            if storage.exists(storage.join(root, "dataset.json")):
                try:
                    data = context.snapshot.load(DatasetManifest, root, "dataset")
                except DataError:
                    continue
                if data is not None and (model := data.parents.get("model")) in models:
                    yield item("synthetic dataset", root, data.digest, model)
