"""Jobs under random kills, until they are done; then compared with undisturbed ones.

Every choice (which job, who is killed and when) is a pure function of the seed and a number, and each kill is
logged with its number, so that a round can be played again.
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
import pyarrow.parquet as pq

from genmod.config import as_json
from genmod.generation.synthetic import SampleConfig
from genmod.interface.registry import families
from genmod.manifest import DatasetManifest, Manifest, find_problems, load_manifest
from genmod.rng import rng_for
from genmod.training.publish import publish_model
from genmod.training.state import TrainState
from tests.soak.ranks import TRAIN, Forge, make_dataset, make_job

STAGES = ("ranks", "shard", "sample", "train")
"""``ranks``: training in forked processes without Ray, killed by rank. The others: stages on Ray, whose
drivers and workers are killed."""

GRACE_S = 30.0
"""Ranks notice within this time that one of them is gone."""

SPAN_S = {"shard": 3.0, "sample": 3.0, "train": 12.0}
"""The next kill of a stage comes within this time; training's workers need longer until they train."""

MOST_PER_ROUND = 8
ATTEMPT_S = 300.0

WORKERS = re.compile(r"ray::(_make|MapWorker|RayTrainWorker|.*Worker)")
"""Ray's processes that do a stage's work, by their titles."""

RANKS_TRAIN = TRAIN.model_copy(update={"nimg": 960, "max_failures": 1000})
RAY_TRAIN = RANKS_TRAIN.model_copy(update={"nimg": 9_600, "workers": 2})
SAMPLES = SampleConfig(count=96, shard_rows=8, micro_batch=4, workers=2)
SHARDS = {"source": "builtin:digits", "shard_rows": 100}


@dataclass
class Soak:
    """One run of it."""

    folder: Path
    seed: int
    kills: int
    stages: Sequence[str] = STAGES
    address: str | None = None
    """Of the Ray for all stages but ``ranks``."""
    killed: Counter = field(default_factory=Counter)
    """By stage and who."""
    rounds: Counter = field(default_factory=Counter)
    lost: int = 0
    doubled: int = 0
    differing: list[str] = field(default_factory=list)
    _choices: int = 0
    _expected: dict[str, Any] = field(default_factory=dict)

    def run(self) -> None:
        """Rounds until so many processes were killed."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.data = make_dataset(str(self.folder / "data"))
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

    def draw(self) -> float:
        """The next choice, in (0, 1)."""
        self._choices += 1
        return float(rng_for(self.seed, "soak", [self._choices]).uniform(1).double())

    def _log(self, **metadata: Any) -> None:
        with open(self.folder / "log.jsonl", "a") as stream:
            stream.write(json.dumps(metadata) + "\n")

    def _kill(self, name: str, who: str, pid: int, after_s: float) -> bool:
        """Kill a process that is alive; whether it was."""
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
            self._expected[key] = self._trained(key, size, at, 0)
            self._expected[f"{key}-s"] = time.monotonic() - start_s
        return self._trained(name, size, at, MOST_PER_ROUND) == self._expected[key]

    def _trained(self, name: str, size: int, at: int, most: int) -> Manifest | None:
        job = make_job(str(self.folder / "data"), self.data, self.folder / name, RANKS_TRAIN, at)
        killed = 0
        for attempt in range(10 * MOST_PER_ROUND):
            told = {"stderr": str(self.folder / f"{name}.err")}
            store = self.folder / f"{name}.store-{attempt}"
            pids = self.forge.start_group(job, size, store, **told)
            if killed < most:
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
        """Wait for processes; those that do not end are ended, uncounted."""
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
            self._expected[stage] = self._made(f"{stage}-straight", stage, 0)
            assert self._expected[stage] is not None, f"{stage} fails undisturbed"
        made, wanted = self._made(name, stage, MOST_PER_ROUND), self._expected[stage]
        if stage != "train":
            found, rows = self._rows(name, made), self._rows(f"{stage}-straight", wanted)
            self.lost += (rows - found).total()
            self.doubled += (found - rows).total()
        return made is not None and made.digest == wanted.digest

    def _told(self, name: str, stage: str) -> dict[str, Any]:
        root = self.folder / name
        told = {"stage": stage, "root": str(root), "address": self.address}
        if stage == "shard":
            return told | {"data": SHARDS}
        job = make_job(str(self.folder / "data"), self.data, root, RAY_TRAIN)
        if stage == "train":
            return told | {"job": as_json(job)}
        model = str(self.folder / "model")
        if not (self.folder / "model" / "model.json").exists():
            state = TrainState(0, job.model.build(1), job.model.build(2), ())
            publish_model(model, job.model, state, fingerprint="soak", parents={}, metadata={})
        return told | {"model": model, "config": as_json(SAMPLES)}

    def _made(self, name: str, stage: str, most: int) -> Manifest | None:
        kind, killed = ("model" if stage == "train" else "dataset"), 0
        schema = Manifest if kind == "model" else DatasetManifest
        for _ in range(10 * MOST_PER_ROUND):
            told = self._told(name, stage) | {"stderr": str(self.folder / f"{name}.err")}
            driver = self.forge.start_stage(**told)
            start_s = time.monotonic()
            while psutil.Process(driver).status() != psutil.STATUS_ZOMBIE:
                if time.monotonic() - start_s > ATTEMPT_S:
                    os.kill(driver, signal.SIGKILL)
                after_s = self.draw() * SPAN_S[stage] if killed < most else 0.1
                time.sleep(after_s)
                if killed < most:
                    killed += self._kill_one(name, driver, after_s)
            if self.forge.wait(driver) == 0:
                break
        manifest = load_manifest(schema, str(self.folder / name), kind)
        if isinstance(manifest, DatasetManifest):
            files = [file for shard in manifest.shards for file in (shard.tar, shard.index)]
        else:
            files = list(manifest.files) if manifest else []
        return None if find_problems(str(self.folder / name), files) else manifest

    def _kill_one(self, name: str, driver: int, after_s: float) -> bool:
        """The driver, or one of Ray's processes that are at work."""
        choice, which = self.draw(), self.draw()
        if choice < 0.25:
            return self._kill(name, "driver", driver, after_s)
        workers: list[int] = []
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.Error, IndexError):
                if WORKERS.match(process.cmdline()[0]):
                    workers.append(process.pid)
        return bool(workers) and self._kill(
            name, "worker", sorted(workers)[int(which * len(workers))], after_s
        )

    def _rows(self, name: str, manifest: Manifest | None) -> Counter[str]:
        """Keys of a dataset, with how often each is there."""
        found: Counter[str] = Counter()
        if isinstance(manifest, DatasetManifest):
            for shard in manifest.shards:
                table = pq.read_table(self.folder / name / shard.index.path, columns=["key"])
                found.update(f"{shard.split}/{key}" for key in table["key"].to_pylist())
        return found
