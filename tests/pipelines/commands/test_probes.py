"""Expected times on a cluster: measured on a node of each kind, and combined for the workers of a stage."""

import json
from functools import partial

import pytest
import yaml

from cluster.resources import resource_request
from cluster.session import ClusterConfig
from cluster.worker_kinds import WorkerKind, on_each_kind
from genmod.errors import GenmodError
from pipelines.cli import main
from pipelines.commands.expected_times import Expected
from pipelines.commands.probes import TimeProbe, combined

SLOW, FAST = WorkerKind("1 node with 1 CPUs", 1), WorkerKind("3 nodes with 1 CPUs", 3)
TIMES = [(SLOW, Expected(120.0, 2.0)), (FAST, Expected(40.0, 1.0))]


@pytest.mark.parametrize(
    ("workers", "units", "seconds"),
    [
        pytest.param(4, 100, 12.0, id="all: 1/120 + 3/40 of the work in a second"),
        pytest.param(8, 100, 12.0, id="more than fit"),
        pytest.param(1, 100, 48.0, id="one, on either kind"),
        pytest.param(4, 2, 24.0, id="two units"),
        pytest.param(4, None, 120.0, id="training waits for the slowest"),
    ],
)
def test_workers_on_unlike_nodes(workers, units, seconds):
    expected = combined(TimeProbe(partial(Expected), workers, units), TIMES)
    assert expected.usual_s == pytest.approx(seconds)
    assert expected.first_s == 2.0


def double(number: int) -> int:
    return 2 * number


def fail_there() -> None:
    raise ValueError("this node is broken")


@pytest.mark.ray
def test_a_function_is_called_on_one_node_of_each_kind(ray_session):
    request = resource_request("cpu", ClusterConfig())
    ((kind, result),) = on_each_kind(double, 7, request=request, limit_s=60)
    assert (kind, result) == (WorkerKind("1 node with 2 CPUs", 2), 14)
    nowhere = resource_request("cpu", ClusterConfig(labels={"zone": "moon"}))
    assert on_each_kind(double, 7, request=nowhere, limit_s=60) == []
    with pytest.raises(GenmodError, match=r"not every kind of node answered within 60 s .*broken"):
        on_each_kind(fail_there, request=request, limit_s=60)


def dry_run(folder, capsys, **cluster):
    """The dry run of a whole run on the running Ray: both outputs, and its plan by stage."""
    import ray

    document = {
        "root": str(folder / "root"),
        "data": {"source": "builtin:digits"},
        "model": {"vae": {"family": "vae"}},
        "train": {"nimg": 64_000},
        "sample": {"count": 50_000},
        "cluster": {"address": ray.get_runtime_context().gcs_address} | cluster,
        "tracking": {"enabled": False},
    }
    (folder / "my.yaml").write_text(yaml.safe_dump(document))
    assert main(["run", "--recipe", str(folder / "my.yaml"), "--dry-run", "--json"]) == 0
    out, err = capsys.readouterr()
    return out, err, {step["stage"]: step for step in json.loads(out.splitlines()[-1])["plan"]}


@pytest.mark.ray
def test_a_dry_run_measures_on_the_nodes_of_the_cluster(ray_session, tmp_path, capsys):
    import ray

    out, _, steps = dry_run(tmp_path, capsys, worker_price_per_hour=360)
    for stage in ("train", "sample", "score"):
        assert steps[stage]["measured_on"] == "1 node with 2 CPUs"
        assert 0 < steps[stage]["expected_s"] < 1000
    assert "in all on 1 node with 2 CPUs" in out
    workers_s = sum(
        steps[stage]["expected_s"] * steps[stage]["work"]["workers"]
        for stage in ("train", "sample", "score")
    )
    assert f"price: about {workers_s / 10:,.2f} at 360 for an hour of one worker" in out
    assert ray.is_initialized()


@pytest.mark.ray
def test_a_dry_run_on_a_cluster_without_room_says_so(ray_session, tmp_path, capsys):
    out, err, steps = dry_run(tmp_path, capsys, labels={"zone": "moon"})
    assert "expected times are not known: no node has room for one worker" in err
    assert all(step.get("expected_s") is None for step in steps.values())
    assert "price:" not in out
