"""Servers and programs as they are, with their data on the file system; what they have committed is counted."""

from __future__ import annotations

import csv
import os
import re
import shutil
import sqlite3
from contextlib import closing
from typing import Final

from tests.bench.arena import Arena, DataLost
from tests.bench.file_workloads import source_packages
from tests.support.postgresql import USER, PostgreSQL
from tests.support.redis_server import redis_server
from tests.support.servers import program

_GIT: Final = {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "safe.directory", "GIT_CONFIG_VALUE_0": "*"}
_AUTHOR: Final = ("-c", "user.name=bench", "-c", "user.email=bench@localhost")


def sqlite(arena: Arena) -> None:
    """Insert rows into SQLite, each in a transaction of its own, with a WAL that is synced."""
    path, count = arena.path / "rows.db", 0
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = FULL")
        database.execute("CREATE TABLE rows (number INTEGER PRIMARY KEY, value TEXT)")
        with arena.span() as span:
            for number in arena.repeat(arena.sizes.inserts):
                database.execute("INSERT INTO rows VALUES (?, ?)", (number, "v" * 100))
                count += 1
        arena.tell("SQLite inserts, WAL, synchronous=full", count / span.seconds, "1/s", span)
        arena.lose_host()
    with closing(sqlite3.connect(path)) as database:
        ((found,),) = database.execute("SELECT count(*) FROM rows")
    if found < count:
        raise DataLost(f"{found} of {count} committed rows are there after the loss of the host")


def postgresql(arena: Arena) -> None:
    """Make a cluster, and let pgbench update accounts with more and more clients."""
    directory = arena.path / "pg"
    directory.mkdir(mode=0o700)
    arena.system.path.parent.chmod(0o755)
    if os.getuid() == 0:
        shutil.chown(directory, USER, USER)
    server = PostgreSQL(directory, arena.scratch / "postgresql.log", max_connections="100")
    try:
        with arena.span() as span:
            server.initdb()
        arena.tell("initdb", span.seconds, "s", span)
        server.start()
        server.run("pgbench", "--initialize", "--quiet", "postgres")
        committed = sum(_pgbench(arena, server, clients) for clients in arena.sizes.pgbench_clients)
        server.kill()
        arena.system.lose_host()
        server.wait_for_end()
        arena.system.mount()
        server.start()
        found = int(server.query("SELECT count(*) FROM pgbench_history")[0])
        server.stop()
    finally:
        server.discard()
    if found < committed:
        raise DataLost(f"{found} of {committed} committed transactions are there after the loss of the host")


def _pgbench(arena: Arena, server: PostgreSQL, clients: int) -> int:
    """Run pgbench's simple updates; return how many transactions it saw committed."""
    load = ["--builtin=simple-update", "--no-vacuum", f"--client={clients}", "--jobs=1"]
    with arena.span() as span:
        told = server.run("pgbench", *load, f"--time={arena.sizes.pgbench_seconds}", "postgres")
    rate, count = re.search(r"tps = ([\d.]+)", told), re.search(r"processed: (\d+)", told)
    assert rate is not None, told
    assert count is not None, told
    arena.tell(f"pgbench, clients: {clients}", float(rate[1]), "1/s", span)
    return int(count[1])


def redis(arena: Arena) -> None:
    """Let redis-benchmark increment a counter, each time in a log that is synced."""
    log, committed = arena.scratch / "redis.log", 0
    (arena.path / "redis").mkdir()
    with redis_server(arena.path / "redis", "always", log) as (client, process):
        port = client.connection_pool.connection_kwargs["port"]
        for clients in (1, 16):
            count = arena.sizes.redis_commits * clients
            load = ["-p", str(port), "-t", "incr", "-n", str(count), "-c", str(clients), "--csv"]
            with arena.span() as span:
                told = arena.run([program("redis-benchmark"), *load])
            rate = float(list(csv.reader(told.splitlines()))[-1][1])
            arena.tell(f"redis-benchmark, appendfsync always, clients: {clients}", rate, "1/s", span)
            committed += count
        process.kill()
        arena.lose_host()
    with redis_server(arena.path / "redis", "always", log) as (client, _):
        found = sum(int(client.get(key) or 0) for key in client.keys("counter*"))
    if found < committed:
        raise DataLost(f"{found} of {committed} increments are there after the loss of the host")


def git(arena: Arena) -> None:
    """Clone a repository, and ask for its status cold."""
    source, clone = arena.scratch / "repository", arena.path / "clone"
    list(source_packages(source, arena.sizes.git_files))
    for words in (["init", "-q"], ["add", "."], [*_AUTHOR, "commit", "-q", "-m", "All"]):
        arena.run(["git", "-C", source, *words], _GIT)
    with arena.span() as span:
        arena.run(["git", "clone", "-q", f"file://{source}", clone], _GIT)
    arena.tell("git clone", span.seconds, "s", span)
    arena.go_cold()
    with arena.span() as span:
        status = arena.run(["git", "-C", clone, "status", "--porcelain"], _GIT)
    arena.tell("git status, cold", span.seconds, "s", span)
    if status:
        raise DataLost("git status finds changes after an unmount")
    arena.run(["git", "-C", clone, "fsck", "--no-progress"], _GIT)
