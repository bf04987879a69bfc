"""`fusefs status` for people."""

from __future__ import annotations

from typing import Any

import pytest

from fusefs.quantities import brief_size
from fusefs.status_text import duration, lines

STATUS: dict[str, Any] = {
    "url": "s3://bucket/prefix",
    "mountpoint": "/mnt/point",
    "mode": "default",
    "pid": 17,
    "uptime_seconds": 7_384.0,
    "starting": None,
    "unpublished": {
        "changes": 1_200,
        "bytes": 1_300_000,
        "deletions": 2,
        "under_way": 8,
        "failing": 1,
        "renamed_directories": 0,
    },
    "log": {
        "place": "the bucket",
        "batches": 3,
        "bytes": 2048,
        "age_seconds": 3.1,
        "batches_under_way": 1,
        "unlogged_changes": 2,
        "unlogged_bytes": 100,
    },
    "lease": {
        "term": 4,
        "held": True,
        "seconds_left": 9.5,
        "failed_renewals": 1,
        "lapses": 0,
        "lost": None,
    },
    "requests": {"made": 1_234, "failed": 3, "bytes_sent": 5_000_000, "bytes_received": 0},
    "last_warning": {"level": "warning", "message": "the store fails", "seconds_ago": 65.0},
}


def test_a_busy_mount() -> None:
    assert list(lines(STATUS)) == [
        "s3://bucket/prefix on /mnt/point (default, process 17, for 2 h 3 min)",
        "unpublished   1,200 changes with 1.2 MiB, 2 deletions; 8 under way, 1 failing",
        "log           in the bucket: 3 batches, 2.0 KiB, since 3.1 s;"
        " 2 changes with 100 bytes not in it yet, 1 batch under way",
        "lease         term 4, held for another 9.5 s; 1 renewal failed, 0 lapses",
        "requests      1,234, 3 of them failed; 4.8 MiB sent, 0 bytes received",
        "last warning  1 min 5 s ago: the store fails",
    ]


def test_a_renamed_directory_that_is_still_looked_through() -> None:
    left = {**STATUS["unpublished"], "renamed_directories": 1}
    told = list(lines({**STATUS, "unpublished": left}))
    assert told[1].endswith("8 under way, 1 failing; 1 directory to be looked through")


def test_a_mount_that_does_not_answer_yet() -> None:
    nothing = dict.fromkeys(("unpublished", "log", "lease", "requests", "last_warning"))
    assert list(lines({**STATUS, **nothing, "starting": "reading the log: 3 of 5"})) == [
        "s3://bucket/prefix on /mnt/point (default, process 17, for 2 h 3 min)",
        "starting      reading the log: 3 of 5",
    ]


def test_an_idle_mount() -> None:
    nothing = dict.fromkeys(STATUS["unpublished"], 0)
    idle = {**STATUS, "unpublished": nothing, "log": None, "lease": None, "last_warning": None}
    _, *told, _ = lines(idle)
    assert told == ["unpublished   nothing", "log           none", "lease         none"]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"held": False, "seconds_left": 0.0, "lapses": 2}, "term 4, lapsed; 1 renewal failed, 2 lapses"),
        ({"held": False, "lost": "it was taken"}, "term 4, lost: it was taken"),
    ],
)
def test_a_lease_that_is_not_held(changes: dict[str, Any], told: str) -> None:
    status = {**STATUS, "lease": {**STATUS["lease"], **changes}}
    assert f"lease         {told}" in list(lines(status))


@pytest.mark.parametrize(
    ("count", "shown"),
    [(0, "0 bytes"), (1023, "1023 bytes"), (1024, "1.0 KiB"), (3 << 30, "3.0 GiB"), (5 << 50, "5120.0 TiB")],
)
def test_sizes(count: int, shown: str) -> None:
    assert brief_size(count) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.04, "0.0 s"), (59.9, "59.9 s"), (60, "1 min 0 s"), (3_600, "1 h 0 min"), (93_600, "26 h 0 min")],
)
def test_durations(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown
