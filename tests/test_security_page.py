"""infra/SECURITY.md: every line of its tables names a test, and the test exists."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "infra" / "SECURITY.md").read_text()
HEAD = "| who | tries | gets | held by |"


def lines(page):
    """The rows of the tables that have a test per row."""
    within = False
    for line in page.splitlines():
        if line == HEAD:
            within = True
        elif not line.startswith("|"):
            within = False
        elif within and not line.startswith("|---"):
            yield line


def named_tests(line):
    return re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", line.rpartition(" | ")[2])


def problem(line):
    found = named_tests(line)
    if not found:
        return "names no test"
    for file, name in found:
        path = ROOT / file
        if not path.exists():
            return f"{file} does not exist"
        tree = ast.parse(path.read_text())
        names = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        if name not in names:
            return f"{file} has no {name}"
    return None


@pytest.mark.parametrize("line", lines(PAGE), ids=lambda line: line[:60])
def test_every_line_names_a_test_that_exists(line):
    assert problem(line) is None, line


def test_a_line_without_a_test_is_found():
    assert problem("| a | b | c | soon |") == "names no test"
    assert problem("| a | b | c | `tests/none.py::test_x` |") == "tests/none.py does not exist"
    here = "tests/test_security_page.py"
    assert problem(f"| a | b | c | `{here}::test_y` |") == f"{here} has no test_y"
    assert problem(f"| a | b | c | `{here}::test_a_line_without_a_test_is_found` |") is None
    assert len(list(lines(f"{HEAD}\n|---|\n| a |\n\n| b |"))) == 1
