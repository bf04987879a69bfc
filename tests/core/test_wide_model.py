"""Random deaths of mounts that do everything at once: on a bad way to the store, with an index, in short batches.

As `test_log_model` and `test_renamed_directories_model`, with what those do not do: files are emptied at open, cut and
grown, extended attributes set, directories put over empty ones, inodes forgotten and looked up again. Any call may
fail, with its effect or without, and is repeated as in a mount; what the mount before has known of the tree is read
from its index; a commit may go in batches of one record; the log may be so short that it is told again all the time.
"""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Final

import pytest
import trio
from trio.testing import MockClock

from backends.base import KIB, ObjectStorage
from backends.errors import ConcurrentRequest, Throttled, Unavailable
from backends.intercepted import InterceptedStorage, Request, T
from backends.retrying import RetryingStorage, RetryPolicy
from fusefs import batch_contents, log_trimmer, staged_bytes
from tests.core import test_renamed_directories_model as renamed
from tests.core.history import History, State
from tests.core.losses import OPTIONS, PATIENCE_SECONDS, QUIET_SECONDS, check_bucket, difference, look, settle
from tests.core.mortal import Death, MortalStorage
from tests.core.small_parts import PART, SmallPartsStorage
from tests.core.test_log_model import PATHS, Walk
from tests.core.tree import TreeOptions, open_tree

pytestmark = pytest.mark.usefixtures("small_parts", "quiet")

MOUNTS: Final = 6
WALKS: Final = 24


class FlakyStorage(InterceptedStorage):
    """Is late, and lets a `share` of all calls fail; half of these have taken effect."""

    def __init__(self, inner: ObjectStorage, rng: Random, share: float) -> None:
        super().__init__(inner)
        self._rng = rng
        self._share = share

    async def _carry_out(self, request: Request, send: Callable[[], Awaitable[T]]) -> T:
        await trio.sleep(self._rng.choice([0, 0, 0.001, 0.03, 0.3]))
        if self._rng.random() >= self._share:
            return await send()
        error = self._rng.choice([Unavailable, Unavailable, Throttled, ConcurrentRequest])
        if error is Unavailable and self._rng.random() < 0.6:
            await send()
        raise error(f"{request.verb} {request.key!r} meets a fault")


class WideWalk(Walk):
    """Every other step is one that a `Walk` does not make."""

    async def _step(self, history: History) -> None:
        if self._rng.random() < 0.5:
            await super()._step(history)
        else:
            await self._wide_step(history)

    async def _wide_step(self, history: History) -> None:
        rng, state = self._rng, history.state()
        path, other = rng.choice(self._paths), rng.choice(self._paths)
        known, target = state.get(path), state.get(other)
        is_file = known is not None and stat.S_ISREG(known.mode)
        match rng.randrange(11):
            case 0 | 1 if is_file:
                self._open.append(await history.open(path, os.O_RDWR | os.O_TRUNC))
            case 2 | 3 if is_file:
                sizes = [0, 1, PART - 1, PART + 1, 2 * PART, 5 * PART]
                await history.truncate(path, rng.choice(sizes))
            case 4 if known is not None and not stat.S_ISLNK(known.mode):
                await history.set_xattr(path, rng.choice([b"short", rng.randbytes(3_000)]))
            case 5 if self._open:
                data = rng.randbytes(rng.choice([1, PART]))
                await history.write(rng.choice(self._open), rng.choice([3 * PART, 10 * PART]), data)
            case 6 if self._open:
                await history.fsync(rng.choice(self._open))
            case 7 if _is_directory(state, path) and _is_directory(state, other):
                is_empty = not any(below.startswith(f"{other}/") for below in state)
                if is_empty and path != other and not other.startswith(f"{path}/"):
                    await history.rename(path, other)
            case 8:
                await history.tree.packer.pack_all()
                if rng.random() < 0.5:
                    history.tree.sources.budget.make_room(goal_bytes=0)
            case 9 if rng.random() < 0.3:
                with suppress(Unavailable):  # of what is below a directory, in `reluctant`
                    await history.tree.publish_all()
            case 10 if known is not None and target is not None and path != other:
                if not path.startswith(f"{other}/") and not other.startswith(f"{path}/"):
                    await history.exchange(path, other)


def _is_directory(state: State, path: str) -> bool:
    return path in state and stat.S_ISDIR(state[path].mode)


@dataclass(frozen=True)
class Circumstances:
    """What is the same for all mounts of a walk."""

    share: float
    is_unlisted: bool
    is_indexed: bool

    def options(self, rng: Random) -> TreeOptions:
        """Return those of a mount that follows one that has died."""
        max_log_bytes = rng.choice([0, 4 * KIB, 64 * KIB, math.inf])
        return replace(OPTIONS, index=self.is_indexed, follows_crash=True, max_log_bytes=max_log_bytes)

    def way_to(self, storage: ObjectStorage, rng: Random) -> ObjectStorage:
        """Return a mount's way to the store."""
        if not self.share:
            return storage
        policy = RetryPolicy(timeout_seconds=900.0)
        return RetryingStorage(FlakyStorage(storage, rng, self.share), policy, rng=rng)


async def live(
    mortal: MortalStorage, way: ObjectStorage, history: History, walk: Walk, options: TreeOptions, where: Path
) -> None:
    """Let a mount do a walk, and die at one of its calls or in the end."""
    async with mortal.life.lived(), trio.open_nursery() as nursery, open_tree(way, where, options) as tree:
        history.attend(tree)
        if tree.index_writer is not None:
            nursery.start_soon(tree.index_writer.run)
        with trio.fail_after(4 * PATIENCE_SECONDS):
            await walk(history)
            with suppress(Unavailable):
                await tree.publish_all()
            await trio.sleep(QUIET_SECONDS)
        await mortal.life.end()


async def check(storage: SmallPartsStorage, history: History, options: TreeOptions, where: Path) -> None:
    """The next mount shows a state that is allowed and publishes it, and one after it finds it, by the index or not."""
    async with open_tree(storage, where, options) as tree:
        await settle(storage, history, tree)
        await tree.end()
    twin = storage.twin()
    for key in storage.snapshot():
        if key.startswith(".fusefs/index/"):
            await twin.delete(key)
    await check_bucket(twin, history, where)
    async with open_tree(storage, where / "indexed", replace(options, logged=False)) as tree:
        history.attend(tree)
        await look(history)


@pytest.mark.parametrize("seed", range(WALKS))
async def test_random_deaths_of_all_kinds(
    seed: int,
    tmp_path: Path,
    autojump_clock: MockClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = Random(seed)
    if rng.random() < 0.5:
        monkeypatch.setattr(staged_bytes, "PIECE_SIZE", KIB)
        monkeypatch.setattr(batch_contents, "BATCH_SIZE", 2 * PART)
        monkeypatch.setattr(log_trimmer, "TRIM_BATCHES", 1)
    if rng.random() < 0.3:
        monkeypatch.setattr(batch_contents, "HEADS_SIZE", 2 * batch_contents.HEAD_SIZE)
    circumstances = Circumstances(rng.choice([0, 0.05, 0.2]), rng.random() < 0.5, rng.random() < 0.5)
    is_unlisted = circumstances.is_unlisted
    storage, history = await renamed.begin(rng) if is_unlisted else (SmallPartsStorage(), History({}))
    for mount in range(MOUNTS):
        options = circumstances.options(rng)
        death = rng.choice(list(Death))
        call = rng.randrange(1, 12 if death is Death.OVERTAKEN else rng.choice([60, 200]))
        looks = not is_unlisted or rng.random() < 0.2
        if not looks:
            state = await renamed.state_in(storage, tmp_path / f"{mount}-seen")
            assert history.allows(state), difference(history, state)
            history.resume(state)
        paths = renamed.PATHS if is_unlisted else PATHS
        walk = WideWalk(
            rng, rng.randrange(5, 50), paths=paths, renaming=rng.choice([0, 0.2, 0.4]), looks=looks
        )
        mortal = MortalStorage(storage)
        mortal.die_at(call, death)
        with monkeypatch.context() as patch:
            if is_unlisted:
                renamed.reluctant(patch, rng)
            way = circumstances.way_to(mortal, rng)
            await live(mortal, way, history, walk, options, tmp_path / f"{mount}")
        history.uploads += [(each.key, each.upload_id) for each in await storage.list_multipart_uploads()]
        if rng.random() < 0.3:
            await check(storage, history, circumstances.options(rng), tmp_path / f"{mount}-checked")
    await check(storage, history, circumstances.options(rng), tmp_path / "checked")
