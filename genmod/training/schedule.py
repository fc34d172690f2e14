"""The learning rate schedule, a function of images seen."""

from __future__ import annotations

import math

from genmod.training.plan import OptimConfig

_STAGES = 8
"""Number of stages of the staged decay."""


def lr_at(config: OptimConfig, nimg: float, total_nimg: int) -> float:
    """Learning rate at ``nimg`` of ``total_nimg`` images.

    Linear warm-up from 0, then the decay to ``floor * lr`` at ``total_nimg``, and flat after it.
    """
    warmup = min(1.0, nimg / config.warmup_nimg) if config.warmup_nimg else 1.0
    span = max(1, total_nimg - config.warmup_nimg)
    done = min(1.0, max(0.0, (nimg - config.warmup_nimg) / span))
    if config.decay == "cosine":
        left = 0.5 * (1.0 + math.cos(math.pi * done))
    elif config.decay == "linear":
        left = 1.0 - done
    elif config.decay == "stages":
        left = 10.0 ** (-_stage(done) / (_STAGES - 1))
    else:
        left = 1.0
    return config.lr * warmup * (config.floor + (1.0 - config.floor) * left)


def _stage(done: float) -> int:
    """0 .. 7: stage i ends after 1 + 3 + ... + 3**i of all 1 + 3 + ... + 3**7 parts."""
    parts = done * sum(3**stage for stage in range(_STAGES))
    return sum(parts >= (3**stage - 1) / 2 for stage in range(1, _STAGES))
