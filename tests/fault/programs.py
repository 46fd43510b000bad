"""What the jobs of these tests run: each leaves its marker first, and numbers what it writes.

A shell, not Python: it is up in a few milliseconds, and its builtins are all that is needed.
"""

from __future__ import annotations

from dataclasses import dataclass

_MARK = 'read -r unique < /proc/sys/kernel/random/uuid; : > "$CM_MARKER.$unique"; '
_LINE = 'echo "out $i"; echo "err $i" >&2; i=$((i + 1)); '


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """A command, and everything that it writes if nobody ends it before."""

    command: str
    lines: int

    @property
    def stdout(self) -> list[bytes]:
        """The lines of one stream."""
        return [b"out %d\n" % number for number in range(self.lines)]

    @property
    def stderr(self) -> list[bytes]:
        """The lines of the other."""
        return [b"err %d\n" % number for number in range(self.lines)]


def writes(lines: int, *, burst: int = 0, pause: float = 0.0, exit_code: int = 0) -> Program:
    """Write so many lines on each stream, pausing after each burst, and end with that code."""
    rest = f"[ $((i % {burst})) -ne 0 ] || sleep {pause:g}; " if burst else ""
    loop = f"i=0; while [ $i -lt {lines} ]; do {_LINE}{rest}done; "
    return Program(command=f"{_MARK}{loop}exit {exit_code}", lines=lines)


def sleeps(seconds: float, *, exit_code: int = 0) -> Program:
    """One line at the beginning and one at the end."""
    return Program(
        command=f"{_MARK}i=0; {_LINE}sleep {seconds:g}; {_LINE}exit {exit_code}",
        lines=2,
    )


def goes_on(*, obeys: bool) -> Program:
    """Never ends by itself; on SIGTERM it does, or does not listen."""
    trap = "trap 'exit 143' TERM" if obeys else "trap '' TERM"
    return Program(command=f"{trap}; {_MARK}i=0; {_LINE}while :; do sleep 0.02; done", lines=1)
