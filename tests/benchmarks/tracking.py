"""What tracking costs a training: MLflow's server works, is dead, or never answers; and an A/A control.

Protocol: the quickstart's VAE trains in this process, as one worker does, and logs eight metrics every 2,000
images, the default, to a run of a tracker of its own. CPU seconds of the whole process, the tracker's
threads included, so this is what training would lose if the tracker's process had no core of its own; in a
retrain the tracker is in the driver's process. Rounds in turn; the ratio is the median of each round's, with
a bootstrap interval. The control is a training without tracking against another one without.
"""

from __future__ import annotations

import socket
import tempfile
import time
import uuid
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch

from genmod.rng import rng_for
from genmod.training.loop import Plan, train
from genmod.training.plan import TrainConfig
from genmod.world import SingleProcess
from pipelines.tracking.place import TrackingConfig
from pipelines.tracking.run import TrackedRun
from pipelines.tracking.tracker import Tracker
from tests.benchmarks import training as shared
from tests.benchmarks._turns import compared, in_turns
from tests.pipelines.tracking.real_server import real_server

BATCH, LOG_NIMG, LOGS, ROUNDS = 100, 2_000, 3, 24
RESAMPLED = 10_000
QUICK = {"BATCH": 8, "LOG_NIMG": 8, "LOGS": 1, "ROUNDS": 2, "RESAMPLED": 100}

METRICS = {f"train/all/metric{number}": 1.0 / (number + 1) for number in range(8)}


@contextmanager
def _silent_server() -> Generator[str]:
    """The address of a server that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def _dead_server() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"http://127.0.0.1:{server.getsockname()[1]}"


def _work(run: TrackedRun) -> Callable[[], None]:
    """Train for some log intervals, and log after each."""
    model = shared.quickstart_model("vae")
    config = TrainConfig(nimg=LOG_NIMG, batch=BATCH, log_every_nimg=LOG_NIMG)
    logged = 0

    def stream(start: int) -> Iterator:
        return shared.image_stream(start, BATCH)

    def work() -> None:
        nonlocal logged
        for _ in range(LOGS):
            train(model, stream, SingleProcess(), Plan(config, 0))
            logged += LOG_NIMG
            run.log_metrics(METRICS, logged)

    return work


def _interval(timings: list[list[float]], mine: int, theirs: int) -> list[float]:
    """Bootstrap interval of 95 % of the median of the rounds' ratios."""
    ratios_R = torch.tensor([seconds[theirs] / seconds[mine] for seconds in timings])
    draws_BR = rng_for(0, "bench/tracking", range(RESAMPLED)).integers(len(ratios_R), len(ratios_R))
    medians_B = ratios_R[draws_BR].median(1).values
    return [float(medians_B.quantile(share)) for share in (0.025, 0.975)]


def bench() -> Iterator[dict[str, object]]:
    """Rates with tracking against those without, and the slowest call of ``log_metrics``."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        uris = {
            "no tracking": None,
            "no tracking again": None,
            "working server": stack.enter_context(real_server(folder)).endpoint,
            "dead server": _dead_server(),
            "silent server": stack.enter_context(_silent_server()),
        }
        trackers, calls = [], []
        for number, uri in enumerate(uris.values()):
            config = TrackingConfig(enabled=uri is not None, uri=uri)
            tracker = Tracker(config, str(folder / f"root{number}"))
            run = tracker.run("train", "vae", uuid.uuid4().hex, {"batch": BATCH}, {})
            trackers.append(tracker)
            calls.append(_work(run))
        time.sleep(1)  # connections and imports are no part of it
        timings = in_turns(calls, ROUNDS)
        for which, name in enumerate(uris):
            if which:
                yield {
                    "name": f"VAE, {name}, log every {LOG_NIMG:,} images",
                    "unit": "images/CPU s",
                    "peer_name": "no tracking",
                    **compared(timings, which, 0, LOGS * LOG_NIMG),
                    "interval": _interval(timings, which, 0),
                    "rounds": ROUNDS,
                }
        for tracker in trackers:
            tracker.close(0.1)
