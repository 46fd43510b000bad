"""The frozen description of one container, built from policy; the only thing an executor is given."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

LABEL_PREFIX = "io.django-container-jobs."
LABEL_INSTALLATION = LABEL_PREFIX + "installation"
LABEL_JOB = LABEL_PREFIX + "job"
LABEL_ATTEMPT = LABEL_PREFIX + "attempt"
LABEL_SPEC = LABEL_PREFIX + "spec"


def attempt_of(labels: Mapping[str, str]) -> tuple[str, int]:
    """The job and the attempt that a container's labels name; labels are anybody's to write. Unknown is 0."""
    attempt = labels.get(LABEL_ATTEMPT, "")
    plain = attempt.isascii() and attempt.isdigit() and len(attempt) < 10
    return labels.get(LABEL_JOB, ""), int(attempt) if plain else 0


def container_name(job_id: str, attempt: int) -> str:
    """The deterministic name of an attempt's container."""
    return f"cj-{job_id.replace('-', '')}-{attempt}"


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkAttachment:
    """One network to join, with the names under which its other members find the container."""

    network_name: str
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerSpec:
    """Everything that makes the container. Nothing outside it reaches the engine.

    `argv` empty means the image's own command. Sizes in bytes, `cpus` in cores.
    """

    name: str  # deterministic: one job and attempt, one name
    installation: str
    job_id: str
    attempt: int
    image: str
    argv: tuple[str, ...]
    environment: tuple[tuple[str, str], ...]
    working_directory: str
    user: str  # numeric uid:gid
    memory_bytes: int
    cpus: float
    pids_limit: int
    read_only_root: bool
    tmpfs: tuple[tuple[str, str], ...]  # (path, mount options)
    networks: tuple[NetworkAttachment, ...]
    cap_drop: tuple[str, ...]
    security_opt: tuple[str, ...]
    log_options: tuple[tuple[str, str], ...] = field(default=())  # rotation: max-size, max-file, compress

    def digest(self) -> str:
        """Hash over everything above: tells our container from another one under the same name."""
        text = json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def labels(self) -> dict[str, str]:
        """The labels by which the container is found, adopted and never mistaken for another's."""
        return {
            LABEL_INSTALLATION: self.installation,
            LABEL_JOB: self.job_id,
            LABEL_ATTEMPT: str(self.attempt),
            LABEL_SPEC: self.digest(),
        }
