"""The Docker driver on a real engine: what it finds out, what it enforces, and what it leaves alone."""

from __future__ import annotations

import json
import queue
import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from container_manager.core.errors import (
    CommandNotExecutable,
    CommandNotFound,
    ExecutorError,
    HostUnreachable,
    ImageNotFound,
    ImagePullFailed,
    NameTaken,
    NetworkNotFound,
)
from container_manager.core.observation import ContainerState, EngineEvent, EventAction, Observation
from container_manager.core.outcome import ExitReason, decide
from container_manager.core.policy import Policy
from container_manager.core.spec import NetworkAttachment
from tests.engine.driving import Driving, facts, joined, python

pytestmark = pytest.mark.engine

MEBIBYTE = 1024 * 1024
LASTING = ("sleep", "120")


@pytest.fixture
def driving(docker_url: str) -> Iterator[Driving]:
    one = Driving(docker_url, auto_pull_images=False)
    yield one
    one.close()


class TestWhatAnInspectSays:
    """The rows of the table in ENGINE_FACTS that a single container shows."""

    HOARD = "hoard = []\nwhile True: hoard.append(bytearray(1 << 20))"

    def run(self, driving: Driving, *argv: str) -> Observation:
        return driving.ended(driving.started(driving.spec(*argv)))

    def test_main_process_out_of_memory(self, driving: Driving) -> None:
        seen = self.run(driving, *python(self.HOARD))
        assert (seen.exit_code, seen.oom_killed, seen.error) == (137, True, "")
        assert decide(seen).reason is ExitReason.OUT_OF_MEMORY

    def test_child_out_of_memory_and_the_parent_succeeds(self, driving: Driving) -> None:
        child = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {self.HOARD!r}])"
        seen = self.run(driving, *python(child))
        assert (seen.exit_code, seen.oom_killed) == (0, True)
        assert "child" in decide(seen).message

    def test_kill_from_inside(self, driving: Driving) -> None:
        # The main process of a container cannot be killed from inside by its own number: a child is.
        seen = self.run(driving, "sh", "-c", "sh -c 'kill -9 $$'; exit $?")
        assert (seen.exit_code, seen.oom_killed) == (137, False)

    @pytest.mark.parametrize("code", [0, 1, 125, 126, 127, 128, 143, 255])
    def test_the_programs_own_code_leaves_no_error(self, driving: Driving, code: int) -> None:
        seen = self.run(driving, "sh", "-c", f"exit {code}")
        assert (seen.state, seen.exit_code, seen.error) == (ContainerState.EXITED, code, "")
        assert seen.started_at is not None
        assert seen.finished_at is not None
        assert seen.started_at <= seen.finished_at

    @pytest.mark.parametrize(
        ("command", "fault", "code", "reason"),
        [
            ("/no/such/program", CommandNotFound, 127, ExitReason.COMMAND_NOT_FOUND),
            ("no-such-program", CommandNotFound, 127, ExitReason.COMMAND_NOT_FOUND),
            ("/proc/version", CommandNotExecutable, 126, ExitReason.COMMAND_NOT_EXECUTABLE),
        ],
    )
    def test_what_cannot_start_says_why_at_once_and_later(
        self, driving: Driving, command: str, fault: type[ExecutorError], code: int, reason: ExitReason
    ) -> None:
        container_id = driving.executor.create(driving.spec(command))
        with pytest.raises(fault, match=command) as caught:
            driving.executor.start(container_id)
        assert caught.value.detail
        seen = driving.executor.inspect(container_id)
        assert (seen.state, seen.exit_code, seen.ever_started) == (ContainerState.CREATED, code, False)
        assert seen.error
        assert decide(seen).reason is reason
        with pytest.raises(fault):
            driving.another().start(container_id)

    def test_a_container_is_told_apart_from_none(self, driving: Driving) -> None:
        assert driving.executor.inspect("driver-nothing").state is ContainerState.NOT_FOUND

    def test_a_paused_container_is_paused(self, driving: Driving) -> None:
        container_id = driving.started(driving.spec(*LASTING))
        driving.client.api.pause(container_id)
        assert driving.executor.inspect(container_id).state is ContainerState.PAUSED
        driving.executor.stop(container_id, force=True)
        assert driving.ended(container_id).exit_code == 137


class TestIsolation:
    """What the job finds around itself, read from inside."""

    def test_an_unprivileged_user_without_any_capability(self, driving: Driving) -> None:
        status = driving.said("cat", "/proc/self/status")
        lines = dict(line.split(":\t", 1) for line in status.splitlines())
        assert lines["Uid"].split() == ["10001"] * 4
        assert lines["Gid"].split() == ["10001"] * 4
        assert {int(lines[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {0}
        assert lines["NoNewPrivs"] == "1"
        assert lines["Seccomp"] == "2", "the engine's own filter is in force"

    def test_a_root_filesystem_that_cannot_be_written_and_a_tmp_that_can(self, driving: Driving) -> None:
        found = facts(
            driving,
            "found = {}\n"
            "for path in ('/x', '/etc/x', '/usr/local/x', '/tmp/x', os.environ['HOME'] + '/y'):\n"
            "    try: open(path, 'w').close(); found[path] = 0\n"
            "    except OSError as error: found[path] = error.errno\n"
            "print(json.dumps(found))",
        )
        read_only, forbidden = 30, 13
        assert {found.pop("/tmp/x"), found.pop("/tmp/y")} == {0}
        assert set(found.values()) <= {read_only, forbidden}
        mounts = driving.said("cat", "/proc/mounts").splitlines()
        options = {line.split()[1]: line.split()[3].split(",") for line in mounts}
        assert "ro" in options["/"]
        assert {"rw", "nosuid", "nodev", f"size={64 * 1024}k"} <= set(options["/tmp"])

    def test_neither_the_socket_nor_a_device_nor_another_process(self, driving: Driving) -> None:
        found = facts(
            driving,
            "print(json.dumps({'sockets': [p for p in ('/var/run/docker.sock', '/run/docker.sock')"
            " if os.path.exists(p)],"
            " 'disks': [d for d in os.listdir('/dev') if d.startswith(('sd', 'vd', 'nvme', 'mem', 'kmsg'))],"
            " 'processes': [p for p in os.listdir('/proc') if p.isdigit()]}))",
        )
        assert found == {"sockets": [], "disks": [], "processes": ["1"]}

    def test_limits_of_memory_cpu_and_processes(self, driving: Driving) -> None:
        spec = driving.spec(*LASTING, memory_mb=32, cpus=0.25, policy=Policy(pids_limit=17))
        container_id = driving.started(spec)
        applied = driving.client.api.inspect_container(container_id)["HostConfig"]
        assert applied["Memory"] == 32 * MEBIBYTE
        assert applied["MemorySwap"] == 32 * MEBIBYTE, "the sum of both: no swap"
        assert applied["NanoCpus"] == 250_000_000
        assert applied["PidsLimit"] == 17
        assert (applied["Privileged"], applied["RestartPolicy"]["Name"]) == (False, "no")

    def test_the_kernel_holds_the_same_limits(self, driving: Driving) -> None:
        one_of = (
            ("memory", ("memory/memory.limit_in_bytes", "memory.max")),
            ("quota", ("cpu/cpu.cfs_quota_us", "cpu.max")),
            ("pids", ("pids/pids.max", "pids.max")),
        )
        found = facts(
            driving,
            f"found = {{}}\nfor name, paths in {one_of!r}:\n"
            "    for path in paths:\n"
            "        path = '/sys/fs/cgroup/' + path\n"
            "        if os.path.exists(path): found[name] = open(path).read().split()[0]\n"
            "print(json.dumps(found))",
            memory_mb=32,
            cpus=0.25,
            policy=Policy(pids_limit=17),
        )
        assert found == {"memory": str(32 * MEBIBYTE), "quota": "25000", "pids": "17"}

    def test_no_more_processes_than_allowed(self, driving: Driving) -> None:
        found = facts(
            driving,
            "import signal\nmade = 0\n"
            "try:\n"
            "    while made < 40:\n"
            "        if os.fork() == 0:\n"
            "            signal.pause()\n"
            "        made += 1\n"
            "except BlockingIOError: pass\n"
            "print(json.dumps(made), flush=True)\n"
            "os._exit(0)",
            policy=Policy(pids_limit=12),
        )
        assert 5 <= found <= 11

    def test_a_tmp_that_is_full_is_the_jobs_own_trouble(self, driving: Driving) -> None:
        program = (
            "try:\n"
            "    with open('/tmp/x', 'wb') as file:\n"
            "        for _ in range(9): file.write(b'x' * (1 << 20)); file.flush()\n"
            "except OSError as error: print(json.dumps(error.errno))"
        )
        assert facts(driving, program, policy=Policy(tmpfs_mb=4)) == 28


class TestNetworks:
    SERVER = (
        "import socket; s = socket.socket(); s.bind(('', 8000)); s.listen(); print('up', flush=True); "
        "c, _ = s.accept(); c.sendall(b'hello'); c.close()"
    )
    CLIENT = "import socket, sys; print(socket.create_connection((sys.argv[1], 8000), 10).recv(9).decode())"

    @pytest.mark.parametrize("alias", ["first", "second.example"])
    def test_two_containers_find_each_other_by_alias(self, driving: Driving, alias: str) -> None:
        network = driving.network()
        other = driving.network()
        server = driving.started(
            driving.spec(
                *python(self.SERVER),
                networks=[
                    NetworkAttachment(network_name=other, aliases=("elsewhere",)),
                    NetworkAttachment(network_name=network, aliases=("first", "second.example")),
                ],
            )
        )
        assert next(driving.executor.logs(server, follow=True)).payload == b"up\n"
        joining = [NetworkAttachment(network_name=network)]
        assert driving.said(*python(self.CLIENT), alias, networks=joining) == "hello\n"

    def test_an_alias_is_of_its_own_network_only(self, driving: Driving) -> None:
        networks = [
            NetworkAttachment(network_name=driving.network(), aliases=(alias,)) for alias in ("left", "right")
        ]
        container_id = driving.started(driving.spec(*LASTING, networks=networks))
        joined_networks = driving.client.api.inspect_container(container_id)["NetworkSettings"]["Networks"]
        assert {name: set(at["Aliases"]) & {"left", "right"} for name, at in joined_networks.items()} == {
            networks[0].network_name: {"left"},
            networks[1].network_name: {"right"},
        }

    def test_without_a_network_there_is_only_loopback(self, driving: Driving) -> None:
        program = "print(json.dumps([name for _, name in socket.if_nameindex()]))"
        assert "eth0" not in facts(driving, program, networks=[NetworkAttachment(network_name="none")])
        assert "eth0" in facts(driving, program)

    @pytest.mark.parametrize("position", [0, 1])
    def test_a_missing_network_is_named_and_leaves_nothing_behind(
        self, driving: Driving, position: int
    ) -> None:
        networks = [NetworkAttachment(network_name=driving.network())]
        networks.insert(position, NetworkAttachment(network_name="driver-missing"))
        with pytest.raises(NetworkNotFound, match="driver-missing"):
            driving.executor.create(driving.spec(*LASTING, networks=networks))
        assert driving.executor.list_owned(driving.installation) == []

    def test_a_network_that_goes_between_create_and_start_is_a_start_error(self, driving: Driving) -> None:
        name = driving.network()
        container_id = driving.executor.create(
            driving.spec(*LASTING, networks=[NetworkAttachment(network_name=name)])
        )
        driving.client.networks.get(name).remove()
        driving.networks.remove(name)
        with pytest.raises(ExecutorError, match=r"network|start"):
            driving.executor.start(container_id)
        assert not driving.executor.inspect(container_id).ever_started


class TestNames:
    def test_another_worker_adopts_what_the_first_made(self, driving: Driving) -> None:
        spec = driving.spec("true")
        container_id = driving.executor.create(spec)
        heir = driving.another()
        assert heir.create(spec) == container_id
        heir.start(container_id)
        assert driving.ended(container_id).exit_code == 0
        assert heir.create(spec) == container_id, "an ended container is still the attempt's own"
        heir.close()

    @pytest.mark.parametrize(
        "change", [{"argv": ("false",)}, {"attempt": 2}, {"installation": "driver-other"}]
    )
    def test_one_that_differs_in_anything_is_foreign(
        self, driving: Driving, change: dict[str, object]
    ) -> None:
        spec = driving.spec("true")
        container_id = driving.executor.create(spec)
        with pytest.raises(NameTaken, match=spec.name):
            driving.executor.create(replace(spec, **change))  # type: ignore[arg-type]
        assert driving.executor.inspect(spec.name).container_id == container_id

    def test_a_container_of_somebody_else_is_left_alone(self, driving: Driving) -> None:
        spec = driving.spec("true")
        theirs = driving.client.containers.create(spec.image, ["true"], name=spec.name)
        with pytest.raises(NameTaken):
            driving.executor.create(spec)
        theirs.reload()
        assert theirs.status == "created"
        theirs.remove()

    def test_an_ended_container_never_runs_again(self, driving: Driving) -> None:
        container_id = driving.started(driving.spec("echo", "once"))
        first = driving.ended(container_id)
        driving.executor.start(container_id)
        driving.another().start(container_id)
        assert driving.ended(container_id) == first
        assert joined(driving.output(container_id)) == b"once\n"


class TestUsageAndEvents:
    def test_a_program_that_holds_memory_shows_it(self, driving: Driving) -> None:
        program = "held = bytearray(30 << 20); print('held', flush=True); import time; time.sleep(120)"
        container_id = driving.started(driving.spec(*python(program)))
        assert next(driving.executor.logs(container_id, follow=True)).payload == b"held\n"
        sample = driving.executor.usage(container_id)
        assert sample is not None
        assert sample.memory_bytes is not None
        assert 30 * MEBIBYTE <= sample.memory_bytes <= 64 * MEBIBYTE
        if sample.memory_peak_bytes is not None:  # cgroup v1 alone
            assert sample.memory_bytes <= sample.memory_peak_bytes <= 64 * MEBIBYTE
        driving.executor.stop(container_id, force=True)
        driving.ended(container_id)
        assert driving.executor.usage(container_id) is None
        assert driving.executor.remove(container_id)
        assert driving.executor.usage(container_id) is None

    def test_a_life_as_events_tell_it(self, driving: Driving) -> None:
        stop = threading.Event()
        events: queue.Queue[EngineEvent] = queue.Queue()

        def watch() -> None:
            for event in driving.executor.watch(driving.installation, stop):
                events.put(event)

        watcher = threading.Thread(target=watch)
        watcher.start()
        assert events.get(timeout=10).action is EventAction.CONNECTED
        spec = driving.spec("sh", "-c", "exit 7")
        container_id = driving.started(spec)
        driving.ended(container_id)
        driving.executor.remove(container_id)
        seen = [events.get(timeout=10) for _ in range(3)]
        assert [event.action for event in seen] == [EventAction.START, EventAction.DIE, EventAction.DESTROY]
        assert {event.container_id for event in seen} == {container_id}
        assert seen[1].exit_code == 7
        assert spec.labels().items() <= seen[1].labels.items()
        assert 0 < seen[0].at_ns < seen[1].at_ns
        began = time.monotonic()
        stop.set()
        watcher.join(5)
        assert not watcher.is_alive()
        assert time.monotonic() - began < 1.0


class TestImages:
    def test_with_no_registry_in_reach_the_message_says_so(
        self, docker_url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("container_manager.executors.docker.images.RETRY_SECONDS", (0.05,))
        driving = Driving(docker_url, auto_pull_images=True)
        said: list[str] = []
        # Nothing listens on that port of the engine's own loopback.
        with pytest.raises(ImagePullFailed, match=r"127\.0\.0\.1:9/driver/app") as caught:
            driving.executor.pull("127.0.0.1:9/driver/app:1", progress=said.append)
        assert "registry" in str(caught.value)
        assert "refused" in caught.value.detail
        assert sum("trying again" in line for line in said) == 1
        driving.close()

    def test_where_pulling_is_off_the_switch_is_named(self, driving: Driving) -> None:
        with pytest.raises(ImageNotFound, match="auto_pull_images"):
            driving.executor.pull("127.0.0.1:9/driver/app:1")

    def test_an_image_that_is_there_is_not_pulled(self, driving: Driving) -> None:
        image = driving.spec("true").image
        found = driving.executor.pull(image)
        assert found.image_id == driving.client.images.get(image).id
        assert (found.digest, found.pulled) == ("", False), "it never saw a registry"

    def test_a_container_of_a_missing_image_is_not_made(self, driving: Driving) -> None:
        with pytest.raises(ImageNotFound, match="driver-missing"):
            driving.executor.create(driving.spec("true", image="driver-missing:1"))
        assert driving.executor.list_owned(driving.installation) == []


class TestWays:
    def test_plain_tcp_does_the_same(self, tcp_engine_url: str) -> None:
        driving = Driving(tcp_engine_url, auto_pull_images=False)
        assert driving.executor.health().engine_id
        assert driving.said("echo", "over tcp") == "over tcp\n"
        container_id = driving.started(driving.spec(*LASTING))
        driving.executor.stop(container_id)
        driving.executor.stop(container_id, force=True)
        assert driving.ended(container_id).exit_code in {137, 143}
        driving.close()

    def test_an_address_where_nothing_listens(self) -> None:
        with pytest.raises(HostUnreachable, match="unix:///nowhere"):
            Driving("unix:///nowhere/docker.sock").executor.health()

    def test_health_tells_what_the_engine_says_of_itself(self, driving: Driving) -> None:
        told = driving.executor.health()
        info = driving.client.info()
        assert (told.engine_id, told.engine_version) == (info["ID"], info["ServerVersion"])
        assert (told.cpus, told.memory_bytes) == (info["NCPU"], info["MemTotal"])
        assert told.user_namespaces == ("name=userns" in info["SecurityOptions"])
        assert json.dumps(told.details)


class TestWithdraw:
    def test_a_program_that_ran_between_the_look_and_the_removal_is_not_taken_for_one_that_never_did(
        self, driving: Driving, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # Given a container that was seen unstarted, and a start, long on its way, that the engine then
        # carries out; the program is done in a moment.
        container_id = driving.executor.create(driving.spec("true"))
        unstarted = driving.executor.inspect(container_id)
        other = driving.another()
        other.start(container_id)
        driving.ended(container_id)
        # When it is withdrawn by what was seen
        monkeypatch.setattr(driving.executor, "inspect", lambda _: unstarted)
        # Then the engine's events tell that it ran: nobody may run it a second time.
        assert driving.executor.withdraw(container_id) is False
        assert other.inspect(container_id).state is ContainerState.NOT_FOUND
        other.close()
