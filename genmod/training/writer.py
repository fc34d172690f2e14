"""Storage writes of training: errors as one line for people, and a thread for checkpoints."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import TracebackType

from genmod.errors import StorageError

logger = logging.getLogger(__name__)


@contextmanager
def storage_errors(url: str, description: str) -> Generator[None]:
    """Turn any failure to write inside the block into one line that says how to resume.

    Args:
        url: what is written to.
        description: what is written, e.g. ``the checkpoint at 10,000 images``.

    Raises:
        StorageError: the storage refused a write.
    """
    try:
        yield
    except (OSError, StorageError) as error:
        text = " ".join(str(error).split())
        reason = text if isinstance(error, StorageError) else f"{type(error).__name__}: {text}"
        raise StorageError(
            f"cannot write {description} to {url} ({reason}); fix or free the storage, then rerun the same "
            "command: it resumes from the newest whole checkpoint"
        ) from error


class BackgroundWriter:
    """Runs at most one write at a time in a thread. Its error is raised by the next call of any method."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    def submit(self, write: Callable[[], None]) -> None:
        """Start ``write`` in the background, after the previous write is done.

        Raises:
            Exception: the error of the previous write.
        """
        self.wait()
        self._thread = threading.Thread(target=self._run, args=(write,), name="writer", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise the error of a finished write, if it failed. Does not wait."""
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def wait(self) -> None:
        """Wait for the current write, and raise its error if it failed."""
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
        """Wait for the current write. The loop's own error wins, unless both are storage errors."""
        try:
            self.wait()
        except Exception as late:
            if error is None or (
                isinstance(error, StorageError) and isinstance(late, StorageError)
            ):
                raise
            logger.warning("the last checkpoint failed too: %s", late)

    def _run(self, write: Callable[[], None]) -> None:
        try:
            write()
        except Exception as error:  # raised in the thread that submitted the write
            self._error = error
