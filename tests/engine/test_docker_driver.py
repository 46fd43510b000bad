"""The Docker driver when things go wrong: half-made containers, cut streams, engines that die, odd names.

What every executor promises is in tests/contract, what a container may do in test_docker_isolation.py.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import docker
import pytest

from container_manager.core.errors import (
    BadUser,
    ContainerGone,
    CreateFailed,
    EngineFault,
    HostFault,
    HostUnreachable,
    ImageNotFound,
    NetworkNotFound,
    StartFailed,
)
from container_manager.core.observation import (
    STDERR,
    STDOUT,
    ContainerState,
    EventAction,
    LogCursor,
    Observation,
)
from container_manager.core.spec import ContainerSpec, NetworkAttachment
from container_manager.executors.base import HostConfig
from container_manager.executors.docker.executor import DockerExecutor
from tests.engines import BASE_IMAGE
from tools.engine import Engine

pytestmark = [pytest.mark.engine, pytest.mark.timeout(120)]

MEBIBYTE = 1 << 20
READY = "import signal; print('ready', flush=True); signal.pause()"


class Bench:
    """An engine, an executor for it, and specs whose containers are removed in the end."""

    def __init__(self, url: str, **config: Any) -> None:
        self.url = url
        self.installation = f"driver-{uuid.uuid4().hex[:12]}"
        self.client = docker.DockerClient(base_url=url, version="1.41")
        self._config = {"auto_pull_images": False, "timeout_seconds": 60.0, **config}
        self._opened: list[DockerExecutor] = []
        self.executor = self.open()

    def open(self) -> DockerExecutor:
        config = HostConfig(name="bench", connection_string=self.url, **self._config)
        self._opened.append(DockerExecutor(config))
        return self._opened[-1]

    def spec(self, *argv: str, **changes: Any) -> ContainerSpec:
        spec = ContainerSpec(
            name=f"driver-{uuid.uuid4().hex[:16]}",
            installation=self.installation,
            job_id=str(uuid.uuid4()),
            attempt=1,
            image=BASE_IMAGE,
            argv=argv,
            environment=(),
            working_directory="/",
            user="10001:10001",
            memory_bytes=64 * MEBIBYTE,
            cpus=1.0,
            pids_limit=64,
            read_only_root=True,
            tmpfs=(("/tmp", "rw,noexec,nosuid,nodev,size=16m"),),
            networks=(),
            cap_drop=("ALL",),
            security_opt=("no-new-privileges",),
        )
        return replace(spec, **changes)

    def ended(self, spec: ContainerSpec) -> tuple[Observation, bytes, bytes]:
        """Run to the end: what inspect says, stdout, stderr."""
        container_id = self.executor.create(spec)
        self.executor.start(container_id)
        output = {STDOUT: b"", STDERR: b""}
        for frame in self.executor.logs(container_id, follow=True):
            output[frame.stream] += frame.payload
        return self.wait(container_id), output[STDOUT], output[STDERR]

    def wait(self, container_id: str) -> Observation:
        self.client.api.wait(container_id, timeout=60)
        return self.executor.inspect(container_id)

    def ready(self, spec: ContainerSpec) -> str:
        """A container that has said that it runs."""
        container_id = self.executor.create(spec)
        self.executor.start(container_id)
        frames = self.executor.logs(container_id, follow=True)
        assert next(frames).payload == b"ready\n"
        frames.close()  # type: ignore[attr-defined]
        return container_id

    def close(self) -> None:
        last = self.open()
        for container in last.list_owned(self.installation):
            last.remove(container.container_id)
        for executor in self._opened:
            executor.close()
        self.client.close()


@pytest.fixture
def bench(docker_url: str) -> Iterator[Bench]:
    made = Bench(docker_url)
    yield made
    made.close()


@pytest.fixture
def networks(bench: Bench) -> Iterator[list[str]]:
    """Two networks of the test's own."""
    made = [bench.client.networks.create(f"driver-{uuid.uuid4().hex[:12]}") for _ in range(2)]
    yield [str(network.name) for network in made]
    bench.close()  # a network goes only once its containers are gone
    for network in made:
        network.remove()


def attached(*pairs: tuple[str, tuple[str, ...]]) -> tuple[NetworkAttachment, ...]:
    return tuple(NetworkAttachment(network_name=name, aliases=aliases) for name, aliases in pairs)


class TestRefusals:
    def test_a_limit_that_is_too_low_to_start(self, bench: Bench) -> None:
        """The kernel kills the runtime itself, or the program at once: never a program that was not found."""
        container_id = bench.executor.create(bench.spec("true", memory_bytes=6 * MEBIBYTE))
        with contextlib.suppress(StartFailed):
            bench.executor.start(container_id)
            bench.wait(container_id)
        seen = bench.executor.inspect(container_id)
        assert seen.state is ContainerState.EXITED or seen.error
        assert seen.exit_code not in {126, 127}

    @pytest.mark.parametrize(
        ("changes", "words"),
        [({"cpus": 4096.0}, "CPUs"), ({"memory_bytes": MEBIBYTE}, "memory")],
    )
    def test_limits_that_the_engine_refuses(self, bench: Bench, changes: dict[str, Any], words: str) -> None:
        spec = bench.spec("true", **changes)
        with pytest.raises(CreateFailed) as caught:
            bench.executor.create(spec)
        assert words in caught.value.detail
        assert bench.executor.inspect(spec.name).state is ContainerState.NOT_FOUND

    @pytest.mark.parametrize("user", ["nosuchuser", "10001:nosuchgroup"])
    def test_users_that_the_image_does_not_know(self, bench: Bench, user: str) -> None:
        container_id = bench.executor.create(bench.spec("true", user=user))
        with pytest.raises(BadUser, match=user):
            bench.executor.start(container_id)
        assert bench.executor.inspect(container_id).exit_code == 128

    def test_a_start_that_comes_late_does_not_run_it_again(self, bench: Bench) -> None:
        """A worker that slept over its lease: another one adopted the container and ran it to its end."""
        spec = bench.spec("sh", "-c", "echo once")
        sleeper, heir = bench.executor, bench.open()
        container_id = sleeper.create(spec)
        assert heir.create(spec) == container_id
        heir.start(container_id)
        first = bench.wait(container_id)
        sleeper._made[container_id] = time.monotonic() - 3600  # it thinks that it made it an hour ago
        sleeper.start(container_id)
        assert sleeper.inspect(container_id) == first
        assert [frame.payload for frame in sleeper.logs(container_id)] == [b"once\n"]

    def test_the_id_of_an_image_is_no_name_for_it(self, bench: Bench) -> None:
        image_id = str(bench.client.images.get(BASE_IMAGE).id).removeprefix("sha256:")
        for reference in (image_id, image_id[:12]):
            with pytest.raises(ImageNotFound):
                bench.executor.pull(reference)

    def test_a_container_that_goes_while_it_is_asked_for(self, bench: Bench) -> None:
        container_id = bench.ready(bench.spec("python3", "-c", READY))
        bench.client.api.remove_container(container_id, force=True)
        with pytest.raises(ContainerGone):
            bench.executor.start(container_id)
        bench.executor.stop(container_id)
        assert bench.executor.remove(container_id) is False


class TestSeveralNetworks:
    SERVER = """
import http.server
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(b"found")
server = http.server.HTTPServer(("", 8000), Handler)
print("ready", flush=True)
server.serve_forever()
"""

    def test_a_container_is_found_on_each_of_its_networks(self, bench: Bench, networks: list[str]) -> None:
        front, back = networks
        both = attached((front, ("api",)), (back, ("service",)))
        bench.ready(bench.spec("python3", "-c", self.SERVER, networks=both))
        for network, alias in ((front, "api"), (back, "service")):
            program = (
                f"import urllib.request as r; print(r.urlopen('http://{alias}:8000', timeout=10).read())"
            )
            spec = bench.spec("python3", "-c", program, networks=attached((network, ())))
            seen, output, errors = bench.ended(spec)
            assert (output, seen.exit_code) == (b"b'found'\n", 0), errors

    @pytest.mark.parametrize("place", [0, 1])
    def test_a_missing_one_leaves_nothing_behind(self, bench: Bench, networks: list[str], place: int) -> None:
        networks[place] = "driver-missing-network"
        spec = bench.spec("true", networks=attached(*((name, ()) for name in networks)))
        with pytest.raises(NetworkNotFound, match=r"driver-missing-network.*docker network create"):
            bench.executor.create(spec)
        assert bench.executor.inspect(spec.name).state is ContainerState.NOT_FOUND

    def test_the_beginning_of_a_networks_id_is_no_name(self, bench: Bench, networks: list[str]) -> None:
        network_id = str(bench.client.networks.get(networks[0]).id)
        with pytest.raises(NetworkNotFound):
            bench.executor.create(bench.spec("true", networks=attached((network_id[:20], ()))))

    def test_what_a_crash_left_half_joined_is_joined_on_adoption(
        self, bench: Bench, networks: list[str]
    ) -> None:
        front, back = networks
        spec = bench.spec("true", networks=attached((front, ()), (back, ("late",))))
        container_id = bench.executor.create(spec)
        bench.client.api.disconnect_container_from_network(container_id, back)
        assert bench.open().create(spec) == container_id
        joined = bench.client.api.inspect_container(container_id)["NetworkSettings"]["Networks"]
        assert set(joined) == {front, back}
        assert "late" in joined[back]["Aliases"]


class TestLogs:
    def test_a_character_on_the_edge_of_a_piece(self, bench: Bench) -> None:
        program = "print('x' + 'é' * 500_001); print('after')"
        _, output, _ = bench.ended(bench.spec("python3", "-c", program, environment=(("LANG", "C.UTF-8"),)))
        assert output == ("x" + "é" * 500_001 + "\nafter\n").encode()

    def test_a_reader_that_is_cut_off_again_and_again_misses_nothing(self, bench: Bench) -> None:
        program = "for i in range(300): print(i, 'x' * (i * 100), flush=True)"
        container_id = bench.executor.create(bench.spec("python3", "-c", program))
        bench.executor.start(container_id)
        wanted = b"".join(b"%d %s\n" % (i, b"x" * (i * 100)) for i in range(300))
        got, cursor, at_once = b"", LogCursor(0, 0), 40
        read = at_once
        while read == at_once:
            frames, read = bench.executor.logs(container_id, since=cursor, follow=True), 0
            for read, frame in enumerate(frames, 1):
                got += frame.payload
                same = cursor.timestamp_ns == frame.timestamp_ns
                cursor = LogCursor(frame.timestamp_ns, cursor.frames + 1 if same else 1)
                if read == at_once:
                    break
            frames.close()  # type: ignore[attr-defined]
        assert got == wanted

    def test_a_log_that_the_engine_cannot_read_is_a_fault_and_not_an_end(
        self, engine_of_my_own: Callable[..., Engine]
    ) -> None:
        bench = Bench(engine_of_my_own().url)
        spec = bench.spec("sh", "-c", "for i in $(seq 200); do echo line $i; done")
        container_id = bench.executor.create(spec)
        bench.executor.start(container_id)
        bench.wait(container_id)
        log = Path(
            bench.client.info()["DockerRootDir"], "containers", container_id, "local-logs/container.log"
        )
        written = log.read_bytes()
        log.write_bytes(written[:1000] + b"\xff" * 200 + written[1200:])
        with pytest.raises(EngineFault):
            list(bench.executor.logs(container_id))
        bench.close()

    def test_closing_does_not_wait_for_who_does_not_read(self, bench: Bench) -> None:
        container_id = bench.ready(bench.spec("python3", "-c", READY))
        other = bench.open()
        follow = other.logs(container_id, follow=True)
        assert next(follow).payload == b"ready\n"
        began = time.monotonic()
        other.close()
        assert list(follow) == []
        assert time.monotonic() - began < 2


class TestUsage:
    def test_files_in_a_tmpfs_count(self, bench: Bench) -> None:
        program = f"open('/tmp/x', 'wb').write(b'x' * {12 * MEBIBYTE})\n{READY}"
        container_id = bench.ready(bench.spec("python3", "-c", program))
        sample = bench.executor.usage(container_id)
        assert sample is not None
        assert sample.memory_bytes is not None
        assert sample.memory_bytes > 12 * MEBIBYTE


class TestConnection:
    def test_over_plain_tcp_a_follow_can_be_cut(self, tcp_engine_url: str) -> None:
        bench = Bench(tcp_engine_url)
        container_id = bench.ready(bench.spec("python3", "-c", READY))
        other = bench.open()
        follow = other.logs(container_id, follow=True)
        assert next(follow).payload == b"ready\n"
        with ThreadPoolExecutor(1) as pool:
            rest = pool.submit(list, follow)
            other.close()
            assert rest.result(5) == []
        bench.close()

    def test_an_engine_that_was_killed_and_came_back(self, engine_of_my_own: Callable[..., Engine]) -> None:
        """Streams break with a fault; calls work again without a new executor, whatever lies in the pool."""
        mine = engine_of_my_own()
        bench = Bench(mine.url)
        container_id = bench.ready(bench.spec("python3", "-c", READY))
        follow = bench.executor.logs(container_id, follow=True)
        assert next(follow).payload == b"ready\n"
        events = bench.executor.watch(bench.installation, threading.Event())
        assert next(events).action is EventAction.CONNECTED
        daemon = mine.daemon
        assert daemon is not None
        daemon.signal(signal.SIGKILL)
        assert daemon.wait(10)
        for stream in (follow, events):
            with pytest.raises(HostUnreachable):
                list(stream)
        with pytest.raises(HostFault):
            bench.executor.inspect(container_id)
        mine.resume()
        assert bench.executor.health().engine_id
        # Without live-restore the daemon stops what survived it: an end by a signal that we did not send.
        seen = bench.wait(container_id)
        assert seen.state is ContainerState.EXITED
        assert seen.exit_code in {137, 143, 255}
        bench.close()

    def test_docker_pys_own_client_speaks_to_the_same_engine(self, bench: Bench) -> None:
        client = bench.executor.docker_client()
        assert client.info()["ID"] == bench.executor.health().engine_id
        assert client.api.trust_env is False
        client.close()

    def test_a_job_costs_five_requests(self, bench: Bench) -> None:
        """Create, start, inspect, logs, remove: what a loop by hand would need too."""
        asked: list[str] = []
        for client in (bench.executor._connection._calls, bench.executor._connection._long):
            client.hooks["response"].append(lambda response, **_: asked.append(response.request.method))
        bench.executor.inspect("driver-warm-up")
        asked.clear()
        container_id = bench.executor.create(bench.spec("echo", "x"))
        bench.executor.start(container_id)
        bench.client.api.wait(container_id)
        bench.executor.inspect(container_id)
        assert len(list(bench.executor.logs(container_id))) == 1
        bench.executor.remove(container_id)
        assert asked == ["POST", "POST", "GET", "GET", "DELETE"]
