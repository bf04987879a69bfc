"""A commit of very many changes: in batches that are bounded, and that count only together."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Final

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from backends.base import KIB, MIB, ObjectStorage
from backends.errors import AccessDenied, InvalidRequest
from backends.intercepted import InterceptedStorage, Request, T, Verb
from fusefs import batch_contents, log_trimmer, staged_bytes
from fusefs.attribute_changes import AttributeChanges
from fusefs.batch_contents import HEAD_SIZE
from fusefs.committer import Committer
from fusefs.journal import MAX_IN_FLIGHT
from fusefs.journal_format import JOURNAL_PREFIX, decode, position_of
from tests.core.history import History
from tests.core.logs import batches
from tests.core.losses import check, die_at_every_call, filled, live
from tests.core.mortal import Death
from tests.core.small_parts import SmallPartsStorage
from tests.core.test_log import options
from tests.core.test_log_crash import SCENARIOS, BareMarkers, bucket
from tests.core.test_log_model import Walk
from tests.core.tree import Tree, open_tree, stored
from tests.support.faulty import FaultyStorage

pytestmark = pytest.mark.usefixtures("small_parts")

FILES: Final = 2_000
HEADS: Final = 100


@pytest.fixture
def short_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a batch have room for `HEADS` heads."""
    monkeypatch.setattr(batch_contents, "HEADS_SIZE", HEADS * HEAD_SIZE)


def log_puts(storage: FaultyStorage) -> list[int]:
    return [call.bytes_sent for call in storage.calls_of(Verb.PUT) if call.key.startswith(JOURNAL_PREFIX)]


async def records(storage: ObjectStorage) -> list[int]:
    """Return how many there are in each batch of the log."""
    found = []
    for key in await batches(storage):
        position = position_of(key)
        assert position is not None
        found.append(len(decode((await storage.get_range(key)).data, position).records))
    return found


def has_everything(tree: Tree) -> bool:
    assert isinstance(tree.log, Committer)
    return tree.log.has_everything


async def many_files() -> tuple[FaultyStorage, list[str]]:
    """Return a store with a directory `d` of many files, and their names, which are their bytes, too."""
    storage = FaultyStorage(SmallPartsStorage())
    names = [f"file-{number:04}" for number in range(FILES)]
    for name in names:
        await storage.put(f"d/{name}", name.encode())
    return storage, names


@pytest.mark.usefixtures("short_batches")
async def test_a_rename_of_many_files_goes_in_bounded_batches(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """Each file is told of once, and the next mount finds the directory under its new name."""
    storage, names = await many_files()
    async with open_tree(storage, tmp_path / "1", options()) as tree:
        await tree.rename("d", "moved")
        await wait_all_tasks_blocked()  # until all that is below is known
        await tree.log.commit()
        assert max(log_puts(storage)) < HEADS * HEAD_SIZE
        assert sum(await records(storage)) == FILES + 1
    async with open_tree(storage, tmp_path / "2", options(publishes=True)) as tree:
        assert await tree.names() == ["moved"]
        assert await tree.names("moved") == names
        await tree.publish_all()
    assert await stored(storage) == {"moved/": b""} | {f"moved/{name}": name.encode() for name in names}


@pytest.mark.usefixtures("short_batches")
@pytest.mark.parametrize("is_on_disk", [True, False], ids=["on a disk", "in the bucket"])
async def test_a_rename_of_many_known_files_goes_in_bounded_batches(
    is_on_disk: bool, tmp_path: Path, autojump_clock: MockClock
) -> None:
    """Wherever the log is: the rename has noted the directory alone, and the commit all that is below."""
    storage, names = await many_files()
    log = FaultyStorage(SmallPartsStorage()) if is_on_disk else storage
    with_log = replace(options(), log_storage=log if is_on_disk else None)
    async with open_tree(storage, tmp_path, with_log) as tree:
        for name in names:
            await tree.find(f"d/{name}")
        await tree.rename("d", "moved")
        await tree.log.commit()
        assert max(log_puts(log)) < HEADS * HEAD_SIZE
        assert sum(await records(log)) == FILES + 1


@pytest.mark.usefixtures("short_batches")
async def test_a_removal_of_many_files_goes_in_bounded_batches(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    storage, names = await many_files()
    async with open_tree(storage, tmp_path / "1", options()) as tree:
        await tree.names("d")
        for name in names:
            await tree.unlink(f"d/{name}")
        await tree.log.commit()
        assert max(log_puts(storage)) < 2 * HEADS * HEAD_SIZE
        assert max(await records(storage)) <= 2 * HEADS
    async with open_tree(storage, tmp_path / "2", options(publishes=True)) as tree:
        assert await tree.names("d") == []
        await tree.publish_all()


async def test_what_changes_meanwhile_is_told_as_it_is_in_the_end(
    tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What went ahead has another mode, name, content or none any more when the last batch is captured."""
    monkeypatch.setattr(batch_contents, "HEADS_SIZE", 4 * HEAD_SIZE)
    inner = SmallPartsStorage()
    storage = FaultyStorage(inner)
    async with open_tree(storage, tmp_path / "1", options()) as tree, trio.open_nursery() as nursery:
        for number in range(40):
            await tree.write_file(f"{number:02}", b"old")
        gate = storage.hold(Verb.PUT, times=MAX_IN_FLIGHT)
        nursery.start_soon(tree.log.commit)
        await gate.reached.wait()
        await wait_all_tasks_blocked()
        number = (await tree.find("00")).number
        await tree.filesystem.setattr(number, AttributeChanges(mode=0o600))
        await tree.rename("01", "renamed")
        await tree.unlink("02")
        await tree.write_file("03", b"new")
        gate.open()
        await wait_all_tasks_blocked()
    async with open_tree(inner, tmp_path / "2", options()) as tree:
        assert await tree.names() == sorted(
            ["00", "03", "renamed", *(f"{number:02}" for number in range(4, 40))]
        )
        assert (await tree.find("00")).attributes.mode & 0o777 == 0o600
        assert await tree.read_file("03") == b"new"
        assert await tree.read_file("renamed") == b"old"


async def test_a_directory_that_is_renamed_again_and_again(
    tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever does that while batches go ahead does not keep the last one from coming."""
    monkeypatch.setattr(batch_contents, "HEADS_SIZE", 10 * HEAD_SIZE)
    inner = SmallPartsStorage()
    for number in range(60):
        await inner.put(f"a/{number:03}", b"bytes")
    names = ["a", "b"]

    storage = FaultyStorage(inner)
    async with open_tree(storage, tmp_path / "1", options()) as tree, trio.open_nursery() as nursery:
        await tree.rename("a", "b")
        await wait_all_tasks_blocked()  # until all that is below is known
        committed = trio.Event()

        async def commit() -> None:
            await tree.log.commit()
            committed.set()

        nursery.start_soon(commit)
        seen = 0
        for _ in range(5_000):
            await trio.lowlevel.checkpoint()
            if len(log_puts(storage)) > seen and not committed.is_set():
                seen = len(log_puts(storage))
                await tree.rename(names[1], names[0])
                names.reverse()
        assert committed.is_set()
        assert seen > 60 // 10
    async with open_tree(inner, tmp_path / "2", options()) as tree:
        assert len(await tree.names((await tree.names())[0])) == 60


async def test_a_commit_that_fails_between_its_batches(
    tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever waits is told, nothing counts as confirmed, and the next commit ends what was begun."""
    monkeypatch.setattr(batch_contents, "HEADS_SIZE", 4 * HEAD_SIZE)
    inner = SmallPartsStorage()
    storage = FaultyStorage(inner)
    async with open_tree(storage, tmp_path / "1", options()) as tree:
        for number in range(60):
            await tree.write_file(f"{number:02}", b"bytes")
        storage.fail(InvalidRequest, verb=Verb.PUT, call=2, times=8)
        with pytest.raises(InvalidRequest):
            await tree.log.commit()
        assert not has_everything(tree)
        storage.heal()
        await trio.sleep(60)
        await tree.log.commit()
        assert has_everything(tree)
    async with open_tree(inner, tmp_path / "2", options()) as tree:
        assert len(await tree.names()) == 60


@pytest.mark.parametrize("death", Death)
@pytest.mark.parametrize(
    "name",
    ["rename a directory", "rename new directories", "swap", "hard link", "remove while open", "stream"],
)
async def test_a_mount_may_die_between_the_batches_of_a_commit(
    name: str,
    death: Death,
    tmp_path: Path,
    autojump_clock: MockClock,
    quiet: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """At every call; a batch has room for one head."""
    monkeypatch.setattr(batch_contents, "HEADS_SIZE", 1)
    await die_at_every_call(partial(bucket, SCENARIOS[name]), SCENARIOS[name].act, death, tmp_path)


@pytest.mark.parametrize("seed", range(8))
async def test_random_deaths_with_short_batches(
    seed: int,
    tmp_path: Path,
    autojump_clock: MockClock,
    quiet: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = Random(seed)
    monkeypatch.setattr(batch_contents, "HEADS_SIZE", rng.choice([1, KIB, 2 * KIB]))
    storage, history = await bucket(SCENARIOS["create"])
    for mount in range(4):
        death = rng.choice(list(Death))
        call = rng.randrange(1, 12 if death is Death.OVERTAKEN else 80)
        walk = Walk(rng, rng.randrange(5, 40))
        await live(storage, history, walk, call, death, tmp_path / f"{mount}")
        if rng.random() < 0.5:
            await check(storage, history, tmp_path / f"{mount}-checked")


class SlowStorage(InterceptedStorage):
    """Takes a while for everything but the log."""

    async def _carry_out(self, request: Request, send: Callable[[], Awaitable[T]]) -> T:
        if not request.key.startswith(JOURNAL_PREFIX):
            await trio.sleep(0.03)
        return await send()


async def exchange_equals(history: History, *, pause_seconds: float, has_attributes: bool) -> None:
    """Whoever gets the name of an object of the same bytes is told before that one, and needed for less long."""
    for path in "ab":
        if path not in history.state():
            await history.mkdir(path)
    if has_attributes:
        await history.chmod("a", 0o700)
    await history.tree.publish_all()
    handle = await history.open("other")
    await history.exchange("a", "b")
    for number in range(15):
        await history.write(handle, 0, b"%d" % number)
        await history.fsync(handle)
        await trio.sleep(pause_seconds)
    await history.close(handle)


@pytest.mark.parametrize("kind", ["files", "directories", "bare directories"])
async def test_objects_of_the_same_bytes_are_told_apart(
    kind: str,
    tmp_path: Path,
    autojump_clock: MockClock,
    quiet: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An object that was one's, and is another's by now, is not deleted as what the first has left."""
    monkeypatch.setattr(batch_contents, "HEADS_SIZE", 1)
    monkeypatch.setattr(log_trimmer, "TRIM_BATCHES", 1)
    is_bare = kind == "bare directories"
    before = {"other": b""} | (dict.fromkeys("ab", b"same") if kind == "files" else {})
    begin = partial(filled, BareMarkers if is_bare else SmallPartsStorage, before)
    act = partial(exchange_equals, pause_seconds=0.2 if is_bare else 0.015, has_attributes=not is_bare)
    await die_at_every_call(begin, act, Death.ANSWER_LOST, tmp_path, over=SlowStorage)


class LateLogStorage(InterceptedStorage):
    """Takes a while for the log."""

    async def _carry_out(self, request: Request, send: Callable[[], Awaitable[T]]) -> T:
        if request.key.startswith(JOURNAL_PREFIX):
            await trio.sleep(0.1)
        return await send()


async def test_who_writes_faster_than_the_log_takes_it_waits_for_a_commit(
    tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or else it would never come to its last batch; and then the writer goes on."""
    monkeypatch.setattr(staged_bytes, "PIECE_SIZE", KIB)
    monkeypatch.setattr(batch_contents, "BATCH_SIZE", 16 * KIB)
    written = 0

    async def write(tree: Tree, handle: int) -> None:
        nonlocal written
        while True:
            await tree.write(handle, written % (4 * MIB), b"x" * 16 * KIB)
            written += 16 * KIB
            await trio.sleep(0.005)

    async with open_tree(LateLogStorage(SmallPartsStorage()), tmp_path, options()) as tree:
        await tree.write_file("file", b"")
        await tree.publish_all()
        handle = await tree.open("file")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(write, tree, handle)
            await trio.sleep(0.1)
            for _ in range(3):
                before = written
                with trio.fail_after(60):
                    await tree.filesystem.fsync(handle)
                await trio.sleep(1)
                assert written > before
            nursery.cancel_scope.cancel()


async def test_objects_that_are_written_again_as_they_were_are_no_news_to_the_log(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """New times are a copy of an object onto itself, which leaves its ETag as it was."""
    storage = SmallPartsStorage()
    async with open_tree(storage, tmp_path, options()) as tree:
        names = [f"f{number}" for number in range(20)]
        for name in names:
            await tree.write_file(name, name.encode())
        await tree.publish_all()
        for name in names:
            times = AttributeChanges(mtime_ns=1_000_000_000)
            await tree.filesystem.setattr((await tree.find(name)).number, times)
        await tree.publish_all()
        handle = await tree.create("new")
        await tree.filesystem.fsync(handle)
        assert (await records(storage))[-1] <= 2


@pytest.mark.usefixtures("short_batches")
async def test_objects_that_are_somebodys_again_are_told_in_bounded_batches(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """Files are removed and made again, with objects that look the same, before the old ones could be deleted."""
    inner = SmallPartsStorage()
    storage = FaultyStorage(inner)
    names = [f"{number:03}" for number in range(5 * HEADS)]
    async with open_tree(storage, tmp_path / "1", options(publishes=True)) as tree:
        for name in names:
            await tree.write_file(name, b"")
        await tree.publish_all()
        storage.fail(AccessDenied, verb=Verb.DELETE_MANY, times=math.inf)
        for name in names:
            await tree.unlink(name)
        await tree.log.commit()
        await trio.sleep(5)
        for name in names:
            await tree.write_file(name, b"")
        await tree.publish_all()
        await tree.write_file("new", b"")
        await tree.log.commit()
        told = await records(inner)
        assert sum(told[-5:]) > 4 * HEADS
        assert max(told) <= HEADS + 1
    storage.heal()
    async with open_tree(storage, tmp_path / "2", options(publishes=True)) as tree:
        await tree.publish_all()
        assert set(await stored(inner)) == {*names, "new"}


async def test_a_further_name_is_told_with_its_inode_wherever_a_commit_is_divided(
    tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The inode is published, and its batch would go; the name is not."""
    monkeypatch.setattr(batch_contents, "HEADS_SIZE", 1)
    storage = FaultyStorage(SmallPartsStorage())
    async with open_tree(storage, tmp_path / "1", options(publishes=True)) as tree:
        await tree.write_file("a", b"bytes")
        await tree.link("a", "b")
        await tree.publish_all()
        storage.hold(Verb.COPY, key="c", times=math.inf)
        await tree.rename("b", "c")
        for name in ("d", "e"):
            await tree.log.commit()
            await trio.sleep(5)
            await tree.write_file(name, b"")
        await tree.log.commit()
    async with open_tree(storage, tmp_path / "2", options()) as tree:
        assert await tree.names() == ["a", "c", "d", "e"]
        assert (await tree.find("a")).number == (await tree.find("c")).number


async def test_a_further_name_is_told_again_with_its_inode_wherever_a_commit_is_divided(
    tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name is denied, and so both are told again; then the inode is published, and its batch would go."""
    monkeypatch.setattr(batch_contents, "HEADS_SIZE", 1)
    storage = FaultyStorage(SmallPartsStorage())
    short = replace(options(publishes=True), max_log_bytes=0)
    async with open_tree(storage, tmp_path / "1", short) as tree:
        await tree.write_file("a", b"bytes")
        await tree.link("a", "b")
        await tree.publish_all()
        storage.fail(AccessDenied, verb=Verb.COPY, key="c", times=math.inf)
        await tree.rename("b", "c")
        for number in range(20):
            await tree.write_file(f"{number}", b"")
            await tree.log.commit()
            await trio.sleep(5)
    storage.heal()
    async with open_tree(storage, tmp_path / "2", options()) as tree:
        assert {"a", "c"} <= set(await tree.names())
        assert (await tree.find("a")).number == (await tree.find("c")).number
