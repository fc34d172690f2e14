"""Classifier two-sample test: can a classifier see which images are samples?

Lopez-Paz and Oquab 2017, Revisiting classifier two-sample tests, sec. 3: the accuracy on held-out rows is one
half for equal distributions. The classifier is a logistic regression on the features and their squares, so it
sees differences of means and of variances. Letters: N rows, D features, E inputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from genmod.metrics.groups import random_groups
from genmod.metrics.intervals import share
from genmod.metrics.protocol import Interval

CLASSIFIER = "logistic regression on features and their squares, half of the rows for training"
"""The classifier, for the protocol of a metric."""

RIDGE = 0.01
"""Penalty on the squared coefficients, per row."""

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
    train, test = (
        torch.cat([sides[0][halves[0][part]], sides[1][halves[1][part]]]) for part in (0, 1)
    )
    mean_D, std_D = train.mean(0), train.std(0)
    scale_D = torch.where(std_D > 0, std_D, 1.0)
    train_NE, test_NE = (_inputs((part - mean_D) / scale_D) for part in (train, test))
    weights_E = logistic_weights(train_NE, _is_fake(len(train_NE)))
    right_N = (test_NE @ weights_E > 0) == (_is_fake(len(test_NE)) > 0)
    return share(right_N)


def _is_fake(rows: int) -> Tensor:
    return (torch.arange(rows) < rows // 2).to(torch.float64)


def _inputs(rows_ND: Tensor) -> Tensor:
    return torch.cat([torch.ones(len(rows_ND), 1, dtype=torch.float64), rows_ND, rows_ND**2 - 1], 1)


def logistic_weights(input_NE: Tensor, target_N: Tensor) -> Tensor:
    """Weights of a logistic regression with a ridge penalty, by Newton's method, (E,).

    Args:
        input_NE: inputs, in float64.
        target_N: 0 or 1.
    """
    rows, inputs = input_NE.shape
    penalty_EE = RIDGE * rows * torch.eye(inputs, dtype=torch.float64)
    weights_E = torch.zeros(inputs, dtype=torch.float64)
    for _ in range(_STEPS):
        p_N = torch.sigmoid(input_NE @ weights_E)
        gradient_E = input_NE.T @ (p_N - target_N) + penalty_EE @ weights_E
        curvature_EE = (input_NE * (p_N * (1 - p_N))[:, None]).T @ input_NE + penalty_EE
        step_E = torch.linalg.solve(curvature_EE, gradient_E)
        # Near separable rows a whole step may overshoot.
        step_E = step_E / max(1.0, float((input_NE @ step_E).abs().max()) / 5)
        weights_E = weights_E - step_E
        if float(step_E.abs().max()) < _TOLERANCE:
            break
    return weights_E
