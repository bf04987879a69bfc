"""Directories whose object has bytes, which only somebody else can have put there and no call shows."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from backends.intercepted import Verb
from backends.memory import MemoryStorage
from fusefs.attribute_changes import AttributeChanges
from fusefs.errors import DirectoryNotEmpty
from fusefs.object_writer import CONFLICTS_PREFIX
from tests.core.tree import Tree, TreeOptions, open_tree, stored, stored_metadata
from tests.support.faulty import FaultyStorage

PRECIOUS = b"precious"


async def chmod(tree: Tree, path: str, mode: int) -> None:
    await tree.filesystem.setattr((await tree.find(path)).number, AttributeChanges(mode=mode))


async def test_they_stay(autojump_clock: MockClock, tmp_path: Path) -> None:
    """Bytes that somebody else has put into the object of a directory are not shown, and stay there: with its new
    attributes, and after a rename under its new name. As long as it has any, rmdir says ENOTEMPTY.
    """
    storage = MemoryStorage()
    await storage.put("d/", PRECIOUS)
    await storage.put("d/below/", PRECIOUS)
    async with open_tree(storage, tmp_path) as tree:
        await chmod(tree, "d", 0o700)
        await tree.publish_all()
        assert await stored(storage) == {"d/": PRECIOUS, "d/below/": PRECIOUS}
        assert (await stored_metadata(storage))["d/"]["mode"] == str(stat.S_IFDIR | 0o700)
        await tree.rename("d", "e")
        await tree.publish_all()
        assert await stored(storage) == {"e/": PRECIOUS, "e/below/": PRECIOUS}
        await tree.mkdir("empty")
        with pytest.raises(DirectoryNotEmpty):
            await tree.rmdir("e/below")
        with pytest.raises(DirectoryNotEmpty):
            await tree.rename("empty", "e/below")
        await tree.publish_all()
        assert await stored(storage) == {"e/": PRECIOUS, "e/below/": PRECIOUS, "empty/": b""}


async def test_a_mount_that_knows_the_directory_from_the_index(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """A listing of the directory above does not tell of them, and nothing is lost by that."""
    storage = MemoryStorage()
    await storage.put("d/", PRECIOUS)
    options = TreeOptions(index=True)
    async with open_tree(storage, tmp_path / "1", options) as tree:
        number = (await tree.find("d")).number
        await tree.end()
    async with open_tree(storage, tmp_path / "2", options) as tree:
        await chmod(tree, "d", 0o700)
        await tree.publish_all()
        assert (await tree.find("d")).number == number
        assert await stored(storage) == {"d/": PRECIOUS}


@pytest.mark.parametrize("index", [False, True])
async def test_bytes_in_the_object_of_a_fifo(index: bool, autojump_clock: MockClock, tmp_path: Path) -> None:
    """Its kind is a word in the metadata, beside any content: that stays, whatever is done to the fifo."""
    storage = MemoryStorage()
    await storage.put("p", PRECIOUS, metadata={"mode": str(stat.S_IFIFO | 0o644)})
    options = TreeOptions(index=index)
    async with open_tree(storage, tmp_path / "1", options) as tree:
        assert (await tree.find("p")).size == 0
        await tree.end()
    async with open_tree(storage, tmp_path / "2", options) as tree:
        await chmod(tree, "p", 0o600)
        await tree.publish_all()
        assert (await stored_metadata(storage))["p"]["mode"] == str(stat.S_IFIFO | 0o600)
        assert await stored(storage) == {"p": PRECIOUS}
        await tree.link("p", "second")
        await tree.rename("p", "q")
        await tree.publish_all()
        assert await stored(storage) == {"q": PRECIOUS, "second": PRECIOUS}


@pytest.mark.parametrize("change", ["made", "changed"])
async def test_bytes_that_come_later(change: str, autojump_clock: MockClock, tmp_path: Path) -> None:
    """Found when ours is published: the directory has its attributes then, and the object the bytes."""
    storage = MemoryStorage()
    async with open_tree(storage, tmp_path) as tree:
        await tree.mkdir("d", 0o711)
        if change == "changed":
            await tree.publish_all()
            await chmod(tree, "d", 0o700)
        await storage.put("d/", PRECIOUS)
        await tree.publish_all()
        assert await stored(storage) == {"d/": PRECIOUS}
        mode = stat.S_IFDIR | (0o700 if change == "changed" else 0o711)
        assert (await stored_metadata(storage))["d/"]["mode"] == str(mode)
        with pytest.raises(DirectoryNotEmpty):
            await tree.rmdir("d")


async def test_two_objects_with_bytes_for_one_directory(autojump_clock: MockClock, tmp_path: Path) -> None:
    """Somebody makes the object just when the directory comes there: theirs stays, and the other is kept."""
    storage = FaultyStorage(MemoryStorage())
    await storage.put("d/", PRECIOUS)
    async with open_tree(storage, tmp_path) as tree:
        gate = storage.hold(Verb.COPY, key="e/")
        await tree.rename("d", "e")
        await gate.reached.wait()
        await storage.put("e/", b"theirs")
        gate.open()
        await tree.publish_all()
        await trio.sleep(61)
        assert await tree.names() == ["e"]
        found = await stored(storage, ours=True)
        [kept] = [key for key in found if key.startswith(CONFLICTS_PREFIX)]
        assert found == {"e/": b"theirs", kept: PRECIOUS}


@pytest.mark.parametrize("seen", ["an empty one", "none"])
async def test_bytes_that_come_while_ours_is_written(
    seen: str, autojump_clock: MockClock, tmp_path: Path
) -> None:
    """After we have looked at somebody else's object, and before our PUT: that is conditional on what was seen."""
    inner = MemoryStorage()
    storage = FaultyStorage(inner)
    async with open_tree(storage, tmp_path) as tree:
        await tree.mkdir("d", 0o711)
        await tree.publish_all()
        await inner.put("d/", b"for which the first PUT is refused")
        look, write = storage.hold(Verb.HEAD, key="d/"), storage.hold(Verb.PUT, key="d/", call=2)
        await chmod(tree, "d", 0o700)
        await look.reached.wait()
        await (inner.put("d/", b"") if seen == "an empty one" else inner.delete("d/"))
        look.open()
        await write.reached.wait()
        await inner.put("d/", PRECIOUS)
        write.open()
        await tree.publish_all()
        assert await stored(inner) == {"d/": PRECIOUS}
        assert (await stored_metadata(inner))["d/"]["mode"] == str(stat.S_IFDIR | 0o700)


async def test_they_survive_a_crash(autojump_clock: MockClock, tmp_path: Path) -> None:
    """Whether the object had reached its new name by then or not."""
    options = TreeOptions(logged=True)
    for verb in (Verb.COPY, Verb.DELETE):
        storage = MemoryStorage()
        await storage.put("d/", PRECIOUS)
        faulty = FaultyStorage(storage)
        gate = faulty.hold(verb)
        async with open_tree(faulty, tmp_path / f"{verb}-1", options) as tree:
            await tree.rename("d", "e")
            await chmod(tree, "e", 0o700)
            await gate.reached.wait()
        async with open_tree(storage, tmp_path / f"{verb}-2", options) as tree:
            await tree.publish_all()
            assert await tree.names() == ["e"]
            assert await stored(storage) == {"e/": PRECIOUS}
