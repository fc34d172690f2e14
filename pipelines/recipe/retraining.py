"""When and how models are trained again: the recipe's ``retrain`` and ``schedule``. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from genmod.budget import BUDGET
from genmod.config import Config
from pipelines.recipe.cron import check_cron, check_timezone

CronLine = Annotated[str, Field(max_length=200), AfterValidator(check_cron)]
"""Type of a field: five fields of cron, e.g. ``0 3 * * *``, that match some time."""

TimeZone = Annotated[str, Field(max_length=100), AfterValidator(check_timezone)]
"""Type of a field: a name of the time zone database, e.g. ``Europe/Berlin``."""


class DriftConfig(Config):
    """The recipe's ``retrain.drift``: when new rows do not look like the champion's data."""

    false_alarm: float = Field(default=0.001, gt=0, le=0.5)
    """Largest probability of an alarm where nothing has changed, in one check."""
    rows: int = Field(default=500, ge=20, le=1_000_000)
    """Most new rows that are scored, drawn by the seed."""


class RetrainConfig(Config):
    """The recipe's ``retrain``: what besides new rows is a reason to retrain, and how."""

    source_changes: Literal["keep", "rebuild"] = "keep"
    """What follows if rows of the newest version were removed from the source, or files, labels or splits in
    it changed: ``keep`` the rows as they are, and say so; or ``rebuild`` the dataset from what the source
    has now. What was made of the earlier versions is then listed in ``retrain/vNNNN/replaced.json``.
    Changes are looked for when no rows are new or removed. ``keep`` if the source has only the new rows."""
    min_new_rows: int = Field(default=1, ge=1, le=BUDGET.rows)
    """New rows that are a reason to retrain. Fewer wait until there are as many, or until there is another
    reason: drift, or age."""
    drift: DriftConfig | None = None
    """Fewer than ``min_new_rows`` new rows are scored by the champions, and are a reason to retrain if more
    of them are extreme than chance explains. Needs a model with a density and its scores of held-out rows.
    Null: no check."""
    max_age_days: float | None = Field(default=None, ge=0, le=36_500)
    """Retrain on the same rows, with other random numbers, when the newest version is this old. 0: at once,
    on request. Null: never."""
    start: Literal["scratch", "warm", "both"] = "scratch"
    """Training of later versions starts from random weights, or ``warm`` from those of the champion.
    ``both``: one version of each, decided one after the other; each counts as a decision."""

    synthetic_count: int | None = Field(default=None, ge=1, le=BUDGET.rows)
    """Images of the synthetic dataset that each champion generates at the end of a retrain, in the folder
    ``synthetic/NAME`` of its version, unless it is there. Null: none."""
    reference_version: int | None = Field(default=None, ge=1, le=10**9)
    """Version of the dataset whose test rows and feature space decide, for example a newer one when the
    planned decisions of the first one's rows are used up; the champion is evaluated again. Null: version 1,
    or the newest one that replaces others."""

    lease_s: float = Field(default=60, ge=1, le=86_400)
    """One retrain works below a root at a time, and renews its lease within this time, in seconds. One that
    does not, since it was killed or is frozen, is replaced by the next one that starts."""


class ScheduleConfig(Config):
    """The recipe's ``schedule``: when ``genmod schedule`` retrains."""

    cron: CronLine = "0 3 * * *"
    """Five fields: minute, hour, day of the month, month, day of the week."""
    timezone: TimeZone = "UTC"
    """Where the clock is that the fields mean. A time that summer time skips runs right after the change; a
    time that occurs twice runs once, the first time, unless the hour is ``*``."""
    overlap: Literal["skip", "queue"] = "skip"
    """What happens to a tick while an earlier one works: it is skipped, or waits."""
    catch_up: Literal["none", "latest", "all"] = "latest"
    """Which ticks that no scheduler saw in time are made up for: none, the latest one, or all in order."""
    jitter_s: float = Field(default=0, ge=0, le=86_400)
    """Each tick starts up to this many seconds late: by a fixed time, which differs from tick to tick and
    from root to root, so that many schedules do not start at once."""
    lease_s: float = Field(default=60, ge=1, le=86_400)
    """A scheduler that runs a tick renews its lease within this time, in seconds. One that does not is
    replaced by another scheduler, which runs the tick again; a retrain that works is not disturbed."""
