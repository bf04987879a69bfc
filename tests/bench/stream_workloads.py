"""One large file: written, published, read from its beginning to its end and at random."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path
from typing import Final

from tests.bench.arena import KIB, MIB, Arena, DataLost, pattern

_BLOCK: Final = 4 * KIB


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
    arena.tell("unmount with the stream pending", span.seconds, "s", span)
    arena.tell("sequential write, to published", size / MIB / (written + span.seconds), "MiB/s", span)
    if arena.system.bucket is not None and arena.system.bucket.sizes().get("stream") != size:
        raise DataLost("the object stream is missing after the unmount, or has another size")
    arena.system.mount()
    arena.go_cold()
    whole = True
    with arena.span() as span, path.open("rb", buffering=0) as file:
        for number in range(size // MIB):
            whole &= _read_exactly(file.fileno(), MIB) == number.to_bytes(8, "big") + chunk[8:]
    arena.tell("sequential read, cold", size / MIB / span.seconds, "MiB/s", span)
    if not whole and arena.system.keeps:
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
                if arena.system.keeps and data != chunk[offset % MIB : offset % MIB + _BLOCK]:
                    raise DataLost("a random read has got other bytes")
    finally:
        os.close(descriptor)
    arena.tell_latencies("random read of 4 KiB, cold", latencies, span)


def _read_exactly(descriptor: int, length: int) -> bytes:
    data = b""
    while len(data) < length and (more := os.read(descriptor, length - len(data))):
        data += more
    return data
