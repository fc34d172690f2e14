"""The folder of a local Ray: for this user alone, removed at the end, or by the next run after a kill."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from types import SimpleNamespace

import pytest

from cluster.private_folder import PREFIX, PrivateFolder, sweep
from genmod.errors import ConfigError

OWNER = """
import sys
from cluster.private_folder import PrivateFolder
folder = PrivateFolder()
(folder.path / "session").mkdir(mode=0o777)
(folder.path / "session" / "file").write_text("text")
print(folder.path, flush=True)
sys.stdin.readline()
folder.remove()
"""


@pytest.fixture
def parent(monkeypatch):
    """An empty folder for temporary files with a short path."""
    import shutil
    import tempfile
    from pathlib import Path

    folder = Path(tempfile.mkdtemp(prefix="gm-"))
    monkeypatch.setenv("RAY_TMPDIR", str(folder))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def owner(parent):
    """A process with a private folder, which it removes when it reads a line."""
    process = subprocess.Popen(
        [sys.executable, "-c", OWNER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    yield process
    process.kill()
    process.communicate()


def test_it_is_for_this_user_alone_whatever_the_umask_and_is_removed(parent):
    before = os.umask(0)
    try:
        folder = PrivateFolder()
    finally:
        os.umask(before)
    (folder.path / "session").mkdir()
    (folder.path / "file").touch()
    assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700
    folder.remove()
    assert list(parent.iterdir()) == []


def test_a_long_folder_for_temporary_files_is_not_used(tmp_path, monkeypatch):
    """The paths of sockets have few bytes."""
    folder = tmp_path / ("x" * 110)
    folder.mkdir()
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    private = PrivateFolder()
    try:
        assert str(private.path.parent) == "/tmp"
        assert list(folder.iterdir()) == []
    finally:
        private.remove()


def test_a_fork_of_the_owner_does_not_remove_it(parent):
    folder = PrivateFolder()
    pid = os.fork()
    if not pid:
        folder.remove()
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    assert folder.path.exists()
    folder.remove()


def test_the_folder_of_a_killed_process_is_removed_and_that_of_a_running_one_stays(parent, owner):
    assert owner.stdout is not None
    path = owner.stdout.readline().strip()
    PrivateFolder().remove()
    assert [str(entry) for entry in parent.iterdir()] == [path]
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    assert os.path.exists(path)
    PrivateFolder().remove()
    assert list(parent.iterdir()) == []


def test_folders_of_others_are_left_alone(parent, tmp_path):
    (tmp_path / "lock").touch()
    (tmp_path / "precious").touch()
    (parent / f"{PREFIX}link").symlink_to(tmp_path)
    (parent / f"{PREFIX}unlocked").mkdir()
    (parent / f"{PREFIX}file").touch()
    inside = parent / f"{PREFIX}inside"
    inside.mkdir()
    (inside / "lock").symlink_to(tmp_path / "lock")
    sweep(parent)
    assert len(list(parent.iterdir())) == 4
    assert (tmp_path / "precious").exists()


def test_a_path_that_is_too_long_and_a_missing_folder_are_one_line(parent, monkeypatch):
    monkeypatch.setenv("RAY_TMPDIR", f"/{'x' * 30}")
    with pytest.raises(ConfigError, match="RAY_TMPDIR is /xxx"):
        PrivateFolder()
    monkeypatch.setenv("RAY_TMPDIR", str(parent / "no"))
    with pytest.raises(ConfigError, match=r"no, by RAY_TMPDIR, is not writable .No such file"):
        PrivateFolder()


def test_a_full_disk_is_one_line_and_nothing_is_left(parent, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=3 << 20))
    with pytest.raises(ConfigError, match="by RAY_TMPDIR, has 3 MiB free, expected at least 16"):
        PrivateFolder()
    assert list(parent.iterdir()) == []


def test_no_folder_for_temporary_files_at_all_is_one_line(monkeypatch):
    def none() -> str:
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setattr(tempfile, "gettempdir", none)
    with pytest.raises(ConfigError, match="set TMPDIR to a folder that is"):
        PrivateFolder()
