"""What a mount leaves for the next one: attributes and inode numbers without a HEAD, and never wrong ones."""

from __future__ import annotations

import math
import os
import stat
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from backends.base import ObjectInfo
from backends.errors import PreconditionFailed, Unavailable
from backends.intercepted import Verb
from backends.memory import MemoryStorage
from fusefs import index_writer, tree_index
from fusefs.attribute_changes import AttributeChanges
from fusefs.attributes import Attributes, Defaults, to_metadata
from fusefs.filesystem import RENAME_EXCHANGE, FilesystemOptions
from fusefs.index_format import decode_block, encode_block
from fusefs.index_writer import FINISH_SECONDS, INTERVAL_SECONDS, NOTE_SECONDS
from fusefs.inodes import Directory, Symlink
from fusefs.publisher import PublishOptions
from fusefs.tree_index import INDEX_PREFIX, TIME_KEY, shard_key, shard_of
from tests.core.tree import CALLER, Tree, TreeOptions, open_tree, stored
from tests.support.faulty import FaultyStorage

INDEXED = TreeOptions(index=True)
READ_ONLY = TreeOptions(index=True, filesystem=FilesystemOptions(read_only=True))
SECOND = 1_000_000_000


class Seconds(FaultyStorage):
    """A store that tells times in seconds, as S3 does; the clock is the test's."""

    def __init__(self) -> None:
        self.now_ns = 1_700_000_000 * SECOND + 500
        super().__init__(MemoryStorage(clock_ns=lambda: self.now_ns // SECOND * SECOND))


async def found(tree: Tree, *paths: str) -> dict[str, tuple[int, Attributes]]:
    inodes = {path: await tree.find(path) for path in paths}
    return {path: (inode.number, inode.attributes) for path, inode in inodes.items()}


async def make(tree: Tree) -> None:
    """A bit of everything."""
    await tree.mkdir("d", 0o2751)
    await tree.mkdir("d/empty")
    await tree.write_file("d/f", b"bytes")
    await tree.symlink("d/l", "target/ä".encode())
    await tree.filesystem.mknod((await tree.find("d")).number, b"p", stat.S_IFIFO | 0o640, 0, CALLER)
    for number, path in enumerate(PATHS, 1):
        changes = AttributeChanges(uid=number, gid=2 * number, mtime_ns=-number)
        await tree.filesystem.setattr((await tree.find(path)).number, changes)


async def make_directory(storage: Seconds, directory: Path, options: TreeOptions = INDEXED) -> None:
    """Let a mount make `d` with the mode 0o711, and leave an index that has it."""
    async with open_tree(storage, directory, options) as tree:
        await tree.mkdir("d", 0o711)
        await tree.end()
    storage.now_ns += SECOND


async def change_mode(tree: Tree) -> None:
    await tree.filesystem.setattr((await tree.find("d")).number, AttributeChanges(mode=0o700))


async def change_mode_elsewhere(storage: Seconds) -> None:
    """Let somebody else do the same, with the marker in the bucket."""
    marker = await storage.head("d/")
    theirs = {**(marker.metadata or {}), "mode": str(stat.S_IFDIR | 0o700)}
    await storage.copy("d/", "d/", metadata=theirs)


async def sees_change(tree: Tree) -> bool:
    return stat.S_IMODE((await tree.find("d")).attributes.mode) == 0o700


PATHS = ("d", "d/empty", "d/f", "d/l", "d/p")


async def test_the_next_mount_needs_no_head(autojump_clock: MockClock, tmp_path: Path) -> None:
    """The root's attributes, one look at what index there is; then a listing and one GET for each directory."""
    storage = FaultyStorage(MemoryStorage())
    async with open_tree(storage, tmp_path / "1", INDEXED) as tree:
        await make(tree)
        await tree.end()
        before = await found(tree, *PATHS)
    storage.calls.clear()
    async with open_tree(storage, tmp_path / "2", INDEXED) as tree:
        assert await found(tree, *PATHS) == before
        link = await tree.find("d/l")
        assert isinstance(link, Symlink)
        assert link.target == "target/ä".encode()
        assert await tree.read_file("d/f") == b"bytes"
        assert sorted((call.verb, call.key) for call in storage.calls) == [
            (Verb.GET_RANGE, shard_key(shard_of("d/"))),
            (Verb.GET_RANGE, shard_key(shard_of(""))),
            (Verb.GET_RANGE, "d/f"),
            (Verb.HEAD, ".fusefs/root"),
            (Verb.LIST_PREFIX, ""),
            (Verb.LIST_PREFIX, ".fusefs/index/"),
            (Verb.LIST_PREFIX, "d/"),
        ]
        storage.calls.clear()
        await tree.end()
        assert storage.calls == [], "nothing new is known"


async def test_ten_thousand_files_after_a_remount(autojump_clock: MockClock, tmp_path: Path) -> None:
    storage = FaultyStorage(MemoryStorage())
    for number in range(10_000):
        await storage.put(f"d/f{number}", b"x")
    async with open_tree(storage, tmp_path / "1", INDEXED) as tree:
        for name in await tree.names("d"):
            await tree.find(f"d/{name}")
        await tree.end()
    storage.calls.clear()
    async with open_tree(storage, tmp_path / "2", INDEXED) as tree:
        for name in await tree.names("d"):
            assert (await tree.find(f"d/{name}")).size == 1
    assert [call.key for call in storage.calls_of(Verb.HEAD)] == [".fusefs/root"]
    assert len(storage.calls_of(Verb.LIST_PREFIX)) == 10 + 2, "of the directory; the root, the index"
    assert len(storage.calls_of(Verb.GET_RANGE)) <= 2, "of the directory's index, and the root's"


async def test_a_large_directory_holds_up_nobody(
    autojump_clock: MockClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is known of it is packed and unpacked in threads."""
    threads: list[int] = []

    def noted(call: Callable[..., Any]) -> Callable[..., Any]:
        def note_and_call(*arguments: Any) -> Any:
            threads.append(threading.get_ident())
            return call(*arguments)

        return note_and_call

    monkeypatch.setattr(index_writer, "LARGE_BLOCK", 20)
    monkeypatch.setattr(tree_index, "LARGE_PAYLOAD", 500)
    monkeypatch.setattr(index_writer, "encode_block", noted(encode_block))
    monkeypatch.setattr(tree_index, "decode_block", noted(decode_block))
    faulty = FaultyStorage(MemoryStorage())
    for mount in ("1", "2"):
        async with open_tree(faulty, tmp_path / mount, TreeOptions(index=True)) as tree:
            if mount == "1":
                for number in range(50):
                    await tree.write_file(f"file-{number}", b"bytes")
                await tree.publish_all()
                assert tree.index_writer is not None
                await tree.index_writer.save(is_final=True)
            else:
                faulty.calls.clear()
                await found(tree, *(f"file-{number}" for number in range(50)))
                assert not faulty.calls_of(Verb.HEAD)
    assert len(threads) == 2
    assert threading.get_ident() not in threads


async def test_what_somebody_else_changed_meanwhile(autojump_clock: MockClock, tmp_path: Path) -> None:
    """Content, attributes alone, a removal, a new object: each is what it is now. A number stays with its name."""
    storage = Seconds()
    async with open_tree(storage, tmp_path / "1", INDEXED) as tree:
        for name in ("content", "attributes", "gone", "same"):
            await tree.write_file(name, b"x")
        await tree.end()
        before = await found(tree, "content", "attributes", "same")
    storage.now_ns += SECOND
    theirs = to_metadata(replace(before["same"][1], uid=7))
    await storage.put("content", b"y", metadata=theirs)
    await storage.copy("attributes", "attributes", metadata=theirs)
    await storage.delete("gone")
    await storage.put("new", b"z")
    storage.calls.clear()
    async with open_tree(storage, tmp_path / "2", INDEXED) as tree:
        assert await tree.names() == ["attributes", "content", "new", "same"]
        after = await found(tree, "content", "attributes", "same")
        assert after["same"] == before["same"]
        for name in ("content", "attributes"):
            assert after[name][0] == before[name][0]
            assert after[name][1].uid == 7
        assert (await tree.find("new")).size == 1
    assert {call.key for call in storage.calls_of(Verb.HEAD)} == {
        ".fusefs/root",
        "content",
        "attributes",
        "new",
    }


async def test_attributes_that_changed_after_the_index_was_written(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """By this mount, which then was killed; also within the second that is all the store tells of times."""
    storage = Seconds()
    async with open_tree(storage, tmp_path / "1", INDEXED) as tree:
        await tree.write_file("f", b"x")
        await tree.publish_all()
        assert tree.index_writer is not None
        await tree.index_writer.save()
        assert ".fusefs/index/" in str(await stored(storage, ours=True))
        await tree.filesystem.setattr((await tree.find("f")).number, AttributeChanges(mode=0o600))
        await tree.publish_all()
    async with open_tree(storage, tmp_path / "2", INDEXED) as tree:
        assert (await tree.find("f")).attributes.mode == stat.S_IFREG | 0o600


async def test_attributes_that_change_while_the_index_is_written(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """The object is older than that of the index, which tells of what was before it: and then the mount was killed."""
    storage = Seconds()
    async with open_tree(storage, tmp_path / "1", INDEXED) as tree, trio.open_nursery() as nursery:
        await tree.write_file("f", b"x")
        await tree.publish_all()
        assert tree.index_writer is not None
        gate = storage.hold(Verb.PUT, key=shard_key(shard_of("")))
        nursery.start_soon(tree.index_writer.save)
        await gate.reached.wait()
        storage.now_ns += SECOND
        await tree.filesystem.setattr((await tree.find("f")).number, AttributeChanges(mode=0o600))
        await tree.publish_all()
        storage.now_ns += 2 * SECOND
        gate.open()
    async with open_tree(storage, tmp_path / "2", INDEXED) as tree:
        assert (await tree.find("f")).attributes.mode == stat.S_IFREG | 0o600


async def test_what_is_written_again_is_not_believed_for_longer(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """The second mount writes the object of the index anew for one directory, and has not looked into the other."""
    storage = Seconds()
    names = same_shard()
    async with open_tree(storage, tmp_path / "1", INDEXED) as tree:
        for name in names:
            await tree.mkdir(name)
            await tree.write_file(f"{name}/f", b"x")
        await tree.end()
    storage.now_ns += SECOND
    theirs = to_metadata(Attributes(mode=stat.S_IFREG, uid=7, gid=7, atime_ns=0, mtime_ns=0, ctime_ns=0))
    await storage.copy(f"{names[0]}/f", f"{names[0]}/f", metadata=theirs)
    storage.now_ns += SECOND
    async with open_tree(storage, tmp_path / "2", INDEXED) as tree:
        await tree.write_file(f"{names[1]}/g", b"x")
        await tree.end()
    storage.calls.clear()
    async with open_tree(storage, tmp_path / "3", INDEXED) as tree:
        assert (await tree.find(f"{names[0]}/f")).attributes.uid == 7
        await tree.find(f"{names[1]}/f")
        await tree.find(f"{names[1]}/g")
    assert [call.key for call in storage.calls_of(Verb.HEAD)] == [".fusefs/root", f"{names[0]}/f"]


def same_shard() -> tuple[str, str]:
    """Return the names of two directories that share an object of the index."""
    first = "d0"
    return first, next(
        name for number in range(1, 10_000) if shard_of(f"{(name := f'd{number}')}/") == shard_of(f"{first}/")
    )


async def test_a_mount_with_other_defaults(autojump_clock: MockClock, tmp_path: Path) -> None:
    """What an object without attributes has is what this mount says; only the numbers are kept."""
    storage = FaultyStorage(MemoryStorage())
    await storage.put("f", b"x")
    await storage.put("d/g", b"x")
    async with open_tree(storage, tmp_path / "1", INDEXED) as tree:
        before = await found(tree, "f", "d", "d/g")
        await tree.end()
    others = replace(INDEXED, defaults=Defaults(uid=5, gid=6, file_mode=0o600, directory_mode=0o700))
    async with open_tree(storage, tmp_path / "2", others) as tree:
        after = await found(tree, "f", "d", "d/g")
    assert {path: number for path, (number, _) in after.items()} == {
        path: number for path, (number, _) in before.items()
    }
    assert {attributes.uid for _, attributes in after.values()} == {5}
    assert after["d"][1].mode == stat.S_IFDIR | 0o700


class NoMarkerMetadata(FaultyStorage):
    """Keeps no metadata of keys that end with a slash, as SeaweedFS does."""

    async def put(self, key: str, data: Any, **options: Any) -> str:
        if key.endswith("/"):
            options.pop("metadata", None)
        return await super().put(key, data, **options)


async def test_attributes_of_directories_on_a_store_that_keeps_none(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    storage = NoMarkerMetadata(MemoryStorage())
    async with open_tree(storage, tmp_path / "1", INDEXED) as tree:
        await make(tree)
        await tree.end()
        before = await found(tree, "d", "d/empty")
    async with open_tree(storage, tmp_path / "2", INDEXED) as tree:
        assert await found(tree, "d", "d/empty") == before
        for _ in range(2):
            await tree.names("d/empty")
            await tree.names("d")
            assert await found(tree, "d", "d/empty") == before
            await trio.sleep(61)


async def test_a_marker_that_somebody_else_changed(autojump_clock: MockClock, tmp_path: Path) -> None:
    """The parent's listing does not tell; that of the directory does."""
    storage = Seconds()
    async with open_tree(storage, tmp_path / "1", INDEXED) as tree:
        await tree.mkdir("d")
        await tree.mkdir("e")
        await tree.end()
    storage.now_ns += SECOND
    theirs = Attributes(mode=stat.S_IFDIR | 0o700, uid=7, gid=7, atime_ns=0, mtime_ns=0, ctime_ns=0)
    await storage.put("d/", b"", metadata=to_metadata(theirs))
    await storage.delete("e/")
    await storage.put("e/f", b"")
    async with open_tree(storage, tmp_path / "2", INDEXED) as tree:
        await tree.names("d")
        await tree.names("e")
        assert (await tree.find("d")).attributes == theirs
        directory = await tree.find("e")
        assert isinstance(directory, Directory)
        assert directory.version is None


async def test_a_read_only_mount_reads_it_and_writes_nothing(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    storage = FaultyStorage(MemoryStorage())
    async with open_tree(storage, tmp_path / "1", INDEXED) as tree:
        await make(tree)
        await tree.end()
        before = await found(tree, *PATHS)
    storage.calls.clear()
    async with open_tree(storage, tmp_path / "2", READ_ONLY) as tree:
        assert await found(tree, *PATHS) == before
        await tree.end()
    assert {call.verb for call in storage.calls} == {Verb.HEAD, Verb.LIST_PREFIX, Verb.GET_RANGE}
    assert len(storage.calls_of(Verb.HEAD)) == 1


@pytest.mark.parametrize("damage", [b"", b"fusefs index 1\n", b"\0" * 1_000, None])
async def test_a_damaged_index_is_reported_and_replaced(
    damage: bytes | None, autojump_clock: MockClock, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    storage = FaultyStorage(MemoryStorage())
    async with open_tree(storage, tmp_path / "1", INDEXED) as tree:
        await make(tree)
        await tree.end()
        before = await found(tree, *PATHS)
    damaged = [key for key in await stored(storage, ours=True) if key.startswith(".fusefs/index/")]
    for key in damaged:
        data = bytearray((await storage.get_range(key)).data)
        data[-20] ^= 1
        await storage.put(key, bytes(data) if damage is None else damage)
    async with open_tree(storage, tmp_path / "2", INDEXED) as tree:
        after = await found(tree, *PATHS)
        assert [attributes for _, attributes in after.values()] == [known for _, known in before.values()]
        reported = [record.getMessage() for record in caplog.records]
        assert len(reported) == len(damaged)
        assert all("is damaged and is not used" in message for message in reported)
        await tree.end()
    storage.calls.clear()
    async with open_tree(storage, tmp_path / "3", INDEXED) as tree:
        assert await found(tree, *PATHS) == after
    assert len(storage.calls_of(Verb.HEAD)) == 1


async def test_an_index_that_cannot_be_read(
    autojump_clock: MockClock, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    storage = FaultyStorage(MemoryStorage())
    await storage.put("f", b"x")
    storage.fail(Unavailable, verb=Verb.LIST_PREFIX, key=".fusefs/index/")
    async with open_tree(storage, tmp_path, INDEXED) as tree:
        assert (await tree.find("f")).size == 1
        assert await tree.names() == ["f"]
    assert "cannot be read" in caplog.text


async def test_an_index_that_cannot_be_written(
    autojump_clock: MockClock, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody hears of it but the log; the next attempt makes it good."""
    storage = FaultyStorage(MemoryStorage())
    async with open_tree(storage, tmp_path, INDEXED) as tree:
        await tree.write_file("f", b"x")
        await tree.publish_all()
        assert tree.index_writer is not None
        for key in (TIME_KEY, shard_key(shard_of(""))):
            storage.fail(Unavailable, verb=Verb.PUT, key=key)
            await tree.index_writer.save()
            assert "cannot be kept for the next mount" in caplog.text
            caplog.clear()
            assert index_puts(storage) == ([key] if key != TIME_KEY else [])
        await tree.index_writer.save()
        assert key in await stored(storage, ours=True)


async def test_it_is_written_now_and_then(autojump_clock: MockClock, tmp_path: Path) -> None:
    """What has changed since the last time; what is on its way into the bucket comes with a later one."""
    storage = FaultyStorage(MemoryStorage())
    async with open_tree(storage, tmp_path, INDEXED) as tree, trio.open_nursery() as nursery:
        assert tree.index_writer is not None
        nursery.start_soon(tree.index_writer.run)
        await tree.mkdir("d")
        await tree.write_file("d/f", b"x")
        await trio.sleep(INTERVAL_SECONDS + 1)
        assert len(index_puts(storage)) == 2
        await trio.sleep(10 * INTERVAL_SECONDS)
        assert len(index_puts(storage)) == 2, "nothing has changed"
        await tree.filesystem.setattr((await tree.find("d/f")).number, AttributeChanges(mode=0o600))
        await trio.sleep(INTERVAL_SECONDS + 1)
        assert len(index_puts(storage)) == 3
        nursery.cancel_scope.cancel()


async def test_a_large_index_is_written_less_often(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock, tmp_path: Path
) -> None:
    """One file of many is written every ten seconds; what that costs does not grow with how many there are."""
    rate = 20
    monkeypatch.setattr(index_writer, "BYTES_PER_SECOND", rate)
    storage = FaultyStorage(MemoryStorage())
    async with open_tree(storage, tmp_path, INDEXED) as tree, trio.open_nursery() as nursery:
        for number in range(200):
            await tree.write_file(f"f{number}", b"x")
        await tree.publish_all()
        assert tree.index_writer is not None
        nursery.start_soon(tree.index_writer.run)
        await trio.lowlevel.checkpoint()
        written = 0
        for number in range(360):
            await tree.write_file(f"f{number % 200}", b"y")
            await trio.sleep(10)
            written += sum([len((await stored(storage, ours=True))[key]) for key in index_puts(storage)])
            storage.calls.clear()
        largest = len((await stored(storage, ours=True))[shard_key(shard_of(""))])
        assert largest > 2 * rate * INTERVAL_SECONDS, "or it would be written as often as a small one"
        assert 0 < written <= rate * 3_600 + largest
        nursery.cancel_scope.cancel()


def index_puts(storage: FaultyStorage) -> list[str]:
    """Return the objects of the index that were written, but for the one that tells the time."""
    keys = [call.key for call in storage.calls_of(Verb.PUT)]
    return [key for key in keys if key.startswith(INDEX_PREFIX) and key != TIME_KEY]


async def test_what_is_not_published_is_not_remembered(autojump_clock: MockClock, tmp_path: Path) -> None:
    """Its old version is what the bucket has if this mount is killed now."""
    storage = FaultyStorage(MemoryStorage())
    async with open_tree(storage, tmp_path / "1", INDEXED) as tree:
        await tree.write_file("f", b"old")
        await tree.publish_all()
        handle = await tree.open("f", os.O_WRONLY)
        await tree.write(handle, 0, b"newer")
        assert tree.index_writer is not None
        await tree.index_writer.save()
    async with open_tree(storage, tmp_path / "2", INDEXED) as tree:
        assert await tree.read_file("f") == b"old"


async def test_two_hosts_write_the_index_of_one_bucket(autojump_clock: MockClock, tmp_path: Path) -> None:
    """Each puts in what it knows; of the other's, what it knows nothing of stays."""
    storage = FaultyStorage(MemoryStorage())
    first, second = same_shard()
    shared = replace(INDEXED, filesystem=FilesystemOptions(shared=True), revalidate_seconds=1.0)
    async with (
        open_tree(storage, tmp_path / "1", replace(shared, mount_id="one")) as one,
        open_tree(storage, tmp_path / "2", replace(shared, mount_id="two")) as two,
    ):
        await one.mkdir(first)
        await two.mkdir(second)
        await one.write_file(f"{first}/f", b"x")
        await two.write_file(f"{second}/f", b"x")
        await trio.sleep(2.0)  # what a shared mount has written it knows once it has looked at it
        await one.find(f"{first}/f")
        await two.find(f"{second}/f")
        async with trio.open_nursery() as nursery:
            for tree in (one, two):
                assert tree.index_writer is not None
                nursery.start_soon(tree.index_writer.save)
    storage.calls.clear()
    async with open_tree(storage, tmp_path / "3", INDEXED) as tree:
        await tree.find(f"{first}/f")
        await tree.find(f"{second}/f")
    heads = {call.key for call in storage.calls_of(Verb.HEAD)}
    assert not heads & {f"{first}/f", f"{second}/f"}


async def test_a_shard_that_others_write_all_the_time_is_left_to_the_next_time(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    storage = FaultyStorage(MemoryStorage())
    async with open_tree(storage, tmp_path, INDEXED) as tree:
        await tree.write_file("f", b"x")
        await tree.publish_all()
        assert tree.index_writer is not None
        key = shard_key(shard_of(""))
        storage.fail(PreconditionFailed, verb=Verb.PUT, key=key, times=2)
        await tree.index_writer.save()
        assert key not in await stored(storage, ours=True)
        await tree.index_writer.save()
        assert key in await stored(storage, ours=True)


async def test_directories_that_are_gone_leave_the_index(autojump_clock: MockClock, tmp_path: Path) -> None:
    storage = FaultyStorage(MemoryStorage())
    first, second = same_shard()
    async with open_tree(storage, tmp_path / "1", INDEXED) as tree:
        for name in (first, second):
            await tree.mkdir(name)
            await tree.write_file(f"{name}/f", b"x")
        await tree.end()
        full = await index_size(storage)
        await tree.unlink(f"{first}/f")
        await tree.rmdir(first)
        await tree.write_file(f"{second}/g", b"x")
        await tree.end()
    assert await index_size(storage) < full


async def index_size(storage: FaultyStorage) -> int:
    objects = await stored(storage, ours=True)
    return sum(len(data) for key, data in objects.items() if key.startswith(".fusefs/index/"))


@pytest.mark.parametrize(("target", "flags"), [("new", 0), ("z", RENAME_EXCHANGE)])
async def test_numbers_below_a_directory_that_was_renamed(
    target: str, flags: int, autojump_clock: MockClock, tmp_path: Path
) -> None:
    """At every depth, also where nothing has an object of its own and all that changes is the prefix."""
    storage = FaultyStorage(MemoryStorage())
    await storage.put("d/e/x/f", b"x")
    await storage.put("z/e/x/f", b"x")

    async def numbers(tree: Tree, name: str) -> list[int]:
        inodes = await found(tree, *(name + path for path in ("", "/e", "/e/x", "/e/x/f")))
        return [number for number, _ in inodes.values()]

    async with open_tree(storage, tmp_path / "1", INDEXED) as tree:
        await numbers(tree, "d")
        await numbers(tree, "z")
        await tree.end()
    async with open_tree(storage, tmp_path / "2", INDEXED) as tree:
        first, second = await numbers(tree, "d"), await numbers(tree, "z")
        await tree.rename("d", target, flags)
        assert tree.index_writer is not None
        await tree.index_writer.save()  # before anything of it is published
        await tree.end()
    async with open_tree(storage, tmp_path / "3", INDEXED) as tree:
        assert await numbers(tree, target) == first
        assert await numbers(tree, "d" if flags else "z") == second


async def test_two_entries_with_one_number(autojump_clock: MockClock, tmp_path: Path) -> None:
    """As after a crash between the index of one directory and that of another: the kernel sees two inodes."""
    storage = FaultyStorage(MemoryStorage())
    async with open_tree(storage, tmp_path / "1", INDEXED) as tree:
        await tree.mkdir("d")
        await tree.write_file("f", b"x")
        await tree.end()
        number = (await tree.find("f")).number
        await tree.rename("f", "d/f")
        await tree.publish_all()
        tree.root.is_indexed = True  # the crash comes before its turn
        assert tree.index_writer is not None
        await tree.index_writer.save()
    await storage.put("f", b"y")
    async with open_tree(storage, tmp_path / "2", INDEXED) as tree:
        moved, new = await tree.find("d/f"), await tree.find("f")
        assert moved.number == number
        assert new.number != number
        assert tree.inodes[new.number] is new


async def test_attributes_that_others_have_changed_are_not_remembered_as_they_were(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """Of a file that is not looked up any more after the listing that told of a change."""
    storage = Seconds()
    async with open_tree(storage, tmp_path / "1", INDEXED) as tree:
        await tree.write_file("f", b"x")
        await tree.end()
        before = await found(tree, "f")
    async with open_tree(storage, tmp_path / "2", INDEXED) as tree:
        await found(tree, "f")
        storage.now_ns += 2 * SECOND
        await storage.copy("f", "f", metadata=to_metadata(replace(before["f"][1], uid=7)))
        await trio.sleep(61)
        await tree.names()
        await tree.write_file("g", b"x")
        await tree.end()
    async with open_tree(storage, tmp_path / "3", INDEXED) as tree:
        number, attributes = (await found(tree, "f"))["f"]
        assert (number, attributes.uid) == (before["f"][0], 7)


async def test_directories_after_a_crash_cost_a_request_once(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """Until the index has what the requests have told."""
    storage = Seconds()
    async with open_tree(storage, tmp_path / "1", INDEXED) as tree:
        await make(tree)
        await tree.end()
        before = await found(tree, *PATHS)
    storage.now_ns += SECOND
    heads: list[set[str]] = []
    for follows_crash in (True, False, False):
        storage.calls.clear()
        options = replace(INDEXED, follows_crash=follows_crash)
        async with open_tree(storage, tmp_path / f"2 {len(heads)}", options) as tree:
            assert await found(tree, *PATHS) == before
            storage.now_ns += SECOND
            await tree.end()
        heads.append({call.key for call in storage.calls_of(Verb.HEAD) if ".fusefs" not in call.key})
    assert heads == [{"d/", "d/empty/"}, set(), set()]


async def test_directories_after_an_end_at_which_the_index_could_not_be_written(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """What the index has of them from before is not believed, although nothing has crashed."""
    storage = Seconds()
    await make_directory(storage, tmp_path / "1")
    async with open_tree(storage, tmp_path / "2", INDEXED) as tree:
        await change_mode(tree)
        await tree.publish_all()
        storage.fail(Unavailable, verb=Verb.PUT, key=shard_key(shard_of("")))
        await tree.end()
    async with open_tree(storage, tmp_path / "3", INDEXED) as tree:
        assert await sees_change(tree)


async def test_an_index_that_takes_too_long_at_the_end(autojump_clock: MockClock, tmp_path: Path) -> None:
    """The end of a mount waits half a minute for it, and no longer; the next one knows that it is not whole."""
    storage = Seconds()
    await make_directory(storage, tmp_path / "1")
    async with open_tree(storage, tmp_path / "2", INDEXED) as tree:
        await change_mode(tree)
        await tree.publish_all()
        storage.hold(Verb.PUT, key=shard_key(shard_of("")), times=math.inf)
        with trio.fail_after(FINISH_SECONDS + NOTE_SECONDS):
            await tree.end()
    async with open_tree(storage, tmp_path / "3", INDEXED) as tree:
        assert await sees_change(tree)


async def test_a_directory_in_one_that_was_not_listed_to_its_end(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """The index has no more of that than before; what has changed in it is not taken for what it was."""
    storage = Seconds()
    async with open_tree(storage, tmp_path / "1", INDEXED) as tree:
        await tree.mkdir("d", 0o711)
        for number in range(1_500):
            await tree.write_file(f"f{number}", b"")
        await tree.end()
    storage.now_ns += SECOND
    async with open_tree(storage, tmp_path / "2", INDEXED) as tree:
        gate = storage.hold(Verb.LIST_PREFIX, key="", call=2)
        inode = await tree.namespace.lookup(tree.root, b"d", wholly=False)
        await tree.filesystem.setattr(inode.number, AttributeChanges(mode=0o700))
        await tree.end()
    gate.open()
    async with open_tree(storage, tmp_path / "3", INDEXED) as tree:
        assert await sees_change(tree)


async def test_the_end_waits_for_what_is_being_written(autojump_clock: MockClock, tmp_path: Path) -> None:
    """What is on its way into the index when a mount ends may not arrive: it is not taken for written."""
    storage = FaultyStorage(MemoryStorage())
    async with open_tree(storage, tmp_path, INDEXED) as tree, trio.open_nursery() as nursery:
        await tree.write_file("f", b"x")
        await tree.publish_all()
        assert tree.index_writer is not None
        gate = storage.hold(Verb.PUT, key=shard_key(shard_of("")))
        nursery.start_soon(tree.index_writer.save)
        await gate.reached.wait()
        has_ended = trio.Event()

        async def end() -> None:
            await tree.end()
            has_ended.set()

        nursery.start_soon(end)
        await wait_all_tasks_blocked()
        assert not has_ended.is_set()
        gate.open()


async def test_attributes_that_others_change_are_seen_when_the_directory_is_listed_again(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """The ETag stays the same, and so do the inode and its number; what is open stays open."""
    storage = Seconds()
    await storage.put("f", b"x")
    async with open_tree(storage, tmp_path) as tree:
        file = await tree.find("f")
        handle = await tree.open("f", os.O_RDONLY)
        storage.now_ns += SECOND
        theirs = to_metadata(replace(file.attributes, uid=7))
        await storage.copy("f", "f", metadata=theirs)
        await trio.sleep(61)
        await tree.names()
        assert await tree.find("f") is file
        assert file.attributes.uid == 7
        assert await tree.filesystem.read(handle, 0, 1) == b"x"
        storage.calls.clear()
        await trio.sleep(61)
        await tree.names()
        await tree.find("f")
        assert [call.verb for call in storage.calls] == [Verb.LIST_PREFIX]
        assert isinstance(await storage.head("f"), ObjectInfo)


async def test_what_is_beside_a_directory_of_its_key_is_what_it_was(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """So is the directory, whichever of the two others have put there."""
    storage = MemoryStorage()
    async with open_tree(storage, tmp_path, INDEXED) as tree:
        await tree.write_file("file", b"ours")
        await tree.mkdir("directory")
        await tree.publish_all()
        await storage.put("file/below", b"theirs")
        await storage.put("directory", b"theirs")
        await trio.sleep(61)
        names = await tree.names()
        assert names == ["%file-directory", "%file-file", "directory", "file"]
        before = await found(tree, *names)
        await tree.end()
    for _ in range(2):
        async with open_tree(storage, tmp_path, INDEXED) as tree:
            await tree.names()
            assert await found(tree, *names) == before
            await tree.end()


async def test_attributes_that_others_give_to_a_directory_of_this_mount_are_seen_when_it_is_listed(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    storage = Seconds()
    async with open_tree(storage, tmp_path) as tree:
        await tree.mkdir("d")
        await tree.write_file("d/f", b"x")
        await tree.publish_all()
        await trio.sleep(61)
        await tree.names("d")
        for uid in (7, 8):
            storage.now_ns += 61 * SECOND
            theirs = to_metadata(replace((await tree.find("d")).attributes, uid=uid))
            await storage.copy("d/", "d/", metadata=theirs)
            for _ in range(2):  # the first listing says that the marker is another one
                await trio.sleep(61)
                await tree.names("d")
            assert (await tree.find("d")).attributes.uid == uid


async def test_what_is_beside_a_recovered_file_is_what_it_was(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """A directory that is not empty when it is listed for the first time has what the index remembers, too."""
    storage = FaultyStorage(MemoryStorage())
    options = replace(INDEXED, logged=True)
    beside = [*PATHS, "f"]
    async with open_tree(storage, tmp_path / "1", options) as tree:
        await make(tree)
        await tree.write_file("f", b"bytes")
        await tree.end()
        before = await found(tree, *beside)
        for path in ("new", "d/new"):
            await tree.write_file(path, b"lost but for the log")
        await tree.log.commit()
    storage.calls.clear()
    async with open_tree(storage, tmp_path / "2", options) as tree:
        assert await tree.read_file("d/new") == b"lost but for the log"
        assert await found(tree, *beside) == before
        heads = {call.key for call in storage.calls_of(Verb.HEAD)}
    assert not heads & set(beside)


async def test_a_directory_that_only_a_listing_finds_beside_a_recovered_file(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """The recovery has looked whether it is there, since its last file is on its way to another directory."""
    storage = FaultyStorage(MemoryStorage())
    options = replace(INDEXED, logged=True)
    async with open_tree(storage, tmp_path / "1", options) as tree:
        await tree.mkdir("d")
        await tree.write_file("d/f", b"bytes")
        await tree.end()
        before = await found(tree, "d")
        await tree.rename("d/f", "f")
        await tree.log.commit()
    async with open_tree(storage, tmp_path / "2", options) as tree:
        assert await found(tree, "d") == before


@pytest.mark.parametrize("follows_crash", [True, False])
async def test_a_directory_under_whose_key_another_one_has_left_its_marker(
    follows_crash: bool, autojump_clock: MockClock, tmp_path: Path
) -> None:
    """What is remembered under that key is the other one's, too: neither its attributes nor its number are taken."""
    storage = MemoryStorage()
    await storage.put("a/s/", b"", metadata={"mode": str(0o40700)})
    for key in ("a/s/f", "b/s/f"):
        await storage.put(key, key.encode())
    options = replace(INDEXED, logged=True)
    async with open_tree(storage, tmp_path / "1", options) as tree:
        before = await found(tree, "a/s", "b/s", "a/s/f", "b/s/f")
        await tree.end()
    log_alone = replace(options, publish=PublishOptions(delay_seconds=1e9, interval_seconds=1e9))
    async with open_tree(storage, tmp_path / "2", log_alone) as tree:
        await found(tree, *before)
        await tree.rename("a", "b", RENAME_EXCHANGE)
        await tree.log.commit()
    await storage.put("a/s/of-others", b"")
    async with open_tree(storage, tmp_path / "3", replace(options, follows_crash=follows_crash)) as tree:
        after = await found(tree, "b/s", "a/s")
        assert after["b/s"] == before["a/s"]
        assert oct(after["a/s"][1].mode) == "0o40755"
        assert after["a/s"][0] != after["b/s"][0]
        await tree.end()
    async with open_tree(storage, tmp_path / "4", options) as tree:
        assert await found(tree, "b/s", "a/s") == after


async def test_a_first_listing_that_fails_half_way_takes_nothing_from_the_next(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    storage = FaultyStorage(MemoryStorage())
    names = [f"f{number:04d}" for number in range(1_500)]
    async with open_tree(storage, tmp_path / "1", INDEXED) as tree:
        for name in names:
            await tree.write_file(name, b"")
        await tree.end()
        before = await found(tree, *names)
    async with open_tree(storage, tmp_path / "2", INDEXED) as tree:
        storage.fail(Unavailable, verb=Verb.LIST_PREFIX, key="", call=2, times=2)
        with pytest.raises(Unavailable):
            await tree.names()
        storage.calls.clear()
        assert await found(tree, *names) == before
        assert storage.calls_of(Verb.HEAD) == []


async def test_a_file_with_times_that_the_index_cannot_hold_keeps_its_number(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    storage = FaultyStorage(MemoryStorage())
    async with open_tree(storage, tmp_path / "1", INDEXED) as tree:
        await tree.write_file("f", b"bytes")
        changes = AttributeChanges(mtime_ns=400 * 366 * 86_400 * SECOND)
        await tree.filesystem.setattr((await tree.find("f")).number, changes)
        await tree.end()
        before = await found(tree, "f")
    async with open_tree(storage, tmp_path / "2", INDEXED) as tree:
        assert await found(tree, "f") == before


async def test_the_time_of_a_directory_in_which_something_has_changed(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """Who has seen it change finds it so in the next mount: caches of mail readers, and git's, rely on that."""
    storage = FaultyStorage(MemoryStorage())
    async with open_tree(storage, tmp_path / "1", INDEXED) as tree:
        await make(tree)
        await tree.end()
        older = await found(tree, "d")
    async with open_tree(storage, tmp_path / "2", INDEXED) as tree:
        assert await found(tree, "d") == older
        await trio.sleep(1)
        await tree.write_file("d/new", b"bytes")
        await tree.end()
        before = await found(tree, "d")
    assert before["d"][1].mtime_ns > older["d"][1].mtime_ns
    async with open_tree(storage, tmp_path / "3", INDEXED) as tree:
        assert await found(tree, "d") == before
        await tree.names("d")
        assert await found(tree, "d") == before


async def test_a_directory_that_nobody_has_looked_up_since_a_crash(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """It stays in doubt, however often the index is written meanwhile."""
    storage = Seconds()
    await make_directory(storage, tmp_path / "1")
    await change_mode_elsewhere(storage)
    for number in (2, 3):
        storage.now_ns += SECOND
        options = replace(INDEXED, follows_crash=number == 2)
        async with open_tree(storage, tmp_path / f"{number}", options) as tree:
            storage.now_ns += SECOND
            await tree.write_file(f"f{number}", b"")
            await tree.end()
    async with open_tree(storage, tmp_path / "4", INDEXED) as tree:
        assert await sees_change(tree)


async def test_a_directory_that_another_host_has_changed_before_a_shared_mount_began(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """The index of the one that knew it before does not say, and is not believed."""
    storage = Seconds()
    shared = replace(INDEXED, filesystem=FilesystemOptions(shared=True))
    await make_directory(storage, tmp_path / "1", shared)
    await change_mode_elsewhere(storage)
    async with open_tree(storage, tmp_path / "2", shared) as tree:
        assert await sees_change(tree)


async def test_a_directory_that_another_host_changes_in_the_second_in_which_the_index_is_written(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """The end of a shared mount is not the end of changes, and its index not the last word on that second."""
    storage = Seconds()
    shared = replace(INDEXED, filesystem=FilesystemOptions(shared=True))
    async with open_tree(storage, tmp_path / "1", shared) as tree:
        await tree.mkdir("d", 0o711)
        await change_mode_elsewhere(storage)
        await tree.end()
    async with open_tree(storage, tmp_path / "2", INDEXED) as tree:
        await tree.names("d")
        assert await sees_change(tree)


async def test_a_directory_that_another_host_has_made_just_now_stays_in_the_index(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """A shared mount that has not heard of it writes the same object of the index."""
    storage = FaultyStorage(MemoryStorage())
    made, known = same_shard()
    shared = replace(INDEXED, filesystem=FilesystemOptions(shared=True), revalidate_seconds=1.0)
    async with (
        open_tree(storage, tmp_path / "1", replace(shared, mount_id="one")) as one,
        open_tree(storage, tmp_path / "2", replace(shared, mount_id="two")) as two,
    ):
        for tree, name in ((two, known), (one, made)):
            await tree.mkdir(name)
            await tree.write_file(f"{name}/f", b"x")
            await trio.sleep(2.0)  # what a shared mount has written it knows once it has looked at it
            await tree.find(f"{name}/f")
        for tree in (one, two):
            assert tree.index_writer is not None
            await tree.index_writer.save()
    storage.calls.clear()
    async with open_tree(storage, tmp_path / "3", INDEXED) as tree:
        await tree.find(f"{made}/f")
    assert f"{made}/f" not in {call.key for call in storage.calls_of(Verb.HEAD)}


async def test_what_is_below_a_renamed_directory_stays_in_the_index(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """Under the names that the objects still have, as long as nobody has looked who they are."""
    storage = FaultyStorage(MemoryStorage())
    renamed, other = same_shard()
    async with open_tree(storage, tmp_path / "1", INDEXED) as tree:
        for name in (renamed, other):
            await tree.mkdir(name)
            await tree.write_file(f"{name}/f", b"x")
        await tree.end()
    logged = replace(INDEXED, logged=True)
    async with open_tree(storage, tmp_path / "2", logged) as tree:
        await tree.find(f"{other}/f")
        storage.hold(Verb.LIST_PREFIX, key=f"{renamed}/", times=math.inf)
        await tree.rename(renamed, "new")
        await tree.unlink(f"{other}/f")
        await trio.sleep(5.0)
        assert tree.index_writer is not None
        await tree.index_writer.save()
        await tree.log.commit()
    storage = FaultyStorage(storage._inner)
    async with open_tree(storage, tmp_path / "3", logged) as tree:
        await tree.find("new/f")
    assert f"{renamed}/f" not in {call.key for call in storage.calls_of(Verb.HEAD)}
