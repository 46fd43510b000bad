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
from container_manager.core.limits import CPUS, MEMORY, TIMEOUT, shown, user_problem
from container_manager.core.networks import is_foreign_namespace
from container_manager.core.plain import unfit
from container_manager.core.spec import ContainerSpec, NetworkAttachment

MEBIBYTE = 1024 * 1024
#: The container's own tmpfs: where a job may write, and its home unless it says otherwise.
TMP = "/tmp"  # noqa: S108


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """The default user and the ceilings. Megabytes are 2**20 bytes; times in seconds; CPUs in cores."""

    max_memory_mb: int = 2048
    max_cpus: float = 2.0
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


def _memory(request: JobRequest, policy: Policy) -> str:
    return MEMORY.problem(request.memory_limit, policy.max_memory_mb)


def _cpu(request: JobRequest, policy: Policy) -> str:
    return CPUS.problem(request.cpu_limit, policy.max_cpus)


def _timeout(request: JobRequest, policy: Policy) -> str:
    return TIMEOUT.problem(request.timeout_seconds, policy.max_timeout)


def _directory(request: JobRequest, policy: Policy) -> str:  # noqa: ARG001
    path: object = request.working_directory
    if not isinstance(path, str):
        return f"it is a {type(path).__name__}; give an absolute path, or '' for the image's own."
    if "\n" in path or "\r" in path:
        return "it has a line break in it; take it out."
    if unfit(path):
        return f"it {unfit(path)}."
    if path and not path.startswith("/"):
        return f"{shown(path)} is relative; give an absolute path such as '/app'."
    if ".." in path.split("/"):
        return f"{shown(path)} has '..' in it; give the path that it leads to."
    return ""


def _user(request: JobRequest, policy: Policy) -> str:  # noqa: ARG001
    return "" if request.user == "" else user_problem(request.user)


def _root_filesystem(request: JobRequest, policy: Policy) -> str:
    if request.read_only_root is True or (request.read_only_root is False and policy.allow_writable_root):
        return ""
    if request.read_only_root is False:
        return (
            "a writable root filesystem is not allowed; write to /tmp, "
            "or set ALLOW_WRITABLE_ROOT in CONTAINER_MANAGER_SETTINGS."
        )
    return f"{shown(request.read_only_root)} is neither True nor False; give one of them."


def _networks(request: JobRequest, policy: Policy) -> str:  # noqa: ARG001
    for network in request.networks:
        if is_foreign_namespace(network.network_name):
            return (
                f"{network.network_name!r} would share the network of the host or of another container; "
                "join a network of your own, or leave it out for the default bridge."
            )
    return ""


#: Judged in this order; the first violation is what a caller sees.
RULES: tuple[Rule, ...] = (
    Rule(name="memory", field="memory_limit", why="No job takes a host's memory.", check=_memory),
    Rule(name="cpu", field="cpu_limit", why="No job takes a host's processors.", check=_cpu),
    Rule(name="timeout", field="timeout_seconds", why="Every job ends.", check=_timeout),
    Rule(name="directory", field="working_directory", why="A path has one meaning.", check=_directory),
    Rule(name="user", field="user", why="Never root, never a system user.", check=_user),
    Rule(
        name="root-filesystem",
        field="read_only_root",
        why="A program cannot be tampered with.",
        check=_root_filesystem,
    ),
    Rule(
        name="network-namespace",
        field="network_configuration",
        why="Never the network of the host or of another container.",
        check=_networks,
    ),
)


def violations(
    request: JobRequest, policy: Policy, *, cpus: int | None = None, host_name: str = ""
) -> list[PolicyViolation]:
    """Everything about a request that the policy refuses. `cpus` of the host, where it is known."""
    found = []
    for rule in RULES:
        message = rule.check(request, policy)
        if message:
            found.append(PolicyViolation(rule.field, message, rule=rule.name))
    numeric = all(violation.field != "cpu_limit" for violation in found)
    if numeric and cpus is not None and request.cpu_limit > cpus:
        host = f"the host {host_name!r}" if host_name else "the host"
        message = (
            f"{request.cpu_limit:g} cores are more than the {cpus} of {host}; "
            "ask for less, or name a larger host."
        )
        found.append(PolicyViolation("cpu_limit", message, rule="cpu-host"))
    return found


def enforce(request: JobRequest, policy: Policy, *, cpus: int | None = None, host_name: str = "") -> None:
    """Raise the first violation, if there is one."""
    for violation in violations(request, policy, cpus=cpus, host_name=host_name):
        raise violation


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerRule:
    """What holds for every container, whatever its job asked for."""

    name: str
    field: str
    why: str
    holds: Callable[[ContainerSpec, Policy], bool]


CAP_DROP = ("ALL",)
SECURITY_OPT = ("no-new-privileges",)
#: Programs may be run from /tmp: build tools and wheels unpack there. No setuid, no devices.
TMPFS_OPTIONS = "rw,exec,nosuid,nodev,mode=1777"

CONTAINER_RULES: tuple[ContainerRule, ...] = (
    ContainerRule(
        name="user",
        field="user",
        why="Never root, never a system user, never the image's own choice.",
        holds=lambda spec, _: not user_problem(spec.user),
    ),
    ContainerRule(
        name="capabilities",
        field="cap_drop",
        why="A job needs no power of root.",
        holds=lambda spec, _: spec.cap_drop == CAP_DROP,
    ),
    ContainerRule(
        name="no-new-privileges",
        field="security_opt",
        why="A setuid program in the image gains nothing; the engine's own profiles stay on.",
        holds=lambda spec, _: spec.security_opt == SECURITY_OPT,
    ),
    ContainerRule(
        name="memory",
        field="memory_bytes",
        why="An engine reads 0 as unlimited.",
        holds=lambda spec, policy: (
            MEMORY.floor * MEBIBYTE <= spec.memory_bytes <= policy.max_memory_mb * MEBIBYTE
        ),
    ),
    ContainerRule(
        name="cpu",
        field="cpus",
        why="An engine reads 0 as unlimited.",
        holds=lambda spec, policy: not CPUS.problem(spec.cpus, policy.max_cpus),
    ),
    ContainerRule(
        name="processes",
        field="pids_limit",
        why="A fork bomb stays in its container; an engine reads 0 as unlimited.",
        holds=lambda spec, policy: 0 < spec.pids_limit <= policy.pids_limit,
    ),
    ContainerRule(
        name="root-filesystem",
        field="read_only_root",
        why="A program cannot be tampered with.",
        holds=lambda spec, policy: spec.read_only_root or policy.allow_writable_root,
    ),
    ContainerRule(
        name="tmpfs",
        field="tmpfs",
        why="One writable place of known size, without setuid programs and devices.",
        holds=lambda spec, policy: spec.tmpfs == _tmpfs(policy),
    ),
    ContainerRule(
        name="network-namespace",
        field="networks",
        why="Never the network of the host or of another container.",
        holds=lambda spec, _: not any(is_foreign_namespace(one.network_name) for one in spec.networks),
    ),
    ContainerRule(
        name="log-size",
        field="log_options",
        why="A flood of output does not fill the host's disk.",
        holds=lambda spec, policy: spec.log_options == _log_options(policy),
    ),
)


def build_spec(
    request: JobRequest, policy: Policy, *, name: str, installation: str, job_id: str, attempt: int
) -> ContainerSpec:
    """The container for a request that `enforce` has passed. Raises PolicyViolation if it has not."""
    enforce(request, policy)
    environment = {"HOME": TMP, **request.environment}
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
        tmpfs=_tmpfs(policy),
        networks=request.networks,
        cap_drop=CAP_DROP,
        security_opt=SECURITY_OPT,
        log_options=_log_options(policy),
    )
    verify_spec(spec, policy)
    return spec


def verify_spec(spec: ContainerSpec, policy: Policy) -> None:
    """The last look at a finished container. Raises PolicyViolation; a bug of ours is the only cause."""
    for rule in CONTAINER_RULES:
        if not rule.holds(spec, policy):
            raise PolicyViolation(
                rule.field,
                f"the finished container breaks the rule {rule.name!r} ({rule.why.rstrip('.')}). "
                "This is a bug of the package, not of the job; please report it.",
                rule=rule.name,
            )


def _tmpfs(policy: Policy) -> tuple[tuple[str, str], ...]:
    return ((TMP, f"{TMPFS_OPTIONS},size={policy.tmpfs_mb}m"),)


def _log_options(policy: Policy) -> tuple[tuple[str, str], ...]:
    """The engine's own rotation, far above what we store: it drops the oldest file without a word.

    An engine adds some tens of bytes to each line. Two files, each of twice the cap, hold a log of the cap's
    size down to lines of about 25 bytes, unread; a reader that keeps up is not bound by that.
    """
    megabytes = max(16, math.ceil(policy.log_max_bytes * 2 / MEBIBYTE))
    return (("compress", "false"), ("max-file", "2"), ("max-size", f"{megabytes}m"))
