"""Jobs on a real Ray head, submitted from other processes as users do."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tarfile

import pytest

from genmod.errors import ConfigError
from tests.processes import TIMEOUT_S

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture
def jobs(head):
    """A client of the head. This process's own Ray has another token."""
    from cluster.jobs import Jobs

    return Jobs(head.address, head.token)


@pytest.fixture
def request_for(tmp_path):
    from cluster.jobs import JobRequest

    (tmp_path / "hello.txt").write_text("hello")

    def make(name: str, entrypoint: str):
        return JobRequest(name=name, entrypoint=entrypoint, working_dir=str(tmp_path))

    return make


def test_a_second_submission_follows_the_first_and_a_third_is_a_new_attempt(
    jobs, request_for, tmp_path_factory
):
    go = tmp_path_factory.mktemp("go") / "go"
    waits = f"until [ -e {go} ]; do sleep 0.2; done"
    request = request_for("twice", f"cat hello.txt; {waits}; echo; echo end; exit 2")
    first, started = jobs.submit(request)
    assert (first, started) == ("twice", True)
    assert jobs.submit(request) == ("twice", False)
    go.touch()
    shown: list[str] = []
    state = jobs.follow(first, shown.append)
    assert (state.status, state.exit_code, state.ended) == ("FAILED", 2, True)
    assert "hello" in "".join(shown)
    assert "\nend\n" in "".join(shown)  # Ray may print the exit of the command after that
    again: list[str] = []
    jobs.follow(first, again.append)
    assert "".join(again) == "".join(shown) == jobs.logs(first)
    assert jobs.submit(request_for("twice", "true")) == ("twice-2", True)
    assert jobs.follow("twice-2", shown.append).exit_code == 0
    with pytest.raises(ConfigError, match="no job 'nobody'"):
        jobs.state("nobody")


def test_a_wrong_token_and_a_dead_address_are_one_line(head, tmp_path):
    """In other processes, because Ray reads the token once."""
    wrong = subprocess.Popen(
        [sys.executable, "-m", "pipelines", "submit", "--status", "x", "--address", head.address],
        env=head.environment() | {"RAY_AUTH_TOKEN": "0" * 64},
        stderr=subprocess.PIPE,
        text=True,
    )
    dead = subprocess.run(
        [
            sys.executable,
            "-m",
            "pipelines",
            "submit",
            "--status",
            "x",
            "--address",
            "http://127.0.0.1:9",
        ],
        env=head.environment(),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert (dead.returncode, dead.stderr.count("\n")) == (2, 1)
    assert "no Ray job server" in dead.stderr
    stderr = wrong.communicate(timeout=TIMEOUT_S)[1]
    assert (wrong.returncode, stderr.count("\n")) == (2, 1)
    assert "token" in stderr


DRIVER = """
import ray
ray.init()
work = ray.remote(lambda: print("in a worker, password: pl4nted-word"))
ray.get(work.remote())
print("the end, token=pl4nted-token")
"""


def test_a_bundle_of_a_job_has_its_log_and_those_of_its_workers_and_no_secret(
    head, jobs, request_for, tmp_path
):
    (tmp_path / "driver.py").write_text(DRIVER)
    root = tmp_path / "run"
    root.mkdir()
    (root / "claim.json").write_text("{}")
    request = request_for("genmod-train-0123456789ab", "python driver.py genmod").model_copy(
        update={"metadata": {"root": str(root)}, "env": {"MY_TOKEN": "pl4nted-variable"}}
    )
    job_id, _ = jobs.submit(request)
    assert jobs.follow(job_id, lambda text: None).exit_code == 0
    out = tmp_path / "bundle.tar.gz"
    words = ["bundle", job_id, "--address", head.address, "--address", head.gcs, "--out", str(out)]
    done = subprocess.run(
        [sys.executable, "-m", "pipelines", *words],
        env=head.environment(),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    with tarfile.open(out) as tar:
        files = {m.name.partition("/")[2]: tar.extractfile(m).read() for m in tar.getmembers()}
    job = json.loads(files["job.json"])
    assert (job["status"], job["environment"]) == ("SUCCEEDED", ["MY_TOKEN"])
    assert b"the end, token=***" in files["job.log"]
    assert "root/claim.json" in files
    logs = [text for name, text in files.items() if "/logs/worker-" in name]
    assert any(b"in a worker, password: ***" in text for text in logs)
    assert any("/logs/raylet.out" in name for name in files)
    assert not [name for name, text in files.items() if b"pl4nted" in text]
    assert not [name for name, text in files.items() if head.token.encode() in text]


def _recipe(tmp_path, source: str):
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"root: {tmp_path}/root\n"
        f"data: {{source: '{source}', shard_rows: 600}}\n"
        "model: {vae: {family: vae}}\n"
        "tracking: {enabled: false}\n"
    )
    return path


def _genmod(head, *words: str, **more):
    return subprocess.Popen(
        [sys.executable, "-m", "pipelines", "submit", *words, "--address", head.address],
        env=head.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **more,
    )


def test_a_stage_runs_as_a_job_and_returns_its_exit_code(head, tmp_path):
    recipe = str(_recipe(tmp_path, "builtin:digits"))
    nowhere = tmp_path / "nowhere"
    good = _genmod(head, "shard", "--recipe", recipe, "--json")
    bad = _genmod(head, "shard", "--recipe", recipe, "--set", f"data.source=folder:{nowhere}")
    stdout, stderr = good.communicate(timeout=TIMEOUT_S)
    assert good.returncode == 0, stderr
    answer = json.loads(stdout.splitlines()[-1])
    assert (answer["stage"], answer["status"]) == ("shard", "done")
    assert answer["job"].startswith("genmod-shard-")
    assert (tmp_path / "root" / "data" / "dataset.json").exists()
    _, stderr = bad.communicate(timeout=TIMEOUT_S)
    assert bad.returncode == 2, stderr
    assert str(nowhere) in stderr


@pytest.mark.long
def test_the_whole_run_is_a_job(head, tmp_path):
    """The quickstart in small: three families, real digits, MLflow in the job."""
    small = (
        *(f"model.{name}.train.nimg=256" for name in ("vae", "gan", "diffusion")),
        *("train.workers=1", "train.grid_every_nimg=null", "score.max_rows=8"),
        *("sample.count=40", "sample.shard_rows=40", "evaluate.images=40"),
        *("evaluate.features.kind=pca", f"root={tmp_path}/root"),
    )
    assignments = [word for text in small for word in ("--set", text)]
    process = _genmod(head, "run", "--recipe", "quickstart", *assignments, "--json")
    stdout, stderr = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, stderr
    answer = json.loads(stdout.splitlines()[-1])
    assert (answer["stage"], answer["status"]) == ("run", "done")
    assert (tmp_path / "root" / "report" / "report.html").stat().st_size > 10_000
    assert (tmp_path / "root" / "mlflow.db").exists()
    assert "report:" in stderr


def test_a_job_runs_on_without_followers_until_it_is_stopped(head, jobs, request_for):
    jobs.submit(request_for("long", "echo started; sleep 600"))
    follower = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import signal\n"  # background jobs of a shell ignore interrupts
            "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
            "from cluster.environment import set_environment; set_environment()\n"
            "from cluster.jobs import Jobs\n"
            f"Jobs('{head.address}').follow('long', lambda text: print(text, flush=True))",
        ],
        env=head.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert follower.stdout is not None
    for line in follower.stdout:
        if "started" in line:
            break
    follower.send_signal(signal.SIGINT)
    assert follower.wait(TIMEOUT_S) != 0
    assert jobs.state("long").status == "RUNNING"
    stop = _genmod(head, "--stop", "long")
    _, stderr = stop.communicate(timeout=TIMEOUT_S)
    assert stop.returncode == 0
    assert "STOPPED" in stderr
    assert jobs.state("long").status == "STOPPED"
