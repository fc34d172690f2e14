"""Whether a unit of work is to blame for the loss of its workers.

Machines are lost all the time where they are cheap, so a job goes on as long as units get finished. A unit
ends when it loses its workers although those of other units live, or when it loses too many in any case.
"""

from __future__ import annotations

from collections.abc import Mapping

UNIT_LOSSES = 3
"""Workers that a unit may lose before it is suspected."""

MOST_LOSSES = 12
"""Workers that a unit may lose in any case."""

_CHANCE = 0.05
"""The unit is to blame if such losses would be less probable than this among all units of the job."""


def is_to_blame(number: int, attempts: Mapping[int, int], num_units: int) -> bool:
    """Whether the losses of a unit are not explained by the losses of others.

    Args:
        number: of the unit, whose last attempt has just started.
        attempts: unit -> attempts so far; all but the last have lost their worker.
        num_units: of the job.
    """
    losses = attempts[number] - 1
    if losses < UNIT_LOSSES:
        return False
    others = [count for unit, count in attempts.items() if unit != number]
    rate = sum(count - 1 for count in others) / sum(others) if others else 0.0
    return losses >= MOST_LOSSES or rate**losses * num_units < _CHANCE
