"""Listings of large directories: names come while the rest is still being listed, and little is kept of each."""

from __future__ import annotations

import gc
import os
import stat
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from backends.base import ListPage, ObjectInfo
from backends.errors import InvalidKey, Unavailable
from backends.intercepted import Verb
from backends.memory import MemoryStorage
from fusefs import hidden_keys
from fusefs.attributes import fresh
from fusefs.directory_names import PAGES_AHEAD, DirectoryNames, ListingRun, PagesAhead
from fusefs.errors import EntryExists, NoSuchEntry, StaleFile
from fusefs.filesystem import FilesystemOptions
from fusefs.hidden_keys import KEYS_NAMED
from fusefs.inodes import Directory, Inode
from tests.core.tree import Tree, TreeOptions, filled, open_tree
from tests.support.faulty import FaultyStorage, Gate

MILLION = 1_000_000


async def read(tree: Tree, handle: int, start: int) -> list[bytes]:
    return [name for name, _, _ in await tree.filesystem.readdir(handle, start, 10_000)]


async def children_of(tree: Tree, path: str) -> Collection[bytes]:
    directory = await tree.find(path)
    assert isinstance(directory, Directory)
    return directory.children


async def test_who_waits_for_a_listing_that_ends_with_the_mount_is_told_of_no_failure() -> None:
    """Some have just been woken by a page, and cannot be woken by the end of the mount as well."""
    attributes = fresh(mode=stat.S_IFDIR | 0o755, uid=0, gid=0, now_ns=0)
    run = ListingRun(Directory(number=1, attributes=attributes))
    with trio.CancelScope() as mount:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run.wait_until_over)
            await trio.testing.wait_all_tasks_blocked()
            run.add([b"a"], past="a")
            mount.cancel()
            run.end(Unavailable("the listing was given up"))


async def test_the_first_entries_come_before_the_rest_is_listed(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    keys = [f"f{number:04d}" for number in range(2_500)]
    storage = await filled(*keys)
    async with open_tree(storage, tmp_path) as tree:
        second = storage.hold(Verb.LIST_PREFIX, call=2)
        handle = await tree.filesystem.opendir(1)
        first = await read(tree, handle, 0)
        assert first == [key.encode() for key in keys[:1_000]]
        await second.reached.wait()
        second.open()
        seen = first
        while more := await read(tree, handle, len(seen)):
            seen = seen + more
        assert seen == [key.encode() for key in keys]
        assert len(storage.calls_of(Verb.LIST_PREFIX)) == 3


LARGE = [f"f{number:04d}" for number in range(2_500)]


@asynccontextmanager
async def half_listed(
    storage: FaultyStorage, where: Path, options: TreeOptions | None = None
) -> AsyncIterator[tuple[Tree, Gate]]:
    """A tree of which the directory `d` is being listed: the first page has come, the others wait at the gate."""
    gate = storage.hold(Verb.LIST_PREFIX, key="d/", call=2)
    async with open_tree(storage, where, options) as tree:
        handle = await tree.filesystem.opendir((await tree.find("d")).number)
        assert len(await read(tree, handle, 0)) == 1_000
        await gate.reached.wait()
        storage.calls.clear()
        yield tree, gate


async def test_a_lookup_waits_for_no_more_of_a_first_listing_than_what_can_be_meant(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """The last name of a page may yet turn out to be a directory, and whoever removes a name waits for all of them."""
    storage = await filled(*(f"d/{key}" for key in LARGE))
    async with half_listed(storage, tmp_path) as (tree, gate):
        assert (await tree.find("d/f0998")).size == 7
        found: list[str] = []

        async def find(path: str) -> None:
            found.append((await tree.find(path)).path_key)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(find, "d/f0999")
            nursery.start_soon(tree.unlink, "d/f0000")
            await trio.testing.wait_all_tasks_blocked()
            assert not found
            assert b"f0000" in await children_of(tree, "d")
            gate.open()
        assert found == ["d/f0999"]
        assert not storage.calls_of(Verb.LIST_PREFIX)[0].key.startswith("d/f")
        assert await tree.names("d") == LARGE[1:]


@pytest.mark.parametrize("shared", [False, True])
async def test_a_lookup_ahead_of_a_first_listing_asks_for_that_name_alone(
    shared: bool, autojump_clock: MockClock, tmp_path: Path
) -> None:
    options = TreeOptions(filesystem=FilesystemOptions(shared=shared))
    storage = await filled(*(f"d/{key}" for key in LARGE), "d/g/h", "d/g-", "d/h", "d/h/x", "d/%file-x")
    async with half_listed(storage, tmp_path, options) as (tree, gate):
        reader = await tree.filesystem.opendir((await tree.find("d")).number)
        with trio.fail_after(1):
            assert await tree.read_file("d/f2400") == b"d/f2400"
            assert await tree.read_file("d/g/h") == b"d/g/h"
            for missing in ("d/g/i", "d/f24", "d/f2400/x", "d/z", f"d/{'z' * 255}"):
                with pytest.raises((NoSuchEntry, AssertionError)):
                    await tree.find(missing)
        directories: list[Inode] = []

        async def find_what_is_both() -> None:
            directories.append(await tree.find("d/h"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(find_what_is_both)
            await trio.testing.wait_all_tasks_blocked()
            assert not directories, "only the listing tells which of them has the name"
            gate.open()
        assert isinstance(directories[0], Directory)
        names: list[bytes] = []
        while more := await read(tree, reader, len(names)):
            names += more
        expected = sorted([*LARGE, "g", "g-", "h", "%file-h", "%key-%25file-x"])
        assert sorted(name.decode() for name in names) == expected
        assert await tree.names("d") == expected


async def test_lookups_of_one_name_ahead_of_a_first_listing_share_a_request(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """A program that starts in many processes looks for the same missing files in each."""
    storage = await filled(*(f"d/{key}" for key in LARGE))
    async with half_listed(storage, tmp_path) as (tree, _):
        found: list[bytes | None] = []

        async def find(name: str) -> None:
            try:
                found.append((await tree.find(f"d/{name}")).name)
            except NoSuchEntry:
                found.append(None)

        for name in ("f2400", "missing"):
            with trio.fail_after(1):
                async with trio.open_nursery() as nursery:
                    for _ in range(8):
                        nursery.start_soon(find, name)
        assert found == [b"f2400"] * 8 + [None] * 8
        lists = [call.key for call in storage.calls_of(Verb.LIST_PREFIX)]
        assert lists == ["d/f2400", "d/missing"]


async def test_a_listing_that_comes_to_a_name_while_it_is_asked_for(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """The name is the last of a page: the listing has its object, and not yet what may be below it."""
    storage = await filled(*(f"d/{key}" for key in LARGE))
    async with half_listed(storage, tmp_path) as (tree, gate):
        third = storage.hold(Verb.LIST_PREFIX, key="d/", call=2)
        asked_for = storage.hold(Verb.LIST_PREFIX, key="d/f1999")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tree.find, "d/f1999")
            await asked_for.reached.wait()
            gate.open()
            await third.reached.wait()
            await trio.testing.wait_all_tasks_blocked()
            asked_for.open()
            await trio.testing.wait_all_tasks_blocked()
            third.open()
        assert await tree.names("d") == LARGE
        assert b"f1999" in await children_of(tree, "d")


@pytest.mark.parametrize("is_open", [False, True])
async def test_what_others_change_between_a_lookup_and_the_listing(
    is_open: bool, autojump_clock: MockClock, tmp_path: Path
) -> None:
    storage = await filled(*(f"d/{key}" for key in LARGE))
    async with half_listed(storage, tmp_path) as (tree, gate):
        numbers = [(await tree.find(f"d/{name}")).number for name in ("f2000", "f2001", "f2002")]
        if is_open:
            await tree.open("d/f2000", os.O_RDONLY)
            await tree.open("d/f2001", os.O_RDONLY)
        await storage.delete("d/f2000")
        await storage.put("d/f2001", b"theirs")
        gate.open()
        assert await tree.names("d") == [name for name in LARGE if name != "f2000"]
        with pytest.raises(NoSuchEntry):
            await tree.find("d/f2000")
        assert await tree.read_file("d/f2001") == b"theirs"
        assert (await tree.find("d/f2002")).number == numbers[2]


@pytest.mark.parametrize("is_open", [False, True])
async def test_what_others_make_of_a_name_between_a_lookup_and_the_listing(
    is_open: bool, autojump_clock: MockClock, tmp_path: Path
) -> None:
    """A directory of a file, and a file of a directory: neither is beside the other."""
    storage = await filled(*(f"d/{key}" for key in LARGE), "d/g/h")
    async with half_listed(storage, tmp_path) as (tree, gate):
        await tree.find("d/f2000")
        await tree.find("d/g/h")
        if is_open:
            await tree.open("d/f2000", os.O_RDONLY)
            await tree.open("d/g/h", os.O_RDONLY)
        await storage.delete("d/f2000")
        await storage.put("d/f2000/y", b"")
        await storage.delete("d/g/h")
        await storage.put("d/g", b"theirs")
        gate.open()
        assert await tree.names("d") == [*LARGE, "g"]
        assert isinstance(await tree.find("d/f2000"), Directory)
        assert await tree.read_file("d/g") == b"theirs"


class EmptyPages(MemoryStorage):
    """Answers every other request for a page of `d/` with one that has nothing."""

    async def list_prefix(self, prefix: str = "", **query: Any) -> ListPage:
        token = query["page_token"]
        if prefix == "d/" and token is not None and token.startswith("after "):
            return await super().list_prefix(prefix, **{**query, "page_token": token.removeprefix("after ")})
        if prefix == "d/" and token is not None:
            return ListPage(objects=(), prefixes=(), next_token=f"after {token}")
        return await super().list_prefix(prefix, **query)


async def test_an_empty_page_takes_nothing_back(autojump_clock: MockClock, tmp_path: Path) -> None:
    storage = FaultyStorage(EmptyPages())
    for key in LARGE:
        await storage.put(f"d/{key}", b"")
    third = storage.hold(Verb.LIST_PREFIX, key="d/", call=3)
    async with open_tree(storage, tmp_path) as tree:
        handle = await tree.filesystem.opendir((await tree.find("d")).number)
        assert len(await read(tree, handle, 0)) == 1_000
        await third.reached.wait()
        await trio.testing.wait_all_tasks_blocked()
        with trio.fail_after(1):
            await tree.find("d/f0001")
        third.open()
        assert await tree.names("d") == LARGE


async def test_what_a_listing_has_told_before_it_failed_is_no_failure(autojump_clock: MockClock) -> None:
    directory = Directory(number=1, attributes=fresh(mode=stat.S_IFDIR | 0o755, uid=0, gid=0, now_ns=0))
    run = ListingRun(directory)
    names = DirectoryNames(directory, run)

    async def fail() -> None:
        run.add([b"a"], past="a")
        run.end(Unavailable("gone"))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(fail)
        await run.wait_until_past("a")
    assert await names.take(0, 10) == [b"a"]
    with pytest.raises(Unavailable):
        await names.take(1, 10)


async def test_a_request_for_one_name_that_fails_leaves_it_to_the_listing(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    storage = await filled(*(f"d/{key}" for key in LARGE))
    async with half_listed(storage, tmp_path) as (tree, gate):
        storage.fail(InvalidKey, verb=Verb.LIST_PREFIX, key="d/f2400")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tree.find, "d/f2400")
            await trio.testing.wait_all_tasks_blocked()
            gate.open()


async def test_what_is_found_out_while_a_first_listing_goes_on_is_written_into_the_index(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    storage, indexed = await filled(*(f"d/{key}" for key in LARGE)), TreeOptions(index=True)
    async with half_listed(storage, tmp_path, indexed) as (tree, gate):
        number = (await tree.find("d/f0000")).number
        await tree.write_file("new", b"")
        gate.open()
        await tree.names("d")
        await tree.rename("new", "d/new")
        new = (await tree.find("d/new")).number
        await tree.end()
    async with half_listed(storage, tmp_path, indexed) as (tree, gate):
        assert (await tree.find("d/f0000")).number == number
        assert (await tree.find("d/new")).number == new
        assert [request.key for request in storage.calls] == ["d/new"], "no HEAD"
        gate.open()
        await tree.names("d")
        await tree.end()
    assert not storage.calls_of(Verb.PUT), "nothing is new to the index"


class OldPages(MemoryStorage):
    """Answers requests for pages of `d/` behind the first as it was before `hidden` was there, if there is any."""

    hidden: str | None = None

    async def list_prefix(self, prefix: str = "", **query: Any) -> ListPage:
        page = await super().list_prefix(prefix, **query)
        return replace(page, objects=tuple(each for each in page.objects if each.key != self.hidden))


async def test_a_listing_that_is_not_to_be_trusted_takes_nothing_from_the_next(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """A page of it is older than the answer that had a name ahead of it: what the index has of that is needed again."""
    pages, indexed = OldPages(), TreeOptions(index=True)
    storage = FaultyStorage(pages)
    for name in LARGE:
        await storage.put(f"d/{name}", b"")
    async with open_tree(storage, tmp_path / "1", indexed) as tree:
        await tree.names("d")
        number = (await tree.find("d/f2000")).number
        await tree.end()
    async with half_listed(storage, tmp_path / "2", indexed) as (tree, gate):
        await tree.find("d/f2000")
        pages.hidden = "d/f2000"
        gate.open()
        await trio.testing.wait_all_tasks_blocked()
        assert b"f2000" not in await children_of(tree, "d")
        pages.hidden = None
        assert await tree.names("d") == LARGE
        assert (await tree.find("d/f2000")).number == number
        assert not storage.calls_of(Verb.HEAD)


async def test_pages_are_asked_for_ahead_of_who_reads_them_and_few_wait(autojump_clock: MockClock) -> None:
    storage = await filled(*(f"f{number:05d}" for number in range(9_500)))
    with trio.fail_after(60):
        await read_one_page(storage)
    assert len(storage.calls_of(Verb.LIST_PREFIX)) == PAGES_AHEAD + 2, "nobody wants the rest"


async def read_one_page(storage: FaultyStorage) -> None:
    async with trio.open_nursery() as nursery:
        with PagesAhead(storage, nursery.start_soon, "") as pages:
            await trio.testing.wait_all_tasks_blocked()
            assert len(storage.calls_of(Verb.LIST_PREFIX)) == PAGES_AHEAD + 1
            first = await pages.take()
            assert first.objects[0].key == "f00000"
            await trio.testing.wait_all_tasks_blocked()
            assert len(storage.calls_of(Verb.LIST_PREFIX)) == PAGES_AHEAD + 2


async def test_a_page_that_fails_is_told_of_behind_those_before_it(autojump_clock: MockClock) -> None:
    storage = await filled(*(f"f{number:04d}" for number in range(2_500)))
    storage.fail(Unavailable, verb=Verb.LIST_PREFIX, call=2)
    async with trio.open_nursery() as nursery:
        with PagesAhead(storage, nursery.start_soon, "") as pages:
            await trio.testing.wait_all_tasks_blocked()
            first = await pages.take()
            assert len(first.objects) == 1_000
            with pytest.raises(Unavailable):
                await pages.take()


async def test_what_happens_while_a_reader_follows_a_listing(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """Each name once, and at the end those that the bucket does not have yet; what was removed is not shown."""
    storage = await filled(*(f"f{number:04d}" for number in range(1_500)))
    async with open_tree(storage, tmp_path) as tree:
        await tree.names()
        await trio.sleep(61)
        puts = storage.hold(Verb.PUT)
        await tree.write_file("a", b"")
        await trio.sleep(61)
        second = storage.hold(Verb.LIST_PREFIX, call=2)
        handle = await tree.filesystem.opendir(1)
        first = await read(tree, handle, 0)
        await tree.unlink("f1400")
        second.open()
        seen = first
        while more := await read(tree, handle, len(seen)):
            seen = seen + more
        names = [name.decode() for name in seen]
        assert sorted(names) == sorted({*(f"f{number:04d}" for number in range(1_500)), "a"} - {"f1400"})
        assert names[-1] == "a"
        puts.open()


async def test_who_reads_a_directory_later_than_that_is_to_be_believed_waits_for_the_next_listing(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """One that takes that long has read its first pages long ago."""
    storage = await filled(*(f"d/{key}" for key in LARGE))
    async with half_listed(storage, tmp_path) as (tree, gate):
        await storage.put("d/a", b"theirs")
        await trio.sleep(61)
        found: list[str] = []

        async def list_again() -> None:
            found.extend(await tree.names("d"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(list_again)
            await trio.testing.wait_all_tasks_blocked()
            gate.open()
        assert sorted(found) == ["a", *LARGE]


async def test_a_listing_that_fails_half_way(autojump_clock: MockClock, tmp_path: Path) -> None:
    """Whoever reads it learns that, and nothing is taken for all there is."""
    storage = await filled(*(f"f{number:04d}" for number in range(1_500)))
    async with open_tree(storage, tmp_path) as tree:
        storage.fail(Unavailable, verb=Verb.LIST_PREFIX, call=2)
        second = storage.hold(Verb.LIST_PREFIX, call=2)
        handle = await tree.filesystem.opendir(1)
        first = await read(tree, handle, 0)
        second.open()
        with pytest.raises(Unavailable):
            await read(tree, handle, len(first))
        assert len(await tree.names()) == 1_500
        await tree.find("f1499")


async def test_a_failed_first_listing_is_followed_by_what_is_there_then(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    storage = await filled(*(f"f{number:04d}" for number in range(1_500)))
    async with open_tree(storage, tmp_path) as tree:
        storage.fail(Unavailable, verb=Verb.LIST_PREFIX, call=2)
        with pytest.raises(Unavailable):
            await tree.names()
        await storage.delete("f0000")
        with pytest.raises(NoSuchEntry):
            await tree.find("f0000")


@pytest.mark.parametrize("has_two_names", [False, True])
async def test_what_somebody_else_put_is_found_although_a_listing_was_under_way(
    has_two_names: bool, autojump_clock: MockClock, tmp_path: Path
) -> None:
    """It has merged the page with the name, as ours, before the conflict is noticed: it cannot tell."""
    storage = await filled(*(f"f{number:04d}" for number in range(1_500)))
    async with open_tree(storage, tmp_path) as tree:
        if has_two_names:
            await tree.link("f0001", "link")
            await tree.publish_all()
        await tree.names()
        await trio.sleep(61)
        handle = await tree.open("f0001")
        await tree.write(handle, 0, b"ours")
        await storage.put("f0001", b"theirs")
        second = storage.hold(Verb.LIST_PREFIX, call=2)
        reader = await tree.filesystem.opendir(1)
        assert b"f0001" in await read(tree, reader, 0)
        await second.reached.wait()
        with suppress(StaleFile):
            await tree.close(handle)
        await tree.publish_all()
        looked_up: list[bytes] = []
        listed: list[str] = []

        async def look_up() -> None:
            looked_up.append(await tree.read_file("f0001"))

        async def list_names() -> None:
            listed.extend(await tree.names())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(look_up)
            nursery.start_soon(list_names)
            await trio.testing.wait_all_tasks_blocked()
            second.open()
        assert looked_up == [b"theirs"]
        assert "f0001" in listed
        with pytest.raises(EntryExists):
            await tree.create("f0001", flags=os.O_RDWR | os.O_EXCL)


async def test_an_object_and_a_directory_of_one_name_on_different_pages(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """Their keys are not neighbours: `x`, then all that begins with `x-`, then `x/`."""
    storage = await filled("x", *(f"x-{number:04d}" for number in range(1_500)), "x/y")
    async with open_tree(storage, tmp_path) as tree:
        for _ in range(2):
            names = await tree.names()
            assert (len(names), len(set(names))) == (1_502, 1_502)
            assert isinstance(await tree.find("x"), Directory)
            assert (await tree.find("%file-x")).size == 1
            await trio.sleep(61)
        await storage.delete("x/y")
        await trio.sleep(61)
        await tree.names()
        assert (await tree.find("x")).size == 1


async def test_keys_that_cannot_be_shown_are_told_of_with_few_lines(
    autojump_clock: MockClock, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The first of each directory once, then how many more; one that comes later is named if there is room for it."""
    long = "n" * 256
    storage = await filled(*(f"many/{long}{number:04d}" for number in range(1_500)), f"one/{long}")
    async with open_tree(storage, tmp_path) as tree:
        for _ in range(2):
            assert await tree.names("many") == await tree.names("one") == []
            await trio.sleep(61)
        lines = [record.getMessage() for record in caplog.records]
        named = [f"many/{long}{number:04d}" for number in range(KEYS_NAMED)]
        for key, line in zip([*named, "", f"one/{long}"], lines, strict=True):
            assert f"{key!r} cannot be shown" in line if key else f"{1_500 - KEYS_NAMED:,} more" in line
        caplog.clear()
        await storage.put(f"many/{long}", b"")
        await storage.put(f"one/{long}2", b"")
        await tree.names("many")
        await tree.names("one")
        assert [f"one/{long}2" in record.getMessage() for record in caplog.records] == [True]


async def test_directories_with_keys_that_cannot_be_shown_are_told_of_with_few_lines(
    autojump_clock: MockClock,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of so many, and no more are remembered; then only that there are more."""
    monkeypatch.setattr(hidden_keys, "DIRECTORIES", 2)
    storage = await filled(*(f"d{number}/{'n' * 256}" for number in range(5)))
    async with open_tree(storage, tmp_path) as tree:
        for _ in range(2):
            for name in await tree.names():
                await tree.names(name)
            await trio.sleep(61)
        lines = [record.getMessage() for record in caplog.records]
        assert [line.count("d0/") + 2 * line.count("d1/") for line in lines] == [1, 2, 0]
        assert "fusefs check" in lines[-1]


async def test_numbers_are_the_same_in_every_mount(autojump_clock: MockClock, tmp_path: Path) -> None:
    """Also in one that can write nothing into the bucket."""
    storage = await filled("d/a", "d/b", "d/e/", "f")
    found: list[dict[str, int]] = []
    for mount in ("1", "2"):
        async with open_tree(storage, tmp_path / mount) as tree:
            paths = ["f", "d", "d/e", "d/b", "d/a"] if found else ["d", "d/a", "d/b", "d/e", "f"]
            found.append({path: (await tree.find(path)).number for path in paths})
    assert found[0] == found[1]
    assert len(set(found[0].values())) == 5


async def test_a_number_that_is_taken_is_not_given_again(autojump_clock: MockClock, tmp_path: Path) -> None:
    """A file moves away, somebody else makes an object under its old name: the kernel must not confuse the two."""
    storage = await filled("a")
    async with open_tree(storage, tmp_path) as tree:
        moved = await tree.find("a")
        await tree.rename("a", "b")
        await tree.publish_all()
        await storage.put("a", b"theirs")
        await trio.sleep(61)
        await tree.names()
        theirs = await tree.find("a")
        assert theirs.number != moved.number
        assert tree.inodes[theirs.number] is theirs
        assert tree.inodes[moved.number] is moved


class ManyKeys(MemoryStorage):
    """A directory of a million objects that takes no memory itself; each page is made when it is asked for."""

    async def list_prefix(self, prefix: str = "", **options: Any) -> ListPage:
        await trio.lowlevel.checkpoint()
        first = int(options.get("page_token") or 0)
        objects = tuple(
            ObjectInfo(
                key=f"measurement-{number:07d}.json",
                etag=f"{number:032x}",
                size=100_000 + number,
                last_modified_ns=1_700_000_000_000_000_000 + number,
            )
            for number in range(first, first + 1_000)
        )
        return ListPage(
            objects=objects, prefixes=(), next_token=str(first + 1_000) if first + 1_000 < MILLION else None
        )


async def test_a_directory_of_a_million_files_takes_little_memory(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """Its names can be read, and an entry is found, with some 300 bytes for each of them."""
    async with open_tree(ManyKeys(), tmp_path) as tree:
        gc.collect()
        before = resident_bytes()
        handle = await tree.filesystem.opendir(1)
        position = 0
        while entries := await tree.filesystem.readdir(handle, position, 5_000):
            position = entries[-1][2]
        assert position == MILLION
        assert resident_bytes() - before < 350 * MILLION


def resident_bytes() -> int:
    """Return how much memory this process has."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
