import pytest

from tests.kubernetes import crd
from tests.kubernetes.render import OVERLAYS, render


@pytest.fixture(scope="session")
def rendered():
    """Name of an overlay -> its objects."""
    return {folder.name: render(folder) for folder in OVERLAYS}


@pytest.fixture
def definitions():
    """Skips where KubeRay's definitions are absent."""
    if not crd.definitions():
        pytest.skip(f"no definitions of KubeRay's kinds in {crd.folder()}; set {crd.VARIABLE}")
