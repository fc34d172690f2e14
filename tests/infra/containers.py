"""podman in a storage of the tests' own: images built once a session, everything removed at its end.

The variables of the environment that it reads are :data:`STORAGE_VARIABLE` and :data:`BASE_VARIABLE`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.processes import TIMEOUT_S

ROOT = Path(__file__).parents[2]
PROGRAMS = ("podman", "buildah", "runc", "iptables", "catatonit")
STORAGE_VARIABLE = "GENMOD_TEST_STORAGE"
"""A folder in which podman's storage is kept between sessions; its base and layers are used again."""
BASE_VARIABLE = "GENMOD_TEST_BASE"
"""An image to build on; by default infra/images/base makes one, by mmdebstrap."""

_OF_CLUSTERS = ("RAY_", "AWS_", "MLFLOW_", "GENMOD_")


def reason_to_skip() -> str:
    """Why this machine builds no images and starts no containers; empty if it does."""
    if os.geteuid():
        return "needs root"
    missing = [name for name in PROGRAMS if not shutil.which(name)]
    if not os.environ.get(BASE_VARIABLE) and not shutil.which("mmdebstrap"):
        missing.append("mmdebstrap")
    packages = "podman buildah runc netavark aardvark-dns catatonit iptables mmdebstrap"
    return f"needs {' '.join(missing)} (Debian: {packages})" if missing else ""


@dataclass(frozen=True)
class Podman:
    """Programs that use one storage."""

    environment: dict[str, str]

    def run(
        self, *words: str | Path, check: bool = True, **more: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a program of this machine, with further variables."""
        done = subprocess.run(
            words, env=self.environment | more, cwd=ROOT, timeout=4 * TIMEOUT_S,
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0 or not check, (
            f"{words}: {done.stdout[-2000:]}{done.stderr[-4000:]}"
        )
        return done

    def podman(self, *words: str) -> str:
        """What podman prints."""
        return self.run("podman", *words).stdout

    def inside(self, image: str, *words: str, options: tuple[str, ...] = ()) -> str:
        """What a program prints in a container with a read-only root and no capabilities."""
        safe = (
            "--rm",
            "--network=none",
            "--read-only",
            "--cap-drop=ALL",
            "--security-opt=no-new-privileges",
        )
        return self.podman("run", *safe, "--shm-size=1g", *options, image, *words)


@contextmanager
def storage() -> Generator[Podman]:
    """podman with its own storage, which is removed unless :data:`STORAGE_VARIABLE` names it."""
    kept = os.environ.get(STORAGE_VARIABLE)
    folder = Path(kept or tempfile.mkdtemp(prefix="gmimages-"))
    folder.mkdir(exist_ok=True)
    (folder / "storage.conf").write_text(
        f'[storage]\ndriver = "overlay"\ngraphroot = "{folder}/storage"\nrunroot = "{folder}/run"\n'
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith(_OF_CLUSTERS)}
    podman = Podman(environment | {"CONTAINERS_STORAGE_CONF": str(folder / "storage.conf")})
    settings = (
        "cd infra; . ./common.sh; . ./containers.sh; container_settings $0; echo $CONTAINERS_CONF"
    )
    conf = podman.run("bash", "-c", settings, folder).stdout.strip()
    podman = Podman(podman.environment | ({"CONTAINERS_CONF": conf} if conf else {}))
    try:
        yield podman
    finally:
        if not kept:
            podman.run("podman", "rm", "--all", "--force", "--time=0", check=False)
            podman.run("podman", "volume", "rm", "--all", "--force", check=False)
            podman.run("podman", "rmi", "--all", "--force", check=False)
            for mount in reversed(Path("/proc/self/mounts").read_text().splitlines()):
                if mount.split()[1].startswith(f"{folder}/"):
                    subprocess.run(["umount", mount.split()[1]], check=False)
            shutil.rmtree(folder)


def base(podman: Podman) -> str:
    """The image to build on; made if it is absent."""
    if named := os.environ.get(BASE_VARIABLE):
        return named
    name = "localhost/genmod-base:bookworm"
    if podman.run("podman", "image", "exists", name, check=False).returncode:
        podman.run("infra/images/base")
    return name
