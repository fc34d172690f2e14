"""Calls of the doctor's actors, all with one deadline; a node that does not answer holds up no other."""

from __future__ import annotations

import time
import uuid
from collections.abc import Collection, Mapping
from typing import Any, cast

from cluster.doctor.examiner import Examiner
from cluster.doctor.facts import Node

_LINE_CHARS = 300


class CallFailed(Exception):
    """A call that raised, was not answered in time, or whose node was lost; the text says why."""


def start_examiner(node: Node, environment: Mapping[str, str]) -> Any:
    """Start an actor on a node, in a new process. It takes no CPU or GPU from jobs.

    Args:
        node: where.
        environment: variables of the process.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    # A variable that is always another one: Ray reuses no process that ran before.
    variables = {**environment, "GENMOD_DOCTOR": uuid.uuid4().hex}
    return (
        cast(Any, ray)
        .remote(num_cpus=0, max_restarts=0)(Examiner)
        .options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False),
            runtime_env={"env_vars": variables},
        )
        .remote()
    )


def results_of(calls: Mapping[Any, Any], end_s: float) -> dict[Any, Any]:
    """Results of Ray's references by their keys; a :class:`CallFailed` in place of each that is missing.

    Args:
        calls: key -> reference.
        end_s: deadline by ``time.monotonic()``.
    """
    import ray
    from ray.exceptions import RayError

    if not calls:
        return {}
    ray.wait(
        list(calls.values()),
        num_returns=len(calls),
        timeout=max(0.0, end_s - time.monotonic()),
    )
    results: dict[Any, Any] = {}
    for key, reference in calls.items():
        try:
            results[key] = ray.get(reference, timeout=0)
        except (RayError, TimeoutError) as error:
            results[key] = CallFailed(_reason(error))
        except Exception as error:  # of the method itself; Ray raises its class
            results[key] = CallFailed(_reason(error))
    return results


def end_examiners(actors: Collection[Any]) -> None:
    """Kill actors, whatever they are doing."""
    import ray

    for actor in actors:
        ray.kill(actor, no_restart=True)


def _reason(error: Exception) -> str:
    """One line: the error that a method raised, else Ray's."""
    from ray.exceptions import GetTimeoutError

    if isinstance(error, GetTimeoutError):
        return "no answer in time"
    cause = getattr(error, "cause", None) or error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    named = [line for line in lines if "ModuleNotFoundError" in line or "ImportError" in line]
    text = (named or lines or [type(cause).__name__])[-1 if named else 0]
    return text[:_LINE_CHARS]
