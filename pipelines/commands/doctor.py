"""``genmod doctor``: whether the nodes of a cluster can run a recipe."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any

from cluster import session
from cluster.doctor.checks import STORE_REMEDY
from cluster.doctor.examination import examine
from cluster.doctor.finding import DRIVER, Finding, Report, is_fatal
from cluster.doctor.needs import NodeNeeds
from cluster.doctor.store import short_retries
from genmod.errors import StorageError, StoreUnavailable
from genmod.terminal import print_line
from pipelines.commands.text_table import text_table
from pipelines.recipe.checks import check_recipe, data_of
from pipelines.recipe.context import Context
from pipelines.recipe.needs import node_needs
from pipelines.recipe.remote_paths import check_paths
from pipelines.stages.run import STEPS
from pipelines.tracking.probe import check_tracking

_DRIVERS_OWN = ("tracking.", "promote.")
"""Sections of the recipe that only this machine uses."""

_MOST_NAMED = 3
"""Texts of nodes on which a check found nothing, in the table."""


def doctor(context: Context) -> dict[str, Any]:
    """Examine every node that the recipe would use, and print what was found.

    Returns:
        the command's JSON result, with ``findings``.

    Raises:
        ConfigError: the recipe is refused before any node is examined, or fits no node.
    """
    start_s = time.monotonic()
    recipe = context.recipe
    address = session.address_of(recipe.cluster)
    if address not in (session.LOCAL, session.AUTO):
        host = address.removeprefix("ray://").rpartition(":")[0].strip("[]")
        check_paths(recipe, host, lambda key: not key.startswith(_DRIVERS_OWN))
    driver = Report(DRIVER)
    needs = _needs(context, driver)
    found: list[Finding] = []
    if needs is not None:
        context.connect()
        found = examine(needs, context.progress.log)
    context.progress.log("  trying MLflow")
    check_tracking(context.tracker, driver)
    findings = [*driver.findings, *found]
    fatal, nodes = is_fatal(findings), sorted({finding.node for finding in findings} - {DRIVER})
    for line in finding_lines(findings):
        print_line(line, sys.stdout)
    print_line(_summary(findings, len(nodes), time.monotonic() - start_s), sys.stdout)
    return {
        "stage": "doctor",
        "status": "failed" if fatal else "done",
        "output": recipe.root,
        "fingerprint": None,
        "nodes": nodes,
        "findings": [finding.model_dump() for finding in findings],
        "exit_code": 1 if fatal else 0,
    }


def _needs(context: Context, driver: Report) -> NodeNeeds | None:
    """What the recipe needs of each node; None, with a finding, if the driver itself has no store."""
    try:
        with short_retries():
            models = check_recipe(context, data_of(context), tuple(STEPS))
    except (StorageError, StoreUnavailable) as error:
        driver.fatal("storage", f"{error}; the nodes were not examined", STORE_REMEDY)
        return None
    return node_needs(context, models)


def finding_lines(findings: Iterable[Finding]) -> list[str]:
    """A table: one row of each check that found nothing, then one of each other finding with its remedy."""
    sound: dict[str, list[Finding]] = {}
    problems: list[Finding] = []
    for finding in findings:
        if finding.level == "ok":
            sound.setdefault(finding.check, []).append(finding)
        else:
            problems.append(finding)
    rows = [("ok", check, _nodes(each), _texts(each)) for check, each in sound.items()]
    order = ("warning", "fatal")
    for each in sorted(problems, key=lambda finding: order.index(finding.level)):
        rows.append((each.level, each.check, each.node, f"{each.text}; {each.remedy}"))
    return text_table(("level", "check", "node", "what"), rows)


def _nodes(findings: Sequence[Finding]) -> str:
    return findings[0].node if len(findings) == 1 else f"{len(findings)} nodes"


def _texts(findings: Sequence[Finding]) -> str:
    texts = list(dict.fromkeys(finding.text for finding in findings))
    more = f" | {len(texts) - _MOST_NAMED} more" if len(texts) > _MOST_NAMED else ""
    return " | ".join(texts[:_MOST_NAMED]) + more


def _summary(findings: Iterable[Finding], nodes: int, took_s: float) -> str:
    levels = [finding.level for finding in findings]
    return (
        f"{nodes} nodes in {took_s:.0f} s: {levels.count('fatal')} fatal, {levels.count('warning')} "
        f"warnings, {levels.count('ok')} ok"
    )
