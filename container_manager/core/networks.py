"""Named networks that a job joins: the shape of the wish, and nothing about whether they exist."""

from __future__ import annotations

import re
from collections.abc import Mapping

from container_manager.core.errors import InvalidJob
from container_manager.core.spec import NetworkAttachment

FIELD = "network_configuration"
SHAPE = 'a list of {"network_name": "...", "aliases": ["...", ...]}'
DEFAULT_NETWORK = "bridge"
NO_NETWORK = "none"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
_FOREIGN = ("container:", "ns:", "service:")
_ALIAS = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?")


def is_foreign_namespace(name: str) -> bool:
    """Whether the name is an engine's word for the network of the host or of another container.

    Such a name is well-formed; that no job may have it is a rule of `core.policy`.
    """
    return name == "host" or name.startswith(_FOREIGN)


def parse_networks(value: object) -> tuple[NetworkAttachment, ...]:
    """Read a `network_configuration`. Raises InvalidJob, which names the entry and what is wrong with it."""
    if not isinstance(value, list | tuple):
        raise InvalidJob(FIELD, f"it is a {type(value).__name__}; give {SHAPE}.")
    networks = tuple(_parse_one(index, item) for index, item in enumerate(value))
    names = [network.network_name for network in networks]
    for name in names:
        if names.count(name) > 1:
            raise InvalidJob(FIELD, f"the network {name!r} is named twice; name each network once.")
    if NO_NETWORK in names and len(names) > 1:
        raise InvalidJob(FIELD, "'none' means no network; it cannot stand beside others.")
    return networks


def _parse_one(index: int, item: object) -> NetworkAttachment:
    where = f"entry {index}"
    if not isinstance(item, Mapping):
        raise InvalidJob(FIELD, f"{where} is a {type(item).__name__}; give {SHAPE}.")
    unknown = sorted(str(key) for key in item if key not in {"network_name", "aliases"})
    if unknown:
        raise InvalidJob(FIELD, f"{where} has the unknown key {unknown[0]!r}; give {SHAPE}.")
    name = item.get("network_name")
    if name is None:
        raise InvalidJob(FIELD, f"{where} has no network_name; give {SHAPE}.")
    if not isinstance(name, str) or not (_NAME.fullmatch(name) or is_foreign_namespace(name)):
        raise InvalidJob(FIELD, f"{where} has the network_name {name!r}; give the name of a network.")
    if name == "default":
        raise InvalidJob(
            FIELD, f"{where}: 'default' is the engine's word for {DEFAULT_NETWORK!r}; write that."
        )
    aliases = item.get("aliases", [])
    if not isinstance(aliases, list | tuple):
        raise InvalidJob(
            FIELD, f"{where} has aliases that are a {type(aliases).__name__}; give a list of names."
        )
    for alias in aliases:
        if not isinstance(alias, str) or not _ALIAS.fullmatch(alias):
            raise InvalidJob(
                FIELD, f"{where} has the alias {alias!r}; use letters, digits, '-', '_' and '.', at most 63."
            )
    if aliases and name in {DEFAULT_NETWORK, NO_NETWORK}:
        raise InvalidJob(
            FIELD,
            f"{where}: the network {name!r} has no aliases. Leave them out, or use a network of your own.",
        )
    return NetworkAttachment(network_name=name, aliases=tuple(aliases))
