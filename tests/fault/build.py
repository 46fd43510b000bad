"""The test build: Django with the tests' settings, the real worker, and what makes faults visible.

CM_FAULT_SETTINGS   JSON: the worker's CONTAINER_MANAGER_SETTINGS
CM_FAULT_MARKERS    a world-writable directory on the engine's machine: each container finds it at
                    /markers and its own name in CM_MARKER, and its program leaves a file there first
"""

from __future__ import annotations

import functools
import os
from typing import Any

from container_manager.core.spec import ContainerSpec
from container_manager.executors.docker import translate
from container_manager.executors.docker.executor import DockerExecutor
from tests.fault import killing

MARKERS = "/markers"

DockerUnderFire = killing.under_fire(DockerExecutor)


def prepare() -> None:
    """Set Django up and turn this process into the test build."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.fault.settings")
    import django

    django.setup()
    killing.install()
    _mark_starts()


def _mark_starts() -> None:
    place = os.environ.get("CM_FAULT_MARKERS", "")
    if not place:
        return
    create_payload = translate.create_payload

    @functools.wraps(create_payload)
    def with_markers(spec: ContainerSpec) -> dict[str, Any]:
        payload = create_payload(spec)
        payload["Env"] = [*payload["Env"], f"CM_MARKER={MARKERS}/{spec.name}"]
        payload["HostConfig"]["Binds"] = [f"{place}:{MARKERS}"]
        return payload

    translate.create_payload = with_markers
