"""The lease object's text: what is written is read, and nothing else is taken for a lease."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusefs.errors import LeaseDamaged
from fusefs.lease_record import (
    Identity,
    LeaseRecord,
    LogEnd,
    LogPlace,
    with_end,
    with_log,
)
from fusefs.options import MAX_TERM_SECONDS, MIN_TERM_SECONDS

TEXTS = st.text(max_size=20)
EPOCHS = st.integers(1, 2**63 - 1)
ENDS = st.builds(LogEnd, EPOCHS, EPOCHS, st.booleans())
IDENTITIES = st.builds(Identity, holder=TEXTS, host=TEXTS, pid=st.integers(), mountpoint=TEXTS)
RECORDS = st.builds(
    LeaseRecord,
    epoch=st.just(2**63 - 1),
    identity=IDENTITIES,
    since=TEXTS,
    term_seconds=st.floats(allow_nan=False, allow_infinity=False),
    beat=st.integers(),
    mark=TEXTS,
    logs=st.lists(st.builds(LogPlace, TEXTS, EPOCHS, TEXTS, st.none() | ENDS), max_size=3).map(tuple),
    released=st.booleans(),
)
RECORD = LeaseRecord(
    epoch=3,
    identity=Identity(holder="4f2a", host="db1", pid=12, mountpoint="/srv/data"),
    since="2026-01-02 03:04:05 UTC",
    term_seconds=30.0,
    beat=9,
    mark="71c0",
    logs=(LogPlace("", 3), LogPlace("db1:/cache", 3, "c0de", LogEnd(3, 17))),
)


@given(RECORDS)
def test_what_was_written_is_read(record: LeaseRecord) -> None:
    assert LeaseRecord.decode(record.encode()) == record


def test_a_path_that_is_not_utf_8_is_kept() -> None:
    record = LeaseRecord.decode(RECORD.encode().replace(b"/srv/data", rb"/srv/\udcff"))
    assert LeaseRecord.decode(record.encode()) == record
    assert "/srv/?" in record.holder_shown


def test_people_can_read_it() -> None:
    assert RECORD.encode().decode() == (
        '{\n "version": 1,\n "epoch": 3,\n "holder": "4f2a",\n "host": "db1",\n "pid": 12,\n'
        ' "mountpoint": "/srv/data",\n "since": "2026-01-02 03:04:05 UTC",\n "term_seconds": 30.0,\n "beat": 9,\n'
        ' "mark": "71c0",\n'
        ' "logs": [\n  {\n   "place": "",\n   "since_epoch": 3\n  },\n'
        '  {\n   "place": "db1:/cache",\n   "since_epoch": 3,\n   "disk": "c0de",\n'
        '   "acknowledged": {\n    "epoch": 3,\n    "sequence": 17,\n    "needed": true\n   }\n'
        '  }\n ],\n "released": false\n}\n'
    )
    assert RECORD.holder_shown == "/srv/data on host db1 (process 12, since 2026-01-02 03:04:05 UTC)"


@pytest.mark.parametrize(
    "damage",
    [
        lambda document: document.pop("beat"),
        lambda document: document.pop("logs"),
        lambda document: document.update(epoch=0),
        lambda document: document.update(epoch=2**63),
        lambda document: document.update(epoch="3"),
        lambda document: document.update(epoch=True),
        lambda document: document.update(host=None),
        lambda document: document.update(pid=1.5),
        lambda document: document.update(term_seconds="30"),
        lambda document: document.update(term_seconds=float("nan")),
        lambda document: document.update(released=0),
        lambda document: document.update(logs={}),
        lambda document: document.update(logs=[""]),
        lambda document: document.update(logs=[{"place": "", "since_epoch": 0}]),
        lambda document: document["logs"][1].update(disk=""),
        lambda document: document["logs"][1].update(disk=None),
        lambda document: document["logs"][1].update(disk=7),
        lambda document: document["logs"][0].update(acknowledged=None),
        lambda document: document["logs"][0].update(acknowledged=17),
        lambda document: document["logs"][0].update(acknowledged={}),
        lambda document: document["logs"][1]["acknowledged"].pop("needed"),
        lambda document: document["logs"][1]["acknowledged"].update(needed=1),
        lambda document: document["logs"][1]["acknowledged"].update(epoch=0),
        lambda document: document["logs"][1]["acknowledged"].update(epoch=4),
        lambda document: document["logs"][1]["acknowledged"].update(sequence=0),
        lambda document: document["logs"][1]["acknowledged"].update(sequence=2**63),
        lambda document: document["logs"][1]["acknowledged"].update(sequence=17.0),
        lambda document: document["logs"][1]["acknowledged"].update(sequence="17"),
        lambda document: document.update(version="1"),
    ],
)
def test_damaged_fields(damage: Callable[[dict[str, Any]], object]) -> None:
    document = json.loads(RECORD.encode())
    damage(document)
    with pytest.raises(LeaseDamaged, match="it is damaged, or not of fusefs"):
        LeaseRecord.decode(json.dumps(document).encode())


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b"7", b"null", b"\xff", b"[" * 100_000, RECORD.encode()[:-3]]
)
def test_what_is_no_record_at_all(data: bytes) -> None:
    with pytest.raises(LeaseDamaged, match="it is damaged, or not of fusefs"):
        LeaseRecord.decode(data)


@given(st.binary(max_size=50))
def test_random_bytes_are_no_record(data: bytes) -> None:
    with pytest.raises(LeaseDamaged):
        LeaseRecord.decode(data)


def test_another_version_is_refused_whatever_else_it_says() -> None:
    with pytest.raises(
        LeaseDamaged, match=r"its format is 2, .* knows 1; use the version that has written it"
    ):
        LeaseRecord.decode(b'{"version": 2}')


def test_a_log_may_have_no_identity_and_no_end() -> None:
    """Earlier versions wrote none; and what they wrote is the same when it is written again."""
    document = json.loads(RECORD.encode())
    del document["logs"][1]["disk"], document["logs"][1]["acknowledged"]
    record = LeaseRecord.decode(json.dumps(document).encode())
    assert record.logs == (LogPlace("", 3), LogPlace("db1:/cache", 3))
    assert json.loads(record.encode()) == document


def test_fields_of_later_programs_are_passed_over() -> None:
    document = json.loads(RECORD.encode()) | {"colour": "green"}
    assert LeaseRecord.decode(json.dumps(document).encode()) == RECORD


@pytest.mark.parametrize(
    ("term", "watched"),
    [(30.0, 30.0), (0.0, MIN_TERM_SECONDS), (-5.0, MIN_TERM_SECONDS), (1e300, MAX_TERM_SECONDS)],
)
def test_an_absurd_term_is_not_waited_for(term: float, watched: float) -> None:
    document = json.loads(RECORD.encode()) | {"term_seconds": term}
    assert LeaseRecord.decode(json.dumps(document).encode()).watched_seconds == watched


def test_places_of_logs_are_named_once_each() -> None:
    """A mount that crashes again and again, with the same log each time, does not make the object grow."""
    logs = with_log((), LogPlace("", 4))
    assert with_log(logs, LogPlace("", 5)) == logs == (LogPlace("", 4),)
    assert with_log(logs, LogPlace("s3://fast/log", 6)) == (LogPlace("", 4), LogPlace("s3://fast/log", 6))


def test_a_log_has_the_end_that_was_told_last() -> None:
    logs = (LogPlace("", 4, end=LogEnd(5, 9)), LogPlace("db1:/cache", 6))
    assert with_end(logs, "", None) == logs
    assert with_end(logs, "", LogEnd(7, 1)) == (LogPlace("", 4, end=LogEnd(7, 1)), logs[1])
