"""What this driver reads of a host's `executor_config`."""

from __future__ import annotations

from collections.abc import Mapping

from container_manager.executors.options import Check, credentials, seconds

AUTH_FIELDS = ("username", "password", "email", "serveraddress", "identitytoken", "registrytoken")
OPTION_CHECKS: Mapping[str, Check] = {
    "pull_silence_seconds": seconds,
    "registry_auth": credentials(*AUTH_FIELDS),
}
