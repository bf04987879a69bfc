"""Commits: what is written is synced at once, and looked for after the loss of the host."""

from __future__ import annotations

import os
import random
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from tests.bench.arena import KIB, Arena, pattern

CLIENTS: Final = (1, 4, 16, 64)
_PAGE: Final = 8 * KIB
_RECORD: Final = 144


def commits(arena: Arena) -> None:
    """Overwrite pages of a log and sync each, as a database does."""
    path, content = arena.path / "wal", bytearray(pattern(1, arena.sizes.wal_bytes))
    path.write_bytes(content)
    chosen, latencies = random.Random(2), []
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.fsync(descriptor)
        with arena.span() as span:
            for number in arena.repeat(arena.sizes.commits):
                offset = chosen.randrange(len(content) // _PAGE) * _PAGE
                content[offset : offset + _PAGE] = page = pattern(number, _PAGE)
                began = time.perf_counter()
                os.pwrite(descriptor, page, offset)
                os.fdatasync(descriptor)
                latencies.append(time.perf_counter() - began)
        arena.tell_latencies("commit of 8 KiB", latencies, span)
        arena.lose_host()
    finally:
        _close(descriptor)
    arena.check(path, bytes(content))


def appends(arena: Arena) -> None:
    """Append small records and sync each: one client, then more, each with a file of its own."""
    expected: dict[Path, int] = {}
    for clients in CLIENTS:
        paths = [arena.path / f"log-{clients}-{number}" for number in range(clients)]
        with arena.span() as span, ThreadPoolExecutor(clients) as pool:
            written = list(pool.map(lambda path: _append(arena, path), paths))
        arena.tell(f"commits of 144 B, clients: {clients}", sum(written) / span.seconds, "1/s", span)
        expected |= dict(zip(paths, written, strict=True))
    arena.lose_host()
    for path, count in expected.items():
        arena.check(path, pattern(3, _RECORD) * count)


def _append(arena: Arena, path: Path) -> int:
    """Append records to a new file, each with an fdatasync; return how many."""
    count, record = 0, pattern(3, _RECORD)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        for _ in arena.repeat(arena.sizes.commits):
            os.write(descriptor, record)
            os.fdatasync(descriptor)
            count += 1
    finally:
        _close(descriptor)
    return count


def large_append(arena: Arena) -> None:
    """Append 1 KiB to a large file that is in the store, and sync."""
    path, content = arena.path / "large", pattern(4, arena.sizes.large_bytes)
    path.write_bytes(content)
    arena.go_cold()
    record, latencies = pattern(5, KIB), []
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
    try:
        with arena.span() as span:
            for _ in arena.repeat(min(arena.sizes.commits, 20)):
                began = time.perf_counter()
                os.write(descriptor, record)
                os.fsync(descriptor)
                latencies.append(time.perf_counter() - began)
        arena.tell_latencies("append of 1 KiB + fsync to a large file", latencies, span)
        arena.lose_host()
    finally:
        _close(descriptor)
    arena.check(path, content + record * len(latencies))


def _close(descriptor: int) -> None:
    """Close a descriptor of a mount that may be gone."""
    try:
        os.close(descriptor)
    except OSError:
        return
