"""infra/metrics with a real Prometheus: rules hold, every panel has data after all stages, an alert fires."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import yaml

from cluster.metrics import METRICS
from pipelines.cli import main
from tests.processes import TIMEOUT_S, free_ports

FOLDER = Path(__file__).parents[2] / "infra" / "metrics"
DASHBOARD = json.loads((FOLDER / "dashboard.json").read_text())
ALERTS = yaml.safe_load((FOLDER / "alerts.yml").read_text())
RULES = [rule for group in ALERTS["groups"] for rule in group["rules"]]
PANELS = {panel["title"]: panel for panel in DASHBOARD["panels"]}

needs_prometheus = pytest.mark.skipif(
    shutil.which("prometheus") is None or shutil.which("promtool") is None,
    reason="prometheus and promtool are missing (Debian's package prometheus)",
)

EXPORTED = {
    f"ray_{name}" + ("_total" if kind == "counter" else "") for name, (kind, _) in METRICS.items()
}
OF_RAY = {"ray_node_mem_used", "ray_node_mem_total"}


def queries():
    """Every query of panels and rules, with what it belongs to."""
    for title, panel in PANELS.items():
        for target in panel["targets"]:
            yield title, target["expr"]
    for rule in RULES:
        yield rule["alert"], rule["expr"]


def test_queries_use_only_metrics_that_exist_and_panels_show_all_of_them():
    used = {}
    for name, text in queries():
        used[name] = set(re.findall(r"ray_\w+", text))
        assert used[name]
        assert used[name] <= EXPORTED | OF_RAY, name
    shown = set().union(*(used[title] for title in PANELS))
    assert shown | {"ray_genmod_progress_time_seconds"} == EXPORTED | OF_RAY
    assert (
        len({panel["id"] for panel in PANELS.values()}) == len(PANELS) == len(DASHBOARD["panels"])
    )


def test_every_alert_has_a_test_that_sees_it_fire_and_one_that_sees_it_silent():
    cases = yaml.safe_load((FOLDER / "alerts-test.yml").read_text())["tests"]
    results = {rule["alert"]: set() for rule in RULES}
    for case in cases:
        for each in case["alert_rule_test"]:
            results[each["alertname"]].add(bool(each["exp_alerts"]))
    assert all(seen == {True, False} for seen in results.values()), results
    assert all({"summary", "remedy"} == set(rule["annotations"]) for rule in RULES)


@needs_prometheus
def test_the_rules_hold(tmp_path):
    for words in (["check", "config", "prometheus.yml"], ["test", "rules", "alerts-test.yml"]):
        done = subprocess.run(
            ["promtool", *words], cwd=FOLDER, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
    broken = (FOLDER / "alerts.yml").read_text().replace("> 900", "> 9000")
    (tmp_path / "alerts.yml").write_text(broken)
    shutil.copy(FOLDER / "alerts-test.yml", tmp_path)
    words = ["promtool", "test", "rules", "alerts-test.yml"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "GenmodStalled" in done.stdout + done.stderr


@needs_prometheus
def test_the_stack_of_containers_loads_the_same_rules(tmp_path):
    """Its configuration, with folders of this machine in place of those of its containers."""
    infra = FOLDER.parent
    mounts = dict(
        reversed(volume.split(":")[:2])
        for part in ("prometheus", "grafana")
        for volume in yaml.safe_load((infra / "compose.yaml").read_text())["services"][part][
            "volumes"
        ]
        if volume.startswith("./")
    )
    shutil.copytree(infra / mounts["/etc/prometheus-genmod"], tmp_path / "prometheus")
    config = tmp_path / "prometheus" / "prometheus.yml"
    metrics = infra / mounts["/etc/genmod-metrics"]
    text = config.read_text()
    assert "/etc/genmod-metrics/alerts.yml" in text
    config.write_text(text.replace("/etc/genmod-metrics", str(metrics.resolve())))
    words = ["promtool", "check", "config", str(config)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"{len(RULES)} rules found" in done.stdout
    grafana = infra / mounts["/etc/grafana/provisioning"]
    (provider,) = yaml.safe_load((grafana / "dashboards/genmod.yaml").read_text())["providers"]
    assert provider["options"]["path"] == "/etc/genmod-metrics"
    (source,) = yaml.safe_load((grafana / "datasources/prometheus.yaml").read_text())["datasources"]
    assert source["type"] == "prometheus"


def test_kubernetes_has_the_same_rules():
    rule = yaml.safe_load((FOLDER.parent / "k8s/base/prometheus-rule.yaml").read_text())
    assert rule["spec"] == ALERTS


class Prometheus:
    """A running Prometheus on a port of this machine."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"

    def get(self, path: str, **query: str):
        """The data of an answer of its API."""
        url = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(url, timeout=60) as answer:
            return json.load(answer)["data"]

    def series(self, query: str, start_s: float) -> list[dict[str, str]]:
        """Labels of the series that a panel shows since a time."""
        times = {"start": str(start_s), "end": str(time.time()), "step": "1"}
        return [each["metric"] for each in self.get("query_range", query=query, **times)["result"]]

    def values(self, query: str) -> list[float]:
        """Values of all series of a query."""
        return [float(each["value"][1]) for each in self.get("query", query=query)["result"]]


@contextmanager
def prometheus(folder: Path, target: str):
    """Prometheus with the configuration of infra/metrics, for another port of Ray."""
    (port,) = free_ports(1)
    text = (FOLDER / "prometheus.yml").read_text()
    assert text.count("127.0.0.1:8080") == 1
    text = text.replace("127.0.0.1:8080", target).replace("5s", "1s")
    (folder / "prometheus.yml").write_text(text)
    shutil.copy(FOLDER / "alerts.yml", folder)
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={folder}/prometheus.yml",
                f"--storage.tsdb.path={folder}/data",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        server = Prometheus(port)
        wait_for(lambda: server.values("up") == [1.0], folder / "prometheus.log")
        yield server
    finally:
        process.terminate()
        process.wait(60)


def wait_for(condition, log: Path | None = None) -> None:
    """Wait until a condition holds; a server that does not answer yet is tried again."""
    deadline_s = time.monotonic() + TIMEOUT_S
    while True:
        try:
            if condition():
                return
        except OSError:
            pass
        assert time.monotonic() < deadline_s, log.read_text()[-2000:] if log else "too late"
        time.sleep(0.5)


RECIPE = """
root: {folder}/run
data: {{source: "npz:{folder}/images.npz", shard_rows: 64, splits: {{val: 0.2, test: 0.2}}}}
model:
  small: {{family: vae, net: {{widths: [4]}}}}
  bad: {{family: faulty, net: {{crashes_at: 3}}}}
train: {{nimg: 64, batch: 16, workers: 1, log_every_nimg: 16, checkpoint_every_nimg: 32,
  validate_every_nimg: null, grid_every_nimg: null}}
sample: {{count: 24, shard_rows: 12, workers: 1, micro_batch: 4, max_quarantined: 4}}
score: {{workers: 1, calibration: {{rows: 20}}}}
evaluate: {{images: 20, memorisation_calibration: 20, features: {{kind: pca}}}}
promote: {{ledger: {folder}/promotions}}
tracking: {{roots: ["{folder}"]}}
"""


def genmod(recipe: Path, stage: str, model: str | None, **changes: str) -> int:
    """Run a stage in this process, on the Ray that it is connected to."""
    chosen = [] if model is None else ["--model", model]
    sets = [word for key, text in changes.items() for word in ("--set", f"{key}={text}")]
    return main([stage, "--recipe", str(recipe), *chosen, *sets])


@needs_prometheus
@pytest.mark.ray
@pytest.mark.long
def test_every_panel_has_data_after_all_stages_and_an_alert_fires(ray_session, tmp_path):
    import ray

    images = np.random.default_rng(0).integers(0, 256, (200, 8, 8), np.uint8)
    np.savez(tmp_path / "images.npz", images=images)
    recipe = tmp_path / "my.yaml"
    recipe.write_text(RECIPE.format(folder=tmp_path))
    node, start_s = ray.nodes()[0], time.time()
    with prometheus(tmp_path, f"127.0.0.1:{node['MetricsExportPort']}") as server:
        for stage, model in (
            ("shard", None), ("train", None), ("sample", None), ("score", "small"),
            ("evaluate", "small"), ("promote", "small"),
        ):  # fmt: skip
            assert genmod(recipe, stage, model) == 0, stage
        # A second version is compared with the champion, which uses up a planned decision.
        second = {"root": f"{tmp_path}/second", "train.nimg": "96"}
        for stage in ("shard", "train", "sample", "score", "evaluate", "promote"):
            assert genmod(recipe, stage, None if stage == "shard" else "small", **second) == 0
        refused = {"sample.max_quarantined": "0", "sample.output": "refused"}
        assert genmod(recipe, "sample", "bad", **refused) == 1
        for title, panel in PANELS.items():
            for target in panel["targets"]:
                wait_for(lambda query=target["expr"]: server.series(query, start_s))
                labels = server.series(target["expr"], start_s)[0]
                assert all(f"{{{{{name}}}}}" in target["legendFormat"] for name in labels), title
        wait_for(lambda: server.values("sum(ray_genmod_done_total)") == [12.0])
        assert server.series("ray_genmod_looks_left == 99", start_s)
        assert server.series('ray_genmod_rows{stage="shard"} == 200', start_s)
        wait_for(lambda: len(server.get("alerts")["alerts"]) >= 2)
        firing = {
            alert["labels"]["alertname"]: alert["labels"]
            for alert in server.get("alerts")["alerts"]
            if alert["state"] == "firing"
        }
        assert firing["GenmodCommandFailed"]["stage"] == "sample"
        assert firing["GenmodQuarantine"]["stage"] == "sample"
