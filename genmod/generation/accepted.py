"""The accepted set of a filtered request: the first accepted images of each lane, exactly as many as asked.

Candidates are generated in waves. Which ones a wave has depends on the results of the waves before it alone,
so a job that resumes, or has other workers, generates the same.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping

from scipy.special import betaincinv

from genmod.errors import ConfigError
from genmod.generation.filters import EarlierCopies
from genmod.generation.lanes import LaneRange, Lanes, joined
from genmod.generation.rejected import CandidateRows

FIRST_SHARE = 0.04
"""Share of the candidates that may be generated at most, which the first wave has at most."""

_ERROR = 1e-6
"""Probability of giving up although the request can be met."""

_MARGIN = 1.1
"""CandidateRows of a later wave over those that the rate of acceptance suggests."""

_MAX_GROWTH = 16
"""Units of later waves have at most so many times more candidates than shards have rows."""


class AcceptedSet:
    """Which candidates are accepted, as far as the waves have come."""

    def __init__(
        self, lanes: Lanes, quotas: Mapping[int, int], tries: Mapping[int, int], micro_batch: int
    ) -> None:
        """Start without candidates.

        Args:
            lanes: of the stream.
            quotas: accepted images of each lane.
            tries: candidates of each lane, at most.
            micro_batch: images that are generated together.
        """
        self._lanes, self._quotas, self._tries = lanes, quotas, tries
        self._micro_batch = micro_batch
        self._accepted: Counter[int] = Counter()
        self._tried: Counter[int] = Counter()
        self._earlier = {lane: EarlierCopies() for lane in quotas}
        self.rejected: list[tuple[int, str]] = []
        """Index and reason of each candidate before the last accepted one that is not accepted."""

    def add(self, candidates: CandidateRows) -> list[int]:
        """Decide on the next candidates of some lanes; returns the indices of those that are accepted."""
        kept: list[int] = []
        signature_NT = candidates.signature_NT
        for row, index in enumerate(candidates.index_N.tolist()):
            lane, _ = self._lanes.place(index)
            if self._accepted[lane] >= self._quotas.get(lane, 0):
                continue
            self._tried[lane] += 1
            reason = candidates.reasons[row]
            if reason is None and signature_NT is not None:
                signature_T: list[int] = signature_NT[row].tolist()
                if self._earlier[lane].is_copy(signature_T):
                    reason = "earlier copy"
                else:
                    self._earlier[lane].add(signature_T)
            if reason is None:
                self._accepted[lane] += 1
                kept.append(index)
            else:
                self.rejected.append((index, reason))
        return kept

    @property
    def counts(self) -> Mapping[int, int]:
        """Accepted images of each lane; 0 for the others."""
        return self._accepted

    def examined(self, parts: tuple[LaneRange, ...]) -> tuple[LaneRange, ...]:
        """The candidates of these that come before the end of each lane so far."""
        cut = (LaneRange(lane, start, min(stop, self._tried[lane])) for lane, start, stop in parts)
        return tuple(part for part in cut if part.rows > 0)

    @property
    def rate(self) -> float:
        """Accepted images per candidate so far; 1 without candidates."""
        tried = self._tried.total()
        return self._accepted.total() / tried if tried else 1.0

    def next_wave(self) -> tuple[LaneRange, ...]:
        """The next candidates; none if all quotas are met.

        Raises:
            ConfigError: too few images are accepted to meet a quota.
        """
        return joined(self._next(lane) for lane in self._quotas)

    def unit_rows(self, shard_rows: int) -> int:
        """CandidateRows of a unit of the next wave, so that its shard has about as many rows as others."""
        growth = min(_MAX_GROWTH, 1 / self.rate) if self.rate else _MAX_GROWTH
        return max(1, round(shard_rows * growth))

    def _next(self, lane: int) -> LaneRange:
        quota, most = self._quotas[lane], self._tries[lane]
        accepted, tried = self._accepted[lane], self._tried[lane]
        if accepted >= quota:
            return LaneRange(lane, tried, tried)
        self._check_reachable(lane)
        if not tried:
            wave = min(quota, most * FIRST_SHARE)
        elif accepted:
            wave = (quota - accepted) * tried / accepted * _MARGIN
        else:
            wave = 2 * tried
        stop = -(-math.ceil(tried + wave) // self._micro_batch) * self._micro_batch
        return LaneRange(lane, tried, min(stop, most))

    def _check_reachable(self, lane: int) -> None:
        quota, most = self._quotas[lane], self._tries[lane]
        accepted, tried = self._accepted[lane], self._tried[lane]
        if not tried:
            return
        upper = 1.0
        if tried > accepted:  # Clopper and Pearson's upper bound of the rate
            upper = float(betaincinv(accepted + 1, tried - accepted, 1 - _ERROR))
        if accepted + upper * (most - tried) >= quota and tried < most:
            return
        reasons = Counter(
            reason for index, reason in self.rejected if self._lanes.place(index)[0] == lane
        )
        listed = ", ".join(f"{count:,} {reason}" for reason, count in reasons.most_common(3))
        of_class = f" of class {lane}" if self._lanes.block else ""
        possible = accepted + (most - tried) * accepted // tried
        raise ConfigError(
            f"sample.filters accept {accepted:,} of {tried:,} images{of_class} ({accepted / tried:.2%}; "
            f"rejected: {listed}), so {quota:,} cannot be reached within sample.max_tries, {most:,} images; "
            f"about {possible:,} are possible: request fewer, loosen the filters, or raise sample.max_tries"
        )
