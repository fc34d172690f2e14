"""Writes that training does not wait for: one at a time, in a thread of their own."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import TracebackType

from genmod.errors import StorageError

logger = logging.getLogger(__name__)


@contextmanager
def storage_errors(url: str, what: str) -> Generator[None]:
    """What is written inside is taken by the store, or one line says how to go on.

    Raises:
        StorageError: the store did not take it.
    """
    try:
        yield
    except (OSError, StorageError) as error:
        text = " ".join(str(error).split())
        reason = text if isinstance(error, StorageError) else f"{type(error).__name__}: {text}"
        raise StorageError(
            f"{url} did not take {what} ({reason}); mend the store or make room in it, and give the "
            "same command again: it goes on from the newest whole checkpoint"
        ) from error


class BackgroundWriter:
    """At most one write is under way; its error is raised where the next thing is asked of the writer."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    def begin(self, write: Callable[[], None]) -> None:
        """Do ``write`` meanwhile, after the one before it is done.

        Raises:
            Exception: what the write before it raised.
        """
        self.wait()
        self._thread = threading.Thread(target=self._do, args=(write,), name="writer", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise what a write has raised; waits for nothing."""
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def wait(self) -> None:
        """Wait for the write that is under way, and raise what it raised."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()

    def __enter__(self) -> BackgroundWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """The end waits. Of two errors the first is told: the loop's, unless both have lost the store."""
        try:
            self.wait()
        except Exception as late:
            if error is None or (
                isinstance(error, StorageError) and isinstance(late, StorageError)
            ):
                raise
            logger.warning("and meanwhile: %s", late)

    def _do(self, write: Callable[[], None]) -> None:
        try:
            write()
        except Exception as error:  # raised in the thread that asked for it
            self._error = error
