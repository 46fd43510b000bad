"""Hosts by the names that a command line gave."""

from __future__ import annotations

from collections.abc import Sequence

from django.core.management.base import CommandError

from container_manager.models import ExecutorHost


def chosen_hosts(names: Sequence[str]) -> list[ExecutorHost]:
    """The named hosts, or all where no name is given. Raises CommandError for an unknown name."""
    hosts = {host.name: host for host in ExecutorHost.objects.order_by("name")}
    for name in names:
        if name not in hosts:
            known = ", ".join(hosts) or "none"
            raise CommandError(f"--host: there is no host named {name!r}. Known: {known}.")
    return [host for name, host in hosts.items() if not names or name in names]
