"""The stack of gameday: infra/local/up in a clone, on free ports, with its state on a disk of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import fsspec
import yaml

from genmod.interface.external import FAMILIES_VARIABLE
from tests.infra.checkout import make_checkout
from tests.processes import TIMEOUT_S, free_ports

PORTS = ("GENMOD_RAY_PORT", "GENMOD_GCS_PORT", "GENMOD_MLFLOW_PORT", "GENMOD_STORE_PORT")
_OF_CLUSTERS = ("RAY_", "AWS_", "MLFLOW_", "GENMOD_", "PYTHON")
DISK_BYTES = 8 << 30

MODEL = {"family": "vae", "net": {"latents": 4, "widths": [8]}}

RECIPE: dict[str, Any] = {
    "seed": 3,
    "data": {"source": "builtin:digits", "shard_rows": 200, "splits": {"val": 0.1, "test": 0.2}},
    "model": {"vae": MODEL},
    "train": {
        "nimg": 24_000,
        "batch": 16,
        "workers": 2,
        "log_every_nimg": 1_600,
        "checkpoint_every_nimg": 1_600,
        "validate_every_nimg": None,
        "grid_every_nimg": None,
        "max_failures": 3,
    },
    "sample": {"count": 120, "shard_rows": 20, "micro_batch": 20, "workers": 2},
    "score": {"max_rows": 50, "workers": 2},
    "evaluate": {
        "images": 100,
        "memorisation_calibration": 100,
        "features": {"kind": "pca"},
    },
}

MANIFESTS = ("data/dataset.json", "models/vae/model.json")


def say(text: str) -> None:
    """Print a line at once."""
    print(text, flush=True)


def wait_until(holds: Callable[[], Any], what: str, timeout_s: float = TIMEOUT_S) -> None:
    """Wait for an event. AssertionError if it does not happen in time."""
    end_s = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < end_s, f"{what} did not happen"
        time.sleep(0.2)


class GamedayStack:
    """A stack that runs, its clone, and the jobs that are sent to it."""

    def __init__(self, folder: Path, settings: str) -> None:
        self.folder, self.settings = folder, settings
        self.upstream, self.clone = make_checkout(folder)
        kept = {k: v for k, v in os.environ.items() if not k.startswith(_OF_CLUSTERS)}
        ports = dict(zip(PORTS, map(str, free_ports(len(PORTS))), strict=True))
        self.disk = folder / "disk"
        self.disk.mkdir()
        self.environment = {
            **kept,
            **ports,
            "GENMOD_STATE": str(self.disk),
            "GENMOD_START_S": "600",
            "RAY_worker_niceness": "0",
            FAMILIES_VARIABLE: str(self.clone / "tests" / "families"),
        }
        self.place = self.disk / "local-genmod"
        self._undisturbed: dict[str, str] = {}

    @classmethod
    @contextmanager
    def started(cls, settings: str) -> Iterator[GamedayStack]:
        """A stack that is stopped and removed at the end, also after an error."""
        folder = Path(tempfile.mkdtemp(prefix="gameday-"))
        stack, has_disk = cls(folder, settings), False
        try:
            if is_root():
                subprocess.run(
                    ["mount", "-t", "tmpfs", f"-osize={DISK_BYTES}", "gameday", str(stack.disk)],
                    check=True,
                )
                has_disk = True
            stack.bash("infra/local/up", needs_settings=False)
            yield stack
        finally:
            stack.bash("infra/local/down --volumes", needs_settings=False)
            if has_disk:
                subprocess.run(["umount", str(stack.disk)], check=True)
            shutil.rmtree(folder)

    def bash(
        self, block: str, variables: Mapping[str, str] | None = None, *, needs_settings: bool = True
    ) -> str:
        """Run a block in the root of the clone, after the page's settings; what it printed."""
        text = f"{self.settings}\n{block}" if needs_settings else block
        start_s = time.monotonic()
        with subprocess.Popen(
            ["bash", "-euo", "pipefail", "-c", text],
            cwd=self.clone, env=self.environment | dict(variables or {}),
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            errors="replace",
        ) as process:  # fmt: skip
            assert process.stdout is not None
            lines = []
            try:
                for line in process.stdout:
                    sys.stdout.write(f"  | {line}")
                    sys.stdout.flush()
                    lines.append(line)
            except BaseException:
                process.kill()
                raise
        say(f"  ({time.monotonic() - start_s:.0f} s)")
        assert process.returncode == 0, f"exit code {process.returncode} of\n{block}"
        return "".join(lines)

    def start(self, block: str, variables: Mapping[str, str]) -> Job:
        """Start a block, which submits a job."""
        log = self.folder / f"job-{time.time_ns()}.log"
        with log.open("wb") as stream:
            process = subprocess.Popen(
                ["bash", "-euo", "pipefail", "-c", f"{self.settings}\n{block}"],
                cwd=self.clone, env=self.environment | dict(variables),
                stdin=subprocess.DEVNULL, stdout=stream, stderr=stream,
            )  # fmt: skip
        return Job(process, log)

    def recipe(self, name: str, **changes: Any) -> tuple[Path, str]:
        """A recipe's file, and its root, which has this name."""
        root, path = f"s3://genmod/{name}", self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump({"root": root, **RECIPE, **changes}))
        return path, root

    def store(self) -> Any:
        """The store's file system, with the key of now."""
        key, secret = self.store_key()
        url = f"http://127.0.0.1:{self.environment['GENMOD_STORE_PORT']}"
        return fsspec.filesystem(
            "s3", key=key, secret=secret, endpoint_url=url, skip_instance_cache=True,
            use_listings_cache=False,
        )  # fmt: skip

    def store_key(self) -> tuple[str, str]:
        """Key and secret of the store."""
        lines = (self.place / "secrets" / "aws").read_text().splitlines()
        key, secret = (line.split(" = ")[1] for line in lines[1:3])
        return key, secret

    def token(self) -> str:
        """Ray's token of now."""
        return (self.place / "secrets" / "ray_token").read_text().strip()

    def digests(self, root: str) -> dict[str, str]:
        """Digest of each result below a root."""
        store = self.store()
        return {name: json.loads(store.cat(f"{root}/{name}"))["digest"] for name in MANIFESTS}

    def undisturbed(self) -> dict[str, str]:
        """Digests of dataset and model of a run that nothing disturbs; it runs once."""
        if not self._undisturbed:
            path, root = self.recipe("undisturbed")
            for stage in ("shard", "train"):
                say(f"an undisturbed {stage}")
                self.bash(f'genmod submit {stage} --recipe "$RECIPE"', {"RECIPE": str(path)})
            self._undisturbed = self.digests(root)
        return self._undisturbed

    def copy_dataset(self, root: str) -> None:
        """Copy the dataset of the undisturbed run to another root."""
        store = self.store()
        for path in sorted(store.find("genmod/undisturbed/data")):
            store.copy(path, path.replace("genmod/undisturbed", root.removeprefix("s3://"), 1))

    def processes(self, *words: str) -> list[int]:
        """Ids of the stack's processes whose command has these words."""
        mark = f"GENMOD_STACK_MARK={(self.place / 'mark').read_text().strip()}".encode()
        found = []
        for entry in Path("/proc").iterdir():
            with suppress(OSError):
                if entry.name.isdecimal() and mark in (entry / "environ").read_bytes().split(b"\0"):
                    command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                    if all(word in command for word in words):
                        found.append(int(entry.name))
        return found


class Job:
    """A started ``genmod submit``, and what it printed."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process, self.log = process, log

    @property
    def text(self) -> str:
        """What it has printed so far."""
        return self.log.read_text(errors="replace")

    @property
    def id(self) -> str:
        """The job's id, as soon as it is printed."""
        wait_until(lambda: "submitted genmod-" in self.text or self.ended, "the submission", 120)
        words = self.text.split()
        assert "submitted" in words, self.text
        return words[words.index("submitted") + 1]

    @property
    def ended(self) -> bool:
        """Whether the command, not the job, has ended."""
        return self.process.poll() is not None

    def wait_for(self, holds: Callable[[], Any], what: str) -> None:
        """Wait for an event. AssertionError if the command ends before."""
        wait_until(lambda: holds() or self.ended, what)
        assert not self.ended, f"the job ended before {what}: {self.text[-3000:]}"

    def fails(self, sign: str, timeout_s: float = TIMEOUT_S) -> None:
        """Wait for the end of the command, which must be exit code 1 or 2 and this text."""
        code = self.process.wait(timeout_s)
        say("".join(f"  | {line}\n" for line in self.text.splitlines()[-8:]))
        assert code in (1, 2), f"exit code {code}"
        assert sign in " ".join(self.text.split()), sign

    def close(self) -> None:
        """End the command."""
        self.process.kill()
        self.process.wait()


def is_root() -> bool:
    """Whether a disk can be mounted."""
    return os.geteuid() == 0
