"""How soon a shared mount shows what others do: at the interval, to the moment, whatever the kernel keeps meanwhile.

The clock is the test's. `Kernel` keeps what it is told for as long as it may, so what it shows is as old as it can be.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, Final, TypeAlias

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from backends.base import ListPage
from backends.intercepted import Verb
from backends.memory import MemoryStorage
from fusefs.errors import NoSuchEntry
from fusefs.filesystem import FilesystemOptions
from fusefs.inodes import ROOT_NUMBER, Inode
from tests.core.tree import EPOCH_NS, Tree, TreeOptions, open_tree
from tests.support.faulty import FaultyStorage

INTERVAL: Final = 1.0
#: As `assembly.freshness_seconds` says: for the tree and for the kernel.
HALF: Final = INTERVAL / 2
SHARED: Final = TreeOptions(filesystem=FilesystemOptions(shared=True), revalidate_seconds=HALF)

Shown: TypeAlias = tuple[int, int] | None
"""Mode and size of what is under a path, if there is anything."""


class Kernel:
    """Looks paths up as the kernel does, which asks again only when what it was told has expired."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._kept: dict[tuple[int, bytes], tuple[float, Inode | None, Shown]] = {}

    async def stat(self, path: str) -> Shown:
        number, shown = ROOT_NUMBER, None
        for name in path.encode().split(b"/"):
            expires, inode, shown = self._kept.get((number, name), (0.0, None, None))
            if trio.current_time() >= expires:
                inode, shown = await self._ask(number, name)
            if inode is None:
                return None
            number = inode.number
        return shown

    async def list(self, path: str) -> AsyncIterator[str]:
        """READDIRPLUS: with the names come entries, which are kept like those that were asked for."""
        directory = await self._tree.find(path)
        handle = await self._tree.filesystem.opendir(directory.number)
        count = 0
        while entries := await self._tree.filesystem.readdir(handle, count, 1):
            for name, entry, position in entries:
                count = position
                if isinstance(entry, Inode):
                    self._keep(directory.number, name, entry)
                yield name.decode()
        await self._tree.filesystem.releasedir(handle)

    async def _ask(self, number: int, name: bytes) -> tuple[Inode | None, Shown]:
        try:
            inode = await self._tree.filesystem.lookup(number, name)
        except NoSuchEntry:
            return self._keep(number, name, None)
        return self._keep(number, name, inode)

    def _keep(self, number: int, name: bytes, inode: Inode | None) -> tuple[Inode | None, Shown]:
        shown = (inode.attributes.mode, inode.size) if inode is not None else None
        self._kept[number, name] = (trio.current_time() + HALF, inode, shown)
        return inode, shown


async def make(storage: MemoryStorage) -> None:
    await storage.put("d/f", b"new")


async def change(storage: MemoryStorage) -> None:
    await storage.put("d/f", b"other bytes")


async def change_mode(storage: MemoryStorage) -> None:
    """As another mount does: a copy of the object onto itself, which leaves its ETag as it was."""
    info = await storage.head("d/f")
    await storage.copy("d/f", "d/f", metadata={**(info.metadata or {}), "mode": str(0o100600)})


async def remove(storage: MemoryStorage) -> None:
    await storage.delete("d/f")


async def make_directory(storage: MemoryStorage) -> None:
    await storage.put("d/f/below", b"in a directory now")


Change: TypeAlias = Callable[[MemoryStorage], Awaitable[None]]

CHANGES: Final[dict[Change, Shown]] = {
    make: (0o100644, 3),
    change: (0o100644, 11),
    change_mode: (0o100600, 3),
    remove: None,
    make_directory: (0o040755, 0),
}
"""What another client does, and what a mount has to show of it then."""


STEPS: Final = [number * INTERVAL / 8 for number in range(9)]


@pytest.mark.parametrize("changed", CHANGES, ids=lambda changed: changed.__name__)
async def test_at_the_interval_they_are_there(
    changed: Change, autojump_clock: MockClock, tmp_path: Path
) -> None:
    """New, changed and removed names, whenever before the change the mount and the kernel have asked.

    The mount lists at 0, and is asked at `asked`, what the kernel keeps; the change comes at `came`.
    """
    for number, (asked, came) in enumerate(product(STEPS, STEPS)):
        storage = MemoryStorage()
        await storage.put("d/other", b"")
        if changed not in (make, make_directory):
            await storage.put("d/f", b"old")
        async with open_tree(storage, tmp_path / f"{number}", SHARED) as tree:
            kernel, began = Kernel(tree), trio.current_time()
            assert [name async for name in kernel.list("d")][-1] == "other"
            events: list[tuple[float, Callable[[], Awaitable[object]]]] = [
                (asked, partial(kernel.stat, "d/f")),
                (came, partial(changed, storage)),
            ]
            for moment, do in sorted(events, key=lambda event: event[0]):
                await trio.sleep_until(began + moment)
                await do()
            await trio.sleep_until(began + came + INTERVAL)
            assert await kernel.stat("d/f") == CHANGES[changed], (asked, came)
            assert ("f" in [name async for name in kernel.list("d")]) == (changed is not remove)


async def test_a_listing_that_is_read_slowly(autojump_clock: MockClock, tmp_path: Path) -> None:
    """What comes with the last names of an old listing is not kept by the kernel as if it were new."""
    storage = MemoryStorage()
    for name in ("a", "b", "f"):
        await storage.put(f"d/{name}", b"old")
    async with open_tree(storage, tmp_path, SHARED) as tree:
        kernel, began = Kernel(tree), trio.current_time()
        await kernel.stat("d/f")
        reading = kernel.list("d")
        names = [await anext(reading), await anext(reading)]
        await change(storage)
        await trio.sleep_until(began + INTERVAL - 0.01)
        names += [name async for name in reading]
        await trio.sleep_until(began + INTERVAL)
        assert names == ["a", "b", "f"]
        assert await kernel.stat("d/f") == (0o100644, 11)


async def test_attributes_of_what_this_mount_has_written(autojump_clock: MockClock, tmp_path: Path) -> None:
    """Somebody else changes them before this mount has listed its own object once."""
    storage = MemoryStorage()
    async with open_tree(storage, tmp_path, SHARED) as tree:
        kernel = Kernel(tree)
        await tree.mkdir("d")
        await tree.write_file("d/f", b"ours")
        assert await kernel.stat("d/f") == (0o100644, 4)
        await change_mode(storage)
        await storage.copy("d/", "d/", metadata={"mode": str(0o40700)})
        await trio.sleep(INTERVAL)
        assert await kernel.stat("d/f") == (0o100600, 4)
        await trio.sleep(HALF)
        assert await kernel.stat("d") == (0o40700, 0)


async def test_attributes_that_the_next_mount_remembers(autojump_clock: MockClock, tmp_path: Path) -> None:
    """The index is written later than the object, and somebody may have changed its attributes in between."""
    storage = MemoryStorage()
    options = replace(SHARED, index=True)
    async with open_tree(storage, tmp_path / "1", options) as tree:
        await tree.mkdir("d")
        await tree.write_file("d/f", b"ours")
        number = (await tree.find("d/f")).number
        await change_mode(storage)
        await tree.end()
    async with open_tree(storage, tmp_path / "2", options) as tree:
        assert await Kernel(tree).stat("d/f") == (0o100600, 4)
        assert (await tree.find("d/f")).number == number


async def test_attributes_of_directories(autojump_clock: MockClock, tmp_path: Path) -> None:
    """Whoever may not enter a directory must see that they may by now, and cannot list it; so nobody has to."""
    for number, (asked, came) in enumerate(product(STEPS, STEPS)):
        storage = MemoryStorage()
        await storage.put("d/marked/", b"", metadata={"mode": str(0o40755)})
        await storage.put("d/not marked/f", b"")
        async with open_tree(storage, tmp_path / f"{number}", SHARED) as tree:
            kernel, began = Kernel(tree), trio.current_time()
            assert len([name async for name in kernel.list("d")]) == 2
            events: list[tuple[float, Callable[[], Awaitable[object]]]] = []
            for path in ("d/marked", "d/not marked"):
                change = partial(storage.put, f"{path}/", b"", metadata={"mode": str(0o40700)})
                events += [(asked, partial(kernel.stat, path)), (came, change)]
            for moment, do in sorted(events, key=lambda event: event[0]):
                await trio.sleep_until(began + moment)
                await do()
            await trio.sleep_until(began + came + INTERVAL)
            for path in ("d/marked", "d/not marked"):
                assert await kernel.stat(path) == (0o40700, 0), (asked, came)


async def test_times_of_a_directory_whose_marker_is_what_it_was(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """What has changed inside since has moved them; they do not go back each time that the marker is looked at."""
    storage = MemoryStorage(clock_ns=lambda: EPOCH_NS + int(trio.current_time() * 1e9))
    await storage.put("d/", b"", metadata={"mode": str(0o40755), "mtime": "5"})
    async with open_tree(storage, tmp_path, SHARED) as tree:
        assert (await tree.find("d")).attributes.mtime_ns == 5_000_000_000
        await tree.write_file("d/f", b"")
        moved = (await tree.find("d")).attributes
        assert moved.mtime_ns > EPOCH_NS
        await trio.sleep(INTERVAL)
        assert (await tree.find("d")).attributes == moved
        await trio.sleep(INTERVAL)
        await storage.copy("d/", "d/", metadata={"mode": str(0o40700), "mtime": "7"})
        assert (await tree.find("d")).attributes.mtime_ns == 7_000_000_000


class SlowListings(FaultyStorage):
    """Takes ten intervals to list a directory."""

    async def list_prefix(self, prefix: str = "", **options: Any) -> ListPage:
        page = await super().list_prefix(prefix, **options)
        await trio.sleep(10 * INTERVAL if prefix else 0)
        return page


async def test_a_directory_that_takes_long_to_list(autojump_clock: MockClock, tmp_path: Path) -> None:
    """What a listing said is good for as long again as it took, or each lookup would wait for one of its own."""
    storage = SlowListings(MemoryStorage())
    for number in range(100):
        await storage.put(f"d/{number:02}", b"")
    async with open_tree(storage, tmp_path, SHARED) as tree:
        kernel = Kernel(tree)
        names = [name async for name in kernel.list("d")]
        storage.calls.clear()
        for name in names:
            await kernel.stat(f"d/{name}")
            await trio.sleep(INTERVAL / 4)
        listings = [request for request in storage.calls_of(Verb.LIST_PREFIX) if request.key]
        assert len(listings) <= 3, "in 25 intervals beside those that they take themselves"
        await storage.put("d/00", b"theirs")
        await trio.sleep(4 * 10 * INTERVAL)
        assert await kernel.stat("d/00") == (0o100644, 6)


@pytest.mark.parametrize("is_first", [True, False])
async def test_a_listing_during_an_outage(is_first: bool, autojump_clock: MockClock, tmp_path: Path) -> None:
    """It took as long as the store did not answer, which is no reason to believe it for as long again."""
    storage = FaultyStorage(MemoryStorage())
    await storage.put("d/f", b"")
    async with open_tree(storage, tmp_path, SHARED) as tree, trio.open_nursery() as nursery:
        kernel = Kernel(tree)
        if not is_first:
            await kernel.stat("d/f")
            await trio.sleep(INTERVAL)
        gate = storage.hold(Verb.LIST_PREFIX, key="d/")
        nursery.start_soon(kernel.stat, "d/f")
        await gate.reached.wait()
        await trio.sleep(600)
        gate.open()
        await wait_all_tasks_blocked()
        await storage.put("d/f", b"theirs")
        await trio.sleep(INTERVAL)
        assert await kernel.stat("d/f") == (0o100644, 6)
