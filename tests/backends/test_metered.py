"""A metered store keeps the contract, and counts exactly what was asked of it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import pytest

from backends.base import MIB, ObjectStorage, RangeResult
from backends.errors import NotFound, Unavailable
from backends.intercepted import Request, Verb
from backends.memory import MemoryStorage
from backends.metered import MeteredStorage, VerbStatistics
from tests.backends.contract import StorageContract
from tests.support.faulty import FaultyStorage


class TestMeteredStorage(StorageContract):
    """The whole contract."""

    @pytest.fixture
    def storage(self) -> ObjectStorage:
        return MeteredStorage(MemoryStorage())


def ticking() -> Iterator[float]:
    """A clock that is one second later whenever somebody looks."""
    return (float(second) for second in count())


async def test_every_verb_is_counted_once() -> None:
    seen: list[Request] = []
    storage = MeteredStorage(MemoryStorage(), observer=seen.append)
    await storage.probe()
    await storage.put("k", b"12345")
    await storage.head("k")
    await storage.get_range("k", 1, 3)
    await storage.copy("k", "c")
    await storage.list_prefix("k")
    upload = await storage.create_multipart("m")
    await storage.list_multipart_uploads("m")
    part = await upload.upload_part(1, b"123")
    await upload.copy_part(2, "k", 0, 5)
    await upload.complete([part])
    await storage.resume_multipart("m", upload.upload_id).abort()
    await storage.delete("m")
    await storage.delete_many(["k", "c"])
    assert seen == [
        Request(Verb.PROBE, ""),
        Request(Verb.PUT, "k", 5),
        Request(Verb.HEAD, "k"),
        Request(Verb.GET_RANGE, "k"),
        Request(Verb.COPY, "c"),
        Request(Verb.LIST_PREFIX, "k"),
        Request(Verb.CREATE_MULTIPART, "m"),
        Request(Verb.LIST_MULTIPART_UPLOADS, "m"),
        Request(Verb.UPLOAD_PART, "m", 3),
        Request(Verb.COPY_PART, "m"),
        Request(Verb.COMPLETE, "m"),
        Request(Verb.ABORT, "m"),
        Request(Verb.DELETE, "m"),
        Request(Verb.DELETE_MANY, "k"),
    ]
    statistics = storage.statistics()
    assert {verb: meter.requests for verb, meter in statistics.by_verb.items()} == dict.fromkeys(Verb, 1)
    assert statistics.requests == len(Verb)
    assert (statistics.bytes_sent, statistics.bytes_received, statistics.failures) == (8, 3, 0)


async def test_bytes_time_and_failures_are_counted_by_verb() -> None:
    faulty = FaultyStorage(MemoryStorage())
    storage = MeteredStorage(faulty, clock=ticking().__next__)
    faulty.fail(Unavailable, verb=Verb.PUT)
    with pytest.raises(Unavailable):
        await storage.put("k", bytes(MIB))
    await storage.put("k", bytes(MIB))
    for _ in range(2):
        with pytest.raises(NotFound):
            await storage.get_range("missing")
    await storage.get_range("k")
    assert storage.statistics().by_verb == {
        Verb.PUT: VerbStatistics(
            requests=2, failures={"Unavailable": 1}, bytes_sent=2 * MIB, bytes_received=0, seconds=2.0
        ),
        Verb.GET_RANGE: VerbStatistics(
            requests=3, failures={"NotFound": 2}, bytes_sent=0, bytes_received=MIB, seconds=3.0
        ),
    }
    assert storage.statistics().failures == 1, "that there is no object is no failure"


async def test_statistics_are_of_one_moment() -> None:
    storage = MeteredStorage(MemoryStorage())
    before = storage.statistics()
    await storage.put("k", b"")
    assert (before.requests, storage.statistics().requests) == (0, 1)


async def test_what_is_received_is_counted_without_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would take the interpreter's time for each byte that is fetched."""
    storage = MeteredStorage(MemoryStorage())
    await storage.put("k", b"12345")
    monkeypatch.delattr(RangeResult, "data")
    await storage.get_range("k", 1, 3)
    assert storage.statistics().bytes_received == 3
