"""Somebody else changes an object just when ours is on its way: nothing of ours is lost, and nobody waits for ever."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Final

import pytest
import trio
from trio.testing import MockClock

from backends.base import Limits
from backends.errors import Unavailable
from backends.intercepted import Verb
from backends.retrying import RetryingStorage, RetryPolicy
from fusefs.attribute_changes import AttributeChanges
from fusefs.errors import FilesystemError, StaleFile
from fusefs.filesystem import RENAME_EXCHANGE
from fusefs.object_writer import CONFLICTS_PREFIX, conflict_key
from fusefs.publisher import PublishOptions
from tests.core.small_parts import PART, SmallPartsStorage, tree_options
from tests.core.tree import Tree, open_tree, stored
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
async def test_a_file_that_is_being_kept_beside_gets_no_other_name(
    closes: str, tmp_path: Path, autojump_clock: MockClock
) -> None:
    """It is about to have none; a further one would be published never, and an unmount wait for it."""
    faulty = FaultyStorage(SmallPartsStorage())
    await faulty.put("file", BODY)
    await faulty.put("other", b"bytes")
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
                for names in (("file", "other"), ("other", "file")):
                    with pytest.raises(StaleFile):
                        await tree.rename(*names, RENAME_EXCHANGE)
                with pytest.raises(StaleFile):
                    await tree.rename("file", "other")
                if closes == "before":
                    await tree.filesystem.release(handle)
                gate.open()
            if closes == "after":
                await tree.filesystem.release(handle)
            await publish(tree)
        assert not tree.publisher.pending_inodes()
        assert await tree.names() == ["file", "other"]
        assert await tree.read_file("other") == b"bytes"


LOGGED: Final = tree_options(logged=True)
LATER: Final = replace(LOGGED, publish=PublishOptions(delay_seconds=1e9, interval_seconds=1e9))


async def test_the_old_name_of_a_file_is_somebody_elses_before_its_object_has_followed(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """A rename that was confirmed is one, and all bytes of the file are on the local disk: they go up."""
    store = SmallPartsStorage()
    faulty = FaultyStorage(store)
    async with open_tree(faulty, tmp_path, LOGGED) as tree:
        await tree.write_file("old", BODY)
        await tree.publish_all()
        gate = faulty.hold(Verb.COPY, key="new")
        await tree.rename("old", "new")
        await tree.log.commit()
        await gate.reached.wait()
        await store.put("old", b"theirs")
        gate.open()
        await tree.publish_all()
        assert await tree.read_file("new") == BODY
    assert await stored(store) == {"old": b"theirs", "new": BODY}


async def test_both_names_of_a_rename_are_somebody_elses(tmp_path: Path, autojump_clock: MockClock) -> None:
    store = SmallPartsStorage()
    faulty = FaultyStorage(store)
    async with open_tree(faulty, tmp_path, LOGGED) as tree:
        await tree.write_file("old", BODY)
        await tree.publish_all()
        gate = faulty.hold(Verb.COPY, key="new")
        await tree.rename("old", "new")
        await gate.reached.wait()
        await store.put("old", b"theirs")
        await store.put("new", b"theirs, too")
        gate.open()
        await publish(tree)
    found = store.snapshot()
    assert (found["old"], found["new"]) == (b"theirs", b"theirs, too")
    assert [data for key, data in found.items() if key.startswith(CONFLICTS_PREFIX)] == [BODY]


@pytest.mark.parametrize("is_removed", [False, True])
async def test_a_copy_that_is_kept_is_known_although_its_answer_was_lost(
    is_removed: bool, tmp_path: Path, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """There is one, and readers go on with it, whatever somebody else has done to what it was copied from."""
    store = SmallPartsStorage()
    faulty = FaultyStorage(store)
    await store.put("old", BODY)
    async with open_tree(faulty, tmp_path, LATER) as tree:
        handle = await tree.open("old", 0)
        await tree.rename("old", "new")
        await store.put("new", b"theirs")
        faulty.fail(Unavailable, verb=Verb.COPY, call=2, answer_lost=True)
        with pytest.raises(Unavailable):
            await tree.publisher.publish_all()
        if is_removed:
            await store.delete("old")
        await publish(tree)
        (kept,) = (key for key in store.snapshot() if key.startswith(CONFLICTS_PREFIX))
        assert f"ours is kept as {kept!r}" in caplog.text
        assert await tree.filesystem.read(handle, 0, len(BODY)) == BODY
    assert (store.snapshot()["new"], store.snapshot()[kept]) == (b"theirs", BODY)


@pytest.mark.parametrize("closes", [True, False])
async def test_one_name_is_somebody_elses_before_the_others_have_followed(
    closes: bool, tmp_path: Path, autojump_clock: MockClock
) -> None:
    """What was confirmed is under the others; and the attempts that cannot succeed are few."""
    store = SmallPartsStorage()
    faulty = FaultyStorage(store)
    async with open_tree(faulty, tmp_path, LOGGED) as tree:
        await tree.write_file("one", b"old")
        await tree.link("one", "two")
        await tree.link("one", "three")
        await tree.publish_all()
        await trio.sleep(90)
        gate = faulty.hold(Verb.COPY)
        handle = await tree.open("two")
        await tree.write(handle, 0, BODY)
        await tree.filesystem.fsync(handle)
        if closes:
            await tree.close(handle)
        await gate.reached.wait()
        await store.put("one", b"theirs")
        gate.open()
        failed = tree.publisher.statistics().failed
        await trio.sleep(25)
        assert tree.publisher.statistics().failed < failed + 5
        await publish(tree)
        if not closes:
            await tree.close(handle)
        await tree.publish_all()
        assert await tree.read_file("two") == await tree.read_file("three") == BODY
    assert await stored(store) == {"one": b"theirs", "two": BODY, "three": BODY}


@pytest.mark.parametrize("dies", [False, True])
async def test_a_file_goes_on_under_the_name_that_nobody_has_touched(
    dies: bool, tmp_path: Path, autojump_clock: MockClock
) -> None:
    """The same when the host was lost in between, and the next mount knows of the file by the log alone."""
    store = SmallPartsStorage()
    async with open_tree(store, tmp_path / "0", LOGGED) as tree:
        await tree.write_file("one", b"old")
        await tree.link("one", "two")
        await tree.publish_all()
        await trio.sleep(90)
    async with open_tree(store, tmp_path / "1", LATER) as tree:
        assert await tree.find_file("one") is await tree.find_file("two")
        handle = await tree.open("two")
        await tree.write(handle, 0, BODY)
        await tree.filesystem.fsync(handle)
        await tree.close(handle)
        if not dies:
            await store.put("one", b"theirs")
            await publish(tree)
    await store.put("one", b"theirs")
    async with open_tree(store, tmp_path / "2", LOGGED) as tree:
        assert await tree.read_file("two") == BODY
        await publish(tree)
        await trio.sleep(90)
        assert await tree.read_file("one") == b"theirs"
        assert await tree.read_file("two") == BODY


@pytest.mark.parametrize("what", ["new", "written", "renamed", "symlink"])
async def test_a_new_name_that_nobody_has_touched_stays(
    what: str, tmp_path: Path, autojump_clock: MockClock
) -> None:
    """Somebody else has the first one before there was an object under the other."""
    store = SmallPartsStorage()
    await store.put("a", b"bytes")
    if what == "written":
        await store.put("one", b"old")
    async with open_tree(store, tmp_path, LOGGED) as tree:
        await tree.names()
        if what == "renamed":
            await tree.rename("a", "one")
        elif what == "symlink":
            await tree.symlink("one", b"bytes")
        else:
            await tree.write_file("one", b"bytes")
        await tree.link("one", "two")
        await store.put("one", b"theirs")
        await publish(tree)
        await tree.publish_all()
        assert await tree.read_file("one") == b"theirs"
        assert "two" in await tree.names()
    assert (await stored(store))["two"] == b"bytes"
    assert not [key for key in store.snapshot() if key.startswith(CONFLICTS_PREFIX)]


@pytest.mark.parametrize("what", ["link", "rename"])
async def test_a_file_gets_a_name_while_it_is_looked_what_has_become_of_its_object(
    what: str, tmp_path: Path, autojump_clock: MockClock
) -> None:
    """The name that it was to have is somebody else's; nobody waits for ever, and the file has the new one."""
    store = SmallPartsStorage()
    faulty = FaultyStorage(store)
    await store.put("old", BODY)
    async with open_tree(faulty, tmp_path, LOGGED) as tree:
        copy, head = faulty.hold(Verb.COPY, key="taken"), faulty.hold(Verb.HEAD, key="old", call=2)
        await tree.rename("old", "taken")
        await copy.reached.wait()
        await store.put("taken", b"theirs")
        copy.open()
        await head.reached.wait()
        await (tree.link("taken", "new") if what == "link" else tree.rename("taken", "new"))
        head.open()
        with trio.fail_after(PATIENCE):
            await tree.publish_all()
        assert not tree.publisher.pending_inodes()
        assert await tree.read_file("new") == BODY
    assert await stored(store) == {"taken": b"theirs", "new": BODY}


async def test_a_further_name_is_changed_while_the_first_one_is_looked_at(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """The object that it had is somebody else's; it is a name of the file as before."""
    store = SmallPartsStorage()
    faulty = FaultyStorage(store)
    async with open_tree(faulty, tmp_path, LOGGED) as tree:
        await tree.write_file("one", b"old")
        await tree.link("one", "two")
        await tree.publish_all()
        copy, head = faulty.hold(Verb.COPY, key="two"), faulty.hold(Verb.HEAD, key="one")
        await tree.write_file("one", BODY)
        await copy.reached.wait()
        await store.put("two", b"theirs")
        copy.open()
        await head.reached.wait()
        await tree.rename("two", "three")
        head.open()
        await tree.publish_all()
        assert (await tree.find("one")).link_count == 2
        assert await tree.read_file("three") == BODY
    assert await stored(store) == {"one": BODY, "two": b"theirs", "three": BODY}


async def test_a_further_name_in_doubt_that_is_let_go_of_is_shown(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """Its copy had no answer, and neither has what becomes of it; somebody else has the first name meanwhile."""
    faulty = FaultyStorage(SmallPartsStorage())
    await faulty.put("one", BODY)
    async with open_tree(faulty, tmp_path, tree_options()) as tree:
        await tree.link("one", "two")
        faulty.fail(Unavailable, verb=Verb.COPY, key="two", answer_lost=True)
        with pytest.raises(Unavailable):
            await publish(tree)
        await faulty.put("one", b"theirs")
        faulty.fail(Unavailable, verb=Verb.HEAD, key="two", times=2)
        await change_mode(tree, "one")
        with suppress(Unavailable):
            await publish(tree)
        await trio.sleep(3600)
        assert await tree.names() == ["one", "two"]


async def test_what_has_lost_its_name_and_that_nobody_has_open_is_forgotten(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """The kernel had forgotten it before: nobody tells when it has no use any more."""
    store = SmallPartsStorage()
    async with open_tree(store, tmp_path, tree_options()) as tree:
        await tree.names()
        for number in range(20):
            await tree.write_file(f"{number}", b"ours")
            await store.put(f"{number}", b"theirs")
        await publish(tree)
        await trio.sleep(100)
        await tree.packer.pack_all()
        assert tree.publisher.statistics().conflicts == 20
        assert tree.inodes.all() == [tree.root]


@pytest.mark.parametrize("name", ["n" * 255, "ä" * 127, "d/" * 300 + "n" * 255, "d/" * 400 + "n"])
def test_what_is_kept_has_a_key_that_every_store_takes(name: str) -> None:
    """Some have files for objects, whose names have bounds of their own."""
    suffix = "mount-id-1234567890123456789-1"
    key = conflict_key(name, suffix, Limits())
    assert key.startswith(CONFLICTS_PREFIX)
    assert key.endswith(f".{suffix}")
    assert len(key.encode()) <= Limits().max_key_length
    assert max(len(segment.encode()) for segment in key.split("/")) <= 255
