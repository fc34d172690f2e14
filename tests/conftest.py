"""One local Ray for the whole test session; hypothesis and threads tamed for two cores."""

from __future__ import annotations

import os

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def ray_session():
    """A local Ray with two CPUs, shared by all tests that ask for it."""
    from cluster.session import LOCAL, ClusterConfig, connect, disconnect

    connect(ClusterConfig(address=LOCAL, cpus=2))
    yield
    disconnect()
