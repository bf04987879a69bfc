"""Directories as deep as a key allows: 512 levels of one letter each."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from backends.memory import MemoryStorage
from fusefs.errors import NameTooLong
from fusefs.inodes import Directory
from tests.core.tree import CALLER, Tree, TreeOptions, open_tree, stored
from tests.support.faulty import FaultyStorage

DEEPEST = "/".join("d" * 511)
"""The path of a directory below which there is room for a name of one byte: 1,021 bytes, a slash and that."""


async def make_all(tree: Tree) -> None:
    directory = tree.root
    for _ in DEEPEST.split("/"):
        made = await tree.filesystem.mkdir(directory.number, b"d", 0o755, CALLER)
        assert isinstance(made, Directory)
        directory = made
    await tree.write_file(f"{DEEPEST}/f", b"deep")


async def test_the_deepest_tree(autojump_clock: MockClock, tmp_path: Path) -> None:
    """Made, published, found again by another mount, renamed, and removed."""
    storage = MemoryStorage()
    async with open_tree(storage, tmp_path / "1") as tree:
        await make_all(tree)
        with pytest.raises(NameTooLong):
            await tree.write_file(f"{DEEPEST}/ff", b"")
        await tree.publish_all()
    assert (await stored(storage))[f"{DEEPEST}/f"] == b"deep"
    async with open_tree(storage, tmp_path / "2", TreeOptions(index=True)) as tree:
        assert await tree.read_file(f"{DEEPEST}/f") == b"deep"
        with pytest.raises(NameTooLong):
            await tree.rename("d", "dd")
        await tree.rename("d", "e")
        await tree.end()
    renamed = "e" + DEEPEST[1:]
    assert (await stored(storage))[f"{renamed}/f"] == b"deep"
    async with open_tree(storage, tmp_path / "3", TreeOptions(index=True)) as tree:
        assert await tree.read_file(f"{renamed}/f") == b"deep"
        await tree.unlink(f"{renamed}/f")
        deepest = await tree.find(renamed)
        while deepest.parent is not None:
            parent, name = deepest.parent, deepest.name
            await tree.filesystem.rmdir(parent.number, name)
            deepest = parent
        await tree.publish_all()
    assert await stored(storage) == {}


async def test_a_deep_tree_that_somebody_else_removes(autojump_clock: MockClock, tmp_path: Path) -> None:
    """Only its deepest file is an object; every directory above is a common prefix of it."""
    storage = FaultyStorage(MemoryStorage())
    await storage.put(f"{DEEPEST}/f", b"deep")
    async with open_tree(storage, tmp_path) as tree:
        assert await tree.names(DEEPEST) == ["f"]
        await storage.delete(f"{DEEPEST}/f")
        await trio.sleep(61)
        assert await tree.names() == []
        assert len(tree.inodes) == 1


async def test_fsync_at_the_bottom(autojump_clock: MockClock, tmp_path: Path) -> None:
    """Every directory above it is in the bucket then."""
    storage = MemoryStorage()
    async with open_tree(storage, tmp_path) as tree:
        await make_all(tree)
        await tree.filesystem.fsync(await tree.open(f"{DEEPEST}/f"))
        objects = await stored(storage)
    assert objects[f"{DEEPEST}/f"] == b"deep"
