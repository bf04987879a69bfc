"""Names that no key can hold, and keys that no name can be: what is done with them reaches the right object."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from trio.testing import MockClock

from backends.memory import MemoryStorage
from fusefs.errors import CrossesReserved, EntryExists
from fusefs.filesystem import AttributeChanges
from fusefs.inodes import Directory
from tests.core.tree import CALLER, Tree, open_tree, stored, stored_metadata

LATIN1 = b"caf\xe9"


async def filled(*keys: str) -> MemoryStorage:
    """Return a store with objects whose bytes are their keys."""
    storage = MemoryStorage()
    for key in keys:
        await storage.put(key, b"" if key.endswith("/") else key.encode())
    return storage


async def read(tree: Tree, directory: Directory, name: bytes) -> bytes:
    inode = await tree.namespace.lookup(directory, name)
    handle = await tree.filesystem.open(inode.number, os.O_RDONLY, CALLER)
    try:
        return await tree.filesystem.read(handle, 0, 1_000)
    finally:
        await tree.filesystem.release(handle)


async def test_names_that_are_not_utf8(autojump_clock: MockClock, tmp_path: Path) -> None:
    """A file, a directory and what is below it; found again by another mount, renamed and removed."""
    storage = MemoryStorage()
    async with open_tree(storage, tmp_path / "one") as tree:
        root = tree.root.number
        directory = await tree.filesystem.mkdir(root, LATIN1, 0o755, CALLER)
        _, handle = await tree.filesystem.create(directory.number, b"\xff", 0o644, os.O_RDWR, CALLER)
        await tree.write(handle, 0, b"bytes")
        await tree.close(handle)
        await tree.publish_all()
        assert await stored(storage) == {"%bytes-caf%E9/%bytes-%FF": b"bytes", "%bytes-caf%E9/": b""}
    async with open_tree(storage, tmp_path / "two") as tree:
        root = tree.root.number
        assert await tree.listed(tree.root) == [LATIN1]
        found = await tree.namespace.lookup(tree.root, LATIN1)
        assert isinstance(found, Directory)
        assert await read(tree, found, b"\xff") == b"bytes"
        with pytest.raises(EntryExists, match="xe9"):
            await tree.filesystem.mkdir(root, LATIN1, 0o755, CALLER)
        await tree.filesystem.rename(root, LATIN1, root, b"\xfe", 0)
        await tree.publish_all()
        assert await stored(storage) == {"%bytes-%FE/%bytes-%FF": b"bytes", "%bytes-%FE/": b""}
        await tree.filesystem.unlink(found.number, b"\xff")
        await tree.filesystem.rmdir(root, b"\xfe")
        await tree.publish_all()
        assert await stored(storage) == {}


async def test_names_that_look_like_escapes(autojump_clock: MockClock, tmp_path: Path) -> None:
    """Whatever a program calls its files: what it reads is what it wrote, and keys of others stay what they are."""
    storage = await filled("%bytes-theirs", "%key-%25bytes-theirs")
    names = [b"%bytes-%FF", b"%key-a", b"%file-", b"%25", b"%bytes-theirs"]
    async with open_tree(storage, tmp_path / "one") as tree:
        for name in names:
            _, handle = await tree.filesystem.create(1, name, 0o644, os.O_RDWR, CALLER)
            await tree.write(handle, 0, name)
            await tree.close(handle)
        await tree.publish_all()
    async with open_tree(storage, tmp_path / "two") as tree:
        theirs = {
            b"%key-%25bytes-theirs": b"%bytes-theirs",
            b"%key-%25key-%2525bytes-theirs": b"%key-%25bytes-theirs",
        }
        assert set(await tree.listed(tree.root)) == {*names, *theirs}
        for name in names:
            assert await read(tree, tree.root, name) == name
        for name, content in theirs.items():
            assert await read(tree, tree.root, name) == content


@pytest.mark.parametrize(
    ("key", "path"),
    [
        ("a//b", [b"a", b"%key-", b"b"]),
        ("/b", [b"%key-", b"b"]),
        ("//", [b"%key-", b"%key-"]),
        ("a/./b", [b"a", b"%key-%2E", b"b"]),
        ("a/..", [b"a", b"%key-%2E%2E"]),
        ("a/%bytes-b", [b"a", b"%key-%25bytes-b"]),
    ],
)
async def test_keys_that_are_no_names(
    autojump_clock: MockClock, tmp_path: Path, key: str, path: list[bytes]
) -> None:
    """They are read, changed, renamed and removed under escaped names, with what is beside them untouched."""
    storage = await filled(key, "a/c", "other")
    async with open_tree(storage, tmp_path) as tree:
        directory, last = tree.root, path[-1]
        for name in path[:-1]:
            found = await tree.namespace.lookup(directory, name)
            assert isinstance(found, Directory)
            directory = found
        inode = await tree.namespace.lookup(directory, last)
        await tree.filesystem.setattr(inode.number, AttributeChanges(mode=0o600))
        await tree.publish_all()
        assert set(await stored(storage)) == {key, "a/c", "other"}
        assert int((await stored_metadata(storage))[key]["mode"]) & 0o777 == 0o600
        if not isinstance(inode, Directory):
            assert await read(tree, directory, last) == key.encode()
        with pytest.raises(CrossesReserved):
            await tree.filesystem.rename(1, b"other", 1, b"%key-", 0)
        await tree.filesystem.rename(directory.number, last, 1, b"healed", 0)
        await tree.publish_all()
        kept = {name for name in await stored(storage) if not name.endswith("/")}
        assert kept == {"a/c", "other"} | ({"healed"} if not isinstance(inode, Directory) else set())
        if isinstance(inode, Directory):
            await tree.filesystem.rmdir(1, b"healed")
        else:
            await tree.filesystem.unlink(1, b"healed")
        await tree.publish_all()
        assert {name for name in await stored(storage) if not name.endswith("/")} == {"a/c", "other"}


async def test_directories_move_with_keys_that_are_no_names(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    storage = await filled("a//b", "a/../c", "a/%key-d")
    async with open_tree(storage, tmp_path) as tree:
        await tree.rename("a", "z")
        await tree.publish_all()
        moved = {"z//b": b"a//b", "z/../c": b"a/../c", "z/%key-d": b"a/%key-d"}
        assert await stored(storage) == {"z/": b""} | moved
