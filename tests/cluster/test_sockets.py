"""A local run opens no socket that another machine can reach, and no folder that another user can enter."""

from __future__ import annotations

import ipaddress
import os
import socket
import stat
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.processes import TIMEOUT_S

pytestmark = [pytest.mark.ray, pytest.mark.slow]

RECIPE = """
root: {root}
data: {{source: "builtin:digits", shard_rows: 600}}
model:
  vae: {{family: vae, net: {{latents: 4, widths: [8]}}}}
train: {{nimg: 6000, batch: 16, workers: 2, grid_every_nimg: null}}
sample: {{count: 20, shard_rows: 10, micro_batch: 10, workers: 2}}
score: {{max_rows: 8}}
evaluate: {{images: 20, features: {{kind: pca}}}}
tracking: {{enabled: false}}
"""


class Observer:
    """Collects the sockets of a process and of all its descendants."""

    def __init__(self, root: psutil.Process) -> None:
        self.root = root
        self.names: dict[int, set[str]] = {root.pid: {"driver"}}
        """Every name that a process had: Ray's workers change theirs."""
        self.servers: dict[tuple[str, int], int] = {}
        """Address and port of each socket that waits for others -> its process."""
        self.folders: dict[Path, int] = {}
        """Folders of the sockets that are files -> the modes of the folders above them, combined by and."""

    def observe(self) -> None:
        for process in self.root.children(recursive=True):
            with suppress(psutil.Error):
                self.names.setdefault(process.pid, set()).add(process.name())
        for entry in psutil.net_connections("inet"):
            # A UDP socket that is connected hears its peer alone.
            udp = entry.type == socket.SOCK_DGRAM and not entry.raddr
            waits = entry.status == psutil.CONN_LISTEN or udp
            if entry.pid in self.names and waits and entry.laddr:
                self.servers[entry.laddr.ip, entry.laddr.port] = entry.pid
        for entry in psutil.net_connections("unix"):
            if entry.pid in self.names and str(entry.laddr).startswith("/"):
                self._note_folder(Path(str(entry.laddr)).parent)

    def _note_folder(self, folder: Path) -> None:
        with suppress(FileNotFoundError):
            mode = 0o777
            for parent in (folder, *folder.parents):
                mode &= stat.S_IMODE(parent.stat().st_mode)
            self.folders[folder] = mode


def test_a_local_run_listens_on_the_loopback_interface_alone(tmp_path):
    recipe, log = tmp_path / "recipe.yaml", tmp_path / "log"
    recipe.write_text(RECIPE.format(root=tmp_path / "root"))
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    command = [sys.executable, "-m", "pipelines", "run", "--recipe", str(recipe)]
    with log.open("wb") as stream:
        driver = subprocess.Popen(command, env=environment, stdout=stream, stderr=stream)
    deadline_s = time.monotonic() + TIMEOUT_S
    try:
        observer = Observer(psutil.Process(driver.pid))
        while driver.poll() is None:
            observer.observe()
            assert time.monotonic() < deadline_s
            time.sleep(0.05)
        assert driver.returncode == 0, log.read_text()[-3000:]
    finally:
        driver.kill()
        driver.wait()
    names = {
        name.split(".")[0] for pid in observer.servers.values() for name in observer.names[pid]
    }
    assert {"driver", "raylet", "gcs_server", "ray::RayTrainWorker"} <= names, names
    assert len(observer.servers) > 15
    reachable = {
        f"{address}:{port} ({', '.join(observer.names[pid])})"
        for (address, port), pid in observer.servers.items()
        if not _is_loopback(address)
    }
    assert not reachable
    assert observer.folders
    assert {folder: mode & 0o077 for folder, mode in observer.folders.items() if mode & 0o077} == {}
    assert not [folder for folder in observer.folders if folder.exists()], "left behind"


def _is_loopback(text: str) -> bool:
    address = ipaddress.ip_address(text)
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback
