"""The fault of each entry of infra/RUNBOOK.md, made for real, and what must hold after the cure."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import tarfile
import urllib.error
import urllib.request
from collections import Counter
from typing import Any

import fsspec
import psutil

from tests.infra.checkout import commit
from tests.infra.fault import Fault
from tests.infra.gameday_stack import DISK_BYTES, GamedayStack, is_root, say, wait_until


class LostHead(Fault):
    """Ray's head gets SIGKILL while a job trains."""

    def make(self) -> None:
        job = self.job_that_trains("lost-head")
        for pid in self.stack.processes("gcs_server"):
            os.kill(pid, signal.SIGKILL)
        job.fails(self.sign("did not answer for 90 s"))

    def check(self) -> None:
        self.check_results()


class FullDisk(Fault):
    """A log fills the disk of the store and of MLflow."""

    @classmethod
    def reason_to_skip(cls) -> str:
        return "" if is_root() else "a small disk is mounted by root"

    def make(self) -> None:
        self.stack.undisturbed()
        self.use("full-disk")
        self.stack.copy_dataset(self.root)
        used = shutil.disk_usage(self.stack.disk).used
        self._resize(used + (64 << 20))
        log = os.open(self.stack.place / "mlflow.log", os.O_WRONLY)
        free = shutil.disk_usage(self.stack.disk).free
        os.posix_fallocate(log, os.fstat(log).st_size, free - (1 << 20))
        os.close(log)
        job = self.start('genmod submit train --recipe "$RECIPE"')
        job.fails(self.sign("storage stayed unavailable"))

    def check(self) -> None:
        self.check_results()
        assert not self.stack.store().find(f"{self.root}/spool")

    def close(self) -> None:
        super().close()
        self._resize(DISK_BYTES)

    def _resize(self, size_bytes: int) -> None:
        words = ["mount", "-o", f"remount,size={size_bytes}", str(self.stack.disk)]
        subprocess.run(words, check=True)


class HangingJob(Fault):
    """The driver of a job gets SIGSTOP while it trains."""

    def make(self) -> None:
        self.job_that_trains("hanging-job")
        self.drivers = [
            pid
            for pid in self.stack.processes("-m pipelines train")
            if psutil.Process(pid).name().startswith("python")
        ]
        assert self.drivers
        for pid in self.drivers:
            os.kill(pid, signal.SIGSTOP)

    def check(self) -> None:
        self.check_results()
        assert not any(map(psutil.pid_exists, self.drivers))
        bundle = self.stack.place / f"{self.variables['JOB']}.tar.gz"
        with tarfile.open(bundle) as tar:
            names = tar.getnames()
        assert any("stack" in name for name in names), names
        assert any(name.endswith("job.log") for name in names), names
        (job,) = self.jobs
        assert job.process.wait(60) == 1, job.text
        assert "STOPPED" in job.text


WEAK = {"improvements": 0, "rules": {"fd": {}}}
"""Rules that promote everything."""


class CollapsedModel(Fault):
    """A model that generates one image only is promoted by weak rules."""

    def make(self) -> None:
        self.stack.undisturbed()
        self.use("undisturbed", promote=WEAK)
        good = self.root
        made = 'genmod submit run --recipe "$RECIPE"; genmod promote --recipe "$RECIPE"'
        self.stack.bash(made, self.variables)
        model = {"family": "faulty", "net": {"collapsed": True}, "train": {"nimg": 256}}
        self.use(
            "collapsed",
            model={"vae": model},
            promote={**WEAK, "ledger": f"{good}/promotions"},
            tracking={"roots": [good]},
        )
        self.good = self._champion()
        self.stack.bash(made, self.variables)
        assert self._champion() != self.good
        assert self._distinct_images() == 1

    def check(self) -> None:
        assert self._champion() == self.good
        assert self._ledger()[-1]["action"] == "rollback"

    def _champion(self) -> str:
        """Folder of the version that MLflow names the champion."""
        return mlflow_of(self.stack).get_model_version_by_alias("genmod-vae", "champion").source

    def _ledger(self) -> list[dict[str, Any]]:
        store = self.stack.store()
        paths = sorted(store.find("genmod/undisturbed/promotions/vae"))
        return [json.loads(store.cat(path)) for path in paths if "/promotion-" in path]

    def _distinct_images(self) -> int:
        """How many different images the dataset of the newest champion has."""
        store, digests = self.stack.store(), set()
        for path in store.find(f"{self.root}/samples/vae"):
            if path.endswith(".tar"):
                with tarfile.open(fileobj=io.BytesIO(store.cat(path))) as tar:
                    for member in tar:
                        if member.name.endswith(".png"):
                            image = tar.extractfile(member)
                            assert image is not None
                            digests.add(hashlib.sha256(image.read()).hexdigest())
        return len(digests)


class StolenToken(Fault):
    """A thief has a copy of Ray's token and runs a job with it, next to one of ours."""

    def make(self) -> None:
        self.job_that_trains("stolen-token")
        self.old = self.stack.token()
        body = json.dumps({"entrypoint": "sleep 86399", "submission_id": "not-ours"}).encode()
        assert self._ask("/api/jobs/", self.old, body) == 200
        wait_until(lambda: self.stack.processes("sleep 86399"), "the thief's job")
        self.thief = self.stack.processes("sleep 86399")

    def check(self) -> None:
        assert self.stack.token() != self.old
        assert self._ask("/api/version", self.old) == int(self.sign("403"))
        assert self._ask("/api/version", self.stack.token()) == 200
        assert not any(map(psutil.pid_exists, self.thief))
        self.check_results()

    def _ask(self, path: str, token: str, body: bytes | None = None) -> int:
        """Status of a request with this token."""
        url = f"http://127.0.0.1:{self.stack.environment['GENMOD_RAY_PORT']}{path}"
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        try:
            with urllib.request.urlopen(
                urllib.request.Request(url, body, headers), timeout=30
            ) as answer:
                return answer.status
        except urllib.error.HTTPError as error:
            return error.code


class StoreCredentials(Fault):
    """Somebody else has the store's key, while a job uses it."""

    def make(self) -> None:
        self.job_that_trains("store-credentials")
        self.old = self.stack.store_key()
        assert self._lists(*self.old)

    def check(self) -> None:
        assert self.stack.store_key()[0] != self.old[0]
        assert not self._lists(*self.old)
        assert self._lists(*self.stack.store_key())
        self.check_results()

    def _lists(self, key: str, secret: str) -> bool:
        """Whether the store shows its objects to this key."""
        url = f"http://127.0.0.1:{self.stack.environment['GENMOD_STORE_PORT']}"
        store = fsspec.filesystem(
            "s3", key=key, secret=secret, endpoint_url=url, skip_instance_cache=True
        )
        try:
            return bool(store.ls("genmod"))
        except PermissionError:
            return False


class Upgrade(Fault):
    """A new version of genmod arrives while a job trains with the old one."""

    def make(self) -> None:
        self.job_that_trains("upgrade")
        self.old = self._version()
        changed = self.stack.upstream / "genmod" / "rng.py"
        changed.write_text(changed.read_text() + "\n# The next version.\n")
        commit(self.stack.upstream, "genmod: the next version")

    def check(self) -> None:
        assert self._version() != self.old
        text = (self.stack.clone / "genmod" / "rng.py").read_text()
        assert text.endswith("# The next version.\n")
        self.check_results()

    def _version(self) -> str:
        return self.stack.bash("genmod --version")


def mlflow_of(stack: GamedayStack) -> Any:
    """A client of the stack's MLflow."""
    from mlflow import MlflowClient

    return MlflowClient(f"http://127.0.0.1:{stack.environment['GENMOD_MLFLOW_PORT']}")


def runs_of(stack: GamedayStack, experiment: str) -> Counter[tuple[str, str]]:
    """How many runs of an experiment have this name and status."""
    client = mlflow_of(stack)
    found = client.get_experiment_by_name(experiment)
    runs = client.search_runs([found.experiment_id], max_results=1_000)
    return Counter((str(run.info.run_name), str(run.info.status)) for run in runs)


class RestoringMLflow(Fault):
    """MLflow's database is lost; the backup is older than the newest runs and the champion."""

    def prepare(self) -> None:
        self.use("restore", promote=WEAK, tracking={"experiment": "restore"})
        self.variables["BACKUP"] = str(self.stack.folder / "backup")
        self.stack.undisturbed()
        self.stack.copy_dataset(self.root)
        self.stack.bash('genmod submit train --recipe "$RECIPE"', self.variables)

    def make(self) -> None:
        run = 'genmod submit run --recipe "$RECIPE"; genmod promote --recipe "$RECIPE"'
        self.stack.bash(run, self.variables)
        self.before = runs_of(self.stack, "restore")
        say(f"runs: {sorted(self.before)}")
        self.champion = self._champion()
        for pid in self.stack.processes("mlflow"):
            os.kill(pid, signal.SIGKILL)
        for path in (self.stack.place / "mlflow").glob("mlflow.db*"):
            path.unlink()
        later = "--set sample.output=later --set sample.count=40"
        text = self.stack.bash(f'genmod submit sample --recipe "$RECIPE" {later}', self.variables)
        assert "MLflow" in text

    def check(self) -> None:
        after = runs_of(self.stack, "restore")
        say(f"runs: {sorted(after)}")
        assert not self.before - after, "a run that is newer than the backup is missing"
        (late,) = after - self.before
        assert "sample" in late[0], "the run of the time without MLflow is missing"
        assert not self.stack.store().find(f"{self.root}/spool")
        assert self._champion() == self.champion

    def _champion(self) -> str:
        """Folder of the version that MLflow names the champion."""
        client = mlflow_of(self.stack)
        return client.get_model_version_by_alias("restore-vae", "champion").source
