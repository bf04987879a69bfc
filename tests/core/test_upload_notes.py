"""Uploads that a mount has left that is gone are found by its notes and aborted; nobody else's are touched."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from backends.base import MIB, NO_METADATA, OVERWRITE, Data, Metadata, ObjectStorage, PutMode
from backends.errors import AccessDenied, StorageError, Unavailable
from backends.intercepted import Verb
from backends.memory import MemoryStorage
from backends.noting import NotingStorage
from backends.retrying import RetryingStorage, RetryPolicy
from fusefs.upload_notes import (
    BEAT_SECONDS,
    NOTES_PREFIX,
    TRIALS_PREFIX,
    NotedUpload,
    UploadNote,
    UploadNotes,
    Writer,
    open_notes,
)
from fusefs.upload_orphans import TRIAL_SECONDS, WATCHED_SECONDS, abort_orphans, clear_trials, find_orphans
from tests.core.mortal import Death, MortalStorage
from tests.core.tree import TreeOptions, open_tree, stored
from tests.support.every_call import at_every_call
from tests.support.faulty import FaultyStorage

PART = bytes(5 * MIB)


async def _keys(store: ObjectStorage) -> list[str]:
    return sorted(upload.key for upload in await store.list_multipart_uploads())


async def _notes(store: ObjectStorage) -> dict[str, bytes]:
    objects = await stored(store, ours=True)
    return {key: data for key, data in objects.items() if key.startswith(NOTES_PREFIX)}


async def _take_over(
    store: ObjectStorage, writer: Writer = Writer.OWNER, known_dead: Sequence[str] = ()
) -> None:
    await abort_orphans(store, await find_orphans(store, writer, known_dead=known_dead))


async def _upload_three(store: ObjectStorage) -> None:
    """What a mount does that ends well, with one upload each that is completed, aborted and given up."""
    async with open_notes(store, "dead", Writer.OWNER) as notes:
        storage = NotingStorage(store, notes)
        async with trio.open_nursery() as nursery:
            for name in ("completed", "aborted"):
                nursery.start_soon(_upload, storage, name)
        await (await storage.create_multipart("left")).upload_part(1, PART)


async def _upload(storage: ObjectStorage, key: str) -> None:
    upload = await storage.create_multipart(key)
    part = await upload.upload_part(1, PART)
    await (upload.complete([part]) if key == "completed" else upload.abort())


async def test_what_is_left_is_aborted_and_nothing_else(autojump_clock: MockClock) -> None:
    store = MemoryStorage()
    await store.create_multipart("left")
    await store.create_multipart("of somebody else")
    await _upload_three(store)
    assert await _keys(store) == ["left", "left", "of somebody else"]
    await _take_over(store)
    assert await _keys(store) == ["left", "of somebody else"]
    assert await _notes(store) == {}


async def test_a_mount_that_leaves_nothing_leaves_no_note(autojump_clock: MockClock) -> None:
    store = MemoryStorage()
    async with open_notes(store, "mount", Writer.OWNER):
        pass
    async with open_notes(store, "mount", Writer.OWNER) as notes:
        await _upload(NotingStorage(store, notes), "completed")
        assert await _notes(store)
    assert await _notes(store) == {}


@pytest.mark.parametrize("death", [Death.CALL_LOST, Death.ANSWER_LOST])
async def test_a_mount_may_die_at_any_call(death: Death, autojump_clock: MockClock) -> None:
    """Whatever was its last call, the next mount ends all of its uploads; and that one may die at any call, too."""

    async def die_and_be_taken_over(call: int) -> bool:
        store = MemoryStorage()
        theirs = (await store.create_multipart("theirs")).upload_id
        mortal = MortalStorage(store)
        mortal.die_at(call, death)
        with trio.move_on_after(60):
            await _upload_three(mortal)

        async def take_over_and_die(next_call: int) -> bool:
            heir = MortalStorage(store)
            heir.die_at(next_call, death)
            with trio.move_on_after(60):
                await _take_over(heir)
            return heir.dead.is_set()

        await at_every_call(take_over_and_die)
        assert [each.upload_id for each in await store.list_multipart_uploads()] == [theirs]
        assert await _notes(store) == {}
        return mortal.dead.is_set()

    await at_every_call(die_and_be_taken_over)


@pytest.mark.parametrize("answer_lost", [False, True])
async def test_every_call_may_fail_once(answer_lost: bool, autojump_clock: MockClock) -> None:
    """With retries, as in a mount: an upload that began without an answer is not left either."""

    async def fail_once(call: int) -> bool:
        store = MemoryStorage()
        faulty = FaultyStorage(store)
        faulty.fail(Unavailable, call=call, answer_lost=answer_lost)
        await _upload_three(RetryingStorage(faulty))
        await _take_over(RetryingStorage(faulty))
        assert await _keys(store) == []
        assert await _notes(store) == {}
        return not faulty.faults_left

    await at_every_call(fail_once)


async def test_an_upload_that_is_refused_is_not_noted(autojump_clock: MockClock) -> None:
    """One that fails in another way may have begun, and stays in the notes."""
    faulty = FaultyStorage(MemoryStorage())
    for error, left in ((AccessDenied, 0), (Unavailable, 1)):
        async with open_notes(faulty, "mount", Writer.OWNER) as notes:
            faulty.fail(error, verb=Verb.CREATE_MULTIPART, answer_lost=True)
            with pytest.raises(StorageError):
                await NotingStorage(faulty, notes).create_multipart("key")
        assert len(await _notes(faulty)) == left


async def test_nothing_begins_that_is_not_noted(autojump_clock: MockClock) -> None:
    faulty = FaultyStorage(MemoryStorage())
    notes = UploadNotes(faulty, "mount", Writer.OWNER)
    faulty.fail(Unavailable, verb=Verb.PUT)
    with pytest.raises(Unavailable):
        await NotingStorage(faulty, notes).create_multipart("key")
    assert faulty.calls_of(Verb.CREATE_MULTIPART) == []


async def test_what_is_given_up_while_it_is_noted_leaves_no_note(autojump_clock: MockClock) -> None:
    """The request for the note goes on to its end, as every mutation does."""
    store = _SlowStore()
    async with open_notes(store, "mount", Writer.OWNER) as notes:
        with trio.move_on_after(0.5):
            await NotingStorage(store, notes).create_multipart("key")
        assert len(await _notes(store)) == 1
    assert await _keys(store) == []
    assert await _notes(store) == {}


class _SlowStore(MemoryStorage):
    async def put(
        self, key: str, data: Data, *, metadata: Metadata = NO_METADATA, mode: PutMode = OVERWRITE
    ) -> str:
        etag = await super().put(key, data, metadata=metadata, mode=mode)
        with trio.CancelScope(shield=True):
            await trio.sleep(1)
        return etag


async def test_many_that_begin_together_share_a_put(autojump_clock: MockClock) -> None:
    faulty = FaultyStorage(MemoryStorage())
    async with open_notes(faulty, "mount", Writer.OWNER) as notes:
        storage = NotingStorage(faulty, notes)
        gate = faulty.hold(Verb.PUT)
        async with trio.open_nursery() as nursery:
            for number in range(50):
                nursery.start_soon(_upload, storage, f"aborted {number}")
            await gate.reached.wait()
            gate.open()
    assert len(faulty.calls_of(Verb.PUT)) <= 4


async def test_many_that_begin_together_share_a_failure(autojump_clock: MockClock) -> None:
    """In an outage the last of them would otherwise wait as many times as there are others."""
    faulty = FaultyStorage(MemoryStorage())
    storage = RetryingStorage(faulty)
    patience = RetryPolicy().timeout_seconds
    async with open_notes(storage, "living", Writer.OWNER) as notes:
        faulty.fail(Unavailable, times=math.inf)

        async def begin(number: int) -> None:
            with pytest.raises(Unavailable):
                await NotingStorage(storage, notes).create_multipart(f"{number}")

        with trio.fail_after(2 * patience + 1):
            async with trio.open_nursery() as nursery:
                for number in range(16):
                    nursery.start_soon(begin, number)
        faulty.heal()
        await NotingStorage(storage, notes).create_multipart("another")


async def test_what_cannot_be_aborted_waits_for_the_next_mount(autojump_clock: MockClock) -> None:
    faulty = FaultyStorage(MemoryStorage())
    await _upload_three(faulty)
    for verb in (Verb.LIST_PREFIX, Verb.GET_RANGE, Verb.ABORT, Verb.DELETE):
        faulty.fail(AccessDenied, verb=verb)
        await _take_over(faulty)
        assert await _notes(faulty)
    await _take_over(faulty)
    assert await _keys(faulty) == []
    assert await _notes(faulty) == {}


@pytest.mark.parametrize("failure", ["outage", "cancelled"])
async def test_what_a_mount_could_not_abort_it_aborts_later(failure: str, autojump_clock: MockClock) -> None:
    """It may live for months, and an upload costs as long as it is there; what it uses it leaves alone."""
    faulty = FaultyStorage(MemoryStorage())
    async with open_notes(faulty, "mount", Writer.OWNER) as notes:
        storage = NotingStorage(faulty, notes)
        await storage.create_multipart("used")
        upload = await storage.create_multipart("given up")
        if failure == "outage":
            faulty.fail(Unavailable, times=math.inf)
            with pytest.raises(Unavailable):
                await upload.abort()
        else:
            faulty.hold(Verb.ABORT)
            with trio.move_on_after(1):
                await upload.abort()
        await trio.sleep(3 * BEAT_SECONDS)
        faulty.heal()
        await trio.sleep(2 * BEAT_SECONDS)
        assert await _keys(faulty) == ["used"]
        aborts = len(faulty.calls_of(Verb.ABORT))
        await trio.sleep(2 * BEAT_SECONDS)
        assert len(faulty.calls_of(Verb.ABORT)) == aborts
    [note] = (await _notes(faulty)).values()
    assert [noted.key for noted in UploadNote.decode(note).uploads] == ["used"]


async def test_one_that_cannot_be_aborted_is_the_only_one_that_stays(autojump_clock: MockClock) -> None:
    """Its note stays with it, until somebody may abort it; where nobody answers, the others are not tried."""
    store = MemoryStorage()
    async with open_notes(store, "dead", Writer.OWNER) as notes:
        storage = NotingStorage(store, notes)
        for key in ("1 denied", "2 left", "3 left"):
            await (await storage.create_multipart(key)).upload_part(1, PART)
    faulty = FaultyStorage(store)
    faulty.fail(Unavailable, verb=Verb.ABORT)
    await _take_over(faulty)
    assert len(faulty.calls_of(Verb.ABORT)) == 1
    faulty.fail(AccessDenied, verb=Verb.ABORT, key="1 denied", times=2)
    for _ in range(2):
        await _take_over(faulty)
        assert await _keys(store) == ["1 denied"]
        assert await _notes(store)
    await _take_over(faulty)
    assert await _keys(store) == []
    assert await _notes(store) == {}


async def test_the_upload_of_a_shared_mount_that_lives_is_left_alone(autojump_clock: MockClock) -> None:
    """Its notes change as long as there is an upload in them; once they do not, it is gone."""
    store = MemoryStorage()
    async with open_notes(store, "alive", Writer.SHARED) as notes:
        upload = await NotingStorage(store, notes).create_multipart("key")
        for _ in range(2):  # at first the id of the upload becomes known
            await _take_over(store, Writer.SHARED)
        assert await _keys(store) == ["key"]
        await upload.upload_part(1, PART)
    began = trio.current_time()
    await _take_over(store, Writer.SHARED)
    assert trio.current_time() - began >= WATCHED_SECONDS
    assert await _keys(store) == []


async def test_a_shared_mount_whose_process_is_gone_is_not_watched(autojump_clock: MockClock) -> None:
    store = MemoryStorage()
    async with open_notes(store, "dead", Writer.SHARED) as notes:
        await NotingStorage(store, notes).create_multipart("key")
    await _take_over(store, Writer.SHARED, known_dead=["dead"])
    assert await _keys(store) == []
    assert trio.current_time() < BEAT_SECONDS


async def test_a_shared_mount_leaves_what_a_log_may_need(autojump_clock: MockClock) -> None:
    store = MemoryStorage()
    await _upload_three(store)
    await _take_over(store, Writer.SHARED, known_dead=["dead"])
    assert await _keys(store) == ["left"]


async def test_an_upload_without_an_id_is_told_by_its_key_and_time(autojump_clock: MockClock) -> None:
    """One of the same key that another note names, or that is older or much younger than the note, is not meant."""
    for seconds_before, is_meant in ((3_600.0, False), (0.0, True), (-3_600.0, False)):
        store = MemoryStorage()
        named = await store.create_multipart("key")
        await store.create_multipart("key")
        await store.create_multipart("key and more")
        for mount_id, noted in (
            ("dead", NotedUpload("key", None, -seconds_before)),
            ("other", NotedUpload("key", named.upload_id, 0.0)),
        ):
            note = UploadNote(Writer.OWNER if mount_id == "dead" else Writer.SHARED, 1, (noted,))
            await store.put(NOTES_PREFIX + mount_id, note.encode())
        with trio.move_on_after(60):
            await _take_over(store)
        assert await _keys(store) == ["key"] * (1 if is_meant else 2) + ["key and more"]


async def test_where_an_upload_cannot_be_told_from_another_both_are_left(autojump_clock: MockClock) -> None:
    """Somebody else has begun one of the same key at the time of a note without an id."""
    store = MemoryStorage()
    await store.create_multipart("key")
    await store.create_multipart("key")
    note = UploadNote(Writer.OWNER, 1, (NotedUpload("key", None, 0.0),))
    await store.put(f"{NOTES_PREFIX}dead", note.encode())
    await _take_over(store)
    assert await _keys(store) == ["key", "key"]


async def test_notes_that_cannot_be_read_stay(autojump_clock: MockClock) -> None:
    store = MemoryStorage()
    note = UploadNote(Writer.OWNER, 1, (NotedUpload("key", None, 7.5),)).encode()
    absurd = [note.replace(b"7.5", b"Infinity"), note.replace(b"7.5", b"NaN"), note.replace(b"1,", b"1e999,")]
    damaged = {
        f"{NOTES_PREFIX}{number}": data
        for number, data in enumerate([b"", b"[]", b"\xff", b'{"version": 2}', *absurd])
    }
    for key, data in damaged.items():
        await store.put(key, data)
    await _take_over(store)
    assert await _notes(store) == damaged


async def test_uploads_that_the_log_refers_to(tmp_path: Path, autojump_clock: MockClock) -> None:
    """The recovery completes what it needs; what it does not need is aborted afterwards."""
    store = MemoryStorage()
    content = bytes(range(256)) * (12 * MIB // 256)
    options = TreeOptions(logged=True)
    mortal = MortalStorage(store)
    async with (
        open_notes(mortal, "dead", Writer.OWNER) as notes,
        open_tree(NotingStorage(mortal, notes), tmp_path / "dead", options) as tree,
    ):
        for name in ("needed", "removed"):
            handle = await tree.create(name)
            await tree.write(handle, 0, content)
            await tree.filesystem.fsync(handle)
        await tree.unlink("removed")
        await tree.log.commit()
        assert await _keys(store) == ["needed", "removed"]
        mortal.die()
    orphans = await find_orphans(store, Writer.OWNER, known_dead=())
    async with open_tree(store, tmp_path / "heir", options) as heir:
        await abort_orphans(store, orphans)
        assert await heir.read_file("needed") == content
        await heir.publish_all()
    assert await _keys(store) == []


async def test_what_is_left_of_trials_is_removed(autojump_clock: MockClock) -> None:
    """Not those of a mount that is trying at the moment, nor what is elsewhere."""
    store = MemoryStorage()
    left, trying = f"{TRIALS_PREFIX}left/object", f"{TRIALS_PREFIX}trying/object"
    for key in ("file", left):
        await store.put(key, b"")
        await store.create_multipart(key)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(clear_trials, store)
        await trio.sleep(TRIAL_SECONDS - 1)
        await store.create_multipart(trying)
        await store.put(trying, b"")
    assert await _keys(store) == [trying, "file"]
    assert sorted(await stored(store, ours=True)) == [trying, "file"]


async def test_a_trial_that_may_not_be_aborted_is_all_that_is_left(autojump_clock: MockClock) -> None:
    store = MemoryStorage()
    denied, other = f"{TRIALS_PREFIX}denied", f"{TRIALS_PREFIX}other"
    for key in (denied, other):
        await store.put(key, b"")
        await store.create_multipart(key)
    faulty = FaultyStorage(store)
    faulty.fail(AccessDenied, verb=Verb.ABORT, key=denied)
    await clear_trials(faulty)
    assert await _keys(store) == [denied]
    assert await stored(store, ours=True) == {}


async def test_a_store_that_lists_no_uploads_keeps_trials(autojump_clock: MockClock) -> None:
    faulty = FaultyStorage(MemoryStorage())
    await faulty.put(f"{TRIALS_PREFIX}left/object", b"")
    faulty.fail(AccessDenied, verb=Verb.LIST_MULTIPART_UPLOADS, times=2)
    await clear_trials(faulty)
    assert len(await stored(faulty, ours=True)) == 1
