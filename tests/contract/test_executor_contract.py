"""What the worker relies on, whatever runs the containers.

Nothing here waits for time to pass: tests wait for a line of output, an event or the end of a log,
and pytest's timeout is the deadline.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from container_manager.core.errors import (
    CommandNotExecutable,
    CommandNotFound,
    ContainerGone,
    HostFault,
    ImageNotFound,
    ImagePullFailed,
    JobFault,
    NameTaken,
)
from container_manager.core.observation import (
    STDERR,
    STDOUT,
    ContainerState,
    EngineEvent,
    EventAction,
    LogCursor,
    LogFrame,
    Observation,
)
from container_manager.executors.base import Executor
from tests.contract.under_test import LASTING, READY, ExecutorUnderTest, Program

pytestmark = pytest.mark.timeout(60)

LINE = b"one line\n"
SHORT = Program(output=((STDOUT, LINE, 1),))
#: A second, in nanoseconds.
SECOND = 1_000_000_000


def payload(frames: list[LogFrame], stream: int) -> bytes:
    return b"".join(frame.payload for frame in frames if frame.stream == stream)


def run(executor: Executor, container_id: str) -> Observation:
    """Start a container and wait for its end."""
    executor.start(container_id)
    return ended(executor, container_id)


def ended(executor: Executor, container_id: str) -> Observation:
    """Wait for the end of a container."""
    list(executor.logs(container_id, follow=True))
    deadline = time.monotonic() + 5  # an engine may end the log a moment before it records the exit
    while (seen := executor.inspect(container_id)).state is not ContainerState.EXITED:
        assert time.monotonic() < deadline, f"the log has ended, and the container is still {seen.state}"
        time.sleep(0.01)
    return seen


def lasting(executor: Executor, under_test: ExecutorUnderTest, program: Program = LASTING) -> str:
    """A container that runs, and has said so."""
    container_id = executor.create(under_test.spec(program))
    executor.start(container_id)
    assert next(executor.logs(container_id, follow=True)).payload == READY
    return container_id


class TestHost:
    def test_health_tells_who_the_host_is(self, under_test: ExecutorUnderTest, executor: Executor) -> None:
        facts = executor.health()
        assert facts.engine_id
        assert facts.engine_version
        assert facts.cpus is None or facts.cpus >= 1
        assert facts.memory_bytes is None or facts.memory_bytes > 0
        assert facts.response_seconds >= 0
        assert facts.system_time is not None
        assert abs((facts.system_time - datetime.now(UTC)).total_seconds()) < 5
        assert under_test.open().health().engine_id == facts.engine_id

    def test_an_absent_host_is_a_host_fault_and_nothing_else(self, under_test: ExecutorUnderTest) -> None:
        nowhere = under_test.unreachable()
        calls: list[Callable[[], object]] = [
            nowhere.health,
            lambda: nowhere.create(under_test.spec()),
            lambda: nowhere.inspect("contract-any"),
            lambda: nowhere.list_owned(under_test.installation),
            lambda: list(nowhere.logs("contract-any")),
            lambda: list(nowhere.watch(under_test.installation, threading.Event())),
            lambda: nowhere.stop("contract-any"),
            lambda: nowhere.remove("contract-any"),
            lambda: nowhere.usage("contract-any"),
            lambda: nowhere.start("contract-any"),
        ]
        for call in calls:
            with pytest.raises(HostFault):
                call()
        nowhere.close()

    def test_pull_is_content_with_an_image_that_is_there(
        self, under_test: ExecutorUnderTest, executor: Executor
    ) -> None:
        first = executor.pull(under_test.image)
        assert not first.pulled
        assert executor.pull(under_test.image) == first
        assert bool(first.image_id) is executor.capabilities.images

    def test_a_missing_image_is_named(self, under_test: ExecutorUnderTest, executor: Executor) -> None:
        if not executor.capabilities.images:
            assert executor.pull(under_test.missing_image).image_id == ""
            return
        with pytest.raises((ImageNotFound, ImagePullFailed), match=under_test.missing_image):
            executor.pull(under_test.missing_image)
        with pytest.raises(ImageNotFound):
            executor.create(under_test.spec(image=under_test.missing_image))


class TestCreate:
    def test_creates_and_does_not_start(self, under_test: ExecutorUnderTest, executor: Executor) -> None:
        spec = under_test.spec(SHORT)
        container_id = executor.create(spec)
        seen = executor.inspect(container_id)
        assert (seen.state, seen.container_id, seen.name) == (ContainerState.CREATED, container_id, spec.name)
        assert spec.labels().items() <= seen.labels.items()
        assert not seen.ever_started
        assert not seen.error
        assert not seen.oom_killed
        assert seen.created_at is not None
        assert seen.finished_at is None
        assert list(executor.logs(container_id)) == []
        assert executor.usage(container_id) is None

    def test_a_container_answers_to_its_name_and_its_id(
        self, under_test: ExecutorUnderTest, executor: Executor
    ) -> None:
        spec = under_test.spec(SHORT)
        container_id = executor.create(spec)
        assert executor.inspect(spec.name) == executor.inspect(container_id)

    def test_the_same_spec_again_is_adopted(self, under_test: ExecutorUnderTest, executor: Executor) -> None:
        spec = under_test.spec(SHORT)
        container_id = executor.create(spec)
        assert executor.create(spec) == container_id
        assert under_test.open().create(spec) == container_id
        run(executor, container_id)
        assert executor.create(spec) == container_id, "also once it has ended"
        assert len(executor.list_owned(under_test.installation)) == 1

    def test_another_holder_of_the_name_is_left_alone(
        self, under_test: ExecutorUnderTest, executor: Executor
    ) -> None:
        spec = under_test.spec(SHORT)
        container_id = executor.create(spec)
        others = (
            replace(spec, attempt=2),
            replace(spec, argv=(*spec.argv, "more")),
            replace(spec, installation=under_test.new_installation()),
        )
        for other in others:
            with pytest.raises(NameTaken, match=spec.name):
                executor.create(other)
        assert executor.inspect(spec.name).container_id == container_id
        assert executor.inspect(spec.name).state is ContainerState.CREATED

    def test_many_at_once_make_one(self, under_test: ExecutorUnderTest, executor: Executor) -> None:
        spec = under_test.spec(SHORT)
        with ThreadPoolExecutor(4) as pool:
            ids = set(pool.map(lambda _: executor.create(spec), range(8)))
        assert len(ids) == 1
        assert [found.name for found in executor.list_owned(under_test.installation)] == [spec.name]


class TestStart:
    @pytest.mark.parametrize("exit_code", [0, 3, 127])
    def test_runs_to_its_exit_code(
        self, under_test: ExecutorUnderTest, executor: Executor, exit_code: int
    ) -> None:
        seen = run(executor, executor.create(under_test.spec(Program(exit_code=exit_code))))
        assert (seen.state, seen.exit_code) == (ContainerState.EXITED, exit_code)
        assert not seen.oom_killed
        assert not seen.error, "an error is for programs that never ran"
        assert seen.created_at is not None
        assert seen.started_at is not None
        assert seen.finished_at is not None
        assert seen.created_at <= seen.started_at <= seen.finished_at

    def test_twice_has_no_effect(self, under_test: ExecutorUnderTest, executor: Executor) -> None:
        container_id = lasting(executor, under_test)
        first = executor.inspect(container_id)
        executor.start(container_id)
        under_test.open().start(container_id)
        assert executor.inspect(container_id) == first
        assert payload(list(executor.logs(container_id)), STDOUT) == READY

    def test_never_runs_again_after_its_end(self, under_test: ExecutorUnderTest, executor: Executor) -> None:
        container_id = executor.create(under_test.spec(SHORT))
        first = run(executor, container_id)
        for other in (executor, under_test.open()):
            other.start(container_id)
            assert ended(other, container_id) == first
        assert payload(list(executor.logs(container_id)), STDOUT) == LINE

    def test_many_at_once_start_it_once(self, under_test: ExecutorUnderTest, executor: Executor) -> None:
        container_id = executor.create(under_test.spec(SHORT))
        executors = [executor, under_test.open(), under_test.open()]
        with ThreadPoolExecutor(len(executors)) as pool:
            list(pool.map(lambda one: one.start(container_id), executors))
        ended(executor, container_id)
        assert payload(list(executor.logs(container_id)), STDOUT) == LINE

    @pytest.mark.parametrize(
        ("kind", "error", "exit_code"),
        [("missing", CommandNotFound, 127), ("forbidden", CommandNotExecutable, 126)],
    )
    def test_says_why_a_program_cannot_run(
        self,
        under_test: ExecutorUnderTest,
        executor: Executor,
        kind: str,
        error: type[JobFault],
        exit_code: int,
    ) -> None:
        argv = under_test.missing_command if kind == "missing" else under_test.forbidden_command
        container_id = executor.create(under_test.spec(argv=argv))
        for _ in range(2):
            with pytest.raises(error):
                executor.start(container_id)
        seen = executor.inspect(container_id)
        assert (seen.state, seen.exit_code) == (ContainerState.CREATED, exit_code)
        assert seen.error
        assert not seen.ever_started
        assert list(executor.logs(container_id)) == []
        assert executor.usage(container_id) is None


class TestEnd:
    def test_out_of_memory_is_told(self, under_test: ExecutorUnderTest, executor: Executor) -> None:
        seen = run(executor, executor.create(under_test.spec(Program(exhausts_memory=True))))
        assert (seen.state, seen.oom_killed, seen.exit_code) == (ContainerState.EXITED, True, 137)

    def test_a_kill_from_outside_is_no_lack_of_memory(
        self, under_test: ExecutorUnderTest, executor: Executor
    ) -> None:
        container_id = lasting(executor, under_test)
        under_test.kill(container_id)
        seen = ended(executor, container_id)
        assert (seen.exit_code, seen.oom_killed) == (137, False)

    def test_stop_asks(self, under_test: ExecutorUnderTest, executor: Executor) -> None:
        container_id = lasting(executor, under_test, replace(LASTING, term_exit_code=9))
        executor.stop(container_id)
        assert ended(executor, container_id).exit_code == 9

    def test_stop_by_force_does_not_ask(self, under_test: ExecutorUnderTest, executor: Executor) -> None:
        container_id = lasting(executor, under_test, replace(LASTING, term_exit_code=None))
        executor.stop(container_id)
        executor.stop(container_id)
        assert executor.inspect(container_id).state is ContainerState.RUNNING
        executor.stop(container_id, force=True)
        seen = ended(executor, container_id)
        assert (seen.exit_code, seen.oom_killed) == (137, False)

    @pytest.mark.parametrize("force", [False, True])
    def test_stop_reaches_a_paused_container(
        self, under_test: ExecutorUnderTest, executor: Executor, force: bool
    ) -> None:
        container_id = lasting(executor, under_test)
        under_test.pause(container_id)
        assert executor.inspect(container_id).state is ContainerState.PAUSED
        executor.stop(container_id, force=force)
        assert ended(executor, container_id).exit_code == (137 if force else 143)

    @pytest.mark.parametrize("force", [False, True])
    def test_stop_without_anything_to_stop_has_no_effect(
        self, under_test: ExecutorUnderTest, executor: Executor, force: bool
    ) -> None:
        container_id = executor.create(under_test.spec(SHORT))
        executor.stop(container_id, force=force)
        assert executor.inspect(container_id).state is ContainerState.CREATED
        first = run(executor, container_id)
        executor.stop(container_id, force=force)
        assert executor.inspect(container_id) == first
        executor.remove(container_id)
        executor.stop(container_id, force=force)

    def test_remove_takes_a_running_container_and_says_whether_it_was_there(
        self, under_test: ExecutorUnderTest, executor: Executor
    ) -> None:
        created = executor.create(under_test.spec(SHORT))
        finished = executor.create(under_test.spec(SHORT))
        run(executor, finished)
        running = lasting(executor, under_test, replace(LASTING, term_exit_code=None))
        for container_id in (created, finished, running):
            assert executor.remove(container_id) is True
            assert executor.remove(container_id) is False
        assert executor.list_owned(under_test.installation) == []

    def test_a_name_is_free_again_after_removal(
        self, under_test: ExecutorUnderTest, executor: Executor
    ) -> None:
        spec = under_test.spec(SHORT)
        old = executor.create(spec)
        run(executor, old)
        executor.remove(old)
        new = executor.create(spec)
        assert new != old
        assert executor.inspect(old).state is ContainerState.NOT_FOUND
        assert not executor.inspect(new).ever_started

    def test_withdraw_takes_what_never_ran_so_that_it_never_can(
        self, under_test: ExecutorUnderTest, executor: Executor
    ) -> None:
        container_id = executor.create(under_test.spec(SHORT))
        assert executor.withdraw(container_id) is True
        assert executor.inspect(container_id).state is ContainerState.NOT_FOUND
        with pytest.raises(ContainerGone):
            executor.start(container_id)
        assert executor.withdraw(container_id) is True

    def test_withdraw_leaves_what_runs_or_ran(
        self, under_test: ExecutorUnderTest, executor: Executor
    ) -> None:
        finished = executor.create(under_test.spec(SHORT))
        record = run(executor, finished)
        running = lasting(executor, under_test)
        for container_id in (finished, running):
            assert executor.withdraw(container_id) is False
        assert executor.inspect(finished) == record
        assert executor.inspect(running).state is ContainerState.RUNNING

    def test_of_a_start_and_a_withdraw_at_once_one_alone_has_its_way(
        self, under_test: ExecutorUnderTest, executor: Executor
    ) -> None:
        other = under_test.open()
        for _ in range(10):
            container_id = executor.create(under_test.spec())
            with ThreadPoolExecutor(2) as pool:
                starting = pool.submit(executor.start, container_id)
                withdrawn = pool.submit(other.withdraw, container_id).result(60)
                started = starting.exception(60) is None
            assert started is not withdrawn, (starting.exception(), withdrawn)
            assert executor.inspect(container_id).ever_started is started
            executor.remove(container_id)

    def test_gone_is_gone_for_every_verb(self, under_test: ExecutorUnderTest, executor: Executor) -> None:
        removed = executor.create(under_test.spec(SHORT))
        executor.remove(removed)
        for reference in (removed, "contract-never-there"):
            assert executor.inspect(reference).state is ContainerState.NOT_FOUND
            assert executor.usage(reference) is None
            assert executor.remove(reference) is False
            with pytest.raises(ContainerGone):
                executor.start(reference)
            for follow in (False, True):
                with pytest.raises(ContainerGone):
                    list(executor.logs(reference, follow=follow))


class TestListing:
    def test_two_installations_do_not_see_each_other(
        self, under_test: ExecutorUnderTest, executor: Executor
    ) -> None:
        created = under_test.spec(SHORT)
        finished = under_test.spec(SHORT)
        foreign = under_test.spec(SHORT, installation=under_test.new_installation())
        ids = {spec.name: executor.create(spec) for spec in (created, finished, foreign)}
        run(executor, ids[finished.name])
        running = lasting(executor, under_test)
        mine = {found.container_id: found for found in executor.list_owned(under_test.installation)}
        assert {key: found.state for key, found in mine.items()} == {
            ids[created.name]: ContainerState.CREATED,
            ids[finished.name]: ContainerState.EXITED,
            running: ContainerState.RUNNING,
        }
        listed = mine[ids[created.name]]
        assert listed.name == created.name
        assert created.labels().items() <= listed.labels.items()
        assert listed.created_at is not None
        theirs = executor.list_owned(foreign.installation)
        assert [found.name for found in theirs] == [foreign.name]


class Watcher:
    """Reads events in a thread of its own."""

    def __init__(self, executor: Executor, installation: str) -> None:
        self.stop = threading.Event()
        self.events: list[EngineEvent] = []
        self._changed = threading.Condition()
        self._stream = executor.watch(installation, self.stop)
        self.thread = threading.Thread(target=self._read)
        self.thread.start()

    def _read(self) -> None:
        for event in self._stream:
            with self._changed:
                self.events.append(event)
                self._changed.notify_all()

    def wait_for(self, action: EventAction, container_id: str = "") -> EngineEvent:
        def found() -> EngineEvent | None:
            return next(
                (one for one in self.events if (one.action, one.container_id) == (action, container_id)), None
            )

        with self._changed:
            assert self._changed.wait_for(lambda: found() is not None, 20), f"no {action}, only {self.events}"
        event = found()
        assert event is not None
        return event


@contextmanager
def watching(executor: Executor, installation: str) -> Iterator[Watcher]:
    watcher = Watcher(executor, installation)
    try:
        watcher.wait_for(EventAction.CONNECTED)
        yield watcher
    finally:
        watcher.stop.set()
        watcher.thread.join(10)
        assert not watcher.thread.is_alive()


class TestWatch:
    def test_sees_start_and_end(self, under_test: ExecutorUnderTest, executor: Executor) -> None:
        spec = under_test.spec(Program(exit_code=3))
        with watching(under_test.open(), under_test.installation) as watcher:
            container_id = executor.create(spec)
            executor.start(container_id)
            start = watcher.wait_for(EventAction.START, container_id)
            die = watcher.wait_for(EventAction.DIE, container_id)
            executor.remove(container_id)
            watcher.wait_for(EventAction.DESTROY, container_id)
        assert watcher.events[0].action is EventAction.CONNECTED
        assert die.exit_code == 3
        for event in (start, die):
            assert spec.labels().items() <= event.labels.items()
            assert abs(event.at_ns - time.time_ns()) < 30 * SECOND
        order = [event.action for event in watcher.events if event.container_id == container_id]
        assert order.index(EventAction.START) < order.index(EventAction.DIE)

    def test_sees_the_end_of_what_ran_before_it_came(
        self, under_test: ExecutorUnderTest, executor: Executor
    ) -> None:
        container_id = lasting(executor, under_test)
        with watching(under_test.open(), under_test.installation) as watcher:
            executor.stop(container_id, force=True)
            assert watcher.wait_for(EventAction.DIE, container_id).exit_code == 137

    def test_does_not_see_other_installations(
        self, under_test: ExecutorUnderTest, executor: Executor
    ) -> None:
        foreign = executor.create(under_test.spec(SHORT, installation=under_test.new_installation()))
        mine = executor.create(under_test.spec(SHORT))
        with watching(under_test.open(), under_test.installation) as watcher:
            run(executor, foreign)
            run(executor, mine)
            watcher.wait_for(EventAction.DIE, mine)
        assert {event.container_id for event in watcher.events} == {"", mine}

    def test_ends_within_a_second(self, under_test: ExecutorUnderTest) -> None:
        with watching(under_test.open(), under_test.installation) as watcher:
            watcher.stop.set()
            watcher.thread.join(1.0)
            assert not watcher.thread.is_alive()

    def test_ends_with_its_executor(self, under_test: ExecutorUnderTest) -> None:
        executor = under_test.open()
        watcher = Watcher(executor, under_test.installation)
        watcher.wait_for(EventAction.CONNECTED)
        watcher.stop.set()  # the order of a worker that stops; a stream that breaks is no fault then
        executor.close()
        watcher.thread.join(5)
        assert not watcher.thread.is_alive()


#: What logs have to survive: NUL, carriage returns, colours, empty lines, a line of more than two frames,
#: one of exactly one frame, and an end without a newline. Bytes that are no text have a test of their own.
AWKWARD = Program(
    output=(
        (STDOUT, b"plain\n", 1),
        (STDERR, b"error\n", 3),
        (STDOUT, b"\0 \r\x1b[31mred\x1b[0m\x0b\x0c \xc2\x85 \xe2\x80\xa8\n", 2),
        (STDOUT, b"\n", 3),
        (STDERR, b"0123456789abcdef", 2600),
        (STDERR, b"\n", 1),
        (STDOUT, b"y", 16384),
        (STDOUT, b"\n", 1),
        (STDERR, b"no newline", 1),
        (STDOUT, b"none here", 1),
    )
)


class TestLogs:
    def test_both_streams_come_back_byte_for_byte(
        self, under_test: ExecutorUnderTest, executor: Executor
    ) -> None:
        container_id = executor.create(under_test.spec(AWKWARD))
        run(executor, container_id)
        frames = list(executor.logs(container_id))
        assert payload(frames, STDOUT) == AWKWARD.written(STDOUT)
        assert payload(frames, STDERR) == AWKWARD.written(STDERR)
        assert {frame.stream for frame in frames} == {STDOUT, STDERR}
        assert max(len(frame.payload) for frame in frames) <= 16 * 1024
        assert all(frame.payload.count(b"\n") <= 1 for frame in frames), "a frame is at most one line"
        assert all(abs(frame.timestamp_ns - time.time_ns()) < 60 * SECOND for frame in frames)
        assert list(executor.logs(container_id, follow=True)) == frames
        assert list(under_test.open().logs(container_id)) == frames

    def test_bytes_that_are_no_text_are_not_mended(
        self, under_test: ExecutorUnderTest, executor: Executor
    ) -> None:
        program = Program(output=((STDOUT, b"\xff\xfe\x80 caf\xe9\n", 2), (STDERR, b"cut short \xe2\x82", 1)))
        container_id = executor.create(under_test.spec(program))
        run(executor, container_id)
        frames = list(executor.logs(container_id))
        assert payload(frames, STDOUT) == program.written(STDOUT)
        assert payload(frames, STDERR) == program.written(STDERR)

    def test_a_cursor_resumes_at_every_frame(self, under_test: ExecutorUnderTest, executor: Executor) -> None:
        container_id = executor.create(under_test.spec(AWKWARD))
        run(executor, container_id)
        frames = list(executor.logs(container_id))
        for stored in range(len(frames) + 1):
            newest = min(frame.timestamp_ns for frame in frames[max(0, stored - 1) :])
            for since in (newest, newest - SECOND):
                skip = sum(frame.timestamp_ns >= since for frame in frames[:stored])
                cursor = LogCursor(since, skip)
                assert list(executor.logs(container_id, since=cursor)) == frames[stored:]
        behind = LogCursor(frames[-1].timestamp_ns + 1, 0)
        assert list(executor.logs(container_id, since=behind)) == []
        assert list(executor.logs(container_id, since=behind, follow=True)) == []

    def test_nothing_written_is_nothing_read(self, under_test: ExecutorUnderTest, executor: Executor) -> None:
        container_id = executor.create(under_test.spec(Program()))
        run(executor, container_id)
        assert list(executor.logs(container_id)) == []
        assert list(executor.logs(container_id, follow=True)) == []

    def test_a_megabyte_without_a_newline(self, under_test: ExecutorUnderTest, executor: Executor) -> None:
        program = Program(output=((STDOUT, b"0123456789abcdef", 65536),))
        container_id = executor.create(under_test.spec(program))
        run(executor, container_id)
        assert payload(list(executor.logs(container_id)), STDOUT) == program.written(STDOUT)

    def test_many_lines_stay_in_order(self, under_test: ExecutorUnderTest, executor: Executor) -> None:
        lines = b"".join(b"%d\n" % number for number in range(5000))
        program = Program(output=((STDOUT, lines, 1), (STDERR, lines, 1)))
        container_id = executor.create(under_test.spec(program))
        run(executor, container_id)
        frames = list(executor.logs(container_id))
        assert payload(frames, STDOUT) == lines
        assert payload(frames, STDERR) == lines

    def test_following_delivers_while_it_runs_and_ends_with_it(
        self, under_test: ExecutorUnderTest, executor: Executor
    ) -> None:
        container_id = executor.create(under_test.spec())
        executor.start(container_id)
        frames = executor.logs(container_id, follow=True)
        first = next(frames)
        assert first.payload == READY
        assert executor.inspect(container_id).state is ContainerState.RUNNING
        resumed = executor.logs(container_id, since=LogCursor(first.timestamp_ns, 1), follow=True)
        executor.stop(container_id, force=True)
        assert list(frames) == []
        assert list(resumed) == []

    def test_following_ends_when_the_container_is_removed(
        self, under_test: ExecutorUnderTest, executor: Executor
    ) -> None:
        container_id = executor.create(under_test.spec())
        executor.start(container_id)
        frames = executor.logs(container_id, follow=True)
        assert next(frames).payload == READY
        under_test.open().remove(container_id)
        assert list(frames) == []

    def test_an_iterator_may_be_closed_early(self, under_test: ExecutorUnderTest, executor: Executor) -> None:
        container_id = executor.create(under_test.spec())
        executor.start(container_id)
        for follow in (True, False):
            frames = executor.logs(container_id, follow=follow)
            assert next(frames).payload == READY
            frames.close()  # type: ignore[attr-defined]
        assert executor.inspect(container_id).state is ContainerState.RUNNING

    def test_closing_the_executor_ends_every_follow(
        self, under_test: ExecutorUnderTest, executor: Executor
    ) -> None:
        container_id = lasting(executor, under_test)
        other = under_test.open()
        reading = threading.Semaphore(0)

        def follow() -> None:
            for _ in other.logs(container_id, follow=True):
                reading.release()

        threads = [threading.Thread(target=follow) for _ in range(3)]
        for thread in threads:
            thread.start()
        for _ in threads:
            assert reading.acquire(timeout=20)
        other.close()
        for thread in threads:
            thread.join(5)
        assert not any(thread.is_alive() for thread in threads)
        assert executor.inspect(container_id).state is ContainerState.RUNNING, "only the streams end"


class TestUsage:
    def test_a_running_container_has_counters_and_an_ended_one_has_none(
        self, under_test: ExecutorUnderTest, executor: Executor
    ) -> None:
        container_id = lasting(executor, under_test)
        sample = executor.usage(container_id)
        assert sample is not None
        assert abs((sample.taken_at - datetime.now(UTC)).total_seconds()) < 30
        assert sample.cpu_ns is not None
        assert sample.cpu_ns >= 0
        assert sample.memory_bytes is not None
        assert 0 < sample.memory_bytes < 64 * 1024 * 1024
        assert sample.memory_peak_bytes is None or sample.memory_peak_bytes >= 1024 * 1024
        executor.stop(container_id, force=True)
        ended(executor, container_id)
        assert executor.usage(container_id) is None


class TestTakingOver:
    def test_another_worker_finishes_what_the_first_began(
        self, under_test: ExecutorUnderTest, executor: Executor
    ) -> None:
        spec = under_test.spec()
        container_id = executor.create(spec)
        executor.start(container_id)
        frames = executor.logs(container_id, follow=True)
        first = next(frames)
        frames.close()  # type: ignore[attr-defined]
        executor.close()

        heir = under_test.open()
        assert heir.create(spec) == container_id
        heir.start(container_id)
        assert heir.inspect(spec.name).state is ContainerState.RUNNING
        heir.stop(container_id)
        rest = list(heir.logs(container_id, since=LogCursor(first.timestamp_ns, 1), follow=True))
        assert rest == []
        assert ended(heir, container_id).exit_code == 143
        assert heir.remove(container_id)
