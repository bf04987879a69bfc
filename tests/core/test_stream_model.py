"""Random deaths of mounts that write large files, rename them while they go up, and write them again.

As `test_log_model`, with four names and five contents: so that two files have the same bytes one after the other under
one key, an object looks like the one before, and older ones are under names that a file has again. Some recoveries
die at once, one after the other.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from random import Random
from typing import Final

import pytest
import trio
from trio.testing import MockClock

from backends.base import ObjectStorage
from backends.intercepted import InterceptedStorage, Request, T
from tests.core.history import History
from tests.core.losses import check, live, look
from tests.core.mortal import READING, Death
from tests.core.small_parts import PART, SmallPartsStorage

pytestmark = pytest.mark.usefixtures("small_parts", "quiet")

NAMES: Final = ("a", "b", "c", "d")
SIZES: Final = (6 * PART, 6 * PART, 4 * PART + 100, 3 * PART + 2_000, 50)
CONTENTS: Final = [Random(number).randbytes(size) for number, size in enumerate(SIZES)]
MOUNTS: Final = 8
WALKS: Final = 60


class SlowStorage(InterceptedStorage):
    """Takes its time for what changes it, so that there is some to rename what goes up."""

    def __init__(self, inner: ObjectStorage, rng: Random) -> None:
        super().__init__(inner)
        self._rng = rng

    async def _carry_out(self, request: Request, send: Callable[[], Awaitable[T]]) -> T:
        if request.verb not in READING:
            await trio.sleep(self._rng.choice([0, 0.01, 0.05]))
        return await send()


class Walk:
    """What one mount does: `steps` random operations."""

    def __init__(self, rng: Random, steps: int) -> None:
        self._rng = rng
        self._steps = steps
        self._open: list[int] = []

    async def __call__(self, history: History) -> None:
        await look(history)
        for _ in range(self._steps):
            await self._step(history)
        for handle in self._open:
            await history.close(handle)

    async def _step(self, history: History) -> None:
        rng = self._rng
        known = [name for name in NAMES if name in history.state()]
        match rng.randrange(14):
            case 0 | 1 | 2 | 3:
                await self._write_file(history, rng.choice(NAMES))
            case 4 | 5 | 6 | 7 | 8 if known:
                name, new_name = rng.choice(known), rng.choice(NAMES)
                if name != new_name:
                    await history.rename(name, new_name)
            case 9 if self._open:
                await history.close(self._open.pop(rng.randrange(len(self._open))))
            case 10:
                await history.commit()
            case 11 if known and rng.random() < 0.3:
                await history.unlink(rng.choice(known))
            case 11 if self._open:
                data = rng.choice(CONTENTS)[: rng.choice([10, PART, 3 * PART])]
                await history.write(rng.choice(self._open), rng.randrange(4 * PART), data)
            case _:
                await trio.sleep(rng.choice([0, 0.01, 0.03, 0.06, 0.1, 0.3, 2, 7]))

    async def _write_file(self, history: History, name: str) -> None:
        rng = self._rng
        if name not in history.state():
            handle = await history.create(name)
        else:
            handle = await history.open(name, os.O_RDWR | (os.O_TRUNC if rng.random() < 0.7 else 0))
        await history.write(handle, rng.choice([0, 0, 0, PART]), rng.choice(CONTENTS))
        if rng.random() < 0.3:
            await trio.sleep(0.02)
        if rng.random() < 0.3:
            await history.fsync(handle)
        if rng.random() < 0.7:
            await history.close(handle)
        else:
            self._open.append(handle)


@pytest.mark.parametrize("seed", range(WALKS))
async def test_mounts_die_at_random_calls_while_large_files_are_renamed(
    seed: int, tmp_path: Path, autojump_clock: MockClock
) -> None:
    rng = Random(seed)
    storage, history = SmallPartsStorage(), History({})
    for mount in range(MOUNTS):
        death = rng.choice([Death.CALL_LOST, Death.ANSWER_LOST, Death.ANSWER_LOST])
        call, walk = rng.randrange(1, rng.choice([15, 60])), Walk(rng, rng.randrange(40))
        try:
            await live(SlowStorage(storage, rng), history, walk, call, death, tmp_path / f"{mount}")
        except BaseException as error:
            error.add_note(f"in mount {mount}")
            raise
    await check(storage, history, tmp_path / "last")
