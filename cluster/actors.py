"""Runs many small tasks on a pool of actors: one Ray Data execution, one actor per device.

A task is a JSON object that describes a work unit. An actor computes it, writes the files, and returns a
small JSON object. Tasks are independent and idempotent (each ends with a receipt), so any actor may repeat
any task.
"""

from __future__ import annotations

import json
import os
import threading
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from cluster.pool import MARK, RESULT, TASK, Pool, lost_workers, stream
from cluster.resources import ResourceRequest, node_id, wait_until_free, worker_capacity
from genmod.errors import ConfigError, DataError, GenmodError
from genmod.interface.model import GenerativeModel
from genmod.interface.snapshot import check_unchanged
from genmod.manifest import Manifest, require
from genmod.memory import keep_freed
from genmod.stopwatch import START, measured
from genmod.storage.retry import Backoff

ATTEMPTS = 3
"""Attempts of an actor at a task whose storage fails."""

_FIRST_PAUSE_S = 2.0
"""About the pause before the second attempt at a task whose storage fails."""

Task = dict[str, Any]
"""A work unit as JSON values, with a ``name`` for messages."""

TaskResult = dict[str, Any]
"""Result of a task as JSON values. That of a failed task has its ``task``, the ``error`` in one line, the
``node`` where it ran, and ``divisible`` if a part of the task alone may be at fault."""


class Actor(ABC):
    """Worker process of a pool, one per device. Subclasses load the models and implement :meth:`do`.

    Args:
        device: ``cpu`` or ``cuda``.
        threads: that torch uses.
        deadline_s: of one task, in seconds.
    """

    def __init__(self, device: str, threads: int, deadline_s: float) -> None:
        self.device = device
        self.threads = threads
        self.deadline_s = deadline_s
        self._stuck = False
        self._node = node_id()
        self.name = f"{self._node[:8]}-{os.getpid()}"
        self._set_threads()

    @abstractmethod
    def do(self, task: Task) -> TaskResult:
        """Run one task: write its files and return its result. Must be idempotent."""

    def _set_threads(self) -> None:
        import torch  # here, because the driver does not need it

        torch.set_num_threads(self.threads)

    def __call__(self, batch: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
        """Called by Ray Data: a batch of tasks in, their results out."""
        results: list[str] = []
        marks = list(batch.get(MARK, [""] * len(batch[TASK])))
        for mark, task in zip(marks, batch[TASK], strict=True):
            if self._stuck:
                # A thread of an earlier task still uses the device. Ray starts a new process.
                os._exit(1)
            values = json.loads(task)
            if mark and (lost := lost_workers(mark)):
                text = f"{lost} workers were lost one after the other at this task; check the nodes' memory"
                results.append(json.dumps(self._failure(values, text, divisible=True)))
                continue
            results.append(json.dumps(self._within_deadline(values)))
        return {MARK: marks, RESULT: results}

    def _within_deadline(self, task: Task) -> TaskResult:
        """Run a task on a thread that can be abandoned; errors become results."""
        results: list[TaskResult] = []
        thread = threading.Thread(
            target=lambda: results.append(self._with_retries(task)), daemon=True
        )
        thread.start()
        deadline_s = self.deadline_s * float(task.get("deadline_share", 1.0))
        thread.join(deadline_s)
        if not results:
            self._stuck = True
            text = f"took longer than its deadline of {deadline_s:g} s"
            return self._failure(task, text, divisible=True)
        self._stuck = results[0].get("broken_process", False)
        return results[0]

    def _with_retries(self, task: Task) -> TaskResult:
        """Run a task; storage errors are retried, errors for the user are not."""
        self._set_threads()  # OpenMP has a number of threads per thread
        backoff = Backoff(attempts=ATTEMPTS, first_s=_FIRST_PAUSE_S)
        while True:
            try:
                return self.do(task)
            except GenmodError as error:
                return self._failure(task, str(error), exit_code=error.exit_code)
            except OSError as error:
                pause_s = backoff.next_pause_s()
                if pause_s is None:
                    text = f"{type(error).__name__}: {error} ({ATTEMPTS} attempts)"
                    return self._failure(task, text)
                time.sleep(pause_s)
            except Exception as error:  # the driver decides; the process may be broken
                text, trace = f"{type(error).__name__}: {error}", traceback.format_exc()
                return self._failure(task, text, broken_process=True, divisible=True, trace=trace)

    def _failure(self, task: Task, error: str, **more: Any) -> TaskResult:
        return {"task": task, "error": " ".join(error.split()), "node": self._node, **more}


class ModelActor(Actor):
    """An actor that loads each model once and keeps it on its device.

    All models of a job must fit on one device together.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        keep_freed()
        self._models: dict[tuple[str, str], GenerativeModel] = {}

    def model(self, root: str, digest: str, weights: Literal["ema", "raw"]) -> GenerativeModel:
        """A published model on this actor's device.

        Args:
            root: URL of its folder.
            digest: of its manifest, as read by the driver.
            weights: ``ema`` or ``raw``.

        Raises:
            DataError: the folder contains another model by now, or a file does not match its digest.
        """
        if (digest, weights) not in self._models:
            from genmod.interface.model_store import load_model

            check_unchanged(root, require(Manifest, root, "model", "train"), digest)
            with measured(START):
                model = load_model(root, weights)
                self._models[digest, weights] = model.to(self.device)
        return self._models[digest, weights]


def run_actors(
    actor: type[Actor],
    tasks: Sequence[Task],
    *,
    workers: int,
    resources: ResourceRequest,
    deadline_s: float,
    excluded_nodes: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    **options: Any,
) -> Iterator[TaskResult]:
    """Run all tasks on a pool of actors. Ray is connected.

    Args:
        actor: the class. Its constructor receives ``device``, ``threads``, ``deadline_s`` and ``options``.
        tasks: each has a ``name`` for messages; ``deadline_share`` is its part of the deadline, if not all.
        workers: largest number of actors; fewer run if the cluster is too small.
        resources: what each actor requests.
        deadline_s: of one task, in seconds.
        excluded_nodes: ids of nodes on which no actor runs.
        environment: variables of the actors' processes.
        **options: further arguments of the class.

    Yields:
        The result of each task, in the order in which they finish, also of those that failed.

    Raises:
        ConfigError: no node of the cluster is large enough for one actor.
        DataError: a task failed with an error for the user; the job stops.
        GenmodError: Ray cannot start workers.
    """
    if not tasks:
        return
    _check_capacity(resources)
    wait_until_free(resources, 1, "one worker")
    options |= {
        "device": resources.device,
        "threads": max(1, int(resources.cpus)),
        "deadline_s": deadline_s,
    }
    pool = Pool(actor, options, workers, resources, tuple(excluded_nodes), environment or {})
    for result in stream(pool, tasks):
        if "error" in result and result.get("exit_code") == DataError.exit_code:
            raise DataError(f"{result['task']['name']}: {result['error']}")
        yield result


def _check_capacity(resources: ResourceRequest) -> None:
    if worker_capacity(resources, 1):
        return
    raise ConfigError(
        f"no node of the cluster has the {resources.cpus:g} CPUs and {resources.gpus:g} GPUs that one "
        "worker requests; add such a node, or change cluster.cpus_per_worker and cluster.gpus_per_worker"
    )
