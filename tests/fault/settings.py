"""Settings of the test build's workers: the tests' own, with small times and the executors under fire."""

from __future__ import annotations

import json
import os
from typing import Any

import tests.settings
from tests.settings import *  # noqa: F403

#: Small enough that a test need not wait, large enough that a busy machine does not lose its leases.
QUICK: dict[str, Any] = {
    "LEASE_SECONDS": 2.0,
    "RESYNC_INTERVAL": 1.0,
    "POLL_INTERVAL": 0.2,
    "STRAY_GRACE_SECONDS": 2.0,
    "USAGE_INTERVAL": 0.5,
    "STOP_GRACE_SECONDS": 1.0,
    "SHUTDOWN_GRACE_SECONDS": 5.0,
    "EXECUTORS": {
        "docker": "tests.fault.build.DockerUnderFire",
        "remote": "tests.fault.remote.RemoteUnderFire",
    },
}

CONTAINER_MANAGER_SETTINGS = {
    **tests.settings.CONTAINER_MANAGER_SETTINGS,
    **QUICK,
    **json.loads(os.environ.get("CM_FAULT_SETTINGS", "{}")),
}
