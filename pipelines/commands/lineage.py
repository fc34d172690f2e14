"""``genmod lineage URL``: what something was made from, to the sources, and what was made with it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from genmod import storage
from genmod.errors import ConfigError, DataError
from genmod.lineage.nodes import Lineage, LineageNode, read_lineage
from genmod.lineage.rows import LineageRow, RowQuery, ScoredRow, find_row, find_score
from genmod.lineage.trees import LineageStep, sources_of, uses_of
from genmod.manifest import MANIFEST_NAMES
from genmod.manifest.folders import VERSIONS_FOLDER

_VERSION = re.compile(rf"(.+?)/{VERSIONS_FOLDER}/v[0-9]{{4,9}}(/.*)?")

_LAYOUT = re.compile(
    r"(.+?)/(?:data|features|report|(?:models|samples|scores|calibration|evaluation|decision|drift|synthetic)/.+)"
)
"""A folder in the layout of a run, of which the root is the first group."""


def lineage_of(
    url: str, query: RowQuery | None = None, roots: Sequence[str] = ()
) -> tuple[dict[str, Any], list[str]]:
    """The lineage of what is at a URL, both ways: as JSON values, and as lines of text.

    Args:
        url: folder of a dataset, model, scores, evaluation, report or decision; its manifest; or a file
            in it.
        query: a row of the dataset or scores: then only what was made with this row.
        roots: folders below which manifests are looked for; by default the root of the run that has
            ``url``.

    Raises:
        ConfigError: nothing published is at the URL, or there is no such row.
        DataError: its manifest is broken.
    """
    for each in (url, *roots):
        storage.check_url(each)
    folder, name = _place(storage.resolve(url))
    searched = [storage.resolve(root) for root in roots] or [root_of(folder)]
    found = read_lineage(searched)
    node = _node_at(found, folder, name)
    row: LineageRow | None = None
    scored: ScoredRow | None = None
    if query is not None:
        if node.dataset is not None:
            row = find_row(node, query)
        elif node.kind == "scores":
            scored = find_score(node, query)
            row = _row_of_score(found, node, scored)
        else:
            raise ConfigError(
                f"lineage: {folder} is {node.kind}, which has no rows; leave out --key and --index"
            )
    sources = sources_of(found, node, row)
    uses = uses_of(found, node, row if node.dataset is not None else None)
    missing = sorted({f"{step.edge}: {step.text}" for step in sources if step.is_missing})
    lines = [line for line in (row and row.text, scored and scored.text) if line]
    lines += ["made from:", *(f"  {step.line}" for step in sources)]
    lines += ["used for:", *(f"  {line}" for line in _uses_lines(uses))]
    if missing:
        lines.append(
            f"incomplete: {len(missing)} inputs are not below {', '.join(searched)}; name their folders with "
            "--root, once for each"
        )
    lines += [f"skipped: {problem}" for problem in found.problems]
    values = {
        "output": folder,
        "fingerprint": None,
        "row": None if row is None else row.as_json(),
        "score": None if scored is None else scored.as_json(),
        "made_from": [step.as_json() for step in sources],
        "used_for": [step.as_json() for step in uses],
        "missing": missing,
        "problems": list(found.problems),
        "roots": searched,
        "exit_code": 1 if missing or found.problems else 0,
    }
    return values, lines


def row_query(key: str | None, index: int | None, split: str | None) -> RowQuery | None:
    """The row that a person asks for; None if for all. ConfigError if the options contradict each other."""
    if key is not None and index is not None:
        raise ConfigError("lineage: give either --key or --index, since each names one row")
    if key is None and index is None:
        if split is not None:
            raise ConfigError("lineage: --split needs --key or --index; give one, or leave it out")
        return None
    return RowQuery(key, index, split)


def root_of(folder: str) -> str:
    """The root of the run that a folder is in, by the layout of runs; the folder's own one if it is in none.

    >>> root_of("s3://bucket/run/retrain/v0002/models/vae")
    's3://bucket/run'
    """
    for pattern in (_VERSION, _LAYOUT):
        if match := pattern.fullmatch(folder):
            return match[1]
    return folder.rpartition("/")[0] or folder


def _place(url: str) -> tuple[str, str | None]:
    """The folder of a URL with its manifest, and the manifest's name if the URL says it."""
    folder, _, name = url.rpartition("/")
    if name in MANIFEST_NAMES.values():
        return folder, name
    names = set(MANIFEST_NAMES.values())
    if names & set(storage.list_names(url)):
        return url, None
    if folder and names & set(storage.list_names(folder)) and storage.exists(url):
        return folder, None
    raise ConfigError(
        f"lineage: nothing published is at {url} (no {', '.join(sorted(names))}); give the folder of a "
        "dataset, model, scores, evaluation, report or decision"
    )


def _node_at(found: Lineage, folder: str, name: str | None) -> LineageNode:
    own = folder.removeprefix("file://")
    here = [node for node in found.nodes.values() if node.url == own]
    if name is not None:
        here = [node for node in here if MANIFEST_NAMES.get(node.kind) == name]
    if len(here) == 1:
        return here[0]
    if here:
        kinds = ", ".join(sorted(MANIFEST_NAMES[node.kind] for node in here))
        raise ConfigError(f"lineage: {folder} has several manifests ({kinds}); give the URL of one")
    for problem in found.problems:
        if problem.startswith(own):
            raise DataError(problem)
    raise ConfigError(
        f"lineage: the manifest at {folder} is a copy of another one, or not below the given --root; give "
        "that folder, or its root"
    )


def _row_of_score(found: Lineage, node: LineageNode, scored: ScoredRow) -> LineageRow | None:
    """The row that was scored, in the dataset of the scores; None if that was not found."""
    dataset = found.nodes.get(node.parents.get("dataset", ""))
    if dataset is None or dataset.dataset is None:
        return None
    return find_row(dataset, RowQuery(key=scored.key))


def _uses_lines(uses: Sequence[LineageStep]) -> list[str]:
    lines = [step.line for step in uses]
    return lines if len(lines) > 1 else [*lines, "  nothing that was found"]
