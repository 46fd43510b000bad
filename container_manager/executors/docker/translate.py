"""Pure translation: our spec into the engine's JSON, the engine's JSON into our facts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from container_manager.core.observation import (
    ContainerState,
    EngineEvent,
    EventAction,
    HostFacts,
    Observation,
    OwnedContainer,
    UsageSample,
)
from container_manager.core.spec import ContainerSpec, NetworkAttachment

#: The one driver that the engine can read back and that keeps every byte: json-file writes JSON strings, in
#: which bytes that are no UTF-8 are replaced.
LOG_DRIVER = "local"

_STATES = {
    "created": ContainerState.CREATED,
    "running": ContainerState.RUNNING,
    "paused": ContainerState.PAUSED,
    "restarting": ContainerState.RUNNING,
    "removing": ContainerState.EXITED,
    "exited": ContainerState.EXITED,
    "dead": ContainerState.EXITED,
}
_ACTIONS = {action.value: action for action in EventAction if action is not EventAction.CONNECTED}
EVENT_NAMES = sorted(_ACTIONS)
_TIME = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d+))?(Z|[+-]\d\d:\d\d)")
_NO_ALIASES = {"bridge", "none"}
_FILE_PAGES = ("active_file", "inactive_file")


def create_payload(spec: ContainerSpec) -> dict[str, Any]:
    """The body of `POST /containers/create`. Whatever is not in the spec is not in the body."""
    first = spec.networks[0] if spec.networks else None
    payload: dict[str, Any] = {
        "Image": spec.image,
        "Env": [f"{key}={value}" for key, value in spec.environment],
        "User": spec.user,
        "Labels": spec.labels(),
        "AttachStdin": False,
        "AttachStdout": False,
        "AttachStderr": False,
        "OpenStdin": False,
        "Tty": False,
        "Healthcheck": {"Test": ["NONE"]},  # the image's own would run beside the job, at its expense
        "HostConfig": {
            "Memory": spec.memory_bytes,
            "MemorySwap": spec.memory_bytes,  # the sum of both: no swap on top
            "NanoCpus": round(spec.cpus * 1_000_000_000),
            "PidsLimit": spec.pids_limit,
            "CapDrop": list(spec.cap_drop),
            "SecurityOpt": list(spec.security_opt),
            "ReadonlyRootfs": spec.read_only_root,
            "Tmpfs": dict(spec.tmpfs),
            "Privileged": False,
            "AutoRemove": False,  # would take exit code and log with it
            "RestartPolicy": {"Name": "no"},
            "NetworkMode": first.network_name if first else "bridge",
            "LogConfig": {"Type": LOG_DRIVER, "Config": dict(spec.log_options)},
        },
    }
    if spec.argv:
        payload["Cmd"] = list(spec.argv)
    if spec.working_directory:
        payload["WorkingDir"] = spec.working_directory
    if first is not None and first.network_name not in _NO_ALIASES:
        payload["NetworkingConfig"] = {"EndpointsConfig": {first.network_name: endpoint(first)}}
    return payload


def endpoint(network: NetworkAttachment) -> dict[str, Any]:
    """How a container joins one network."""
    return {"Aliases": list(network.aliases)}


def moment(text: str | None) -> datetime | None:
    """A time of the engine; its zero (year 1) and an empty text are None. Microseconds are kept."""
    match = _TIME.fullmatch(text or "")
    if match is None or match[1].startswith("0001-"):
        return None
    fraction = (match[2] or "")[:6].ljust(6, "0")
    zone = "+00:00" if match[3] == "Z" else match[3]
    return datetime.fromisoformat(f"{match[1]}.{fraction}{zone}").astimezone(UTC)


def observation(inspected: Mapping[str, Any]) -> Observation:
    """`GET /containers/{id}/json`."""
    state = inspected.get("State", {})
    seen = _STATES.get(state.get("Status", ""), ContainerState.UNKNOWN)
    started = moment(state.get("StartedAt"))
    if seen is ContainerState.EXITED and started is None:
        # On its way out and never run: the engine calls it dead, with an exit code of 0, until it is gone.
        seen = ContainerState.UNKNOWN
    ended = seen is ContainerState.EXITED or (seen is ContainerState.CREATED and bool(state.get("Error")))
    finished = moment(state.get("FinishedAt")) if ended else None
    if started is not None and finished is not None and finished < started:
        # The engine notes the start when its call returns: a program may have ended by then (measured: a
        # third of the trivial ones, by up to 11 ms). The end is the kernel's word, so it stands.
        started = finished
    return Observation(
        state=seen,
        container_id=inspected.get("Id", ""),
        name=inspected.get("Name", "").removeprefix("/"),
        labels=dict(inspected.get("Config", {}).get("Labels") or {}),
        exit_code=state.get("ExitCode") if ended else None,
        oom_killed=bool(state.get("OOMKilled")),
        error=state.get("Error", ""),
        created_at=moment(inspected.get("Created")),
        started_at=started,
        finished_at=finished,
        image_id=inspected.get("Image", ""),
    )


def owned(listed: Mapping[str, Any]) -> OwnedContainer:
    """One entry of `GET /containers/json`."""
    created = listed.get("Created")
    return OwnedContainer(
        container_id=listed["Id"],
        name=next(iter(listed.get("Names") or [""])).removeprefix("/"),
        labels=dict(listed.get("Labels") or {}),
        state=_STATES.get(listed.get("State", ""), ContainerState.UNKNOWN),
        created_at=datetime.fromtimestamp(created, UTC) if created else None,
    )


def usage(stats: Mapping[str, Any] | None) -> UsageSample | None:
    """`GET /containers/{id}/stats`; None for a container that does not run (zeros, or no answer)."""
    taken_at = moment((stats or {}).get("read"))
    if stats is None or taken_at is None:
        return None
    memory = stats.get("memory_stats") or {}
    total = (stats.get("cpu_stats") or {}).get("cpu_usage", {}).get("total_usage")
    used = memory.get("usage")
    if not total and not used:
        return None
    details = memory.get("stats") or {}
    # Pages of files are the kernel's to take back. Not v1's `cache`: that has files in a tmpfs in it, which
    # stay, and count to the limit.
    cache = sum(details.get(f"total_{name}", details.get(name, 0)) for name in _FILE_PAGES)
    return UsageSample(
        taken_at=taken_at,
        cpu_ns=total or None,
        memory_bytes=max(0, used - cache) if used else None,
        memory_peak_bytes=memory.get("max_usage") or None,  # cgroup v1 alone
    )


def event(raw: Mapping[str, Any]) -> EngineEvent | None:
    """One object of `GET /events`; None for what does not concern us."""
    action = _ACTIONS.get(str(raw.get("Action", "")))
    if raw.get("Type") != "container" or action is None:
        return None
    actor = raw.get("Actor") or {}
    attributes = dict(actor.get("Attributes") or {})
    code = str(attributes.get("exitCode", ""))
    at_ns = raw.get("timeNano") or int(raw.get("time") or 0) * 1_000_000_000
    return EngineEvent(
        action=action,
        container_id=actor.get("ID", ""),
        labels=attributes,
        at_ns=int(at_ns),
        exit_code=int(code) if code.isdigit() else None,
    )


def host_facts(info: Mapping[str, Any], *, api_version: str, response_seconds: float) -> HostFacts:
    """`GET /info`."""
    options = [str(option) for option in info.get("SecurityOptions") or []]
    return HostFacts(
        engine_id=info.get("ID", ""),
        engine_version=info.get("ServerVersion", ""),
        api_version=api_version,
        cpus=info.get("NCPU"),
        memory_bytes=info.get("MemTotal"),
        system_time=moment(info.get("SystemTime")),
        user_namespaces=any(
            option.partition(",")[0] in {"name=userns", "name=rootless"} for option in options
        ),
        response_seconds=response_seconds,
        details={
            "operating_system": info.get("OperatingSystem", ""),
            "kernel": info.get("KernelVersion", ""),
            "architecture": info.get("Architecture", ""),
            "cgroup_version": info.get("CgroupVersion", ""),
            "storage_driver": info.get("Driver", ""),
            "live_restore": bool(info.get("LiveRestoreEnabled")),
            "security_options": options,
        },
    )
