"""How a mount stands, as a JSON object: what is not in the bucket yet, its log, its lease, what failed last.

Everything is what the parts say of themselves (`statistics`) at one moment. What failed last is the last warning that
the process has logged: whatever a user may have to know of is told there, and of an outage its beginning and its end.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from fusefs.committer import CommitStatistics
from fusefs.config import Config
from fusefs.lease import LeaseStatistics
from fusefs.publisher import PublishStatistics


@dataclass(frozen=True, slots=True)
class Complaint:
    """A warning or an error of the log."""

    level: str
    message: str
    #: On the monotonic clock.
    told_at: float


class LastComplaint(logging.Handler):
    """Keeps the last warning that the process has logged."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.last: Complaint | None = None

    def emit(self, record: logging.LogRecord) -> None:
        self.last = Complaint(record.levelname.lower(), record.getMessage(), time.monotonic())

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Listen for the block."""
        logging.getLogger().addHandler(self)
        try:
            yield
        finally:
            logging.getLogger().removeHandler(self)


@dataclass(frozen=True, slots=True)
class Requests:
    """What was asked of the store since the mount."""

    made: int
    failed: int
    bytes_sent: int
    bytes_received: int


def identity_of(config: Config, uptime_seconds: float) -> Mapping[str, object]:
    """Return which mount it is, and for how long its process has been there."""
    options = config.mount
    return {
        "url": config.store.url,
        "mountpoint": str(options.mountpoint),
        "mode": "read-only" if options.read_only else "shared" if options.shared else "default",
        "pid": os.getpid(),
        "uptime_seconds": _shortened(uptime_seconds),
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """A mount at one moment; without a log or a lease, those are None."""

    identity: Mapping[str, object]
    publishing: PublishStatistics
    log_place: str
    log: CommitStatistics | None
    lease: LeaseStatistics | None
    requests: Requests
    complaint: Complaint | None


_OF_WHAT_ANSWERS: Final = ("unpublished", "log", "lease", "requests", "last_warning")


def starting_document(identity: Mapping[str, object], line: str) -> Mapping[str, object]:
    """Return what `fusefs status --json` prints of a mount that does not answer yet."""
    return {**identity, "starting": line, **dict.fromkeys(_OF_WHAT_ANSWERS)}


def document(status: Status) -> Mapping[str, object]:
    """Return what `fusefs status --json` prints."""
    publishing, requests = status.publishing, status.requests
    return {
        **status.identity,
        "starting": None,
        "unpublished": {
            "changes": publishing.pending_inodes,
            "bytes": publishing.pending_bytes,
            "deletions": publishing.leftovers,
            "under_way": publishing.running,
            "failing": publishing.failing,
            "renamed_directories": publishing.moving_directories,
        },
        "log": _log(status.log, status.log_place) if status.log is not None else None,
        "lease": _lease(status.lease) if status.lease is not None else None,
        "requests": {
            "made": requests.made,
            "failed": requests.failed,
            "bytes_sent": requests.bytes_sent,
            "bytes_received": requests.bytes_received,
        },
        "last_warning": _complaint(status.complaint) if status.complaint is not None else None,
    }


def _log(log: CommitStatistics, place: str) -> Mapping[str, object]:
    return {
        "place": place,
        "batches": log.journal.batches + log.journal.older_batches,
        "bytes": log.journal.size_bytes,
        "age_seconds": _shortened(log.journal.age_seconds),
        "batches_under_way": log.journal.unacknowledged,
        "unlogged_changes": log.unlogged_inodes,
        "unlogged_bytes": log.unlogged_bytes,
    }


def _lease(lease: LeaseStatistics) -> Mapping[str, object]:
    return {
        "term": lease.epoch,
        "held": lease.is_held,
        "seconds_left": _shortened(lease.seconds_left),
        "failed_renewals": lease.failures,
        "lapses": lease.lapses,
        "lost": lease.lost_reason,
    }


def _complaint(complaint: Complaint) -> Mapping[str, object]:
    return {
        "level": complaint.level,
        "message": complaint.message,
        "seconds_ago": _shortened(time.monotonic() - complaint.told_at),
    }


def _shortened(seconds: float) -> float:
    return round(seconds, 1)
