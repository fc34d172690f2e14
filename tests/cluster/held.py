"""Holds the CPUs of the tests' Ray, as another job would."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager

import pytest

from cluster import resources


class Holder:
    """An actor of another job."""

    def ready(self) -> None:
        """Return when it runs."""


@contextmanager
def held_cpus(monkeypatch: pytest.MonkeyPatch) -> Generator[Callable[[], None]]:
    """An actor holds all CPUs of the local Ray; yields what ends it."""
    import ray

    monkeypatch.setattr(resources, "local_folder", lambda: None)  # as on a cluster of several users
    holder = ray.remote(num_cpus=2)(Holder).remote()
    ray.get(holder.ready.remote(), timeout=120)
    yield lambda: ray.kill(holder)
    ray.kill(holder)
