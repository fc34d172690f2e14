"""The way to the terminal: hostile text does nothing there, by any route."""

import ast
import io
import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest

from genmod.errors import LINE_CHARS, ConfigError, escape, sanitize, sanitize_log
from genmod.terminal import (
    GuardedStream,
    guarded_streams,
    print_json,
    print_line,
    print_log,
    print_text,
)
from pipelines.cli.app import Invocation
from pipelines.cli.program import _log_handler, _run
from pipelines.commands.submit import _say, _Tail
from pipelines.recipe.progress import ProgressDisplay

ROOT = Path(__file__).parents[2]

HOSTILE = {
    "clipboard (OSC 52)": "\x1b]52;c;cm0gLXJm\x07",
    "title": "\x1b]0;done\x07",
    "clear": "\x1b[2J\x1b[H",
    "cursor up": "\x1b[1A\x1b[2Kgenmod: done",
    "carriage return": "loss 3\rgenmod: done",
    "backspace": "wrong\b\b\b\b\bright",
    "C1 control sequence": "\x9b2J",
    "C1 operating system command": "\x9d0;title\x9c",
    "next line": "a\x85genmod: done",
    "line separator": "a\u2028genmod: done\u2029",
    "direction override": "\u202egnp.exe",
    "direction isolate": "\u2066a\u2069",
    "no width": "a\u200bb\ufeff",
    "surrogate": "a\udc9b2J",
    "null": "a\0b",
    "delete": "a\x7f",
}
VALUES = pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)


def acts(output):
    """Characters of an output that do more than show a sign or end a line."""
    return [char for char in output if not char.isprintable() and char not in "\n\t"]


def run(function):
    return _run(Invocation("run", function, as_json=True, debug=True), 0.0)


def refuse(text):
    raise ConfigError(f"{text}: not valid")


def fail(text):
    raise RuntimeError(text)


def log_record(text):
    record = logging.LogRecord("mlflow", logging.WARNING, "f.py", 1, "no answer: %s", (text,), None)
    _log_handler().emit(record)


def to_display(text):
    display = ProgressDisplay(sys.stderr)
    display.log(text)
    display.update(text, 1, 3, "images", note=text)
    display.update(text, 3, 3, "images", note=text)
    display.close()


def through_a_display(text):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    sys.stderr = terminal
    with ProgressDisplay():
        print(text, file=sys.stderr)
    return terminal.getvalue()


ROUTES = {
    "a line": print_line,
    "a log": print_log,
    "a text": print_text,
    "a result": lambda text: print_json({text: [text, {"a": text}]}),
    "progress": to_display,
    "the log of a job": lambda text: _Tail().write(text),
    "the message of a job": _say,
    "a log record": log_record,
    "the command's result": lambda text: run(lambda: {"status": text, "problems": [text]}),
    "a foreseen error": lambda text: run(lambda: refuse(text)),
    "another error, with its traceback": lambda text: run(lambda: fail(text)),
}
GUARDED_ROUTES = {
    "a print of a package": print,
    "the streams": lambda text: (sys.stderr.write(text), sys.stdout.writelines([text])),
}


@VALUES
@pytest.mark.parametrize("route", ROUTES.values(), ids=ROUTES)
def test_no_route_lets_text_act_on_the_terminal(route, text, capsys):
    route(text)
    out, err = capsys.readouterr()
    assert acts(out + err) == []
    assert out + err


@VALUES
@pytest.mark.parametrize("route", GUARDED_ROUTES.values(), ids=GUARDED_ROUTES)
def test_other_output_of_the_process_is_escaped_too(route, text, capsys):
    with guarded_streams():
        route(text)
    out, err = capsys.readouterr()
    assert acts(out + err) == []
    assert out + err


SCRIPT = """
import ast, sys, threading, warnings
from genmod.terminal import guarded_streams
warnings.simplefilter("always")
def fail(text):
    raise RuntimeError(text)
with guarded_streams():
    for text in ast.literal_eval(sys.argv[1]):
        warnings.warn(text, RuntimeWarning)
        thread = threading.Thread(target=fail, args=(text,))
        thread.start()
        thread.join()
"""


def test_warnings_and_errors_of_threads_are_escaped():
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, ascii(list(HOSTILE.values()))],
        cwd=ROOT, capture_output=True, timeout=60, check=True,
    )  # fmt: skip
    err = done.stderr.decode()
    assert err.count("RuntimeWarning") == err.count("RuntimeError: ") == len(HOSTILE)
    assert acts(err) == []


@VALUES
def test_output_of_a_package_below_bars(text, monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setattr(sys, "stderr", sys.stderr)
    assert acts(through_a_display(text)) == []


@VALUES
def test_a_line_stays_one_line(text, capsys):
    for value in (f"{text}\ngenmod: error: none", f"{text}\r\nx"):
        print_line(value)
        _say(value)
        to_display(value)
        for line in capsys.readouterr().err.splitlines():
            assert line.startswith(("a", "genmod: ", "  ", sanitize(text)))
        assert len(sanitize(value).splitlines()) == 1


def test_ordinary_text_stays_as_it_is(capsys):
    text = "naïve 模型 ☃ 'quoted' \\n /path (1.5 %)"
    assert sanitize(text) == escape(text) == sanitize_log(text) == text
    with guarded_streams():
        print(f"{text}\n\tend")
    assert capsys.readouterr().out == f"{text}\n\tend\n"


def test_a_long_line_is_cut(capsys):
    text = "x" * (LINE_CHARS + 1234)
    assert sanitize(text) == "x" * LINE_CHARS + " ... (1,234 more characters)"
    print_log(f"{text}\nnext\n")
    first, second = capsys.readouterr().err.splitlines()
    assert (len(first) < LINE_CHARS + 50, second) == (True, "next")


def test_a_result_is_json_for_every_parser(capsys):
    print_json({"nan": float("nan"), "inf": [-float("inf"), (1.5,)], 3: ROOT, "text": "\u2028é"})

    def refuse_constant(name):
        raise AssertionError(name)

    out = capsys.readouterr().out
    assert out.isascii()
    assert out.count("\n") == 1
    assert json.loads(out, parse_constant=refuse_constant) == {
        "nan": "NaN", "inf": ["-Infinity", [1.5]], "3": str(ROOT), "text": "\u2028é",
    }  # fmt: skip


def test_a_stream_that_lacks_a_character_gets_it_escaped():
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    print_line("a ☃", stream)
    guarded = GuardedStream(stream)
    guarded.write("é\x07\n")
    guarded.flush()
    assert raw.getvalue() == b"a \\u2603\n\\xe9\\x07\n"
    assert (guarded.encoding, guarded.isatty(), guarded.writable()) == ("ascii", False, True)


def test_the_traceback_of_a_debug_run_is_escaped(capsys):
    assert run(lambda: fail("\x1b[2J")) == 1
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert "\\x1b[2J" in err


WRITERS = {("sys", "stdout"), ("sys", "stderr"), ("typer", "echo"), ("click", "echo")}


def direct_output(tree):
    """Lines that print or write to the terminal themselves."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = node.func
        if isinstance(called, ast.Name) and called.id == "print":
            yield node.lineno
        if isinstance(called, ast.Attribute) and called.attr == "isatty":
            continue  # asks and writes nothing
        while isinstance(called, ast.Attribute):
            if isinstance(called.value, ast.Name) and (called.value.id, called.attr) in WRITERS:
                yield node.lineno
            called = called.value


def test_only_this_module_prints():
    for package in ("genmod", "cluster", "pipelines"):
        for path in (ROOT / package).rglob("*.py"):
            if path != ROOT / "genmod" / "terminal.py":
                lines = list(direct_output(ast.parse(path.read_text())))
                assert lines == [] or path.name == "progress.py", f"{path.name}: {lines}"
    assert list(
        direct_output(ast.parse("print(1)\nsys.stderr.write('a')\nx.print(2)\nsys.stdout.isatty()"))
    ) == [1, 2]
