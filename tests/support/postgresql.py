"""PostgreSQL as Debian has it, on a data directory of the test's choice, and clients that note what was committed.

PostgreSQL refuses to run as root: there it runs as Debian's user `postgres`, who has to be able to reach the directory.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tests.support.mounts import wait_until
from tests.support.servers import free_port

USER: Final = "postgres"
ACCOUNTS: Final = 100_000
"""Rows that `pgbench --initialize` makes."""

_PROGRAMS: Final = Path("/usr/lib/postgresql/15/bin")
_AS_USER: Final = ("setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups")
_TRANSACTION: Final = """\
BEGIN; \
UPDATE pgbench_accounts SET abalance = abalance + {delta} WHERE aid = {account}; \
INSERT INTO pgbench_history (tid, bid, aid, delta, mtime, filler) VALUES (1, 1, {account}, {delta}, now(), '{name}'); \
COMMIT;
SELECT '{name}';
"""
_PSQL: Final = ("psql", "--no-psqlrc", "--quiet", "--tuples-only", "--no-align", "--set=ON_ERROR_STOP=1")
_SECONDS: Final = 120.0


class PostgreSQL:
    """One cluster with its data in `directory`; `settings` are those of postgresql.conf."""

    def __init__(self, directory: Path, log: Path, **settings: str) -> None:
        self._log = log
        self._settings = {"listen_addresses": "127.0.0.1", "unix_socket_directories": "", **settings}
        port = str(free_port())
        self._environment = os.environ | {
            "PGDATA": str(directory),
            "PGHOST": "127.0.0.1",
            "PGPORT": port,
            "PGUSER": USER,
        }
        self._process: subprocess.Popen[bytes] | None = None

    def initdb(self) -> None:
        """Make the cluster, with checksums."""
        self.run("initdb", f"--username={USER}", "--data-checksums", "--no-locale", "--auth=trust")

    def start(self) -> None:
        """Start the server; return when it answers, after its recovery if there is something to recover."""
        command = self._command("postgres", "-p", self._environment["PGPORT"])
        for name, value in self._settings.items():
            command += ["-c", f"{name}={value}"]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                command, cwd="/", env=self._environment, stdin=subprocess.DEVNULL, stderr=log
            )
        wait_until(self._answers, "PostgreSQL", seconds=_SECONDS)

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self._log.read_text()
        ready = [str(_PROGRAMS / "pg_isready"), "--quiet"]
        return subprocess.run(ready, env=self._environment, check=False).returncode == 0

    def stop(self) -> None:
        """End the server by SIGINT, which is its fast shutdown."""
        process, self._process = self._process, None
        assert process is not None
        process.send_signal(signal.SIGINT)
        assert process.wait(_SECONDS) == 0, self._log.read_text()

    def kill(self) -> None:
        """Send SIGKILL to all processes of the server; those that wait for a mount end with its daemon only."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGSTOP)  # so that no more are made
        for pid in [self._process.pid, *_children(self._process.pid)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def wait_for_end(self) -> None:
        """Wait until a server that was killed has ended."""
        process, self._process = self._process, None
        assert process is not None
        process.wait(_SECONDS)

    def discard(self) -> None:
        """Kill the server if it runs; one that has ended by itself is nobody to be killed."""
        if self._process is not None and self._process.poll() is None:
            self.kill()

    def run(self, program: str, *arguments: str) -> str:
        """Run one of PostgreSQL's programs to its end, and return what it says."""
        done = subprocess.run(
            self._command(program, *arguments),
            cwd="/",
            env=self._environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
        assert done.returncode == 0, f"{program}: {done.stdout}{done.stderr}"
        return done.stdout

    def query(self, statement: str) -> list[str]:
        """Return the lines of what a statement results in."""
        return self.run(*_PSQL, "--command", statement).splitlines()

    @contextmanager
    def clients(self, count: int) -> Iterator[list[str]]:
        """Commit transactions as long as the server lives, which has to end in the block.

        Yields the names of those that the clients saw committed; each is the `filler` of a row of `pgbench_history`.
        """
        committed: list[str] = []
        threads = [threading.Thread(target=self._commit, args=(committed,)) for _ in range(count)]
        for thread in threads:
            thread.start()
        try:
            yield committed
        finally:
            for thread in threads:
                thread.join(_SECONDS)

    def _commit(self, committed: list[str]) -> None:
        """Be one client; it ends with the first statement that fails."""
        with subprocess.Popen(
            [_PROGRAMS / _PSQL[0], *_PSQL[1:]],
            env=self._environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        ) as psql:
            assert psql.stdin is not None
            assert psql.stdout is not None
            with contextlib.suppress(BrokenPipeError):
                while True:
                    name = secrets.token_hex(8)
                    values = {"account": 1 + secrets.randbelow(ACCOUNTS), "delta": secrets.randbelow(1000)}
                    psql.stdin.write(_TRANSACTION.format(name=name, **values))
                    psql.stdin.flush()
                    if psql.stdout.readline() != f"{name}\n":
                        break
                    committed.append(name)

    def _command(self, program: str, *arguments: str) -> list[str]:
        as_user = _AS_USER if os.getuid() == 0 else ()
        return [*as_user, str(_PROGRAMS / program), *arguments]


def _children(parent: int) -> list[int]:
    """Return the processes that a server has made, each of which leads a session of its own."""
    return [int(word) for word in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]
