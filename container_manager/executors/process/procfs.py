"""What the kernel tells about processes. Linux only; standard library only: the shim imports this."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

_PROC = Path("/proc")
_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_GONE = (FileNotFoundError, ProcessLookupError)


class Stat(NamedTuple):
    """The part of /proc/PID/stat that is of use here; times in nanoseconds."""

    state: str  # one letter; T is stopped, Z is a zombie
    parent: int
    session: int
    cpu_ns: int
    children_cpu_ns: int  # of children that ended and were waited for


def stat(pid: int) -> Stat | None:
    """One process; None when it is gone."""
    try:
        text = (_PROC / str(pid) / "stat").read_text(errors="replace")
    except _GONE:
        return None
    fields = text[text.rindex(")") + 2 :].split()  # the name in parentheses may hold anything
    user, system, children_user, children_system = (
        int(field) * 1_000_000_000 // _TICKS for field in fields[11:15]
    )
    return Stat(fields[0], int(fields[1]), int(fields[3]), user + system, children_user + children_system)


def descendants(pid: int) -> list[int]:
    """Every living process below `pid`, without itself."""
    found: list[int] = []
    queue = [pid]
    while queue:
        children = _children(queue.pop())
        found += children
        queue += children
    return found


def session_members(session: int) -> list[int]:
    """The processes of a session whose leader is dead; nothing while a leader of that number lives."""
    leader = stat(session)
    if leader is not None and leader.state != "Z":
        return []
    return [pid for pid in _all() if (seen := stat(pid)) is not None and seen.session == session]


def anonymous_bytes(pid: int) -> int:
    """Memory that is the process's own: pages of files and shared memory excluded; 0 when it is gone."""
    try:
        _, resident, shared, *_ = (_PROC / str(pid) / "statm").read_text().split()
    except _GONE:
        return 0
    return max(0, int(resident) - int(shared)) * _PAGE


def peak_bytes(pid: int) -> int:
    """The kernel's own peak of the resident set; 0 when the process is gone or a zombie."""
    try:
        lines = (_PROC / str(pid) / "status").read_text(errors="replace").splitlines()
    except _GONE:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)


def _listed_children(pid: int) -> list[int]:
    try:
        tasks = os.listdir(f"/proc/{pid}/task")  # noqa: PTH208  # called 20 times a second for each job
    except _GONE:
        return []
    found: list[int] = []
    for task in tasks:
        try:
            with open(f"/proc/{pid}/task/{task}/children", "rb") as file:  # noqa: PTH123  # the same
                found += map(int, file.read().split())
        except _GONE:
            continue
    return found


def _searched_children(pid: int) -> list[int]:
    return [other for other in _all() if (seen := stat(other)) is not None and seen.parent == pid]


def _all() -> list[int]:
    return [int(entry.name) for entry in _PROC.iterdir() if entry.name.isdigit()]


#: The list is a build option of the kernel (CONFIG_PROC_CHILDREN); without it every process is looked at.
_HAS_LISTS = Path(f"/proc/self/task/{os.getpid()}/children").exists()
_children = _listed_children if _HAS_LISTS else _searched_children
