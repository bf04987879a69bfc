"""Which object is a file's own where a mount has died behind the last call of an upload, or a recovery behind it.

The upload is gone then. What it has become is under its own key, or where a recovery has let it wait, and may look
as an object that the file had before.
"""

from __future__ import annotations

import math
import os
from collections.abc import Awaitable, Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Final

import pytest
import trio
from trio.testing import MockClock

from backends.base import KIB, Capabilities
from backends.errors import AccessDenied
from backends.intercepted import Request, T, Verb
from fusefs.errors import LogDamaged
from fusefs.log_repair import LogRepair
from fusefs.placement import DETOURS_PREFIX
from tests.core.mortal import Death, MortalStorage
from tests.core.small_parts import PART, SmallPartsStorage
from tests.core.test_log_uploads import BYTES, NEXT, abort_all, recover
from tests.core.tree import Tree, open_tree, stored
from tests.support.every_call import at_every_call
from tests.support.faulty import FaultyStorage

pytestmark = pytest.mark.usefixtures("small_parts")

OTHER: Final = Random(9).randbytes(6 * PART + 100)


class _DiesCompleting(MortalStorage):
    """Nothing reaches the store any more behind the upload of a key that becomes an object."""

    key: str | None = None

    async def _carry_out(self, request: Request, send: Callable[[], Awaitable[T]]) -> T:
        async def send_last() -> T:
            try:
                return await send()
            finally:
                self.die()

        is_last = request.verb is Verb.COMPLETE and request.key == self.key
        return await super()._carry_out(request, send_last if is_last else send)


async def open_anew(tree: Tree, path: str) -> int:
    return await tree.open(path, os.O_WRONLY | os.O_TRUNC)


@pytest.mark.parametrize("size", [6 * PART, 6 * PART + 100])
async def test_a_file_that_was_written_again_as_it_was(
    size: int, tmp_path: Path, autojump_clock: MockClock
) -> None:
    """Nothing tells the object from the one that it has replaced, and whichever it is has the bytes."""
    storage = SmallPartsStorage()
    mortal = _DiesCompleting(storage)
    async with open_tree(mortal, tmp_path / "1", NEXT) as tree:
        await tree.write_file("big", OTHER[:size])
        await tree.publish_all()
        before = await storage.head("big")
        mortal.key = "big"
        await tree.write_file("big", OTHER[:size])
        await mortal.dead.wait()
    assert (await storage.head("big")).etag == before.etag
    assert (await storage.head("big")).metadata != before.metadata
    assert (await LogRepair(storage).diagnose()).is_whole
    async with open_tree(storage, tmp_path / "2", NEXT) as tree:
        assert await tree.read_file("big") == OTHER[:size]
        await tree.publish_all()
    assert await stored(storage) == {"big": OTHER[:size]}


async def test_a_file_that_was_written_again_as_it_was_but_for_a_part(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """And whose upload somebody has aborted: the object is not what it would have become."""
    storage = SmallPartsStorage()
    faulty = FaultyStorage(storage)
    async with open_tree(faulty, tmp_path / "1", NEXT) as tree:
        await tree.write_file("big", OTHER)
        await tree.publish_all()
        gate = faulty.hold(Verb.COMPLETE)
        await tree.write_file("big", OTHER[: 5 * PART] + BYTES[:PART] + OTHER[6 * PART :])
        await gate.reached.wait()
    await abort_all(storage)
    assert not (await LogRepair(storage).diagnose()).is_whole
    with pytest.raises(LogDamaged, match="which is gone"):
        async with open_tree(storage, tmp_path / "2", NEXT):
            pass


@pytest.mark.parametrize("dies", ["when it is completed", "before it is copied", "when it is written again"])
@pytest.mark.parametrize("before", [b"small", BYTES], ids=["small", "large"])
@pytest.mark.parametrize("was_there", [False, True])
async def test_an_older_object_under_the_name_that_the_file_has_again(
    was_there: bool,
    before: bytes,
    dies: str,
    tmp_path: Path,
    autojump_clock: MockClock,
    quiet: None,
) -> None:
    """It had another one in between, under which its upload began: the newer object is there.

    It may look like the object that was there before all, of which the log tells, too.
    """
    storage = SmallPartsStorage()
    faulty = FaultyStorage(mortal := _DiesCompleting(storage))
    async with open_tree(faulty, tmp_path / "1", NEXT) as tree:
        if was_there:
            faulty.fail(AccessDenied, verb=Verb.DELETE, key="keeps the log long", times=math.inf)
            await tree.write_file("keeps the log long", b"")
            await tree.publish_all()
            await tree.unlink("keeps the log long")
            await tree.write_file("between", OTHER)
            await tree.publisher.publish(await tree.find("between"))
            await tree.rename("between", "big")
            await tree.publisher.publish(await tree.find("big"))
            handle = await open_anew(tree, "big")
        else:
            handle = await tree.create("big")
        await tree.write(handle, 0, before)
        await tree.filesystem.fsync(handle)  # so both objects may tell of the same batch
        await tree.close(handle)
        await tree.publisher.publish(await tree.find("big"))
        handle = await open_anew(tree, "big")
        await tree.rename("big", "between")
        await tree.write(handle, 0, OTHER)
        sending = faulty.hold(Verb.UPLOAD_PART)
        copying = faulty.hold(Verb.COPY)
        await tree.close(handle)
        await sending.reached.wait()
        await tree.rename("between", "big")
        if dies == "when it is completed":
            mortal.key = "between"
        sending.open()
        await (mortal.dead if dies == "when it is completed" else copying.reached).wait()
        if dies == "when it is written again":
            handle = await tree.open("big")
            await tree.write(handle, 0, OTHER[:1])
            await tree.filesystem.fsync(handle)
        mortal.die()
    assert storage.snapshot().keys() >= {"big", "between"}
    async with open_tree(storage, tmp_path / "2", NEXT) as tree:
        assert await tree.read_file("big") == OTHER
        await tree.publish_all()
    assert await stored(storage) == {"big": OTHER}


async def test_an_older_object_of_which_the_log_does_not_tell(
    tmp_path: Path, autojump_clock: MockClock, quiet: None
) -> None:
    """It could not be deleted, and is under a name that the file had again; an upload needs what the newer one has."""
    storage = SmallPartsStorage()
    faulty = FaultyStorage(storage)
    end = 3 * PART + 2_000
    async with open_tree(faulty, tmp_path / "1", NEXT) as tree:
        faulty.fail(AccessDenied, verb=Verb.DELETE, key="a", times=math.inf)
        putting = faulty.hold(Verb.PUT, key="a")
        await tree.write_file("a", b"old")
        await putting.reached.wait()
        await tree.rename("a", "b")
        await tree.log.commit()
        putting.open()
        await trio.sleep(2)
        handle = await tree.open("b")
        await tree.write(handle, 0, OTHER[:end])
        await tree.publisher.publish(await tree.find("b"))
        for name, new_name in pairwise("bab"):
            await tree.rename(name, new_name)
            await tree.log.commit()
        completing = faulty.hold(Verb.COMPLETE)
        await tree.write(handle, 0, BYTES[: 3 * PART])
        await tree.close(handle)
        await completing.reached.wait()
    assert await stored(storage) == {"a": b"old", "b": OTHER[:end]}
    async with open_tree(storage, tmp_path / "2", NEXT) as tree:
        assert await tree.read_file("b") == BYTES[: 3 * PART] + OTHER[3 * PART : end]
        await tree.publish_all()
    assert await stored(storage) == {"b": BYTES[: 3 * PART] + OTHER[3 * PART : end]}


async def test_what_somebody_else_gets_back_of_a_file_with_an_older_object(
    tmp_path: Path, autojump_clock: MockClock, quiet: None
) -> None:
    """The older one is under a third name, and is never taken for the upload that waits, wherever a recovery dies."""
    storage = SmallPartsStorage()
    faulty = FaultyStorage(storage)
    async with open_tree(faulty, tmp_path / "1", NEXT) as tree:
        await tree.write_file("before", BYTES)
        await tree.publish_all()
        handle = await open_anew(tree, "before")
        await tree.rename("before", "temporary")
        await tree.write(handle, 0, OTHER)
        gate = faulty.hold(Verb.COMPLETE)
        await tree.close(handle)
        await gate.reached.wait()
        await tree.rename("temporary", "final")
        await tree.log.commit()
    await storage.put("temporary", b"theirs")
    waited = False

    async def die_and_look(call: int) -> bool:
        nonlocal waited
        twin = storage.twin()
        has_died = await recover(twin, tmp_path / f"{call}", call, Death.ANSWER_LOST)
        waited = waited or any(key.startswith(DETOURS_PREFIX) for key in twin.snapshot())
        async with open_tree(twin, tmp_path / f"{call}-next", NEXT) as tree:
            assert await tree.read_file("final") == OTHER
            await tree.publish_all()
        assert (await stored(twin))["final"] == OTHER
        return has_died

    await at_every_call(die_and_look)
    assert waited


@pytest.mark.parametrize("death", [Death.CALL_LOST, Death.ANSWER_LOST])
async def test_what_was_in_the_way_of_an_upload_is_newer_than_what_its_file_has_left(
    death: Death, tmp_path: Path, autojump_clock: MockClock, quiet: None
) -> None:
    """It waits elsewhere when a recovery dies behind the upload, and is found there by the next one.

    What was left cannot be deleted, and is under a name that the file had again: the log tells of that, and not of the
    bytes any more.
    """
    storage = SmallPartsStorage()
    faulty = FaultyStorage(storage)
    async with open_tree(faulty, tmp_path / "1", replace(NEXT, max_log_bytes=KIB)) as tree:
        await tree.write_file("old", b"old")
        await tree.publish_all()
        faulty.fail(AccessDenied, verb=Verb.DELETE, key="old", times=math.inf)
        await tree.rename("old", "name")
        await tree.write_file("name", b"newer")
        await tree.publisher.publish(await tree.find("name"))
        for _ in range(3):
            await tree.write_file("other", bytes(2 * KIB))
            await tree.log.commit()
            await trio.sleep(60)
        copying = faulty.hold(Verb.COPY)
        for name, new_name in pairwise(["name", "old", "away"]):
            await tree.rename(name, new_name)
            await tree.log.commit()
        handle = await tree.create("name")
        await tree.write(handle, 0, BYTES)
        await copying.reached.wait()
        await tree.filesystem.fsync(handle)
    assert [upload.key for upload in await storage.list_multipart_uploads()] == ["name"]
    left = {"old": b"old", "name": b"newer", "other": bytes(2 * KIB)}
    assert await stored(storage) == left
    waited = False

    async def die_and_look(call: int) -> bool:
        nonlocal waited
        twin = storage.twin()
        has_died = await recover(twin, tmp_path / f"{call}", call, death)
        waited = waited or any(key.startswith(DETOURS_PREFIX) for key in twin.snapshot())
        async with open_tree(twin, tmp_path / f"{call}-next", NEXT) as tree:
            assert await tree.read_file("away") == b"newer"
            assert await tree.read_file("name") == BYTES
            await tree.publish_all()
        assert await stored(twin) == {"away": b"newer", "name": BYTES, "other": left["other"]}
        return has_died

    await at_every_call(die_and_look)
    assert waited


async def test_two_uploads_one_of_which_is_where_the_other_has_an_object(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """A file that has left the name lacks bytes that nothing else has: they are there until it has got them."""
    storage = SmallPartsStorage(capabilities=Capabilities(copy_part=False))
    faulty = FaultyStorage(storage)
    async with open_tree(faulty, tmp_path / "1", NEXT) as tree:
        await tree.write_file("name", OTHER)
        await tree.publish_all()
        handle = await tree.open("name")
        await tree.rename("name", "away")
        faulty.hold(Verb.UPLOAD_PART, call=3)
        await tree.write(handle, 7, BYTES[:10])
        await tree.close(handle)
        await trio.sleep(10)
        handle = await tree.create("name")
        await tree.write(handle, 0, BYTES)
        await trio.sleep(0.1)
        await tree.log.commit()
    assert {upload.key for upload in await storage.list_multipart_uploads()} == {"name", "away"}
    recovering = FaultyStorage(storage)
    gate = recovering.hold(Verb.GET_RANGE, key="name")

    async def go_on_later() -> None:
        await gate.reached.wait()
        await trio.sleep(1)
        gate.open()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(go_on_later)
        async with open_tree(recovering, tmp_path / "2", NEXT) as tree:
            expected = {"away": OTHER[:7] + BYTES[:10] + OTHER[17:], "name": BYTES}
            assert {name: await tree.read_file(name) for name in expected} == expected
            await tree.publish_all()
    assert await stored(storage) == expected


@pytest.mark.parametrize("is_told", [True, False])
async def test_an_object_of_which_the_log_says_that_it_was_that_of_another_file_before(
    is_told: bool, tmp_path: Path, autojump_clock: MockClock, quiet: None
) -> None:
    """Two files of the same bytes, one after the other under the key of an upload.

    The second one is in the bucket, and the log does not tell of it any more: it is not what the first one has left.
    """
    storage = SmallPartsStorage()
    faulty = FaultyStorage(storage)
    async with open_tree(faulty, tmp_path / "1", NEXT) as tree:
        handle = await tree.create("name")
        await tree.write(handle, 0, BYTES)
        await trio.sleep(0.01)
        await tree.rename("name", "renamed")
        await tree.filesystem.fsync(handle)
        copying = faulty.hold(Verb.COPY)
        second = await tree.create("name")
        await tree.write(second, 0, BYTES)
        await tree.filesystem.fsync(second)
        await tree.close(second)
        faulty.fail(AccessDenied, verb=Verb.PUT, key="keeps the log", times=math.inf)
        await tree.write_file("keeps the log", b"bytes")
        await tree.log.commit()
        await tree.close(handle)
        await copying.reached.wait()
        if is_told:
            tree.log.changed(await tree.find("renamed"))
            await tree.log.commit()
        copying.open()
        for name in ("renamed", "name"):
            await tree.publisher.publish(await tree.find(name))
        handle = await tree.open("keeps the log")
        for _ in range(2):
            await tree.write(handle, 0, b"other")
            await tree.filesystem.fsync(handle)
    assert await stored(storage) == {"name": BYTES, "renamed": BYTES}
    async with open_tree(storage, tmp_path / "2", NEXT) as tree:
        assert await tree.names() == ["keeps the log", "name", "renamed"]
        await tree.publish_all()
    assert await stored(storage) == {"name": BYTES, "renamed": BYTES, "keeps the log": b"other"}
