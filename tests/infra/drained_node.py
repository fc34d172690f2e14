"""The fault of the entry about draining: a cluster of three nodes, since the stack takes only one."""

from __future__ import annotations

import json
import secrets
import shutil
import tempfile
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.infra import runbook
from tests.infra.fault import Fault
from tests.infra.gameday_stack import GamedayStack, say, wait_until
from tests.processes import free_ports, kill_marked

MARK = "GENMOD_TEST_NODE"
_OPTIONS = ("node-manager", "object-manager", "dashboard-agent-listen", "dashboard-agent-grpc")
_OPTIONS = (*_OPTIONS, "runtime-env-agent", "metrics-export")


class DrainedNode(Fault):
    """A node that trains must be stopped; the job goes to the others, without being given again."""

    def __init__(self, stack: GamedayStack, entry: runbook.Entry) -> None:
        super().__init__(stack, entry)
        self.folder = Path(tempfile.mkdtemp(prefix="gmd-"))  # short: a socket's path has a limit
        self.marks: list[str] = []
        self.gcs, self.port, client = free_ports(3)
        place = stack.disk / "local-drain"
        place.mkdir(exist_ok=True)
        text = (stack.place / "env").read_text()
        url = f"http://127.0.0.1:{self.port}"
        (place / "env").write_text(f"{text}export RAY_API_SERVER_ADDRESS={url}\n")
        self.variables |= {"GENMOD_PROJECT": "drain", "GENMOD_GCS_PORT": str(self.gcs)}
        self.head = f"--head --port={self.gcs} --dashboard-port={self.port} --ray-client-server-port={client}"

    def make(self) -> None:
        self._start("head", self.head)
        for name in ("one", "two"):
            self._start(name, f"--address=127.0.0.1:{self.gcs}")
        self.job_that_trains("drain")
        self.node = self._training_node()
        self.variables["NODE"] = self._nodes()[self.node]["node_id"]

    def check(self) -> None:
        assert self._nodes()[self.node]["state"] == self.sign_of_check("DEAD")
        (job,) = self.jobs
        assert job.process.wait(60) == 0, job.text[-3000:]
        self.check_results()

    def sign_of_check(self, text: str) -> str:
        """A text that the entry names."""
        assert text in self.entry.text
        return text

    def close(self) -> None:
        super().close()
        for mark in self.marks:
            kill_marked(MARK, mark)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _start(self, name: str, options: str) -> None:
        """Start a node of one CPU whose resources have its name."""
        self.marks.append(secrets.token_hex(8))
        ports = free_ports(len(_OPTIONS))
        options += "".join(f" --{o}-port={p}" for o, p in zip(_OPTIONS, ports, strict=True))
        say(f"{self.entry.title}: the node {name} starts")
        self.stack.bash(
            f"ray start {options} --num-cpus=1 --min-worker-port=0 --max-worker-port=0 "
            f"--object-store-memory=100000000 --disable-usage-stats --temp-dir={self.folder}/ray "
            f"""--resources='{{"node_{name}": 1}}' >{self.folder}/{name}.log 2>&1""",
            {**self.variables, MARK: self.marks[-1], "OMP_NUM_THREADS": "1",
             "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
             "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1"},
        )  # fmt: skip

    def _nodes(self) -> dict[str, dict[str, Any]]:
        """State of each node, by its name."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/api/v0/nodes?detail=true",
            headers={"Authorization": f"Bearer {self.stack.token()}"},
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            rows = json.load(answer)["data"]["result"]["result"]
        return {
            resource.removeprefix("node_"): row
            for row in rows
            for resource in row["resources_total"]
            if resource.startswith("node_") and not resource.startswith("node_:")
        }

    def _training_node(self) -> str:
        """Name of a node, other than the head, that has a training worker."""
        found: list[str] = []

        def look() -> bool:
            found[:] = [
                name
                for name, mark in zip(("one", "two"), self.marks[1:], strict=True)
                if any("RayTrainWorker" in text for text in _commands(mark))
            ]
            return bool(found)

        wait_until(look, "a training worker on a node other than the head")
        return found[0]


def _commands(mark: str) -> list[str]:
    """Commands of the processes with this mark."""
    entry, found = f"{MARK}={mark}".encode(), []
    for process in Path("/proc").iterdir():
        with suppress(OSError):
            if process.name.isdecimal() and entry in (process / "environ").read_bytes().split(
                b"\0"
            ):
                found.append((process / "cmdline").read_bytes().decode(errors="replace"))
    return found
