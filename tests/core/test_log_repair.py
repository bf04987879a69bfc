"""A damaged log: nothing of it is applied unasked, what is before the damage can be, and nothing is thrown away."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest
import trio
from hypothesis import assume, given
from hypothesis import strategies as st
from trio.testing import MockClock

from backends.base import iterate_pages
from backends.memory import MemoryStorage
from fusefs.errors import LogDamaged
from fusefs.journal_format import JOURNAL_PREFIX, batch_key, encode
from fusefs.log_reader import LogReader
from fusefs.log_records import CONTINUED, Batch, LeftoverRecord, Position
from fusefs.log_repair import DAMAGED_PREFIX, LogRepair
from fusefs.old_logs import LogPart, batches, find_logs, places, survey_logs
from fusefs.placement import DETOURS_PREFIX
from fusefs.publisher import PublishOptions
from fusefs.versions import Version
from tests.core.logs import commit_thrice
from tests.core.tree import NEVER_PUBLISHED, TreeOptions, open_tree

SOMETHING: Final = (LeftoverRecord(Version("key", "etag", 1)),)
OPTIONS: Final = TreeOptions(logged=True, publish=NEVER_PUBLISHED)


async def damage(storage: MemoryStorage, position: Position) -> None:
    key = batch_key(position)
    await storage.put(key, (await storage.get_range(key)).data[:-1])


async def keys(storage: MemoryStorage, prefix: str) -> list[str]:
    return [info.key async for page in iterate_pages(storage, prefix) for info in page.objects]


@pytest.mark.parametrize("sequence", [1, 2, 3])
async def test_what_is_before_the_damage_is_saved(
    tmp_path: Path, autojump_clock: MockClock, sequence: int
) -> None:
    storage = MemoryStorage()
    await commit_thrice(storage, tmp_path / "1")
    await damage(storage, Position(1, sequence))
    with pytest.raises(LogDamaged, match="fusefs recover"):
        async with open_tree(storage, tmp_path / "2", OPTIONS):
            pass
    # The attempt has sealed the log, as far as it could.
    repair = LogRepair(storage)
    found = await repair.diagnose()
    assert found.readable == sequence - 1
    assert f". {('0 batches', '1 batch', '2 batches')[sequence - 1]} before it can be applied," in str(found)
    assert found.lost[0] == Position(1, sequence)
    before = await keys(storage, JOURNAL_PREFIX)
    await repair.set_aside(found)
    aside = await keys(storage, DAMAGED_PREFIX)
    assert [key.removeprefix(DAMAGED_PREFIX) for key in aside] == [
        key.removeprefix(JOURNAL_PREFIX) for key in before if key >= batch_key(Position(1, sequence))
    ]
    assert (await repair.diagnose()).lost == ()
    async with open_tree(storage, tmp_path / "3", replace(OPTIONS, publish=PublishOptions())) as tree:
        assert await tree.names() == (["file"] if sequence > 1 else [])
        if sequence > 1:
            assert await tree.read_file("file") == b"01"[: sequence - 1]
        await tree.publish_all()


async def test_an_object_of_which_the_log_does_not_tell_any_more_stays(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """It may be the only one of a file, which waited for its name when the mount died: `fusefs check` tells of it."""
    storage, waiting = MemoryStorage(), f"{DETOURS_PREFIX}0123456789ab-5"
    await commit_thrice(storage, tmp_path / "1")
    await storage.put(waiting, b"of a file")
    await damage(storage, Position(1, 1))
    repair = LogRepair(storage)
    await repair.set_aside(await repair.diagnose())
    async with open_tree(storage, tmp_path / "2", TreeOptions(logged=True)) as tree:
        await tree.publish_all()
        await trio.sleep(90)
    assert (await storage.get_range(waiting)).data == b"of a file"


async def test_a_whole_log(tmp_path: Path, autojump_clock: MockClock) -> None:
    storage = MemoryStorage()
    await commit_thrice(storage, tmp_path)
    found = await LogRepair(storage).diagnose()
    assert (found.readable, found.lost) == (3, ())
    assert str(found) == "the log is whole: 3 batches"


async def test_damage_that_nobody_needs(tmp_path: Path) -> None:
    storage = MemoryStorage()
    await storage.put(batch_key(Position(1, 1)), b"damaged")
    closing = Batch(position=Position(2, 1), cutoff=Position(2, 1))
    await storage.put(batch_key(closing.position), encode(closing))
    assert (await LogRepair(storage).diagnose()).lost == ()


async def test_half_of_a_commit_is_set_aside_too(tmp_path: Path) -> None:
    storage = MemoryStorage()
    for sequence, flags in ((1, 0), (2, CONTINUED), (3, 0)):
        batch = Batch(position=Position(1, sequence), cutoff=Position(1, 1), flags=flags, records=SOMETHING)
        await storage.put(batch_key(batch.position), encode(batch))
    await damage(storage, Position(1, 3))
    found = await LogRepair(storage).diagnose()
    assert found.readable == 1
    assert found.lost == (Position(1, 2), Position(1, 3))


async def applied(storage: MemoryStorage) -> list[Batch]:
    """Return what a mount would apply. Raises `LogDamaged`."""
    found = await find_logs([LogPart(LogReader(storage))], before_epoch=9)
    return [batch async for batch in batches(found)]


async def is_possible(storage: MemoryStorage) -> bool:
    """Return whether no term needs anything of those before it that did not count when it began."""
    reader = LogReader(storage)
    for epoch in (2, 3):
        logs = await survey_logs([LogPart(reader)], before=Position(epoch, 1))
        counting = [position for position, _ in places(logs)]
        for position in await reader.positions():
            needed = (await reader.read(position)).cutoff
            if position.epoch == epoch > needed.epoch and needed not in counting:
                return False
    return True


async def objects(storage: MemoryStorage) -> dict[str, bytes]:
    return {key: (await storage.get_range(key)).data for key in await keys(storage, "")}


_POSITIONS: Final = [Position(epoch, sequence) for epoch in (1, 2, 3) for sequence in range(1, 6)]


@st.composite
def _logs(draw: st.DrawFn) -> dict[str, bytes]:
    """Some batches of three terms, with holes, halves of commits and cutoffs of every kind; no term takes one back."""
    log = {}
    needed: dict[int, Position] = {}
    acknowledged: dict[int, int] = {}  # of each epoch, up to the first hole
    for position in _POSITIONS:
        known = draw(st.integers(0, acknowledged.setdefault(position.epoch, 0)))
        if draw(st.integers(0, 5)):
            flags = CONTINUED if draw(st.integers(0, 4)) == 0 else 0
            cutoff = draw(st.sampled_from([Position(1, 1), Position(position.epoch, 1), position]))
            cutoff = needed[position.epoch] = max(cutoff, needed.get(position.epoch, cutoff))
            records = SOMETHING * draw(st.integers(0, 2))
            batch = Batch(position=position, cutoff=cutoff, acknowledged=known, flags=flags, records=records)
            log[batch_key(position)] = encode(batch)
            acknowledged[position.epoch] += acknowledged[position.epoch] == position.sequence - 1
    assume(log)
    return log


@st.composite
def _damaged(draw: st.DrawFn, log: dict[str, bytes]) -> dict[str, bytes]:
    """Cut batches short, flip bits, and store some under the name of another: but remove none."""
    damaged = dict(log)
    for _ in range(draw(st.integers(1, 3))):
        key, other = draw(st.sampled_from(sorted(log))), draw(st.sampled_from(_POSITIONS))
        data = damaged[key]
        match draw(st.sampled_from(["cut", "flip", "swap", "copy"])):
            case "cut":
                damaged[key] = data[: draw(st.integers(0, len(data)))]
            case "flip" if data:
                flipped = bytearray(data)
                flipped[draw(st.integers(0, len(data) - 1))] ^= 1 << draw(st.integers(0, 7))
                damaged[key] = bytes(flipped)
            case "swap" if batch_key(other) in damaged:
                damaged[key], damaged[batch_key(other)] = damaged[batch_key(other)], data
            case "copy":
                damaged[batch_key(other)] = data
            case _:
                pass
    return damaged


@given(data=st.data(), log=_logs())
async def test_mounts_and_recover_agree_about_every_damage(
    data: st.DataObject, log: dict[str, bytes]
) -> None:
    """Whatever was done to batches, a mount refuses the log, or applies what it would have applied, all of it.

    `fusefs recover` finds the same, changes nothing unasked, and what it saves is what a mount applies then.
    """
    whole, storage = MemoryStorage(), MemoryStorage()
    for key, content in log.items():
        await whole.put(key, content)
    assume(await is_possible(whole))
    before = await applied(whole)
    for key, content in data.draw(_damaged(log)).items():
        await storage.put(key, content)
    there = await objects(storage)
    found = await LogRepair(storage).diagnose()
    assert await objects(storage) == there
    if not found.lost:
        assert await applied(storage) == before
        assert found.readable == len(before)
        return
    with pytest.raises(LogDamaged):
        await applied(storage)
    again = await LogRepair(storage).diagnose()  # the attempt may have sealed some terms
    assert (again.readable, again.damage) == (found.readable, found.damage)
    assert again.lost
    await LogRepair(storage).set_aside(again)
    saved = await applied(storage)
    assert len(saved) == found.readable
    assert [encode(batch) for batch in saved] == [log[batch_key(batch.position)] for batch in saved]
    left = await objects(storage)
    for key, content in there.items():
        assert content in (left.get(key), left.get(f"{DAMAGED_PREFIX}{key.removeprefix(JOURNAL_PREFIX)}"))


async def test_what_a_mount_does_not_need_is_no_damage(tmp_path: Path) -> None:
    """Neither of the remains of a term that a later one says is not needed, nor behind a seal."""
    storage = MemoryStorage()
    await storage.put(batch_key(Position(1, 1)), b"damaged")
    batch = Batch(position=Position(2, 1), cutoff=Position(2, 1), records=SOMETHING)
    await storage.put(batch_key(batch.position), encode(batch))
    assert await applied(storage) == [batch]
    await storage.put(batch_key(Position(2, 3)), b"damaged, and arrived behind the seal of the reading above")
    assert await applied(storage) == [batch]
    found = await LogRepair(storage).diagnose()
    assert (found.readable, found.lost) == (1, ())
