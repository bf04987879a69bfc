"""A commit while the store fails: it is told of, and nothing that is not durable is ever taken for it."""

from __future__ import annotations

import errno
import math
from dataclasses import replace
from itertools import count
from pathlib import Path
from random import Random
from typing import Final

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from backends.errors import NotFound, StorageError, Unavailable
from backends.intercepted import Verb
from backends.retrying import RetryingStorage, RetryPolicy
from fusefs import batch_contents, staged_bytes
from fusefs.errno_boundary import errno_of
from fusefs.errors import LeaseLost
from fusefs.journal_format import batch_key, encode
from fusefs.log_reader import LogReader
from fusefs.log_records import Batch, Position
from fusefs.stage import MEMORY_FILE_BYTES
from tests.core.history import History, state_of
from tests.core.logs import batches
from tests.core.losses import difference
from tests.core.small_parts import PART, SmallPartsStorage, tree_options
from tests.core.tree import NEVER_PUBLISHED, TreeOptions, open_tree
from tests.support.faulty import FaultyStorage

pytestmark = pytest.mark.usefixtures("small_parts")

LOGGED: Final = replace(tree_options(), logged=True)
#: Nothing but the log gets anything.
LOG_ALONE: Final = replace(LOGGED, publish=NEVER_PUBLISHED)
BYTES: Final = Random(5).randbytes(6 * PART)


class Host:
    """A mount on a store that fails, and what another one would find in the bucket at any moment."""

    def __init__(self, storage: SmallPartsStorage, history: History, directory: Path) -> None:
        self._storage = storage
        self._history = history
        self._directory = directory
        self._looks = count()
        #: What fsync has said so far, but for its successes.
        self.errors: list[int] = []

    async def look(self) -> None:
        """Find what was acknowledged in the bucket alone, or raise."""
        where = self._directory / f"look{next(self._looks)}"
        async with open_tree(self._storage.twin(), where, LOG_ALONE) as tree:
            state = await state_of(tree)
        assert self._history.allows(state), difference(self._history, state)

    async def fsync(self, handle: int) -> None:
        """Ask until it is acknowledged; then it is there."""
        while True:
            try:
                await self._history.fsync(handle)
            except (StorageError, MemoryError) as error:
                self.errors.append(errno_of(error))
            else:
                await self.look()
                return


async def act(history: History, host: Host) -> None:
    """Change all kinds of things, and commit each."""
    big = await history.create("big")
    for start in range(0, len(BYTES), PART):
        await history.write(big, start, BYTES[start : start + PART])
        await trio.sleep(0.1)
    await host.fsync(big)
    await history.mkdir("d")
    await history.rename("big", "d/big")
    await host.fsync(big)
    await history.write(big, PART // 2, b"changed")
    await history.truncate("d/big", 4 * PART)
    await host.fsync(big)
    await history.close(big)
    await trio.sleep(5)
    small = await history.create("small")
    await history.unlink("d/big")
    await history.write(small, 0, b"bytes")
    await host.fsync(small)
    await history.close(small)


@pytest.mark.parametrize("answer_lost", [False, True])
async def test_every_call_may_fail_once(answer_lost: bool, tmp_path: Path, autojump_clock: MockClock) -> None:
    """fsync says EIO, or waits; when it says that it is done, another mount finds everything in the bucket."""
    failures = 0
    for call in count(1):
        inner = SmallPartsStorage()
        storage = FaultyStorage(inner)
        directory = tmp_path / f"{call}"
        async with open_tree(storage, directory / "mount", LOGGED) as tree:
            history = History({})
            history.attend(tree)
            assert await tree.names() == []
            host = Host(inner, history, directory)
            storage.fail(Unavailable, call=call, answer_lost=answer_lost)
            with trio.fail_after(600):
                await act(history, host)
            failures += len(host.errors)
            assert host.errors in ([], [errno.EIO])
            if storage.faults_left:
                break
            await host.look()
    assert failures >= 4  # each of the commits at least


async def test_a_batch_waits_for_those_before_it(tmp_path: Path, autojump_clock: MockClock) -> None:
    """The second is in the store and counts for nothing; both are told of the failure of the first."""
    inner = SmallPartsStorage()
    storage = FaultyStorage(inner)
    history = History({})
    host = Host(inner, history, tmp_path)
    ended: list[Exception | None] = []

    async def fsync(handle: int) -> None:
        try:
            await history.fsync(handle)
        except StorageError as error:
            ended.append(error)
        else:
            ended.append(None)

    async with open_tree(storage, tmp_path / "mount", LOG_ALONE) as tree, trio.open_nursery() as nursery:
        history.attend(tree)
        first, second = await history.create("first"), await history.create("second")
        storage.fail(Unavailable, verb=Verb.PUT)
        gate = storage.hold(Verb.PUT)
        await history.write(first, 0, b"1")
        nursery.start_soon(fsync, first)
        await gate.reached.wait()
        await history.write(second, 0, b"2")
        nursery.start_soon(fsync, second)
        await trio.sleep(100)
        assert len(await batches(inner)) == 1
        assert ended == []
        await host.look()
        gate.open()
        await wait_all_tasks_blocked()
        assert [type(error) for error in ended] == [Unavailable, Unavailable]
        assert history.acknowledged == 0
        await host.fsync(second)
        assert history.acknowledged == len(history.states) - 1


async def test_an_outage_of_the_log(tmp_path: Path, autojump_clock: MockClock) -> None:
    """EIO, and again, as long as it lasts; writers go on, and then all of it is there."""
    inner = SmallPartsStorage()
    storage = FaultyStorage(inner)
    history = History({})
    host = Host(inner, history, tmp_path)
    async with open_tree(storage, tmp_path / "mount", LOG_ALONE) as tree:
        history.attend(tree)
        handle = await history.create("file")
        storage.fail(Unavailable, times=math.inf)
        for number in range(5):
            await history.write(handle, number, b"x")
            with pytest.raises(StorageError) as failure:
                await history.fsync(handle)
            assert errno_of(failure.value) == errno.EIO
        assert len(await batches(inner)) == 0
        storage.heal()
        await host.fsync(handle)
        assert history.acknowledged == len(history.states) - 1


async def test_a_batch_whose_answer_is_lost_for_longer_than_it_is_asked_for(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """What is found in its place when the store answers again is our own, and nobody has taken over."""
    inner = SmallPartsStorage()
    faulty = FaultyStorage(inner)
    storage = RetryingStorage(faulty, RetryPolicy(timeout_seconds=30), rng=Random(0))
    history = History({})
    host = Host(inner, history, tmp_path)
    async with open_tree(storage, tmp_path / "mount", LOG_ALONE) as tree:
        history.attend(tree)
        handle = await history.create("file")
        faulty.fail(Unavailable, verb=Verb.PUT, answer_lost=True)
        faulty.fail(Unavailable, call=2, times=math.inf)
        with pytest.raises(Unavailable):
            await history.fsync(handle)
        assert len(await batches(inner)) == 1
        faulty.heal()
        await host.fsync(handle)
        await history.write(handle, 0, b"more")
        await host.fsync(handle)
        assert history.acknowledged == len(history.states) - 1


async def test_the_place_of_a_batch_in_doubt_is_taken_by_somebody_else(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """Who took over has sealed the log there: it is not our own, and nothing is acknowledged any more."""
    inner = SmallPartsStorage()
    storage = FaultyStorage(inner)
    async with open_tree(storage, tmp_path / "mount", LOG_ALONE) as tree:
        handle = await tree.create("file")
        storage.fail(Unavailable, verb=Verb.PUT)
        with pytest.raises(Unavailable):
            await tree.filesystem.fsync(handle)
        assert await LogReader(inner).seal(Position(1, 1))
        with pytest.raises(LeaseLost):
            await tree.filesystem.fsync(handle)
        with pytest.raises(LeaseLost):
            await tree.create("another")


async def test_a_batch_in_doubt_that_somebody_removes_is_not_acknowledged(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """Its place was occupied a moment ago, by whatever it was; who empties a log has taken over."""
    inner = SmallPartsStorage()
    storage = FaultyStorage(inner)
    async with open_tree(storage, tmp_path / "mount", LOG_ALONE) as tree:
        handle = await tree.create("file")
        storage.fail(Unavailable, verb=Verb.PUT, answer_lost=True)
        with pytest.raises(Unavailable):
            await tree.filesystem.fsync(handle)
        storage.fail(NotFound, verb=Verb.GET_RANGE, key=batch_key(Position(1, 1)))
        with pytest.raises(LeaseLost):
            await tree.filesystem.fsync(handle)


@pytest.mark.parametrize("options", [LOG_ALONE, LOGGED], ids=["log alone", "published"])
async def test_an_outage_of_everything(
    options: TreeOptions, tmp_path: Path, autojump_clock: MockClock
) -> None:
    """However often it comes, what was acknowledged is there, and what was not is acknowledged in the end."""
    rng = Random(9)
    inner = SmallPartsStorage()
    storage = FaultyStorage(inner)
    history = History({})
    host = Host(inner, history, tmp_path)
    async with open_tree(storage, tmp_path / "mount", options) as tree, trio.open_nursery() as nursery:
        history.attend(tree)
        handle = await history.create("file")

        async def fail_at_times() -> None:
            while True:
                await trio.sleep(rng.uniform(0, 5))
                storage.fail(Unavailable, times=math.inf)
                await trio.sleep(rng.uniform(0, 5))
                storage.heal()

        nursery.start_soon(fail_at_times)
        for _ in range(40):
            await history.write(handle, rng.randrange(4 * PART), rng.randbytes(rng.randrange(2 * PART)))
            await host.fsync(handle)
            await trio.sleep(rng.uniform(0, 2))
        assert len(host.errors) > 5
        nursery.cancel_scope.cancel()


class Encoding:
    """Makes the bytes of batches, but for one, for which there is not enough memory."""

    def __init__(self, fails_at: int) -> None:
        self._fails_at = fails_at
        self.calls = 0

    @property
    def has_failed(self) -> bool:
        return self.calls >= self._fails_at

    def __call__(self, batch: Batch) -> bytes:
        self.calls += 1
        if self.calls == self._fails_at:
            raise MemoryError("injected")
        return encode(batch)


async def test_a_batch_that_cannot_be_made(
    tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever it is: fsync says so, and the next one acknowledges what is in the log, and not what is nowhere."""
    monkeypatch.setattr(batch_contents, "BATCH_SIZE", 2 * PART)
    monkeypatch.setattr(staged_bytes, "PIECE_SIZE", 1024)
    before = {"changed": b"before", "removed": b"before"}
    for fails_at in count(1):
        encoding = Encoding(fails_at)
        monkeypatch.setattr("fusefs.journal.encode", encoding)
        inner = SmallPartsStorage()
        for key, data in before.items():
            await inner.put(key, data)
        history = History(before)
        host = Host(inner, history, tmp_path / f"{fails_at}")
        async with open_tree(inner, tmp_path / f"{fails_at}" / "mount", LOG_ALONE) as tree:
            history.attend(tree)
            new, changed = await history.create("new"), await history.open("changed")
            await history.write(new, 0, b"bytes")
            await host.fsync(new)
            await history.truncate("new", 3)
            await history.unlink("removed")
            await host.fsync(new)
            await history.write(changed, 3, BYTES)  # which does not go up as a stream
            await history.rename("new", "renamed")
            await host.fsync(changed)
        assert host.errors == [errno.ENOMEM] * encoding.has_failed
        if not encoding.has_failed:
            break
    assert fails_at > 2 + 3  # the last commit is several batches


async def test_bytes_that_the_local_disk_does_not_give_back(
    tmp_path: Path, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is acknowledged, of any file, until the one that is lacking is removed; what it is, is told."""
    storage = SmallPartsStorage()
    options, large = replace(LOG_ALONE, max_open_stage_files=1), BYTES * (MEMORY_FILE_BYTES // len(BYTES) + 1)
    async with open_tree(storage, tmp_path / "mount", options) as tree:
        lost, other = await tree.create("lost"), await tree.create("other")
        for handle in (lost, other):
            await tree.write(handle, 0, large)
        [oldest, *_] = sorted((tmp_path / "mount" / "stage").iterdir(), key=lambda path: int(path.name, 16))
        oldest.unlink()
        for handle in (lost, other, lost):
            with pytest.raises(OSError, match="bytes of 'lost'") as failure:
                await tree.filesystem.fsync(handle)
            assert errno_of(failure.value) == errno.EIO
        assert "bytes of 'lost'" in caplog.text
        await tree.unlink("lost")
        await tree.filesystem.fsync(other)
    async with open_tree(storage, tmp_path / "next", LOG_ALONE) as tree:
        assert await tree.names() == ["other"]
        assert await tree.read_file("other") == large
