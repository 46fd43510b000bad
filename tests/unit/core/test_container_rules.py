"""What holds for every container: a spec that breaks any one line of the table does not pass."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from container_manager.core.errors import PolicyViolation
from container_manager.core.policy import (
    CONTAINER_RULES,
    MEBIBYTE,
    RULES,
    JobRequest,
    Policy,
    build_spec,
    enforce,
    verify_spec,
    violations,
)
from container_manager.core.spec import ContainerSpec, NetworkAttachment

POLICY = Policy()
REQUEST = JobRequest(
    image="alpine:3",
    argv=("true",),
    environment={"A": "1"},
    working_directory="",
    memory_limit=256,
    cpu_limit=1.0,
    timeout_seconds=300,
    networks=(),
    user="",
    read_only_root=True,
)
IDS: dict[str, Any] = {"name": "job-1", "installation": "here", "job_id": "1", "attempt": 1}

BROKEN = [
    ("user", {"user": "0:0"}),
    ("user", {"user": "10001:1000"}),
    ("user", {"user": "root"}),
    ("user", {"user": ""}),
    ("capabilities", {"cap_drop": ()}),
    ("capabilities", {"cap_drop": ("NET_RAW",)}),
    ("no-new-privileges", {"security_opt": ()}),
    ("no-new-privileges", {"security_opt": ("no-new-privileges", "seccomp=unconfined")}),
    ("memory", {"memory_bytes": 0}),
    ("memory", {"memory_bytes": -1}),
    ("memory", {"memory_bytes": 6 * MEBIBYTE - 1}),
    ("memory", {"memory_bytes": 2048 * MEBIBYTE + 1}),
    ("cpu", {"cpus": 0.0}),
    ("cpu", {"cpus": float("nan")}),
    ("cpu", {"cpus": float("inf")}),
    ("cpu", {"cpus": 2.01}),
    ("processes", {"pids_limit": 0}),
    ("processes", {"pids_limit": -1}),
    ("processes", {"pids_limit": 257}),
    ("root-filesystem", {"read_only_root": False}),
    ("tmpfs", {"tmpfs": ()}),
    ("tmpfs", {"tmpfs": (("/tmp", "rw,size=64m"),)}),
    ("tmpfs", {"tmpfs": (("/etc", "rw,exec,nosuid,nodev,mode=1777,size=64m"),)}),
    ("network-namespace", {"networks": (NetworkAttachment(network_name="host"),)}),
    ("network-namespace", {"networks": (NetworkAttachment(network_name="container:db"),)}),
    ("log-size", {"log_options": ()}),
    ("log-size", {"log_options": (("max-size", "-1"),)}),
]


def spec() -> ContainerSpec:
    return build_spec(REQUEST, POLICY, **IDS)


def test_what_is_built_passes() -> None:
    verify_spec(spec(), POLICY)


@pytest.mark.parametrize(("rule", "change"), BROKEN)
def test_a_broken_container_does_not_pass(rule: str, change: dict[str, Any]) -> None:
    with pytest.raises(PolicyViolation, match="bug of the package") as caught:
        verify_spec(replace(spec(), **change), POLICY)
    assert caught.value.rule == rule


def test_every_rule_of_the_table_is_broken_above() -> None:
    assert {rule.name for rule in CONTAINER_RULES} == {rule for rule, _ in BROKEN}
    assert len({rule.name for rule in RULES}) == len(RULES)


WISHES = [
    ("memory_limit", None, "unlimited"),
    ("memory_limit", 0, "unlimited"),
    ("memory_limit", -1, "not above 0"),
    ("memory_limit", 5, "5 MB is less than an engine accepts"),
    ("memory_limit", 2049, "2049 MB is above the ceiling of 2048 MB.*MAX_MEMORY_LIMIT"),
    ("memory_limit", 12_345_678, "12345678 MB"),
    ("memory_limit", 256.0, "is a float"),
    ("memory_limit", "256", "is a str"),
    ("memory_limit", True, "is a bool"),
    ("cpu_limit", None, "unlimited"),
    ("cpu_limit", 0, "unlimited"),
    ("cpu_limit", float("nan"), "nan is no finite number"),
    ("cpu_limit", float("inf"), "inf is no finite number"),
    ("cpu_limit", float("-inf"), "no finite number"),
    ("cpu_limit", 0.001, "less than an engine accepts"),
    ("cpu_limit", 2.5, "2.5 cores is above the ceiling of 2.0 cores.*MAX_CPU_LIMIT"),
    ("cpu_limit", 10**400, "above the ceiling"),
    ("cpu_limit", False, "is a bool"),
    ("timeout_seconds", None, "unlimited"),
    ("timeout_seconds", 0, "unlimited"),
    ("timeout_seconds", 0.5, "is a float"),
    ("timeout_seconds", 3601, "3601 s is above the ceiling of 3600 s.*MAX_TIMEOUT_SECONDS"),
    ("working_directory", "app", "'app' is relative"),
    ("working_directory", "/a/../b", r"'\.\.'"),
    ("working_directory", "/a\nb", "line break"),
    ("working_directory", "/a\0b", "NUL"),
    ("working_directory", None, "is a NoneType"),
    ("user", "root", "not a numeric uid:gid"),
    ("user", "10001", "not a numeric uid:gid"),
    ("user", "0:0", "has the id 0"),
    ("user", "1000:1001", "has the id 1000"),
    ("user", "1001:1000", "has the id 1000"),
    ("user", "4294967296:1001", "above 2147483647"),
    ("user", "\u0661\u0662\u0663\u0664:1001", "not a numeric uid:gid"),
    ("user", 10001, "10001 is not a numeric uid:gid"),
    ("user", None, "None is not a numeric uid:gid"),
    ("read_only_root", False, "ALLOW_WRITABLE_ROOT"),
    ("read_only_root", None, "neither True nor False"),
    ("networks", (NetworkAttachment(network_name="host"),), "'host' would share"),
]


@pytest.mark.parametrize(("name", "value", "says"), WISHES)
def test_a_refused_wish_names_field_value_and_remedy(name: str, value: Any, says: str) -> None:
    request = replace(REQUEST, **{name: value})
    with pytest.raises(PolicyViolation, match=says) as caught:
        enforce(request, POLICY)
    assert caught.value.field == ("network_configuration" if name == "networks" else name)
    assert [violation.rule for violation in violations(request, POLICY)] == [caught.value.rule]


def test_a_number_that_python_will_not_write_out_is_refused_like_any_other() -> None:
    with pytest.raises(PolicyViolation, match="a number of 16610 bits MB is above the ceiling"):
        enforce(replace(REQUEST, memory_limit=10**5000), POLICY)


def test_every_rule_refuses_something_above() -> None:
    refused = {
        violation.rule
        for name, value, _ in WISHES
        for violation in violations(replace(REQUEST, **{name: value}), POLICY)
    }
    assert refused == {rule.name for rule in RULES}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("memory_limit", 6),
        ("memory_limit", 2048),
        ("cpu_limit", 0.01),
        ("cpu_limit", 2),
        ("timeout_seconds", 1),
        ("timeout_seconds", 3600),
        ("working_directory", "/app"),
        ("user", "1001:1001"),
        ("user", "2147483647:2147483647"),
    ],
)
def test_the_edges_are_inside(name: str, value: Any) -> None:
    enforce(replace(REQUEST, **{name: value}), POLICY)


def test_more_processors_than_the_host_has() -> None:
    enforce(replace(REQUEST, cpu_limit=2.0), POLICY, cpus=2, host_name="small")
    with pytest.raises(PolicyViolation, match="2 cores are more than the 1 of the host 'small'") as caught:
        enforce(replace(REQUEST, cpu_limit=2.0), POLICY, cpus=1, host_name="small")
    assert caught.value.field == "cpu_limit"


def test_a_writable_root_needs_the_policys_word() -> None:
    open_policy = replace(POLICY, allow_writable_root=True)
    assert not build_spec(replace(REQUEST, read_only_root=False), open_policy, **IDS).read_only_root


def test_home_is_where_a_job_may_write_unless_it_says_otherwise() -> None:
    assert dict(spec().environment) == {"A": "1", "HOME": "/tmp"}
    own = build_spec(replace(REQUEST, environment={"HOME": "/data"}), POLICY, **IDS)
    assert dict(own.environment) == {"HOME": "/data"}


def test_a_refused_wish_is_never_built() -> None:
    with pytest.raises(PolicyViolation):
        build_spec(replace(REQUEST, memory_limit=4096), POLICY, **IDS)
