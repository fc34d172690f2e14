"""Bulk work over a pool of actors: one Ray Data execution, one actor per device, small facts back.

A work item is a JSON object that says what to make; an actor makes it, writes the files itself and gives
back a small JSON object. Items are independent and idempotent (they end with a receipt), so any of them may
be tried again, on any actor.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
import traceback
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from cluster.resources import ResourceRequest, worker_capacity
from genmod.errors import ConfigError, DataError, GenmodError
from genmod.interface.model import GenerativeModel
from genmod.manifest import Manifest, require
from genmod.memory import keep_freed

TRIES = 3
"""How often an actor tries an item whose storage fails, and how often Ray gives an item to a new actor."""

RESTARTS = 8
"""How often Ray starts an actor anew whose process ended."""

FAILURES = 8
"""A job with so many failed items stops; fewer do not keep the others from being made."""

START_UP_S = 600.0
"""What the first item may take longer than its deadline: processes start, models load."""

MOST_BLOCKS = 2_048
"""Blocks of the work list. Longer lists put several items into a block."""

Task = dict[str, Any]
"""A work item: JSON values."""

TaskResult = dict[str, Any]
"""What came of an item: JSON values."""


class Actor(ABC):
    """What Ray Data starts once per device. Subclasses hold the models and know how to do an item."""

    def __init__(self, device: str, threads: int, deadline_s: float) -> None:
        self.device = device
        self.threads = threads
        self.deadline_s = deadline_s
        self._stuck = False
        self._set_threads()

    @abstractmethod
    def do(self, task: Task) -> TaskResult:
        """Make one item, write it, and say what it is. May be called again with the same item."""

    def _set_threads(self) -> None:
        import torch  # here, not at the top: the driver has no use for it

        torch.set_num_threads(self.threads)

    def __call__(self, batch: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
        """Ray Data's call: a batch of items in, what came of them out."""
        return {"result": [json.dumps(self._within_deadline(json.loads(t))) for t in batch["task"]]}

    def _within_deadline(self, task: Task) -> TaskResult:
        """Do an item on a thread that can be given up; what went wrong is a fact too."""
        if self._stuck:
            # A thread of an earlier item still holds the device. Ray starts a fresh process.
            os._exit(1)
        outcome: list[TaskResult] = []
        thread = threading.Thread(target=lambda: outcome.append(self._tried(task)), daemon=True)
        thread.start()
        thread.join(self.deadline_s)
        if not outcome:
            self._stuck = True
            return _failure(task, f"took longer than its deadline of {self.deadline_s:g} s")
        self._stuck = outcome[0].get("poisoned", False)
        return outcome[0]

    def _tried(self, task: Task) -> TaskResult:
        """Do an item; a store's hiccup is tried again, a person's mistake is not."""
        self._set_threads()  # OpenMP counts the threads of each thread of its own
        for attempt in range(1, TRIES + 1):
            try:
                return self.do(task)
            except GenmodError as error:
                return _failure(task, str(error), exit_code=error.exit_code)
            except OSError as error:
                if attempt == TRIES:
                    return _failure(task, f"{type(error).__name__}: {error} ({TRIES} tries)")
                time.sleep(0.2 * 5**attempt)
            except (
                Exception
            ) as error:  # told to the driver, which decides; the process may be broken
                text = f"{type(error).__name__}: {error}"
                return _failure(task, text, poisoned=True, trace=traceback.format_exc())
        raise AssertionError("unreachable")


class ModelActor(Actor):
    """An actor that holds models on its device, each loaded once.

    All models of a job's list stay loaded, so they must fit on one device together.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        keep_freed()
        self._models: dict[tuple[str, str], GenerativeModel] = {}

    def model(self, root: str, digest: str, weights: Literal["ema", "raw"]) -> GenerativeModel:
        """A model, ready to be asked.

        Args:
            root: URL of its folder.
            digest: of its manifest, as the driver saw it.
            weights: which of the two sets.

        Raises:
            DataError: the folder holds another model by now, or files that do not fit their digests.
        """
        if (digest, weights) not in self._models:
            from genmod.interface.model_store import load_model

            found = require(Manifest, root, "model", "train")
            if found.digest != digest:
                raise DataError(
                    f"{root} holds model {found.digest[:12]}, but the job was planned for {digest[:12]}; "
                    "give the command again"
                )
            model = load_model(root, weights)
            self._models[digest, weights] = model.to(self.device)
        return self._models[digest, weights]


def _failure(task: Task, error: str, **more: Any) -> TaskResult:
    return {"task": task, "error": " ".join(error.split()), **more}


def run(
    actor: type[Actor],
    tasks: Sequence[Task],
    *,
    workers: int,
    resources: ResourceRequest,
    deadline_s: float,
    **constructor: Any,
) -> Iterator[TaskResult]:
    """Do all items on a pool of actors; yields what came of each as it is done, in any order.

    Args:
        actor: the class; it gets ``device``, ``threads``, ``deadline_s`` and ``constructor``.
        tasks: the items. Each has a ``name`` for messages.
        workers: actors at most. Fewer work if the cluster has no room for all.
        resources: what each requests.
        deadline_s: for one item.
        **constructor: further arguments of the class.

    Raises:
        ConfigError: the cluster has no node that one actor fits on.
        DataError: an item was refused for a reason that a person must mend; the job stops.
        GenmodError: items failed otherwise. All others have been made, unless too many failed.
    """
    if not tasks:
        return
    _check_capacity(resources)
    failed: list[TaskResult] = []
    constructor |= {"device": resources.device, "threads": max(1, int(resources.cpus))}
    for metadata in _stream(
        actor, tasks, workers, resources, constructor | {"deadline_s": deadline_s}
    ):
        if "error" not in metadata:
            yield metadata
            continue
        failed.append(metadata)
        if metadata.get("exit_code") == DataError.exit_code:
            raise DataError(f"{metadata['task']['name']}: {metadata['error']}")
        if len(failed) >= FAILURES:
            break
    if failed:
        first = failed[0]
        error = GenmodError(
            f"{len(failed)} of {len(tasks)} pieces of work failed, the first of them "
            f"{first['task']['name']}: {first['error']}; the same command makes what is missing"
        )
        if "trace" in first:
            error.add_note(first["trace"])
        raise error


def _check_capacity(resources: ResourceRequest) -> None:
    if worker_capacity(resources, 1):
        return
    raise ConfigError(
        f"no node of the cluster has the {resources.cpus:g} CPUs and {resources.gpus:g} GPUs that one "
        "worker requests; add such a node, or change cluster.cpus_per_worker and cluster.gpus_per_worker"
    )


def _stream(
    actor: type[Actor],
    tasks: Sequence[Task],
    workers: int,
    resources: ResourceRequest,
    constructor: Mapping[str, Any],
) -> Iterator[TaskResult]:
    import ray.data
    from ray.data import ActorPoolStrategy, DataContext
    from ray.exceptions import RayError
    from ray.util.annotations import RayDeprecationWarning

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_no_progress_timeout_s = constructor["deadline_s"] + START_UP_S
    workers = min(workers, len(tasks))
    items = [{"task": json.dumps(task)} for task in tasks]
    with DataContext.current(context), warnings.catch_warnings():
        # The budget of restarts has no other way in yet; without it Ray would restart for ever.
        warnings.simplefilter("ignore", RayDeprecationWarning)
        blocks = min(len(items), MOST_BLOCKS)
        done = ray.data.from_items(items, override_num_blocks=blocks).map_batches(
            actor,
            batch_size=1,
            fn_constructor_kwargs=dict(constructor),
            compute=ActorPoolStrategy(
                min_size=1, max_size=workers, initial_size=workers, max_tasks_in_flight_per_actor=1
            ),
            num_cpus=resources.cpus,
            num_gpus=resources.gpus,
            max_restarts=RESTARTS,
            max_task_retries=TRIES,
        )
    try:
        for row in done.iter_rows():
            yield json.loads(row["result"])
    except RayError as error:
        reason = str(error).strip().splitlines()[-1]
        raise GenmodError(
            f"the pool of {workers} workers was lost ({type(error).__name__}: {reason}); "
            "the same command makes what is missing"
        ) from error
