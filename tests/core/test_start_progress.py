"""How far a mount is that does not answer yet: what it says of that, and how often."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
import trio
from trio.testing import MockClock

from backends.base import KIB, RangeResult
from backends.memory import MemoryStorage
from fusefs.attributes import Defaults
from fusefs.log_reader import LogReader
from fusefs.old_logs import READ_AT_ONCE, LogPart, find_logs
from fusefs.quantities import brief_size
from fusefs.recovery import Recovery
from fusefs.start_progress import StartProgress
from tests.core.logs import log_objects
from tests.core.tree import NEVER_PUBLISHED, TreeOptions, open_tree

BYTES = Random(1).randbytes(10 * KIB)
BATCHES = 12 * READ_AT_ONCE
FILES = 20
SECONDS = 1.0
"""How long the store takes for a request."""


class SlowStorage(MemoryStorage):
    """Takes its time to read a batch."""

    async def get_range(
        self, key: str, start: int = 0, length: int | None = None, *, if_match: str | None = None
    ) -> RangeResult:
        await trio.sleep(SECONDS)
        return await super().get_range(key, start, length, if_match=if_match)


def test_lines_are_told_now_and_then(caplog: pytest.LogCaptureFixture) -> None:
    """What is new at once, the same again after a while; the last one is known all the time."""
    caplog.set_level(logging.INFO)
    now = 100.0
    told: list[str] = []
    progress = StartProgress(told.append, lambda: now)
    for number in range(12):
        progress.note("reading", f"{number} of 20")
        assert progress.line == f"reading: {number} of 20"
        now += 1
    assert told == ["reading: 0 of 20", "reading: 5 of 20", "reading: 10 of 20"]
    progress.note("looking", "0 of 3")
    assert told[-1] == "looking: 0 of 3"
    assert caplog.messages == told


async def test_a_recovery_says_how_far_it_is(tmp_path: Path, autojump_clock: MockClock) -> None:
    storage = SlowStorage()
    options = TreeOptions(logged=True, publish=NEVER_PUBLISHED)
    async with open_tree(storage, tmp_path / "lost", options) as tree:
        for number in range(FILES):
            await tree.create(f"{number}")
        handle = await tree.create("file")
        for _ in range(BATCHES):
            await tree.write(handle, 0, BYTES)
            await tree.filesystem.fsync(handle)
    told: list[tuple[float, str]] = []
    progress = StartProgress(lambda line: told.append((trio.current_time(), line)), trio.current_time)
    sizes = [*(await log_objects(storage)).values()]
    old = await find_logs([LogPart(LogReader(storage))], before_epoch=2)
    began = trio.current_time()
    async with open_tree(storage, tmp_path / "next", replace(options, logged=False)) as tree:
        recovered = await Recovery(tree.sources, Defaults(uid=0, gid=0), progress).read(old)
    assert len(recovered.inodes) == FILES + 1
    assert [(time - began, line) for time, line in told[:-1]] == [
        (
            seconds,
            f"reading the log that an earlier mount has left: {number} of {BATCHES} batches,"
            f" {brief_size(sum(sizes[:number]))} of {brief_size(sum(sizes))}",
        )
        for seconds, number in ((0, 0), (5, 4 * READ_AT_ONCE + 1), (10, 9 * READ_AT_ONCE + 1))
    ]
    assert told[-1][1] == f"looking for its files and directories in the bucket: 0 of {FILES + 1}"
    assert progress.line == f"looking for its files and directories in the bucket: {FILES + 1} of {FILES + 1}"
