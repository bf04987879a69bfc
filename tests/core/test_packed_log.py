"""A log on the local disk, whose batches share files: what has become of such a file is told, and never applied."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from random import Random
from typing import Final

import pytest
import trio

from backends.base import KIB, ObjectStorage
from backends.directory import DirectoryStorage
from fusefs.errors import LogDamaged
from fusefs.journal import Journal
from fusefs.lease_record import LogEnd
from fusefs.log_reader import LogReader
from fusefs.log_records import Batch, InodeRecord, Position
from fusefs.log_repair import LogRepair
from fusefs.old_logs import LogPart, batches, find_logs
from fusefs.stores import open_local
from tests.core.hosts import PromptDirectory
from tests.core.logs import batches as batches_in

EPOCH: Final = 3
BEGIN: Final = Position(EPOCH, 1)
BATCHES: Final = 12
SIZES: Final = (10, 300, 5 * KIB, 9 * KIB)


@asynccontextmanager
async def opened(directory: Path) -> AsyncIterator[ObjectStorage]:
    """Open the log as another process would."""
    storage = open_local(directory, PromptDirectory)
    try:
        yield storage
    finally:
        await storage.aclose()


async def write_log(
    storage: ObjectStorage, rng: Random, *, epoch: int = EPOCH, needed_from: Position = BEGIN
) -> Journal:
    """Append batches, each of which is acknowledged before the next one; those before `needed_from` are not needed."""
    journal = Journal(storage, epoch)
    async with trio.open_nursery() as nursery:
        for _ in range(BATCHES):
            record = InodeRecord(
                log_id="1-1", number=1, path=(rng.randbytes(rng.choice(SIZES)),), metadata={}
            )
            cutoff = min(journal.next_position, needed_from)
            await journal.acknowledged(journal.append(nursery, (record,), cutoff=cutoff))
    return journal


async def read_log(directory: Path, *, is_told: bool) -> list[Batch]:
    """Return what a mount would apply, which takes the log over."""
    async with opened(directory) as storage:
        logs = await find_logs([part_of(storage, is_told=is_told)], before_epoch=EPOCH + 1)
        return [batch async for batch in batches(logs)]


def part_of(storage: ObjectStorage, *, is_told: bool) -> LogPart:
    told = LogEnd(EPOCH, BATCHES, is_needed=True) if is_told else None
    return LogPart(LogReader(storage), 1, told)


def packs(directory: Path) -> list[Path]:
    return sorted((directory / ".fusefs-store" / "packs").glob("*-*"))


async def test_a_log_is_read_as_it_was_written(tmp_path: Path) -> None:
    async with opened(tmp_path) as storage:
        await write_log(storage, Random(1))
    assert len(packs(tmp_path)) == 1
    assert [batch.position.sequence for batch in await read_log(tmp_path, is_told=True)] == [
        *range(1, BATCHES + 1)
    ]


async def test_a_log_whose_first_batches_an_earlier_version_has_written(tmp_path: Path) -> None:
    """Each was a file; they are found, count, and go with the others."""
    earlier = PromptDirectory(tmp_path)
    begin = Position(EPOCH - 1, 1)
    await write_log(earlier, Random(1), epoch=EPOCH - 1, needed_from=begin)
    async with opened(tmp_path) as storage:
        await write_log(storage, Random(2), needed_from=begin)
        logs = await find_logs([LogPart(LogReader(storage))], before_epoch=EPOCH + 1)
        found = [batch.position async for batch in batches(logs)]
        assert found == [
            Position(epoch, each) for epoch in (EPOCH - 1, EPOCH) for each in range(1, BATCHES + 1)
        ]
        assert await storage.delete_many(logs[0].keys) == {}
        assert await batches_in(storage) == []
    assert packs(tmp_path) == []


def flip(rng: Random, data: bytearray) -> None:
    bit = rng.randrange(8 * len(data))
    data[bit // 8] ^= 1 << bit % 8


def cut(rng: Random, data: bytearray) -> None:
    del data[rng.randrange(len(data)) :]


def wipe_block(rng: Random, data: bytearray) -> None:
    start = rng.randrange(0, len(data), 4_096)
    data[start : start + 4_096] = bytes(4_096)


def swap_blocks(rng: Random, data: bytearray) -> None:
    one, other = (rng.randrange(0, len(data), 4_096) for _ in range(2))
    first, second = data[one : one + 4_096], data[other : other + 4_096]
    data[one : one + 4_096], data[other : other + 4_096] = second, first


@pytest.mark.parametrize("harm", [flip, cut, wipe_block, swap_blocks])
@pytest.mark.parametrize("seed", range(12))
async def test_a_damaged_file(harm: Callable[[Random, bytearray], None], seed: int, tmp_path: Path) -> None:
    """What the lease tells of is all there, or a mount stops; what can be saved is a beginning of the log.

    Without the lease what was acknowledged last may be missing, as where somebody has removed it.
    """
    rng = Random(f"{harm.__name__} {seed}")
    async with opened(tmp_path) as storage:
        await write_log(storage, rng)
    written = await read_whole(tmp_path)
    change_pack(tmp_path, lambda data: harm(rng, data))
    for is_told in (True, False):
        with suppress(LogDamaged):
            found = await read_log(tmp_path, is_told=is_told)
            assert found == written[: len(found)]
            assert len(found) == len(written) or not is_told
    async with opened(tmp_path) as storage:
        repair = LogRepair(storage, [part_of(storage, is_told=True)])
        found_out = await repair.diagnose()
        if not found_out.is_whole:
            await repair.set_aside(found_out)
    assert await read_log(tmp_path, is_told=True) == written[: found_out.readable]


async def read_whole(directory: Path) -> list[Batch]:
    """Return what a log has, which stays as it is."""
    async with opened(directory) as storage:
        reader = LogReader(storage)
        return [await reader.read(position) for position in await reader.positions()]


def change_pack(directory: Path, change: Callable[[bytearray], None]) -> None:
    """Change the bytes of the only file that batches share."""
    (pack,) = packs(directory)
    data = bytearray(pack.read_bytes())
    change(data)
    pack.write_bytes(data)


@pytest.mark.parametrize("seed", range(10))
async def test_a_damaged_file_of_which_only_the_end_is_needed(seed: int, tmp_path: Path) -> None:
    """Where what is not needed any more is damaged, nobody has to know."""
    rng = Random(seed)
    async with opened(tmp_path) as storage:
        await write_log(storage, rng, needed_from=Position(EPOCH, BATCHES - 1))
    written = await read_whole(tmp_path)

    def harm_what_is_before(data: bytearray) -> None:
        end = data.rfind(b"FUSEFSP1", 0, data.rfind(b"FUSEFSP1"))
        data[rng.randrange(end)] ^= 1

    change_pack(tmp_path, harm_what_is_before)
    assert await read_log(tmp_path, is_told=True) == written[-2:]


async def test_a_writer_that_wakes_when_its_term_is_over(tmp_path: Path) -> None:
    """Whoever took over on the same disk has sealed its log, and has all that it has acknowledged."""
    async with opened(tmp_path) as storage:
        journal = await write_log(storage, Random(1))
        assert len(await read_log(tmp_path, is_told=True)) == BATCHES
        async with trio.open_nursery() as nursery:
            record = InodeRecord(log_id="1-1", number=1, path=(b"late",), metadata={})
            sequence = journal.append(nursery, (record,), cutoff=Position(EPOCH, 1))
            with pytest.raises(Exception, match="another mount has taken over"):
                await journal.acknowledged(sequence)
    assert len(await read_log(tmp_path, is_told=True)) == BATCHES


async def test_a_directory_store_as_it_was_has_no_packs(tmp_path: Path) -> None:
    """Nothing but the log on the local disk shares files."""
    storage = DirectoryStorage(tmp_path)
    await write_log(storage, Random(1))
    await storage.aclose()
    assert packs(tmp_path) == []
