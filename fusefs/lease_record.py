"""What the lease object says: a small JSON document that people can read, and that only its own version writes.

Who holds the prefix is told for people (`host`, `pid`, `mountpoint`, `since`) and for programs (`holder`, `epoch`).
`beat` and `mark` make every state of the object another one, so that an ETag never comes back; the mark is random, so
that even two copies of one process (a virtual machine's snapshot that was started twice) are told apart.

`logs` are the places where acknowledged changes may be that are not published yet: the holder's own log and those
of terms before it that nobody has recovered. A term that ends by a crash leaves its log in the list, the next one
adds its own, and a clean end empties it, so that no crash, not even one during recovery, makes a log forgotten.
"""

from __future__ import annotations

import json
import math
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Final, TypeAlias

from fusefs.errors import LeaseDamaged
from fusefs.options import MAX_TERM_SECONDS, MIN_TERM_SECONDS

FORMAT_VERSION: Final = 1

# No holder of this format has a term outside `MIN_TERM_SECONDS` and `MAX_TERM_SECONDS`, so nobody has to watch a record
# for longer, whatever it says.

_MAX_EPOCH: Final = 2**63 - 1

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
                raise LeaseDamaged(f"its format is {version}, and this fusefs knows {FORMAT_VERSION}")
            return _record(document)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise LeaseDamaged("it is damaged, or not of fusefs") from error


def new_mark() -> str:
    """Return a `LeaseRecord.mark` that nobody else draws."""
    return secrets.token_hex(8)


def with_log(logs: tuple[LogPlace, ...], own: LogPlace) -> tuple[LogPlace, ...]:
    """Return the places of logs after a term begins whose log is `own`."""
    if any(log.place == own.place for log in logs):
        return logs
    return (*logs, own)


def printable(text: str) -> str:
    """Return what a record says as a part of a message of one line."""
    return "".join(character if character.isprintable() else "?" for character in text)


def _told(log: LogPlace) -> _Document:
    disk = {"disk": log.disk} if log.disk else {}
    return {"place": log.place, "since_epoch": log.since_epoch, **disk}


def _record(document: _Document) -> LeaseRecord:
    logs = document["logs"]
    term = document["term_seconds"]
    if not isinstance(logs, list) or not isinstance(term, int | float) or not math.isfinite(term):
        raise TypeError
    return LeaseRecord(
        epoch=_epoch(document, "epoch"),
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
        logs=tuple(map(_log_place, logs)),
        released=_flag(document, "released"),
    )


def _log_place(value: object) -> LogPlace:
    document = _object(value)
    disk = _text(document, "disk") if "disk" in document else ""
    if not disk and "disk" in document:
        raise ValueError("disk")
    return LogPlace(_text(document, "place"), _epoch(document, "since_epoch"), disk)


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


def _epoch(document: _Document, name: str) -> int:
    value = _number(document, name)
    if not 1 <= value <= _MAX_EPOCH:
        raise ValueError(name)
    return value


def _flag(document: _Document, name: str) -> bool:
    value = document[name]
    if not isinstance(value, bool):
        raise TypeError(name)
    return value
