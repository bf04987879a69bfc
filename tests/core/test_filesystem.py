"""POSIX without a kernel: handles, references, truncation, directories, and what each kind of mount promises."""

from __future__ import annotations

import inspect
import math
import os
import stat
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from backends.base import KIB, MIB
from backends.errors import AccessDenied, Unavailable
from backends.intercepted import Verb
from backends.memory import MemoryStorage
from fusefs.attribute_changes import AttributeChanges
from fusefs.attributes import to_metadata
from fusefs.errors import (
    BadHandle,
    EntryExists,
    FileTooLarge,
    InvalidArgument,
    IsADirectory,
    NoSuchEntry,
    NoSuchInode,
    NotADirectory,
    ReadOnlyFilesystem,
    StaleFile,
)
from fusefs.filesystem import MAX_FILE_SIZE, Caller, Filesystem, FilesystemOptions
from fusefs.inodes import ROOT_NUMBER, File
from fusefs.namespace import Outline
from fusefs.publisher import PublishOptions
from fusefs.xattr_calls import XattrCalls
from tests.core.changes import CHANGES, UNCHANGING
from tests.core.tree import CALLER, Tree, TreeOptions, filled, open_tree, stored, stored_metadata
from tests.support.faulty import FaultyStorage

Clock = trio.testing.MockClock
SECOND = 1_000_000_000
WRITERS = (Verb.PUT, Verb.COPY, Verb.DELETE, Verb.DELETE_MANY, Verb.CREATE_MULTIPART)


def shared(**options: Any) -> TreeOptions:
    return TreeOptions(filesystem=FilesystemOptions(shared=True), revalidate_seconds=1.0, **options)


# New entries


async def test_a_new_entry_belongs_to_its_maker(autojump_clock: Clock, tmp_path: Path) -> None:
    async with open_tree(MemoryStorage(), tmp_path) as tree:
        caller = Caller(uid=7, gid=8)
        inode, _ = await tree.filesystem.create(1, b"f", 0o100604, os.O_RDWR, caller)
        assert (inode.attributes.uid, inode.attributes.gid) == (7, 8)
        assert inode.attributes.mode == stat.S_IFREG | 0o604
        made = await tree.filesystem.mkdir(1, b"d", 0o711, caller)
        assert made.attributes.mode == stat.S_IFDIR | 0o711
        link = await tree.filesystem.symlink(1, b"l", b"x", caller)
        assert link.attributes.mode == stat.S_IFLNK | 0o777
        assert (link.size, made.link_count, tree.root.link_count) == (1, 2, 3)


async def test_a_name_that_somebody_has_taken_since_it_was_looked_up(
    autojump_clock: Clock, tmp_path: Path
) -> None:
    """The kernel believes that it is free, and asks for a new file, also of who would take one that is there.

    ESTALE makes it look again, and ask for what permissions it takes.
    """
    storage = FaultyStorage(MemoryStorage())
    async with open_tree(storage, tmp_path, shared()) as tree:
        with pytest.raises(NoSuchEntry):
            await tree.filesystem.lookup(ROOT_NUMBER, b"f")
        await storage.put("f", b"theirs")
        await trio.sleep(1.1)
        for flags in (os.O_WRONLY, os.O_WRONLY | os.O_APPEND, os.O_RDWR | os.O_TRUNC):
            with pytest.raises(NoSuchInode):
                await tree.filesystem.create(ROOT_NUMBER, b"f", 0o644, flags | os.O_CREAT, CALLER)
        with pytest.raises(EntryExists):
            await tree.filesystem.create(ROOT_NUMBER, b"f", 0o644, os.O_CREAT | os.O_EXCL, CALLER)
        assert await tree.read_file("f") == b"theirs"


async def test_a_set_group_id_directory_hands_its_group_down(autojump_clock: Clock, tmp_path: Path) -> None:
    """To everything made in it, and to directories the bit as well."""
    async with open_tree(MemoryStorage(), tmp_path) as tree:
        await tree.mkdir("d", 0o2775)
        directory = await tree.find("d")
        await tree.filesystem.setattr(directory.number, AttributeChanges(gid=50))
        below = await tree.filesystem.mkdir(directory.number, b"e", 0o755, CALLER)
        file, _ = await tree.filesystem.create(directory.number, b"f", 0o644, os.O_RDWR, CALLER)
        assert (below.attributes.gid, below.attributes.mode) == (50, stat.S_IFDIR | stat.S_ISGID | 0o755)
        assert (file.attributes.gid, file.attributes.mode) == (50, stat.S_IFREG | 0o644)
        assert file.attributes.uid == CALLER.uid


@pytest.mark.parametrize("mode", [0o644, stat.S_IFREG | 0o644])
async def test_mknod_makes_files_too(autojump_clock: Clock, tmp_path: Path, mode: int) -> None:
    async with open_tree(MemoryStorage(), tmp_path) as tree:
        await tree.filesystem.mknod(1, b"f", mode, 0, CALLER)
        handle = await tree.open("f")
        await tree.write(handle, 0, b"x")
        await tree.close(handle)
        assert (await tree.find("f")).attributes.mode == stat.S_IFREG | 0o644


async def test_a_read_only_mode_leaves_the_creating_handle_writable(
    autojump_clock: Clock, tmp_path: Path
) -> None:
    """git writes its objects so."""
    async with open_tree(MemoryStorage(), tmp_path) as tree:
        handle = await tree.create("f", mode=0o444)
        await tree.write(handle, 0, b"x")
        await tree.close(handle)
        assert await tree.read_file("f") == b"x"


async def test_a_change_of_entries_is_a_change_of_the_directory(
    autojump_clock: Clock, tmp_path: Path
) -> None:
    async with open_tree(MemoryStorage(), tmp_path) as tree:
        await tree.mkdir("d")
        times = [(await tree.find("d")).attributes.mtime_ns]
        changes: tuple[Callable[[], Coroutine[Any, Any, None]], ...] = (
            lambda: tree.write_file("d/a", b""),
            lambda: tree.rename("d/a", "d/b"),
            lambda: tree.unlink("d/b"),
        )
        for change in changes:
            await trio.sleep(1)
            await change()
            attributes = (await tree.find("d")).attributes
            assert attributes.mtime_ns > times[-1]
            assert attributes.ctime_ns >= attributes.mtime_ns
            times.append(attributes.mtime_ns)


# Handles


async def test_truncation_on_opening(autojump_clock: Clock, tmp_path: Path) -> None:
    async with open_tree(await filled("f"), tmp_path) as tree:
        old = await tree.open("f", os.O_RDONLY)
        handle = await tree.open("f", os.O_WRONLY | os.O_TRUNC)
        assert (await tree.find("f")).size == 0
        assert await tree.filesystem.read(old, 0, 10) == b"", "for every handle"
        await tree.close(handle)
        await tree.publish_all()
        assert await stored(tree.storage) == {"f": b""}


@pytest.mark.parametrize(
    ("uid", "mode", "left"),
    [(1000, 0o6755, 0o755), (1000, 0o2745, 0o2745), (1000, 0o4644, 0o644), (0, 0o6755, 0o6755)],
)
async def test_truncation_on_opening_takes_set_id_bits_away(
    autojump_clock: Clock, tmp_path: Path, uid: int, mode: int, left: int
) -> None:
    """As a write does; set-group-ID without permission to execute means something else, and root may keep them."""
    options = TreeOptions(filesystem=FilesystemOptions(kernel_keeps_times=True))
    async with open_tree(MemoryStorage(), tmp_path, options) as tree:
        await tree.close(await tree.create("f", mode=mode))
        await tree.publish_all()  # empty, so that nothing else changes
        number = (await tree.find("f")).number
        handle = await tree.filesystem.open(number, os.O_WRONLY | os.O_TRUNC, Caller(uid=uid, gid=uid))
        await tree.close(handle)
        assert stat.S_IMODE((await tree.find("f")).attributes.mode) == left
        await tree.publish_all()
        assert (await stored_metadata(tree.storage))["f"]["mode"] == str(stat.S_IFREG | left)


async def test_chown_to_nobody_is_a_change_of_status(autojump_clock: Clock, tmp_path: Path) -> None:
    """chown(path, -1, -1): the request has nothing to set, and ctime moves, for other mounts, too."""
    async with open_tree(MemoryStorage(), tmp_path) as tree:
        await tree.write_file("f", b"f")
        await tree.publish_all()
        inode = await tree.find("f")
        before = inode.attributes
        await tree.filesystem.setattr(inode.number, AttributeChanges())
        assert inode.attributes.ctime_ns > before.ctime_ns
        assert inode.attributes.mtime_ns == before.mtime_ns
        await tree.publish_all()
        assert (await stored_metadata(tree.storage))["f"] == to_metadata(inode.attributes)


@pytest.mark.parametrize("years", [1e12, -1e12, 2e11, 290])
async def test_times_that_no_metadata_can_hold_are_the_nearest_that_it_can(
    years: float, autojump_clock: Clock, tmp_path: Path
) -> None:
    """As ext4 and XFS do it: shown at once, and the same in the next mount."""
    storage = MemoryStorage()
    wanted, limit = int(years * 365.25 * 86_400) * SECOND, 10**12 * SECOND
    async with open_tree(storage, tmp_path / "1") as tree:
        await tree.write_file("f", b"f")
        number = (await tree.find("f")).number
        changes = AttributeChanges(atime_ns=wanted, mtime_ns=wanted)
        before = (await tree.filesystem.setattr(number, changes)).attributes
        await tree.publish_all()
    assert abs(before.mtime_ns - min(max(wanted, -limit), limit)) <= SECOND
    async with open_tree(storage, tmp_path / "2") as tree:
        assert (await tree.find("f")).attributes == before


async def test_appending_writes_where_the_kernel_says(autojump_clock: Clock, tmp_path: Path) -> None:
    """It knows the end of the file; with O_APPEND and pages of its own it writes some of them twice."""
    async with open_tree(await filled("f"), tmp_path) as tree:
        handle = await tree.open("f", os.O_WRONLY | os.O_APPEND)
        await tree.write(handle, 1, b"bc")
        await tree.write(handle, 0, b"abcd")
        await tree.close(handle)
        assert await tree.read_file("f") == b"abcd"


async def test_truncation_both_ways(autojump_clock: Clock, tmp_path: Path) -> None:
    """What was cut off reads as zeros when the file grows again, before and after publication."""
    async with open_tree(MemoryStorage(), tmp_path) as tree:
        await tree.write_file("f", b"0123456789")
        number = (await tree.find("f")).number
        for publish in (False, True):
            await tree.filesystem.setattr(number, AttributeChanges(size=4))
            if publish:
                await tree.publish_all()
            await tree.filesystem.setattr(number, AttributeChanges(size=8))
            assert await tree.read_file("f") == b"0123\0\0\0\0"
        await tree.publish_all()
        assert await stored(tree.storage) == {"f": b"0123\0\0\0\0"}


async def test_truncation_moves_the_times_of_contents(autojump_clock: Clock, tmp_path: Path) -> None:
    async with open_tree(MemoryStorage(), tmp_path) as tree:
        await tree.write_file("f", b"f")
        inode = await tree.find("f")
        before = inode.attributes
        await tree.filesystem.setattr(inode.number, AttributeChanges(size=0))
        assert inode.attributes.mtime_ns > before.mtime_ns
        assert inode.attributes.ctime_ns > before.ctime_ns
        await tree.filesystem.setattr(inode.number, AttributeChanges(size=9, mtime_ns=5))
        assert inode.attributes.mtime_ns == 5, "unless the caller says when"


async def test_a_truncation_to_the_same_size_where_the_kernel_keeps_times(
    autojump_clock: Clock, tmp_path: Path
) -> None:
    """It has changed none, and would show another one only after it has forgotten the file, at any later time."""
    options = TreeOptions(filesystem=FilesystemOptions(kernel_keeps_times=True))
    async with open_tree(MemoryStorage(), tmp_path, options) as tree:
        await tree.write_file("f", b"content")
        inode = await tree.find("f")
        await tree.filesystem.setattr(inode.number, AttributeChanges(mode=stat.S_ISUID | 0o755))
        await tree.publish_all()
        before = inode.attributes
        await trio.sleep(1)
        await tree.filesystem.setattr(inode.number, AttributeChanges(size=7))
        assert inode.attributes == before
        assert not tree.publisher.pending_inodes()
        without_set_id = AttributeChanges(size=7, mode=before.mode & ~stat.S_ISUID)
        await tree.filesystem.setattr(inode.number, without_set_id)  # it was not the owner who asked
        assert inode.attributes == replace(before, mode=stat.S_IFREG | 0o755)
        await tree.filesystem.setattr(inode.number, AttributeChanges(size=6))
        assert inode.attributes.mtime_ns > before.mtime_ns


async def test_files_end_where_objects_must(autojump_clock: Clock, tmp_path: Path) -> None:
    async with open_tree(MemoryStorage(), tmp_path) as tree:
        handle = await tree.create("f")
        number = (await tree.find("f")).number
        with pytest.raises(FileTooLarge):
            await tree.filesystem.write(handle, MAX_FILE_SIZE, b"x")
        with pytest.raises(FileTooLarge):
            await tree.filesystem.setattr(number, AttributeChanges(size=MAX_FILE_SIZE + 1))
        assert (await tree.find("f")).size == 0


async def test_a_handle_is_good_for_what_it_was_opened_for(autojump_clock: Clock, tmp_path: Path) -> None:
    async with open_tree(await filled("f", "d/x"), tmp_path) as tree:
        filesystem = tree.filesystem
        reader = await tree.open("f", os.O_RDONLY)
        with pytest.raises(BadHandle):
            await filesystem.write(reader, 0, b"x")
        directory = await filesystem.opendir((await tree.find("d")).number)
        for wrong in (
            lambda: filesystem.read(directory, 0, 1),
            lambda: filesystem.readdir(reader, 0, 1),
            lambda: filesystem.fsyncdir(reader),
            lambda: filesystem.release(directory),
            lambda: filesystem.releasedir(reader),
        ):
            with pytest.raises(BadHandle):
                await wrong()
        await filesystem.release(reader)
        await filesystem.releasedir(directory)
        for closed in (
            lambda: filesystem.read(reader, 0, 1),
            lambda: filesystem.flush(reader),
            lambda: filesystem.fsync(reader),
            lambda: filesystem.release(reader),
            lambda: filesystem.readdir(directory, 0, 1),
        ):
            with pytest.raises(BadHandle):
                await closed()
        assert await stored(tree.storage) == {"f": b"f", "d/x": b"d/x"}


async def test_calls_on_the_wrong_kind(autojump_clock: Clock, tmp_path: Path) -> None:
    async with open_tree(await filled("f", "d/x"), tmp_path) as tree:
        filesystem = tree.filesystem
        await tree.symlink("l", b"f")
        await filesystem.mknod(1, b"p", stat.S_IFIFO | 0o600, 0, CALLER)
        file, directory, link, pipe = [(await tree.find(name)).number for name in ("f", "d", "l", "p")]
        calls: list[tuple[Callable[[], Coroutine[Any, Any, object]], type[Exception]]] = [
            (lambda: filesystem.open(directory, os.O_RDONLY, CALLER), IsADirectory),
            (lambda: filesystem.open(link, os.O_RDONLY, CALLER), InvalidArgument),
            (lambda: filesystem.open(pipe, os.O_RDONLY, CALLER), InvalidArgument),
            (lambda: filesystem.setattr(directory, AttributeChanges(size=0)), IsADirectory),
            (lambda: filesystem.opendir(file), NotADirectory),
            (lambda: filesystem.lookup(file, b"x"), NotADirectory),
            (lambda: filesystem.create(file, b"x", 0o644, os.O_RDWR, CALLER), NotADirectory),
            (lambda: filesystem.rename(1, b"f", link, b"x", 0), NotADirectory),
            (lambda: filesystem.readlink(file), InvalidArgument),
            (lambda: filesystem.getattr(999), NoSuchInode),
        ]
        for call, error in calls:
            with pytest.raises(error):
                await call()


# Who holds an inode


async def test_an_unlinked_file_lives_for_as_long_as_anybody_holds_it(
    autojump_clock: Clock, tmp_path: Path
) -> None:
    """A name, a handle, a reference of the kernel: whichever goes last takes the inode with it."""
    holders = ("name", "handle", "reference")
    for last in holders:
        async with open_tree(MemoryStorage(), tmp_path / last) as tree:
            inode, handle = await tree.filesystem.create(1, b"f", 0o644, os.O_RDWR, CALLER)
            await tree.filesystem.write(handle, 0, b"bytes")
            letting_go: dict[str, Callable[[], Coroutine[Any, Any, object]]] = {
                "name": lambda tree=tree: tree.filesystem.unlink(1, b"f"),  # type: ignore[misc]
                "handle": lambda tree=tree, handle=handle: tree.close(handle),  # type: ignore[misc]
                "reference": lambda tree=tree, inode=inode: forget(tree, inode.number),  # type: ignore[misc]
            }
            for holder in sorted(holders, key=lambda holder: holder == last):
                assert await tree.filesystem.getattr(inode.number) is inode
                await letting_go[holder]()
            with pytest.raises(NoSuchInode):
                await tree.filesystem.getattr(inode.number)
            await tree.publish_all()
            assert await stored(tree.storage, ours=True) == {}
            assert len(tree.inodes) == 1
            assert len(tree.filesystem._handles) == 0


async def forget(tree: Tree, number: int, count: int = 1) -> None:
    await trio.lowlevel.checkpoint()
    tree.filesystem.forget([(number, count)])


async def test_the_bytes_of_an_unlinked_file_go_with_its_last_handle(
    autojump_clock: Clock, tmp_path: Path
) -> None:
    """Whether the kernel has forgotten the inode by then or not."""
    storage = await filled("f")
    async with open_tree(storage, tmp_path) as tree:
        first, second = [await tree.open("f", os.O_RDONLY) for _ in range(2)]
        tree.filesystem.refer(await tree.find("f"))
        await tree.unlink("f")
        await tree.publish_all()
        assert list((await stored(storage, ours=True)).values()) == [b"f"]
        await tree.filesystem.release(first)
        await tree.publish_all()
        assert await tree.filesystem.read(second, 0, 10) == b"f"
        await tree.filesystem.release(second)
        await tree.publish_all()
        assert await stored(storage, ours=True) == {}


async def test_dots_are_looked_up_for_whoever_has_a_file_handle(
    autojump_clock: Clock, tmp_path: Path
) -> None:
    """open_by_handle_at(2) and servers of NFS: the kernel asks for `.` of any inode, and for `..` of directories."""
    async with open_tree(await filled("d/e/f"), tmp_path) as tree:
        root, outer, inner, file = [await tree.find(path) for path in ("", "d", "d/e", "d/e/f")]
        for inode in (root, outer, inner, file):
            assert await tree.filesystem.lookup(inode.number, b".") is inode
        for directory, above in ((inner, outer), (outer, root), (root, root)):
            assert await tree.filesystem.lookup(directory.number, b"..") is above
        assert (file.lookups, inner.lookups, outer.lookups) == (1, 1, 2)
        with pytest.raises(NotADirectory):
            await tree.filesystem.lookup(file.number, b"..")
        with pytest.raises(NoSuchInode):
            await tree.filesystem.lookup(4711, b".")


async def test_references_are_counted(autojump_clock: Clock, tmp_path: Path) -> None:
    async with open_tree(await filled("f"), tmp_path) as tree:
        inode = await tree.filesystem.lookup(1, b"f")
        for _ in range(3):
            assert await tree.filesystem.lookup(1, b"f") is inode
        assert await tree.filesystem.lookup(1, b".") is tree.root
        assert await tree.filesystem.lookup(1, b"..") is tree.root
        tree.filesystem.refer(inode)
        await tree.unlink("f")
        await forget(tree, inode.number, 4)
        assert await tree.filesystem.getattr(inode.number) is inode
        await forget(tree, inode.number, 1)
        with pytest.raises(NoSuchInode):
            await tree.filesystem.getattr(inode.number)
        await forget(tree, inode.number, 1)
        await forget(tree, ROOT_NUMBER, 10)
        assert await tree.filesystem.getattr(ROOT_NUMBER) is tree.root


async def test_a_replaced_file_lives_until_its_handle_closes(autojump_clock: Clock, tmp_path: Path) -> None:
    async with open_tree(await filled("f", "g"), tmp_path) as tree:
        handle = await tree.open("f", os.O_RDONLY)
        await tree.rename("g", "f")
        await tree.publish_all()
        assert await tree.filesystem.read(handle, 0, 10) == b"f"
        await tree.close(handle)
        await tree.publish_all()
        assert await stored(tree.storage, ours=True) == {"f": b"g"}


async def test_a_number_is_never_given_twice(autojump_clock: Clock, tmp_path: Path) -> None:
    """NFS and git compare them."""
    async with open_tree(MemoryStorage(), tmp_path) as tree:
        numbers = set()
        for _ in range(10):
            await tree.write_file("f", b"")
            numbers.add((await tree.find("f")).number)
            await tree.unlink("f")
        assert len(numbers) == 10


# Directories


async def read_names(tree: Tree, handle: int, start: int, count: int) -> list[str]:
    return [name.decode() for name, _, _ in await tree.filesystem.readdir(handle, start, count)]


async def test_reading_a_directory_in_batches(autojump_clock: Clock, tmp_path: Path) -> None:
    """Each entry comes with the position after it, from which any later call goes on."""
    async with open_tree(await filled(*(f"f{number:02d}" for number in range(25))), tmp_path) as tree:
        handle = await tree.filesystem.opendir(1)
        seen, position = [], 0
        while entries := await tree.filesystem.readdir(handle, position, 10):
            taken = entries[:7]  # the kernel's buffer is full before the batch ends
            seen += [name for name, _, _ in taken]
            position = taken[-1][2]
        assert seen == sorted(tree.root.children)
        assert all(inode.lookups == 0 for inode in tree.root.inodes()), "until `refer` says so"


async def test_reading_is_stable_while_entries_come_and_go(autojump_clock: Clock, tmp_path: Path) -> None:
    """What is there all the time is seen once; what went is not seen; rm -r relies on it."""
    async with open_tree(await filled(*(f"f{number}" for number in range(10))), tmp_path) as tree:
        handle = await tree.filesystem.opendir(1)
        assert await read_names(tree, handle, 0, 3) == ["f0", "f1", "f2"]
        for name in ("f0", "f1", "f2", "f4"):
            await tree.unlink(name)
        await tree.write_file("a", b"")
        await tree.write_file("z", b"")
        await tree.rename("f5", "f55")
        assert await read_names(tree, handle, 3, 4) == ["f3", "f6"]
        assert await read_names(tree, handle, 7, 4) == ["f7", "f8", "f9"]
        assert await read_names(tree, handle, 10, 4) == []


async def test_a_batch_of_which_nothing_is_left_is_not_the_end(autojump_clock: Clock, tmp_path: Path) -> None:
    async with open_tree(await filled(*(f"f{number}" for number in range(9))), tmp_path) as tree:
        handle = await tree.filesystem.opendir(1)
        assert await read_names(tree, handle, 0, 3) == ["f0", "f1", "f2"]
        for number in range(3, 6):
            await tree.unlink(f"f{number}")
        entries = await tree.filesystem.readdir(handle, 3, 3)
        assert [(name, position) for name, _, position in entries] == [(b"f6", 7), (b"f7", 8), (b"f8", 9)]


async def test_rewinding_reads_what_is_there_now(autojump_clock: Clock, tmp_path: Path) -> None:
    async with open_tree(await filled("a", "b"), tmp_path) as tree:
        handle = await tree.filesystem.opendir(1)
        assert await read_names(tree, handle, 0, 10) == ["a", "b"]
        await tree.unlink("a")
        await tree.write_file("c", b"")
        assert await read_names(tree, handle, 0, 10) == ["b", "c"]


async def test_names_cost_no_request_for_each_entry(autojump_clock: Clock, tmp_path: Path) -> None:
    storage = await filled(*(f"f{number:03d}" for number in range(300)))
    async with open_tree(storage, tmp_path) as tree:
        storage.calls.clear()
        await tree.names()
        await tree.names()
        assert [call.verb for call in storage.calls] == [Verb.LIST_PREFIX]


async def test_entries_that_are_looked_up_one_by_one_are_resolved_together(
    autojump_clock: Clock, tmp_path: Path
) -> None:
    """`ls -l` of a hundred files takes a few round trips, not a hundred; and each HEAD is made once."""
    storage = Slow(await filled(*(f"f{number:03d}" for number in range(100))))
    async with open_tree(storage, tmp_path) as tree:
        began = trio.current_time()
        for name in await tree.names():
            await tree.find(name)
        await tree.names()
        assert len(storage.calls_of(Verb.HEAD)) == 1 + 100, "the root's marker, and each file"
        assert trio.current_time() - began <= 8.0


async def test_a_reader_that_looks_entries_up_is_given_their_attributes(
    autojump_clock: Clock, tmp_path: Path
) -> None:
    """The kernel asks for nothing more then."""
    async with open_tree(await filled(*(f"f{number:02d}" for number in range(30))), tmp_path) as tree:
        handle = await tree.filesystem.opendir(1)
        first = await tree.filesystem.readdir(handle, 0, 10)
        assert all(isinstance(entry, Outline) for _, entry, _ in first)
        await tree.filesystem.lookup(1, b"f00")
        second = await tree.filesystem.readdir(handle, 10, 10)
        assert all(isinstance(entry, File) for _, entry, _ in second)
        third = await tree.filesystem.readdir(handle, 20, 10)
        assert all(isinstance(entry, File) for _, entry, _ in third)


async def test_what_is_shown_of_an_entry_that_nobody_has_looked_at(
    autojump_clock: Clock, tmp_path: Path
) -> None:
    """Its type where no other is possible, and the number that it will have."""
    storage = await filled("d/x")
    await storage.put("large", b"x" * 5_000)
    await storage.put("small", b"x", metadata={"mode": str(stat.S_IFLNK | 0o777)})
    async with open_tree(storage, tmp_path) as tree:
        handle = await tree.filesystem.opendir(1)
        shown = {name: entry for name, entry, _ in await tree.filesystem.readdir(handle, 0, 10)}
        kinds = {name: entry.kind for name, entry in shown.items() if isinstance(entry, Outline)}
        assert kinds == {b"d": stat.S_IFDIR, b"large": stat.S_IFREG, b"small": 0}
        for name, entry in shown.items():
            assert (await tree.find(name.decode())).number == entry.number


async def test_what_is_not_known_for_certain_does_not_come_with_names(
    autojump_clock: Clock, tmp_path: Path
) -> None:
    """Attributes that others have changed, and those of a file of whose names only one was looked at."""
    storage = await filled(*(f"f{number:02d}" for number in range(15)))
    async with open_tree(storage, tmp_path / "1") as tree:
        await tree.link("f14", "second")
        await tree.publish_all()
    async with open_tree(storage, tmp_path / "2") as tree:
        file = await tree.find("f00")
        await storage.copy("f00", "f00", metadata=to_metadata(replace(file.attributes, uid=7)))
        await trio.sleep(61)
        handle = await tree.filesystem.opendir(1)
        entries = await tree.filesystem.readdir(handle, 0, 10)
        assert isinstance(entries[0][1], Outline)
        tree.filesystem.forget([((await tree.filesystem.lookup(1, b"f00")).number, 1)])
        assert file.attributes.uid == 7
        shown = {name: entry for name, entry, _ in await tree.filesystem.readdir(handle, 10, 10)}
        assert isinstance(shown[b"f10"], File)
        assert isinstance(shown[b"f14"], Outline)
        assert isinstance(shown[b"second"], Outline)
        assert (await tree.find("second")).link_count == 2


async def test_a_shared_mount_tells_no_more_than_names_from_a_listing_that_is_too_old(
    autojump_clock: Clock, tmp_path: Path
) -> None:
    """The kernel would keep the attributes for as long again."""
    storage = await filled(*(f"f{number:02d}" for number in range(30)))
    options = TreeOptions(filesystem=FilesystemOptions(shared=True), revalidate_seconds=1.0)
    async with open_tree(storage, tmp_path, options) as tree:
        for name in await tree.names():
            await tree.find(name)
        handle = await tree.filesystem.opendir(1)
        shown = await tree.filesystem.readdir(handle, 0, 10)
        assert all(isinstance(entry, File) for _, entry, _ in shown)
        await trio.sleep(1.1)
        shown = await tree.filesystem.readdir(handle, 10, 10)
        assert all(isinstance(entry, Outline) for _, entry, _ in shown)


class Slow(FaultyStorage):
    """Every call takes a second."""

    async def _carry_out(self, request: Any, send: Any) -> Any:
        await trio.sleep(1)
        return await super()._carry_out(request, send)


async def test_a_head_that_fails_is_the_error_of_whoever_wants_to_know(
    autojump_clock: Clock, tmp_path: Path
) -> None:
    """And nobody else's."""
    storage = await filled("a", "b", "c")
    async with open_tree(storage, tmp_path) as tree:
        assert await tree.names() == ["a", "b", "c"]
        storage.fail(Unavailable, verb=Verb.HEAD, key="b", times=2)
        await tree.find("a")
        await trio.testing.wait_all_tasks_blocked()  # the others come ahead
        with pytest.raises(Unavailable):
            await tree.find("b")
        await tree.find("c")
        await tree.find("b")


async def test_a_directory_that_is_opened_to_be_synced_costs_no_request(
    autojump_clock: Clock, tmp_path: Path
) -> None:
    """As PostgreSQL does after each rename."""
    storage = await filled("d/x")
    async with open_tree(storage, tmp_path) as tree:
        directory = await tree.find("d")
        await trio.sleep(1_000)
        storage.calls.clear()
        handle = await tree.filesystem.opendir(directory.number)
        await tree.filesystem.fsyncdir(handle)
        await tree.filesystem.releasedir(handle)
        assert storage.calls == []


# What is in the bucket when a call returns


async def test_fsync_and_what_costs_no_request(autojump_clock: Clock, tmp_path: Path) -> None:
    """A clean fsync, a clean fsync of a directory, flush, release, getattr, a lookup of what is known."""
    storage = await filled("d/f")
    async with open_tree(storage, tmp_path) as tree:
        filesystem = tree.filesystem
        handle = await tree.open("d/f")
        await tree.write(handle, 0, b"x")
        await filesystem.fsync(handle)
        assert (await stored(tree.storage))["d/f"] == b"x/f"
        directory = await filesystem.opendir((await tree.find("d")).number)
        storage.calls.clear()
        await filesystem.fsync(handle)
        await filesystem.fsyncdir(directory)
        await filesystem.getattr((await tree.find("d/f")).number)
        await filesystem.flush(handle)
        await filesystem.release(handle)
        await trio.sleep(30)
        assert storage.calls == []


async def test_fsync_of_a_directory_is_about_names(autojump_clock: Clock, tmp_path: Path) -> None:
    """Made, renamed and removed ones, of open files too; an open file whose name is there is not uploaded for it."""
    storage = await filled("d/old", "d/gone", "d/open")
    async with open_tree(storage, tmp_path) as tree:
        written = await tree.open("d/open")
        moved = await tree.open("d/old")
        made = await tree.create("d/made")
        for handle in (written, moved, made):
            await tree.write(handle, 0, b"D")
        await tree.rename("d/old", "d/new")
        await tree.unlink("d/gone")
        directory = await tree.filesystem.opendir((await tree.find("d")).number)
        storage.calls.clear()
        await tree.filesystem.fsyncdir(directory)
        assert await stored(storage) == {"d/new": b"D/old", "d/made": b"D", "d/open": b"d/open"}
        storage.calls.clear()
        await tree.write(moved, 0, b"E")
        await tree.filesystem.fsyncdir(directory)
        assert storage.calls == []


async def test_new_times_alone_go_with_the_next_publication(autojump_clock: Clock, tmp_path: Path) -> None:
    """tar and rsync set the times of each file that they have just written: one PUT for both."""
    storage = FaultyStorage(MemoryStorage())
    async with open_tree(storage, tmp_path) as tree:
        handle = await tree.create("f")
        await tree.write(handle, 0, b"x")
        number = (await tree.find("f")).number
        storage.calls.clear()
        await tree.filesystem.setattr(number, AttributeChanges(mtime_ns=5, atime_ns=6))
        assert storage.calls == []
        await tree.close(handle)
        await tree.filesystem.setattr(number, AttributeChanges(mtime_ns=7))
        await tree.publish_all()
        await trio.sleep(60)
        assert [call.verb for call in storage.calls] == [Verb.PUT]
        assert (await stored_metadata(storage))["f"]["mtime"] == "0.000000007"


async def test_no_fsync_waits_for_new_times(autojump_clock: Clock, tmp_path: Path) -> None:
    storage = await filled("f")
    async with open_tree(storage, tmp_path) as tree:
        handle = await tree.open("f")
        storage.calls.clear()
        await tree.filesystem.setattr((await tree.find("f")).number, AttributeChanges(mtime_ns=5))
        await tree.filesystem.fsync(handle)
        assert storage.calls == []
        await tree.publish_all()
        assert (await stored_metadata(storage))["f"]["mtime"] == "0.000000005", "but a clean end does"


async def test_a_failure_is_told_to_every_close_until_it_is_made_good(
    autojump_clock: Clock, tmp_path: Path
) -> None:
    storage = FaultyStorage(MemoryStorage())
    async with open_tree(storage, tmp_path) as tree:
        handle = await tree.create("f")
        await tree.write(handle, 0, b"x")
        storage.fail(Unavailable, verb=Verb.PUT, times=2)
        for _ in range(2):
            with pytest.raises(Unavailable):
                await tree.filesystem.fsync(handle)
            with pytest.raises(Unavailable):
                await tree.filesystem.flush(handle)
        await tree.filesystem.fsync(handle)
        await tree.close(handle)
        assert await stored(storage) == {"f": b"x"}


async def test_an_owner_answers_at_once_and_publishes_behind(autojump_clock: Clock, tmp_path: Path) -> None:
    storage = await filled("gone")
    async with open_tree(storage, tmp_path) as tree:
        await tree.find("gone")
        storage.calls.clear()
        await tree.write_file("f", b"x")
        await tree.filesystem.setattr((await tree.find("f")).number, AttributeChanges(mode=0o600))
        await tree.mkdir("d")
        await tree.unlink("gone")
        assert storage.calls == []
        await trio.sleep(5)
        assert await stored(storage) == {"f": b"x", "d/": b""}


async def test_close_waits_where_it_was_asked_to(autojump_clock: Clock, tmp_path: Path) -> None:
    options = TreeOptions(filesystem=FilesystemOptions(wait_on_close=True))
    storage = FaultyStorage(MemoryStorage())
    async with open_tree(storage, tmp_path, options) as tree:
        await tree.write_file("f", b"x")
        assert await stored(storage) == {"f": b"x"}
        storage.fail(Unavailable, verb=Verb.PUT)
        with pytest.raises(Unavailable):
            await tree.write_file("f", b"y")


async def test_a_shared_mount_publishes_before_it_answers(autojump_clock: Clock, tmp_path: Path) -> None:
    """Another host may look as soon as the call has returned."""
    storage = FaultyStorage(MemoryStorage())
    async with open_tree(storage, tmp_path, shared()) as tree:
        await tree.write_file("f", b"bytes")
        assert await stored(storage) == {"f": b"bytes"}
        await tree.mkdir("d")
        assert await stored(storage) == {"f": b"bytes", "d/": b""}
        await tree.symlink("l", b"f")
        await tree.rename("f", "d/f")
        assert await stored(storage) == {"d/f": b"bytes", "d/": b"", "l": b"f"}
        number = (await tree.find("d/f")).number
        await tree.filesystem.setattr(number, AttributeChanges(size=2))
        assert (await stored(storage))["d/f"] == b"by"
        await tree.filesystem.setattr(number, AttributeChanges(mode=0o600))
        assert (await stored_metadata(storage))["d/f"]["mode"] == str(stat.S_IFREG | 0o600)
        await tree.unlink("d/f")
        await tree.rmdir("d")
        assert await stored(storage) == {"l": b"f"}


async def test_attributes_of_a_file_that_is_being_written_come_with_its_close(
    autojump_clock: Clock, tmp_path: Path
) -> None:
    """On a shared mount, too: with half of its bytes they would be of no use to another host."""
    storage = FaultyStorage(MemoryStorage())
    async with open_tree(storage, tmp_path, shared()) as tree:
        handle = await tree.create("f")
        await tree.write(handle, 0, b"x")
        number = (await tree.find("f")).number
        storage.calls.clear()
        await tree.filesystem.setattr(number, AttributeChanges(mode=0o600))
        assert storage.calls == []
        await tree.close(handle)
        assert [call.verb for call in storage.calls] == [Verb.PUT]
        assert (await stored_metadata(storage))["f"]["mode"] == str(stat.S_IFREG | 0o600)


async def test_a_shared_mount_reports_what_could_not_be_published(
    autojump_clock: Clock, tmp_path: Path
) -> None:
    storage = FaultyStorage(MemoryStorage())
    async with open_tree(storage, tmp_path, shared()) as tree:
        storage.fail(Unavailable, verb=Verb.PUT)
        with pytest.raises(Unavailable):
            await tree.filesystem.mkdir(1, b"d", 0o755, CALLER)
        made = await tree.find("d")
        assert made.lookups == 0, "the kernel was told of no inode"
        storage.fail(Unavailable, verb=Verb.PUT)
        with pytest.raises(Unavailable):
            await tree.write_file("f", b"x")


async def test_what_cannot_be_published_is_no_failure_of_other_calls(
    autojump_clock: Clock, tmp_path: Path
) -> None:
    """On a shared mount each change of names waits for the bucket: for its own, and not for what had failed before."""
    storage = await filled("kept", "gone", "f", "g")
    async with open_tree(storage, tmp_path, shared()) as tree:
        for key in ("denied", "denied too", "d/denied"):
            storage.fail(AccessDenied, verb=Verb.PUT, key=key, times=math.inf)
        storage.fail(AccessDenied, verb=Verb.DELETE, key="kept", times=math.inf)
        with pytest.raises(AccessDenied):
            await tree.write_file("denied", b"x")
        with pytest.raises(AccessDenied):
            await tree.unlink("kept")
        await trio.sleep(1)  # for what was closed while it was on its way
        storage.calls.clear()
        await tree.mkdir("d")
        await tree.symlink("l", b"x")
        await tree.link("f", "second")
        await tree.rename("f", "renamed")
        await tree.unlink("gone")
        assert not {call.key for call in storage.calls} & {"denied", "kept"}, "that is tried again by itself"
        assert await stored(storage) == {
            "d/": b"",
            "g": b"g",
            "kept": b"kept",
            "l": b"x",
            "renamed": b"f",
            "second": b"f",
        }
        with pytest.raises(AccessDenied):
            await tree.rename("denied", "denied too")
        with pytest.raises(AccessDenied):
            await tree.rename("denied too", "d/denied")
        await tree.mkdir("d/e")


async def test_what_is_removed_while_it_is_being_made_is_not_forgotten_too_early(
    autojump_clock: Clock, tmp_path: Path
) -> None:
    """A shared mount answers after it has published; until then somebody else may remove the entry again."""
    storage = FaultyStorage(MemoryStorage())
    async with open_tree(storage, tmp_path, shared()) as tree:
        gate = storage.hold(Verb.PUT, key="d/")
        made: list[int] = []

        async def make() -> None:
            made.append((await tree.filesystem.mkdir(1, b"d", 0o755, CALLER)).number)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(make)
            await gate.reached.wait()
            nursery.start_soon(tree.filesystem.rmdir, 1, b"d")
            await trio.testing.wait_all_tasks_blocked()
            gate.open()
        assert (await tree.filesystem.getattr(made[0])).link_count == 0
        await forget(tree, made[0])
        assert len(tree.inodes) == 1
        assert await stored(storage) == {}


# A mount that changes nothing


async def test_a_read_only_mount_refuses_every_change(autojump_clock: Clock, tmp_path: Path) -> None:
    storage = await filled("f", "d/")
    options = TreeOptions(filesystem=FilesystemOptions(read_only=True))
    async with open_tree(storage, tmp_path, options) as tree:
        number = (await tree.find("f")).number
        handle = await tree.open("f", os.O_RDONLY)
        for name, change in CHANGES.items():
            with pytest.raises(BadHandle if name == "write" else ReadOnlyFilesystem):
                await change(tree, number, handle)
        assert await tree.filesystem.read(handle, 0, 10) == b"f"
        await tree.filesystem.fsync(handle)
        await tree.close(handle)
        assert await tree.names() == ["d", "f"]
        with pytest.raises(NoSuchEntry):
            await tree.find("n")
        await tree.publish_all()
        assert not [call for call in storage.calls if call.verb in WRITERS]


def test_of_every_call_it_is_known_whether_it_changes_anything() -> None:
    """A new one is refused by mounts that may not write, or belongs to those that change nothing."""
    calls = {
        name
        for cls in (Filesystem, XattrCalls)
        for name, method in inspect.getmembers(cls, inspect.iscoroutinefunction)
        if not name.startswith("_")
    }
    assert calls == UNCHANGING | {name.partition(" ")[0] for name in CHANGES}


# Waiting


async def test_a_file_that_is_removed_while_it_is_being_opened(autojump_clock: Clock, tmp_path: Path) -> None:
    """Its content goes with its name: there is nothing to be opened any more, and no zeros to be read."""
    storage = await filled("f")
    async with open_tree(storage, tmp_path, shared()) as tree:
        file = await tree.filesystem.lookup(1, b"f")
        gate = storage.hold(Verb.HEAD, key="f")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(
                fails_with, NoSuchInode, tree.filesystem.open, file.number, os.O_RDONLY, CALLER
            )
            await gate.reached.wait()
            await tree.unlink("f")
            gate.open()
        assert not tree.filesystem.has_writers
        assert file.handles == 0


@pytest.mark.parametrize("call", ["open", "truncate"])
async def test_a_file_that_is_removed_while_it_waits_to_be_cut(
    autojump_clock: Clock, tmp_path: Path, call: str
) -> None:
    async with open_tree(await filled("f"), tmp_path) as tree:
        file = await tree.filesystem.lookup(1, b"f")
        assert isinstance(file, File)
        file.content.hold_writers()
        async with trio.open_nursery() as nursery:
            if call == "open":
                arguments: tuple[Any, ...] = (
                    tree.filesystem.open,
                    file.number,
                    os.O_WRONLY | os.O_TRUNC,
                    CALLER,
                )
            else:
                arguments = (tree.filesystem.setattr, file.number, AttributeChanges(size=1))
            nursery.start_soon(fails_with, NoSuchInode, *arguments)
            await trio.testing.wait_all_tasks_blocked()
            await tree.unlink("f")
            file.content.release_writers()
        assert not file.content.changed
        assert not tree.filesystem.has_writers


async def fails_with(
    error: type[Exception], call: Callable[..., Coroutine[Any, Any, object]], *arguments: object
) -> None:
    with pytest.raises(error):
        await call(*arguments)


async def test_a_write_that_waited_looks_again_whether_the_file_is_stale(
    autojump_clock: Clock, tmp_path: Path
) -> None:
    """While an upload holds writers back, it may find out that somebody else has changed the object."""
    async with open_tree(await filled("f"), tmp_path) as tree:
        handle = await tree.open("f")
        file = await tree.find_file("f")
        file.content.hold_writers()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fails_with, StaleFile, tree.filesystem.write, handle, 0, b"x")
            await trio.testing.wait_all_tasks_blocked()
            file.state.failure = StaleFile("changed meanwhile")
            file.content.release_writers()
        assert not file.content.changed


async def test_a_write_that_waited_for_room_looks_again_too(autojump_clock: Clock, tmp_path: Path) -> None:
    """What makes room publishes: that may be when it is found out."""
    storage = await filled("f")
    async with open_tree(storage, tmp_path, TreeOptions(cache_size=MIB)) as tree:
        handle = await tree.open("f")
        file = await tree.find_file("f")
        gate = storage.hold(Verb.PUT, key="other")
        await tree.write_file("other", bytes(2 * MIB))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fails_with, StaleFile, tree.filesystem.write, handle, 0, b"x")
            await gate.reached.wait()
            file.state.failure = StaleFile("changed meanwhile")
            gate.open()
        assert not file.content.changed


async def test_an_fsync_that_waited_looks_again_too(autojump_clock: Clock, tmp_path: Path) -> None:
    """What it has waited for is a log in which the file has lost its name."""
    storage = FaultyStorage(MemoryStorage())
    async with open_tree(storage, tmp_path, TreeOptions(logged=True)) as tree:
        handle = await tree.create("f")
        gate = storage.hold(Verb.PUT)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fails_with, StaleFile, tree.filesystem.fsync, handle)
            await gate.reached.wait()
            (await tree.find("f")).state.failure = StaleFile("changed meanwhile")
            gate.open()


async def test_many_files_at_once_keep_their_bytes(autojump_clock: Clock, tmp_path: Path) -> None:
    """Makers, writers, removers and readers of one directory, at the same time as its publication."""
    options = TreeOptions(publish=PublishOptions(delay_seconds=0.1, interval_seconds=0.5))
    async with open_tree(Slow(MemoryStorage()), tmp_path, options) as tree:

        async def work(number: int) -> None:
            for turn in range(3):
                await tree.write_file(f"f{number}", b"%d %d" % (number, turn))
                await trio.sleep(0.3 * (number % 4))
                if number % 3 == 0:
                    await tree.rename(f"f{number}", f"g{number}")
                    await tree.names()
                    await tree.rename(f"g{number}", f"f{number}")
                if number % 3 == 1 and turn < 2:
                    await tree.unlink(f"f{number}")

        async with trio.open_nursery() as nursery:
            for number in range(12):
                nursery.start_soon(work, number)
        await tree.publish_all()
        assert await stored(tree.storage) == {f"f{number}": b"%d 2" % number for number in range(12)}
        assert await tree.names() == sorted(f"f{number}" for number in range(12))


async def test_a_sequential_reader_is_ahead_of_itself_and_a_random_one_is_not(
    tmp_path: Path, autojump_clock: Clock
) -> None:
    """What comes next is fetched before it is asked for, further and further; and a long range in several requests."""
    storage = FaultyStorage(MemoryStorage())
    await storage.put("file", bytes(40 * MIB))
    async with open_tree(storage, tmp_path) as tree:
        random = await tree.open("file", os.O_RDONLY)
        await tree.filesystem.read(random, 33 * MIB + 5, 100)
        await trio.testing.wait_all_tasks_blocked()
        assert tree.sources.budget.total <= 256 * KIB
        sequential = await tree.open("file", os.O_RDONLY)
        for offset in range(0, 6 * MIB, MIB):
            await tree.filesystem.read(sequential, offset, MIB)
        await trio.testing.wait_all_tasks_blocked()
        assert tree.sources.budget.total >= 9 * MIB
        storage.calls.clear()
        fetching = storage.hold(Verb.GET_RANGE, times=math.inf)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tree.filesystem.read, random, 20 * MIB, 12 * MIB)
            await trio.testing.wait_all_tasks_blocked()
            assert len(storage.calls_of(Verb.GET_RANGE)) == 2, "they end at multiples of 8 MiB"
            fetching.open()
