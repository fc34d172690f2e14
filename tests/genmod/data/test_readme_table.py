"""README.md: every row of the table of data is executed by one case, and every case has a row."""

from pathlib import Path

import pytest

from tests.genmod.data import readme_files, readme_tables, readme_tars
from tests.genmod.data.readme_cases import CASES

README = Path(__file__).parents[3] / "README.md"
HEAD = "| what you bring | what happens |"
MODULES = (readme_files, readme_tables, readme_tars)
"""Register the cases."""


def first_cells(page):
    """First cell of each row of the table of data."""
    _, _, table = page.partition(HEAD + "\n|---|---|\n")
    lines = table.splitlines()
    end = next((n for n, line in enumerate(lines) if not line.startswith("|")), len(lines))
    return [line.strip("| ").split(" | ")[0] for line in lines[:end]]


ROWS = first_cells(README.read_text())


def test_rows_and_cases_agree():
    assert ROWS, "the table of data is missing"
    assert len(ROWS) == len(set(ROWS))
    assert set(CASES) - set(ROWS) == set(), "cases without a row"
    assert set(ROWS) - set(CASES) == set(), "rows without a case"


@pytest.mark.parametrize("row", ROWS)
def test_row(row, tmp_path):
    CASES[row](tmp_path)


def test_rows_are_found():
    page = f"| x | y |\n\n{HEAD}\n|---|---|\n| a `b` | c |\n| d | e |\n\n| f | g |\n"
    assert first_cells(page) == ["a `b`", "d"]
    assert first_cells("no table") == []
