"""A mount that dies at any call leaves an index that shows nothing but what the bucket says, only with fewer requests.

The store tells times in seconds, as S3 does, so that attributes which change within the second in which the index was
written look like those that it has.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from backends.memory import MemoryStorage
from fusefs.attribute_changes import AttributeChanges
from fusefs.attributes import Attributes
from fusefs.filesystem import FilesystemOptions
from fusefs.inodes import Directory, Inode, Symlink
from tests.core.mortal import Death, MortalStorage
from tests.core.tree import Tree, TreeOptions, open_tree
from tests.support.faulty import FaultyStorage

SECOND = 1_000_000_000
INDEXED = TreeOptions(index=True)
LOOKING = TreeOptions(index=True, follows_crash=True, filesystem=FilesystemOptions(read_only=True))
WITHOUT = replace(LOOKING, index=False)


def coarse_storage() -> MemoryStorage:
    """Return a store whose clock goes with trio's, by the second."""
    return MemoryStorage(clock_ns=lambda: (1_700_000_000 + int(trio.current_time())) * SECOND)


async def act(tree: Tree) -> None:
    """Change attributes, content, names and links, each before and after the index was written."""
    await tree.mkdir("d")
    for name in ("content", "attributes", "renamed", "removed"):
        await tree.write_file(f"d/{name}", b"old")
    await tree.symlink("d/link", b"target")
    await tree.publish_all()
    await save(tree)
    for path in ("d/attributes", "d"):
        changes = AttributeChanges(mode=0o700, uid=7, gid=7, mtime_ns=SECOND)
        await tree.filesystem.setattr((await tree.find(path)).number, changes)
    await tree.publish_all()
    await trio.sleep(0.3)
    await tree.write_file("d/content", b"new")
    await tree.rename("d/renamed", "d/other")
    await tree.unlink("d/removed")
    await tree.symlink("d/second", b"another")
    await tree.rename("d/second", "d/link")
    await tree.publish_all()
    await save(tree)
    await tree.filesystem.setattr((await tree.find("d/other")).number, AttributeChanges(mode=0o604))
    await tree.end()


async def act_and_die(tree: Tree, mortal: MortalStorage) -> None:
    """Die at the end at the latest: how many calls there are is not always the same."""
    await act(tree)
    mortal.die()


async def save(tree: Tree) -> None:
    assert tree.index_writer is not None
    await tree.index_writer.save()


async def seen(storage: MemoryStorage, directory: Path, options: TreeOptions) -> dict[str, object]:
    """Return what a mount shows of everything, each inode as it is looked up, before it is listed."""
    found: dict[str, object] = {}
    async with open_tree(storage, directory, options) as tree:
        waiting = [""]
        while waiting:
            path = waiting.pop()
            inode = await tree.find(path)
            found[path] = described(inode)
            if isinstance(inode, Directory):
                waiting += [os.path.join(path, name) for name in await tree.names(path)]
    return found


def described(inode: Inode) -> tuple[Attributes, int, bytes]:
    return inode.attributes, inode.size, inode.target if isinstance(inode, Symlink) else b""


async def calls_of(tmp_path: Path) -> int:
    storage = FaultyStorage(coarse_storage())
    async with open_tree(storage, tmp_path, INDEXED) as tree:
        storage.calls.clear()
        await act(tree)
    return len(storage.calls)


@pytest.mark.parametrize("death", [Death.CALL_LOST, Death.ANSWER_LOST])
async def test_what_a_dead_mount_has_left(death: Death, autojump_clock: MockClock, tmp_path: Path) -> None:
    for call in range(1, await calls_of(tmp_path / "counted") + 1):
        storage = coarse_storage()
        mortal = MortalStorage(storage)
        place = tmp_path / str(call)
        async with open_tree(mortal, place / "dying", INDEXED) as tree, trio.open_nursery() as nursery:
            mortal.die_at(call, death)
            nursery.start_soon(act_and_die, tree, mortal)
            await mortal.dead.wait()
            nursery.cancel_scope.cancel()
        expected = await seen(storage, place / "without", WITHOUT)
        assert await seen(storage, place / "with", LOOKING) == expected, f"call {call}"


async def test_numbers_of_directories_beside_and_above_what_the_log_has(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """The index has them, and a listing does not show those in which something is recovered."""
    storage = MemoryStorage()
    options = replace(INDEXED, logged=True)
    directories = ["a", "a/b", "a/b/c", "d", "d/b", "d/b/c", "e"]
    paths = [*directories, *(f"{directory}/x" for directory in directories)]
    async with open_tree(storage, tmp_path / "1", options) as tree:
        for path in paths:
            await (tree.mkdir(path) if path in directories else tree.write_file(path, b"old"))
        await tree.publish_all()
        await trio.sleep(60)
        await tree.end()
        numbers = {path: (await tree.find(path)).number for path in paths}
    async with open_tree(storage, tmp_path / "2", options) as tree:
        for path in ("a/x", "a/b/c/x", "d/b/c/x", "e/x"):
            await tree.write_file(path, b"new")
        await tree.unlink("d/x")
        await tree.log.commit()
    del numbers["d/x"]
    async with open_tree(storage, tmp_path / "3", replace(options, follows_crash=True)) as tree:
        assert {path: (await tree.find(path)).number for path in numbers} == numbers
