"""A fault of gameday: what every one has in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from tests.infra import runbook
from tests.infra.gameday_stack import GamedayStack, Job, say


class Fault(ABC):
    """A fault on a stack that runs."""

    def __init__(self, stack: GamedayStack, entry: runbook.Entry) -> None:
        self.stack, self.entry = stack, entry
        self.variables: dict[str, str] = {}
        """What the blocks of the entry read."""
        self.root = ""
        self.jobs: list[Job] = []

    @classmethod
    def reason_to_skip(cls) -> str:
        """Why the fault cannot be made on this machine; empty if it can."""
        return ""

    def prepare(self) -> None:  # noqa: B027 - most have nothing to do
        """What is there before the part Before of the entry."""

    @abstractmethod
    def make(self) -> None:
        """Make the fault, and look for its signs."""

    @abstractmethod
    def check(self) -> None:
        """What holds after the cure. AssertionError if it does not."""

    def close(self) -> None:
        """End what the fault has started."""
        for job in self.jobs:
            job.close()

    def use(self, name: str, **changes: Any) -> None:
        """Make a recipe whose root has this name that of the entry."""
        path, self.root = self.stack.recipe(name, **changes)
        self.variables |= {"RECIPE": str(path), "ROOT": self.root}

    def start(self, block: str) -> Job:
        """Start a block that submits a job."""
        job = self.stack.start(block, self.variables)
        self.jobs.append(job)
        return job

    def job_that_trains(self, name: str) -> Job:
        """A job that has written checkpoints and has not finished its model; its results are known."""
        self.stack.undisturbed()
        self.use(name)
        self.stack.copy_dataset(self.root)
        say(f"{self.entry.title}: a job starts")
        job = self.start('genmod submit train --recipe "$RECIPE"')
        self.variables["JOB"] = job.id
        store, models = self.stack.store(), f"{self.root}/models/vae"
        job.wait_for(lambda: store.find(f"{models}/checkpoints"), "the first checkpoint")
        assert not store.exists(f"{models}/model.json"), "the model was finished before the fault"
        return job

    def sign(self, text: str) -> str:
        """A text of the part Sign, which operators see."""
        assert text in " ".join(self.entry.text.split()), (
            f"the entry does not name the sign {text!r}"
        )
        return text

    def check_results(self) -> None:
        """Dataset and model equal those of an undisturbed run."""
        assert self.stack.digests(self.root) == self.stack.undisturbed()
        say(f"{self.entry.title}: the digests are those of an undisturbed run")
