"""What a job may ask for, and what its container always gets: one rule table, one builder, one last look.

`RULES` judges wishes; `build_spec` builds the container from the policy and the wishes that passed;
`verify_spec` looks at the finished container once more, so that a mistake in between cannot reach an engine.
A new rule is a new line in a table, never a second place.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from container_manager.core.errors import PolicyViolation
from container_manager.core.spec import ContainerSpec, NetworkAttachment

MEBIBYTE = 1024 * 1024
#: What an engine needs at least to start anything.
MIN_MEMORY_MB = 6
#: User and group ids up to this one belong to the system.
MAX_SYSTEM_ID = 1000
_MAX_ID = 2**31 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """Defaults and ceilings. Megabytes are 2**20 bytes; times in seconds; CPUs in cores."""

    default_memory_mb: int = 256
    max_memory_mb: int = 2048
    default_cpus: float = 1.0
    max_cpus: float = 2.0
    default_timeout: int = 300
    max_timeout: int = 3600
    default_user: str = "10001:10001"
    pids_limit: int = 256
    tmpfs_mb: int = 64
    allow_writable_root: bool = False
    log_max_bytes: int = 256 * MEBIBYTE


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRequest:
    """What one job asks for, already parsed. `user` empty means the policy's."""

    image: str
    argv: tuple[str, ...]
    environment: Mapping[str, str]
    working_directory: str
    memory_limit: int  # MB
    cpu_limit: float
    timeout_seconds: int
    networks: tuple[NetworkAttachment, ...]
    user: str
    read_only_root: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One line of the table. `check` returns what is wrong with a request, or an empty string."""

    name: str
    field: str
    why: str
    check: Callable[[JobRequest, Policy], str]


def _number(value: object, *, whole: bool) -> str:
    if value is None:
        return "it is None, which an engine reads as unlimited; give a number."
    wanted = "a whole number" if whole else "a number"
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
        return f"{value!r} is not {wanted}."
    if not math.isfinite(value):
        return f"{value!r} is not {wanted}."
    if value <= 0:
        return f"{value!r} is not above 0; an engine reads 0 as unlimited."
    return ""


def _ceiling(value: float, ceiling: float, unit: str, setting: str) -> str:
    if value <= ceiling:
        return ""
    return f"{value:g} {unit} is above the ceiling of {ceiling:g} {unit}; ask for less, or raise {setting}."


def _memory_is_number(request: JobRequest, policy: Policy) -> str:  # noqa: ARG001
    return _number(request.memory_limit, whole=True)


def _memory_enough(request: JobRequest, policy: Policy) -> str:  # noqa: ARG001
    if _number(request.memory_limit, whole=True) or request.memory_limit >= MIN_MEMORY_MB:
        return ""
    return f"{request.memory_limit} MB is below the {MIN_MEMORY_MB} MB that an engine needs; ask for more."


def _memory_ceiling(request: JobRequest, policy: Policy) -> str:
    if _number(request.memory_limit, whole=True):
        return ""
    return _ceiling(request.memory_limit, policy.max_memory_mb, "MB", "MAX_MEMORY_LIMIT")


def _cpu_is_number(request: JobRequest, policy: Policy) -> str:  # noqa: ARG001
    problem = _number(request.cpu_limit, whole=False)
    if not problem and request.cpu_limit < 0.01:
        return f"{request.cpu_limit!r} is below 0.01, the least that an engine accepts."
    return problem


def _cpu_ceiling(request: JobRequest, policy: Policy) -> str:
    if _number(request.cpu_limit, whole=False):
        return ""
    return _ceiling(request.cpu_limit, policy.max_cpus, "cores", "MAX_CPU_LIMIT")


def _timeout_is_number(request: JobRequest, policy: Policy) -> str:  # noqa: ARG001
    return _number(request.timeout_seconds, whole=True)


def _timeout_ceiling(request: JobRequest, policy: Policy) -> str:
    if _number(request.timeout_seconds, whole=True):
        return ""
    return _ceiling(request.timeout_seconds, policy.max_timeout, "s", "MAX_TIMEOUT_SECONDS")


def _directory(request: JobRequest, policy: Policy) -> str:  # noqa: ARG001
    path = request.working_directory
    if not isinstance(path, str):
        return f"it is a {type(path).__name__}; give an absolute path."
    if "\0" in path or "\n" in path:
        return "it has a NUL or a line break in it; take it out."
    if path and not path.startswith("/"):
        return f"{path!r} is relative; give an absolute path such as '/app'."
    if ".." in path.split("/"):
        return f"{path!r} has '..' in it; give the path itself."
    return ""


def _user(request: JobRequest, policy: Policy) -> str:  # noqa: ARG001
    return _user_problem(request.user) if request.user else ""


def _user_problem(user: str) -> str:
    parts = user.split(":")
    numeric = len(parts) == 2 and all(part.isascii() and part.isdigit() and len(part) < 11 for part in parts)
    if not numeric:
        return f"{user!r} is not a numeric uid:gid, such as '10001:10001'."
    if not all(MAX_SYSTEM_ID < int(part) <= _MAX_ID for part in parts):
        return f"{user!r} has an id of {MAX_SYSTEM_ID} or below, which are the system's; use ids above it."
    return ""


def _root_filesystem(request: JobRequest, policy: Policy) -> str:
    if request.read_only_root or policy.allow_writable_root:
        return ""
    return "a writable root filesystem is not allowed; write to /tmp, or set ALLOW_WRITABLE_ROOT."


def _networks(request: JobRequest, policy: Policy) -> str:  # noqa: ARG001
    for network in request.networks:
        if _is_foreign_namespace(network.network_name):
            return (
                f"{network.network_name!r} would share a network namespace with the host or another "
                "container; use a network of your own."
            )
    return ""


def _is_foreign_namespace(name: str) -> bool:
    return name == "host" or name.startswith(("container:", "ns:", "service:"))


#: Judged in this order; the first violation is what a caller sees.
RULES: tuple[Rule, ...] = (
    Rule(name="memory-number", field="memory_limit", why="No job without a limit.", check=_memory_is_number),
    Rule(name="memory-floor", field="memory_limit", why="Less starts nothing.", check=_memory_enough),
    Rule(name="memory-ceiling", field="memory_limit", why="Hosts are shared.", check=_memory_ceiling),
    Rule(name="cpu-number", field="cpu_limit", why="No job without a limit.", check=_cpu_is_number),
    Rule(name="cpu-ceiling", field="cpu_limit", why="Hosts are shared.", check=_cpu_ceiling),
    Rule(name="timeout-number", field="timeout_seconds", why="Every job ends.", check=_timeout_is_number),
    Rule(name="timeout-ceiling", field="timeout_seconds", why="Every job ends.", check=_timeout_ceiling),
    Rule(name="directory", field="working_directory", why="One meaning only.", check=_directory),
    Rule(name="user", field="user", why="Never root, never a system user.", check=_user),
    Rule(
        name="root-filesystem", field="read_only_root", why="Nothing to tamper with.", check=_root_filesystem
    ),
    Rule(name="network-namespace", field="network_configuration", why="Never the host's.", check=_networks),
)

CAP_DROP = ("ALL",)
SECURITY_OPT = ("no-new-privileges",)
#: Programs may be run from /tmp: build tools and wheels unpack there. No setuid, no devices.
TMPFS_OPTIONS = "rw,exec,nosuid,nodev,mode=1777"


def violations(
    request: JobRequest, policy: Policy, *, cpus: int | None = None, host_name: str = ""
) -> list[PolicyViolation]:
    """Everything about a request that the policy refuses. `cpus` of the host, where it is known."""
    found = []
    for rule in RULES:
        message = rule.check(request, policy)
        if message:
            found.append(PolicyViolation(rule.field, message, rule=rule.name))
    if not found and cpus is not None and request.cpu_limit > cpus:
        host = f"the host {host_name!r}" if host_name else "the host"
        message = f"{request.cpu_limit:g} cores are more than the {cpus} of {host}; ask for less."
        found.append(PolicyViolation("cpu_limit", message, rule="cpu-host"))
    return found


def enforce(request: JobRequest, policy: Policy, *, cpus: int | None = None, host_name: str = "") -> None:
    """Raise the first violation, if there is one."""
    for violation in violations(request, policy, cpus=cpus, host_name=host_name):
        raise violation


def build_spec(
    request: JobRequest, policy: Policy, *, name: str, installation: str, job_id: str, attempt: int
) -> ContainerSpec:
    """The container for a request that `enforce` has passed. Raises PolicyViolation if it has not."""
    enforce(request, policy)
    environment = {"HOME": "/tmp", **request.environment}  # noqa: S108 - the container's own tmpfs
    spec = ContainerSpec(
        name=name,
        installation=installation,
        job_id=job_id,
        attempt=attempt,
        image=request.image,
        argv=request.argv,
        environment=tuple(sorted(environment.items())),
        working_directory=request.working_directory,
        user=request.user or policy.default_user,
        memory_bytes=request.memory_limit * MEBIBYTE,
        cpus=request.cpu_limit,
        pids_limit=policy.pids_limit,
        read_only_root=request.read_only_root,
        tmpfs=(("/tmp", f"{TMPFS_OPTIONS},size={policy.tmpfs_mb}m"),),  # noqa: S108
        networks=request.networks,
        cap_drop=CAP_DROP,
        security_opt=SECURITY_OPT,
        log_options=_log_options(policy),
    )
    verify_spec(spec, policy)
    return spec


def verify_spec(spec: ContainerSpec, policy: Policy) -> None:
    """The last look at a finished container. Raises PolicyViolation; a bug of ours is the only cause."""
    facts = (
        ("user", not _user_problem(spec.user)),
        ("cap_drop", "ALL" in spec.cap_drop),
        ("security_opt", "no-new-privileges" in spec.security_opt),
        ("memory_limit", 0 < spec.memory_bytes <= policy.max_memory_mb * MEBIBYTE),
        ("cpu_limit", 0 < spec.cpus <= policy.max_cpus),
        ("pids_limit", 0 < spec.pids_limit <= policy.pids_limit),
        ("read_only_root", spec.read_only_root or policy.allow_writable_root),
        ("network_configuration", not any(_is_foreign_namespace(n.network_name) for n in spec.networks)),
    )
    for field, holds in facts:
        if not holds:
            raise PolicyViolation(
                field, "the finished container breaks the policy; this is a bug.", rule="spec"
            )


def _log_options(policy: Policy) -> tuple[tuple[str, str], ...]:
    """The engine's own rotation, well above what we store: it loses lines without a word when it turns."""
    megabytes = max(16, math.ceil(policy.log_max_bytes * 1.5 / MEBIBYTE))
    return (("compress", "false"), ("max-file", "2"), ("max-size", f"{megabytes}m"))
