"""An etcd as Debian has it, on a data directory of the test's choice, and clients that note what it has acknowledged.

They speak to its JSON gateway, where keys and values are in base64.
"""

from __future__ import annotations

import base64
import json
import os
import secrets
import subprocess
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any, Final

from tests.support.mounts import wait_until
from tests.support.servers import free_port, program

_SECONDS: Final = 120.0
_EVERYTHING: Final = {"key": "AA==", "range_end": "AA=="}
"""From the key of one zero byte to the end."""


class Etcd:
    """One member that is a cluster, with its data in `directory`."""

    def __init__(self, directory: Path, log: Path) -> None:
        self._directory = directory
        self._log = log
        self._port = free_port()
        self._peer_port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    def launch(self) -> None:
        """Start the server without waiting for it."""
        clients, peers = f"http://127.0.0.1:{self._port}", f"http://127.0.0.1:{self._peer_port}"
        command = [program("etcd"), "--data-dir", str(self._directory)]
        command += ["--listen-client-urls", clients, "--advertise-client-urls", clients]
        command += ["--listen-peer-urls", peers, "--initial-advertise-peer-urls", peers]
        command += ["--initial-cluster", f"default={peers}"]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def start(self) -> None:
        """Start the server; return when it answers, after its recovery if there is something to recover."""
        self.launch()
        wait_until(self._answers, "etcd", seconds=_SECONDS)

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self._log.read_text()
        with suppress(OSError, HTTPException), closing(self._connect()) as connection:
            connection.request("GET", "/health")
            answer: dict[str, str] = json.loads(connection.getresponse().read())
            return answer["health"] == "true"
        return False

    def stop(self) -> None:
        """End the server by SIGTERM; etcd sends that on to itself when it is done."""
        process, self._process = self._process, None
        assert process is not None
        process.terminate()
        process.wait(_SECONDS)

    def kill(self) -> None:
        """Send SIGKILL; a server that waits for a mount ends with its daemon only."""
        assert self._process is not None
        self._process.kill()

    def wait_for_end(self) -> None:
        """Wait until a server that was killed has ended."""
        process, self._process = self._process, None
        assert process is not None
        process.wait(_SECONDS)

    def discard(self) -> None:
        """Kill the server if it runs."""
        if self._process is not None:
            self.kill()
            self.wait_for_end()

    def content(self) -> dict[str, str]:
        """Return all keys with their values, as a quorum has them."""
        with closing(self._connect()) as connection:
            pairs: list[dict[str, str]] = _ask(connection, "range", _EVERYTHING).get("kvs", [])
        return {_decoded(pair["key"]): _decoded(pair["value"]) for pair in pairs}

    def check(self) -> None:
        """Let etcd's own program look through the database of a server that was stopped."""
        database = self._directory / "member" / "snap" / "db"
        done = subprocess.run(
            [program("etcdctl"), "snapshot", "status", str(database)],
            env=os.environ | {"ETCDCTL_API": "3"},
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
        assert done.returncode == 0, done.stderr

    @contextmanager
    def clients(self, count: int) -> Iterator[dict[str, str]]:
        """Put keys as long as the server lives, which has to end in the block; yields those that were acknowledged."""
        acknowledged: dict[str, str] = {}
        threads = [threading.Thread(target=self._put, args=(acknowledged,)) for _ in range(count)]
        for thread in threads:
            thread.start()
        try:
            yield acknowledged
        finally:
            for thread in threads:
                thread.join(_SECONDS)

    def _put(self, acknowledged: dict[str, str]) -> None:
        """Be one client; it ends with the first request that is not answered."""
        with suppress(OSError, HTTPException), closing(self._connect()) as connection:
            while True:
                key, value = secrets.token_hex(8), secrets.token_hex(1 + secrets.randbelow(1000))
                _ask(connection, "put", {"key": _encoded(key), "value": _encoded(value)})
                acknowledged[key] = value

    def _connect(self) -> HTTPConnection:
        return HTTPConnection("127.0.0.1", self._port, timeout=_SECONDS)


def _ask(connection: HTTPConnection, what: str, question: dict[str, str]) -> dict[str, Any]:
    """Raises HTTPException if the server says that it could not."""
    connection.request("POST", f"/v3/kv/{what}", json.dumps(question))
    answer = connection.getresponse()
    body = answer.read()
    if answer.status != 200:
        raise HTTPException(f"{what}: {answer.status} {body!r}")
    found: dict[str, Any] = json.loads(body)
    return found


def _encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def _decoded(text: str) -> str:
    return base64.b64decode(text).decode()
