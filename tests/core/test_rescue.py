"""What cannot be published when a mount ends is not thrown away."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import Final

import pytest

from backends.base import MIB, Data
from backends.memory import MemoryStorage
from fusefs.attributes import fresh
from fusefs.content import Content
from fusefs.inodes import ROOT_NUMBER, Directory, File
from fusefs.rescue import rescue
from tests.core.small_disk import disk_use
from tests.core.test_content import open_sources, stored_content
from tests.core.tree import TreeOptions, open_tree

LIMIT: Final = 2 * MIB
"""Of the local disk, where it is full."""


def new_directory(number: int = ROOT_NUMBER) -> Directory:
    return Directory(number=number, attributes=fresh(mode=stat.S_IFDIR, uid=0, gid=0, now_ns=0))


def new_file(directory: Directory, name: bytes, content: Content) -> File:
    file = File(number=3, attributes=fresh(mode=stat.S_IFREG, uid=0, gid=0, now_ns=0), content=content)
    directory.attach(name, file)
    return file


async def test_changed_files_are_moved_under_their_paths(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_sources(MemoryStorage(), tmp_path) as sources:
        root, directory = new_directory(), new_directory(2)
        root.attach(b"d", directory)
        changed = new_file(directory, b"\xffname", Content(sources))
        changed.content.write(2, b"bytes")
        removed = new_file(root, b"removed", Content(sources))
        removed.content.write(0, b"bytes")
        root.detach(b"removed")
        unchanged = new_file(root, b"unchanged", await stored_content(sources))
        assert rescue([root, directory, changed, removed, unchanged], tmp_path / "rescued") == 1
        [path] = [path for path in (tmp_path / "rescued").rglob("*") if path.is_file()]
        assert path.relative_to(tmp_path / "rescued") == Path("d/\udcffname")
        assert path.read_bytes() == b"\0\0bytes"
        assert "bytes [(0, 7)] of 7 are in" in caplog.text


async def test_one_that_cannot_be_moved_does_not_keep_the_others(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_sources(MemoryStorage(), tmp_path) as sources:
        root, directory = new_directory(), new_directory(2)
        root.attach(b"d", directory)
        files = [new_file(directory, b"x", Content(sources)), new_file(root, b"y", Content(sources))]
        for file in files:
            file.content.write(0, b"bytes")
        (tmp_path / "rescued").mkdir()
        (tmp_path / "rescued" / "d").write_bytes(b"in the way")
        assert rescue(files, tmp_path / "rescued") == 2
        assert (tmp_path / "rescued" / "y").read_bytes() == b"bytes"
        assert "'d/x' was not published and cannot be rescued" in caplog.text


async def test_clean_bytes_make_room_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small file is in memory alone: it would go with the process while the disk is full of what the bucket has."""
    pwrite = os.pwrite

    def write_what_fits(descriptor: int, data: Data, offset: int) -> int:
        room = LIMIT - disk_use(tmp_path)
        if room <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return pwrite(descriptor, memoryview(data)[:room], offset)

    monkeypatch.setattr(os, "pwrite", write_what_fits)
    async with open_tree(MemoryStorage(), tmp_path, TreeOptions(logged=False)) as tree:
        await tree.write_file("clean", os.urandom(LIMIT))
        await tree.publish_all()
        assert disk_use(tmp_path) >= LIMIT
        await tree.write_file("small", b"not in the bucket")
        file = await tree.find_file("small")
        assert rescue([file], tmp_path / "rescued") == 1
        assert (tmp_path / "rescued" / "small").read_bytes() == b"not in the bucket"
