"""Large new files that are renamed before their upload is complete: the upload cannot follow, its object does.

As rsync, editors and many servers do it: everything goes to a temporary name, which is then renamed.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Final

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from backends.base import KIB
from backends.errors import Unavailable
from backends.intercepted import Verb
from fusefs.attribute_changes import AttributeChanges
from fusefs.filesystem import RENAME_EXCHANGE
from tests.core.logs import batches, log_objects
from tests.core.small_parts import LIMITS, PART, SmallPartsStorage, tree_options
from tests.core.tree import Tree, open_tree, stored
from tests.support.faulty import FaultyStorage

pytestmark = pytest.mark.usefixtures("small_parts")

BYTES: Final = Random(7).randbytes(8 * PART + 2 * KIB)
OTHER: Final = Random(8).randbytes(8 * PART)
LOGGED: Final = tree_options(logged=True)
TEMPORARY: Final = "d/.file.tmp"


@pytest.fixture
def faulty() -> FaultyStorage:
    return FaultyStorage(SmallPartsStorage())


def sent(faulty: FaultyStorage) -> int:
    """Return how many bytes went up, those in the log included."""
    return sum(call.bytes_sent for call in faulty.calls)


async def begin(tree: Tree, path: str = TEMPORARY, data: bytes = BYTES) -> int:
    """Make a file whose parts are in the bucket, but for the last one; return its handle."""
    handle = await tree.create(path)
    await tree.write(handle, 0, data)
    await wait_all_tasks_blocked()
    return handle


async def assert_only(faulty: FaultyStorage, objects: dict[str, bytes]) -> None:
    """Nothing else is in the bucket but an empty log, and no upload is under way."""
    await trio.sleep(60)
    ours = {key for key in await stored(faulty, ours=True) if key.startswith(".fusefs/")}
    ours -= {".fusefs/root", *await log_objects(faulty)}
    assert await batches(faulty) == []
    files = {key: data for key, data in (await stored(faulty)).items() if not key.endswith("/")}
    assert (files, ours, await faulty.list_multipart_uploads()) == (objects, set(), [])


@pytest.mark.parametrize("log", ["synced", "logged", "none"])
@pytest.mark.parametrize("closed_first", [True, False], ids=["close, rename", "rename, close"])
@pytest.mark.parametrize("target", ["d/file", "new", "there"])
async def test_what_is_renamed_before_it_is_published_goes_up_once(
    log: str,
    closed_first: bool,
    target: str,
    faulty: FaultyStorage,
    tmp_path: Path,
    autojump_clock: MockClock,
) -> None:
    """The store copies the object to the new name, whether something is there or not."""
    await faulty.put("there", OTHER)
    async with open_tree(faulty, tmp_path, replace(LOGGED, logged=log != "none")) as tree:
        await tree.mkdir("d")
        await tree.names()
        faulty.calls.clear()
        handle = await begin(tree)
        if log == "synced":
            await tree.filesystem.fsync(handle)
        if closed_first:
            await tree.close(handle)
            await tree.rename(TEMPORARY, target)
        else:
            await tree.rename(TEMPORARY, target)
            await tree.close(handle)
        await tree.publish_all()
        assert sent(faulty) <= len(BYTES) + LIMITS.min_part_size
        assert await tree.read_file(target) == BYTES
        assert TEMPORARY.rpartition("/")[2] not in await tree.names("d")
        await assert_only(faulty, {"there": OTHER} | {target: BYTES})


@pytest.mark.parametrize("verb", [Verb.UPLOAD_PART, Verb.COMPLETE])
@pytest.mark.parametrize("logged", [True, False], ids=["logged", "no log"])
async def test_a_rename_while_the_upload_is_being_finished(
    verb: Verb, logged: bool, faulty: FaultyStorage, tmp_path: Path, autojump_clock: MockClock
) -> None:
    """No listing of that time shows the object under the name that it appears under."""
    async with open_tree(faulty, tmp_path, replace(LOGGED, logged=logged, revalidate_seconds=0.0)) as tree:
        await tree.mkdir("d")
        handle = await begin(tree)
        gate = faulty.hold(verb)
        copying = faulty.hold(Verb.COPY)
        await tree.close(handle)
        await gate.reached.wait()
        await tree.rename(TEMPORARY, "d/file")
        gate.open()
        with trio.fail_after(60):
            while not copying.reached.is_set():
                assert await tree.names("d") == ["file"]
                await trio.sleep(0.01)
        assert TEMPORARY in await stored(faulty)
        copying.open()
        await tree.publish_all()
        assert sent(faulty) <= len(BYTES) + LIMITS.min_part_size
        assert await tree.names("d") == ["file"]
        await assert_only(faulty, {"d/file": BYTES})


async def test_the_old_name_is_used_again(
    faulty: FaultyStorage, tmp_path: Path, autojump_clock: MockClock
) -> None:
    """It is the first file's in the bucket until its object has left it, however long that is being written."""
    async with open_tree(faulty, tmp_path, LOGGED) as tree:
        await tree.mkdir("d")
        first = await begin(tree)
        await tree.rename(TEMPORARY, "d/first")
        second = await begin(tree, data=OTHER)
        assert len(faulty.calls_of(Verb.CREATE_MULTIPART)) == 1, (
            "an upload of it would be bound to the same key"
        )
        await tree.close(second)
        await trio.sleep(10)
        assert await stored(faulty) == {"d/": b"", "d/first": BYTES, TEMPORARY: OTHER}
        await tree.close(first)
        third = await begin(tree, "d/third", OTHER)
        await tree.close(third)
        await tree.publish_all()
        bodies = [call.bytes_sent for call in faulty.calls if call.verb is Verb.UPLOAD_PART]
        assert sum(bodies) == len(BYTES) + 2 * len(OTHER)
        await assert_only(faulty, {"d/first": BYTES, TEMPORARY: OTHER, "d/third": OTHER})


async def test_the_name_is_still_that_of_something_in_a_renamed_directory(
    faulty: FaultyStorage, autojump_clock: MockClock, tmp_path: Path
) -> None:
    """What is found there is the directory's, as it is where no upload has begun."""
    await faulty.put("old/file", b"there before")
    gate = faulty.hold(Verb.LIST_PREFIX, key="old/")
    async with open_tree(faulty, tmp_path, LOGGED) as tree:
        await tree.rename("old", "new")
        await tree.mkdir("old")
        handle = await begin(tree, "old/file")
        gate.open()
        await tree.close(handle)
        await tree.publish_all()
        assert await tree.read_file("new/file") == b"there before"
        await assert_only(faulty, {"new/file": b"there before", "old/file": BYTES})


@pytest.mark.parametrize("logged", [True, False], ids=["logged", "no log"])
async def test_what_somebody_else_puts_under_the_old_name_stays(
    logged: bool,
    faulty: FaultyStorage,
    tmp_path: Path,
    autojump_clock: MockClock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The object cannot appear there, and goes up again under its own name; that is no conflict of the file."""
    async with open_tree(faulty, tmp_path, replace(LOGGED, logged=logged)) as tree:
        await tree.mkdir("d")
        handle = await begin(tree)
        await tree.rename(TEMPORARY, "d/file")
        await faulty.put(TEMPORARY, b"theirs")
        await tree.filesystem.fsync(handle)
        await tree.close(handle)
        await tree.publish_all()
        await assert_only(faulty, {"d/file": BYTES, TEMPORARY: b"theirs"})
        assert f"{TEMPORARY!r} was put there by somebody else" in caplog.text


async def rename_twice(tree: Tree, handle: int) -> None:
    await tree.rename(TEMPORARY, "between")
    await tree.log.commit()
    await tree.rename("between", "d/file")


async def rename_back(tree: Tree, handle: int) -> None:
    await tree.rename(TEMPORARY, "between")
    await tree.log.commit()
    await tree.rename("between", TEMPORARY)


async def rename_directory(tree: Tree, handle: int) -> None:
    await tree.rename("d", "e")
    await tree.mkdir("d")


async def put_file_in_place_of_directory(tree: Tree, handle: int) -> None:
    await tree.rename("d", "e")
    await tree.write_file("d", b"small")


async def exchange(tree: Tree, handle: int) -> None:
    await tree.write_file("d/other", b"small")
    await tree.publish_all()
    await tree.rename(TEMPORARY, "d/other", RENAME_EXCHANGE)


async def give_another_name(tree: Tree, handle: int) -> None:
    await tree.link(TEMPORARY, "d/file")
    await tree.unlink(TEMPORARY)


@pytest.mark.parametrize("logged", [True, False], ids=["logged", "no log"])
@pytest.mark.parametrize(
    ("change", "objects"),
    [
        (rename_twice, {"d/file": BYTES}),
        (rename_back, {TEMPORARY: BYTES}),
        (rename_directory, {"e/.file.tmp": BYTES}),
        (put_file_in_place_of_directory, {"e/.file.tmp": BYTES, "d": b"small"}),
        (exchange, {"d/other": BYTES, TEMPORARY: b"small"}),
        (give_another_name, {"d/file": BYTES}),
    ],
)
async def test_other_ways_to_lose_a_name(
    logged: bool,
    change: Callable[[Tree, int], Awaitable[None]],
    objects: dict[str, bytes],
    faulty: FaultyStorage,
    tmp_path: Path,
    autojump_clock: MockClock,
) -> None:
    async with open_tree(faulty, tmp_path, replace(LOGGED, logged=logged)) as tree:
        await tree.mkdir("d")
        handle = await begin(tree)
        await change(tree, handle)
        await tree.publish_all()
        await tree.close(handle)
        await tree.publish_all()
        assert sent(faulty) <= len(BYTES) + LIMITS.min_part_size
        await assert_only(faulty, objects)


async def test_a_file_that_is_cut_after_its_rename_goes_up_under_its_own_name(
    faulty: FaultyStorage, tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with open_tree(faulty, tmp_path, LOGGED) as tree:
        await tree.mkdir("d")
        handle = await begin(tree)
        await tree.filesystem.fsync(handle)
        await tree.rename(TEMPORARY, "d/file")
        file = await tree.find("d/file")
        await tree.filesystem.setattr(file.number, AttributeChanges(size=3 * PART))
        await tree.close(handle)
        await tree.publish_all()
        assert TEMPORARY not in {call.key for call in faulty.calls_of(Verb.COMPLETE)}
        await assert_only(faulty, {"d/file": BYTES[: 3 * PART]})


async def test_a_file_that_goes_on_growing_after_its_rename_is_one_stream(
    faulty: FaultyStorage, tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with open_tree(faulty, tmp_path, LOGGED) as tree:
        await tree.mkdir("d")
        handle = await begin(tree)
        await tree.rename(TEMPORARY, "d/file")
        await trio.sleep(5)
        await tree.write(handle, len(BYTES), OTHER)
        await tree.close(handle)
        await tree.publish_all()
        assert len(faulty.calls_of(Verb.CREATE_MULTIPART)) == 1
        assert sent(faulty) <= len(BYTES) + len(OTHER) + LIMITS.min_part_size
        await assert_only(faulty, {"d/file": BYTES + OTHER})


async def test_a_lost_answer_keeps_the_old_name_taken(
    faulty: FaultyStorage, tmp_path: Path, autojump_clock: MockClock, quiet: None
) -> None:
    """The object may be there: what is ours under that name is not to be taken for somebody else's."""
    async with open_tree(faulty, tmp_path, LOGGED) as tree:
        await tree.mkdir("d")
        faulty.fail(Unavailable, verb=Verb.COMPLETE, answer_lost=True)
        await tree.close(await begin(tree))
        await trio.sleep(2)
        assert TEMPORARY in await stored(faulty)
        await tree.rename(TEMPORARY, "d/file")
        await tree.write_file(TEMPORARY, b"another")
        await trio.sleep(10)
        await tree.publish_all()
        await assert_only(faulty, {"d/file": BYTES, TEMPORARY: b"another"})


async def test_a_change_that_is_renamed_while_it_goes_up_is_not_sent_again(
    faulty: FaultyStorage, tmp_path: Path, autojump_clock: MockClock
) -> None:
    """The object of a large file is under its old name still, which the log knows."""
    await faulty.put("there", OTHER)
    async with open_tree(faulty, tmp_path, LOGGED) as tree:
        handle = await tree.open("there")
        await tree.write(handle, 0, BYTES[: 3 * PART])
        gate = faulty.hold(Verb.UPLOAD_PART)
        await tree.close(handle)
        await gate.reached.wait()
        await tree.rename("there", "file")
        gate.open()
        await tree.publish_all()
        assert sum(call.bytes_sent for call in faulty.calls_of(Verb.UPLOAD_PART)) == 3 * PART
        await assert_only(faulty, {"file": BYTES[: 3 * PART] + OTHER[3 * PART :]})


async def test_a_change_that_is_renamed_twice_while_it_goes_up_has_no_object_between(
    faulty: FaultyStorage, tmp_path: Path, autojump_clock: MockClock
) -> None:
    """After a crash it would be a file that nobody knows."""
    await faulty.put("first", BYTES)
    async with open_tree(faulty, tmp_path, LOGGED) as tree:
        handle = await tree.open("first")
        await tree.write(handle, 3 * PART, OTHER[:KIB])
        await tree.rename("first", "second")
        copying = faulty.hold(Verb.COPY_PART)
        await tree.close(handle)
        await copying.reached.wait()
        await tree.rename("second", "third")
        copying.open()
        await tree.publish_all()
        assert [call.key for call in faulty.calls_of(Verb.COMPLETE)] == ["third"]
        await assert_only(faulty, {"third": BYTES[: 3 * PART] + OTHER[:KIB] + BYTES[3 * PART + KIB :]})
