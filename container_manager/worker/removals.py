"""Containers on their way out: those of ended attempts, and strays."""

from __future__ import annotations

import logging

from container_manager.conf import Settings
from container_manager.worker.agent import HostAgent
from container_manager.worker.hands import Hands
from container_manager.worker.hosts import HostSeat
from container_manager.worker.messages import Key, Removed, Started, Strays
from container_manager.worker.recorder import Held, Recorder
from container_manager.worker.strays import NotThisDatabase, Stray, judge_strays

logger = logging.getLogger("container_manager.worker")


class Removals:
    """What was asked to go and what went. For the supervisor's thread alone.

    Its length is the number of recorded attempts whose container is still to go.
    """

    def __init__(self, settings: Settings, recorder: Recorder) -> None:
        self._settings = settings
        self._recorder = recorder
        self._going: dict[Key, str] = {}  # by attempt, the container's name
        self._gone: list[Key] = []
        self._notes: dict[Key, str] = {}  # what to put into a stray's record once it is removed

    def __len__(self) -> int:
        return len(self._going)

    def begin(self, held: Held, agent: HostAgent) -> None:
        """Its end is recorded: have the container removed, unless the settings keep it."""
        if held.run.container_id and self._settings.IMMEDIATE_CLEANUP:
            agent.remove(held.run)
            self._going[held.run.key] = held.run.spec.name

    def started_again(self, message: Started) -> None:
        """A start of what is not ours any more: one that is to go; another is a stray, and judged as one."""
        if message.key in self._going:
            self._recorder.started_again(message.key, message.at)

    def came_to_an_end(self, message: Removed) -> None:
        """A removal was carried out, or failed; the next comparison finds what is left."""
        self._going.pop(message.key, None)
        if not message.gone:
            return
        self._gone.append(message.key)
        why = self._notes.get(message.key)
        if why is not None:
            self._recorder.stray_removed(message.key, why)
            del self._notes[message.key]

    def store(self) -> None:
        """Write down what went since the last call."""
        if self._gone:
            self._recorder.removed(self._gone)
            self._gone = []

    def clear(self, message: Strays, seat: HostSeat, hands: Hands) -> None:
        """Hold containers that no run knows against the database, and have the useless ones removed.

        No run of that seat: two hosts may be two ways to one engine, and then each lists what the other runs.
        """
        if seat.agent is None or seat.tenure is None or not seat.tenure.is_valid():
            return
        busy = set(self._going.values()) | {held.run.spec.name for held in hands}
        try:
            strays = judge_strays(
                [container for container in message.containers if container.name not in busy],
                installation=hands.installation,
                engine_now=seat.agent.engine_now(),
                settings=self._settings,
            )
        except NotThisDatabase as error:
            logger.error("nothing is removed on %s: %s", seat.host.name, error)  # noqa: TRY400
            return
        useless = [stray for stray in strays if stray.is_useless]
        limit = self._settings.RECONCILE_LIMIT
        if len(useless) > limit:
            logger.warning(
                "%s has %d stray containers; %d are removed in one pass", seat.host.name, len(useless), limit
            )
        for stray in useless[:limit]:
            self._clear_one(stray, seat.host.name, seat.agent)

    def _clear_one(self, stray: Stray, host_name: str, agent: HostAgent) -> None:
        dry = self._settings.RECONCILE_DRY_RUN
        logger.info(
            "%s the container %s on %s: %s",
            "would remove" if dry else "removing",
            stray.container.name,
            host_name,
            stray.judgement.why,
            extra={"job_id": stray.job_id, "docker_host": host_name},
        )
        if dry:
            return
        key = Key(stray.job_id, stray.attempt)
        if stray.is_alive and stray.is_known:
            self._notes[key] = stray.judgement.why
        agent.remove_stray(stray.container.container_id, key)
