"""The progress display: lines in a file, bars on a terminal."""

import io
import os
import pty
import re
import subprocess
import sys
import threading

import pytest

from pipelines.recipe.progress import ProgressDisplay


class Clock:
    now_s = 0.0

    def __call__(self):
        return self.now_s


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def stream():
    return io.StringIO()


def test_lines_show_count_rate_and_time_left(clock, stream):
    display = ProgressDisplay(stream, now=clock)
    for clock.now_s, done in ((0, 0), (10, 100), (11, 110), (40, 400)):
        display.update("train vae", done, 400, "images", note="loss 3.2")
    assert stream.getvalue().splitlines() == [
        "  train vae: 0/400 images (0%), starting  loss 3.2",
        "  train vae: 100/400 images (25%), 10 images/s, under 30 s left  loss 3.2",
        "  train vae: 400/400 images (100%), took 40 s  loss 3.2",
    ]


def test_resumed_task_counts_only_new_units(clock, stream):
    display = ProgressDisplay(stream, every_s=0.0, now=clock)
    for clock.now_s, done in ((100, 500), (110, 600)):
        display.update("x", done, 1000, "rows")
    assert stream.getvalue().splitlines() == [
        "  x: 500/1,000 rows (50%), starting",
        "  x: 600/1,000 rows (60%), 10 rows/s, under 40 s left",
    ]


def test_each_task_has_lines_of_its_own(clock, stream):
    display = ProgressDisplay(stream, now=clock)
    for clock.now_s in range(11):
        display.update("sample vae", int(clock.now_s), 100, "images")
        display.update("sample gan", int(clock.now_s), 100, "images")
    names = [line.split(":")[0].strip() for line in stream.getvalue().splitlines()]
    assert names == ["sample vae", "sample gan"] * 3


def test_a_finished_task_is_printed_once(clock, stream):
    display = ProgressDisplay(stream, now=clock)
    for _ in range(3):
        display.update("score", 8, 8, "images")
    assert stream.getvalue() == "  score: 8/8 images (100%)\n"
    display.update("score", 0, 8, "images")
    clock.now_s = 2.0
    display.update("score", 8, 8, "images")
    assert stream.getvalue().splitlines()[-1] == "  score: 8/8 images (100%), took 2 s"


def test_text_of_other_machines_cannot_control_the_terminal(stream):
    display = ProgressDisplay(stream)
    display.log("from a worker: \x1b[2J\rgone")
    display.update("vae\x07", 1, 1, "images", note="\x1b]0;title\x07")
    assert "\x1b" not in stream.getvalue()
    assert stream.getvalue().splitlines() == [
        r"from a worker: \x1b[2J\rgone",
        r"  vae\x07: 1/1 images (100%)  \x1b]0;title\x07",
    ]


def test_updates_from_several_threads(stream):
    display = ProgressDisplay(stream, every_s=0.0)

    def work(name):
        for done in range(1, 101):
            display.update(name, done, 100, "images")

    threads = [threading.Thread(target=work, args=(f"model {i}",)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = stream.getvalue().splitlines()
    assert len(lines) == 800
    assert all(re.match(r"  model \d: [\d,]+/100 images \(", line) for line in lines)
    assert sum("100/100" in line for line in lines) == 8


SCRIPT = """
import sys, threading, time
from pipelines.recipe.progress import ProgressDisplay
with ProgressDisplay() as display:
    display.log("a line before")
    def work(name, events):
        for done in range(events + 1):
            display.update(name, done, events, "images", "loss 0.5")
            time.sleep(0.02)
    threads = [threading.Thread(target=work, args=a) for a in (("train vae", 60), ("sample gan", 40))]
    for thread in threads: thread.start()
    time.sleep(0.5)
    display.log("a line between")
    print("a warning of a library", file=sys.stderr)
    print("\\x1b[36m(worker)\\x1b[0m output\\x1b[2J", file=sys.stderr)
    print("for a pipe")
    for thread in threads: thread.join()
    display.update("evaluate", 0, 3, "models")
    display.update("evaluate", 1, 3, "models")
print("the end", file=sys.stderr)
"""


def on_a_terminal(term, columns=100):
    """What the script writes to a terminal as stderr, and to a pipe as stdout."""
    leader, follower = pty.openpty()
    environment = os.environ | {"TERM": term, "COLUMNS": str(columns)}
    environment.pop("NO_COLOR", None)
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT], env=environment, stdout=subprocess.PIPE, stderr=follower
    )
    os.close(follower)
    parts = []
    try:
        while part := os.read(leader, 65536):
            parts.append(part)
    except OSError:  # Linux: the other end is closed
        pass
    os.close(leader)
    assert process.stdout is not None
    output = process.stdout.read().decode()
    assert process.wait(timeout=60) == 0
    return b"".join(parts).decode(), output


def without_codes(text):
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def test_a_terminal_shows_one_bar_per_task():
    text, output = on_a_terminal("xterm-256color")
    assert output == "for a pipe\n"
    frames = without_codes(text)
    assert re.search(r"train vae +[━╸╺]+ +\d+% \d+/60 images", frames)
    assert re.search(r"sample gan +[━╸╺]+ +\d+% \d+/40 images", frames)
    assert re.search(r"\d+/s +\d+ s left +loss 0.5", frames)
    lines = [line.split("\r")[-1].rstrip() for line in frames.split("\r\n")]
    printed = [re.sub(r"took \d+ s", "took N s", x) for x in lines if "━" not in x and x]
    assert printed == [
        "a line before",
        "a line between",
        "a warning of a library",
        r"(worker) output\x1b[2J",
        "  sample gan: 40/40 images (100%), took N s  loss 0.5",
        "  train vae: 60/60 images (100%), took N s  loss 0.5",
        *printed[6:-1],
        "the end",
    ]
    assert any(line.startswith("  evaluate: 1/3 models (33%)") for line in printed[6:-1])
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h")  # the cursor is shown again


def test_a_dumb_terminal_gets_lines():
    text, _ = on_a_terminal("dumb")
    assert "\x1b" not in text
    assert "  train vae: 60/60 images (100%), took" in text
