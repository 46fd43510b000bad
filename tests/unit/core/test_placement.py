"""Where a job goes: free slots first, then the smallest load for the host's size and weight."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from container_manager.core.errors import InvalidJob, NoEligibleHost
from container_manager.core.placement import HostState, choose

HOST = HostState(
    key="1", name="a", is_active=True, status="healthy", weight=100, max_jobs=4, used=0, queued=0, cpus=4
)


def named(name: str, **changes: object) -> HostState:
    return replace(HOST, name=name, key=name, **changes)  # type: ignore[arg-type]


def chosen(*hosts: HostState, cpus: float = 1.0) -> str:
    names = {choose(order, cpus=cpus).name for order in itertools.permutations(hosts)}
    assert len(names) == 1, "the choice does not hang on the order of the rows"
    return names.pop()


def test_of_equals_the_first_by_name() -> None:
    assert chosen(named("b"), named("a"), named("c")) == "a"


def test_a_free_slot_wins_over_weight() -> None:
    assert chosen(named("full", used=4, weight=10_000), named("free", used=3, weight=1)) == "free"


def test_the_smaller_load_wins_and_waiting_jobs_count() -> None:
    assert chosen(named("a", used=2), named("b", used=1)) == "b"
    assert chosen(named("a", used=0, queued=2), named("b", used=1)) == "b"
    assert chosen(named("a", used=4, queued=9), named("b", used=4, queued=2)) == "b"


def test_size_and_weight_count() -> None:
    assert chosen(named("small", used=1), named("large", used=2, max_jobs=16)) == "large"
    assert chosen(named("light", weight=50), named("heavy", weight=200, used=1)) == "heavy"


def test_jobs_spread_by_weight() -> None:
    hosts = {"one": named("one", weight=100, max_jobs=100), "three": named("three", weight=300, max_jobs=100)}
    for _ in range(40):
        host = choose(list(hosts.values()), cpus=1)
        hosts[host.name] = replace(host, queued=host.queued + 1)
    assert (hosts["one"].queued, hosts["three"].queued) == (10, 30)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"is_active": False}, "other: not active"),
        ({"status": "unreachable"}, "other: unreachable"),
        ({"status": "mismatched"}, "other: another engine"),
        ({"cpus": 1}, "other: has 1 CPUs, the job asks for 2"),
        ({"max_jobs": 0}, "other: takes no jobs"),
        ({"weight": 0}, "other: takes only jobs that name it"),
    ],
)
def test_a_host_that_cannot_take_it_is_passed_over_and_says_why(change: dict[str, object], says: str) -> None:
    other = named("other", **change)
    assert chosen(named("z", used=4, queued=50), other, cpus=2) == "z"
    with pytest.raises(NoEligibleHost, match=says) as caught:
        choose([other], cpus=2)
    assert "register_local_host" in str(caught.value)
    assert caught.value.field == "docker_host"


def test_a_host_that_was_never_asked_is_eligible() -> None:
    assert chosen(named("new", status="unknown", cpus=None), cpus=64) == "new"


def test_without_any_host_the_command_that_registers_one_is_named() -> None:
    with pytest.raises(InvalidJob, match=r"no host is registered.*python manage.py register_local_host"):
        choose([], cpus=1)


def test_every_host_is_in_the_explanation() -> None:
    with pytest.raises(NoEligibleHost, match="a: not active; b: unreachable"):
        choose([named("b", status="unreachable"), named("a", is_active=False)], cpus=1)
