"""The supervisor: the one thread of a worker that touches the database.

It holds the leases of its hosts, claims jobs into their free slots, has the recorder apply what the host
agents report, and passes cancels on. Everything else happens in the agents' threads.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Collection

from django.core.exceptions import ObjectDoesNotExist
from django.db import DatabaseError, InterfaceError, OperationalError, router
from django.db.models import Q

from container_manager import lifecycle
from container_manager.conf import Settings, get_settings
from container_manager.core.errors import ExecutorError, HostFault, HostMismatch, InvalidJob, LeaseLost
from container_manager.core.policy import enforce
from container_manager.core.reconcile import Verdict
from container_manager.core.states import ACTIVE, FINAL, Status
from container_manager.models import (
    ContainerJob,
    EngineLease,
    ExecutorHost,
    Installation,
    RegisteredWorker,
)
from container_manager.models.admission import move_what_does_not_fit, request_of, spec_of
from container_manager.worker import wakeup
from container_manager.worker.claims import Claimed, Claims, unclaimable
from container_manager.worker.database import DatabaseAway, PatientDatabase
from container_manager.worker.hosts import HostSeat
from container_manager.worker.leases import LeaseKeeper, Tenure
from container_manager.worker.logs import LogBuffer
from container_manager.worker.messages import (
    Exited,
    HostDown,
    HostUp,
    Inbox,
    Key,
    Launched,
    LaunchFailed,
    LogBatch,
    Message,
    Removed,
    Strays,
    Wake,
)
from container_manager.worker.recorder import Held, Recorder
from container_manager.worker.run import Run
from container_manager.worker.strays import NotThisDatabase, judge_strays
from container_manager.worker.upkeep import Upkeep, hosts_given_up

logger = logging.getLogger("container_manager.worker")

HOSTS_SECONDS = 5.0  # how often the host rows are read, and orphaned jobs looked for
_ACTIVE = [status.value for status in ACTIVE]


class Worker:
    """Runs jobs until it is told to stop or, with `once`, until nothing is left to do.

    `hosts`: names to serve, all active ones by default. `only`: ids of the only jobs to run, for a
    foreground run; such a worker yields to one that would serve the engine for good. `drain`: a stop takes no
    new jobs and waits for the end of those that run.
    """

    def __init__(
        self,
        *,
        hosts: Collection[str] = (),
        concurrency: int | None = None,
        poll_interval: float | None = None,
        once: bool = False,
        only: Collection[uuid.UUID] | None = None,
        drain: bool = False,
    ) -> None:
        self.name = f"worker:{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:6]}"
        #: Another worker asked for the engine of a foreground run, and has it or will.
        self.yielded = False
        self._settings: Settings = get_settings()
        self._host_names = list(hosts)
        self._concurrency = concurrency or self._settings.MAX_CONCURRENT_JOBS
        self._poll_interval = poll_interval or self._settings.POLL_INTERVAL
        self._once = once
        self._only = only
        self._drain = drain
        self._draining = False
        self._alias = router.db_for_write(ContainerJob)
        self._inbox = Inbox()
        self._recorder = Recorder(self.name, self._settings)
        self._installation = ""
        self._seats: dict[int, HostSeat] = {}
        self._tenures: dict[str, Tenure] = {}
        self._held: dict[Key, Held] = {}
        self._removed: list[Key] = []
        self._ended: dict[Key, Held] = {}  # recorded, container not yet removed
        self._stop = threading.Event()
        self._due: dict[str, float] = {}
        self._claim_due = True
        self._wakeup: wakeup.Wakeup | None = None
        self._database = PatientDatabase(self._alias, self._stop, self._refresh_held)
        self._claims = Claims(
            self.name, self._seats.values(), self._held.values(), concurrency=self._concurrency, only=only
        )
        self._upkeep = Upkeep(self._settings)
        self._leases = LeaseKeeper(
            self.name,
            self._settings.LEASE_SECONDS,
            lambda: self._inbox.put(Wake()),
            temporary=only is not None,
        )

    # --------------------------------------------------------------------------------- from outside

    def stop(self) -> None:
        """Ask the worker to stop; callable from a signal handler and from any thread.

        Where it is to drain, the first call lets it take no more jobs, and a second one stops it.
        """
        if self._drain and not self._draining:
            self._draining = True
        else:
            self._stop.set()
        self._inbox.put(Wake())

    def run(self) -> list[str]:
        """Work. Returns what could not be done and why: empty unless `once` had to leave jobs behind."""
        left_behind: list[str] = []
        try:
            self._database.attempt(self._enter)
            self._wakeup = wakeup.for_database(self._alias, lambda: self._inbox.put(Wake()))
            while not self._stop.is_set():
                self._turn()
                if self._draining and not self._held and not self._ended:
                    break
                if self._once and self._is_every_due_done():
                    blocked = self._database.attempt(self._what_is_left)
                    if blocked is not None:
                        left_behind = blocked
                        break
        except DatabaseAway as error:
            logger.warning("the database is away at the stop: %s", error)
        finally:
            self._shut_down()
        return left_behind

    def _enter(self) -> None:
        self._installation = Installation.current()
        RegisteredWorker.objects.filter(pk=self.name).delete()  # this is a repetition, its answer was lost
        RegisteredWorker.register(self.name, slots=self._concurrency)

    # ------------------------------------------------------------------------------------- one turn

    def _turn(self) -> None:
        message = self._inbox.get(self._patience())
        for _ in range(500):  # then look after the clock again
            if message is None:
                break
            self._dispatch(message)
            message = self._inbox.get(0)
        try:
            self._database.attempt(self._tick)
        except LeaseLost as error:  # between two statements; what was claimed is adopted by the next holder
            logger.warning("%s", error)
            self._database.attempt(self._drop_lost_leases)

    def _patience(self) -> float:
        if self._claim_due and not self._draining and self._claims.are_possible():
            return 0.0
        waits = [min(self._due.values(), default=0.0) - time.monotonic()]
        look = self._wakeup.look_seconds if self._wakeup is not None else None
        waits += [wait for wait in (look, self._leases.retry_in()) if wait is not None]
        return max(0.0, min(waits))

    def _tick(self) -> None:
        if self._wakeup is not None and self._wakeup.changed():
            self._woken()
        self._every("poll", self._poll_interval, self._look_around)
        self._every("hosts", HOSTS_SECONDS, self._read_hosts)
        self._every("lease", self._settings.LEASE_SECONDS / 4, self._keep_leases)
        self._every("removed", 0.5, self._store_removed)
        self._every("upkeep", self._upkeep.seconds, self._upkeep.work)
        self._stand_by()
        for seat in self._seats.values():
            seat.probe_if_due()
        if "cancel" in self._due and self._due["cancel"] <= time.monotonic():
            del self._due["cancel"]
            self._pass_cancels_on()
        if self._claim_due and not self._draining:
            self._claim()

    def _every(self, name: str, seconds: float, call: Callable[[], None]) -> None:
        now = time.monotonic()
        if self._due.get(name, 0.0) <= now:
            call()
            self._due[name] = now + seconds  # not before: a database error must not use the turn up

    def _woken(self) -> None:
        self._claim_due = True
        if self._held:
            self._due["cancel"] = time.monotonic()

    def _look_around(self) -> None:
        """What no event tells: another attempt is due, a deadline has passed."""
        lifecycle.admit_due()
        lifecycle.expire_waiting(actor=self.name)
        self._woken()

    def _dispatch(self, message: Message) -> None:
        try:
            self._database.attempt(lambda: self._apply(message))
        except LeaseLost as error:
            logger.warning("%s", error)
            self._database.attempt(self._drop_lost_leases)
        except (DatabaseError, ObjectDoesNotExist):
            if not self._drop_if_deleted(message):
                raise
        finally:
            if isinstance(message, LogBatch):
                self._inbox.stored()

    # --------------------------------------------------------------------------------- what happens

    def _apply(self, message: Message) -> None:
        match message:
            case Wake():
                self._woken()
            case HostUp():
                self._host_up(message)
            case HostDown():
                self._host_down(message)
            case Strays():
                self._judge_strays(message)
            case Removed():
                self._ended.pop(message.key, None)
                if message.gone:
                    self._removed.append(message.key)
            case _:
                held = self._held.get(message.key)
                if held is not None:
                    self._apply_to(held, message)

    def _apply_to(self, held: Held, message: Launched | LaunchFailed | LogBatch | Exited) -> None:
        match message:
            case Launched():
                held.seat.breaker.succeeded()
                if not self._recorder.launched(held, message) and held.seat.agent is not None:
                    held.seat.agent.cancel(held.run)
            case LogBatch():
                self._recorder.logs(held, message)
            case LaunchFailed():
                self._recorder.launch_failed(held, message)
                if isinstance(message.error, HostFault):
                    held.seat.breaker.failed(time.monotonic())
                self._let_go(held)
            case Exited():
                self._recorder.exited(held, message)
                self._let_go(held)

    def _drop_if_deleted(self, message: Message) -> bool:
        """Whether the message is about a job whose row somebody deleted: end its container then."""
        held = self._held.get(getattr(message, "key", Key("", 0)))
        if held is None or ContainerJob.objects.filter(pk=held.job.pk).exists():
            return False
        self._drop_deleted(held)
        return True

    def _drop_all_deleted(self) -> None:
        there = ContainerJob.objects.filter(pk__in=[held.job.pk for held in self._held.values()])
        known = set(there.values_list("pk", flat=True)) if self._held else set()
        for held in list(self._held.values()):
            if held.job.pk not in known:
                self._drop_deleted(held)

    def _drop_deleted(self, held: Held) -> None:
        logger.warning("job %s was deleted while it ran; its container is removed", held.job.pk)
        del self._held[held.run.key]
        if held.seat.agent is not None:
            held.seat.agent.forget(held.run)
            held.seat.agent.remove(held.run)

    def _let_go(self, held: Held) -> None:
        del self._held[held.run.key]
        self._claim_due = True
        agent = held.seat.agent
        if agent is None:
            return
        agent.forget(held.run)
        if held.run.container_id and self._settings.IMMEDIATE_CLEANUP:
            self._ended[held.run.key] = held
            agent.remove(held.run)

    def _store_removed(self) -> None:
        if self._removed:
            self._recorder.removed(self._removed)
            self._removed = []

    def _judge_strays(self, message: Strays) -> None:
        seat = self._seats.get(message.host_id)
        if seat is None or seat.agent is None or seat.tenure is None or not seat.tenure.is_valid():
            return
        busy = {held.run.spec.name for held in self._ended.values()}
        try:
            strays = judge_strays(
                [container for container in message.containers if container.name not in busy],
                installation=self._installation,
                engine_now=seat.agent.engine_now(),
                settings=self._settings,
            )
        except NotThisDatabase as error:
            logger.error("nothing is removed on %s: %s", seat.host.name, error)  # noqa: TRY400
            return
        useless = [stray for stray in strays if stray.judgement.verdict is Verdict.REMOVE]
        limit = self._settings.RECONCILE_LIMIT
        if len(useless) > limit:
            logger.warning(
                "%s has %d stray containers; %d are removed in one pass", seat.host.name, len(useless), limit
            )
        dry = self._settings.RECONCILE_DRY_RUN
        for stray in useless[:limit]:
            logger.info(
                "%s the container %s on %s: %s",
                "would remove" if dry else "removing",
                stray.container.name,
                seat.host.name,
                stray.judgement.why,
                extra={"job_id": stray.job_id, "docker_host": seat.host.name},
            )
            if not dry:
                seat.agent.remove_stray(stray.container.container_id, Key(stray.job_id, stray.attempt))

    # ---------------------------------------------------------------------------------------- hosts

    def _read_hosts(self) -> None:
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
            elif host.as_config() != seat.host.as_config() or host.engine_id != seat.host.engine_id:
                self._drain_seat(pk, seat)
            else:
                for name in ("max_concurrent_jobs", "weight", "is_active"):
                    setattr(seat.host, name, getattr(host, name))
        for pk, seat in list(self._seats.items()):
            if pk not in rows:
                self._drain_seat(pk, seat)
            elif seat.agent is not None:
                self._adopt(seat)
        self._drop_all_deleted()
        self._give_up_hosts()

    def _drain_seat(self, pk: int, seat: HostSeat) -> None:
        """No new jobs; what runs is followed to its end; then the seat is left."""
        seat.host.is_active = False
        if not any(held.seat is seat for held in self._held.values()):
            seat.leave(patience=1.0)
            del self._seats[pk]

    def _host_up(self, message: HostUp) -> None:
        seat = self._seats.get(message.host_id)
        if seat is None:
            return
        try:
            seat.came_up(message.facts)
        except HostMismatch as error:
            seat.went_down(error)
            return
        move_what_does_not_fit(seat.host)
        self._claim_due = True
        if seat.agent is None:
            self._take_seat(seat)

    def _host_down(self, message: HostDown) -> None:
        seat = self._seats.get(message.host_id)
        if seat is not None:
            seat.went_down(message.error)

    def _take_seat(self, seat: HostSeat) -> None:
        """Acquire the engine's lease and take over what runs there."""
        assert seat.facts is not None  # noqa: S101 - the host has just answered
        tenure = self._tenure_of(seat.facts.engine_id)
        if tenure is not None:  # else another worker serves it; `_stand_by` tries again
            seat.serve(tenure, installation=self._installation, settings=self._settings)
            self._adopt(seat)

    def _tenure_of(self, engine_id: str) -> Tenure | None:
        tenure = self._tenures.get(engine_id) or self._leases.acquire(engine_id)
        if tenure is not None:
            self._tenures[engine_id] = tenure
        return tenure

    def _stand_by(self) -> None:
        """Take over from another worker as soon as its lease is free, has run out, or it is gone."""
        for seat in self._seats.values():
            if seat.is_vacant and self._leases.may_try(seat.host.engine_id):
                self._take_seat(seat)

    def _adopt(self, seat: HostSeat) -> None:
        for held in self._orphans(seat, seat.tenure):
            self._held[held.run.key] = held
            if seat.agent is not None:
                seat.agent.adopt(held.run)

    def _orphans(self, seat: HostSeat, tenure: Tenure | None) -> list[Held]:
        """The host's active jobs that we do not hold, made ours."""
        if tenure is None or not tenure.is_valid():
            return []
        mine = [(held.job.pk, held.run.key.attempt) for held in self._held.values()]
        orphans = []
        for job, execution in lifecycle.adopt(tenure.lease, seat.host, worker=self.name, held=mine):
            try:
                run = self._make_run(job, as_admitted=True)
            except InvalidJob as refusal:
                # Its row does not even describe a container any more; what runs under its name is a stray.
                logger.warning("job %s is refused: %s", job.pk, refusal, extra={"job_id": str(job.pk)})
                lifecycle.refuse(tenure.lease, job, execution, refusal, worker=self.name)
                continue
            run.logs.restore(
                execution.iter_frames(), chunk_count=execution.log_chunk_count, cursor=execution.log_cursor
            )
            run.engine_log.extend(job.docker_log.splitlines())
            run.announced = run.ever_running = job.status == Status.RUNNING
            run.container_id, run.started_at = execution.container_id, job.started_at
            orphans.append(Held(job=job, execution=execution, run=run, seat=seat))
        return orphans

    def _keep_leases(self) -> None:
        RegisteredWorker.beat(self.name)
        for tenure in list(self._tenures.values()):
            try:
                self._leases.renew(tenure)
            except LeaseLost as error:
                logger.warning("%s", error)
                self._drop_lost_leases()
                continue
            if self._only is not None and EngineLease.is_wanted(tenure.lease):
                logger.info(
                    "another worker asks for the engine %s; it follows the job", tenure.lease.engine_id
                )
                self.yielded = True
                self._stop.set()

    def _drop_lost_leases(self) -> None:
        """Another worker has taken over: stop acting on its hosts; it adopts what runs there."""
        for engine_id, tenure in list(self._tenures.items()):
            if (
                EngineLease.objects.filter(engine_id=engine_id, token=tenure.lease.token)
                .exclude(worker="")
                .exists()
            ):
                continue
            del self._tenures[engine_id]
            for seat in self._seats.values():
                if seat.tenure is tenure:
                    for key in [key for key, held in self._held.items() if held.seat is seat]:
                        del self._held[key]
                    seat.leave(patience=1.0)
                    seat.probe_at = 0.0

    def _give_up_hosts(self) -> None:
        """End the jobs of hosts that are away for too long, or that another engine stands in for."""
        away = [seat.host.pk for seat in self._seats.values() if not seat.reachable]
        if not away:
            return
        for pk, evidence in hosts_given_up(away, self._settings):
            seat = self._seats[pk]
            tenure = seat.tenure or self._tenure_of(seat.host.engine_id)
            if tenure is None:
                continue  # another worker holds it, and comes to the same conclusion
            mine = [held for held in self._held.values() if held.seat is seat]
            for held in mine + self._orphans(seat, tenure):
                self._recorder.lost(held, tenure.lease, evidence)
                self._held.pop(held.run.key, None)
                if seat.agent is not None:
                    seat.agent.forget(held.run)

    # --------------------------------------------------------------------------------------- claims

    def _claim(self) -> None:
        """Fill the free slots. Raises LeaseLost."""
        self._claim_due = False
        for seat, pairs in self._claims.take():
            for pair in pairs:
                self._launch(pair, seat)

    def _launch(self, pair: Claimed, seat: HostSeat) -> None:
        job, execution = pair
        assert seat.tenure is not None  # noqa: S101 - as the agent below
        try:
            enforce(request_of(job), self._settings.policy(), cpus=seat.host.cpus, host_name=seat.host.name)
            run = self._make_run(job)
        except InvalidJob as refusal:  # admitted once; settings, host or row have changed since
            logger.warning("job %s is refused: %s", job.pk, refusal, extra={"job_id": str(job.pk)})
            lifecycle.refuse(seat.tenure.lease, job, execution, refusal, worker=self.name)
            return
        self._held[run.key] = Held(job=job, execution=execution, run=run, seat=seat)
        assert seat.agent is not None  # noqa: S101 - jobs are claimed for serving seats alone
        seat.agent.launch(run)

    def _make_run(self, job: ContainerJob, *, as_admitted: bool = False) -> Run:
        key = Key(str(job.pk), job.attempt)
        spec = spec_of(job, self._installation, as_admitted=as_admitted)
        left = lifecycle.deadline_left(job)
        inbox = self._inbox
        logs = LogBuffer(
            column_bytes=self._settings.LOG_COLUMN_BYTES,
            max_bytes=self._settings.LOG_MAX_BYTES,
            emit=lambda chunk, state, block: inbox.put_log(
                LogBatch(key=key, chunk=chunk, state=state), block=block
            ),
        )
        return Run(
            key=key,
            spec=spec,
            timeout_seconds=job.timeout_seconds,
            grace_seconds=self._settings.STOP_GRACE_SECONDS,
            deadline_at=None if left is None else time.monotonic() + left,
            logs=logs,
        )

    # -------------------------------------------------------------------------------------- cancels

    def _pass_cancels_on(self) -> None:
        """Find jobs of ours that somebody wants ended, or has ended already."""
        ids = [held.job.pk for held in self._held.values()]
        wanted = (
            ContainerJob.objects.filter(pk__in=ids)
            .filter(Q(cancel_requested_at__isnull=False) | ~Q(status__in=_ACTIVE))
            .values_list("pk", "attempt")
        )
        for pk, attempt in wanted:
            held = self._held.get(Key(str(pk), attempt))
            if held is not None and held.seat.agent is not None:
                held.seat.agent.cancel(held.run)

    # ------------------------------------------------------------------------------------- endings

    def _is_every_due_done(self) -> bool:
        return not self._held and not self._ended and not self._claim_due and bool(self._due)

    def _what_is_left(self) -> list[str] | None:
        """None: there is work yet. Else what has to be left behind, which is nothing when all is done."""
        scope = ContainerJob.objects.exclude(status__in=[status.value for status in FINAL])
        if self._only is not None:
            scope = scope.filter(pk__in=list(self._only))
        if self._host_names:
            scope = scope.filter(docker_host__name__in=self._host_names)
        open_jobs = list(scope.values_list("docker_host_id", "docker_host__name").distinct())
        return unclaimable(open_jobs, self._seats)

    def _shut_down(self) -> None:
        """Leave the containers running, store what is known, and give the leases back."""
        deadline = time.monotonic() + self._settings.SHUTDOWN_GRACE_SECONDS
        self._stop.set()
        self._leases.close()
        for seat in self._seats.values():
            if seat.agent is not None:
                seat.agent.flush_logs()
        threads = [
            threading.Thread(
                target=seat.leave, kwargs={"patience": max(0.0, deadline - time.monotonic())}, daemon=True
            )
            for seat in self._seats.values()
        ]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads) and time.monotonic() < deadline:
            message = self._inbox.get(0.05)
            if message is not None:
                self._last_word(message)
        self._inbox.close()
        while (message := self._inbox.get(0)) is not None:
            self._last_word(message)
        try:
            self._store_removed()
            for tenure in self._tenures.values():
                EngineLease.release(tenure.lease)
            RegisteredWorker.leave(self.name)
        except (OperationalError, InterfaceError) as error:
            logger.warning("the database is away at the stop; the leases run out by themselves: %s", error)
        if self._wakeup is not None:
            self._wakeup.close()
        logger.info("stopped; %d jobs run on and will be adopted by the next worker", len(self._held))

    def _last_word(self, message: Message) -> None:
        if isinstance(message, LogBatch):
            self._inbox.stored()
        if isinstance(message, HostUp | HostDown | Strays | Wake):
            return
        try:
            self._apply(message)
        except (OperationalError, InterfaceError, LeaseLost, ExecutorError) as error:
            logger.warning("not stored at the stop, the next worker finds it again: %s", error)

    # ------------------------------------------------------------------------------------- database

    def _refresh_held(self) -> None:
        """A transaction that failed may have left its marks on our instances: read them again."""
        for held in list(self._held.values()):
            with contextlib.suppress(ContainerJob.DoesNotExist):  # told when its container ends
                held.job.refresh_from_db(fields=_MOVED_FIELDS)


#: What a transition changes on an instance.
_MOVED_FIELDS = ["status", "attempt", "lease_token", "started_at", "failed_attempts", "not_before"]
