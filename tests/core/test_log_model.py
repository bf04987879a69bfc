"""Random operations on a tree with a log, and random deaths: the next mount has what it may have, and goes on from it.

Every mount of a walk makes some operations and dies at one of its calls to the store, its recovery and its
publications included. Seeds are fixed, so that a walk that fails can be repeated.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Final

import pytest
import trio
from trio.testing import MockClock

from backends.base import KIB, MIB
from backends.errors import AccessDenied, Unavailable
from fusefs import batch_contents, log_trimmer, staged_bytes
from tests.core.history import History, State
from tests.core.losses import OPTIONS, QUIET_SECONDS, check, live, look
from tests.core.mortal import Death
from tests.core.refusing import Refusals
from tests.core.small_parts import PART, SmallPartsStorage
from tests.core.tree import open_tree
from tests.core.watching import WatchingStorage

pytestmark = pytest.mark.usefixtures("small_parts", "quiet")

NAMES: Final = ("a", "b", "c", "d", "e")
PATHS: Final = (*NAMES, *(f"{directory}/{name}" for directory in NAMES[:3] for name in NAMES[:3]))
MOUNTS: Final = 6
WALKS: Final = 60
#: Walks of mounts to which some objects are refused.
REFUSED: Final = 40
#: Walks in which a mount begins after every call that changes the bucket: fewer, because they make as many.
WATCHED: Final = 16
WATCHED_STEPS: Final = 100
#: Walks in which a recovery once had wrong bytes or attributes, or did not end.
FOUND: Final = (1112, 1327, 1468, 1516, 1549, 1571, 1787, 1866, 1884, 2125, 3571, 4847, 6464)


class Walk:
    """What one mount does: `steps` random operations, `renaming` of them renames.

    A mount that does not look has the state of the model already, and lists no directory before it is needed.
    """

    def __init__(
        self,
        rng: Random,
        steps: int,
        *,
        paths: Sequence[str] = PATHS,
        renaming: float = 0.0,
        looks: bool = True,
    ) -> None:
        self._rng = rng
        self._steps = steps
        self._paths = paths
        self._renaming = renaming
        self._looks = looks
        self._open: list[int] = []

    async def __call__(self, history: History) -> None:
        if self._looks:
            await look(history)
        for _ in range(self._steps):
            await self._step(history)
            if self._rng.random() < 0.3:
                await trio.sleep(self._rng.choice([0.01, 0.1, 1, 6]))
        for handle in self._open:
            await _close(history, handle)

    async def _step(self, history: History) -> None:
        rng, state = self._rng, history.state()
        path, other = rng.choice(self._paths), rng.choice(self._paths)
        known, target = state.get(path), state.get(other)
        match 11 if rng.random() < self._renaming else rng.randrange(15):
            case 0 | 1 | 2 if _is_free(state, path):
                self._open.append(await history.create(path))
            case 3 | 4 | 5 | 6 if self._open:
                length = rng.choice([1, 100, PART, 3 * PART])
                await history.write(
                    rng.choice(self._open), rng.choice([0, 7, PART, 2 * PART - 3]), rng.randbytes(length)
                )
            case 7 if known is not None and stat.S_ISREG(known.mode):
                if rng.random() < 0.5:
                    await history.truncate(path, rng.choice([0, 5, PART, 3 * PART]))
                else:
                    self._open.append(await history.open(path, os.O_RDWR))
            case 8 if self._open:
                await _close(history, self._open.pop(rng.randrange(len(self._open))))
            case 9 if _is_free(state, path):
                if rng.random() < 0.5:
                    await history.mkdir(path)
                else:
                    await history.symlink(path, other.encode())
            case 10 if known is not None:
                if not stat.S_ISDIR(known.mode):
                    await history.unlink(path)
                elif not any(below.startswith(f"{path}/") for below in state):
                    await history.rmdir(path)
            case 11 if known is not None and path != other and not _is_within(path, other):
                if (target is None and _is_free(state, other)) or (
                    target is not None and stat.S_ISDIR(target.mode) == stat.S_ISDIR(known.mode) is False
                ):
                    await history.rename(path, other)
                elif target is not None and rng.random() < 0.5:
                    await history.exchange(path, other)
            case 12 if known is not None and not stat.S_ISLNK(known.mode):
                await history.chmod(path, rng.choice([0o600, 0o700, 0o755]))
            case 13 if known is not None and not stat.S_ISDIR(known.mode) and _is_free(state, other):
                await history.link(path, other)
            case 14:
                await history.commit()


async def _close(history: History, handle: int) -> None:
    with suppress(AccessDenied, Unavailable):  # which a store that refuses something is allowed to say
        await history.close(handle)


def _is_free(state: State, path: str) -> bool:
    directory, slash, _ = path.rpartition("/")
    parent = state.get(directory)
    return path not in state and (not slash or (parent is not None and stat.S_ISDIR(parent.mode)))


def _is_within(path: str, other: str) -> bool:
    return path.startswith(f"{other}/") or other.startswith(f"{path}/")


@pytest.mark.parametrize("seed", range(WATCHED))
async def test_the_log_is_ahead_of_the_bucket(seed: int, tmp_path: Path, autojump_clock: MockClock) -> None:
    """Nothing is published, and nothing deleted, that the log does not tell of: after each single call."""
    storage, history = SmallPartsStorage(), History({})
    watching = WatchingStorage(storage, history, tmp_path / "looks")
    async with open_tree(watching, tmp_path / "mount", OPTIONS) as tree:
        history.attend(tree)
        await Walk(Random(seed), WATCHED_STEPS)(history)
        await tree.publish_all()
        await trio.sleep(QUIET_SECONDS)
    assert watching.violations == []
    assert watching.looks > 5


@pytest.mark.parametrize("seed", range(REFUSED))
async def test_random_deaths_where_the_log_is_told_again(
    seed: int,
    tmp_path: Path,
    autojump_clock: MockClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is refused for as long as a mount lives is told again all the time, in several batches."""
    monkeypatch.setattr(staged_bytes, "PIECE_SIZE", KIB)
    monkeypatch.setattr(batch_contents, "BATCH_SIZE", 2 * PART)
    monkeypatch.setattr(log_trimmer, "TRIM_BATCHES", 1)
    rng = Random(seed)
    storage, history = SmallPartsStorage(), History({})
    for mount in range(MOUNTS):
        refusing = Refusals(
            denied=set(rng.sample(NAMES, 2)),
            held=set(rng.sample(PATHS, 3)),
            unanswered=set(rng.sample(PATHS, 3)),
        )
        death = rng.choice(list(Death))
        call = rng.randrange(1, 30 if death is Death.OVERTAKEN else 200)
        walk = Walk(rng, rng.randrange(20, 100))
        where = tmp_path / f"{mount}"
        # No streams: a recovery cannot complete one where the object of a renamed file has not been able to leave.
        options = replace(OPTIONS, part_size=MIB, max_log_bytes=rng.choice([0, 4 * KIB]))
        await live(storage, history, walk, call, death, where, refusing=refusing, options=options)
        if rng.random() < 0.3:
            await check(storage, history, tmp_path / f"{mount}-checked")


@pytest.mark.parametrize("seed", [*range(WALKS), *FOUND])
async def test_random_deaths(seed: int, tmp_path: Path, autojump_clock: MockClock) -> None:
    rng = Random(seed)
    storage, history = SmallPartsStorage(), History({})
    for mount in range(MOUNTS):
        death = rng.choice(list(Death))
        call = rng.randrange(1, 8 if death is Death.OVERTAKEN else 60)
        await live(storage, history, Walk(rng, rng.randrange(5, 40)), call, death, tmp_path / f"{mount}")
        if rng.random() < 0.3:
            await check(storage, history, tmp_path / f"{mount}-checked")
