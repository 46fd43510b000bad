"""Where a job without a host of its own goes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from container_manager.core.errors import NoEligibleHost

REGISTER = "python manage.py register_local_host"
_DOWN = {"unreachable": "unreachable", "mismatched": "another engine answers there"}


@dataclass(frozen=True, slots=True, kw_only=True)
class HostState:
    """A host as placement sees it. `status` as recorded: unknown, healthy, unreachable, mismatched."""

    key: str
    name: str
    is_active: bool
    status: str
    weight: int
    max_jobs: int
    used: int  # slots taken now
    queued: int  # jobs that wait for it
    cpus: int | None


def choose(hosts: Sequence[HostState], *, cpus: float) -> HostState:
    """The host for a job that asks for `cpus` cores. Raises NoEligibleHost.

    A host with a free slot wins over one without. Then the smallest load counts: slots taken and jobs
    waiting, in relation to the host's size and weight. The name breaks ties, so that the choice repeats.
    """
    eligible = [host for host in hosts if not _objection(host, cpus)]
    if not eligible:
        raise NoEligibleHost(_explanation(hosts, cpus))
    return min(eligible, key=_burden)


def _burden(host: HostState) -> tuple[bool, float, str]:
    load = host.used + host.queued
    return load >= host.max_jobs, (load + 1) / (host.max_jobs * host.weight), host.name


def _objection(host: HostState, cpus: float) -> str:
    if not host.is_active:
        return "not active"
    if host.max_jobs <= 0:
        return "takes no jobs: its max_concurrent_jobs is 0"
    if host.weight <= 0:
        return "takes only jobs that name it: its weight is 0"
    if host.status in _DOWN:
        return _DOWN[host.status]
    if host.cpus is not None and cpus > host.cpus:
        return f"has {host.cpus} CPUs, the job asks for {cpus:g} (cpu_limit)"
    return ""


def _explanation(hosts: Sequence[HostState], cpus: float) -> str:
    if not hosts:
        return f"no host is registered. Register this machine's engine with: {REGISTER}"
    reasons = "; ".join(
        f"{host.name}: {_objection(host, cpus)}" for host in sorted(hosts, key=lambda h: h.name)
    )
    return f"no host can take the job ({reasons}). Mend what stands there, or register another: {REGISTER}"
