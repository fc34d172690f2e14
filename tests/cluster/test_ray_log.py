"""What Ray and its C++ core write goes to a log file; our own lines stay on stderr."""

import subprocess
import sys
from pathlib import Path

PROGRAM = """
import logging, os, sys
from cluster import ray_log
with ray_log.separate_stderr():
    print("ours 1", file=sys.stderr)
    ray_log.start_log()
    os.write(2, b"[2026 E 1 1] core_worker.cc: of the C++ core\\n")
    ray_log.take_loggers()
    logging.getLogger("ray.data").error("of a logger")
    from ray._private import worker
    worker.print_to_stdstream({"lines": ["of the raylet"], "pid": "raylet"})
    print("ours 2", ray_log.hint(), file=sys.stderr)
    ray_log.stop_log()
    os.write(2, b"ours 3\\n")
print("ours 4", file=sys.stderr)
"""


def test_lines_of_ray_go_to_a_file_of_this_user_alone(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    first, second, *rest = done.stderr.splitlines()
    assert first == "ours 1"
    assert (second[:6], rest) == ("ours 2", ["ours 3", "ours 4"])
    file = Path(second.partition("Ray's own messages: ")[2])
    text = file.read_text()
    assert all(f"of {what}" in text for what in ("the C++ core", "a logger", "the raylet"))
    assert (file.stat().st_mode & 0o777, file.parent.stat().st_mode & 0o777) == (0o600, 0o700)
