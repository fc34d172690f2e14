"""Errors that workers write for the driver."""

import inspect
import os
import threading

import pytest

from cluster.worker_errors import ERROR_KINDS, read_error, write_error
from genmod import errors
from genmod.errors import DataError, GenmodError, TrainingDiverged
from genmod.world import SingleProcess


def test_an_error_of_all_ranks_is_read_and_no_rank_raises(tmp_path):
    url = str(tmp_path)
    assert read_error(url) is None
    raised = []

    def rank(number):
        try:
            write_error(
                url, SingleProcess(rank=number, size=3), TrainingDiverged(f"of rank {number}")
            )
        except GenmodError as error:
            raised.append(error)

    threads = [threading.Thread(target=rank, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert raised == []
    error = read_error(url)
    assert type(error) is TrainingDiverged
    assert str(error) == "of rank 0"


def test_an_error_of_one_rank_is_raised_there_so_that_the_others_end(tmp_path):
    with pytest.raises(DataError, match="of rank 1 alone"):
        write_error(
            str(tmp_path), SingleProcess(rank=1, size=2), DataError("of rank 1 alone"), wait_s=0.3
        )
    assert type(read_error(str(tmp_path))) is DataError


def test_every_error_for_users_is_a_kind():
    classes = {c for _, c in inspect.getmembers(errors, inspect.isclass)}
    assert set(ERROR_KINDS.values()) == {c for c in classes if issubclass(c, GenmodError)}


@pytest.mark.parametrize("kind", ERROR_KINDS.values())
def test_each_kind_arrives_as_it_is_and_as_one_line(tmp_path, kind):
    write_error(str(tmp_path), SingleProcess(), kind("a message\x1b[2J\n" + "long " * 10_000))
    error = read_error(str(tmp_path))
    assert type(error) is kind
    assert str(error).isprintable()
    assert str(error).startswith("a message")
    assert len(str(error)) < 5000


def test_a_class_that_is_no_kind_arrives_as_its_base(tmp_path):
    class Special(DataError):
        """An error of a module that the driver may not have."""

    write_error(str(tmp_path), SingleProcess(), Special("special"))
    assert type(read_error(str(tmp_path))) is DataError


BROKEN = [
    b"",
    b"\xff\xfe",
    b"[]",
    b"[" * 10_000,
    b"{}",
    b'{"type": "sanitize", "message": "any attribute of the module"}',
    b'{"type": "re", "message": "m"}',
    b'{"type": "SystemExit", "message": "m"}',
    b'{"type": 7, "message": "m"}',
    b'{"type": "DataError", "message": ["m"]}',
    b'{"type": "DataError", "message": "m", "more": 1}',
    b'{"type": "DataError", "message": "' + b"m" * 20_000 + b'"}',
    b'{"type": "DataError", "message": "m"}' + b" " * 100_000,
]


@pytest.mark.parametrize("content", BROKEN)
def test_a_broken_note_is_reported_and_skipped(tmp_path, content, caplog):
    (tmp_path / "000000.json").write_bytes(content)
    write_error(str(tmp_path), SingleProcess(rank=1, size=2), TrainingDiverged("of rank 1"))
    caplog.clear()
    error = read_error(str(tmp_path))
    assert (type(error), str(error)) == (TrainingDiverged, "of rank 1")
    (record,) = caplog.records
    assert record.getMessage().isprintable()
    assert "it is skipped" in record.getMessage()


def test_other_files_and_folders_are_reported_and_skipped(tmp_path, caplog):
    (tmp_path / "000000.json").mkdir()
    os.mkfifo(tmp_path / "000001.json")
    (tmp_path / "000002.json").symlink_to("/dev/zero")
    (tmp_path / "other.json").write_text('{"type": "DataError", "message": "m"}')
    assert read_error(str(tmp_path)) is None
    assert len(caplog.records) == 4
