import pytest

from tests.infra import containers


@pytest.fixture(scope="session")
def podman():
    """podman with a storage of this session; skips where there is none."""
    if reason := containers.reason_to_skip():
        pytest.skip(reason)
    with containers.storage() as podman:
        yield podman


@pytest.fixture(scope="session")
def base(podman):
    """The image that images are built on."""
    return containers.base(podman)
