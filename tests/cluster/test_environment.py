"""Workers receive addresses of stores and storage settings, from a job and from a program that connects."""

import json
import subprocess
import sys

import pytest

from tests.processes import TIMEOUT_S

pytestmark = [pytest.mark.ray, pytest.mark.slow]

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
assert ray.get(ray.remote(retry_timeout_s).remote(), timeout=600) == 7
assert storage.SETTINGS_VARIABLE not in os.environ
disconnect()
"""


def test_workers_of_a_local_ray_use_the_settings_of_the_command(tmp_path):
    (tmp_path / "program.py").write_text(LOCAL_PROGRAM)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "program.py")],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
