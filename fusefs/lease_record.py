"""What the lease object says: a small JSON document that people can read, and that only its own version writes.

Who holds the prefix is told for people (`host`, `pid`, `mountpoint`, `since`) and for programs (`holder`, `epoch`).
`beat` and `mark` make every state of the object another one, so that an ETag never comes back; the mark is random, so
that even two copies of one process (a virtual machine's snapshot that was started twice) are told apart.

`logs` are the places where acknowledged changes may be that are not published yet: the holder's own log and those
of terms before it that nobody has recovered. A term that ends by a crash leaves its log in the list, the next one
adds its own, and a clean end empties it, so that no crash, not even one during recovery, makes a log forgotten. Each
says up to where it was acknowledged when the record was made, so that a log is not taken for whole whose end, or all of
which, somebody has removed.
"""

from __future__ import annotations

import json
import math
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Final, TypeAlias

from fusefs.errors import LeaseDamaged
from fusefs.options import MAX_TERM_SECONDS, MIN_TERM_SECONDS

FORMAT_VERSION: Final = 1

# No holder of this format has a term outside `MIN_TERM_SECONDS` and `MAX_TERM_SECONDS`, so nobody has to watch a record
# for longer, whatever it says.

_MAX_COUNT: Final = 2**63 - 1

_Document: TypeAlias = Mapping[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """A mount that wants to write."""

    #: Random, and never used by another mount.
    holder: str
    # For people.
    host: str
    pid: int
    mountpoint: str


@dataclass(frozen=True, slots=True)
class LogEnd:
    """Up to where a log was acknowledged: the commit with this place in it, and all before, were in the store."""

    epoch: int
    sequence: int
    #: Whether it told of anything that was needed: a log of which nothing is may be removed, and nobody misses it.
    is_needed: bool = True


@dataclass(frozen=True, slots=True)
class LogPlace:
    """Where a log is, of which term and all later ones: as the mount that keeps it names it, "" for the prefix itself.

    The name of a place on one host has to say which host: people look for it there, and where `disk` is not told
    places are the same if their names are.
    """

    place: str
    since_epoch: int
    #: What a log on a local disk says of itself, by which it is known whatever its host is called now (see
    #: `fusefs.disk_log`); "" for one in the prefix, and where an earlier version has written the lease.
    disk: str = ""
    #: None where nothing was acknowledged yet, or an earlier version has written the lease.
    end: LogEnd | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseRecord:
    """One state of the lease."""

    epoch: int
    identity: Identity
    #: When the term began, by a clock that may be wrong; nothing is decided by it.
    since: str
    term_seconds: float
    #: Counts the writes of this term that were tried.
    beat: int
    #: Drawn by the holder for each write, and kept for further ones only until it knows that one has succeeded.
    mark: str
    logs: tuple[LogPlace, ...]
    released: bool = False

    @property
    def watched_seconds(self) -> float:
        """For how long it must stay the same before it counts for nothing."""
        return min(max(self.term_seconds, MIN_TERM_SECONDS), MAX_TERM_SECONDS)

    @property
    def holder_shown(self) -> str:
        """Who it is, for a message of one line."""
        who = self.identity
        place = f"{who.mountpoint} on host {who.host} (process {who.pid}, since {self.since})"
        return printable(place)

    def encode(self) -> bytes:
        document = {
            "version": FORMAT_VERSION,
            "epoch": self.epoch,
            **asdict(self.identity),
            "since": self.since,
            "term_seconds": self.term_seconds,
            "beat": self.beat,
            "mark": self.mark,
            "logs": [_told(log) for log in self.logs],
            "released": self.released,
        }
        return (json.dumps(document, indent=1) + "\n").encode()

    @classmethod
    def decode(cls, data: bytes) -> LeaseRecord:
        """Return what `encode` has written. Raises `LeaseDamaged`."""
        try:
            document = _object(json.loads(data))
            version = _number(document, "version")
            if version != FORMAT_VERSION:
                raise LeaseDamaged(
                    f"its format is {version}, and this fusefs knows {FORMAT_VERSION};"
                    " use the version that has written it"
                )
            return _record(document)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise LeaseDamaged(
                "it is damaged, or not of fusefs; remove it if nothing is mounted there read-write"
            ) from error


def new_mark() -> str:
    """Return a `LeaseRecord.mark` that nobody else draws."""
    return secrets.token_hex(8)


def with_log(logs: tuple[LogPlace, ...], own: LogPlace) -> tuple[LogPlace, ...]:
    """Return the places of logs after a term begins whose log is `own`."""
    if any(log.place == own.place for log in logs):
        return logs
    return (*logs, own)


def with_end(logs: tuple[LogPlace, ...], place: str, end: LogEnd | None) -> tuple[LogPlace, ...]:
    """Return the places of logs, with the end that the one at `place` has now; None is the one that it had."""
    return tuple(replace(log, end=end) if end is not None and log.place == place else log for log in logs)


def printable(text: str) -> str:
    """Return what a record says as a part of a message of one line."""
    return "".join(character if character.isprintable() else "?" for character in text)


def _told(log: LogPlace) -> _Document:
    disk = {"disk": log.disk} if log.disk else {}
    end = {"acknowledged": _told_end(log.end)} if log.end is not None else {}
    return {"place": log.place, "since_epoch": log.since_epoch, **disk, **end}


def _told_end(end: LogEnd) -> _Document:
    return {"epoch": end.epoch, "sequence": end.sequence, "needed": end.is_needed}


def _record(document: _Document) -> LeaseRecord:
    logs = document["logs"]
    term = document["term_seconds"]
    if not isinstance(logs, list) or not isinstance(term, int | float) or not math.isfinite(term):
        raise TypeError
    epoch = _count(document, "epoch")
    places = tuple(map(_log_place, logs))
    if any(log.end is not None and log.end.epoch > epoch for log in places):
        raise ValueError("acknowledged")
    return LeaseRecord(
        epoch=epoch,
        identity=Identity(
            holder=_text(document, "holder"),
            host=_text(document, "host"),
            pid=_number(document, "pid"),
            mountpoint=_text(document, "mountpoint"),
        ),
        since=_text(document, "since"),
        term_seconds=term,
        beat=_number(document, "beat"),
        mark=_text(document, "mark"),
        logs=places,
        released=_flag(document, "released"),
    )


def _log_place(value: object) -> LogPlace:
    document = _object(value)
    disk = _text(document, "disk") if "disk" in document else ""
    if not disk and "disk" in document:
        raise ValueError("disk")
    end = _log_end(document["acknowledged"]) if "acknowledged" in document else None
    return LogPlace(_text(document, "place"), _count(document, "since_epoch"), disk, end)


def _log_end(value: object) -> LogEnd:
    document = _object(value)
    return LogEnd(_count(document, "epoch"), _count(document, "sequence"), _flag(document, "needed"))


def _object(value: object) -> _Document:
    if not isinstance(value, dict):
        raise TypeError
    return value


def _text(document: _Document, name: str) -> str:
    value = document[name]
    if not isinstance(value, str):
        raise TypeError(name)
    return value


def _number(document: _Document, name: str) -> int:
    value = document[name]
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(name)
    return value


def _count(document: _Document, name: str) -> int:
    """Return the number of a term, or of a batch in one."""
    value = _number(document, name)
    if not 1 <= value <= _MAX_COUNT:
        raise ValueError(name)
    return value


def _flag(document: _Document, name: str) -> bool:
    value = document[name]
    if not isinstance(value, bool):
        raise TypeError(name)
    return value
