"""The engine in memory does what its users are told; the verbs themselves are the contract suite's."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest

from container_manager.core.errors import (
    ConfigurationError,
    HostTimeout,
    HostUnreachable,
    ImageNotFound,
    NetworkNotFound,
    StartFailed,
)
from container_manager.core.observation import STDERR, STDOUT, ContainerState, EventAction, LogCursor
from container_manager.core.spec import ContainerSpec, NetworkAttachment
from container_manager.executors.base import HostConfig
from container_manager.testing import (
    FakeClock,
    FakeEngine,
    FakeExecutor,
    FakeRun,
    fake_engine,
    forget_fake_engines,
)

IMPORT = ("python", "manage.py", "import_books")


def spec(*argv: str, name: str = "job-1") -> ContainerSpec:
    return ContainerSpec(
        name=name,
        installation="unit",
        job_id="1",
        attempt=1,
        image="app:1",
        argv=argv,
        environment=(),
        working_directory="",
        user="10001:10001",
        memory_bytes=1,
        cpus=1.0,
        pids_limit=1,
        read_only_root=True,
        tmpfs=(),
        networks=(),
        cap_drop=(),
        security_opt=(),
    )


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def engine(clock: FakeClock) -> FakeEngine:
    engine = FakeEngine(clock=clock)
    engine.images.add("app:1")
    return engine


@pytest.fixture
def executor(engine: FakeEngine) -> FakeExecutor:
    return FakeExecutor.on(engine)


def started(executor: FakeExecutor, job: ContainerSpec) -> str:
    container_id = executor.create(job)
    executor.start(container_id)
    return container_id


class TestRuns:
    def test_are_found_by_command(self, engine: FakeEngine, executor: FakeExecutor) -> None:
        engine.runs = {IMPORT: FakeRun(exit_code=4, stdout=b"42 books\nno end", stderr=b"oh\n")}
        one = started(executor, spec(*IMPORT))
        other = started(executor, spec("true", name="job-2"))
        assert executor.inspect(one).exit_code == 4
        assert executor.inspect(other).exit_code == 0
        assert [(frame.stream, frame.payload) for frame in executor.logs(one)] == [
            (STDOUT, b"42 books\n"),
            (STDOUT, b"no end"),
            (STDERR, b"oh\n"),
        ]

    def test_or_chosen_by_a_function(self, engine: FakeEngine, executor: FakeExecutor) -> None:
        engine.runs = lambda job: FakeRun(exit_code=len(job.argv))
        assert executor.inspect(started(executor, spec("a", "b", "c"))).exit_code == 3

    def test_last_as_long_as_the_clock_says(
        self, engine: FakeEngine, executor: FakeExecutor, clock: FakeClock
    ) -> None:
        engine.default = FakeRun(duration=10)
        container_id = started(executor, spec())
        clock.advance(9.5)
        assert executor.inspect(container_id).state is ContainerState.RUNNING
        clock.advance(100)
        seen = executor.inspect(container_id)
        assert seen.state is ContainerState.EXITED
        assert seen.started_at is not None
        assert seen.finished_at is not None
        assert (seen.finished_at - seen.started_at).total_seconds() == 10, "not when somebody looked"

    def test_are_held_until_the_test_lets_go(self, engine: FakeEngine, executor: FakeExecutor) -> None:
        hold = threading.Event()
        engine.default = FakeRun(hold=hold, exit_code=2)
        container_id = started(executor, spec())
        assert executor.inspect(container_id).state is ContainerState.RUNNING
        hold.set()
        assert executor.inspect(container_id).exit_code == 2

    def test_a_start_can_be_refused(self, engine: FakeEngine, executor: FakeExecutor) -> None:
        engine.default = FakeRun(error=StartFailed("no", detail="the engine's own words"))
        container_id = executor.create(spec())
        with pytest.raises(StartFailed):
            executor.start(container_id)
        seen = executor.inspect(container_id)
        assert (seen.state, seen.exit_code, seen.error) == (
            ContainerState.CREATED,
            125,
            "the engine's own words",
        )
        assert engine.starts["job-1"] == 0

    def test_usage_is_what_the_run_says(
        self, engine: FakeEngine, executor: FakeExecutor, clock: FakeClock
    ) -> None:
        engine.default = FakeRun(duration=60, cpus_used=0.25, memory_bytes=5, memory_peak_bytes=9)
        container_id = started(executor, spec())
        clock.advance(8)
        sample = executor.usage(container_id)
        assert sample is not None
        assert (sample.cpu_ns, sample.memory_bytes, sample.memory_peak_bytes) == (2_000_000_000, 5, 9)

    def test_long_lines_are_cut_with_one_timestamp(self, engine: FakeEngine, executor: FakeExecutor) -> None:
        engine.default = FakeRun(stdout=b"x" * 20_000 + b"\n")
        first, second = executor.logs(started(executor, spec()))
        assert (len(first.payload), len(second.payload)) == (16_384, 3_617)
        assert first.timestamp_ns == second.timestamp_ns


class TestTheEngineIsShared:
    def test_by_address(self) -> None:
        forget_fake_engines()
        config = HostConfig(name="any", connection_string="fake://shared")
        one, other = FakeExecutor(config), FakeExecutor(config)
        one.pull("app:1")
        container_id = started(one, spec())
        assert one.engine is other.engine is fake_engine("shared")
        other.start(container_id)
        assert fake_engine("shared").starts == {"job-1": 1}
        assert fake_engine("other") is not fake_engine("shared")
        forget_fake_engines()
        assert fake_engine("shared").containers == {}

    @pytest.mark.parametrize("address", ["fake://", "unix:///run/docker.sock", ""])
    def test_a_wrong_address_is_refused(self, address: str) -> None:
        with pytest.raises(ConfigurationError, match="fake://one"):
            FakeExecutor(HostConfig(name="any", connection_string=address))


class TestFailures:
    def test_as_often_as_planned(self, engine: FakeEngine, executor: FakeExecutor) -> None:
        engine.fail("create", HostUnreachable("away"), times=2)
        for _ in range(2):
            with pytest.raises(HostUnreachable, match="away"):
                executor.create(spec())
        assert engine.containers == {}
        assert executor.create(spec())

    def test_the_answer_can_be_lost_after_the_effect(
        self, engine: FakeEngine, executor: FakeExecutor
    ) -> None:
        container_id = executor.create(spec())
        engine.fail("start", HostTimeout("no answer"), after=True)
        with pytest.raises(HostTimeout):
            executor.start(container_id)
        assert engine.starts["job-1"] == 1
        executor.start(container_id)
        assert engine.starts["job-1"] == 1

    def test_until_healed(self, engine: FakeEngine, executor: FakeExecutor) -> None:
        engine.fail("health", HostUnreachable("away"), times=None)
        for _ in range(5):
            with pytest.raises(HostUnreachable):
                executor.health()
        engine.heal("health")
        assert executor.health().engine_id == "fake-fake"

    def test_a_misspelt_verb_is_an_error(self, engine: FakeEngine) -> None:
        with pytest.raises(ValueError, match="'craete' is no verb"):
            engine.fail("craete", HostUnreachable("away"))

    def test_a_host_that_goes_down_breaks_its_streams_and_keeps_its_containers(
        self, engine: FakeEngine, executor: FakeExecutor
    ) -> None:
        engine.default = FakeRun(duration=60, stdout=b"up\n")
        container_id = started(executor, spec())
        frames = executor.logs(container_id, follow=True)
        events = executor.watch("unit", threading.Event())
        next(frames)
        next(events)
        engine.go_down()
        for stream in (frames, events):
            with pytest.raises(HostUnreachable):
                list(stream)
        with pytest.raises(HostUnreachable):
            executor.inspect(container_id)
        engine.come_back()
        assert executor.inspect(container_id).state is ContainerState.RUNNING

    def test_images_and_networks_may_be_missing(self, engine: FakeEngine, executor: FakeExecutor) -> None:
        engine.missing_images.add("app:2")
        with pytest.raises(ImageNotFound, match="app:2"):
            executor.pull("app:2")
        with pytest.raises(ImageNotFound, match="pull it first"):
            executor.create(replace(spec(), image="app:3"))
        heard: list[str] = []
        assert executor.pull("app:3", progress=heard.append).pulled
        assert not executor.pull("app:3").pulled
        assert heard == ["pulled app:3"]
        assert engine.pulls == {"app:3": 1}
        engine.networks = {"bridge"}
        with pytest.raises(NetworkNotFound, match="backend"):
            executor.create(replace(spec(), networks=(NetworkAttachment(network_name="backend"),)))

    def test_a_host_that_may_not_pull(self, engine: FakeEngine) -> None:
        config = HostConfig(name="any", connection_string="fake://any", auto_pull_images=False)
        with pytest.raises(ImageNotFound):
            FakeExecutor(config, engine).pull("app:2")


class TestFromOutside:
    @pytest.fixture
    def container_id(self, engine: FakeEngine, executor: FakeExecutor) -> str:
        engine.default = FakeRun(duration=60, exit_code=5)
        return started(executor, spec())

    def test_finish(self, engine: FakeEngine, executor: FakeExecutor, container_id: str) -> None:
        engine.finish("job-1")
        assert executor.inspect(container_id).exit_code == 5

    def test_finish_with_a_code(self, engine: FakeEngine, executor: FakeExecutor, container_id: str) -> None:
        engine.finish("job-1", 0)
        assert executor.inspect(container_id).exit_code == 0

    @pytest.mark.parametrize("oom", [False, True])
    def test_kill(self, engine: FakeEngine, executor: FakeExecutor, container_id: str, oom: bool) -> None:
        engine.kill("job-1", oom=oom)
        seen = executor.inspect(container_id)
        assert (seen.exit_code, seen.oom_killed) == (137, oom)
        ooms = [event for event in engine.events if event.action is EventAction.OOM]
        assert bool(ooms) is oom

    def test_remove(self, engine: FakeEngine, executor: FakeExecutor, container_id: str) -> None:
        engine.remove("job-1")
        assert executor.inspect(container_id).state is ContainerState.NOT_FOUND

    def test_pause(
        self, engine: FakeEngine, executor: FakeExecutor, container_id: str, clock: FakeClock
    ) -> None:
        engine.pause("job-1")
        clock.advance(100)
        assert executor.inspect(container_id).state is ContainerState.PAUSED
        engine.unpause("job-1")
        assert executor.inspect(container_id).state is ContainerState.EXITED

    def test_write_reaches_who_follows(
        self, engine: FakeEngine, executor: FakeExecutor, container_id: str
    ) -> None:
        frames = executor.logs(container_id, follow=True)
        engine.write("job-1", b"one\n")
        first = next(frames)
        engine.write("job-1", b"two\n", stream=STDERR)
        second = next(frames)
        assert (first.payload, second.payload, second.stream) == (b"one\n", b"two\n", STDERR)
        assert second.timestamp_ns > first.timestamp_ns, "also while the clock stands still"
        engine.finish("job-1")
        assert list(frames) == []
        assert list(executor.logs(container_id, since=LogCursor(first.timestamp_ns, 1))) == [second]

    def test_what_does_not_run_cannot_be_ended(self, engine: FakeEngine, container_id: str) -> None:
        engine.finish("job-1")
        with pytest.raises(LookupError, match="it is exited"):
            engine.kill("job-1")
        engine.remove("job-1")
        with pytest.raises(LookupError, match="it is gone"):
            engine.finish("job-1")
        with pytest.raises(LookupError, match="no container job-1"):
            engine.remove("job-1")


def test_calls_are_recorded(engine: FakeEngine, executor: FakeExecutor) -> None:
    container_id = started(executor, spec())
    executor.remove(container_id)
    assert engine.calls == [("create", "job-1"), ("start", container_id), ("remove", container_id)]
    assert [event.action.value for event in engine.events] == ["start", "die", "destroy"]
