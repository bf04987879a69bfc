"""Random operations on a tree of which a mount has listed little, with random deaths: directories are renamed unlisted.

As `test_log_model`, but a mount does not look at everything first, and is slow to find out what is below a directory.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from random import Random
from typing import Final

import pytest
import trio
from trio.testing import MockClock

from backends.base import ObjectStorage
from backends.errors import Unavailable
from backends.intercepted import InterceptedStorage, Request, T, Verb
from fusefs.inodes import Directory
from fusefs.subtrees import Subtrees
from tests.core.history import History, State, state_of
from tests.core.losses import (
    OPTIONS,
    QUIET_SECONDS,
    check,
    die_at_every_call,
    difference,
    filled,
    live,
    look,
    twin,
)
from tests.core.mortal import Death, MortalStorage
from tests.core.refusing import Refusals
from tests.core.small_parts import PART, SmallPartsStorage
from tests.core.test_log_model import Walk
from tests.core.tree import open_tree
from tests.core.watching import LOOKING, WatchingStorage
from tests.support.faulty import FaultyStorage

pytestmark = pytest.mark.usefixtures("small_parts", "quiet")

NAMES: Final = ("a", "b", "c")
SHALLOW: Final = tuple(f"{first}/{second}" for first in NAMES for second in NAMES)
PATHS: Final = (*NAMES, *SHALLOW, *(f"{path}/{name}" for path in SHALLOW for name in NAMES))
MOUNTS: Final = 6
WALKS: Final = 20
#: Walks in which a mount begins after every call that changes the bucket, and their steps.
WATCHED: Final = 5
WATCHED_STEPS: Final = 60


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

    async def find_late(
        subtrees: Subtrees, directory: Directory, *, max_age_seconds: float = math.inf
    ) -> None:
        await trio.sleep(rng.choice([0, 0.1, 2, 10]))
        if rng.random() < 0.2:
            raise Unavailable("it is told later")
        await find_all(subtrees, directory, max_age_seconds=max_age_seconds)

    monkeypatch.setattr(Subtrees, "find_all", find_late)


async def state_in(storage: SmallPartsStorage, where: Path) -> State:
    """Return what a mount would show, as seen by one that changes nothing."""
    async with open_tree(storage.twin(), where, LOOKING) as tree:
        return await state_of(tree)


def scattered(rng: Random) -> dict[str, bytes]:
    """Return objects for a tree of directories that are prefixes and no more."""
    objects: dict[str, bytes] = {}
    for path in rng.sample(PATHS, 14):
        if "/" in path and not any(_is_within(path, other) for other in objects):
            objects[path] = rng.randbytes(rng.choice([1, 30, 2 * PART]))
    return objects


def _is_within(path: str, other: str) -> bool:
    return path.startswith(f"{other}/") or other.startswith(f"{path}/")


async def begin(rng: Random) -> tuple[SmallPartsStorage, History]:
    """Return a bucket with a tree that no mount has seen."""
    return await filled(SmallPartsStorage, scattered(rng))


@pytest.mark.parametrize("seed", range(WALKS))
async def test_random_deaths_with_directories_renamed_unlisted(
    seed: int,
    tmp_path: Path,
    autojump_clock: MockClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = Random(seed)
    storage, history = await begin(rng)
    for mount in range(MOUNTS):
        death = rng.choice(list(Death))
        call = rng.randrange(1, 8 if death is Death.OVERTAKEN else 60)
        state = await state_in(storage, tmp_path / f"{mount}-seen")
        assert history.allows(state), difference(history, state)
        history.resume(state)
        walk = Walk(rng, rng.randrange(3, 20), paths=PATHS, renaming=0.4, looks=False)
        with monkeypatch.context() as patch:
            reluctant(patch, rng)
            late = LateStorage(storage, rng)
            where = tmp_path / f"{mount}"
            await live(late, history, walk, call, death, where, refusing=Refusals())
        if rng.random() < 0.2:
            await check(storage, history, tmp_path / f"{mount}-checked")
    await check(storage, history, tmp_path / "checked")


@pytest.mark.parametrize("seed", range(WATCHED))
async def test_the_log_is_ahead_of_the_bucket_with_directories_renamed_unlisted(
    seed: int,
    tmp_path: Path,
    autojump_clock: MockClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After each single call that changes the bucket, a mount that began there would find what it may."""
    rng = Random(seed)
    storage, history = await begin(rng)
    watching = WatchingStorage(storage, history, tmp_path / "looks")
    with monkeypatch.context() as patch:
        reluctant(patch, rng)
        async with open_tree(watching, tmp_path / "mount", OPTIONS) as tree:
            history.attend(tree)
            await Walk(rng, WATCHED_STEPS, paths=PATHS, renaming=0.4, looks=False)(history)
            await trio.sleep(QUIET_SECONDS)
    assert watching.violations == []
    assert watching.looks > 5


async def crashed(where: Path) -> tuple[SmallPartsStorage, History]:
    """Return a bucket as a mount leaves it that has renamed what it could not look through, and then was lost."""
    below = {"file": b"1", "gone": b"2", "deep/out/file": b"3", "deep/file": b"4", "stall/file": b"5"}
    storage, history = await filled(SmallPartsStorage, {f"old/{path}": data for path, data in below.items()})
    faulty = FaultyStorage(storage)
    for stalled in ("old/stall/", "old/deep/out/"):
        faulty.hold(Verb.LIST_PREFIX, key=stalled, times=math.inf)
    mortal = MortalStorage(faulty)
    async with open_tree(mortal, where, OPTIONS) as tree:
        history.attend(tree)
        await history.rename("old", "new")
        await history.mkdir("old")
        await history.rename("new/deep/out", "old/deep")
        await history.rename("new/file", "old/file")
        await history.unlink("new/gone")
        handle = await history.create("new/made")
        await history.write(handle, 0, bytes(range(100)))
        await history.fsync(handle)
        await trio.sleep(QUIET_SECONDS)
        assert len(tree.placement.moving) == 2
        mortal.die()
    return storage, history


@pytest.mark.parametrize("death", [Death.CALL_LOST, Death.ANSWER_LOST])
async def test_a_recovery_of_sources_may_die_at_every_call(
    death: Death, tmp_path: Path, autojump_clock: MockClock
) -> None:
    """And so may the mount that goes on with the finding, and moves what it finds."""
    lost = await crashed(tmp_path / "lost")
    assert await die_at_every_call(partial(twin, *lost), look, death, tmp_path) >= 8
