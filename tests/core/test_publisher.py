"""The publisher over a whole tree: when it publishes, what it costs, and what it promises about failures."""

from __future__ import annotations

import math
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from random import Random

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from backends.base import MIB, NO_METADATA, OVERWRITE, Data, Metadata, ObjectStorage, PutMode
from backends.errors import AccessDenied, QuotaExceeded, Unavailable
from backends.intercepted import InterceptedStorage, Request, T, Verb
from backends.memory import MemoryStorage
from backends.retrying import RetryingStorage
from fusefs import publisher
from fusefs.attribute_changes import AttributeChanges
from fusefs.burst import MAX_SECONDS, QUIET_SECONDS
from fusefs.errors import StaleFile
from fusefs.filesystem import RENAME_EXCHANGE
from fusefs.object_writer import CONFLICTS_PREFIX
from fusefs.publish_queue import RETRY_SECONDS
from tests.core.small_parts import PART, SmallPartsStorage, tree_options
from tests.core.test_bulk_publication import DistantStorage
from tests.core.test_log_crash import BareMarkers
from tests.core.tree import Tree, TreeOptions, open_tree, stored, stored_metadata
from tests.support.faulty import FaultyStorage


async def test_what_was_written_is_an_object_of_the_same_bytes(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    storage = MemoryStorage()
    async with open_tree(storage, tmp_path) as tree:
        await tree.mkdir("d")
        await tree.write_file("d/a", b"bytes")
        await tree.publish_all()
        assert await stored(storage) == {"d/a": b"bytes", "d/": b""}
        assert (await stored_metadata(storage))["d/a"]["mode"] == str(0o100644)
        assert await tree.read_file("d/a") == b"bytes"
        assert await tree.names() == ["d"]


async def test_fsync_waits_for_what_was_written_before_it_while_an_older_state_goes_up(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    faulty = FaultyStorage(MemoryStorage())
    async with open_tree(faulty, tmp_path) as tree, trio.open_nursery() as nursery:
        handle = await tree.create("file")
        await tree.write(handle, 0, b"one")
        gate = faulty.hold(Verb.PUT)
        nursery.start_soon(tree.filesystem.fsync, handle)
        await gate.reached.wait()
        await tree.write(handle, 0, b"two")
        done = trio.Event()

        async def fsync() -> None:
            await tree.filesystem.fsync(handle)
            done.set()

        nursery.start_soon(fsync)
        await wait_all_tasks_blocked()
        assert not done.is_set()
        gate.open()
        await done.wait()
        assert await stored(faulty) == {"file": b"two"}
        calls = len(faulty.calls)
        await tree.filesystem.fsync(handle)
        assert len(faulty.calls) == calls, "a clean fsync costs no request"
        await tree.close(handle)


async def test_a_failure_is_returned_until_it_is_made_good(autojump_clock: MockClock, tmp_path: Path) -> None:
    faulty = FaultyStorage(MemoryStorage())
    async with open_tree(faulty, tmp_path) as tree:
        handle = await tree.create("file")
        await tree.write(handle, 0, b"bytes")
        faulty.fail(QuotaExceeded, times=math.inf)
        for _ in range(3):
            with pytest.raises(QuotaExceeded):
                await tree.filesystem.fsync(handle)
        with pytest.raises(QuotaExceeded):
            await tree.filesystem.flush(handle)
        with pytest.raises(QuotaExceeded):
            await tree.publish_all()
        faulty.heal()
        await tree.filesystem.fsync(handle)
        await tree.filesystem.flush(handle)
        assert await stored(faulty) == {"file": b"bytes"}
        await tree.close(handle)


async def test_a_failed_publication_is_tried_again_without_being_asked(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    faulty = FaultyStorage(MemoryStorage())
    async with open_tree(faulty, tmp_path) as tree:
        faulty.fail(QuotaExceeded, verb=Verb.PUT, times=2)
        await tree.write_file("file", b"bytes")
        await trio.sleep(2 * RETRY_SECONDS + 1)
        assert await stored(faulty) == {"file": b"bytes"}
        assert len(faulty.calls_of(Verb.PUT)) == 3


async def test_a_file_that_is_rewritten_all_the_time_is_not_put_every_time(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """A thousand times truncated, written and closed within five times `publish_delay`."""
    faulty = FaultyStorage(MemoryStorage())
    async with open_tree(faulty, tmp_path) as tree:
        for stamp in range(1_000):
            await tree.write_file("file", str(stamp).encode())
            await trio.sleep(0.005)
        await tree.publish_all()
        assert await stored(faulty) == {"file": b"999"}
        assert len(faulty.calls_of(Verb.PUT)) <= 8


async def test_a_file_that_stays_open_is_published_at_the_interval(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    storage = MemoryStorage()
    async with open_tree(storage, tmp_path) as tree:
        handle = await tree.create("file")
        await tree.write(handle, 0, b"bytes")
        await trio.sleep(29)
        assert await stored(storage) == {}
        await trio.sleep(2)
        assert await stored(storage) == {"file": b"bytes"}
        await tree.close(handle)


async def test_what_is_gone_before_its_turn_costs_nothing(autojump_clock: MockClock, tmp_path: Path) -> None:
    faulty = FaultyStorage(MemoryStorage())
    async with open_tree(faulty, tmp_path) as tree:
        await tree.write_file("a", b"bytes")
        await tree.rename("a", "b")
        await tree.unlink("b")
        await tree.write_file("temporary", b"new")
        await tree.rename("temporary", "final")
        await tree.publish_all()
        changes = [(r.verb, r.key) for r in faulty.calls if r.verb not in (Verb.HEAD, Verb.LIST_PREFIX)]
        assert changes == [(Verb.PUT, "final")]


# Somebody else was there


async def _conflicts(storage: ObjectStorage) -> list[bytes]:
    objects = await stored(storage, ours=True)
    assert not [key for key in objects if key.startswith((".fusefs/moving/", ".fusefs/orphans/"))]
    return [data for key, data in objects.items() if key.startswith(CONFLICTS_PREFIX)]


async def _expect_stale(tree: Tree, handle: int) -> None:
    with pytest.raises(StaleFile):
        await tree.filesystem.fsync(handle)
    with pytest.raises(StaleFile):
        await tree.write(handle, 0, b"too late")
    with pytest.raises(StaleFile):
        await tree.filesystem.flush(handle)
    await tree.filesystem.release(handle)


@pytest.mark.parametrize("theirs", [b"theirs", None], ids=["changed", "removed"])
async def test_both_versions_are_kept_when_somebody_else_changed_a_file(
    theirs: bytes | None, autojump_clock: MockClock, tmp_path: Path
) -> None:
    """Theirs stays under the name, ours is under `.fusefs/conflicts/`, the caller learns of it; nothing else waits.

    Nothing is deleted: not every store would look whose object it is by then.
    """
    storage = MemoryStorage()
    await storage.put("file", b"base")
    async with open_tree(faulty := FaultyStorage(storage), tmp_path) as tree:
        handle = await tree.open("file")
        await tree.write(handle, 0, b"our")
        await (storage.delete("file") if theirs is None else storage.put("file", theirs))
        await tree.write_file("other", b"bytes")
        await _expect_stale(tree, handle)
        await tree.publish_all()
        assert await stored(storage) == {"other": b"bytes"} | ({} if theirs is None else {"file": theirs})
        # The last byte was only in the base, which is gone.
        assert await _conflicts(storage) == [b"our\0"]
        assert faulty.calls_of(Verb.DELETE) == []
        if theirs is not None:
            assert await tree.read_file("file") == theirs
        assert await tree.names() == (["other"] if theirs is None else ["file", "other"])


async def test_both_are_kept_when_somebody_else_made_the_file_that_we_make(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    storage = MemoryStorage()
    async with open_tree(storage, tmp_path) as tree:
        handle = await tree.create("file")
        await tree.write(handle, 0, b"ours")
        await storage.put("file", b"theirs")
        await _expect_stale(tree, handle)
        assert await stored(storage) == {"file": b"theirs"}
        assert await _conflicts(storage) == [b"ours"]
        assert await tree.read_file("file") == b"theirs"


async def test_a_clean_file_is_kept_when_somebody_else_took_its_new_name(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """Its bytes are in the bucket alone, under the old name, which has to go."""
    storage = MemoryStorage()
    await storage.put("old", b"ours")
    async with open_tree(storage, tmp_path) as tree:
        await tree.rename("old", "new")
        await storage.put("new", b"theirs")
        await tree.publish_all()
        assert await stored(storage) == {"new": b"theirs"}
        assert await _conflicts(storage) == [b"ours"]
        assert await tree.read_file("new") == b"theirs"


async def test_a_file_that_somebody_else_changed_before_its_rename_was_published(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """The change stays under the old name; there was nothing of ours in the file."""
    storage = MemoryStorage()
    await storage.put("old", b"base")
    async with open_tree(storage, tmp_path) as tree:
        await tree.rename("old", "new")
        await storage.put("old", b"theirs")
        await tree.publish_all()
        assert await stored(storage) == {"old": b"theirs"}
        assert await _conflicts(storage) == []


@pytest.mark.parametrize("change", ["chmod", "rename", "unlink"])
@pytest.mark.parametrize("theirs", [b"theirs", None], ids=["changed", "removed"])
async def test_who_still_reads_a_file_that_somebody_else_changed_gets_no_zeros(
    theirs: bytes | None, change: str, autojump_clock: MockClock, tmp_path: Path
) -> None:
    """Ours had no bytes of its own, so none are kept: what was not read before is nowhere any more."""
    storage = FaultyStorage(MemoryStorage())
    body = Random(0).randbytes(3 * MIB)
    await storage.put("file", body)
    async with open_tree(storage, tmp_path) as tree:
        handle = await tree.open("file", os.O_RDONLY)
        assert await tree.filesystem.read(handle, 0, 10) == body[:10]
        gate = storage.hold(Verb.COPY)
        if change == "rename":
            await tree.rename("file", "other")
        else:
            mode = AttributeChanges(mode=0o600)
            await tree.filesystem.setattr((await tree.find("file")).number, mode)
        await gate.reached.wait()
        if change == "unlink":
            await tree.unlink("file")
        await (storage.delete("file") if theirs is None else storage.put("file", theirs))
        gate.open()
        await tree.publish_all()
        assert await tree.filesystem.read(handle, 0, 10) == body[:10]
        with pytest.raises(StaleFile):
            await tree.filesystem.read(handle, 2 * MIB, 10)
        await tree.filesystem.release(handle)
        assert await stored(storage) == ({} if theirs is None else {"file": theirs})


async def test_a_directory_that_somebody_else_made_too_is_shared(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """A marker holds nothing that could be lost; what we put into the directory is published into it."""
    storage = MemoryStorage()
    async with open_tree(storage, tmp_path) as tree:
        await tree.mkdir("d")
        await tree.write_file("d/ours", b"ours")
        await storage.put("d/", b"", metadata={"mode": "16877"})
        await storage.put("d/theirs", b"theirs")
        await tree.publish_all()
        assert await stored(storage) == {"d/": b"", "d/ours": b"ours", "d/theirs": b"theirs"}
        assert await tree.read_file("d/ours") == b"ours"
        assert await _conflicts(storage) == []


async def test_a_conflict_whose_copy_cannot_be_stored_is_tried_again(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    faulty = FaultyStorage(MemoryStorage())
    async with open_tree(faulty, tmp_path) as tree:
        handle = await tree.create("file")
        await tree.write(handle, 0, b"ours")
        await faulty.put("file", b"theirs")
        faulty.fail(QuotaExceeded, verb=Verb.PUT, call=2)
        with pytest.raises(QuotaExceeded):
            await tree.filesystem.fsync(handle)
        assert await _conflicts(faulty) == []
        await _expect_stale(tree, handle)
        assert await _conflicts(faulty) == [b"ours"]
        assert await stored(faulty) == {"file": b"theirs"}


async def test_the_key_of_a_kept_version_fits_whatever_the_name(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    storage = MemoryStorage()
    name = "/".join(["é" * 100] * 5)[:508]
    await storage.put(name, b"base")
    async with open_tree(storage, tmp_path) as tree:
        handle = await tree.open(name)
        await tree.write(handle, 0, b"ours")
        await storage.put(name, b"theirs")
        await _expect_stale(tree, handle)
        assert await _conflicts(storage) == [b"ours"]


async def test_our_own_upload_whose_answer_never_came_is_no_conflict(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """The store took the object and the outage that swallowed the answer outlasted every repetition."""
    faulty = FaultyStorage(MemoryStorage())
    await faulty.put("changed", b"base and more")
    async with open_tree(faulty, tmp_path) as tree:
        for name, flags in (("new", os.O_CREAT), ("changed", 0)):
            handle = await (tree.create(name) if flags else tree.open(name))
            await tree.write(handle, 0, b"one")
            faulty.fail(Unavailable, verb=Verb.PUT, answer_lost=True)
            with pytest.raises(Unavailable):
                await tree.filesystem.fsync(handle)
            await tree.write(handle, 3, b"two")
            await tree.filesystem.fsync(handle)
            await tree.close(handle)
        assert await stored(faulty) == {"new": b"onetwo", "changed": b"onetwond more"}
        assert await _conflicts(faulty) == []


@pytest.mark.parametrize("kind", ["copy", "symlink"])
@pytest.mark.parametrize("begins", ["before", "after"])
async def test_who_has_the_name_of_an_object_that_had_no_answer_does_not_take_it_for_somebody_elses(
    begins: str, kind: str, autojump_clock: MockClock, tmp_path: Path, small_parts: None
) -> None:
    """Whoever it belongs to has another name; also where a large file begins to go up before its answer is missed."""
    faulty = FaultyStorage(SmallPartsStorage())
    await faulty.put("a", b"target")
    body = Random(0).randbytes(3 * PART)
    async with open_tree(faulty, tmp_path, tree_options(logged=True)) as tree:
        verb = Verb.COPY if kind == "copy" else Verb.PUT
        gate = faulty.hold(verb, key="b")
        faulty.fail(Unavailable, verb=verb, key="b", answer_lost=True)
        await (tree.rename("a", "b") if kind == "copy" else tree.symlink("b", b"target"))
        await gate.reached.wait()
        if begins == "after":
            gate.open()
            await trio.sleep(1)
        await tree.mkdir("new")
        await tree.rename("b", "new/x")
        await tree.write_file("b", body)
        if begins == "before":
            await trio.sleep(1)
            gate.open()
            await trio.sleep(1)
        await tree.publish_all()
    objects = await stored(faulty)
    assert (objects["b"], objects["new/x"]) == (body, b"target")
    assert await _conflicts(faulty) == []


@pytest.mark.parametrize("make", [SmallPartsStorage, BareMarkers], ids=["with metadata", "without"])
@pytest.mark.parametrize("is_repeated", [True, False], ids=["a request that is repeated", "one that fails"])
@pytest.mark.parametrize("is_renamed", [True, False], ids=["renamed", "removed"])
async def test_a_marker_that_had_no_answer_is_no_directory_of_somebody_else(
    is_renamed: bool,
    is_repeated: bool,
    make: type[SmallPartsStorage],
    autojump_clock: MockClock,
    tmp_path: Path,
    small_parts: None,
) -> None:
    """Also where the store keeps no metadata of markers, by which others are recognised."""
    bucket = make()
    faulty = FaultyStorage(bucket)
    faulty.fail(Unavailable, verb=Verb.PUT, key="old/", answer_lost=True)
    storage = RetryingStorage(faulty, rng=Random(0)) if is_repeated else faulty
    async with open_tree(storage, tmp_path, tree_options(logged=True)) as tree:
        gate = faulty.hold(Verb.PUT, key="old/")
        await tree.mkdir("old")
        await gate.reached.wait()
        await (tree.rename("old", "new") if is_renamed else tree.rmdir("old"))
        gate.open()
        await trio.sleep(2 * RETRY_SECONDS)
        await tree.publish_all()
        assert await tree.names() == (["new"] if is_renamed else [])
    assert await stored(bucket) == ({"new/": b""} if is_renamed else {})


@pytest.mark.parametrize("based", [False, True], ids=["new", "changed"])
async def test_what_is_there_after_an_attempt_without_an_answer_may_be_somebody_elses(
    based: bool, autojump_clock: MockClock, tmp_path: Path
) -> None:
    """It is not taken for ours, and overwritten: an object of ours has the metadata of the attempt."""
    faulty = FaultyStorage(MemoryStorage())
    if based:
        await faulty.put("file", b"base")
    async with open_tree(faulty, tmp_path) as tree:
        handle = await (tree.open("file") if based else tree.create("file"))
        await tree.write(handle, 0, b"ours")
        faulty.fail(Unavailable, verb=Verb.PUT)
        with pytest.raises(Unavailable):
            await tree.filesystem.fsync(handle)
        await faulty.put("file", b"theirs")
        await _expect_stale(tree, handle)
        assert await stored(faulty) == {"file": b"theirs"}
        assert await _conflicts(faulty) == [b"ours"]


@pytest.mark.parametrize("based", [False, True], ids=["stream", "patch"])
async def test_our_own_parts_whose_completion_was_never_answered_are_no_conflict(
    based: bool, autojump_clock: MockClock, tmp_path: Path, small_parts: None
) -> None:
    faulty = FaultyStorage(SmallPartsStorage())
    body = Random(0).randbytes(10 * PART)
    if based:
        await faulty.put("file", body)
    async with open_tree(faulty, tmp_path, tree_options()) as tree:
        handle = await (tree.open("file") if based else tree.create("file"))
        await tree.write(handle, 0, body[:-5])
        await wait_all_tasks_blocked()
        await tree.write(handle, 100, b"one")
        faulty.fail(Unavailable, verb=Verb.COMPLETE, answer_lost=True)
        with pytest.raises(Unavailable):
            await tree.filesystem.fsync(handle)
        await tree.write(handle, 5 * PART, b"two")
        await tree.rename("file", "renamed")
        await tree.filesystem.fsync(handle)
        await tree.close(handle)
        await tree.publish_all()
        expected = body[:100] + b"one" + body[103 : 5 * PART] + b"two" + body[5 * PART + 3 :]
        assert await stored(faulty, ours=True) == {"renamed": expected if based else expected[:-5]}


@pytest.mark.parametrize("removed_first", [False, True])
async def test_no_object_is_left_of_a_file_that_was_removed_when_its_upload_had_no_answer(
    removed_first: bool, autojump_clock: MockClock, tmp_path: Path
) -> None:
    faulty = FaultyStorage(MemoryStorage())
    async with open_tree(faulty, tmp_path) as tree, trio.open_nursery() as nursery:
        await tree.write_file("file", b"bytes")
        faulty.fail(Unavailable, verb=Verb.PUT, answer_lost=True)
        gate = faulty.hold(Verb.PUT)
        if not removed_first:
            gate.open()
            with pytest.raises(Unavailable):
                await tree.publish_all()
            await tree.unlink("file")
        else:
            nursery.start_soon(tree.publish_all)
            await gate.reached.wait()
            await tree.unlink("file")
            gate.open()
        await tree.write_file("file", b"again")
        await tree.publish_all()
        assert await stored(faulty, ours=True) == {"file": b"again"}
        await tree.unlink("file")
        await tree.publish_all()
        assert await stored(faulty, ours=True) == {}


# Keys that change hands


async def test_a_swap_is_published_while_a_long_upload_goes_on(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """The circle of waits is broken at once, and nobody spins meanwhile."""
    faulty = FaultyStorage(MemoryStorage())
    await faulty.put("a", b"was a")
    await faulty.put("b", b"was b")
    async with open_tree(faulty, tmp_path) as tree:
        gate = faulty.hold(Verb.PUT)
        await tree.write_file("long", b"upload")
        await gate.reached.wait()
        await tree.rename("a", "b", RENAME_EXCHANGE)
        handle = await tree.open("a")
        with trio.fail_after(10):
            await tree.filesystem.fsync(handle)
        await trio.sleep(5)
        assert await stored(faulty) == {"a": b"was b", "b": b"was a"}
        await tree.close(handle)
        gate.open()
        await tree.publish_all()
        assert await stored(faulty, ours=True) == {"a": b"was b", "b": b"was a", "long": b"upload"}


async def test_a_failure_reaches_those_who_wait_for_the_key(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """`a` cannot leave its name, so `b` cannot take it, and says why; when `a` can, one call settles both."""
    faulty = FaultyStorage(MemoryStorage())
    await faulty.put("a", b"was a")
    async with open_tree(faulty, tmp_path) as tree:
        await tree.rename("a", "c")
        handle = await tree.create("a")
        await tree.write(handle, 0, b"new a")
        faulty.fail(QuotaExceeded, verb=Verb.COPY, times=math.inf)
        with trio.fail_after(10), pytest.raises(QuotaExceeded):
            await tree.filesystem.fsync(handle)
        assert await stored(faulty) == {"a": b"was a"}
        faulty.heal()
        with trio.fail_after(10):
            await tree.filesystem.fsync(handle)
        assert await stored(faulty) == {"a": b"new a", "c": b"was a"}
        await tree.close(handle)
        await tree.publish_all()


@pytest.mark.parametrize("names", ["ab", "abc"])
async def test_a_detour_that_is_refused_is_asked_for_again_after_a_while(
    names: str, autojump_clock: MockClock, tmp_path: Path
) -> None:
    """And not at once, by the next one in the circle."""
    faulty = FaultyStorage(MemoryStorage())
    for name in names:
        await faulty.put(name, name.encode())
    async with open_tree(DistantStorage(faulty), tmp_path) as tree:
        faulty.fail(QuotaExceeded, verb=Verb.COPY, times=math.inf)
        for name in names[1:]:
            await tree.rename(names[0], name, RENAME_EXCHANGE)
        await trio.sleep(2 * RETRY_SECONDS)
        assert 1 < len(faulty.calls_of(Verb.COPY)) < 10
        faulty.heal()
        await tree.publish_all()
    before = names[-1] + names[:-1]
    assert await stored(faulty, ours=True) == {
        to: name.encode() for to, name in zip(names, before, strict=True)
    }


async def test_a_file_that_is_replaced_while_it_goes_up_is_never_stored_as_zeros(
    autojump_clock: MockClock, tmp_path: Path, small_parts: None
) -> None:
    """Its bytes are not thrown away before its upload has ended, so that the name always has a whole file."""
    faulty = FaultyStorage(SmallPartsStorage())
    old, new = Random(0).randbytes(3 * PART), Random(1).randbytes(PART)
    async with open_tree(faulty, tmp_path, tree_options()) as tree, trio.open_nursery() as nursery:
        await tree.write_file("file", bytes(20 * PART))
        await tree.publish_all()
        handle = await tree.open("file")
        await tree.write(handle, 10 * PART, old)
        expected = bytes(10 * PART) + old + bytes(7 * PART)
        gates = [faulty.hold(verb) for verb in (Verb.UPLOAD_PART, Verb.COMPLETE)]
        nursery.start_soon(tree.filesystem.fsync, handle)
        await gates[0].reached.wait()
        await tree.close(handle)
        await tree.write_file("temporary", new)
        await tree.rename("temporary", "file")
        gates[0].open()
        await gates[1].reached.wait()
        gates[1].open()
        while (now := (await stored(faulty))["file"]) != new:
            assert now in (bytes(20 * PART), expected)
            await trio.sleep(0.001)
        await tree.publish_all()
        assert await stored(faulty, ours=True) == {"file": new}


async def test_what_cannot_be_deleted_is_told_and_tried_again(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    faulty = FaultyStorage(MemoryStorage())
    await faulty.put("file", b"bytes")
    async with open_tree(faulty, tmp_path) as tree:
        faulty.fail(AccessDenied, verb=Verb.DELETE, times=math.inf)
        await tree.unlink("file")
        for _ in range(2):
            with pytest.raises(AccessDenied):
                await tree.publish_all()
        assert tree.publisher.statistics().leftovers == 1
        faulty.heal()
        await tree.publish_all()
        assert await stored(faulty) == {}


async def test_what_somebody_else_changed_is_not_deleted(autojump_clock: MockClock, tmp_path: Path) -> None:
    storage = MemoryStorage()
    await storage.put("file", b"bytes")
    async with open_tree(storage, tmp_path) as tree:
        await tree.find("file")
        await storage.put("file", b"theirs")
        await tree.unlink("file")
        await tree.publish_all()
        assert await stored(storage) == {"file": b"theirs"}


@pytest.mark.parametrize("verb", [Verb.PUT, Verb.COPY, Verb.DELETE])
async def test_a_defect_costs_one_attempt_and_not_the_mount(
    verb: Verb, autojump_clock: MockClock, tmp_path: Path
) -> None:
    """An exception of a class that no store may raise is a failure like others."""
    faulty = FaultyStorage(MemoryStorage())
    await faulty.put("old", b"bytes")
    async with open_tree(faulty, tmp_path) as tree:
        faulty.fail(RuntimeError, verb=verb)
        await tree.rename("old", "new")
        await tree.write_file("file", b"bytes")
        with pytest.raises(RuntimeError):
            await tree.publish_all()
        await tree.publish_all()
        assert await stored(faulty) == {"file": b"bytes", "new": b"bytes"}


async def test_an_unlinked_file_stays_readable_until_its_last_close(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """The name is gone from the bucket, the content waits under `.fusefs/orphans/`; the name may be used again."""
    storage = MemoryStorage()
    await storage.put("file", b"first")
    async with open_tree(storage, tmp_path) as tree:
        handle = await tree.open("file", os.O_RDONLY)
        await tree.unlink("file")
        await tree.write_file("file", b"second")
        await tree.publish_all()
        assert await stored(storage) == {"file": b"second"}
        assert await tree.filesystem.read(handle, 0, 10) == b"first"
        await tree.filesystem.release(handle)
        await tree.publish_all()
        assert await stored(storage, ours=True) == {"file": b"second"}


async def test_publish_all_ends_while_files_are_written_all_the_time(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with open_tree(MemoryStorage(), tmp_path) as tree, trio.open_nursery() as nursery:
        handle = await tree.create("file")

        async def hammer() -> None:
            while True:
                await tree.write(handle, 0, b"bytes")
                await tree.write_file("other", b"bytes")
                await trio.sleep(0.001)

        nursery.start_soon(hammer)
        await trio.sleep(1)
        await tree.publish_all()
        nursery.cancel_scope.cancel()


async def test_publish_all_ends_while_files_are_removed_all_the_time(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """Of what is left over it deletes what there is when the rest is published."""
    storage = MemoryStorage()
    names = [f"{each}" for each in range(500)]
    for name in names:
        await storage.put(name, b"body")
    async with open_tree(DistantStorage(storage), tmp_path) as tree, trio.open_nursery() as nursery:
        for name in names:
            await tree.find(name)

        async def remove() -> None:
            for name in names:
                await tree.unlink(name)
                await trio.sleep(0.002)

        nursery.start_soon(remove)
        await trio.sleep(0.2)
        left = set(await tree.names())
        await tree.publish_all()
        objects = await stored(storage)
        assert left.issuperset(objects)
        assert len(objects) > 100
        nursery.cancel_scope.cancel()


async def test_nothing_is_kept_of_what_was_published(autojump_clock: MockClock, tmp_path: Path) -> None:
    """Memory does not grow with the number of changes."""
    async with open_tree(MemoryStorage(), tmp_path) as tree:
        for number in range(200):
            await tree.write_file(f"file-{number}", b"bytes")
            await tree.rename(f"file-{number}", "same")
            await tree.rename("same", "other")
        await tree.publish_all()
        await tree.unlink("other")
        await tree.publish_all()
        await trio.sleep(60)
        queue = tree.publisher._queue
        for kept in (
            queue,
            queue.due,
            queue.parked,
            queue.running,
            queue.waiting_below,
            queue.waiting_for_key,
            queue.targets,
            queue.ready,
        ):
            assert not kept
        assert queue._timetable.next_due() == math.inf
        assert not tree.placement._owners
        assert not tree.placement._leftovers
        assert len(tree.inodes) == 1
        assert tree.sources.budget.total == 0


async def test_a_file_that_is_rewritten_is_not_published_half_way(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """A close makes a file due; if it is opened again and cut before its turn, its turn is after the next close."""
    storage = MemoryStorage()
    async with open_tree(storage, tmp_path) as tree:
        await tree.write_file("file", b"one")
        await tree.publish_all()
        await tree.write_file("file", b"two")
        handle = await tree.open("file", os.O_WRONLY | os.O_TRUNC)
        await trio.sleep(10)
        assert await stored(storage) == {"file": b"one"}
        await tree.write(handle, 0, b"three")
        await tree.close(handle)
        await trio.sleep(2)
        assert await stored(storage) == {"file": b"three"}


async def test_a_file_that_is_rewritten_for_long_is_published(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """What is rewritten again and again is published after `publish_interval` all the same."""
    storage = MemoryStorage()
    async with open_tree(storage, tmp_path) as tree:
        handle = await tree.create("file")
        for second in range(40):
            await tree.write(handle, 0, b"%02d" % second)
            await trio.sleep(1)
        assert int((await stored(storage))["file"]) >= 29


@pytest.mark.parametrize("way", ["removed", "moved"])
async def test_a_name_is_taken_after_the_directory_that_had_it_has_left(
    way: str, tmp_path: Path, autojump_clock: MockClock
) -> None:
    """A store that keeps a file system below has no object `x` while anything is under `x/`."""
    storage = FaultyStorage(MemoryStorage())
    async with open_tree(storage, tmp_path) as tree:
        await tree.mkdir("x")
        await tree.write_file("x/file", b"in the directory")
        await tree.publish_all()
        if way == "moved":
            await tree.rename("x", "elsewhere")
        else:
            await tree.unlink("x/file")
            await tree.rmdir("x")
        await tree.write_file("x", b"a file")
        storage.calls.clear()
        await tree.publish_all()
        order = [request.key for request in storage.calls if request.verb in (Verb.PUT, Verb.DELETE)]
        assert order.index("x") > max(order.index("x/"), order.index("x/file"))
        assert (await stored(storage))["x"] == b"a file"


async def test_a_directory_that_cannot_leave_does_not_keep_its_name(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """Where its marker cannot be deleted, the file of that name is published all the same: S3 has room for both."""
    storage = FaultyStorage(MemoryStorage())
    async with open_tree(storage, tmp_path) as tree:
        await tree.mkdir("x")
        await tree.publish_all()
        storage.fail(AccessDenied, verb=Verb.DELETE, times=1_000)
        await tree.rmdir("x")
        await tree.write_file("x", b"a file")
        with pytest.raises(AccessDenied), trio.fail_after(600):
            await tree.publisher.publish_all()
        assert (await stored(storage))["x"] == b"a file"


async def test_a_marker_waits_for_what_is_on_its_way_below_it(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """Else a store that keeps a tree makes the directory anew for the object, and nobody removes it."""
    storage = FaultyStorage(MemoryStorage())
    async with open_tree(storage, tmp_path) as tree:
        await tree.mkdir("d")
        await tree.publish_all()
        late = storage.hold(Verb.PUT, key="d/file")
        await tree.write_file("d/file", b"bytes")
        await late.reached.wait()
        await tree.rename("d", "e")
        await trio.sleep(10)
        late.open()
        await tree.publish_all()
        assert [call.key for call in storage.calls_of(Verb.DELETE)] == ["d/file", "d/"]
        assert await stored(storage) == {"e/": b"", "e/file": b"bytes"}


@pytest.mark.parametrize("logged", [False, True])
async def test_what_changes_below_a_directory_just_after_it_was_renamed(
    logged: bool, tmp_path: Path, autojump_clock: MockClock
) -> None:
    """Before it was noted of everything below that it has another path."""
    storage = MemoryStorage()
    for key in ("d/away", "d/e/far", "d/e/f", "d/gone", "d/stays", "d/written"):
        await storage.put(key, key.encode())
    async with open_tree(storage, tmp_path, TreeOptions(logged=logged)) as tree:
        await tree.read_file("d/e/f")
        await tree.rename("d", "new")
        await tree.unlink("new/gone")
        await tree.rename("new/away", "away")
        await tree.write_file("new/written", b"again")
        await tree.mkdir("d")
        await tree.write_file("d/stays", b"another")
        await tree.rename("new/e", "d/e")
        await tree.rename("d/e/far", "d/far")
        await tree.rename("new", "newer")
        await tree.publish_all()
        expected = {
            "away": b"d/away",
            "d/": b"",
            "d/e/": b"",
            "d/e/f": b"d/e/f",
            "d/far": b"d/e/far",
            "d/stays": b"another",
            "newer/": b"",
            "newer/stays": b"d/stays",
            "newer/written": b"again",
        }
        assert await stored(storage) == expected


async def test_a_directory_that_was_just_renamed_is_not_taken_for_an_empty_one(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """A listing shows nothing under the new name yet."""
    storage = MemoryStorage()
    await storage.put("d/a", b"bytes")
    async with open_tree(storage, tmp_path, TreeOptions(revalidate_seconds=0)) as tree:
        await tree.rename("d", "new")
        assert await tree.names("new") == ["a"]
        await tree.publish_all()
        assert await tree.read_file("new/a") == b"bytes"
    assert await stored(storage) == {"new/": b"", "new/a": b"bytes"}


class TreeStorage(MemoryStorage):
    """As a store that keeps a file system below: it takes nothing below an object, and no object over a directory."""

    async def put(
        self, key: str, data: Data, *, metadata: Metadata = NO_METADATA, mode: PutMode = OVERWRITE
    ) -> str:
        self._check(key)
        return await super().put(key, data, metadata=metadata, mode=mode)

    async def copy(
        self,
        source: str,
        target: str,
        *,
        if_match: str | None = None,
        metadata: Metadata | None = None,
        mode: PutMode = OVERWRITE,
    ) -> str:
        self._check(target)
        return await super().copy(source, target, if_match=if_match, metadata=metadata, mode=mode)

    def _check(self, key: str) -> None:
        above = [key[:end] for end, letter in enumerate(key) if letter == "/"]
        taken = [other for other in self._objects if other in above or other.startswith(f"{key}/")]
        assert not taken, f"{key!r} beside {taken}"


@pytest.mark.parametrize("kind", ["file", "link"])
async def test_a_file_and_a_directory_change_places(
    tmp_path: Path, autojump_clock: MockClock, kind: str
) -> None:
    """Each waits for the other's name, where a store does not take both; and never is one of them under neither."""
    storage = TreeStorage()
    async with open_tree(storage, tmp_path) as tree:
        await tree.mkdir("d")
        await tree.mkdir("d/deep")
        await tree.write_file("d/deep/child", b"child")
        await (tree.write_file("x", b"bytes") if kind == "file" else tree.symlink("x", b"bytes"))
        await tree.publish_all()
        await tree.rename("x", "d", RENAME_EXCHANGE)
        await tree.publish_all()
        assert await stored(storage, ours=True) == {
            "d": b"bytes",
            "x/": b"",
            "x/deep/": b"",
            "x/deep/child": b"child",
        }


async def test_a_directory_takes_the_name_that_a_file_has_just_left(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    storage = TreeStorage()
    async with open_tree(storage, tmp_path) as tree:
        await tree.mkdir("d")
        await tree.write_file("d/child", b"child")
        await tree.write_file("x", b"bytes")
        await tree.publish_all()
        await tree.rename("x", "y")
        await tree.rename("d", "x")
        await tree.publish_all()
        assert await stored(storage) == {"y": b"bytes", "x/": b"", "x/child": b"child"}
        await tree.unlink("y")
        await tree.rename("x", "y")
        await tree.publish_all()
        assert await stored(storage) == {"y/": b"", "y/child": b"child"}


async def test_a_file_moves_into_a_directory_that_has_its_name(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """Its own object is in its way."""
    storage = TreeStorage()
    async with open_tree(storage, tmp_path) as tree:
        await tree.write_file("x", b"bytes")
        await tree.publish_all()
        await tree.rename("x", "y")
        await tree.mkdir("x")
        await tree.rename("y", "x/y")
        await tree.publish_all()
        assert await stored(storage, ours=True) == {"x/": b"", "x/y": b"bytes"}


async def test_a_directory_waits_for_an_upload_to_the_name_that_it_gets(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    faulty = FaultyStorage(TreeStorage())
    async with open_tree(faulty, tmp_path) as tree, trio.open_nursery() as nursery:
        gate = faulty.hold(Verb.PUT, key="x")
        await tree.write_file("x", b"bytes")
        nursery.start_soon(tree.publish_all)
        await gate.reached.wait()
        await tree.rename("x", "y")
        await tree.mkdir("x")
        await tree.write_file("x/child", b"child")
        await trio.sleep(10)
        gate.open()
        await tree.publish_all()
        assert await stored(faulty, ours=True) == {"x/": b"", "x/child": b"child", "y": b"bytes"}


# New directories: some stores lose one of `d/` and `d/file` when both are put at once


async def test_what_lies_in_a_new_directory_waits_for_its_marker(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    faulty = FaultyStorage(MemoryStorage())
    async with open_tree(faulty, tmp_path) as tree:
        gate = faulty.hold(Verb.PUT, key="d/")
        await tree.mkdir("d")
        await tree.mkdir("d/e")
        await tree.write_file("d/e/file", b"bytes")
        await tree.write_file("beside", b"it")
        await trio.sleep(20)
        assert sorted(request.key for request in faulty.calls_of(Verb.PUT)) == ["beside", "d/"]
        gate.open()
        await tree.publish_all()
        written = [request.key for request in faulty.calls_of(Verb.PUT) if request.key != "beside"]
        assert written[:3] == ["d/", "d/e/", "d/e/file"]


async def test_a_new_marker_waits_for_what_is_under_way_below_it(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """And nothing more begins there before it, so that its turn comes."""
    faulty = FaultyStorage(MemoryStorage())
    await faulty.put("d/old", b"")
    async with open_tree(faulty, tmp_path) as tree:
        gate = faulty.hold(Verb.PUT, key="d/file")
        await tree.write_file("d/file", b"bytes")
        await gate.reached.wait()
        await tree.filesystem.setattr((await tree.find("d")).number, AttributeChanges(mode=0o700))
        await trio.sleep(20)
        await tree.write_file("d/later", b"bytes")
        await trio.sleep(20)
        assert [request.key for request in faulty.calls_of(Verb.PUT)] == ["d/old", "d/file"]
        gate.open()
        await tree.publish_all()
        written = [request.key for request in faulty.calls_of(Verb.PUT)]
        assert written[:4] == ["d/old", "d/file", "d/", "d/later"]


async def test_a_marker_that_cannot_be_written_keeps_nothing_below_it_back(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    faulty = FaultyStorage(MemoryStorage())
    async with open_tree(faulty, tmp_path) as tree:
        faulty.fail(AccessDenied, verb=Verb.PUT, key="d/", times=2)
        await tree.mkdir("d")
        await tree.write_file("d/file", b"bytes")
        await trio.sleep(RETRY_SECONDS / 2)
        assert await stored(faulty) == {"d/file": b"bytes"}
        await trio.sleep(3 * RETRY_SECONDS)
        assert await stored(faulty) == {"d/": b"", "d/file": b"bytes"}


async def test_a_file_goes_into_a_new_directory_below_the_one_that_takes_its_name(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """The upper directory waits for the file's object to leave, and the file for the lower one's: a circle."""
    storage = TreeStorage()
    async with open_tree(storage, tmp_path) as tree:
        await tree.write_file("x", b"bytes")
        await tree.publish_all()
        await tree.rename("x", "away")
        await tree.mkdir("x")
        await tree.mkdir("x/d")
        await tree.rename("away", "x/d/y")
        with trio.fail_after(10):
            await tree.publish_all()
        assert await stored(storage, ours=True) == {"x/": b"", "x/d/": b"", "x/d/y": b"bytes"}


# Circles: who waits for a name that a directory still has, and is what is left of the directory


async def test_two_files_take_the_names_of_each_others_directories(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    storage = TreeStorage()
    async with open_tree(storage, tmp_path) as tree:
        for name in ("e", "f"):
            await tree.mkdir(name)
            await tree.write_file(f"{name}/file", name.encode())
        await tree.publish_all()
        for name in ("e", "f"):
            await tree.rename(f"{name}/file", f"from-{name}")
            await tree.rmdir(name)
        await tree.rename("from-e", "f")
        await tree.rename("from-f", "e")
        with trio.fail_after(10):
            await tree.publish_all()
        assert await stored(storage, ours=True) == {"e": b"f", "f": b"e"}


async def test_a_file_with_two_names_takes_that_of_their_directory(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """Its object waits for the other name's to leave, which is made of it."""
    storage = TreeStorage()
    async with open_tree(storage, tmp_path) as tree:
        await tree.mkdir("e")
        await tree.write_file("e/file", b"bytes")
        await tree.link("e/file", "e/other")
        await tree.publish_all()
        await tree.rename("e", "d")
        await tree.rename("d/file", "e")
        with trio.fail_after(10):
            await tree.publish_all()
        assert await stored(storage) == {"d/": b"", "d/other": b"bytes", "e": b"bytes"}


@pytest.mark.parametrize("storage", [MemoryStorage(), TreeStorage()], ids=["flat", "tree"])
async def test_a_file_gets_the_name_of_the_directory_that_it_was_in(
    storage: ObjectStorage, tmp_path: Path, autojump_clock: MockClock
) -> None:
    """Its own object is what keeps the name from being free."""
    await storage.put("x/y/file", b"bytes")
    async with open_tree(storage, tmp_path) as tree:
        await tree.rename("x/y/file", "kept")
        await tree.rmdir("x/y")
        await tree.rmdir("x")
        await tree.rename("kept", "x")
        await tree.publish_all()
        assert await tree.read_file("x") == b"bytes"
    assert await stored(storage, ours=True) == {"x": b"bytes"}


# Bursts


class SlowStorage(InterceptedStorage):
    """A store that takes its time for each PUT."""

    def __init__(self, inner: ObjectStorage, *, seconds: float) -> None:
        super().__init__(inner)
        self._seconds = seconds

    async def _carry_out(self, request: Request, send: Callable[[], Awaitable[T]]) -> T:
        if request.verb is Verb.PUT:
            await trio.sleep(self._seconds)
        return await send()


async def _make_files(tree: Tree, seconds: float, made: int = 0) -> int:
    """Make one file after the other for a while, with less than a pause between; return the number of the next."""
    until = trio.current_time() + seconds
    while trio.current_time() < until:
        await tree.write_file(f"file-{made}", b"bytes")
        made += 1
        await trio.sleep(QUIET_SECONDS / 2)
    return made


async def test_a_burst_of_files_is_published_when_it_is_over(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """Until then the log alone has them, with few requests."""
    faulty = FaultyStorage(MemoryStorage())
    async with open_tree(faulty, tmp_path, TreeOptions(logged=True)) as tree:
        made = await _make_files(tree, MAX_SECONDS - 1)
        assert await stored(faulty) == {}
        await trio.sleep(1)
        assert len(await stored(faulty)) == made


async def test_a_burst_without_an_end_is_not_waited_for(autojump_clock: MockClock, tmp_path: Path) -> None:
    faulty = FaultyStorage(MemoryStorage())
    async with open_tree(faulty, tmp_path, TreeOptions(logged=True)) as tree:
        made = await _make_files(tree, MAX_SECONDS + 1)
        assert len(await stored(faulty)) >= made * 3 / 4


async def test_who_reads_files_keeps_none_from_being_published(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """However many are opened and closed, nothing is made by that."""
    faulty = FaultyStorage(MemoryStorage())
    await faulty.put("read", b"bytes")
    async with open_tree(faulty, tmp_path, TreeOptions(logged=True)) as tree:
        await tree.write_file("written", b"bytes")
        for _ in range(10):
            await tree.read_file("read")
            await trio.sleep(QUIET_SECONDS / 2)
        assert "written" in await stored(faulty)


async def test_pauses_that_are_too_short_for_everything_do_not_put_it_off(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    slow = SlowStorage(MemoryStorage(), seconds=0.1)
    async with open_tree(slow, tmp_path, TreeOptions(logged=True)) as tree:
        made = 0
        for _ in range(10):
            made = await _make_files(tree, 2.0, made)
            await trio.sleep(QUIET_SECONDS * 1.5)
        assert len(await stored(slow)) >= made / 2


async def test_whoever_waits_for_a_file_does_not_wait_for_the_end_of_a_burst(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    faulty = FaultyStorage(MemoryStorage())
    async with open_tree(faulty, tmp_path, TreeOptions(logged=True)) as tree, trio.open_nursery() as nursery:
        nursery.start_soon(_make_files, tree, MAX_SECONDS - 1)
        await trio.sleep(1)
        began = trio.current_time()
        await tree.publisher.publish(await tree.find("file-3"))
        assert trio.current_time() - began < QUIET_SECONDS
        assert "file-3" in await stored(faulty)


async def test_without_a_log_nothing_waits_for_the_end_of_a_burst(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """The objects are all there is of the files."""
    faulty = FaultyStorage(MemoryStorage())
    async with open_tree(faulty, tmp_path) as tree:
        made = await _make_files(tree, MAX_SECONDS - 1)
        assert len(await stored(faulty)) >= made - 10


@pytest.mark.parametrize("is_logged", [True, False], ids=["log", "no log"])
async def test_new_directories_that_change_places_while_they_wait_for_each_other(
    is_logged: bool, autojump_clock: MockClock, tmp_path: Path
) -> None:
    """`inner` waits for `outer`, and that for `d`; then `outer` is moved into `inner`, and would wait for it."""
    faulty = FaultyStorage(MemoryStorage())
    async with open_tree(faulty, tmp_path, TreeOptions(logged=is_logged)) as tree:
        gate = faulty.hold(Verb.PUT, key="d/")
        for path in ("d", "d/outer", "d/outer/inner"):
            await tree.mkdir(path)
        await tree.write_file("d/outer/inner/file", b"bytes")
        await gate.reached.wait()
        await trio.sleep(1)
        await tree.rename("d/outer/inner", "inner")
        await tree.rename("d/outer", "inner/outer")
        await tree.rename("inner", "d/inner")
        gate.open()
        await tree.publish_all()
        assert await stored(faulty) == {
            "d/": b"",
            "d/inner/": b"",
            "d/inner/file": b"bytes",
            "d/inner/outer/": b"",
        }


class SlowFiles(MemoryStorage):
    """Takes its time for each file."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self._seconds = seconds

    async def put(
        self, key: str, data: Data, *, metadata: Metadata = NO_METADATA, mode: PutMode = OVERWRITE
    ) -> str:
        if key.startswith("file"):
            await trio.sleep(self._seconds)
        return await super().put(key, data, metadata=metadata, mode=mode)


async def commit_again_and_again(tree: Tree) -> None:
    """As a database does."""
    database = await tree.create("database")
    while True:
        await tree.write(database, 0, b"page")
        await tree.filesystem.fsync(database)
        await trio.sleep(0.05)


async def test_few_objects_are_written_while_somebody_waits_for_commits(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """Nobody waits for those, and each of many at once takes longer; the others follow when somebody does."""
    storage = SlowFiles(1)
    async with (
        open_tree(storage, tmp_path, TreeOptions(logged=True)) as tree,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(commit_again_and_again, tree)
        for number in range(100):
            await tree.write_file(f"file {number}", b"x")
        await trio.sleep(10.5)
        assert tree.publisher.statistics().running == 4
        nursery.start_soon(tree.publish_all)
        await trio.sleep(2)
        assert tree.publisher.statistics().running == 16
        nursery.cancel_scope.cancel()


async def test_what_has_piled_up_does_not_give_way_to_commits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    """Or else the bucket would stay behind where commits never end."""
    monkeypatch.setattr(publisher, "BACKLOG", 50)
    async with (
        open_tree(SlowFiles(10), tmp_path, TreeOptions(logged=True)) as tree,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(commit_again_and_again, tree)
        for number in range(100):
            await tree.write_file(f"file {number}", b"x")
        await trio.sleep(7)
        assert tree.publisher.statistics().running == 16
        await trio.sleep(60)
        assert tree.publisher.statistics().running == 4
        nursery.cancel_scope.cancel()


async def test_all_go_up_at_once_when_commits_have_ended(tmp_path: Path, autojump_clock: MockClock) -> None:
    """Those that are on their way may take long."""
    async with open_tree(SlowFiles(100), tmp_path, TreeOptions(logged=True)) as tree:
        database = await tree.create("database")
        for number in range(100):
            await tree.write_file(f"file {number}", b"x")
        for _ in range(100):
            await tree.write(database, 0, b"page")
            await tree.filesystem.fsync(database)
            await trio.sleep(0.09)
        assert tree.publisher.statistics().running == 4
        await trio.sleep(0.3)
        assert tree.publisher.statistics().running == 16
