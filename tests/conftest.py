"""Fixtures of all tests: one local Ray and one S3 server per session; few threads, reproducible examples."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from cluster.environment import set_environment
from genmod.interface.external import FAMILIES_VARIABLE
from tests.stores import proxy as proxies
from tests.stores import weed

os.environ.setdefault(
    "PYTHONSAFEPATH", ""
)  # further processes import ``tests`` from the current folder
# Ray gives its workers a lower priority than the tests without Ray that run at the same time.
os.environ.setdefault("RAY_worker_niceness", "0")
set_environment()
os.environ[FAMILIES_VARIABLE] = str(Path(__file__).parent / "families")
settings.register_profile(
    "tests", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("tests")


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def ray_session():
    """A local Ray with two CPUs, shared by the tests of the session."""
    from cluster.session import LOCAL, ClusterConfig, connect, disconnect

    connect(ClusterConfig(address=LOCAL, cpus=2))
    yield
    disconnect()


@pytest.fixture(autouse=True)
def _ray_again(request):
    """Start Ray again if the test before has ended it."""
    if "ray_session" in request.fixturenames:
        from cluster.session import LOCAL, ClusterConfig, connect

        connect(ClusterConfig(address=LOCAL, cpus=2))


@pytest.fixture(scope="session")
def store():
    """An S3 server with one bucket, shared by the tests of the session."""
    with weed.running() as running:
        yield running


@pytest.fixture
def s3_root(store, monkeypatch):
    """URL of an empty folder in the bucket; the environment has the credentials."""
    for name, value in store.environment().items():
        monkeypatch.setenv(name, value)
    yield from _fresh_root()


@pytest.fixture
def proxy(store):
    """A proxy in front of the S3 server that fails as the test requests."""
    with proxies.proxied(store) as proxy:
        yield proxy


@pytest.fixture
def proxied_root(store, proxy, monkeypatch):
    """Like ``s3_root``, through the proxy."""
    for name, value in store.environment(proxy.endpoint).items():
        monkeypatch.setenv(name, value)
    yield from _fresh_root()


def _fresh_root():
    """A new folder. File systems keep connections, so none may outlive the environment it was created in."""
    from s3fs import S3FileSystem

    S3FileSystem.clear_instance_cache()
    yield f"s3://{weed.BUCKET}/{uuid.uuid4().hex}"
    S3FileSystem.clear_instance_cache()
