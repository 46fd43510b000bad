"""One worker of the test build: `python -m tests.fault.worker [options of process_container_jobs]`."""

from __future__ import annotations

import os
import sys

from tests.fault import build
from tests.fault.killing import POINTS, Orders


def main() -> None:
    """Work until a kill point, a signal, or the end of `--once`."""
    build.prepare()
    from django.core.management import call_command

    POINTS.arm(Orders.from_environment(os.environ))
    call_command("process_container_jobs", *sys.argv[1:])


if __name__ == "__main__":
    main()
