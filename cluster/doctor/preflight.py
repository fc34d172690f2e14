"""What takes seconds to know of a cluster, checked before work starts there and before a GPU is taken."""

from __future__ import annotations

import time
from typing import Any, cast

from pydantic import ValidationError

from cluster.doctor import checks
from cluster.doctor.calls import CallFailed, results_of
from cluster.doctor.examination import cluster_nodes
from cluster.doctor.facts import Machine, Node, StoreFacts, Versions
from cluster.doctor.finding import Finding, Report
from cluster.doctor.needs import NodeNeeds
from cluster.doctor.store import driver_file
from cluster.doctor.versions import own_versions
from genmod.errors import ConfigError

_ANSWER_S = 30.0
"""How long the nodes may take, in seconds. One that takes longer is left to Ray, which may be starting it."""


def preflight(needs: NodeNeeds) -> None:
    """Check versions, the root, memory, disk and open files of every node that is there. Ray is connected.

    Whether workers fit is not checked: nodes may be on their way, for which each stage waits.

    Raises:
        ConfigError: a finding is fatal; the error names the first and says what to do.
    """
    findings = _findings(needs)
    fatal = [finding for finding in findings if finding.level == "fatal"]
    if fatal:
        first = fatal[0]
        more = f" (and {len(fatal) - 1} more: genmod doctor lists all)" if len(fatal) > 1 else ""
        raise ConfigError(f"{first.node}: {first.check}: {first.text}{more}; {first.remedy}")


def _findings(needs: NodeNeeds) -> list[Finding]:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    nodes = {node.id: node for node in cluster_nodes()}
    task = cast(Any, ray).remote(num_cpus=0, max_retries=0)(_measure)
    with driver_file(needs.root) as (url, content):
        calls = {
            each: task.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(each, soft=False)
            ).remote(url, content, [needs.cache_folder] if needs.cache_folder else [])
            for each in nodes
        }
        results = results_of(calls, time.monotonic() + _ANSWER_S)
    own, findings = own_versions(), list[Finding]()
    for each, result in results.items():
        report = Report(nodes[each].name)
        _judge(report, nodes[each], result, own, needs)
        findings += report.findings
    return findings


def _measure(url: str, content: bytes, folders: list[str]) -> dict[str, Any]:
    """On a node: its versions, machine and view of the root, without PyTorch."""
    from cluster.compat import session_folder
    from cluster.doctor.machine import measure_machine
    from cluster.doctor.store import sees

    return {
        "versions": own_versions().model_dump(),
        "machine": measure_machine(folders, session_folder()).model_dump(),
        "store": sees(url, content).model_dump(),
    }


def _judge(report: Report, node: Node, result: Any, own: Versions, needs: NodeNeeds) -> None:
    """Findings about one node; none if it did not answer, unless genmod is missing there."""
    if isinstance(result, CallFailed):
        if checks.is_missing(str(result)):
            checks.check_answer(report, str(result))
        return
    try:
        checks.check_versions(report, own, Versions.model_validate(result["versions"]))
        checks.check_machine(report, node, Machine.model_validate(result["machine"]), needs)
        checks.check_store(report, needs.root, StoreFacts.model_validate(result["store"]))
    except ValidationError:  # the facts of another genmod, whose versions came first
        return
