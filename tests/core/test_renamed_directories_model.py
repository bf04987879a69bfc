"""Random operations on a tree of which a mount has listed little, with random deaths: directories are renamed unlisted.

As `test_log_model`, but a mount does not look at everything first, and is slow to find out what is below a directory.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from random import Random
from typing import Final

import pytest
import trio
from trio.testing import MockClock

from backends.base import ObjectStorage
from backends.errors import Unavailable
from backends.intercepted import InterceptedStorage, Request, T
from fusefs.inodes import Directory
from fusefs.subtrees import Subtrees
from tests.core.history import History, State, state_of
from tests.core.mortal import Death
from tests.core.refusing import Refusals
from tests.core.small_parts import PART, SmallPartsStorage
from tests.core.test_log_crash import check, difference, live
from tests.core.test_log_model import Walk
from tests.core.tree import open_tree
from tests.core.watching import LOOKING

pytestmark = pytest.mark.usefixtures("small_parts")

NAMES: Final = ("a", "b", "c")
SHALLOW: Final = tuple(f"{first}/{second}" for first in NAMES for second in NAMES)
PATHS: Final = (*NAMES, *SHALLOW, *(f"{path}/{name}" for path in SHALLOW for name in NAMES))
MOUNTS: Final = 6
WALKS: Final = int(os.environ.get("FUSEFS_WALKS", "60"))
FIRST: Final = int(os.environ.get("FUSEFS_FIRST", "0"))


class LateStorage(InterceptedStorage):
    """Answers after a while, now and then a long one."""

    def __init__(self, inner: ObjectStorage, rng: Random) -> None:
        super().__init__(inner)
        self._rng = rng

    async def _carry_out(self, request: Request, send: Callable[[], Awaitable[T]]) -> T:
        await trio.sleep(self._rng.choice([0, 0, 0.001, 0.03, 0.3]))
        return await send()


def reluctant(monkeypatch: pytest.MonkeyPatch, rng: Random) -> None:
    """Let it take its time, and fail now and then, to find out what is below a directory."""
    find_all = Subtrees.find_all

    async def find_late(subtrees: Subtrees, directory: Directory) -> None:
        await trio.sleep(rng.choice([0, 0.1, 2, 10]))
        if rng.random() < 0.2:
            raise Unavailable("it is told later")
        await find_all(subtrees, directory)

    monkeypatch.setattr(Subtrees, "find_all", find_late)


async def state_in(storage: SmallPartsStorage, where: Path) -> State:
    """Return what a mount would show, as seen by one that changes nothing."""
    async with open_tree(storage.twin(), where, LOOKING) as tree:
        return await state_of(tree)


def filled(rng: Random) -> dict[str, bytes]:
    """Return objects for a tree of directories that are prefixes and no more."""
    objects: dict[str, bytes] = {}
    for path in rng.sample(PATHS, 14):
        if "/" in path and not any(_is_within(path, other) for other in objects):
            objects[path] = rng.randbytes(rng.choice([1, 30, 2 * PART]))
    return objects


def _is_within(path: str, other: str) -> bool:
    return path.startswith(f"{other}/") or other.startswith(f"{path}/")


@pytest.mark.parametrize("seed", range(FIRST, FIRST + WALKS))
async def test_random_deaths_with_directories_renamed_unlisted(
    seed: int,
    tmp_path: Path,
    autojump_clock: MockClock,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caplog.set_level(logging.CRITICAL)
    rng = Random(seed)
    before = filled(rng)
    storage, history = SmallPartsStorage(), History(before)
    for key, data in before.items():
        await storage.put(key, data, metadata={"mode": str(0o100644)})
    for mount in range(MOUNTS):
        death = rng.choice(list(Death))
        call = rng.randrange(1, 8 if death is Death.OVERTAKEN else 60)
        state = await state_in(storage, tmp_path / f"{mount}-seen")
        assert history.allows(state), difference(history, state)
        history.resume(state)
        walk = Walk(rng, rng.randrange(3, 20), paths=PATHS, renaming=0.4, looks=False)
        with monkeypatch.context() as patch:
            reluctant(patch, rng)
            where = tmp_path / f"{mount}"
            late = LateStorage(storage, rng)
            await live(late, history, walk, call, death, where, refusing=Refusals())
    await check(storage, history, tmp_path / "checked")
