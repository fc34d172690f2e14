"""Runs jobs under random kills until they finish, then compares them with uninterrupted ones.

Every choice (which job, which process is killed, and when) is a pure function of the seed and a number.
Each kill is logged with its number, so that a round can be repeated.
"""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from genmod.config import as_json
from genmod.interface.registry import families
from genmod.manifest import Manifest, find_problems, load_manifest
from genmod.rng import rng_for
from tests.soak.configurations import WORKS, as_request
from tests.soak.places import Places
from tests.soak.ranks import TRAIN, Forge, make_dataset, make_job
from tests.stores.proxy import Proxy

STAGES = ("ranks", "shard", "sample", "train")
"""``ranks`` trains in forked processes without Ray and kills ranks. The others are stages on Ray, of which
drivers and workers are killed or frozen, or a configuration's name; see :data:`WORKS`."""

GRACE_S = 30.0
"""Within this time, ranks detect that another one was killed."""

SPAN_S = {"train": 12.0}
"""The next kill of a stage is within this time, else within 3 s. Training workers take longer to start."""

FREEZE_S = 4.0
"""How long a frozen process stands still."""

KILLS_PER_ROUND = 8
ATTEMPT_S = 300.0
"""Timeout of one attempt."""

WORKERS = re.compile(r"ray::(_make|MapWorker|RayTrainWorker|.*Worker)")
"""Titles of the Ray processes that do a stage's work."""

RANKS_TRAIN = TRAIN.model_copy(update={"nimg": 960, "max_failures": 1000})
RAY_TRAIN = RANKS_TRAIN.model_copy(update={"nimg": 9_600, "workers": 2})
SHARDS = {"source": "builtin:digits", "shard_rows": 100}


@dataclass
class Soak:
    """One soak test and its counts."""

    folder: Path
    seed: int
    kills: int
    stages: Sequence[str] = STAGES
    address: str | None = None
    """Address of the Ray cluster for all stages but ``ranks``."""
    rows: int = 96
    """Images of a sampling job, and rows of the dataset that is scored."""
    proxy: Proxy | None = None
    """In front of the S3 server of the configurations that need one; the environment has its address."""
    made: Counter = field(default_factory=Counter)
    """Images and scores of the finished jobs."""
    killed: Counter = field(default_factory=Counter)
    """Number of kills by stage and process."""
    rounds: Counter = field(default_factory=Counter)
    lost: int = 0
    doubled: int = 0
    differing: list[str] = field(default_factory=list)
    _choices: int = 0
    _expected: dict[str, Any] = field(default_factory=dict)

    def run(self) -> None:
        """Run rounds until ``kills`` processes were killed."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.data = make_dataset(str(self.folder / "data"))
        self._places = Places(self.folder, self.proxy, self.rows)
        self.forge = Forge(*(["ray"] if self.address else []))
        try:
            while sum(self.killed.values()) < self.kills:
                number = sum(self.rounds.values())
                stage = self.stages[number % len(self.stages)]
                name = f"{number:04d}-{stage}"
                check = self._ranks(name) if stage == "ranks" else self._stage(name, stage)
                self.rounds[stage] += 1
                self._log(round=name, same=check, lost=self.lost, doubled=self.doubled)
                if not check:
                    self.differing.append(name)
        finally:
            self.forge.close()

    def summary(self) -> dict[str, Any]:
        """The counts, as they are printed."""
        return {
            "seed": self.seed,
            "kills": sum(self.killed.values()),
            "killed": dict(sorted(self.killed.items())),
            "rounds": dict(self.rounds),
            "made": dict(self.made),
            "lost": self.lost,
            "doubled": self.doubled,
            "differing": self.differing,
        }

    def draw(self) -> float:
        """The next choice, in (0, 1)."""
        self._choices += 1
        return float(rng_for(self.seed, "soak", [self._choices]).uniform(1).double())

    def _log(self, **metadata: Any) -> None:
        with open(self.folder / "log.jsonl", "a") as stream:
            stream.write(json.dumps(metadata) + "\n")

    def _kill(self, name: str, who: str, pid: int, after_s: float) -> bool:
        """Kill a process. Returns whether it was alive."""
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return False
            os.kill(pid, signal.SIGKILL)
        except (psutil.NoSuchProcess, ProcessLookupError):
            return False
        self.killed[f"{name[5:]}/{who}"] += 1
        number = sum(self.killed.values())
        self._log(kill=number, choice=self._choices, round=name, who=who, after_s=after_s)
        return True

    # Training in forked ranks

    def _ranks(self, name: str) -> bool:
        size, at = 1 + int(3 * self.draw()), int(len(families()) * self.draw())
        key = f"ranks-{size}-{at}"
        if key not in self._expected:
            start_s = time.monotonic()
            self._expected[key] = self._train(key, size, at, 0)
            self._expected[f"{key}-s"] = time.monotonic() - start_s
        return self._train(name, size, at, KILLS_PER_ROUND) == self._expected[key]

    def _train(self, name: str, size: int, at: int, most_kills: int) -> Manifest | None:
        job = make_job(str(self.folder / "data"), self.data, self.folder / name, RANKS_TRAIN, at)
        killed = 0
        for attempt in range(10 * KILLS_PER_ROUND):
            options = {"stderr": str(self.folder / f"{name}.err")}
            store = self.folder / f"{name}.store-{attempt}"
            pids = self.forge.start_group(job, size, store, **options)
            if killed < most_kills:
                after_s = 0.6 * self.draw() * self._expected[f"ranks-{size}-{at}-s"]
                victim = int(self.draw() * size)
                time.sleep(after_s)
                killed += self._kill(name, f"rank {victim} of {size}", pids[victim], after_s)
            self._let_end(pids, GRACE_S if killed else ATTEMPT_S)
            if all([self.forge.wait(pid) == 0 for pid in pids]):
                break
        manifest = load_manifest(Manifest, job.root, "model")
        if manifest is None or find_problems(job.root, manifest.files):
            return None
        return manifest

    def _let_end(self, pids: Sequence[int], grace_s: float) -> None:
        """Wait for processes to end; after the grace period, kill them without counting."""
        deadline_s = time.monotonic() + grace_s
        for pid in pids:
            while psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                if time.monotonic() > deadline_s:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                    deadline_s = time.monotonic() + grace_s
                time.sleep(0.02)

    # Stages on Ray

    def _stage(self, name: str, stage: str) -> bool:
        if stage not in self._expected:
            self._expected[stage] = self._run_stage(f"{stage}-straight", stage, 0)
            assert self._expected[stage] is not None, f"{stage} fails without kills"
        manifest, expected = self._run_stage(name, stage, KILLS_PER_ROUND), self._expected[stage]
        if manifest is not None and expected.kind != "model":
            rows = self._places.rows(self._root(name, stage), manifest)
            expected_rows = self._places.rows(self._root(f"{stage}-straight", stage), expected)
            self.lost += (expected_rows - rows).total()
            self.doubled += (rows - expected_rows).total()
            self.made[expected.kind] += rows.total()
        return manifest is not None and manifest.digest == expected.digest

    def _root(self, name: str, stage: str) -> str:
        """URL of the folder of a round."""
        return self._places.root(name, WORKS[stage].place if stage in WORKS else "local")

    def _request(self, name: str, stage: str) -> dict[str, Any]:
        request = {"root": self._root(name, stage), "address": self.address}
        if stage == "shard":
            return request | {"stage": stage, "data": SHARDS}
        if stage == "train":
            job = make_job(str(self.folder / "data"), self.data, self.folder / name, RAY_TRAIN)
            return request | {"stage": stage, "job": as_json(job)}
        work = WORKS[stage]
        inputs = self._places.inputs(work.family, work.place)
        return request | inputs | as_request(work, self.rows)

    def _run_stage(self, name: str, stage: str, most_kills: int) -> Manifest | None:
        request = self._request(name, stage) | {"stderr": str(self.folder / f"{name}.err")}
        place = WORKS[stage].place if stage in WORKS and most_kills else "local"
        with self._places.faults(place):
            self._run_drivers(name, stage, request, most_kills)
        return self._places.whole(request["root"], {"train": "model"}.get(stage))

    def _run_drivers(self, name: str, stage: str, request: dict[str, Any], most_kills: int) -> None:
        """Start drivers until one of them ends well. Undisturbed, the first must."""
        number, killed = WORKS[stage].drivers if stage in WORKS and most_kills else 1, 0
        for _ in range(10 * KILLS_PER_ROUND if most_kills else 1):
            drivers = [self.forge.start_stage(**request) for _ in range(number)]
            start_s = time.monotonic()
            while alive := [pid for pid in drivers if _is_alive(pid)]:
                if time.monotonic() - start_s > ATTEMPT_S:
                    for pid in alive:
                        os.kill(pid, signal.SIGKILL)
                after_s = self.draw() * SPAN_S.get(stage, 3.0) if killed < most_kills else 0.1
                time.sleep(after_s)
                if killed < most_kills:
                    driver = alive[int(self.draw() * len(alive))]
                    killed += self._kill_one(name, driver, after_s)
            if 0 in [self.forge.wait(pid) for pid in drivers]:
                break

    def _kill_one(self, name: str, driver: int, after_s: float) -> bool:
        """Kill or freeze the driver or one of the Ray workers. Returns whether it was alive."""
        choice, which = self.draw(), self.draw()
        if choice < 0.25:
            return self._kill(name, "driver", driver, after_s)
        workers: list[int] = []
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.Error, IndexError):
                if WORKERS.match(process.cmdline()[0]):
                    workers.append(process.pid)
        if not workers:
            return False
        worker = sorted(workers)[int(which * len(workers))]
        if choice < 0.4:
            self._freeze(worker)
        return self._kill(name, "worker", worker, after_s)

    def _freeze(self, pid: int) -> None:
        """Let a process stand still for a while, so that others do its work, and then go on."""
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
            time.sleep(FREEZE_S)
            os.kill(pid, signal.SIGCONT)
            time.sleep(self.draw())


def _is_alive(pid: int) -> bool:
    """Whether a child of the forge runs."""
    return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
