"""What a run remembers of its engine's words."""

from __future__ import annotations

from container_manager.core.enginetext import LOG_LENGTH
from tests.unit.worker.test_sampler import a_run


def test_events_without_end_take_no_more_memory_than_some() -> None:
    run = a_run("one")
    run.note("create: first")
    for _ in range(20_000):
        run.note("event: oom")
    run.note("die: last")
    text = run.engine_log_text()
    assert len(text) < LOG_LENGTH
    assert text.splitlines()[0].endswith(" create: first")
    assert text.splitlines()[-1].endswith(" die: last")
    assert "lines are left out here" in text
