"""Values reach the metrics of a real Ray node, also those of a driver that ends at once."""

from __future__ import annotations

import re
import subprocess
import sys
import time
import urllib.request

import pytest

from cluster.metrics import METRICS, Recorder
from tests.processes import TIMEOUT_S

DRIVER = """
import sys
import ray
from cluster.metrics import RECORDER
from cluster.session import ClusterConfig, connect, disconnect
RECORDER.set("genmod_loss", 3.0, "train", "vae")
RECORDER.add("genmod_units", 2, "shard")
connect(ClusterConfig(address=sys.argv[1]))
RECORDER.watch("genmod_tracking_backlog", lambda: 7)
RECORDER.add("genmod_units", 3, "shard")
RECORDER.set("genmod_loss", 2.5, "train", "vae")
print(ray.nodes()[0]["MetricsExportPort"])
RECORDER.write(force=True)
disconnect()
"""


def scrape(port: int) -> dict[tuple[str, str, str], float]:
    """Our values at the metrics port of a node of this machine, by name, stage and model."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=TIMEOUT_S) as answer:
        text = answer.read().decode()
    found = {}
    for name, labels, value in re.findall(r"^(ray_genmod_\w+){(.*)} (\S+)$", text, re.MULTILINE):
        values = dict(re.findall(r'(\w+)="([^"]*)"', labels))
        found[name, values.get("stage", ""), values.get("model", "")] = float(value)
    return found


@pytest.mark.ray
@pytest.mark.slow
def test_the_last_values_of_a_driver_that_ends_at_once_are_served(head):
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, head.gcs],
        env=head.environment(),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=True,
    )
    expected = {
        ("ray_genmod_loss", "train", "vae"): 2.5,
        ("ray_genmod_units_total", "shard", ""): 5.0,
        ("ray_genmod_tracking_backlog", "", ""): 7.0,
    }
    deadline_s = time.monotonic() + TIMEOUT_S
    while not expected.items() <= (found := scrape(int(done.stdout.split()[-1]))).items():
        assert time.monotonic() < deadline_s, found
        time.sleep(0.5)


WAITING_DRIVER = """
import sys
import ray
from cluster.metrics import RECORDER
from cluster.session import ClusterConfig, connect
connect(ClusterConfig(address=sys.argv[1]))
RECORDER.set("genmod_rows", 4.0, "train", "gan")
print(ray.nodes()[0]["MetricsExportPort"], flush=True)
sys.stdin.read()
"""


@pytest.mark.ray
@pytest.mark.slow
def test_a_value_that_does_not_change_is_served_as_long_as_the_command_runs(head):
    """Ray drops a gauge 20 s after it was set; alerts about work that stands still need it for longer."""
    words = [sys.executable, "-c", WAITING_DRIVER, head.gcs]
    key = ("ray_genmod_rows", "train", "gan")
    with subprocess.Popen(
        words, env=head.environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as driver:
        port = int(driver.stdout.readline())
        deadline_s = time.monotonic() + TIMEOUT_S
        while scrape(port).get(key) != 4.0:
            assert time.monotonic() < deadline_s
            time.sleep(0.5)
        time.sleep(35)
        assert scrape(port).get(key) == 4.0
        driver.stdin.close()
    while key in scrape(port):
        assert time.monotonic() < deadline_s
        time.sleep(0.5)


def test_names_are_those_that_prometheus_accepts():
    for name, (kind, text) in METRICS.items():
        assert re.fullmatch(r"genmod_[a-z_]+", name)
        assert kind == "gauge" or not name.endswith("_total")
        assert text[0].isupper()
        assert not text.endswith(".")


def test_values_wait_for_a_connection():
    recorder = Recorder()
    recorder.set("genmod_loss", 3, "train", "vae")
    recorder.set("genmod_loss", 2, "train", "vae")
    recorder.add("genmod_units", 0, "shard")
    assert recorder.values() == {("genmod_loss", "train", "vae"): 2.0}
    assert not recorder._added
    recorder.add("genmod_units", 2, "shard")
    recorder.add("genmod_units", 3, "shard")
    assert recorder._added == {("genmod_units", "shard", ""): 5.0}
    recorder.forget_work()
    assert recorder.values() == {}
    with pytest.raises(AssertionError):
        recorder.add("genmod_loss", 1)


def test_a_metric_has_a_bounded_number_of_series():
    recorder = Recorder()
    for number in range(1000):
        recorder.set("genmod_loss", number, "train", f"model-{number}")
    recorder.set("genmod_rows", 1, "train", "vae")
    values = recorder.values()
    assert sum(name == "genmod_loss" for name, _, _ in values) == 200
    assert values["genmod_rows", "train", "vae"] == 1.0
    assert values["genmod_loss", "train", "model-199"] == 199.0
    recorder.set("genmod_loss", 5, "train", "model-3")
    assert recorder.values()["genmod_loss", "train", "model-3"] == 5.0


def test_a_watched_value_is_kept_when_it_is_watched_no_more():
    recorder, waiting = Recorder(), [4]
    recorder.watch("genmod_tracking_backlog", lambda: waiting[0])
    waiting[0] = 2
    recorder.unwatch("genmod_tracking_backlog")
    waiting[0] = 9
    recorder.write(force=True)
    assert recorder.values() == {("genmod_tracking_backlog", "", ""): 2.0}
