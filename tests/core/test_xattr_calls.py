"""Extended attributes of the tree: with their inode through renames, publications and other mounts."""

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

from backends.base import ObjectStorage, iterate_pages
from backends.intercepted import Verb
from backends.memory import MemoryStorage
from fusefs import extended_attributes
from fusefs.errors import (
    FilesystemError,
    NoRoomForAttributes,
    NoSuchAttribute,
    NotSupportedHere,
    ReadOnlyFilesystem,
    StaleFile,
)
from fusefs.extended_attributes import OBJECTS_PREFIX
from fusefs.filesystem import FilesystemOptions
from fusefs.journal_format import JOURNAL_PREFIX
from tests.core.mortal import Death, MortalStorage
from tests.core.tree import CALLER, Tree, TreeOptions, open_tree, stored_metadata
from tests.support.every_call import at_every_call
from tests.support.faulty import FaultyStorage

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


# Objects of their own

LOGGED = TreeOptions(logged=True)


async def set_large(tree: Tree, path: str, value: bytes = LARGE) -> None:
    await tree.xattrs.set((await tree.find(path)).number, b"user.large", value)


async def get_large(tree: Tree, path: str) -> bytes:
    return await tree.xattrs.get((await tree.find(path)).number, b"user.large")


async def xattr_objects(storage: ObjectStorage) -> set[str]:
    return {info.key async for page in iterate_pages(storage, OBJECTS_PREFIX) for info in page.objects}


async def referred_to(storage: ObjectStorage) -> set[str]:
    """Return the objects to which metadata refers."""
    metadata = (await stored_metadata(storage, ours=True)).values()
    found = {extended_attributes.object_key(extended_attributes.from_metadata(each)) for each in metadata}
    return {key for key in found if key is not None}


async def changed(tree: Tree) -> None:
    await set_large(tree, "d/f", os.urandom(3_000))


async def made_small(tree: Tree) -> None:
    await set_large(tree, "d/f", b"small")


async def removed(tree: Tree) -> None:
    await tree.xattrs.remove((await tree.find("d/f")).number, b"user.large")


async def unlinked(tree: Tree) -> None:
    await tree.unlink("d/f")


async def unlinked_while_open(tree: Tree) -> None:
    await tree.open("d/f")
    await tree.unlink("d/f")


async def replaced(tree: Tree) -> None:
    await tree.write_file("g", b"other")
    await tree.rename("g", "d/f")


async def renamed(tree: Tree) -> None:
    await tree.rename("d", "e")


async def removed_with_its_directory(tree: Tree) -> None:
    await tree.unlink("d/f")
    await tree.rmdir("d")


ENDS = (
    changed,
    made_small,
    removed,
    unlinked,
    unlinked_while_open,
    replaced,
    renamed,
    removed_with_its_directory,
)


@pytest.mark.parametrize("is_warm", [True, False], ids=["the same mount", "another mount"])
@pytest.mark.parametrize("end", ENDS, ids=lambda end: end.__name__)
async def test_what_nobody_refers_to_is_deleted(
    end: Callable[[Tree], Awaitable[None]], is_warm: bool, autojump_clock: MockClock, tmp_path: Path
) -> None:
    """When the file goes, or its attributes change; those of another file with the same ones stay."""
    storage = MemoryStorage()
    async with open_tree(storage, tmp_path / "one", LOGGED) as tree:
        await tree.mkdir("d")
        for path in ("d", "d/f", "same"):
            if path != "d":
                await tree.write_file(path, b"")
            await set_large(tree, path)
        await tree.publish_all()
        assert len(await xattr_objects(storage)) == 3
        if is_warm:
            await end(tree)
            await tree.publish_all()
    if not is_warm:
        async with open_tree(storage, tmp_path / "two", LOGGED) as tree:
            await end(tree)
            await tree.publish_all()
    assert await xattr_objects(storage) == await referred_to(storage)
    async with open_tree(storage, tmp_path / "three", LOGGED) as tree:
        assert await get_large(tree, "same") == LARGE


@pytest.mark.parametrize("death", [Death.CALL_LOST, Death.ANSWER_LOST], ids=lambda death: death.value)
@pytest.mark.parametrize("end", ENDS, ids=lambda end: end.__name__)
async def test_a_crash_leaves_none(
    end: Callable[[Tree], Awaitable[None]], death: Death, autojump_clock: MockClock, tmp_path: Path
) -> None:
    """Whichever call of the store was the last one: the next mount deletes what nobody refers to, and no more."""

    async def die_and_look(call: int) -> bool:
        storage = MemoryStorage()
        async with open_tree(storage, tmp_path / f"{call}-1", LOGGED) as tree:
            await tree.mkdir("d")
            for name in ("d/f", "same"):
                await tree.write_file(name, b"")
                await set_large(tree, name)
            await tree.publish_all()
            await trio.sleep(60)  # the log tells nothing of it any more
        mortal = MortalStorage(storage)
        async with open_tree(mortal, tmp_path / f"{call}-2", LOGGED) as tree, mortal.life.lived():
            mortal.die_at(call, death)
            await end(tree)
            await tree.publish_all()
            await trio.sleep(60)
        has_died = mortal.dead.is_set()
        async with open_tree(storage, tmp_path / f"{call}-3", LOGGED) as tree:
            await tree.publish_all()
            assert await xattr_objects(storage) == await referred_to(storage)
            assert await get_large(tree, "same") == LARGE
        return has_died

    await at_every_call(die_and_look)


async def test_an_open_file_without_a_name_has_them(autojump_clock: MockClock, tmp_path: Path) -> None:
    """Until its last close, or the death of its mount."""
    storage = MemoryStorage()
    for number, closes in enumerate((True, False)):
        async with open_tree(storage, tmp_path / f"{number}", LOGGED) as tree:
            await tree.write_file("f", b"bytes")
            await set_large(tree, "f")
            await tree.publish_all()
            await trio.sleep(60)  # the log tells nothing of it any more
        async with open_tree(storage, tmp_path / f"{number}-again", LOGGED) as tree:
            handle = await tree.open("f")
            await tree.filesystem.read(handle, 0, 5)
            file = (await tree.find("f")).number
            await tree.unlink("f")
            await tree.publish_all()
            await trio.sleep(60)
            assert await tree.xattrs.get(file, b"user.large") == LARGE
            if closes:
                await tree.close(handle)
                await tree.publish_all()
        async with open_tree(storage, tmp_path / f"{number}-at last", LOGGED) as tree:
            await tree.publish_all()
            assert await xattr_objects(storage) == set()


async def test_a_name_that_comes_and_goes_takes_none_with_it(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """Nobody has read them since the mount began, so the file says no more of them than where they are."""
    storage = MemoryStorage()
    async with open_tree(storage, tmp_path / "1", LOGGED) as tree:
        await tree.write_file("f", b"bytes")
        await set_large(tree, "f")
        await tree.publish_all()
        await trio.sleep(60)
    async with open_tree(storage, tmp_path / "2", LOGGED) as tree:
        await tree.link("f", "link")
        await tree.publish_all()
        await tree.unlink("link")
        await tree.publish_all()
        await trio.sleep(60)
        assert await get_large(tree, "f") == LARGE


async def test_a_file_that_had_a_second_name_once_takes_its_own_with_it(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """Nobody else refers to what it was given since then."""
    storage = MemoryStorage()
    async with open_tree(storage, tmp_path, LOGGED) as tree:
        await tree.write_file("f", b"bytes")
        await tree.link("f", "link")
        await tree.publish_all()
        await tree.unlink("link")
        await set_large(tree, "f")
        await tree.publish_all()
        assert len(await xattr_objects(storage)) == 1
        await set_large(tree, "f", os.urandom(3_000))
        await tree.publish_all()
        assert len(await xattr_objects(storage)) == 1
        await tree.unlink("f")
        await tree.publish_all()
        await trio.sleep(60)
        assert await xattr_objects(storage) == set()


async def test_what_others_may_refer_to_stays(autojump_clock: MockClock, tmp_path: Path) -> None:
    """Those of a file with several names, of one that somebody else has moved, and of what is kept of a conflict."""
    storage = MemoryStorage()
    async with open_tree(storage, tmp_path / "1", LOGGED) as tree:
        for name in ("linked", "moved", "conflict"):
            await tree.write_file(name, b"")
            await set_large(tree, name)
        await tree.publish_all()
        await tree.link("linked", "link")
        await tree.publish_all()
        await tree.write_file("linked before", b"")
        await tree.link("linked before", "link before")
        await set_large(tree, "linked before")
        await tree.publish_all()
        await storage.copy("link", "copy")
        await storage.copy("link before", "copy before")
        await storage.copy("moved", "moved by others")
        await storage.delete("moved")
        for name in ("linked", "link", "linked before", "link before"):
            await tree.unlink(name)
        await storage.put("conflict", b"theirs")
        handle = await tree.open("conflict")
        await tree.write(handle, 0, b"ours")
        with suppress(StaleFile):
            await tree.close(handle)
        await trio.sleep(120)
        assert await tree.names() == ["conflict", "copy", "copy before", "moved by others"]
        await tree.publish_all()
    async with open_tree(storage, tmp_path / "2", LOGGED) as tree:
        for name in ("copy", "copy before", "moved by others"):
            assert await get_large(tree, name) == LARGE
    assert await referred_to(storage) <= await xattr_objects(storage)


async def test_shared_mounts_delete_none(autojump_clock: MockClock, tmp_path: Path) -> None:
    """Another one may be about to write the file with those that it knows. Who has read nothing finds the new ones."""
    storage = MemoryStorage()
    shared = TreeOptions(filesystem=FilesystemOptions(shared=True), revalidate_seconds=1.0)
    await storage.put("f", b"")
    async with (
        open_tree(storage, tmp_path / "1", replace(shared, mount_id="one")) as one,
        open_tree(storage, tmp_path / "2", replace(shared, mount_id="two")) as two,
    ):
        await set_large(one, "f")
        await two.find("f")
        await set_large(one, "f", bytes(4_000))
        assert len(await xattr_objects(storage)) == 2
        assert await get_large(two, "f") == LARGE, "as it was looked up"
        await trio.sleep(2)
        await two.names()
        assert await get_large(two, "f") == bytes(4_000)


async def test_a_mount_that_knows_those_that_are_gone(autojump_clock: MockClock, tmp_path: Path) -> None:
    """A read-only one beside the writer finds what the file has by now."""
    storage = MemoryStorage()
    reading = TreeOptions(filesystem=FilesystemOptions(read_only=True))
    async with open_tree(storage, tmp_path / "1", LOGGED) as tree:
        await tree.write_file("f", b"")
        await set_large(tree, "f")
        await tree.publish_all()
        async with open_tree(storage, tmp_path / "2", reading) as reader:
            await reader.find("f")
            await set_large(tree, "f", bytes(4_000))
            await tree.publish_all()
            assert await get_large(reader, "f") == bytes(4_000)
            assert len(await xattr_objects(storage)) == 1


async def test_files_without_them_cost_what_they_did(autojump_clock: MockClock, tmp_path: Path) -> None:
    storage = FaultyStorage(MemoryStorage())
    async with open_tree(storage, tmp_path, LOGGED) as tree:
        await tree.write_file("f", b"bytes")
        await tree.xattrs.set((await tree.find("f")).number, b"user.small", b"value")
        await tree.publish_all()
        storage.calls.clear()
        await made_small_or_none(tree)
        await tree.publish_all()
        verbs = [request.verb for request in storage.calls if not request.key.startswith(JOURNAL_PREFIX)]
        assert verbs == [Verb.COPY, Verb.DELETE]


async def made_small_or_none(tree: Tree) -> None:
    await tree.xattrs.remove((await tree.find("f")).number, b"user.small")
    await tree.publish_all()
    await tree.unlink("f")


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


@pytest.mark.parametrize("data", [b"@" + b"b" * 64, b"@", b"\xff"])
async def test_damaged_ones_are_an_error_and_not_none(
    data: bytes, autojump_clock: MockClock, tmp_path: Path
) -> None:
    """Nothing that an object says in their place is followed."""
    storage = MemoryStorage()
    await storage.put(f"{OBJECTS_PREFIX}{'a' * 64}", data)
    await storage.put(f"{OBJECTS_PREFIX}{'b' * 64}", b"@" + b"a" * 64)
    await storage.put("f", b"", metadata={"xattr-object": "a" * 64})
    async with open_tree(storage, tmp_path) as tree:
        number = (await tree.find("f")).number
        with pytest.raises(FilesystemError, match="damaged"):
            await tree.xattrs.names(number, privileged=True)
        with pytest.raises(FilesystemError, match="damaged"):
            await tree.xattrs.set(number, b"user.a", b"")
