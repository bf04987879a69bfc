"""What the log counts of itself, whatever was deleted and what could not be."""

from __future__ import annotations

from collections.abc import Mapping
from random import Random
from typing import Final

import pytest
import trio

from backends.base import ObjectStorage
from backends.errors import StorageError
from backends.intercepted import Verb
from backends.memory import MemoryStorage
from fusefs.journal import Journal
from fusefs.log_records import InodeRecord, Position
from tests.core.tree import stored
from tests.support.faulty import FaultyStorage

EPOCH: Final = 3


async def _append(journal: Journal, nursery: trio.Nursery, length: int) -> None:
    sequence = journal.append(
        nursery,
        (InodeRecord(log_id="1-1", number=1, path=(b"x" * length,), metadata={}),),
        cutoff=Position(EPOCH, 1),
    )
    await journal.acknowledged(sequence)


async def _sizes(storage: ObjectStorage) -> Mapping[int, int]:
    """Return the bytes of each batch that is in the store, by its sequence."""
    everything = await stored(storage, ours=True)
    return {int(key.rpartition("/")[2], 16): len(data) for key, data in everything.items()}


@pytest.mark.parametrize("seed", range(4))
async def test_the_log_counts_what_is_in_the_store(seed: int) -> None:
    """After deletions, too, some of which fail and are left between others."""
    rng = Random(seed)
    storage = FaultyStorage(MemoryStorage())
    journal = Journal(storage, EPOCH)
    noted = 1
    async with trio.open_nursery() as nursery:
        for _ in range(40):
            for _ in range(rng.randrange(4)):
                await _append(journal, nursery, rng.randrange(200))
            if rng.random() < 0.3:
                if rng.random() < 0.5:
                    storage.fail(StorageError, verb=Verb.DELETE_MANY)
                noted = rng.randint(noted, journal.last_sequence + 1)
                await journal.trim(Position(EPOCH, noted))
            sizes = await _sizes(storage)
            assert journal.size_bytes == sum(sizes.values())
            assert journal.statistics().batches == len(sizes)
            for cutoff in range(noted, journal.last_sequence + 2):
                kept = [size for sequence, size in sizes.items() if sequence >= cutoff]
                assert journal.size_from(Position(EPOCH, cutoff)) == sum(kept)
                assert journal.count_before(Position(EPOCH, cutoff)) == len(sizes) - len(kept)
            needed = [size for sequence, size in sizes.items() if sequence >= noted]
            assert journal.size_from(Position(EPOCH, 1)) == sum(needed), (
                "what cannot be deleted is not needed for that"
            )
            assert journal.size_from(Position(EPOCH - 1, 7)) == sum(needed)
            assert journal.count_before(Position(EPOCH - 1, 7)) == 0


async def test_an_empty_log_has_no_age() -> None:
    """Not even one of less than nothing, which two looks at the clock would make of it."""
    assert Journal(MemoryStorage(), EPOCH).statistics().age_seconds == 0
