"""An HTTP proxy in front of an S3 server, which notes what the server received: the requests as they were on the wire.

    with RecordingProxy(server.endpoint) as proxy:
        mount = new_mount(None, "--endpoint", proxy.endpoint).mount()
        ...
        assert sum(request.body_size for request in proxy.requests) <= MIB

It passes on what it gets, the Host header included, so that signatures stay good; unless it is given another `Fate`.
"""

from __future__ import annotations

import contextlib
import http.client
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qs, urlsplit

_HOP_BY_HOP: Final = {"connection", "keep-alive", "transfer-encoding", "expect", "content-length"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceivedRequest:
    """One request, as the server received it."""

    method: str
    key: str
    #: The names of the parameters after the question mark.
    parameters: frozenset[str]
    body_size: int
    #: The range of a copied part.
    copied_range: str | None
    is_copy: bool

    @property
    def is_listing(self) -> bool:
        return "list-type" in self.parameters

    @property
    def is_upload_of_part(self) -> bool:
        return self.method == "PUT" and "partNumber" in self.parameters and not self.is_copy

    @property
    def is_copy_of_part(self) -> bool:
        return self.method == "PUT" and "partNumber" in self.parameters and self.is_copy


class _Answer(NamedTuple):
    head: http.client.HTTPResponse
    body: bytes


class Fate(Enum):
    """What becomes of a request."""

    ANSWERED = auto()
    LATE = auto()
    #: The store is too busy.
    REFUSED = auto()
    #: The connection ends before the store has heard of it; when the store has done it; in the middle of the answer.
    CALL_LOST = auto()
    ANSWER_LOST = auto()
    ANSWER_CUT = auto()


LATE_SECONDS: Final = 0.3

_SLOW_DOWN: Final = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"


class RecordingProxy:
    """Listens on a free port for the length of a `with` block."""

    def __init__(
        self, upstream: str, *, fate_of: Callable[[ReceivedRequest], Fate] = lambda _: Fate.ANSWERED
    ) -> None:
        self.requests: list[ReceivedRequest] = []
        self._server = ThreadingHTTPServer(
            ("127.0.0.1", 0), _handler(urlsplit(upstream).netloc, self.requests, fate_of)
        )
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> RecordingProxy:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def _handler(
    upstream: str, requests: list[ReceivedRequest], fate_of: Callable[[ReceivedRequest], Fate]
) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle(self) -> None:
            with contextlib.suppress(ConnectionError):  # of a daemon that was killed
                super().handle()

        def _pass_on(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            received = self._received(len(body))
            requests.append(received)
            match fate_of(received):
                case Fate.LATE:
                    time.sleep(LATE_SECONDS)
                    self._answer(self._ask(body))
                case Fate.REFUSED:
                    self._refuse()
                case Fate.CALL_LOST:
                    self.close_connection = True
                case Fate.ANSWER_LOST:
                    self._ask(body)
                    self.close_connection = True
                case Fate.ANSWER_CUT:
                    self._answer(self._ask(body), is_cut=True)
                case Fate.ANSWERED:
                    self._answer(self._ask(body))

        def _ask(self, body: bytes) -> _Answer:
            connection = http.client.HTTPConnection(upstream, timeout=120)
            try:
                connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
                for name, value in self.headers.items():
                    if name.lower() not in _HOP_BY_HOP:
                        connection.putheader(name, value)
                connection.putheader("Content-Length", str(len(body)))
                connection.endheaders(body)
                answer = connection.getresponse()
                return _Answer(answer, answer.read())
            finally:
                connection.close()

        def _refuse(self) -> None:
            self.send_response_only(503, "Slow Down")
            self.send_header("Content-Length", str(0 if self.command == "HEAD" else len(_SLOW_DOWN)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(_SLOW_DOWN)

        def _answer(self, answer: _Answer, *, is_cut: bool = False) -> None:
            head, body = answer
            self.send_response_only(head.status, head.reason)
            for name, value in head.headers.items():
                if name.lower() not in _HOP_BY_HOP:
                    self.send_header(name, value)
            length = head.headers.get("Content-Length", "0") if self.command == "HEAD" else str(len(body))
            self.send_header("Content-Length", length)
            self.end_headers()
            if is_cut:
                self.close_connection = True
                body = body[: len(body) // 2]
            self.wfile.write(body)

        def _received(self, body_size: int) -> ReceivedRequest:
            target = urlsplit(self.path)
            return ReceivedRequest(
                method=self.command,
                key=target.path.lstrip("/").partition("/")[2],
                parameters=frozenset(parse_qs(target.query, keep_blank_values=True)),
                body_size=body_size,
                copied_range=self.headers.get("x-amz-copy-source-range"),
                is_copy="x-amz-copy-source" in self.headers,
            )

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _pass_on  # noqa: N815

    return Handler
