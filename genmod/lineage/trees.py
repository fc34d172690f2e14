"""What a node was made from, and what was made with it, as steps of a walk through the graph.

A walk visits each node once, in depth first order, so it is a tree with a depth for each step. A walk from a
row leaves out what its row did not reach: scores of another split, a selection that dropped it, models of
splits that they do not read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from genmod.errors import sanitize
from genmod.lineage.nodes import REPLACES, SOURCE, Lineage, LineageNode
from genmod.lineage.rows import LineageRow, RowPlaces

_READS_ROWS: Mapping[str, tuple[str, ...]] = {"model": ("train", "val"), "features": ("train",)}
"""Kind -> splits whose rows it reads; others read all. Rows of ``val`` choose weights, but train none."""

_MOST_INDENTED = 40
"""Levels that are shown by spaces."""


@dataclass(frozen=True)
class LineageStep:
    """A node as a walk comes to it."""

    depth: int
    edge: str
    """Name of the input that leads here; empty at the start."""
    text: str
    """The node in words."""
    node: LineageNode | None
    """None for the source of a dataset, and for what was not found."""
    of: str
    """Digest of the node from which the walk came; empty at the start."""
    note: str = ""
    is_missing: bool = False
    is_repeated: bool = False
    """Its own steps follow where it occurs first."""

    @property
    def line(self) -> str:
        """The step as a line of text."""
        edge = f"{sanitize(self.edge[:80])}: " if self.edge else ""
        note = f" ({self.note})" if self.note else ""
        again = " (see above)" if self.is_repeated else ""
        return f"{'  ' * min(self.depth, _MOST_INDENTED)}{edge}{self.text}{note}{again}"

    def as_json(self) -> dict[str, Any]:
        """The step as JSON values."""
        values: dict[str, Any] = {"depth": self.depth, "edge": self.edge, "of": self.of}
        values |= {"text": self.text} if self.node is None else self.node.as_json()
        flags = {"note": self.note, "missing": self.is_missing, "repeated": self.is_repeated}
        return values | {name: value for name, value in flags.items() if value}


def node_text(node: LineageNode) -> str:
    """A node in words: kind, start of the digest, folder, facts."""
    about = f" ({node.about})" if node.about else ""
    kind = "synthetic dataset" if node.is_synthetic else node.kind
    return f"{sanitize(kind)} {node.digest[:12]} at {node.url}{about}"


_Edges = Sequence[tuple[str, str]]
"""(name, digest) of what a node leads to."""


def sources_of(
    lineage: Lineage, node: LineageNode, row: LineageRow | None = None
) -> list[LineageStep]:
    """What a node was made from, to the sources.

    Args:
        lineage: all nodes.
        node: where to start.
        row: of a dataset: the datasets on the way say where they have it.
    """
    places = None if row is None else RowPlaces(row)

    def edges(each: LineageNode) -> _Edges:
        return [(name, each.parents[name]) for name in sorted(each.parents) if name != REPLACES]

    def note(each: LineageNode, _: str) -> str:
        if places is None or each.dataset is None:
            return ""
        found = places.row_in(each)
        return "" if found is None else found.text

    return _walk(lineage, node, edges, note)


def uses_of(
    lineage: Lineage, node: LineageNode, row: LineageRow | None = None
) -> list[LineageStep]:
    """What was made with a node, directly or by way of others.

    Args:
        lineage: all nodes.
        node: where to start.
        row: of the node, if it is a dataset: then only what was made with this row.
    """
    places = None if row is None else RowPlaces(row)

    def edges(each: LineageNode) -> _Edges:
        return [
            (name, child.digest)
            for name, child in lineage.children.get(each.digest, ())
            if name != REPLACES and (places is None or _reaches(places, each, name, child))
        ]

    def note(each: LineageNode, edge: str) -> str:
        return "" if places is None else _use_note(lineage, places, each)

    return _walk(lineage, node, edges, note)


def _walk(
    lineage: Lineage,
    start: LineageNode,
    edges: Callable[[LineageNode], _Edges],
    note: Callable[[LineageNode, str], str],
) -> list[LineageStep]:
    steps: list[LineageStep] = []
    seen: set[str] = set()
    todo: list[tuple[int, str, str, str]] = [(0, "", start.digest, "")]
    while todo:
        depth, edge, digest, of = todo.pop()
        each = None if edge == SOURCE else lineage.nodes.get(digest)
        if each is None:
            what = "fingerprint" if edge == SOURCE else "not found:"
            text = f"{what} {sanitize(digest[:12])}"
            steps.append(LineageStep(depth, edge, text, None, of, is_missing=edge != SOURCE))
            continue
        if digest in seen:
            steps.append(LineageStep(depth, edge, node_text(each), each, of, is_repeated=True))
            continue
        seen.add(digest)
        steps.append(LineageStep(depth, edge, node_text(each), each, of, note(each, edge)))
        todo += [(depth + 1, name, other, digest) for name, other in reversed(edges(each))]
    return steps


def _reaches(places: RowPlaces, parent: LineageNode, edge: str, child: LineageNode) -> bool:
    """Whether the row of a real dataset went into something that was made with the dataset."""
    if parent.dataset is None or parent.is_synthetic:
        return True
    if (row := places.row_in(parent)) is None:
        return True
    if child.dataset is not None and not child.is_synthetic:
        return places.row_in(child) is not None
    if child.kind == "scores" and edge == "dataset":
        return child.split == row.split
    return row.split in _READS_ROWS.get(child.kind, (row.split,))


def _use_note(lineage: Lineage, places: RowPlaces, node: LineageNode) -> str:
    """How a model or a dataset uses the row."""
    if node.dataset is not None and not node.is_synthetic:
        row = places.row_in(node)
        return "without the row; selected by what used it" if row is None else f"in {row.split}"
    if node.kind != "model":
        return ""
    splits: set[str] = set()
    for name, digest in node.parents.items():
        data = lineage.nodes.get(digest)
        if name != "start" and data is not None and data.dataset is not None:
            row = places.row_in(data)
            splits |= set() if row is None else {row.split}
    if "train" in splits:
        return "trained on the row"
    return "validated with the row" if "val" in splits else "starts from a model that used the row"
