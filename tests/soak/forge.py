"""A process that forks the ranks of trainings, so that tests can start and kill hundreds of them.

Torch is imported once. Each rank is a separate process with its own pid, files and signals. The file is run
by its path; requests are JSON lines on stdin, replies JSON lines on stdout:

    {"do": "start", "job": TrainJob, "rank": 0, "size": 1, "store": file, ...}   ->  {"pid": 123}
    {"do": "wait", "pid": 123}                                                   ->  {"status": -9}

Options of a rank: record each change on disk (``steps``), die by SIGKILL before one of them (``die_at``),
lose its storage before one (``lose_at``), limit the size of its files (``file_bytes``), record the rows
that it reads (``ids``). With a ``stage`` the fork runs the driver of that stage instead.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import resource
import signal
import sys
import traceback
from collections import Counter
from pathlib import Path

EVENTS = {"open", "os.mkdir", "os.rename", "os.link", "os.remove", "os.rmdir"}
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class Steps:
    """Names each change on disk below a folder, before it happens."""

    def __init__(self, root: str, options: dict) -> None:
        self.root, self.options, self.seen = root, options, Counter()
        real_fsync = os.fsync

        def fsync(handle: int) -> None:
            self.step("fsync", os.readlink(f"/proc/self/fd/{handle}"))
            real_fsync(handle)

        os.fsync = fsync
        sys.addaudithook(self.hook)

    def hook(self, event: str, arguments: tuple) -> None:
        if event not in EVENTS or not isinstance(arguments[0], str):
            return
        if event == "open" and not arguments[2] & WRITES:
            return
        path = arguments[1] if event in ("os.rename", "os.link") else arguments[0]
        if (
            event in ("os.remove", "os.rmdir") and arguments[1] >= 0
        ):  # a file of a tree that is removed
            path = f"{os.readlink(f'/proc/self/fd/{arguments[1]}')}/{path}"
        self.step(event, path)

    def step(self, event: str, path: str) -> None:
        if not path.startswith(self.root + "/"):
            return
        name = re.sub(r"-[0-9a-f]{12,32}", "-*", f"{event} {path[len(self.root) + 1 :]}")
        self.seen[name] += 1
        name = f"{name} #{self.seen[name]}"
        if name == self.options.get("die_at"):
            os.kill(os.getpid(), signal.SIGKILL)
        if name == self.options.get("lose_at"):
            root, self.root = self.root, "\0"
            os.rename(root, f"{root}.away")
            Path(root).write_bytes(b"not a folder")
        if self.options.get("steps"):
            with open(self.options["steps"], "a") as notes:
                notes.write(name + "\n")


def record_rows(path: str) -> None:
    """Record the rows of each step: their position in the stream, and a digest of their pixels."""
    from genmod.training import job

    real = job.open_stream

    def recorded(*arguments):
        stream = real(*arguments)

        class Recorded:
            def __next__(self):
                batch = next(stream)
                rows = {
                    int(index): hashlib.sha256(pixels.numpy().tobytes()).hexdigest()[:16]
                    for index, pixels in zip(batch.index_B, batch.pixels_BCHW, strict=True)
                }
                with open(path, "a") as notes:
                    notes.write(json.dumps(rows) + "\n")
                return batch

            def close(self):
                stream.close()

        return Recorded()

    job.open_stream = recorded


def run_rank(options: dict) -> int:
    """Run one rank of a training. Returns the exit status."""
    import torch
    import torch.distributed as dist

    from genmod.errors import GenmodError
    from genmod.training.job import TrainJob, run_job
    from genmod.world import Group, SingleProcess

    job = TrainJob.model_validate(options["job"])
    if options.get("file_bytes"):
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (options["file_bytes"],) * 2)
    if any(options.get(name) for name in ("steps", "die_at", "lose_at")):
        Steps(job.root, options)
    if options.get("ids"):
        record_rows(options["ids"])
    world = SingleProcess()
    if options.get("size", 1) > 1:
        dist.init_process_group(
            "gloo", f"file://{options['store']}", rank=options["rank"], world_size=options["size"]
        )
        world = Group(torch.device("cpu"))
    try:
        run_job(job, world)
    except GenmodError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    return 0


def run_driver(options: dict) -> int:
    """Run the driver of a stage on the Ray cluster at ``address``. Returns the exit status."""
    from cluster.session import ClusterConfig, connect
    from genmod.data.sources.config import DataConfig
    from genmod.errors import GenmodError
    from genmod.generation.config import SampleConfig
    from genmod.scoring.config import ScoreConfig
    from genmod.training.job import TrainJob
    from pipelines.jobs.sample_plan import SampleJob
    from pipelines.jobs.sampling import sample_models
    from pipelines.jobs.score_plan import ScoreJob
    from pipelines.jobs.scoring import score_models
    from pipelines.jobs.sharding import shard
    from pipelines.jobs.training import TrainOptions, train_models

    cluster = ClusterConfig(address=options["address"])
    try:
        connect(cluster)
        if options["stage"] == "shard":
            shard(DataConfig.model_validate(options["data"]), options["root"], seed=3, workers=2)
        elif options["stage"] == "sample":
            job = SampleJob("soak", options["model"], options["root"], {})
            sample_models([job], SampleConfig.model_validate(options["config"]), seed=3)
        elif options["stage"] == "score":
            root = options["root"]
            job = ScoreJob("soak", options["model"], options["data"], root, {})
            score_models([job], ScoreConfig.model_validate(options["config"]), seed=3)
        else:
            train_options = TrainOptions(cluster, f"{options['root']}.scratch")
            train_models([TrainJob.model_validate(options["job"])], train_options)
    except GenmodError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    return 0


def start(options: dict) -> int:
    """Fork a rank or a driver. Returns its pid."""
    pid = os.fork()
    if pid:
        return pid
    status = 70
    try:
        errors = os.open(options.get("stderr", os.devnull), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(errors, 2)
        os.dup2(errors, 1)
        status = run_driver(options) if "stage" in options else run_rank(options)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def main() -> None:
    import pyarrow.dataset  # noqa: F401
    import torch._dynamo  # an optimiser imports it, which takes a second
    import torch.nn.parallel

    import genmod.training.job  # noqa: F401
    from genmod.interface.registry import families, family

    for name in families():
        family(name)
    if "ray" in sys.argv:  # for drivers; takes seconds
        import ray.data
        import ray.train.torch  # noqa: F401

        import pipelines.stages.sample
        import pipelines.stages.shard
        import pipelines.stages.train  # noqa: F401
    torch.set_num_threads(1)
    for line in sys.stdin:
        request = json.loads(line)
        if request["do"] == "start":
            reply = {"pid": start(request)}
        else:
            _, status = os.waitpid(request["pid"], 0)
            reply = {"status": os.waitstatus_to_exitcode(status)}
        print(json.dumps(reply), flush=True)


if __name__ == "__main__":
    main()
