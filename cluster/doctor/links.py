"""Measures links and the all-reduce between the doctor's actors."""

from __future__ import annotations

import itertools
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cluster.doctor.calls import CallFailed, end_examiners, results_of, start_examiner
from cluster.doctor.comparisons import Link, check_links
from cluster.doctor.facts import Node
from cluster.doctor.finding import Report

_MOST_PAIRED = 8
"""With more nodes, only neighbours in a ring are measured, each with two others."""

_STEP_S = 25.0
"""Longest time of one step, in seconds."""

_REPEATS = 3


def examine_links(
    reports: Mapping[str, Report],
    nodes: Sequence[Node],
    actors: Mapping[str, Any],
    workers: int,
    folder: Path | None,
) -> None:
    """All-reduce over one process of each node, and the speed of the links between them.

    On a cluster of one node the group has two processes there, if the recipe has so many workers.

    Args:
        reports: by the node's id.
        nodes: that take part.
        actors: an actor on each of them.
        workers: of the recipe's largest stage.
        folder: a private folder if Ray is local, else None.
    """
    members = [(node, actors[node.id]) for node in nodes]
    extra: list[Any] = []
    if len(nodes) == 1 and workers > 1 and not (_has_gpus(nodes[0]) and _gpus(nodes[0]) < 2):
        extra = [start_examiner(nodes[0], {})]
        members.append((nodes[0], extra[0]))
    try:
        if len(members) > 1:
            _examine(reports, members, folder)
        elif members:
            reports[nodes[0].id].ok("all-reduce", "one worker, nothing to reduce")
    finally:
        end_examiners(extra)


def _examine(
    reports: Mapping[str, Report], members: Sequence[tuple[Node, Any]], folder: Path | None
) -> None:
    size = len(members)
    on_gpus = all(_has_gpus(node) for node, _ in members)
    backend = "NCCL" if on_gpus else "gloo"
    remedy = (
        "let the cluster's nodes reach each other on all ports; for several networks set "
        "GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME where Ray is started"
    )
    try:
        place = _meeting_place(members[0], folder)
        joined: dict[int, Any] = {}
        for rank, (node, actor) in enumerate(members):
            number = sum(other.id == node.id for other, _ in members[:rank])
            device = f"cuda:{number}" if on_gpus else "cpu"
            joined[rank] = actor.join.remote(rank, size, place, device)
        _require(results_of(joined, time.monotonic() + _STEP_S), members)
        links = _measure_pairs(members) if len({node.id for node, _ in members}) > 1 else []
        check_links(reports, links)
        repeats = 1 if any(link.is_slow for link in links) else _REPEATS
        reduced = {
            rank: actor.all_reduce.remote(size, repeats) for rank, (_, actor) in enumerate(members)
        }
        rates = _require(results_of(reduced, time.monotonic() + _STEP_S), members)
        text = f"{backend}, {size} workers, {min(rates.values()):,.0f} MB/s"
        for node in {node.id for node, _ in members}:
            reports[node].ok("all-reduce", text)
        left = {rank: actor.leave.remote() for rank, (_, actor) in enumerate(members)}
        results_of(left, time.monotonic() + _STEP_S)
    except _LinkProblem as problem:
        for node_id, reason in problem.reasons.items():
            reports[node_id].fatal("all-reduce", f"{backend} fails: {reason}", remedy)


class _LinkProblem(Exception):
    """A step of the group failed.

    Args:
        reasons: node -> why.
    """

    def __init__(self, reasons: Mapping[str, str]) -> None:
        super().__init__(str(reasons))
        self.reasons = reasons


def _require(results: Mapping[int, Any], members: Sequence[tuple[Node, Any]]) -> dict[int, Any]:
    """The results by rank. Raises _LinkProblem if one is missing."""
    reasons = {
        members[rank][0].id: str(result)
        for rank, result in results.items()
        if isinstance(result, CallFailed)
    }
    if reasons:
        raise _LinkProblem(reasons)
    return dict(results)


def _meeting_place(first: tuple[Node, Any], folder: Path | None) -> str:
    """Where the processes find each other."""
    if folder is not None:
        return str(folder / f"doctor-{uuid.uuid4().hex}")
    node, actor = first
    ports = results_of({0: actor.free_port.remote()}, time.monotonic() + _STEP_S)
    host = f"[{node.address}]" if ":" in node.address else node.address
    return f"{host}:{_require(ports, [first])[0]}"


def _measure_pairs(members: Sequence[tuple[Node, Any]]) -> list[Link]:
    """Links between nodes, one pair after the other so that none disturbs another."""
    size = len(members)
    pairs = itertools.combinations(range(size), 2)
    if size > _MOST_PAIRED:
        pairs = ((rank, (rank + 1) % size) for rank in range(size))
    links: list[Link] = []
    for one, other in pairs:
        calls = {
            one: members[one][1].pair.remote(other, True),
            other: members[other][1].pair.remote(one, False),
        }
        trip_s, mb_s = _require(results_of(calls, time.monotonic() + _STEP_S), members)[one]
        links.append(Link((members[one][0].id, members[other][0].id), trip_s, mb_s))
    return links


def _gpus(node: Node) -> int:
    return 0 if node.facts is None else len(node.facts.gpus.names)


def _has_gpus(node: Node) -> bool:
    return _gpus(node) > 0
