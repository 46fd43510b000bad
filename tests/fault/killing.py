"""Kill points: the switch by which a test build of the worker ends itself at a chosen place.

Nothing of this is in the product. `install` wraps, in the calling process, what a worker goes through:
every public function of `container_manager.lifecycle`, every class method of `EngineLease`, every commit,
every verb of the executor and the moment when an HTTP request was sent and its answer not read yet. Each of
these places has a name; passing one is a crossing. README.md beside this file lists the names.

    CM_KILL_AT=create.sent:1    SIGKILL at the first crossing of that point
    CM_KILL_SEED=seed           SIGKILL where `random.Random(seed)` says: at one of the next crossings,
                                or at one of the first crossings of a point that it picks
    CM_KILL_MOST=60             ... the next sixty
    CM_STOP_AT=start.before:1   SIGSTOP there; SIGCONT lets the worker go on
"""

from __future__ import annotations

import copy
import functools
import inspect
import os
import random
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from http.client import HTTPConnection
from types import ModuleType
from typing import Any, NamedTuple

from django.db.transaction import Atomic

from container_manager.executors.base import Executor, HostConfig

KILL_MOST = 60
#: Frames of a stream are many and alike: of so many, one counts as a crossing.
FRAMES = 25
#: Where a point was picked that a worker does not come by, it lives for so many times the crossings.
PATIENCE = 3
_PACKAGE = "container_manager"


class Place(NamedTuple):
    """The n-th crossing of a point."""

    point: str
    number: int

    @classmethod
    def parse(cls, text: str) -> Place | None:
        """Read `point:n`; without a number the first crossing. None for an empty text."""
        point, _, number = text.partition(":")
        return cls(point, int(number or 1)) if point else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Orders:
    """When the process is to end or to stop."""

    kill_at: Place | None = None
    stop_at: Place | None = None
    kill_after: int | None = None  # crossings of any point

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Orders:
        """The orders of the variables above."""
        if seed := environment.get("CM_KILL_SEED", ""):
            return cls.drawn(random.Random(seed), int(environment.get("CM_KILL_MOST", "") or KILL_MOST))
        return cls(
            kill_at=Place.parse(environment.get("CM_KILL_AT", "")),
            stop_at=Place.parse(environment.get("CM_STOP_AT", "")),
        )

    @classmethod
    def drawn(cls, dice: random.Random, most: int) -> Orders:
        """Mostly any crossing; else a point by its name, so that rare ones have their turn."""
        if dice.random() < 0.7:
            return cls(kill_after=dice.randint(1, most))
        place = Place(dice.choice(sorted(POINTS.known)), dice.choice([1, 1, 1, 2, 3, 5]))
        return cls(kill_at=place, kill_after=most * PATIENCE)


class Points:
    """Counts crossings and carries the orders out."""

    def __init__(self) -> None:
        self.orders = Orders()
        self.known: set[str] = set()
        self.seen: Counter[str] = Counter()
        self.total = 0
        self._lock = threading.Lock()

    def arm(self, orders: Orders) -> None:
        """From now on these orders hold, and counting begins anew. A forked worker calls it first."""
        self._lock = threading.Lock()
        self.orders, self.seen, self.total = orders, Counter(), 0

    def cross(self, point: str) -> None:
        """Pass a point; may not return."""
        stop_at = self.orders.stop_at
        # No transaction may be open at a stop: the process would hold SQLite's only write lock.
        quiet = stop_at is not None and stop_at.point == point
        with _between_transactions if quiet else nullcontext(), self._lock:
            self.seen[point] += 1
            self.total += not point.endswith(".frame") or self.seen[point] % FRAMES == 0
            here = Place(point, self.seen[point])
            if here == self.orders.kill_at or self.total == self.orders.kill_after:
                self._end(here, "killed", signal.SIGKILL)
            if here == self.orders.stop_at:
                self._end(here, "stopped", signal.SIGSTOP)

    def _end(self, here: Place, word: str, number: signal.Signals) -> None:
        # The lock is held: no other thread of this process crosses anything any more.
        os.write(2, f"{word} at {here.point}:{here.number} (crossing {self.total})\n".encode())
        os.kill(os.getpid(), number)
        if number is signal.SIGKILL:
            signal.pause()  # the kernel ends us here


POINTS = Points()
_between_transactions = threading.RLock()
_verb = threading.local()  # the verb that the current thread is in


def crossing(point: str, call: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, with a crossing before it and one after its effect."""

    POINTS.known |= {f"{point}.before", f"{point}.after"}

    @functools.wraps(call)
    def crossed(*args: Any, **kwargs: Any) -> Any:
        POINTS.cross(f"{point}.before")
        answer = call(*args, **kwargs)
        POINTS.cross(f"{point}.after")
        return answer

    return crossed


# --------------------------------------------------------------------------------------- executors


def under_fire(inner: type[Executor]) -> type[Executor]:
    """An executor class that crosses `verb.before` and `verb.after` around each public method of `inner`.

    Whatever verbs the seam has, and will have: names are taken from the class. A stream crosses
    `verb.frame` for each item that it hands on.
    """

    def begin(self: Any, config: HostConfig) -> None:
        Executor.__init__(self, config)
        self.inner = inner(config)

    @contextmanager
    def anew(self: Any) -> Iterator[Any]:
        with self.inner.anew() as other:
            under_fire_too = copy.copy(self)
            under_fire_too.inner = other
            yield under_fire_too

    body: dict[str, Any] = {
        "__init__": begin,
        "__doc__": f"{inner.__name__}, with kill points around its verbs.",
        "capabilities": inner.capabilities,
        "anew": anew,
    }
    for name in dir(inner):
        method = getattr(inner, name)
        if name not in body and not name.startswith("_") and inspect.isfunction(method):
            body[name] = _stream(name) if inspect.isgeneratorfunction(method) else _verb_of(name)
    return type(f"{inner.__name__}UnderFire", (Executor,), body)


def _verb_of(name: str) -> Callable[..., Any]:
    POINTS.known |= {f"{name}.before", f"{name}.sent", f"{name}.after"}

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        POINTS.cross(f"{name}.before")
        _verb.name = name
        try:
            answer = getattr(self.inner, name)(*args, **kwargs)
        finally:
            _verb.name = ""
        POINTS.cross(f"{name}.after")
        return answer

    return call


def _stream(name: str) -> Callable[..., Iterator[Any]]:
    POINTS.known |= {f"{name}.before", f"{name}.frame", f"{name}.after"}

    def stream(self: Any, *args: Any, **kwargs: Any) -> Iterator[Any]:
        POINTS.cross(f"{name}.before")
        for item in getattr(self.inner, name)(*args, **kwargs):
            yield item
            POINTS.cross(f"{name}.frame")
        POINTS.cross(f"{name}.after")

    return stream


def _cross_when_sent() -> None:
    """`create.sent` and the like: the engine has the request, we have no answer."""
    getresponse = HTTPConnection.getresponse

    def patched(self: HTTPConnection) -> Any:
        verb = getattr(_verb, "name", "")
        if verb:
            POINTS.cross(f"{verb}.sent")
        return getresponse(self)

    HTTPConnection.getresponse = patched  # type: ignore[method-assign]


# ------------------------------------------------------------------------------- lifecycle and lease


def _cross_lifecycle() -> None:
    from container_manager import lifecycle

    verbs = {name for name in dir(Executor) if not name.startswith("_")}
    for name, call in list(vars(lifecycle).items()):
        if inspect.isfunction(call):
            # The state machine and the seam both have a `start`: the bare name is the verb's.
            point = f"job.{name}" if name in verbs else name
            _replace_everywhere(call, crossing(point, call))


def _cross_lease() -> None:
    from container_manager.models import EngineLease

    for name, method in list(vars(EngineLease).items()):
        if isinstance(method, classmethod) and not name.startswith("_"):
            crossed = crossing(f"lease.{name}", method.__func__)
            setattr(EngineLease, name, classmethod(crossed))


def _cross_commits() -> None:
    from django.db.backends.base.base import BaseDatabaseWrapper

    BaseDatabaseWrapper._commit = crossing("commit", BaseDatabaseWrapper._commit)  # type: ignore[attr-defined]


def _hold_transactions() -> None:
    """Let the whole of a transaction pass, or nothing of it, where somebody waits between them."""
    enter, leave = Atomic.__enter__, Atomic.__exit__

    def entered(self: Atomic) -> None:
        _between_transactions.acquire()
        enter(self)

    def left(self: Atomic, *error: Any) -> Any:
        try:
            return leave(self, *error)
        finally:
            _between_transactions.release()

    Atomic.__enter__ = entered  # type: ignore[method-assign]
    Atomic.__exit__ = left  # type: ignore[method-assign]


def _replace_everywhere(old: Callable[..., Any], new: Callable[..., Any]) -> None:
    """Put a wrapped function wherever a module of the package has imported it."""
    for name, module in list(sys.modules.items()):
        if isinstance(module, ModuleType) and name.partition(".")[0] == _PACKAGE:
            for attribute, value in list(vars(module).items()):
                if value is old:
                    setattr(module, attribute, new)


def install() -> None:
    """Wrap the worker of this process. Django is set up; `POINTS.arm` says what is to happen."""
    import container_manager.worker.supervisor  # noqa: F401 - so that whatever imports by name is there

    _cross_lifecycle()
    _cross_lease()
    _cross_commits()
    _cross_when_sent()
    _hold_transactions()
