"""A bucket as s3fs leaves it, with the metadata that s3fs 1.90 has stored: each kind is what it was."""

from __future__ import annotations

import stat
from dataclasses import replace
from pathlib import Path

import pytest
from trio.testing import MockClock

from backends.memory import MemoryStorage
from fusefs import extended_attributes
from fusefs.attribute_changes import AttributeChanges
from fusefs.attributes import Attributes
from fusefs.inodes import Directory, File, Special, Symlink
from fusefs.publisher import PublishOptions
from tests.core.tree import Tree, TreeOptions, open_tree, stored_metadata

SECOND = 1_000_000_000
OWNED = {"uid": "0", "gid": "0", "atime": "1795529894", "ctime": "1795529894", "mtime": "1795529894"}
FILE = {
    "atime": "0.000000001",
    "ctime": "1795529894",
    "gid": "2345",
    "mode": "33184",
    "mtime": "1600000000.123456789",
    "uid": "1234",
    "xattr": "%7B%22user.a%22%3A%22AP8gdmFsdWU%3D%22%7D",
}


async def filled() -> MemoryStorage:
    storage = MemoryStorage()
    await storage.put("file", b"hello", metadata=FILE)
    await storage.put("dir/", b"", metadata={**OWNED, "mode": "16872", "uid": "1234"})
    await storage.put("dir/x", b"x", metadata={**OWNED, "mode": "33188"})
    await storage.put("link", b"dir/x", metadata={**OWNED, "mode": "41471"})
    await storage.put("fifo", b"", metadata={**OWNED, "mode": "4516"})
    return storage


async def attributes_of(tree: Tree, path: str, kind: type) -> Attributes:
    inode = await tree.find(path)
    assert isinstance(inode, kind)
    return inode.attributes


async def test_each_kind(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with open_tree(await filled(), tmp_path) as tree:
        assert await tree.names() == ["dir", "fifo", "file", "link"]
        file = await attributes_of(tree, "file", File)
        assert file.mode == stat.S_IFREG | 0o640
        assert (file.uid, file.gid) == (1234, 2345)
        assert (file.atime_ns, file.mtime_ns) == (1, 1_600_000_000 * SECOND + 123_456_789)
        directory = await attributes_of(tree, "dir", Directory)
        assert (directory.mode, directory.uid) == (stat.S_IFDIR | 0o750, 1234)
        link = await tree.find("link")
        assert isinstance(link, Symlink)
        assert link.target == b"dir/x"
        assert (await attributes_of(tree, "fifo", Special)).mode == stat.S_IFIFO | 0o644
        assert (await attributes_of(tree, "dir/x", File)).mtime_ns == 1_795_529_894 * SECOND


async def test_a_rename_keeps_what_s3fs_stored(autojump_clock: MockClock, tmp_path: Path) -> None:
    """Apart from ctime, and from the form of times."""
    async with open_tree(await filled(), tmp_path) as tree:
        await tree.rename("file", "renamed")
        await tree.rename("dir", "moved")
        await tree.publish_all()
        metadata = await stored_metadata(tree.storage)
        for name in ("atime", "gid", "mode", "mtime", "uid", "xattr"):
            assert metadata["renamed"][name] == FILE[name]
        assert (metadata["moved/"]["mode"], metadata["moved/"]["uid"]) == ("16872", "1234")
        assert metadata["moved/x"]["mode"] == "33188"


@pytest.mark.parametrize("again", ["looked up", "mounted", "recovered"])
async def test_a_change_keeps_long_extended_attributes_that_s3fs_stored(
    again: str, autojump_clock: MockClock, tmp_path: Path
) -> None:
    """Longer than ours may be in metadata, they are not in an object of their own, to which a reference could lead."""
    text = extended_attributes.encode({b"user.a": b"x" * 900})
    storage = MemoryStorage()
    await storage.put("file", b"hello", metadata={**FILE, "xattr": text})
    options = TreeOptions(index=True, logged=True)
    rarely = replace(options, publish=PublishOptions(delay_seconds=1e9, interval_seconds=1e9))
    async with open_tree(storage, tmp_path / "1", rarely if again == "recovered" else options) as tree:
        inode = await tree.find("file")
        if again == "looked up":
            tree.filesystem.forget([(inode.number, 1)])
            await change_mode(tree)
            await tree.publish_all()
        elif again == "mounted":
            assert tree.index_writer is not None
            await tree.index_writer.save(is_final=True)
        else:
            await change_mode(tree)
            await tree.log.commit()
    async with open_tree(storage, tmp_path / "2", options) as tree:
        if again == "mounted":
            await change_mode(tree)
        await tree.publish_all()
    metadata = (await stored_metadata(storage))["file"]
    assert (metadata["mode"], metadata["xattr"]) == (str(0o100600), text)
    assert "xattr-object" not in metadata


async def change_mode(tree: Tree) -> None:
    inode = await tree.find("file")
    await tree.filesystem.setattr(inode.number, AttributeChanges(mode=0o600))
