"""A network namespace of its own for a private engine, joined to the machine by one veth pair.

An engine that shares the machine's network would delete the bridge and the firewall rules of an engine
that runs there already.
"""

from __future__ import annotations

import fcntl
import ipaddress
import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tools.processes import search_path

# RFC 2544 set this range aside for bench tests: neither the internet nor Docker's own pools use it.
POOL = ipaddress.IPv4Network("198.18.0.0/15")
LOCK = Path("/run/lock/container-jobs-net.lock")


@dataclass(frozen=True, slots=True, kw_only=True)
class Namespace:
    """A namespace, and the two ends of the wire to it."""

    name: str
    host_address: str  # the machine, as the containers reach it
    engine_address: str  # the engine, as the machine reaches it

    @property
    def path(self) -> str:
        """The file by which `nsenter --net` finds it."""
        return f"/run/netns/{self.name}"


def create(name: str) -> Namespace:
    """Make the namespace anew; leftovers of an earlier one under the same name go first."""
    remove(name)
    outer, inner = f"v{name}", "eth0"
    with _locked():
        subnet = _free_subnet()
        here, there = (str(address) for address in subnet.hosts())
        _ip("netns", "add", name)
        _ip("link", "add", outer, "type", "veth", "peer", "name", inner, "netns", name)
        _ip("addr", "add", f"{here}/{subnet.prefixlen}", "dev", outer)
        _ip("link", "set", outer, "up")
    _ip("-n", name, "link", "set", "lo", "up")
    _ip("-n", name, "addr", "add", f"{there}/{subnet.prefixlen}", "dev", inner)
    _ip("-n", name, "link", "set", inner, "up")
    # An engine without a default route has no address to bind published ports and its proxy to.
    _ip("-n", name, "route", "add", "default", "via", here)
    return Namespace(name=name, host_address=here, engine_address=there)


def remove(name: str) -> None:
    """Remove the namespace and its wire; whatever is gone already is no error."""
    if Path("/run/netns", name).exists():
        _ip("netns", "delete", name)
    if Path("/sys/class/net", f"v{name}").exists():
        # The kernel takes the wire down with the namespace, a moment later; asking twice does no harm.
        _ip("link", "delete", f"v{name}", check=False)


def _free_subnet() -> ipaddress.IPv4Network:
    taken = [
        ipaddress.ip_network(route["dst"], strict=False)
        for route in json.loads(_ip("-json", "-4", "route", "show", "table", "all") or "[]")
        if route["dst"] != "default"
    ]
    for subnet in POOL.subnets(new_prefix=30):
        if not any(subnet.overlaps(other) for other in taken):
            return subnet
    raise RuntimeError(f"every /30 of {POOL} is routed already on this machine")


@contextmanager
def _locked() -> Iterator[None]:
    """Two engines that start at once must not pick the same subnet."""
    LOCK.parent.mkdir(parents=True, exist_ok=True)
    with LOCK.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _ip(*arguments: str, check: bool = True) -> str:
    answer = subprocess.run(
        ["ip", *arguments],
        env={**os.environ, "PATH": search_path()},
        capture_output=True,
        text=True,
        check=False,
    )
    if check and answer.returncode:
        raise RuntimeError(f"`ip {' '.join(arguments)}` failed: {answer.stderr.strip()}")
    return answer.stdout
