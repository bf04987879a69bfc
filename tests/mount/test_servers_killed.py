"""Servers on a mount whose store is 20 ms away end with daemon and cache at once: what was committed is there."""

from __future__ import annotations

import os
import pwd
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import IO, Any

import pytest

from tests.mount.conftest import NewMount
from tests.support import postgresql
from tests.support.distant import Distance
from tests.support.git import Repository
from tests.support.mounts import Mount, wait_until
from tests.support.postgresql import PostgreSQL
from tests.support.redis_server import content_of, load_redis, redis_server

CLIENTS = 8
OUTAGE_SECONDS = 3.0


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A directory that other users can reach, which pytest's are not."""
    with tempfile.TemporaryDirectory(prefix="fusefs-servers-") as directory:
        Path(directory).chmod(0o755)
        yield Path(directory)


# PostgreSQL


@pytest.fixture
def for_postgres(new_mount: NewMount, distance: Distance) -> Mount:
    """A mount that belongs to PostgreSQL's user.

    The store of the tests keeps no metadata of directories, so the mount says whose they are.
    """
    flags = ["--endpoint", distance.endpoint, "--dir-mode", "0700"]
    if os.getuid() == 0:
        user = pwd.getpwnam(postgresql.USER)
        flags += ["--allow-other", "--uid", str(user.pw_uid), "--gid", str(user.pw_gid)]
    return new_mount(None, *flags).mount()


@pytest.fixture
def cluster(for_postgres: Mount, tmp_path: Path) -> Iterator[PostgreSQL]:
    """A PostgreSQL that runs on the mount, with the tables of pgbench."""
    cluster = PostgreSQL(for_postgres.path / "data", tmp_path / "postgresql.log", wal_init_zero="off")
    cluster.initdb()
    cluster.start()
    cluster.run("pgbench", "--initialize", "--quiet")
    yield cluster
    cluster.discard()


def test_postgresql_loses_nothing_committed_with_the_host(
    for_postgres: Mount, cluster: PostgreSQL, distance: Distance
) -> None:
    """Eight clients commit, wait while the store is away or overloaded, and go on; server and daemon are killed, one or
    the other first, and the next mount has an empty cache: all that a client saw committed is there, whole transactions
    only, and checksums and amcheck agree.
    """
    committed: list[str] = []
    for outage, first, second in (
        (distance.cut, cluster.kill, for_postgres.kill),
        (distance.overload, for_postgres.kill, cluster.kill),
    ):
        with cluster.clients(CLIENTS) as new:
            wait_until(partial(_has, new, 300), "commits")
            outage()
            _assert_waits(new, CLIENTS)
            distance.mend()
            wait_until(partial(_has, new, len(new) + 300), "commits after the outage")
            first()
            second()
        committed += new
        cluster.wait_for_end()
        for_postgres.mount_cold()
        cluster.start()
        assert set(cluster.query("SELECT trim(filler) FROM pgbench_history")) >= set(committed)
    changes, balances = "SELECT sum(delta) FROM pgbench_history", "SELECT sum(abalance) FROM pgbench_accounts"
    assert cluster.query(changes) == cluster.query(balances)
    cluster.run("pg_amcheck", "--all", "--install-missing", "--heapallindexed")
    cluster.stop()
    cluster.run("pg_checksums", "--check")


def _has(committed: list[Any], count: int) -> bool:
    return len(committed) >= count


def _assert_waits(committed: list[Any], clients: int) -> None:
    """Each client may have one more answer on its way, and gets no other."""
    there = len(committed)
    with pytest.raises(AssertionError, match="in vain"):
        wait_until(partial(_has, committed, there + clients + 1), "commits", seconds=OUTAGE_SECONDS)


# Redis


def test_redis_waits_for_the_store(far_mount: Mount, distance: Distance, tmp_path: Path) -> None:
    """With `appendfsync always`, a SET waits while the store is not there, and what was answered before, then and
    after that is there when Redis, the daemon and the cache are lost.
    """
    log = tmp_path / "redis.log"
    with redis_server(far_mount.path, "always", log) as (client, process):
        expected = load_redis(client, 30, 10, "before")
        distance.cut()
        with ThreadPoolExecutor(1) as thread:
            answer = thread.submit(load_redis, client, 1, 10, "meanwhile")
            try:
                with pytest.raises(TimeoutError):
                    answer.result(timeout=3)
            finally:
                distance.mend()
            expected |= answer.result(timeout=60)
        expected |= load_redis(client, 30, 10, "after")
        process.kill()
        far_mount.kill()
    far_mount.mount_cold()
    with redis_server(far_mount.path, "always", log) as (client, _):
        assert content_of(client) == expected


# SQLite

_WRITER = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute(f"PRAGMA journal_mode = {sys.argv[2]}")
connection.execute("PRAGMA synchronous = FULL")
connection.execute("CREATE TABLE entries (number)")
number = 0
while True:
    number += 1
    connection.execute("INSERT INTO entries VALUES (?)", (number,))
    print(number, flush=True)
"""


@pytest.mark.parametrize("journal", ["wal", "delete"])
def test_sqlite_loses_nothing_committed_with_the_host(far_mount: Mount, journal: str) -> None:
    """With `synchronous = FULL`, all that was committed is there, but for what SQLite itself does not sync: in DELETE
    mode that is the removal of the last transaction's journal.
    """
    path = far_mount.path / "database.sqlite"
    command = [sys.executable, "-c", _WRITER, str(path), journal]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        committed = [int(writer.stdout.readline()) for _ in range(40)]
        writer.kill()
        far_mount.kill()
        committed += [int(line) for line in writer.stdout]
    far_mount.mount_cold()
    with closing(sqlite3.connect(path)) as connection:
        found = [number for (number,) in connection.execute("SELECT number FROM entries ORDER BY number")]
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert found == list(range(1, len(found) + 1))
    assert len(found) >= len(committed) - (journal == "delete")


def test_sqlite_waits_for_the_store(far_mount: Mount, distance: Distance) -> None:
    """A commit waits while the store is away or overloaded, and none fails: they go on, and are there when writer,
    daemon and cache are lost.
    """
    path = far_mount.path / "database.sqlite"
    committed: list[int] = []
    with subprocess.Popen(
        [sys.executable, "-c", _WRITER, str(path), "wal"], stdout=subprocess.PIPE, text=True
    ) as writer:
        reading = threading.Thread(target=_read_numbers, args=(writer.stdout, committed))
        reading.start()
        try:
            for outage in (distance.cut, distance.overload):
                wait_until(partial(_has, committed, len(committed) + 20), "commits")
                outage()
                _assert_waits(committed, 1)
                distance.mend()
            wait_until(partial(_has, committed, len(committed) + 20), "commits after the outages")
        finally:
            writer.kill()
            far_mount.kill()
            reading.join()
    far_mount.mount_cold()
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        (found,) = connection.execute("SELECT count(*) FROM entries").fetchone()
    assert found >= len(committed)


def _read_numbers(lines: IO[str], numbers: list[int]) -> None:
    numbers.extend(int(line) for line in lines)


# git


def test_git_loses_nothing_committed_with_the_host(far_mount: Mount, tmp_path: Path) -> None:
    """With `core.fsync = all`, every commit that was done is whole, and in its branch, but for what git itself does not
    sync: the rename of the branch's last value to its name.
    """
    repository = Repository(far_mount.path / "repository", tmp_path)
    repository.init()
    repository.git("config", "core.fsync", "all")

    def git_first(kill_git: Callable[[], None]) -> None:
        kill_git()
        far_mount.kill()

    def daemon_first(kill_git: Callable[[], None]) -> None:
        far_mount.kill()
        kill_git()

    for name, kill in (("first", git_first), ("second", daemon_first)):
        committed = repository.commit_until_killed(name, 8, kill)
        far_mount.mount_cold()
        repository.git("fsck", "--full", "--strict")
        in_branch = repository.git("rev-list", "HEAD").split()
        assert set(in_branch) >= set(committed[:-1])
        repository.git("cat-file", "-e", f"{committed[-1]}^{{tree}}")
        repository.remove_locks()
