"""The stage stays within its bound: clean bytes give way, and writers wait for dirty ones to be published."""

from __future__ import annotations

import errno
import gc
import math
import os
from collections.abc import Awaitable, Callable, Iterator
from itertools import count, islice
from pathlib import Path
from random import Random
from typing import Final

import pytest
import trio
from trio.testing import MockClock

from backends.base import KIB, MIB, Capabilities, Data, RangeResult
from backends.errors import AccessDenied, Unavailable
from backends.intercepted import InterceptedStorage, Request, T, Verb
from backends.memory import MemoryStorage
from fusefs import fetching
from fusefs.attribute_changes import AttributeChanges
from fusefs.filesystem import FilesystemOptions
from fusefs.kept_content import KeptContent
from fusefs.stage import MEMORY_FILE_BYTES
from fusefs.stage_budget import Evictable, StageBudget
from tests.core.small_disk import disk_use, limit_disk, refuse_holes
from tests.core.small_parts import PART, SmallPartsStorage, tree_options
from tests.core.tree import Tree, TreeOptions, open_tree, stored
from tests.support.faulty import FaultyStorage


async def test_files_larger_than_the_stage_can_be_written_and_read(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """Eight files of 4 MiB go through a stage of 10 MiB, which never holds more than one write beyond it."""
    storage = MemoryStorage()
    async with open_tree(storage, tmp_path, TreeOptions(cache_size=10 * MIB)) as tree:
        contents = {f"file-{number}": os.urandom(4 * MIB) for number in range(8)}
        for path, data in contents.items():
            await tree.write_file(path, data)
            assert tree.sources.budget.total <= 11 * MIB
            assert disk_use(tmp_path / "stage") <= 11 * MIB
        for path, data in contents.items():
            assert await tree.read_file(path) == data
            assert disk_use(tmp_path / "stage") <= 11 * MIB
        await tree.publish_all()
        assert await stored(storage) == contents


async def test_one_open_file_larger_than_the_stage(tmp_path: Path, autojump_clock: MockClock) -> None:
    """A file that is never closed is published on the way, so that its bytes can give way to the next ones."""
    storage = FaultyStorage(MemoryStorage())
    async with open_tree(storage, tmp_path, TreeOptions(cache_size=16 * MIB)) as tree:
        data = os.urandom(40 * MIB)
        handle = await tree.create("large")
        with trio.fail_after(3600):
            await tree.write(handle, 0, data)
        assert tree.sources.budget.total <= 17 * MIB
        await tree.close(handle)
        await tree.publish_all()
        assert (await stored(storage))["large"] == data
    assert sum(call.verb is Verb.COMPLETE for call in storage.calls) <= 4


async def test_a_file_without_a_name_that_is_larger_than_the_stage(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """It can give way nowhere: what else is written goes on as beside any other file, within a quarter of the stage."""
    storage = FaultyStorage(MemoryStorage())
    async with open_tree(storage, tmp_path, TreeOptions(cache_size=8 * MIB)) as tree:
        scratch, other = await tree.create("scratch"), await tree.create("other")
        await tree.unlink("scratch")
        for start in range(0, 24 * MIB, 64 * KIB):
            await tree.write(scratch, start, bytes(64 * KIB))
            await tree.write(other, start % MIB, os.urandom(KIB))
            assert tree.sources.budget.total <= max(8 * MIB, start + 2 * MIB + 65 * KIB)
        assert len(storage.calls_of(Verb.PUT)) <= 24
        await tree.close(scratch)
        assert tree.sources.budget.limit == 8 * MIB
        data = os.urandom(16 * MIB)
        for start in range(0, len(data), MIB):
            await tree.write(other, start, data[start : start + MIB])
            assert tree.sources.budget.total <= 9 * MIB
        await tree.close(other)
        await tree.publish_all()
        assert await stored(storage) == {"other": data}


async def test_a_reader_of_a_file_larger_than_the_stage_fetches_it_once(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """However wide a window is allowed: no more is fetched ahead than there is room for."""
    storage = _CountingStorage()
    await storage.put("large", os.urandom(40 * MIB))
    options = TreeOptions(cache_size=16 * MIB, filesystem=FilesystemOptions(read_ahead_bytes=32 * MIB))
    async with open_tree(storage, tmp_path, options) as tree:
        handle = await tree.open("large", os.O_RDONLY)
        for start in range(0, 40 * MIB, 128 * KIB):
            await tree.filesystem.read(handle, start, 128 * KIB)
            await trio.testing.wait_all_tasks_blocked()
            assert tree.sources.budget.total <= 16 * MIB
        await tree.close(handle)
    assert storage.bytes_fetched == 40 * MIB


class _DistantStorage(InterceptedStorage):
    """Takes a round trip for each GET."""

    async def _carry_out(self, request: Request, send: Callable[[], Awaitable[T]]) -> T:
        if request.verb is Verb.GET_RANGE:
            await trio.sleep(0.02)
        return await send()


def jumping(reader: int) -> Iterator[int]:
    random = Random(reader)
    return (128 * KIB * random.randrange(40 * 8) for _ in count())


def going_forward(reader: int) -> Iterator[int]:
    return (128 * KIB * ((40 * reader + step) % (40 * 8)) for step in count())


async def read_on(tree: Tree, body: bytes, offsets: Iterator[int]) -> None:
    """Read 128 KiB at each offset of the file `large`, and compare."""
    handle = await tree.open("large", os.O_RDONLY)
    try:
        for offset in offsets:
            data = await tree.filesystem.read(handle, offset, 128 * KIB)
            assert data == body[offset : offset + 128 * KIB]
            assert tree.sources.budget.total <= tree.sources.budget.limit
    finally:
        await tree.filesystem.release(handle)


@pytest.mark.parametrize("way", [jumping, going_forward])
async def test_many_readers_of_a_file_larger_than_the_stage(
    way: Callable[[int], Iterator[int]], tmp_path: Path, autojump_clock: MockClock
) -> None:
    """One of them is always at work; what none of them reads just now gives way all the same."""
    storage = _DistantStorage(MemoryStorage())
    body = os.urandom(40 * MIB)
    await storage.put("large", body)
    async with (
        open_tree(storage, tmp_path, TreeOptions(cache_size=8 * MIB)) as tree,
        trio.open_nursery() as nursery,
    ):
        for reader in range(8):
            nursery.start_soon(read_on, tree, body, islice(way(reader), 200))


async def test_a_writer_beside_many_readers_on_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    """What is read is clean, and gives way to what is written."""
    storage = _DistantStorage(MemoryStorage())
    body = os.urandom(40 * MIB)
    await storage.put("large", body)
    limit_disk(monkeypatch, tmp_path / "stage", 8 * MIB)
    async with open_tree(storage, tmp_path) as tree, trio.open_nursery() as nursery:
        for reader in range(8):
            nursery.start_soon(read_on, tree, body, jumping(reader))
        await trio.sleep(5)
        await tree.write_file("new", body[: 20 * MIB])
        await tree.publish_all()
        nursery.cancel_scope.cancel()
    assert (await stored(storage))["new"] == body[: 20 * MIB]


@pytest.mark.usefixtures("small_parts")
async def test_an_upload_of_a_file_larger_than_the_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    """Where nothing of it can be copied, all of it goes up, and what is clean goes past the stage."""
    monkeypatch.setattr(SmallPartsStorage, "capabilities", Capabilities(copy_part=False))
    storage = SmallPartsStorage()
    body = bytearray(os.urandom(100 * PART))
    await storage.put("large", bytes(body))
    async with open_tree(storage, tmp_path, tree_options(cache_size=300 * KIB)) as tree:
        handle = await tree.open("large")
        for start in range(0, len(body), 10 * PART):
            await tree.write(handle, start, b"changed")
            body[start : start + 7] = b"changed"
        staged = watched(monkeypatch, tree.sources.budget)
        await tree.close(handle)
        await tree.publish_all()
        assert max(staged) <= 300 * KIB + STAGED_AT_ONCE
        assert await stored(storage) == {"large": bytes(body)}


STAGED_AT_ONCE: Final = 64 * KIB
"""What an upload asks for at a time with `small_parts`."""


def watched(monkeypatch: pytest.MonkeyPatch, budget: StageBudget) -> list[int]:
    """Return a list of how much is staged, which goes on."""
    totals = [budget.total]
    note = budget.note

    def note_and_look(content: Evictable, staged: int, clean: int, dirty: int = 0) -> None:
        note(content, staged, clean, dirty)
        totals.append(budget.total)

    monkeypatch.setattr(budget, "note", note_and_look)
    return totals


async def test_a_reader_of_a_file_that_is_going_up(tmp_path: Path, autojump_clock: MockClock) -> None:
    """The store copies what has not changed, which may take long: nothing of that is needed here."""
    storage = FaultyStorage(MemoryStorage())
    body = os.urandom(40 * MIB)
    await storage.put("large", body)
    async with (
        open_tree(storage, tmp_path, TreeOptions(cache_size=8 * MIB)) as tree,
        trio.open_nursery() as nursery,
    ):
        completing = storage.hold(Verb.COMPLETE)
        handle = await tree.open("large")
        await tree.write(handle, 0, body[:10])
        nursery.start_soon(tree.close, handle)
        await completing.reached.wait()
        await read_on(tree, body, islice(going_forward(0), 40 * 8))
        completing.open()
        await tree.publish_all()


class _CountingStorage(MemoryStorage):
    bytes_fetched = 0

    async def get_range(
        self, key: str, start: int = 0, length: int | None = None, *, if_match: str | None = None
    ) -> RangeResult:
        result = await super().get_range(key, start, length, if_match=if_match)
        self.bytes_fetched += len(result.data)
        return result


async def test_one_large_file_takes_the_place_of_many_small_ones(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    storage = MemoryStorage()
    for number in range(1500):
        await storage.put(f"small-{number}", bytes(4 * KIB))
    async with open_tree(storage, tmp_path, TreeOptions(cache_size=10 * MIB)) as tree:
        for number in range(1500):
            await tree.read_file(f"small-{number}")
        handle = await tree.create("large")
        for start in range(0, 20 * MIB, 4 * MIB):
            await tree.filesystem.write(handle, start, bytes([start // MIB]) * (4 * MIB))
            assert tree.sources.budget.total <= 14 * MIB
        await tree.close(handle)
        assert await tree.read_file("small-0") == bytes(4 * KIB)


def test_many_kept_files_are_removed_where_the_stage_has_become_smaller(tmp_path: Path) -> None:
    """Those that go are the oldest, all of them for one large one."""
    for number in range(1500):
        (tmp_path / str(number)).write_bytes(b"x")
        os.utime(tmp_path / str(number), ns=(number, number))
    (tmp_path / "large").write_bytes(bytes(6 * MIB))
    budget = StageBudget(6 * MIB + 64 * KIB)
    KeptContent(tmp_path, budget, store="memory://")
    assert 6 * MIB < budget.total <= 6 * MIB + 64 * KIB
    assert disk_use(tmp_path) == budget.total


@pytest.mark.parametrize("change", ["write", "truncate"])
async def test_what_is_staged_is_published_whatever_else_fails_then(
    change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    """A failure behind the last byte that is written, where others give way: it must not be forgotten."""
    storage = MemoryStorage()
    await storage.put("file", b"old")
    async with open_tree(storage, tmp_path) as tree:
        await tree.read_file("file")
        handle = await tree.open("file")
        file = await tree.find_file("file")
        with monkeypatch.context() as patch:
            patch.setattr(StageBudget, "note", _fail)
            if change == "write":
                with pytest.raises(RuntimeError):
                    await tree.filesystem.write(handle, 0, b"new")
            else:
                with pytest.raises(RuntimeError):
                    await tree.filesystem.setattr(file.number, AttributeChanges(size=2))
        await tree.publish_all()
        await tree.close(handle)
    assert await stored(storage) == {"file": b"new" if change == "write" else b"ol"}


def _fail(*_: object) -> None:
    raise RuntimeError


async def test_holes_take_no_place(tmp_path: Path, autojump_clock: MockClock) -> None:
    """A file that was made longer than the stage keeps no writer waiting, and nothing has to go for it."""
    storage = FaultyStorage(MemoryStorage())
    await storage.put("read", b"x" * (4 * MIB))
    async with open_tree(storage, tmp_path, TreeOptions(cache_size=16 * MIB)) as tree:
        await tree.read_file("read")
        sparse, other = await tree.create("sparse"), await tree.create("other")
        before = len(storage.calls)
        file = await tree.find_file("sparse")
        await tree.filesystem.setattr(file.number, AttributeChanges(size=40 * MIB))
        await tree.filesystem.write(sparse, 50 * MIB, b"end")
        await tree.filesystem.write(other, 0, b"8 bytes.")
        assert len(storage.calls) == before
        assert tree.sources.budget.total < 5 * MIB
        await tree.filesystem.write(sparse, 20 * MIB, b"x" * MIB)
        assert 5 * MIB < tree.sources.budget.total < 6 * MIB
        await tree.close(sparse)
        await tree.close(other)
        await tree.publish_all()
        assert tree.sources.budget.total < 6 * MIB
    assert (await stored(storage))["sparse"] == b"".join(
        [bytes(20 * MIB), b"x" * MIB, bytes(29 * MIB), b"end"]
    )


async def test_the_number_of_files_that_have_anything_there_is_bounded(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """Those go that were not used for longest, but for what somebody works on and what the bucket lacks."""
    storage = FaultyStorage(MemoryStorage())
    for number in range(12):
        await storage.put(f"file-{number:02}", b"bytes")
    async with open_tree(storage, tmp_path, TreeOptions(max_clean=4)) as tree:
        files = [await tree.find_file(f"file-{number:02}") for number in range(12)]
        handle = await tree.create("dirty")
        await tree.write(handle, 0, b"dirty")
        await fetching.read(files[0].content, 0, 5)
        with files[0].content.pinned():
            for number in (*range(1, 12), 9):
                assert await fetching.read(files[number].content, 0, 5) == b"bytes"
                assert len(tree.sources.budget.by_last_use) <= 5, "the one in use may be one too many"
            assert files[0].content.present.total
        await fetching.read(files[1].content, 0, 5)
        staged = [number for number, file in enumerate(files) if file.content.present.total]
        assert staged == [0, 1, 9, 11]
        assert await tree.filesystem.read(handle, 0, 5) == b"dirty"
        await tree.close(handle)


async def test_a_file_of_holes_counts_as_well(tmp_path: Path, autojump_clock: MockClock) -> None:
    """It takes nothing of the disk, and has clean bytes all the same."""
    storage = MemoryStorage()
    async with open_tree(storage, tmp_path, TreeOptions(max_clean=4)) as tree:
        for number in range(12):
            handle = await tree.create(f"file-{number:02}")
            file = await tree.find_file(f"file-{number:02}")
            await tree.filesystem.setattr(file.number, AttributeChanges(size=100))
            await tree.close(handle)
        await tree.publish_all()
        assert len(tree.sources.budget.by_last_use) <= 5
        assert await stored(storage) == {f"file-{number:02}": bytes(100) for number in range(12)}


def lose_stage(directory: Path) -> None:
    """Remove the stage files, as a program may that clears caches; those that are open are there still."""
    for path in (directory / "stage").iterdir():
        path.unlink()


async def test_clean_bytes_that_somebody_has_removed_are_fetched_again(
    tmp_path: Path, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    storage = MemoryStorage()
    contents = {name: os.urandom(MEMORY_FILE_BYTES + 1) for name in "abc"}
    for name, content in contents.items():
        await storage.put(name, content)
    async with open_tree(storage, tmp_path, TreeOptions(max_open_stage_files=1)) as tree:
        await tree.write_file("c", contents["c"][::-1])
        await tree.publish_all()
        for name in "abca":
            await tree.read_file(name)
        lose_stage(tmp_path)
        for name in "bab":
            assert await tree.read_file(name) == contents[name]
        assert "the local disk has damaged cached bytes of 'b'; they are fetched again" in caplog.text
        assert "is not kept" not in caplog.text
    assert "what is cached of 'c' is not kept" in caplog.text


async def test_what_cannot_be_given_back_is_not_the_failure_of_who_needs_room(
    tmp_path: Path, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Files whose bytes somebody has removed from the local disk: one is clean, one is dirty in part."""
    storage = MemoryStorage()
    await storage.put("dirty", original := os.urandom(6 * MIB))
    for name in ("clean", "other"):
        await storage.put(name, os.urandom(6 * MIB))
    options = TreeOptions(cache_size=20 * MIB, max_open_stage_files=1)
    async with open_tree(storage, tmp_path, options) as tree:
        handle = await tree.open("dirty")
        await tree.write(handle, 0, b"written")
        for name in ("dirty", "clean", "other"):
            await tree.read_file(name)
        lose_stage(tmp_path)
        assert tree.sources.budget.make_room(goal_bytes=tree.sources.budget.total - 4 * MIB)
        assert caplog.text.count("the local disk does not give back cached bytes") == 2
        assert (await tree.find_file("clean")).content.present.total == 0
        assert (await tree.find_file("dirty")).content.dirty.total == len(b"written")
        assert original == (await stored(storage))["dirty"]


async def test_eviction_keeps_what_is_dirty(tmp_path: Path, autojump_clock: MockClock) -> None:
    """Clean bytes of a changed file give way to others; the changed ones are still there and read as written."""
    storage = MemoryStorage()
    original = bytes(range(256)) * (6 * MIB // 256)
    await storage.put("changed", original)
    async with open_tree(storage, tmp_path, TreeOptions(cache_size=8 * MIB)) as tree:
        assert await tree.read_file("changed") == original
        handle = await tree.open("changed")
        await tree.write(handle, 3 * MIB, b"changed")
        await tree.write_file("other", bytes(7 * MIB))
        file = await tree.find_file("changed")
        assert file.content.present.total < 1 * MIB
        assert (
            await tree.filesystem.read(handle, 3 * MIB - 2, 11)
            == original[3 * MIB - 2 : 3 * MIB] + b"changed" + (original[3 * MIB + 7 : 3 * MIB + 9])
        )
        await tree.close(handle)


@pytest.mark.parametrize("refused", ["file", "leftover"])
async def test_a_writer_does_not_get_the_failure_of_another_file(
    refused: str, tmp_path: Path, autojump_clock: MockClock
) -> None:
    """The store refuses one file, or a deletion; what others have written goes up nevertheless and makes room."""
    storage = FaultyStorage(MemoryStorage())
    await storage.put("refused", b"")
    async with open_tree(storage, tmp_path, TreeOptions(cache_size=10 * MIB - 1)) as tree:
        storage.fail(AccessDenied, key="refused", verb=Verb.PUT, times=math.inf)
        storage.fail(AccessDenied, key="refused", verb=Verb.DELETE, times=math.inf)
        if refused == "file":
            await tree.write_file("refused", b"bytes")
        else:
            await tree.unlink("refused")
        contents = {"open": os.urandom(10 * MIB), "healthy": os.urandom(2 * MIB)}
        for path, data in contents.items():
            await tree.write(await tree.create(path), 0, data)
        assert tree.sources.budget.total <= 11 * MIB
        storage.heal()
        await tree.publish_all()
        assert await stored(storage) == contents | ({"refused": b"bytes"} if refused == "file" else {})


async def test_a_stage_full_of_what_the_store_refuses_has_no_room(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """That is what the writers of other files are told, and why; the refusal itself is for the refused file."""
    storage = FaultyStorage(MemoryStorage())
    async with open_tree(storage, tmp_path, TreeOptions(cache_size=10 * MIB)) as tree:
        storage.fail(AccessDenied, key="refused", times=math.inf)
        refused = await tree.create("refused")
        await tree.write(refused, 0, bytes(11 * MIB))
        healthy = await tree.create("healthy")
        with pytest.raises(OSError, match="cache") as full:
            await tree.write(healthy, 0, b"bytes")
        assert full.value.errno == errno.ENOSPC
        assert isinstance(full.value.__cause__, AccessDenied)
        with pytest.raises(AccessDenied):
            await tree.write(refused, 0, b"bytes")
        storage.heal()
        await tree.write(healthy, 0, b"bytes")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
async def test_a_disk_that_others_have_filled_first_gets_clean_bytes_back(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    """ENOSPC of the local disk publishes and evicts, and tries again, before a writer hears of it; so does a quota."""
    storage = MemoryStorage()
    pwrite, refused = os.pwrite, []

    def write_if_empty(descriptor: int, data: Data, offset: int) -> int:
        if disk_use(tmp_path / "stage") > 2 * MIB:
            refused.append(offset)
            raise OSError(number, os.strerror(number))
        return pwrite(descriptor, data, offset)

    async with open_tree(storage, tmp_path) as tree:
        monkeypatch.setattr(os, "pwrite", write_if_empty)
        contents = {f"file-{number}": os.urandom(1 * MIB) for number in range(6)}
        for path, data in contents.items():
            await tree.write_file(path, data)
        assert refused
        await tree.publish_all()
        assert await stored(storage) == contents


async def test_clean_bytes_stay_beside_dirty_ones_where_no_hole_can_be_punched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    """They give way with the whole file, when it was published; no reader or writer of another file hears of it."""
    refuse_holes(monkeypatch)
    storage = MemoryStorage()
    contents = {f"file-{number}": os.urandom(4 * MIB) for number in range(4)}
    for path, data in contents.items():
        await storage.put(path, data)
    async with open_tree(storage, tmp_path, TreeOptions(cache_size=6 * MIB)) as tree:
        handles = []
        for path, data in contents.items():
            handles.append(await tree.open(path))
            assert await tree.read_file(path) == data
            await tree.write(handles[-1], 1 * MIB, b"changed")
            contents[path] = data[: 1 * MIB] + b"changed" + data[1 * MIB + 7 :]
        for path, data in contents.items():
            assert await tree.read_file(path) == data
        for handle in handles:
            await tree.close(handle)
        await tree.publish_all()
        assert tree.sources.budget.total <= 6 * MIB
        assert disk_use(tmp_path / "stage") <= 6 * MIB
    assert await stored(storage) == contents


async def test_a_full_disk_does_not_keep_files_from_being_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    """A file larger than the local disk is read whole, by several readers at once, and what is dirty stays."""
    storage = MemoryStorage()
    body = os.urandom(12 * MIB)
    await storage.put("large", body)
    limit_disk(monkeypatch, tmp_path / "stage", 3 * MIB)
    async with open_tree(storage, tmp_path) as tree:
        written = await tree.create("dirty")
        await tree.write(written, 0, b"dirty" * 1000)
        read: list[bytes] = []

        async def reader() -> None:
            handle = await tree.open("large", os.O_RDONLY)
            pieces = [await tree.filesystem.read(handle, start, MIB) for start in range(0, 12 * MIB, MIB)]
            read.append(b"".join(pieces))
            await tree.close(handle)

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(reader)
        assert read == [body] * 3
        assert await tree.filesystem.read(written, 0, 5000) == b"dirty" * 1000
        await tree.close(written)
        await tree.publish_all()
    assert await stored(storage) == {"large": body, "dirty": b"dirty" * 1000}


def refusals() -> list[OSError]:
    """Return the errors of a full disk that are in memory."""
    return [each for each in gc.get_objects() if isinstance(each, OSError) and each.errno == errno.ENOSPC]


async def test_what_a_full_disk_refuses_is_not_kept_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    """Of reads, uploads and writes: no error that was made good is kept, with all that its frames have."""
    storage = MemoryStorage()
    await storage.put("large", os.urandom(8 * MIB))
    limit_disk(monkeypatch, tmp_path / "stage", 1 * MIB)
    async with open_tree(storage, tmp_path) as tree:
        reader = await tree.open("large", os.O_RDONLY)
        writer = await tree.create("written")
        gc.collect()
        of_other_tests = refusals()
        gc.disable()
        try:
            for start in range(0, 8 * MIB, MIB):
                await tree.filesystem.read(reader, start, MIB)
                await tree.filesystem.write(writer, start, os.urandom(MIB))
            await tree.publish_all()
            refused = [each for each in refusals() if not any(each is other for other in of_other_tests)]
        finally:
            gc.enable()
        assert refused == []
        await tree.close(reader)
        await tree.close(writer)


async def test_what_is_read_on_a_full_disk_takes_the_place_of_what_was_read_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    """It is fetched once, and there when it is read again."""
    storage = FaultyStorage(MemoryStorage())
    bodies = {f"file-{number}": os.urandom(2 * MIB) for number in range(3)}
    for path, data in bodies.items():
        await storage.put(path, data)
    limit_disk(monkeypatch, tmp_path / "stage", 3 * MIB)
    async with open_tree(storage, tmp_path) as tree:
        for path, data in bodies.items():
            assert [await tree.read_file(path) for _ in range(2)] == [data] * 2
    assert [call.key for call in storage.calls_of(Verb.GET_RANGE)] == list(bodies)


@pytest.mark.parametrize("size", [4 * MIB, 18 * MIB], ids=["stream", "patch"])
async def test_what_is_dirty_can_leave_a_full_disk(
    size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    """A change goes up with clean bytes beside it, for which the disk has no room; every file there is dirty."""
    storage = MemoryStorage()
    bodies = {f"file-{number}": os.urandom(size) for number in range(3)}
    for path, data in bodies.items():
        await storage.put(path, data)
    limit_disk(monkeypatch, tmp_path / "stage", 1 * MIB)
    async with open_tree(storage, tmp_path) as tree:
        for path, data in bodies.items():
            handle = await tree.open(path)
            await tree.write(handle, 2 * MIB, b"x" * (300 * KIB))
            bodies[path] = data[: 2 * MIB] + b"x" * (300 * KIB) + data[2 * MIB + 300 * KIB :]
            await tree.close(handle)
        await tree.publish_all()
    assert await stored(storage) == bodies


async def test_clean_bytes_give_way_to_a_writer_without_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    """On a full disk, while the store does not answer, what is clean goes and what is dirty stays."""
    storage = FaultyStorage(MemoryStorage())
    await storage.put("read", bytes(range(256)) * (2 * MIB // 256))
    limit_disk(monkeypatch, tmp_path / "stage", 3 * MIB)
    async with open_tree(storage, tmp_path) as tree:
        await tree.read_file("read")
        handle = await tree.create("written")
        storage.fail(Unavailable, times=math.inf)
        before = len(storage.calls)
        await tree.write(handle, 0, b"x" * (2 * MIB))
        assert len(storage.calls) == before
        assert await tree.filesystem.read(handle, 0, 3 * MIB) == b"x" * (2 * MIB)
        storage.heal()
        await tree.close(handle)
        await tree.publish_all()
    assert (await stored(storage))["written"] == b"x" * (2 * MIB)


async def test_what_a_full_disk_took_of_a_write_is_part_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    """Where nothing can give way a write fails in its middle; what it left in the stage is never taken for zeros."""
    storage = FaultyStorage(MemoryStorage())
    limit_disk(monkeypatch, tmp_path / "stage", 1 * MIB)
    async with open_tree(storage, tmp_path) as tree:
        handle = await tree.create("file")
        storage.fail(Unavailable, times=math.inf)
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)) as full:
            await tree.filesystem.write(handle, 0, b"x" * (2 * MIB))
        assert isinstance(full.value.__cause__, Unavailable)
        file = await tree.find_file("file")
        assert file.size == 1 * MIB
        assert await tree.filesystem.read(handle, 0, 3 * MIB) == b"x" * MIB
        storage.heal()
        await tree.publish_all()
        assert await stored(storage) == {"file": b"x" * MIB}
        await tree.close(handle)
