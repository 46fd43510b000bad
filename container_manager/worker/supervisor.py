"""The supervisor: the one thread of a worker that touches the database.

It holds the leases of its hosts, claims jobs into their free slots, has the recorder apply what the host
agents report, and passes cancels on. Everything else happens in the agents' threads.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
import uuid
from collections.abc import Callable, Collection

from django.db import DatabaseError, InterfaceError, router
from django.db.models import Q

from container_manager import lifecycle
from container_manager.conf import Settings, get_settings
from container_manager.core.errors import HostFault, InvalidJob, LeaseLost, NeverStarted
from container_manager.core.policy import enforce
from container_manager.core.states import ACTIVE, FINAL
from container_manager.models import (
    ContainerJob,
    Installation,
    RegisteredWorker,
)
from container_manager.models.admission import request_of
from container_manager.worker import wakeup
from container_manager.worker.claims import Claimed, Claims, unclaimable
from container_manager.worker.database import DatabaseAway, PatientDatabase, is_cut_short, is_of_one
from container_manager.worker.hands import Hands
from container_manager.worker.hosts import HostSeat
from container_manager.worker.leases import LeaseKeeper
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
    Started,
    Strays,
    Wake,
)
from container_manager.worker.recorder import Held, Recorder
from container_manager.worker.removals import Removals
from container_manager.worker.seats import Seats
from container_manager.worker.upkeep import Upkeep

logger = logging.getLogger("container_manager.worker")

HOSTS_SECONDS = 5.0  # how often the host rows are read, and orphaned jobs looked for
CUT_SHORT_SECONDS = 1.0  # between two turns that the database was too slow for
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
        self.name = RegisteredWorker.new_name("worker")
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
        self._said_left = 0
        self._fallen: list[Held] = []  # at the stop: what the next worker finds where we left it
        self._alias = router.db_for_write(ContainerJob)
        self._inbox = Inbox()
        self._recorder = Recorder(self.name, self._settings)
        self._hands = Hands(self._settings, self._inbox)
        self._removals = Removals(self._settings, self._recorder)
        self._stop = threading.Event()
        self._due: dict[str, float] = {}
        self._claim_due = True
        self._wakeup: wakeup.Wakeup | None = None
        self._database = PatientDatabase(self._alias, self._stop, self._refresh_held)
        self._upkeep = Upkeep(self._settings)
        self._leases = LeaseKeeper(
            self.name,
            self._settings.LEASE_SECONDS,
            lambda: self._inbox.put(Wake()),
            temporary=only is not None,
        )
        self._seats = Seats(
            self.name,
            self._settings,
            self._inbox,
            self._hands,
            self._recorder,
            self._leases,
            host_names=hosts,
        )
        self._claims = Claims(self.name, self._seats, self._hands, concurrency=self._concurrency, only=only)

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
                if self._draining and not self._hands and not self._removals:
                    break
                self._say_what_is_left()
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
        self._hands.installation = Installation.current()
        RegisteredWorker.objects.filter(pk=self.name).delete()  # this is a repetition, its answer was lost
        RegisteredWorker.register(self.name, slots=self._concurrency)

    # ------------------------------------------------------------------------------------- one turn

    def _turn(self) -> None:
        message = self._inbox.get(self._patience())
        for _ in range(500):  # then look after the clock again
            if message is None:
                break
            self._dispatch(message)
            message = None if self._stop.is_set() else self._inbox.get(0)  # at the stop: see `_shut_down`
        try:
            self._database.attempt(self._tick)
        except LeaseLost as error:  # between two statements; what was claimed is adopted by the next holder
            logger.warning("%s", error)
            self._database.attempt(self._seats.drop_lost_leases)
        except DatabaseError as error:
            if not is_cut_short(error):
                raise
            # The database is there, and may store what was reported meanwhile: that must not wait for this.
            logger.warning("database: %s; left for the next turn", str(error).strip())
            self._stop.wait(CUT_SHORT_SECONDS)

    def _patience(self) -> float:
        if self._claim_due and not self._draining and self._claims.are_possible():
            return 0.0
        waits = [min(self._due.values(), default=0.0) - time.monotonic()]
        look = self._wakeup.look_seconds if self._wakeup is not None else None
        waits += [
            wait for wait in (look, self._leases.retry_in(self._seats.vacant_engines())) if wait is not None
        ]
        return max(0.0, min(waits))

    def _tick(self) -> None:
        if self._wakeup is not None and self._wakeup.changed():
            self._woken()
        self._every("lease", self._settings.LEASE_SECONDS / 4, self._keep_leases)  # first: all rests on it
        self._every("poll", self._poll_interval, self._look_around)
        self._every("hosts", HOSTS_SECONDS, self._mind_hosts)
        self._every("removed", 0.5, self._removals.store)
        self._every("upkeep", self._upkeep.seconds, self._upkeep.work)
        self._seats.stand_by()
        self._seats.probe()
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
        if self._hands:
            self._due["cancel"] = time.monotonic()

    def _mind_hosts(self) -> None:
        self._seats.read_hosts()
        self._drop_all_deleted()

    def _keep_leases(self) -> None:
        RegisteredWorker.beat(self.name)
        self._seats.keep_leases()
        if self._only is not None and self._seats.are_wanted():
            logger.info("another worker asks for the engine of this foreground run; it follows the job")
            self.yielded = True
            self._stop.set()

    def _look_around(self) -> None:
        """What no event tells: another attempt is due, a deadline has passed."""
        lifecycle.admit_due()
        lifecycle.expire_waiting(actor=self.name)
        self._woken()

    def _dispatch(self, message: Message) -> None:
        """Apply a message, at work and at the stop alike.

        What cannot be stored of a run lets go of the run: nothing later of it may be stored by us, or the log
        would have a gap behind which the cursor says that all is well. Whoever has it next, we or another
        worker, reads on from what is stored.
        """
        try:
            self._database.attempt(lambda: self._apply(message))
        except LeaseLost as error:
            logger.warning("%s", error)
            self._let_fall(message)
            self._due["lease"] = 0.0  # in this very turn: which of them are lost
        except DatabaseAway as error:
            logger.warning("not stored at the stop, the next worker finds it again: %s", error)
            self._fallen += self._let_fall(message)
        except Exception as error:  # noqa: BLE001 - logged with its traceback there
            # One job's, or a mistake of ours about one: neither this worker nor, after it, the next may die.
            self._contain(message, error)
        finally:
            if isinstance(message, LogBatch):
                self._inbox.stored()

    def _let_fall(self, message: Message) -> list[Held]:
        held = self._held_of(message)
        if held is None:
            return []
        self._hands.let_go(held)
        return [held]

    def _contain(self, message: Message, error: Exception) -> None:
        held = self._held_of(message)
        if held is None:
            logger.error("not applied: %s", message, exc_info=error)
            return
        try:
            there = self._database.attempt(ContainerJob.objects.filter(pk=held.job.pk).exists)
        except (DatabaseAway, DatabaseError, InterfaceError):
            there = True  # as far as we know
        if there:
            self._hands.lay_aside(held.run.key, error)
        else:
            self._drop_deleted(held)

    def _held_of(self, message: Message) -> Held | None:
        key = getattr(message, "key", None)
        return None if key is None else self._hands.of(key)

    # --------------------------------------------------------------------------------- what happens

    def _apply(self, message: Message) -> None:
        match message:
            case Wake():
                self._woken()
            case HostUp():
                self._seats.came_up(message)
                self._claim_due = True
            case HostDown():
                self._seats.went_down(message)
            case Strays():
                seat = self._seats.get(message.host_id)
                if seat is not None:
                    self._removals.clear(message, seat, self._hands)
            case Started():
                self._removals.started_again(message)
            case Removed():
                self._removals.came_to_an_end(message)
            case _:
                held = self._hands.of(message.key)
                if held is not None:
                    self._apply_to(held, message)

    def _apply_to(self, held: Held, message: Launched | LaunchFailed | LogBatch | Exited) -> None:
        match message:
            case Launched():
                held.seat.breaker.succeeded()
                agent = held.seat.agent
                if not self._recorder.launched(held, message) and agent is not None:
                    agent.cancel(held.run)
            case LogBatch():
                self._recorder.logs(held, message)
            case LaunchFailed():
                self._recorder.launch_failed(held, message)
                if isinstance(message.error, HostFault) and not isinstance(message.error, NeverStarted):
                    held.seat.breaker.failed(time.monotonic())
                self._let_go(held)
            case Exited():
                self._recorder.exited(held, message)
                self._let_go(held)

    def _drop_all_deleted(self) -> None:
        there = ContainerJob.objects.filter(pk__in=[held.job.pk for held in self._hands])
        known = set(there.values_list("pk", flat=True)) if self._hands else set()
        for held in self._hands:
            if held.job.pk not in known:
                self._drop_deleted(held)

    def _drop_deleted(self, held: Held) -> None:
        logger.warning("job %s was deleted while it ran; its container is removed", held.job.pk)
        self._hands.let_go(held)
        agent = held.seat.agent
        if agent is not None:
            agent.remove(held.run)

    def _let_go(self, held: Held) -> None:
        self._hands.let_go(held)
        self._claim_due = True
        agent = held.seat.agent
        if agent is not None:
            self._removals.begin(held, agent)

    # --------------------------------------------------------------------------------------- claims

    def _claim(self) -> None:
        """Fill the free slots. Raises LeaseLost."""
        self._claim_due = False
        for seat, pairs in self._claims.take():
            for pair in pairs:
                job, _ = pair
                with self._hands.sparing_others(Key(str(job.pk), job.attempt)):
                    self._launch(pair, seat)

    def _launch(self, pair: Claimed, seat: HostSeat) -> None:
        job, execution = pair
        assert seat.tenure is not None  # noqa: S101 - as the agent below
        try:
            enforce(request_of(job), self._settings.policy(), cpus=seat.host.cpus, host_name=seat.host.name)
            run = self._hands.make_run(job)
        except InvalidJob as refusal:  # admitted once; settings, host or row have changed since
            logger.warning("job %s is refused: %s", job.pk, refusal, extra={"job_id": str(job.pk)})
            lifecycle.refuse(seat.tenure.lease, job, execution, refusal, worker=self.name)
            return
        lease = seat.tenure.lease
        self._hands.take(Held(job=job, execution=execution, run=run, seat=seat, lease=lease))
        assert seat.agent is not None  # noqa: S101 - jobs are claimed for serving seats alone
        seat.agent.launch(run)

    # -------------------------------------------------------------------------------------- cancels

    def _pass_cancels_on(self) -> None:
        """Find jobs of ours that somebody wants ended, or has ended already."""
        ids = [held.job.pk for held in self._hands]
        wanted = (
            ContainerJob.objects.filter(pk__in=ids)
            .filter(Q(cancel_requested_at__isnull=False) | ~Q(status__in=_ACTIVE))
            .values_list("pk", "attempt")
        )
        for pk, attempt in wanted:
            held = self._hands.get(Key(str(pk), attempt))
            if held is not None and held.seat.agent is not None:
                held.seat.agent.cancel(held.run)

    # ------------------------------------------------------------------------------------- endings

    def _is_every_due_done(self) -> bool:
        return not self._hands and not self._removals and not self._claim_due and bool(self._due)

    def _what_is_left(self) -> list[str] | None:
        """None: there is work yet. Else what has to be left behind, which is nothing when all is done."""
        scope = ContainerJob.objects.exclude(status__in=[status.value for status in FINAL])
        if self._only is not None:
            scope = scope.filter(pk__in=list(self._only))
        if self._host_names:
            scope = scope.filter(docker_host__name__in=self._host_names)
        resting = scope.filter(pk__in=[pk for pk, _ in self._hands.resting()]).values_list("pk", flat=True)
        failed = [f"job {pk}: it failed in this worker's hands" for pk in resting]
        open_jobs = scope.exclude(pk__in=list(resting)).values_list("docker_host_id", "docker_host__name")
        blocked = unclaimable(list(open_jobs.distinct()), self._seats)
        return None if blocked is None else blocked + failed

    def _shut_down(self) -> None:
        """Leave the containers running, store what is known, and give the leases back."""
        deadline = time.monotonic() + self._settings.SHUTDOWN_GRACE_SECONDS
        self._stop.set()
        self._leases.close()
        for seat in self._seats:
            if seat.agent is not None:
                seat.agent.flush_logs()
        threads = [
            threading.Thread(
                target=seat.leave, kwargs={"patience": max(0.0, deadline - time.monotonic())}, daemon=True
            )
            for seat in self._seats
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
        for step in (self._seats.release_leases, self._removals.store, self._leave):
            try:
                step()
            except (DatabaseError, InterfaceError) as error:
                text = "the database fails at the stop: %s; the leases run out by themselves"
                logger.warning(text, str(error).strip(), exc_info=is_of_one(error))
        if self._wakeup is not None:
            self._wakeup.close()
        logger.info("stopped; %s", self._what_goes_on())

    def _last_word(self, message: Message) -> None:
        if not isinstance(message, HostUp | HostDown | Strays):  # no seat is taken any more, nothing cleared
            self._dispatch(message)

    def _leave(self) -> None:
        RegisteredWorker.leave(self.name)

    def _say_what_is_left(self) -> None:
        left = len(self._hands)
        if self._draining and left and left != self._said_left:
            self._said_left = left
            logger.info("draining: %s left", _jobs(left))

    def _what_goes_on(self) -> str:
        """What the next worker finds."""
        left = [*self._hands, *self._fallen]
        running = sum(1 for held in left if held.run.ever_running)
        parts = []
        if running:
            verbs = "runs on and is" if running == 1 else "run on and are"
            parts.append(f"{_jobs(running)} {verbs} adopted by the next worker")
        if len(left) > running:
            verbs = "was being launched and is" if len(left) - running == 1 else "were being launched and are"
            parts.append(f"{_jobs(len(left) - running)} {verbs} looked after by the next worker")
        return "; ".join(parts) or "nothing was running"

    # ------------------------------------------------------------------------------------- database

    def _refresh_held(self) -> None:
        """A transaction that failed may have left its marks on our instances: read them again."""
        for held in self._hands:
            with contextlib.suppress(ContainerJob.DoesNotExist):  # told when its container ends
                held.job.refresh_from_db(fields=_MOVED_FIELDS)


def _jobs(number: int) -> str:
    return "1 job" if number == 1 else f"{number} jobs"


#: What a transition changes on an instance. Not attempt and token: by these we tell what is ours, and a
#: repeated statement has to miss a row that is another worker's by now.
_MOVED_FIELDS = ["status", "started_at", "failed_attempts", "not_before"]
