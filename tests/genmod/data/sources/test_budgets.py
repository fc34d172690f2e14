"""Small files that declare, or unpack to, too much: one error, without growth of memory."""

import json
import subprocess
import sys
import textwrap

import pytest

from tests.genmod.data.sources.bombs import ARRAYS, TABLES, TARS

LIST = """
    import json, pathlib, re, resource, signal, sys
    from genmod.data.sources.registry import open_source
    from genmod.errors import GenmodError

    def peak():
        return int(re.search(r"VmHWM:\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())[1]) >> 10

    resource.setrlimit(resource.RLIMIT_AS, (24 << 30, 24 << 30))
    for name, source in json.loads(sys.argv[1]).items():
        signal.alarm(10)  # ends the process
        pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak starts again
        before = peak()
        try:
            listing = open_source(source).listing()
            for _ in open_source(source).fetch(listing.refs[:100], listing.fingerprint):
                pass
            outcome = ""
        except GenmodError as error:
            outcome = str(error)
        except BaseException as error:
            outcome = f"!{type(error).__name__}: {error}"
        print(json.dumps([name, outcome, peak() - before]), flush=True)
"""
"""Lists sources and fetches some rows, each within 10 seconds; prints the error and the growth in MiB."""

GROWTH_MIB = 100


def outcomes(tmp_path_factory, bombs):
    folder = tmp_path_factory.mktemp("bombs")
    sources = {}
    for number, (name, (source, files, _)) in enumerate(bombs.items()):
        where = folder / str(number)
        where.mkdir()
        for file, data in files.items():
            (where / file).write_bytes(data)
        sources[name] = source.format(where)
    run = [sys.executable, "-c", textwrap.dedent(LIST), json.dumps(sources)]
    done = subprocess.run(run, capture_output=True, text=True, timeout=600, check=False)
    lines = map(json.loads, done.stdout.splitlines())
    found = {name: (outcome, growth) for name, outcome, growth in lines}
    assert done.returncode == 0, (next(iter(bombs.keys() - found.keys())), done.stderr[-2000:])
    return found


def check(outcome, words):
    error, growth = outcome
    assert growth < GROWTH_MIB
    if words is None:
        assert error == ""
    else:
        assert words in error
        assert not error.startswith("!")
        assert error.isprintable()
        assert len(error) < 500


@pytest.fixture(scope="module")
def arrays(tmp_path_factory):
    return outcomes(tmp_path_factory, ARRAYS)


@pytest.mark.parametrize("name", ARRAYS)
def test_declared_sizes_of_arrays_are_checked_before_they_are_read(arrays, name):
    check(arrays[name], ARRAYS[name][2])


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    return outcomes(tmp_path_factory, TABLES)


@pytest.mark.parametrize("name", TABLES)
def test_sizes_of_tables_are_known_before_they_are_decoded(tables, name):
    check(tables[name], TABLES[name][2])


@pytest.fixture(scope="module")
def tars(tmp_path_factory):
    return outcomes(tmp_path_factory, TARS)


@pytest.mark.parametrize("name", TARS)
def test_names_and_texts_of_tars_are_bounded(tars, name):
    check(tars[name], TARS[name][2])
