"""For tests of your own: an engine in memory that does what the test says, and an executor that reaches it.

Nothing is started, nothing is waited for. Point a host at it and drive jobs through the real worker:

    CONTAINER_MANAGER_SETTINGS = {"EXECUTORS": {"fake": "container_manager.testing.FakeExecutor"}}

    engine = fake_engine("one")
    engine.runs = {("python", "manage.py", "import_books"): FakeRun(stdout=b"42 books\\n", duration=2.0)}
    host = ExecutorHost.objects.create(name="one", executor_type="fake", connection_string="fake://one")

Every executor with the same address sees the same containers, as several workers, or one after a
restart, see one daemon. Failures are planned with `engine.fail(...)`; what others do to a container behind
the worker's back is done with `engine.kill`, `remove`, `pause`; `engine.starts` counts what really ran.
Time is `time.time_ns` or, where a test wants to decide, a `FakeClock`.
"""

from container_manager.testing.engine import FakeEngine, fake_engine, forget_fake_engines
from container_manager.testing.executor import FakeExecutor
from container_manager.testing.run import FakeClock, FakeContainer, FakeRun

__all__ = [
    "FakeClock",
    "FakeContainer",
    "FakeEngine",
    "FakeExecutor",
    "FakeRun",
    "fake_engine",
    "forget_fake_engines",
]
