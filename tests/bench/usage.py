"""What a piece of work has cost: memory and CPU of the processes that serve a file system, requests to the store."""

from __future__ import annotations

import os
import re
import urllib.request
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, cast

_TICKS: Final = os.sysconf("SC_CLK_TCK")
_SAMPLE: Final = re.compile(r"^(SeaweedFS_s3_\w+)(?:\{.*\})? (\S+)$", re.MULTILINE)
_RESET_PEAK: Final = "5"
_IN_FLIGHT: Final = "SeaweedFS_s3_in_flight_requests"
_READINGS_UNTIL_IDLE: Final = 100
"""A reading takes milliseconds; where a mount never rests, what it is doing belongs to neither side."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Requests:
    """What the store has been asked; differences are what was asked in between."""

    count: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0
    #: PUTs into the log of a fusefs; known where there is a way that counts them.
    log_puts: int = 0

    def __sub__(self, earlier: Requests) -> Requests:
        return Requests(
            count=self.count - earlier.count,
            bytes_sent=self.bytes_sent - earlier.bytes_sent,
            bytes_received=self.bytes_received - earlier.bytes_received,
            log_puts=self.log_puts - earlier.log_puts,
        )


RequestCounter = Callable[[], Requests]


def uncounted() -> Requests:
    """Return nothing, for a store that does not count."""
    return Requests()


def server_counter(metrics_url: str, log_puts: Callable[[], int]) -> RequestCounter:
    """Return what reads the counters of a SeaweedFS: they cost the way of a request nothing.

    The server counts a request after it has answered it, so that the last ones are waited for until none is in
    flight. Its gauge is read after its counters may have been, so that they are read once more then.
    """

    def text() -> str:
        with urllib.request.urlopen(metrics_url, timeout=10) as answer:
            return cast("bytes", answer.read()).decode()

    def read() -> Requests:
        for _ in range(_READINGS_UNTIL_IDLE):
            if not in_flight(text()):
                break
        return replace(parse_metrics(text()), log_puts=log_puts())

    return read


def in_flight(text: str) -> int:
    """Return how many requests the server has begun and not counted yet."""
    return int(sum(float(value) for name, value in _SAMPLE.findall(text) if name == _IN_FLIGHT))


def parse_metrics(text: str) -> Requests:
    """Return the sums over all buckets and kinds of requests."""
    sums: dict[str, float] = {}
    for name, value in _SAMPLE.findall(text):
        sums[name] = sums.get(name, 0) + float(value)
    return Requests(
        count=int(sums.get("SeaweedFS_s3_request_total", 0)),
        bytes_sent=int(sums.get("SeaweedFS_s3_bucket_traffic_received_bytes_total", 0)),
        bytes_received=int(sums.get("SeaweedFS_s3_bucket_traffic_sent_bytes_total", 0)),
    )


def family(pid: int) -> set[int]:
    """Return a process and all that descend from it."""
    parents: dict[int, list[int]] = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has just ended
        parents.setdefault(int(fields[1]), []).append(int(status.parent.name))
    found, left = set[int](), [pid]
    while left:
        found.add(each := left.pop())
        left += parents.get(each, [])
    return found


def cpu_seconds(pids: Iterable[int]) -> float:
    """Return the CPU time of processes, user and system."""
    ticks = 0
    for pid in pids:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        ticks += int(fields[11]) + int(fields[12])
    return ticks / _TICKS


def reset_peak_memory(pids: Iterable[int]) -> None:
    """Let `peak_memory` begin anew, where the process may."""
    for pid in pids:
        try:
            Path(f"/proc/{pid}/clear_refs").write_text(_RESET_PEAK)
        except OSError:
            continue


def peak_memory(pids: Iterable[int]) -> int:
    """Return the sum of the most bytes of memory that each process has had."""
    total = 0
    for pid in pids:
        try:
            found = re.search(r"^VmHWM:\s*(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
        except OSError:
            continue
        total += int(found[1]) * 1024 if found else 0
    return total
