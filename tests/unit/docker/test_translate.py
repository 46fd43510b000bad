"""Specs into bodies, engine JSON into facts: no engine."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from container_manager.core.observation import ContainerState, EventAction
from container_manager.core.spec import ContainerSpec, NetworkAttachment
from container_manager.executors.docker import translate

SPEC = ContainerSpec(
    name="job-1-1",
    installation="site",
    job_id="1",
    attempt=1,
    image="registry.example.com/app:2",
    argv=("python", "manage.py", "check"),
    environment=(("A", "1"), ("B", "x=y")),
    working_directory="/app",
    user="10001:10001",
    memory_bytes=256 << 20,
    cpus=0.29,
    pids_limit=100,
    read_only_root=True,
    tmpfs=(("/tmp", "rw,size=64m"),),
    networks=(),
    cap_drop=("ALL",),
    security_opt=("no-new-privileges",),
    log_options=(("max-size", "20m"),),
)
STARTED = "2026-11-24T02:48:24.344982361Z"
ENDED = "2026-11-24T03:48:25+01:00"
NEVER = "0001-01-01T00:00:00Z"


class TestPayload:
    def test_every_limit_of_the_spec_is_in_the_body(self) -> None:
        body = translate.create_payload(SPEC)
        host = body["HostConfig"]
        assert (host["Memory"], host["MemorySwap"]) == (256 << 20, 256 << 20)
        assert host["NanoCpus"] == 290_000_000
        assert host["PidsLimit"] == 100
        assert host["CapDrop"] == ["ALL"]
        assert host["SecurityOpt"] == ["no-new-privileges"]
        assert host["ReadonlyRootfs"] is True
        assert host["Tmpfs"] == {"/tmp": "rw,size=64m"}
        assert host["RestartPolicy"] == {"Name": "no"}
        assert host["AutoRemove"] is False
        assert host["Privileged"] is False
        assert host["LogConfig"] == {"Type": "local", "Config": {"max-size": "20m"}}
        assert body["User"] == "10001:10001"
        assert body["Env"] == ["A=1", "B=x=y"]
        assert body["Cmd"] == ["python", "manage.py", "check"]
        assert body["WorkingDir"] == "/app"
        assert body["Image"] == "registry.example.com/app:2"
        assert body["Labels"] == SPEC.labels()
        assert body["OpenStdin"] is False
        assert body["Tty"] is False

    def test_nothing_that_weakens_the_container_can_be_in_the_body(self) -> None:
        host = translate.create_payload(SPEC)["HostConfig"]
        for key in (
            "Binds",
            "Mounts",
            "Devices",
            "CapAdd",
            "PidMode",
            "IpcMode",
            "UsernsMode",
            "VolumesFrom",
        ):
            assert key not in host

    def test_without_a_command_the_image_has_its_own(self) -> None:
        body = translate.create_payload(replace(SPEC, argv=(), working_directory=""))
        assert "Cmd" not in body
        assert "WorkingDir" not in body

    def test_without_networks_it_is_the_default_bridge(self) -> None:
        body = translate.create_payload(SPEC)
        assert body["HostConfig"]["NetworkMode"] == "bridge"
        assert "NetworkingConfig" not in body

    def test_the_first_network_is_joined_at_creation(self) -> None:
        networks = (
            NetworkAttachment(network_name="front", aliases=("api",)),
            NetworkAttachment(network_name="back"),
        )
        body = translate.create_payload(replace(SPEC, networks=networks))
        assert body["HostConfig"]["NetworkMode"] == "front"
        assert body["NetworkingConfig"] == {"EndpointsConfig": {"front": {"Aliases": ["api"]}}}

    @pytest.mark.parametrize("name", ["bridge", "none"])
    def test_built_in_networks_take_no_endpoint(self, name: str) -> None:
        body = translate.create_payload(replace(SPEC, networks=(NetworkAttachment(network_name=name),)))
        assert body["HostConfig"]["NetworkMode"] == name
        assert "NetworkingConfig" not in body


def inspected(**state: Any) -> dict[str, Any]:
    """As `GET /containers/{id}/json` answers, cut to what matters."""
    return {
        "Id": "f" * 64,
        "Name": "/job-1-1",
        "Created": "2026-11-24T02:48:23.1Z",
        "Image": "sha256:" + "a" * 64,
        "Config": {"Labels": {"x": "y"}},
        "State": {
            "ExitCode": 0,
            "OOMKilled": False,
            "Error": "",
            "StartedAt": NEVER,
            "FinishedAt": NEVER,
            **state,
        },
    }


class TestObservation:
    def test_a_program_faster_than_the_answer_to_its_start_did_not_end_before_it(self) -> None:
        late, early = "2026-11-24T03:22:31.901855703Z", "2026-11-24T03:22:31.890654413Z"
        seen = translate.observation(inspected(Status="exited", StartedAt=late, FinishedAt=early))
        assert seen.started_at == seen.finished_at == translate.moment(early)

    @pytest.mark.parametrize(
        ("state", "expected", "code", "oom", "ran"),
        [
            ({"Status": "created"}, ContainerState.CREATED, None, False, False),
            (
                {"Status": "created", "Error": "no such file", "ExitCode": 127},
                ContainerState.CREATED,
                127,
                False,
                False,
            ),
            ({"Status": "running", "StartedAt": STARTED}, ContainerState.RUNNING, None, False, True),
            ({"Status": "paused", "StartedAt": STARTED}, ContainerState.PAUSED, None, False, True),
            (
                {
                    "Status": "exited",
                    "StartedAt": STARTED,
                    "FinishedAt": ENDED,
                    "ExitCode": 137,
                    "OOMKilled": True,
                },
                ContainerState.EXITED,
                137,
                True,
                True,
            ),
            (
                {"Status": "exited", "StartedAt": STARTED, "FinishedAt": ENDED, "OOMKilled": True},
                ContainerState.EXITED,
                0,
                True,
                True,
            ),
            (
                {"Status": "exited", "StartedAt": STARTED, "FinishedAt": ENDED, "ExitCode": 127},
                ContainerState.EXITED,
                127,
                False,
                True,
            ),
            (
                {"Status": "dead", "StartedAt": STARTED, "FinishedAt": ENDED, "ExitCode": 255},
                ContainerState.EXITED,
                255,
                False,
                True,
            ),
            ({"Status": "something new", "StartedAt": STARTED}, ContainerState.UNKNOWN, None, False, True),
        ],
    )
    def test_states(
        self, state: dict[str, Any], expected: ContainerState, code: int | None, oom: bool, ran: bool
    ) -> None:
        seen = translate.observation(inspected(**state))
        assert (seen.state, seen.exit_code, seen.oom_killed, seen.ever_started) == (expected, code, oom, ran)

    def test_names_labels_and_times(self) -> None:
        seen = translate.observation(inspected(Status="exited", StartedAt=STARTED, FinishedAt=ENDED))
        assert (seen.name, seen.container_id, seen.labels) == ("job-1-1", "f" * 64, {"x": "y"})
        assert seen.created_at == datetime(2026, 11, 24, 2, 48, 23, 100_000, UTC)
        assert seen.started_at == datetime(2026, 11, 24, 2, 48, 24, 344_982, UTC)
        assert seen.finished_at == datetime(2026, 11, 24, 2, 48, 25, tzinfo=UTC)

    def test_a_container_without_labels(self) -> None:
        document = inspected(Status="created")
        document["Config"]["Labels"] = None
        assert translate.observation(document).labels == {}


class TestMoment:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("2026-11-24T02:48:24Z", datetime(2026, 11, 24, 2, 48, 24, tzinfo=UTC)),
            ("2026-11-24T02:48:24.5Z", datetime(2026, 11, 24, 2, 48, 24, 500_000, UTC)),
            ("2026-11-24T02:48:24.123456789Z", datetime(2026, 11, 24, 2, 48, 24, 123_456, UTC)),
            ("2026-11-24T02:48:24.1-05:30", datetime(2026, 11, 24, 8, 18, 24, 100_000, UTC)),
            (NEVER, None),
            ("", None),
            (None, None),
            ("yesterday", None),
        ],
    )
    def test_times(self, text: str | None, expected: datetime | None) -> None:
        found = translate.moment(text)
        assert found == expected
        assert found is None or found.utcoffset() == timedelta(0)


def stats(memory: dict[str, Any], cpu: int = 55_114_285) -> dict[str, Any]:
    return {"read": STARTED, "cpu_stats": {"cpu_usage": {"total_usage": cpu}}, "memory_stats": memory}


class TestUsage:
    def test_on_cgroup_v1_files_in_a_tmpfs_stay_counted(self) -> None:
        """30 MB in a tmpfs: they are in `cache`, and nobody takes them back."""
        memory = {
            "usage": 31_129_600,
            "max_usage": 31_137_792,
            "stats": {
                "cache": 30_130_176,
                "active_file": 1,
                "inactive_file": 1,
                "total_active_file": 36_864,
                "total_inactive_file": 90_112,
            },
        }
        sample = translate.usage(stats(memory))
        assert sample is not None
        assert sample.memory_bytes == 31_129_600 - 36_864 - 90_112
        assert sample.memory_peak_bytes == 31_137_792
        assert sample.cpu_ns == 55_114_285
        assert sample.taken_at == datetime(2026, 11, 24, 2, 48, 24, 344_982, UTC)

    def test_on_cgroup_v2_the_peak_is_unknown(self) -> None:
        memory = {"usage": 9_000_000, "stats": {"active_file": 1_000_000, "inactive_file": 2_000_000}}
        sample = translate.usage(stats(memory))
        assert sample is not None
        assert sample.memory_bytes == 6_000_000
        assert sample.memory_peak_bytes is None

    @pytest.mark.parametrize(
        "answer",
        [
            None,
            {},
            {"read": NEVER, "cpu_stats": {"cpu_usage": {"total_usage": 0}}, "memory_stats": {}},
            {"read": STARTED, "cpu_stats": {"cpu_usage": {"total_usage": 0}}, "memory_stats": {}},
        ],
    )
    def test_a_container_that_does_not_run_has_none(self, answer: dict[str, Any] | None) -> None:
        assert translate.usage(answer) is None


class TestEvents:
    ACTOR = {"ID": "f" * 64, "Attributes": {"exitCode": "137", "io.django-container-jobs.job": "1"}}

    def test_the_new_shape_alone_is_enough(self) -> None:
        raw = {
            "Type": "container",
            "Action": "die",
            "Actor": self.ACTOR,
            "timeNano": 1_700_000_000_123_456_789,
        }
        event = translate.event(raw)
        assert event is not None
        assert (event.action, event.container_id, event.exit_code) == (EventAction.DIE, "f" * 64, 137)
        assert event.labels["io.django-container-jobs.job"] == "1"
        assert event.at_ns == 1_700_000_000_123_456_789

    def test_seconds_where_there_are_no_nanoseconds(self) -> None:
        event = translate.event({"Type": "container", "Action": "start", "Actor": self.ACTOR, "time": 1_700})
        assert event is not None
        assert event.at_ns == 1_700_000_000_000

    @pytest.mark.parametrize(
        "raw",
        [
            {"Type": "network", "Action": "destroy", "Actor": ACTOR},
            {"Type": "container", "Action": "exec_create: sh", "Actor": ACTOR},
            {"Type": "container", "Action": "connected", "Actor": ACTOR},
            {},
        ],
    )
    def test_what_does_not_concern_us(self, raw: dict[str, Any]) -> None:
        assert translate.event(raw) is None


class TestHostFacts:
    @pytest.mark.parametrize(
        ("options", "expected"),
        [
            (["name=seccomp,profile=default", "name=userns"], True),
            (["name=rootless"], True),
            (["name=seccomp,profile=default"], False),
            (None, False),
        ],
    )
    def test_user_namespaces_are_the_daemons(self, options: list[str] | None, expected: bool) -> None:
        info = {"ID": "X", "ServerVersion": "20.10", "NCPU": 2, "MemTotal": 5, "SecurityOptions": options}
        facts = translate.host_facts(info, api_version="1.41", response_seconds=0.1)
        assert facts.user_namespaces is expected
        assert (facts.engine_id, facts.cpus, facts.memory_bytes) == ("X", 2, 5)
        assert facts.system_time is None
