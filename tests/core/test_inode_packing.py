"""What the kernel has forgotten takes little memory, and is found again as it was, without a request."""

from __future__ import annotations

import gc
import os
import stat
import tracemalloc
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from backends.memory import MemoryStorage
from fusefs.attributes import to_metadata
from fusefs.filesystem import AttributeChanges
from fusefs.inodes import Inode
from tests.core.tree import CALLER, Tree, TreeOptions, open_tree, stored
from tests.support.faulty import FaultyStorage

FILES = 2_000
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
    for name in ("open", "read", "changed", "published"):
        await storage.put(f"d/{name}", b"x")
    async with open_tree(storage, tmp_path / "after", INDEXED) as tree:
        await tree.open("d/open", os.O_RDONLY)
        await tree.read_file("d/read")
        for name in ("published", "changed"):
            number = (await tree.find(f"d/{name}")).number
            await tree.filesystem.setattr(number, AttributeChanges(mode=0o600))
            if name == "published":
                await tree.publish_all()
        for path in ("d", "d/open", "d/read", "d/changed", "d/published", "d/linked"):
            inode = await look_up(tree, path)
            forget(tree, inode)
            assert await look_up(tree, path) is inode
