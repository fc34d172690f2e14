"""The function of each stage, by its name on the command line."""

from __future__ import annotations

from collections.abc import Mapping

from pipelines.stages import promote, retrain, run

STAGE_FUNCTIONS: Mapping[str, run.Stage] = {
    "run": run.stage,
    **run.STEPS,
    "promote": promote.stage,
    "retrain": retrain.stage,
}
