"""Error rates of the gate, by simulation: ``python -m tests.benchmarks._gate [RATE ...]``.

Models are Gaussians in a feature space, x = scale R z with z from N(0, 1) and a rotation R of their own, so
that their quality is known exactly: the squared Fréchet distance to the real N(0, 1) is D (scale - 1)². Equal
models differ by their rotation only, as retrained twins differ by their seed; samples of a pair have the same
z. Every decision is made by the product's own comparison and gate, with the margins of the default rules.

The peer is the rule of other systems: the candidate is promoted if its number is better.

The control is a policy that was loosened by hand (:data:`LOOSENED`): its false promotions must exceed the
bound, or the benchmark would not notice a gate that is too generous.

Rates: ``null`` (equal models, and the control), ``margin`` (a gain that is just the one that counts),
``chains`` (100 decisions that change nothing), ``power`` (a gain of 15 % with 10,000 images), each with its
95 % interval (Clopper and Pearson 1934).
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from scipy.stats import beta
from torch import Tensor

from genmod.evaluation.differences import MetricDifference
from genmod.evaluation.gate import Decision, decide
from genmod.evaluation.measure import BETTER
from genmod.evaluation.policy import PromoteConfig, Rule
from genmod.metrics.features import Features
from genmod.metrics.paired import GroupedMeter, GroupedValue, jackknife_groups, paired_stderr
from genmod.metrics.protocol import Interval, MetricResult, MetricValue, Protocol
from genmod.rng import rng_for

RULES = {
    "fd": Rule(improve_by=0.05, max_regression=0.05, relative=True),
    "coverage": Rule(improve_by=0.03, max_regression=0.05),
}
"""The margins of the default rules."""

SCALE, TURN, NEIGHBOURS = 1.3, 0.3, 5
"""Scale of the champion, size of the random rotations, k."""

PAIRS, CHAINS, CHAIN, LARGE_PAIRS = 2_000, 1_000, 100, 60
ROWS, CHAIN_ROWS, LARGE_ROWS = 1_000, 200, 10_000
DIMS, CHAIN_DIMS = 16, 8
LEAST_PAIRS = 100
"""Pairs from which on the interval of the control's rate is above the bound."""
QUICK = {"PAIRS": 6, "CHAINS": 2, "CHAIN": 3, "LARGE_PAIRS": 2, "LARGE_ROWS": 300}
QUICK_ARGS: list[str] = []

ONE_DECISION = PromoteConfig(rules=RULES, false_promotion=0.01, planned_decisions=1)
"""A probability of error that can be measured with thousands of pairs."""

LOOSENED = PromoteConfig(
    rules={"fd": Rule(improve_by=0, max_regression=0.05, relative=True)},
    false_promotion=0.3,
    familywise_error=0.3,
    planned_decisions=1,
)
"""Any gain counts, at an error rate of 30 %."""

BOUND = 0.01
"""Largest share of equal models that may be promoted."""


@dataclass(frozen=True)
class Outcome:
    """What became of one pair."""

    promoted: bool
    promoted_by_control: bool
    worse: bool
    better_number: bool
    """Whether the candidate's Fréchet distance is smaller."""


@dataclass
class Bench:
    """Draws pairs of models and decides on them, against one set of real rows."""

    rows: int
    dims: int
    config: PromoteConfig

    def __post_init__(self) -> None:
        real_MD = rng_for(0, "bench/gate/real", range(self.rows)).normal(self.dims)
        groups_N = jackknife_groups(self.rows, 0)
        self.meter = GroupedMeter(_features(real_MD), NEIGHBOURS, groups_N)

    def decide(self, pair: int, gain: float) -> Outcome:
        """Decide on one pair.

        Args:
            pair: its number, which addresses noise and rotations.
            gain: share by which the candidate's true Fréchet distance is smaller.
        """
        z_ND = rng_for(0, f"bench/gate/{self.rows}/{pair}", range(self.rows)).normal(self.dims)
        scales = 1 + (SCALE - 1) * (1 - gain) ** 0.5, SCALE
        values = [
            self._measured(scale * z_ND.double() @ self._rotation(2 * pair + side))
            for side, scale in enumerate(scales)
        ]
        found = self._decision(*values, self.config)
        return Outcome(
            promoted=found.promote,
            promoted_by_control=self._decision(*values, LOOSENED).promote,
            worse=any(check.outcome == "worse" for check in found.checks),
            better_number=values[0]["fd"].value < values[1]["fd"].value,
        )

    def _measured(self, fake_ND: Tensor) -> dict[str, GroupedValue]:
        fd = self.meter.frechet(fake_ND)
        return {"fd": fd, **self.meter.fidelity_and_coverage(fake_ND)}

    def _rotation(self, number: int) -> Tensor:
        turn_DD = TURN * rng_for(0, f"bench/gate/turn/{number}", range(self.dims)).normal(self.dims)
        return torch.linalg.matrix_exp((turn_DD - turn_DD.T).double() / self.dims**0.5)

    def _decision(
        self,
        candidate: dict[str, GroupedValue],
        champion: dict[str, GroupedValue],
        config: PromoteConfig,
    ) -> Decision:
        differences = []
        for name in RULES:
            difference = candidate[name].value - champion[name].value
            differences.append(
                MetricDifference(
                    metric=f"{name}[bench]",
                    better=BETTER[name],
                    gain=-difference if BETTER[name] == "lower" else difference,
                    stderr=paired_stderr(candidate[name], champion[name]),
                    freedom=len(candidate[name].without_G) - 1,
                    paired=True,
                )
            )
        metrics = [
            [self._metric(n, side[n].value) for n in RULES] for side in (candidate, champion)
        ]
        return decide(metrics[0], metrics[1], config, differences)

    def _metric(self, name: str, value: float) -> MetricResult:
        protocol = Protocol(
            metric=name,
            features="bench",
            features_digest="",
            reference_digest="",
            reference_split="test",
            n_real=self.rows,
            n_fake=self.rows,
        )
        interval = Interval(low=value, high=value, method="not used")
        measured = MetricValue.of(protocol, value, interval)
        return MetricResult(value=measured, floor=None, ceiling=None, better=BETTER[name])


def _features(rows_ND: Tensor) -> Features:
    return Features(rows_ND.to(torch.float64), None)


def rate(name: str, hits: int, of: int, bound: str) -> dict[str, object]:
    """A share with its 95 % Clopper-Pearson interval."""
    low = float(beta.ppf(0.025, hits, of - hits + 1)) if hits else 0.0
    high = float(beta.ppf(0.975, hits + 1, of - hits)) if hits < of else 1.0
    return {"rate": name, "share": hits / of, "low": low, "high": high, "of": of, "bound": bound}


def null() -> Iterator[dict[str, object]]:
    bench = Bench(ROWS, DIMS, ONE_DECISION)
    found = [bench.decide(pair, 0.0) for pair in range(PAIRS)]
    yield rate("equal models promoted", sum(f.promoted for f in found), PAIRS, "<= 0.01")
    yield rate("equal models called worse", sum(f.worse for f in found), PAIRS, "<= 0.05")
    number = sum(f.better_number for f in found)
    yield rate("equal models promoted by two numbers (peer)", number, PAIRS, "")
    control = sum(f.promoted_by_control for f in found)
    row = rate("equal models promoted by a loosened policy (control)", control, PAIRS, "> 0.01")
    yield row
    low = row["low"]
    assert isinstance(low, float)
    if PAIRS >= LEAST_PAIRS and low <= BOUND:
        raise SystemExit("the loosened policy does not exceed the bound, so nothing is measured")


def margin() -> Iterator[dict[str, object]]:
    bench = Bench(ROWS, DIMS, ONE_DECISION)
    gain = RULES["fd"].improve_by
    assert gain is not None
    found = [bench.decide(pair, gain) for pair in range(PAIRS)]
    yield rate("gains of just 5 % promoted", sum(f.promoted for f in found), PAIRS, "<= 0.01")


def chains() -> Iterator[dict[str, object]]:
    bench = Bench(CHAIN_ROWS, CHAIN_DIMS, PromoteConfig(rules=RULES, planned_decisions=CHAIN))
    hits, numbers = 0, 0
    for chain in range(CHAINS):
        found = [bench.decide(chain * CHAIN + step, 0.0) for step in range(CHAIN)]
        hits += any(f.promoted for f in found)
        numbers += any(f.better_number for f in found)
    yield rate(f"chains of {CHAIN} that promoted anything", hits, CHAINS, "<= 0.05")
    yield rate(f"chains of {CHAIN} by two numbers (peer)", numbers, CHAINS, "")


def power() -> Iterator[dict[str, object]]:
    planned = PromoteConfig(rules=RULES)
    bench = Bench(LARGE_ROWS, DIMS, planned)
    found = [bench.decide(pair, 0.15) for pair in range(LARGE_PAIRS)]
    hits = sum(f.promoted for f in found)
    yield rate(f"gains of 15 % found with {LARGE_ROWS:,} images", hits, LARGE_PAIRS, ">= 0.8")


RATES: dict[str, Callable[[], Iterator[dict[str, object]]]] = {
    "null": null,
    "margin": margin,
    "chains": chains,
    "power": power,
}


def main(names: list[str]) -> None:
    torch.set_num_threads(1)
    for name in names or RATES:
        start_s = time.process_time()
        for row in RATES[name]():
            cpu_s = round(time.process_time() - start_s, 1)
            print(json.dumps(row | {"cpu_s": cpu_s}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
