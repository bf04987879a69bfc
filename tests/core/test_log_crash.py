"""The loss of a mount at every single call: what a later one has, from the bucket alone.

Each scenario runs once for every call that it makes, which is the last one of its mount. The next mount must show the
tree as it was at one moment of its history, not before what was acknowledged last. After that everything is
published: then the bucket is that tree, and nothing of ours is left in it. The next mount may die at any of its calls,
too, and the one after it must find the same.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, Final

import pytest
import trio
from trio.testing import MockClock

from tests.core.history import History
from tests.core.losses import check, die_at_every_call, filled, live, look
from tests.core.mortal import Death
from tests.core.small_parts import PART, SmallPartsStorage

pytestmark = pytest.mark.usefixtures("small_parts", "quiet")

_BYTES: Final = Random(3).randbytes(64 * PART)
SMALL: Final = b"small and old"
NEW: Final = b"small and new"
LARGE: Final = _BYTES[: 4 * PART + 100]


@dataclass(frozen=True)
class Scenario:
    """Objects that are there, and what is done."""

    before: Mapping[str, bytes]
    act: Callable[[History], Coroutine[Any, Any, None]]


async def create(history: History) -> None:
    handle = await history.create("new")
    await history.write(handle, 0, SMALL)
    await history.fsync(handle)
    await history.write(handle, 3, NEW)
    await history.close(handle)


async def replace_by_rename(history: History) -> None:
    handle = await history.create("temporary")
    await history.write(handle, 0, NEW)
    await history.fsync(handle)
    await history.close(handle)
    await history.rename("temporary", "config")
    await history.commit()


async def replace_what_is_published(history: History) -> None:
    handle = await history.create("temporary")
    await history.write(handle, 0, NEW)
    await history.close(handle)
    await history.tree.publish_all()
    await history.rename("temporary", "config")
    await history.commit()


async def change_in_place(history: History) -> None:
    handle = await history.open("file")
    for number in range(4):
        await history.write(handle, number * PART + 17, NEW)
        await history.fsync(handle)
        await trio.sleep(3)
    await history.close(handle)


async def empty_and_rewrite(history: History) -> None:
    for number in range(3):
        handle = await history.open("file", os.O_WRONLY | os.O_TRUNC)
        await history.write(handle, 0, bytes([number]) * 20)
        await history.fsync(handle)
        await history.close(handle)
        await trio.sleep(1)


async def cut_and_grow(history: History) -> None:
    handle = await history.open("file")
    await history.truncate("file", PART + 5)
    await history.fsync(handle)
    await history.truncate("file", 3 * PART)
    await history.fsync(handle)
    await history.truncate("file", 7)
    await history.truncate("file", 9)
    await history.write(handle, 20, NEW)
    await history.fsync(handle)
    await trio.sleep(6)
    await history.truncate("file", 8)
    await history.truncate("file", PART)
    await history.fsync(handle)
    await history.close(handle)


async def rename_directory(history: History) -> None:
    handle = await history.open("old/below/changed")
    await history.write(handle, 0, NEW)
    await history.rename("old", "new")
    await history.fsync(handle)
    await history.write(handle, len(NEW), NEW)
    await history.close(handle)
    await history.mkdir("old")
    other = await history.create("old/clean")
    await history.write(other, 0, NEW)
    await history.close(other)
    await history.commit()


async def rename_new_directories(history: History) -> None:
    await history.mkdir("old")
    await history.mkdir("old/below")
    await history.commit()
    await history.rename("old", "new")
    await history.commit()
    await history.rename("new/below", "old")
    await history.rename("new", "old/new")
    await history.commit()


async def rename_unlisted_directory(history: History) -> None:
    await history.rename("old", "new")
    await history.commit()
    handle = await history.create("new/made")
    await history.write(handle, 0, NEW)
    await history.fsync(handle)
    await history.close(handle)
    await history.mkdir("old")
    await history.rename("new/deep/out", "old/out")
    await history.unlink("new/gone")
    await history.commit()
    await trio.sleep(2)
    await history.exchange("new", "old")
    await history.commit()


async def remove(history: History) -> None:
    await history.unlink("file")
    await history.commit()
    await history.unlink("d/file")
    await history.rmdir("d")
    await history.commit()


async def remove_while_open(history: History) -> None:
    handle = await history.open("file")
    other = await history.create("other")
    await history.write(other, 0, SMALL)
    await history.unlink("file")
    await history.fsync(other)
    await trio.sleep(2)
    await history.write(handle, 0, NEW)
    await history.fsync(handle)
    await history.unlink("other")
    await history.write(other, 0, NEW)
    await history.fsync(other)
    await trio.sleep(2)
    await history.close(handle)
    await history.close(other)


async def rename_over_open(history: History) -> None:
    handle = await history.open("file")
    await history.write(handle, 5, NEW)
    await history.rename("other", "file")
    await history.fsync(handle)
    await trio.sleep(2)
    await history.write(handle, 5, SMALL)
    await history.fsync(handle)
    await history.close(handle)


async def swap(history: History) -> None:
    await history.exchange("a", "b")
    await history.commit()
    await history.chmod("a", 0o600)
    await trio.sleep(2)
    await history.exchange("a", "b")
    await history.commit()


async def rotate(history: History) -> None:
    for number in range(3):
        await history.rename("log.1", "log.2")
        await history.rename("log", "log.1")
        handle = await history.create("log")
        await history.write(handle, 0, bytes([number]) * 30)
        await history.fsync(handle)
        await history.close(handle)
        await trio.sleep(number)


async def attributes(history: History) -> None:
    await history.symlink("link", b"target")
    await history.chmod("file", 0o600)
    await history.set_xattr("file", b"short")
    await history.commit()
    await trio.sleep(2)
    await history.set_xattr("file", _BYTES[:3_000])
    await history.chmod("d", 0o700)
    await history.commit()
    await history.rename("link", "d/link")
    await history.commit()


async def use_what_was_packed(history: History) -> None:
    """Of a file that becomes an entry, and an inode again, the log tells under two names, one after the other."""
    tree = history.tree
    kept = await history.create("kept")
    for number, path in enumerate(("file", "file", "moved")):
        await history.write(kept, number * PART, NEW)
        handle = await history.open(path)
        await history.write(handle, number, NEW)
        await history.fsync(handle)
        await history.close(handle)
        await tree.publisher.publish(await tree.find(path))
        for _ in range(2):
            tree.sources.budget.make_room(goal_bytes=0)
            await tree.packer.pack_all()
            if number:
                await history.rename(path, "moved")
                path = "moved"
            await history.write(kept, number * PART, NEW)
            await history.commit()
            await trio.sleep(6)
    await history.unlink("moved")
    await history.commit()
    await history.close(kept)


async def hard_link(history: History) -> None:
    await history.link("file", "d/second")
    await history.commit()
    handle = await history.open("d/second")
    await history.write(handle, PART, NEW)
    await history.fsync(handle)
    await trio.sleep(6)
    await history.unlink("file")
    await history.commit()
    await history.close(handle)
    await history.link("d/second", "third")
    await history.chmod("third", 0o600)
    await trio.sleep(2)
    await history.rename("d", "e")
    await history.rename("third", "fourth")
    await history.commit()
    await history.unlink("fourth")
    await history.commit()


async def write_and_link(history: History) -> None:
    """As git and maildir do; and with files that stay."""
    handle = await history.create("temporary")
    await history.write(handle, 0, LARGE)
    await history.link("temporary", "name")
    await history.fsync(handle)
    await history.unlink("temporary")
    await history.close(handle)
    await history.symlink("one", b"target")
    await history.link("one", "other")
    await history.commit()
    await trio.sleep(2)
    await history.link("file", "name.old")
    await history.rename("name", "file")
    await history.rename("other", "one")
    await history.commit()
    await trio.sleep(2)
    await history.unlink("name.old")
    await history.exchange("one", "file")
    await history.commit()


async def stream(history: History) -> None:
    handle = await history.create("big")
    for number in range(6):
        await history.write(handle, number * 2 * PART, _BYTES[number * 2 * PART : (number + 1) * 2 * PART])
        await trio.sleep(0.1)
        if number % 2:
            await history.fsync(handle)
    await history.write(handle, PART, NEW)
    await history.fsync(handle)
    await history.truncate("big", 7 * PART)
    await history.fsync(handle)
    await history.write(handle, 7 * PART, _BYTES[: 2 * PART])
    await history.fsync(handle)
    await history.close(handle)


async def cut_a_stream(history: History) -> None:
    handle = await history.create("big")
    for number in range(4):
        await history.write(handle, number * 2 * PART, _BYTES[number * 2 * PART : (number + 1) * 2 * PART])
        await trio.sleep(0.1)
    await history.fsync(handle)
    await history.truncate("big", PART // 2)
    await history.fsync(handle)
    await history.write(handle, PART, NEW)
    await history.fsync(handle)
    await history.rename("big", "other")
    await history.close(handle)
    await history.commit()


async def remove_a_stream(history: History) -> None:
    handle = await history.create("big")
    for number in range(4):
        await history.write(handle, number * 2 * PART, _BYTES[number * 2 * PART : (number + 1) * 2 * PART])
        await trio.sleep(0.1)
    await history.fsync(handle)
    await history.rename("big", "bigger")
    await history.fsync(handle)
    await trio.sleep(6)
    await history.unlink("bigger")
    await history.commit()
    await history.close(handle)


async def stream_over_what_is_published(history: History) -> None:
    """What the log refers to is in parts, and an older version of the file in an object."""
    handle = await history.create("big")
    await history.write(handle, 0, _BYTES[:100])
    await history.close(handle)
    await history.tree.publish_all()
    handle = await history.open("big")
    await history.write(handle, 7, _BYTES[: 3 * PART])
    await history.close(handle)
    await trio.sleep(2)
    await history.commit()


async def stream_over_most(history: History) -> None:
    """The end of the object is in nothing else when the parts before it are in the log."""
    handle = await history.open("file")
    await history.write(handle, 0, _BYTES[PART : 4 * PART])
    await history.close(handle)
    await trio.sleep(2)
    await history.commit()


async def rename_a_stream(history: History) -> None:
    """As rsync and others do; and the temporary name is used again, while the first upload is bound to it still."""
    for number in range(2):
        handle = await history.create(".temporary")
        await history.write(handle, 0, _BYTES[number * PART : (number + 6) * PART])
        await trio.sleep(0.01)
        if number:
            await history.fsync(handle)
        await history.rename(".temporary", f"config{number}")
        await history.write(handle, PART, NEW)
        await history.close(handle)
    await history.commit()


async def rename_a_stream_that_ends(history: History) -> None:
    """The upload is about to be completed, and the file gets one name after the other meanwhile."""
    handle = await history.create(".temporary")
    await history.write(handle, 0, _BYTES[: 6 * PART])
    await history.close(handle)
    await trio.sleep(0.06)
    await history.rename(".temporary", "between")
    await trio.sleep(0.02)
    await history.rename("between", "config0")
    await history.commit()
    await history.symlink(".temporary", b"target")
    await history.commit()


async def rename_a_directory_above_a_stream(history: History) -> None:
    """Its old name becomes that of a file."""
    await history.mkdir("d")
    handle = await history.create("d/big")
    await history.write(handle, 0, _BYTES[: 6 * PART])
    await trio.sleep(0.06)
    await history.fsync(handle)
    await history.rename("d", "e")
    other = await history.create("d")
    await history.write(other, 0, SMALL)
    await history.fsync(other)
    await history.close(other)
    await trio.sleep(1)
    await history.write(handle, 6 * PART, NEW)
    await history.commit()
    await history.close(handle)


async def change_attributes_of_a_stream(history: History) -> None:
    handle = await history.create("big")
    for number in range(4):
        await history.write(handle, number * 2 * PART, _BYTES[number * 2 * PART : (number + 1) * 2 * PART])
        await trio.sleep(0.1)
    await history.chmod("big", 0o600)
    await history.fsync(handle)
    await history.close(handle)
    await trio.sleep(0.1)
    await history.create("other")
    await history.commit()
    await trio.sleep(2)


async def rotate_a_stream(history: History) -> None:
    """Objects are under the key of an upload that have yet to follow their files."""
    await history.rename("log.1", "log.2")
    await history.rename("log", "log.1")
    handle = await history.create("log")
    for number in range(4):
        await history.write(handle, number * 2 * PART, _BYTES[number * 2 * PART : (number + 1) * 2 * PART])
        await trio.sleep(0.1)
    await history.fsync(handle)
    await history.unlink("log.1")
    await history.rename("log", "log.1")
    await history.commit()
    other = await history.create("log")
    await history.write(other, 0, _BYTES[PART : 4 * PART])
    await trio.sleep(0.1)
    await history.fsync(other)
    await history.close(handle)
    await history.close(other)


SCENARIOS: Final = {
    "create": Scenario({}, create),
    "replace by rename": Scenario({"config": LARGE}, replace_by_rename),
    "replace what is published": Scenario({"config": LARGE}, replace_what_is_published),
    "change in place": Scenario({"file": LARGE}, change_in_place),
    "empty and rewrite": Scenario({"file": SMALL}, empty_and_rewrite),
    "cut and grow": Scenario({"file": LARGE}, cut_and_grow),
    "rename a directory": Scenario(
        {"old/clean": SMALL, "old/below/changed": LARGE, "old/below/not": SMALL}, rename_directory
    ),
    "rename an unlisted directory": Scenario(
        {"old/gone": SMALL, "old/file": LARGE, "old/deep/file": SMALL, "old/deep/out/file": SMALL},
        rename_unlisted_directory,
    ),
    "rename new directories": Scenario({}, rename_new_directories),
    "remove": Scenario({"file": LARGE, "d/file": SMALL}, remove),
    "remove while open": Scenario({"file": LARGE}, remove_while_open),
    "rename over an open file": Scenario({"file": LARGE, "other": SMALL}, rename_over_open),
    "swap": Scenario({"a": SMALL, "b": LARGE}, swap),
    "rotate": Scenario({"log": SMALL, "log.1": LARGE}, rotate),
    "attributes": Scenario({"file": LARGE, "d/below": SMALL}, attributes),
    "use what was packed": Scenario({"file": LARGE}, use_what_was_packed),
    "hard link": Scenario({"file": LARGE, "d/below": SMALL}, hard_link),
    "write and link": Scenario({"file": SMALL}, write_and_link),
    "stream": Scenario({}, stream),
    "cut a stream": Scenario({}, cut_a_stream),
    "remove a stream": Scenario({}, remove_a_stream),
    "stream over what is published": Scenario({}, stream_over_what_is_published),
    "stream over most of what is published": Scenario({"file": LARGE[: 3 * PART + 2_000]}, stream_over_most),
    "rotate a stream": Scenario({"log": LARGE, "log.1": SMALL}, rotate_a_stream),
    "change attributes of a stream": Scenario({}, change_attributes_of_a_stream),
    "rename a stream": Scenario({"config0": LARGE}, rename_a_stream),
    "rename a stream that ends": Scenario({"config0": SMALL}, rename_a_stream_that_ends),
    "rename a directory above a stream": Scenario({}, rename_a_directory_above_a_stream),
}


@pytest.mark.parametrize("death", Death)
@pytest.mark.parametrize("name", SCENARIOS)
async def test_a_mount_may_die_at_every_call(
    name: str, death: Death, tmp_path: Path, autojump_clock: MockClock
) -> None:
    """The next mount has all that was acknowledged, and the tree as it was at one moment."""
    await die_at_every_call(partial(bucket, SCENARIOS[name]), SCENARIOS[name].act, death, tmp_path)


async def rewrite_new(history: History) -> None:
    await look(history)
    handle = await (history.open("new") if "new" in history.state() else history.create("new"))
    for _ in range(3):
        await history.write(handle, 1, NEW)
        await history.fsync(handle)
    await history.close(handle)


@pytest.mark.parametrize("death", [Death.CALL_LOST, Death.ANSWER_LOST])
async def test_terms_that_begin_again_with_the_first(
    death: Death, tmp_path: Path, autojump_clock: MockClock
) -> None:
    """Where there is no lease and no log any more, marks of objects are not taken for those of another file."""
    for call in range(1, 12):
        storage, history = await bucket(SCENARIOS["create"])
        await live(storage, history, create, 9, Death.CALL_LOST, tmp_path / f"{call}")
        await check(storage, history, tmp_path / f"{call}-recovered")
        await live(storage, history, rewrite_new, call, death, tmp_path / f"{call}-again")
        await check(storage, history, tmp_path / f"{call}-last")


class BareMarkers(SmallPartsStorage):
    """Keeps no metadata of keys that end with a slash, as SeaweedFS does, and is late to say that it has them."""

    async def put(self, key: str, data: Any, **options: Any) -> str:
        if not key.endswith("/"):
            return await super().put(key, data, **options)
        options.pop("metadata", None)
        etag = await super().put(key, data, **options)
        await trio.sleep(0.5)
        return etag


async def rename_marked_directories(history: History) -> None:
    await history.mkdir("old")
    await history.mkdir("old/below")
    await history.commit()
    await trio.sleep(0.2)
    await history.rename("old", "new")
    await history.commit()
    await trio.sleep(0.2)
    await history.rename("new", "newest")
    await history.mkdir("old")
    await history.commit()


@pytest.mark.parametrize("death", [Death.CALL_LOST, Death.ANSWER_LOST])
async def test_markers_that_the_log_does_not_know(
    death: Death, tmp_path: Path, autojump_clock: MockClock
) -> None:
    """A marker that a directory has left, and that nothing says whose it is, is no directory for the next mount."""
    await die_at_every_call(partial(filled, BareMarkers, {}), rename_marked_directories, death, tmp_path)


async def bucket(scenario: Scenario) -> tuple[SmallPartsStorage, History]:
    return await filled(SmallPartsStorage, scenario.before)
