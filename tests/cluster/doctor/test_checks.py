"""Facts and needs in, findings out: each kind of fault is found alone, by its check's name."""

from __future__ import annotations

import pytest

from cluster.doctor import checks, comparisons
from cluster.doctor.comparisons import Link
from cluster.doctor.examination import check_fits
from cluster.doctor.facts import (
    GpuFacts,
    Listener,
    Machine,
    Node,
    NodeClock,
    NodeFacts,
    StoreFacts,
    TokenFile,
    Versions,
)
from cluster.doctor.finding import Finding, Report, is_fatal
from cluster.doctor.needs import NodeNeeds
from cluster.resources import ResourceRequest
from genmod.errors import ConfigError
from genmod.selftest.known_answers import DeviceAnswers, recorded_answers

GIB = 1 << 30
MACHINE = Machine(
    memory_bytes=16 * GIB,
    memory_free_bytes=12 * GIB,
    shm_bytes=4 * GIB,
    shm_free_bytes=4 * GIB,
    disk_free_bytes={"/tmp": 50 * GIB, "/cache": 50 * GIB},
    nofile=65536,
    host="a",
    is_loopback_only=False,
    token=TokenFile(source="/run/token", mode=0o600),
    auth="token",
)
STORE = StoreFacts(write_mb_s=200, read_mb_s=300, offset_s=0.1)
VERSIONS = Versions(genmod="1 (code aa)", python="3.11.7", ray="2.60.0", torch="2.13.0")
NEEDS = NodeNeeds(
    root="s3://bucket/run",
    request=ResourceRequest("cuda", 1, 1),
    workers=2,
    model_bytes=GIB,
    cache_folder="/cache",
    cache_bytes=20 * GIB,
)
GPUS = GpuFacts(names=("H200", "H200"), driver="570.1", cuda="12.8")
CLASS, DIGESTS = next(iter(recorded_answers().items()))
RIGHT = DeviceAnswers(device="cpu", numerics=CLASS, digests=dict(DIGESTS))


def node(name="a", **values):
    return Node(id=name, name=name, address=name, cpus=4, gpus=2, object_store_bytes=GIB, **values)


def judged(machine=MACHINE, store=STORE, versions=VERSIONS, gpus=GPUS, drivers=("570.1",)):
    report = Report("a")
    checks.check_versions(report, VERSIONS, versions)
    checks.check_machine(report, node(), machine, NEEDS)
    checks.check_network(report, machine, is_alone=False)
    checks.check_store(report, NEEDS.root, store)
    checks.check_store_speed(report, store, best_mb_s=200)
    checks.check_gpus(report, node(), gpus, set(drivers))
    return report.findings


def problems(findings):
    return {(finding.check, finding.level) for finding in findings if finding.level != "ok"}


def test_a_sound_node_has_no_finding():
    findings = judged()
    assert problems(findings) == set()
    assert len({finding.check for finding in findings}) == len(findings) == 15
    assert not is_fatal(findings)


MACHINES = {
    "memory": ({"memory_bytes": GIB}, "fatal"),
    "memory of all workers": ({"memory_bytes": 3 * GIB}, "warning"),
    "memory in use": ({"memory_free_bytes": GIB}, "warning"),
    "shm": ({"shm_free_bytes": 1 << 20}, "fatal"),
    "shm of the object store": ({"shm_bytes": 64 << 20, "shm_free_bytes": 64 << 20}, "warning"),
    "disk": ({"disk_free_bytes": {"/tmp": 50 * GIB, "/ray": 100 << 20}}, "fatal"),
    "disk that is nearly full": ({"disk_free_bytes": {"/tmp": GIB}}, "warning"),
    "disk of the cache": ({"disk_free_bytes": {"/tmp": 50 * GIB, "/cache": 9 * GIB}}, "warning"),
    "nofile": ({"nofile": 512}, "fatal"),
    "nofile that is low": ({"nofile": 2048}, "warning"),
    "host-name": ({"is_loopback_only": True}, "fatal"),
    "token": ({"token": TokenFile(source="/t", mode=0o644)}, "fatal"),
    "token of a secret": ({"token": TokenFile(source="/t", mode=0o444, is_own=False)}, "warning"),
    "token that is missing": ({"auth": "", "token": TokenFile(source="")}, "fatal"),
    "token that is not asked for": ({"auth": "disabled"}, "fatal"),
    "ports": (
        {"listeners": (Listener(port=5, address="0.0.0.0", program="mlflow", is_ray=False),)},
        "warning",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", MACHINES)
def test_a_fault_of_a_machine_is_found_alone(fault):
    changes, level = MACHINES[fault]
    findings = judged(machine=MACHINE.model_copy(update=changes))
    assert problems(findings) == {(fault.split(" ")[0], level)}
    assert all(finding.remedy for finding in findings if finding.level != "ok")


STORES = {
    "storage that is another folder": (StoreFacts(sees_driver=False), "fatal"),
    "storage that is full": (StoreFacts(error="no space left"), "fatal"),
    "create-if-absent": (StoreFacts(error="two could win", is_exclusive=False), "fatal"),
    "storage-speed": (StoreFacts(write_mb_s=2, read_mb_s=300), "warning"),
    "storage-speed of one node": (StoreFacts(write_mb_s=200, read_mb_s=9), "warning"),
}


@pytest.mark.parametrize("fault", STORES)
def test_a_fault_of_the_store_is_found_alone(fault):
    store, level = STORES[fault]
    assert problems(judged(store=store)) == {(fault.split(" ")[0], level)}


@pytest.mark.parametrize("name", ["genmod", "python", "ray", "torch"])
def test_another_version_is_found_alone(name):
    findings = judged(versions=VERSIONS.model_copy(update={name: "0.9"}))
    assert problems(findings) == {(name, "fatal")}
    (finding,) = (each for each in findings if each.level != "ok")
    assert finding.text == f"0.9, the driver has {getattr(VERSIONS, name)}"


def test_gpus_that_pytorch_does_not_see_and_other_drivers_are_found():
    assert problems(judged(gpus=GpuFacts(cuda="12.8"))) == {("gpu", "fatal")}
    assert problems(judged(drivers=("570.1", "535.2"))) == {("gpu", "warning")}


def test_a_node_without_genmod_and_one_that_is_lost_are_told_apart():
    report = Report("a")
    checks.check_answer(report, "ModuleNotFoundError: No module named 'cluster'")
    checks.check_answer(report, "no answer in time")
    assert problems(report.findings) == {("genmod", "fatal"), ("answer", "fatal")}


def compare(check, nodes, *arguments):
    reports = {each.id: Report(each.name) for each in nodes}
    check(reports, nodes, *arguments)
    return {
        (finding.node, finding.check, finding.level)
        for report in reports.values()
        for finding in report.findings
        if finding.level != "ok"
    }


def clocked(*offsets, store=None):
    facts = NodeFacts(machine=MACHINE, store=StoreFacts(offset_s=store))
    clocks = [NodeClock(offset_s=offset, error_s=0.01) for offset in offsets]
    return [
        node(name, clock=clock, facts=facts) for name, clock in zip("abc", clocks, strict=False)
    ]


def test_clocks_are_compared_with_the_median_and_the_store():
    assert compare(comparisons.check_clocks, clocked(0.0, 0.3, -0.2, store=0.5)) == set()
    assert compare(comparisons.check_clocks, clocked(0.0, 9.0, 0.1)) == {("b", "clock", "warning")}
    assert compare(comparisons.check_clocks, clocked(0.0, 0.0, -900)) == {("c", "clock", "fatal")}
    # The driver's own clock is wrong: no node is.
    assert compare(comparisons.check_clocks, clocked(50.0, 50.0, 50.1)) == set()
    wrong = clocked(0.0, 0.0, 0.0, store=-7.0)
    assert compare(comparisons.check_clocks, wrong) == {(n, "clock", "warning") for n in "abc"}


def computing(*answers):
    facts = [NodeFacts(machine=MACHINE, store=STORE, answers=(each,)) for each in answers]
    return [
        node(name, facts=each, labels={"kind": "new" if name == "c" else "old"})
        for name, each in zip("abc", facts, strict=False)
    ]


OTHER = RIGHT.model_copy(update={"numerics": "cpu other"})
WRONG = RIGHT.model_copy(update={"digests": {**DIGESTS, "vae/image": "0" * 64}})


def test_another_numeric_class_is_found_unless_the_recipe_allows_it():
    nodes = computing(RIGHT, RIGHT, OTHER)
    check = comparisons.check_numerics
    assert compare(check, nodes, "strict", {}) == {("c", "numeric-class", "fatal")}
    assert compare(check, nodes, "any", {}) == set()
    assert compare(check, nodes, "strict", {"kind": "old"}) == set()
    assert compare(comparisons.check_known_answers, nodes) == set()


def test_a_device_that_computes_wrong_is_found_among_others_and_alone():
    check = comparisons.check_known_answers
    assert compare(check, computing(RIGHT, WRONG, RIGHT)) == {("b", "known-answers", "fatal")}
    # Of two, the record decides; of one it may come from another kind of machine.
    assert compare(check, computing(WRONG, RIGHT)) == {("a", "known-answers", "fatal")}
    assert compare(check, computing(WRONG)) == {("a", "known-answers", "warning")}
    assert compare(check, computing(WRONG, WRONG, WRONG)) == set()
    broken = RIGHT.model_copy(update={"wrong": ("philox",)})
    assert compare(check, computing(broken)) == {("a", "known-answers", "fatal")}


def test_a_class_that_was_not_recorded_is_decided_by_the_majority():
    new, bad = (each.model_copy(update={"numerics": "new"}) for each in (RIGHT, WRONG))
    found = compare(comparisons.check_known_answers, computing(new, bad, new))
    assert found == {("b", "known-answers", "fatal")}


def link(one, other, *, mb_s=900.0, trip_s=0.0005):
    return Link((one, other), trip_s, mb_s)


def slow_nodes(*links):
    reports = {name: Report(name) for name in "abcd"}
    comparisons.check_links(reports, links)
    findings = [finding for report in reports.values() for finding in report.findings]
    return {finding.node: finding.text for finding in findings if finding.level != "ok"}


def test_a_slow_node_is_named_with_its_links():
    found = slow_nodes(link("a", "b"), link("a", "c", mb_s=3), link("b", "c", trip_s=0.1))
    assert found.keys() == {"c"}
    assert "to a: 3 MB/s" in found["c"]
    assert "round trip 100.0 ms" in found["c"]


def test_one_slow_link_names_both_ends():
    others = [link("a", "c"), link("a", "d"), link("b", "c"), link("b", "d"), link("c", "d")]
    assert slow_nodes(link("a", "b", mb_s=3), *others).keys() == {"a", "b"}
    assert slow_nodes(link("a", "b"), *others) == {}


def test_a_recipe_that_fits_no_node_says_what_the_largest_has():
    small = NodeNeeds(root="r", request=ResourceRequest("cpu", 4, 0))
    check_fits([node()], small)
    with pytest.raises(ConfigError, match="the largest is a with 4 CPUs and 2 GPUs"):
        check_fits([node()], NodeNeeds(root="r", request=ResourceRequest("cpu", 8, 0)))
    labels = NodeNeeds(root="r", request=small.request, labels={"cpu": "x"})
    with pytest.raises(ConfigError, match=r"labels cpu=x .* without them is a with 4 CPUs"):
        check_fits([node()], labels)


def test_findings_are_one_line():
    report = Report("a")
    report.warning("x", "one\ntwo", "do\n  this")
    assert report.findings == [
        Finding(node="a", check="x", level="warning", text="one two", remedy="do this")
    ]
