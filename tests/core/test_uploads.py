"""How files go up: requests, parts and rounds, and that an object is always one whole version of its file."""

from __future__ import annotations

import gc
import logging
import math
import os
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Final

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from backends.base import KIB, MIB, Capabilities, Limits, ObjectStorage
from backends.errors import AccessDenied, StorageError, Unavailable, UploadNotFound
from backends.intercepted import InterceptedStorage, Request, T, Verb
from backends.retrying import RetryingStorage, RetryPolicy
from fusefs import batch_contents, fetching, staged_bytes
from fusefs.attribute_changes import AttributeChanges
from fusefs.content import Content
from fusefs.errors import FilesystemError, StaleFile, UploadFailed
from fusefs.journal_format import JOURNAL_PREFIX
from fusefs.object_writer import CONFLICTS_PREFIX
from fusefs.publish_queue import RETRY_SECONDS
from fusefs.publisher import PublishOptions
from fusefs.stage import StageFile
from fusefs.uploads import RESTARTS
from tests.core.small_disk import limit_disk
from tests.core.small_parts import LIMITS, PART, SmallPartsStorage, tree_options
from tests.core.tree import Tree, open_tree, stored, stored_metadata
from tests.support.faulty import FaultyStorage

BASE: Final = Random(0).randbytes(30 * PART)
NEW: Final = Random(1).randbytes(KIB)

pytestmark = pytest.mark.usefixtures("small_parts")


def new_store() -> FaultyStorage:
    return FaultyStorage(SmallPartsStorage())


def requests(faulty: FaultyStorage, since: int = 0) -> list[Verb]:
    """Return what was asked of the store that changes it."""
    reading = (Verb.HEAD, Verb.LIST_PREFIX, Verb.GET_RANGE)
    return [request.verb for request in faulty.calls[since:] if request.verb not in reading]


async def with_base(tree: Tree, key: str = "file") -> int:
    """Put a large object into the bucket and return how many calls were made so far."""
    await tree.storage.put(key, BASE)
    await tree.find(key)
    assert isinstance(tree.storage, FaultyStorage)
    return len(tree.storage.calls)


async def test_a_small_file_is_one_put(tmp_path: Path, autojump_clock: MockClock) -> None:
    faulty = new_store()
    async with open_tree(faulty, tmp_path, tree_options()) as tree:
        await tree.write_file("file", bytes(PART - 1))
        await tree.publish_all()
        assert requests(faulty) == [Verb.PUT]


async def test_a_file_that_has_its_size_first_goes_up_once(tmp_path: Path, autojump_clock: MockClock) -> None:
    """And while it is written: parts wait for what is written, and do not go ahead of it with zeros."""
    faulty = new_store()
    async with open_tree(faulty, tmp_path, tree_options()) as tree:
        handle = await tree.create("file")
        await tree.filesystem.setattr((await tree.find("file")).number, AttributeChanges(size=len(BASE)))
        for start in range(0, len(BASE), KIB):
            await tree.write(handle, start, BASE[start : start + KIB])
            await wait_all_tasks_blocked()
        assert requests(faulty) == [Verb.CREATE_MULTIPART] + [Verb.UPLOAD_PART] * 29
        await tree.close(handle)
        await tree.publish_all()
        assert sum(request.bytes_sent for request in faulty.calls) == len(BASE)
        assert await stored(faulty) == {"file": BASE}


async def test_a_file_that_has_but_a_size_goes_up_when_it_is_closed(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """As one that was written at its beginning only."""
    faulty, size = new_store(), 5 * PART + 100
    async with open_tree(faulty, tmp_path, tree_options()) as tree:
        for name, written in (("empty", b""), ("begun", BASE[: 2 * PART])):
            handle = await tree.create(name)
            await tree.filesystem.setattr((await tree.find(name)).number, AttributeChanges(size=size))
            await tree.write(handle, 0, written)
            await wait_all_tasks_blocked()
            assert len(faulty.calls_of(Verb.UPLOAD_PART)) == (1 if written else 0)
            await tree.close(handle)
            await tree.publish_all()
            assert (await stored(faulty))[name] == written.ljust(size, b"\0")
            faulty.calls.clear()


async def test_parts_go_up_before_the_file_is_closed(tmp_path: Path, autojump_clock: MockClock) -> None:
    """All but the end of the file, from which the writer may not have moved on."""
    faulty = new_store()
    async with open_tree(faulty, tmp_path, tree_options()) as tree:
        handle = await tree.create("file")
        for start in range(0, 5 * PART + 100, KIB):
            await tree.write(handle, start, BASE[start : min(start + KIB, 5 * PART + 100)])
        await wait_all_tasks_blocked()
        assert requests(faulty) == [Verb.CREATE_MULTIPART] + [Verb.UPLOAD_PART] * 4
        await tree.close(handle)
        await tree.publish_all()
        parts = [request for request in faulty.calls if request.verb is Verb.UPLOAD_PART]
        assert [part.bytes_sent for part in parts] == [PART] * 5 + [100]
        assert await stored(faulty) == {"file": BASE[: 5 * PART + 100]}
        inode = await tree.find("file")
        assert (await stored_metadata(faulty))["file"]["mtime"].endswith(
            str(inode.attributes.mtime_ns % 10**9)
        )


async def test_a_stream_is_not_ended_for_the_interval(tmp_path: Path, autojump_clock: MockClock) -> None:
    """A file that takes longer to be written than `publish_interval` goes up once, unless its writer pauses so long."""
    faulty = new_store()
    options = tree_options(publish=PublishOptions(interval_seconds=5.0))
    async with open_tree(faulty, tmp_path, options) as tree:
        handle = await tree.create("new")
        for start in range(0, len(BASE), PART):
            await tree.write(handle, start, BASE[start : start + PART])
            await trio.sleep(2)
        assert await stored(faulty) == {}
        await trio.sleep(5)
        assert await stored(faulty) == {"new": BASE}
        assert (
            sum(call.bytes_sent for call in faulty.calls) <= len(BASE) + PART
        )  # the last one was full later
        assert Verb.COPY_PART not in requests(faulty)
        await tree.close(handle)


async def test_a_part_that_is_written_again_is_sent_again_alone(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    faulty = new_store()
    async with open_tree(faulty, tmp_path, tree_options()) as tree:
        handle = await tree.create("file")
        await tree.write(handle, 0, BASE[: 5 * PART])
        await wait_all_tasks_blocked()
        before = len(faulty.calls)
        await tree.write(handle, PART + 10, NEW)
        await tree.filesystem.fsync(handle)
        sent = [r.bytes_sent for r in faulty.calls[before:] if r.verb is Verb.UPLOAD_PART]
        assert sent == [PART, PART]  # the last one, which had been held back, and the second one again
        changed = bytearray(BASE[: 5 * PART])
        changed[PART + 10 : PART + 10 + KIB] = NEW
        assert await stored(faulty) == {"file": bytes(changed)}
        await tree.close(handle)


async def test_an_append_sends_the_appended_bytes_only(tmp_path: Path, autojump_clock: MockClock) -> None:
    faulty = new_store()
    async with open_tree(faulty, tmp_path, tree_options()) as tree:
        before = await with_base(tree)
        handle = await tree.open("file")
        await tree.write(handle, len(BASE), NEW)
        await tree.filesystem.fsync(handle)
        copy_and_part = sorted([Verb.CREATE_MULTIPART, Verb.COPY_PART, Verb.UPLOAD_PART, Verb.COMPLETE])
        assert sorted(requests(faulty, before)) == copy_and_part
        assert sum(r.bytes_sent for r in faulty.calls[before:]) == KIB
        assert not [r for r in faulty.calls[before:] if r.verb is Verb.GET_RANGE]
        assert await stored(faulty) == {"file": BASE + NEW}
        await tree.close(handle)


async def test_a_change_in_the_middle_sends_no_more_than_a_minimal_part(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    faulty = new_store()
    async with open_tree(faulty, tmp_path, tree_options()) as tree:
        before = await with_base(tree)
        handle = await tree.open("file")
        await tree.write(handle, 15 * PART, NEW)
        await tree.filesystem.fsync(handle)
        assert sum(r.bytes_sent for r in faulty.calls[before:]) == LIMITS.min_part_size
        assert await stored(faulty) == {"file": BASE[: 15 * PART] + NEW + BASE[15 * PART + KIB :]}
        await tree.close(handle)


@pytest.mark.parametrize("start", [0, PART + 5, 3 * PART - 100, 6 * PART])
@pytest.mark.parametrize("based", [False, True], ids=["stream", "patch"])
@pytest.mark.parametrize(
    "verb", [Verb.CREATE_MULTIPART, Verb.UPLOAD_PART, Verb.COMPLETE], ids=["begin", "part", "complete"]
)
@pytest.mark.parametrize("change", ["write", "cut", "cut and grow", "grow"])
async def test_a_file_that_changes_while_it_goes_up(
    start: int, based: bool, verb: Verb, change: str, tmp_path: Path, autojump_clock: MockClock
) -> None:
    """The object is the file as it was at some moment, and after the next publication the file as it is."""
    faulty = new_store()
    async with open_tree(faulty, tmp_path, tree_options()) as tree, trio.open_nursery() as nursery:
        if based:
            await with_base(tree)
        handle = await (tree.open("file") if based else tree.create("file"))
        mirror = _Mirror(tree, handle, (await tree.find("file")).number, BASE if based else b"")
        await mirror.write(2 * PART, bytes(4 * PART))
        gate = faulty.hold(verb)
        published = trio.Event()

        async def fsync() -> None:
            await tree.filesystem.fsync(handle)
            published.set()

        nursery.start_soon(fsync)
        await gate.reached.wait()
        del mirror.versions[:-1]
        if change.startswith("cut"):
            await mirror.truncate(start)
        if change == "cut and grow":
            await mirror.truncate(7 * PART)
        if change in ("write", "grow"):
            await mirror.write(start if change == "write" else len(mirror.versions[-1]) + start, NEW)
        gate.open()
        with trio.fail_after(60):
            await published.wait()
        assert (await stored(faulty))["file"] in mirror.versions
        await tree.filesystem.fsync(handle)
        assert (await stored(faulty))["file"] == mirror.versions[-1]
        assert await tree.filesystem.read(handle, 0, 100 * PART) == mirror.versions[-1]
        await tree.close(handle)
    assert not await faulty.list_multipart_uploads()


class _Mirror:
    """An open file, and what it has been after each change."""

    def __init__(self, tree: Tree, handle: int, number: int, content: bytes) -> None:
        self._tree = tree
        self._handle = handle
        self._number = number
        self.versions = [content]

    async def write(self, offset: int, data: bytes) -> None:
        content = self.versions[-1]
        await self._tree.write(self._handle, offset, data)
        self.versions.append(content[:offset].ljust(offset, b"\0") + data + content[offset + len(data) :])

    async def truncate(self, size: int) -> None:
        await self._tree.filesystem.setattr(self._number, AttributeChanges(size=size))
        self.versions.append(self.versions[-1][:size].ljust(size, b"\0"))


@pytest.mark.parametrize("based", [False, True], ids=["stream", "patch"])
@pytest.mark.parametrize("cutting", [False, True], ids=["writing", "cutting"])
async def test_a_writer_that_never_rests_is_held_until_the_upload_has_ended(
    based: bool, cutting: bool, tmp_path: Path, autojump_clock: MockClock
) -> None:
    """It writes, or cuts and writes, whenever a part goes up; after some free rounds it waits for the last one."""
    store = _SlowStore(SmallPartsStorage())
    async with open_tree(store, tmp_path, tree_options()) as tree, trio.open_nursery() as nursery:
        if based:
            await store.put("file", BASE)
            handle = await tree.open("file")
        else:
            handle = await tree.create("file")
        await tree.write(handle, 0, bytes(4 * PART))
        number = (await tree.find("file")).number

        async def hammer() -> None:
            for stamp in range(10_000):
                if cutting:
                    await tree.filesystem.setattr(number, AttributeChanges(size=PART // 2))
                await tree.write(handle, 0, stamp.to_bytes(4, "big") * PART)
                await trio.sleep(0.1)

        with trio.fail_after(300):
            nursery.start_soon(hammer)
            await trio.sleep(1)
            await tree.filesystem.fsync(handle)
        body = (await store.get_range("file")).data
        assert body[: 4 * PART] == body[:4] * PART  # of one round of the hammer, and not of two
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("based", [False, True], ids=["stream", "patch"])
async def test_a_file_that_gets_shorter_all_the_time_is_held_as_well(
    based: bool, tmp_path: Path, autojump_clock: MockClock
) -> None:
    """Whatever has gone up of it is too long when it is to be completed; after some attempts the writer waits."""
    store = _SlowStore(SmallPartsStorage())
    parts = 100
    async with open_tree(store, tmp_path, tree_options(parts_in_flight=parts)) as tree:
        if based:
            await store.put("file", bytes(parts * PART))
            handle = await tree.open("file")
            for number in range(0, parts, 2):
                await tree.write(handle, number * PART, NEW)
        else:
            handle = await tree.create("file")
            await tree.write(handle, 0, NEW * (parts * PART // len(NEW)))
        file = await tree.find_file("file")

        async def shorten() -> None:
            while file.size:
                await tree.filesystem.setattr(file.number, AttributeChanges(size=max(0, file.size - PART)))
                await trio.sleep(0.3)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(shorten)
            await tree.filesystem.fsync(handle)
            nursery.cancel_scope.cancel()
        assert (await store.head("file")).size > parts // 4 * PART


class _SlowStore(InterceptedStorage):
    """Each request takes a second; `most_bytes` of files, and parts of them, were on their way at once."""

    def __init__(self, inner: ObjectStorage) -> None:
        super().__init__(inner)
        self._bytes = 0
        self.most_bytes = 0
        self.longest = 0

    async def _carry_out(self, request: Request, send: Callable[[], Awaitable[T]]) -> T:
        size = 0 if request.key.startswith(JOURNAL_PREFIX) else request.bytes_sent
        self._bytes += size
        self.most_bytes = max(self.most_bytes, self._bytes)
        self.longest = max(self.longest, size)
        try:
            await trio.sleep(1)
            return await send()
        finally:
            self._bytes -= size


async def test_many_large_files_hold_a_bounded_number_of_parts(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """Twenty files are written at once; four parts go up at a time, and no more than four streams have begun."""
    store = _SlowStore(SmallPartsStorage())
    async with open_tree(store, tmp_path, tree_options(parts_in_flight=4)) as tree:
        handles = [await tree.create(f"file-{number}") for number in range(20)]
        for handle in handles:
            await tree.write(handle, 0, bytes(4 * PART))
        await trio.sleep(20)
        assert len(await store.list_multipart_uploads()) == 4
        for handle in handles:
            await tree.close(handle)
        await tree.publish_all()
        assert 3 * PART < store.most_bytes <= 4 * PART
        assert len(await stored(store)) == 20


class _GrowingPartsStorage(SmallPartsStorage):
    """Parts are three times as long after each ten."""

    @property
    def limits(self) -> Limits:
        return replace(LIMITS, max_part_number=100)


@pytest.mark.parametrize("size", [25 * PART, 200 * PART], ids=["a few at a time", "longer than the bound"])
async def test_parts_that_grow_are_fewer_at_a_time(
    size: int, tmp_path: Path, autojump_clock: MockClock
) -> None:
    """As many bytes go up at once as at the beginning of the file; a part that is more than that goes alone."""
    store = _SlowStore(_GrowingPartsStorage())
    data = Random(6).randbytes(size)
    async with open_tree(store, tmp_path, tree_options(parts_in_flight=4)) as tree:
        await tree.write_file("file", data)
        await tree.publish_all()
        assert store.longest > 2 * PART
        assert store.most_bytes <= max(4 * PART, store.longest)
        assert await stored(store) == {"file": data}


@pytest.mark.parametrize("size", [200, PART - 1, 3 * PART], ids=["small", "one put", "parts"])
@pytest.mark.parametrize("based", [False, True], ids=["new", "changed"])
async def test_nothing_is_read_before_there_is_room_for_it(
    size: int, based: bool, tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forty workers have something to send, and the store takes nothing: no more is in memory than may be under way."""
    read = 0

    def take(file: Content, start: int, end: int) -> bytes:
        nonlocal read
        read += end - start
        return taken(file, start, end)

    taken = Content.take
    monkeypatch.setattr(Content, "take", take)
    faulty = new_store()
    names = [f"file-{number}" for number in range(40)]
    options = tree_options(parts_in_flight=4, publish=PublishOptions(workers=40))
    async with open_tree(faulty, tmp_path, options) as tree:
        for name in names if based else ():
            await faulty.put(name, BASE)
        gates = [faulty.hold(verb, times=math.inf) for verb in (Verb.PUT, Verb.UPLOAD_PART)]
        for name in names:
            handle = await tree.open(name) if based else await tree.create(name)
            await tree.write(handle, 10 * PART if based else 0, NEW[:1] * size)
            await tree.close(handle)
        await trio.sleep(10)
        is_small = size == 200 and not based  # and has a share of its own
        share = PART // 2 if is_small else 4 * PART
        assert share - max(size, LIMITS.min_part_size) < read <= share
        for gate in gates:
            gate.open()
        await tree.publish_all()
        changed = BASE[: 10 * PART] + NEW[:1] * size + BASE[10 * PART + size :] if based else NEW[:1] * size
        assert await stored(faulty) == dict.fromkeys(names, changed)


async def test_a_small_file_does_not_wait_for_parts(tmp_path: Path, autojump_clock: MockClock) -> None:
    faulty = new_store()
    async with open_tree(faulty, tmp_path, tree_options(parts_in_flight=4)) as tree:
        gate = faulty.hold(Verb.UPLOAD_PART, times=math.inf)
        await tree.write_file("large", bytes(9 * PART))
        await gate.reached.wait()
        await tree.write_file("small", NEW[:200])
        await trio.sleep(10)
        assert await stored(faulty) == {"small": NEW[:200]}
        gate.open()
        await tree.publish_all()


async def test_a_commit_that_waits_for_parts_is_not_waited_for_with_memory_held(
    tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Streams are asked for their parts, which need room, while files that would take all of it wait for the log."""
    monkeypatch.setattr(batch_contents, "BATCH_SIZE", PART)
    monkeypatch.setattr(staged_bytes, "PIECE_SIZE", KIB)
    store = _SlowStore(SmallPartsStorage())
    data = Random(8).randbytes(100 * PART)
    options = tree_options(logged=True, parts_in_flight=4, publish=PublishOptions(workers=40))
    async with open_tree(store, tmp_path, options) as tree:
        large = await tree.create("large")
        with trio.fail_after(3_600):
            for number in range(20):
                await tree.write(large, 5 * number * PART, data[5 * number * PART : 5 * (number + 1) * PART])
                for name in range(8):
                    await tree.write_file(f"{number}-{name}", data[name : name + PART - 1])
                await trio.sleep(0.3)
            await tree.close(large)
            await tree.publish_all()
        assert store.most_bytes <= 4 * PART
        objects = await stored(store)
        assert objects.pop("large") == data
        assert len(objects) == 160


@pytest.mark.parametrize("based", [False, True], ids=["stream", "patch"])
async def test_an_object_appears_when_the_log_has_all_of_its_file(
    based: bool, tmp_path: Path, autojump_clock: MockClock
) -> None:
    """Also what was changed while the log was told of the bytes, and is no change of these."""
    faulty = new_store()
    async with open_tree(faulty, tmp_path, tree_options(logged=True)) as tree:
        if based:
            await with_base(tree)
        handle = await (tree.open("file") if based else tree.create("file"))
        telling, completing = faulty.hold(Verb.PUT), faulty.hold(Verb.COMPLETE)
        await tree.write(handle, 2 * PART, bytes(4 * PART))
        await tree.close(handle)
        await telling.reached.wait()
        file = await tree.find("file")
        await tree.filesystem.setattr(file.number, AttributeChanges(mode=0o600))
        telling.open()
        await completing.reached.wait()
        assert tree.log.has(file)


async def test_a_write_during_the_last_part_of_a_new_file_is_not_lost(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """The write must not begin a second stream, which would take from the first one what is unsent."""
    faulty = new_store()
    async with open_tree(faulty, tmp_path, tree_options()) as tree, trio.open_nursery() as nursery:
        handle = await tree.create("file")
        await tree.write(handle, 0, bytes(3 * PART))
        gate = faulty.hold(Verb.COMPLETE)
        nursery.start_soon(tree.filesystem.fsync, handle)
        await gate.reached.wait()
        await tree.write(handle, 0, NEW)
        await wait_all_tasks_blocked()
        gate.open()
        await tree.filesystem.fsync(handle)
        assert (await stored(faulty))["file"] == NEW + bytes(3 * PART - KIB)
        assert len(faulty.calls_of(Verb.COMPLETE)) == 2
        await tree.close(handle)


@pytest.mark.parametrize("based", [False, True], ids=["stream", "patch"])
@pytest.mark.parametrize("error", [StorageError, RuntimeError])
@pytest.mark.parametrize("verb", [Verb.CREATE_MULTIPART, Verb.UPLOAD_PART, Verb.COMPLETE])
async def test_an_upload_that_fails_is_aborted_and_made_again(
    verb: Verb, error: type[Exception], based: bool, tmp_path: Path, autojump_clock: MockClock
) -> None:
    """Whatever the store raises: the caller is told, nothing is left behind, and the next fsync makes it good."""
    faulty = new_store()
    async with open_tree(faulty, tmp_path, tree_options()) as tree:
        if based:
            await with_base(tree)
        handle = await (tree.open("file") if based else tree.create("file"))
        await tree.write(handle, 0, bytes(4 * PART))
        faulty.fail(error, verb=verb, times=math.inf)
        with pytest.raises(error):
            await tree.filesystem.fsync(handle)
        assert not await faulty.list_multipart_uploads()
        faulty.heal()
        await tree.filesystem.fsync(handle)
        assert (await stored(faulty))["file"] == bytes(4 * PART) + (BASE[4 * PART :] if based else b"")
        assert not await faulty.list_multipart_uploads()
        await tree.close(handle)


@pytest.mark.parametrize("based", [False, True], ids=["stream", "patch"])
async def test_an_upload_of_many_parts_waits_for_a_store_that_is_away_once(
    based: bool, tmp_path: Path, autojump_clock: MockClock
) -> None:
    """And not for every few of its parts anew: whoever waits for it is told after `retry_timeout`."""
    faulty = new_store()
    storage = RetryingStorage(faulty, RetryPolicy(timeout_seconds=300))
    async with open_tree(storage, tmp_path, tree_options()) as tree:
        if based:
            await storage.put("file", BASE)
        handle = await (tree.open("file") if based else tree.create("file"))
        faulty.fail(Unavailable, verb=Verb.UPLOAD_PART, times=math.inf)
        for start in range(0, len(BASE), 2 * PART) if based else [0]:
            await tree.write(handle, start, BASE[:PART] if based else BASE)
        began = trio.current_time()
        with pytest.raises(Unavailable):
            await tree.filesystem.fsync(handle)
        assert trio.current_time() - began <= 310
        faulty.heal()
        await tree.publish_all()
        await tree.close(handle)


@pytest.mark.parametrize("based", [False, True], ids=["stream", "patch"])
@pytest.mark.parametrize("verb", [Verb.UPLOAD_PART, Verb.COMPLETE])
async def test_an_upload_that_somebody_else_aborts_is_begun_anew(
    verb: Verb, based: bool, tmp_path: Path, autojump_clock: MockClock
) -> None:
    """A bucket may have a rule for it; the fsync that meets it succeeds."""
    faulty = new_store()
    async with open_tree(faulty, tmp_path, tree_options()) as tree, trio.open_nursery() as nursery:
        if based:
            await with_base(tree)
        handle = await (tree.open("file") if based else tree.create("file"))
        await tree.write(handle, 0, bytes(4 * PART))
        gate = faulty.hold(verb)
        nursery.start_soon(tree.filesystem.fsync, handle)
        await gate.reached.wait()
        [begun] = await faulty.list_multipart_uploads()
        await faulty.resume_multipart(begun.key, begun.upload_id).abort()
        gate.open()
        await tree.filesystem.fsync(handle)
        assert (await stored(faulty))["file"] == bytes(4 * PART) + (BASE[4 * PART :] if based else b"")
        assert not await faulty.list_multipart_uploads()
        await tree.close(handle)


async def test_what_somebody_else_has_aborted_does_not_stay_in_memory(
    tmp_path: Path, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Not even until Python looks for cycles: where nothing else happens, that is never."""
    caplog.set_level(logging.ERROR)  # a record of the warning has the error
    faulty = new_store()
    async with open_tree(faulty, tmp_path, tree_options()) as tree:
        await with_base(tree)
        handle = await tree.open("file")
        await tree.write(handle, 5 * PART, NEW)
        await tree.write(handle, 15 * PART, NEW)
        faulty.fail(UploadNotFound, verb=Verb.UPLOAD_PART, times=2)
        gc.collect()
        gc.disable()
        try:
            await tree.filesystem.fsync(handle)
            assert not [each for each in gc.get_objects() if isinstance(each, UploadNotFound)]
        finally:
            gc.enable()
        assert not faulty.faults_left
        await tree.close(handle)


@pytest.mark.parametrize("based", [False, True], ids=["stream", "patch"])
async def test_a_store_that_forgets_every_upload_is_an_error(
    based: bool, tmp_path: Path, autojump_clock: MockClock
) -> None:
    faulty = new_store()
    async with open_tree(faulty, tmp_path, tree_options()) as tree:
        if based:
            await with_base(tree)
        handle = await (tree.open("file") if based else tree.create("file"))
        await tree.write(handle, 0, bytes(4 * PART))
        faulty.fail(UploadNotFound, verb=Verb.COMPLETE, times=math.inf)
        with pytest.raises(UploadNotFound):
            await tree.filesystem.fsync(handle)
        assert len(faulty.calls_of(Verb.COMPLETE)) == 1 + RESTARTS
        faulty.heal()
        await tree.publish_all()
        await tree.close(handle)


async def test_streams_that_have_failed_keep_no_others_from_beginning(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """However many files are written that the store denies."""
    faulty = new_store()
    async with open_tree(faulty, tmp_path, tree_options()) as tree:
        denied = range(2 * tree_options().parts_in_flight)
        for number in denied:
            faulty.fail(AccessDenied, verb=Verb.UPLOAD_PART, key=f"denied{number}", times=math.inf)
        handles = []
        for name in [*(f"denied{number}" for number in denied), "file"]:
            handles.append(await tree.create(name))
            await tree.write(handles[-1], 0, BASE[: 2 * PART])
            await wait_all_tasks_blocked()
        assert "file" in [each.key for each in faulty.calls_of(Verb.UPLOAD_PART)]
        faulty.heal()
        for handle in handles:
            await tree.close(handle)
        await tree.publish_all()
        assert set((await stored(faulty)).values()) == {BASE[: 2 * PART]}


async def test_streams_that_have_failed_keep_no_bytes_in_memory(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """What is staged on the disk is read again for the next attempt, which may be long in coming."""
    size = 2 * MIB
    faulty = FaultyStorage(SmallPartsStorage())
    async with open_tree(faulty, tmp_path, tree_options(part_size=size)) as tree:
        faulty.fail(AccessDenied, verb=Verb.UPLOAD_PART, times=math.inf)
        handles = [await tree.create(f"{number}") for number in range(tree_options().parts_in_flight)]
        tracemalloc.start()
        try:
            for handle in handles:
                await tree.write(handle, 0, os.urandom(size + 100 * KIB))
            await wait_all_tasks_blocked()
            gc.collect()
            kept, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert len(faulty.calls_of(Verb.UPLOAD_PART)) == len(handles)
        assert kept < size
        faulty.heal()
        for handle in handles:
            await tree.close(handle)


async def test_a_file_that_is_removed_while_it_goes_up_is_given_up(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """In the background, and when its upload is being finished: no object appears, no upload is left."""
    faulty = new_store()
    options = tree_options(publish=PublishOptions(interval_seconds=1e6))
    async with open_tree(faulty, tmp_path, options) as tree, trio.open_nursery() as nursery:
        handle = await tree.create("background")
        await tree.write(handle, 0, bytes(4 * PART))
        await wait_all_tasks_blocked()
        assert await faulty.list_multipart_uploads()
        await tree.unlink("background")
        await tree.close(handle)
        await wait_all_tasks_blocked()
        assert not await faulty.list_multipart_uploads()

        handle = await tree.create("finishing")
        await tree.write(handle, 0, bytes(4 * PART))
        gate = faulty.hold(Verb.UPLOAD_PART)
        nursery.start_soon(tree.filesystem.fsync, handle)
        await gate.reached.wait()
        await tree.unlink("finishing")
        await tree.close(handle)
        gate.open()
        await tree.publish_all()
        assert not await faulty.list_multipart_uploads()
        assert await stored(faulty, ours=True) == {}
        assert not faulty.calls_of(Verb.COMPLETE)
        assert tree.sources.budget.total == 0


async def test_uploads_under_way_are_aborted_at_the_end(tmp_path: Path, autojump_clock: MockClock) -> None:
    """When the mount ends without waiting, nothing is left that would be paid for."""
    faulty = new_store()
    async with open_tree(faulty, tmp_path, tree_options()) as tree, trio.open_nursery() as nursery:
        await with_base(tree, "old")
        handle = await tree.create("new")
        await tree.write(handle, 0, bytes(4 * PART))
        patched = await tree.open("old")
        await tree.write(patched, 10 * PART, NEW)
        faulty.hold(Verb.COMPLETE, times=math.inf)
        nursery.start_soon(tree.filesystem.fsync, patched)
        await wait_all_tasks_blocked()
        assert len(await faulty.list_multipart_uploads()) == 2
        nursery.cancel_scope.cancel()
    assert not await faulty.list_multipart_uploads()


async def test_a_store_that_cannot_copy_parts_gets_the_whole_file(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """The clean bytes are fetched for it."""
    store = SmallPartsStorage(capabilities=Capabilities(copy_part=False))
    await store.put("file", BASE)
    async with open_tree(store, tmp_path, tree_options()) as tree:
        handle = await tree.open("file", os.O_WRONLY)
        await tree.write(handle, 15 * PART, NEW)
        await tree.filesystem.fsync(handle)
        assert await stored(store) == {"file": BASE[: 15 * PART] + NEW + BASE[15 * PART + KIB :]}
        await tree.close(handle)


async def test_an_object_too_large_for_one_copy_is_copied_in_parts(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    faulty = new_store()
    await faulty.put("old", LARGE)
    async with open_tree(faulty, tmp_path, tree_options()) as tree:
        await tree.rename("old", "new")
        await tree.publish_all()
        assert await stored(faulty) == {"new": LARGE}
        assert len(faulty.calls_of(Verb.COPY_PART)) == 2


async def test_parts_are_copied_from_the_version_that_was_planned_with(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """Somebody else replaces the source of a patch that goes to another key: no object is a mixture of both."""
    storage = FaultyStorage(SmallPartsStorage())
    base = Random(5).randbytes(6 * PART)
    await storage.put("old", base)
    async with open_tree(storage, tmp_path, tree_options()) as tree:
        handle = await tree.open("old")
        await tree.write(handle, 2 * PART, b"c" * PART)  # enough for a part: nothing of the base is read
        await tree.rename("old", "new")
        copying = storage.hold(Verb.COPY_PART, times=math.inf)
        await tree.close(handle)
        await copying.reached.wait()
        await storage.put("old", bytes(len(base)))
        copying.open()
        await tree.publish_all()
        objects = await stored(storage, ours=True)
        assert "new" not in objects
        assert objects.pop("old") == bytes(len(base))
        assert [key.startswith(".fusefs/conflicts/") for key in objects] == [True]


async def test_a_patch_does_not_replace_what_came_after_its_copies(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """The parts are of the version that was planned with, and the object that they are to become has changed since."""
    storage = new_store()
    async with open_tree(storage, tmp_path, tree_options()) as tree:
        await with_base(tree)
        handle = await tree.open("file")
        await tree.write(handle, 2 * PART, NEW)
        completing = storage.hold(Verb.COMPLETE)
        await tree.close(handle)
        await completing.reached.wait()
        await storage.put("file", b"theirs")
        completing.open()
        await tree.publish_all()
        objects = await stored(storage, ours=True)
        assert objects.pop("file") == b"theirs"
        [ours] = kept(objects)
        assert ours[2 * PART : 2 * PART + len(NEW)] == NEW


LARGE: Final = Random(2).randbytes(LIMITS.max_copy_size + 10 * KIB)


@pytest.mark.parametrize("copies_parts", [True, False])
async def test_an_object_that_is_too_long_for_one_copy(
    copies_parts: bool, autojump_clock: MockClock, tmp_path: Path
) -> None:
    """It is renamed, and its mode changed, also where the store copies no parts: those are fetched and sent."""
    storage = SmallPartsStorage(capabilities=Capabilities(copy_part=copies_parts))
    await storage.put("old", LARGE)
    async with open_tree(storage, tmp_path, tree_options()) as tree:
        await tree.rename("old", "new")
        await tree.publish_all()
        inode = await tree.find("new")
        await tree.filesystem.setattr(inode.number, AttributeChanges(mode=0o600))
        await tree.publish_all()
        assert await stored(storage) == {"new": LARGE}
        assert (await stored_metadata(storage))["new"]["mode"] == str(0o100600)


async def test_a_copy_in_parts_does_not_replace_what_came_meanwhile(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    storage = new_store()
    await storage.put("old", LARGE)
    async with open_tree(storage, tmp_path, tree_options()) as tree:
        completing = storage.hold(Verb.COMPLETE)
        await tree.rename("old", "new")
        await completing.reached.wait()
        await storage.put("new", b"theirs")
        completing.open()
        await tree.publish_all()
        objects = await stored(storage, ours=True)
        assert objects.pop("new") == b"theirs"
        assert kept(objects) == [LARGE]


async def test_a_copy_in_parts_is_of_one_version(autojump_clock: MockClock, tmp_path: Path) -> None:
    storage = new_store()
    await storage.put("old", LARGE)
    theirs = bytes(len(LARGE))
    async with open_tree(storage, tmp_path, tree_options()) as tree:
        copying = storage.hold(Verb.COPY_PART, call=2)
        await tree.rename("old", "new")
        await copying.reached.wait()
        await storage.put("old", theirs)
        copying.open()
        with trio.move_on_after(300):
            await tree.publisher.publish_all()
        objects = await stored(storage, ours=True)
        assert set(objects.values()) == {theirs}


OURS: Final = Random(3).randbytes(5 * PART)


@asynccontextmanager
async def half_ours(storage: ObjectStorage, directory: Path) -> AsyncIterator[Tree]:
    """A tree whose file `old` is `OURS` and the end of `BASE`, and has gone to `new`, which somebody else has made."""
    await storage.put("old", BASE)
    async with open_tree(storage, directory, tree_options()) as tree:
        handle = await tree.open("old")
        await tree.write(handle, 0, OURS)
        await tree.rename("old", "new")
        await storage.put("new", b"theirs")
        await tree.close(handle)
        yield tree


def kept(objects: dict[str, bytes]) -> list[bytes]:
    """Return what is kept of ours, of all the objects."""
    return [data for key, data in objects.items() if key.startswith(CONFLICTS_PREFIX)]


@pytest.mark.parametrize("call", [1, 2, 30, 50])
@pytest.mark.parametrize("error", [Unavailable, AccessDenied])
async def test_nothing_is_kept_as_zeros_that_can_still_be_fetched(
    error: type[StorageError], call: int, tmp_path: Path, autojump_clock: MockClock
) -> None:
    """One request of those for the rest of the file fails: it is tried again, and nothing is deleted before."""
    faulty = new_store()
    async with half_ours(faulty, tmp_path) as tree:
        faulty.fail(error, verb=Verb.GET_RANGE, key="old", call=call)
        with pytest.raises(error):
            await tree.publish_all()
        assert not faulty.faults_left
        assert await stored(faulty, ours=True) == {"old": BASE, "new": b"theirs"}
        await tree.publish_all()
        objects = await stored(faulty, ours=True)
        assert kept(objects) == [OURS + BASE[len(OURS) :]]
        assert objects.keys() & {"old", "new"} == {"new"}


async def test_a_full_disk_keeps_no_zeros(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    """What has no room in the stage is fetched part by part, as it goes up."""
    limit_disk(monkeypatch, tmp_path / "stage", 12 * PART)
    storage = SmallPartsStorage()
    async with half_ours(storage, tmp_path) as tree:
        await tree.publish_all()
        objects = await stored(storage, ours=True)
        assert kept(objects) == [OURS + BASE[len(OURS) :]]
        assert "old" not in objects


async def test_a_base_that_goes_while_ours_is_being_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    """What the disk had no room for can be fetched nowhere then: it is zeros in the next attempt."""
    limit_disk(monkeypatch, tmp_path / "stage", 12 * PART)
    faulty = new_store()
    async with half_ours(faulty, tmp_path) as tree, trio.open_nursery() as nursery:
        number = (await tree.find("new")).number
        going_up = faulty.hold(Verb.UPLOAD_PART, key=f"{CONFLICTS_PREFIX}new.mount-{number}-1")

        async def fails() -> None:
            with pytest.raises(StaleFile):
                await tree.publish_all()
            failed.set()

        failed = trio.Event()
        nursery.start_soon(fails)
        await going_up.reached.wait()
        await faulty.put("old", b"theirs, too")
        going_up.open()
        await failed.wait()
        assert kept(await stored(faulty, ours=True)) == []
        await tree.publish_all()
        [copy] = kept(await stored(faulty, ours=True))
        ours = OURS + BASE[len(OURS) :]
        blocks = range(0, len(ours), KIB)
        zeros = [start for start in blocks if copy[start : start + KIB] != ours[start : start + KIB]]
        assert zeros
        assert zeros[0] >= len(OURS)
        assert all(copy[start : start + KIB] == bytes(KIB) for start in zeros)
        assert len(copy) == len(ours)


async def test_a_file_that_is_being_kept_cannot_be_changed(tmp_path: Path, autojump_clock: MockClock) -> None:
    """Neither cut nor written: what would come of it were in neither of the two objects."""
    faulty = new_store()
    async with half_ours(faulty, tmp_path) as tree, trio.open_nursery() as nursery:
        number = (await tree.find("new")).number
        handle = await tree.open("new")
        going_up = faulty.hold(Verb.UPLOAD_PART, key=f"{CONFLICTS_PREFIX}new.mount-{number}-1")
        nursery.start_soon(tree.publish_all)
        await going_up.reached.wait()
        with pytest.raises(StaleFile):
            await tree.filesystem.setattr(number, AttributeChanges(size=PART))
        with pytest.raises(StaleFile):
            await tree.write(handle, 0, NEW)
        going_up.open()
        await tree.publish_all()
        assert kept(await stored(faulty, ours=True)) == [OURS + BASE[len(OURS) :]]


async def with_full_disk(
    tree: Tree, monkeypatch: pytest.MonkeyPatch, directory: Path, size: int
) -> tuple[Content, bytes]:
    """Return the content of a file that is in the bucket, and for which the local disk has no room."""
    data = Random(3).randbytes(size)
    await tree.storage.put("large", data)
    content = (await tree.find_file("large")).content
    limit_disk(monkeypatch, directory / "stage", 0)
    return content, data


async def test_a_part_that_the_disk_has_no_room_for_is_in_memory_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    size = 4 * MIB
    async with open_tree(SmallPartsStorage(), tmp_path, tree_options()) as tree:
        content, data = await with_full_disk(tree, monkeypatch, tmp_path, size)
        tracemalloc.start()
        try:
            with content.pinned():
                obtained = await fetching.obtain(content, 0, size)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert obtained == data
        assert peak < 1.5 * size


async def test_a_file_that_changes_while_it_is_read_past_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    """What was written is in what is read, and nothing of what was cut off."""
    faulty = new_store()
    size = 8 * PART
    write = StageFile.write
    async with open_tree(faulty, tmp_path, tree_options()) as tree, trio.open_nursery() as nursery:
        content, data = await with_full_disk(tree, monkeypatch, tmp_path, size)
        handle = await tree.open("large")
        obtained = []

        async def obtain() -> None:
            with content.pinned():
                obtained.append(await fetching.obtain(content, PART, size))

        gate = faulty.hold(Verb.GET_RANGE, call=10)  # those that were to be staged have come first
        nursery.start_soon(obtain)
        with trio.fail_after(60):
            await gate.reached.wait()
        monkeypatch.setattr(StageFile, "write", write)
        await tree.write(handle, PART + 100, NEW)
        await tree.filesystem.setattr((await tree.find("large")).number, AttributeChanges(size=2 * PART))
        gate.open()
        await tree.filesystem.fsync(handle)
        await tree.close(handle)
    now = data[: PART + 100] + NEW + data[PART + 100 + len(NEW) : 2 * PART]
    assert obtained == [now[PART:] + bytes(6 * PART)]


async def test_a_file_that_is_cut_while_its_end_is_fetched_and_grows_while_that_goes_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    """The last part is as long as it was to be, or else nothing would send what it lacks, and the upload never end."""
    faulty = FaultyStorage(SmallPartsStorage(capabilities=Capabilities(copy_part=False)))
    write, size, cut = StageFile.write, 3 * PART + 3 * KIB, 3 * PART + 2 * KIB + 500
    await faulty.put("file", BASE[:size])
    async with open_tree(faulty, tmp_path, tree_options()) as tree, trio.open_nursery() as nursery:
        handle = await tree.open("file")
        number = (await tree.find("file")).number
        await tree.write(handle, 0, NEW)
        limit_disk(monkeypatch, tmp_path / "stage", 0)  # or else all of it would be staged before it goes up
        beginning = faulty.hold(Verb.CREATE_MULTIPART)
        nursery.start_soon(tree.filesystem.fsync, handle)
        await beginning.reached.wait()
        monkeypatch.setattr(StageFile, "write", write)
        fetching_end, sending_end = faulty.hold(Verb.GET_RANGE, call=5), faulty.hold(Verb.UPLOAD_PART, call=4)
        beginning.open()
        await fetching_end.reached.wait()
        await tree.filesystem.setattr(number, AttributeChanges(size=cut))
        fetching_end.open()
        await sending_end.reached.wait()
        await tree.write(handle, cut, NEW[: size - cut])
        sending_end.open()
        with trio.fail_after(60):
            await tree.filesystem.fsync(handle)
        assert await stored(faulty) == {"file": NEW + BASE[KIB:cut] + NEW[: size - cut]}
        await tree.close(handle)


async def test_what_is_written_behind_a_cut_while_a_part_is_read_past_the_disk_goes_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    """The part has what the file has there by then, and no zeros, though it was planned before the cut."""
    faulty, size, end = new_store(), len(BASE), Random(2).randbytes(2 * KIB)
    async with open_tree(faulty, tmp_path, tree_options()) as tree, trio.open_nursery() as nursery:
        await with_base(tree)
        handle = await tree.open("file")
        number = (await tree.find("file")).number
        await tree.write(handle, size - 4 * KIB, NEW)
        await tree.write(handle, size - KIB, NEW)
        beginning = faulty.hold(Verb.CREATE_MULTIPART)
        nursery.start_soon(tree.filesystem.fsync, handle)
        await beginning.reached.wait()
        await tree.filesystem.setattr(number, AttributeChanges(size=size - len(end)))
        fetching_part = faulty.hold(Verb.GET_RANGE, call=2)  # the first was to be staged
        with monkeypatch.context() as full, trio.fail_after(60):
            limit_disk(full, tmp_path / "stage", 0)
            beginning.open()
            await fetching_part.reached.wait()
        await tree.write(handle, size - len(end), end)
        fetching_part.open()
        with trio.fail_after(60):
            await tree.filesystem.fsync(handle)
        ours = BASE[: -4 * KIB] + NEW + BASE[-3 * KIB : -2 * KIB] + end
        assert (await stored(faulty))["file"] == ours
        await tree.close(handle)


class _LateStorage(InterceptedStorage):
    """Holds the answers of one verb back, once that is set."""

    late: Verb | None = None

    def __init__(self, inner: ObjectStorage) -> None:
        super().__init__(inner)
        self.taken, self.answer = trio.Event(), trio.Event()

    async def _carry_out(self, request: Request, send: Callable[[], Awaitable[T]]) -> T:
        result = await send()
        if request.verb is self.late:
            self.taken.set()
            await self.answer.wait()
        return result


async def test_a_read_while_the_store_has_another_etag_for_the_same_bytes(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """A copy onto itself, for the sake of new attributes, of what was uploaded in parts."""
    storage = _LateStorage(SmallPartsStorage())
    upload = await storage.create_multipart("file")
    parts = [await upload.upload_part(number, BASE[:PART]) for number in (1, 2)]
    before = await upload.complete(parts)
    async with open_tree(storage, tmp_path, tree_options()) as tree, trio.open_nursery() as nursery:
        handle = await tree.open("file", os.O_RDONLY)
        await tree.filesystem.setattr((await tree.find("file")).number, AttributeChanges(mode=0o600))
        storage.late = Verb.COPY
        nursery.start_soon(tree.publish_all)
        await storage.taken.wait()
        assert (await storage.head("file")).etag != before
        read: list[bytes] = []

        async def read_end() -> None:
            read.append(await tree.filesystem.read(handle, 2 * PART - 10, 10))

        nursery.start_soon(read_end)
        await wait_all_tasks_blocked()
        storage.answer.set()
        await wait_all_tasks_blocked()
        assert read == [BASE[PART - 10 : PART]]
        await tree.filesystem.release(handle)


@pytest.mark.parametrize(("size", "last"), [(PART - 100, Verb.PUT), (3 * PART, Verb.COMPLETE)])
async def test_a_read_while_the_store_has_our_new_version_and_we_do_not_know(
    size: int, last: Verb, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    """On a full disk the base is what is read from: that it is not there any more is nobody else's doing."""
    storage = _LateStorage(SmallPartsStorage())
    await storage.put("file", BASE[:size])
    async with open_tree(storage, tmp_path, tree_options()) as tree, trio.open_nursery() as nursery:
        handle = await tree.open("file")
        await tree.write(handle, 0, NEW)
        limit_disk(monkeypatch, tmp_path / "stage", 0)
        storage.late = last
        nursery.start_soon(tree.filesystem.fsync, handle)
        await storage.taken.wait()
        read: list[bytes] = []

        async def read_end() -> None:
            read.append(await tree.filesystem.read(handle, size - 10, 10))

        nursery.start_soon(read_end)
        await wait_all_tasks_blocked()
        storage.answer.set()
        await wait_all_tasks_blocked()
        assert read == [BASE[size - 10 : size]]
        await tree.close(handle)


@asynccontextmanager
async def with_read_in_doubt(
    faulty: FaultyStorage, directory: Path, size: int, read: list[bytes | Exception]
) -> AsyncIterator[tuple[Tree, int]]:
    """A tree whose file has become our new version without an answer, with a read of what only the old one told."""
    await faulty.put("file", BASE[:size])
    async with open_tree(faulty, directory, tree_options()) as tree, trio.open_nursery() as nursery:
        handle = await tree.open("file")
        await tree.write(handle, 0, NEW)
        for verb in (Verb.PUT, Verb.COMPLETE):
            faulty.fail(Unavailable, verb=verb, key="file", answer_lost=True)
        with pytest.raises(Unavailable):
            await tree.filesystem.fsync(handle)
        faulty.heal()
        tree.sources.budget.give_back_all()

        async def read_end() -> None:
            try:
                read.append(await tree.filesystem.read(handle, size - 10, 10))
            except FilesystemError as error:
                read.append(error)

        nursery.start_soon(read_end)
        await trio.sleep(5)
        assert read == []
        yield tree, handle
        await tree.filesystem.release(handle)


@pytest.mark.parametrize("size", [PART - 100, 30 * PART])
async def test_a_read_while_nobody_knows_whether_our_new_version_is_there(
    size: int, tmp_path: Path, autojump_clock: MockClock
) -> None:
    """Not even after `retry_timeout`: it waits until that is known, for what has changed is nobody else's doing."""
    faulty, read = new_store(), list[bytes | Exception]()
    async with with_read_in_doubt(faulty, tmp_path, size, read):
        await trio.sleep(RETRY_SECONDS)
        assert read == [BASE[size - 10 : size]]
    assert await stored(faulty) == {"file": NEW + BASE[KIB:size]}


async def test_a_read_when_it_could_not_be_found_out_whether_our_new_version_is_there(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """It fails as in any outage; the next one succeeds, if the store answers before it ends."""
    faulty, read = new_store(), list[bytes | Exception]()
    async with with_read_in_doubt(faulty, tmp_path, 30 * PART, read) as (tree, handle):
        faulty.fail(AccessDenied, verb=Verb.HEAD, key="file")
        await trio.sleep(RETRY_SECONDS)
        assert [type(each) for each in read] == [UploadFailed]
        assert await tree.filesystem.read(handle, 30 * PART - 10, 10) == BASE[30 * PART - 10 : 30 * PART]


async def test_a_read_while_nobody_knew_and_it_was_somebody_else(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    faulty, read = new_store(), list[bytes | Exception]()
    async with with_read_in_doubt(faulty, tmp_path, 30 * PART, read):
        await faulty.put("file", b"theirs")
        await trio.sleep(RETRY_SECONDS)
        assert [type(each) for each in read] == [StaleFile]


async def test_a_read_of_what_is_removed_while_nobody_knows(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    faulty, read = new_store(), list[bytes | Exception]()
    async with with_read_in_doubt(faulty, tmp_path, 30 * PART, read) as (tree, handle):
        faulty.fail(AccessDenied, verb=Verb.HEAD, key="file", times=math.inf)
        await tree.unlink("file")
        await trio.sleep(RETRY_SECONDS)
        assert [type(each) for each in read] == [UploadFailed]
        faulty.heal()
        assert await tree.filesystem.read(handle, 20 * PART, 10) == BASE[20 * PART :][:10]


async def test_reads_that_wait_for_what_nobody_knows_keep_no_others_from_the_store(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    faulty, read = new_store(), list[bytes | Exception]()
    await faulty.put("other", BASE)
    async with (
        with_read_in_doubt(faulty, tmp_path, 30 * PART, read) as (tree, handle),
        trio.open_nursery() as nursery,
    ):
        for number in range(10):
            nursery.start_soon(tree.filesystem.read, handle, (5 + number) * PART, 10)
        await wait_all_tasks_blocked()
        began = trio.current_time()
        assert await tree.read_file("other") == BASE
        assert trio.current_time() == began


async def test_what_is_nowhere_any_more_is_zeros(
    tmp_path: Path, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Somebody else has replaced the old object, too: the log says what is ours, and one answer is enough to know."""
    faulty = new_store()
    async with half_ours(faulty, tmp_path) as tree:
        await faulty.put("old", b"theirs, too")
        await tree.publish_all()
        objects = await stored(faulty, ours=True)
        assert kept(objects) == [OURS + bytes(len(BASE) - len(OURS))]
        assert objects["old"] == b"theirs, too"
        assert f"the rest is zeros: [(0, {len(OURS)})]" in caplog.text
        assert len([r for r in faulty.calls_of(Verb.GET_RANGE) if r.key == "old"]) <= 5


async def test_who_reads_what_is_nowhere_any_more_gets_no_zeros(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """They are in the copy that is kept, and to who has the file open they are gone; what is ours is there."""
    faulty = new_store()
    async with half_ours(faulty, tmp_path) as tree:
        handle = await tree.open("new")
        await tree.write(handle, len(BASE), NEW)
        await faulty.put("old", b"theirs, too")
        await tree.publish_all()
        assert kept(await stored(faulty, ours=True)) == [OURS + bytes(len(BASE) - len(OURS)) + NEW]
        tree.sources.budget.give_back_all()
        assert await tree.filesystem.read(handle, 0, len(OURS)) == OURS
        assert await tree.filesystem.read(handle, len(BASE), KIB) == NEW
        with pytest.raises(StaleFile):
            await tree.filesystem.read(handle, len(BASE) - 10, 10)
        await tree.filesystem.release(handle)
        assert not tree.sources.budget.total


@pytest.mark.parametrize("is_logged", [False, True])
async def test_no_upload_is_left_of_one_that_begins_while_a_conflict_is_looked_into(
    is_logged: bool, small_parts: None, tmp_path: Path, autojump_clock: MockClock
) -> None:
    """A write has begun it: the file is kept beside by another one."""
    new = Random(1).randbytes(6 * PART)
    storage = FaultyStorage(SmallPartsStorage())
    await storage.put("file", b"old")
    async with open_tree(storage, tmp_path, tree_options(logged=is_logged)) as tree:
        await tree.find("file")
        completing = storage.hold(Verb.COMPLETE)
        await tree.unlink("file")
        handle = await tree.create("file")
        await tree.write(handle, 0, new)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tree.publish_all)
            await completing.reached.wait()
            await storage.put("file", b"theirs")
            looking = storage.hold(Verb.HEAD, key="file")
            completing.open()
            await looking.reached.wait()
            await tree.write(handle, len(new), b"more")
            await wait_all_tasks_blocked()
            looking.open()
        with pytest.raises(StaleFile):
            await tree.close(handle)
        await trio.sleep(120)
        await tree.publish_all()
        assert not await storage.list_multipart_uploads()
        objects = await stored(storage, ours=True)
    assert [body for key, body in objects.items() if "conflicts" in key] == [new + b"more"]


async def test_an_upload_fetches_again_what_the_disk_has_damaged(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """However many places there are: it does not begin anew with each of them, and is no error in the end."""
    step, places = 4 * PART, 40
    storage = SmallPartsStorage()
    expected = bytearray(Random(1).randbytes((places + 1) * step))
    await storage.put("file", bytes(expected))
    async with open_tree(storage, tmp_path, tree_options(parts_in_flight=1)) as tree:
        assert await tree.read_file("file") == expected
        handle = await tree.open("file")
        for place in range(places):
            expected[place * step : place * step + KIB] = bytes(KIB)
            await tree.write(handle, place * step, bytes(KIB))
        [staged] = [path for path in (tmp_path / "stage").iterdir() if path.stat().st_size >= len(expected)]
        with staged.open("r+b") as file:  # in what goes up beside each change
            for place in range(places):
                file.seek(place * step + (-2 * KIB if place else 2 * KIB))
                file.write(b"damaged")
        await tree.publisher.publish(await tree.find_file("file"))
        assert (await stored(storage))["file"] == expected
        await tree.close(handle)
