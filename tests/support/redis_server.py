"""A Redis on a directory of the test's choice, and what is put into it."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import redis

from tests.support.mounts import wait_until
from tests.support.servers import free_port, program, running


@contextmanager
def redis_server(
    directory: Path, fsync: str, log: Path
) -> Iterator[tuple[redis.Redis, subprocess.Popen[bytes]]]:
    """A Redis with its append-only file in `directory`, and a client of it."""
    port = free_port()
    command = [program("redis-server"), "--port", str(port), "--bind", "127.0.0.1", "--dir", str(directory)]
    command += ["--appendonly", "yes", "--appendfsync", fsync, "--save", ""]
    with running(command, log) as process, closing(redis.Redis(port=port, socket_timeout=60)) as client:
        wait_until(lambda: _pongs(client), "Redis")
        yield client, process


def _pongs(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.ConnectionError:
        return False


def load_redis(client: redis.Redis, commits: int, batch: int, salt: str) -> dict[bytes, bytes]:
    """Set `commits` times `batch` values, and return them."""
    expected: dict[bytes, bytes] = {}
    for commit in range(commits):
        values = {
            f"{salt}:{commit}:{number}".encode(): f"{commit * number}".encode() * (number % 90 + 1)
            for number in range(batch)
        }
        client.mset(values)
        expected |= values
    return expected


def content_of(client: redis.Redis) -> dict[bytes, bytes]:
    keys = list(client.scan_iter(count=1000))
    assert client.dbsize() == len(keys)
    return dict(zip(keys, client.mget(keys), strict=True))
