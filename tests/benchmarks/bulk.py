"""A thousand jobs created at once."""

from __future__ import annotations

import time
from statistics import median

from tests.benchmarks.context import Context
from tests.benchmarks.ours import set_up
from tests.benchmarks.report import Row

COUNT = 1000
GOAL = 0.3  # seconds


def measure(context: Context) -> list[Row]:
    """`create_jobs`, as a caller has it: admission, rows, first events, one transaction."""
    set_up(context.engine_url)
    from container_manager.models import ContainerJob

    seconds = []
    for turn in range(context.pick(3, 7)):
        wishes = [
            {"image": context.image, "command": ["echo", str(number)], "name": f"bulk-{turn}-{number}"}
            for number in range(COUNT)
        ]
        began = time.monotonic()
        ContainerJob.objects.create_jobs(wishes)
        seconds.append(time.monotonic() - began)
    middle = median(seconds)
    return [
        Row(
            measure=f"{COUNT} jobs created in bulk ({context.database})",
            ours=f"{middle:.3f} s",
            goal=f"<= {GOAL} s",
            holds=middle <= GOAL,
            figures={"seconds": seconds},
        )
    ]
