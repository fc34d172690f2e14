"""``python -m pipelines`` is the same program as ``genmod``, for Ray jobs."""

import sys

from pipelines.cli import main

if __name__ == "__main__":
    sys.exit(main())
