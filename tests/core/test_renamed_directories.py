"""Directories that are renamed before all below them is known: in no time, and nothing goes astray."""

from __future__ import annotations

import math
from contextlib import suppress
from pathlib import Path
from typing import Final

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from backends.errors import AccessDenied, InvalidKey, Unavailable
from backends.intercepted import Request, Verb
from backends.memory import MemoryStorage
from fusefs import tree_index
from fusefs.committer import Committer
from fusefs.errors import DirectoryNotEmpty, NameTooLong, NoSuchEntry
from fusefs.filesystem import RENAME_EXCHANGE
from fusefs.inodes import Directory
from fusefs.link_lists import LISTS_PREFIX
from fusefs.placement import DETOURS_PREFIX
from fusefs.publish_queue import RETRY_SECONDS
from tests.core.tree import Tree, TreeOptions, filled, open_tree, stored
from tests.support.every_call import at_every_call
from tests.support.faulty import FaultyStorage, Gate

LOGGED: Final = TreeOptions(logged=True)
REVALIDATE: Final = 61.0
"""Seconds after which a listing of a `TreeOptions()` is too old."""


async def snapshot(tree: Tree, path: str = "") -> list[str]:
    """Return all paths below a directory."""
    found = []
    for name in await tree.names(path):
        below = f"{path}/{name}" if path else name
        found.append(below)
        if isinstance(await tree.find(below), Directory):
            found += await snapshot(tree, below)
    return found


def stalled(storage: FaultyStorage, prefix: str) -> Gate:
    """Let nobody find out what is below a directory: it has another one, which cannot be listed for now."""
    return storage.hold(Verb.LIST_PREFIX, key=prefix, times=math.inf)


async def ended(tree: Tree) -> None:
    """Do what a mount does at its end, and let it have no log."""
    await tree.end()
    await trio.sleep(REVALIDATE)
    assert isinstance(tree.log, Committer)
    assert tree.log.is_empty


def moving(tree: Tree) -> dict[str, str | None]:
    """Return the directories of which not everything is known, and where it is."""
    return {directory.path_key: directory.source for directory in tree.placement.moving}


def writes(calls: list[Request]) -> list[str]:
    """Return the keys of the calls that change something but the log, in order."""
    reading = (Verb.HEAD, Verb.GET_RANGE, Verb.LIST_PREFIX)
    return [call.key for call in calls if call.verb not in reading and not call.key.startswith(".fusefs/")]


async def test_a_rename_of_2000_unlisted_objects_is_one_put(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """A rename of a directory takes no longer for many files than for few, and one record in the log. Nobody waits
    until what is below has been looked through, nor for the objects, which follow: until then it is all there
    under the new name, and nothing under the old.
    """
    storage = await filled(*(f"old/{number % 20}/{number}" for number in range(2_000)))
    async with open_tree(storage, tmp_path, LOGGED) as tree:
        await tree.find("old")
        storage.calls.clear()
        gate = storage.hold(Verb.LIST_PREFIX, key="old/")
        await tree.rename("old", "new")
        assert storage.calls == []
        await tree.log.commit()
        assert [call.verb for call in storage.calls if call.verb is not Verb.LIST_PREFIX] == [Verb.PUT]
        gate.open()
        assert await tree.read_file("new/7/1987") == b"old/7/1987"
        assert await tree.names() == ["new"]
        await tree.publish_all()
    assert await stored(storage) == {
        "new/": b"",
        **{f"new/{number % 20}/{number}": f"old/{number % 20}/{number}".encode() for number in range(2_000)},
    }


async def test_it_is_served_from_where_it_was(autojump_clock: MockClock, tmp_path: Path) -> None:
    """Read, written, renamed, removed and filled, for as long as nobody knows all that is below, and after a crash."""
    storage = await filled("old/a", "old/b", "old/c", "old/d/x", "old/stall/s")
    gate = stalled(storage, "old/stall/")
    async with open_tree(storage, tmp_path / "1", LOGGED) as tree:
        await tree.rename("old", "new")
        await tree.write_file("new/b", b"written")
        await tree.rename("new/c", "out")
        await tree.write_file("in", b"in")
        await tree.rename("in", "new/d/in")
        await tree.unlink("new/a")
        await tree.mkdir("new/e")
        await tree.log.commit()
        await trio.sleep(2 * REVALIDATE)
        expected = ["new", "new/b", "new/d", "new/d/in", "new/d/x", "new/e", "new/stall", "out"]
        assert sorted([*await tree.names(), *(f"new/{name}" for name in await tree.names("new"))]) == [
            "new",
            "new/b",
            "new/d",
            "new/e",
            "new/stall",
            "out",
        ]
        assert moving(tree) == {"new": "old/"}
        assert set(await stored(storage)) == {"old/b", "old/d/x", "old/stall/s", "out"}
    for mount in ("2", "3"):
        async with open_tree(storage, tmp_path / mount, LOGGED) as tree:
            assert await tree.names() == ["new", "out"]
            assert await tree.names("new") == ["b", "d", "e", "stall"]
            assert await tree.names("new/d") == ["in", "x"]
            assert await tree.read_file("new/b") == b"written"
            assert moving(tree) == {"new": "old/"}
            if mount == "3":
                gate.open()
                await tree.publish_all()
                assert await snapshot(tree) == sorted([*expected, "new/stall/s"])
    assert await stored(storage) == {
        "new/": b"",
        "new/b": b"written",
        "new/d/in": b"in",
        "new/d/x": b"old/d/x",
        "new/e/": b"",
        "new/stall/s": b"old/stall/s",
        "out": b"old/c",
    }


async def test_the_old_name_is_free(autojump_clock: MockClock, tmp_path: Path) -> None:
    """A new directory of that name has nothing of the old one, however often it is listed, nor after a crash."""
    storage = await filled("old/a", "old/d/x", "old/stall/s")
    gate = stalled(storage, "old/stall/")
    async with open_tree(storage, tmp_path / "1", LOGGED) as tree:
        await tree.rename("old", "new")
        assert await tree.names() == ["new"]
        await trio.sleep(REVALIDATE)
        assert await tree.names() == ["new"]
        await tree.mkdir("old")
        await tree.write_file("old/a", b"another")
        await trio.sleep(REVALIDATE)
        assert await tree.names("old") == ["a"]
        await tree.log.commit()
    async with open_tree(storage, tmp_path / "2", LOGGED) as tree:
        assert await tree.names() == ["new", "old"]
        assert await tree.names("old") == ["a"]
        assert await tree.read_file("old/a") == b"another"
        with pytest.raises(NoSuchEntry):
            await tree.find("old/d")
        assert await tree.read_file("new/a") == b"old/a"
        gate.open()
        await tree.publish_all()
    assert await stored(storage) == {
        "new/": b"",
        "new/a": b"old/a",
        "new/d/x": b"old/d/x",
        "new/stall/s": b"old/stall/s",
        "old/": b"",
        "old/a": b"another",
    }


async def test_a_file_of_the_old_name(autojump_clock: MockClock, tmp_path: Path) -> None:
    """It is published when nothing is below it any more: stores that keep a tree have no room for it before."""
    storage = await filled("old/a", "old/stall/s")
    gate = stalled(storage, "old/stall/")
    async with open_tree(storage, tmp_path, LOGGED) as tree:
        await tree.rename("old", "new")
        await tree.write_file("old", b"a file")
        await trio.sleep(REVALIDATE)
        assert "old" not in await stored(storage)
        gate.open()
        await tree.publish_all()
    assert (await stored(storage))["old"] == b"a file"


async def test_a_directory_is_taken_out_of_one_that_nobody_knows(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """It has a source of its own, and does not come back where it was; nor does what held nothing else."""
    storage = await filled("old/a", "old/sub/out/x", "old/stall/s", "old/rest/out/y", "old/rest/z")
    gate = stalled(storage, "old/stall/")
    stalls = [stalled(storage, "old/sub/out/"), stalled(storage, "old/rest/out/")]
    async with open_tree(storage, tmp_path / "1", LOGGED) as tree:
        await tree.rename("old", "new")
        await tree.rename("new/sub/out", "out")
        await tree.rename("new/rest/out", "new/moved")
        await tree.rmdir("new/sub")
        await tree.log.commit()
        assert moving(tree) == {"new": "old/", "out": "old/sub/out/", "new/moved": "old/rest/out/"}
    async with open_tree(storage, tmp_path / "2", LOGGED) as tree:
        assert moving(tree) == {"new": "old/", "out": "old/sub/out/", "new/moved": "old/rest/out/"}
        assert await tree.names() == ["new", "out"]
        assert await tree.names("new") == ["a", "moved", "rest", "stall"]
        assert await tree.names("new/rest") == ["z"]
        for each in (gate, *stalls):
            each.open()
        await tree.publish_all()
    assert await stored(storage) == {
        "new/": b"",
        "new/a": b"old/a",
        "new/moved/": b"",
        "new/moved/y": b"old/rest/out/y",
        "new/rest/z": b"old/rest/z",
        "new/stall/s": b"old/stall/s",
        "out/": b"",
        "out/x": b"old/sub/out/x",
    }


async def test_renamed_again_and_back(autojump_clock: MockClock, tmp_path: Path) -> None:
    """What is at home again, and nobody has looked at, is not moved at all."""
    storage = await filled("old/a", "old/d/x", "old/stall/s")
    stalled(storage, "old/stall/")
    async with open_tree(storage, tmp_path, LOGGED) as tree:
        await tree.rename("old", "new")
        await tree.mkdir("above")
        await tree.rename("new", "above/newer")
        assert moving(tree) == {"above/newer": "old/"}
        assert await tree.read_file("above/newer/a") == b"old/a"
        await tree.rename("above/newer", "old")
        assert moving(tree) == {}
        storage.calls.clear()
        await tree.publish_all()
        *directories, file = writes(storage.calls)
        assert (sorted(directories), file) == (["above/", "old/"], "old/a")
        assert await tree.names("old") == ["a", "d", "stall"]


async def test_the_directories_above_are_renamed(autojump_clock: MockClock, tmp_path: Path) -> None:
    storage = await filled("up/old/a", "up/old/stall/s", "up/b")
    gate, other = stalled(storage, "up/old/stall/"), storage.hold(Verb.HEAD, key="up/b")
    async with open_tree(storage, tmp_path, LOGGED) as tree:
        await tree.rename("up/old", "up/new")
        await tree.rename("up", "down")
        assert moving(tree) == {"down/new": "up/old/", "down": "up/"}
        await tree.mkdir("up")
        await tree.rename("down/new", "up/old")
        assert moving(tree) == {"up/old": "up/old/", "down": "up/"}  # below the source of another one
        assert await tree.names() == ["down", "up"]
        assert await tree.names("down") == ["b"]
        assert await tree.read_file("up/old/a") == b"up/old/a"
        gate.open()
        other.open()
        await tree.publish_all()
    assert await stored(storage) == {
        "down/": b"",
        "down/b": b"up/b",
        "up/": b"",
        "up/old/": b"",
        "up/old/a": b"up/old/a",
        "up/old/stall/s": b"up/old/stall/s",
    }


@pytest.mark.parametrize("crashes", [False, True])
async def test_two_are_swapped(crashes: bool, autojump_clock: MockClock, tmp_path: Path) -> None:
    storage = await filled("a/same", "a/one", "b/same", "b/two", "a/stall/s", "b/stall/s")
    gates = [stalled(storage, "a/stall/"), stalled(storage, "b/stall/")]
    expected = {
        "a/": b"",
        "a/same": b"b/same",
        "a/stall/s": b"b/stall/s",
        "a/two": b"b/two",
        "b/": b"",
        "b/one": b"a/one",
        "b/same": b"a/same",
        "b/stall/s": b"a/stall/s",
    }
    async with open_tree(storage, tmp_path / "1", LOGGED) as tree:
        await tree.rename("a", "b", RENAME_EXCHANGE)
        assert moving(tree) == {"b": "a/", "a": "b/"}
        assert (await tree.names("a"), await tree.names("b")) == (
            ["same", "stall", "two"],
            ["one", "same", "stall"],
        )
        await tree.log.commit()
        if not crashes:
            for gate in gates:
                gate.open()
            await tree.publish_all()
    if crashes:
        for gate in gates:
            gate.open()
        async with open_tree(storage, tmp_path / "2", LOGGED) as tree:
            assert await tree.read_file("a/same") == b"b/same"
            await tree.publish_all()
    assert await stored(storage) == expected


@pytest.mark.parametrize("known", [True, False])
async def test_a_directory_without_a_marker_comes_to_where_another_one_had_one(
    known: bool, autojump_clock: MockClock, tmp_path: Path
) -> None:
    """The marker that was left there is not taken for its own."""
    storage = await filled("a/s/f", "b/s/f")
    await storage.put("a/s/", b"", metadata={"mode": str(0o40700)})
    async with open_tree(storage, tmp_path / "1", LOGGED) as tree:
        if known:
            await snapshot(tree)
        await tree.rename("a", "b", RENAME_EXCHANGE)
        await ended(tree)
    async with open_tree(storage, tmp_path / "2", LOGGED) as tree:
        modes = [(await tree.find(path)).attributes.mode for path in ("a/s", "b/s")]
    assert [oct(mode) for mode in modes] == ["0o40755", "0o40700"]


async def test_moved_into_the_place_of_one_that_is_away(autojump_clock: MockClock, tmp_path: Path) -> None:
    """What is under its own key again, but below a source, is not shown twice, nor forgotten."""
    storage = await filled("old/f", "old/g", "old/sub/x", "old/stall/s", "old/sub/stall/s")
    gate, other = stalled(storage, "old/stall/"), stalled(storage, "old/sub/stall/")
    async with open_tree(storage, tmp_path / "1", LOGGED) as tree:
        await tree.rename("old", "new")
        await tree.mkdir("old")
        await tree.rename("new/f", "old/f")
        await tree.rename("new/sub", "old/sub")
        assert moving(tree) == {"new": "old/", "old/sub": "old/sub/"}
        await tree.log.commit()
    async with open_tree(storage, tmp_path / "2", LOGGED) as tree:
        assert await tree.names("new") == ["g", "stall"]
        assert await tree.names("old") == ["f", "sub"]
        assert await tree.read_file("old/sub/x") == b"old/sub/x"
        other.open()
        await trio.sleep(REVALIDATE)
        assert moving(tree) == {"new": "old/"}
        assert await tree.names("new") == ["g", "stall"]
        gate.open()
        await tree.publish_all()
        assert await tree.names("new") == ["g", "stall"]
        assert await tree.names("old") == ["f", "sub"]
    assert await stored(storage) == {
        "new/": b"",
        "new/g": b"old/g",
        "new/stall/s": b"old/stall/s",
        "old/": b"",
        "old/f": b"old/f",
        "old/sub/": b"",
        "old/sub/stall/s": b"old/sub/stall/s",
        "old/sub/x": b"old/sub/x",
    }


async def test_names_of_one_file_that_the_log_has_told_of_before_they_were_known_to_be(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """A recovery does not find both what each of them was taken for, and what it is."""
    storage = FaultyStorage(MemoryStorage())
    async with open_tree(storage, tmp_path / "1", LOGGED) as tree:
        await tree.mkdir("old")
        await tree.write_file("old/a", b"one file")
        await tree.link("old/a", "old/b")
        await ended(tree)
    async with open_tree(storage, tmp_path / "2", LOGGED) as tree:
        gate = storage.hold(Verb.GET_RANGE)  # of what says that they are one
        await tree.rename("old", "new")
        await wait_all_tasks_blocked()
        await tree.log.commit()
        gate.open()
        deleting = [storage.hold(verb, times=math.inf) for verb in (Verb.DELETE, Verb.DELETE_MANY)]
        await trio.sleep(REVALIDATE)
        assert set(await stored(storage)) == {"new/", "new/a", "new/b", "old/", "old/a", "old/b"}
        await tree.log.commit()
    for each in deleting:
        each.open()
    async with open_tree(storage, tmp_path / "3", LOGGED) as tree:
        assert (await tree.find("new/a")) is (await tree.find("new/b"))
        await tree.write_file("new/a", b"changed")
        await ended(tree)
    assert await stored(storage) == {"new/": b"", "new/a": b"changed", "new/b": b"changed"}


async def test_names_of_one_file_of_which_a_mount_dies_before_they_are_known(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    storage = FaultyStorage(MemoryStorage())
    async with open_tree(storage, tmp_path / "1") as tree:
        await tree.mkdir("a")
        await tree.write_file("a/x", b"bytes")
        await tree.link("a/x", "y")
        await tree.end()
    async with open_tree(storage, tmp_path / "2", LOGGED) as tree:
        await tree.find("a")
        list_key = next(key for key in await stored(storage, ours=True) if key.startswith(LISTS_PREFIX))
        gate = storage.hold(Verb.GET_RANGE, key=list_key, times=math.inf)
        await tree.rename("a", "b")
        await trio.sleep(1)
        for name in ("c", "d"):
            await tree.write_file(name, b"")
            await tree.log.commit()
    gate.open()
    async with open_tree(storage, tmp_path / "3", LOGGED) as tree:
        assert (await tree.find("b/x")).number == (await tree.find("y")).number
        await tree.publish_all()
        assert (await tree.find("b/x")).link_count == 2


@pytest.mark.parametrize("first", ["new/b", "c"])
async def test_names_of_one_file(first: str, autojump_clock: MockClock, tmp_path: Path) -> None:
    """Whichever is looked up first, and where the list says the names were."""
    storage = FaultyStorage(MemoryStorage())
    async with open_tree(storage, tmp_path / "1", LOGGED) as tree:
        await tree.mkdir("old")
        await tree.mkdir("old/stall")
        await tree.write_file("c", b"one file")
        await tree.link("c", "old/b")
        await ended(tree)
    gate = stalled(storage, "old/stall/")
    async with open_tree(storage, tmp_path / "2", LOGGED) as tree:
        await tree.rename("old", "new")
        assert (await tree.find(first)).link_count == 2
        assert (await tree.find("new/b")) is (await tree.find("c"))
        await tree.write_file("c", b"changed")
        await trio.sleep(REVALIDATE)
        assert await stored(storage) == {
            # It is a copy of the other, if that was first, which has to wait.
            "c": b"changed" if first == "c" else b"one file",
            "old/": b"",
            "old/b": b"one file",
            "old/stall/": b"",
        }
        await tree.log.commit()
    async with open_tree(storage, tmp_path / "3", LOGGED) as tree:
        assert (await tree.find("new/b")) is (await tree.find("c"))
        assert await tree.read_file("new/b") == b"changed"
        gate.open()
        await ended(tree)
    assert await stored(storage) == {
        "c": b"changed",
        "new/": b"",
        "new/b": b"changed",
        "new/stall/": b"",
    }
    async with open_tree(storage, tmp_path / "4", LOGGED) as tree:
        assert (await tree.find("new/b")) is (await tree.find("c"))


async def test_odd_keys_below(
    autojump_clock: MockClock, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Files beside directories, keys that are no names, and those for which there is no name."""
    long = "n" * 300
    storage = await filled("old", "old/x", "old/x/y", "old//z", f"old/{long}", "old/stall/s")
    gate = stalled(storage, "old/stall/")
    async with open_tree(storage, tmp_path, LOGGED) as tree:
        assert await tree.names() == ["%file-old", "old"]
        await tree.rename("old", "new")
        assert await tree.names() == ["new", "old"]
        assert await tree.names("new") == ["%file-x", "%key-", "stall", "x"]
        assert await tree.read_file("new/%file-x") == b"old/x"
        assert await tree.read_file("new/%key-/z") == b"old//z"
        gate.open()
        await tree.publish_all()
        assert await tree.names() == ["new", "old"]
    assert await stored(storage) == {
        "new/": b"",
        "new//z": b"old//z",
        "new/stall/s": b"old/stall/s",
        "new/x": b"old/x",
        "new/x/y": b"old/x/y",
        "old": b"old",
        f"old/{long}": f"old/{long}".encode(),
    }


async def test_what_others_do_below_the_source(
    autojump_clock: MockClock, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Before anybody has looked it is just what is there; after that it is a conflict, and theirs stays where it is."""
    storage = await filled("old/a", "old/b", "old/c", "old/d", "old/stall/s")
    gate = stalled(storage, "old/stall/")
    async with open_tree(storage, tmp_path, LOGGED) as tree:
        await tree.find("old")
        await tree.rename("old", "new")
        await storage.put("old/a", b"theirs, seen")
        await storage.delete("old/c")
        await storage.put("old/late", b"late")
        assert await tree.names("new") == ["a", "b", "d", "late", "stall"]
        await tree.find("new/b")
        await tree.find("new/d")
        await storage.put("old/b", b"theirs, unseen")
        await storage.delete("old/d")
        await storage.put("old/later", b"later")
        gate.open()
        await tree.publish_all()
        await trio.sleep(REVALIDATE)
        assert await tree.names("new") == ["a", "late", "stall"]
        assert await tree.names() == ["new", "old"]
        assert await tree.names("old") == ["b", "later"]
    assert await stored(storage) == {
        "new/": b"",
        "new/a": b"theirs, seen",
        "new/late": b"late",
        "new/stall/s": b"old/stall/s",
        "old/b": b"theirs, unseen",
        "old/later": b"later",
    }


async def test_removed_before_all_of_it_is_known(autojump_clock: MockClock, tmp_path: Path) -> None:
    storage = await filled("old/", "old/a", "old/d/x")
    gate = storage.hold(Verb.LIST_PREFIX, key="old/d/", times=1)
    async with open_tree(storage, tmp_path, LOGGED) as tree:
        await tree.rename("old", "new")
        with pytest.raises(DirectoryNotEmpty):
            await tree.rmdir("new")
        await tree.rename("new/d", "d")
        await tree.unlink("new/a")
        await tree.rmdir("new")
        await tree.mkdir("old")
        await tree.write_file("old/a", b"another")
        assert moving(tree) == {"d": "old/d/"}
        gate.open()
        await tree.publish_all()
        assert await snapshot(tree) == ["d", "d/x", "old", "old/a"]
    assert await stored(storage) == {"d/": b"", "d/x": b"old/d/x", "old/": b"", "old/a": b"another"}


async def test_replaced_by_a_rename(autojump_clock: MockClock, tmp_path: Path) -> None:
    """An empty directory, too, may have a source."""
    storage = await filled("old/a", "other/b", "other/stall/s")
    gate = stalled(storage, "other/stall/")
    hold = storage.hold(Verb.HEAD, key="old/a")
    async with open_tree(storage, tmp_path, LOGGED) as tree:
        await tree.rename("old", "new")
        hold.open()
        await tree.unlink("new/a")
        await tree.rename("other", "new")
        assert moving(tree) == {"new": "other/"}
        assert await tree.names("new") == ["b", "stall"]
        gate.open()
        await tree.publish_all()
    assert await stored(storage) == {"new/": b"", "new/b": b"other/b", "new/stall/s": b"other/stall/s"}


async def test_what_leaves_the_directory_does_not_wait_any_more(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    storage = await filled("old/d/a", "old/stall/s")
    stalled(storage, "old/stall/")
    async with open_tree(storage, tmp_path, LOGGED) as tree:
        await tree.rename("old", "new")
        await tree.write_file("new/file", b"file")
        await tree.write_file("new/d/file", b"another")
        opened = await tree.open("new/d/a")
        await tree.write(opened, 0, b"OLD")
        await trio.sleep(REVALIDATE)
        assert set(await stored(storage)) == {"old/d/a", "old/stall/s"}
        await tree.rename("new/file", "file")
        await tree.unlink("new/d/a")
        await tree.rename("new/d", "d")
        await trio.sleep(REVALIDATE)
        assert await stored(storage) == {
            "d/": b"",
            "d/file": b"another",
            "file": b"file",
            "old/stall/s": b"old/stall/s",
        }
        assert await tree.filesystem.read(opened, 0, 100) == b"OLD/d/a"
        await tree.close(opened)


async def test_a_circle_of_keys(autojump_clock: MockClock, tmp_path: Path) -> None:
    """It is broken when all below the directory is known: what waits for that is not taken out of the way."""
    storage = await filled("x", "new/y", "old/stall/s")
    gate = stalled(storage, "old/stall/")
    async with open_tree(storage, tmp_path, LOGGED) as tree:
        await tree.rename("new/y", "free")
        await tree.rmdir("new")
        await tree.rename("old", "new")
        await tree.rename("x", "new/y")
        await tree.rename("free", "x")
        await trio.sleep(REVALIDATE)
        assert await stored(storage) == {"x": b"x", "new/y": b"new/y", "old/stall/s": b"old/stall/s"}
        assert not [key for key in await stored(storage, ours=True) if key.startswith(DETOURS_PREFIX)]
        gate.open()
        await tree.publish_all()
    assert await stored(storage) == {
        "new/": b"",
        "new/stall/s": b"old/stall/s",
        "new/y": b"x",
        "x": b"new/y",
    }


async def test_open_files_and_removed_ones(autojump_clock: MockClock, tmp_path: Path) -> None:
    storage = await filled("old/open", "old/gone", "old/stall/s")
    gate = stalled(storage, "old/stall/")
    async with open_tree(storage, tmp_path, LOGGED) as tree:
        opened, gone = await tree.open("old/open"), await tree.open("old/gone")
        await tree.rename("old", "new")
        await tree.unlink("new/gone")
        await tree.write(opened, 0, b"OLD")
        await trio.sleep(REVALIDATE)
        assert await tree.filesystem.read(gone, 0, 100) == b"old/gone"
        assert set(await stored(storage)) == {"old/open", "old/stall/s"}
        gate.open()
        await tree.publish_all()
        assert await tree.filesystem.read(opened, 0, 100) == b"OLD/open"
        assert await tree.filesystem.read(gone, 0, 100) == b"old/gone"
        await tree.close(gone)
        await tree.close(opened)
        await tree.publish_all()
    assert await stored(storage) == {"new/": b"", "new/open": b"OLD/open", "new/stall/s": b"old/stall/s"}


async def test_what_cannot_be_found_out(
    autojump_clock: MockClock, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is told, publishing fails for what waits and for nothing else, fsync does not, and it is tried again."""
    storage = await filled("old/a", "old/denied/x")
    storage.fail(AccessDenied, verb=Verb.LIST_PREFIX, key="old/denied/", times=math.inf)
    async with open_tree(storage, tmp_path, LOGGED) as tree:
        await tree.rename("old", "new")
        await tree.write_file("new/b", b"new")
        await tree.write_file("elsewhere", b"free")
        handle = await tree.open("new/b")
        await tree.filesystem.fsync(handle)
        with pytest.raises(AccessDenied):
            await tree.publish_all()
        assert "cannot find out what is below 'new'" in caplog.text
        assert set(await stored(storage)) == {"elsewhere", "old/a", "old/denied/x"}
        assert tree.publisher.statistics().moving_directories == 1
        storage.heal()
        await trio.sleep(RETRY_SECONDS + 1)
        assert tree.publisher.statistics().moving_directories == 0
        await tree.publish_all()
        await tree.close(handle)
    assert await stored(storage) == {
        "elsewhere": b"free",
        "new/": b"",
        "new/a": b"old/a",
        "new/b": b"new",
        "new/denied/x": b"old/denied/x",
    }


@pytest.mark.parametrize("answer_lost", [False, True])
async def test_every_call_fails_in_turn(
    answer_lost: bool, autojump_clock: MockClock, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail_and_look(call: int) -> bool:
        storage = await filled("old/a", "old/d/x", "old/d/e/y")
        async with open_tree(storage, tmp_path / f"{call}", LOGGED) as tree:
            await tree.find("old")
            storage.fail(Unavailable, call=call, answer_lost=answer_lost)
            await tree.rename("old", "new")
            with suppress(Unavailable):
                await tree.publish_all()
            await trio.sleep(2 * RETRY_SECONDS)
            await tree.publish_all()
            assert await snapshot(tree) == ["new", "new/a", "new/d", "new/d/e", "new/d/e/y", "new/d/x"]
            has_ended = storage.faults_left
            storage.heal()
        assert await stored(storage) == {
            "new/": b"",
            "new/a": b"old/a",
            "new/d/e/y": b"old/d/e/y",
            "new/d/x": b"old/d/x",
        }
        return not has_ended

    assert await at_every_call(fail_and_look) >= 8


async def test_publishing_everything_does_not_wait_for_the_next_attempt(
    autojump_clock: MockClock, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    storage = await filled("old/denied/x")
    storage.fail(Unavailable, verb=Verb.LIST_PREFIX, key="old/denied/")
    async with open_tree(storage, tmp_path, LOGGED) as tree:
        await tree.rename("old", "new")
        await trio.sleep(1)
        began = trio.current_time()
        await tree.publish_all()
        assert trio.current_time() - began < 1
    assert await stored(storage) == {"new/": b"", "new/denied/x": b"old/denied/x"}


async def test_keys_that_may_become_too_long(autojump_clock: MockClock, tmp_path: Path) -> None:
    """Where little room is left for what nobody has looked at, it is looked first."""
    long = "n" * 250
    storage = await filled(f"old/{long}/{long}/{long}", "other/x")
    async with open_tree(storage, tmp_path, LOGGED) as tree:
        await tree.mkdir("m" * 250)
        await tree.mkdir("m" * 250 + "/" + "m" * 250)
        for name in (b"old", b"other"):
            await tree.namespace.lookup(tree.root, name)
        storage.calls.clear()
        with pytest.raises(NameTooLong):
            await tree.rename("old", "m" * 250 + "/" + "m" * 250 + "/" + "d" * 20)
        assert len(storage.calls_of(Verb.LIST_PREFIX)) == 3
        await tree.rename("other", "m" * 250 + "/" + "m" * 250 + "/" + "o" * 20)
        assert len(storage.calls_of(Verb.LIST_PREFIX)) == 4
        assert moving(tree) == {}


@pytest.mark.parametrize("name", ["", "/x"], ids=["of a file", "of a directory"])
async def test_a_key_that_is_found_to_be_too_long(
    name: str, autojump_clock: MockClock, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is told. The file is there under its new name, in this mount and the next ones, until it has a shorter one."""
    long = "/".join(["n" * 250] * 3) + name
    storage = await filled(f"old/{long}", "old/short")
    where = "m" * 250 + "/" + "d" * 22
    async with open_tree(storage, tmp_path / "1", LOGGED) as tree:
        await tree.mkdir("m" * 250)
        await tree.rename("old", where)
        with pytest.raises(InvalidKey):
            await tree.publish_all()
        assert "cannot publish" in caplog.text
    for mount in ("2", "3"):
        async with open_tree(storage, tmp_path / mount, LOGGED) as tree:
            await trio.sleep(REVALIDATE)
            assert len(await snapshot(tree)) == 6 + (name != "")
            assert await tree.read_file(f"{where}/{long}") == f"old/{long}".encode()
            assert await tree.read_file(f"{where}/short") == b"old/short"
            if mount == "3":
                await tree.rename(where, "d")
                await tree.publish_all()
    assert {key: data for key, data in (await stored(storage)).items() if not key.endswith("/")} == {
        f"d/{long}": f"old/{long}".encode(),
        "d/short": b"old/short",
    }


async def test_inode_numbers_stay(
    autojump_clock: MockClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the index has of the source stays there, although it is written meanwhile: in one object, all of it."""
    monkeypatch.setattr(tree_index, "SHARDS", 1)
    storage = FaultyStorage(MemoryStorage())
    options = TreeOptions(logged=True, index=True)
    async with open_tree(storage, tmp_path / "1", options) as tree:
        await tree.mkdir("old")
        await tree.mkdir("old/d")
        await tree.write_file("old/d/x", b"x")
        numbers = [(await tree.find(path)).number for path in ("old", "old/d", "old/d/x")]
        await ended(tree)
    gate = storage.hold(Verb.LIST_PREFIX, key="old/d/", times=math.inf)
    async with open_tree(storage, tmp_path / "2", options) as tree:
        await tree.rename("old", "new")
        await tree.names("new")
        await tree.log.commit()
        assert tree.index_writer is not None
        await tree.index_writer.save()
    gate.open()
    async with open_tree(storage, tmp_path / "3", options) as tree:
        assert [(await tree.find(path)).number for path in ("new", "new/d", "new/d/x")] == numbers
        await ended(tree)
    async with open_tree(storage, tmp_path / "4", options) as tree:
        assert [(await tree.find(path)).number for path in ("new", "new/d", "new/d/x")] == numbers


async def test_the_log_stays_short(autojump_clock: MockClock, tmp_path: Path) -> None:
    """A file that is written again and again while its directory is not known is told anew, and older batches go."""
    storage = await filled("old/stall/s")
    gate = stalled(storage, "old/stall/")
    options = TreeOptions(logged=True, max_log_bytes=20_000)
    async with open_tree(storage, tmp_path, options) as tree:
        await tree.rename("old", "new")
        handle = await tree.create("new/hot")
        for number in range(200):
            await tree.write(handle, 0, bytes([number]) * 1_000)
            await tree.filesystem.fsync(handle)
            await trio.sleep(1)
        batches = [key for key in await stored(storage, ours=True) if key.startswith(".fusefs/journal/")]
        assert len(batches) < 60
        gate.open()
        await tree.close(handle)
        await tree.publish_all()
    assert await stored(storage) == {
        "new/": b"",
        "new/hot": bytes([199]) * 1_000,
        "new/stall/s": b"old/stall/s",
    }


async def test_without_a_log_all_is_known_before(autojump_clock: MockClock, tmp_path: Path) -> None:
    storage = await filled("old/d/x")
    async with open_tree(storage, tmp_path) as tree:
        await tree.find("old")
        storage.calls.clear()
        await tree.rename("old", "new")
        assert len(storage.calls_of(Verb.LIST_PREFIX)) == 2
        assert moving(tree) == {}
