"""The manifests below some folders as nodes of a graph: each has the digests of what it was made from."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from pydantic import ConfigDict, Field

from genmod import storage
from genmod.budget import BUDGET
from genmod.config import Config, fingerprint
from genmod.documents import parse_json, validate
from genmod.errors import DataError, sanitize
from genmod.manifest import MANIFEST_NAMES, DatasetManifest, FileEntry, Manifest
from genmod.scoring.receipt import table_entries

SOURCE = "source"
"""Name of the parent of a dataset that is no manifest: the fingerprint of its source."""

REPLACES = "replaces"
"""Name of the parent of a dataset that it was made in place of, without any of its files."""

_REMEDY = "restore it, or remove its folder and run its stage again"

_FACT_CHARS = 200
"""Characters of a text that is shown of a manifest."""


class _Links(Config):
    """What connects a manifest with others. Other fields are checked by the readers of each kind."""

    model_config = ConfigDict(extra="ignore")

    kind: str = Field(max_length=40)
    digest: str = Field(pattern="^[0-9a-f]{64}$")
    parents: dict[str, str] = Field(default={}, max_length=100_000)
    metadata: dict[str, Any] = {}


@dataclass(frozen=True)
class LineageNode:
    """A published manifest, as far as lineage needs it."""

    url: str
    """URL of its folder."""
    kind: str
    digest: str
    parents: Mapping[str, str]
    about: str
    """What it is, in a few words."""
    split: str | None = None
    """Split of the rows that scores are of."""
    dataset: DatasetManifest | None = field(default=None, repr=False)
    """The whole manifest, if it is a dataset."""
    tables: tuple[FileEntry, ...] = field(default=(), repr=False)
    """The tables, if it is of scores."""

    @property
    def is_synthetic(self) -> bool:
        """Whether a model made the images."""
        return self.dataset is not None and "sample" in self.dataset.metadata

    def as_json(self) -> dict[str, Any]:
        """The node as JSON values, without its edges."""
        return {"kind": self.kind, "digest": self.digest, "url": self.url, "about": self.about}


@dataclass(frozen=True)
class Lineage:
    """All nodes that were found, by digest."""

    nodes: Mapping[str, LineageNode]
    problems: Sequence[str]
    """A line for each manifest that could not be read."""

    @cached_property
    def children(self) -> Mapping[str, Sequence[tuple[str, LineageNode]]]:
        """Digest -> (name of the edge, node) of everything that was made with it, in the order of URLs."""
        found: dict[str, list[tuple[str, LineageNode]]] = defaultdict(list)
        for node in self.nodes.values():
            for name, digest in node.parents.items():
                if name != SOURCE:
                    found[digest].append((name, node))
        return found


def read_lineage(roots: Sequence[str]) -> Lineage:
    """Read all manifests below some folders, each once.

    A manifest that is broken or was altered is a problem, and no node. Of equal ones in several folders the
    first counts.
    """
    nodes: dict[str, LineageNode] = {}
    problems: list[str] = []
    for url in _manifest_urls(roots):
        try:
            node = read_node(url)
        except DataError as error:
            problems.append(str(error))
        else:
            nodes.setdefault(node.digest, node)
    return Lineage(nodes, problems)


def read_node(url: str) -> LineageNode:
    """The node of one manifest. DataError if it is broken, or was altered."""
    content = parse_json(storage.read_bytes(url, BUDGET.document_bytes), url, _REMEDY)
    links = validate(_Links, content, "a manifest", url, _REMEDY)
    if fingerprint({key: content[key] for key in content if key != "digest"}) != links.digest:
        raise DataError(f"{url} does not match its own digest: it was changed after it was written")
    dataset = None
    if links.kind == "dataset":
        dataset = validate(DatasetManifest, content, "a valid dataset manifest", url, _REMEDY)
    split, tables = None, ()
    if links.kind == "scores":
        split = links.metadata.get("split")
        manifest = validate(Manifest, content, "a valid scores manifest", url, _REMEDY)
        tables = table_entries(manifest)
    return LineageNode(
        url=url.rpartition("/")[0],
        kind=links.kind,
        digest=links.digest,
        parents=links.parents,
        about=_about(links.kind, links.metadata, dataset),
        split=split if isinstance(split, str) else None,
        dataset=dataset,
        tables=tables,
    )


def _manifest_urls(roots: Sequence[str]) -> Iterator[str]:
    """Each manifest once, below each root in the order of URLs, whatever order the store lists them in."""
    seen: set[str] = set()
    names = set(MANIFEST_NAMES.values())
    for root in roots:
        found: list[str] = []
        for file in storage.walk_files(root):
            url = file.removeprefix("file://")
            # MLflow keeps copies of manifests without the files that they list.
            is_copy = "/artifacts/" in file.removeprefix(f"file://{root}").removeprefix(root)
            if url.rpartition("/")[2] in names and url not in seen and not is_copy:
                seen.add(url)
                found.append(url)
        yield from sorted(found)


def _about(kind: str, metadata: Mapping[str, Any], dataset: DatasetManifest | None) -> str:
    if dataset is not None:
        return ", ".join(_dataset_facts(dataset))
    facts: Collection[Any] = ()
    if kind == "scores":
        facts = [metadata.get("n"), "rows of", metadata.get("split"), metadata.get("estimator")]
    elif kind == "decision":
        facts = ["promote" if metadata.get("promote") is True else "do not promote"]
    elif kind in ("evaluation", "drift"):
        facts = [metadata.get("model")]
    return " ".join(_text(fact) for fact in facts if fact is not None)


def _dataset_facts(dataset: DatasetManifest) -> Iterator[str]:
    rows = sum(shard.rows for shard in dataset.shards)
    if "sample" in dataset.metadata:
        yield f"{rows:,} samples"
    else:
        yield f"{rows:,} rows"
        yield f"version {_text(dataset.metadata.get('version', 1))}"
    selection: Any = dataset.metadata.get("selection")
    if isinstance(selection, dict):
        yield f"selected by {_text(selection.get('condition'))}"  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType]
    if "source" in dataset.metadata:
        yield f"from {_text(dataset.metadata['source'])}"


def _text(value: Any) -> str:
    return sanitize(str(value)[:_FACT_CHARS])
