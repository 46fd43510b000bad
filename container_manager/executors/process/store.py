"""The state directory: containers by name and by id, coming and going in one step each."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from container_manager.core.errors import ConfigurationError, HostUnreachable
from container_manager.executors.process import statedir
from container_manager.executors.process.container import Container

SCHEME = "process://"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,199}")

#: What a worker left in the staging area when it died there is thrown away after this time.
_STALE_SECONDS = 3600


class Store:
    """One state directory; any number of these, in any number of processes, may share it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.bells = root / statedir.BELLS
        self.containers = root / "containers"
        self._ids = root / "ids"  # links, so that an id is found without reading every spec
        self._staging = root / "staging"  # on the way in, and on the way out

    def prepare(self) -> None:
        """Make the directory, and see that it is ours: others may write to /tmp as well."""
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = self.root.stat()
        if found.st_uid != os.geteuid() or found.st_mode & 0o022:
            raise HostUnreachable(
                f"connection_string: {self.root} belongs to user {found.st_uid} or others may write to it "
                f"(mode {found.st_mode & 0o777:o}); use a directory of user {os.geteuid()} with mode 700."
            )
        for directory in (self.containers, self._ids, self._staging, self.bells):
            directory.mkdir(mode=0o700, exist_ok=True)

    def engine_id(self) -> str:
        """Stable over restarts; another machine or another directory is another engine."""
        try:
            machine = Path("/etc/machine-id").read_text().strip()
        except FileNotFoundError:
            machine = ""
        text = f"{machine or platform.node()}\0{self.root.resolve()}"
        return f"process-{hashlib.sha256(text.encode()).hexdigest()[:32]}"

    def all(self) -> Iterator[Container]:
        """Every container, by name."""
        for directory in sorted(self.containers.iterdir()):
            container = Container.load(directory)
            if container is not None:
                yield container

    def find(self, reference: str) -> Container | None:
        """A container by name or id."""
        if not NAME.fullmatch(reference):
            return None
        container = Container.load(self.containers / reference)
        if container is not None:
            return container
        try:
            directory = (self._ids / reference).readlink()
        except FileNotFoundError:
            return None
        container = Container.load(directory)
        return container if container is not None and container.id == reference else None

    def add(self, name: str, spec: dict[str, Any]) -> Container:
        """Put a container in place under its name, or return the one that holds it already."""
        container_id = uuid.uuid4().hex
        staged = self._staging / container_id
        staged.mkdir(mode=0o700)
        (staged / statedir.BELLS).mkdir(mode=0o700)
        for file in (statedir.LOG, statedir.LOCK, statedir.SHIM_ERRORS):
            (staged / file).touch(mode=0o600)
        spec = {**spec, "id": container_id, "created_at_ns": time.time_ns()}
        statedir.write_json(staged / statedir.SPEC, spec)
        place = self.containers / name
        (self._ids / container_id).symlink_to(place)
        try:
            staged.rename(place)  # fails where something is: a directory is replaced only when it is empty
        except OSError:
            self._delete(staged, container_id)
            holder = Container.load(place)
            if holder is None:
                raise
            return holder
        return Container(directory=place, spec=spec)

    def discard(self, container: Container) -> bool:
        """Take a container out of its place, then delete it; False when it was gone."""
        leaving = self._staging / uuid.uuid4().hex
        try:
            container.directory.rename(leaving)
        except FileNotFoundError:
            return False
        self._delete(leaving, container.id)
        return True

    def sweep(self, *, stale_seconds: float = _STALE_SECONDS) -> None:
        """Delete what was left on its way in or out."""
        for directory in self._staging.iterdir():
            try:
                age = time.time() - directory.stat().st_ctime
            except FileNotFoundError:
                continue
            if age > stale_seconds:
                shutil.rmtree(directory, ignore_errors=True)

    def _delete(self, directory: Path, container_id: str) -> None:
        (self._ids / container_id).unlink(missing_ok=True)
        shutil.rmtree(directory)


def state_root(connection_string: str, state_dir: str = "") -> Path:
    """The directory that a host row means; the default is one per user. Raises `ConfigurationError`."""
    text = state_dir or connection_string.removeprefix(SCHEME)
    if not text:
        return Path(tempfile.gettempdir()) / f"container-jobs-{os.geteuid()}"
    root = Path(text)
    if not root.is_absolute() or "\0" in text:
        raise ConfigurationError(
            f"connection_string: {text!r} is no absolute path; for example {SCHEME}/srv/container-jobs."
        )
    return root
