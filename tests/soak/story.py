"""The story of a champion: each step is a command as a user types it, and what must have come of it.

``python -m tests.soak.story --seed 0`` tells it twice with commands that are processes: undisturbed, and
while commands are killed at random times and MLflow is down. Both must end in the same ledger.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from genmod.data.reading.reader import read_rows
from genmod.manifest import DatasetManifest, Manifest, load_manifest
from genmod.promotion import Ledger
from tests.processes import TIMEOUT_S, free_ports, kill_marked

RECIPE = """
root: {root}
seed: 5
data:
  source: folder:{source}
  shard_rows: 500
  splits: {{val: 0.1, test: 0.25}}
model:
  digits: {{family: faulty}}
train:
  nimg: 12800
  batch: 256
  log_every_nimg: 2560
  checkpoint_every_nimg: 10240
  validate_every_nimg: null
  grid_every_nimg: null
  optim: {{lr: 4.0e-3}}
sample: {{count: 1000, shard_rows: 500}}
score: {{max_rows: 40}}
evaluate: {{images: 1000, features: {{train_images: 20000}}}}
retrain: {{max_age_days: 0}}
promote: {{planned_decisions: 10}}
tracking: {tracking}
"""

WELL = "train.nimg=102400"
"""Training of the better model."""

Command = Callable[[tuple[str, ...], Callable[[], bool]], None]
"""Runs a command to its end. It is not run again after a kill if the function says that its work is done."""

_COMMAND_S = 8 * TIMEOUT_S
"""Longest time of a command that is not killed, on a busy machine."""

MARK = "GENMOD_STORY"
"""In the environment of the commands, so that all their processes can be found."""


def add_digits(source: Path, first: int, end: int) -> None:
    """Some of scikit-learn's digits as PNG files, in a folder for each class."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    for row in range(first, end):
        folder = source / str(digits.target[row])
        folder.mkdir(parents=True, exist_ok=True)
        pixels = (digits.images[row] * 15.9).astype("uint8")
        Image.fromarray(pixels).save(folder / f"{row:05d}.png")


def write_recipe(folder: Path, tracking: str) -> Path:
    """A recipe with its root and its source in a folder."""
    recipe = folder / "recipe.yaml"
    text = RECIPE.format(root=folder / "root", source=folder / "images", tracking=tracking)
    recipe.write_text(text)
    return recipe


def tell(folder: Path, command: Command) -> Iterator[str]:
    """All steps, with a line about each.

    Args:
        folder: with the recipe.
        command: runs a command with the recipe.

    Raises:
        AssertionError: a decision is not the right one.
    """
    root, source = folder / "root", folder / "images"

    def decided(number: int, *changes: str) -> dict[str, Any]:
        """Retrain; the decision on a version."""
        version = root if number == 1 else root / "retrain" / f"v{number:04d}"
        decision = str(version / "decision" / "digits")

        def is_refused() -> bool:
            found = load_manifest(Manifest, decision, "decision")
            return found is not None and not found.metadata["promote"]

        words = [word for text in changes for word in ("--set", text)]
        command(("retrain", *words), is_refused)
        found = load_manifest(Manifest, decision, "decision")
        assert found is not None, decision
        return found.metadata

    add_digits(source, 0, 700)
    command(("run",), _never)
    first = decided(1, "retrain.max_age_days=null")
    yield _must(first, True, "first champion")
    add_digits(source, 700, 1797)
    better = decided(2, "retrain.max_age_days=null", WELL)
    yield _must(better, True, "better by more than")
    collapsed = decided(3, "model.digits.net.collapsed=true")
    yield _must(collapsed, False, "coverage[")
    copies = decided(4, f"model.digits.net.copy_of={first_row(root)}", WELL)
    yield _must(copies, False, "memorisation[")
    yield f"  {named_copies(root / 'retrain' / 'v0004')}"
    equal = decided(5, WELL)
    yield _must(equal, False, "expected at least 1")
    command(("promote", "--rollback"), lambda: len(ledger_of(root)) > 2)
    history = ledger_of(root)
    assert [entry[0] for entry in history] == ["promote", "promote", "rollback"], history
    assert history[2][1] == history[0][1], "the first champion is back"
    yield "rollback: the first champion is back"


def first_row(root: Path) -> list[int]:
    """Grey levels of the first training row of version 1."""
    data = load_manifest(DatasetManifest, str(root / "data"), "dataset")
    assert data is not None
    return read_rows(str(root / "data"), data, "train", [0]).pixels_BCHW.flatten().tolist()


def named_copies(version: Path) -> str:
    """The copy that the evaluation names: its keys, which must be of a real training row."""
    evaluation = load_manifest(Manifest, str(version / "evaluation" / "digits"), "evaluation")
    data = load_manifest(DatasetManifest, str(version / "data"), "dataset")
    assert evaluation is not None
    assert data is not None
    found = evaluation.metadata["memorisation"]
    (pair,) = [pair for pair in found["shown"] if pair["named"]]
    assert (found["named"], pair["kind"], pair["distance"]) == (1, "exact", 0), found
    return f"sample {pair['sample_key']} repeats training image {pair['train_key']}"


def ledger_of(root: Path) -> list[tuple[str, str, str]]:
    """Action, model and reason of every entry of the history."""
    entries = Ledger(f"{root}/promotions", "digits").read().entries
    return [(entry.action, entry.model.digest, entry.reason) for entry in entries]


def _never() -> bool:
    return False


def _must(decision: dict[str, Any], promote: bool, reason: str) -> str:
    text = "; ".join(decision["reasons"])
    assert decision["promote"] is promote, text
    assert reason in text, text
    return f"{'promoted' if promote else 'refused'}: {text}"


@dataclass
class Killer:
    """Runs commands as processes and kills them at random times, until one ends by itself."""

    recipe: Path
    rng: random.Random
    kills: int = 2
    """Of each command."""
    killed: int = 0
    """Commands that were killed."""

    def __call__(self, words: tuple[str, ...], is_done: Callable[[], bool]) -> None:
        """Run a command to its end."""
        for _ in range(self.kills):
            process = self._start(words)
            try:
                process.wait(self.rng.uniform(5, 60))
                break
            except subprocess.TimeoutExpired:
                self.killed += 1
                kill_marked(MARK, str(self.recipe))
                process.wait()
                if is_done():
                    return
        else:
            process = self._start(words)
        try:
            output, _ = process.communicate(timeout=_COMMAND_S)
        except subprocess.TimeoutExpired:
            kill_marked(MARK, str(self.recipe))
            raise
        assert process.returncode == 0, output

    def _start(self, words: tuple[str, ...]) -> subprocess.Popen[str]:
        command = [
            sys.executable,
            "-m",
            "pipelines",
            *words,
            "--recipe",
            str(self.recipe),
            "--json",
        ]
        environment = os.environ | {
            MARK: str(self.recipe),
            "GENMOD_FAMILIES": str(Path(__file__).parents[1] / "families"),
        }
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def main() -> int:
    """Tell the story undisturbed and disturbed, and compare the ledgers."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kills", type=int, default=2)
    seed, kills = vars(parser.parse_args()).values()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    (port,) = free_ports(1)
    ways = {
        "undisturbed": (0, "{}"),
        "killed, MLflow down": (kills, f"{{uri: 'http://127.0.0.1:{port}'}}"),
    }
    ledgers: list[list[tuple[str, str, str]]] = []
    for name, (count, tracking) in ways.items():
        with tempfile.TemporaryDirectory() as text:
            folder, start_s = Path(text), time.monotonic()
            killer = Killer(write_recipe(folder, tracking), random.Random(seed), count)
            print(f"{name}:", flush=True)
            for line in tell(folder, killer):
                print(f"  {line}", flush=True)
            ledgers.append(ledger_of(folder / "root"))
            seconds = time.monotonic() - start_s
            print(f"  {killer.killed} kills, {seconds:.0f} s", flush=True)
    same = ledgers[0] == ledgers[1]
    print("the same ledger" if same else f"ledgers differ: {ledgers}")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
