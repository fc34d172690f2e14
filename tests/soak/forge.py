"""A process that forks the ranks of trainings, so that hundreds of them can be started and killed.

Torch is imported once; each rank is a process of its own, with its own pid, files and signals. Run by its
path; commands are JSON lines on stdin, answers JSON lines on stdout:

    {"do": "start", "job": TrainJob, "rank": 0, "size": 1, "store": file, ...}   ->  {"pid": 123}
    {"do": "wait", "pid": 123}                                                   ->  {"status": -9}

A rank may note every step that it takes on the disk (``steps``), die by SIGKILL before one of them
(``die_at``), lose its store before one (``lose_at``), be limited in the size of its files (``file_bytes``),
and note the rows that it is given (``ids``). With a ``stage`` the fork is a driver of that stage instead.
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
    """Names each step that changes the disk below a folder, before it is taken."""

    def __init__(self, root: str, told: dict) -> None:
        self.root, self.told, self.seen = root, told, Counter()
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
        if event in ("os.remove", "os.rmdir") and arguments[1] >= 0:  # a file of a tree that goes
            path = f"{os.readlink(f'/proc/self/fd/{arguments[1]}')}/{path}"
        self.step(event, path)

    def step(self, event: str, path: str) -> None:
        if not path.startswith(self.root + "/"):
            return
        name = re.sub(r"-[0-9a-f]{12,32}", "-*", f"{event} {path[len(self.root) + 1 :]}")
        self.seen[name] += 1
        name = f"{name} #{self.seen[name]}"
        if name == self.told.get("die_at"):
            os.kill(os.getpid(), signal.SIGKILL)
        if name == self.told.get("lose_at"):
            root, self.root = self.root, "\0"
            os.rename(root, f"{root}.away")
            Path(root).write_bytes(b"not a folder")
        if self.told.get("steps"):
            with open(self.told["steps"], "a") as notes:
                notes.write(name + "\n")


def note_rows(path: str) -> None:
    """Write down which rows each step gets: their place in the stream, and a digest of their pixels."""
    from genmod.training import job

    real = job.open_stream

    def noted(*arguments):
        stream = real(*arguments)

        class Noted:
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

        return Noted()

    job.open_stream = noted


def be_a_rank(told: dict) -> int:
    """The whole life of a forked process."""
    import torch
    import torch.distributed as dist

    from genmod.errors import GenmodError
    from genmod.training.job import TrainJob, run_job
    from genmod.world import Group, SingleProcess

    job = TrainJob.model_validate(told["job"])
    if told.get("file_bytes"):
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (told["file_bytes"],) * 2)
    if any(told.get(name) for name in ("steps", "die_at", "lose_at")):
        Steps(job.root, told)
    if told.get("ids"):
        note_rows(told["ids"])
    world = SingleProcess()
    if told.get("size", 1) > 1:
        dist.init_process_group(
            "gloo", f"file://{told['store']}", rank=told["rank"], world_size=told["size"]
        )
        world = Group(torch.device("cpu"))
    try:
        run_job(job, world)
    except GenmodError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    return 0


def be_a_driver(told: dict) -> int:
    """The same for a stage's driver, on the Ray at ``address``."""
    from cluster.session import ClusterConfig, connect
    from genmod.data.sources.source import DataConfig
    from genmod.errors import GenmodError
    from genmod.generation.synthetic import SampleConfig
    from genmod.training.job import TrainJob
    from pipelines.jobs.sampling import SampleJob, sample_models
    from pipelines.jobs.sharding import shard
    from pipelines.jobs.training import TrainOptions, train_models

    cluster = ClusterConfig(address=told["address"])
    try:
        connect(cluster)
        if told["stage"] == "shard":
            shard(DataConfig.model_validate(told["data"]), told["root"], seed=3, workers=2)
        elif told["stage"] == "sample":
            job = SampleJob("soak", told["model"], told["root"], {})
            sample_models([job], SampleConfig.model_validate(told["config"]), seed=3)
        else:
            options = TrainOptions(cluster, f"{told['root']}.scratch")
            train_models([TrainJob.model_validate(told["job"])], options)
    except GenmodError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    return 0


def start(told: dict) -> int:
    """Fork a rank or a driver. Returns its pid."""
    pid = os.fork()
    if pid:
        return pid
    status = 70
    try:
        errors = os.open(told.get("stderr", os.devnull), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(errors, 2)
        os.dup2(errors, 1)
        status = be_a_driver(told) if "stage" in told else be_a_rank(told)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def main() -> None:
    import pyarrow.dataset  # noqa: F401
    import torch._dynamo  # an optimiser imports it, for a second
    import torch.nn.parallel

    import genmod.training.job  # noqa: F401
    from genmod.interface.registry import families, family

    for name in families():
        family(name)
    if "ray" in sys.argv:  # for drivers; an import of seconds
        import ray.data
        import ray.train.torch  # noqa: F401

        import pipelines.stages.sample
        import pipelines.stages.shard
        import pipelines.stages.train  # noqa: F401
    torch.set_num_threads(1)
    for line in sys.stdin:
        told = json.loads(line)
        if told["do"] == "start":
            answer = {"pid": start(told)}
        else:
            _, status = os.waitpid(told["pid"], 0)
            answer = {"status": os.waitstatus_to_exitcode(status)}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
