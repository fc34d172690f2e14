"""``genmod bundle``: what explains a problem is in one file, and no planted secret is."""

import json
import os
import signal
import stat
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest

from cluster.heartbeats import stack_file
from cluster.node_logs import node_texts, read_tail
from genmod import storage
from genmod.receipts import write_segment
from pipelines.cli import main
from pipelines.commands import bundle as bundles
from pipelines.tracking.redact import redact_foreign
from tests.builders import SMALL_SPEC, write_noise

SECRET = "pl4nted"
"""In every planted secret, so that a search of all bytes finds each of them."""

ENVIRONMENT = {
    "AWS_SECRET_ACCESS_KEY": f"{SECRET}/aws+key",
    "MLFLOW_TRACKING_PASSWORD": f"{SECRET}-mlflow",
    "MY_SERVICE_TOKEN": f"{SECRET}-service",
    "HTTPS_PROXY": f"http://me:{SECRET}-proxy@proxy.example:3128",
}


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A root with a dataset, receipts, a claim, a stack, and secrets in documents, names and logs."""
    for name in ("RAY_TMPDIR", "TMPDIR"):
        monkeypatch.setenv(name, str(tmp_path / "tmp"))
    monkeypatch.setattr("tempfile.tempdir", None)
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    token = tmp_path / "token"
    token.write_text(f"{SECRET}-in-a-file\n")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "tmp").mkdir()
    (tmp_path / "home" / ".aws").mkdir(parents=True)
    (tmp_path / "home" / ".aws" / "credentials").write_text(
        f"[default]\naws_access_key_id = AKIAPL4NTED000000000\naws_secret_access_key = {SECRET}-home\n"
    )
    root = tmp_path / "run"
    write_noise(str(root / "data"), SMALL_SPEC, {"train": 4})
    for number in range(150):
        storage.create(f"{root}/data/receipts/train-{number:06d}.json", b'{"rows": 2}')
    write_segment(str(root / "data"), {})
    (root / "models" / "vae" / "stacks").mkdir(parents=True)
    (root / "models" / "vae" / "claim.json").write_text('{"fingerprint": "f"}')
    (root / "models" / "vae" / "stacks" / "rank-0-7.txt").write_text("Thread 1\n  in loss\n")
    (root / "spool").mkdir()
    url = f"https://me:{SECRET}-user@host/x?X-Amz-Signature={SECRET}-sig&v=2"
    lines = [
        *(f"the server says {value}" for value in ENVIRONMENT.values()),
        f"token file: {SECRET}-in-a-file",
        f"home: {SECRET}-home, AKIAPL4NTED000000000",
        json.dumps({"db_password": f"{SECRET} with spaces", "url": url, "AuthToken": f"{SECRET}"}),
        f"Authorization: Bearer {SECRET}-bearer",
        f"'secret_key': '{SECRET} quoted'",
        f"-----BEGIN PRIVATE KEY-----\n{SECRET}\n{SECRET}==\n-----END PRIVATE KEY-----",
    ]
    (root / "spool" / "a.jsonl").write_text("\n".join(lines))
    (root / "spool" / "hostile.txt").write_bytes(b"\x1b]0;title\x07 \xff\n")
    (root / "spool" / f"token={SECRET}.txt").write_text("a name with a secret")
    logs = tmp_path / "tmp" / f"genmod-log-{os.getuid()}"
    logs.mkdir()
    (logs / "ray-1.log").write_text("\n".join([*lines, "the end of the log"]))
    return root


def unpacked(path):
    """Content of each file of a bundle, without the bundle's own folder."""
    with tarfile.open(path) as tar:
        members = {member.name: member for member in tar.getmembers()}
        assert {name.partition("/")[0] for name in members} == {path.name.removesuffix(".tar.gz")}
        return {
            name.partition("/")[2]: tar.extractfile(member).read()
            for name, member in members.items()
        }


def test_what_explains_a_problem_is_in_it_and_no_secret_is(root, tmp_path, capsys):
    out = tmp_path / "bundle.tar.gz"
    assert main(["bundle", str(root), "--out", str(out), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["stage"], result["status"], result["output"]) == ("bundle", "done", str(out))
    files = unpacked(out)
    assert result["files"] == len(files)
    assert {
        "bundle.json", "versions.json", "environment.json", "files.txt", "root/data/dataset.json",
        "root/models/vae/claim.json", "root/models/vae/stacks/rank-0-7.txt", "root/spool/a.jsonl",
        "this-machine/logs/commands/ray-1.log",
    } <= set(files)  # fmt: skip
    assert b"the end of the log" in files["this-machine/logs/commands/ray-1.log"]
    assert files["root/spool/a.jsonl"].count(b"***") >= 12
    assert b"AWS_SECRET_ACCESS_KEY" in files["environment.json"]
    versions = json.loads(files["versions.json"])
    assert {"ray", "torch", "pydantic"} <= set(versions["packages"])
    assert not any(name.endswith((".tar", ".parquet")) for name in files)
    for name, content in files.items():
        assert SECRET.encode() not in content.lower() + name.lower().encode(), name
        assert content.decode().replace("\n", "").replace("\t", "").isprintable(), name


def test_receipts_are_bounded_and_what_is_left_out_is_named(root, tmp_path, capsys):
    out = tmp_path / "bundle.tar.gz"
    assert main(["bundle", str(root), "--out", str(out)]) == 0
    files = unpacked(out)
    assert sum(name.startswith("root/data/receipts/") for name in files) == 100
    assert any(name.startswith("root/data/receipt-segments/") for name in files)
    line = "data/receipts: 50 further documents are left out"
    assert f"not in the bundle: {line}" in capsys.readouterr().err.splitlines()
    assert line in json.loads(files["bundle.json"])["not_in_the_bundle"]
    assert files["files.txt"].decode().count("data/receipts/") == 150


def test_the_file_is_for_this_user_alone_and_replaces_none(root, tmp_path, capsys):
    out = tmp_path / "bundle.tar.gz"
    assert main(["bundle", str(root), "--out", str(out)]) == 0
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    before = out.read_bytes()
    capsys.readouterr()
    assert main(["bundle", str(root), "--out", str(out)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "bundle.tar.gz exists; give another file with --out" in line
    assert out.read_bytes() == before


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["/no/such/root"], "no file below it"),
        (["genmod-train-0123456789ab"], "--address http://HOST:8265"),
        (["genmod-train-0123456789ab", "--address", "http://127.0.0.1:9"], "no Ray job server"),
        (["x", "--address", "http://a:1", "--address", "http://b:1"], "--address takes one"),
        (["/tmp", "--set", "root=x"], "--set needs --recipe"),
        (["s3://user:hunter2@bucket/x"], "credentials"),
    ],
)
def test_bad_input_is_one_line_and_leaves_no_file(words, expected, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.chdir(tmp_path)
    assert main(["bundle", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert expected in line
    assert "hunter2" not in line
    assert list(tmp_path.iterdir()) == []
    assert main(["bundle", str(tmp_path), "--out", "/proc/none"]) == 2
    assert "/proc/none cannot be written" in capsys.readouterr().err


def test_a_recipe_adds_itself_and_the_plan(root, tmp_path):
    recipe = tmp_path / "my.yaml"
    np.savez(tmp_path / "images.npz", images=np.zeros((20, 8, 8), np.uint8))
    recipe.write_text(
        f'root: {tmp_path}/new\ndata: {{source: "npz:{tmp_path}/images.npz"}}\n'
        "model: {vae: {family: vae}}\n"
        "tracking: {enabled: false}\n"
    )
    out = tmp_path / "bundle.tar.gz"
    assert main(["bundle", str(root), "--out", str(out), "--recipe", str(recipe)]) == 0
    files = unpacked(out)
    assert b"family: vae" in files["recipe.yaml"]
    assert json.loads(files["plan.json"])["work"]["images"] == 20


WORKER = """
import sys, time
from cluster.heartbeats import stack_file
def hangs_here():
    with stack_file(None) as path:
        print(path, flush=True)
        time.sleep(600)
hangs_here()
"""


def test_stacks_of_running_workers(root, tmp_path):
    worker = subprocess.Popen(
        [sys.executable, "-c", WORKER], stdout=subprocess.PIPE, text=True, env=dict(os.environ)
    )
    try:
        assert "genmod-stack-" in worker.stdout.readline()
        texts = node_texts(None, (), redact_foreign)
        assert "hangs_here" in texts[f"stacks/{worker.pid}.txt"]
        assert worker.poll() is None
    finally:
        worker.send_signal(signal.SIGKILL)
        worker.wait()


def test_a_process_that_only_has_such_a_file_open_gets_no_signal(root, tmp_path):
    folder = Path(os.environ["TMPDIR"], "genmod-stack-x")
    folder.mkdir()
    program = (
        "import sys, time; f = open(sys.argv[1], 'w'); print('open', flush=True); time.sleep(600)"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", program, str(folder / "stack.txt")], stdout=subprocess.PIPE
    )
    try:
        other.stdout.readline()
        assert f"stacks/{other.pid}.txt" not in node_texts(None, (), redact_foreign)
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()
    with stack_file(None) as path:
        assert path.exists()


def test_logs_of_other_jobs_are_left_out(root, tmp_path):
    worker, other = "a" * 56, "b" * 56
    logs = tmp_path / "session" / "logs"
    logs.mkdir(parents=True)
    names = {
        f"worker-{worker}-01000000-12.out": True,
        f"python-core-worker-{worker}_12.log": True,
        f"worker-{other}-02000000-13.out": False,
        f"python-core-worker-{other}_13.log": False,
        "job-driver-genmod-train-0123456789ab.log": True,
        "job-driver-others.log": False,
        "runtime_env_setup-01000000.log": True,
        "runtime_env_setup-02000000.log": False,
        "raylet.out": True,
    }
    for name in names:
        (logs / name).write_text(f"{name}\n")
    (logs / "raylet.err").symlink_to("/etc/hostname")
    texts = node_texts(str(tmp_path / "session"), ["01000000"], redact_foreign)
    found = {name.removeprefix("logs/") for name in texts if name.startswith("logs/")}
    assert found - {"commands/ray-1.log"} == {name for name, is_ours in names.items() if is_ours}


def test_a_secret_at_the_cut_of_a_log_is_left_out_with_its_line(tmp_path):
    log = tmp_path / "x.log"
    log.write_text(f"a\npassword: {SECRET}-at-the-cut\nlast line\n")
    for limit in range(1, log.stat().st_size):
        text = read_tail(log, redact_foreign, limit)
        assert SECRET[-4:] not in text
        assert "at-the-cut" not in text
    assert read_tail(log, redact_foreign, 12).endswith("last line\n")


def test_every_text_passes_the_cleaning(monkeypatch):
    contents = bundles._Contents()
    monkeypatch.setenv("MY_PASSWORD", f"{SECRET}-word")
    contents.add(f"../{SECRET}-word/\x1b", f"x {SECRET}-word \x1b[2J")
    contents.report(f"lost: {SECRET}-word\n")
    assert contents.texts == {"__/***/_".replace("*", "_"): "x *** \\x1b[2J"}
    assert contents.problems == ["lost: ***\\n"]
