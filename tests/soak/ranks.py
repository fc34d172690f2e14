"""Trainings whose ranks are forked processes that tests can kill, and a tiny dataset for them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from genmod.config import as_json
from genmod.interface.model import DataStats
from genmod.interface.registry import ModelConfig, families, family
from genmod.manifest import DatasetManifest, ImageSpec
from genmod.training.job import TrainJob, plan_job
from genmod.training.plan import OptimConfig, TrainConfig
from tests.builders import write_noise

SPEC = ImageSpec(channels=1, height=8, width=8, classes=3)
TRAIN = TrainConfig(
    nimg=192,
    batch=24,
    log_every_nimg=48,
    validate_every_nimg=96,
    validation_rows=20,
    grid_every_nimg=None,
    checkpoint_every_nimg=48,
    optim=OptimConfig(lr=1e-3, warmup_nimg=48),
)


def make_dataset(root: str, train_rows: int = 100) -> DatasetManifest:
    """A dataset of noise in two shards."""
    return write_noise(root, SPEC, {"train": train_rows, "val": 20})


def make_job(
    data_root: str, data: DatasetManifest, root: Path, train: TrainConfig = TRAIN, at: int = -1
) -> TrainJob:
    """A training of the family number ``at`` with its tiny configuration."""
    name = families()[at]
    model = ModelConfig(
        family=name,
        net=as_json(family(name).Config.tiny()),
        spec=SPEC,
        stats=DataStats.model_validate(data.metadata["stats"]),
    )
    job = TrainJob(
        name=name,
        root=str(root),
        data_root=data_root,
        data_digest=data.digest,
        model=model,
        train=train,
        seed=7,
    )
    return plan_job(job, data)


class Forge:
    """A process that forks ranks; see forge.py."""

    def __init__(self, *flags: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("forge.py")), *flags],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"},
        )
        self._open: set[int] = set()

    def start(self, job: TrainJob, **options: Any) -> int:
        """Start a rank. Returns its pid."""
        return self.start_stage(job=as_json(job), **options)

    def start_stage(self, **options: Any) -> int:
        """Start a rank, or the driver of a ``stage``. Returns its pid."""
        pid = self._ask({"do": "start", **options})["pid"]
        self._open.add(pid)
        return pid

    def start_group(self, job: TrainJob, size: int, store: Path, **options: Any) -> list[int]:
        """Start all ranks of a group. Returns their pids. ``ids`` is a folder for one file per rank."""
        pids = []
        for rank in range(size):
            own = {k: v for k, v in options.items() if rank == 0 or k not in ("die_at", "steps")}
            if "ids" in own:
                own["ids"] = str(Path(own["ids"]) / f"{store.name}-{rank}")
            pids.append(self.start(job, rank=rank, size=size, store=str(store), **own))
        return pids

    def wait(self, pid: int) -> int:
        """Wait for a process. Returns its exit status, or minus the signal that killed it."""
        status = self._ask({"do": "wait", "pid": pid})["status"]
        self._open.discard(pid)
        return status

    def run(self, job: TrainJob, **options: Any) -> int:
        """Train in one process and wait for it. Returns its exit status."""
        return self.wait(self.start(job, **options))

    def close(self) -> None:
        """Kill all ranks and end the process."""
        for pid in list(self._open):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            self.wait(pid)
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, "the forge has exited"
        return json.loads(line)
