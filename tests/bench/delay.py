"""A TCP proxy that adds a round trip, in a process of its own so that it shares no interpreter with what is measured.

    with Delay(server_port, round_trip_seconds=0.02) as delay:
        ...  # http://127.0.0.1:{delay.port}

Bytes pass half of the round trip later in each direction, in order, and as many as arrive: it is a longer way, not a
narrower one. A new connection waits for one round trip more, as its handshake would.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Final

import trio

from fusefs.journal_format import JOURNAL_PREFIX

_CHUNK: Final = 256 * 1024
_CHUNKS_UNDER_WAY: Final = 1024
#: No client sends a request before it has the answer to the one before: each begins a chunk.
_LOG_PUT: Final = re.compile(rb"PUT /\S*/%s\S* HTTP/1\.1\r\n" % re.escape(JOURNAL_PREFIX.encode()))


class Delay:
    """Listens on a free port of the loopback for the length of a `with` block."""

    port: int

    def __init__(self, upstream_port: int, *, round_trip_seconds: float) -> None:
        self._command = [sys.executable, "-m", __name__, str(upstream_port), str(round_trip_seconds)]

    def __enter__(self) -> Delay:
        self._process = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())
        return self

    def log_puts(self) -> int:
        """Return how many PUTs into the log of a fusefs have passed."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(b"\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()


@dataclass(slots=True)
class _Count:
    log_puts: int = 0

    def look_at(self, chunk: bytes) -> None:
        self.log_puts += _LOG_PUT.match(chunk) is not None


async def _pump(
    source: trio.SocketStream, sink: trio.SocketStream, seconds: float, look_at: Callable[[bytes], None]
) -> None:
    send, receive = trio.open_memory_channel[tuple[float, bytes]](_CHUNKS_UNDER_WAY)

    async def deliver() -> None:
        async for due, data in receive:
            await trio.sleep_until(due)
            await sink.send_all(data)
        await sink.send_eof()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(deliver)
        async with send:
            while data := await source.receive_some(_CHUNK):
                look_at(data)
                await send.send((trio.current_time() + seconds, bytes(data)))


async def _main(upstream_port: int, round_trip_seconds: float) -> None:
    count = _Count()

    async def serve(client: trio.SocketStream) -> None:
        try:
            await trio.sleep(round_trip_seconds)
            async with (
                await trio.open_tcp_stream("127.0.0.1", upstream_port) as server,
                trio.open_nursery() as nursery,
            ):
                nursery.start_soon(_pump, client, server, round_trip_seconds / 2, count.look_at)
                nursery.start_soon(_pump, server, client, round_trip_seconds / 2, lambda chunk: None)
        except* (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # one side has gone; so does the other

    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    print(listeners[0].socket.getsockname()[1], flush=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, serve, listeners)
        while await trio.to_thread.run_sync(sys.stdin.readline):  # until whoever started this is gone
            print(count.log_puts, flush=True)
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(_main, int(sys.argv[1]), float(sys.argv[2]))
