"""Errors of the system: one line with the path and what to do, and exit code 2 where the user can act."""

import errno
import os

import numpy as np
import pytest

from genmod.data.format.shards import Row, write_shard
from genmod.errors import ConfigError
from genmod.manifest import DatasetManifest, ImageSpec, dataset_metadata, publish
from pipelines.cli import main
from pipelines.cli.explain import explain
from pipelines.cli.signals import Interrupted


@pytest.fixture
def data(tmp_path):
    """A dataset of three images."""
    spec = ImageSpec(channels=1, height=4, width=4, classes=0)
    rows = [Row(f"k{i}", i, np.full((4, 4, 1), i, np.uint8), None) for i in range(3)]
    root = str(tmp_path / "data")
    shard, metadata = write_shard(root, "train-000000", "train", spec, rows)
    manifest = DatasetManifest(
        fingerprint="f" * 64,
        spec=spec,
        shards=(shard,),
        metadata=dataset_metadata({"train": metadata}),
    )
    publish(root, manifest)
    return root


@pytest.mark.parametrize(
    ("out", "says"),
    [
        ("/proc/none/sheet.png", "no such file or folder"),
        ("file/sheet.png", "a file or link of this name exists"),
        ("folder", "it is a folder, expected a file"),
        ("x" * 300, "the name is too long"),
        ("loop/sheet.png", "a file or link of this name exists"),
    ],
)
def test_a_place_that_cannot_be_written(data, tmp_path, monkeypatch, capsys, out, says):
    (tmp_path / "file").write_text("kept")
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    monkeypatch.chdir(tmp_path)
    assert main(["inspect", data, "--out", out]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("genmod: error: ")
    assert says in line
    assert "Error" not in line
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (errno.EACCES, "give this user access"),
        (errno.EPERM, "give this user access"),
        (errno.ENOSPC, "no space left"),
        (errno.EDQUOT, "no space left"),
        (errno.EROFS, "read-only"),
        (errno.ELOOP, "symbolic links form a circle"),
        (errno.ENOTDIR, "is a file, not a folder"),
        (errno.EMFILE, "ulimit -n"),
        (errno.ENAMETOOLONG, "shorter"),
    ],
)
def test_the_user_can_act_on_these(number, says):
    text, code = explain(OSError(number, os.strerror(number), "/data/x", None, "/data/y"))
    assert text.startswith("/data/x -> /data/y: ")
    assert (code, says in text) == (2, True)
    assert explain(OSError(number, os.strerror(number)))[0].startswith("a file or folder: ")


def test_errors_without_a_number():
    assert explain(FileNotFoundError("s3://b/x")) == (
        "s3://b/x: no such file or folder; check the path",
        2,
    )
    assert explain(PermissionError("Access Denied"))[1] == 2


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (OSError(errno.EIO, "Input/output error", "/x"), 1, "OSError: [Errno 5]"),
        (ConnectionResetError(104, "Connection reset by peer"), 1, "ConnectionResetError"),
        (OSError({}, "odd"), 1, "OSError"),
        (MemoryError(), 1, "out of memory"),
        (RecursionError("maximum recursion depth exceeded"), 1, "nested too deeply"),
        (KeyboardInterrupt(), 130, "resume"),
        (Interrupted(15), 143, "resume"),
        (ValueError(), 1, "ValueError: ?"),
        (ConfigError("a\nb"), 2, "a b"),
    ],
)
def test_other_errors_are_one_line(error, code, says):
    text, got = explain(error)
    assert (got, says in text, "\n" in text) == (code, True, False)


def test_text_that_is_not_utf_8():
    with pytest.raises(UnicodeDecodeError) as decoding:
        b"\xff".decode()
    with pytest.raises(UnicodeEncodeError) as encoding:
        "\udcff".encode()
    assert [explain(e.value)[1] for e in (decoding, encoding)] == [2, 2]


def test_the_output_is_closed(data, monkeypatch, capsys):
    """``genmod verify x --json | head -0``: an error, not a traceback."""
    reader, writer = os.pipe()
    os.close(reader)
    stream = os.fdopen(writer, "w", buffering=1)
    monkeypatch.setattr("sys.stdout", stream)
    assert main(["verify", data, "--json"]) == 1
    assert "BrokenPipeError" in capsys.readouterr().err
    with pytest.raises(BrokenPipeError):
        stream.close()
