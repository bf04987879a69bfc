"""A TCP proxy that puts a distance between a mount and its S3 server, and can cut the way between them.

    with Distance(server.endpoint) as distance:
        mount = new_mount(None, "--endpoint", distance.endpoint).mount()
        distance.cut()          # or distance.overload()
        ...
        distance.mend()

Every byte arrives half a round trip after it was sent; how many are on their way at once, and on how many connections,
changes nothing. The handshakes of TCP are not delayed.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Final, TypeVar, cast
from urllib.parse import urlsplit

ROUND_TRIP_SECONDS: Final = 0.02

_SLOW_DOWN: Final = (
    b"HTTP/1.1 503 Slow Down\r\nConnection: close\r\nContent-Type: application/xml\r\nContent-Length: 87\r\n\r\n"
    b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
)

T = TypeVar("T")


class Distance:
    """Listens on a free port for the length of a `with` block; while it is cut, connections are refused."""

    def __init__(self, upstream: str, *, round_trip_seconds: float = ROUND_TRIP_SECONDS) -> None:
        self._upstream = urlsplit(upstream)
        self._delay_seconds = round_trip_seconds / 2
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._server: asyncio.Server | None = None
        self._port = 0
        self._ends: set[_End] = set()
        self._opening: set[asyncio.Task[None]] = set()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def __enter__(self) -> Distance:
        self._thread.start()
        self.mend()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.cut()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def cut(self) -> None:
        """Reset all connections, and accept no more; what is on its way is lost."""
        self._run(self._cut())

    def overload(self) -> None:
        """Reset all connections, and answer every request with 503 from now on."""
        self._run(self._cut())
        self._run(self._listen(_Overloaded))

    def mend(self) -> None:
        """Pass everything on again, on the same port."""
        self._run(self._listen(self._accept))

    def _run(self, what: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(what, self._loop).result(timeout=10)

    async def _listen(self, accept: Callable[[], asyncio.Protocol]) -> None:
        if self._server is not None:
            self._server.close()
        self._server = await self._loop.create_server(accept, "127.0.0.1", self._port)
        self._port = self._server.sockets[0].getsockname()[1]

    async def _cut(self) -> None:
        if self._server is not None:
            self._server.close()
        for end in [*self._ends]:
            end.abort()
        await asyncio.gather(*self._opening, return_exceptions=True)
        await asyncio.sleep(0)  # the transports close their sockets in the next turn of the loop

    def _accept(self) -> asyncio.Protocol:
        near, far = _End(self._ends, self._delay_seconds), _End(self._ends, self._delay_seconds)
        near.other, far.other = far, near
        opening = self._loop.create_task(self._open(near, far))
        self._opening.add(opening)
        opening.add_done_callback(self._opening.discard)
        return near

    async def _open(self, near: _End, far: _End) -> None:
        try:
            await self._loop.create_connection(
                lambda: far, self._upstream.hostname or "", self._upstream.port or 80
            )
        except OSError:
            near.abort()
            return
        if near.is_closed:
            far.abort()


class _Overloaded(asyncio.Protocol):
    """A server that has no time: it reads the head of a request, answers, and hangs up."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        assert self._transport is not None
        self._received += data
        if b"\r\n\r\n" in self._received:
            self._transport.write(_SLOW_DOWN)
            self._transport.close()


class _End(asyncio.Protocol):
    """One of the two connections that belong together; what it receives, the other one sends later."""

    def __init__(self, ends: set[_End], delay_seconds: float) -> None:
        self.other: _End = self
        self.is_closed = False
        self._ends = ends
        self._delay_seconds = delay_seconds
        self._transport: asyncio.Transport | None = None
        self._early: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._ends.add(self)
        self._transport = cast("asyncio.Transport", transport)
        for data in self._early:
            self.send(data)

    def data_received(self, data: bytes) -> None:
        asyncio.get_running_loop().call_later(self._delay_seconds, self.other.send, data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_closed = True
        self._ends.discard(self)
        asyncio.get_running_loop().call_later(self._delay_seconds, self.other.close)

    def send(self, data: bytes) -> None:
        if self._transport is None:
            self._early.append(data)
        elif not self.is_closed:
            self._transport.write(data)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        self.is_closed = True
        if self._transport is not None:
            self._transport.abort()
