"""``genmod top``: what runs, how fast and how far, in a terminal; read from the nodes' metrics ports."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

from cluster.scrape import (
    Sample,
    check_endpoint,
    cluster_endpoints,
    local_endpoints,
    read_samples,
)
from genmod.errors import ConfigError
from genmod.terminal import print_line, print_text, unguarded
from pipelines.commands.text_table import text_table
from pipelines.recipe.time_left import duration

_HEADER = (
    "stage", "model", "done", "images/s", "left", "loss", "step", "data wait", "memory", "units",
    "retries", "quarantined",
)  # fmt: skip

_COUNTERS = ("images", "units", "retries", "quarantined", "done", "failed")
_ADDED = (*_COUNTERS, "images_per_second", "tracking_backlog")
"""Values that several commands have in common: they are added up. Of others the largest counts."""


def top(address: str | None, *, once: bool, as_json: bool, every_s: float) -> dict[str, Any]:
    """Show the values of all nodes, once or until Ctrl-C.

    Args:
        address: ``http://HOST:PORT`` of a node's metrics, HOST:PORT or ``auto`` of a Ray cluster, or None for
            the Ray nodes of this machine.
        once: show them once and return.
        as_json: only the result is printed.
        every_s: seconds between two readings.

    Returns:
        the JSON result with ``work`` (an entry for each stage and model), ``cluster`` and ``nodes``.

    Raises:
        ConfigError: no node answers.
    """
    if as_json and not once:
        raise ConfigError("top: --json needs --once; give both or neither")
    find = _finder(address)
    result = _reading(find(), address)
    if once:
        if not as_json:
            print_text("".join(f"{line}\n" for line in top_lines(result)))
        return result
    with _screen() as screen:
        while True:
            lines = top_lines(result)
            if screen is None:
                print_text("".join(f"{line}\n" for line in (*lines, "")))
            else:
                screen.update(_plain("\n".join(lines)))
            time.sleep(every_s)
            result = _reading(find(), address)


def _finder(address: str | None) -> Callable[[], list[str]]:
    """A function that returns the addresses of the nodes' metrics."""
    if address is None:
        return local_endpoints
    if "://" in address and not address.startswith("ray:"):
        url = check_endpoint(address)
        return lambda: [url]
    from cluster import session

    session.connect(session.ClusterConfig(address=address))
    return cluster_endpoints


def _reading(endpoints: Sequence[str], address: str | None) -> dict[str, Any]:
    samples, silent = read_samples(endpoints)
    if len(silent) == len(endpoints):
        where = f"at {address}" if address else "on this machine"
        raise ConfigError(
            f"top: no node of Ray answers {where}; give the address of a cluster, HOST:6379, or of a node's "
            "metrics, http://HOST:8080"
        )
    return {
        "stage": "top",
        "status": "done",
        "output": None,
        "fingerprint": None,
        **summarize(samples),
        "silent": silent if address else [],
    }


def summarize(samples: Sequence[Sample]) -> dict[str, Any]:
    """Values by stage and model, of the cluster, and of each node.

    Args:
        samples: of all nodes.
    """
    work: dict[tuple[str, str], dict[str, float]] = {}
    cluster: dict[str, float] = {}
    nodes: dict[str, dict[str, float]] = {}
    for each in samples:
        name = each.name.removeprefix("genmod_")
        if name.startswith("node_mem"):
            nodes.setdefault(each.node, {})[name.removeprefix("node_")] = each.value
        elif name in ("done", "failed", "tracking_backlog"):
            _merge(cluster, name, each.value)
        elif name == "looks_left":
            cluster[name] = min(each.value, cluster.get(name, each.value))
        else:
            _merge(work.setdefault((each.stage, each.model), {}), name, each.value)
    return {
        "work": [
            {"stage": stage, "model": model, **values}
            for (stage, model), values in sorted(work.items())
        ],
        "cluster": cluster,
        "nodes": nodes,
    }


def _merge(values: dict[str, float], name: str, value: float) -> None:
    if name in _ADDED:
        values[name] = values.get(name, 0.0) + value
    else:
        values[name] = max(values.get(name, value), value)


def top_lines(result: dict[str, Any]) -> list[str]:
    """A reading as lines for people: a table of the work, and lines about cluster and nodes."""
    cluster: dict[str, float] = result["cluster"]
    lines = text_table(_HEADER, [_cells(each) for each in result["work"]], right=range(2, 12))
    names = {
        "done": "commands done",
        "failed": "failed",
        "tracking_backlog": "calls to MLflow wait",
        "looks_left": "decisions left",
    }
    totals = [f"{cluster[key]:,.0f} {text}" for key, text in names.items() if key in cluster]
    memory = [
        f"{node}: {values['mem_used'] / values['mem_total']:.0%} of {values['mem_total'] / 2**30:.0f} GiB"
        for node, values in sorted(result["nodes"].items())
        if values.get("mem_total") and "mem_used" in values
    ]
    lines += [", ".join(totals)] if totals else ["no command has reported yet"]
    lines += [f"memory: {', '.join(memory[:20])}"] if memory else []
    lines += [f"no answer: {url}" for url in result["silent"]]
    return lines


def _cells(each: dict[str, Any]) -> tuple[str, ...]:
    def number(name: str, form: str = ",.0f", factor: float = 1.0, unit: str = "") -> str:
        return f"{each[name] * factor:{form}}{unit}" if name in each else ""

    done, left = "", ""
    if "rows" in each and (planned := each.get("rows_planned")):
        done = f"{each['rows']:,.0f}/{planned:,.0f}"
        rate = each.get("images_per_second", 0.0)
        left = duration((planned - each["rows"]) / rate) if rate and planned > each["rows"] else ""
    return (
        each["stage"],
        each["model"],
        done,
        number("images_per_second", ",.3g"),
        left,
        number("loss", ".4g"),
        number("step_seconds", ",.3g", 1000, " ms"),
        number("data_wait_share", ".0%"),
        number("memory_bytes", ",.0f", 2**-20, " MiB"),
        number("units"),
        number("retries"),
        number("quarantined"),
    )


def _screen() -> Any:
    """A part of the terminal that is replaced by each reading; None if stdout is no terminal."""
    if not sys.stdout.isatty():
        return nullcontext(None)
    from rich.console import Console
    from rich.live import Live

    print_line("genmod top: Ctrl-C ends it")
    return Live(console=Console(file=unguarded(sys.stdout)), auto_refresh=True)


def _plain(text: str) -> Any:
    """Text in which nothing is markup; it was sanitized when it was read."""
    from rich.text import Text

    return Text(text, no_wrap=True)
