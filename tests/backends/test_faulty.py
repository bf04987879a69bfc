"""The store that tests break on purpose: it must fail where it was told, and nowhere else."""

from __future__ import annotations

import math
from itertools import count

import pytest
import trio

from backends.base import ObjectStorage
from backends.errors import NotFound, Throttled, Unavailable
from backends.intercepted import Request, Verb
from backends.memory import MemoryStorage
from tests.backends.contract import StorageContract
from tests.support.faulty import FaultyStorage


class TestFaultyStorageWithoutFaults(StorageContract):
    """The whole contract."""

    @pytest.fixture
    def storage(self) -> ObjectStorage:
        return FaultyStorage(MemoryStorage())


@pytest.fixture
def faulty() -> FaultyStorage:
    return FaultyStorage(MemoryStorage())


async def test_a_lost_call_has_no_effect(faulty: FaultyStorage) -> None:
    faulty.fail(Unavailable)
    with pytest.raises(Unavailable, match="call put 'k' is lost"):
        await faulty.put("k", b"")
    with pytest.raises(NotFound):
        await faulty.head("k")


async def test_a_lost_answer_has_an_effect(faulty: FaultyStorage) -> None:
    faulty.fail(Unavailable, answer_lost=True)
    with pytest.raises(Unavailable, match="answer to put 'k' is lost"):
        await faulty.put("k", b"1")
    assert (await faulty.head("k")).size == 1


async def test_only_selected_calls_fail(faulty: FaultyStorage) -> None:
    """The second and third PUT of one key, whatever else is called."""
    faulty.fail(Throttled, verb=Verb.PUT, key="k", call=2, times=2)
    await faulty.put("k", b"")
    await faulty.put("other", b"")
    await faulty.head("k")
    for _ in range(2):
        assert faulty.faults_left
        with pytest.raises(Throttled):
            await faulty.put("k", b"")
    assert not faulty.faults_left
    await faulty.put("k", b"")
    assert faulty.calls_of(Verb.HEAD) == [Request(Verb.HEAD, "k")]
    assert len(faulty.calls) == 6


async def test_an_outage_lasts_until_it_is_healed(faulty: FaultyStorage) -> None:
    faulty.fail(Unavailable, times=math.inf)
    for _ in range(5):
        with pytest.raises(Unavailable):
            await faulty.list_prefix()
    assert faulty.faults_left
    faulty.heal()
    await faulty.list_prefix()


async def test_every_call_of_a_scenario_can_fail_once() -> None:
    failures = 0
    for call in count(1):
        faulty = FaultyStorage(MemoryStorage())
        faulty.fail(Unavailable, call=call)
        try:
            upload = await faulty.create_multipart("k")
            await upload.complete([await upload.upload_part(1, b"")])
        except Unavailable:
            failures += 1
        if faulty.faults_left:
            break
    assert failures == 3


async def test_a_call_waits_at_a_gate(faulty: FaultyStorage) -> None:
    gate = faulty.hold(Verb.PUT, key="k")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(faulty.put, "k", b"")
        await gate.reached.wait()
        await faulty.put("other", b"")
        with pytest.raises(NotFound):
            await faulty.head("k")
        gate.open()
    assert (await faulty.head("k")).size == 0
