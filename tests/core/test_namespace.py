"""The tree over a bucket that others fill, too: listing, resolving, renaming, and what a listing may not undo."""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from backends.base import IfMatch, ListPage, ObjectInfo, ObjectStorage
from backends.errors import Unavailable
from backends.intercepted import Verb
from backends.memory import MemoryStorage
from backends.prefixed import PrefixedStorage
from fusefs.attribute_changes import AttributeChanges
from fusefs.attributes import to_metadata
from fusefs.errors import (
    CrossesReserved,
    DirectoryNotEmpty,
    EntryExists,
    FilesystemError,
    InvalidArgument,
    IsADirectory,
    NameTooLong,
    NoSuchEntry,
    NoSuchInode,
    NotADirectory,
    StaleFile,
)
from fusefs.filesystem import RENAME_EXCHANGE, RENAME_NOREPLACE, FilesystemOptions
from fusefs.inodes import Directory, File, Special, Symlink
from fusefs.resolver import RESOLVE_TASKS
from tests.core.tree import CALLER, Tree, TreeOptions, filled, open_tree, stored, stored_metadata
from tests.support.faulty import FaultyStorage

Clock = trio.testing.MockClock
SHARED = TreeOptions(filesystem=FilesystemOptions(shared=True), revalidate_seconds=1.0)
REVALIDATE = 61.0
"""Seconds after which a listing of a `TreeOptions()` is too old."""


async def settled(tree: Tree) -> None:
    """Publish everything, and let the listings become too old."""
    await tree.publish_all()
    await trio.sleep(REVALIDATE)


# Listing


async def test_objects_are_files_and_prefixes_are_directories(autojump_clock: Clock, tmp_path: Path) -> None:
    async with open_tree(await filled("a", "d/b", "d/e/c", "marked/"), tmp_path) as tree:
        assert await tree.names() == ["a", "d", "marked"]
        assert await tree.names("d") == ["b", "e"]
        assert await tree.names("marked") == []
        assert await tree.read_file("d/e/c") == b"d/e/c"
        assert isinstance(await tree.find("d"), Directory)


async def test_a_directory_is_listed_once(autojump_clock: Clock, tmp_path: Path) -> None:
    storage = await filled("d/a", "d/b")
    async with open_tree(storage, tmp_path) as tree:
        for _ in range(3):
            await tree.names("d")
            await tree.find("d/a")
            with pytest.raises(NoSuchEntry):
                await tree.find("d/missing")
        assert [call.key for call in storage.calls_of(Verb.LIST_PREFIX)] == ["", "d/"]


async def test_lookups_at_the_same_time_share_one_listing_and_one_head(
    autojump_clock: Clock, tmp_path: Path
) -> None:
    storage = await filled("a")
    async with open_tree(storage, tmp_path) as tree:
        storage.calls.clear()
        listing, head = storage.hold(Verb.LIST_PREFIX), storage.hold(Verb.HEAD)
        found = []

        async def look_up() -> None:
            found.append(await tree.find("a"))

        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(look_up)
            for gate in (listing, head):
                await gate.reached.wait()
                await trio.testing.wait_all_tasks_blocked()
                gate.open()
        assert len(set(map(id, found))) == 1
        assert [call.verb for call in storage.calls] == [Verb.LIST_PREFIX, Verb.HEAD]


async def test_all_who_wait_for_a_listing_learn_that_it_failed(autojump_clock: Clock, tmp_path: Path) -> None:
    """Each asking again in its turn would multiply the minutes for which the store is retried."""
    storage = await filled("a")
    async with open_tree(storage, tmp_path) as tree:
        storage.calls.clear()
        gate = storage.hold(Verb.LIST_PREFIX)
        storage.fail(Unavailable, verb=Verb.LIST_PREFIX, times=math.inf)
        failures: list[None] = []

        async def look_up() -> None:
            with pytest.raises(Unavailable):
                await tree.find("a")
            failures.append(None)

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(look_up)
            await trio.testing.wait_all_tasks_blocked()
            gate.open()
        assert (len(failures), len(storage.calls)) == (5, 1)
        storage.heal()
        await tree.find("a")


async def test_a_lookup_that_is_cancelled_leaves_the_work_to_the_next(
    autojump_clock: Clock, tmp_path: Path
) -> None:
    storage = await filled("a")
    async with open_tree(storage, tmp_path) as tree:
        gate = storage.hold(Verb.LIST_PREFIX)
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(tree.find, "a")
                await gate.reached.wait()
                scope.cancel()
        gate.open()
        assert (await tree.find("a")).size == 1


async def test_a_missing_name_in_a_listed_directory_costs_no_request(
    autojump_clock: Clock, tmp_path: Path
) -> None:
    storage = await filled("a")
    async with open_tree(storage, tmp_path) as tree:
        await tree.names()
        storage.calls.clear()
        for name in ("b", "a.lock", "A", ".fusefs"):
            with pytest.raises(NoSuchEntry):
                await tree.find(name)
        assert not storage.calls


async def test_a_listing_of_several_pages(autojump_clock: Clock, tmp_path: Path) -> None:
    """Pages of prefixes only and of objects only."""
    keys = [f"d{number:04d}/x" for number in range(1_100)] + [f"f{number:04d}" for number in range(1_100)]
    async with open_tree(await filled(*keys), tmp_path) as tree:
        assert await tree.names() == sorted({key.partition("/")[0] for key in keys})


async def test_our_own_objects_are_not_shown(autojump_clock: Clock, tmp_path: Path) -> None:
    """Neither those under the reserved prefix nor a directory's own marker; below another directory it is a name."""
    async with open_tree(await filled(".fusefs/lease", "d/", "d/.fusefs/a"), tmp_path) as tree:
        assert await tree.names() == ["d"]
        assert await tree.names("d") == [".fusefs"]


async def test_keys_that_are_no_names_are_reported_and_break_nothing(
    autojump_clock: Clock, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Once each; what can be named is there."""
    odd = ["d/" + "n" * 256, "d/" + "p" * 256 + "/x"]
    storage = await filled("d/a", "same", "same/b", *odd)
    async with open_tree(storage, tmp_path) as tree:
        assert await tree.names() == ["%file-same", "d", "same"]
        assert await tree.names("d") == ["a"]
        assert await tree.names("same") == ["b"], "a directory wins over an object of the same name"
        await trio.sleep(REVALIDATE)
        assert await tree.names("d") == ["a"]
        reported = [record.getMessage() for record in caplog.records]
        for shown in ("n" * 256, "p" * 256):
            assert sum(shown in message for message in reported) == 1, shown
        assert all("cannot be shown" in message for message in reported)
    assert set(odd) <= set(await stored(storage)), "and nothing is lost"


async def test_kinds_come_from_the_metadata(autojump_clock: Clock, tmp_path: Path) -> None:
    storage = await filled()
    await storage.put("link", b"the/target", metadata={"mode": str(stat.S_IFLNK | 0o777)})
    await storage.put("fifo", b"", metadata={"mode": str(stat.S_IFIFO | 0o600)})
    await storage.put("long", b"x" * 5_000, metadata={"mode": str(stat.S_IFLNK | 0o777)})
    async with open_tree(storage, tmp_path) as tree:
        link, fifo, long = [await tree.find(name) for name in ("link", "fifo", "long")]
        assert isinstance(link, Symlink)
        assert link.target == b"the/target"
        assert isinstance(fifo, Special)
        assert isinstance(long, File), "no link has a target of 5,000 bytes"
        assert stat.S_ISREG(long.attributes.mode)


async def test_a_link_that_is_replaced_while_it_is_looked_up(autojump_clock: Clock, tmp_path: Path) -> None:
    """Its kind and its target are of one version."""
    storage = await filled()
    link = {"mode": str(stat.S_IFLNK | 0o777)}
    await storage.put("link", b"old", metadata=link)
    async with open_tree(storage, tmp_path) as tree:
        gate = storage.hold(Verb.GET_RANGE)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tree.find, "link")
            await gate.reached.wait()
            await storage.put("link", b"new", metadata=link)
            gate.open()
        found = await tree.find("link")
        assert isinstance(found, Symlink)
        assert found.target == b"new"


async def test_an_object_that_is_gone_when_it_is_looked_up(autojump_clock: Clock, tmp_path: Path) -> None:
    storage = await filled("a", "b")
    async with open_tree(storage, tmp_path) as tree:
        await tree.namespace.names(tree.root)
        await storage.delete("a")
        with pytest.raises(NoSuchEntry):
            await tree.find("a")
        assert await tree.names() == ["b"]


async def test_a_name_that_somebody_removed_while_we_resolved_it_is_free(
    autojump_clock: Clock, tmp_path: Path
) -> None:
    """A new file of that name is published as one, and not as a conflict with what is gone."""
    storage = await filled("a")
    async with open_tree(storage, tmp_path) as tree:
        await tree.namespace.names(tree.root)
        await trio.sleep(REVALIDATE)
        gate = storage.hold(Verb.LIST_PREFIX)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tree.names)
            await gate.reached.wait()
            await storage.delete("a")
            await storage.put("a", b"theirs, for a moment")
            head = storage.hold(Verb.HEAD, key="a")
            nursery.start_soon(ignoring(NoSuchEntry, tree.find), "a")
            await head.reached.wait()
            head_answer = await storage.head("a")
            await storage.delete("a", if_match=head_answer.etag)
            gate.open()
            await trio.testing.wait_all_tasks_blocked()
            head.open()
        assert await tree.names() == []
        await tree.write_file("a", b"ours")
        await tree.publish_all()
    assert await stored(storage) == {"a": b"ours"}


class LateAnswers(MemoryStorage):
    """What HEAD finds is told when the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.found, self.told = trio.Event(), trio.Event()

    async def head(self, key: str) -> ObjectInfo:
        info = await super().head(key)
        self.found.set()
        await self.told.wait()
        return info


async def test_an_answer_that_comes_after_a_listing_without_the_name_brings_nothing_back(
    autojump_clock: Clock, tmp_path: Path
) -> None:
    storage = LateAnswers()
    await storage.put("d/a", b"x")
    async with open_tree(storage, tmp_path) as tree:
        storage.told.set()
        directory = await tree.find("d")
        await tree.names("d")
        storage.found, storage.told = trio.Event(), trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ignoring(NoSuchEntry, tree.find), "d/a")
            await storage.found.wait()
            await storage.delete("d/a")
            await trio.sleep(REVALIDATE)
            handle = await tree.filesystem.opendir(directory.number)
            assert await tree.filesystem.readdir(handle, 0, 10) == []
            storage.told.set()
        assert await tree.names("d") == []


def ignoring(
    error: type[Exception], call: Callable[..., Awaitable[object]]
) -> Callable[..., Awaitable[None]]:
    async def quiet(*args: object) -> None:
        try:
            await call(*args)
        except error:
            return

    return quiet


# Foreign changes


async def test_relisting_brings_in_what_others_changed(autojump_clock: Clock, tmp_path: Path) -> None:
    storage = await filled("gone", "changed", "same", "d/x")
    async with open_tree(storage, tmp_path) as tree:
        before = {name: await tree.find(name) for name in await tree.names()}
        await storage.delete("gone")
        await storage.put("changed", b"other bytes")
        await storage.put("new", b"new")
        await storage.delete("d/x")
        await trio.sleep(REVALIDATE)
        assert await tree.names() == ["changed", "new", "same"]
        assert await tree.find("same") is before["same"]
        assert await tree.find("changed") is not before["changed"], "another version is another node"
        assert await tree.read_file("changed") == b"other bytes"
        with pytest.raises(NoSuchEntry):
            await tree.find("d")
        assert not before["gone"].linked


async def test_a_file_becomes_a_directory_and_the_other_way_round(
    autojump_clock: Clock, tmp_path: Path
) -> None:
    storage = await filled("a", "b/x")
    async with open_tree(storage, tmp_path) as tree:
        assert await tree.names() == ["a", "b"]
        await storage.delete("a")
        await storage.put("a/x", b"")
        await storage.delete("b/x")
        await storage.put("b", b"")
        await trio.sleep(REVALIDATE)
        assert await tree.names() == ["a", "b"]
        assert isinstance(await tree.find("a"), Directory)
        assert isinstance(await tree.find("b"), File)


async def test_what_was_below_a_directory_that_others_removed_has_no_name(
    autojump_clock: Clock, tmp_path: Path
) -> None:
    """The kernel may still hold it. A write is told so, and nothing is written anywhere else."""
    storage = await filled("d/e/f", "d/e/read")
    async with open_tree(storage, tmp_path) as tree:
        file = await tree.find_file("d/e/f")
        tree.filesystem.refer(file)
        reader = await tree.open("d/e/read", os.O_RDONLY)
        assert await tree.filesystem.read(reader, 0, 3) == b"d/e"
        await storage.delete_many(["d/e/f", "d/e/read"])
        await trio.sleep(REVALIDATE)
        assert await tree.names() == []
        assert not file.linked
        with pytest.raises(StaleFile):
            await tree.filesystem.open(file.number, os.O_RDWR, CALLER)
        with pytest.raises(StaleFile):
            await tree.filesystem.setattr(file.number, AttributeChanges(size=1))
        await tree.filesystem.setattr(file.number, AttributeChanges(mode=0o600))
        assert await tree.filesystem.read(reader, 0, 3) == b"d/e", "who has it open keeps what is here"
        await tree.close(reader)
        await tree.publish_all()
        assert await stored(storage) == {}
        tree.filesystem.forget([(file.number, 1)])
        assert len(tree.inodes) == 1, "and nothing of it is left"


async def test_a_file_that_is_open_for_writing_stays_and_both_are_kept(
    autojump_clock: Clock, tmp_path: Path
) -> None:
    """Somebody replaces it, the directory is listed again, and only then the first write comes."""
    storage = await filled("a", "b")
    async with open_tree(storage, tmp_path) as tree:
        replaced, removed = await tree.open("a"), await tree.open("b")
        await storage.put("a", b"theirs")
        await storage.delete("b")
        await trio.sleep(REVALIDATE)
        assert await tree.names() == ["a", "b"]
        for handle in (replaced, removed):
            await tree.filesystem.write(handle, 0, b"O")
            with pytest.raises(StaleFile):
                await tree.filesystem.fsync(handle)
            with pytest.raises(StaleFile):
                await tree.close(handle)
        assert await tree.read_file("a") == b"theirs"
    assert await stored(storage) == {"a": b"theirs"}
    kept = [key for key in await stored(storage, ours=True) if key.startswith(".fusefs/conflicts/")]
    assert len(kept) == 2


async def test_a_shared_mount_sees_changes_after_the_interval(autojump_clock: Clock, tmp_path: Path) -> None:
    storage = await filled("changed", "gone")
    async with open_tree(storage, tmp_path, SHARED) as tree:
        assert await tree.names() == ["changed", "gone"]
        await tree.find("changed")
        await storage.put("changed", b"theirs")
        await storage.delete("gone")
        await storage.put("new/x", b"x")
        await trio.sleep(1.1)
        assert await tree.read_file("changed") == b"theirs"
        assert await tree.read_file("new/x") == b"x"
        with pytest.raises(NoSuchEntry):
            await tree.find("gone")
        await storage.put("later", b"x")
        await trio.sleep(1.1)
        with pytest.raises(EntryExists):
            await tree.filesystem.mkdir(tree.root.number, b"later", 0o755, CALLER)


async def test_two_shared_mounts_see_each_other(autojump_clock: Clock, tmp_path: Path) -> None:
    """Directories, files in them, removals: close-to-open."""
    storage = MemoryStorage()
    async with (
        open_tree(storage, tmp_path / "1", replace(SHARED, mount_id="one")) as one,
        open_tree(storage, tmp_path / "2", replace(SHARED, mount_id="two")) as two,
    ):
        await one.mkdir("d")
        await trio.sleep(1.1)
        assert await two.names() == ["d"]
        await two.write_file("d/f", b"from two")
        await trio.sleep(1.1)
        assert await one.read_file("d/f") == b"from two"
        await one.write_file("d/f", b"from one")
        await trio.sleep(1.1)
        assert await two.read_file("d/f") == b"from one"
        await two.filesystem.setattr((await two.find("d/f")).number, AttributeChanges(size=4))
        await trio.sleep(1.1)
        assert await one.read_file("d/f") == b"from"
        await one.unlink("d/f")
        await trio.sleep(1.1)
        assert await two.names("d") == []
        await two.rmdir("d")
        await trio.sleep(1.1)
        assert await one.names() == []
    assert await stored(storage) == {}


# What a listing may not undo


Change = Callable[[Tree], Awaitable[object]]


async def create(tree: Tree) -> None:
    await tree.close(await tree.create("new"))


async def overwrite(tree: Tree) -> None:
    handle = await tree.open("top", os.O_WRONLY | os.O_TRUNC)
    await tree.write(handle, 0, b"other")
    await tree.close(handle)


async def unlink_all(tree: Tree) -> None:
    for name in ("a", "b"):
        await tree.unlink(f"d/{name}")
    await tree.rmdir("d")


CHANGES: dict[str, tuple[Change, dict[str, list[str]]]] = {
    "create": (create, {"": ["d", "new", "top"], "d": ["a", "b"]}),
    "write": (overwrite, {"": ["d", "top"], "d": ["a", "b"]}),
    "mkdir": (lambda tree: tree.mkdir("e"), {"": ["d", "e", "top"], "d": ["a", "b"], "e": []}),
    "symlink": (lambda tree: tree.symlink("l", b"x"), {"": ["d", "l", "top"], "d": ["a", "b"]}),
    "unlink": (lambda tree: tree.unlink("top"), {"": ["d"], "d": ["a", "b"]}),
    "unlink in a directory": (lambda tree: tree.unlink("d/a"), {"": ["d", "top"], "d": ["b"]}),
    "remove a directory": (unlink_all, {"": ["top"]}),
    "rename": (lambda tree: tree.rename("top", "other"), {"": ["d", "other"], "d": ["a", "b"]}),
    "rename over": (lambda tree: tree.rename("top", "d/a"), {"": ["d"], "d": ["a", "b"]}),
    "rename a directory": (lambda tree: tree.rename("d", "e"), {"": ["e", "top"], "e": ["a", "b"]}),
    "exchange": (
        lambda tree: tree.rename("d", "top", RENAME_EXCHANGE),
        {"": ["d", "top"], "top": ["a", "b"]},
    ),
    "move out of a directory": (
        lambda tree: tree.rename("d/a", "a"),
        {"": ["a", "d", "top"], "d": ["b"]},
    ),
}


async def check_names(tree: Tree, expected: dict[str, list[str]]) -> None:
    for path, names in expected.items():
        directory = await tree.find(path)
        assert isinstance(directory, Directory)
        listed = await tree.listed(directory)  # readdir would drop what is gone when it resolves it
        assert [name.decode() for name in listed] == names, path or "the root"


@pytest.mark.parametrize("change", CHANGES)
async def test_a_listing_before_publication_does_not_undo_a_change(
    change: str, autojump_clock: Clock, tmp_path: Path
) -> None:
    """The bucket is as it was before: nothing could be written to it since."""
    make, expected = CHANGES[change]
    storage = await filled("top", "d/a", "d/b")
    async with open_tree(storage, tmp_path) as tree:
        for path in ("", "d"):
            await tree.names(path)
        gates = [storage.hold(verb, times=math.inf) for verb in (Verb.PUT, Verb.COPY, Verb.DELETE)]
        await make(tree)
        await trio.sleep(REVALIDATE)
        await check_names(tree, expected)
        for gate in gates:
            gate.open()
        await settled(tree)
        await check_names(tree, expected)
        for name in expected[""]:
            await tree.find(name)


@pytest.mark.parametrize("change", CHANGES)
async def test_a_listing_that_is_older_than_the_publication_does_not_undo_a_change(
    change: str, autojump_clock: Clock, tmp_path: Path
) -> None:
    """The store has read its keys, then everything is published and deleted, and then its answer comes."""
    make, expected = CHANGES[change]
    storage = SlowListings(await filled("top", "d/a", "d/b"))
    async with open_tree(storage, tmp_path) as tree:
        for path in ("", "d"):
            await tree.names(path)
        await trio.sleep(REVALIDATE)
        listed = ["", "d"] if change != "remove a directory" else [""]  # rmdir waits for a listing
        storage.hold_answers()
        async with trio.open_nursery() as nursery:
            for path in listed:
                nursery.start_soon(tree.names, path)
            await trio.testing.wait_all_tasks_blocked()
            assert storage.waiting == len(listed)
            storage.let_pass()
            await make(tree)
            await tree.publish_all()
            storage.release()
        await check_names(tree, expected)
        await trio.sleep(REVALIDATE)
        await check_names(tree, expected)


class SlowListings(FaultyStorage):
    """Lists when it is asked, and answers when it is told to."""

    def __init__(self, inner: ObjectStorage) -> None:
        super().__init__(inner)
        self._answers = trio.Event()
        self._held: trio.Event | None = None
        self.waiting = 0

    def hold_answers(self) -> None:
        self._held = self._answers

    def let_pass(self) -> None:
        """Hold no further ones."""
        self._held = None

    def release(self) -> None:
        self._answers.set()

    async def list_prefix(
        self,
        prefix: str = "",
        *,
        delimiter: str = "",
        start_after: str = "",
        page_token: str | None = None,
        page_size: int = 1_000,
    ) -> ListPage:
        held = self._held
        page = await super().list_prefix(
            prefix,
            delimiter=delimiter,
            start_after=start_after,
            page_token=page_token,
            page_size=page_size,
        )
        if held is not None:
            self.waiting += 1
            await held.wait()
        return page


async def test_changed_times_on_their_way_are_no_foreign_change(
    autojump_clock: Clock, tmp_path: Path
) -> None:
    """Nothing waits for them, and still a listing may see the new version before we know that it is ours."""
    storage = await filled("a")
    async with open_tree(storage, tmp_path) as tree:
        file = await tree.find("a")
        await tree.filesystem.setattr(file.number, AttributeChanges(mtime_ns=5))
        await trio.sleep(REVALIDATE)
        await tree.filesystem.setattr(file.number, AttributeChanges(mtime_ns=6))
        gate = storage.hold(Verb.COPY)
        await gate.reached.wait()
        await tree.names()
        assert await tree.find("a") is file
        gate.open()
        await settled(tree)
        await tree.names()
        assert await tree.find("a") is file


# Implicit directories


async def test_links_of_a_directory_are_counted_when_its_entries_are_known(
    autojump_clock: Clock, tmp_path: Path
) -> None:
    """1 says that nobody has counted; 2 would say that there is no directory below, and find(1) would not look."""
    async with open_tree(await filled("d/e/x", "d/f/x", "d/g"), tmp_path) as tree:
        directory = await tree.find("d")
        assert directory.link_count == 1
        await tree.names("d")
        assert directory.link_count == 4
        await tree.mkdir("d/new")
        await tree.unlink("d/g")
        assert directory.link_count == 5


async def test_an_implicit_directory_survives_its_last_file(autojump_clock: Clock, tmp_path: Path) -> None:
    """A common prefix of nothing is nothing in S3; in POSIX a directory stays until it is removed."""
    storage = await filled("d/a", "e/b")
    async with open_tree(storage, tmp_path / "1") as tree:
        await tree.unlink("d/a")
        await tree.rename("e/b", "b")
        await settled(tree)
        assert await tree.names() == ["b", "d", "e"]
    assert await stored(storage) == {"b": b"e/b", "d/": b"", "e/": b""}
    async with open_tree(storage, tmp_path / "2") as tree:
        assert await tree.names() == ["b", "d", "e"]
        await tree.rmdir("d")
        await tree.publish_all()
    assert await stored(storage) == {"b": b"e/b", "e/": b""}


async def test_the_attributes_of_a_marker_are_those_of_the_directory(
    autojump_clock: Clock, tmp_path: Path
) -> None:
    storage = await filled("d/a")
    await storage.put("d/", b"", metadata={"mode": str(stat.S_IFDIR | 0o2770), "uid": "7", "gid": "8"})
    async with open_tree(storage, tmp_path) as tree:
        attributes = (await tree.find("d")).attributes
        assert (attributes.mode, attributes.uid, attributes.gid) == (stat.S_IFDIR | 0o2770, 7, 8)


# Errors, as POSIX


async def test_a_marker_on_its_way_out_is_not_that_of_the_directory_with_its_name(
    autojump_clock: Clock, tmp_path: Path
) -> None:
    """Its new place is not free yet, while everything else has changed places."""
    storage = await filled("p/d/x", "q/d/y")
    await storage.put("p/d/", b"", metadata={"mode": str(0o40700)})
    async with open_tree(storage, tmp_path) as tree:

        async def modes() -> list[int]:
            assert await tree.names("p/d") == ["y"]
            return [stat.S_IMODE((await tree.find(path)).attributes.mode) for path in ("p/d", "q/d")]

        await tree.find("p/d/x")
        await tree.find("q/d/y")
        gate = storage.hold(key="q/d/", times=math.inf)
        await tree.rename("p", "q", RENAME_EXCHANGE)
        await trio.sleep(REVALIDATE)
        assert await modes() == [0o755, 0o700]
        assert await modes() == [0o755, 0o700]
        gate.open()
        await tree.publish_all()
        assert await modes() == [0o755, 0o700]


@pytest.fixture
async def posix(autojump_clock: Clock, tmp_path: Path):  # type: ignore[no-untyped-def]
    async with open_tree(await filled("f", "g", "d/a", "d/e/b", "empty/"), tmp_path) as tree:
        await tree.symlink("l", b"d")
        yield tree


@pytest.mark.parametrize(
    ("source", "target", "flags", "error"),
    [
        ("d", "d/x", 0, InvalidArgument),
        ("d", "d/e/x", 0, InvalidArgument),
        ("d/e", "d", 0, DirectoryNotEmpty),
        ("empty", "d", 0, DirectoryNotEmpty),
        ("f", "d", 0, IsADirectory),
        ("f", "empty", 0, IsADirectory),
        ("d", "f", 0, NotADirectory),
        ("empty", "l", 0, NotADirectory),
        ("f", "g", RENAME_NOREPLACE, EntryExists),
        ("f", "f", RENAME_NOREPLACE, EntryExists),
        ("empty", "d", RENAME_NOREPLACE, EntryExists),
        ("missing", "x", 0, NoSuchEntry),
        ("missing", "f", 0, NoSuchEntry),
        ("f", "missing", RENAME_EXCHANGE, NoSuchEntry),
        ("d", "d/e", RENAME_EXCHANGE, InvalidArgument),
        ("d/e", "d", RENAME_EXCHANGE, InvalidArgument),
        ("f", "x", RENAME_NOREPLACE | RENAME_EXCHANGE, InvalidArgument),
        ("f", "x", 4, InvalidArgument),
        ("f", ".fusefs", 0, CrossesReserved),
        ("f", "n" * 256, 0, NameTooLong),
    ],
)
async def test_a_rename_that_cannot_be(
    posix: Tree, source: str, target: str, flags: int, error: type[FilesystemError]
) -> None:
    before = await snapshot(posix)
    with pytest.raises(error):
        await posix.rename(source, target, flags)
    assert await snapshot(posix) == before


async def snapshot(tree: Tree, path: str = "") -> list[str]:
    """Return every path below a directory."""
    found = []
    for name in await tree.names(path):
        below = f"{path}/{name}".lstrip("/")
        found.append(below)
        if isinstance(await tree.find(below), Directory):
            found += await snapshot(tree, below)
    return found


async def test_renames_that_can_be(posix: Tree, autojump_clock: Clock) -> None:
    await posix.rename("f", "g")
    await posix.rename("d", "empty")
    await posix.rename("g", "new", RENAME_NOREPLACE)
    await posix.rename("empty/e", "e")
    await posix.rename("e", "e")
    assert await snapshot(posix) == ["e", "e/b", "empty", "empty/a", "l", "new"]
    await settled(posix)
    assert await snapshot(posix) == ["e", "e/b", "empty", "empty/a", "l", "new"]
    assert await stored(posix.storage) == {
        "e/": b"",
        "e/b": b"d/e/b",
        "empty/": b"",
        "empty/a": b"d/a",
        "l": b"d",
        "new": b"f",
    }


async def test_an_exchange_of_a_file_and_a_directory(posix: Tree, autojump_clock: Clock) -> None:
    file, directory = await posix.find("f"), await posix.find("d")
    await posix.rename("f", "d", RENAME_EXCHANGE)
    assert await posix.find("d") is file
    assert await posix.find("f") is directory
    await settled(posix)
    assert await posix.names("f") == ["a", "e"]
    found = await stored(posix.storage)
    assert found == {
        "d": b"f",
        "f/": b"",
        "f/a": b"d/a",
        "f/e/b": b"d/e/b",
        "empty/": b"",
        "g": b"g",
        "l": b"d",
    }


async def test_a_rename_onto_itself_changes_nothing(posix: Tree) -> None:
    before = (await posix.find("f")).attributes
    await posix.rename("f", "f")
    await posix.rename("f", "f", RENAME_EXCHANGE)
    await posix.rename("d", "d")
    assert (await posix.find("f")).attributes == before


async def test_a_rename_over_a_large_directory_does_not_look_below_it(
    autojump_clock: Clock, tmp_path: Path
) -> None:
    storage = await filled("empty/", *(f"large/d{number}/x" for number in range(20)))
    async with open_tree(storage, tmp_path) as tree:
        with pytest.raises(DirectoryNotEmpty):
            await tree.rename("empty", "large")
        assert len(storage.calls_of(Verb.LIST_PREFIX)) == 3


async def test_a_renamed_directory_takes_foreign_objects_along(autojump_clock: Clock, tmp_path: Path) -> None:
    """Also those that a listing brings in while the rename looks below."""
    storage = await filled("d/a", "d/e/x")
    async with open_tree(storage, tmp_path) as tree:
        await tree.names("d")
        await trio.sleep(REVALIDATE)
        await storage.put("d/late", b"late")
        heads = storage.hold(Verb.HEAD, key="d/e/x")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tree.rename, "d", "new")
            await heads.reached.wait()
            directory = await tree.find("d")
            assert isinstance(directory, Directory)
            assert await tree.listed(directory) == [b"a", b"e", b"late"]
            heads.open()
        assert await snapshot(tree) == ["new", "new/a", "new/e", "new/e/x", "new/late"]
        await settled(tree)
        assert await snapshot(tree) == ["new", "new/a", "new/e", "new/e/x", "new/late"]
    assert await stored(storage) == {
        "new/": b"",
        "new/a": b"d/a",
        "new/e/x": b"d/e/x",
        "new/late": b"late",
    }


async def test_a_rename_looks_into_many_directories_at_once(autojump_clock: Clock, tmp_path: Path) -> None:
    """And fails as a whole where one cannot be listed."""
    storage = await filled(*(f"d/{letter}/x/file" for letter in "abc"))
    async with open_tree(storage, tmp_path) as tree:
        gates = [storage.hold(Verb.LIST_PREFIX, key=f"d/{letter}/") for letter in "abc"]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tree.rename, "d", "new")
            for gate in gates:
                await gate.reached.wait()
            for gate in gates:
                gate.open()
        assert len(storage.calls_of(Verb.LIST_PREFIX)) == 8
        await tree.publish_all()
        assert await tree.read_file("new/b/x/file") == b"d/b/x/file"
    await storage.put("new/c/late/file", b"late")
    async with open_tree(storage, tmp_path) as tree:
        storage.fail(Unavailable, verb=Verb.LIST_PREFIX, key="new/c/late/")
        with pytest.raises(Unavailable):
            await tree.rename("new", "d")
        assert await tree.names() == ["new"]


@pytest.mark.parametrize("key", ["d/f{0:04d}", "d/s{0:04d}/f"])
async def test_a_rename_of_a_large_directory_takes_few_tasks(
    key: str, autojump_clock: Clock, tmp_path: Path
) -> None:
    """However many entries are looked up, or directories looked into."""
    storage = await filled(*(key.format(number) for number in range(1_200)))
    async with open_tree(storage, tmp_path) as tree:
        storage.calls.clear()
        before = trio.lowlevel.current_statistics().tasks_living
        most = 0

        class Counting(trio.abc.Instrument):
            def task_spawned(self, task: trio.lowlevel.Task) -> None:
                nonlocal most
                most = max(most, trio.lowlevel.current_statistics().tasks_living - before)

        instrument = Counting()
        trio.lowlevel.add_instrument(instrument)
        await tree.rename("d", "new")
        trio.lowlevel.remove_instrument(instrument)
        assert len(storage.calls_of(Verb.HEAD)) >= 1_200
        assert RESOLVE_TASKS <= most <= 3 * RESOLVE_TASKS
        assert len(await tree.names("new")) == 1_200


async def test_a_directory_moves_only_where_every_key_below_it_fits(
    autojump_clock: Clock, tmp_path: Path
) -> None:
    """Otherwise files in it could never be published."""
    long = "n" * 250
    storage = await filled(f"d/{long}/{long}/{long}")
    async with open_tree(storage, tmp_path) as tree:
        await tree.mkdir("m" * 250)
        await tree.rename("d", "m" * 250 + "/" + "d" * 17)
        await tree.rename("m" * 250 + "/" + "d" * 17, "d")
        with pytest.raises(NameTooLong):
            await tree.rename("d", "m" * 250 + "/" + "d" * 20)
        await tree.write_file("m" * 250 + "/" + "f" * 20, b"")
        with pytest.raises(NameTooLong):
            await tree.rename("m" * 250 + "/" + "f" * 20, "d", RENAME_EXCHANGE)


async def test_a_mount_of_a_prefix_has_shorter_paths(autojump_clock: Clock, tmp_path: Path) -> None:
    bucket = MemoryStorage()
    long = "n" * 250
    path = "/".join([long] * 4)  # 1,003 bytes
    async with open_tree(PrefixedStorage(bucket, "p" * 30 + "/"), tmp_path) as tree:
        for depth in range(1, 4):
            await tree.mkdir("/".join([long] * depth))
        with pytest.raises(NameTooLong):
            await tree.write_file(path, b"")
        await tree.write_file(path[:-12], b"")
        await tree.publish_all()


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("d", IsADirectory),
        ("missing", NoSuchEntry),
        ("n" * 256, NameTooLong),
        ("l", None),
        ("f", None),
    ],
)
async def test_unlink(posix: Tree, path: str, error: type[FilesystemError] | None) -> None:
    if error is None:
        await posix.unlink(path)
        with pytest.raises(NoSuchEntry):
            await posix.find(path)
    else:
        with pytest.raises(error):
            await posix.unlink(path)


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("d", DirectoryNotEmpty),
        ("f", NotADirectory),
        ("l", NotADirectory),
        ("missing", NoSuchEntry),
        ("empty", None),
    ],
)
async def test_rmdir(posix: Tree, path: str, error: type[FilesystemError] | None) -> None:
    if error is None:
        await posix.rmdir(path)
        with pytest.raises(NoSuchEntry):
            await posix.find(path)
    else:
        with pytest.raises(error):
            await posix.rmdir(path)


async def test_rmdir_sees_what_others_put_there(autojump_clock: Clock, tmp_path: Path) -> None:
    storage = await filled("d/")
    async with open_tree(storage, tmp_path) as tree:
        assert await tree.names("d") == []
        await storage.put("d/theirs", b"")
        await trio.sleep(REVALIDATE)
        with pytest.raises(DirectoryNotEmpty):
            await tree.rmdir("d")


@pytest.mark.parametrize("call", ["rmdir", "rename"])
async def test_a_call_that_has_waited_looks_again_what_has_the_name(
    call: str, autojump_clock: Clock, tmp_path: Path
) -> None:
    """The kernel keeps local callers apart, and others change the bucket at any moment."""
    storage = await filled("d/")
    async with open_tree(storage, tmp_path) as tree:
        await tree.mkdir("second")
        await tree.names("d")
        await trio.sleep(REVALIDATE)
        listing = storage.hold(Verb.LIST_PREFIX, key="d/")

        async def replace() -> None:
            with pytest.raises(DirectoryNotEmpty):
                await (tree.rmdir("d") if call == "rmdir" else tree.rename("second", "d"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(replace)
            await listing.reached.wait()
            await tree.rename("d", "moved")
            await tree.mkdir("d")
            await tree.write_file("d/f", b"not to be lost")
            listing.open()
        await settled(tree)
        assert await stored(storage) == {"d/": b"", "d/f": b"not to be lost", "moved/": b"", "second/": b""}


async def test_nothing_is_made_in_a_directory_that_was_removed(posix: Tree) -> None:
    """Its number is all that a process that is still inside has."""
    directory = await posix.find("empty")
    posix.filesystem.refer(directory)
    await posix.rmdir("empty")
    for make in (
        lambda: posix.filesystem.create(directory.number, b"x", 0o644, os.O_RDWR, CALLER),
        lambda: posix.filesystem.mkdir(directory.number, b"x", 0o755, CALLER),
        lambda: posix.filesystem.lookup(directory.number, b"x"),
        lambda: posix.filesystem.rename(1, b"f", directory.number, b"f", 0),
    ):
        with pytest.raises(NoSuchEntry):
            await make()
    assert await posix.filesystem.readdir(await posix.filesystem.opendir(directory.number), 0, 10) == []


@pytest.mark.parametrize(
    ("name", "error"),
    [
        (b"%key-", CrossesReserved),
        (b".fusefs", CrossesReserved),
        (b"n" * 256, NameTooLong),
        (b"f", EntryExists),
    ],
)
async def test_names_that_cannot_be_made(posix: Tree, name: bytes, error: type[FilesystemError]) -> None:
    for make in (
        lambda: posix.filesystem.create(1, name, 0o644, os.O_RDWR | os.O_EXCL, CALLER),
        lambda: posix.filesystem.mkdir(1, name, 0o755, CALLER),
        lambda: posix.filesystem.symlink(1, name, b"x", CALLER),
        lambda: posix.filesystem.mknod(1, name, stat.S_IFIFO | 0o644, 0, CALLER),
    ):
        with pytest.raises(error):
            await make()
    assert len(posix.filesystem._handles) == 0, "no handle is left of what failed"


# Remounts


async def test_all_attributes_survive_a_remount(autojump_clock: Clock, tmp_path: Path) -> None:
    """Of every kind, the root included: nothing but the bucket goes over."""
    storage = MemoryStorage()
    paths = ("", "d", "d/f", "l", "p")
    async with open_tree(storage, tmp_path / "1") as tree:
        await tree.mkdir("d", 0o2751)
        await tree.write_file("d/f", b"bytes")
        await tree.symlink("l", "d/ä".encode())
        await tree.filesystem.mknod(1, b"p", stat.S_IFCHR | 0o620, os.makedev(4, 64), CALLER)
        for number, path in enumerate(paths, 1):
            changes = AttributeChanges(uid=number, gid=2 * number, atime_ns=number, mtime_ns=-number)
            await tree.filesystem.setattr((await tree.find(path)).number, changes)
        await tree.filesystem.setattr((await tree.find("d/f")).number, AttributeChanges(mode=0o4711))
        await tree.publish_all()
        before = {path: await tree.find(path) for path in paths}
    async with open_tree(storage, tmp_path / "2") as tree:
        for path in paths:
            found = await tree.find(path)
            assert found.attributes == before[path].attributes, path or "the root"
            assert (type(found), found.size) == (type(before[path]), before[path].size)
        link = await tree.find("l")
        assert await tree.filesystem.readlink(link.number) == "d/ä".encode()
        assert await tree.read_file("d/f") == b"bytes"
    assert (await stored_metadata(storage))["d/f"] == to_metadata(before["d/f"].attributes)


async def test_a_change_of_the_root_is_conditional_like_any_other(
    autojump_clock: Clock, tmp_path: Path
) -> None:
    storage = MemoryStorage()
    async with open_tree(storage, tmp_path / "1") as tree:
        await tree.filesystem.setattr(1, AttributeChanges(mode=0o700))
        await tree.publish_all()
    async with open_tree(storage, tmp_path / "2") as tree:
        assert tree.root.attributes.mode == stat.S_IFDIR | 0o700
        assert tree.placement.condition(".fusefs/root") == IfMatch((await storage.head(".fusefs/root")).etag)


class LargeDirectories(MemoryStorage):
    """Listing one takes five times the interval of a shared mount, as that of a large directory does."""

    async def list_prefix(self, prefix: str = "", **options: Any) -> ListPage:
        await trio.sleep(5)
        return await super().list_prefix(prefix, **options)


async def test_listings_that_take_longer_than_the_interval(autojump_clock: Clock, tmp_path: Path) -> None:
    """A listing that is out of date when it is complete is an answer nevertheless: asking again would never end.

    So it is for as long again as it took, or whoever looks up one name after the other would wait each time.
    """
    storage = LargeDirectories()
    await storage.put("file", b"")
    async with open_tree(storage, tmp_path, SHARED) as tree:
        with trio.fail_after(60):
            assert await tree.names() == ["file"]
            for pause, listing_takes in ((2, 0), (2, 0), (2, 5)):
                await trio.sleep(pause)
                began = trio.current_time()
                assert (await tree.find("file")).name == b"file"
                assert trio.current_time() - began == pytest.approx(listing_takes)


async def test_open_on_a_shared_mount_finds_what_is_there_now(autojump_clock: Clock, tmp_path: Path) -> None:
    """ESTALE makes the kernel look the path up again: an open does not give what was there a moment ago."""
    storage = MemoryStorage()
    await storage.put("file", b"one")
    await storage.put("gone", b"one")
    async with open_tree(storage, tmp_path, SHARED) as tree:
        assert await tree.read_file("file") == b"one"
        gone = await tree.find("gone")
        await storage.put("file", b"two!")
        await storage.delete("gone")
        with pytest.raises(NoSuchInode):
            await tree.open("file")
        assert await tree.read_file("file") == b"two!"
        with pytest.raises(NoSuchInode):
            await tree.filesystem.open(gone.number, os.O_RDONLY, CALLER)
        with pytest.raises(NoSuchEntry):
            await tree.find("gone")
        handle = await tree.open("file")
        await tree.write(handle, 0, b"o")
        await storage.put("file", b"three")
        await tree.filesystem.release(await tree.open("file", os.O_RDONLY))  # ours, until it is published


@pytest.mark.parametrize("is_published", [False, True])
async def test_what_this_mount_writes_while_a_file_is_opened_is_no_foreign_change(
    is_published: bool, autojump_clock: Clock, tmp_path: Path
) -> None:
    storage = await filled("f")
    async with open_tree(storage, tmp_path, SHARED) as tree:
        number = (await tree.find("f")).number
        opened: list[int] = []

        async def read() -> None:
            opened.append(await tree.filesystem.open(number, os.O_RDONLY, CALLER))

        asking = storage.hold(Verb.HEAD, key="f")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await asking.reached.wait()
            writer = await tree.filesystem.open(number, os.O_WRONLY, CALLER)
            await tree.write(writer, 0, b"ours")
            if is_published:
                await tree.close(writer)
            else:
                await storage.put("f", b"theirs")
            asking.open()
        assert await tree.filesystem.read(opened[0], 0, 4) == b"ours"


async def test_a_second_open_on_a_shared_mount_finds_what_is_there_although_a_listing_was_under_way(
    autojump_clock: Clock, tmp_path: Path
) -> None:
    """The kernel looks up once more, and no more often: that must not end with a listing that is older."""
    storage = await filled(*(f"f{number:04d}" for number in range(1_500)))
    async with open_tree(storage, tmp_path, SHARED) as tree:
        known = await tree.find("f0001")
        await trio.sleep(2)
        second = storage.hold(Verb.LIST_PREFIX, call=2)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tree.names)
            await second.reached.wait()
            await storage.put("f0001", b"two!")
            with pytest.raises(NoSuchInode):
                await tree.filesystem.open(known.number, os.O_RDONLY, CALLER)
            nursery.start_soon(tree.open, "f0001", os.O_RDONLY)
            await trio.testing.wait_all_tasks_blocked()
            second.open()
        assert await tree.find("f0001") is not known
        assert await tree.read_file("f0001") == b"two!"


@pytest.mark.parametrize("what", ["create", "mkdir", "symlink", "link", "mknod"])
async def test_a_name_in_a_directory_that_gets_a_longer_one_meanwhile(
    what: str, autojump_clock: Clock, tmp_path: Path
) -> None:
    """While it is listed; a key that is too long for the store would be refused for ever."""
    storage = FaultyStorage(MemoryStorage())
    await storage.put("d/a", b"x")
    long = "/".join(["n" * 250] * 2)
    async with open_tree(storage, tmp_path, TreeOptions(logged=True)) as tree:
        await tree.mkdir("n" * 250)
        await tree.mkdir(long)
        await tree.write_file("f", b"x")
        number, directory = (await tree.find("f")).number, await tree.find("d")
        filesystem = tree.filesystem
        name = b"\xff" * 200  # three times as long in the key

        calls: dict[str, Callable[[], Awaitable[object]]] = {
            "create": lambda: filesystem.create(directory.number, name, 0o644, os.O_WRONLY, CALLER),
            "mkdir": lambda: filesystem.mkdir(directory.number, name, 0o755, CALLER),
            "symlink": lambda: filesystem.symlink(directory.number, name, b"target", CALLER),
            "link": lambda: filesystem.link(number, directory.number, name),
            "mknod": lambda: filesystem.mknod(directory.number, name, stat.S_IFREG | 0o644, 0, CALLER),
        }

        async def make() -> None:
            with pytest.raises(NameTooLong):
                await calls[what]()

        gate = storage.hold(Verb.LIST_PREFIX, key="d/")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(make)
            await gate.reached.wait()
            await tree.rename("d", f"{long}/{'m' * 9}")
            gate.open()
        await tree.publish_all()
