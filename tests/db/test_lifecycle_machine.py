"""The state machine against a model of it: whatever the order of events, the rows say what the model says.

Two workers with leases, a user who cancels, edits and saves, all interleaved by Hypothesis. A failure
prints the steps and a blob that repeats them (`@reproduce_failure`).
"""

from __future__ import annotations

import copy
import itertools
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.utils import timezone
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from container_manager import lifecycle
from container_manager.core.errors import IllegalTransition, ImageNotFound, LeaseLost
from container_manager.core.outcome import ExitReason, Outcome
from container_manager.core.states import ACTIVE, FINAL, MOVES, Status, Transition
from container_manager.models import ContainerJob, EngineLease, ExecutionMetadata, ExecutorHost, JobEvent
from container_manager.models.lease import HeldLease
from container_manager.records import Chunk, LogState, Usage
from tests.db.factories import FAKE_SETTINGS, make_host, make_job

ENGINE = "fake-one"
WORKERS = ("worker:a", "worker:b")
STARTED = datetime(2030, 1, 1, tzinfo=UTC)
ENDED = STARTED + timedelta(seconds=7)
OUTCOMES = {
    Status.COMPLETED: Outcome(
        status=Status.COMPLETED, reason=ExitReason.SUCCESS, exit_code=0, message="went well"
    ),
    Status.FAILED: Outcome(
        status=Status.FAILED, reason=ExitReason.APPLICATION_ERROR, exit_code=3, message="went wrong"
    ),
    Status.TIMEOUT: Outcome(
        status=Status.TIMEOUT, reason=ExitReason.TIMEOUT, exit_code=137, message="took too long"
    ),
    Status.CANCELLED: Outcome(
        status=Status.CANCELLED, reason=ExitReason.CANCELLED, exit_code=143, message="was cancelled"
    ),
}
#: What a caller may not write, and what it takes for granted once it is there.
RESULT = ("status", "completed_at", "exit_reason", "exit_message")

HYPOTHESIS = hypothesis_settings(
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@dataclass(slots=True, kw_only=True)
class Model:
    """What one row has to say."""

    number: int
    priority: int
    status: Status = Status.PENDING
    attempt: int = 0
    token: int | None = None
    cancel_requested: bool = False
    history: list[tuple[str, str, str]] = field(default_factory=lambda: [("create", "", "pending")])
    result: tuple[Any, ...] | None = None

    def move(self, transition: Transition, target: Status) -> None:
        self.history.append((transition.value, self.status.value, target.value))
        self.status = target


@dataclass(slots=True, kw_only=True)
class Handle:
    """What a worker keeps of a job: the instances and the lease it had when it got them."""

    job: ContainerJob
    execution: ExecutionMetadata
    lease: HeldLease
    worker: str

    @property
    def memory(self) -> Status:
        return Status(self.job.status)


class Jobs(RuleBasedStateMachine):
    """Rules act on database and model alike; the invariant compares them."""

    @initialize()
    def begin(self) -> None:
        EngineLease.objects.all().delete()
        ContainerJob.objects.all().delete()
        ExecutorHost.objects.all().delete()
        self.host = make_host()
        self.models: dict[Any, Model] = {}
        self.instances: list[ContainerJob] = []  # of callers, some of them stale
        self.handles: list[Handle] = []
        self.leases: dict[str, HeldLease] = {}
        self.holder: HeldLease | None = None
        self.numbers = itertools.count()
        self.acquire(WORKERS[0])
        self.create(0)
        self.claim_as(WORKERS[0], 1)
        self.create(0)

    # ------------------------------------------------------------------------------------- callers

    @precondition(lambda self: sum(model.status not in FINAL for model in self.models.values()) < 3)
    @rule(priority=st.integers(-1, 1))
    def create(self, priority: int) -> None:
        job = make_job(priority=priority)
        self.models[job.pk] = Model(number=next(self.numbers), priority=priority)
        self.instances.append(job)

    def instance(self, data: st.DataObject) -> ContainerJob:
        """What a caller may have in hand: of the newest jobs, an old reading or a fresh one."""
        job = data.draw(st.sampled_from(self.instances[-6:]))
        if data.draw(st.booleans()):
            job = ContainerJob.objects.get(pk=job.pk)
            self.instances.append(job)
        return job

    @rule(data=st.data())
    def meddle(self, data: st.DataObject) -> None:
        """Whatever a caller may do; one rule, or most jobs would be cancelled before a worker sees them."""
        job = self.instance(data)
        act = data.draw(st.sampled_from(["save", "cancel", "save status"]))
        if act == "save":
            self.save(job, data.draw(st.sampled_from([None, 100, 101])))
        elif act == "cancel":
            self.cancel(job)
        else:
            wish = data.draw(st.just(Status.CANCELLED) | st.sampled_from(list(Status)))
            self.save_status(job, wish, data.draw(st.sampled_from([None, ["status"]])))

    def save(self, job: ContainerJob, memory: int | None) -> None:
        before, model = job.memory_limit, self.models[job.pk]
        job.name = f"saved with {memory}"
        if memory is None:
            job.save()
            assert ContainerJob.objects.get(pk=job.pk).name == job.name
            return
        job.memory_limit = memory
        if memory == before or model.status is Status.PENDING:
            job.save()
            return
        with pytest.raises(IllegalTransition, match="memory_limit"):
            job.save()
        job.memory_limit = before

    def cancel(self, job: ContainerJob) -> None:
        model = self.models[job.pk]
        assert job.cancel(by="somebody") is (model.status not in FINAL)
        if model.status is Status.PENDING:
            model.move(Transition.CANCEL, Status.CANCELLED)
            model.cancel_requested = True
        elif model.status in ACTIVE and not model.cancel_requested:
            model.cancel_requested = True
            model.history.append(("cancel_requested", model.status.value, model.status.value))

    def save_status(self, job: ContainerJob, wish: Status, fields: list[str] | None) -> None:
        model = self.models[job.pk]
        known = job.status
        job.status = wish.value
        if wish in (known, model.status):
            job.save(update_fields=fields)  # nothing wished, or nothing to do
        elif wish is Status.CANCELLED and model.status not in FINAL:
            job.save(update_fields=fields)
            model.move(Transition.CANCEL, Status.CANCELLED)
            model.cancel_requested = True
        else:
            with pytest.raises(IllegalTransition, match="status"):
                job.save(update_fields=fields)
            job.status = known

    # ------------------------------------------------------------------------------------- workers

    @rule(data=st.data(), worker=st.sampled_from(WORKERS))
    def change_hands(self, data: st.DataObject, worker: str) -> None:
        if self.holder is None:
            self.acquire(worker)
            return
        act = data.draw(st.sampled_from(["take over", "give back", "adopt"]))
        if act == "take over":
            self.take_over(worker)
        elif act == "give back":
            EngineLease.release(self.holder)
            self.holder = None
        elif worker in self.leases:
            self.adopt(worker)

    def acquire(self, worker: str) -> None:
        lease = EngineLease.acquire(ENGINE, worker, 600.0)
        assert lease is not None
        assert all(lease.token > known.token for known in self.leases.values())
        self.holder = self.leases[worker] = lease

    def take_over(self, worker: str) -> None:
        """The holder was silent for too long; it does not know yet."""
        assert EngineLease.acquire(ENGINE, worker, 600.0) is None
        EngineLease.objects.update(expires_at=timezone.now() - timedelta(seconds=1))
        self.holder = None
        self.acquire(worker)
        self.adopt(worker)

    @precondition(lambda self: any(model.status is Status.PENDING for model in self.models.values()))
    @rule(data=st.data(), limit=st.integers(1, 2))
    def claim(self, data: st.DataObject, limit: int) -> None:
        worker = data.draw(st.sampled_from(sorted(self.leases)))
        self.claim_as(worker, limit)

    def claim_as(self, worker: str, limit: int) -> None:
        lease = self.leases[worker]
        if lease != self.holder:
            with pytest.raises(LeaseLost):
                lifecycle.claim(lease, self.host, limit=limit, worker=worker)
            return
        waiting = [item for item in self.models.items() if item[1].status is Status.PENDING]
        waiting.sort(key=lambda item: (-item[1].priority, item[1].number))
        pairs = lifecycle.claim(lease, self.host, limit=limit, worker=worker)
        assert [job.pk for job, _ in pairs] == [pk for pk, _ in waiting[:limit]]
        for job, execution in pairs:
            model = self.models[job.pk]
            model.attempt, model.token = model.attempt + 1, lease.token
            model.move(Transition.CLAIM, Status.LAUNCHING)
            # The second is what a worker may believe that missed the answer to its last write.
            for memory in (copy.copy(job), job):
                self.handles.append(
                    Handle(job=memory, execution=copy.copy(execution), lease=lease, worker=worker)
                )

    def adopt(self, worker: str) -> None:
        lease = self.leases[worker]
        if lease != self.holder:
            with pytest.raises(LeaseLost):
                lifecycle.adopt(lease, self.host, worker=worker)
            return
        orphans = {
            pk for pk, model in self.models.items() if model.status in ACTIVE and model.token != lease.token
        }
        held = [(pk, model.attempt) for pk, model in self.models.items() if model.token == lease.token]
        pairs = lifecycle.adopt(lease, self.host, worker=worker, held=held)
        assert {job.pk for job, _ in pairs} == orphans
        for job, execution in pairs:
            model = self.models[job.pk]
            model.token = lease.token
            model.history.append(("adopt", model.status.value, model.status.value))
            self.handles.append(Handle(job=job, execution=execution, lease=lease, worker=worker))

    def writes(self, handle: Handle, call: Any) -> bool:
        """Do it; whether the model says that it was done. A stale lease must be told."""
        if handle.lease != self.holder:
            with pytest.raises(LeaseLost):
                call()
            return False
        model = self.models[handle.job.pk]
        mine = model.token == handle.lease.token and model.attempt == handle.execution.attempt
        expected = mine and model.status is handle.memory
        assert call() is expected
        return expected

    @precondition(lambda self: any(handle.memory in ACTIVE for handle in self.handles))
    @rule(data=st.data())
    def work_on(self, data: st.DataObject) -> None:
        self.work(data)  # twice, as half of all steps should be a worker's

    @precondition(lambda self: any(handle.memory in ACTIVE for handle in self.handles))
    @rule(data=st.data())
    def work(self, data: st.DataObject) -> None:
        """Whatever a worker may do next with one of the jobs that it thinks it holds."""
        fitting = [handle for handle in self.handles if handle.memory in ACTIVE][-4:]
        handle = data.draw(st.sampled_from(fitting))
        end = data.draw(st.sampled_from(list(OUTCOMES)))
        if handle.memory is Status.RUNNING:
            self.finish(handle, end)
            return
        act = data.draw(st.sampled_from([self.start, self.finish, self.release, self.reject]))
        if act == self.finish:
            self.finish(handle, end)
        else:
            act(handle)

    def start(self, handle: Handle) -> None:
        if self.writes(
            handle,
            lambda: lifecycle.start(
                handle.lease,
                handle.job,
                handle.execution,
                at=STARTED,
                worker=handle.worker,
                container_id="c" * 64,
                docker_log="started\n",
            ),
        ):
            self.models[handle.job.pk].move(Transition.START, Status.RUNNING)

    def finish(self, handle: Handle, end: Status) -> None:
        launching = handle.memory is Status.LAUNCHING
        if not self.writes(handle, lambda: self._finish(handle, OUTCOMES[end])):
            return
        model = self.models[handle.job.pk]
        if launching and end is not Status.CANCELLED:
            model.move(Transition.START, Status.RUNNING)
        model.move(
            Transition.CANCEL if end is Status.CANCELLED else Transition.FINISH,
            end,
        )

    def _finish(self, handle: Handle, outcome: Outcome) -> bool:
        sequence = handle.execution.log_chunk_count
        return lifecycle.finish(
            handle.lease,
            handle.job,
            handle.execution,
            outcome,
            started_at=STARTED,
            finished_at=ENDED,
            worker=handle.worker,
            usage=Usage(max_memory_bytes=1024, memory_source="peak", cpu_percent=50.0, samples=2),
            logs=_state(sequence + 1),
            chunks=[Chunk(sequence, b"", 0)],
            docker_log="ended\n",
        )

    def release(self, handle: Handle) -> None:
        model = self.models[handle.job.pk]
        if self.writes(
            handle,
            lambda: lifecycle.release(
                handle.lease,
                handle.job,
                handle.execution,
                worker=handle.worker,
                message="the host is at fault",
                docker_log="",
            ),
        ):
            if model.cancel_requested:  # what is to end does not go back into the queue
                model.move(Transition.CANCEL, Status.CANCELLED)
            else:
                model.move(Transition.RELEASE, Status.PENDING)
                model.token = None

    def reject(self, handle: Handle) -> None:
        model = self.models[handle.job.pk]

        def refuse() -> bool:
            lifecycle.refuse(
                handle.lease,
                handle.job,
                handle.execution,
                ImageNotFound("no such image"),
                worker=handle.worker,
            )
            return handle.memory is Status.FAILED

        if self.writes(handle, refuse):
            model.move(Transition.REJECT, Status.FAILED)

    @precondition(lambda self: self.handles)
    @rule(data=st.data())
    def store_logs(self, data: st.DataObject) -> None:
        handle = data.draw(st.sampled_from(self.handles))
        state = _state(handle.execution.log_chunk_count + 1, text=f"write {next(self.numbers)}")
        chunk = Chunk(handle.execution.log_chunk_count, b"", 0)

        def store() -> None:
            lifecycle.store_logs(handle.lease, handle.job, handle.execution, [chunk], state)

        if handle.lease != self.holder:
            with pytest.raises(LeaseLost):
                store()
            return
        store()
        model = self.models[handle.job.pk]
        if model.token == handle.lease.token and model.attempt == handle.execution.attempt:
            assert ContainerJob.objects.get(pk=handle.job.pk).stdout_log == state.stdout_text
        elif model.attempt != handle.execution.attempt:
            assert ContainerJob.objects.get(pk=handle.job.pk).stdout_log != state.stdout_text

    # ------------------------------------------------------------------------------------- the rows

    @invariant()
    def rows_say_what_the_model_says(self) -> None:
        rows = {job.pk: job for job in ContainerJob.objects.all()}
        assert rows.keys() == self.models.keys()
        history: dict[Any, list[tuple[str, str, str]]] = {pk: [] for pk in rows}
        for event in JobEvent.objects.all():
            history[event.job_id].append((event.transition, event.from_status, event.to_status))
        for pk, model in self.models.items():
            job = rows[pk]
            assert job.status == model.status
            assert (job.attempt, job.lease_token) == (model.attempt, model.token)
            assert history[pk] == model.history
            assert history[pk][-1][2] == job.status
            _check_moves(history[pk])
            _check_times(job, model)
            if model.status in FINAL:
                result = tuple(getattr(job, name) for name in RESULT)
                model.result = model.result or result
                assert result == model.result
        attempts = ExecutionMetadata.objects.values_list("job_id", "attempt").order_by("job_id", "attempt")
        wanted = [(pk, n + 1) for pk in sorted(rows) for n in range(rows[pk].attempt)]
        assert sorted(attempts) == wanted


def _check_moves(history: list[tuple[str, str, str]]) -> None:
    for (_, _, was), (transition, source, target) in itertools.pairwise(history):
        assert source == was, "an event leaves from where the one before arrived"
        if transition in ("cancel_requested", "adopt"):
            assert source == target
        else:
            move = MOVES[Transition(transition)]
            assert source in move.sources
            assert target in move.targets


def _check_times(job: ContainerJob, model: Model) -> None:
    assert (job.launched_at is not None) is (model.attempt > 0)
    assert (job.completed_at is not None) is (model.status in FINAL)
    assert (job.exit_reason != "") is (model.status in FINAL)
    assert (job.cancel_requested_at is not None) is model.cancel_requested
    if model.status is Status.RUNNING:
        assert job.started_at == STARTED
    if model.status is Status.COMPLETED:
        assert (job.started_at, job.completed_at, job.exit_code) == (STARTED, ENDED, 0)
        assert (job.max_memory_usage, job.cpu_usage_percent) == (1024, 50.0)


def _state(chunk_count: int, text: str | None = None) -> LogState:
    return LogState(
        chunk_count=chunk_count,
        cursor=None,
        stdout_bytes=0,
        stderr_bytes=0,
        complete=False,
        truncated=False,
        stdout_text=text,
    )


@pytest.mark.django_db(transaction=True)
def test_rows_follow_the_model(settings: Any) -> None:
    settings.CONTAINER_MANAGER_SETTINGS = FAKE_SETTINGS
    run_state_machine_as_test(Jobs, settings=HYPOTHESIS)
