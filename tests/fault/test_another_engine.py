"""A machine is replaced: at the same address answers an engine that knows nothing of what ran there."""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest

from container_manager.core.errors import NoEligibleHost
from container_manager.models import ExecutorHost
from tests.acceptance.running import register, stored, until_says, until_status
from tests.engines import BASE_IMAGE
from tests.fault import harm, jobs
from tools import base_image
from tools.engine import Engine
from tools.processes import with_cgroup_of

pytestmark = pytest.mark.engine


def replace(engine: Engine, container_ids: set[str]) -> None:
    """Take the engine away with all that it knew, and put an empty one in its place."""
    daemon = engine.daemon
    assert daemon is not None
    for process in with_cgroup_of(container_ids):
        process.signal(signal.SIGKILL)
    daemon.end(grace=20)
    engine.data.rename(engine.home / "data-of-the-old-one")
    (engine.home / "key.json").unlink(missing_ok=True)
    engine.data.mkdir()
    engine.resume()


def test_row_14_another_engine_at_the_same_address(
    transactional_db: None,
    engine_of_my_own: Callable[..., Engine],
    child_environment: dict[str, str],
) -> None:
    engine = engine_of_my_own()
    witness = register(harm.engine("one").url, "witness")
    host = register(engine.url, "replaced")
    lost = [jobs.make(host, jobs.counting()) for _ in range(2)]
    with harm.worker(child_environment):
        for job in lost:
            until_status(job, "running")
            until_says(job, "line 3\n")
        old_id = ExecutorHost.objects.get(pk=host.pk).engine_id
        with harm.seen(engine) as client:
            ids = {str(harm.container_of(client, job).id) for job in lost}
            replace(engine, ids)
            new_id = client.info()["ID"]
            assert new_id != old_id
        base_image.ensure(engine.url, [BASE_IMAGE])  # so that nothing but the id keeps a job away
        harm.until_health(host, "mismatched")
        pinned = jobs.make(host, "true")
        for job in lost:
            until_status(job, "failed", "completed", seconds=30)
        # Whatever the worker would claim, it claims with these at the latest.
        for _ in range(3):
            until_status(jobs.make(witness, "true"), "completed")
        assert (stored(pinned).status, stored(pinned).attempt) == ("pending", 0)
        assert harm.health_of(host) == "mismatched"
        with harm.seen(engine) as client:
            assert not client.containers.list(all=True, ignore_removed=True), (
                "something was created on the foreign engine"
            )
    for job in lost:
        assert jobs.ended(job) == ("failed", "host_lost", None)
        assert old_id in stored(job).exit_message
        assert new_id in stored(job).exit_message
        jobs.ended_once(job)
        jobs.lines_are_right(job)
    witness.is_active = False
    witness.save(update_fields=["is_active"])
    with pytest.raises(NoEligibleHost, match="replaced"):
        jobs.make(None, "true")
