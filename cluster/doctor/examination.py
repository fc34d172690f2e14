"""Examines all nodes of a cluster: starts an actor on each, gathers facts, and judges them."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from pydantic import ValidationError

from cluster.doctor import checks, comparisons
from cluster.doctor.calls import CallFailed, end_examiners, results_of, start_examiner
from cluster.doctor.facts import Node, NodeClock, NodeFacts, Versions
from cluster.doctor.finding import DRIVER, Finding, Report
from cluster.doctor.links import examine_links
from cluster.doctor.needs import NodeNeeds
from cluster.doctor.store import driver_file, short_retries
from cluster.doctor.versions import own_versions
from cluster.session import local_folder
from genmod.errors import ConfigError, GenmodError
from genmod.numerics import PORTABLE_VARIABLES

_START_S = 25.0
"""How long the processes on the nodes may take to start, in seconds."""

_FACTS_S = 40.0
"""How long the measurements on a node may take, in seconds."""

_CLOCK_CALLS = 5

_UNEXPECTED = 2
"""Ray's DeathReason of a node that was not removed on purpose."""

Log = Callable[[str], None]


def cluster_nodes() -> list[Node]:
    """The nodes of the cluster that can run workers. Ray is connected."""
    import ray

    alive = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0)]
    names = Counter(_name(node) for node in alive)
    return [
        Node(
            id=node["NodeID"],
            name=_name(node) if names[_name(node)] == 1 else f"{_name(node)} {node['NodeID'][:6]}",
            address=node["NodeManagerAddress"],
            cpus=node["Resources"]["CPU"],
            gpus=node["Resources"].get("GPU", 0),
            object_store_bytes=int(node["Resources"].get("object_store_memory", 0)),
            labels=node.get("Labels", {}),
        )
        for node in alive
    ]


def lost_nodes() -> list[Finding]:
    """A warning for each node that Ray has lost, unless its machine is back. Ray is connected."""
    import ray

    nodes = ray.nodes()
    here = {node["NodeManagerAddress"] for node in nodes if node["Alive"]}
    lost = {
        node["NodeManagerAddress"]: node
        for node in nodes
        if not node["Alive"]
        and node["NodeManagerAddress"] not in here
        and node.get("DeathReason") == _UNEXPECTED
    }
    findings: list[Finding] = []
    for node in lost.values():
        report = Report(_name(node))
        reason = str(node.get("DeathReasonMessage") or "unknown")
        report.warning(
            "answer",
            f"Ray has lost this node: {reason}"[:300],
            "start its machine and Ray there again, or work without it",
        )
        findings += report.findings
    return findings


def _name(node: Mapping[str, Any]) -> str:
    return f"{node.get('NodeManagerHostname', 'node')} ({node['NodeManagerAddress']})"


def check_fits(nodes: Sequence[Node], needs: NodeNeeds) -> None:
    """Check that one worker fits on some node.

    Raises:
        ConfigError: it fits on none; the error says what the largest node has.
    """
    labelled = [
        node for node in nodes if all(node.labels.get(k) == v for k, v in needs.labels.items())
    ]
    if any(needs.workers_on(node.cpus, node.gpus) for node in labelled):
        return
    request = needs.request
    wanted = f"{request.cpus:g} CPUs and {request.gpus:g} GPUs"
    if needs.labels:
        wanted += f" and the labels {', '.join(f'{k}={v}' for k, v in needs.labels.items())}"
    largest = max(labelled or nodes, key=lambda node: (node.gpus, node.cpus), default=None)
    has = (
        "it has no nodes with CPUs"
        if largest is None
        else f"the largest{'' if labelled else ' without them'} is {largest.name} with {largest.cpus:g} CPUs "
        f"and {largest.gpus:g} GPUs"
    )
    raise ConfigError(
        f"no node of the cluster has the {wanted} that one worker requests; {has}; change "
        "cluster.cpus_per_worker, cluster.gpus_per_worker or cluster.labels, or add such a node"
    )


def examine(needs: NodeNeeds, log: Log) -> list[Finding]:
    """All findings of the cluster's nodes. Ray is connected.

    Args:
        needs: of the recipe.
        log: receives a line for each step.

    Raises:
        ConfigError: no node can run a worker.
    """
    nodes = cluster_nodes()
    check_fits(nodes, needs)
    reports = {node.id: Report(node.name) for node in nodes}
    driver = Report(DRIVER)
    environment = PORTABLE_VARIABLES if needs.numerics == "portable" else {}
    log(f"  starting a process on each of {len(nodes)} nodes")
    actors = {node.id: start_examiner(node, environment) for node in nodes}
    try:
        nodes = _with_versions(nodes, actors)
        answering = [node for node in nodes if not node.problem]
        log("  measuring clocks, machines, storage and devices")
        answering = _with_clocks(answering, actors)
        answering = _with_facts(answering, actors, needs, driver)
        _check_each([*answering, *(n for n in nodes if n.problem)], reports, needs)
        comparisons.check_clocks(reports, answering)
        comparisons.check_numerics(reports, answering, needs.numerics, needs.labels)
        comparisons.check_known_answers(reports, answering)
        log("  reducing between nodes")
        examine_links(
            reports,
            [node for node in answering if _can_reduce(node)],
            actors,
            needs.workers,
            local_folder(),
        )
    finally:
        end_examiners(list(actors.values()))
    found = [f for report in (driver, *reports.values()) for f in report.findings]
    return [*found, *lost_nodes()]


def _with_versions(nodes: Sequence[Node], actors: Mapping[str, Any]) -> list[Node]:
    """Each node with its versions, or with the reason why it does not answer."""
    calls = {node.id: actors[node.id].versions.remote() for node in nodes}
    results = results_of(calls, time.monotonic() + _START_S)
    found: list[Node] = []
    for node in nodes:
        result = results[node.id]
        if isinstance(result, CallFailed):
            found.append(node.having(problem=str(result)))
            continue
        try:
            found.append(node.having(versions=Versions.model_validate(result)))
        except ValidationError:
            found.append(node.having(problem="its genmod is another version"))
    return found


def _with_clocks(nodes: Sequence[Node], actors: Mapping[str, Any]) -> list[Node]:
    """Each node with its clock, by the shortest of some round trips."""
    import ray
    from ray.exceptions import RayError

    found: list[Node] = []
    for node in nodes:
        best: NodeClock | None = None
        for _ in range(_CLOCK_CALLS):
            start_s, start = time.time(), time.perf_counter()
            try:
                there_s = cast(float, ray.get(actors[node.id].now.remote(), timeout=_START_S))
            except (RayError, TimeoutError):
                break
            half_s = (time.perf_counter() - start) / 2
            if best is None or half_s < best.error_s:
                best = NodeClock(offset_s=there_s - start_s - half_s, error_s=half_s)
        found.append(node.having(clock=best))
    return found


def _with_facts(
    nodes: Sequence[Node], actors: Mapping[str, Any], needs: NodeNeeds, driver: Report
) -> list[Node]:
    """Each node with its facts. Those of nodes with other code may be missing."""
    folders = [needs.cache_folder] if needs.cache_folder else []
    device = needs.request.device
    calls: dict[Any, Any] = {}
    try:
        with short_retries(), driver_file(needs.root) as (url, content):
            for node in nodes:
                actor = actors[node.id]
                calls[node.id, "machine"] = actor.machine.remote(folders)
                calls[node.id, "store"] = actor.store.remote(needs.root, url, content)
                if device == "cuda":
                    calls[node.id, "gpus"] = actor.gpus.remote()
                calls[node.id, "answers"] = actor.answers.remote(device)
            results = results_of(calls, time.monotonic() + _FACTS_S)
    except (GenmodError, OSError) as error:
        driver.fatal(
            "storage",
            str(error) or type(error).__name__,
            "make the root writable for the user of this command, or choose another one: --set root=URL",
        )
        return list(nodes)
    found: list[Node] = []
    for node in nodes:
        values = {part: value for (owner, part), value in results.items() if owner == node.id}
        failed = [f"{part}: {v}" for part, v in values.items() if isinstance(v, CallFailed)]
        try:
            if failed:
                found.append(node.having(problem="; ".join(failed)))
            else:
                found.append(node.having(facts=NodeFacts.model_validate(values)))
        except ValidationError:  # another genmod, which its versions say
            found.append(node)
    return found


def _check_each(nodes: Sequence[Node], reports: Mapping[str, Report], needs: NodeNeeds) -> None:
    """Findings about each node by itself."""
    own, is_alone = own_versions(), local_folder() is not None
    stores = [node.facts.store for node in nodes if node.facts is not None]
    best_mb_s = max((min(each.write_mb_s, each.read_mb_s) for each in stores), default=0.0)
    drivers = {n.facts.gpus.driver for n in nodes if n.facts is not None and n.facts.gpus.names}
    for node in nodes:
        report = reports[node.id]
        if node.versions is not None:
            checks.check_versions(report, own, node.versions)
        if node.problem:
            checks.check_answer(report, node.problem)
        if node.facts is None:
            continue
        checks.check_machine(report, node, node.facts.machine, needs)
        checks.check_network(report, node.facts.machine, is_alone=is_alone)
        checks.check_store(report, needs.root, node.facts.store)
        checks.check_store_speed(report, node.facts.store, best_mb_s)
        if needs.request.device == "cuda":
            checks.check_gpus(report, node, node.facts.gpus, drivers)


def _can_reduce(node: Node) -> bool:
    """Whether other nodes can connect to it."""
    return node.facts is not None and not (
        node.facts.machine.is_loopback_only and local_folder() is None
    )
