"""One local Ray for the whole test session; hypothesis and threads tamed for two cores."""

from __future__ import annotations

import pytest

from cluster.environment import set_environment

set_environment()


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
