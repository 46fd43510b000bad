"""Hosts that run jobs."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any, Self
from urllib.parse import urlsplit

from django.core.exceptions import ValidationError
from django.db import models, router
from django.utils import timezone

from container_manager import signals
from container_manager.conf import get_settings
from container_manager.core.enginetext import message_text
from container_manager.core.errors import ConfigurationError, ExecutorError, HostMismatch
from container_manager.core.inert import inert_line
from container_manager.core.observation import HostFacts
from container_manager.executors import options
from container_manager.executors.base import HostConfig
from container_manager.executors.registry import executor_class
from container_manager.models.clock import Now

logger = logging.getLogger("container_manager.hosts")

#: What the columns hold; some databases cut or refuse in words of their own.
MAX_NAME, MAX_ADDRESS, MAX_JOBS = 200, 500, 2**31 - 1
#: What `clean` checks, and so what is not stored without it.
_CHECKED = frozenset(
    {"name", "executor_type", "host_type", "connection_string", "executor_config", "max_concurrent_jobs"}
)
#: What `as_config` reads.
_WAY = ["name", "executor_type", "connection_string", "executor_config", "auto_pull_images"]
_WAY += ["tls_enabled", "tls_verify", "tls_ca_cert", "tls_client_cert", "tls_client_key"]
#: What workers learn of a host, and write by queries.
_OF_WORKERS = frozenset(
    {"engine_id", "engine_version", "cpus", "memory_bytes", "response_seconds", "facts"}
    | {"health", "health_error", "health_checked_at", "health_since"}
)
_SCHEMES = {"docker": ("unix", "tcp"), "process": ("process",)}
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\]")


class ExecutorHost(models.Model):
    """One engine at one address. Bound to the engine's own id at the first contact."""

    class HostType(models.TextChoices):
        UNIX = "unix", "Unix socket"
        TCP = "tcp", "TCP"

    class Health(models.TextChoices):
        UNKNOWN = "unknown", "never checked"
        HEALTHY = "healthy", "healthy"
        UNREACHABLE = "unreachable", "unreachable"
        MISMATCHED = "mismatched", "another engine answers"

    name = models.CharField(max_length=MAX_NAME, unique=True)
    executor_type = models.CharField(max_length=50, default="docker")
    host_type = models.CharField(
        max_length=10,
        choices=HostType,
        blank=True,
        default="",
        help_text="Left empty: taken from the address.",
    )
    connection_string = models.CharField(
        max_length=MAX_ADDRESS, help_text="unix:///var/run/docker.sock or tcp://docker.example.com:2376"
    )
    tls_enabled = models.BooleanField("TLS", default=False)
    tls_verify = models.BooleanField("verify the server", default=True)
    tls_ca_cert = models.CharField(
        max_length=500, blank=True, default="", help_text="PEM file on the worker."
    )
    tls_client_cert = models.CharField(
        max_length=500, blank=True, default="", help_text="PEM file on the worker."
    )
    tls_client_key = models.CharField(
        max_length=500, blank=True, default="", help_text="PEM file on the worker."
    )
    executor_config = models.JSONField(blank=True, default=dict)
    auto_pull_images = models.BooleanField(
        null=True, blank=True, default=None, help_text="Empty: as in executor_config, else as in settings."
    )
    max_concurrent_jobs = models.PositiveIntegerField(default=10)
    weight = models.PositiveIntegerField(
        default=100, help_text="A host of twice the weight gets twice the jobs."
    )
    is_active = models.BooleanField(default=True, help_text="An inactive host gets no new jobs.")

    health = models.CharField(max_length=16, choices=Health, default=Health.UNKNOWN, editable=False)
    health_error = models.TextField(blank=True, default="", editable=False)
    health_checked_at = models.DateTimeField(null=True, blank=True, editable=False)
    health_since = models.DateTimeField(null=True, blank=True, editable=False)  # by the database's clock
    response_seconds = models.FloatField(null=True, blank=True, editable=False)
    engine_id = models.CharField(max_length=200, blank=True, default="", editable=False)
    engine_version = models.CharField(max_length=50, blank=True, default="", editable=False)
    cpus = models.PositiveIntegerField(null=True, blank=True, editable=False)
    memory_bytes = models.BigIntegerField(null=True, blank=True, editable=False)
    facts = models.JSONField(blank=True, default=dict, editable=False)

    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["name"]
        verbose_name = "executor host"

    #: What workers write, as it was read: what nobody touched since is not written back.
    _of_workers: Mapping[str, Any] = MappingProxyType({})
    #: The type that we took from an address ourselves: it goes with that address, and is no claim about it.
    _derived_type = ""

    def __str__(self) -> str:
        return inert_line(self.name)

    @classmethod
    def from_db(
        cls, db: str | None, field_names: Collection[str], values: Collection[Any], **further: Any
    ) -> Self:
        """Remember what was taken from the address when it was stored."""
        host = super().from_db(db, field_names, values, **further)
        host.mark_stored()
        return host

    def mark_stored(self) -> None:
        """What is in memory is what is stored."""
        self._derived_type = self.__dict__.get("host_type", "")
        self._of_workers = {name: self.__dict__[name] for name in _OF_WORKERS if name in self.__dict__}

    def clean(self) -> None:
        """Check type, address and configuration together. Raises ValidationError by field."""
        super().clean()
        errors: dict[str, str] = {}
        try:
            driver = executor_class(self.executor_type)
        except ConfigurationError as error:
            errors["executor_type"] = str(error).removeprefix("executor_type: ")
        else:
            problems = {
                "connection_string": _address_problem(self.executor_type, self.connection_string),
                "executor_config": options.problem(self.executor_config, driver.option_checks),
            }
            errors |= {name: problem for name, problem in problems.items() if problem}
        scheme = self.connection_string.partition("://")[0]
        claimed = "" if self.host_type == self._derived_type else self.host_type
        if claimed and scheme in self.HostType.values and claimed != scheme:
            errors["host_type"] = (
                f"{self.host_type!r} does not fit the address, which is {scheme!r}; leave it empty."
            )
        if not self.name.strip() or len(self.name) > MAX_NAME:
            errors["name"] = f"Give the host a name of at most {MAX_NAME} characters."
        if self.max_concurrent_jobs is None or not 1 <= self.max_concurrent_jobs <= MAX_JOBS:
            errors["max_concurrent_jobs"] = (
                f"Use 1 or more, at most {MAX_JOBS}; to rest the host, clear is_active."
            )
        if errors:
            raise ValidationError(errors)

    def save(self, *args: Any, **kwargs: Any) -> None:
        """Store the host; what cannot work is refused before anything is written, however little that is."""
        names = kwargs.get("update_fields")
        if names is not None and not _CHECKED.intersection(names):
            super().save(*args, **kwargs)
            return
        self.clean()
        scheme = self.connection_string.partition("://")[0]
        self.host_type = scheme if scheme in self.HostType.values else ""
        if names is not None and "connection_string" in names:
            kwargs["update_fields"] = {*names, "host_type"}
        if names is None and not self._state.adding and not kwargs.get("force_insert"):
            kwargs["update_fields"] = self._but_for_what_workers_write()
        super().save(*args, **kwargs)
        self.mark_stored()

    def _but_for_what_workers_write(self) -> list[str]:
        """The columns that a caller's save writes: a worker may have bound the host since it was read."""
        untouched = {name for name, value in self._of_workers.items() if self.__dict__.get(name) == value}
        return [
            field.name
            for field in self._meta.concrete_fields
            if not field.primary_key and field.attname in self.__dict__ and field.name not in untouched
        ]

    def as_config(self) -> HostConfig:
        """The row as plain data for an executor.

        Raises ConfigurationError for what `save` refuses today: SQL or an earlier version may have stored it.
        """
        settings = get_settings()
        problem = options.problem(self.executor_config, executor_class(self.executor_type).option_checks)
        if problem:
            raise ConfigurationError(f"executor_config: {problem}")
        config = self.executor_config
        pull = self.auto_pull_images
        if pull is None:
            pull = config.get("auto_pull_images", settings.AUTO_PULL_IMAGES)
        return HostConfig(
            name=self.name,
            connection_string=self.connection_string,
            tls_enabled=self.tls_enabled,
            tls_verify=self.tls_verify,
            tls_ca_cert=self.tls_ca_cert,
            tls_client_cert=self.tls_client_cert,
            tls_client_key=self.tls_client_key,
            timeout_seconds=float(config.get("timeout", settings.DOCKER_TIMEOUT)),
            auto_pull_images=pull,
            max_parallel_calls=settings.LAUNCH_CONCURRENCY * 2 + 4,
            options=dict(config),
        )

    def is_reached_like(self, other: ExecutorHost) -> bool:
        """Whether both rows say the same about the way to their engine; neither need be right."""
        return all(getattr(self, name) == getattr(other, name) for name in _WAY)

    def record_up(self, facts: HostFacts) -> None:
        """Store what a health call learned. A row that was never in contact is bound to this engine.

        Raises HostMismatch, after storing that, when the row is bound to another engine.
        """
        try:
            self.bind(facts)
        except HostMismatch as error:
            self.record_down(error)
            raise
        self.engine_version = facts.engine_version
        self.cpus, self.memory_bytes = facts.cpus, facts.memory_bytes
        self.response_seconds = facts.response_seconds
        self.facts = {
            **facts.details,
            "api_version": facts.api_version,
            "user_namespaces": facts.user_namespaces,
        }
        # By queries: the row may have been deleted or bound anew meanwhile, which is no error of the host's.
        stored = self._row().filter(engine_id=facts.engine_id)
        if stored.update(
            engine_version=self.engine_version,
            cpus=self.cpus,
            memory_bytes=self.memory_bytes,
            response_seconds=self.response_seconds,
            facts=self.facts,
        ):
            self._store_health(self.Health.HEALTHY, "")

    def bind(self, facts: HostFacts) -> None:
        """See that it is the engine that this row is bound to; the first one that is met binds it, for good.

        Raises HostMismatch. The row decides, not our copy of it: two workers may meet two engines at what is
        one address to us, and if both were believed, each would look for the other's jobs on its own engine.
        """
        if not self.engine_id:
            free = self._row().filter(engine_id__in=["", facts.engine_id])
            if not free.update(engine_id=facts.engine_id):
                self._see_who_was_first()
            self.engine_id = self.engine_id or facts.engine_id
        if self.engine_id != facts.engine_id:
            raise HostMismatch(
                f"engine {facts.engine_id} answers at {self.connection_string}, but this host is bound to "
                f"{self.engine_id}. If the machine was replaced on purpose, register it as a new host."
            )

    def _see_who_was_first(self) -> None:
        """Take over to whom the row is bound; of one that was deleted nothing is known."""
        columns = ("engine_id", "executor_type", "connection_string")
        stored = self._rows().filter(pk=self.pk).values_list(*columns).first()
        if stored is None:
            return
        engine_id, *address = stored
        if address != [self.executor_type, self.connection_string]:
            raise HostMismatch(
                f"the host {self.name!r} has another address now than {self.connection_string}"
            )
        self.engine_id = engine_id

    def record_down(self, error: ExecutorError) -> None:
        """Store that a health call failed, and how."""
        mismatch = isinstance(error, HostMismatch)
        health = self.Health.MISMATCHED if mismatch else self.Health.UNREACHABLE
        self._store_health(health, message_text(str(error)))

    def _store_health(self, health: Health, error: str) -> None:
        previous, self.health = self.health, health
        self.health_error, self.health_checked_at = error, timezone.now()
        row = self._row()
        # Another process may have seen the change first, and then said since when.
        row.exclude(health=health).update(health=health, health_since=Now())
        is_stored = row.update(health_error=error, health_checked_at=self.health_checked_at)
        if is_stored and health != previous:
            answers = signals.host_status_changed.send_robust(
                sender=ExecutorHost, host=self, previous=previous
            )
            for receiver, answer in answers:
                if isinstance(answer, Exception):
                    logger.error(
                        "a signal receiver failed for host %s: %r", self.name, receiver, exc_info=answer
                    )

    def _row(self) -> models.QuerySet[ExecutorHost]:
        """The stored row, while it has our address: what was seen at another one says nothing about it."""
        return self._rows().filter(
            pk=self.pk, executor_type=self.executor_type, connection_string=self.connection_string
        )

    @classmethod
    def _rows(cls) -> models.QuerySet[ExecutorHost]:
        """All hosts, where they are written: a replica may not know yet who was first."""
        return cls.objects.using(router.db_for_write(cls))


def _address_problem(executor_type: str, address: str) -> str:
    """What is wrong with a connection string, with the remedy; empty when nothing is."""
    if len(address) > MAX_ADDRESS:
        return f"It has {len(address)} characters; use at most {MAX_ADDRESS}."
    schemes = _SCHEMES.get(executor_type)
    if schemes is None:
        return ""  # a third party's executor reads its own addresses
    scheme, separator, rest = address.partition("://")
    example = {
        "docker": "unix:///var/run/docker.sock or tcp://docker.example.com:2376",
        "process": "process:///var/tmp/container-jobs",
    }[executor_type]
    if not separator or scheme not in schemes:
        known = " or ".join(f"{name}://" for name in schemes)
        return f"{address!r} does not start with {known}; for example {example}."
    if scheme in {"unix", "process"}:
        if not rest.startswith("/") or "\0" in rest or rest == "/":
            return f"{address!r} has no absolute path; for example {example}."
        return ""
    try:
        parts = urlsplit(address)
        port = parts.port
    except ValueError:
        return f"{address!r} has a port that is not a number from 1 to 65535; for example {example}."
    if "@" in parts.netloc:
        return "The address carries credentials; take them out. Client certificates go into the TLS fields."
    host = parts.netloc.rpartition(":")[0] if port is not None else parts.netloc
    if not _HOST.fullmatch(host):
        return f"{address!r} has no valid host name; for example {example}."
    if not port:
        return f"{address!r} has no port; 2376 is usual with TLS, 2375 without."
    if parts.path.strip("/") or parts.query or parts.fragment:
        return f"{address!r} has something behind the port; for example {example}."
    return ""
