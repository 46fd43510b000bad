"""The pages of jobs: the list, one job, the form of a new one."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

from django.contrib import admin, messages
from django.contrib.admin.actions import delete_selected
from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect, StreamingHttpResponse
from django.shortcuts import get_object_or_404
from django.urls import path, reverse
from django.views.decorators.http import require_POST, require_safe

from container_manager.admin.base import actor_of, names_of
from container_manager.admin.display import line
from container_manager.admin.job_acts import Tally, cancel_all, run_all_again
from container_manager.admin.job_form import NOTES, JobForm, NotesForm
from container_manager.admin.job_list import JobListAdmin
from container_manager.admin.job_page import gather
from container_manager.core.errors import IllegalTransition, InvalidJob
from container_manager.core.states import FINAL, Status
from container_manager.models import ContainerJob, ExecutionMetadata, JobEvent, LogChunk

_PIECE_BYTES = 64 * 1024


@admin.register(ContainerJob)
class JobAdmin(JobListAdmin):
    """Jobs. The worker's columns are for reading; what describes the container is open while pending."""

    actions = ["cancel_selected", "run_again_selected", "delete_selected"]

    # ----------------------------------------------------------------------------- rows and rights

    def has_delete_permission(self, request: HttpRequest, obj: ContainerJob | None = None) -> bool:
        """Only what has ended can go: a running job's row is what its container is found by."""
        if obj is not None and not obj.is_finished:
            return False
        return super().has_delete_permission(request, obj)

    def get_deleted_objects(self, objs: Any, request: HttpRequest) -> Any:
        """What a deletion takes, counted: reading it would read every log byte."""
        names = names_of(objs)
        keys: Any = objs.order_by().values("pk") if isinstance(objs, QuerySet) else [job.pk for job in objs]
        counts = {
            "container jobs": len(names),
            "executions": ExecutionMetadata.objects.filter(job__in=keys).count(),
            "job events": JobEvent.objects.filter(job__in=keys).count(),
            "log chunks": LogChunk.objects.filter(execution__job__in=keys).count(),
        }
        allowed = all(self.has_delete_permission(request, job) for job in objs)
        return names, counts, set() if allowed else {self.opts.verbose_name}, []

    # ------------------------------------------------------------------------------------- forms

    def get_form(self, request: HttpRequest, obj: Any = None, change: bool = False, **kwargs: Any) -> Any:  # noqa: FBT001, FBT002
        """The whole wish while it can change, else the notes."""
        kwargs["form"] = JobForm if _is_open(obj) and self._may_save(request, obj) else NotesForm
        return super().get_form(request, obj, change=change, **kwargs)

    def get_fieldsets(self, request: HttpRequest, obj: Any = None) -> Any:
        """What can be changed; everything else is shown by the page itself, above the form."""
        if not self._may_save(request, obj):
            return []
        if not _is_open(obj):
            return [("Notes", {"fields": NOTES})]
        return [
            (
                "What runs",
                {"fields": ["name", "docker_image", "command", "command_form", "working_directory"]},
            ),
            ("Where and when", {"fields": ["docker_host", "priority", "networks_text"]}),
            ("Limits", {"fields": [("memory_limit", "cpu_limit", "timeout_seconds")]}),
            ("If it fails", {"fields": ["retry", "deadline_seconds"]}),
            ("Environment", {"fields": ["environment_template", "environment_text"]}),
            (
                "User, filesystem and notes",
                {"fields": ["user", "read_only_root", "description"], "classes": ["collapse"]},
            ),
        ]

    def save_model(self, request: HttpRequest, obj: ContainerJob, form: Any, change: Any) -> None:
        """Store through admission; a new job belongs to whoever made it."""
        if not change:
            obj.created_by = request.user  # type: ignore[assignment]
        obj.save()

    def changeform_view(
        self,
        request: HttpRequest,
        object_id: str | None = None,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> Any:
        """As Django's; a job that a worker took while its form was open is told so, and nothing is stored."""
        try:
            if request.method == "POST" and object_id is not None and "docker_image" in request.POST:
                _refuse_if_taken(self.get_object(request, object_id))
            return super().changeform_view(request, object_id, form_url, extra_context)
        except (IllegalTransition, InvalidJob) as error:
            self.message_user(request, f"Nothing was saved: {line(str(error))}.", messages.ERROR)
            return HttpResponseRedirect(request.get_full_path())

    def render_change_form(self, request: HttpRequest, context: Any, *args: Any, **kwargs: Any) -> Any:
        """Add what the page of a job shows above the form."""
        job = context.get("original")
        if job is not None:
            context["panel"] = gather(job, refresh="refresh" in request.GET)
            context["may_cancel"] = not job.is_finished and self.has_change_permission(request, job)
            context["may_run_again"] = self.has_add_permission(request)
        return super().render_change_form(request, context, *args, **kwargs)

    def _may_save(self, request: HttpRequest, obj: Any) -> bool:
        if obj is None:
            return self.has_add_permission(request)
        return self.has_change_permission(request, obj)

    # ----------------------------------------------------------------------------------- actions

    @admin.action(description="Cancel selected jobs", permissions=["change"])
    def cancel_selected(self, request: HttpRequest, queryset: QuerySet[ContainerJob]) -> None:
        """Ask for the end of every selected job."""
        self._tell(request, cancel_all(queryset, actor_of(request)), "cancelled", "Cancelled.")

    @admin.action(description="Run selected jobs again", permissions=["add"])
    def run_again_selected(self, request: HttpRequest, queryset: QuerySet[ContainerJob]) -> None:
        """Make a new job from each selected one."""
        jobs = ContainerJob.objects.filter(pk__in=queryset.order_by().values("pk"))
        jobs = jobs.select_related("docker_host", "environment_template").order_by("created_at")
        jobs = jobs.defer("stdout_log", "stderr_log", "docker_log")
        self._tell(request, run_all_again(jobs, request.user), "created", "Created as a repetition.")

    @admin.action(description="Delete selected jobs that have ended", permissions=["delete"])
    def delete_selected(self, request: HttpRequest, queryset: QuerySet[ContainerJob]) -> Any:
        """Django's own page, over the jobs that may go."""
        ended = queryset.filter(status__in=[str(status) for status in FINAL])
        others = queryset.count() - ended.count()
        if others:
            self.message_user(
                request, f"{others} skipped: not ended yet. Cancel them first.", messages.WARNING
            )
        return delete_selected(self, request, ended) if ended.exists() else None

    def _tell(self, request: HttpRequest, tally: Tally, what: str, note: str) -> None:
        for job in tally.done:
            self.log_change(request, job, note)
        level = messages.WARNING if tally.skipped else messages.SUCCESS
        self.message_user(request, line(tally.sentence(what)), level)

    # ------------------------------------------------------------------------------- further pages

    def get_urls(self) -> list[Any]:
        """Beside Django's own: the complete log of an attempt, and the two buttons of the page."""
        wrap = self.admin_site.admin_view
        log = "<uuid:job_id>/log/<int:attempt>/<str:stream>/"
        own = [
            path(log, wrap(require_safe(self.log_view)), name=_name("log")),
            path("<uuid:job_id>/cancel/", wrap(require_POST(self.cancel_view)), name=_name("cancel")),
            path("<uuid:job_id>/run-again/", wrap(require_POST(self.again_view)), name=_name("again")),
        ]
        return [*own, *super().get_urls()]

    def log_view(self, request: HttpRequest, job_id: uuid.UUID, attempt: int, stream: str) -> Any:
        """The stored bytes of one stream, as a file to save; a browser never renders them."""
        job = get_object_or_404(ContainerJob.objects.without_logs(), pk=job_id)
        if not self.has_view_permission(request, job):
            raise PermissionDenied
        execution = job.executions.filter(attempt=attempt).first()
        if execution is None or stream not in ("stdout", "stderr"):
            raise Http404("There is no such attempt, or the stream is neither stdout nor stderr.")
        response = StreamingHttpResponse(
            _pieces(execution.iter_log(stream)), content_type="application/octet-stream"
        )
        response["Content-Disposition"] = f'attachment; filename="{job_id}-{attempt}-{stream}.log"'
        response["X-Content-Type-Options"] = "nosniff"
        response["Content-Security-Policy"] = "sandbox; default-src 'none'"
        response["Cache-Control"] = "private, no-store"
        return response

    def cancel_view(self, request: HttpRequest, job_id: uuid.UUID) -> HttpResponse:
        """The button of the job page: ask for its end."""
        job = get_object_or_404(ContainerJob.objects.without_logs(), pk=job_id)
        if not self.has_change_permission(request, job):
            raise PermissionDenied
        self._tell(request, cancel_all([job], actor_of(request)), "cancelled", "Cancelled.")
        return self._to_page(job.pk)

    def again_view(self, request: HttpRequest, job_id: uuid.UUID) -> HttpResponse:
        """The button of the job page: make a new job from this one, and go there."""
        job = get_object_or_404(ContainerJob, pk=job_id)
        if not (self.has_add_permission(request) and self.has_view_permission(request, job)):
            raise PermissionDenied
        tally = run_all_again([job], request.user)
        self._tell(request, tally, "created", "Created as a repetition.")
        return self._to_page(tally.done[0].pk if tally.done else job.pk)

    def _to_page(self, key: Any) -> HttpResponse:
        return HttpResponseRedirect(
            reverse(f"admin:{_name('change')}", args=[key], current_app=self.admin_site.name)
        )


def _is_open(job: ContainerJob | None) -> bool:
    """Whether what describes the container can still change."""
    return job is None or job.status == Status.PENDING


def _refuse_if_taken(job: ContainerJob | None) -> None:
    """A whole form came back for a job that is not pending any more: saving the notes alone would mislead."""
    if not _is_open(job):
        raise IllegalTransition(
            "the job is not pending any more, so what describes it is fixed. Create a new one instead"
        )


def _pieces(payloads: Iterator[bytes]) -> Iterator[bytes]:
    """Few large pieces instead of one for each line."""
    gathered = bytearray()
    for payload in payloads:
        gathered += payload
        if len(gathered) >= _PIECE_BYTES:
            yield bytes(gathered)
            gathered.clear()
    if gathered:
        yield bytes(gathered)


def _name(view: str) -> str:
    return f"{ContainerJob._meta.app_label}_{ContainerJob._meta.model_name}_{view}"
