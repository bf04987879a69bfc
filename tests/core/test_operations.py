"""The pyfuse3 handlers without a kernel: what they tell it, and that nothing but an errno gets out of any of them."""

from __future__ import annotations

import errno
import inspect
import os
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyfuse3
import pytest
import trio

from backends.memory import MemoryStorage
from fusefs.filesystem import RENAME_EXCHANGE
from fusefs.operations import FuseOperations, KernelOptions
from tests.core.tree import CALLER, Tree, open_tree

ROOT = 1
CONTEXT: Any = SimpleNamespace(uid=CALLER.uid, gid=CALLER.gid, pid=1)
OPTIONS = KernelOptions(entry_timeout_seconds=60.0, keep_cache=True, writeback_cache=True)

HANDLERS = sorted(
    name
    for name, member in vars(FuseOperations).items()
    if inspect.iscoroutinefunction(inspect.unwrap(member)) and not name.startswith("_")
)


@pytest.fixture
async def tree(tmp_path: Path) -> AsyncIterator[Tree]:
    async with open_tree(MemoryStorage(), tmp_path) as tree:
        yield tree


@pytest.fixture
def operations(tree: Tree) -> FuseOperations:
    return FuseOperations(tree.filesystem, OPTIONS)


def errno_of(call: pytest.ExceptionInfo[pyfuse3.FUSEError]) -> int:
    number: int = call.value.errno
    return number


class Broken:
    """A file system whose every call is a defect."""

    def __getattr__(self, name: str) -> Any:
        raise RecursionError(f"a defect in {name}")


@pytest.mark.parametrize("name", HANDLERS)
async def test_a_defect_below_a_handler_is_an_errno(name: str) -> None:
    """A handler without the boundary would end the mount for everybody."""
    handler = getattr(FuseOperations(Broken(), OPTIONS, Broken()), name)  # type: ignore[arg-type]
    arguments = [CONTEXT for _ in inspect.signature(handler).parameters]
    if name in {"forget", "statfs"}:  # the one has no answer, the other asks nobody
        await handler(*arguments)
        return
    with pytest.raises(pyfuse3.FUSEError) as caught:
        await handler(*arguments)
    assert errno_of(caught) == errno.EIO


async def test_a_mount_without_extended_attributes_is_not_asked_again(operations: FuseOperations) -> None:
    """The kernel takes ENOSYS for ever."""
    with pytest.raises(pyfuse3.FUSEError) as caught:
        await operations.getxattr(ROOT, b"security.capability", CONTEXT)
    assert errno_of(caught) == errno.ENOSYS


def test_what_the_kernel_would_take_for_a_success_is_defined() -> None:
    """pyfuse3 answers ENOSYS for the others; for these the kernel would say 0 from then on, or never ask again."""
    assert set(HANDLERS) >= {"fsync", "fsyncdir", "flush", "release", "open", "opendir", "statfs", "forget"}


async def test_an_entry_tells_everything_of_an_inode(tree: Tree, operations: FuseOperations) -> None:
    handle = await tree.create("f", mode=0o640)
    await tree.write(handle, 0, b"x" * 1_025)
    entry = await operations.lookup(ROOT, b"f", CONTEXT)
    inode = await tree.find("f")
    assert entry.st_ino == inode.number
    assert entry.st_mode == stat.S_IFREG | 0o640
    assert (entry.st_nlink, entry.st_uid, entry.st_gid) == (1, CALLER.uid, CALLER.gid)
    assert (entry.st_size, entry.st_blocks) == (1_025, 3)
    assert entry.st_mtime_ns == inode.attributes.mtime_ns
    assert entry.st_ctime_ns == inode.attributes.ctime_ns
    assert entry.st_atime_ns == inode.attributes.atime_ns
    assert (entry.entry_timeout, entry.attr_timeout) == (60.0, 60.0)
    await tree.mkdir("d")
    await tree.mkdir("d/e")
    assert (await operations.getattr((await tree.find("d")).number, CONTEXT)).st_nlink == 3
    special = await operations.mknod(ROOT, b"null", stat.S_IFCHR | 0o666, os.makedev(1, 3), CONTEXT)
    assert (special.st_mode, special.st_rdev) == (stat.S_IFCHR | 0o666, os.makedev(1, 3))


async def test_times_before_1970_reach_the_kernel(tree: Tree, operations: FuseOperations) -> None:
    await tree.close(await tree.create("f"))
    number = (await tree.find("f")).number
    await set_attributes(operations, number, st_mtime_ns=-1, st_atime_ns=-1_500_000_000)
    entry = await operations.getattr(number, CONTEXT)
    assert (entry.st_mtime_ns, entry.st_atime_ns) == (-1, -1_500_000_000)


async def test_a_missing_name_may_be_kept(operations: FuseOperations) -> None:
    """The tree is ours: the kernel need not ask for the same missing library a thousand times."""
    entry = await operations.lookup(ROOT, b"missing", CONTEXT)
    assert (entry.st_ino, entry.entry_timeout) == (0, 60.0)


async def set_attributes(operations: FuseOperations, number: int, **values: int) -> pyfuse3.EntryAttributes:
    """Change these attributes and no other, whatever else the struct holds."""
    names = ("mode", "uid", "gid", "size", "atime", "mtime", "ctime")
    struct = {f"st_{name}{'_ns' if name.endswith('time') else ''}": 0o7777 for name in names}
    fields = {f"update_{name}": False for name in names}
    for name, value in values.items():
        struct[name] = value
        fields["update_" + name.removeprefix("st_").removesuffix("_ns")] = True
    attributes: Any = SimpleNamespace(**struct)
    update: Any = SimpleNamespace(**fields)
    return await operations.setattr(number, attributes, update, None, CONTEXT)


@pytest.mark.parametrize(
    ("name", "value", "seen"),
    [
        ("st_mode", 0o100600, stat.S_IFREG | 0o600),
        ("st_uid", 5, 5),
        ("st_gid", 6, 6),
        ("st_size", 7, 7),
        ("st_size", 0, 0),
        ("st_atime_ns", 8, 8),
        ("st_mtime_ns", 0, 0),
    ],
)
async def test_setattr_changes_what_it_is_asked_for_and_nothing_else(
    tree: Tree, operations: FuseOperations, name: str, value: int, seen: int
) -> None:
    await tree.write_file("f", b"123")
    number = (await tree.find("f")).number
    before = await operations.getattr(number, CONTEXT)
    after = await set_attributes(operations, number, **{name: value})
    assert getattr(after, name) == seen
    for other in {"st_mode", "st_uid", "st_gid", "st_size", "st_atime_ns"} - {name}:
        assert getattr(after, other) == getattr(before, other), other


async def test_statfs_has_room_for_every_server(operations: FuseOperations) -> None:
    data = await operations.statfs(CONTEXT)
    assert data.f_bavail * data.f_frsize == 2**50
    assert data.f_bfree == data.f_blocks == data.f_bavail
    assert data.f_ffree > 10**9
    assert data.f_namemax == 255


@pytest.mark.parametrize("kept", [True, False])
async def test_pages_are_kept_between_opens_where_they_may_be(tree: Tree, kept: bool) -> None:
    """Not on a shared mount, where an open must show what others wrote (close-to-open)."""
    options = KernelOptions(entry_timeout_seconds=1.0, keep_cache=kept, writeback_cache=False)
    operations = FuseOperations(tree.filesystem, options)
    created, entry = await operations.create(ROOT, b"f", 0o644, os.O_RDWR, CONTEXT)
    opened = await operations.open(entry.st_ino, os.O_RDONLY, CONTEXT)
    assert (created.keep_cache, opened.keep_cache) == (kept, kept)
    for info in (created, opened):
        await operations.flush(info.fh)
        await operations.release(info.fh)


async def test_a_rename_has_pages_fetched_that_nobody_has_seen(tree: Tree) -> None:
    calls = 0

    async def collect() -> None:
        nonlocal calls
        calls += 1

    operations = FuseOperations(tree.filesystem, OPTIONS, collect_pages=collect)
    await tree.write_file("old", b"old")
    handle = await tree.create("new")
    await operations.rename(ROOT, b"new", ROOT, b"unused", 0, CONTEXT)
    assert calls == 0
    await operations.rename(ROOT, b"unused", ROOT, b"old", 0, CONTEXT)
    assert calls == 1
    await tree.close(handle)
    await tree.write_file("another", b"another")
    await operations.rename(ROOT, b"old", ROOT, b"another", 0, CONTEXT)
    assert calls == 1


@pytest.mark.parametrize(
    ("name", "new_name", "flags", "is_asked_for"),
    [
        (b"file", b"old", 0, True),
        (b"further", b"old", 0, True),
        (b"old", b"file", 0, False),
        (b"old", b"file", RENAME_EXCHANGE, True),
        (b"old", b"further", RENAME_EXCHANGE, True),
        (b"file", b"unused", 0, False),
    ],
)
async def test_whose_pages_a_rename_has_fetched(
    name: bytes, new_name: bytes, flags: int, is_asked_for: bool, tree: Tree
) -> None:
    """Those of whatever is open for writing, under any of its names, and gets a name that is another one's."""
    await tree.write_file("old", b"old")
    handle = await tree.create("file")
    await tree.link("file", "further")
    assert tree.filesystem.replaces_while_written(ROOT, name, ROOT, new_name, flags) == is_asked_for
    await tree.close(handle)


async def test_a_file_from_creation_to_its_end(tree: Tree, operations: FuseOperations) -> None:
    info, entry = await operations.create(ROOT, b"f", 0o644, os.O_RDWR, CONTEXT)
    assert await operations.write(info.fh, 0, b"bytes") == 5
    assert await operations.read(info.fh, 1, 100) == b"ytes"
    await operations.fsync(info.fh, True)
    await operations.rename(ROOT, b"f", ROOT, b"g", 0, CONTEXT)
    await operations.unlink(ROOT, b"g", CONTEXT)
    assert (await operations.getattr(entry.st_ino, CONTEXT)).st_nlink == 0
    assert await operations.read(info.fh, 0, 5) == b"bytes"
    await operations.release(info.fh)
    await operations.forget([(entry.st_ino, 1)])
    assert len(tree.inodes) == 1
    with pytest.raises(pyfuse3.FUSEError) as caught:
        await operations.getattr(entry.st_ino, CONTEXT)
    assert errno_of(caught) == errno.ESTALE


async def test_a_link_and_a_directory(operations: FuseOperations) -> None:
    link = await operations.symlink(ROOT, b"l", b"target", CONTEXT)
    assert await operations.readlink(link.st_ino, CONTEXT) == b"target"
    made = await operations.mkdir(ROOT, b"d", 0o700, CONTEXT)
    handle = await operations.opendir(made.st_ino, CONTEXT)
    await operations.fsyncdir(handle, False)
    await operations.releasedir(handle)
    await operations.rmdir(ROOT, b"d", CONTEXT)
    await trio.lowlevel.checkpoint()


async def test_readdir_stops_where_the_kernel_has_no_more_room(
    tree: Tree, operations: FuseOperations, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it has been given it refers to, and what did not fit it does not; the next call goes on there."""
    for number in range(5):
        await tree.close(await tree.create(f"f{number}"))
    replies: list[tuple[bytes, int]] = []
    room = [1, 2, 2, 2]

    def reply(token: object, name: bytes, entry: pyfuse3.EntryAttributes, position: int) -> bool:
        if not room[0]:
            return False
        room[0] -= 1
        replies.append((name, position))
        return True

    monkeypatch.setattr(pyfuse3, "readdir_reply", reply)
    handle = await operations.opendir(ROOT, CONTEXT)
    token: Any = object()
    while room:
        start = replies[-1][1] if replies else 0
        await operations.readdir(handle, start, token)
        room.pop(0)
    assert [name for name, _ in replies] == [b".", b"..", b"f0", b"f1", b"f2", b"f3", b"f4"]
    assert [(await tree.find(f"f{number}")).lookups for number in range(5)] == [1] * 5
    room.append(9)
    await operations.readdir(handle, replies[-1][1], token)
    assert len(replies) == 7, "the end"
    assert tree.root.lookups == 1, "the kernel takes no reference for dots"


async def test_positions_stay_what_they_are_for_who_seeks_back_to_the_first(
    tree: Tree, operations: FuseOperations, monkeypatch: pytest.MonkeyPatch
) -> None:
    """seekdir(3) to the first entry or a dot is no rewinddir(3), which alone sees what has come and gone since."""
    for name in ("b", "c", "d"):
        await tree.close(await tree.create(name))
    replies: list[tuple[bytes, int]] = []

    def reply(token: object, name: bytes, entry: pyfuse3.EntryAttributes, position: int) -> bool:
        replies.append((name, position))
        return True

    monkeypatch.setattr(pyfuse3, "readdir_reply", reply)
    handle = await operations.opendir(ROOT, CONTEXT)

    async def read(start: int) -> list[tuple[bytes, int]]:
        replies.clear()
        token: Any = object()
        await operations.readdir(handle, start, token)
        return list(replies)

    assert await read(0) == [(b".", 1), (b"..", 2), (b"b", 3), (b"c", 4), (b"d", 5)]
    await tree.unlink("b")
    await tree.close(await tree.create("a"))
    assert await read(1) == [(b"..", 2), (b"c", 4), (b"d", 5)]
    assert await read(2) == [(b"c", 4), (b"d", 5)]
    assert await read(4) == [(b"d", 5)]
    assert await read(0) == [(b".", 1), (b"..", 2), (b"a", 3), (b"c", 4), (b"d", 5)]
