"""The driver before a server that misbehaves in ways in which engines, registries and networks do."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from container_manager.core.errors import (
    ConfigurationError,
    ContainerGone,
    EngineFault,
    HostFault,
    HostTimeout,
    HostUnreachable,
    ImageNotFound,
    ImagePullFailed,
    NameTaken,
    RegistryTrouble,
)
from container_manager.core.observation import ContainerState, EventAction
from container_manager.executors.base import HostConfig
from container_manager.executors.docker.executor import DockerExecutor
from tests.unit.docker.stub_engine import VERSION, Answer, StubEngine
from tests.unit.docker.test_streams import logged
from tests.unit.docker.test_translate import SPEC, inspected

Connect = Callable[..., DockerExecutor]
INFO = {"ID": "engine-1", "ServerVersion": "20.10.24", "NCPU": 2, "MemTotal": 5}


def says(document: object, status: int = 200) -> Callable[[Answer], None]:
    return lambda answer: answer.json(status, document)


class TestAddress:
    @pytest.mark.parametrize(
        "address",
        [
            "http://engine:2375",
            "https://engine:2376",
            "ssh://root@engine",
            "npipe:////./pipe/docker_engine",
            "unix://",
            "unix://relative/path",
            "tcp://",
            "tcp://engine",
            "tcp://engine:port",
            "engine:2375",
            "",
        ],
    )
    def test_what_cannot_work_is_refused_before_any_call(self, address: str) -> None:
        with pytest.raises(ConfigurationError, match="connection_string"):
            DockerExecutor(HostConfig(name="x", connection_string=address))

    @pytest.mark.parametrize("field", ["tls_ca_cert", "tls_client_cert", "tls_client_key"])
    def test_a_missing_tls_file_is_named(self, field: str) -> None:
        config: dict[str, Any] = {field: "/nowhere/file.pem"}
        with pytest.raises(ConfigurationError, match=f"{field}.*/nowhere/file.pem"):
            DockerExecutor(
                HostConfig(name="x", connection_string="tcp://engine:2376", tls_enabled=True, **config)
            )

    def test_a_client_certificate_needs_its_key(self, tmp_path: Path) -> None:
        certificate = tmp_path / "cert.pem"
        certificate.touch()
        with pytest.raises(ConfigurationError, match="tls_client_key"):
            DockerExecutor(
                HostConfig(
                    name="x",
                    connection_string="tcp://engine:2376",
                    tls_enabled=True,
                    tls_client_cert=str(certificate),
                )
            )

    def test_tls_to_a_plain_port_says_so(self, connect: Connect) -> None:
        with pytest.raises(HostUnreachable, match="speaks no TLS"):
            connect(tls_enabled=True).health()

    def test_the_workers_proxies_are_not_the_engines(
        self, monkeypatch: pytest.MonkeyPatch, stub: StubEngine, connect: Connect
    ) -> None:
        for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "all_proxy"):
            monkeypatch.setenv(name, "http://127.0.0.1:1")
        monkeypatch.delenv("no_proxy", raising=False)
        stub.routes["GET /info"] = says(INFO)
        assert connect().health().engine_id == "engine-1"

    def test_a_socket_that_is_not_there(self, tmp_path: Path) -> None:
        executor = DockerExecutor(HostConfig(name="x", connection_string=f"unix://{tmp_path}/docker.sock"))
        with pytest.raises(HostUnreachable, match=r"no socket.*docker\.sock.*running"):
            executor.health()


class TestVersion:
    @pytest.mark.parametrize(
        ("theirs", "least", "chosen"), [("1.41", "1.12", "v1.41"), ("1.99", "1.44", "v1.51")]
    )
    def test_the_newest_that_both_know(
        self, stub: StubEngine, executor: DockerExecutor, theirs: str, least: str, chosen: str
    ) -> None:
        stub.routes["GET /version"] = says({"ApiVersion": theirs, "MinAPIVersion": least})
        stub.routes["GET /info"] = says(INFO)
        assert executor.health().api_version == chosen.removeprefix("v")
        assert stub.asked == ["GET /version", f"GET /{chosen}/info"]

    @pytest.mark.parametrize(
        ("theirs", "least", "remedy"),
        [("1.40", "1.12", "20.10 or newer"), ("2.10", "1.60", "upgrade this package"), ("", "", "20.10")],
    )
    def test_engines_that_are_too_old_or_too_new(
        self, stub: StubEngine, executor: DockerExecutor, theirs: str, least: str, remedy: str
    ) -> None:
        stub.routes["GET /version"] = says({"ApiVersion": theirs, "MinAPIVersion": least})
        with pytest.raises(HostFault, match=remedy):
            executor.inspect("x")

    def test_it_is_asked_for_once(self, stub: StubEngine, executor: DockerExecutor) -> None:
        executor.inspect("x")
        executor.inspect("x")
        assert stub.asked.count("GET /version") == 1

    def test_health_asks_again_as_the_engine_may_be_another_one(
        self, stub: StubEngine, executor: DockerExecutor
    ) -> None:
        stub.routes["GET /info"] = says(INFO)
        executor.health()
        stub.routes["GET /version"] = says({**VERSION, "ApiVersion": "1.45"})
        assert executor.health().api_version == "1.45"


class TestAnswers:
    def test_a_web_server_is_no_engine(self, stub: StubEngine, executor: DockerExecutor) -> None:
        stub.routes["GET /version"] = lambda answer: answer.raw(200, b"<html>Welcome</html>")
        with pytest.raises(EngineFault, match="no Docker Engine"):
            executor.health()

    def test_a_redirect_is_not_followed(self, stub: StubEngine, executor: DockerExecutor) -> None:
        stub.routes["GET /containers/x/json"] = lambda answer: answer.raw(301, b"", location="/v1.41/info")
        stub.routes["GET /info"] = says(INFO)
        with pytest.raises(EngineFault, match="301"):
            executor.inspect("x")

    def test_a_call_that_hangs_is_a_timeout(self, stub: StubEngine, connect: Connect) -> None:
        stub.routes["GET /containers/x/json"] = lambda answer: stub.released.wait(20)
        with pytest.raises(HostTimeout):
            connect(timeout_seconds=0.2).inspect("x")

    @pytest.mark.parametrize("follow", [False, True])
    def test_a_log_whose_head_does_not_come_is_a_timeout(
        self, stub: StubEngine, connect: Connect, follow: bool
    ) -> None:
        stub.routes["GET /containers/x/logs"] = lambda answer: stub.released.wait(20)
        with pytest.raises(HostTimeout):
            list(connect(timeout_seconds=0.2).logs("x", follow=follow))

    def test_an_id_is_never_part_of_a_path(self, stub: StubEngine, executor: DockerExecutor) -> None:
        for text in ("", "../images/app", "a/b", "x?force=1", "x#y", "x y"):
            assert executor.inspect(text).state is ContainerState.NOT_FOUND
            assert executor.remove(text) is False
        assert all(path.count("/") == 4 or "version" in path for path in stub.asked if "GET" in path)

    def test_a_full_disk_says_so(self, stub: StubEngine, executor: DockerExecutor) -> None:
        stub.routes["POST /containers/create"] = says({"message": "no space left on device"}, 500)
        with pytest.raises(EngineFault, match="disk is full"):
            executor.create(SPEC)


class TestCreate:
    def holder(self, stub: StubEngine, *, labels: dict[str, str], status: str) -> None:
        document = inspected(Status=status)
        document["Config"]["Labels"] = labels
        stub.routes["POST /containers/create"] = says({"message": "Conflict. The name is in use"}, 409)
        stub.routes[f"GET /containers/{SPEC.name}/json"] = says(document)

    def test_ours_is_adopted(self, stub: StubEngine, executor: DockerExecutor) -> None:
        self.holder(stub, labels=SPEC.labels(), status="created")
        assert executor.create(SPEC) == "f" * 64

    def test_one_that_is_just_being_removed_is_tried_again_later(
        self, stub: StubEngine, executor: DockerExecutor
    ) -> None:
        self.holder(stub, labels=SPEC.labels(), status="removing")
        with pytest.raises(HostFault, match="removed"):
            executor.create(SPEC)

    def test_a_foreign_one_is_left_alone(self, stub: StubEngine, executor: DockerExecutor) -> None:
        self.holder(stub, labels={**SPEC.labels(), "io.django-container-jobs.spec": "other"}, status="exited")
        with pytest.raises(NameTaken, match=SPEC.name):
            executor.create(SPEC)
        assert not any(line.startswith("DELETE") for line in stub.asked)

    def test_an_image_that_went_since_it_was_seen_is_looked_for_again(
        self, stub: StubEngine, executor: DockerExecutor
    ) -> None:
        there = {"Id": "sha256:" + "a" * 64, "RepoDigests": []}
        image = f"GET /images/{SPEC.image}/json"
        stub.routes[image] = says(there)
        executor.pull(SPEC.image)
        stub.routes["POST /containers/create"] = says({"message": "No such image: app"}, 404)
        with pytest.raises(ImageNotFound):
            executor.create(SPEC)
        executor.pull(SPEC.image)
        assert stub.asked.count(image.replace("GET ", "GET /v1.41")) == 2


class TestStart:
    def test_a_container_just_made_is_started_without_a_look(
        self, stub: StubEngine, executor: DockerExecutor
    ) -> None:
        stub.routes["POST /containers/create"] = says({"Id": "c" * 64}, 201)
        stub.routes[f"POST /containers/{'c' * 64}/start"] = lambda answer: answer.raw(204, b"")
        executor.start(executor.create(SPEC))
        assert [line.split("/")[-1] for line in stub.asked] == ["version", "create", "start"]

    def test_a_second_start_looks_first(self, stub: StubEngine, executor: DockerExecutor) -> None:
        """Whatever became of the first: the engine would run an ended container again."""
        stub.routes["POST /containers/create"] = says({"Id": "c" * 64}, 201)
        path = f"/containers/{'c' * 64}"
        stub.routes[f"POST {path}/start"] = says({"message": "boom"}, 500)
        stub.routes[f"GET {path}/json"] = says(inspected(Status="created"))
        container_id = executor.create(SPEC)
        with pytest.raises(EngineFault):
            executor.start(container_id)
        ended = inspected(Status="exited", StartedAt="2026-11-24T02:48:24Z")
        stub.routes[f"GET {path}/json"] = says(ended)
        executor.start(container_id)
        assert [line.split("/")[-1] for line in stub.asked].count("start") == 1


class TestStreams:
    def test_a_follow_that_breaks_is_a_fault(self, stub: StubEngine, executor: DockerExecutor) -> None:
        def route(answer: Answer) -> None:
            answer.begin()
            answer.chunk(logged(1, b"one\n"))
            answer.break_off()

        stub.routes["GET /containers/x/logs"] = route
        frames = executor.logs("x", follow=True)
        assert next(frames).payload == b"one\n"
        with pytest.raises(HostUnreachable):
            next(frames)

    @pytest.mark.parametrize("follow", [False, True])
    def test_closing_ends_a_follow_but_is_not_the_end_of_a_log(
        self, stub: StubEngine, executor: DockerExecutor, follow: bool
    ) -> None:
        def route(answer: Answer) -> None:
            answer.begin()
            answer.chunk(logged(1, b"one\n"))
            stub.released.wait(20)

        stub.routes["GET /containers/x/logs"] = route
        frames = executor.logs("x", follow=follow)
        assert next(frames).payload == b"one\n"
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(list, frames)
            executor.close()
            if follow:
                assert waiting.result(5) == []
            else:
                with pytest.raises(HostUnreachable, match="this side"):
                    waiting.result(5)

    def test_a_stream_opened_after_the_end_ends(self, stub: StubEngine, executor: DockerExecutor) -> None:
        def route(answer: Answer) -> None:
            answer.begin()
            stub.released.wait(20)

        stub.routes["GET /containers/x/logs"] = route
        stub.routes["GET /events"] = route
        executor.close()
        assert list(executor.logs("x", follow=True)) == []
        watched = list(executor.watch("site", threading.Event()))
        assert [event.action for event in watched] == [EventAction.CONNECTED]

    def test_an_engine_that_stops_ends_a_watch_with_a_fault(
        self, stub: StubEngine, executor: DockerExecutor
    ) -> None:
        def route(answer: Answer) -> None:
            answer.begin()
            answer.chunk(b"")

        stub.routes["GET /events"] = route
        events = executor.watch("site", threading.Event())
        assert next(events).action is EventAction.CONNECTED
        with pytest.raises(HostUnreachable, match="ended its events"):
            next(events)

    def test_the_log_of_a_container_that_is_being_removed(
        self, stub: StubEngine, executor: DockerExecutor
    ) -> None:
        message = "can not get logs from container which is dead or marked for removal"
        stub.routes["GET /containers/x/logs"] = says({"message": message}, 409)
        with pytest.raises(ContainerGone):
            list(executor.logs("x"))


class TestPull:
    IMAGE = "registry.example.com:5000/team/app:2"
    LOOK = f"GET /images/{IMAGE}/json"
    THERE = {
        "Id": "sha256:" + "a" * 64,
        "RepoDigests": ["<none>@<none>", "registry.example.com:5000/team/app@sha256:" + "b" * 64],
    }

    def registry(self, stub: StubEngine, *lines: dict[str, Any]) -> list[Answer]:
        """The image is there once it was pulled; `lines` is what the pull says."""
        pulls: list[Answer] = []

        def pull(answer: Answer) -> None:
            pulls.append(answer)
            answer.begin()
            for line in lines:
                answer.chunk(json.dumps(line).encode() + b"\r\n")
            if not any("error" in line for line in lines):
                stub.routes[self.LOOK] = says(self.THERE)
            answer.chunk(b"")

        stub.routes["POST /images/create"] = pull
        return pulls

    def test_a_missing_image_is_pulled_and_its_digest_known(
        self, stub: StubEngine, executor: DockerExecutor
    ) -> None:
        bar = {"id": "1f2e", "status": "Downloading"}
        pulls = self.registry(
            stub,
            {"status": "Pulling from team/app", "id": "2"},
            {**bar, "progressDetail": {"current": 1}},
            {**bar, "progressDetail": {"current": 2}},
            {"id": "1f2e", "status": "Pull complete", "progressDetail": {}},
            {"status": "Digest: sha256:bb"},
        )
        heard: list[str] = []
        facts = executor.pull(self.IMAGE, progress=heard.append)
        assert facts.pulled
        assert facts.digest == self.THERE["RepoDigests"][1]
        assert heard == [
            "2: Pulling from team/app",
            "1f2e: Downloading",
            "1f2e: Pull complete",
            "Digest: sha256:bb",
        ]
        assert pulls[0].query == {"fromImage": "registry.example.com:5000/team/app", "tag": "2"}
        assert not executor.pull(self.IMAGE).pulled

    def test_an_image_without_a_tag_is_not_all_its_tags(
        self, stub: StubEngine, executor: DockerExecutor
    ) -> None:
        pulls = self.registry(stub, {"error": "manifest unknown"})
        with pytest.raises(ImageNotFound):
            executor.pull("alpine")
        assert pulls[0].query == {"fromImage": "docker.io/library/alpine", "tag": "latest"}

    @pytest.mark.parametrize(
        ("server", "image", "sent"),
        [
            ("registry.example.com:5000", IMAGE, True),
            ("https://registry.example.com:5000/v2/", IMAGE, True),
            ("registry.example.com", IMAGE, False),
            ("registry.example.com:5000", "alpine:3", False),
            ("https://index.docker.io/v1/", "alpine:3", True),
            ("", "alpine:3", True),
            ("", IMAGE, False),
        ],
    )
    def test_credentials_go_to_their_own_registry_only(
        self, stub: StubEngine, connect: Connect, server: str, image: str, sent: bool
    ) -> None:
        pulls = self.registry(stub, {"error": "manifest unknown"})
        auth = {"username": "u", "password": "p", "serveraddress": server, "surprise": "x"}
        with pytest.raises(ImageNotFound):
            connect(options={"registry_auth": auth}).pull(image)
        header = pulls[0].headers.get("X-Registry-Auth")
        assert (header is not None) is sent
        if header is not None:
            known = json.loads(base64.urlsafe_b64decode(header))
            assert (known["username"], known["password"]) == ("u", "p")
            assert "surprise" not in known

    def test_many_waiters_share_one_pull(self, stub: StubEngine, executor: DockerExecutor) -> None:
        pulls = self.registry(stub, {"status": "Digest: sha256:bb"})
        finish, route = threading.Event(), stub.routes["POST /images/create"]

        def held(answer: Answer) -> None:
            assert finish.wait(20)
            route(answer)

        stub.routes["POST /images/create"] = held
        waiting = threading.Semaphore(0)
        with ThreadPoolExecutor(6) as pool:
            ends = [
                pool.submit(executor.pull, self.IMAGE, progress=lambda _: waiting.release()) for _ in range(6)
            ]
            for _ in range(5):  # all but the one that pulls say that they wait
                assert waiting.acquire(timeout=20)
            finish.set()
            facts = [end.result(20) for end in ends]
        assert len(pulls) == 1
        assert [fact.pulled for fact in facts].count(True) == 1
        assert {fact.image_id for fact in facts} == {"sha256:" + "a" * 64}

    def test_a_failed_pull_is_tried_again_by_the_next(
        self, stub: StubEngine, executor: DockerExecutor
    ) -> None:
        self.registry(stub, {"status": "Pulling"}, {"error": "denied: not yet"})
        with pytest.raises(ImagePullFailed, match="refused us"):
            executor.pull(self.IMAGE)
        self.registry(stub, {"status": "Digest: sha256:bb"})
        assert executor.pull(self.IMAGE).pulled

    @pytest.mark.parametrize("said", ["toomanyrequests: slow down", "received unexpected HTTP status: 502"])
    def test_a_registry_in_trouble_is_asked_again(
        self, stub: StubEngine, executor: DockerExecutor, monkeypatch: pytest.MonkeyPatch, said: str
    ) -> None:
        monkeypatch.setattr("container_manager.executors.docker.images.RETRY_SECONDS", (0.01, 0.01))
        refused = self.registry(stub, {"error": said})
        refusing, pulls = stub.routes["POST /images/create"], self.registry(stub, {"status": "Pulling"})
        accepting = stub.routes["POST /images/create"]
        stub.routes["POST /images/create"] = lambda answer: (refusing if len(refused) < 2 else accepting)(
            answer
        )
        heard: list[str] = []
        assert executor.pull(self.IMAGE, progress=heard.append).pulled
        assert (len(refused), len(pulls)) == (2, 1)
        assert [said in line and "again in" in line for line in heard].count(True) == 2

    def test_a_registry_that_stays_in_trouble_is_given_up(
        self, stub: StubEngine, executor: DockerExecutor, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("container_manager.executors.docker.images.RETRY_SECONDS", (0.01, 0.01))
        pulls = self.registry(stub, {"error": "received unexpected HTTP status: 500"})
        with pytest.raises(RegistryTrouble, match="in trouble"):
            executor.pull(self.IMAGE)
        assert len(pulls) == 3

    @pytest.mark.parametrize("said", ["unauthorized: authentication required", "manifest unknown"])
    def test_a_refusal_is_final(self, stub: StubEngine, executor: DockerExecutor, said: str) -> None:
        pulls = self.registry(stub, {"error": said})
        with pytest.raises((ImageNotFound, ImagePullFailed)):
            executor.pull(self.IMAGE)
        assert len(pulls) == 1

    def test_closing_ends_the_wait_for_a_registry_in_trouble(
        self, stub: StubEngine, executor: DockerExecutor, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("container_manager.executors.docker.images.RETRY_SECONDS", (3600.0,))
        pulls = self.registry(stub, {"error": "toomanyrequests: slow down"})
        waits = threading.Event()

        def heard(line: str) -> None:
            if "again in" in line:
                waits.set()

        with ThreadPoolExecutor(1) as pool:
            end = pool.submit(executor.pull, self.IMAGE, progress=heard)
            assert waits.wait(20)
            executor.close()
            with pytest.raises(ImagePullFailed, match="limits"):
                end.result(20)
        assert len(pulls) == 1

    def test_a_silent_registry_is_given_up(self, stub: StubEngine, connect: Connect) -> None:
        executor = connect(options={"pull_silence_seconds": 0.2})

        def route(answer: Answer) -> None:
            answer.begin()
            answer.chunk(b'{"status": "Pulling"}\n')
            stub.released.wait(20)

        stub.routes["POST /images/create"] = route
        with pytest.raises(ImagePullFailed, match="no progress"):
            executor.pull(self.IMAGE)

    def test_where_pulling_is_off_nothing_is_pulled(self, stub: StubEngine, connect: Connect) -> None:
        with pytest.raises(ImageNotFound, match="auto_pull_images"):
            connect(auto_pull_images=False).pull(self.IMAGE)
        assert not any("create" in line for line in stub.asked)

    def test_a_name_that_is_the_beginning_of_an_id_is_no_image(
        self, stub: StubEngine, connect: Connect
    ) -> None:
        stub.routes["GET /images/aaaa/json"] = says(self.THERE)
        with pytest.raises(ImageNotFound):
            connect(auto_pull_images=False).pull("aaaa")

    @pytest.mark.parametrize("image", ["", "Upper", "a" * 64, "https://x/y"])
    def test_what_is_no_image_name_is_not_found(self, executor: DockerExecutor, image: str) -> None:
        with pytest.raises(ImageNotFound):
            executor.pull(image)
