"""Files with several names: one inode in the tree, an object for each name, and a list of them."""

from __future__ import annotations

import os
import stat
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from backends.base import iterate_pages
from backends.errors import AccessDenied, Unavailable
from backends.intercepted import Verb
from backends.memory import MemoryStorage
from fusefs.committer import Committer
from fusefs.errors import EntryExists, NoSuchEntry, NoSuchInode, OperationNotPermitted
from fusefs.filesystem import RENAME_EXCHANGE, FilesystemOptions
from fusefs.link_lists import LINK_KEY, LISTS_PREFIX, list_key
from tests.core.tree import TreeOptions, open_tree, stored, stored_metadata
from tests.support.faulty import FaultyStorage


async def lists_in(storage: MemoryStorage) -> list[str]:
    return [info.key async for page in iterate_pages(storage, LISTS_PREFIX) for info in page.objects]


async def test_objects_follow_whichever_name_is_written(autojump_clock: MockClock, tmp_path: Path) -> None:
    storage = MemoryStorage()
    async with open_tree(storage, tmp_path) as tree:
        await tree.write_file("a", b"old")
        await tree.link("a", "b")
        await tree.publish_all()
        await tree.write_file("b", b"new")
        await tree.publish_all()
        assert await stored(storage) == {"a": b"new", "b": b"new"}
        assert (await tree.find("a")).link_count == 2
        await tree.unlink("a")
        await tree.publish_all()
        assert await stored(storage) == {"b": b"new"}
        assert await lists_in(storage) == []
        assert LINK_KEY not in ((await storage.head("b")).metadata or {})


async def test_an_object_whose_list_of_names_is_denied_is_still_our_own(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    storage = FaultyStorage(inner := MemoryStorage())
    async with open_tree(storage, tmp_path) as tree:
        await tree.write_file("a", b"content")
        await tree.link("a", "b")
        storage.fail(AccessDenied, verb=Verb.PUT, call=2)
        with pytest.raises(AccessDenied):
            await tree.publish_all()
        await tree.publish_all()
        assert tree.publisher.statistics().conflicts == 0
        assert await tree.names() == ["a", "b"]
    assert await stored(storage) == {"a": b"content", "b": b"content"}
    assert len(await lists_in(inner)) == 1


async def test_a_name_is_given_away_whose_object_had_no_answer(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """It is ours, and is looked for before another file is to be there: while the list of names is deleted, too."""
    storage = FaultyStorage(MemoryStorage())
    async with open_tree(storage, tmp_path, TreeOptions(logged=True)) as tree:
        await tree.write_file("a", b"linked")
        await tree.write_file("c", b"another")
        await tree.publish_all()
        await tree.link("a", "b")
        storage.fail(Unavailable, verb=Verb.COPY, key="b", answer_lost=True)
        with pytest.raises(Unavailable):
            await tree.publish_all()
        deleting = storage.hold(Verb.DELETE)
        await tree.rename("c", "b")
        await deleting.reached.wait()
        await trio.sleep(1)
        deleting.open()
        await tree.publish_all()
        assert tree.publisher.statistics().conflicts == 0
        assert await tree.read_file("b") == b"another"
    assert await stored(storage) == {"a": b"linked", "b": b"another"}


async def test_a_temporary_name_costs_nothing(autojump_clock: MockClock, tmp_path: Path) -> None:
    """Write, link, unlink: what git, maildir and lock files do."""
    storage = MemoryStorage()
    async with open_tree(storage, tmp_path) as tree:
        await tree.write_file("temporary", b"x")
        await tree.link("temporary", "name")
        await tree.unlink("temporary")
        await tree.publish_all()
        assert tree.publisher.statistics().published == 1
        assert await stored(storage, ours=True) == {"name": b"x"}


@pytest.mark.parametrize("logged", [False, True])
@pytest.mark.parametrize("name", ["a", "b"])
async def test_nothing_is_pending_when_a_name_and_a_directory_have_changed_places(
    name: str, logged: bool, autojump_clock: MockClock, tmp_path: Path
) -> None:
    """The object of one name is out of the way for a moment; the others are told of it, and wait for nothing else."""
    storage = MemoryStorage()
    async with open_tree(storage, tmp_path, TreeOptions(logged=logged)) as tree:
        await tree.mkdir("d")
        await tree.write_file("a", b"x")
        await tree.link("a", "b")
        await tree.publish_all()
        await tree.rename(name, "d", RENAME_EXCHANGE)
        await tree.publish_all()
        assert tree.publisher.pending_inodes() == []
        if isinstance(tree.log, Committer):
            await tree.log.finish()
            assert tree.log.is_empty
        other = "b" if name == "a" else "a"
        assert await stored(storage) == {f"{name}/": b"", other: b"x", "d": b"x"}


@pytest.mark.parametrize("index", [False, True])
async def test_a_later_mount_knows_all_names(index: bool, autojump_clock: MockClock, tmp_path: Path) -> None:
    storage = MemoryStorage()
    options = TreeOptions(index=index)
    async with open_tree(storage, tmp_path, options) as tree:
        await tree.mkdir("d")
        await tree.write_file("d/a", b"x")
        await tree.link("d/a", "b")
        number = (await tree.find("b")).number
        await tree.end()
    async with open_tree(storage, tmp_path, options) as tree:
        inode = await tree.find("b")
        assert (inode.number, inode.link_count) == (number, 2)
        assert await tree.find("d/a") is inode
        await tree.write_file("d/a", b"changed")
        await tree.publish_all()
        assert await stored(storage) == {"d/": b"", "d/a": b"changed", "b": b"changed"} or (
            await stored(storage) == {"d/a": b"changed", "b": b"changed"}
        )


async def test_a_file_with_several_names_is_looked_up_ahead_of_a_first_listing_too(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """Nobody waits for the rest of a large directory because that has another name of the same file."""
    storage = FaultyStorage(MemoryStorage())
    for number in range(2_500):
        await storage.put(f"d/f{number:04d}", b"")
    async with open_tree(storage, tmp_path / "1") as tree:
        await tree.write_file("d/x", b"x")
        await tree.link("d/x", "d/y")
        await tree.link("d/x", "z")
        await tree.end()
    async with open_tree(storage, tmp_path / "2") as tree:
        rest = storage.hold(Verb.LIST_PREFIX, key="d/", call=2)
        with trio.fail_after(1):
            assert (await tree.find("z")).link_count == 3
            assert await tree.find("d/y") is await tree.find("z")
        rest.open()
        assert len(await tree.names("d")) == 2_502
        assert await tree.find("d/x") is await tree.find("z")
        await tree.unlink("z")
        await tree.write_file("d/y", b"changed")
        await tree.publish_all()
        objects = await stored(storage)
        assert (objects["d/x"], objects["d/y"]) == (b"changed", b"changed")
        assert "z" not in objects


async def test_a_later_file_of_a_name_that_one_of_several_had(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """By its name it has the inode number that the other one had when that got a second name."""
    storage = MemoryStorage()
    async with open_tree(storage, tmp_path) as tree:
        await tree.write_file("name", b"first")
        await tree.publish_all()
    async with open_tree(storage, tmp_path) as tree:
        await tree.link("name", "first-2")
        await tree.rename("name", "first-1")
        await tree.write_file("name", b"second")
        await tree.publish_all()
    async with open_tree(storage, tmp_path) as tree:
        await tree.link("name", "second-2")
        await tree.publish_all()
    async with open_tree(storage, tmp_path) as tree:
        for one, other in (("name", "second-2"), ("first-1", "first-2")):
            assert await tree.find(one) is await tree.find(other)


@pytest.mark.parametrize("changed", ["a", "b"])
async def test_what_somebody_else_changes_is_a_file_of_its_own(
    changed: str, autojump_clock: MockClock, tmp_path: Path
) -> None:
    """Seen by a listing, or only when ours is published; nothing of either is lost."""
    storage = MemoryStorage()
    async with open_tree(storage, tmp_path) as tree:
        await tree.write_file("a", b"old")
        for name in ("b", "c"):
            await tree.link("a", name)
        await tree.publish_all()
        await storage.put(changed, b"theirs")
        await tree.write_file("c", b"ours")
        await tree.publish_all()
        await trio.sleep(61)
        await tree.names()
        (other,) = {"a", "b"} - {changed}
        assert {name: await tree.read_file(name) for name in "abc"} == {
            changed: b"theirs",
            other: b"ours",
            "c": b"ours",
        }
        assert [(await tree.find(name)).link_count for name in (changed, other)] == [1, 2]
        await storage.put(changed, b"theirs again")
        await trio.sleep(61)
        await tree.names()
        assert await tree.read_file(changed) == b"theirs again"
        await storage.put("c", b"theirs, too")
        await trio.sleep(61)
        await tree.names()
        assert [await tree.read_file(name) for name in (other, "c")] == [b"ours", b"theirs, too"]


@pytest.mark.parametrize(
    ("theirs", "metadata"),
    [
        (b"longer", {}),
        (b"new", {"mtime": "1800000000.000000000"}),
        (b"old", {"mode": str(stat.S_IFIFO | 0o644)}),
    ],
    ids=["size", "time", "kind"],
)
async def test_what_somebody_else_writes_with_the_metadata_that_was_there(
    theirs: bytes, metadata: dict[str, str], autojump_clock: MockClock, tmp_path: Path
) -> None:
    """There are tools that keep all of it: it says that the object is a name still, and the object that it is none."""
    storage = MemoryStorage()
    async with open_tree(storage, tmp_path / "1") as tree:
        await tree.write_file("a", b"old")
        await tree.link("a", "b")
        await tree.publish_all()
    was = (await storage.head("b")).metadata or {}
    await storage.put("b", theirs, metadata={**was, **metadata})
    for first, second in ("ab", "ba"):
        async with open_tree(storage, tmp_path / f"2 {first}") as tree:
            assert await tree.find(first) is not await tree.find(second)
            assert [(await tree.find(name)).link_count for name in "ab"] == [1, 1]
            assert await tree.read_file("a") == b"old"
    assert (await storage.get_range("b")).data == theirs


@pytest.mark.parametrize("replaced", "abc")
async def test_the_other_names_stay_one_file_when_somebody_else_replaces_one(
    replaced: str, autojump_clock: MockClock, tmp_path: Path
) -> None:
    """The list of them is theirs, too."""
    storage = MemoryStorage()
    one, other = sorted({*"abc"} - {replaced})
    async with open_tree(storage, tmp_path / "1") as tree:
        await tree.write_file("a", b"old")
        for name in "bc":
            await tree.link("a", name)
        await tree.publish_all()
        await storage.put(replaced, b"theirs")
        await trio.sleep(61)
        await tree.names()
        for _ in range(2):
            assert await tree.find(one) is await tree.find(other)
            assert (await tree.find(one)).link_count == 2
            await tree.publish_all()
            await trio.sleep(61)
            await tree.names()
    async with open_tree(storage, tmp_path / "2") as tree:
        assert await tree.find(one) is await tree.find(other)
        assert await tree.find(replaced) is not await tree.find(one)


async def test_attributes_of_which_one_name_has_the_latest(autojump_clock: MockClock, tmp_path: Path) -> None:
    """A mount has died between two names, or somebody else knows of one alone: they are those of the file."""
    storage = MemoryStorage()
    async with open_tree(storage, tmp_path / "1") as tree:
        await tree.write_file("a", b"old")
        await tree.link("a", "b")
        await tree.publish_all()
    was = (await storage.head("b")).metadata or {}
    later = {"mode": str(stat.S_IFREG | 0o600), "ctime": "1800000000.000000000"}
    await storage.copy("b", "b", metadata={**was, **later})
    for name in "ab":
        async with open_tree(storage, tmp_path / f"2 {name}") as tree:
            inode = await tree.find(name)
            assert (inode.attributes.mode, inode.link_count) == (stat.S_IFREG | 0o600, 2)


@pytest.mark.parametrize(
    "names", [("d/1", "a", "b"), ("a", "d/1", "b"), ("d/1", "d/e/2", "a", "b"), ("1", "a", "b")]
)
@pytest.mark.parametrize("is_known", [False, True])
async def test_somebody_else_removes_some_of_the_names(
    names: tuple[str, ...], is_known: bool, autojump_clock: MockClock, tmp_path: Path
) -> None:
    """With a directory or by themselves, the one that was made first or another: the others stay one file."""
    storage = MemoryStorage()
    first, *others = names
    async with open_tree(storage, tmp_path / "1") as tree:
        for path in ("d", "d/e"):
            await tree.mkdir(path)
        await tree.write_file(first, b"old")
        for name in others:
            await tree.link(first, name)
        await tree.publish_all()
        if is_known:
            inode = await tree.filesystem.lookup(*await tree.place_of(first))
        await storage.delete_many([key for key in await stored(storage) if key not in ("a", "b")])
        await trio.sleep(61)
        assert await tree.names() == ["a", "b"]
        assert await tree.find("a") is await tree.find("b")
        assert (await tree.find("a")).link_count == 2
        await tree.write_file("a", b"new")
        await tree.publish_all()
        assert await stored(storage) == {"a": b"new", "b": b"new"}
        if is_known:
            tree.filesystem.forget([(inode.number, 1)])
            await tree.publish_all()
    async with open_tree(storage, tmp_path / "2") as tree:
        assert [(await tree.find(name)).link_count for name in ("a", "b")] == [2, 2]
        await tree.write_file("over", b"over")
        await tree.rename("over", "a")
        await tree.unlink("b")
        await tree.publish_all()
        assert await stored(storage, ours=True) == {"a": b"over"}


@pytest.mark.parametrize("first", ["a", "d/b"])
async def test_the_last_other_name_goes_with_a_directory(
    first: str, autojump_clock: MockClock, tmp_path: Path
) -> None:
    storage = MemoryStorage()
    async with open_tree(storage, tmp_path) as tree:
        await tree.mkdir("d")
        await tree.write_file(first, b"x")
        await tree.link(first, "d/b" if first == "a" else "a")
        await tree.publish_all()
        await storage.delete_many(["d/", "d/b"])
        await trio.sleep(61)
        assert await tree.names() == ["a"]
        assert await tree.read_file("a") == b"x"
        assert (await tree.find("a")).link_count == 1
        await tree.unlink("a")
        await tree.publish_all()
        assert await stored(storage, ours=True) == {}


async def test_another_host_removes_a_directory(autojump_clock: MockClock, tmp_path: Path) -> None:
    """With the one name of a file below it: by the other it is there still, and can be removed."""
    options = TreeOptions(filesystem=FilesystemOptions(shared=True), revalidate_seconds=1.0)
    storage = MemoryStorage()
    async with (
        open_tree(storage, tmp_path / "1", replace(options, mount_id="one")) as one,
        open_tree(storage, tmp_path / "2", replace(options, mount_id="two")) as two,
    ):
        await one.write_file("a", b"x")
        await one.mkdir("d")
        await one.link("a", "d/b")
        await trio.sleep(2)
        assert (await two.find("d/b")).link_count == 2
        await one.unlink("d/b")
        await one.rmdir("d")
        await trio.sleep(2)
        assert await two.names() == ["a"]
        assert await two.read_file("a") == b"x"
        await two.unlink("a")
        await trio.sleep(2)
        assert await one.names() == []


async def test_a_copy_with_all_its_metadata_is_no_name(autojump_clock: MockClock, tmp_path: Path) -> None:
    storage = MemoryStorage()
    async with open_tree(storage, tmp_path / "1") as tree:
        await tree.write_file("a", b"x")
        await tree.link("a", "b")
        await tree.publish_all()
    await storage.copy("a", "copy")
    async with open_tree(storage, tmp_path / "2") as tree:
        assert [(await tree.find(name)).link_count for name in ("copy", "a", "b")] == [1, 2, 2]


@pytest.mark.parametrize(
    "number", ["0", "1", "-1", "-a", "8" + "0" * 15, "f" * 32, "1_0", "\N{DEVANAGARI DIGIT TWO}"]
)
async def test_metadata_that_names_no_list(number: str, autojump_clock: MockClock, tmp_path: Path) -> None:
    """Such a number is no inode's: the file is one of its own, with a number that a file can have."""
    storage = MemoryStorage()
    await storage.put("f", b"x", metadata={LINK_KEY: number})
    async with open_tree(storage, tmp_path / "without") as tree:
        without = await tree.find("f")
    for value in (0, 1, -1, -10, 1 << 63, (1 << 128) - 1):
        await storage.put(list_key(value), b'["f"]')
    async with open_tree(storage, tmp_path / "with") as tree:
        inode = await tree.find("f")
        assert (inode.number, inode.link_count) == (without.number, 1)


@pytest.mark.parametrize(
    "data", [b"", b"\xff", b"7", b"[" * 100_000, b'["f", "\\ud800"]', b'{"f": "g"}'], ids=len
)
async def test_a_list_that_nobody_can_read(data: bytes, autojump_clock: MockClock, tmp_path: Path) -> None:
    """Its files are one each."""
    storage = MemoryStorage()
    for key in ("f", "g"):
        await storage.put(key, b"x", metadata={LINK_KEY: "ff"})
    await storage.put(list_key(0xFF), data)
    async with open_tree(storage, tmp_path) as tree:
        assert [(await tree.find(name)).link_count for name in ("f", "g")] == [1, 1]


async def test_what_cannot_be_linked(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with open_tree(MemoryStorage(), tmp_path) as tree:
        await tree.mkdir("d")
        handle = await tree.create("f", flags=os.O_RDWR)
        file = await tree.find("f")
        for error, path, new_path in (
            (OperationNotPermitted, "d", "new"),
            (EntryExists, "f", "d"),
            (EntryExists, "f", "f"),
        ):
            with pytest.raises(error):
                await tree.link(path, new_path)
        await tree.unlink("f")
        with pytest.raises(NoSuchEntry):
            await tree.filesystem.link(file.number, tree.root.number, b"new")
        await tree.close(handle)


@pytest.mark.parametrize("again", range(5))
@pytest.mark.parametrize("pause", [0, 70])
@pytest.mark.parametrize("first", ["d/copy", "d/file"])
async def test_its_number_is_the_same_in_the_next_mount(
    again: int, pause: float, first: str, autojump_clock: MockClock, tmp_path: Path
) -> None:
    """Whichever of its names the index tells of, and whichever is looked up first; which task is first, is chance."""
    storage, options = MemoryStorage(), TreeOptions(index=True, logged=True)
    async with open_tree(storage, tmp_path / "before", options) as tree:
        await tree.mkdir("d")
        await tree.write_file("d/file", b"bytes")
        await trio.sleep(pause)
        await tree.link("d/file", "d/copy")
        await trio.sleep(pause)
        number = (await tree.find("d/file")).number
        await tree.publish_all()
        await tree.end()
    async with open_tree(storage, tmp_path / "after", options) as tree:
        await tree.names("d")
        assert (await tree.find(first)).number == number
        assert (await tree.find("d/file")).number == (await tree.find("d/copy")).number


async def test_a_copy_that_gets_another_name_takes_no_list_along(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """Somebody else has copied one with all its metadata: the copy is a file of its own, and so are its names."""
    storage = MemoryStorage()
    async with open_tree(storage, tmp_path / "1") as tree:
        await tree.write_file("a", b"bytes")
        await tree.link("a", "b")
        await tree.publish_all()
    await storage.copy("a", "copy")
    async with open_tree(storage, tmp_path / "2") as tree:
        await tree.link("copy", "other")
        await tree.publish_all()
    async with open_tree(storage, tmp_path / "3") as tree:
        found = {name: await tree.find(name) for name in ("a", "b", "copy", "other")}
        assert found["a"] is found["b"]
        assert found["copy"] is found["other"]
        assert found["a"] is not found["copy"]


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "default"])
@pytest.mark.parametrize("name", ["one", "two"])
async def test_another_host_changes_the_permissions_of_any_name(
    name: str, shared: bool, autojump_clock: MockClock, tmp_path: Path
) -> None:
    """They are the file's, and seen with the next listing, whichever name that host has used."""
    storage = MemoryStorage()
    options = TreeOptions(
        filesystem=FilesystemOptions(shared=shared, wait_on_close=shared),
        revalidate_seconds=0.5 if shared else 60,
        logged=not shared,
    )
    async with open_tree(storage, tmp_path, options) as tree:
        await tree.write_file("one", b"bytes")
        await tree.link("one", "two")
        await tree.publish_all()
        await trio.sleep(100)
        await tree.names()
        changed = {**(await stored_metadata(storage))[name], "mode": str(0o100600)}
        await storage.copy(name, name, metadata=changed)
        for _ in range(2):
            await trio.sleep(100)
            await tree.names()
        assert (await tree.find(name)).attributes.mode == 0o100600
        assert await tree.find("one") is await tree.find("two")


@pytest.mark.parametrize("is_replaced", [False, True])
async def test_a_file_is_opened_by_another_name_than_the_one_that_others_have_taken(
    is_replaced: bool, autojump_clock: MockClock, tmp_path: Path
) -> None:
    """The kernel looks a path up once more for ESTALE, and finds the name that has an object still."""
    store = MemoryStorage()
    options = TreeOptions(filesystem=FilesystemOptions(shared=True), revalidate_seconds=1)
    async with open_tree(store, tmp_path, options) as tree:
        await tree.mkdir("d")
        await tree.write_file("d/first", b"bytes")
        await tree.link("d/first", "other")
        await trio.sleep(10)
        await (store.put("d/first", b"theirs") if is_replaced else store.delete("d/first"))
        await trio.sleep(10)
        with pytest.raises(NoSuchInode):
            await tree.open("other", os.O_RDONLY)
        assert await tree.read_file("other") == b"bytes"


async def test_a_fifo_whose_object_has_bytes_keeps_its_names(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """Somebody else has put them there, and they are copied with it."""
    store = MemoryStorage()
    await store.put("first", b"theirs", metadata={"mode": str(stat.S_IFIFO | 0o644)})
    async with open_tree(store, tmp_path) as tree:
        await tree.link("first", "other")
        await tree.publish_all()
    async with open_tree(store, tmp_path) as tree:
        assert await tree.find("first") is await tree.find("other")
