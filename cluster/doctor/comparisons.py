"""Checks that compare nodes with each other: clocks, numeric classes, known answers, links."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from cluster.doctor.facts import Node
from cluster.doctor.finding import Report
from genmod.numerics import NumericsMode
from genmod.selftest.known_answers import DeviceAnswers, recorded_answers

_CLOCK_WARNING_S, _CLOCK_FATAL_S = 1.5, 300.0
"""Stores refuse signatures that are minutes off; seconds confuse leases, ages and logs."""

_SLOW_LINK_MB_S = 12.5
"""A link below 100 Mbit/s is slow for training, whatever the others do."""

_SLOW_TRIP_S = 0.02
"""A round trip of a small message above this is slow; one in a data center takes below 1 ms."""


def check_clocks(reports: Mapping[str, Report], nodes: Sequence[Node]) -> None:
    """Each node's clock against the median of all nodes and the driver, and against the store's."""
    offsets = {node.id: node.clock.offset_s for node in nodes if node.clock is not None}
    middle = median([*offsets.values(), 0.0]) if offsets else 0.0
    for node in nodes:
        if node.clock is None:
            continue
        skew_s = node.clock.offset_s - middle
        beyond_s = max(0.0, abs(skew_s) - node.clock.error_s)
        text = f"{skew_s:+.2f} s from the other nodes, ± {node.clock.error_s:.2f} s"
        store = None if node.facts is None else node.facts.store.offset_s
        if store is not None:
            text += f", {store:+.1f} s from the store"
            beyond_s = max(beyond_s, abs(store) - 1.0)
        reports[node.id].limit(
            "clock",
            text,
            "synchronize the node's clock (chrony, systemd-timesyncd)",
            -beyond_s,
            fatal=-_CLOCK_FATAL_S,
            warning=-_CLOCK_WARNING_S,
        )


def check_numerics(
    reports: Mapping[str, Report],
    nodes: Sequence[Node],
    mode: NumericsMode,
    labels: Mapping[str, str],
) -> None:
    """Whether all nodes that sample and score compute in one numeric class.

    Args:
        reports: by the node's id.
        nodes: of the cluster.
        mode: of the recipe; with ``any``, classes may differ.
        labels: of nodes that sample and score.
    """
    classes = {
        node.id: " and ".join(sorted({answers.numerics for answers in node.facts.answers}))
        for node in nodes
        if node.facts is not None and node.facts.answers
    }
    chosen = {
        node.id
        for node in nodes
        if node.id in classes and all(node.labels.get(k) == v for k, v in labels.items())
    }
    if not classes:
        return
    usual = Counter(classes[each] for each in classes if each in chosen).most_common(1)
    for each, numerics in classes.items():
        if mode == "any" or each not in chosen or numerics == usual[0][0]:
            reports[each].ok("numeric-class", numerics)
        else:
            reports[each].fatal(
                "numeric-class",
                f"{numerics}, but other nodes compute as {usual[0][0]}",
                "choose nodes of one kind with cluster.labels, or set sample.numerics and score.numerics to "
                "portable or any",
            )


def check_known_answers(reports: Mapping[str, Report], nodes: Sequence[Node]) -> None:
    """Whether each device computes what it must, and what others of its numeric class do."""
    answers = [
        (node.id, device)
        for node in nodes
        if node.facts is not None
        for device in node.facts.answers
    ]
    by_class: dict[str, list[DeviceAnswers]] = {}
    for _, device in answers:
        by_class.setdefault(device.numerics, []).append(device)
    for node_id, device in answers:
        wrong = list(device.wrong)
        alike = by_class[device.numerics]
        expected, is_recorded = _expected(device.numerics, alike)
        different = sorted(
            name for name, digest in device.digests.items() if expected.get(name, digest) != digest
        )
        report = reports[node_id]
        remedy = "take the node out of the cluster, and test its memory and processor"
        if wrong:
            report.fatal(
                "known-answers", f"{device.device} computes wrong: {', '.join(wrong)}", remedy
            )
        elif different and len(alike) > 1:
            report.fatal(
                "known-answers",
                f"{device.device} computes other values than {len(alike) - 1} others of its numeric class: "
                f"{', '.join(different)}",
                remedy,
            )
        elif different:
            report.warning(
                "known-answers",
                f"{device.device} computes other values than those recorded for {device.numerics}: "
                f"{', '.join(different)}",
                "compare with another machine; to record this one: python -m genmod.selftest.known_answers",
            )
        else:
            compared = "as recorded" if is_recorded else f"{len(alike)} devices agree"
            report.ok("known-answers", f"{device.device}: {compared}")


def _expected(numerics: str, alike: Sequence[DeviceAnswers]) -> tuple[Mapping[str, str], bool]:
    """Digests that a class must compute, and whether they are the recorded ones.

    What no device of several computes as recorded was recorded on another kind of machine.
    """
    recorded = recorded_answers().get(numerics, {})
    if recorded and (len(alike) == 1 or any(_agrees(each, recorded) for each in alike)):
        return recorded, True
    names = {name for each in alike for name in each.digests}
    return {
        name: Counter(each.digests[name] for each in alike if name in each.digests).most_common(1)[
            0
        ][0]
        for name in names
    }, False


def _agrees(answers: DeviceAnswers, expected: Mapping[str, str]) -> bool:
    return all(expected.get(name, digest) == digest for name, digest in answers.digests.items())


@dataclass(frozen=True)
class Link:
    """What two nodes measured between them."""

    nodes: tuple[str, str]
    """Ids of the two nodes."""
    trip_s: float
    """Round trip of a small message; the best of several."""
    mb_s: float
    """The best of several transfers."""

    @property
    def is_slow(self) -> bool:
        """Whether training over it is slow."""
        return self.mb_s < _SLOW_LINK_MB_S or self.trip_s > _SLOW_TRIP_S

    def __str__(self) -> str:
        return f"{self.mb_s:,.0f} MB/s, round trip {1000 * self.trip_s:.1f} ms"


def check_links(reports: Mapping[str, Report], links: Sequence[Link]) -> None:
    """Names nodes all of whose links are slow, else the two ends of a slow link."""
    ids = sorted({each for link in links for each in link.nodes})
    of_node = {each: [link for link in links if each in link.nodes] for each in ids}
    slow_nodes = {each for each in ids if all(link.is_slow for link in of_node[each])}
    if len(slow_nodes) == len(ids) > 2:
        slow_nodes = set(ids)
    for each in ids:
        slow = [link for link in of_node[each] if link.is_slow]
        # A slow node explains the links of others to it.
        own = slow if each in slow_nodes else [k for k in slow if not set(k.nodes) & slow_nodes]
        if not own:
            best = max(of_node[each], key=lambda link: link.mb_s)
            reports[each].ok("link", f"up to {best}")
            continue
        listed = "; ".join(f"to {reports[_other(link, each)].node}: {link}" for link in own[:3])
        reports[each].warning(
            "link",
            f"slow {listed}",
            "check cable, switch and limits of the node's network, or train without it",
        )


def _other(link: Link, node: str) -> str:
    first, second = link.nodes
    return second if node == first else first
