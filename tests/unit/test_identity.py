"""Whether a process is proven to be gone, with real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest

from container_manager.identity import DeathWatch, ProcessIdentity

_TELLS_ITSELF = """
import sys
from container_manager.identity import ProcessIdentity
me = ProcessIdentity.current()
print(me.hostname, me.boot_id, me.pid_namespace, me.pid, me.start_ticks, flush=True)
sys.stdin.read()
"""


class Other:
    """Another process that has told who it is."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", _TELLS_ITSELF], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        hostname, boot_id, namespace, pid, ticks = self.process.stdout.readline().split()
        self.identity = ProcessIdentity(
            hostname=hostname,
            boot_id=boot_id,
            pid_namespace=namespace,
            pid=int(pid),
            start_ticks=int(ticks),
        )


@pytest.fixture
def other() -> Iterator[Other]:
    made = Other()
    yield made
    made.process.kill()
    made.process.wait()


def test_who_lives_is_not_gone(other: Other) -> None:
    assert ProcessIdentity.current().is_known
    assert not ProcessIdentity.current().is_gone()
    assert other.identity.is_here
    assert not other.identity.is_gone()


def test_who_only_sleeps_is_not_gone(other: Other) -> None:
    other.process.send_signal(signal.SIGSTOP)
    assert not other.identity.is_gone()


def test_who_was_killed_is_gone_before_and_after_anybody_waited_for_it(other: Other) -> None:
    other.process.kill()
    os.waitid(os.P_PID, other.process.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and is a zombie
    assert other.identity.is_gone()
    other.process.wait()
    assert other.identity.is_gone()


def test_an_id_that_was_given_out_again_is_another_process() -> None:
    me = ProcessIdentity.current()
    assert replace(me, start_ticks=me.start_ticks + 1).is_gone()


@pytest.mark.parametrize("unknown", ["hostname", "boot_id", "pid_namespace", "pid", "start_ticks"])
def test_who_cannot_be_placed_is_never_called_gone(other: Other, unknown: str) -> None:
    other.process.kill()
    other.process.wait()
    empty = 0 if unknown in {"pid", "start_ticks"} else ""
    assert not replace(other.identity, **{unknown: empty}).is_gone()  # type: ignore[arg-type]
    assert not ProcessIdentity().is_gone()


@pytest.mark.parametrize("elsewhere", ["hostname", "boot_id", "pid_namespace"])
def test_who_lived_on_another_machine_is_never_called_gone(other: Other, elsewhere: str) -> None:
    other.process.kill()
    other.process.wait()
    stranger = replace(other.identity, **{elsewhere: "another"})  # type: ignore[arg-type]
    assert not stranger.is_here
    assert not stranger.is_gone()


def test_a_watch_tells_of_the_end_and_not_before(other: Other) -> None:
    told = threading.Event()
    watch = DeathWatch(other.identity, told.set)
    assert not told.is_set()
    other.process.kill()
    assert told.wait(10)
    watch.close()


def test_a_watch_that_was_closed_says_nothing(other: Other) -> None:
    told = threading.Event()
    watch = DeathWatch(other.identity, told.set)
    watch.close()
    watch._thread.join(10)
    assert not told.is_set()
