"""``genmod top``: the values of nodes' metrics in a terminal, also of hostile servers."""

import json
import re
import time

import pytest

from cluster.scrape import Sample, cluster_endpoints, local_endpoints, parse_samples
from pipelines.cli import main
from pipelines.commands.top import summarize, top_lines
from tests.processes import TIMEOUT_S
from tests.web_server import web_server

TEXT = """\
# HELP ray_genmod_rows Images
# TYPE ray_genmod_rows gauge
ray_genmod_rows{NodeAddress="10.0.0.1",WorkerId="a",model="vae",stage="train"} 700.0
ray_genmod_rows_planned{NodeAddress="10.0.0.1",WorkerId="a",model="vae",stage="train"} 1000.0
ray_genmod_images_per_second{NodeAddress="10.0.0.1",WorkerId="a",model="vae",stage="train"} 100.0
ray_genmod_loss{NodeAddress="10.0.0.1",WorkerId="a",model="vae",stage="train"} 12.5
ray_genmod_step_seconds{NodeAddress="10.0.0.1",WorkerId="a",model="vae",stage="train"} 0.16
ray_genmod_data_wait_share{NodeAddress="10.0.0.1",WorkerId="a",model="vae",stage="train"} 0.25
ray_genmod_memory_bytes{NodeAddress="10.0.0.1",WorkerId="a",model="vae",stage="train"} 2.097152e+08
ray_genmod_units_total{NodeAddress="10.0.0.1",WorkerId="a",model="",stage="shard"} 3.0
ray_genmod_units_total{NodeAddress="10.0.0.1",WorkerId="b",model="",stage="shard"} 4.0
ray_genmod_retries_total{NodeAddress="10.0.0.1",WorkerId="b",model="",stage="shard"} 2.0
ray_genmod_tracking_backlog{NodeAddress="10.0.0.1",WorkerId="a",model="",stage=""} 7.0
ray_genmod_looks_left{NodeAddress="10.0.0.1",WorkerId="a",model="vae",stage="promote"} 99.0
ray_genmod_looks_left{NodeAddress="10.0.0.1",WorkerId="a",model="gan",stage="promote"} 42.0
ray_genmod_done_total{NodeAddress="10.0.0.1",WorkerId="b",model="",stage="shard"} 1.0
ray_genmod_failed_total{NodeAddress="10.0.0.1",WorkerId="a",model="",stage="train"} 2.0
ray_node_mem_used{IsHeadNode="true",ip="10.0.0.1"} 1073741824.0
ray_node_mem_total{IsHeadNode="true",ip="10.0.0.1"} 4294967296.0
ray_other{NodeAddress="10.0.0.1"} 1.0
"""


def test_values_are_merged_by_stage_and_model(capsys):
    with web_server(200, TEXT.encode()) as url:
        assert main(["top", "--address", url, "--once", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["stage"], result["status"]) == ("top", "done")
    shard, train = result["work"]
    assert shard == {"stage": "shard", "model": "", "units": 7.0, "retries": 2.0}
    assert train == {
        "stage": "train", "model": "vae", "rows": 700.0, "rows_planned": 1000.0,
        "images_per_second": 100.0, "loss": 12.5, "step_seconds": 0.16, "data_wait_share": 0.25,
        "memory_bytes": 200 * 2**20,
    }  # fmt: skip
    assert result["cluster"] == {
        "tracking_backlog": 7.0, "looks_left": 42.0, "done": 1.0, "failed": 2.0,
    }  # fmt: skip
    assert result["nodes"] == {"10.0.0.1": {"mem_used": 2.0**30, "mem_total": 2.0**32}}


def test_people_get_a_table(capsys):
    with web_server(200, TEXT.encode()) as url:
        assert main(["top", "--address", f"{url}/metrics", "--once"]) == 0
    lines = capsys.readouterr().out.splitlines()
    cells = re.split(r"  +", lines[2])
    assert cells == [
        "train", "vae", "700/1,000", "100", "3 s", "12.5", "160 ms", "25%", "200 MiB",
    ]  # fmt: skip
    assert lines[3] == "1 commands done, 2 failed, 7 calls to MLflow wait, 42 decisions left"
    assert lines[4] == "memory: 10.0.0.1: 25% of 4 GiB"


def test_of_two_commands_rates_are_added_and_the_fewest_decisions_count():
    samples = [
        Sample("genmod_images_per_second", "train", "vae", "n", 10.0),
        Sample("genmod_images_per_second", "train", "vae", "n", 5.0),
        Sample("genmod_loss", "train", "vae", "n", 5.0),
        Sample("genmod_loss", "train", "vae", "n", 7.0),
    ]
    (work,) = summarize(samples)["work"]
    assert work == {"stage": "train", "model": "vae", "images_per_second": 15.0, "loss": 7.0}
    lines = top_lines({**summarize([]), "silent": ["http://n:1/metrics"]})
    assert lines[1:] == ["no command has reported yet", "no answer: http://n:1/metrics"]


@pytest.mark.parametrize(
    "line",
    [
        "", "ray_genmod_rows", "ray_genmod_rows{} x", "ray_genmod_rows{} NaN", "ray_genmod_rows{} 1e999",
        "ray_genmod_rows{" + "a" * 100_000, "x" * 1_000_000, 'ray_genmod_rows{stage="a} 1',
        "ray_genmod_rows{} 1 2 3", "\x1b[2J",
    ],
    ids=range(10),
)  # fmt: skip
def test_lines_that_are_no_values_are_skipped(line):
    assert all(sample.stage == "" for sample in parse_samples(line))
    good = 'ray_genmod_rows{stage="train",model="\x1b[2Jvae"} 3'
    (sample,) = [s for s in parse_samples(f"{line}\n{good}\n") if s.stage]
    assert (sample.model, sample.value) == ("\\x1b[2Jvae", 3.0)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--once", "--address", "http://127.0.0.1:9"], "no node of Ray answers"),
        (["--once", "--address", "http://user:hunter2@host:1"], "expected http://HOST:PORT"),
        (["--once", "--address", "ftp://host:1"], "expected http://HOST:PORT"),
        (["--json"], "--json needs --once"),
        (["--every", "0"], "--every"),
        (["--once"], "no node of Ray answers on this machine"),
    ],
)
def test_bad_input_is_one_line(words, expected, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert main(["top", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert expected in line


@pytest.mark.parametrize(("status", "body"), [(500, b"x"), (302, b""), (404, b"ray_genmod_rows 1")])
def test_a_server_that_is_no_node_is_no_answer(status, body, capsys):
    with web_server(status, body) as url:
        assert main(["top", "--once", "--address", url]) == 2
    assert "no node of Ray answers" in capsys.readouterr().err


@pytest.mark.ray
def test_the_nodes_of_this_machine_are_found(ray_session, capsys):
    import ray

    port = ray.nodes()[0]["MetricsExportPort"]
    assert f"http://127.0.0.1:{port}/metrics" in local_endpoints()
    assert cluster_endpoints() == [f"http://127.0.0.1:{port}/metrics"]
    assert main(["top", "--once", "--json"]) == 0
    deadline_s = time.monotonic() + TIMEOUT_S
    while "127.0.0.1" not in json.loads(capsys.readouterr().out)["nodes"]:
        assert time.monotonic() < deadline_s  # a new node reports after some seconds
        time.sleep(1)
        assert main(["top", "--once", "--json"]) == 0
