"""Class coverage against its definition, and its interval by simulation."""

import pytest
import torch

from genmod.metrics.class_coverage import class_coverage


def test_it_is_the_ratio_of_the_scarcest_class():
    value, interval = class_coverage(torch.tensor([50, 30, 20]), torch.tensor([40, 40, 20]))
    assert value == pytest.approx(0.75)
    assert interval.low < 0.75 < interval.high <= 1


def test_an_absent_class_is_0_and_classes_without_reference_do_not_count():
    value, interval = class_coverage(torch.tensor([90, 0, 10]), torch.tensor([50, 50, 0]))
    assert (value, interval.low) == (0, 0)
    assert 0 < interval.high < 0.15
    assert class_coverage(torch.tensor([50, 50, 0]), torch.tensor([50, 50, 0]))[0] == 1


def test_more_of_every_class_is_no_more_than_1():
    value, interval = class_coverage(torch.tensor([500, 500]), torch.tensor([5, 5]))
    assert (value, interval.high) == (1, 1)


def test_the_interval_contains_the_true_ratio():
    generator = torch.Generator().manual_seed(0)
    true_K = torch.tensor([0.05, 0.15, 0.2, 0.3, 0.3], dtype=torch.float64)
    real_K = torch.tensor([200, 200, 200, 200, 200])
    inside = 0
    for _ in range(300):
        fake_N = torch.multinomial(true_K, 500, replacement=True, generator=generator)
        interval = class_coverage(fake_N.bincount(minlength=5), real_K)[1]
        inside += interval.low <= 0.25 <= interval.high
    assert inside >= 280
