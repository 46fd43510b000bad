"""The hosts of one worker: which it serves, under which lease, and what it finds there."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from django.db.models import Q

from container_manager import lifecycle
from container_manager.conf import Settings
from container_manager.core.errors import HostFault, HostMismatch, InvalidJob, LeaseLost
from container_manager.core.inert import inert_line
from container_manager.core.states import Status
from container_manager.models import ContainerJob, EngineLease, ExecutionMetadata, ExecutorHost
from container_manager.models.admission import move_what_does_not_fit
from container_manager.records import stored_chunks, stored_state
from container_manager.worker.database import is_of_one
from container_manager.worker.hands import Hands
from container_manager.worker.hosts import HostSeat
from container_manager.worker.leases import LeaseKeeper, Tenure
from container_manager.worker.messages import HostDown, HostUp, Inbox, Key
from container_manager.worker.recorder import Held, Recorder
from container_manager.worker.upkeep import hosts_given_up

logger = logging.getLogger("container_manager.worker")

_NO_HOST = "no host is registered; `manage.py register_local_host` adds this machine's engine"
_NO_ACTIVE_HOST = "no host that this worker may serve is active"
#: How often a host at which this worker itself failed is asked again.
FAILED_PROBE_SECONDS = 10.0


class Seats:
    """Sits down at hosts, takes over what runs there, and leaves. For the supervisor's thread alone.

    What fails at one host is that host's matter: it is down, with the error's text, and the others go on.
    """

    def __init__(
        self,
        worker: str,
        settings: Settings,
        inbox: Inbox,
        hands: Hands,
        recorder: Recorder,
        leases: LeaseKeeper,
        *,
        host_names: Collection[str],
    ) -> None:
        self._worker = worker
        self._settings = settings
        self._inbox = inbox
        self._hands = hands
        self._recorder = recorder
        self._leases = leases
        self._host_names = list(host_names)
        self._seats: dict[int, HostSeat] = {}
        self._tenures: dict[str, Tenure] = {}
        self._said: dict[int, str] = {}  # by host, 0: of all; what we wait for, each once
        self._failed: dict[int, str] = {}  # by host; what of it was logged with its traceback

    def __iter__(self) -> Iterator[HostSeat]:
        return iter(list(self._seats.values()))

    def __len__(self) -> int:
        return len(self._seats)

    def get(self, host_id: int) -> HostSeat | None:
        """Our seat at a host."""
        return self._seats.get(host_id)

    # ---------------------------------------------------------------------------------- now and then

    def read_hosts(self) -> None:
        """Sit down at new hosts, leave those that are gone, adopt what is in nobody's hands."""
        # One that gets no new jobs may have some left to be followed.
        busy = ContainerJob.objects.active().values("docker_host")
        wanted = ExecutorHost.objects.filter(Q(is_active=True) | Q(pk__in=busy))
        if self._host_names:
            wanted = wanted.filter(name__in=self._host_names)
        rows = {host.pk: host for host in wanted}
        for pk, host in rows.items():
            seat = self._seats.get(pk)
            if seat is None:
                self._seats[pk] = HostSeat(host, self._inbox)
            elif not host.is_reached_like(seat.host) or host.engine_id != seat.host.engine_id:
                with self._contained(seat):
                    self._empty(pk, seat)
            else:
                for name in ("max_concurrent_jobs", "weight", "is_active"):
                    setattr(seat.host, name, getattr(host, name))
        for pk, seat in list(self._seats.items()):
            with self._contained(seat):
                if pk not in rows:
                    self._empty(pk, seat)
                elif seat.agent is not None:
                    self._adopt(seat)
        if rows:
            self._said.pop(0, None)
        else:
            self._say(0, _NO_ACTIVE_HOST if ExecutorHost.objects.exists() else _NO_HOST)
        self._give_up_hosts()

    def probe(self) -> None:
        """Ask those hosts how they are of whom it is time to know."""
        for seat in self:
            with self._contained(seat):
                seat.probe_if_due()

    def keep_leases(self) -> None:
        """Prolong every tenure."""
        for tenure in list(self._tenures.values()):
            try:
                self._leases.renew(tenure)
            except LeaseLost as error:
                logger.warning("%s", error)
                self.drop_lost_leases()

    def are_wanted(self) -> bool:
        """Whether another worker asks for one of our engines."""
        return any(EngineLease.is_wanted(tenure.lease) for tenure in self._tenures.values())

    def stand_by(self) -> None:
        """Take over from another worker as soon as its lease is free, has run out, or it is gone."""
        for seat in self:
            if seat.is_vacant and self._leases.may_try(seat.host.engine_id):
                with self._contained(seat):
                    self._sit_down(seat)

    def drop_lost_leases(self) -> None:
        """Another worker has taken over: stop acting on its hosts; it adopts what runs there."""
        for engine_id, tenure in list(self._tenures.items()):
            if EngineLease.is_held(tenure.lease):
                continue
            tenure.end()
            del self._tenures[engine_id]
            for seat in self:
                if seat.tenure is tenure:
                    for held in self._hands.on(seat):
                        self._hands.drop(held)
                    seat.leave(patience=1.0)
                    seat.probe_at = 0.0

    def release_leases(self) -> None:
        """Give them back, so that the next worker need not wait."""
        for tenure in self._tenures.values():
            tenure.end()  # first: a launch in flight must not start what the next holder gives back
            EngineLease.release(tenure.lease)

    def vacant_engines(self) -> list[str]:
        """The engines that answer and that somebody else serves."""
        return [seat.host.engine_id for seat in self if seat.is_vacant]

    # ---------------------------------------------------------------------------------- what happens

    def came_up(self, message: HostUp) -> None:
        """A host answers."""
        seat = self._seats.get(message.host_id)
        if seat is None or not seat.is_ready:
            return  # the late word of an agent that was left; the next probe tells how it is now
        with self._contained(seat):
            try:
                seat.came_up(message.facts, record=self._may_record(seat))
            except HostMismatch as error:
                seat.went_down(error, record=self._may_record(seat))
                return
            move_what_does_not_fit(seat.host)
            if seat.agent is None:
                self._sit_down(seat)
            self._failed.pop(seat.host.pk, None)

    def went_down(self, message: HostDown) -> None:
        """A host does not answer, or as somebody else."""
        seat = self._seats.get(message.host_id)
        if seat is not None:
            self._failed.pop(seat.host.pk, None)
            seat.went_down(message.error, record=self._may_record(seat))

    # --------------------------------------------------------------------------------------- insides

    @contextmanager
    def _contained(self, seat: HostSeat) -> Iterator[None]:
        """What fails within is this host's matter, unless the database or the lease is gone for all."""
        try:
            yield
        except Exception as error:
            if not is_of_one(error):
                raise
            text = inert_line(f"the worker failed at it: {type(error).__name__}: {error}")
            if self._failed.get(seat.host.pk) != text:  # once, and not with each look
                logger.exception("host %s failed; the others go on", seat.host.name)
                self._failed[seat.host.pk] = text
            seat.went_down(HostFault(text), record=self._may_record(seat))
            seat.probe_at = time.monotonic() + FAILED_PROBE_SECONDS

    def _say(self, about: int, text: str) -> None:
        """Tell what we wait for, when that has changed: who looks at a quiet worker wants to know."""
        if self._said.get(about) != text:
            self._said[about] = text
            logger.info("%s", text)

    def _empty(self, pk: int, seat: HostSeat) -> None:
        """No new jobs; what runs is followed to its end; then the seat is left."""
        seat.host.is_active = False
        if not self._hands.on(seat):
            seat.leave(patience=1.0)
            del self._seats[pk]
            self._release_if_idle(seat.host.engine_id)
            self._said.pop(pk, None)
            self._failed.pop(pk, None)

    def _sit_down(self, seat: HostSeat) -> None:
        """Acquire the engine's lease and take over what runs there."""
        assert seat.facts is not None  # noqa: S101 - the host has answered
        tenure = self._tenure_of(seat.facts.engine_id)
        if tenure is None:  # another worker serves it; `stand_by` tries again
            holder = EngineLease.holder(seat.facts.engine_id) or "another worker"
            self._say(seat.host.pk, f"host {seat.host.name} is served by {holder}; standing by")
            return
        self._said.pop(seat.host.pk, None)
        seat.serve(tenure, installation=self._hands.installation, settings=self._settings)
        self._adopt(seat)

    def _may_record(self, seat: HostSeat) -> bool:
        """How a host is, its worker says: from another machine the same address may be another engine."""
        engine_id = seat.host.engine_id
        return not engine_id or EngineLease.holder(engine_id) in {"", self._worker}

    def _release_if_idle(self, engine_id: str) -> None:
        """Let go of an engine at which no seat of ours is left."""
        if any(seat.agent is not None and seat.host.engine_id == engine_id for seat in self):
            return
        self._leases.forget(engine_id)
        tenure = self._tenures.pop(engine_id, None)
        if tenure is not None:
            tenure.end()
            EngineLease.release(tenure.lease)

    def _tenure_of(self, engine_id: str) -> Tenure | None:
        tenure = self._tenures.get(engine_id) or self._leases.acquire(engine_id)
        if tenure is not None:
            self._tenures[engine_id] = tenure
        return tenure

    def _adopt(self, seat: HostSeat) -> None:
        for held in self._orphans(seat, seat.tenure):
            self._hands.take(held)
            if seat.agent is not None:
                seat.agent.adopt(held.run)
        self._give_up_stranded(seat)

    def _orphans(self, seat: HostSeat, tenure: Tenure | None) -> list[Held]:
        """The host's active jobs that we do not hold, made ours."""
        if tenure is None or not tenure.is_valid():
            return []
        adopted = lifecycle.adopt(tenure.lease, seat.host, worker=self._worker, held=self._ours())
        found = [self._hold(seat, tenure, job, execution) for job, execution in adopted]
        return [held for held in found if held is not None]

    def _give_up_stranded(self, seat: HostSeat) -> None:
        """End the host's jobs that are on an engine which it has left, and which nobody follows there."""
        tenure = seat.tenure
        if tenure is None or not tenure.is_valid():
            return
        stranded = lifecycle.adopt_stranded(tenure.lease, seat.host, worker=self._worker, held=self._ours())
        for job, execution in stranded:
            held = self._hold(seat, tenure, job, execution)
            if held is not None:
                evidence = f"The job ran on the engine {execution.engine_id}, which its host has left for "
                self._lose(held, f"{evidence}the engine {tenure.lease.engine_id}.")

    def _hold(
        self, seat: HostSeat, tenure: Tenure, job: ContainerJob, execution: ExecutionMetadata
    ) -> Held | None:
        """Make an adopted job ours; what fails with it is its matter alone, and it is left for a while."""
        with self._hands.sparing_others(Key(str(job.pk), job.attempt)):
            return self._taken_over(seat, tenure, job, execution)
        return None

    def _taken_over(
        self, seat: HostSeat, tenure: Tenure, job: ContainerJob, execution: ExecutionMetadata
    ) -> Held | None:
        try:
            run = self._hands.make_run(job, as_admitted=True)
        except InvalidJob as refusal:
            # Its row does not even describe a container any more; what runs under its name is a stray.
            logger.warning("job %s is refused: %s", job.pk, refusal, extra={"job_id": str(job.pk)})
            lifecycle.refuse(tenure.lease, job, execution, refusal, worker=self._worker)
            return None
        run.logs.restore(
            stored_state(execution),
            from_start=stored_chunks(execution),
            from_end=stored_chunks(execution, backwards=True),
        )
        run.engine_log.restore(job.docker_log)
        run.announced = run.ever_running = job.status == Status.RUNNING
        run.container_id, run.started_at = execution.container_id, job.started_at
        return Held(job=job, execution=execution, run=run, seat=seat, lease=tenure.lease)

    def _give_up_hosts(self) -> None:
        """End the jobs of hosts that are away for too long, or that another engine stands in for."""
        # Not those at which we fail ourselves: that is no evidence against what runs there.
        down = [seat for seat in self if not seat.reachable and seat.host.pk not in self._failed]
        away = {seat.host.pk: seat.absence() for seat in down}
        seen_down = {pk: absence for pk, absence in away.items() if absence is not None}
        if not seen_down:
            return
        for pk, evidence in hosts_given_up(seen_down, self._settings):
            seat = self._seats[pk]
            tenure = seat.tenure or self._tenure_of(seat.host.engine_id)
            if tenure is None:
                continue  # another worker holds it, and comes to the same conclusion
            for held in self._hands.on(seat) + self._orphans(seat, tenure):
                self._lose(held, evidence)
            self._release_if_idle(seat.host.engine_id)

    def _lose(self, held: Held, evidence: str) -> None:
        """End a job whose container nobody will see again; what fails with it is its matter alone."""
        with self._hands.sparing_others(held.run.key):
            self._recorder.lost(held, evidence)
            self._hands.let_go(held)

    def _ours(self) -> list[tuple[uuid.UUID, int]]:
        """The (id, attempt) of what is not to be adopted now: what we hold, and what is laid aside."""
        return [(held.job.pk, held.run.key.attempt) for held in self._hands] + self._hands.resting()
