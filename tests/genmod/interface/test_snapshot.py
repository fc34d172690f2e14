"""A snapshot reads each manifest once and keeps what it saw."""

import pytest

from genmod import storage
from genmod.errors import ConfigError
from genmod.interface.snapshot import ManifestSnapshot
from genmod.manifest import Manifest, publish

SCORES = Manifest(kind="scores", fingerprint="work")


@pytest.fixture
def root(tmp_path):
    return str(tmp_path)


def test_a_manifest_is_read_once(root):
    published = publish(root, SCORES)
    snapshot = ManifestSnapshot()
    assert snapshot.require(Manifest, root, "scores", "score") == published
    storage.remove(f"{root}/scores.json")
    assert snapshot.load(Manifest, root, "scores") == published
    assert snapshot.find_done(Manifest, root, "scores", "work") == published
    with pytest.raises(ConfigError, match="made from other inputs"):
        snapshot.find_done(Manifest, root, "scores", "other work")


def test_an_absent_manifest_stays_absent_until_it_is_added_or_reloaded(root):
    snapshot = ManifestSnapshot()
    assert snapshot.find_done(Manifest, root, "scores", "work") is None
    published = publish(root, SCORES)
    with pytest.raises(ConfigError, match=r"no scores at .*; create it first: genmod score"):
        snapshot.require(Manifest, root, "scores", "score")
    assert snapshot.reload(Manifest, root, "scores") == published
    other = ManifestSnapshot()
    assert other.load(Manifest, f"{root}/other", "scores") is None
    assert other.add(f"{root}/other", published) is published
    assert other.load(Manifest, f"{root}/other", "scores") is published
