"""Named networks of a container: there before it is made, joined before it starts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from urllib.parse import quote

from container_manager.core.errors import CreateFailed
from container_manager.core.networks import DEFAULT_NETWORK, NO_NETWORK
from container_manager.core.spec import NetworkAttachment
from container_manager.executors.docker import translate
from container_manager.executors.docker.client import Connection
from container_manager.executors.docker.errors import Refused, engine_fault, no_network

_BUILT_IN = {DEFAULT_NETWORK, NO_NETWORK}


class Networks:
    """The networks of one host."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def require(self, networks: Iterable[NetworkAttachment]) -> None:
        """See that all of them exist: the engine would say so at the start only. Raises NetworkNotFound."""
        for network in networks:
            name = network.network_name
            if name in _BUILT_IN:
                continue
            try:
                found: dict[str, Any] = self._connection.call("GET", f"/networks/{quote(name, safe='')}")
            except Refused as refused:
                if refused.http_status == 404:
                    raise no_network(name, refused.message) from refused
                raise engine_fault(refused) from refused
            if found.get("Name") != name:  # the engine also takes ids and their beginnings
                raise no_network(name, f"the engine knows {name!r} as the id of {found.get('Name')!r} only")

    def join(self, container_id: str, networks: Iterable[NetworkAttachment]) -> None:
        """Connect a container that was not started yet. Raises NetworkNotFound, CreateFailed, HostFault."""
        for network in networks:
            name = network.network_name
            try:
                self._connection.call(
                    "POST",
                    f"/networks/{quote(name, safe='')}/connect",
                    body={"Container": container_id, "EndpointConfig": translate.endpoint(network)},
                )
            except Refused as refused:
                if "already exists in network" in refused.message:
                    continue  # another call for the same container was faster
                if refused.http_status == 404:
                    raise no_network(name, refused.message) from refused
                if refused.http_status >= 500:
                    raise engine_fault(refused) from refused
                raise CreateFailed(
                    f"the container could not join the network {name!r}", detail=refused.message
                ) from refused
