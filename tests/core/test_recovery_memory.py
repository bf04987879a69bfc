"""What a recovery takes: memory that does not depend on how long the log is, and of the stage what is still needed."""

from __future__ import annotations

import logging
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest
from trio.testing import MockClock

from backends.base import KIB, MIB, ListPage, RangeResult
from backends.memory import MemoryStorage
from fusefs.journal_format import JOURNAL_PREFIX, batch_key, encode, position_of
from fusefs.log_records import Batch, ContentRecord, InodeRecord, Position, Written
from fusefs.stage import MEMORY_FILE_BYTES
from tests.core.mortal import MortalStorage
from tests.core.tree import TreeOptions, open_tree

BATCH_SIZE: Final = 8 * MIB
BATCHES: Final = 128
FILE_SIZE: Final = 16 * MIB
STAND_IN: Final = b"made up when it is read"


class MadeUpLog(MemoryStorage):
    """A log of `BATCHES` batches, each of which is made when it is asked for; they tell of so many files, in turn."""

    def __init__(self, files: int = 1) -> None:
        super().__init__()
        self._files = files

    async def fill(self) -> None:
        for sequence in range(1, BATCHES + 1):
            await self.put(batch_key(Position(1, sequence)), STAND_IN)

    async def list_prefix(
        self,
        prefix: str = "",
        *,
        delimiter: str = "",
        start_after: str = "",
        page_token: str | None = None,
        page_size: int = 1_000,
    ) -> ListPage:
        page = await super().list_prefix(
            prefix, delimiter=delimiter, start_after=start_after, page_token=page_token, page_size=page_size
        )
        objects = [
            replace(info, size=BATCH_SIZE) if info.size == len(STAND_IN) else info for info in page.objects
        ]
        return replace(page, objects=tuple(objects))

    async def get_range(
        self, key: str, start: int = 0, length: int | None = None, *, if_match: str | None = None
    ) -> RangeResult:
        found = await super().get_range(key, start, length, if_match=if_match)
        position = position_of(key) if key.startswith(JOURNAL_PREFIX) else None
        if position is None or found.data != STAND_IN:
            return found
        data = encode(_batch(position, position.sequence % self._files))
        return RangeResult(body=data, etag=found.etag, object_size=len(data))


def _batch(position: Position, file: int) -> Batch:
    start = position.sequence * BATCH_SIZE % FILE_SIZE
    content = ContentRecord(
        size=FILE_SIZE, written=(Written(start, position.sequence.to_bytes(1) * BATCH_SIZE),)
    )
    record = InodeRecord(
        log_id=f"1f-{file:x}",
        number=7 + file,
        path=(b"hot%d" % file,),
        metadata={"mode": str(0o100644)},
        content=content,
    )
    return Batch(position=position, cutoff=Position(1, 1), records=(record,))


FILES_IN_BATCH: Final = 500
FILES: Final = 6 * FILES_IN_BATCH
EACH: Final = 5 * KIB + 256
"""Bytes of memory that a file may take while it is recovered; 3.5 KiB are the inode in the tree."""


async def test_a_log_of_many_files(tmp_path: Path, autojump_clock: MockClock) -> None:
    """What it takes for each is the file in the tree and what the log says of it, and no task that looks for it."""
    storage = MemoryStorage()
    for sequence in range(1, FILES // FILES_IN_BATCH + 1):
        records = tuple(
            InodeRecord(
                log_id=f"1f-{number:x}",
                number=number,
                path=(f"{number:06}".encode(),),
                metadata={"mode": str(0o100644)},
                content=ContentRecord(size=0),
            )
            for number in range(sequence * FILES_IN_BATCH, (sequence + 1) * FILES_IN_BATCH)
        )
        batch = Batch(position=Position(1, sequence), cutoff=Position(1, 1), records=records)
        await storage.put(batch_key(batch.position), encode(batch))
    del records, batch
    tracemalloc.start()
    try:
        async with open_tree(storage, tmp_path, TreeOptions(logged=True)) as tree:
            _, peak = tracemalloc.get_traced_memory()
            assert len(await tree.names()) == FILES
    finally:
        tracemalloc.stop()
    assert peak < FILES * EACH


async def test_a_gibibyte_of_log(
    tmp_path: Path, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """1 GiB that tells of one file of 16 MiB, which is what is left of it on the local disk. Of memory it takes some
    copies of a batch: the test's own, the store's, and what is decoded. How far it is, the log says.
    """
    caplog.set_level(logging.INFO)
    storage = MadeUpLog()
    await storage.fill()
    tracemalloc.start()
    try:
        async with open_tree(storage, tmp_path, TreeOptions(logged=True)) as tree:
            _, peak = tracemalloc.get_traced_memory()
            expected = (BATCHES.to_bytes(1), (BATCHES - 1).to_bytes(1))
            handle = await tree.open("hot0")
            assert await tree.filesystem.read(handle, 0, 1) == expected[0]
            assert await tree.filesystem.read(handle, FILE_SIZE - 1, 1) == expected[1]
    finally:
        tracemalloc.stop()
    assert BATCHES * BATCH_SIZE == 1024 * MIB
    assert peak < 6 * BATCH_SIZE
    assert f"0 of {BATCHES} batches, 0 bytes of " in caplog.text


@pytest.mark.parametrize("is_removed", [True, False], ids=["removed", "published"])
async def test_what_nobody_needs_of_the_log_is_not_staged(
    is_removed: bool, tmp_path: Path, autojump_clock: MockClock
) -> None:
    """A file that was removed since, or is whole in the bucket, takes no place for as long as the mount lives."""
    storage = MemoryStorage()
    mortal = MortalStorage(storage)
    async with open_tree(mortal, tmp_path / "1", TreeOptions(logged=True)) as tree:
        needed = await tree.create("needed")  # and with it the whole log
        await tree.write(needed, 0, b"bytes")
        for number in range(3):
            await tree.write_file(f"{number}", bytes([number + 1]) * 2 * MEMORY_FILE_BYTES)
            await tree.log.commit()
            if is_removed:
                await tree.unlink(f"{number}")
        await tree.log.commit()
        await tree.publisher.publish_all(open_files=False)
        mortal.die()
    async with open_tree(storage, tmp_path / "2", TreeOptions(logged=True)) as tree:
        assert await tree.names() == ["needed"] if is_removed else ["0", "1", "2", "needed"]
        assert await tree.read_file("needed") == b"bytes"
        assert list((tmp_path / "2" / "stage").iterdir()) == []


async def test_a_log_of_many_large_files(tmp_path: Path, autojump_clock: MockClock) -> None:
    """The last that is known of each has its attributes and names, and not the bytes: these are on the local disk."""
    storage = MadeUpLog(files=BATCHES // 4)
    await storage.fill()
    tracemalloc.start()
    try:
        async with open_tree(storage, tmp_path, TreeOptions(logged=True)) as tree:
            _, peak = tracemalloc.get_traced_memory()
            assert len(await tree.names()) == BATCHES // 4
    finally:
        tracemalloc.stop()
    assert peak < 6 * BATCH_SIZE
