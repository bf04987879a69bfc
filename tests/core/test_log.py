"""The log of an owner: what a commit costs, and that the next mount has all of it from the bucket alone."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Final

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from backends.base import CREATE_ONLY, KIB, Capabilities
from backends.errors import AccessDenied
from backends.intercepted import InterceptedStorage, Request, T, Verb
from fusefs import batch_contents, staged_bytes
from fusefs.attribute_changes import AttributeChanges
from fusefs.change_log import LOG_KEY
from fusefs.committer import Committer
from fusefs.extents import Extent
from fusefs.filesystem import RENAME_EXCHANGE
from fusefs.journal import MAX_IN_FLIGHT
from fusefs.journal_format import JOURNAL_PREFIX, batch_key, decode, encode, position_of
from fusefs.link_lists import LISTS_PREFIX
from fusefs.log_records import (
    Batch,
    ContentRecord,
    InodeRecord,
    Position,
    StoredPart,
    UploadReference,
    Written,
)
from fusefs.publisher import PublishOptions
from fusefs.versions import Version
from tests.core.logs import batches, log_objects
from tests.core.small_parts import PART, SmallPartsStorage, tree_options
from tests.core.tree import NEVER_PUBLISHED, Tree, TreeOptions, open_tree, stored
from tests.support.faulty import FaultyStorage

pytestmark = pytest.mark.usefixtures("small_parts")

RANDOM: Final = Random(7)


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make batches of the log smaller by the same factor as parts."""
    monkeypatch.setattr(batch_contents, "BATCH_SIZE", PART)
    monkeypatch.setattr(staged_bytes, "PIECE_SIZE", KIB)


def options(*, publishes: bool = False) -> TreeOptions:
    """A tree with a log; unless it `publishes`, only the log ever gets anything."""
    delays = PublishOptions() if publishes else NEVER_PUBLISHED
    return replace(tree_options(), logged=True, publish=delays)


async def test_an_fsync_is_one_put(autojump_clock: MockClock, tmp_path: Path) -> None:
    """An fsync is one PUT of what changed, however large the file is, and shared by all who wait at that time. With
    nothing to be told, or only new times, it makes no request.
    """
    storage = FaultyStorage(SmallPartsStorage())
    large = RANDOM.randbytes(50 * PART)
    await storage.put("large", large)
    async with open_tree(storage, tmp_path, options()) as tree:
        handle, other = await tree.open("large"), await tree.create("other")
        directory = await tree.filesystem.opendir(1)
        await tree.write(handle, 20 * PART, b"changed")
        storage.calls.clear()
        async with trio.open_nursery() as nursery:
            for fsync in (handle, other):
                nursery.start_soon(tree.filesystem.fsync, fsync)
            nursery.start_soon(tree.filesystem.fsyncdir, directory)
        assert [call.verb for call in storage.calls] == [Verb.PUT]
        assert storage.calls[0].bytes_sent < PART
        inode = await tree.find("large")
        await tree.filesystem.setattr(inode.number, AttributeChanges(mtime_ns=5))
        await tree.filesystem.fsync(handle)
        await tree.filesystem.fsyncdir(directory)
        assert len(storage.calls) == 1


async def test_new_directories_are_moved_in_the_log_too(autojump_clock: MockClock, tmp_path: Path) -> None:
    """Also such as the bucket has nothing of yet."""
    storage = SmallPartsStorage()
    async with open_tree(storage, tmp_path / "1", options()) as tree:
        await tree.mkdir("d")
        await tree.mkdir("d/below")
        await tree.log.commit()
        await tree.rename("d", "moved")
        await tree.log.commit()
    async with open_tree(storage, tmp_path / "2", options(publishes=True)) as tree:
        assert await tree.names() == ["moved"]
        assert await tree.names("moved") == ["below"]


async def test_what_was_committed_is_there_after_a_crash(autojump_clock: MockClock, tmp_path: Path) -> None:
    storage = SmallPartsStorage()
    async with open_tree(storage, tmp_path / "1", options()) as tree:
        await tree.mkdir("d")
        handle = await tree.create("d/a")
        await tree.filesystem.write(handle, 3, b"bytes")
        await tree.symlink("link", b"target")
        await tree.filesystem.fsync(handle)
        await tree.filesystem.write(handle, 0, b"lost")
    assert await stored(storage) == {}
    async with open_tree(storage, tmp_path / "2", options(publishes=True)) as tree:
        assert await tree.read_file("d/a") == b"\0\0\0bytes"
        assert await tree.names() == ["d", "link"]
        await tree.publish_all()
        await trio.sleep(60)
        assert await batches(storage) == []
    assert await stored(storage) == {"d/": b"", "d/a": b"\0\0\0bytes", "link": b"target"}


async def test_objects_of_others_beside_the_log_stay(autojump_clock: MockClock, tmp_path: Path) -> None:
    """Those below `.fusefs/` under keys that fusefs does not make: not read, not written over, and not deleted."""
    storage = SmallPartsStorage()
    places = ["", "journal/", "journal/0000000000000001/", "orphans/", "moving/", "links/", "index/"]
    theirs = {f".fusefs/{place}theirs": place.encode() for place in places}
    for key, data in theirs.items():
        await storage.put(key, data)
    async with open_tree(storage, tmp_path / "1", options()) as tree:
        await tree.write_file("f", b"bytes")
        await tree.log.commit()
    async with open_tree(storage, tmp_path / "2", replace(options(publishes=True), index=True)) as tree:
        await tree.publish_all()
        await trio.sleep(60)
        assert await batches(storage) == [key for key in theirs if key.startswith(JOURNAL_PREFIX)][::-1]
        await tree.end()
    found = await stored(storage, ours=True)
    assert {key: data for key, data in found.items() if key.endswith("theirs")} == theirs
    assert found["f"] == b"bytes"


async def test_a_list_of_names_goes_with_the_last_but_one(autojump_clock: MockClock, tmp_path: Path) -> None:
    """Also where a recovery has found the names, and the file was not published since."""
    storage = SmallPartsStorage()
    async with open_tree(storage, tmp_path / "1", options()) as tree:
        await tree.write_file("file", b"bytes")
        await tree.link("file", "other")
        await tree.publish_all()
        await tree.write_file("file", b"more bytes")
        await tree.log.commit()
    assert any(key.startswith(LISTS_PREFIX) for key in await stored(storage, ours=True))
    async with open_tree(storage, tmp_path / "2", options()) as tree:
        await tree.unlink("other")
        await tree.publish_all()
        await trio.sleep(60)
    assert (await stored(storage, ours=True)).keys() == {"file", *await log_objects(storage)}
    assert await stored(storage) == {"file": b"more bytes"}


async def test_a_rename_of_a_directory_is_noted_once_and_in_the_log_whole(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    storage = FaultyStorage(SmallPartsStorage())
    names = [f"file-{number:03}" for number in range(200)]
    for name in names:
        await storage.put(f"d/below/{name}", name.encode())
    async with open_tree(storage, tmp_path / "1", options()) as tree:
        await tree.rename("d", "once")
        await wait_all_tasks_blocked()  # until all that is below is known
        assert isinstance(tree.log, Committer)
        await tree.log.commit()
        storage.calls.clear()
        await tree.rename("once", "moved")
        assert tree.log.statistics().unlogged_inodes == 1
        assert storage.calls == []
        await tree.log.commit()
        assert [call.verb for call in storage.calls] == [Verb.PUT]
    async with open_tree(storage, tmp_path / "2", options(publishes=True)) as tree:
        assert await tree.names() == ["moved"]
        assert await tree.names("moved/below") == names
        await tree.publish_all()
    objects = {f"moved/below/{name}": name.encode() for name in names}
    assert await stored(storage) == {"moved/": b"", "moved/below/": b""} | objects


COMPLETING: Final = (Verb.PUT, Verb.COPY, Verb.COMPLETE)


@pytest.mark.parametrize("size", [10, 3 * PART + 7], ids=["one PUT", "an upload"])
async def test_nothing_is_published_under_a_name_that_the_log_never_had(
    size: int, autojump_clock: MockClock, tmp_path: Path
) -> None:
    """Something is due, its batch waits for its turn, and before that comes it is renamed, or removed.

    An upload cannot have another name any more. When its object appears, the log says under which.
    """
    storage = FaultyStorage(SmallPartsStorage())
    is_upload = size > PART
    async with (
        open_tree(storage, tmp_path, options(publishes=True)) as tree,
        trio.open_nursery() as nursery,
    ):
        handle = await tree.create("other")
        gate = storage.hold(Verb.PUT, times=MAX_IN_FLIGHT)
        for number in range(MAX_IN_FLIGHT):
            await tree.write(handle, number, b"x")
            nursery.start_soon(tree.filesystem.fsync, handle)
            await wait_all_tasks_blocked()
        for name in ("temp", "removed"):
            await tree.write_file(name, RANDOM.randbytes(size))
        await tree.symlink("temp-link", b"target")
        await trio.sleep(2)
        await tree.rename("temp", "final")
        await tree.rename("temp-link", "link")
        await tree.unlink("removed")
        completion = storage.hold(Verb.COMPLETE, key="temp")
        gate.open()
        if is_upload:
            await completion.reached.wait()
            log = await stored(storage, ours=True)
            assert any(b'"upload":{"key":"temp"' in log[key] for key in log if key.startswith(JOURNAL_PREFIX))
            completion.open()
        await tree.publish_all()
        keys = {request.key for request in storage.calls if request.verb in COMPLETING}
        assert keys.isdisjoint({"temp-link", "removed"})
        assert ("temp" in keys) == is_upload
        assert (await stored(storage)).keys() == {"other", "final", "link"}


async def test_attributes_of_directories_that_no_object_tells_of(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """They are nobody else's: neither those of the directory above, nor of one that had the name before."""
    storage = SmallPartsStorage()
    for key in ("a/b/file", "c/b/file", "d/b/file"):
        await storage.put(key, b"")
    async with open_tree(storage, tmp_path / "1", options(publishes=True)) as tree:
        for path, mode in {"a/b": 0o700, "d": 0o711}.items():
            await tree.filesystem.setattr((await tree.find(path)).number, AttributeChanges(mode=mode))
        await tree.publish_all()
        await tree.rename("a", "c", RENAME_EXCHANGE)
        await tree.rename("d", "e")
        await tree.log.commit()
    async with open_tree(storage, tmp_path / "2", options()) as tree:
        modes = {path: (await tree.find(path)).attributes.mode & 0o777 for path in ("a/b", "c/b", "e", "e/b")}
        assert modes == {"a/b": 0o755, "c/b": 0o700, "e": 0o711, "e/b": 0o755}


async def test_changes_of_what_is_in_the_bucket(autojump_clock: MockClock, tmp_path: Path) -> None:
    storage = SmallPartsStorage()
    large = RANDOM.randbytes(4 * PART + 10)
    for key, data in {"a": large, "b": b"old", "d/c": b"child", "e": b"gone"}.items():
        await storage.put(key, data)
    async with open_tree(storage, tmp_path / "1", options()) as tree:
        handle = await tree.open("a")
        await tree.filesystem.write(handle, PART + 1, b"new")
        await tree.rename("b", "d/b")
        await tree.unlink("e")
        await tree.rename("d", "moved")
        await tree.filesystem.fsync(handle)
    assert {"a", "b", "d/c"} <= set(await stored(storage))
    async with open_tree(storage, tmp_path / "2", options(publishes=True)) as tree:
        assert await tree.names() == ["a", "moved"]
        assert await tree.names("moved") == ["b", "c"]
        await tree.publish_all()
    changed = large[: PART + 1] + b"new" + large[PART + 4 :]
    assert await stored(storage) == {
        "a": changed,
        "moved/": b"",
        "moved/b": b"old",
        "moved/c": b"child",
    }


async def test_commits_share_a_put(autojump_clock: MockClock, tmp_path: Path) -> None:
    storage = FaultyStorage(SmallPartsStorage())
    async with open_tree(storage, tmp_path, options()) as tree:
        handles = [await tree.create(f"{number}") for number in range(16)]
        for handle in handles:
            await tree.filesystem.write(handle, 0, b"bytes")
        gate = storage.hold(Verb.PUT)
        storage.calls.clear()
        async with trio.open_nursery() as nursery:
            for handle in handles:
                nursery.start_soon(tree.filesystem.fsync, handle)
            await gate.reached.wait()
            gate.open()
        assert len(storage.calls_of(Verb.PUT)) <= 2


async def test_more_than_a_batch_holds(autojump_clock: MockClock, tmp_path: Path) -> None:
    storage = SmallPartsStorage()
    data = RANDOM.randbytes(20 * 1024 * 1024)
    async with open_tree(storage, tmp_path / "1", options()) as tree:
        handle = await tree.create("a")
        await tree.filesystem.write(handle, 0, data)
        await tree.filesystem.fsync(handle)
    async with open_tree(storage, tmp_path / "2", options()) as tree:
        assert await tree.read_file("a") == data


async def test_parts_of_an_upload_are_referred_to(autojump_clock: MockClock, tmp_path: Path) -> None:
    storage = FaultyStorage(SmallPartsStorage())
    big = 8 * 1024 * 1024
    data = RANDOM.randbytes(big)
    async with open_tree(storage, tmp_path / "1", options()) as tree:
        handle = await tree.create("a")
        for start in range(0, big, 64 * 1024):
            await tree.filesystem.write(handle, start, data[start : start + 64 * 1024])
            await trio.sleep(0.01)
        await trio.sleep(1)
        await tree.filesystem.fsync(handle)
        sent = sum(call.bytes_sent for call in storage.calls if call.key.startswith(JOURNAL_PREFIX))
        assert sent < big // 2
        await tree.filesystem.write(handle, 100, b"newer")
        await tree.filesystem.fsync(handle)
    async with open_tree(storage, tmp_path / "2", options(publishes=True)) as tree:
        expected = data[:100] + b"newer" + data[105:]
        assert await tree.read_file("a") == expected
        await tree.publish_all()
    assert await stored(storage) == {"a": expected}


@pytest.mark.parametrize("can_copy", [True, False])
async def test_an_upload_that_replaces_an_object_gets_its_end(
    autojump_clock: MockClock, tmp_path: Path, *, can_copy: bool
) -> None:
    """A mount died while it replaced the object by a stream of which the log refers to the first part."""
    storage = _PartsAreCopied(can_copy=can_copy)
    old, new = RANDOM.randbytes(3 * PART + 100), RANDOM.randbytes(PART)
    etag = await storage.put("a", old, metadata={"mode": str(0o100644), LOG_KEY: "1f-1@1-1"})
    upload = await storage.create_multipart("a", metadata={"mode": str(0o100644), LOG_KEY: "1f-1@1-1"})
    part = await upload.upload_part(1, new)
    record = InodeRecord(
        log_id="1f-1",
        number=7,
        path=(b"a",),
        metadata={"mode": str(0o100644)},
        version=Version("a", etag, len(old)),
        target=None,
        content=ContentRecord(
            size=len(old),
            cut=None,
            written=(Written(PART + 5, b"logged"),),
            zeros=(),
            referred=(Extent(0, PART),),
            upload=UploadReference(
                key="a", upload_id=upload.upload_id, parts=(StoredPart(1, part.etag, 0, PART),)
            ),
        ),
    )
    position = Position(1, 2)
    batch = Batch(position=position, cutoff=position, flags=0, records=(record,))
    await storage.put(batch_key(position), encode(batch), mode=CREATE_ONLY)
    expected = new + old[PART : PART + 5] + b"logged" + old[PART + 11 :]
    for number in range(2):  # the one that has completed the upload may be lost as well
        async with open_tree(storage, tmp_path / str(number), options()) as tree:
            assert await tree.read_file("a") == expected
    async with open_tree(storage, tmp_path / "last", options(publishes=True)) as tree:
        await tree.publish_all()
    assert await stored(storage) == {"a": expected}


class _PartsAreCopied(SmallPartsStorage):
    def __init__(self, *, can_copy: bool) -> None:
        super().__init__()
        self._can_copy = can_copy

    @property
    def capabilities(self) -> Capabilities:
        return replace(super().capabilities, copy_part=self._can_copy)


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("pause", [0, 1])
async def test_streaming_with_fsyncs_sends_little_twice(
    autojump_clock: MockClock, tmp_path: Path, small_batches: None, aligned: bool, pause: float
) -> None:
    """Also where all but the last part is there when fsync comes."""
    storage = FaultyStorage(SmallPartsStorage())
    step = 8 * PART if aligned else 8 * PART - 700
    data = RANDOM.randbytes(16 * step)
    async with open_tree(storage, tmp_path / "1", options()) as tree:
        handle = await tree.create("a")
        for start in range(0, len(data), step):
            await tree.write(handle, start, data[start : start + step])
            await trio.sleep(pause)
            await tree.filesystem.fsync(handle)
        sent = sum(call.bytes_sent for call in storage.calls_of(Verb.UPLOAD_PART))
        assert sent + await _carried_bytes(storage) <= 1.1 * len(data)
    async with open_tree(storage, tmp_path / "2", options(publishes=True)) as tree:
        assert await tree.read_file("a") == data


async def _carried_bytes(storage: FaultyStorage) -> int:
    """Return how many bytes of files the log carries; what it says of them beside that weighs more here than usual."""
    carried = 0
    for key in await batches(storage):
        position = position_of(key)
        assert position is not None
        records = decode((await storage.get_range(key)).data, position).records
        contents = [record.content for record in records if isinstance(record, InodeRecord)]
        carried += sum(len(each.data) for content in contents if content for each in content.written)
    return carried


class _Slow(InterceptedStorage):
    """A store that takes a second for each part."""

    async def _carry_out(self, request: Request, send: Callable[[], Awaitable[T]]) -> T:
        if request.verb is Verb.UPLOAD_PART:
            await trio.sleep(1)
        return await send()


def _logged_bytes(storage: FaultyStorage) -> int:
    return sum(call.bytes_sent for call in storage.calls_of(Verb.PUT) if call.key.startswith(JOURNAL_PREFIX))


async def test_a_commit_ends_though_a_stream_is_written_faster_than_it_goes_up(
    autojump_clock: MockClock, tmp_path: Path, small_batches: None
) -> None:
    """It waits for parts that are on their way, and the writer waits for it."""
    storage = FaultyStorage(_Slow(SmallPartsStorage()))
    async with open_tree(storage, tmp_path, options()) as tree:
        handle = await tree.create("file")
        committed = trio.Event()

        async def write() -> None:
            start, data = 0, RANDOM.randbytes(PART)
            while not committed.is_set():
                await tree.write(handle, start, data)
                start += len(data)
                await trio.sleep(0.01)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(write)
            await trio.sleep(0.5)
            with trio.fail_after(60):
                await tree.log.commit()
            committed.set()
        assert _logged_bytes(storage) < 8 * PART


async def test_what_waits_for_the_parts_of_a_commit_is_not_in_it(
    autojump_clock: MockClock, tmp_path: Path, small_batches: None
) -> None:
    """The kernel sends tens of requests of one writer at once; they would all be before the capture, and in no part."""
    storage = FaultyStorage(_Slow(SmallPartsStorage()))
    async with open_tree(storage, tmp_path, options()) as tree:
        handle = await tree.create("file")
        await tree.write(handle, 0, RANDOM.randbytes(8 * PART))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tree.log.commit)
            await trio.sleep(0.5)
            for number in range(8, 40):
                nursery.start_soon(tree.write, handle, number * PART, RANDOM.randbytes(PART))
        assert await _carried_bytes(storage) == 0


async def test_a_commit_that_comes_while_a_stream_looks_for_full_parts(
    autojump_clock: MockClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It asks the stream as it is then, and ends."""
    monkeypatch.setattr(batch_contents, "BATCH_SIZE", PART)
    storage = FaultyStorage(SmallPartsStorage())
    async with open_tree(storage, tmp_path, options()) as tree:
        handle = await tree.create("file")
        for number in range(100):
            with trio.fail_after(60):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(tree.write, handle, number * PART, RANDOM.randbytes(PART))
                    nursery.start_soon(tree.log.commit)


async def test_a_commit_waits_for_no_parts_of_holes(
    autojump_clock: MockClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They cost the log nothing."""
    monkeypatch.setattr(batch_contents, "BATCH_SIZE", PART)
    storage = FaultyStorage(_Slow(SmallPartsStorage()))
    async with open_tree(storage, tmp_path, options()) as tree:
        handle = await tree.create("sparse")
        await tree.write(handle, 100 * PART, b"end")
        other = await tree.create("other")
        before = trio.current_time()
        await tree.filesystem.fsync(other)
        assert trio.current_time() - before < 1
        assert _logged_bytes(storage) < PART
        assert await tree.filesystem.read(handle, 100 * PART, 5) == b"end"


async def test_a_log_that_is_nearer_than_the_store_waits_for_no_parts(
    autojump_clock: MockClock, tmp_path: Path, small_batches: None
) -> None:
    """It is on the local disk: what fsync has to take is its time, and not the store's."""
    storage, log = FaultyStorage(_Slow(SmallPartsStorage())), SmallPartsStorage()
    data = RANDOM.randbytes(100 * PART)
    async with open_tree(storage, tmp_path / "1", replace(options(), log_storage=log)) as tree:
        handle = await tree.create("file")
        await tree.write(handle, 0, data)
        before = trio.current_time()
        await tree.filesystem.fsync(handle)
        assert trio.current_time() - before < 1
    async with open_tree(storage, tmp_path / "2", replace(options(), log_storage=log)) as tree:
        assert await tree.read_file("file") == data


async def test_a_commit_waits_for_the_end_of_a_stream_that_is_closed_meanwhile(
    autojump_clock: MockClock, tmp_path: Path, small_batches: None
) -> None:
    """All that was still on its way would go up twice otherwise."""
    storage = FaultyStorage(_Slow(SmallPartsStorage()))
    data = RANDOM.randbytes(100 * PART)
    async with open_tree(storage, tmp_path, options(publishes=True)) as tree, trio.open_nursery() as nursery:
        handle = await tree.create("file")
        await tree.write(handle, 0, data)
        nursery.start_soon(tree.log.commit)
        await trio.sleep(0.1)
        await tree.close(handle)
        await tree.publish_all()
        assert _logged_bytes(storage) < 8 * PART
        assert await stored(storage) == {"file": data}


async def test_what_came_and_went_leaves_no_log(autojump_clock: MockClock, tmp_path: Path) -> None:
    storage = SmallPartsStorage()
    async with open_tree(storage, tmp_path, options(publishes=True)) as tree:
        await tree.write_file("kept", b"bytes")
        await tree.log.commit()
        await tree.write_file("temporary", b"bytes")
        await tree.publish_all()
        await tree.write_file("another", b"bytes")
        await tree.unlink("another")
        await tree.publish_all()
        assert await batches(storage) != []
        await tree.log.commit()  # as it is done every few seconds
        await trio.sleep(60)
        assert await batches(storage) == []


async def test_a_new_file_under_the_old_name_of_a_stream(autojump_clock: MockClock, tmp_path: Path) -> None:
    """As a log is rotated: renamed while it is open and goes up, and another begun that needs its name."""
    storage = SmallPartsStorage()
    data = RANDOM.randbytes(20 * PART)
    async with open_tree(storage, tmp_path / "1", options(publishes=True)) as tree:
        handle = await tree.create("log")
        await tree.write(handle, 0, data)
        await trio.sleep(1)
        await tree.filesystem.fsync(handle)
        file = await tree.find_file("log")
        assert file.content.upload is not None
        assert file.content.upload.logged
        await tree.rename("log", "log.1")
        await tree.write_file("log", b"new")
        await trio.sleep(5)
        assert await stored(storage) == {"log": b"new", "log.1": data}
    async with open_tree(storage, tmp_path / "2", options(publishes=True)) as tree:
        assert await tree.read_file("log.1") == data
        assert await tree.read_file("log") == b"new"
        await tree.publish_all()
    assert await stored(storage) == {"log": b"new", "log.1": data}


async def test_a_change_during_the_commit_before_a_publication(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """It is in the log before it is published, like every other; and the log can go in the end."""
    storage = FaultyStorage(SmallPartsStorage())
    async with open_tree(storage, tmp_path, options(publishes=True)) as tree:
        commit = storage.hold(Verb.PUT)
        await tree.mkdir("d")
        await commit.reached.wait()  # the publication's own
        directory = await tree.find("d")
        await tree.filesystem.setattr(directory.number, AttributeChanges(mode=0o700))
        commit.open()
        await tree.publish_all()
        puts = [call.key for call in storage.calls_of(Verb.PUT)]
        assert [key.startswith(JOURNAL_PREFIX) for key in puts] == [True, True, False]
        await trio.sleep(60)
        assert await batches(storage) == []


async def test_a_stream_is_sent_once(autojump_clock: MockClock, tmp_path: Path) -> None:
    storage = FaultyStorage(SmallPartsStorage())
    data = RANDOM.randbytes(20 * PART + 100)
    async with open_tree(storage, tmp_path, options(publishes=True)) as tree:
        await tree.write_file("file", data)
        await tree.publish_all()
        assert sum(call.bytes_sent for call in storage.calls) < 1.05 * len(data)
    assert await stored(storage) == {"file": data}


async def test_a_small_file_that_is_written_again_before_its_publication_ends(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    storage = FaultyStorage(SmallPartsStorage())
    async with open_tree(storage, tmp_path, options(publishes=True)) as tree:
        handle = await tree.create("file")
        await tree.write(handle, 0, b"old")
        commit = storage.hold(Verb.PUT)
        await tree.close(handle)
        await commit.reached.wait()  # the upload's own, when it has read the file
        handle = await tree.open("file")
        await tree.write(handle, 0, b"new and longer")
        commit.open()
        await tree.close(handle)
        await tree.publish_all()
    assert await stored(storage) == {"file": b"new and longer"}


@pytest.mark.parametrize("kind", ["file", "directory"])
async def test_a_name_that_is_given_up_while_the_object_is_on_its_way_there(
    kind: str, autojump_clock: MockClock, tmp_path: Path
) -> None:
    """As a temporary one is, on a mount that is busy: what the log says of the new name is not all that is needed."""
    inner = SmallPartsStorage()
    storage = FaultyStorage(inner)
    async with open_tree(storage, tmp_path / "1", options(publishes=True)) as tree:
        gate = storage.hold(Verb.PUT, key="temporary" if kind == "file" else "temporary/")
        if kind == "file":
            await tree.write_file("temporary", b"bytes")
        else:
            await tree.mkdir("temporary", mode=0o700)
        await trio.sleep(10)
        await tree.rename("temporary", "name")
        await tree.log.commit()
        storage.hold(Verb.COPY, times=math.inf)
        storage.hold(Verb.PUT, key="name/", times=math.inf)
        gate.open()
        await trio.sleep(0.01)
        await tree.write_file("other", b"")
        await tree.log.commit()
    async with open_tree(inner, tmp_path / "2", options(publishes=True)) as tree:
        assert await tree.names() == ["name", "other"]
        assert (await tree.find("name")).attributes.mode & 0o777 == (0o644 if kind == "file" else 0o700)
        if kind == "file":
            assert await tree.read_file("name") == b"bytes"
        await tree.publish_all()
    expected = {"name": b"bytes"} if kind == "file" else {"name/": b""}
    assert await stored(inner) == {**expected, "other": b""}


async def test_the_names_of_a_file_are_told_together_after_a_crash_too(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """Also where another file keeps the log that the next mount after that begins with."""
    inner = SmallPartsStorage()
    async with open_tree(inner, tmp_path / "1", options()) as tree:
        await tree.write_file("a", b"bytes")
        await tree.link("a", "b")
        await tree.log.commit()
    storage = FaultyStorage(inner)
    storage.fail(AccessDenied, verb=Verb.PUT, key="refused", times=math.inf)
    async with open_tree(storage, tmp_path / "2", options(publishes=True)) as tree:
        await tree.write_file("refused", b"")
        await tree.log.commit()
        await trio.sleep(10)
        assert {"a", "b"} <= set(await stored(inner))
        await tree.write_file("other", b"")
        await tree.log.commit()
    async with open_tree(inner, tmp_path / "3", options(publishes=True)) as tree:
        assert await tree.find("a") is await tree.find("b")
        await tree.publish_all()
    async with open_tree(inner, tmp_path / "4", options(publishes=True)) as tree:
        assert await tree.find("a") is await tree.find("b")


async def test_what_is_done_to_a_file_without_a_name_is_told_to_nobody(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """Its attributes are its descriptors' alone; a log that told of them would be kept for that."""
    storage = FaultyStorage(SmallPartsStorage())
    async with open_tree(storage, tmp_path, options(publishes=True)) as tree:
        assert isinstance(tree.log, Committer)
        handle = await tree.create("f")
        number = (await tree.find("f")).number
        await tree.publish_all()
        await tree.unlink("f")
        await tree.publish_all()
        for change in (AttributeChanges(mtime_ns=5), AttributeChanges(mode=0o600)):
            await tree.filesystem.setattr(number, change)
        assert (await tree.filesystem.getattr(number)).attributes.mtime_ns == 5
        await tree.publish_all()
        assert tree.publisher.pending_inodes() == []
        await tree.close(handle)
        await tree.log.finish()
        assert tree.log.is_empty
        assert await stored(storage) == {}


@asynccontextmanager
async def with_times_denied(directory: Path) -> AsyncIterator[Tree]:
    """A mount that could not publish the times of a file; the next one has them from its log."""
    inner = SmallPartsStorage()
    await inner.put("denied", b"bytes")
    storage = FaultyStorage(inner)
    storage.fail(AccessDenied, verb=Verb.COPY, key="denied", times=math.inf)
    async with open_tree(storage, directory / "1", options(publishes=True)) as tree:
        number = (await tree.find("denied")).number
        await tree.filesystem.setattr(number, AttributeChanges(mtime_ns=5))
        with pytest.raises(AccessDenied):
            await tree.publish_all()
        yield tree
    async with open_tree(inner, directory / "2", options()) as tree:
        assert (await tree.find("denied")).attributes.mtime_ns == 5


async def test_times_of_what_cannot_be_published(
    autojump_clock: MockClock, tmp_path: Path, quiet: None
) -> None:
    """They are told with what comes next, after an attempt that has failed, too."""
    async with with_times_denied(tmp_path) as tree:
        await tree.mkdir("next")
        await tree.log.commit()


async def test_times_of_what_cannot_be_published_before_the_end(
    autojump_clock: MockClock, tmp_path: Path, quiet: None
) -> None:
    """The last batch tells of them alone: there is none that would come next."""
    async with with_times_denied(tmp_path) as tree:
        assert isinstance(tree.log, Committer)
        await tree.log.finish()
        assert tree.log.has_everything
        assert not tree.log.is_empty
