"""A look at samples, and what follows from it for the training state."""

from __future__ import annotations

from genmod import storage
from genmod.config import canonical_json
from genmod.training.collapse import Samples, judge_look
from genmod.training.state import TrainState
from genmod.training.writer import taken
from genmod.world import World

EVENTS = "watch.json"
"""Below a model's root: what looks at samples found and what was done, newest state."""


def look_at_samples(
    samples: Samples, state: TrainState, world: World, root: str | None
) -> dict[str, float]:
    """Compare samples with data; on a collapse go back to the best weights, or fail. All ranks come here.

    Raises:
        TrainingCollapsed: on all ranks alike, if the recipe allows no further way back.
        StorageError: the store did not take what was seen.
    """
    found = samples.measure(state.ema, world)
    collapsed = judge_look(state.watch, samples.config, found, state.nimg)
    if not state.watch.bad_looks:
        state.note_best(found)
    try:
        if collapsed:
            state.go_back(samples.config)
    finally:
        if root is not None and world.rank == 0:
            told = canonical_json(state.watch.as_json())
            with taken(root, f"what samples at {state.nimg:,} images were like"):
                storage.write_bytes(storage.join(root, EVENTS), told)
    told_of = found | {"retries": float(state.watch.retried)}
    return {f"samples/{name}": value for name, value in told_of.items()}
