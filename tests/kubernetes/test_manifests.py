"""The objects of infra/k8s: valid, complete, and the same settings everywhere."""

from importlib.metadata import version

import pytest
import yaml

from cluster.environment import ENVIRONMENT
from pipelines.recipe.recipe import load_recipe
from tests.kubernetes import crd
from tests.kubernetes.__main__ import main
from tests.kubernetes.checker import Checker, pods_of, references
from tests.kubernetes.pod_security import containers_of
from tests.kubernetes.render import MANIFESTS, OVERLAYS, read_objects, render

MADE_BY_OPERATOR = {("Secret", "genmod")}
"""KubeRay's token of the cluster genmod."""


def kinds(objects, *names):
    return [value for value in objects if value["kind"] in names]


def environment():
    lines = (MANIFESTS / "ray" / "environment.env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


@pytest.mark.parametrize("name", [folder.name for folder in OVERLAYS])
def test_an_overlay_has_no_problem(name, rendered):
    assert Checker().problems(rendered[name]) == []


def test_the_program_prints_what_it_checked(capsys, definitions):
    assert main() == 0
    assert f"{len(OVERLAYS)} overlays" in capsys.readouterr().out


def test_without_definitions_it_says_what_is_not_validated(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv(crd.VARIABLE, str(tmp_path))
    crd.definitions.cache_clear()
    try:
        assert main() == 0
    finally:
        crd.definitions.cache_clear()
    assert "not validated against its definition: RayCluster" in capsys.readouterr().out


def test_there_is_a_job_for_each_stage(rendered):
    for stage in ("shard", "train", "sample", "score", "evaluate", "run"):
        (job,) = kinds(rendered[stage], "RayJob")
        assert job["metadata"]["name"] == f"genmod-{stage}"
        assert job["spec"]["entrypoint"].split()[3] == stage


def test_every_reference_leads_somewhere(rendered):
    example = read_objects((MANIFESTS / "secrets-example.yaml").read_text())
    for name, objects in rendered.items():
        there = [*objects, *rendered["cluster"], *example]
        known = {(value["kind"], value["metadata"]["name"]) for value in there}
        assert references(objects) - known - MADE_BY_OPERATOR == set(), name
    assert references(rendered["cluster"]) >= {
        ("Secret", "genmod-store"),
        ("Secret", "genmod-database"),
    }


def test_nodes_and_drivers_have_the_environment_of_the_code(rendered):
    values = environment()
    assert {name: values.get(name) for name in ENVIRONMENT} == dict(ENVIRONMENT)
    assert {"MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_TRACKING_URI"} <= set(values)
    (config,) = [x for x in kinds(rendered["cluster"], "ConfigMap")]
    assert config["data"] == values
    for objects in rendered.values():
        for value in kinds(objects, "RayCluster", "RayJob", "RayCronJob", "CronJob"):
            for _, pod in pods_of(value):
                for container in containers_of(pod):
                    assert {"configMapRef": {"name": "genmod-environment"}} in container["envFrom"]


def test_the_clusters_ray_is_that_of_the_code(rendered):
    (cluster,) = kinds(rendered["cluster"], "RayCluster")
    assert cluster["spec"]["rayVersion"] == version("ray")
    assert cluster["spec"]["authOptions"] == {"mode": "token"}
    assert cluster["spec"]["gcsFaultToleranceOptions"]["backend"] == "rocksdb"
    assert cluster["spec"]["autoscalerOptions"]["version"] == "v2"


def test_drivers_run_on_no_spot_node_and_not_on_the_head(rendered):
    (cluster,) = kinds(rendered["cluster"], "RayCluster")
    groups = [cluster["spec"]["headGroupSpec"], *cluster["spec"]["workerGroupSpecs"]]
    with_drivers = [x for x in groups if "driver" in x["rayStartParams"].get("resources", "")]
    assert [(x["groupName"], x["labels"]["capacity"]) for x in with_drivers] == [
        ("cpu", "on-demand")
    ]
    assert with_drivers[0]["minReplicas"] >= 1
    (gpu,) = [group for group in groups if group.get("labels", {}).get("accelerator") == "gpu"]
    assert (gpu["minReplicas"], gpu["labels"]["capacity"]) == (0, "spot")
    for objects in rendered.values():
        for value in kinds(objects, "RayJob", "RayCronJob"):
            spec = value["spec"].get("jobTemplate", value["spec"])
            assert yaml.safe_load(spec["entrypointResources"]) == {"driver": 1}


def test_the_example_recipe_and_its_schedule(rendered):
    recipe = load_recipe(str(MANIFESTS / "recipe" / "recipe.yaml"))
    assert recipe.root.startswith("s3://")
    for name in ("retrain-cronjob", "retrain-raycronjob"):
        (value,) = kinds(rendered[name], "CronJob", "RayCronJob")
        assert value["spec"]["schedule"] == recipe.schedule.cron
        assert value["spec"]["timeZone"] == recipe.schedule.timezone
    (cron_job,) = kinds(rendered["retrain-cronjob"], "CronJob")
    assert cron_job["spec"]["concurrencyPolicy"] == "Forbid"


def test_images_of_an_overlay_reach_every_pod(tmp_path):
    folder = MANIFESTS / "overlays"
    names = ("genmod-runtime", "genmod-runtime-cuda", "genmod-services")
    digest = "sha256:" + "0" * 64
    for name in ("cluster", "train", "queue", "retrain-raycronjob"):
        (tmp_path / "kustomization.yaml").write_text(
            yaml.safe_dump(
                {
                    "resources": [f"{folder / name}"],
                    "images": [
                        {"name": x, "newName": f"example.org/{x}", "digest": digest} for x in names
                    ],
                }
            )
        )
        images = {
            c["image"] for _, pod in pods_of(render_below(tmp_path)) for c in containers_of(pod)
        }
        assert all(image.endswith(f"@{digest}") for image in images), images


def render_below(folder):
    """kustomize takes relative paths of resources alone."""
    path = folder / "kustomization.yaml"
    value = yaml.safe_load(path.read_text())
    depth = len(folder.resolve().parts) - 1
    value["resources"] = ["../" * depth + resource.lstrip("/") for resource in value["resources"]]
    path.write_text(yaml.safe_dump(value))
    return render(folder)
