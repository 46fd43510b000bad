"""What the program finds when it is started, and what is said when it cannot be."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

from container_manager.core.errors import CommandNotExecutable, CommandNotFound, CreateFailed, StartFailed
from container_manager.core.observation import STDERR, ContainerState
from container_manager.executors.process.executor import ProcessExecutor
from tests.unit.process.conftest import config, output, run, spec


def environment(executor: ProcessExecutor, *pairs: tuple[str, str]) -> dict[str, str]:
    text = output(executor, run(executor, spec("/usr/bin/env", "-0", environment=pairs)))
    return dict(entry.split("=", 1) for entry in text.decode().rstrip("\0").split("\0"))


def test_the_environment_is_the_given_one_with_a_path_and_a_home(
    executor: ProcessExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_OF_THE_WORKER", "must not leak")
    found = environment(executor, ("A", "1"), ("TEXT", "two\nlines = ünïcode"))
    assert found.pop("PATH").split(":")[0] == str(Path(sys.executable).parent)
    assert found == {"A": "1", "TEXT": "two\nlines = ünïcode", "HOME": "/tmp"}


def test_a_given_path_and_home_are_kept(executor: ProcessExecutor) -> None:
    assert environment(executor, ("PATH", "/bin"), ("HOME", "/srv")) == {"PATH": "/bin", "HOME": "/srv"}


@pytest.mark.parametrize("pairs", [(), (("PATH", "/usr/bin:/bin"),)])
@pytest.mark.parametrize("name", ["python", "python3"])
def test_python_is_the_interpreter_of_the_project(
    executor: ProcessExecutor, name: str, pairs: tuple[tuple[str, str], ...]
) -> None:
    job = spec(name, "-c", "import sys; print([sys.executable, sys.prefix])", environment=pairs)
    _, prefix = ast.literal_eval(output(executor, run(executor, job)).decode())
    assert prefix == sys.prefix


def test_nothing_of_the_shim_is_left_in_the_program(executor: ProcessExecutor) -> None:
    code = """
import os
print(sorted(os.listdir('/proc/self/fd'))[:-1], os.getpgrp() == os.getpid(), oct(os.umask(0)))
"""
    text = output(executor, run(executor, spec("python", "-c", code))).decode()
    assert text == "['0', '1', '2'] True 0o22\n"
    masks = output(executor, run(executor, spec("grep", "-E", "SigBlk|SigIgn", "/proc/self/status")))
    # The C library keeps signals 32 and 33 for itself: what a caller's caller blocked of them stays so.
    kept = 1 << 31 | 1 << 32
    found = {line.split()[0]: int(line.split()[1], 16) & ~kept for line in masks.splitlines()}
    assert found == {b"SigBlk:": 0, b"SigIgn:": 0}


def test_standard_input_is_empty(executor: ProcessExecutor) -> None:
    assert output(executor, run(executor, spec("cat"))) == b""


def test_without_a_working_directory_it_is_the_workers(
    executor: ProcessExecutor, state: Path, tmp_path: Path
) -> None:
    assert output(executor, run(executor, spec("pwd", working_directory=""))) == f"{Path.cwd()}\n".encode()
    other = ProcessExecutor(config(state, working_directory=str(tmp_path)))
    assert output(other, run(other, spec("pwd", working_directory=""))) == f"{tmp_path}\n".encode()
    assert output(other, run(other, spec("pwd", working_directory="/usr"))) == b"/usr\n"


def refusal(executor: ProcessExecutor, **changes: object) -> tuple[type[Exception], int | None, str]:
    argv = changes.pop("argv", ("true",))
    container_id = executor.create(spec(*argv, **changes))  # type: ignore[misc]
    with pytest.raises((StartFailed, CommandNotFound, CommandNotExecutable)) as caught:
        executor.start(container_id)
    seen = executor.inspect(container_id)
    assert seen.state is ContainerState.CREATED
    assert not seen.ever_started
    assert seen.error == caught.value.detail
    assert output(executor, container_id) == output(executor, container_id, STDERR) == b""
    return type(caught.value), seen.exit_code, seen.error


def test_a_missing_working_directory(executor: ProcessExecutor) -> None:
    kind, code, text = refusal(executor, working_directory="/no/such/place")
    assert (kind, code) == (StartFailed, 125)
    assert text == "working directory '/no/such/place': No such file or directory"


def test_a_missing_program(executor: ProcessExecutor) -> None:
    kind, code, text = refusal(executor, argv=("no-such-program",), environment=(("PATH", "/bin"),))
    assert (kind, code) == (CommandNotFound, 127)
    assert text == "no-such-program: executable file not found in PATH (/bin)"


def test_a_script_whose_interpreter_is_missing(executor: ProcessExecutor, tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("#!/no/such/interpreter\n")
    script.chmod(0o755)
    kind, code, text = refusal(executor, argv=(str(script),))
    assert (kind, code) == (CommandNotFound, 127)
    assert "the interpreter that its first line names" in text


@pytest.mark.parametrize("how", ["by path", "by name"])
def test_a_file_that_is_no_program(executor: ProcessExecutor, tmp_path: Path, how: str) -> None:
    (tmp_path / "data").write_text("no program\n")
    name = str(tmp_path / "data") if how == "by path" else "data"
    kind, code, text = refusal(executor, argv=(name,), environment=(("PATH", str(tmp_path)),))
    assert (kind, code) == (CommandNotExecutable, 126)
    assert str(tmp_path / "data") in text


def test_a_command_that_is_too_long(executor: ProcessExecutor) -> None:
    kind, code, text = refusal(executor, argv=("true", "x" * 5_000_000))
    assert (kind, code) == (StartFailed, 125)
    assert "too long" in text


@pytest.mark.parametrize("changes", [{"argv": ("true", "a\0b")}, {"environment": (("A", "a\0b"),)}])
def test_a_nul(executor: ProcessExecutor, changes: dict[str, object]) -> None:
    kind, code, text = refusal(executor, **changes)
    assert (kind, code) == (StartFailed, 125)
    assert "null byte" in text


def test_no_command_at_all_is_refused_at_creation(executor: ProcessExecutor) -> None:
    with pytest.raises(CreateFailed, match="give a command"):
        executor.create(spec())
