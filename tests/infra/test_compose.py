"""infra/compose.yaml: the stack starts, work goes through it whatever is killed, and nothing is left."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import fsspec
import psutil
import pytest
import yaml

from tests.processes import TIMEOUT_S, free_ports

ROOT = Path(__file__).parents[2]
COMPOSE = yaml.safe_load((ROOT / "infra" / "compose.yaml").read_text())
SERVICES = COMPOSE["services"]
PARTS = [name for name in SERVICES if name != "grafana"]
PORTS = ("RAY", "MLFLOW", "STORE", "PROMETHEUS", "ALERTMANAGER")
VAE = (
    "{family: vae, net: {latents: 4, widths: [8]}, train: {nimg: 24576, batch: 64}, score: {k: 2}}"
)
SMALL = {
    "data.shard_rows": 1000,
    "model": f"{{vae: {VAE}}}",
    "sample.count": 200,
    "sample.shard_rows": 100,
    "score.max_rows": 100,
    "evaluate.reference": "val",
}


@pytest.mark.parametrize("name", SERVICES)
def test_a_part_is_confined(name):
    part = SERVICES[name]
    assert part["read_only"] is True
    assert part["cap_drop"] == ["ALL"]
    assert part["security_opt"] == ["no-new-privileges:true"]
    assert part["user"] == ("472:0" if name == "grafana" else "10001:10001")
    assert all(port.startswith("127.0.0.1:") for port in part.get("ports", ()))
    assert part["mem_limit"]
    assert "healthcheck" in part or name == "grafana"
    assert not part.get("privileged")
    assert "network_mode" not in part
    assert not [
        key for key in part.get("environment", {}) if re.search("PASSWORD|SECRET_|TOKEN$", key)
    ]


def script(name, environment, *words):
    return subprocess.run(
        [ROOT / "infra/compose" / name, *words],
        env=environment, capture_output=True, text=True, timeout=2 * TIMEOUT_S, check=False,
    )  # fmt: skip


def one_line(done, *parts):
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1), done.stderr
    assert all(part in done.stderr for part in parts), done.stderr


def settings(podman, folder, project):
    ports = free_ports(len(PORTS))
    numbers = {f"GENMOD_{name}_PORT": str(port) for name, port in zip(PORTS, ports, strict=True)}
    more = {"GENMOD_PROJECT": project, "GENMOD_STATE": str(folder), "GENMOD_START_S": "1200"}
    return podman.environment | numbers | more


def test_without_podman_it_is_one_line_with_the_packages(tmp_path):
    for name in ("bash", "dirname", "readlink", "python3", "realpath", "nproc"):
        (tmp_path / name).symlink_to(shutil.which(name))
    for name in ("up", "down"):
        done = script(name, os.environ | {"PATH": str(tmp_path)})
        one_line(done, f"{name}: podman is missing", "podman buildah runc netavark")


def test_an_unknown_option_is_one_line():
    one_line(
        script("down", dict(os.environ), "--all"),
        "unknown option --all, expected none or --volumes",
    )


@pytest.mark.long
def test_images_that_are_absent_or_have_no_genmod_are_one_line(podman, base, tmp_path):
    environment = settings(podman, tmp_path, "gmimageless")
    absent = environment | {"GENMOD_IMAGE": "localhost/none:1"}
    one_line(
        script("up", absent), "no image localhost/none:1", "infra/images/build runtime services"
    )
    other = environment | {"GENMOD_IMAGE": base, "GENMOD_SERVICES_IMAGE": base}
    one_line(script("up", other), f"the image {base} has no genmod")
    assert not (tmp_path / "cluster-gmimageless" / "secrets").exists()


@pytest.fixture(scope="module")
def stack(podman, base, tmp_path_factory):
    """Variables of a stack that is up; at the end it is stopped, and what is left of it is looked for."""
    podman.run("infra/images/build", "runtime", "services", BASE=base)
    folder, project = tmp_path_factory.mktemp("stack"), f"gm{os.getpid()}"
    environment = settings(podman, folder, project)
    mounts = Path("/proc/self/mounts").read_text()
    try:
        done = script("up", environment)
        assert done.returncode == 0, done.stderr
        yield environment
    finally:
        down = script("down", environment, "--volumes")
    assert (down.returncode, down.stderr) == (0, "")
    for words in (["ps", "--all"], ["network", "ls"], ["volume", "ls"], ["secret", "ls"]):
        assert project not in podman.podman(*words)
    assert not (folder / f"cluster-{project}").exists()
    left = set(Path("/proc/self/mounts").read_text().splitlines()) - set(mounts.splitlines())
    assert not left
    rules = subprocess.run(["iptables-save"], capture_output=True, text=True, check=False).stdout
    for name in PORTS:
        port = environment[f"GENMOD_{name}_PORT"]
        assert not re.search(rf"dports? {port}\b", rules)
        socket.create_server(("127.0.0.1", int(port))).close()
    assert not [p for p in psutil.process_iter(["environ"]) if project in str(p.info["environ"])]


def secrets_of(environment):
    folder = Path(
        environment["GENMOD_STATE"], f"cluster-{environment['GENMOD_PROJECT']}", "secrets"
    )
    return {path.name: path for path in folder.iterdir()}


def store_of(environment):
    """The bucket's file system, from this machine."""
    text = secrets_of(environment)["aws"].read_text()
    key, secret = (line.split(" = ")[1] for line in text.splitlines()[1:3])
    endpoint = f"http://127.0.0.1:{environment['GENMOD_STORE_PORT']}"
    return fsspec.filesystem(
        "s3", key=key, secret=secret, endpoint_url=endpoint, skip_instance_cache=True
    )


def submit(environment, root):
    """A started ``genmod submit run``, with its log on a pipe."""
    words = [
        w
        for k, v in (SMALL | {"root": f"s3://genmod/{root}"}).items()
        for w in ("--set", f"{k}={v}")
    ]
    words += ["--set", "tracking.uri=http://mlflow:5000"]
    return subprocess.Popen(
        [sys.executable, "-m", "pipelines", "submit", "run", "--recipe", "quickstart", *words],
        env=environment
        | {
            "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{environment['GENMOD_RAY_PORT']}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(secrets_of(environment)["ray_token"]),
            "PYTHONPATH": str(ROOT),
        },
        cwd=environment["GENMOD_STATE"], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
    )  # fmt: skip


def finish(environment, root):
    """Run to the end, giving the same command again where a job failed; the log."""
    log = ""
    for _ in range(6):
        job = submit(environment, root)
        log += job.communicate(timeout=2 * TIMEOUT_S)[1]
        if job.returncode == 0:
            return log
        time.sleep(10)  # a part starts again
    raise AssertionError(log[-6000:])


def digests(environment, root):
    """Digest of each tar, model and score table below a root, by its path."""
    files = store_of(environment)
    found = [p for p in files.find(f"genmod/{root}") if p.endswith((".tar", ".safetensors"))]
    kept = [p for p in found if "/checkpoints/" not in p]
    return {p.partition(f"{root}/")[2]: hashlib.sha256(files.cat(p)).hexdigest() for p in kept}


def ask(environment, name, path):
    url = f"http://127.0.0.1:{environment[f'GENMOD_{name}_PORT']}{path}"
    with urllib.request.urlopen(url, timeout=30) as answer:
        return json.load(answer)


def wait_until(holds, seconds=TIMEOUT_S):
    end_s = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end_s
        time.sleep(1)


@pytest.mark.long
def test_it_is_on_this_machine_alone_and_shows_no_secret(stack, podman):
    texts = [path.read_text().strip() for path in secrets_of(stack).values()]
    words = {word for text in texts for word in re.findall(r"[0-9a-f]{20,}", text)}
    assert len(words) >= 4
    for path in secrets_of(stack).values():
        assert path.stat().st_mode & 0o777 == 0o600
    for process in psutil.process_iter(["cmdline"]):
        assert not words & set(
            re.findall(r"[0-9a-f]{20,}", " ".join(process.info["cmdline"] or ()))
        )
    for part in PARTS:
        shown = podman.podman("inspect", f"{stack['GENMOD_PROJECT']}-{part}")
        assert not [word for word in words if word in shown]
        (container,) = json.loads(shown)
        assert container["HostConfig"]["ReadonlyRootfs"]
        assert container["EffectiveCaps"] == []
    ports = {int(stack[f"GENMOD_{name}_PORT"]) for name in PORTS}
    listening = [
        c.laddr
        for c in psutil.net_connections("tcp")
        if c.status == "LISTEN" and c.laddr.port in ports
    ]
    assert {address.port for address in listening} == ports
    assert {address.ip for address in listening} == {"127.0.0.1"}


@pytest.mark.long
def test_a_second_stack_is_one_line(stack):
    one_line(script("up", stack), f"the stack {stack['GENMOD_PROJECT']} runs already")
    other = stack | {"GENMOD_PROJECT": "gmsecond"}
    one_line(script("up", other), "is in use", "GENMOD_RAY_PORT")


@pytest.mark.long
def test_prometheus_sees_every_part_and_an_alert_arrives(stack, podman):
    def up():
        found = ask(stack, "PROMETHEUS", "/api/v1/query?query=up")["data"]["result"]
        return {x["metric"]["instance"]: x["value"][1] for x in found}

    wait_until(lambda: len(up()) == 6 and set(up().values()) == {"1"})
    groups = ask(stack, "PROMETHEUS", "/api/v1/rules")["data"]["groups"]
    assert {"PartDown", "GenmodStalled"} <= {x["name"] for g in groups for x in g["rules"]}
    worker = f"{stack['GENMOD_PROJECT']}-worker-2"
    podman.podman("stop", "--time=5", worker)
    try:

        def alerts():
            return [x["labels"] for x in ask(stack, "ALERTMANAGER", "/api/v2/alerts")]

        wait_until(lambda: any(x.get("instance") == "worker-2:8080" for x in alerts()))
        of_part = [x for x in alerts() if x.get("instance") == "worker-2:8080"]
        assert {x["alertname"] for x in of_part} == {"PartDown"}
    finally:
        podman.podman("start", worker)
    wait_until(lambda: set(up().values()) == {"1"})


@pytest.mark.long
def test_parts_start_in_any_order(stack, podman):
    """What needs others waits for them at every start."""
    name = stack["GENMOD_PROJECT"]
    slow = [f"{name}-{part}" for part in ("store", "postgres", "head")]
    waiting = [f"{name}-{part}" for part in ("mlflow", "worker-1", "worker-2")]
    podman.podman("stop", "--time=5", *slow, *waiting)
    podman.podman("start", *waiting)
    time.sleep(20)
    for part in slow:
        podman.podman("start", part)
        time.sleep(5)
    for part in (*slow, *waiting):
        healthy = lambda part=part: (
            not podman.run("podman", "healthcheck", "run", part, check=False).returncode
        )
        wait_until(healthy)


@pytest.fixture(scope="module")
def undisturbed(stack):
    """Digests of a run that nothing disturbs."""
    finish(stack, "undisturbed")
    found = digests(stack, "undisturbed")
    assert len(found) > 8
    return found


@pytest.mark.long
@pytest.mark.parametrize("part", ["worker-1", "head", "store", "mlflow", "postgres", "prometheus"])
def test_a_killed_part_changes_no_result(part, stack, undisturbed, podman):
    """The same command again finishes the work, if it has failed at all."""
    root, container = f"killed-{part}", f"{stack['GENMOD_PROJECT']}-{part}"
    job = submit(stack, root)
    for line in job.stderr:
        if "train vae" in line and "images" in line:
            break
    pid = int(podman.podman("inspect", "--format={{.State.Pid}}", container))
    os.kill(pid, signal.SIGKILL)
    job.stderr.read()
    job.wait(TIMEOUT_S)
    finish(stack, root)
    assert digests(stack, root) == undisturbed
    started = podman.podman("inspect", "--format={{.State.Pid}} {{.State.Running}}", container)
    assert started.split()[1] == "true"
    assert int(started.split()[0]) != pid


@pytest.mark.long
def test_runs_are_in_mlflow_with_their_artifacts_in_the_store(stack, undisturbed):
    from mlflow import MlflowClient

    client = MlflowClient(f"http://127.0.0.1:{stack['GENMOD_MLFLOW_PORT']}")
    (experiment,) = [e for e in client.search_experiments() if e.name == "genmod"]
    runs = client.search_runs([experiment.experiment_id])
    assert {run.info.status for run in runs} >= {"FINISHED"}
    assert client.search_registered_models()
    assert store_of(stack).find("mlflow/artifacts")
