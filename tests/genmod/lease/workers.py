"""Processes that take a lease: one that obeys its stdin, and many that start at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

WORKER = """
import sys, threading
from genmod import storage
from genmod.lease import Busy, acquire, holder, lease as leases
root, lease_s, machine, stop_after = sys.argv[1:5]
if machine:
    holder._machine = lambda: machine
lost = threading.Event()
lease = acquire(root, "work", float(lease_s), progress=lambda: "step 3 of 9", on_lost=lost.set)
if isinstance(lease, Busy):
    print("busy", lease.number, lease.holder.pid, lease.progress, flush=True)
    sys.exit(0)
print("took", lease.number, flush=True)
if stop_after:
    append = leases.LeaseLog.append
    def append_and_stop(log, position, entry):
        done = append(log, position, entry)
        if done and entry.kind == "published":
            print("stopped", flush=True)
            import os, signal
            os.kill(os.getpid(), signal.SIGSTOP)
        return done
    leases.LeaseLog.append = append_and_stop
for line in sys.stdin:
    word, _, name = line.strip().partition(" ")
    try:
        if word == "create":
            print("created", lease.create(storage.join(root, name), b"by %d" % lease.number), flush=True)
        elif word == "check":
            lease.check()
            print("held", flush=True)
        elif word == "wait":
            print("noticed", lost.wait(60), lease.is_lost, flush=True)
        elif word == "end":
            lease.release()
            print("ended", flush=True)
    except leases.LeaseLost as error:
        print("lost", error, flush=True)
"""

MANY = """
import os, sys, time
from genmod.lease import Busy, acquire
root, lease_s, count = sys.argv[1], float(sys.argv[2]), int(sys.argv[3])
start_s = time.monotonic() + 1
children = []
for _ in range(count):
    child = os.fork()
    if not child:
        time.sleep(start_s - time.monotonic())
        lease = acquire(root, "work", lease_s, progress=lambda: "half")
        if isinstance(lease, Busy):
            text = f"busy {lease.number} {lease.holder.pid}"
        else:
            text = f"took {lease.number} {os.getpid()}"
        os.write(1, (text + chr(10)).encode())
        if not isinstance(lease, Busy):
            sys.stdin.readline()
            lease.release()
        os._exit(0)
    children.append(child)
codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
sys.exit(any(codes))
"""


class Worker:
    """A process that takes a lease and obeys.

    Args:
        root: URL of the lease's root.
        lease_s: of the lease.
        machine: a name other than this machine's, as if the process ran on another one.
        stop_after: the process freezes between the entry and the file of what it publishes.
    """

    def __init__(
        self, root: str, lease_s: float = 1.5, machine: str = "", stop_after: bool = False
    ) -> None:
        words = [
            sys.executable,
            "-c",
            WORKER,
            root,
            str(lease_s),
            machine,
            "1" if stop_after else "",
        ]
        self.process = subprocess.Popen(
            words,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[3],
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._input, self._output = self.process.stdin, self.process.stdout

    def answer(self) -> str:
        """The next line that the process prints."""
        return self._output.readline().strip()

    def ask(self, line: str) -> str:
        """What the process answers to a line."""
        self._input.write(f"{line}\n")
        self._input.flush()
        return self.answer()

    def send(self, line: str) -> None:
        """Give the process a line without waiting."""
        self._input.write(f"{line}\n")
        self._input.flush()

    def signal(self, number: signal.Signals) -> None:
        """Send the process a signal; returns when all threads have stopped, if it is SIGSTOP."""
        os.kill(self.process.pid, number)
        while number == signal.SIGSTOP and not self._has_stopped():
            time.sleep(0.01)

    def _has_stopped(self) -> bool:
        tasks = Path(f"/proc/{self.process.pid}/task").glob("*/stat")
        return all(task.read_text().rpartition(")")[2].split()[0] == "T" for task in tasks)

    def kill(self) -> None:
        """Kill the process, if it still runs."""
        self.process.kill()
        self.process.wait()
        self._input.close()
        self._output.close()
