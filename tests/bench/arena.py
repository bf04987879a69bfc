"""Where a workload does its work: it times, it tells figures, and it checks that what was acknowledged is there.

A workload that finds something missing raises `DataLost`: the figures it has told stay, beside the reason why they
are not worth much.
"""

from __future__ import annotations

import os
import random
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.bench.file_systems import FileSystem, FileSystemError
from tests.bench.usage import RequestCounter, Requests, cpu_seconds, peak_memory, reset_peak_memory

KIB: Final = 1024
MIB: Final = 1024 * 1024


class DataLost(Exception):
    """What was acknowledged is not there. Raised by the checks of a workload; the message says what is missing."""


@dataclass(slots=True)
class Span:
    """One stretch of work; complete when its block has ended."""

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    peak_rss_bytes: int = 0
    requests: Requests = field(default_factory=Requests)


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """What one run of a workload has shown. `span` is the stretch of work that it is about."""

    what: str
    value: float
    unit: str
    span: Span

    @property
    def more_is_better(self) -> bool:
        return self.unit.endswith("/s")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How much work is done. No repetition goes on for longer than `patience_seconds`."""

    commits: int
    wal_bytes: int
    large_bytes: int
    stream_bytes: int
    files: int
    random_reads: int
    inserts: int
    #: Files of the trees that are copied and cloned.
    tree_files: int
    git_files: int
    #: Directories of objects that others have put: the first with attributes, the second by names.
    listed: Mapping[str, int]
    redis_commits: int
    pgbench_seconds: int
    pgbench_clients: Sequence[int]
    patience_seconds: float
    #: After this time a workload is ended on a file system.
    limit_seconds: float


class Arena:
    """A mounted file system, and what is known of it."""

    def __init__(self, system: FileSystem, count_requests: RequestCounter, sizes: Sizes) -> None:
        self.sizes = sizes
        self.system = system
        self.figures: list[Figure] = []
        self._count_requests = count_requests

    @property
    def path(self) -> Path:
        return self.system.path

    @property
    def scratch(self) -> Path:
        """A directory of the local disk for what is not measured."""
        path = self.system.path.parent / "scratch"
        path.mkdir(exist_ok=True)
        return path

    def run(self, command: Sequence[str | Path], environment: Mapping[str, str] | None = None) -> str:
        """Run a program and return what it says. Raises `FileSystemError` if it fails."""
        name = " ".join(str(word) for word in command if "/" not in str(word))
        done = subprocess.run(
            command,
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise FileSystemError(f"{name}: {' '.join(done.stderr.split())[-200:]}")
        return done.stdout

    @contextmanager
    def span(self) -> Iterator[Span]:
        """Measure the block."""
        span = Span()
        pids = self.system.pids()
        reset_peak_memory(pids)
        asked, cpu, began = self._count_requests(), cpu_seconds(pids), time.perf_counter()
        yield span
        span.seconds = time.perf_counter() - began
        pids = self.system.pids() or pids
        span.cpu_seconds = max(0.0, cpu_seconds(pids) - cpu)
        span.peak_rss_bytes = peak_memory(pids)
        span.requests = self._count_requests() - asked

    def tell(self, what: str, value: float, unit: str, span: Span) -> None:
        self.figures.append(Figure(what=what, value=value, unit=unit, span=span))

    def tell_latencies(self, what: str, seconds: list[float], span: Span) -> None:
        """Tell the median and the 99th percentile of single calls."""
        ordered = sorted(seconds)
        self.tell(f"{what}, p50", ordered[len(ordered) // 2] * 1e3, "ms", span)
        self.tell(f"{what}, p99", ordered[int(len(ordered) * 0.99)] * 1e3, "ms", span)

    def repeat(self, count: int) -> Iterator[int]:
        """Count up to `count`, and stop before when that takes too long."""
        deadline = time.perf_counter() + self.sizes.patience_seconds
        for number in range(count):
            if number and time.perf_counter() > deadline:
                return
            yield number

    def go_cold(self) -> None:
        """Unmount cleanly, and mount with nothing in any cache of the file system; those of the server stay."""
        self.system.umount()
        self.system.forget()
        self.system.mount()

    def lose_host(self) -> None:
        """End the file system as a crash would, take away what it had on the local disk, and mount again."""
        self.system.lose_host()
        self.system.mount()

    def check(self, path: Path, expected: bytes) -> None:
        """Raise `DataLost` if the file does not have this content."""
        try:
            found = path.read_bytes()
        except OSError as error:
            raise DataLost(f"{path.name} cannot be read: {error.strerror}") from error
        if found != expected and self.system.keeps:
            raise DataLost(f"{path.name} has not the bytes that were acknowledged")

    def check_object(self, name: str, expected: bytes) -> None:
        """Raise `DataLost` if an unmounted file system has not left this object; not for those that make other ones."""
        bucket = self.system.bucket
        if bucket is None:
            return
        if bucket.sizes().get(name) != len(expected):
            raise DataLost(f"the object {name} is missing after the unmount, or has another size")
        if bucket.read(name) != expected:
            raise DataLost(f"the object {name} has other bytes after the unmount")


def pattern(seed: int, length: int) -> bytes:
    """Return bytes that do not compress, the same for the same seed."""
    source = random.Random(seed)
    return b"".join(source.randbytes(min(64 * MIB, length - done)) for done in range(0, length, 64 * MIB))
