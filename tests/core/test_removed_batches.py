"""Batches that somebody else has removed are told from those that never arrived, and from those that are not needed."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Final

import pytest
import trio
from hypothesis import assume, given
from hypothesis import strategies as st
from trio.testing import MockClock

from backends.base import CREATE_ONLY
from backends.intercepted import Verb
from backends.memory import MemoryStorage
from fusefs.check import Kind, findings
from fusefs.errors import BatchRemoved, LogDamaged
from fusefs.journal_format import JOURNAL_PREFIX, batch_key, encode
from fusefs.lease_record import LogEnd
from fusefs.log_reader import LogReader, OldLog
from fusefs.log_records import CONTINUED, Batch, LeftoverRecord, Position
from fusefs.log_repair import DAMAGED_PREFIX, LogRepair
from fusefs.old_logs import LogPart, find_logs, survey_logs
from fusefs.publisher import PublishOptions
from fusefs.versions import Version
from tests.core.logs import commit_thrice
from tests.core.tree import NEVER_PUBLISHED, TreeOptions, open_tree, stored
from tests.support.faulty import FaultyStorage

OPTIONS: Final = TreeOptions(logged=True, publish=NEVER_PUBLISHED)
EPOCH: Final = 3
IN_FLIGHT: Final = 4


@dataclass
class Writer:
    """The log of a mount that appends, trims and empties it, in any order that it may, until it dies.

    `stored` is what is in the store of it then.
    """

    rng: Random
    stored: dict[int, Batch] = field(default_factory=dict)
    _appended: list[Batch] = field(default_factory=list)
    _in_flight: dict[int, Batch] = field(default_factory=dict)
    _acknowledged: int = 0
    _needed_from: int = 1
    #: Of the last acknowledged commit.
    _trimmable: int = 1
    #: What the lease says, if it was renewed since there was anything to tell, and what a renewal would tell.
    told: LogEnd | None = None
    _end: LogEnd | None = None

    def live(self, steps: int) -> None:
        for _ in range(steps):
            self.rng.choice(
                [self._append, self._append, self._arrive, self._arrive, self._trim, self._empty, self._renew]
            )()

    def _renew(self) -> None:
        self.told = self._end

    def _append(self) -> None:
        if len(self._in_flight) < IN_FLIGHT:
            number = len(self._appended) + 1
            self._needed_from = self.rng.choice(
                [self._needed_from, self.rng.randint(self._needed_from, number)]
            )
            self._add(self._needed_from, CONTINUED if self.rng.random() < 0.3 else 0)

    def _add(self, cutoff: int, flags: int = 0, *, is_closing: bool = False) -> None:
        batch = Batch(
            position=Position(EPOCH, len(self._appended) + 1),
            cutoff=Position(EPOCH, cutoff),
            acknowledged=self._acknowledged,
            flags=flags,
            records=() if is_closing else (LeftoverRecord(Version("key", "etag", 1)),),
        )
        self._appended.append(batch)
        self._in_flight[batch.position.sequence] = batch

    def _arrive(self) -> None:
        if self._in_flight:
            number = self.rng.choice(sorted(self._in_flight))
            self.stored[number] = self._in_flight.pop(number)
            while self._acknowledged < len(self._appended) and self._acknowledged + 1 not in self._in_flight:
                self._acknowledged += 1
                batch = self._appended[self._acknowledged - 1]
                if not batch.is_continued:
                    self._trimmable = batch.cutoff.sequence
                    self._end = LogEnd(EPOCH, self._acknowledged)

    def _trim(self) -> None:
        for number in [each for each in self.stored if each < self._trimmable]:
            if self.rng.random() < 0.7:
                del self.stored[number]

    def _empty(self) -> None:
        if not self._in_flight and self._appended and not self._appended[-1].is_continued:
            self._add(len(self._appended) + 1, is_closing=True)
            self._arrive()
            closing = max(self.stored)
            self._needed_from = closing + 1
            for number in self.rng.sample(sorted(self.stored), len(self.stored)):
                if number != closing and self.rng.random() < 0.9:
                    del self.stored[number]
            if self.stored.keys() == {closing}:
                self._end = LogEnd(EPOCH, closing, is_needed=False)


async def storage_of(there: dict[int, Batch]) -> MemoryStorage:
    storage = MemoryStorage()
    for batch in there.values():
        await storage.put(batch_key(batch.position), encode(batch))
    return storage


async def find(storage: MemoryStorage | FaultyStorage, told: LogEnd | None = None) -> OldLog:
    (log,) = await find_logs([LogPart(LogReader(storage), told=told)], before_epoch=9)
    return log


async def survey(storage: MemoryStorage, told: LogEnd | None = None) -> OldLog:
    (log,) = await survey_logs([LogPart(LogReader(storage), told=told)])
    return log


@given(seed=st.integers(0, 2**32), steps=st.integers(1, 60))
async def test_no_writer_is_taken_for_somebody_else(seed: int, steps: int) -> None:
    """Whatever it has removed itself, and whenever it dies; nor are the seal that follows, and the lease, witnesses
    against it."""
    writer = Writer(Random(seed))
    writer.live(steps)
    storage = await storage_of(writer.stored)
    positions = (await survey(storage, writer.told)).positions
    for _ in range(2):
        assert (await find(storage, writer.told)).positions == positions


@given(seed=st.integers(0, 2**32), steps=st.integers(5, 60), is_sealed=st.booleans())
async def test_what_somebody_else_removes_is_told(seed: int, steps: int, is_sealed: bool) -> None:
    """Of what counts, any batch of which a later one, or the seal beside others, says that it was there."""
    writer = Writer(Random(seed))
    writer.live(steps)
    storage = await storage_of(writer.stored)
    found = await (find(storage) if is_sealed else survey(storage))
    newest = writer.stored[max(writer.stored)].acknowledged if writer.stored else 0
    for position in found.positions:
        before_seal = [number for number in writer.stored if number <= found.positions[-1].sequence]
        others = [number for number in before_seal if writer.stored[number].records]
        if others != [position.sequence] if is_sealed else position.sequence <= newest:
            data = (await storage.get_range(batch_key(position))).data
            await storage.delete(batch_key(position))
            with pytest.raises(BatchRemoved):
                await find(storage)
            await storage.put(batch_key(position), data)


@given(seed=st.integers(0, 2**32), steps=st.integers(5, 60), is_sealed=st.booleans(), data=st.data())
async def test_what_the_lease_tells_of_is_missed(
    seed: int, steps: int, is_sealed: bool, data: st.DataObject
) -> None:
    """However much of the end is removed, all that there is and its seal included."""
    writer = Writer(Random(seed))
    writer.live(steps)
    told = writer.told
    assume(told is not None)
    assert told is not None
    storage = await storage_of(writer.stored)
    positions = (await (find(storage, told) if is_sealed else survey(storage, told))).positions
    counting = [position for position in positions if position.sequence <= told.sequence]
    first = data.draw(st.sampled_from(counting)) if counting else Position(EPOCH, told.sequence)
    for number in range(first.sequence, max(writer.stored) + 2):
        await storage.delete(batch_key(Position(EPOCH, number)))
    if not counting or (first == counting[0] and not told.is_needed):
        return  # nothing is missing, or what is was not told
    there = await stored(storage, ours=True)
    for _ in range(2):
        with pytest.raises(BatchRemoved, match="somebody has removed it, of which"):
            await find(storage, told)
    assert await stored(storage, ours=True) == there
    repair = LogRepair(storage, [LogPart(LogReader(storage), told=told)])
    found = await repair.diagnose()
    assert not found.is_whole
    assert await stored(storage, ours=True) == there
    await repair.set_aside(found)
    again = await repair.diagnose()
    assert (again.is_whole, again.readable) == (True, found.readable)
    assert len((await find(storage, told)).positions) == found.readable


RECORDS: Final = (LeftoverRecord(Version("key", "etag", 1)),)


@pytest.mark.parametrize("records", [(), RECORDS], ids=["tell of nothing", "tell of something"])
async def test_a_batch_that_arrives_while_it_is_looked_for(records: tuple[LeftoverRecord, ...]) -> None:
    """A listing that was made in part before it came, and in part after, is none of a log from which it was removed."""
    storage = MemoryStorage()
    for number, acknowledged in ((1, 0), (3, 2)):
        batch = Batch(
            position=Position(1, number), cutoff=Position(1, 1), acknowledged=acknowledged, records=records
        )
        await storage.put(batch_key(batch.position), encode(batch))
    late = Batch(position=Position(1, 2), cutoff=Position(1, 1), acknowledged=1, records=records)

    faulty = FaultyStorage(storage)
    gate = faulty.hold(Verb.GET_RANGE)
    found: list[OldLog] = []

    async def look() -> None:
        found.append(await find(faulty))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(look)
        await gate.reached.wait()
        await storage.put(batch_key(late.position), encode(late), mode=CREATE_ONLY)
        gate.open()
    assert [position.sequence for position in found[0].positions] == [1, 2, 3]


@pytest.mark.parametrize("there", [[], [1, 2]], ids=["nothing", "an older state"])
async def test_a_log_of_which_the_lease_says_that_nothing_is_needed(there: list[int]) -> None:
    """Nobody misses it. But what was needed once, and is there with nothing that says otherwise, is no log."""
    batches = {
        number: Batch(position=Position(EPOCH, number), cutoff=Position(EPOCH, 1), records=RECORDS)
        for number in there
    }
    storage = await storage_of(batches)
    told = LogEnd(EPOCH, 4, is_needed=False)
    if there:
        with pytest.raises(BatchRemoved, match="somebody has removed it"):
            await find(storage, told)
    else:
        assert (await find(storage, told)).positions == []


@pytest.mark.parametrize("sequence", [1, 2])
async def test_a_mount_is_refused(sequence: int, tmp_path: Path, autojump_clock: MockClock) -> None:
    """A batch of the log that somebody has removed (a rule of the bucket, a hand) is not taken for one that never
    arrived, where a later one is there: no mount goes on without being told. `fusefs recover` says what can be saved,
    and keeps the rest.
    """
    storage = MemoryStorage()
    await commit_thrice(storage, tmp_path / "1")
    key = batch_key(Position(1, sequence))
    await storage.delete(key)
    before = await stored(storage, ours=True)
    with pytest.raises(LogDamaged, match=f"{key}.*somebody has removed it.*`fusefs recover` tells"):
        async with open_tree(storage, tmp_path / "2", OPTIONS):
            pass
    assert await stored(storage, ours=True) == before
    repair = LogRepair(storage)
    found = await repair.diagnose()
    assert (found.readable, len(found.lost)) == (sequence - 1, 3 - sequence)
    assert str(found).startswith(f"{key!r} cannot be applied: somebody has removed it")
    assert await stored(storage, ours=True) == before
    await repair.set_aside(found)
    aside = [each for each in await stored(storage, ours=True) if each.startswith(DAMAGED_PREFIX)]
    assert len(aside) == 3 - sequence
    assert (await repair.diagnose()).damage == ""
    async with open_tree(storage, tmp_path / "3", replace(OPTIONS, publish=PublishOptions())) as tree:
        assert await tree.names() == (["file"] if sequence > 1 else [])
        if sequence > 1:
            assert await tree.read_file("file") == b"0"
        await tree.publish_all()


async def log_keys(store: MemoryStorage) -> list[str]:
    return [key for key in await stored(store, ours=True) if key.startswith(JOURNAL_PREFIX)]


@pytest.mark.parametrize("with_seal", [False, True])
async def test_batches_of_an_earlier_term_that_a_later_one_needs(
    with_seal: bool, tmp_path: Path, autojump_clock: MockClock
) -> None:
    """A rule of the bucket deletes what is older than some days, and an object could not be written for as long."""
    store = MemoryStorage()
    async with open_tree(store, tmp_path, OPTIONS) as tree:
        await tree.write_file("one", b"confirmed")
        await tree.log.commit()
    earlier = await log_keys(store)
    async with open_tree(store, tmp_path, OPTIONS) as tree:
        assert await tree.names() == ["one"]
        await tree.write_file("two", b"confirmed")
        await tree.log.commit()
    seals = [key for key in await log_keys(store) if key.startswith(earlier[0][:-16]) and key not in earlier]
    for key in [*earlier, *seals] if with_seal else earlier:
        await store.delete(key)
    with pytest.raises(BatchRemoved):
        async with open_tree(store, tmp_path, OPTIONS):
            pass
    damaged = [finding.key async for finding in findings(store) if finding.kind is Kind.DAMAGED]
    assert damaged == [batch_key(Position(1, 1))]
    found = await LogRepair(store).diagnose()
    assert "somebody has removed it" in found.damage
    await LogRepair(store).set_aside(found)
    async with open_tree(store, tmp_path, OPTIONS) as tree:
        assert await tree.names() == []
