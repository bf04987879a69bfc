"""What the kernel has forgotten takes little memory, and is found again as it was, without a request."""

from __future__ import annotations

import gc
import math
import os
import stat
import tracemalloc
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.lowlevel
import trio.testing
from trio.testing import MockClock

import fusefs
from backends.errors import AccessDenied
from backends.intercepted import InterceptedStorage, Request, T, Verb
from backends.memory import MemoryStorage
from fusefs import inode_packing
from fusefs.attribute_changes import AttributeChanges
from fusefs.attributes import to_metadata
from fusefs.filesystem import RENAME_EXCHANGE, FilesystemOptions
from fusefs.inodes import Inode
from tests.core.tree import CALLER, Tree, TreeOptions, open_tree, stored
from tests.support.faulty import FaultyStorage

FILES = 2_000
USED = 300
INDEXED = TreeOptions(index=True)


async def filled(tmp_path: Path) -> FaultyStorage:
    """Return what a mount has left: a file, a symbolic link, a fifo and a further name of a file, in a directory."""
    storage = FaultyStorage(MemoryStorage())
    async with open_tree(storage, tmp_path / "before", INDEXED) as tree:
        await tree.mkdir("d")
        await tree.write_file("d/f", b"bytes")
        await tree.symlink("d/l", b"target")
        await tree.filesystem.mknod((await tree.find("d")).number, b"p", stat.S_IFIFO | 0o640, 0, CALLER)
        await tree.write_file("d/linked", b"")
        await tree.link("d/linked", "d/second")
        await tree.end()
    return storage


async def look_up(tree: Tree, path: str) -> Inode:
    """Look a path up as the kernel does, which then refers to the inode."""
    return await tree.filesystem.lookup(*await tree.place_of(path))


def forget(tree: Tree, inode: Inode) -> None:
    tree.filesystem.forget([(inode.number, inode.lookups)])


async def test_a_walk_through_many_files_leaves_little(autojump_clock: MockClock, tmp_path: Path) -> None:
    storage = MemoryStorage()
    for number in range(FILES):
        await storage.put(f"d/measurement-{number:07d}", b"x")
    async with open_tree(storage, tmp_path, INDEXED) as tree:
        names = await tree.names("d")
        gc.collect()
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            for name in names:
                forget(tree, await look_up(tree, f"d/{name}"))
            gc.collect()
            assert tracemalloc.get_traced_memory()[0] - before < 400 * FILES
        finally:
            tracemalloc.stop()
        assert len(tree.inodes) == 2, "the root and the directory"


@pytest.mark.parametrize("changed", [False, True], ids=["read", "changed"])
@pytest.mark.parametrize("logged", [False, True], ids=["no log", "log"])
async def test_what_was_used_takes_no_more_than_what_was_looked_at(
    logged: bool, changed: bool, autojump_clock: MockClock, tmp_path: Path
) -> None:
    """When the bucket has it, the log tells of it no more, and its bytes have given way. It is the same then."""
    storage = FaultyStorage(MemoryStorage())
    paths = [f"d/measurement-{number:07d}" for number in range(USED)]
    for path in () if changed else paths:
        await storage.put(path, path.encode())
    async with open_tree(storage, tmp_path, TreeOptions(index=True, logged=logged)) as tree:
        await (tree.mkdir("d") if changed else tree.names("d"))
        known: list[int] = []
        tracemalloc.start()
        try:
            for first in range(0, USED, 50):
                for path in paths[first : first + 50]:
                    if changed:
                        await tree.write_file(path, path.encode())
                    assert await tree.read_file(path) == path.encode()
                    inode = await look_up(tree, path)
                    known.append(hash((inode.number, inode.attributes)))
                    forget(tree, inode)
                await tree.packer.pack_all()
                assert len(tree.inodes) >= 2 + 50, "all of it is on the local disk"
                await tree.publish_all()
                await trio.sleep(40)
                tree.sources.budget.make_room(goal_bytes=0)
                await tree.packer.pack_all()
                assert len(tree.inodes) == 2, "the root and the directory"
            del inode
            gc.collect()
            # Of 3,500 before: keys and marks in the bucket are up to 140, and a dict that has grown once more 120.
            assert _bytes_of_the_tree() < 800 * USED
        finally:
            tracemalloc.stop()
        storage.calls.clear()
        for listings in range(3):
            for path, was in zip(paths, known, strict=True):
                inode = await tree.find(path)
                assert hash((inode.number, inode.attributes)) == was
            await tree.packer.pack_all()
            asked = [request.verb for request in storage.calls if request.verb is not Verb.GET_RANGE]
            assert asked == [Verb.LIST_PREFIX] * listings, "and no HEAD"
            await trio.sleep(100)
            await tree.names("d")
        for path in paths:
            assert await tree.read_file(path) == path.encode()


def _bytes_of_the_tree() -> int:
    """Return what is traced of `fusefs`, but for the objects' metadata, which the bucket has in memory."""
    package = Path(fusefs.__file__).parent
    filters = [
        tracemalloc.Filter(True, f"{package}/*"),
        tracemalloc.Filter(False, f"{package}/attributes.py"),
    ]
    traces = tracemalloc.take_snapshot().filter_traces(filters)
    return sum(each.size for each in traces.statistics("filename"))


@pytest.mark.parametrize("path", ["d/f", "d/l", "d/p"])
async def test_it_is_found_again_as_it_was(path: str, autojump_clock: MockClock, tmp_path: Path) -> None:
    storage = await filled(tmp_path)
    async with open_tree(storage, tmp_path / "after", INDEXED) as tree:
        first = await look_up(tree, path)
        before = (first.number, first.attributes, first.size, getattr(first, "target", None))
        storage.calls.clear()
        forget(tree, first)
        again = await look_up(tree, path)
        assert again is not first
        assert (again.number, again.attributes, again.size, getattr(again, "target", None)) == before
        forget(tree, again)
        await tree.end()
        assert storage.calls == [], "the index has it all the same"


async def read(tree: Tree) -> None:
    assert await tree.read_file("d/f") == b"bytes"


async def write(tree: Tree) -> None:
    await tree.write_file("d/f", b"others")
    await tree.publish_all()
    assert (await stored(tree.storage))["d/f"] == b"others"


async def rename(tree: Tree) -> None:
    await tree.rename("d/f", "f")
    await tree.publish_all()
    assert "d/f" not in await stored(tree.storage)
    assert await tree.read_file("f") == b"bytes"


async def rename_above(tree: Tree) -> None:
    await tree.rename("d", "e")
    await tree.publish_all()
    assert await tree.read_file("e/f") == b"bytes"


async def remove(tree: Tree) -> None:
    await tree.unlink("d/f")
    await tree.publish_all()
    assert "d/f" not in await stored(tree.storage)


@pytest.mark.parametrize("use", [read, write, rename, rename_above, remove])
async def test_it_can_be_used_again(
    use: Callable[[Tree], Coroutine[Any, Any, None]], autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with open_tree(await filled(tmp_path), tmp_path / "after", INDEXED) as tree:
        forget(tree, await look_up(tree, "d/f"))
        await use(tree)


async def test_what_others_change_keeps_its_number(autojump_clock: MockClock, tmp_path: Path) -> None:
    """In content, and in attributes alone."""
    storage = await filled(tmp_path)
    async with open_tree(storage, tmp_path / "after", INDEXED) as tree:
        files = [await look_up(tree, path) for path in ("d/f", "d/l")]
        before = [file.number for file in files]
        theirs = to_metadata(files[0].attributes)
        for file in files:
            forget(tree, file)
        await storage.put("d/f", b"theirs", metadata=theirs | {"uid": "7"})
        await storage.copy("d/l", "d/l", metadata=theirs | {"uid": "7"})
        await trio.sleep(61)
        await tree.names("d")
        after = [await look_up(tree, path) for path in ("d/f", "d/l")]
        assert [file.number for file in after] == before
        assert [file.attributes.uid for file in after] == [7, 7]


async def test_what_is_in_use_stays(autojump_clock: MockClock, tmp_path: Path) -> None:
    """An open file, one that was read, one that was changed, a directory, and a file with several names."""
    storage = await filled(tmp_path)
    for name in ("open", "read", "changed"):
        await storage.put(f"d/{name}", b"x")
    async with open_tree(storage, tmp_path / "after", INDEXED) as tree:
        await tree.open("d/open", os.O_RDONLY)
        await tree.read_file("d/read")
        await tree.filesystem.setattr((await tree.find("d/changed")).number, AttributeChanges(mode=0o600))
        for path in ("d", "d/open", "d/read", "d/changed", "d/linked"):
            inode = await look_up(tree, path)
            forget(tree, inode)
            await tree.packer.pack_all()
            assert await look_up(tree, path) is inode


async def test_what_the_log_tells_of_stays(autojump_clock: MockClock, tmp_path: Path) -> None:
    """It would be another inode to the log when it is changed again: until its name there counts no more."""
    async with open_tree(FaultyStorage(MemoryStorage()), tmp_path, TreeOptions(logged=True)) as tree:
        kept = await tree.create("kept")
        await tree.write_file("f", b"")
        file = await tree.find_file("f")
        await tree.publish_all()
        await trio.sleep(5)
        await tree.packer.pack_all()
        assert await tree.find("f") is not file, "the log is gone"

        await tree.write(kept, 0, b"needed until it is published")
        await tree.write_file("f", b"")
        file = await tree.find_file("f")
        await tree.publisher.publish(file)
        await tree.packer.pack_all()
        assert await tree.find("f") is file, "the log tells of both"
        await tree.publish_all()
        await tree.packer.pack_all()
        assert await tree.find("f") is file, "no batch says that the log is not needed"
        await tree.write(kept, 0, b"of the next batch")
        await tree.filesystem.fsync(kept)
        await trio.testing.wait_all_tasks_blocked()  # who notes its cutoff has to see it, too
        await tree.packer.pack_all()
        assert await tree.find("f") is not file


async def test_what_the_log_of_an_earlier_mount_tells_of_stays(
    autojump_clock: MockClock, tmp_path: Path, quiet: None
) -> None:
    """The same, as long as that log is needed, if only for another file: or else the next recovery finds both."""
    logged = TreeOptions(logged=True)
    inner = MemoryStorage()
    lost, storage = FaultyStorage(inner), FaultyStorage(inner)
    lost.fail(AccessDenied, verb=Verb.PUT, key="f", times=math.inf)
    for each in (lost, storage):
        each.fail(AccessDenied, verb=Verb.PUT, key="denied", times=math.inf)
    async with open_tree(lost, tmp_path / "lost", logged) as tree:
        await tree.write_file("f", b"")
        await tree.write_file("denied", b"bytes")
        await tree.log.commit()
    async with open_tree(storage, tmp_path / "mount", logged) as tree:
        file = await tree.find_file("f")
        await tree.publisher.publish(file)
        await tree.packer.pack_all()
        assert await tree.find("f") is file
        await tree.write_file("f", b"newer")
        await tree.log.commit()
    async with open_tree(inner, tmp_path / "next", logged) as tree:
        assert await tree.read_file("f") == b"newer"


class LateListings(InterceptedStorage):
    """Listings are as they were when they were asked for, and come when the test says so."""

    def __init__(self, inner: MemoryStorage) -> None:
        super().__init__(inner)
        self.arrive = trio.Event()
        self.arrive.set()

    async def _carry_out(self, request: Request, send: Callable[[], Awaitable[T]]) -> T:
        result = await send()
        if request.verb is Verb.LIST_PREFIX:
            await self.arrive.wait()
        return result


async def test_what_is_written_while_its_directory_is_listed_stays(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """The listing does not have it, or has another version."""
    storage = LateListings(MemoryStorage())
    await storage.put("d/changed", b"before")
    async with open_tree(storage, tmp_path) as tree:
        await tree.names("d")
        await trio.sleep(100)
        storage.arrive = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tree.names, "d")
            await trio.testing.wait_all_tasks_blocked()
            for handle in (await tree.open("d/changed"), await tree.create("d/new")):
                await tree.write(handle, 0, b"since then")
                await tree.close(handle)
            await tree.publish_all()
            tree.sources.budget.make_room(goal_bytes=0)
            await tree.packer.pack_all()
            storage.arrive.set()
        assert await tree.names("d") == ["changed", "new"]
        await tree.packer.pack_all()
        assert len(tree.inodes) == 2, "the root and the directory"
        for path in ("d/changed", "d/new"):
            assert await tree.read_file(path) == b"since then"


async def test_who_renames_a_directory_finds_all_of_it_as_inodes(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """At the same time, however long that takes and whatever is packed meanwhile."""
    storage = MemoryStorage()
    for path in ("d/a/f", "d/b/f", "d/f", "e/a/f", "e/f"):
        await storage.put(path, path.encode())
    async with open_tree(storage, tmp_path) as tree:
        for path in ("d/a", "d/b", "d", "e/a", "e"):
            await tree.names(path)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pack_without_a_pause, tree)
            for _ in range(3):
                await tree.rename("d", "e", RENAME_EXCHANGE)
            nursery.cancel_scope.cancel()
        await tree.publish_all()
    assert (await stored(storage))["e/b/f"] == b"d/b/f"
    assert (await stored(storage))["d/a/f"] == b"e/a/f"


async def pack_without_a_pause(tree: Tree) -> None:
    while True:
        await tree.packer.pack_all()
        await trio.lowlevel.checkpoint()


async def test_a_file_that_had_two_names_for_a_moment(autojump_clock: MockClock, tmp_path: Path) -> None:
    """Written, linked and unlinked, as git does with each object: it is a file with one name then."""
    async with open_tree(MemoryStorage(), tmp_path, TreeOptions(logged=True)) as tree:
        for number in range(20):
            await tree.write_file("temporary", b"x")
            await tree.link("temporary", f"name{number}")
            await tree.unlink("temporary")
        await tree.publish_all()
        await trio.sleep(100)
        tree.sources.budget.make_room(goal_bytes=0)
        await tree.packer.pack_all()
        assert len(tree.inodes) == 1, "the root"
        assert (await tree.find("name7")).link_count == 1


@pytest.mark.parametrize("logged", [False, True], ids=["no log", "log"])
async def test_files_with_several_names_beyond_what_there_is_room_for(
    logged: bool, autojump_clock: MockClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A walk through them leaves some of them in memory; the others are found again, with all their names."""
    monkeypatch.setattr(inode_packing, "LINKED_NAMES", 8)
    storage = FaultyStorage(MemoryStorage())
    async with open_tree(storage, tmp_path, TreeOptions(logged=logged)) as tree:
        await tree.mkdir("d")
        for number in range(20):
            await tree.write_file(f"f{number}", b"x")
            await tree.link(f"f{number}", f"d/g{number}")
        await tree.publish_all()
        await trio.sleep(100)
        tree.sources.budget.make_room(goal_bytes=0)
        before = [(await tree.find(f"f{number}")).number for number in range(20)]
        await tree.packer.pack_all()
        assert len(tree.inodes) == 2 + 4, "the root, the directory, and files with two names each"
        storage.calls.clear()
        for number in range(20):
            for path in (f"f{number}", f"d/g{number}"):
                inode = await tree.find(path)
                assert (inode.number, inode.link_count) == (before[number], 2)
        asked = len(storage.calls_of(Verb.HEAD)), len(storage.calls_of(Verb.GET_RANGE))
        assert asked == (2 * 16, 16), "of each that was packed its objects, and the list of its names"
        await tree.packer.pack_all()
        await tree.write_file("d/g7", b"other")
        await tree.unlink("d/g8")
        assert await tree.read_file("f7") == b"other"
        assert (await tree.find("f8")).link_count == 1
        await tree.publish_all()
        now = await stored(storage)
        assert (now["f7"], now["d/g7"], now["f8"], now.get("d/g8")) == (b"other", b"other", b"x", None)


async def test_what_a_shared_mount_has_written_and_listed_since(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """Whether it is as it was is to be asked for, and it has no need of memory until then."""
    options = TreeOptions(filesystem=FilesystemOptions(shared=True), revalidate_seconds=1.0)
    async with open_tree(MemoryStorage(), tmp_path, options) as tree:
        inodes = []
        for number in range(20):
            await tree.write_file(f"f{number}", b"x")
            inodes.append(await tree.filesystem.lookup(1, f"f{number}".encode()))
        await trio.sleep(3)
        await tree.names()
        for inode in inodes:
            tree.filesystem.forget([(inode.number, inode.lookups)])
        tree.sources.budget.make_room(goal_bytes=0)
        await trio.sleep(100)
        await tree.packer.pack_all()
        assert len(tree.inodes) == 1, "the root"
        assert await tree.read_file("f7") == b"x"
