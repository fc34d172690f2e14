"""Workers receive addresses of stores and storage settings, from a job and from a program that connects."""

import json
import os
import stat
import subprocess
import sys

import pytest

from tests.processes import TIMEOUT_S

PROGRAM = """
import json, os, subprocess, sys
from cluster.environment import set_environment
set_environment()
if sys.argv[1] == "job":  # a program on the same machine that Ray did not start
    plain = {k: v for k, v in os.environ.items() if not k.startswith("RAY_JOB_")}
    plain |= {"AWS_ENDPOINT_URL": "http://direct", "AWS_SECRET_ACCESS_KEY": "direct"}
    done = subprocess.run([sys.executable, __file__, "direct"], env=plain, text=True, timeout=600)
    assert done.returncode == 0
    os.environ["AWS_REGION"] = "of-the-driver-alone"
os.environ["GENMOD_STORAGE"] = '{"retry_timeout_s": 7}'
from cluster.session import ClusterConfig, connect, disconnect
connect(ClusterConfig())
import ray
def variables():
    names = ("AWS_ENDPOINT_URL", "AWS_SECRET_ACCESS_KEY", "AWS_REGION", "GENMOD_STORAGE")
    return {name: os.environ.get(name) for name in names}
print(json.dumps(ray.get(ray.remote(variables).remote(), timeout=600)), flush=True)
disconnect()
"""


@pytest.mark.ray
@pytest.mark.slow
def test_workers_receive_addresses_but_no_secrets(head, tmp_path, monkeypatch):
    from cluster.jobs import JobRequest, Jobs

    (tmp_path / "program.py").write_text(PROGRAM)
    jobs = Jobs(head.address, head.token)
    request = JobRequest(
        name="variables",
        entrypoint="python program.py job",
        working_dir=str(tmp_path),
        env={"AWS_ENDPOINT_URL": "http://job"},
    )
    job_id, _ = jobs.submit(request)
    lines = []
    state = jobs.follow(job_id, lines.append)
    output = "".join(lines)
    assert state.status == "SUCCEEDED", output
    direct, job = (json.loads(line) for line in output.splitlines() if line.startswith("{"))
    common = {"AWS_SECRET_ACCESS_KEY": None, "GENMOD_STORAGE": '{"retry_timeout_s": 7}'}
    assert direct == common | {"AWS_ENDPOINT_URL": "http://direct", "AWS_REGION": None}
    assert job == common | {"AWS_ENDPOINT_URL": "http://job", "AWS_REGION": None}


LOCAL_PROGRAM = """
from cluster.environment import set_environment
set_environment()
import os
from cluster.session import LOCAL, ClusterConfig, connect, disconnect
from genmod import storage
storage.configure(storage.StorageConfig(retry_timeout_s=7))
connect(ClusterConfig(address=LOCAL, cpus=1))
import ray
def retry_timeout_s():
    return storage.settings().retry_timeout_s
def modules():
    import subprocess, sys
    import colorsys, cluster.session
    command = [sys.executable, "-c", "import colorsys; print(colorsys.__file__)"]
    further = subprocess.run(command, text=True, check=True, stdout=subprocess.PIPE).stdout.strip()
    return [colorsys.__file__, cluster.session.__file__, further]
assert ray.get(ray.remote(retry_timeout_s).remote(), timeout=600) == 7
assert storage.SETTINGS_VARIABLE not in os.environ
for file in ray.get(ray.remote(modules).remote(), timeout=600):
    assert os.path.isfile(file) and os.path.dirname(file) not in (os.getcwd(), HERE), file
disconnect()
"""


@pytest.mark.ray
@pytest.mark.slow
def test_workers_of_a_local_ray_use_the_settings_of_the_command_and_no_module_of_its_folders(
    tmp_path,
):
    """The current folder and the script's folder have modules with names of Python's and of ours."""
    for folder in (tmp_path / "project", tmp_path / "scripts"):
        (folder / "pipelines").mkdir(parents=True)
        for name in ("colorsys.py", "cluster.py", "pipelines/__init__.py"):
            (folder / name).write_text("raise SystemExit('a module of the user')\n")
    script = tmp_path / "scripts" / "program.py"
    script.write_text(f"HERE = {str(script.parent)!r}\n{LOCAL_PROGRAM}")
    done = subprocess.run(
        [sys.executable, "-P", str(script)],
        cwd=tmp_path / "project",
        env={k: v for k, v in os.environ.items() if k != "PYTHONSAFEPATH"},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_python_m_pipelines_imports_nothing_from_the_current_folder(tmp_path):
    for name in ("random.py", "typing.py", "cluster.py", "numpy.py"):
        (tmp_path / name).write_text("raise SystemExit('a module of the user')\n")
    done = subprocess.run(
        [sys.executable, "-m", "pipelines", "--version"],
        cwd=tmp_path,
        env={k: v for k, v in os.environ.items() if k != "PYTHONSAFEPATH"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("genmod ")


USER_PROGRAM = """
import os
if os.getuid() == 0:
    os.setgid(54321)
    os.setuid(54321)
from cluster.environment import set_environment
set_environment()
from pathlib import Path
import getpass
print(Path.home(), getpass.getuser())
"""


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become a user without a name")
def test_a_user_without_a_name_and_without_a_home_gets_both():
    program = (
        "from cluster import environment\n" + USER_PROGRAM
    )  # imported while files are readable
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "/ uid-54321\n", done.stderr


TOKEN_PROGRAM = """
import os
from cluster.environment import set_environment
set_environment()
print(os.environ.get("RAY_AUTH_TOKEN", ""))
"""


def test_the_token_is_for_this_user_alone(tmp_path):
    """Without a token, each process has a new one, and no file has it; an existing file becomes private."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_AUTH")}

    def token() -> str:
        return subprocess.run(
            [sys.executable, "-c", TOKEN_PROGRAM],
            env=environment | {"HOME": str(tmp_path)},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        ).stdout.strip()

    first, second = token(), token()
    assert len(first) == len(second) == 64
    assert first != second
    assert list(tmp_path.iterdir()) == []
    (tmp_path / ".ray").mkdir()
    file = tmp_path / ".ray" / "auth_token"
    file.write_text("0" * 64)
    file.chmod(0o644)
    assert token() == ""
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
