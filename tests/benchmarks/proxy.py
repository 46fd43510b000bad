"""A unix socket in front of the engine's, which counts the HTTP requests that go through."""

from __future__ import annotations

import asyncio
import re
import threading
from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import Self

_REQUEST = re.compile(rb"^(?:GET|HEAD|POST|PUT|DELETE) (\S+) HTTP/1\.1\r\n")
_VARIABLE = re.compile(r"^/v[0-9.]+|/[0-9a-f]{12,64}|\?.*$|/cj-[0-9a-f-]+")


class CountingProxy:
    """Requests by kind.

    A client sends the next request when it has the answer to the last one, in a write of its own: a request
    is told from a body by standing at the beginning of what was read.
    """

    def __init__(self, engine_url: str, path: Path) -> None:
        self._engine = engine_url.removeprefix("unix://")
        self._path = path
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)

    @property
    def url(self) -> str:
        """The address to give to a client."""
        return f"unix://{self._path}"

    def counts(self) -> Counter[str]:
        """Requests so far, by method and path without ids."""
        with self._lock:
            return Counter(self._counts)

    def __enter__(self) -> Self:
        self._thread.start()
        self._wait(asyncio.start_unix_server(self._serve, self._path))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self._wait(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()

    def _wait(self, work: object) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(10)  # type: ignore[arg-type]

    async def _end(self) -> None:
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        engine_reader, engine_writer = await asyncio.open_unix_connection(self._engine)
        try:
            await asyncio.gather(
                self._pump(reader, engine_writer, count=True), self._pump(engine_reader, writer, count=False)
            )
        except (ConnectionError, asyncio.CancelledError):
            return
        finally:
            writer.close()
            engine_writer.close()

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, count: bool) -> None:
        while data := await source.read(65536):
            if count and (found := _REQUEST.match(data)):
                method = data.split(b" ", 1)[0].decode()
                with self._lock:
                    self._counts[f"{method} {_VARIABLE.sub('', found[1].decode())}"] += 1
            sink.write(data)
            await sink.drain()
        if sink.can_write_eof():
            sink.write_eof()
