"""Starting the program: find it, prepare a child, execute, and learn what went wrong.

Standard library only: the shim imports this.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import resource
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

NOT_STARTED = 125
NOT_EXECUTABLE = 126
NOT_FOUND = 127

#: What a program may map beyond its memory limit before the kernel refuses it: stacks of threads and
#: arenas are mapped and hardly used. It stops what allocates faster than the shim looks.
RLIMIT_MARGIN_BYTES = 1024**3

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_libc = ctypes.CDLL(None, use_errno=True)
_DEFAULT_SIGNALS = (
    signal.SIGTERM, signal.SIGUSR1, signal.SIGCHLD, signal.SIGINT, signal.SIGHUP,
    signal.SIGPIPE, signal.SIGXFSZ,  # these two Python itself ignores
    signal.SIGQUIT,  # a shell lets what it starts in the background ignore it, with SIGINT
)  # fmt: skip


class NotStartedError(Exception):
    """The program never ran; `exit_code` is what a shell and an engine use for the case."""

    def __init__(self, exit_code: int, message: str) -> None:
        self.exit_code = exit_code
        super().__init__(message)


class Program(NamedTuple):
    """A started program and the reading ends of its output."""

    pid: int  # also its process group
    stdout: int
    stderr: int


def become_subreaper() -> None:
    """Make orphans below this process its children, so that none escapes by forking twice."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def start(spec: Mapping[str, Any]) -> Program:
    """Run the program of a spec in its own process group. Raises NotStartedError."""
    stdout_read, stdout_write = os.pipe()
    stderr_read, stderr_write = os.pipe()
    report_read, report_write = os.pipe()
    shim = os.getpid()
    pid = os.fork()
    if pid == 0:
        try:
            _become(spec, shim, stdout_write, stderr_write)
        except NotStartedError as error:
            os.write(report_write, json.dumps([error.exit_code, str(error)]).encode())
        except Exception as error:  # noqa: BLE001  # an unreported one would look like a started program
            os.write(report_write, json.dumps([NOT_STARTED, f"{type(error).__name__}: {error}"]).encode())
        finally:
            os._exit(NOT_STARTED)
    for descriptor in (stdout_write, stderr_write, report_write):
        os.close(descriptor)
    with os.fdopen(report_read, "rb") as file:
        report = file.read()  # empty once the program is executed
    if report:
        os.waitpid(pid, 0)
        os.close(stdout_read)
        os.close(stderr_read)
        exit_code, message = json.loads(report)
        raise NotStartedError(exit_code, message)
    return Program(pid, stdout_read, stderr_read)


def find(name: str, search_path: str, interpreter: str) -> str:
    """The file to execute for argv[0]. Raises NotStartedError.

    The interpreter's own directory is searched first, and `python` is the interpreter where nothing else
    answers to that name: `python manage.py x` runs with what the project runs with.
    """
    if "/" in name:
        return name
    refused = ""
    for directory in [str(Path(interpreter).parent), *search_path.split(os.pathsep)]:
        candidate = Path(directory or ".") / name
        if candidate.is_file():
            if os.access(candidate, os.X_OK):
                return str(candidate)
            refused = refused or str(candidate)
    if name in {"python", "python3"}:
        return interpreter
    if refused:
        raise NotStartedError(NOT_EXECUTABLE, f"{refused}: permission denied")
    raise NotStartedError(NOT_FOUND, f"{name}: executable file not found in PATH ({search_path})")


def _become(spec: Mapping[str, Any], shim: int, stdout: int, stderr: int) -> NoReturn:
    """In the child: turn into the program."""
    signal.set_wakeup_fd(-1)
    for number in _DEFAULT_SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # without its shim nobody would record it
    if os.getppid() != shim:
        raise NotStartedError(NOT_STARTED, "the shim ended before the program was started")
    os.setpgid(0, 0)
    os.umask(0o022)
    _limit_memory(spec["memory_bytes"])
    directory = spec["working_directory"]
    try:
        os.chdir(directory)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise NotStartedError(NOT_STARTED, f"working directory {directory!r}: {reason}") from error
    environment = dict(spec["environment"])
    argv: list[str] = spec["argv"]
    file = find(argv[0], environment["PATH"], spec["interpreter"])
    if Path(file).parent == Path(spec["interpreter"]).parent:
        # Python finds its environment by the path in argv[0], or else by a PATH that is not ours to change.
        argv = [file, *argv[1:]]
    os.dup2(stdout, 1)
    os.dup2(stderr, 2)
    try:
        os.execve(file, argv, environment)  # noqa: S606  # that is what this is for
    except OSError as error:
        raise NotStartedError(_exec_code(error), f"{file}: {error.strerror}{_hint(error, file)}") from error
    except ValueError as error:  # a NUL, or text that has no bytes
        raise NotStartedError(NOT_STARTED, f"command or environment: {error}") from error


def _exec_code(error: OSError) -> int:
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return NOT_FOUND
    return NOT_EXECUTABLE if error.errno in (errno.EACCES, errno.EPERM, errno.ENOEXEC) else NOT_STARTED


def _hint(error: OSError, file: str) -> str:
    if error.errno == errno.ENOENT and Path(file).exists():
        return " (the interpreter that its first line names)"
    if error.errno == errno.E2BIG:
        return " (command and environment together are too long)"
    return ""


def _limit_memory(limit: int) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    wanted = limit + RLIMIT_MARGIN_BYTES
    if hard == resource.RLIM_INFINITY or wanted < hard:
        resource.setrlimit(resource.RLIMIT_DATA, (wanted, wanted))


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:
        number = ctypes.get_errno()
        sys.stderr.write(f"prctl {option}: {os.strerror(number)}\n")
        raise OSError(number, os.strerror(number))
