"""How long the log becomes, how old, and what it costs a mount that does nothing."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Final

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from backends.base import KIB, MIB
from backends.errors import AccessDenied, InvalidKey, Unavailable
from backends.intercepted import Verb
from backends.memory import MemoryStorage
from fusefs import batch_contents, log_trimmer
from fusefs.attribute_changes import AttributeChanges
from fusefs.committer import Committer
from fusefs.errors import StaleFile
from fusefs.journal_format import JOURNAL_PREFIX
from fusefs.publisher import PublishOptions
from fusefs.staged_bytes import PIECE_SIZE
from fusefs.stored_lease import LEASE_KEY
from tests.core.leases import TERM, take
from tests.core.logs import log_size
from tests.core.tree import Tree, TreeOptions, open_tree, stored
from tests.support.faulty import FaultyStorage

LOGGED: Final = TreeOptions(logged=True)
PAGE: Final = 8 * KIB
HOT_SIZE: Final = 16 * MIB
COMMITS: Final = 1_000
HOUR: Final = 3_600.0

LOG_SIZE: Final = 256 * KIB
UNTRIMMED: Final = log_trimmer.TRIM_BATCHES * (PAGE + KIB)
"""Bytes of batches that are not needed any more, and too few for a request to delete them."""


async def commit_pages(tree: Tree, storage: MemoryStorage, pause_seconds: float) -> tuple[bytes, int]:
    """Change a page of the file `hot` and commit that, a thousand times; return what it is, and the longest log."""
    rng = Random(1)
    expected = bytearray(HOT_SIZE)
    handle = await tree.open("hot")
    longest = 0
    for number in range(COMMITS):
        page = rng.randbytes(PAGE)
        start = rng.randrange(HOT_SIZE // PAGE) * PAGE
        expected[start : start + PAGE] = page
        await tree.filesystem.write(handle, start, page)
        await tree.filesystem.fsync(handle)
        await trio.sleep(pause_seconds)
        if number % 20 == 0:
            longest = max(longest, await log_size(storage))
    await tree.close(handle)
    return bytes(expected), longest


async def test_a_hot_file_is_published_a_handful_of_times(tmp_path: Path, autojump_clock: MockClock) -> None:
    """As often as `publish_interval` says, whatever is committed meanwhile: each commit is a PUT of what changed."""
    inner = MemoryStorage()
    storage = FaultyStorage(inner)
    await inner.put("hot", bytes(HOT_SIZE))
    async with open_tree(storage, tmp_path, LOGGED) as tree:
        expected, _ = await commit_pages(tree, inner, pause_seconds=0.1)
        await tree.publish_all()
        assert 3 <= tree.publisher.statistics().published <= 6
        batches = [call for call in storage.calls_of(Verb.PUT) if call.key.startswith(JOURNAL_PREFIX)]
        assert len(batches) <= COMMITS + 10
        assert sum(call.bytes_sent for call in batches) < COMMITS * (PAGE + 2 * KIB)
        await trio.sleep(60)
        assert await log_size(inner) == 0
    assert await stored(inner) == {"hot": expected}


async def test_a_log_that_grows_is_published(tmp_path: Path, autojump_clock: MockClock) -> None:
    """It stays near `log_size`, however long the file is kept open and `publish_interval` is."""
    inner = MemoryStorage()
    await inner.put("hot", bytes(HOT_SIZE))
    options = replace(LOGGED, max_log_bytes=2 * MIB, publish=PublishOptions(interval_seconds=HOUR))
    async with open_tree(inner, tmp_path, options) as tree:
        expected, longest = await commit_pages(tree, inner, pause_seconds=0.01)
        assert MIB < longest < 3 * MIB
        assert 3 <= tree.publisher.statistics().published <= 5
        await tree.publish_all()
    assert await stored(inner) == {"hot": expected}


@dataclass(frozen=True, kw_only=True)
class Handicap:
    """What cannot be published, or not be deleted; all of it is in the log before anything else is done."""

    act: Callable[[Tree, FaultyStorage], Awaitable[None]]
    #: What the tree has of it in the end, beside `hot`.
    files: Mapping[str, bytes] = field(default_factory=dict)
    before: Mapping[str, bytes] = field(default_factory=dict)


async def _refuse_name(tree: Tree, storage: FaultyStorage) -> None:
    storage.fail(InvalidKey, verb=Verb.PUT, key="name", times=math.inf)
    handle = await tree.create("name")
    for offset in (0, 3 * PAGE, PAGE // 2):
        await tree.write(handle, offset, bytes([offset // PAGE + 1]) * PAGE)
        await tree.filesystem.fsync(handle)
    for size in (2 * PAGE, 5 * PAGE):
        await tree.filesystem.setattr((await tree.find("name")).number, AttributeChanges(size=size))
        await tree.filesystem.fsync(handle)
    await tree.close(handle)


async def _deny_change(tree: Tree, storage: FaultyStorage) -> None:
    storage.fail(AccessDenied, verb=Verb.PUT, key="denied", times=math.inf)
    handle = await tree.open("denied")
    await tree.write(handle, 1, b"changed")
    await tree.filesystem.setattr((await tree.find("denied")).number, AttributeChanges(size=PAGE))
    await tree.filesystem.fsync(handle)
    await tree.close(handle)


async def _deny_cut(tree: Tree, storage: FaultyStorage) -> None:
    storage.fail(AccessDenied, verb=Verb.PUT, key="denied", times=math.inf)
    await tree.filesystem.setattr((await tree.find("denied")).number, AttributeChanges(size=5))
    await tree.log.commit()


async def _deny_name(tree: Tree, storage: FaultyStorage) -> None:
    for verb in (Verb.PUT, Verb.COPY):
        storage.fail(AccessDenied, verb=verb, key="new/below", times=math.inf)
        storage.fail(AccessDenied, verb=verb, key="new/", times=math.inf)
    await tree.rename("old", "new")
    await tree.log.commit()


async def _deny_link(tree: Tree, storage: FaultyStorage) -> None:
    storage.fail(AccessDenied, verb=Verb.COPY, key="link", times=math.inf)
    await tree.link("file", "link")
    await tree.log.commit()


async def _hold_object(tree: Tree, storage: FaultyStorage) -> None:
    storage.fail(AccessDenied, verb=Verb.DELETE, key="held", times=math.inf)
    await tree.unlink("held")
    await tree.log.commit()


async def _deny_way_out(tree: Tree, storage: FaultyStorage) -> None:
    storage.fail(AccessDenied, verb=Verb.COPY, times=math.inf)
    await tree.open("removed")
    await tree.unlink("removed")
    await tree.log.commit()


async def _replace_while_open(tree: Tree, storage: FaultyStorage) -> None:
    handle = await tree.open("theirs")
    await tree.write(handle, 0, b"ours")
    await storage.put("theirs", b"another's")
    await tree.publish_all()
    with pytest.raises(StaleFile):
        await tree.filesystem.fsync(handle)


HANDICAPS: Final = {
    "a name that is refused": Handicap(
        act=_refuse_name, files={"name": bytes([1]) * (PAGE // 2) + bytes([1]) * PAGE + bytes(7 * PAGE // 2)}
    ),
    "a change that is denied": Handicap(
        act=_deny_change,
        before={"denied": b"b" * 2 * PAGE},
        files={"denied": b"bchanged" + b"b" * (PAGE - 8)},
    ),
    "a cut that is denied": Handicap(act=_deny_cut, before={"denied": b"b" * 9}, files={"denied": b"b" * 5}),
    "a new name that is denied": Handicap(
        act=_deny_name, before={"old/below": b"clean"}, files={"new/below": b"clean"}
    ),
    "a link that is denied": Handicap(
        act=_deny_link, before={"file": b"bytes"}, files={"file": b"bytes", "link": b"bytes"}
    ),
    "an object that is held": Handicap(act=_hold_object, before={"held": b"bytes"}),
    "a removed file that stays open": Handicap(act=_deny_way_out, before={"removed": b"bytes"}),
    "a file in conflict that stays open": Handicap(
        act=_replace_while_open, before={"theirs": b"bytes"}, files={"theirs": b"another's"}
    ),
}


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of a mount: its longest log in the bucket, what went into it, and how often `hot` was published."""

    hot: bytes
    longest: int
    logged: int
    publications: int


async def commit_beside(
    handicap: Handicap | None, inner: MemoryStorage, directory: Path, *, commits: int = 300
) -> Outcome:
    """Change a page of the file `hot` and commit that, many times, on a mount that dies then."""
    storage = FaultyStorage(inner)
    rng, expected, longest = Random(1), bytearray(MIB), 0
    await inner.put("hot", expected)
    for key, data in handicap.before.items() if handicap else ():
        await inner.put(key, data)
    options = replace(LOGGED, max_log_bytes=LOG_SIZE, publish=PublishOptions(interval_seconds=HOUR))
    async with open_tree(storage, directory, options) as tree:
        if handicap is not None:
            await handicap.act(tree, storage)
        handle = await tree.open("hot")
        for number in range(commits):
            page, start = rng.randbytes(PAGE), rng.randrange(MIB // PAGE) * PAGE
            expected[start : start + PAGE] = page
            await tree.filesystem.write(handle, start, page)
            await tree.filesystem.fsync(handle)
            await trio.sleep(0.1)
            if number % 5 == 0:
                longest = max(longest, await log_size(inner))
    puts = storage.calls_of(Verb.PUT)
    return Outcome(
        hot=bytes(expected),
        longest=longest,
        logged=sum(call.bytes_sent for call in puts if call.key.startswith(JOURNAL_PREFIX)),
        publications=sum(call.key == "hot" for call in puts),
    )


async def check_after_crash(inner: MemoryStorage, directory: Path, files: Mapping[str, bytes]) -> None:
    """Find all of it in the next mount, which publishes it and needs no log then."""
    async with open_tree(inner, directory, LOGGED) as tree:
        assert set(await tree.names()) == {path.partition("/")[0] for path in files}
        for path, data in files.items():
            assert await tree.read_file(path) == data
        await tree.publish_all()
        await trio.sleep(60)
        assert await log_size(inner) == 0
    assert {key: data for key, data in (await stored(inner)).items() if not key.endswith("/")} == files


@pytest.mark.parametrize("name", HANDICAPS)
async def test_what_cannot_be_published_does_not_make_the_log_longer(
    name: str, tmp_path: Path, autojump_clock: MockClock, quiet: None
) -> None:
    """What cannot be published or deleted, because the store refuses the name or denies it, stays in the log, and is
    there after the loss of the host. The log is longer for it by no more than three times its changed bytes.
    """
    good = await commit_beside(None, MemoryStorage(), tmp_path / "good")
    inner, handicap = MemoryStorage(), HANDICAPS[name]
    outcome = await commit_beside(handicap, inner, tmp_path / "mount")
    own = sum(map(len, handicap.files.values())) + 4 * KIB
    assert outcome.longest < LOG_SIZE + UNTRIMMED + 3 * own
    assert outcome.logged < good.logged + (good.publications + 2) * own
    assert good.publications - 1 <= outcome.publications <= good.publications + 3
    await check_after_crash(inner, tmp_path / "next", {"hot": outcome.hot, **handicap.files})


async def test_what_is_most_of_the_log_is_told_again_seldom(
    tmp_path: Path,
    autojump_clock: MockClock,
    quiet: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where the log cannot become much shorter by it: not before as much has gone into it; here in several batches."""
    monkeypatch.setattr(batch_contents, "BATCH_SIZE", 4 * PIECE_SIZE)
    data = Random(2).randbytes(MIB)

    async def act(tree: Tree, storage: FaultyStorage) -> None:
        storage.fail(AccessDenied, verb=Verb.PUT, key="large", times=math.inf)
        await tree.write_file("large", data)
        await tree.log.commit()

    inner = MemoryStorage()
    outcome = await commit_beside(Handicap(act=act), inner, tmp_path / "mount", commits=600)
    changes = 600 * (PAGE + KIB)
    assert outcome.logged < 2 * (MIB + changes)
    assert outcome.longest < LOG_SIZE + UNTRIMMED + 3 * (MIB + 4 * KIB)
    assert outcome.publications <= changes // MIB + 1
    await check_after_crash(inner, tmp_path / "next", {"hot": outcome.hot, "large": data})


async def test_what_may_be_under_another_name_is_not_forgotten(
    tmp_path: Path, autojump_clock: MockClock, quiet: None
) -> None:
    """A file is told again under its new name alone: not before it is known that nothing of it is under the old one."""
    inner = MemoryStorage()

    async def act(tree: Tree, storage: FaultyStorage) -> None:
        storage.fail(Unavailable, verb=Verb.PUT, key="old", answer_lost=True)
        storage.fail(Unavailable, verb=Verb.HEAD, key="old", times=math.inf)
        storage.fail(AccessDenied, verb=Verb.PUT, key="new", times=math.inf)
        await tree.write_file("old", b"bytes")
        with pytest.raises(Unavailable):
            await tree.publish_all()
        await tree.rename("old", "new")
        await tree.log.commit()

    outcome = await commit_beside(Handicap(act=act), inner, tmp_path / "mount", commits=100)
    assert outcome.publications <= 100 * (PAGE + KIB) // LOG_SIZE + 1
    assert (await stored(inner))["old"] == b"bytes"
    await check_after_crash(inner, tmp_path / "next", {"hot": outcome.hot, "new": b"bytes"})


async def test_a_log_that_is_too_long_at_the_end(
    tmp_path: Path, autojump_clock: MockClock, quiet: None
) -> None:
    """It is not told again then what it has: it becomes no longer, and lacks nothing for that."""
    inner = MemoryStorage()
    storage = FaultyStorage(inner)
    files = {"small": b"bytes", "large": bytes(range(256)) * 64}
    async with open_tree(storage, tmp_path / "mount", replace(LOGGED, max_log_bytes=KIB)) as tree:
        assert isinstance(tree.log, Committer)
        for name, data in files.items():
            storage.fail(AccessDenied, verb=Verb.PUT, key=name, times=math.inf)
            await tree.write_file(name, data)
            with pytest.raises(AccessDenied):
                await tree.publisher.publish(await tree.find(name))
        await tree.log.finish()
        await wait_all_tasks_blocked()
        assert tree.log.has_everything
    await check_after_crash(inner, tmp_path / "next", files)


@pytest.mark.parametrize("is_open", [True, False])
async def test_a_log_does_not_become_old(is_open: bool, tmp_path: Path, autojump_clock: MockClock) -> None:
    """What changed once is published in time, and then the log is empty, although the file stays open."""
    storage = MemoryStorage()
    publish = PublishOptions()
    async with open_tree(storage, tmp_path, LOGGED) as tree:
        handle = await tree.create("file")
        await tree.write(handle, 0, b"bytes")
        await tree.mkdir("d")
        await tree.filesystem.fsync(handle)
        if not is_open:
            await tree.close(handle)
        assert await log_size(storage) > 0
        await trio.sleep((publish.interval_seconds if is_open else publish.delay_seconds) + 5)
        assert await log_size(storage) == 0
        assert await stored(storage) == {"d/": b"", "file": b"bytes"}


async def test_an_idle_mount_asks_for_nothing(tmp_path: Path, autojump_clock: MockClock) -> None:
    """But for the renewals of its lease, three in each term: no log is listed, read or written."""
    storage = FaultyStorage(MemoryStorage())
    lease = await take(storage, "a")
    async with (
        open_tree(storage, tmp_path, replace(LOGGED, index=True, lease=lease)) as tree,
        trio.open_nursery() as nursery,
    ):
        assert tree.index_writer is not None
        nursery.start_soon(lease.run)
        nursery.start_soon(tree.index_writer.run)
        await tree.mkdir("d")
        await tree.write_file("d/file", b"bytes")
        await trio.sleep(120)
        storage.calls.clear()
        await trio.sleep(HOUR)
        asked = Counter((call.verb, call.key) for call in storage.calls)
        assert asked.keys() == {(Verb.PUT, LEASE_KEY)}
        assert asked.total() == pytest.approx(3 * HOUR / TERM, abs=2)
        nursery.cancel_scope.cancel()


async def test_a_mount_that_writes_lists_nothing(tmp_path: Path, autojump_clock: MockClock) -> None:
    """Where its log is, and what is in it, it knows: a listing costs as much as ten commits that are read."""
    storage = FaultyStorage(MemoryStorage())
    async with open_tree(storage, tmp_path, LOGGED) as tree:
        handle = await tree.create("file")
        storage.calls.clear()
        for number in range(300):
            await tree.write(handle, number, b"x")
            await tree.filesystem.fsync(handle)
            await trio.sleep(1)
        assert storage.calls_of(Verb.LIST_PREFIX) == []
        deletions = storage.calls_of(Verb.DELETE_MANY)
        assert len(deletions) < 30


async def test_what_was_to_be_deleted_and_is_somebodys_again(
    autojump_clock: MockClock, tmp_path: Path, quiet: None
) -> None:
    """A log that is long, for the sake of another file, says again that it is to be deleted, and then for longer than
    whose it is: bytes and ETag are the same.
    """
    inner = MemoryStorage()
    storage = FaultyStorage(inner)
    async with open_tree(storage, tmp_path / "1", replace(LOGGED, max_log_bytes=KIB)) as tree:
        await tree.write_file("file", b"same")
        await tree.publish_all()
        storage.fail(AccessDenied, verb=Verb.PUT, key="refused", times=math.inf)
        await tree.write_file("refused", b"kept")
        storage.fail(AccessDenied, verb=Verb.DELETE, key="file", times=math.inf)
        await tree.unlink("file")
        await tree.log.commit()
        await trio.sleep(1)
        gate = storage.hold(Verb.PUT, key="file")
        await tree.write_file("file", b"same")
        for number in range(20):
            await tree.write_file(f"other{number}", bytes(KIB))
            await tree.log.commit()
            await trio.sleep(1)
        gate.open()
        await trio.sleep(1)
        await tree.write_file("last", b"")
        await tree.log.commit()
    async with open_tree(inner, tmp_path / "2", LOGGED) as tree:
        assert await tree.read_file("file") == b"same"
        await tree.publish_all()
    assert (await stored(inner))["file"] == b"same"
