"""Which container is asked for its usage next."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

import pytest

from container_manager.core.errors import HostUnreachable
from container_manager.core.observation import UsageSample
from container_manager.core.policy import JobRequest, Policy, build_spec
from container_manager.testing import FakeEngine, FakeExecutor
from container_manager.worker.logs import LogBuffer
from container_manager.worker.run import Run
from container_manager.worker.sampler import FIRST_SAMPLE_SECONDS, Sampler

STARTED = datetime(2026, 1, 1, tzinfo=UTC)


def sample(
    *, seconds: float = 1.0, cpu_ns: int | None = 0, memory: int | None = 5, peak: int | None = None
) -> UsageSample:
    return UsageSample(
        taken_at=STARTED + timedelta(seconds=seconds),
        cpu_ns=cpu_ns,
        memory_bytes=memory,
        memory_peak_bytes=peak,
    )


def a_run(name: str, *, age: float = 60.0) -> Run:
    request = JobRequest(
        image="image:1",
        argv=("true",),
        environment={},
        working_directory="",
        memory_limit=64,
        cpu_limit=1.0,
        timeout_seconds=60,
        networks=(),
        user="",
        read_only_root=True,
    )
    return Run(
        key=(name, 1),  # type: ignore[arg-type]
        spec=build_spec(request, Policy(), name=name, installation="i", job_id=name, attempt=1),
        timeout_seconds=60,
        grace_seconds=1.0,
        logs=LogBuffer(column_bytes=10, max_bytes=10, emit=lambda chunk, state, block: True),
        container_id=name,
        running_since=time.monotonic() - age,
    )


class Asked(FakeExecutor):
    """Tells which container was asked for, and answers as it is told."""

    answer: Callable[[], UsageSample | None]
    asked: queue.Queue[str]

    def usage(self, container_id: str) -> UsageSample | None:
        self.asked.put(container_id)
        return self.answer()


@pytest.fixture
def executor() -> Asked:
    one = Asked.on(FakeEngine())
    assert isinstance(one, Asked)
    one.asked = queue.Queue()
    one.answer = sample
    return one


@pytest.fixture
def sampling(executor: Asked) -> Iterator[Callable[..., None]]:
    started: list[Sampler] = []

    def start(*runs: Run, interval: float = 0.001) -> None:
        started.append(Sampler("test-sampler", executor, interval, lambda: runs))
        started[-1].start()

    yield start
    for sampler in started:
        sampler.close()
        sampler._thread.join(10)
        assert not sampler._thread.is_alive()


def test_they_take_turns(executor: Asked, sampling: Callable[..., None]) -> None:
    sampling(a_run("a"), a_run("b"), a_run("c"))
    turns = [executor.asked.get(timeout=10) for _ in range(9)]
    assert sorted(turns[:3]) == ["a", "b", "c"]
    assert turns == turns[:3] * 3


def test_a_young_container_is_left_alone_until_it_has_lived_a_little(
    executor: Asked, sampling: Callable[..., None]
) -> None:
    young = a_run("young", age=0)
    sampling(young)
    assert executor.asked.get(timeout=10) == "young"
    assert time.monotonic() - young.running_since >= FIRST_SAMPLE_SECONDS


def test_newcomers_are_not_kept_waiting_by_the_pause(executor: Asked, sampling: Callable[..., None]) -> None:
    sampling(a_run("a"), a_run("b"), a_run("c"), interval=3600)
    assert {executor.asked.get(timeout=10) for _ in range(3)} == {"a", "b", "c"}
    with pytest.raises(queue.Empty):
        executor.asked.get(timeout=0.2)


def test_a_host_that_does_not_answer_costs_a_turn_and_no_sample(
    executor: Asked, sampling: Callable[..., None]
) -> None:
    failed = threading.Event()

    def answer() -> UsageSample | None:
        if not failed.is_set():
            failed.set()
            raise HostUnreachable("nothing answers")
        return None

    executor.answer = answer
    run = a_run("a")
    sampling(run)
    for _ in range(3):
        assert executor.asked.get(timeout=10) == "a"
    assert run.samples == 0
    assert run.usage(STARTED).max_memory_bytes is None, "unknown is not zero"


def test_an_answer_that_breaks_the_driver_is_told_and_the_next_sample_is_taken(
    executor: Asked, sampling: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    odd = [AttributeError("odd stats")]

    def answer() -> UsageSample | None:
        if odd:
            raise odd.pop()
        return sample()

    executor.answer = answer
    runs = a_run("a"), a_run("b")
    with caplog.at_level(logging.ERROR, logger="container_manager.worker"):
        sampling(*runs)
        assert [executor.asked.get(timeout=10) for _ in range(3)] == ["a", "b", "a"]
    assert "odd stats" in caplog.text
    assert runs[1].samples > 0


class TestWhatSamplesSay:
    def test_without_any_nothing_is_known(self) -> None:
        usage = a_run("a").usage(STARTED)
        assert (usage.max_memory_bytes, usage.memory_source, usage.cpu_percent, usage.samples) == (
            None,
            "",
            None,
            0,
        )

    def test_the_highest_counts_until_the_kernel_tells_its_own_peak(self) -> None:
        run = a_run("a")
        for memory in (10, 30, 20):
            run.take_sample(sample(memory=memory))
        assert (run.usage(STARTED).max_memory_bytes, run.usage(STARTED).memory_source) == (30, "sampled")

    def test_the_kernels_peak_counts_alone(self) -> None:
        run = a_run("a")
        run.take_sample(sample(memory=10, peak=50))
        run.take_sample(sample(memory=70))
        run.take_sample(sample(memory=10, peak=60))
        assert (run.usage(STARTED).max_memory_bytes, run.usage(STARTED).memory_source) == (60, "peak")

    def test_cpu_is_the_mean_since_the_start(self) -> None:
        run = a_run("a")
        run.take_sample(sample(seconds=2, cpu_ns=10**9))
        run.take_sample(sample(seconds=4, cpu_ns=3 * 10**9))
        assert run.usage(STARTED).cpu_percent == 75.0
        assert run.usage(None).cpu_percent is None
        assert run.usage(STARTED + timedelta(seconds=5)).cpu_percent is None, "no time has passed"

    def test_an_unknown_cpu_time_is_not_zero(self) -> None:
        run = a_run("a")
        run.take_sample(sample(cpu_ns=None))
        assert run.usage(STARTED).cpu_percent is None
