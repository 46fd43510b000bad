"""Every error of the package, one tree.

ContainerManagerError
├── InvalidJob            input that a caller can mend: names the field, the value and the remedy
│   ├── PolicyViolation   well-formed, but refused by a rule of the policy table
│   └── NoEligibleHost    nothing to place the job on
├── IllegalTransition     a status change that the state machine does not have
├── LeaseLost             another worker owns the host now: nothing may be written or started
├── ConfigurationError    settings or a host row that cannot work
├── Undecided             a start whose answer got lost: a worker finds out what became of it
└── ExecutorError         what an engine said, translated in one place per driver
    ├── HostFault         says nothing about the job: it may be tried elsewhere or again
    │   ├── HostUnreachable
    │   ├── HostTimeout
    │   ├── HostMismatch      the address answers with another engine id
    │   ├── NeverStarted      a launch came to nothing, by no fault of the host's
    │   └── EngineFault       5xx, disk full, a daemon in trouble
    └── JobFault          the job as asked for cannot run; `reason` is the exit reason
        ├── ImageNotFound, ImageRefused
        ├── ImagePullFailed
        │   └── RegistryTrouble   too many requests, 5xx, a connection that broke: worth another try
        ├── NetworkNotFound
        ├── CommandNotFound, CommandNotExecutable, BadUser
        ├── NameTaken         a foreign container holds our deterministic name
        ├── ContainerGone     the container is not there (any more)
        ├── CreateFailed
        └── StartFailed

`retryable` is an attribute, set where the knowledge is.
"""

from __future__ import annotations

from typing import ClassVar

from container_manager.core.outcome import ExitReason


class ContainerManagerError(Exception):
    """Root of everything that the package raises on purpose."""


class InvalidJob(ContainerManagerError, ValueError):
    """A job that cannot be accepted. `field` names the input, the text says what to change."""

    def __init__(self, field: str, message: str) -> None:
        self.field = field
        self.message = message
        super().__init__(f"{field}: {message}")


class PolicyViolation(InvalidJob):
    """Well-formed input that a policy rule refuses; `rule` is the rule's name in `core.policy`."""

    def __init__(self, field: str, message: str, *, rule: str) -> None:
        self.rule = rule
        super().__init__(field, message)


class NoEligibleHost(InvalidJob):
    """No host can take the job; the message says what is missing and how to register one."""

    def __init__(self, message: str) -> None:
        super().__init__("docker_host", message)


class IllegalTransition(ContainerManagerError, ValueError):
    """A status change that the state machine does not have."""


class LeaseLost(ContainerManagerError):
    """The worker no longer owns the host; whatever it was about to write must not be written."""


class ConfigurationError(ContainerManagerError):
    """Settings or a host row that cannot work as they stand."""


class Undecided(ContainerManagerError):
    """Whether a program began is not known yet; nothing may be done about it but look."""


class ExecutorError(ContainerManagerError):
    """What an engine said, in our words; `detail` keeps the engine's own text."""

    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, detail: str = "") -> None:
        self.detail = detail
        super().__init__(message)

    def explained(self) -> str:
        """The message with the engine's own words, where they add to it."""
        if not self.detail or self.detail in str(self):
            return str(self)
        return f"{str(self).rstrip('.')}: {self.detail.rstrip('.')}."


class HostFault(ExecutorError):
    """A fault of the host or of the way to it: no evidence about the job."""

    retryable = True


class HostUnreachable(HostFault):
    """Nothing answers at the host's address."""


class HostTimeout(HostFault):
    """The host accepted the call and did not answer in time; the call may have had its effect."""


class HostMismatch(HostFault):
    """Another engine than the one this host row is bound to answers at its address."""

    retryable = False


class NeverStarted(HostFault):
    """A launch came to nothing because of its worker: it died, or lost its lease. The job is given back."""


class EngineFault(HostFault):
    """The engine answered that it is in trouble (5xx, disk full)."""


class JobFault(ExecutorError):
    """The job as asked for cannot run on this engine."""

    reason: ClassVar[ExitReason] = ExitReason.CREATE_ERROR


class ImageNotFound(JobFault):
    """The image is neither on the host nor in its registry."""

    reason = ExitReason.IMAGE_NOT_FOUND


class ImagePullFailed(JobFault):
    """The registry could not be reached or refused us."""

    reason = ExitReason.IMAGE_PULL_FAILED


class RegistryTrouble(ImagePullFailed):
    """The registry limits requests (429), is in trouble itself (5xx), or broke off."""

    retryable = True


class ImageRefused(JobFault):
    """The image is there, and the policy says no."""

    reason = ExitReason.IMAGE_REFUSED


class NetworkNotFound(JobFault):
    """A named network does not exist on the host."""

    reason = ExitReason.NETWORK_NOT_FOUND


class CommandNotFound(JobFault):
    """The program is not in the image."""

    reason = ExitReason.COMMAND_NOT_FOUND


class CommandNotExecutable(JobFault):
    """The program is there and may not be executed."""

    reason = ExitReason.COMMAND_NOT_EXECUTABLE


class BadUser(JobFault):
    """The engine cannot run as the requested user."""

    reason = ExitReason.BAD_USER


class NameTaken(JobFault):
    """A container that is not ours holds the deterministic name."""

    reason = ExitReason.NAME_TAKEN


class ContainerGone(JobFault):
    """The container does not exist (any more)."""

    reason = ExitReason.REMOVED_EXTERNALLY


class CreateFailed(JobFault):
    """The engine refused to create the container."""

    reason = ExitReason.CREATE_ERROR


class StartFailed(JobFault):
    """The engine created the container and could not start it."""

    reason = ExitReason.START_ERROR
