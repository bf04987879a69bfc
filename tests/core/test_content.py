"""The bytes of one file against a bytearray, and the fetching of what is not staged."""

from __future__ import annotations

import contextlib
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any, Final

import pytest
import trio
import trio.testing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backends.base import KIB, MIB, ObjectStorage, RangeResult
from backends.byte_budget import ByteBudget
from backends.errors import Unavailable
from backends.intercepted import Verb
from backends.memory import MemoryStorage
from fusefs import fetching
from fusefs.content import Content, ContentSources
from fusefs.errors import DamagedCache, StaleFile
from fusefs.extents import ExtentSet
from fusefs.kept_content import KeptContent
from fusefs.prefetch import MAX_READERS, SequentialDetector
from fusefs.stage import BLOCK_BYTES, Stage
from fusefs.stage_budget import StageBudget
from fusefs.versions import Version
from tests.core.small_disk import limit_disk
from tests.support.faulty import FaultyStorage

FETCH: Final = 4 * KIB
BODY: Final = Random(0).randbytes(40 * KIB)


@asynccontextmanager
async def open_sources(
    storage: ObjectStorage, directory: Path, *, fetches: int = 4, budget: int = 1 << 40
) -> AsyncIterator[ContentSources]:
    stage = Stage(directory / "stage", memory_bytes=0)
    bytes_staged = StageBudget(budget)
    kept = KeptContent(directory / "kept", bytes_staged, store="memory://")
    async with trio.open_nursery() as nursery:
        yield ContentSources(
            stage, storage, nursery.start_soon, bytes_staged, ByteBudget(fetches * FETCH), kept
        )
        nursery.cancel_scope.cancel()
    stage.close()


async def stored_content(sources: ContentSources, key: str = "k", body: bytes = BODY) -> Content:
    """Return the content of an object that is in the bucket and nowhere else yet."""
    return Content(sources, base=Version(key, await sources.storage.put(key, body), len(body)))


def check_invariants(content: Content) -> None:
    """Hold the four invariants of `fusefs.content`."""
    covered = content.present.copy()
    covered.add(0, content.base_limit)
    assert covered.covers(0, content.size)
    assert all(extents.end <= content.size for extents in (content.present, content.dirty, content.unsent))
    assert content.base_limit <= min(content.size, content.base.size if content.base else 0)
    assert all(content.present.covers(*extent) for extent in content.dirty)
    assert all(content.dirty.covers(*extent) for extent in content.unsent)
    for block in content._staged.checksums.extents(content.size):
        assert content.present.covers(*block)
        assert not content.dirty.intersect(*block)


class Machine:
    """One content, the bytes that it must have, and reads and an upload that are under way."""

    def __init__(
        self, content: Content, sources: ContentSources, directory: Path, faulty: FaultyStorage
    ) -> None:
        self.content = content
        self.sources = sources
        self.directory = directory
        self.model = bytearray(BODY)
        self.faulty = faulty
        self.stamp = 0
        #: What an upload has taken, and will be the object when it completes.
        self.taken: bytes | None = None
        self.reader = SequentialDetector(16 * KIB)

    async def write(self, offset: int, length: int) -> None:
        self.stamp += 1
        data = Random(self.stamp).randbytes(length)
        if length:
            self.model.extend(bytes(max(0, offset - len(self.model))))
            self.model[offset : offset + length] = data
            self.content.write(offset, data)

    async def truncate(self, size: int) -> None:
        del self.model[size:]
        self.model.extend(bytes(size - len(self.model)))
        self.content.truncate(size)

    async def read(self, offset: int, length: int) -> None:
        assert await fetching.read(self.content, offset, length) == bytes(
            self.model[offset : offset + length]
        )

    async def read_ahead(self, offset: int, length: int) -> None:
        data = await fetching.read(self.content, offset, length, self.reader)
        assert data == bytes(self.model[offset : offset + length])

    async def read_later(self, offset: int, length: int) -> None:
        """Begin a read and go on; what it returns may be of any moment until then."""

        async def read() -> None:
            await fetching.read(self.content, offset, length)

        self.sources.spawn(read)

    async def begin_upload(self) -> None:
        with self.content.pinned():
            while self.taken is None:
                await fetching.fetch(self.content, 0, self.content.size)
                self.content.give_back()
                with contextlib.suppress(DamagedCache):
                    self.taken = self.content.take(0, self.content.size)

    async def complete_upload(self) -> None:
        """What was taken becomes the object, whatever has been written or cut since then."""
        if self.taken is not None:
            etag = await self.faulty.put("k", self.taken)
            self.content.published(Version("k", etag, len(self.taken)))
            self.taken = None

    async def fail_upload(self) -> None:
        if self.taken is not None:
            self.taken = None
            self.content.give_back()

    async def evict(self, wanted: int) -> None:
        """Give back what is asked for, or else all that is clean."""
        content = self.content
        before = content._staged.file.allocated
        content.evict(wanted)
        is_kept = content._pins or content._in_use  # by a read that has not returned
        if content.base and not is_kept and content._staged.file.allocated > before - wanted:
            assert content.present == content.dirty

    async def damage(self, offset: int) -> None:
        """Change a byte on the disk that can be fetched again, and read it."""
        blocks = self.content._staged.checksums.extents(len(self.model))
        if any(block.start <= offset < block.end for block in blocks) and self.content._staged.file.data_in(
            offset, offset + 1
        ):
            _change_a_byte(self.directory / "stage", offset)
        await self.read(offset, 1)

    async def remount(self, damaged: int) -> None:
        """Go on with what an end of the mount leaves, and the disk then damages, if nothing is under way."""
        await self.turn()
        if self.content.base is None or self.content.changed or self.taken is not None:
            return
        base = self.content.base
        self.content.keep(0, math.inf)
        self.content.discard()
        _change_a_byte(self.directory / "kept", damaged)
        budget = StageBudget(self.sources.budget.limit)
        kept = KeptContent(self.directory / "kept", budget, store="memory://")
        self.sources = replace(self.sources, budget=budget, kept=kept)
        self.content = Content(self.sources, base=base)

    def check_budget(self) -> None:
        """See that all that the disk has of the content is counted, if nothing of it is in a kept file any more."""
        if not list((self.directory / "kept").iterdir()):
            on_disk = ExtentSet()
            for start, end in self.content._staged.file.data_in(0, 200 * KIB):
                on_disk.add(start - start % BLOCK_BYTES, end + -end % BLOCK_BYTES)
            assert self.sources.budget.total >= on_disk.total
            assert self.sources.budget.total == self.content._staged.file.allocated

    async def turn(self) -> None:
        await trio.testing.wait_all_tasks_blocked()


def _change_a_byte(directory: Path, offset: int) -> None:
    for path in directory.iterdir():
        with path.open("r+b") as file:  # in its place: the holes of the file stay
            file.seek(offset)
            byte = (file.read(1) or b"\0")[0]
            file.seek(offset)
            file.write(bytes([byte ^ 1]))


offsets = st.integers(0, 48 * KIB)
lengths = st.one_of(st.integers(0, 100), st.integers(0, 20 * KIB))
steps = st.lists(
    st.one_of(
        st.tuples(st.just("write"), offsets, lengths),
        st.tuples(st.just("write"), offsets, lengths),
        st.tuples(st.just("truncate"), offsets),
        st.tuples(st.just("read"), offsets, lengths),
        st.tuples(st.just("read_ahead"), offsets, lengths),
        st.tuples(st.just("read_later"), offsets, lengths),
        st.tuples(st.sampled_from(["damage", "remount", "evict"]), offsets),
        st.tuples(st.sampled_from(["begin_upload", "complete_upload", "fail_upload", "turn"])),
    ),
    max_size=40,
)


async def run_machine(directory: Path, work: list[tuple[Any, ...]], budget: int) -> None:
    faulty = FaultyStorage(MemoryStorage())
    async with open_sources(faulty, directory, fetches=2, budget=budget) as sources:
        machine = Machine(await stored_content(sources), sources, directory, faulty)
        for name, *arguments in work:
            await getattr(machine, name)(*arguments)
            check_invariants(machine.content)
            machine.check_budget()
        await machine.read(0, 100 * KIB)
        await machine.begin_upload()
        assert machine.taken is not None
        await machine.complete_upload()
        await machine.evict(1 << 40)
        await machine.read(0, 100 * KIB)
        await machine.turn()
        machine.content.discard()
        assert machine.sources.budget.total == 0
        assert not list((directory / "stage").iterdir())
        assert not list((directory / "kept").iterdir())


@settings(
    max_examples=200,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    deadline=None,
)
@given(work=steps, budget=st.sampled_from([1 << 40, 20 * KIB]))
def test_a_content_is_an_array_of_bytes(small_parts: None, work: list[tuple[Any, ...]], budget: int) -> None:
    """Writes, cuts, reads, uploads that end later, evictions, remounts and damage to the disk in any order: reads are
    right, the invariants hold.
    """
    with TemporaryDirectory() as directory:
        trio.run(
            run_machine, Path(directory), work, budget, clock=trio.testing.MockClock(autojump_threshold=0)
        )


class _RangeRecorder(MemoryStorage):
    """Notes which ranges are asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.ranges: list[tuple[int, int]] = []

    async def get_range(
        self, key: str, start: int = 0, length: int | None = None, *, if_match: str | None = None
    ) -> RangeResult:
        result = await super().get_range(key, start, length, if_match=if_match)
        self.ranges.append((start, start + len(result.data)))
        return result


async def test_each_byte_is_fetched_once_however_many_read_it(small_parts: None, tmp_path: Path) -> None:
    storage = _RangeRecorder()
    async with open_sources(storage, tmp_path) as sources:
        content = await stored_content(sources)
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                for offset in range(0, 20 * KIB, KIB):
                    nursery.start_soon(fetching.read, content, offset, 8 * KIB)
        await fetching.read(content, 0, 27 * KIB)
        assert (
            sum(end - start for start, end in storage.ranges) == ExtentSet(storage.ranges).total == 27 * KIB
        )
        assert max(end - start for start, end in storage.ranges) <= FETCH


@pytest.mark.parametrize("starts", [[0], [0, 1024 * KIB]], ids=["one reader", "two readers"])
async def test_what_is_ahead_of_a_reader_is_not_evicted(
    starts: list[int], small_parts: None, tmp_path: Path
) -> None:
    """Each byte of a file larger than the stage is fetched once: what gives way is what was not read for longest."""
    storage = _RangeRecorder()
    body = Random(1).randbytes(2048 * KIB)
    async with open_sources(storage, tmp_path, budget=1024 * KIB) as sources:
        content = await stored_content(sources, body=body)
        readers = [(start, SequentialDetector(256 * KIB)) for start in starts]
        for offset in range(0, len(body) // len(starts), 64 * KIB):
            for start, reader in readers:
                data = await fetching.read(content, start + offset, 64 * KIB, reader)
                assert data == body[start + offset :][: 64 * KIB]
                await trio.testing.wait_all_tasks_blocked()
                assert sources.budget.total <= 1024 * KIB
        beyond = 256 * KIB * (len(starts) - 1)  # the first reader goes on to where the second one began
        assert sum(end - start for start, end in storage.ranges) <= len(body) + beyond


async def test_no_more_is_evicted_than_has_to_be(small_parts: None, tmp_path: Path) -> None:
    """And of a content that was not used for longest first, of it what was not read for longest."""
    async with open_sources(MemoryStorage(), tmp_path) as sources:
        older, newer = [await stored_content(sources, key) for key in ("older", "newer")]
        for content in (older, newer):
            for offset in (*range(0, len(BODY), FETCH), 0):
                await fetching.read(content, offset, FETCH)
        for unit in (1, 2):
            assert sources.budget.make_room(goal_bytes=sources.budget.total - 10)
            assert older.present == ExtentSet([(0, FETCH), ((unit + 1) * FETCH, len(BODY))])
        assert newer.present == ExtentSet([(0, len(BODY))])
        sources.budget.make_room(goal_bytes=len(BODY) + 10)
        assert not older.present
        assert newer.present == ExtentSet([(0, len(BODY))])
        assert len(list((tmp_path / "stage").iterdir())) == 1


async def test_a_write_during_a_fetch_is_not_overwritten(small_parts: None, tmp_path: Path) -> None:
    faulty = FaultyStorage(MemoryStorage())
    async with open_sources(faulty, tmp_path) as sources, trio.open_nursery() as nursery:
        content = await stored_content(sources)
        gate = faulty.hold(Verb.GET_RANGE)
        nursery.start_soon(fetching.read, content, 0, FETCH)
        await gate.reached.wait()
        content.write(100, b"newer")
        gate.open()
        assert await fetching.read(content, 90, 20) == BODY[90:100] + b"newer" + BODY[105:110]


async def test_a_cut_during_a_fetch_stays_cut(small_parts: None, tmp_path: Path) -> None:
    """Bytes beyond the cut arrive and are dropped; the file that grows again has zeros there."""
    faulty = FaultyStorage(MemoryStorage())
    async with open_sources(faulty, tmp_path) as sources, trio.open_nursery() as nursery:
        content = await stored_content(sources)
        gate = faulty.hold(Verb.GET_RANGE)
        nursery.start_soon(fetching.read, content, 0, FETCH)
        await gate.reached.wait()
        content.truncate(10)
        content.truncate(FETCH)
        gate.open()
        assert await fetching.read(content, 0, FETCH) == BODY[:10] + bytes(FETCH - 10)


@pytest.mark.parametrize("end", [2 * KIB + 600, 3 * KIB, 5 * KIB])
async def test_what_an_upload_obtains_is_as_long_as_asked_for(
    end: int, small_parts: None, tmp_path: Path
) -> None:
    """With zeros behind a cut that came during the fetch, also inside of a block."""
    faulty = FaultyStorage(MemoryStorage())
    async with open_sources(faulty, tmp_path) as sources, trio.open_nursery() as nursery:
        content = await stored_content(sources)
        obtained: list[bytes] = []

        async def obtain() -> None:
            obtained.append(await fetching.obtain(content, KIB, end))

        gate = faulty.hold(Verb.GET_RANGE)
        nursery.start_soon(obtain)
        await gate.reached.wait()
        cut = 2 * KIB + 500
        content.truncate(cut)
        gate.open()
        await trio.testing.wait_all_tasks_blocked()
        assert obtained == [BODY[KIB:cut] + bytes(end - cut)]


async def test_what_an_upload_obtains_past_a_full_disk_has_what_is_written_meanwhile(
    small_parts: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also behind where the file had ended when that began, or else no upload would be told of it."""
    faulty = FaultyStorage(MemoryStorage())
    async with open_sources(faulty, tmp_path) as sources, trio.open_nursery() as nursery:
        content = await stored_content(sources)
        obtained: list[bytes] = []

        async def obtain() -> None:
            obtained.append(await fetching.obtain(content, KIB, 5 * KIB))

        content.truncate(3 * KIB)
        gate = faulty.hold(Verb.GET_RANGE, call=2)  # the first was to be staged
        with monkeypatch.context() as full:
            limit_disk(full, tmp_path / "stage", 0)
            nursery.start_soon(obtain)
            await gate.reached.wait()
        content.write(3 * KIB, bytes(range(256)) * 8)
        gate.open()
        await trio.testing.wait_all_tasks_blocked()
        assert obtained == [BODY[KIB : 3 * KIB] + bytes(range(256)) * 8]
        assert not content.unsent


async def test_a_file_that_was_cut_while_it_went_up_has_nothing_behind_its_end(
    small_parts: None, tmp_path: Path
) -> None:
    """The object is longer: what it has there is not fetched ahead, and not there when the file grows again."""
    storage = MemoryStorage()
    async with open_sources(storage, tmp_path) as sources:
        content = await stored_content(sources)
        etag = (await storage.head("k")).etag
        content.truncate(10 * KIB)
        content.published(Version("k", etag, len(BODY)))
        check_invariants(content)
        await fetching.read(content, 0, KIB, SequentialDetector(64 * KIB))
        await trio.testing.wait_all_tasks_blocked()
        content.truncate(len(BODY))
        assert await fetching.read(content, 0, len(BODY)) == BODY[: 10 * KIB] + bytes(30 * KIB)


async def test_bytes_of_an_older_base_are_not_staged_over_a_newer_one(
    small_parts: None, tmp_path: Path
) -> None:
    """A GET of the first version ends after the second was published and its bytes were evicted.

    Nobody has asked for it: what a reader waits for is not evicted.
    """
    storage = MemoryStorage()
    late = _LateStorage(storage)
    async with open_sources(late, tmp_path) as sources, trio.open_nursery() as nursery:
        content = await stored_content(sources, body=BODY[:FETCH])
        nursery.start_soon(fetching.fetch_unasked, content)
        await late.answered.wait()
        content.write(0, bytes(FETCH))
        etag = await storage.put("k", content.take(0, FETCH))
        content.published(Version("k", etag, FETCH))
        content.evict(1 << 40)
        late.let_go.set()
        assert await fetching.read(content, 0, FETCH) == bytes(FETCH)


class _LateStorage(FaultyStorage):
    """Holds the first answer to a GET back: the store has read the bytes already."""

    def __init__(self, inner: ObjectStorage) -> None:
        super().__init__(inner)
        self.answered = trio.Event()
        self.let_go = trio.Event()

    async def _carry_out(self, request: Any, send: Any) -> Any:
        result = await super()._carry_out(request, send)
        if request.verb is Verb.GET_RANGE and not self.answered.is_set():
            self.answered.set()
            await self.let_go.wait()
        return result


async def test_a_fetch_that_waited_while_the_file_was_cut_and_published_is_no_conflict(
    small_parts: None, tmp_path: Path
) -> None:
    """Its range lies beyond the new version, and nobody else has changed anything."""
    faulty = FaultyStorage(MemoryStorage())
    async with open_sources(faulty, tmp_path, fetches=1) as sources, trio.open_nursery() as nursery:
        content = await stored_content(sources)
        results: list[bytes] = []

        async def read(offset: int) -> None:
            results.append(await fetching.read(content, offset, FETCH))

        gate = faulty.hold(Verb.GET_RANGE)
        nursery.start_soon(read, 0)
        await gate.reached.wait()
        nursery.start_soon(read, 20 * KIB)  # waits for its turn
        await trio.testing.wait_all_tasks_blocked()
        content.truncate(0)
        content.published(Version("k", await faulty.put("k", b""), 0))
        gate.open()
        await trio.testing.wait_all_tasks_blocked()
        assert results == [b"", b""]


async def test_a_foreign_change_under_an_open_file_is_stale_and_never_a_mixture(
    small_parts: None, tmp_path: Path
) -> None:
    storage = MemoryStorage()
    async with open_sources(storage, tmp_path) as sources:
        content = await stored_content(sources)
        assert await fetching.read(content, 0, 10) == BODY[:10]
        await storage.put("k", bytes(len(BODY)))
        assert await fetching.read(content, 0, 10) == BODY[:10]  # staged: still the version that was opened
        with pytest.raises(StaleFile):
            await fetching.read(content, len(BODY) - 10, 10)
        await storage.delete("k")
        with pytest.raises(StaleFile):
            await fetching.read(content, len(BODY) - 10, 10)


async def test_a_read_between_the_stores_new_version_and_our_knowing_of_it_is_not_stale(
    small_parts: None, tmp_path: Path
) -> None:
    storage = MemoryStorage()
    async with open_sources(storage, tmp_path) as sources:
        content = await stored_content(sources)
        ours = bytes(len(BODY))
        read: list[bytes] = []

        async def read_all() -> None:
            read.append(await fetching.read(content, 0, len(BODY)))

        async with trio.open_nursery() as nursery:
            with content.being_replaced():
                etag = await storage.put("k", ours)
                nursery.start_soon(read_all)
                await trio.testing.wait_all_tasks_blocked()
                content.published(Version("k", etag, len(ours)))
        assert read == [ours]


async def test_a_read_past_a_full_disk_is_of_the_version_that_has_come_meanwhile(
    small_parts: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was read of the older one is thrown away with it."""
    faulty = FaultyStorage(MemoryStorage())
    async with open_sources(faulty, tmp_path) as sources, trio.open_nursery() as nursery:
        content = await stored_content(sources)
        limit_disk(monkeypatch, tmp_path / "stage", 0)
        read: list[bytes] = []

        async def read_all() -> None:
            read.append(await fetching.read(content, 0, len(BODY)))

        pieces = len(BODY) // FETCH
        gate = faulty.hold(Verb.GET_RANGE, call=pieces + 2)  # all that were to be staged, and one
        nursery.start_soon(read_all)
        await gate.reached.wait()
        ours = Random(2).randbytes(len(BODY))
        content.published(Version("k", await faulty.put("k", ours), len(ours)))
        gate.open()
        await trio.testing.wait_all_tasks_blocked()
        assert read == [ours]


async def test_what_is_read_again_on_a_full_disk_takes_the_place_of_what_the_file_had_there(
    small_parts: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where all of the disk is one file's, no other can give way: it is read past the disk once, and not for ever."""
    faulty = FaultyStorage(MemoryStorage())
    async with open_sources(faulty, tmp_path) as sources:
        content = await stored_content(sources)
        limit_disk(monkeypatch, tmp_path / "stage", 16 * KIB)
        await fetching.read(content, 0, 16 * KIB)
        await fetching.read(content, 16 * KIB, FETCH)
        await fetching.read(content, 16 * KIB, FETCH)
        before = len(faulty.calls)
        assert await fetching.read(content, 16 * KIB, FETCH) == BODY[16 * KIB : 16 * KIB + FETCH]
        assert len(faulty.calls) == before


async def test_what_is_fetched_for_an_upload_does_not_give_way_before_that_has_it(
    small_parts: None, tmp_path: Path
) -> None:
    """Though there is more of it than may be staged, which nobody could know before."""
    async with open_sources(MemoryStorage(), tmp_path, budget=FETCH) as sources:
        content = await stored_content(sources)
        assert await fetching.obtain(content, 0, 2 * FETCH) == BODY[: 2 * FETCH]


async def test_the_block_in_which_a_part_begins_stays_whole_until_it_was_compared(
    small_parts: None, tmp_path: Path
) -> None:
    """Or else the checksum of the block would go, and damage of the rest into the bucket."""
    faulty = FaultyStorage(MemoryStorage())
    async with open_sources(faulty, tmp_path) as sources, trio.open_nursery() as nursery:
        content = await stored_content(sources)
        await fetching.read(content, 0, FETCH)
        [stage_file] = (tmp_path / "stage").iterdir()
        with stage_file.open("r+b") as file:
            file.seek(2 * KIB + 700)
            file.write(b"damaged")
        gate = faulty.hold(Verb.GET_RANGE)
        obtained: list[bytes] = []

        async def obtain() -> None:
            obtained.append(await fetching.obtain(content, 2 * KIB + 500, 2 * FETCH))

        nursery.start_soon(obtain)
        await gate.reached.wait()
        content.evict(1 << 40)
        gate.open()
        await trio.testing.wait_all_tasks_blocked()
        assert obtained == [BODY[2 * KIB + 500 : 2 * FETCH]]


async def test_a_read_of_what_was_damaged_counts_once_for_reading_ahead(
    small_parts: None, tmp_path: Path
) -> None:
    """Or else it would pass for one more reader of the handle, in the place of one that is being read ahead for."""
    faulty = FaultyStorage(MemoryStorage())
    async with open_sources(faulty, tmp_path) as sources:
        content = await stored_content(sources, body=bytes(64 * MIB))
        reader = SequentialDetector(256 * KIB)
        starts = [number * 8 * MIB for number in range(MAX_READERS)]
        for offset in (0, KIB):
            for start in starts:
                await fetching.read(content, start + offset, KIB, reader)
        await trio.testing.wait_all_tasks_blocked()
        [stage_file] = (tmp_path / "stage").iterdir()
        with stage_file.open("r+b") as file:
            file.seek(starts[-1] + 2 * KIB)
            file.write(b"damaged")
        assert await fetching.read(content, starts[-1] + 2 * KIB, KIB, reader) == bytes(KIB)
        ahead = reader.observe(starts[0] + 2 * KIB, KIB).ahead_end
        assert ahead >= starts[0] + 256 * KIB


async def test_a_fetch_that_fails_is_made_again_by_whoever_waits_for_it(
    small_parts: None, tmp_path: Path
) -> None:
    faulty = FaultyStorage(MemoryStorage())
    async with open_sources(faulty, tmp_path) as sources, trio.open_nursery() as nursery:
        content = await stored_content(sources)
        faulty.fail(Unavailable, verb=Verb.GET_RANGE)
        gate = faulty.hold(Verb.GET_RANGE)

        async def fail() -> None:
            with pytest.raises(Unavailable):
                await fetching.read(content, 0, 10)

        nursery.start_soon(fail)
        await gate.reached.wait()
        results: list[bytes] = []

        async def read() -> None:
            results.append(await fetching.read(content, 0, 10))

        nursery.start_soon(read)
        await trio.testing.wait_all_tasks_blocked()
        assert not results
        gate.open()
        await trio.testing.wait_all_tasks_blocked()
        assert results == [BODY[:10]]


async def test_a_reader_that_is_cancelled_leaves_no_claim(small_parts: None, tmp_path: Path) -> None:
    faulty = FaultyStorage(MemoryStorage())
    async with open_sources(faulty, tmp_path) as sources:
        content = await stored_content(sources)
        gate = faulty.hold(Verb.GET_RANGE)
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(fetching.read, content, 0, 10)
                await gate.reached.wait()
                scope.cancel()
        with trio.fail_after(5):
            assert await fetching.read(content, 0, 10) == BODY[:10]


async def test_reading_ahead_is_bounded_and_its_failures_are_nobodys(
    small_parts: None, tmp_path: Path
) -> None:
    """No more than the window is fetched beyond a read; whatever fails there does not end the mount's nursery."""
    faulty = FaultyStorage(MemoryStorage())
    async with open_sources(faulty, tmp_path) as sources:
        content = await stored_content(sources, body=bytes(4 * 1024 * KIB))
        reader = SequentialDetector(256 * KIB)
        await fetching.read(content, 0, KIB, reader)
        await trio.testing.wait_all_tasks_blocked()
        assert content.present.end <= KIB + 256 * KIB + FETCH
        faulty.fail(RuntimeError, verb=Verb.GET_RANGE, times=1_000)
        content.evict(1 << 40)
        with pytest.raises(RuntimeError):
            await fetching.read(content, 0, KIB, reader)
        await trio.testing.wait_all_tasks_blocked()
        faulty.heal()
        assert await fetching.read(content, 0, KIB, reader) == bytes(KIB)


class _CountingGets(FaultyStorage):
    """Takes a second for each GET, and notes how many are under way at most."""

    def __init__(self, inner: ObjectStorage) -> None:
        super().__init__(inner)
        self.under_way = self.most = 0

    async def _carry_out(self, request: Any, send: Any) -> Any:
        if request.verb is not Verb.GET_RANGE:
            return await super()._carry_out(request, send)
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        await trio.sleep(1)
        self.under_way -= 1
        return await super()._carry_out(request, send)


@pytest.mark.parametrize("reads", [[(0, len(BODY))], [(start, KIB) for start in range(0, len(BODY), KIB)]])
async def test_ranges_are_fetched_at_the_same_time(
    reads: list[tuple[int, int]], small_parts: None, tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """Of one long read, and ahead of a sequential reader; no more of them than the mount's limit."""
    storage = _CountingGets(MemoryStorage())
    async with open_sources(storage, tmp_path, fetches=4) as sources:
        content = await stored_content(sources)
        reader = SequentialDetector(64 * KIB)
        began = trio.current_time()
        for offset, length in reads:
            assert await fetching.read(content, offset, length, reader) == BODY[offset : offset + length]
        assert storage.most == 4
        assert trio.current_time() - began < 0.5 * len(BODY) / FETCH


async def test_a_short_read_does_not_wait_for_long_ones(small_parts: None, tmp_path: Path) -> None:
    """They may hold all the memory that there is for fetches, for as long as their network takes."""
    faulty = FaultyStorage(MemoryStorage())
    body = Random(1).randbytes(40 * FETCH)
    async with open_sources(faulty, tmp_path, fetches=32) as sources, trio.open_nursery() as nursery:
        content = await stored_content(sources, body=body)
        gate = faulty.hold(Verb.GET_RANGE, times=32)
        nursery.start_soon(fetching.fetch, content, 0, 33 * FETCH)
        await trio.testing.wait_all_tasks_blocked()
        assert len(faulty.calls_of(Verb.GET_RANGE)) == 32
        with trio.fail_after(1):
            assert await fetching.read(content, 36 * FETCH, 10) == body[36 * FETCH :][:10]
        gate.open()


async def test_writers_wait_while_they_are_held(tmp_path: Path) -> None:
    async with open_sources(MemoryStorage(), tmp_path) as sources, trio.open_nursery() as nursery:
        content = Content(sources)
        content.hold_writers()
        content.hold_writers()
        nursery.start_soon(content.wait_writable)
        await trio.testing.wait_all_tasks_blocked()
        assert nursery.child_tasks
        content.release_writers()
        await trio.testing.wait_all_tasks_blocked()
        assert not nursery.child_tasks


class NotingRanges(MemoryStorage):
    """Notes which ranges it is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.ranges: list[tuple[int, int | None]] = []

    async def get_range(
        self, key: str, start: int = 0, length: int | None = None, *, if_match: str | None = None
    ) -> RangeResult:
        self.ranges.append((start, length))
        return await super().get_range(key, start, length, if_match=if_match)


async def test_a_whole_object_is_fetched_with_its_checksum(small_parts: None, tmp_path: Path) -> None:
    """Not as a range, for which S3 has none."""
    store = NotingRanges()
    async with open_sources(store, tmp_path) as sources:
        for size in (1, FETCH, FETCH + 1):
            content = await stored_content(sources, f"k{size}", BODY[:size])
            assert await fetching.read(content, 0, size) == BODY[:size]
        assert sorted(store.ranges, key=str) == [(0, FETCH), (0, None), (0, None), (FETCH, 1)]


async def test_gets_end_at_multiples_of_their_length_wherever_a_range_begins(
    small_parts: None, tmp_path: Path
) -> None:
    """A store that divides objects there reads each piece once."""
    store = NotingRanges()
    async with open_sources(store, tmp_path) as sources:
        content = await stored_content(sources)
        await fetching.fetch(content, FETCH - KIB, 3 * FETCH + KIB)
        assert sorted(store.ranges) == [
            (FETCH - KIB, KIB),
            (FETCH, FETCH),
            (2 * FETCH, FETCH),
            (3 * FETCH, KIB),
        ]
