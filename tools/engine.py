"""Private Docker engines for the demo and the tests: own data, own network namespace, own socket.

    python tools/engine.py start --name tests --root .state/engines    prints the engine's address
    python tools/engine.py url   --name tests --root .state/engines
    python tools/engine.py stop  --name tests --root .state/engines    leaves nothing behind
    python tools/engine.py stop  --all --root .state/engines

`start` installs Debian's packages where they are missing and we may. It is idempotent, and copes with
what a killed run left: dead pid files, sockets, namespaces, mounts, containers. An engine that is not
ours is never touched: ours have their own containerd, firewall and bridge.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tools import apt, engine_http, netns
from tools.processes import Process, launch, search_path, with_argument, with_cgroup_of

PACKAGES = ["docker.io", "iptables", "iproute2", "uidmap"]
PROGRAMS = ["dockerd", "containerd", "runc", "iptables", "ip", "nsenter"]
RUN = Path("/run/container-jobs")  # short, as the path of a socket may have 107 bytes
READY_SECONDS = 90
STOP_SECONDS = 30
TCP_PORT = 2375


class EngineError(RuntimeError):
    """An engine cannot be started or stopped here; the text says why and what would help."""


def refusal() -> str:
    """Why no private engine can be started on this machine; empty where it can (maybe after an install)."""
    if not sys.platform.startswith("linux"):
        return "private engines need Linux"
    if os.geteuid() != 0:
        return "private engines need root"
    missing = [name for name in PROGRAMS if not _which(name)]
    if missing and (reason := apt.may_install()):
        return f"{', '.join(missing)} missing, and {reason}"
    return ""


def install() -> None:
    """Install the packages of which a program is missing. Raises `EngineError`."""
    if all(_which(name) for name in PROGRAMS):
        return
    try:
        apt.install(PACKAGES)
    except apt.CannotInstallError as error:
        raise EngineError(str(error)) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """One private engine, known by its name and the directory that holds its data."""

    name: str
    root: Path
    flags: tuple[str, ...] = field(default=())  # further ones for dockerd
    tcp: bool = False  # listen without TLS on the engine's end of the wire, too
    disk_mb: int = (
        0  # its data lie on a disk of this size, in memory, which can be filled; 0: where `root` is
    )

    @property
    def home(self) -> Path:
        """Where images, containers and the daemons' own logs lie."""
        return self.root.resolve() / self.name

    @property
    def data(self) -> Path:
        """Where dockerd keeps images and containers."""
        return self.home / "data"

    @property
    def id(self) -> str:
        """Short, and different for another checkout of the project."""
        return "cj" + hashlib.sha256(str(self.home).encode()).hexdigest()[:8]

    @property
    def run(self) -> Path:
        """Sockets and state; the machine's restart clears it, which is right."""
        return RUN / self.id

    @property
    def url(self) -> str:
        """The engine's address on this machine."""
        return f"unix://{self.run}/docker.sock"

    @property
    def tcp_url(self) -> str:
        """The engine's address over plain TCP. Raises `EngineError` when it does not listen there."""
        state = self._state()
        if not state.get("tcp"):
            raise EngineError(f"engine {self.name} has no TCP address: start it with tcp=True")
        return f"tcp://{state['namespace']['engine_address']}:{TCP_PORT}"

    @property
    def host_address(self) -> str:
        """The address under which containers of this engine reach the machine."""
        return str(self._state()["namespace"]["host_address"])

    @property
    def daemon(self) -> Process | None:
        """The running dockerd, for tests that do it harm."""
        stored = self._state().get("dockerd")
        process = Process.load(stored) if stored else None
        return process if process and process.alive else None

    def running(self) -> bool:
        """Whether the engine answers."""
        return self.daemon is not None and self.home.exists() and engine_http.answers(self.url)

    def start(self) -> str:
        """Start it, or find it running; returns its address. Raises `EngineError`."""
        if reason := refusal():
            raise EngineError(reason)
        install()
        with self._locked():
            if self.running():
                self._same_options()
                return self.url
            self._clear()
            started = time.monotonic()
            _say(f"engine {self.name}: starting")
            self._launch()
            _say(f"engine {self.name}: ready after {time.monotonic() - started:.1f} s at {self.url}")
        return self.url

    def resume(self) -> str:
        """Start dockerd again after it was stopped or killed, with everything else as it was."""
        with self._locked():
            state = self._state()
            if not state:
                raise EngineError(f"engine {self.name} was never started")
            if self.daemon is None:
                (self.run / "docker.pid").unlink(missing_ok=True)
                self._launch_dockerd(state)
        return self.url

    def stop(self, *, keep_data: bool = False) -> None:
        """Stop it and take everything of it away. No engine: no effect."""
        if not self.run.exists() and not self.home.exists():
            return
        with self._locked():
            # Containers that ignore SIGTERM would hold dockerd up for ten seconds each.
            for process in with_cgroup_of(self._container_ids()):
                process.signal(signal.SIGKILL)
            self._clear()
            if not keep_data:
                shutil.rmtree(self.home, ignore_errors=False)
                _say(f"engine {self.name}: stopped and removed")

    def _launch(self) -> None:
        self.data.mkdir(parents=True, exist_ok=True)
        if self.disk_mb:
            self._mount_small_disk()
        self.run.mkdir(parents=True, exist_ok=True)
        self.run.chmod(0o700)
        namespace = netns.create(self.id)
        # A containerd of our own: dockerd would take the machine's, if there is one, and share it.
        config = self.run / "containerd.toml"
        config.write_text(
            "version = 2\n"
            f'root = "{self.home}/containerd"\n'
            f'state = "{self.run}/containerd"\n'
            'disabled_plugins = ["io.containerd.grpc.v1.cri"]\n'
            f'[grpc]\n  address = "{self.run}/containerd.sock"\n'
        )
        containerd = launch(["containerd", "--config", str(config)], log=self.home / "containerd.log")
        state = {
            "home": str(self.home),
            "flags": list(self.flags),
            "tcp": self.tcp,
            "disk_mb": self.disk_mb,
            "namespace": asdict(namespace),
            "containerd": containerd.dump(),
        }
        self._save(state)
        self._await("containerd", containerd, (self.run / "containerd.sock").is_socket)
        self._launch_dockerd(state)

    def _mount_small_disk(self) -> None:
        options = f"size={self.disk_mb}m,mode=711"
        command = ["mount", "-t", "tmpfs", "-o", options, self.id, str(self.data)]
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
        if answer.returncode:  # `_clear` undoes it with the other mounts
            raise EngineError(f"engine {self.name}: no disk of {self.disk_mb} MB: {answer.stderr.strip()}")

    def _launch_dockerd(self, state: dict[str, Any]) -> None:
        self._write_daemon_settings()
        command = [
            "nsenter", f"--net=/run/netns/{self.id}",
            "dockerd", "--data-root", str(self.data), "--exec-root", f"{self.run}/docker",
            "--pidfile", f"{self.run}/docker.pid", "--containerd", f"{self.run}/containerd.sock",
            "--config-file", f"{self.run}/daemon.json", "--group", "root", "-H", f"unix://{self.run}/docker.sock",
        ]  # fmt: skip
        if state["tcp"]:
            # Without --tls=false dockerd pauses 15 s to warn of a plain address.
            command += ["--tls=false", "-H", f"tcp://{state['namespace']['engine_address']}:{TCP_PORT}"]
        dockerd = launch([*command, *state["flags"]], log=self.home / "dockerd.log")
        self._save({**state, "dockerd": dockerd.dump()})
        self._await("dockerd", dockerd, lambda: engine_http.answers(self.url))

    def _write_daemon_settings(self) -> None:
        """Give the engine an id of its own, and none of the machine's settings (/etc/docker/daemon.json).

        Engine 20.10 takes its id from /etc/docker/key.json, so that all engines of a machine would look like
        one; newer ones keep it with their data, yet take the old one over where they find it.
        """
        known = self.data / "engine-id"
        if not known.exists():
            known.write_text(str(uuid.uuid4()))
        dockerd = _which("dockerd") or "dockerd"
        answer = subprocess.run([dockerd, "--version"], capture_output=True, text=True, check=True)
        major = re.search(r"version (\d+)", answer.stdout)
        old = major is not None and int(major[1]) < 23
        settings = {"deprecated-key-path": f"{self.home}/key.json"} if old else {}
        (self.run / "daemon.json").write_text(json.dumps(settings))

    def _await(self, program: str, process: Process, ready: Any) -> None:
        deadline = time.monotonic() + READY_SECONDS
        while not ready():
            if not process.alive or time.monotonic() > deadline:
                log = self.home / f"{program}.log"
                tail = "\n".join(log.read_text(errors="replace").splitlines()[-12:])
                state = "did not get ready" if process.alive else "ended"
                self._clear()
                raise EngineError(f"engine {self.name}: {program} {state}; the end of {log}:\n{tail}")
            time.sleep(0.05)

    def _clear(self) -> None:
        """End what runs of this engine, and undo its mounts, namespace and sockets; images stay."""
        state = self._state()
        for program in ("dockerd", "containerd"):
            if stored := state.get(program):
                Process.load(stored).end(grace=STOP_SECONDS)
        # What a killed daemon leaves: a containerd without state file, shims, and containers.
        for process in with_argument(f"{self.run}/containerd.toml") + with_argument(
            f"{self.run}/docker.sock"
        ):
            process.end(grace=5)
        shims = with_argument(f"{self.run}/containerd.sock")
        for process in shims + with_cgroup_of(self._container_ids()):
            process.signal(signal.SIGKILL)
            process.wait(10)
        _unmount_below(self.home, self.run)
        if _which("ip"):
            netns.remove(self.id)
        shutil.rmtree(self.run, ignore_errors=True)

    def _container_ids(self) -> set[str]:
        containers = self.data / "containers"
        return {entry.name for entry in containers.iterdir()} if containers.is_dir() else set()

    def _same_options(self) -> None:
        state = self._state()
        wanted = (list(self.flags), self.tcp, self.disk_mb)
        if (state["flags"], bool(state["tcp"]), state.get("disk_mb", 0)) != wanted:
            raise EngineError(
                f"engine {self.name} runs with other options: stop it first, or use another name"
            )

    def _state(self) -> dict[str, Any]:
        try:
            stored = json.loads((self.run / "state.json").read_text())
        except (FileNotFoundError, ValueError):
            return {}
        return stored if isinstance(stored, dict) else {}

    def _save(self, state: dict[str, Any]) -> None:
        draft = self.run / "state.json.new"
        draft.write_text(json.dumps(state, indent=1))
        draft.replace(self.run / "state.json")

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Alone with this engine: `start` and `stop` of one name wait for each other."""
        RUN.mkdir(parents=True, exist_ok=True)
        RUN.chmod(0o755)
        path = RUN / f"{self.id}.lock"
        while True:
            with path.open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                # Whoever held it before may have removed the file: then the lock we got guards nothing.
                if not path.exists() or path.stat().st_ino != os.fstat(lock.fileno()).st_ino:
                    continue
                yield
                if not self.run.exists():
                    path.unlink()
                return


def engines_below(root: Path) -> list[Engine]:
    """Every engine that was started with this root and not yet taken away."""
    known = {entry.name for entry in root.iterdir() if entry.is_dir()} if root.is_dir() else set()
    for state in RUN.glob("*/state.json"):
        home = Path(json.loads(state.read_text()).get("home", ""))
        if home.parent == root.resolve():
            known.add(home.name)
    return [Engine(name=name, root=root) for name in sorted(known)]


def _unmount_below(*folders: Path) -> None:
    points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    ours = [point for point in points if any(point.startswith(f"{folder}/") for folder in folders)]
    for point in sorted(ours, key=len, reverse=True):
        subprocess.run(["umount", "--lazy", point], check=False, capture_output=True)


def _which(program: str) -> str | None:
    return shutil.which(program, path=search_path())


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main() -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(description="Private Docker engines for the demo and the tests.")
    parser.add_argument("act", choices=["start", "stop", "url", "install"])
    parser.add_argument("--name", default="main")
    parser.add_argument("--root", type=Path, default=Path(".state/engines"))
    parser.add_argument(
        "--tcp", action="store_true", help="listen on plain TCP, too (start), or print that (url)"
    )
    parser.add_argument(
        "--flag", action="append", default=[], help="one more argument for dockerd: --flag=--debug"
    )
    parser.add_argument("--keep-data", action="store_true", help="stop: leave images and containers on disk")
    parser.add_argument("--all", action="store_true", help="stop: every engine of this root")
    options = parser.parse_args()
    engine = Engine(name=options.name, root=options.root, flags=tuple(options.flag), tcp=options.tcp)
    try:
        if options.act == "install":
            install()
        elif options.act == "start":
            print(engine.start())
        elif options.act == "stop":
            for one in engines_below(options.root) if options.all else [engine]:
                one.stop(keep_data=options.keep_data)
        elif engine.running():
            print(engine.tcp_url if options.tcp else engine.url)
        else:
            _say(f"engine {options.name} is not running")
            return 1
    except (EngineError, OSError, RuntimeError) as error:
        _say(str(error) if str(error).startswith("engine ") else f"engine {options.name}: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
