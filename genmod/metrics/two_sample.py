"""Classifier two-sample test: can a classifier see which images are samples?

Lopez-Paz and Oquab 2017, Revisiting classifier two-sample tests, sec. 3: the accuracy on held-out rows is one
half for equal distributions. The classifier is a logistic regression on the features and their squares, so it
sees differences of means and of variances. Letters: N rows, D features, E inputs.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from genmod.metrics.groups import random_groups
from genmod.metrics.intervals import share
from genmod.metrics.protocol import Interval

CLASSIFIER = "logistic regression on features and their squares, half of the rows for training"
"""The classifier, for the protocol of a metric."""

RIDGE = 0.01
"""Penalty on the squared coefficients, per row."""

_BLOCK_ROWS = 8192
"""Rows whose inputs are in memory at a time."""

_STEPS = 50
_TOLERANCE = 1e-6


def two_sample_accuracy(fake_ND: Tensor, real_ND: Tensor, seed: int) -> tuple[float, Interval]:
    """Held-out accuracy of a classifier of fake against real rows: 0.5 if it sees no difference, 1 at most.

    Equally many rows of both are used, a random half of each for training. The interval is exact, and about
    the accuracy of this very classifier on new rows of both kinds.

    Args:
        fake_ND: at least 2 rows.
        real_ND: at least 2 rows.
        seed: seed of the halves.
    """
    rows = min(len(fake_ND), len(real_ND))
    sides = [side_ND[:rows].to(torch.float64) for side_ND in (fake_ND, real_ND)]
    halves = [random_groups(rows, 2, seed, f"two-sample/{side}") for side in ("fake", "real")]

    def rows_of(half: int) -> Tensor:
        return torch.cat([side[parts[half]] for side, parts in zip(sides, halves, strict=True)])

    train_ND = rows_of(0)
    mean_D, std_D = train_ND.mean(0), train_ND.std(0)
    scale_D = torch.where(std_D > 0, std_D, 1.0)
    train_ND.sub_(mean_D).div_(scale_D)
    weights_E = logistic_weights(train_ND, _is_fake(len(train_ND)), _inputs)
    del train_ND
    test_ND = rows_of(1).sub_(mean_D).div_(scale_D)
    logits_N = torch.cat([_inputs(part) @ weights_E for part in test_ND.split(_BLOCK_ROWS)])
    return share((logits_N > 0) == (_is_fake(len(test_ND)) > 0))


def _is_fake(rows: int) -> Tensor:
    return (torch.arange(rows) < rows // 2).to(torch.float64)


def _inputs(rows_ND: Tensor) -> Tensor:
    return torch.cat([torch.ones(len(rows_ND), 1, dtype=torch.float64), rows_ND, rows_ND**2 - 1], 1)


def logistic_weights(
    rows_ND: Tensor, target_N: Tensor, inputs: Callable[[Tensor], Tensor]
) -> Tensor:
    """Weights of a logistic regression with a ridge penalty, by Newton's method, (E,).

    Args:
        rows_ND: rows, in float64.
        target_N: 0 or 1.
        inputs: the (B, E) inputs of some rows, which are computed in blocks to save memory.
    """
    blocks = list(zip(rows_ND.split(_BLOCK_ROWS), target_N.split(_BLOCK_ROWS), strict=True))
    size = inputs(rows_ND[:1]).shape[1]
    weights_E = torch.zeros(size, dtype=torch.float64)
    for _ in range(_STEPS):
        gradient_E = RIDGE * len(rows_ND) * weights_E
        curvature_EE = RIDGE * len(rows_ND) * torch.eye(size, dtype=torch.float64)
        for rows_BD, target_B in blocks:
            input_BE = inputs(rows_BD)
            p_B = torch.sigmoid(input_BE @ weights_E)
            gradient_E += input_BE.T @ (p_B - target_B)
            curvature_EE += (input_BE * (p_B * (1 - p_B))[:, None]).T @ input_BE
        step_E = torch.linalg.solve(curvature_EE, gradient_E)
        # Near separable rows a whole step may overshoot.
        largest = max(float((inputs(rows_BD) @ step_E).abs().max()) for rows_BD, _ in blocks)
        step_E = step_E / max(1.0, largest / 5)
        weights_E = weights_E - step_E
        if float(step_E.abs().max()) < _TOLERANCE:
            break
    return weights_E
