"""Somebody else changes an object just when ours is on its way: nothing of ours is lost, and nobody waits for ever."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Final

import pytest
import trio
from trio.testing import MockClock

from backends.errors import Unavailable
from backends.intercepted import Verb
from backends.retrying import RetryingStorage, RetryPolicy
from fusefs.attribute_changes import AttributeChanges
from fusefs.errors import FilesystemError, StaleFile
from tests.core.small_parts import PART, SmallPartsStorage, tree_options
from tests.core.tree import Tree, open_tree
from tests.support.faulty import FaultyStorage

pytestmark = pytest.mark.usefixtures("small_parts")

BODY: Final = Random(8).randbytes(4 * PART)
PATIENCE: Final = 100_000
"""More than a day, on the clock of the test."""


def retrying(faulty: FaultyStorage) -> RetryingStorage:
    return RetryingStorage(faulty, RetryPolicy(timeout_seconds=30))


async def publish(tree: Tree) -> None:
    """Let everything be published that can be; why something cannot is not the matter."""
    with suppress(FilesystemError):
        await tree.publisher.publish_all()


async def change_mode(tree: Tree, path: str) -> None:
    await tree.filesystem.setattr((await tree.find(path)).number, AttributeChanges(mode=0o600))


@pytest.mark.parametrize("what", ["rename", "chmod"])
@pytest.mark.parametrize("is_lost", [False, True])
async def test_a_reader_is_told_that_the_object_is_gone(
    is_lost: bool, what: str, tmp_path: Path, autojump_clock: MockClock
) -> None:
    """Also where a first request to copy it had no answer, and nobody could know what had become of it."""
    store = SmallPartsStorage()
    faulty = FaultyStorage(store)
    await store.put("old", BODY)
    async with open_tree(retrying(faulty), tmp_path, tree_options()) as tree:
        handle = await tree.open("old", 0)
        if is_lost:
            faulty.fail(Unavailable, verb=Verb.COPY)
        gate = faulty.hold(Verb.COPY, call=1 + is_lost)
        await (tree.rename("old", "new") if what == "rename" else change_mode(tree, "old"))
        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(tree.publisher.publish_all)
                await gate.reached.wait()
                await store.delete("old")
                gate.open()
            with pytest.raises(StaleFile):
                await tree.filesystem.read(handle, 0, 1000)


@pytest.mark.parametrize("is_lost", [False, True])
async def test_what_was_written_meanwhile_is_kept(
    is_lost: bool, tmp_path: Path, autojump_clock: MockClock
) -> None:
    """The attempt that keeps it needs bytes of the object that it was to replace, and does not wait for itself."""
    store = SmallPartsStorage()
    faulty = FaultyStorage(store)
    await store.put("file", BODY)
    async with open_tree(retrying(faulty), tmp_path, tree_options()) as tree:
        handle = await tree.open("file")
        if is_lost:
            faulty.fail(Unavailable, verb=Verb.COPY)
        gate = faulty.hold(Verb.COPY, call=1 + is_lost)
        await change_mode(tree, "file")
        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(publish, tree)
                await gate.reached.wait()
                await tree.write(handle, 100, b"ours")
                await store.delete("file")
                gate.open()
            await publish(tree)
        assert any(b"ours" in data for data in store.snapshot().values())


@pytest.mark.parametrize("closes", ["before", "after"])
async def test_a_file_that_is_being_kept_beside_gets_no_further_name(
    closes: str, tmp_path: Path, autojump_clock: MockClock
) -> None:
    """It is about to have none; one that it got meanwhile would be published never, and an unmount wait for it."""
    faulty = FaultyStorage(SmallPartsStorage())
    await faulty.put("file", BODY)
    async with open_tree(faulty, tmp_path, tree_options()) as tree:
        handle = await tree.open("file")
        await tree.write(handle, 0, b"ours")
        await faulty.put("file", b"theirs")
        gate = faulty.hold(Verb.COMPLETE)  # that of the object below .fusefs/conflicts/
        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(publish, tree)
                await gate.reached.wait()
                with pytest.raises(StaleFile):
                    await tree.link("file", "link")
                if closes == "before":
                    await tree.filesystem.release(handle)
                gate.open()
            if closes == "after":
                await tree.filesystem.release(handle)
            await publish(tree)
        assert not tree.publisher.pending_inodes()
        assert await tree.names() == ["file"]
