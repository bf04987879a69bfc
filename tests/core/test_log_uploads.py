"""Uploads that a log refers to when its mount dies: what is under their keys is kept, and what is gone is told."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, Final

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from backends.base import KIB, Capabilities, Data, Metadata, MultipartUpload, Part
from backends.errors import AccessDenied, StorageError, Unavailable
from backends.intercepted import InterceptedStorage, InterceptedUpload, Request, T, Verb
from backends.memory import MemoryStorage
from fusefs.attribute_changes import AttributeChanges
from fusefs.errors import FilesystemError, LogDamaged, MountError
from fusefs.journal_format import decode, position_of
from fusefs.log_records import InodeRecord
from fusefs.log_repair import LogRepair
from fusefs.object_writer import CONFLICTS_PREFIX
from fusefs.placement import DETOURS_PREFIX
from fusefs.publisher import PublishOptions
from tests.core.history import state_of
from tests.core.logs import batches
from tests.core.losses import check, live
from tests.core.mortal import Death, MortalStorage
from tests.core.small_parts import PART, SmallPartsStorage, tree_options
from tests.core.test_log_crash import SCENARIOS, bucket
from tests.core.tree import NEVER, NEVER_PUBLISHED, Tree, open_tree, stored
from tests.support.every_call import at_every_call
from tests.support.faulty import FaultyStorage

pytestmark = pytest.mark.usefixtures("small_parts")

DYING: Final = tree_options(logged=True, publish=NEVER_PUBLISHED, mount_id="dying")
NEXT: Final = tree_options(logged=True)
BYTES: Final = Random(5).randbytes(6 * PART)


async def stream(tree: Tree, key: str = "big") -> None:
    """Let the log refer to parts of a file, and be acknowledged."""
    handle = await tree.create(key)
    await tree.write(handle, 0, BYTES)
    await trio.sleep(0.1)
    await tree.filesystem.fsync(handle)
    await tree.write(handle, 0, b"never acknowledged")


async def die(
    storage: SmallPartsStorage, where: Path, act: Callable[[Tree], Coroutine[Any, Any, None]]
) -> None:
    """Leave a log, and what the log refers to."""
    mortal = MortalStorage(storage)
    async with open_tree(mortal, where, DYING) as tree:
        await act(tree)
        mortal.die()
    assert await storage.list_multipart_uploads()


async def recover(storage: SmallPartsStorage, where: Path, call: int, death: Death) -> bool:
    """Let the next mount die at a call; return whether it did before it had published everything."""
    mortal = MortalStorage(storage)
    mortal.die_at(call, death)
    async with mortal.life.lived(), open_tree(mortal, where, NEXT) as tree:
        await tree.publish_all()
    return mortal.dead.is_set()


async def test_what_somebody_else_has_put_under_the_key_is_kept(
    tmp_path: Path, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    storage = SmallPartsStorage()
    await die(storage, tmp_path / "1", stream)
    await storage.put("big", b"theirs", metadata={"author": "somebody"})
    for number in range(2):  # and once more, when a recovery was killed after it
        async with open_tree(
            storage.twin() if number == 0 else storage, tmp_path / f"next{number}", NEXT
        ) as tree:
            assert await tree.read_file("big") == BYTES
            await tree.publish_all()
    objects = await stored(storage, ours=True)
    [kept] = [key for key in objects if key.startswith(f"{CONFLICTS_PREFIX}big.")]
    assert objects["big"] == BYTES
    assert objects[kept] == b"theirs"
    assert (await storage.head(kept)).metadata == {"author": "somebody"}
    assert f"theirs is kept as '{kept}'" in caplog.text


async def test_what_somebody_else_has_put_under_a_name_that_the_file_has_left(
    tmp_path: Path, autojump_clock: MockClock, quiet: None
) -> None:
    """It stays there, and nothing is lost wherever a recovery dies."""

    async def act(tree: Tree) -> None:
        handle = await tree.create("temporary")
        await tree.write(handle, 0, BYTES)
        await trio.sleep(0.1)
        await tree.rename("temporary", "final")
        await tree.filesystem.fsync(handle)

    storage = SmallPartsStorage()
    await die(storage, tmp_path / "1", act)
    await storage.put("temporary", b"theirs", metadata={"author": "somebody"})

    async def die_and_look(death: Death, call: int) -> bool:
        twin = storage.twin()
        has_died = await recover(twin, tmp_path / f"{death}{call}", call, death)
        async with open_tree(twin, tmp_path / f"{death}{call}-next", NEXT) as tree:
            assert await tree.read_file("final") == BYTES
            await tree.publish_all()
        objects = await stored(twin, ours=True)
        assert objects["final"] == BYTES
        kept = [key for key in objects if key.startswith(CONFLICTS_PREFIX)]
        assert b"theirs" in [objects[key] for key in ["temporary", *kept] if key in objects]
        if not has_died:
            assert objects["temporary"] == b"theirs"
            assert (await twin.head("temporary")).metadata == {"author": "somebody"}
            assert kept == []
            assert not [key for key in objects if key.startswith(DETOURS_PREFIX)]
        return has_died

    for death in (Death.CALL_LOST, Death.ANSWER_LOST):
        assert await at_every_call(partial(die_and_look, death)) >= 5


@pytest.mark.parametrize("name", ["file", "renamed"])
@pytest.mark.parametrize("lacking", [1, 2, 4])
async def test_a_part_of_what_was_there_before_was_still_on_its_way(
    lacking: int, name: str, tmp_path: Path, autojump_clock: MockClock
) -> None:
    """Neither the log has its bytes nor the upload, but the object that there was, wherever that is."""
    before, changed = Random(6).randbytes(4 * PART), Random(7).randbytes(10)
    storage = SmallPartsStorage(capabilities=Capabilities(copy_part=False))
    await storage.put("file", before)
    faulty = FaultyStorage(storage)
    async with open_tree(faulty, tmp_path / "1", NEXT) as tree:
        handle = await tree.open("file")
        if name != "file":
            await tree.rename("file", name)
        faulty.hold(Verb.UPLOAD_PART, call=lacking)
        await tree.write(handle, 2 * PART + 7, changed)
        await tree.close(handle)
        await trio.sleep(10)
        await tree.log.commit()
    assert [upload.key for upload in await storage.list_multipart_uploads()] == [name]
    expected = before[: 2 * PART + 7] + changed + before[2 * PART + 17 :]
    async with open_tree(storage, tmp_path / "2", NEXT) as tree:
        assert await tree.read_file(name) == expected
        await tree.publish_all()
    assert await stored(storage) == {name: expected}


class _SlowUpload(InterceptedUpload):
    """Some parts take long."""

    async def upload_part(self, number: int, data: Data) -> Part:
        if number in (4, 5, 7):
            await trio.sleep_forever()
        return await super().upload_part(number, data)


class _SlowParts(InterceptedStorage):
    async def _carry_out(self, request: Request, send: Callable[[], Awaitable[T]]) -> T:
        return await send()

    def _wrapped_upload(self, inner: MultipartUpload, metadata: Metadata | None) -> MultipartUpload:
        return _SlowUpload(inner, self)


async def test_parts_between_others_were_still_on_their_way(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """Several of them, in several places: of a hole a commit waits for none, and they arrive in any order."""
    storage = SmallPartsStorage()
    async with open_tree(_SlowParts(storage), tmp_path / "1", replace(NEXT, parts_in_flight=8)) as tree:
        handle = await tree.create("sparse")
        await tree.write(handle, 10 * PART, b"end")
        await trio.sleep(1)
        await tree.filesystem.fsync(handle)
    expected = bytes(10 * PART) + b"end"
    assert (await LogRepair(storage).diagnose()).is_whole
    recovering = FaultyStorage(storage)
    async with open_tree(recovering, tmp_path / "2", NEXT) as tree:
        assert [call.bytes_sent for call in recovering.calls_of(Verb.UPLOAD_PART)] == [PART] * 3
        assert await tree.read_file("sparse") == expected
        await tree.publish_all()
    assert await stored(storage) == {"sparse": expected}


@pytest.mark.parametrize("verb", [Verb.HEAD, Verb.COMPLETE])
async def test_a_key_that_is_denied_meanwhile(verb: Verb, tmp_path: Path, autojump_clock: MockClock) -> None:
    """No mount shows the file without what was confirmed of it; whoever mounts is told which key it is, in one line."""
    storage = SmallPartsStorage()
    await die(storage, tmp_path / "1", stream)
    before = await stored(storage, ours=True)
    faulty = FaultyStorage(storage)
    faulty.fail(AccessDenied, verb=verb, key="big", times=math.inf)
    with pytest.raises(MountError, match=r"confirmed of 'big'.*let this mount read and write it") as refused:
        async with open_tree(faulty, tmp_path / "2", NEXT):
            pass
    assert str(refused.value).isprintable()
    after = await stored(storage, ours=True)
    assert {key: after[key] for key in before} == before
    faulty.heal()
    async with open_tree(faulty, tmp_path / "3", NEXT) as tree:
        assert await tree.read_file("big") == BYTES
        await tree.publish_all()
    assert (await stored(storage))["big"] == BYTES


async def test_an_object_that_is_to_be_deleted_and_is_denied_meanwhile(
    tmp_path: Path, autojump_clock: MockClock, quiet: None
) -> None:
    """It keeps no mount from what else the log has, and is deleted when that is allowed."""
    storage = SmallPartsStorage()
    await storage.put("removed", b"bytes")
    await storage.put("replaced", b"bytes")
    async with open_tree(storage, tmp_path / "1", DYING) as tree:
        await tree.unlink("removed")
        await tree.unlink("replaced")
        await tree.write_file("new", b"new")
        await tree.log.commit()
    await storage.put("replaced", b"theirs")
    faulty = FaultyStorage(storage)
    for key in ("removed", "replaced"):
        for verb in (Verb.HEAD, Verb.DELETE):
            faulty.fail(AccessDenied, verb=verb, key=key, times=math.inf)
    async with open_tree(faulty, tmp_path / "2", NEXT) as tree:
        assert await tree.read_file("new") == b"new"
        faulty.heal()
        await tree.publish_all()
    assert await stored(storage) == {"new": b"new", "replaced": b"theirs"}


async def abort_all(storage: SmallPartsStorage) -> None:
    for upload in await storage.list_multipart_uploads():
        await storage.resume_multipart(upload.key, upload.upload_id).abort()


async def test_an_upload_that_is_gone_is_told_and_what_was_before_it_saved(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """A store may have a rule that aborts old uploads."""

    async def act(tree: Tree) -> None:
        await tree.write_file("before", b"1")
        await tree.log.commit()
        await stream(tree)
        await tree.write_file("behind", b"2")
        await tree.log.commit()

    storage = SmallPartsStorage()
    await die(storage, tmp_path / "1", act)
    await abort_all(storage)
    with pytest.raises(LogDamaged, match=r"upload .* of 'big', which is gone .*`fusefs recover`"):
        async with open_tree(storage, tmp_path / "2", NEXT):
            pass
    repair = LogRepair(storage)
    found = await repair.diagnose()
    assert found.readable == 1
    assert "'big', which is gone" in str(found)
    await repair.set_aside(found)
    assert (await repair.diagnose()).lost == ()
    async with open_tree(storage, tmp_path / "3", NEXT) as tree:
        assert await tree.names() == ["before"]


@pytest.mark.parametrize("theirs", [None, b"theirs"], ids=["removed", "replaced"])
@pytest.mark.parametrize("by_recovery", [False, True])
async def test_an_upload_that_was_completed_before_somebody_else_took_its_object(
    by_recovery: bool, theirs: bytes | None, tmp_path: Path, autojump_clock: MockClock, quiet: None
) -> None:
    """The log has told so with the next commit: it is not damaged, and what it is kept for is there."""

    async def act(tree: Tree) -> None:
        await tree.create("other")
        await stream(tree)

    bucket = SmallPartsStorage()
    storage = FaultyStorage(bucket)
    storage.fail(AccessDenied, verb=Verb.PUT, key="other", times=math.inf)
    if by_recovery:
        await die(bucket, tmp_path / "dying", act)
    mortal = MortalStorage(storage)
    async with open_tree(mortal, tmp_path / "1", NEXT) as tree:
        if not by_recovery:
            await act(tree)
        await tree.publisher.publish(await tree.find("big"))
        other = await tree.open("other")
        await tree.write(other, 0, b"confirmed")
        await tree.filesystem.fsync(other)
        mortal.die()
    assert len((await stored(bucket))["big"]) == len(BYTES)
    if theirs is None:
        await bucket.delete("big")
    else:
        await bucket.put("big", theirs)
    async with open_tree(bucket, tmp_path / "2", NEXT) as tree:
        assert await tree.read_file("other") == b"confirmed"
        await tree.publish_all()
    assert await stored(bucket) == {"other": b"confirmed"} | ({} if theirs is None else {"big": theirs})


async def test_an_upload_of_a_file_with_several_names_was_completed(
    tmp_path: Path, autojump_clock: MockClock, quiet: None
) -> None:
    """A record of one of the names alone would make an end of the others."""
    bucket = SmallPartsStorage()
    storage = FaultyStorage(bucket)
    storage.fail(AccessDenied, verb=Verb.PUT, key="other", times=math.inf)
    async with open_tree(storage, tmp_path / "1", NEXT) as tree:
        handle = await tree.create("big")
        await tree.write(handle, 0, BYTES)
        await trio.sleep(0.1)
        await tree.link("big", "second")
        await tree.filesystem.fsync(handle)
        other = await tree.create("other")
        await tree.filesystem.fsync(other)
        await tree.publisher.publish(await tree.find("big"))
        await tree.write(other, 0, b"bytes")
        await tree.filesystem.fsync(other)
    for mount in ("2", "3"):
        async with open_tree(bucket, tmp_path / mount, NEXT) as tree:
            assert await tree.find("big") is await tree.find("second")
            await tree.publish_all()


async def test_that_an_upload_was_completed_keeps_no_log(tmp_path: Path, autojump_clock: MockClock) -> None:
    """The bucket has the file: what the log says of it after that is needed by nobody."""
    bucket = SmallPartsStorage()
    async with open_tree(bucket, tmp_path, NEXT) as tree:
        await stream(tree)
        await tree.publisher.publish(await tree.find("big"))
        await tree.write_file("other", b"bytes")
        await tree.log.commit()
        await trio.sleep(60)
        assert await batches(bucket) == []


async def test_a_completed_upload_of_a_file_that_was_forgotten_since(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """The next batch, which comes much later, does not tell of it: it would be of a file without a name."""
    bucket = SmallPartsStorage()
    async with open_tree(bucket, tmp_path, NEXT) as tree:
        handle = await tree.create("big")
        await tree.write(handle, 0, BYTES)
        await trio.sleep(0.1)
        await tree.filesystem.fsync(handle)
        await tree.close(handle)
        await trio.sleep(60)
        file = await tree.find("big")
        tree.sources.budget.make_room(goal_bytes=0)
        await tree.packer.pack_all()
        assert await tree.find("big") is not file
        await tree.create("other")
        await tree.log.commit()
    [key] = await batches(bucket)
    position = position_of(key)
    assert position is not None
    [record] = decode((await bucket.get_range(key)).data, position).records
    assert isinstance(record, InodeRecord)
    assert record.path == (b"other",)


STREAMS: Final = [
    "stream",
    "cut a stream",
    "remove a stream",
    "rotate a stream",
    "stream over what is published",
    "change attributes of a stream",
    "rename a stream",
    "rename a stream that ends",
    "rename a directory above a stream",
]


@pytest.mark.parametrize("name", STREAMS)
async def test_a_mount_dies_at_every_call_and_its_uploads_are_aborted(
    name: str, tmp_path: Path, autojump_clock: MockClock, quiet: None
) -> None:
    """The next mount shows what was acknowledged, or says that it cannot; then bytes that were there once are saved.

    An older object of a file is never taken for what the upload would have become.
    """
    refused = 0

    async def die_and_look(call: int) -> bool:
        nonlocal refused
        storage, history = await bucket(SCENARIOS[name])
        has_died = await live(
            storage, history, SCENARIOS[name].act, call, Death.CALL_LOST, tmp_path / f"{call}"
        )
        await abort_all(storage)
        try:
            await check(storage, history, tmp_path / f"{call}-next")
        except LogDamaged:
            refused += 1
            repair = LogRepair(storage)
            found = await repair.diagnose()
            assert "which is gone" in str(found)
            await repair.set_aside(found)
            assert (await repair.diagnose()).lost == ()
            async with open_tree(storage, tmp_path / f"{call}-saved", NEXT) as tree:
                saved = {entry.data for entry in (await state_of(tree)).values()}
            assert saved <= {entry.data for state in history.states for entry in state.values()}
        return has_died

    await at_every_call(die_and_look)
    assert refused


async def test_a_log_that_takes_nothing_keeps_the_parts_that_it_refers_to(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """One was written again since, so the file is published without it; but its bytes have to be in the log first."""
    storage, log = SmallPartsStorage(), MemoryStorage()
    way = FaultyStorage(log)
    publish = PublishOptions(delay_seconds=1, interval_seconds=NEVER)
    async with open_tree(
        storage, tmp_path / "dying", replace(DYING, publish=publish, log_storage=way)
    ) as tree:
        handle = await tree.create("big")
        await tree.write(handle, 0, BYTES[: PART + 2 * KIB])  # the first part goes up
        await trio.sleep(1)
        await tree.filesystem.setattr((await tree.find("big")).number, AttributeChanges(size=PART))
        await tree.filesystem.fsync(handle)
        await tree.write(handle, 0, b"written later")
        await tree.filesystem.fsync(handle)
        assert await storage.list_multipart_uploads()
        way.fail(AccessDenied, verb=Verb.PUT, times=math.inf)
        await tree.close(handle)
        await trio.sleep(20)
    async with open_tree(storage, tmp_path / "next", replace(NEXT, log_storage=log)) as tree:
        assert await tree.read_file("big") == b"written later" + BYTES[13:PART]


async def test_an_upload_that_was_left_to_the_log_is_aborted_when_its_file_is_published(
    tmp_path: Path, autojump_clock: MockClock, quiet: None
) -> None:
    """By the mount that has left it, and not before: whenever that dies, the next one finds what was confirmed."""

    async def die_and_look(call: int) -> bool:
        storage = SmallPartsStorage()
        faulty = FaultyStorage(storage)
        mortal = MortalStorage(faulty)
        has_died = True
        async with mortal.life.lived(), open_tree(mortal, tmp_path / f"{call}", DYING) as tree:
            handle = await tree.create("big")
            await tree.write(handle, 0, BYTES[: 2 * PART + 2 * KIB])  # two parts go up
            await trio.sleep(1)
            await tree.filesystem.fsync(handle)
            faulty.fail(Unavailable, times=math.inf)
            await tree.write(handle, 2 * PART + 2 * KIB, BYTES[2 * PART + 2 * KIB : 4 * PART])
            await trio.sleep(60)
            faulty.heal()
            assert await storage.list_multipart_uploads()
            mortal.die_at(call, Death.CALL_LOST)
            await tree.publish_all()
            await trio.sleep(1)
            assert await storage.list_multipart_uploads() == []
            has_died = False
        async with open_tree(storage, tmp_path / f"{call}-next", NEXT) as tree:
            assert (await tree.read_file("big"))[: 2 * PART + 2 * KIB] == BYTES[: 2 * PART + 2 * KIB]
        return has_died

    await at_every_call(die_and_look)


async def test_a_part_lands_while_the_log_is_given_the_others(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """Its upload is about to be aborted, because another part has failed: the log does not refer to it any more."""
    storage = SmallPartsStorage()
    faulty = FaultyStorage(storage)
    mortal = MortalStorage(faulty)
    async with open_tree(mortal, tmp_path / "dying", DYING) as tree:
        handle = await tree.create("big")
        await tree.write(handle, 0, BYTES[: PART + 2 * KIB])  # the first part goes up
        await trio.sleep(0.1)
        await tree.filesystem.fsync(handle)
        of_another = faulty.hold(Verb.UPLOAD_PART, key="other")  # which commits wait for
        await tree.write(await tree.create("other"), 0, BYTES)
        second = faulty.hold(Verb.UPLOAD_PART, key="big")
        faulty.fail(AccessDenied, verb=Verb.UPLOAD_PART, key="big", call=2)
        await tree.write(handle, PART + 2 * KIB, BYTES[PART + 2 * KIB : 3 * PART + 2 * KIB])
        for gate in (second, of_another):
            await gate.reached.wait()
            await trio.sleep(1)
            gate.open()
        await trio.sleep(1)
        await tree.filesystem.fsync(handle)
        mortal.die()
    async with open_tree(storage, tmp_path / "next", NEXT) as tree:
        assert await tree.read_file("big") == BYTES[: 3 * PART + 2 * KIB]


class _ThoroughParts(FaultyStorage):
    """As where calls are made by threads: the answer to a part is heard, though nobody waits for it any more."""

    async def _carry_out(self, request: Request, send: Callable[[], Awaitable[T]]) -> T:
        with trio.CancelScope(shield=request.verb is Verb.UPLOAD_PART):
            return await super()._carry_out(request, send)
        raise AssertionError("unreachable")


async def test_a_part_lands_before_its_upload_is_aborted(tmp_path: Path, autojump_clock: MockClock) -> None:
    """The log, which had not referred to any part of it, does not refer to this one."""
    storage = SmallPartsStorage()
    faulty = _ThoroughParts(storage)
    mortal = MortalStorage(faulty)
    async with open_tree(mortal, tmp_path / "dying", DYING) as tree:
        handle = await tree.create("big")
        first = faulty.hold(Verb.UPLOAD_PART)
        faulty.fail(AccessDenied, verb=Verb.UPLOAD_PART, call=2)
        abort = faulty.hold(Verb.ABORT)
        await tree.write(handle, 0, BYTES[: 3 * PART])
        await first.reached.wait()
        await trio.sleep(1)
        first.open()
        await abort.reached.wait()
        await tree.filesystem.fsync(handle)
        abort.open()
        await trio.sleep(1)
        mortal.die()
    async with open_tree(storage, tmp_path / "next", NEXT) as tree:
        assert await tree.read_file("big") == BYTES[: 3 * PART]


@pytest.mark.parametrize("how", ["a part fails", "the file is cut"])
@pytest.mark.parametrize("cache_size", [400 * KIB, 10_000 * KIB])
async def test_parts_that_were_given_up_leave_the_base_as_it_is(
    cache_size: int, how: str, tmp_path: Path, autojump_clock: MockClock
) -> None:
    """The log is given what is dirty in them: what is clean may be nowhere here, and would be zeros to a recovery."""
    size = 80 * PART
    bucket, expected = SmallPartsStorage(), bytearray(Random(1).randbytes(size))
    await bucket.put("file", bytes(expected))
    faulty = FaultyStorage(bucket)
    async with open_tree(faulty, tmp_path / "1", tree_options(logged=True, cache_size=cache_size)) as tree:
        handle = await tree.open("file")
        for start in range(0, size, PART):  # of no part anything can be copied
            expected[start : start + PART // 2] = Random(start).randbytes(PART // 2)
            await tree.write(handle, start, expected[start : start + PART // 2])
        await tree.write(handle, size, b"end")
        expected += b"end"
        late_part = faulty.hold(Verb.UPLOAD_PART, call=78, times=math.inf)
        if how == "a part fails":
            faulty.fail(Unavailable, verb=Verb.UPLOAD_PART, call=78, times=math.inf)

        async def publish() -> None:
            with suppress(StorageError, FilesystemError):
                await tree.publisher.publish_all()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(publish)
            await late_part.reached.wait()
            await tree.filesystem.fsync(handle)
            file = await tree.find_file("file")
            assert file.content.is_referred
            if how == "the file is cut":
                await tree.filesystem.setattr(file.number, AttributeChanges(size=size - PART))
                del expected[size - PART :]
                second = faulty.hold(Verb.CREATE_MULTIPART)
                late_part.open()
                await second.reached.wait()
            else:
                late_part.open()
                await trio.testing.wait_all_tasks_blocked()
            await tree.filesystem.fsync(handle)
            crashed = bucket.twin()
            nursery.cancel_scope.cancel()
    async with open_tree(crashed, tmp_path / "2", NEXT) as tree:
        assert await tree.read_file("file") == expected
