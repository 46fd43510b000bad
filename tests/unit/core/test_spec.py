"""The container's description: a digest that changes with every part of it, and its labels."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import FrozenInstanceError, fields, replace
from typing import Any

import pytest

from container_manager.core.spec import (
    LABEL_ATTEMPT,
    LABEL_JOB,
    ContainerSpec,
    NetworkAttachment,
    attempt_of,
)

SPEC = ContainerSpec(
    name="cj-1",
    installation="here",
    job_id="00000000-0000-0000-0000-000000000001",
    attempt=1,
    image="alpine:3.18",
    argv=("echo", "ü", ""),
    environment=(("A", "1"), ("B", "2")),
    working_directory="/app",
    user="10001:10001",
    memory_bytes=64 * 1024 * 1024,
    cpus=0.5,
    pids_limit=64,
    read_only_root=True,
    tmpfs=(("/tmp", "rw,size=16m"),),
    networks=(NetworkAttachment(network_name="net", aliases=("one", "two")),),
    cap_drop=("ALL",),
    security_opt=("no-new-privileges",),
    log_options=(("max-size", "16m"),),
)

CHANGES: dict[str, Any] = {
    "name": "cj-2",
    "installation": "there",
    "job_id": "00000000-0000-0000-0000-000000000002",
    "attempt": 2,
    "image": "alpine:3.19",
    "argv": ("echo", "ü"),
    "environment": (("A", "1"), ("B", "3")),
    "working_directory": "",
    "user": "10002:10001",
    "memory_bytes": 64 * 1024 * 1024 + 1,
    "cpus": 0.51,
    "pids_limit": 65,
    "read_only_root": False,
    "tmpfs": (("/tmp", "rw,size=17m"),),
    "networks": (NetworkAttachment(network_name="net", aliases=("one",)),),
    "cap_drop": (),
    "security_opt": (),
    "log_options": (),
}


def test_this_table_knows_every_field() -> None:
    assert {field.name for field in fields(ContainerSpec)} <= set(CHANGES), "a new field needs a row above"


@pytest.mark.parametrize("field", [field.name for field in fields(ContainerSpec)])
def test_the_digest_changes_with_every_field(field: str) -> None:
    assert replace(SPEC, **{field: CHANGES[field]}).digest() != SPEC.digest()


def test_words_do_not_run_together() -> None:
    assert replace(SPEC, argv=("a", "b")).digest() != replace(SPEC, argv=("a b",)).digest()
    assert replace(SPEC, argv=("a", "")).digest() != replace(SPEC, argv=("a",)).digest()


def test_another_process_finds_the_same_digest() -> None:
    """An heir has to recognize the container of a worker that is gone, whatever its hash seed."""
    program = "from tests.unit.core.test_spec import SPEC; print(SPEC.digest())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == SPEC.digest()


def test_labels_tell_whose_it_is() -> None:
    assert SPEC.labels() == {
        "io.django-container-jobs.installation": "here",
        "io.django-container-jobs.job": SPEC.job_id,
        "io.django-container-jobs.attempt": "1",
        "io.django-container-jobs.spec": SPEC.digest(),
    }


def test_it_is_frozen_and_hashable() -> None:
    with pytest.raises(FrozenInstanceError):
        SPEC.user = "0:0"  # type: ignore[misc]
    assert hash(SPEC) == hash(replace(SPEC))


@pytest.mark.parametrize("text", ["", "x", "-1", "1.0", "\u00b2", "\u0661", "9" * 5000])
def test_an_attempt_label_may_hold_anything(text: str) -> None:
    assert attempt_of({LABEL_JOB: "a", LABEL_ATTEMPT: text}) == ("a", 0)


def test_a_label_of_ours_is_read_back() -> None:
    assert attempt_of({LABEL_JOB: "a", LABEL_ATTEMPT: "12"}) == ("a", 12)
    assert attempt_of({}) == ("", 0)
