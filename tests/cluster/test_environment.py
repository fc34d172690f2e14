"""Workers receive addresses of stores and storage settings, from a job and from a program that connects."""

import json

import pytest

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
