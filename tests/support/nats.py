"""A NATS server with JetStream, on a directory of the test's choice, and a client of its protocol.

The protocol is lines: PUB and MSG are followed by as many bytes as they say. A request is a PUB that names a subject
for the answer; JetStream's own are JSON, and so are its acknowledgements.
"""

from __future__ import annotations

import base64
import json
import secrets
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from tests.support.mounts import wait_until
from tests.support.servers import answers, free_port, program, running

STREAM: Final = "stream"
_SUBJECT: Final = "subject"
_INBOX: Final = "_INBOX.test"
_SECONDS: Final = 120.0


def new_message(size: int) -> bytes:
    """Return a message like no other."""
    return secrets.token_hex(size // 2).encode()


@contextmanager
def nats_server(directory: Path, log: Path) -> Iterator[tuple[JetStream, subprocess.Popen[bytes]]]:
    """A NATS with JetStream's files in `directory`, and a client of it."""
    port = free_port()
    command = [program("nats-server"), "--addr", "127.0.0.1", "--port", str(port)]
    command += ["--jetstream", "--store_dir", str(directory)]
    with running(command, log) as process:
        wait_until(lambda: answers(port), "NATS")
        with JetStream(port) as client:
            yield client, process


class JetStream:
    """One connection, and what tests ask of the stream `STREAM`. Raises ConnectionError when the server is gone."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=_SECONDS)
        self._lines = self._socket.makefile("rwb")

    def __enter__(self) -> JetStream:
        self._next()  # INFO
        self._lines.write(b'CONNECT {"verbose":false,"headers":false}\r\n')
        self._lines.write(f"SUB {_INBOX} 1\r\n".encode())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._socket.close()

    def make_stream(self) -> None:
        """Make the stream, in files."""
        settings = {"name": STREAM, "subjects": [_SUBJECT], "storage": "file", "retention": "limits"}
        self._ask(f"$JS.API.STREAM.CREATE.{STREAM}", settings)

    def publish(self, message: bytes) -> None:
        """Publish one message; return when the stream has acknowledged it."""
        answer = self._request(_SUBJECT, message)
        assert answer["seq"], answer

    def purge(self) -> None:
        """Remove all messages."""
        self._ask(f"$JS.API.STREAM.PURGE.{STREAM}")

    def messages(self) -> list[bytes]:
        """Return all messages of the stream, whose numbers have no gap."""
        state = self._ask(f"$JS.API.STREAM.INFO.{STREAM}")["state"]
        assert state["messages"] == state["last_seq"] + 1 - state["first_seq"], state
        found: list[bytes] = []
        for number in range(state["first_seq"], state["last_seq"] + 1):
            answer = self._ask(f"$JS.API.STREAM.MSG.GET.{STREAM}", {"seq": number})
            found.append(base64.b64decode(answer["message"]["data"]))
        return found

    @contextmanager
    def publishing(self, size: int) -> Iterator[list[bytes]]:
        """Publish messages as long as the server lives, which has to end in the block; yields those that were tried."""
        tried: list[bytes] = []
        thread = threading.Thread(target=self._publish_until_end, args=(tried, size))
        thread.start()
        try:
            yield tried
        finally:
            thread.join(_SECONDS)

    def _publish_until_end(self, tried: list[bytes], size: int) -> None:
        with suppress(OSError):
            while True:
                tried.append(new_message(size))
                self.publish(tried[-1])

    def _ask(self, subject: str, question: dict[str, Any] | None = None) -> dict[str, Any]:
        return self._request(subject, b"" if question is None else json.dumps(question).encode())

    def _request(self, subject: str, body: bytes) -> dict[str, Any]:
        self._lines.write(f"PUB {subject} {_INBOX} {len(body)}\r\n".encode() + body + b"\r\n")
        self._lines.flush()
        answer: dict[str, Any] = json.loads(self._next())
        assert "error" not in answer, answer
        return answer

    def _next(self) -> bytes:
        """Return the next message, or the INFO with which a server begins."""
        while True:
            line = self._lines.readline()
            if not line.endswith(b"\n"):
                raise ConnectionError("the server is gone")
            word, *rest = line.split(maxsplit=1)
            if word == b"INFO":
                return rest[0]
            if word == b"MSG":
                size = int(line.split()[-1])
                return self._lines.read(size + 2)[:size]
            if word == b"PING":
                self._lines.write(b"PONG\r\n")
                self._lines.flush()
