"""What another client does to the bucket, as a shared mount sees it: within the interval, and at open at the latest."""

from __future__ import annotations

import os
import stat
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from backends.intercepted import Request, T, Verb
from backends.memory import MemoryStorage
from fusefs.attribute_changes import AttributeChanges
from fusefs.attributes import to_metadata
from fusefs.errors import NoSuchEntry, NoSuchInode, StaleFile
from fusefs.filesystem import RENAME_EXCHANGE, FilesystemOptions
from fusefs.inodes import File
from tests.core.tree import CALLER, TreeOptions, TrioTime, open_tree, stored
from tests.support.faulty import FaultyStorage

SHARED = TreeOptions(filesystem=FilesystemOptions(shared=True), revalidate_seconds=1.0)
INTERVAL = 1.1
SECOND = 1_000_000_000


async def test_numbers_of_what_did_not_change_stay(autojump_clock: MockClock, tmp_path: Path) -> None:
    """Each listing is merged into what is known: the kernel's inodes of the other entries are not forgotten."""
    storage = MemoryStorage()
    for name in ("changed", "gone", "same", "d/same", "d/gone"):
        await storage.put(name, b"x")
    async with open_tree(storage, tmp_path, SHARED) as tree:
        before = {
            path: await tree.find(path) for path in ("changed", "gone", "same", "d", "d/same", "d/gone")
        }
        tree.filesystem.refer(
            before["changed"]
        )  # as long as the kernel knows it, its number is not given again
        await storage.put("changed", b"other")
        await storage.put("new", b"new")
        await storage.delete("gone")
        await storage.delete("d/gone")
        await trio.sleep(INTERVAL)
        assert await tree.names() == ["changed", "d", "new", "same"]
        assert await tree.names("d") == ["same"]
        for path in ("same", "d", "d/same"):
            assert await tree.find(path) is before[path]
        assert (await tree.find("changed")).number != before["changed"].number
        for path in ("gone", "d/gone"):
            with pytest.raises(NoSuchEntry):
                await tree.find(path)


async def test_attributes_that_another_host_changes(autojump_clock: MockClock, tmp_path: Path) -> None:
    """A change of mode leaves the ETag as it is, and the file the same one."""
    storage = MemoryStorage()
    await storage.put("f", b"x")
    async with (
        open_tree(storage, tmp_path / "1", replace(SHARED, mount_id="one")) as one,
        open_tree(storage, tmp_path / "2", replace(SHARED, mount_id="two")) as two,
    ):
        ours, theirs = await one.find("f"), await two.find("f")
        await two.filesystem.setattr(theirs.number, AttributeChanges(mode=0o600))
        await trio.sleep(INTERVAL)
        assert await one.find("f") is ours
        assert ours.attributes.mode == stat.S_IFREG | 0o600


@pytest.mark.parametrize("is_known", [False, True])
async def test_attributes_that_change_twice_in_a_second(
    is_known: bool, autojump_clock: MockClock, tmp_path: Path
) -> None:
    """S3 tells no more of the time: what is read in between is read again. Then it costs no more than a listing."""
    behind = MemoryStorage(clock_ns=lambda: (TrioTime().realtime_ns() // SECOND - 2) * SECOND)
    storage = FaultyStorage(behind)
    await storage.put("f", b"x")
    await trio.sleep(10)
    async with open_tree(storage, tmp_path, SHARED) as tree:
        if is_known:
            await tree.find("f")
            await trio.sleep(10)
        for mode in (0o600, 0o640):
            await storage.copy("f", "f", metadata={"mode": str(stat.S_IFREG | mode)})
            assert stat.S_IMODE((await tree.find("f")).attributes.mode) in (0o600, mode)
            await trio.sleep(0.4)
        await trio.sleep(INTERVAL)
        assert stat.S_IMODE((await tree.find("f")).attributes.mode) == 0o640
        await trio.sleep(10)
        await tree.find("f")
        storage.calls.clear()
        await trio.sleep(INTERVAL)
        await tree.find("f")
        assert [call.verb for call in storage.calls] == [Verb.LIST_PREFIX]


@pytest.mark.parametrize("is_forgotten", [False, True])
async def test_attributes_that_another_host_changes_of_what_this_one_has_made(
    is_forgotten: bool, autojump_clock: MockClock, tmp_path: Path
) -> None:
    """When the store received that, nobody has told this host; so it asks what is there now."""
    storage = MemoryStorage()
    async with (
        open_tree(storage, tmp_path / "1", replace(SHARED, mount_id="one")) as one,
        open_tree(storage, tmp_path / "2", replace(SHARED, mount_id="two")) as two,
    ):
        await one.mkdir("d")
        await one.write_file("f", b"")
        numbers = [(await one.find(path)).number for path in ("d", "f")]
        if is_forgotten:
            await one.packer.pack_all()
            assert not isinstance(one.root.children[b"f"], File)
        for path, mode in (("d", 0o700), ("f", 0o600)):
            await two.filesystem.setattr((await two.find(path)).number, AttributeChanges(mode=mode))
        await trio.sleep(INTERVAL)
        await one.names("d")
        found = [await one.find(path) for path in ("d", "f")]
        assert [stat.S_IMODE(inode.attributes.mode) for inode in found] == [0o700, 0o600]
        assert [inode.number for inode in found] == numbers


async def test_attributes_that_both_change(autojump_clock: MockClock, tmp_path: Path) -> None:
    """What is being published here is not replaced by what a listing said before."""
    storage = MemoryStorage()
    await storage.put("f", b"x")
    async with open_tree(storage, tmp_path, SHARED) as tree:
        file = await tree.find("f")
        await storage.copy("f", "f", metadata=to_metadata(replace(file.attributes, uid=7)))
        await tree.filesystem.setattr(file.number, AttributeChanges(mode=0o600))
        await trio.sleep(INTERVAL)
        await tree.names()
        assert (await tree.find("f")).attributes.mode == stat.S_IFREG | 0o600


async def test_a_file_that_is_open_is_one_version_or_stale(autojump_clock: MockClock, tmp_path: Path) -> None:
    """Whether its object was replaced or removed: what is not here yet is not taken from another version."""
    storage = MemoryStorage()
    for name in ("replaced", "removed"):
        await storage.put(name, b"old" * 4_000_000)
    async with open_tree(storage, tmp_path, SHARED) as tree:
        handles = [await tree.open(name, os.O_RDONLY) for name in ("replaced", "removed")]
        numbers = [(await tree.find(name)).number for name in ("replaced", "removed")]
        await storage.put("replaced", b"new" * 4_000_000)
        await storage.delete("removed")
        for handle, number in zip(handles, numbers, strict=True):
            with pytest.raises(StaleFile):
                await tree.filesystem.read(handle, 9_000_000, 3)
            with pytest.raises((NoSuchInode, StaleFile)):
                await tree.filesystem.open(number, os.O_RDONLY, CALLER)
        assert (await tree.read_file("replaced"))[:3] == b"new"


async def test_what_is_changed_here_meanwhile_is_not_taken_back(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """A listing has made attributes doubtful, and before anybody asked the bucket they were changed here."""
    async with open_tree(MemoryStorage(), tmp_path) as tree:
        await tree.write_file("f", b"bytes")
        await tree.publish_all()
        inode = await tree.find("f")
        inode.is_doubtful = True
        await tree.filesystem.setattr(inode.number, AttributeChanges(mode=0o600))
        changed = inode.attributes
        assert (await tree.find("f")).attributes == changed


async def test_a_directory_under_whose_key_is_the_marker_of_another_one(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """Until that has left, it tells nothing of who has the name now, and is not taken from its owner."""
    storage = FaultyStorage(MemoryStorage())
    await storage.put("a/s/", b"", metadata={"mode": str(0o40700)})
    for key in ("a/s/f", "b/s/f"):
        await storage.put(key, b"")
    async with open_tree(storage, tmp_path, SHARED) as tree, trio.open_nursery() as nursery:
        for path in ("a/s/f", "b/s/f"):
            await tree.find(path)
        gate = storage.hold(Verb.PUT, key="b/s/")
        nursery.start_soon(tree.rename, "a", "b", RENAME_EXCHANGE)
        await trio.sleep(10 * INTERVAL)
        await tree.names("a")
        found = [(await tree.find(path)).attributes.mode for path in ("a/s", "b/s")]
        assert [stat.S_IMODE(mode) for mode in found] == [0o755, 0o700]
        gate.open()
        await trio.sleep(10 * INTERVAL)
        await tree.publish_all()
    async with open_tree(storage, tmp_path / "next", SHARED) as tree:
        assert [(await tree.find(path)).attributes.mode for path in ("a/s", "b/s")] == found


async def test_times_of_a_directory_do_not_go_back(autojump_clock: MockClock, tmp_path: Path) -> None:
    """What happened inside has moved them since its marker was written, and no object tells of that."""
    async with open_tree(MemoryStorage(), tmp_path) as tree:
        await tree.mkdir("d")
        await tree.publish_all()
        await tree.write_file("d/f", b"bytes")
        directory = await tree.find("d")
        moved = directory.attributes
        directory.is_doubtful = True
        assert (await tree.find("d")).attributes == moved
        assert not directory.is_doubtful


async def test_times_in_the_future_that_a_change_inside_has_replaced(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """The marker still has them, and nobody else has written it."""
    async with open_tree(MemoryStorage(), tmp_path, SHARED) as tree:
        await tree.mkdir("d")
        directory = await tree.find("d")
        tree.filesystem.refer(directory)
        await tree.filesystem.setattr(directory.number, AttributeChanges(mode=0o700, mtime_ns=1 << 62))
        await tree.write_file("d/f", b"bytes")
        moved = directory.attributes
        for _ in range(3):
            await trio.sleep(INTERVAL)
            assert await tree.names("d") == ["f"]
            assert await tree.find("d") is directory
            assert directory.attributes == moved


@pytest.mark.parametrize("exchange", [False, True])
async def test_a_rename_takes_along_what_others_have_done_below(
    exchange: bool, autojump_clock: MockClock, tmp_path: Path
) -> None:
    """It is as old as the interval: nothing of it stays under the old name, or is taken for what it was before."""
    storage = MemoryStorage()
    for key in ("d/changed", "d/below/gone", "d/below/same", "other/x"):
        await storage.put(key, b"before")
    async with open_tree(storage, tmp_path, SHARED) as tree:
        for path in ("d/changed", "d/below/gone", "d/below/same"):
            await tree.find(path)
        await storage.put("d/changed", b"after")
        await storage.put("d/new", b"new")
        await storage.put("d/below/late/new", b"new")
        await storage.delete("d/below/gone")
        await trio.sleep(INTERVAL)
        if exchange:
            await tree.rename("other", "d", RENAME_EXCHANGE)
        else:
            await tree.rename("d", "other/moved")
        moved = "other" if exchange else "other/moved"
        assert await tree.names(moved) == ["below", "changed", "new"]
        assert await tree.read_file(f"{moved}/changed") == b"after"
        await tree.publish_all()
        objects = await stored(storage)
    below = {key.removeprefix(f"{moved}/"): data for key, data in objects.items() if not key.endswith("/")}
    assert {key: data for key, data in below.items() if key not in objects} == {
        "below/late/new": b"new",
        "below/same": b"before",
        "changed": b"after",
        "new": b"new",
    }
    old = {key for key in objects if key.startswith("d/")}
    assert old == ({"d/", "d/x"} if exchange else set())


async def test_a_directory_in_use_is_renamed(autojump_clock: MockClock, tmp_path: Path) -> None:
    """All below it is found out first, which takes longer than what was found out last time is believed."""
    storage = SlowListings(MemoryStorage())
    deep = "/".join(f"d{number}" for number in range(60))
    await storage.put(f"top/{deep}/f", b"x")
    await storage.put("top/other/f", b"x")
    async with open_tree(storage, tmp_path, SHARED) as tree:
        await tree.find("top")

        async def look() -> None:
            while True:
                await trio.sleep(0.3)
                with suppress(NoSuchEntry, NoSuchInode):
                    await tree.find("top/missing")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(look)
            with trio.fail_after(60):
                await tree.rename("top", "new")
            nursery.cancel_scope.cancel()


class SlowListings(FaultyStorage):
    """A listing takes a twentieth of a second."""

    async def _carry_out(self, request: Request, send: Callable[[], Awaitable[T]]) -> T:
        if request.verb is Verb.LIST_PREFIX:
            await trio.sleep(0.05)
        return await super()._carry_out(request, send)


class LateAnswer(FaultyStorage):
    """Holds back the answer to a HEAD, where it is told to."""

    def __init__(self, inner: MemoryStorage) -> None:
        super().__init__(inner)
        self.is_late = False
        self.is_under_way, self.may_come = trio.Event(), trio.Event()

    async def _carry_out(self, request: Request, send: Callable[[], Awaitable[T]]) -> T:
        answer = await super()._carry_out(request, send)
        if request.verb is Verb.HEAD and self.is_late:
            self.is_late = False
            self.is_under_way.set()
            await self.may_come.wait()
        return answer


async def test_an_answer_that_is_older_than_a_listing(autojump_clock: MockClock, tmp_path: Path) -> None:
    """It comes after that, and tells of attributes that others have changed again meanwhile."""
    storage = LateAnswer(MemoryStorage(clock_ns=lambda: 10**18 + int(trio.current_time() * 1e9)))
    await storage.put("f", b"x")
    async with open_tree(storage, tmp_path, SHARED) as tree:
        file = await tree.find("f")

        async def change_mode(mode: int) -> None:
            await trio.sleep(3)
            changed = replace(file.attributes, mode=stat.S_IFREG | mode)
            await storage.copy("f", "f", metadata=to_metadata(changed))
            await trio.sleep(3)
            await tree.names()

        await change_mode(0o601)
        storage.is_late = True
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tree.find, "f")
            await storage.is_under_way.wait()
            await change_mode(0o602)
            storage.may_come.set()
        assert stat.S_IMODE((await tree.find("f")).attributes.mode) == 0o602


@pytest.mark.parametrize("read_only", [True, False])
async def test_who_was_told_estale_opens_it_again(
    read_only: bool, autojump_clock: MockClock, tmp_path: Path
) -> None:
    """And gets what somebody else has put there, also if nobody lists the directory; on other mounts, too."""
    storage = MemoryStorage()
    await storage.put("f", b"old")
    options = TreeOptions(filesystem=FilesystemOptions(read_only=read_only), revalidate_seconds=1.0)
    async with open_tree(storage, tmp_path, options) as tree:
        await tree.find("f")
        await storage.put("f", b"newer")
        await trio.sleep(100)
        with pytest.raises(StaleFile):
            await tree.read_file("f")
        assert await tree.read_file("f") == b"newer"
