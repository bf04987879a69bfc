"""What is done on every file system: each workload is a function of an `Arena`, named in `WORKLOADS`.

Calls that a program makes to be sure (fsync) are checked against the loss of the host; the others against a clean
unmount, with an empty cache, and in the objects.
"""

from __future__ import annotations

import os
import random
import sqlite3
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Final

from tests.bench.arena import KIB, MIB, Arena, DataLost, pattern

CLIENTS: Final = 16
_PAGE: Final = 8 * KIB
_BLOCK: Final = 4 * KIB
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
        arena.tell_latencies(f"commit of 8 KiB in {len(content) // MIB} MiB", latencies, span)
        arena.lose_host()
    finally:
        _close(descriptor)
    arena.check(path, bytes(content))


def appends(arena: Arena) -> None:
    """Append small records and sync each: one client, then many, each with a file of its own."""
    for clients in (1, CLIENTS):
        paths = [arena.path / f"log-{clients}-{number}" for number in range(clients)]
        with arena.span() as span, ThreadPoolExecutor(clients) as pool:
            written = list(pool.map(lambda path: _append(arena, path), paths))
        arena.tell(f"commits of 144 B, clients: {clients}", sum(written) / span.seconds, "1/s", span)
        arena.lose_host()
        for path, count in zip(paths, written, strict=True):
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
        arena.tell_latencies(f"append of 1 KiB + fsync to {len(content) // MIB} MiB", latencies, span)
        arena.lose_host()
    finally:
        _close(descriptor)
    arena.check(path, content + record * len(latencies))


def small_files(arena: Arena) -> None:
    """Make small files, list them, read them cold, delete them."""
    directory, count = arena.path / "small", 0
    directory.mkdir()
    with arena.span() as span:
        for number in arena.repeat(arena.sizes.files):
            (directory / str(number)).write_bytes(pattern(number, _BLOCK))
            count += 1
    arena.tell("create + write + close of 4 KiB", count / span.seconds, "files/s", span)
    with arena.span() as span:
        arena.system.umount()
    arena.tell("  and the unmount after it", span.seconds, "s", span)
    for number in {0, count - 1}:
        arena.check_object(f"small/{number}", pattern(number, _BLOCK))
    arena.system.mount()
    arena.go_cold()
    with arena.span() as span:
        found = {entry.name: entry.stat().st_size for entry in os.scandir(directory)}
    arena.tell("ls -l, cold", len(found) / span.seconds, "files/s", span)
    if found != {str(number): _BLOCK for number in range(count)}:
        raise DataLost(f"{len(found)} of {count} files are listed after an unmount, or sizes are wrong")
    arena.go_cold()
    read = 0
    with arena.span() as span:
        for number in arena.repeat(count):
            arena.check(directory / str(number), pattern(number, _BLOCK))
            read += 1
    arena.tell("cold read of 4 KiB files", read / span.seconds, "files/s", span)
    with arena.span() as span:
        for number in range(count):
            (directory / str(number)).unlink()
    arena.tell("unlink", count / span.seconds, "files/s", span)
    arena.go_cold()
    if directory.exists() and os.listdir(directory):
        raise DataLost("deleted files are there again after an unmount")


def stream(arena: Arena) -> None:
    """Write one large file, read it cold, and blocks of it at random."""
    path, size, chunk = arena.path / "stream", arena.sizes.stream_bytes, pattern(6, MIB)
    with arena.span() as span, path.open("wb", buffering=0) as file:
        for number in range(size // MIB):
            file.write(number.to_bytes(8, "big") + chunk[8:])
    arena.tell("sequential write, to close", size / MIB / span.seconds, "MiB/s", span)
    written = span.seconds
    with arena.span() as span:
        arena.system.umount()
    arena.tell(
        "sequential write, to the end of the unmount", size / MIB / (written + span.seconds), "MiB/s", span
    )
    if arena.system.bucket is not None and arena.system.bucket.sizes().get("stream") != size:
        raise DataLost("the object stream is missing after the unmount, or has another size")
    arena.system.mount()
    arena.go_cold()
    whole = True
    with arena.span() as span, path.open("rb", buffering=0) as file:
        for number in range(size // MIB):
            whole &= _read_exactly(file.fileno(), MIB) == number.to_bytes(8, "big") + chunk[8:]
    arena.tell("sequential read, cold", size / MIB / span.seconds, "MiB/s", span)
    if not whole:
        raise DataLost("the stream has other bytes after the unmount")
    arena.go_cold()
    _random_reads(arena, path, size, chunk)


def _random_reads(arena: Arena, path: Path, size: int, chunk: bytes) -> None:
    chosen, latencies = random.Random(7), []
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with arena.span() as span:
            for _ in arena.repeat(arena.sizes.random_reads):
                # The first block of each MiB says which it is.
                offset = chosen.randrange(size // MIB) * MIB + chosen.randrange(1, MIB // _BLOCK) * _BLOCK
                began = time.perf_counter()
                data = os.pread(descriptor, _BLOCK, offset)
                latencies.append(time.perf_counter() - began)
                if data != chunk[offset % MIB : offset % MIB + _BLOCK]:
                    raise DataLost("a random read has got other bytes")
    finally:
        os.close(descriptor)
    arena.tell_latencies("random read of 4 KiB, cold", latencies, span)


def renames(arena: Arena) -> None:
    """Rename a file, and a directory of many."""
    (arena.path / "before").mkdir()
    for number in range(arena.sizes.files):
        (arena.path / "before" / str(number)).write_bytes(b"x")
    (arena.path / "file").write_bytes(b"renamed")
    arena.go_cold()
    with arena.span() as span:
        (arena.path / "file").rename(arena.path / "other")
    arena.tell("rename of a file", span.seconds * 1e3, "ms", span)
    with arena.span() as span:
        (arena.path / "before").rename(arena.path / "after")
    arena.tell(f"rename of a directory of {arena.sizes.files:,}", span.seconds * 1e3, "ms", span)
    arena.go_cold()
    arena.check(arena.path / "other", b"renamed")
    # SeaweedFS may show a directory that has become empty: no file is in two places.
    if (arena.path / "before").exists() and os.listdir(arena.path / "before"):
        raise DataLost("after a rename and an unmount, files are under the old name too")
    found = len(os.listdir(arena.path / "after"))
    if found != arena.sizes.files:
        raise DataLost(
            f"{found} of {arena.sizes.files} files of the renamed directory are there after an unmount"
        )


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


def _read_exactly(descriptor: int, length: int) -> bytes:
    data = b""
    while len(data) < length and (more := os.read(descriptor, length - len(data))):
        data += more
    return data


def _close(descriptor: int) -> None:
    """Close a descriptor of a mount that may be gone."""
    try:
        os.close(descriptor)
    except OSError:
        return


WORKLOADS: Final[Mapping[str, Callable[[Arena], None]]] = {
    "commits": commits,
    "appends": appends,
    "large-append": large_append,
    "small-files": small_files,
    "stream": stream,
    "renames": renames,
    "sqlite": sqlite,
}
