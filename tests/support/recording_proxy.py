"""An HTTP proxy in front of an S3 server, which notes what the server received: the requests as they were on the wire.

    with RecordingProxy(server.endpoint) as proxy:
        mount = new_mount(None, "--endpoint", proxy.endpoint).mount()
        ...
        assert sum(request.body_size for request in proxy.requests) <= MIB

It passes on what it gets, the Host header included, so that signatures stay good.
"""

from __future__ import annotations

import contextlib
import http.client
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Final
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
    def is_upload_of_part(self) -> bool:
        return self.method == "PUT" and "partNumber" in self.parameters and not self.is_copy

    @property
    def is_copy_of_part(self) -> bool:
        return self.method == "PUT" and "partNumber" in self.parameters and self.is_copy


class RecordingProxy:
    """Listens on a free port for the length of a `with` block."""

    def __init__(self, upstream: str) -> None:
        self.requests: list[ReceivedRequest] = []
        self._server = ThreadingHTTPServer(
            ("127.0.0.1", 0), _handler(urlsplit(upstream).netloc, self.requests)
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


def _handler(upstream: str, requests: list[ReceivedRequest]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle(self) -> None:
            with contextlib.suppress(ConnectionError):  # of a daemon that was killed
                super().handle()

        def _pass_on(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            requests.append(self._received(len(body)))
            connection = http.client.HTTPConnection(upstream, timeout=120)
            try:
                connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
                for name, value in self.headers.items():
                    if name.lower() not in _HOP_BY_HOP:
                        connection.putheader(name, value)
                connection.putheader("Content-Length", str(len(body)))
                connection.endheaders(body)
                self._answer(connection.getresponse())
            finally:
                connection.close()

        def _answer(self, answer: http.client.HTTPResponse) -> None:
            body = answer.read()
            self.send_response_only(answer.status, answer.reason)
            for name, value in answer.headers.items():
                if name.lower() not in _HOP_BY_HOP:
                    self.send_header(name, value)
            length = answer.headers.get("Content-Length", "0") if self.command == "HEAD" else str(len(body))
            self.send_header("Content-Length", length)
            self.end_headers()
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
