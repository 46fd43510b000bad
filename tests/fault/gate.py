"""A gate before an engine: counts what goes in, and can hold or cut the engine's stream of events."""

from __future__ import annotations

import asyncio
import re
import threading
from collections import Counter
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Self, TypeVar

_REQUEST = re.compile(rb"^(GET|HEAD|POST|PUT|DELETE) (?:/v[0-9.]+)?(/[^ ?]*)[^ ]* HTTP/1\.1\r\n")
_T = TypeVar("_T")


class Gate:
    """Listens on a TCP port of this machine and passes everything on to the engine's unix socket.

    A client sends the next request when it has the answer to the last one, in a write of its own: a request
    is told from a body by standing at the beginning of what was read.
    """

    def __init__(self, engine_url: str) -> None:
        self._engine = engine_url.removeprefix("unix://")
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="gate", daemon=True)
        self._open = asyncio.Event()
        self._open.set()
        self._events: set[asyncio.StreamWriter] = set()  # the clients' ends of the event streams
        self._port = 0

    @property
    def url(self) -> str:
        """The address to give to a client."""
        return f"tcp://127.0.0.1:{self._port}"

    def count(self, request: str) -> int:
        """How often a request came, such as "GET /containers/json"."""
        with self._lock:
            return self._counts[request]

    def hold_events(self) -> None:
        """From now on no event comes through: to the engine, a client that does not read."""
        self._loop.call_soon_threadsafe(self._open.clear)

    def cut_events(self) -> None:
        """Break every event stream off; what was held is lost, and new streams go through."""
        self._wait(self._cut())

    def __enter__(self) -> Self:
        self._thread.start()
        server = self._wait(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self._port = server.sockets[0].getsockname()[1]
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self._wait(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()

    def _wait(self, work: Coroutine[Any, Any, _T]) -> _T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _cut(self) -> None:
        for writer in list(self._events):
            writer.transport.abort()
        self._events.clear()
        self._open.set()

    async def _end(self) -> None:
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            engine_reader, engine_writer = await asyncio.open_unix_connection(self._engine)
        except OSError:
            writer.close()
            return
        try:
            await asyncio.gather(
                self._requests(reader, engine_writer, writer), self._answers(engine_reader, writer)
            )
        except (OSError, asyncio.CancelledError):
            return
        finally:
            self._events.discard(writer)
            writer.close()
            engine_writer.close()

    async def _requests(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, client: asyncio.StreamWriter
    ) -> None:
        while data := await source.read(65536):
            if found := _REQUEST.match(data):
                kind = f"{found[1].decode()} {found[2].decode()}"
                with self._lock:
                    self._counts[kind] += 1
                if kind == "GET /events":
                    self._events.add(client)
            sink.write(data)
            await sink.drain()
        sink.write_eof()

    async def _answers(self, source: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        while data := await source.read(65536):
            if client in self._events:
                await self._open.wait()
            if client.is_closing():
                raise ConnectionAbortedError("this stream was cut")
            client.write(data)
            await client.drain()
        client.write_eof()
