"""Names that no key can hold, and keys that no name can be: what is done with them reaches the right object."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from backends.errors import Unavailable
from backends.intercepted import Verb
from backends.memory import MemoryStorage
from fusefs.attribute_changes import AttributeChanges
from fusefs.errors import CrossesReserved, DirectoryNotEmpty, EntryExists
from fusefs.filesystem import RENAME_EXCHANGE, FilesystemOptions
from fusefs.inodes import Directory
from tests.core.tree import CALLER, Tree, TreeOptions, open_tree, stored, stored_metadata
from tests.support.faulty import FaultyStorage

REVALIDATE = 61.0
"""Seconds after which a listing of a `TreeOptions()` is too old."""

LATIN1 = b"caf\xe9"

SHARED = TreeOptions(filesystem=FilesystemOptions(shared=True))


async def filled(*keys: str) -> MemoryStorage:
    """Return a store with objects whose bytes are their keys."""
    storage = MemoryStorage()
    for key in keys:
        await storage.put(key, b"" if key.endswith("/") else key.encode())
    return storage


async def read(tree: Tree, directory: Directory, name: bytes) -> bytes:
    inode = await tree.namespace.lookup(directory, name)
    handle = await tree.filesystem.open(inode.number, os.O_RDONLY, CALLER)
    try:
        return await tree.filesystem.read(handle, 0, 1_000)
    finally:
        await tree.filesystem.release(handle)


async def test_names_that_are_not_utf8(autojump_clock: MockClock, tmp_path: Path) -> None:
    """A file, a directory and what is below it; found again by another mount, renamed and removed."""
    storage = MemoryStorage()
    async with open_tree(storage, tmp_path / "one") as tree:
        root = tree.root.number
        directory = await tree.filesystem.mkdir(root, LATIN1, 0o755, CALLER)
        _, handle = await tree.filesystem.create(directory.number, b"\xff", 0o644, os.O_RDWR, CALLER)
        await tree.write(handle, 0, b"bytes")
        await tree.close(handle)
        await tree.publish_all()
        assert await stored(storage) == {"%bytes-caf%E9/%bytes-%FF": b"bytes", "%bytes-caf%E9/": b""}
    async with open_tree(storage, tmp_path / "two") as tree:
        root = tree.root.number
        assert await tree.listed(tree.root) == [LATIN1]
        found = await tree.namespace.lookup(tree.root, LATIN1)
        assert isinstance(found, Directory)
        assert await read(tree, found, b"\xff") == b"bytes"
        with pytest.raises(EntryExists, match="xe9"):
            await tree.filesystem.mkdir(root, LATIN1, 0o755, CALLER)
        await tree.filesystem.rename(root, LATIN1, root, b"\xfe", 0)
        await tree.publish_all()
        assert await stored(storage) == {"%bytes-%FE/%bytes-%FF": b"bytes", "%bytes-%FE/": b""}
        await tree.filesystem.unlink(found.number, b"\xff")
        await tree.filesystem.rmdir(root, b"\xfe")
        await tree.publish_all()
        assert await stored(storage) == {}


async def test_names_that_look_like_escapes(autojump_clock: MockClock, tmp_path: Path) -> None:
    """Whatever a program calls its files: what it reads is what it wrote, and keys of others stay what they are."""
    storage = await filled("%bytes-theirs", "%key-%25bytes-theirs")
    names = [b"%bytes-%FF", b"%key-a", b"%file-", b"%25", b"%bytes-theirs"]
    async with open_tree(storage, tmp_path / "one") as tree:
        for name in names:
            _, handle = await tree.filesystem.create(1, name, 0o644, os.O_RDWR, CALLER)
            await tree.write(handle, 0, name)
            await tree.close(handle)
        await tree.publish_all()
    async with open_tree(storage, tmp_path / "two") as tree:
        theirs = {
            b"%key-%25bytes-theirs": b"%bytes-theirs",
            b"%key-%25key-%2525bytes-theirs": b"%key-%25bytes-theirs",
        }
        assert set(await tree.listed(tree.root)) == {*names, *theirs}
        for name in names:
            assert await read(tree, tree.root, name) == name
        for name, content in theirs.items():
            assert await read(tree, tree.root, name) == content


@pytest.mark.parametrize(
    ("key", "path"),
    [
        ("a//b", [b"a", b"%key-", b"b"]),
        ("/b", [b"%key-", b"b"]),
        ("//", [b"%key-", b"%key-"]),
        ("a/./b", [b"a", b"%key-%2E", b"b"]),
        ("a/..", [b"a", b"%key-%2E%2E"]),
        ("a/%bytes-b", [b"a", b"%key-%25bytes-b"]),
    ],
)
async def test_keys_that_are_no_names(
    autojump_clock: MockClock, tmp_path: Path, key: str, path: list[bytes]
) -> None:
    """They are read, changed, renamed and removed under escaped names, with what is beside them untouched."""
    storage = await filled(key, "a/c", "other")
    async with open_tree(storage, tmp_path) as tree:
        directory, last = tree.root, path[-1]
        for name in path[:-1]:
            found = await tree.namespace.lookup(directory, name)
            assert isinstance(found, Directory)
            directory = found
        inode = await tree.namespace.lookup(directory, last)
        await tree.filesystem.setattr(inode.number, AttributeChanges(mode=0o600))
        await tree.publish_all()
        assert set(await stored(storage)) == {key, "a/c", "other"}
        assert int((await stored_metadata(storage))[key]["mode"]) & 0o777 == 0o600
        if not isinstance(inode, Directory):
            assert await read(tree, directory, last) == key.encode()
        with pytest.raises(CrossesReserved):
            await tree.filesystem.rename(1, b"other", 1, b"%key-", 0)
        await tree.filesystem.rename(directory.number, last, 1, b"healed", 0)
        await tree.publish_all()
        kept = {name for name in await stored(storage) if not name.endswith("/")}
        assert kept == {"a/c", "other"} | ({"healed"} if not isinstance(inode, Directory) else set())
        if isinstance(inode, Directory):
            await tree.filesystem.rmdir(1, b"healed")
        else:
            await tree.filesystem.unlink(1, b"healed")
        await tree.publish_all()
        assert {name for name in await stored(storage) if not name.endswith("/")} == {"a/c", "other"}


async def test_directories_move_with_keys_that_are_no_names(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    storage = await filled("a//b", "a/../c", "a/%key-d")
    async with open_tree(storage, tmp_path) as tree:
        await tree.rename("a", "z")
        await tree.publish_all()
        moved = {"z//b": b"a//b", "z/../c": b"a/../c", "z/%key-d": b"a/%key-d"}
        assert await stored(storage) == {"z/": b""} | moved


# An object beside a directory of its name


async def test_an_object_beside_a_directory(autojump_clock: MockClock, tmp_path: Path) -> None:
    """It has a name of its own, under which it is read, changed and removed; the directory is what it always was."""
    storage = await filled("x", "x/y", "a/x/", "a/x")
    async with open_tree(storage, tmp_path) as tree:
        assert await tree.names() == ["%file-x", "a", "x"]
        assert await tree.names("a") == ["%file-x", "x"]
        assert await tree.read_file("%file-x") == b"x"
        assert await tree.read_file("x/y") == b"x/y"
        await tree.write_file("%file-x", b"changed")
        await tree.write_file("x/z", b"new")
        await tree.unlink("a/%file-x")
        await tree.publish_all()
        assert await stored(storage) == {"x": b"changed", "x/y": b"x/y", "x/z": b"new", "a/x/": b""}
        with pytest.raises(CrossesReserved):
            await tree.rename("x", "%file-y")
        await tree.rename("%file-x", "a/x/moved")
        await tree.publish_all()
        assert await tree.names() == ["a", "x"]
        assert await stored(storage) == {"x/y": b"x/y", "x/z": b"new", "a/x/": b"", "a/x/moved": b"changed"}


@pytest.mark.parametrize("away", ["rmdir", "rename"])
async def test_a_directory_leaves_the_object_its_name(
    autojump_clock: MockClock, tmp_path: Path, away: str
) -> None:
    """So that no new entry gets a key that is taken."""
    async with open_tree(await filled("x", "x/"), tmp_path) as tree:
        assert await tree.names() == ["%file-x", "x"]
        if away == "rmdir":
            await tree.rmdir("x")
        else:
            await tree.rename("x", "y")
        assert await tree.read_file("x") == b"x"
        with pytest.raises(EntryExists):
            await tree.mkdir("x")
        await tree.publish_all()
        assert set(await stored(tree.storage)) == ({"x"} if away == "rmdir" else {"x", "y/"})


async def test_an_exchange_cannot_give_away_a_key_that_is_taken(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with open_tree(await filled("x", "x/", "f", "d/"), tmp_path) as tree:
        for one, other in (("x", "f"), ("f", "x")):
            with pytest.raises(EntryExists):
                await tree.rename(one, other, RENAME_EXCHANGE)
        await tree.rename("x", "d", RENAME_EXCHANGE)
        assert await tree.names() == ["%file-x", "d", "f", "x"]


@pytest.mark.parametrize(
    ("keys", "escaped", "other"),
    [
        (("x", "x/y", "d/g", "d/y"), "%file-x", "d"),
        (("x", "x/y", "f"), "%file-x", "f"),
        (("a//b", "a/f"), "a/%key-", "a/f"),
        (("a/.", "a/f"), "a/%key-%2E", "a/f"),
        (("a/./b", "d/g"), "a/%key-%2E", "d"),
        (("%bytes-b", "f"), "%key-%25bytes-b", "f"),
        (("x", "x/y", "a//b"), "%file-x", "a/%key-"),
    ],
)
async def test_an_exchange_cannot_give_away_a_name_that_stands_for_another_key(
    keys: tuple[str, ...], escaped: str, other: str, autojump_clock: MockClock, tmp_path: Path
) -> None:
    """Whichever of the two is named first: its key would be below another directory, or be a directory's own."""
    async with open_tree(await filled(*keys), tmp_path) as tree:
        for one, two in ((escaped, other), (other, escaped)):
            with pytest.raises(CrossesReserved):
                await tree.rename(one, two, RENAME_EXCHANGE)
        await tree.publish_all()
        assert await stored(tree.storage) == {key: key.encode() for key in keys}


async def test_an_exchange_of_names_that_only_look_like_escapes(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """Those that stand for themselves, and bytes that are not UTF-8, are names like any others."""
    storage = MemoryStorage()
    names = [b"%key-a", b"%file-", b"%bytes-b", LATIN1]
    async with open_tree(storage, tmp_path) as tree:
        for name in names:
            await tree.filesystem.create(1, name, 0o644, os.O_RDWR, CALLER)
        await tree.write_file("f", b"bytes")
        for name in names:
            await tree.filesystem.rename(1, name, 1, b"f", RENAME_EXCHANGE)
            assert await read(tree, tree.root, name) == b"bytes"
            await tree.filesystem.rename(1, b"f", 1, name, RENAME_EXCHANGE)
        await tree.publish_all()
        assert len(await stored(storage)) == len(names) + 1
        assert (await stored(storage))["f"] == b"bytes"


async def test_others_put_an_object_and_a_directory_beside_each_other(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """Whichever comes first, and whichever goes: a file that is open stays the same inode."""
    storage = await filled("x", "d/y")
    async with open_tree(storage, tmp_path) as tree:
        handle = await tree.open("x", os.O_RDONLY)
        number = (await tree.find("x")).number
        await storage.put("x/y", b"x/y")
        await storage.put("d", b"d")
        await trio.sleep(REVALIDATE)
        assert await tree.names() == ["%file-d", "%file-x", "d", "x"]
        assert (await tree.find("%file-x")).number == number
        assert await tree.read_file("%file-d") == b"d"
        await storage.delete("x/y")
        await storage.delete("d/y")
        await trio.sleep(REVALIDATE)
        assert await tree.names() == ["d", "x"]
        assert (await tree.find("x")).number == number
        assert await tree.filesystem.read(handle, 0, 10) == b"x"
        assert await tree.read_file("d") == b"d"


async def test_a_directory_that_follows_a_file_has_nothing_beside_it(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """The file's object is still in the bucket for a moment, and no longer in the tree."""
    storage = FaultyStorage(await filled("x"))
    async with open_tree(storage, tmp_path) as tree:
        await tree.find("x")
        storage.fail(Unavailable, times=1_000_000, verb=Verb.DELETE)
        await tree.unlink("x")
        await tree.mkdir("x")
        await trio.sleep(REVALIDATE)
        assert await tree.names() == ["x"]
        storage.heal()


# Objects beside directories, with several names


async def text(tree: Tree, name: str) -> bytes:
    return await read(tree, tree.root, name.encode())


async def write(tree: Tree, name: str, data: bytes) -> None:
    handle = await tree.open(name, os.O_WRONLY | os.O_TRUNC)
    await tree.write(handle, 0, data)
    await tree.close(handle)


async def test_a_file_beside_a_directory_is_linked(autojump_clock: MockClock, tmp_path: Path) -> None:
    """It is one file under all its names, in the next mount too, whichever is looked up first."""
    storage = await filled("x", "x/x", "x/x/a")
    others = {"x/x": b"x/x", "x/x/a": b"x/x/a"}
    async with open_tree(storage, tmp_path / "1") as tree:
        await tree.link("%file-x", "y")
        await tree.publish_all()
    assert await stored(storage) == {"x": b"x", "y": b"x", **others}
    for number, (first, second) in enumerate([("y", "%file-x"), ("%file-x", "y")], 2):
        async with open_tree(storage, tmp_path / f"{number}") as tree:
            await write(tree, first, first.encode())
            await tree.publish_all()
            assert await text(tree, second) == first.encode()
            assert (await tree.find(second)).link_count == 2
            assert await stored(storage) == {"x": first.encode(), "y": first.encode(), **others}
    async with open_tree(storage, tmp_path / "4") as tree:
        await tree.link("x/%file-x", "z")
        await tree.publish_all()
    async with open_tree(storage, tmp_path / "5") as tree:
        await write(tree, "z", b"z")
        assert await tree.read_file("x/%file-x") == b"z"


async def test_names_of_such_a_file_go_one_by_one(autojump_clock: MockClock, tmp_path: Path) -> None:
    for number, gone in enumerate(("y", "%file-x")):
        storage = await filled("x", "x/a")
        async with open_tree(storage, tmp_path / f"{number}") as tree:
            await tree.link("%file-x", "y")
            await tree.publish_all()
            await tree.unlink(gone)
            await tree.publish_all()
            left = "x" if gone == "y" else "y"
            assert await stored(storage) == {left: b"x", "x/a": b"x/a"}
            assert (await tree.find("%file-x" if gone == "y" else "y")).link_count == 1


async def test_renames_over_and_of_such_a_file(autojump_clock: MockClock, tmp_path: Path) -> None:
    """Its name is none that anything can get; what it leaves for another takes the place of what is there."""
    storage = await filled("x", "x/a", "y", "z")
    async with open_tree(storage, tmp_path) as tree:
        for call in (tree.rename("y", "%file-x"), tree.link("y", "%file-x"), tree.rename("x/a", "%file-x")):
            with pytest.raises(CrossesReserved):
                await call
        await tree.link("%file-x", "linked")
        await tree.rename("%file-x", "y")
        await tree.publish_all()
        assert await stored(storage) == {"x/a": b"x/a", "y": b"x", "linked": b"x", "z": b"z"}
        await tree.rename("z", "y")
        await tree.publish_all()
        assert await stored(storage) == {"x/a": b"x/a", "y": b"z", "linked": b"x"}
        assert (await tree.find("linked")).link_count == 1


@pytest.mark.parametrize(
    "options", [TreeOptions(), TreeOptions(logged=True), SHARED], ids=["", "logged", "shared"]
)
@pytest.mark.parametrize("is_ours", [False, True])
async def test_such_a_file_goes_into_its_directory(
    is_ours: bool, options: TreeOptions, autojump_clock: MockClock, tmp_path: Path
) -> None:
    """Its own object is on the way there, for which it does not have to wait."""
    storage = await filled() if is_ours else await filled("x")
    async with open_tree(storage, tmp_path, options) as tree:
        if is_ours:
            await tree.write_file("x", b"x")
            await tree.publish_all()
        await storage.put("x/theirs", b"x/theirs")
        await trio.sleep(REVALIDATE)
        assert await tree.names() == ["%file-x", "x"]
        with trio.fail_after(60):
            await tree.rename("%file-x", "x/ours")
            await tree.publish_all()
        assert await tree.read_file("x/ours") == b"x"
    assert await stored(storage) == {"x/theirs": b"x/theirs", "x/ours": b"x"}


@pytest.mark.parametrize("is_linked", [False, True], ids=["one name", "two names"])
@pytest.mark.parametrize("end", ["removed", "renamed"])
async def test_a_crash_after_its_directory_has_gone(
    end: str, is_linked: bool, autojump_clock: MockClock, tmp_path: Path
) -> None:
    """The file has its own name then, and the log says so."""
    storage = await filled("x", "x/a")
    options = TreeOptions(logged=True)
    async with open_tree(storage, tmp_path / "1", options) as tree:
        if is_linked:
            await tree.link("%file-x", "y")
        await write(tree, "%file-x", b"changed")
        await tree.log.commit()
        await tree.unlink("x/a")
        await (tree.rmdir("x") if end == "removed" else tree.rename("x", "moved"))
        await tree.log.commit()
    async with open_tree(storage, tmp_path / "2", options) as tree:
        names = ["moved"] * (end == "renamed") + ["x"] + ["y"] * is_linked
        assert await tree.names() == names
        assert await text(tree, "x") == b"changed"
        await tree.publish_all()
        assert await tree.names() == names


@pytest.mark.parametrize("kind", ["file", "two names"])
async def test_a_crash_before_others_put_an_object_where_a_directory_was(
    kind: str, autojump_clock: MockClock, tmp_path: Path
) -> None:
    """What the log has is below the directory again, and theirs is beside that, as in any other mount."""
    storage = await filled("d/a")
    options = TreeOptions(logged=True)
    async with open_tree(storage, tmp_path / "1", options) as tree:
        await tree.write_file("d/new", b"ours")
        await tree.log.commit()
    await storage.delete("d/a")
    await storage.put("d", b"theirs")
    if kind == "two names":
        async with open_tree(storage, tmp_path / "others", TreeOptions()) as others:
            await others.link("d", "linked")
            await others.publish_all()
    links = ["linked"] * (kind == "two names")
    for number in (2, 3):
        async with open_tree(storage, tmp_path / f"{number}", options) as tree:
            assert await tree.names() == ["%file-d", "d", *links]
            assert await text(tree, "%file-d") == b"theirs"
            assert await tree.read_file("d/new") == b"ours"
            assert (await tree.find("%file-d")).link_count == 1 + len(links)
            await tree.publish_all()
            assert (await stored(storage))["d/new"] == b"ours"
            assert (await stored(storage))["d"] == b"theirs"
            assert await tree.names() == ["%file-d", "d", *links]


async def test_a_directory_with_keys_that_cannot_be_shown_is_not_empty(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """It would be there again at the next listing. Under another name, which they do not get, it is empty."""
    hidden = f"d/{'n' * 256}"
    storage = await filled("d/", hidden, "renamed/", f"renamed/{'n' * 256}", "empty/")
    async with open_tree(storage, tmp_path) as tree:
        with pytest.raises(DirectoryNotEmpty):
            await tree.rmdir("d")
        with pytest.raises(DirectoryNotEmpty):
            await tree.rename("empty", "d")
        assert await tree.names("d") == []
        await tree.names("renamed")
        await tree.rename("renamed", "other")
        await tree.rmdir("other")
        await storage.delete(hidden)
        await trio.sleep(REVALIDATE)
        await tree.rmdir("d")
        await tree.publish_all()
        assert set(await stored(storage)) == {f"renamed/{'n' * 256}", "empty/"}
