"""Servers as Debian has them, with their data on a mount: load, restart the server, remount, the same data."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from email.utils import formatdate
from pathlib import Path

import pytest

from tests.support.bucket import Bucket
from tests.support.git import Repository
from tests.support.mounts import Mount, wait_until
from tests.support.redis_server import content_of, load_redis, redis_server
from tests.support.servers import answers, free_port, program, running

MIB = 1024 * 1024


# nginx


@pytest.fixture
def uploaded(bucket: Bucket) -> bytes:
    """What an S3 tool has put into `www/uploaded/` before the mount: a page and this large file."""
    large = os.urandom(20 * MIB)
    bucket.put("www/uploaded/page.html", b"<h1>there</h1>")
    bucket.put("www/uploaded/large", large)
    return large


@pytest.fixture
def nginx(uploaded: bytes, mount: Mount, tmp_path: Path) -> Iterator[str]:
    """The URL of an nginx that serves the directory `www` of the mount, and logs into it."""
    port = free_port()
    configuration = tmp_path / "nginx.conf"
    places = "".join(
        f"{kind}_temp_path {tmp_path}/{kind};"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    configuration.write_text(
        f"daemon off; master_process off; pid {tmp_path}/nginx.pid; error_log stderr;"
        "events {}"
        f"http {{ {places} sendfile on; access_log {mount.path}/access.log;"
        f"server {{ listen 127.0.0.1:{port}; root {mount.path}/www; autoindex on; }} }}"
    )
    with running([program("nginx"), "-c", str(configuration), "-e", "stderr"], tmp_path / "nginx.log"):
        wait_until(lambda: answers(port), "nginx")
        yield f"http://127.0.0.1:{port}"


def get(url: str, **headers: str) -> tuple[int, bytes]:
    request = urllib.request.Request(
        url, headers={name.replace("_", "-"): value for name, value in headers.items()}
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def test_nginx_serves_files(uploaded: bytes, mount: Mount, nginx: str) -> None:
    """Whole files, ranges, conditional requests and listings, of what is written here and of what an S3 tool put."""
    www = mount.path / "www"
    large = os.urandom(20 * MIB)
    (www / "page.html").write_bytes(b"<h1>here</h1>")
    (www / "large").write_bytes(large)

    assert get(f"{nginx}/page.html") == (200, b"<h1>here</h1>")
    assert get(f"{nginx}/large") == (200, large)
    assert get(f"{nginx}/large", Range=f"bytes={15 * MIB}-{15 * MIB + 99}") == (206, large[15 * MIB :][:100])
    assert get(f"{nginx}/large", Range="bytes=-7") == (206, large[-7:])
    assert get(f"{nginx}/missing")[0] == 404
    changed = (www / "page.html").stat().st_mtime
    assert get(f"{nginx}/page.html", If_Modified_Since=formatdate(changed, usegmt=True)) == (304, b"")
    assert get(f"{nginx}/page.html", If_Modified_Since=formatdate(changed - 9, usegmt=True))[0] == 200
    assert get(f"{nginx}/uploaded/page.html") == (200, b"<h1>there</h1>")
    assert get(f"{nginx}/uploaded/large", Range="bytes=100-199") == (206, uploaded[100:200])
    assert get(f"{nginx}/uploaded/large") == (200, uploaded)
    assert b'href="large"' in get(f"{nginx}/uploaded/")[1]

    (www / "page.tmp").write_bytes(b"<h1>new</h1>")
    (www / "page.tmp").rename(www / "page.html")
    assert get(f"{nginx}/page.html") == (200, b"<h1>new</h1>")


# Redis


@pytest.mark.parametrize(("fsync", "commits", "batch"), [("everysec", 100, 100), ("always", 60, 20)])
def test_redis_append_only_file(mount: Mount, tmp_path: Path, fsync: str, commits: int, batch: int) -> None:
    """Every value is there after a restart of Redis, after its rewrite of the file, and after a remount."""
    directory = mount.path / "redis"
    directory.mkdir()
    log = tmp_path / "redis.log"
    with redis_server(directory, fsync, log) as (client, _):
        expected = load_redis(client, commits, batch, "one")
    with redis_server(directory, fsync, log) as (client, _):
        assert content_of(client) == expected
        client.bgrewriteaof()
        expected |= load_redis(client, commits // 4, batch, "two")
        wait_until(lambda: not client.info("persistence")["aof_rewrite_in_progress"], "the rewrite")
        assert client.info("persistence")["aof_last_bgrewrite_status"] == "ok"
        assert client.info("persistence")["aof_last_write_status"] == "ok"
    mount.remount()
    with redis_server(directory, fsync, log) as (client, _):
        assert content_of(client) == expected


def test_redis_loses_nothing_acknowledged_with_the_host(mount: Mount, tmp_path: Path) -> None:
    """With `appendfsync always`, Redis and the daemon are killed and the cache is lost: every SET that was answered
    is in the bucket.
    """
    log = tmp_path / "redis.log"
    with redis_server(mount.path, "always", log) as (client, process):
        expected = load_redis(client, 30, 10, "kept")
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        mount.kill()
    mount.mount_cold()
    with redis_server(mount.path, "always", log) as (client, _):
        assert content_of(client) == expected


# SQLite

WRITER = """
import sqlite3, sys
path, name, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
connection = sqlite3.connect(path, timeout=60, isolation_level=None)
for number in range(count):
    connection.execute("BEGIN IMMEDIATE")
    connection.execute("INSERT INTO entries VALUES (?, ?, ?)", (name, number, name * 200))
    connection.execute("UPDATE total SET entries = entries + 1")
    connection.execute("COMMIT")
connection.close()
"""


@pytest.mark.parametrize("journal", ["wal", "delete"])
def test_sqlite_with_two_writers(mount: Mount, journal: str) -> None:
    """Two processes write one database in turns: each transaction is there, and the database is whole, before and
    after a remount; the sqlite3 of Debian says so too.
    """
    path = mount.path / "database.sqlite"
    each = 40
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute(f"PRAGMA journal_mode = {journal}").fetchone() == (journal,)
        connection.executescript(
            "CREATE TABLE entries (writer, number, text); CREATE INDEX by_number ON entries (number, writer);"
            "CREATE TABLE total (entries); INSERT INTO total VALUES (0)"
        )
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(path), name, str(each)]) for name in ("a", "b")
    ]
    assert [writer.wait(120) for writer in writers] == [0, 0]
    assert_whole(path, 2 * each)
    mount.remount()
    assert_whole(path, 2 * each)


def test_sqlite_loses_nothing_committed_with_the_host(mount: Mount) -> None:
    """A transaction that was committed with `synchronous = EXTRA` survives the end of daemon and cache.

    With FULL, SQLite does not sync the directory after it has deleted its journal, which is what commits: a crash right
    after may roll the transaction back (sqlite.org/pragma.html#pragma_synchronous).
    """
    path = mount.path / "database.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA synchronous = EXTRA")
        connection.execute("CREATE TABLE entries (number)")
        connection.execute("INSERT INTO entries VALUES (42)")
        connection.commit()
        mount.kill()
    mount.mount_cold()
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT number FROM entries").fetchall() == [(42,)]
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def assert_whole(path: Path, count: int) -> None:
    query = "PRAGMA integrity_check; SELECT count(DISTINCT writer || number) FROM entries; SELECT entries FROM total;"
    done = subprocess.run(
        [program("sqlite3"), str(path), query], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.split() == ["ok", str(count), str(count)]


# git


def test_git(mount: Mount, tmp_path: Path) -> None:
    """A repository with 200 files is whole, and its working tree clean, before and after a remount."""
    work = mount.path / "repository"
    repository = Repository(work, tmp_path)
    git = repository.git
    repository.init()
    for number in range(200):
        path = work / f"directory{number % 10}" / f"file{number}"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"content {number}\n" * number)
    git("add", ".")
    git("commit", "--quiet", "--message", "all")
    (work / "directory0" / "file0").write_text("changed")
    git("commit", "--quiet", "--all", "--message", "changed")
    git("gc", "--quiet")
    git("fsck", "--strict")
    assert git("status", "--porcelain") == ""
    mount.remount()
    git("fsck", "--strict")
    assert git("status", "--porcelain") == ""
    assert git("log", "--format=%s").split() == ["changed", "all"]
    assert len(git("ls-files").split()) == 200
