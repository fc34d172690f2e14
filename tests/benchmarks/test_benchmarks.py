"""Every benchmark runs in a form of seconds, so that none of them rots."""

import subprocess
import sys

import pytest

from tests.benchmarks.__main__ import runnable


@pytest.fixture(scope="module")
def output():
    words = [sys.executable, "-m", "tests.benchmarks", "--quick"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=900, check=False)
    return done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", runnable())
def test_benchmark_runs(name, output):
    assert f"quick {name}: ok" in output, output[-5000:]
