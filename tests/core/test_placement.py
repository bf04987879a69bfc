"""Whose object lies where, and where it should: the decisions of `fusefs.placement`, without a store."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from trio.testing import MockClock

from backends.base import CREATE_ONLY, IfMatch
from backends.memory import MemoryStorage
from fusefs.change_log import NoLog
from fusefs.placement import ROOT_MARKER
from fusefs.versions import Version
from tests.core.tree import open_tree


async def test_targets_follow_the_tree(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with open_tree(MemoryStorage(), tmp_path) as tree:
        await tree.mkdir("d")
        await tree.write_file("d/file", b"bytes")
        target = tree.placement.target
        file, directory = await tree.find("d/file"), await tree.find("d")
        assert target(tree.root) == ROOT_MARKER
        assert (target(directory), target(file)) == ("d/", "d/file")
        await tree.rename("d", "e")
        assert (target(directory), target(file)) == ("e/", "e/file")
        await tree.unlink("e/file")
        await tree.rmdir("e")
        assert (target(directory), target(file)) == (None, None)


async def test_an_open_file_without_a_name_has_an_object_only_as_long_as_bytes_are_there_alone(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    storage = MemoryStorage()
    await storage.put("clean", b"bytes")
    await storage.put("staged", b"bytes")
    async with open_tree(storage, tmp_path) as tree:
        for name in ("clean", "staged"):
            file = await tree.find_file(name)
            handle = await tree.open(name, os.O_RDONLY)
            if name == "staged":
                await tree.filesystem.read(handle, 0, 5)
            await tree.unlink(name)
            orphan = f".fusefs/orphans/mount/{file.number}"
            assert tree.placement.target(file) == (orphan if name == "clean" else None)


async def test_what_is_overwritten_moved_or_removed(autojump_clock: MockClock, tmp_path: Path) -> None:
    """A key's condition is its newest version that we know of; what nobody takes is to be deleted."""
    storage = MemoryStorage()
    await storage.put("a", b"a")
    await storage.put("b", b"b")
    async with open_tree(storage, tmp_path) as tree:
        placement = tree.placement
        a, b = await tree.find("a"), await tree.find("b")
        assert a.version is not None
        assert b.version is not None
        was_a, was_b = a.version, b.version
        assert placement.condition("a") == IfMatch(was_a.etag)
        assert placement.condition("c") == CREATE_ONLY
        assert placement.obstacle(a, "b") is b

        await tree.rename("a", "b")
        assert placement.obstacle(a, "b") is None
        assert placement.condition("b") == IfMatch(was_b.etag), "a leftover that is overwritten"
        assert list(placement.deletable()) == [], "`b` is wanted, and `a` is still the file's only object"

        moved = Version("b", "new", 1)
        placement.place(a, moved)
        assert a.version == moved
        assert list(placement.deletable()) == [was_a]
        placement.forget_leftover(was_a)
        assert list(placement.deletable()) == []
        assert placement.condition("a") == CREATE_ONLY


async def test_what_others_changed_is_not_ours_to_replace(autojump_clock: MockClock, tmp_path: Path) -> None:
    storage = MemoryStorage()
    await storage.put("a", b"a")
    async with open_tree(storage, tmp_path) as tree:
        a = await tree.find("a")
        tree.placement.forget("a")
        assert a.version is None
        assert tree.placement.condition("a") == CREATE_ONLY
        tree.placement.vacate(a)
        assert list(tree.placement.deletable()) == []


async def test_a_leftover_is_forgotten_only_in_the_version_that_was_deleted(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    storage = MemoryStorage()
    await storage.put("a", b"a")
    async with open_tree(storage, tmp_path) as tree:
        a = await tree.find("a")
        version = a.version
        assert version is not None
        tree.root.detach(b"a")
        with tree.placement.recorded_deletions("") as deleted:
            tree.placement.vacate(a)
            tree.placement.forget_leftover(Version("a", "other", 1))
            assert list(tree.placement.deletable()) == [version]
            assert tree.placement.is_departing("a")
            tree.placement.forget_leftover(version)
            assert not tree.placement.is_departing("a")
        assert (deleted.objects, deleted.directories) == ({"a"}, set())


async def test_a_marker_is_deleted_after_all_that_lies_below_it(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """Also where the directory moved and one of its files has not yet: its object is still under the old prefix."""
    storage = MemoryStorage()
    for key in ("d/", "d/e/", "d/e/file", "d/open"):
        await storage.put(key, b"")
    async with open_tree(storage, tmp_path) as tree:
        placement = tree.placement
        opened = await tree.find("d/open")
        inodes = [await tree.find(path) for path in ("d", "d/e", "d/e/file")]
        versions = {inode.version.key: inode.version for inode in inodes if inode.version is not None}
        await tree.rename("d", "new")
        for inode in inodes:
            placement.vacate(inode)
        assert [version.key for version in placement.deletable()] == ["d/e/file"]
        placement.forget_leftover(versions["d/e/file"])
        assert [version.key for version in placement.deletable()] == ["d/e/"]
        placement.forget_leftover(versions["d/e/"])
        assert list(placement.deletable()) == []
        placement.place(opened, Version("new/open", "etag", 0))
        assert [version.key for version in placement.deletable()] == ["d/open"]
        placement.forget("d/open")
        assert [version.key for version in placement.deletable()] == ["d/"]


async def test_an_upload_takes_the_name_that_its_file_has_lost(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """As if the object were there: nobody else comes there, or below, and no listing shows it."""
    storage = MemoryStorage()
    for key in ("d/", "d/file", "other"):
        await storage.put(key, b"")
    async with open_tree(storage, tmp_path) as tree:
        placement = tree.placement
        file, other, directory = await tree.find("d/file"), await tree.find("other"), await tree.find("d")
        placement.forget("d/file")
        placement.expect(file, "d/file")
        assert placement.next_key(file) == "d/file"
        assert placement.may_expect(file, "d/file")
        assert not placement.may_expect(other, "d/file")

        await tree.rename("d/file", "new")
        assert (placement.target(file), placement.next_key(file)) == ("new", "d/file")
        assert placement.is_departing("d/file")
        assert placement.obstacle(other, "d/file") is file
        assert placement.obstacle(other, "d/file/below") is file
        assert placement.obstacle(file, "d/file") is None

        marker = directory.version
        await tree.rmdir("d")
        assert marker is not None
        assert placement.knows_below("d/")
        assert placement.departing_from("d") == [file]
        assert marker not in placement.deletable(), "it goes after all that is below it"

        placement.expect_no_more(file)
        assert placement.next_key(file) == "new"
        assert not placement.is_departing("d/file")
        assert placement.obstacle(other, "d/file") is None


@pytest.mark.parametrize("etag", ["same", "other"])
async def test_the_log_is_told_whose_an_object_is_that_looks_as_another_did(
    etag: str, autojump_clock: MockClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or a recovery would find in it what the one before had, and has left behind."""
    in_use: list[Version] = []
    monkeypatch.setattr(NoLog, "in_use", lambda log, version: in_use.append(version))
    async with open_tree(MemoryStorage(), tmp_path) as tree:
        await tree.write_file("before", b"")
        await tree.write_file("after", b"")
        before, after = await tree.find("before"), await tree.find("after")
        tree.placement.place(before, Version("key", "same", 0))
        tree.placement.place(after, Version("key", etag, 0))
        assert before.version is None
    assert in_use == ([Version("key", "same", 0)] if etag == "same" else [])
