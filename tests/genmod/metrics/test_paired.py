"""Paired differences: values equal the metrics', standard errors equal the spread of repeated experiments."""

from __future__ import annotations

import pytest
import torch

from genmod.metrics.features import Features
from genmod.metrics.frechet import frechet_distance
from genmod.metrics.kernel import kernel_distance
from genmod.metrics.neighbours import neighbourhoods
from genmod.metrics.paired import GroupedMeter, jackknife_groups, paired_stderr

D, K, CLASSES = 8, 3, 4


def _draw(rows, seed, scale=1.0, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    noise_ND = torch.randn(rows, D, dtype=torch.float64, generator=generator)
    return noise_ND * scale + shift


def _features(rows_ND):
    classes_N = (rows_ND[:, 0] > 0).long() * 2 + (rows_ND[:, 1] > 0).long()
    return Features(rows_ND, classes_N)


def _meter(rows, real_rows=300):
    return GroupedMeter(_features(_draw(real_rows, 1)), K, jackknife_groups(rows, 0))


def test_values_are_those_of_the_metrics():
    meter, fake = _meter(250), _features(_draw(250, 2, 1.2, 0.1))
    values = {name: grouped.value for name, grouped in meter.measure(fake).items()}
    real_MD, fake_ND = meter.real.features_ND, fake.features_ND
    near = neighbourhoods(fake_ND, real_MD[:250], K, 0)
    assert values["fd"] == pytest.approx(frechet_distance(fake_ND, real_MD)[0])
    assert values["kid"] == pytest.approx(kernel_distance(fake_ND, real_MD)[0])
    for name in ("precision", "recall", "density", "coverage"):
        assert values[name] == pytest.approx(getattr(near, name)[0])


def test_values_without_a_group_are_those_of_the_other_rows():
    meter, fake = _meter(200, 200), _features(_draw(200, 2, 1.2, 0.1))
    labels_N = torch.arange(200) % CLASSES
    grouped = meter.measure(fake, labels_N)
    for group in (0, 7):
        left_N = meter.group_N != group
        rest = Features(fake.features_ND[left_N], fake.classes_N[left_N])
        whole = GroupedMeter(meter.real, K, torch.arange(len(rest.features_ND)) % 5)
        expected = whole.measure(rest, labels_N[left_N])
        for name in ("fd", "kid", "class_balance", "class_coverage", "label_accuracy"):
            assert float(grouped[name].without_G[group]) == pytest.approx(expected[name].value)


def test_every_group_has_rows_of_every_class():
    group_N = jackknife_groups(1000, 3)
    assert sorted(group_N.bincount().tolist()) == [20] * 50
    labels_N = torch.arange(1000) % 10
    assert all(len(labels_N[group_N == group].unique()) > 3 for group in range(50))


@pytest.mark.parametrize("scale", [1.0, 1.1])
def test_standard_errors_are_the_spread_of_repeated_experiments(scale):
    """A candidate that differs from the champion a little, with the same noise."""
    meter, found = _meter(300), {}
    for seed in range(60):
        noise_ND = _draw(300, 100 + seed)
        champion = meter.measure(_features(noise_ND * 1.3))
        candidate = meter.measure(_features(noise_ND * 1.3 * scale + 0.05))
        for name, grouped in candidate.items():
            difference = grouped.value - champion[name].value
            stderr = paired_stderr(grouped, champion[name])
            found.setdefault(name, []).append((difference, stderr))
    pairs = {name: torch.tensor(each, dtype=torch.float64).T for name, each in found.items()}
    ratios = {name: float(e.mean() / d.std()) for name, (d, e) in pairs.items()}
    # 60 experiments give the spread to 9 %.
    assert 1 < ratios.pop("recall") < 2.7
    assert 0.6 < ratios.pop("class_coverage") < 2.7  # a smallest value is no smooth function
    assert all(0.75 < ratio < 1.6 for ratio in ratios.values()), ratios


def test_common_noise_leaves_the_difference():
    meter, noise_ND = _meter(300), _draw(300, 5)
    champion = meter.measure(_features(noise_ND))
    paired = meter.measure(_features(noise_ND * 1.02))
    apart = meter.measure(_features(_draw(300, 6) * 1.02))
    assert paired_stderr(paired["fd"], champion["fd"]) < 0.3 * paired_stderr(
        apart["fd"], champion["fd"]
    )
    same = meter.measure(_features(noise_ND.clone()))
    assert all(paired_stderr(same[name], champion[name]) == 0 for name in same)
