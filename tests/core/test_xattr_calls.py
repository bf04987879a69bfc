"""Extended attributes of the tree: with their inode through renames, publications and other mounts."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from trio.testing import MockClock

from backends.memory import MemoryStorage
from fusefs.errors import (
    FilesystemError,
    NoRoomForAttributes,
    NoSuchAttribute,
    NotSupportedHere,
    ReadOnlyFilesystem,
)
from fusefs.filesystem import FilesystemOptions
from tests.core.tree import CALLER, TreeOptions, open_tree, stored, stored_metadata

LARGE = os.urandom(3_000)


@pytest.mark.parametrize("value", [b"", b"value", LARGE], ids=["empty", "small", "large"])
async def test_they_stay_with_their_inode(autojump_clock: MockClock, tmp_path: Path, value: bytes) -> None:
    """In metadata or beside it: renamed, written to, published by one mount and read by another."""
    storage = MemoryStorage()
    async with open_tree(storage, tmp_path / "one") as tree:
        await tree.mkdir("d")
        await tree.write_file("d/f", b"bytes")
        for path in ("d", "d/f", ""):
            await tree.xattrs.set((await tree.find(path)).number, b"user.name", value)
        await tree.rename("d", "e")
        await tree.publish_all()
        await tree.write_file("e/f", b"more bytes")
        await tree.publish_all()
    async with open_tree(storage, tmp_path / "two") as tree:
        for path in ("e", "e/f", ""):
            number = (await tree.find(path)).number
            assert await tree.xattrs.names(number, privileged=False) == [b"user.name"]
            assert await tree.xattrs.get(number, b"user.name") == value
        await tree.rename("e/f", "f")
        await tree.publish_all()
        await tree.xattrs.remove((await tree.find("f")).number, b"user.name")
        await tree.publish_all()
        assert not {"xattr", "xattr-object"} & (await stored_metadata(storage))["f"].keys()
    async with open_tree(storage, tmp_path / "three") as tree:
        assert await tree.xattrs.names((await tree.find("f")).number, privileged=True) == []
        assert await tree.xattrs.get((await tree.find("e")).number, b"user.name") == value


async def test_a_mount_without_them_keeps_them(autojump_clock: MockClock, tmp_path: Path) -> None:
    """What s3fs wrote is still there when the file has been written to and renamed."""
    text = "%7B%22user.a%22%3A%22AP8gdmFsdWU%3D%22%7D"
    storage = MemoryStorage()
    await storage.put("f", b"bytes", metadata={"mode": str(stat.S_IFREG | 0o644), "xattr": text})
    async with open_tree(storage, tmp_path) as tree:
        await tree.write_file("f", b"other bytes")
        await tree.rename("f", "g")
        await tree.publish_all()
        assert (await stored_metadata(storage))["g"]["xattr"] == text
        assert await tree.xattrs.get((await tree.find("g")).number, b"user.a") == b"\x00\xff value"


async def test_equal_ones_share_an_object(autojump_clock: MockClock, tmp_path: Path) -> None:
    """And whoever removes the one file leaves those of the other."""
    async with open_tree(MemoryStorage(), tmp_path) as tree:
        for name in ("a", "b"):
            await tree.write_file(name, b"")
            await tree.xattrs.set((await tree.find(name)).number, b"user.large", LARGE)
        await tree.publish_all()
        await tree.unlink("a")
        await tree.publish_all()
        kept = [key for key in await stored(tree.storage, ours=True) if key.startswith(".fusefs/xattrs/")]
        assert len(kept) == 1
    async with open_tree(tree.storage, tmp_path / "two") as tree:
        assert await tree.xattrs.get((await tree.find("b")).number, b"user.large") == LARGE


async def test_a_change_moves_ctime(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with open_tree(MemoryStorage(), tmp_path) as tree:
        await tree.write_file("f", b"")
        inode = await tree.find("f")
        before = inode.attributes
        await tree.xattrs.set(inode.number, b"user.a", b"")
        assert inode.attributes.ctime_ns > before.ctime_ns
        assert inode.attributes.mtime_ns == before.mtime_ns


async def test_errors(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with open_tree(MemoryStorage(), tmp_path) as tree:
        await tree.write_file("f", b"")
        number = (await tree.find("f")).number
        with pytest.raises(NoSuchAttribute):
            await tree.xattrs.get(number, b"user.a")
        with pytest.raises(NoSuchAttribute):
            await tree.xattrs.remove(number, b"user.a")
        for name in (b"system.posix_acl_access", b"system.posix_acl_default", b"other"):
            with pytest.raises(NotSupportedHere):
                await tree.xattrs.set(number, name, b"")
            with pytest.raises(NotSupportedHere):
                await tree.xattrs.get(number, name)
        for attribute in range(15):
            await tree.xattrs.set(number, b"user.%d" % attribute, bytes(65_536))
        with pytest.raises(NoRoomForAttributes):
            await tree.xattrs.set(number, b"user.more", bytes(65_536))


async def test_trusted_ones_are_shown_to_root(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with open_tree(MemoryStorage(), tmp_path) as tree:
        await tree.write_file("f", b"")
        number = (await tree.find("f")).number
        for name in (b"trusted.a", b"security.b", b"user.c"):
            await tree.xattrs.set(number, name, name)
        assert await tree.xattrs.names(number, privileged=False) == [b"security.b", b"user.c"]
        assert await tree.xattrs.names(number, privileged=True) == [b"security.b", b"trusted.a", b"user.c"]


async def test_read_only_mounts_change_none(autojump_clock: MockClock, tmp_path: Path) -> None:
    options = TreeOptions(filesystem=FilesystemOptions(read_only=True))
    async with open_tree(MemoryStorage(), tmp_path, options) as tree:
        with pytest.raises(ReadOnlyFilesystem):
            await tree.xattrs.set(1, b"user.a", b"")
        with pytest.raises(ReadOnlyFilesystem):
            await tree.xattrs.remove(1, b"user.a")


async def test_shared_mounts_publish_before_they_answer(autojump_clock: MockClock, tmp_path: Path) -> None:
    options = TreeOptions(filesystem=FilesystemOptions(shared=True), revalidate_seconds=1.0)
    async with open_tree(MemoryStorage(), tmp_path, options) as tree:
        inode = await tree.filesystem.symlink(1, b"link", b"target", CALLER)
        await tree.xattrs.set(inode.number, b"security.a", b"b")
        assert "xattr" in (await stored_metadata(tree.storage))["link"]


async def test_lost_ones_are_an_error_and_not_none(autojump_clock: MockClock, tmp_path: Path) -> None:
    """What is not there is not replaced by the first change either."""
    storage = MemoryStorage()
    await storage.put("f", b"", metadata={"xattr-object": "a" * 64})
    async with open_tree(storage, tmp_path) as tree:
        number = (await tree.find("f")).number
        with pytest.raises(FilesystemError, match="gone"):
            await tree.xattrs.names(number, privileged=True)
        with pytest.raises(FilesystemError, match="gone"):
            await tree.xattrs.set(number, b"user.a", b"")
