"""Every benchmark runs in a form of seconds, so that none of them rots."""

import os
import subprocess
import sys

import pytest

from tests.benchmarks.__main__ import runnable

LONG = (
    "_annealing",
    "_quality_diffusion",
    "_quality_gan",
    "bulk_scale",
    "data_scale",
    "diffusion",
    "drift",
    "expected_times",
    "familiarity",
    "tracking",
    "training",
)
"""Those whose shortest form takes longest."""


def output_of(names):
    """Run benchmarks in one process, as a user does: without the variables of the tests."""
    words = [sys.executable, "-m", "tests.benchmarks", "--quick", *names]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    done = subprocess.run(
        words, capture_output=True, text=True, timeout=900, check=False, env=environment
    )
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def output():
    return output_of([name for name in runnable() if name not in LONG])


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in runnable() if name not in LONG])
def test_benchmark_runs(name, output):
    assert f"quick {name}: ok" in output, output[-5000:]


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("name", LONG)
def test_long_benchmark_runs(name):
    assert f"quick {name}: ok" in output_of([name])
