"""``python -m pipelines`` is the same program as ``genmod``, for Ray jobs."""

import os
import sys

if __name__ == "__main__":
    # Python searches the current folder first, where a file random.py would replace a module of everybody.
    # It stays only if this program itself is there: in a clone that is not installed.
    current = os.path.realpath(os.curdir)
    own = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
    if not sys.flags.safe_path and current != own:
        del sys.path[0]

    from pipelines.cli import main

    sys.exit(main())
