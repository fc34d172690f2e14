"""The language of the code base: plain words, readable docstrings, one name for one thing."""

import ast
import collections
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("genmod", "cluster", "pipelines")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
PAGES = [
    ROOT / "README.md",
    *sorted(page for package in (*PACKAGES, "infra") for page in (ROOT / package).rglob("*.md")),
    *sorted((ROOT / "genmod").rglob("*.html")),
    *sorted((ROOT / "pipelines").rglob("*.yaml")),
]

BANNED = (
    r"begun",
    r"anew",
    r"mend(s|ed|ing)?",
    r"beside",
    r"told",
    r"whoever",
    r"(goes|gone|go|going|went) on with",
    r"patient(ly)?",
    r"nobody",
    r"somebody",
    r"anybody",
    r"in vain",
    r"as it comes",
    r"way back",
)
"""Words of an earlier dialect, as patterns over whole words."""

SEED_WORDS = {("genmod/data/reading/reader.py", "anew")}
"""Purposes of random numbers keep their text: it decides the bits that a seed gives."""

MIN_DOCSTRING_WORDS = 4

SHARED_NAMES = {"Config", "Model", "T", "checks", "logger", "stage"}
"""Public names that several files may define: the same role in each."""


def banned_words(text):
    pattern = re.compile(r"\b(" + "|".join(BANNED) + r")\b", re.IGNORECASE)
    return [
        (number, match[0])
        for number, line in enumerate(text.splitlines(), 1)
        for match in pattern.finditer(line.replace("_", " "))
    ]


def name_of(path):
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", [*FILES, *PAGES], ids=name_of)
def test_no_banned_word(path):
    found = banned_words(path.read_text())
    assert [word for word in found if (name_of(path), word[1]) not in SEED_WORDS] == []


def test_a_banned_word_is_found():
    assert banned_words("x = 1\nbegun_s = 2") == [(2, "begun")]
    assert banned_words("It goes on with the next row.") == [(1, "goes on with")]
    assert banned_words("recommended amendments") == []


def public_definitions(tree):
    """Name and node of every public class and function, methods included."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield node.name, node
            if isinstance(node, ast.ClassDef):
                for method in node.body:
                    if isinstance(method, ast.FunctionDef) and not method.name.startswith("_"):
                        yield f"{node.name}.{method.name}", method


def short_docstrings(text):
    """Public definitions whose docstring has fewer than four words."""
    return [
        f"{name}: {docstring!r}"
        for name, node in public_definitions(ast.parse(text))
        if (docstring := ast.get_docstring(node)) is not None or not _is_override(node)
        if len(re.findall(r"\w+", docstring or "")) < MIN_DOCSTRING_WORDS
    ]


def _is_override(node):
    return any("override" in ast.dump(decorator) for decorator in node.decorator_list)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_public_docstrings_have_at_least_four_words(path):
    assert short_docstrings(path.read_text()) == []


def test_a_short_docstring_is_found():
    assert short_docstrings('def f():\n    """The value itself."""') == ["f: 'The value itself.'"]
    assert short_docstrings("class A:\n    '''One two three four.'''\n    def g(self): ...") != []


def public_names(tree):
    """Public names that a module defines at its top level."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (
                t.id for target in targets for t in ast.walk(target) if isinstance(t, ast.Name)
            )


def collisions(trees):
    """Public name -> files, for names that several files define."""
    files = collections.defaultdict(list)
    for path, tree in trees.items():
        for name in set(public_names(tree)):
            if not name.startswith("_") and name not in SHARED_NAMES:
                files[name].append(path)
    return {name: paths for name, paths in files.items() if len(paths) > 1}


def test_public_names_of_files_do_not_collide():
    trees = {name_of(path): ast.parse(path.read_text()) for path in FILES}
    assert collisions(trees) == {}


def test_a_collision_is_found():
    trees = {
        "a.py": ast.parse("ROWS = 1"),
        "b.py": ast.parse("def ROWS(): ..."),
        "c.py": ast.parse("T = 1"),
    }
    assert collisions(trees) == {"ROWS": ["a.py", "b.py"]}


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_nothing_pokes_into_dicts_of_instances(path):
    for node in ast.walk(ast.parse(path.read_text())):
        is_dict = isinstance(node, ast.Attribute) and node.attr == "__dict__"
        assert not is_dict, f"line {node.lineno}: use a method or dataclasses.replace"
