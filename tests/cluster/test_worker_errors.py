"""Errors that workers write for the driver."""

import threading

import pytest

from cluster.worker_errors import read_error, write_error
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
