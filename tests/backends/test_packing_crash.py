"""A machine dies while objects are packed: whatever the disk has kept, all that had returned is there, and no more.

As in `test_directory_crash`; of bytes that were written over, and not synced, any block may be as it was.
"""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from functools import partial
from pathlib import Path
from random import Random
from typing import Final

import pytest
import trio

from backends.base import CREATE_ONLY, KIB, ObjectStorage, iterate_pages
from backends.errors import PreconditionFailed
from backends.packing_bucket import Packing
from tests.core.hosts import PromptDirectory
from tests.support.crashing_disk import Disk, Killed

PACKING: Final = Packing(prefix="log/", sizes=(10, 10 * KIB))
WALKS: Final = 24
STEPS: Final = 16


def opened(directory: Path) -> PromptDirectory:
    return PromptDirectory(directory, packing=PACKING)


class Log:
    """What one process after the other has put into a store, and what may be there for all that it knows."""

    def __init__(self, rng: Random) -> None:
        self._rng = rng
        self._next = 0
        #: What has returned, and was not deleted since.
        self.there: dict[str, bytes] = {}
        #: All that was ever begun to be written; of what was deleted with others some may be back.
        self.possible: dict[str, bytes] = {}
        #: What was deleted alone, or found deleted when it was looked at.
        self.gone: set[str] = set()

    async def step(self, storage: ObjectStorage, process: int) -> None:
        """Append, mostly; delete the first ones, or one; or write what is no small new object."""
        kind = self._rng.randrange(10)
        first = sorted(self.there)
        if kind < 6 or not first:
            key, size = self._next_key(process), self._rng.choice([20, 5_000, 9_000])
            await self._put(storage, key, size)
        elif kind == 6:
            await self._put(storage, self._next_key(process), self._rng.choice([3, 11_000]))
        elif kind < 9:
            keys = first[: self._rng.randrange(1, 4)]
            for key in keys:
                del self.there[key]
            assert await storage.delete_many(keys) == {}
        else:
            key = self._rng.choice(first)
            del self.there[key]
            await storage.delete(key)
            self.gone.add(key)

    def _next_key(self, process: int) -> str:
        self._next += 1
        return f"log/{process:04}/{self._next:04}"

    async def _put(self, storage: ObjectStorage, key: str, size: int) -> None:
        data = self.possible[key] = self._rng.randbytes(size)
        await storage.put(key, data, mode=CREATE_ONLY)
        self.there[key] = data

    def check(self, found: dict[str, bytes]) -> None:
        assert self.there.items() <= found.items()
        assert found.items() <= self.possible.items()
        assert self.gone.isdisjoint(found)


async def contents(storage: ObjectStorage) -> dict[str, bytes]:
    keys = [info.key async for page in iterate_pages(storage, "log/") for info in page.objects]
    return {key: (await storage.get_range(key)).data for key in keys}


async def check(image: Path, log: Log) -> None:
    """The next process finds what it may, can write what is not there and nothing else, and removes all of it."""
    storage = opened(image)
    found = await contents(storage)
    log.check(found)
    for key in log.possible:
        with suppress(PreconditionFailed):
            await storage.put(key, b"a new object", mode=CREATE_ONLY)
            assert key not in found
            found[key] = b"a new object"
    assert await contents(storage) == found
    assert await storage.delete_many(list(found)) == {}
    assert await contents(opened(image)) == {}


@pytest.mark.parametrize("seed", range(WALKS))
async def test_what_has_returned_survives_the_machine(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backends.packs.PACK_BYTES", 40 * KIB)
    rng = Random(seed)
    (tmp_path / "root").mkdir()
    disk = Disk(tmp_path / "root")
    log = Log(rng)
    try:
        for process in range(6):
            storage = opened(disk.root)
            disk.calls_left = None
            with disk.watched(monkeypatch):
                found = await contents(storage)
            log.check(found)
            # Whoever was killed before they were synced: they have been seen.
            log.there |= {key: data for key, data in found.items() if 10 <= len(data) <= 10 * KIB}
            disk.calls, disk.calls_left = 0, rng.randrange(1, 60)
            with suppress(Killed), disk.watched(monkeypatch):
                for _ in range(STEPS):
                    await log.step(storage, process)
            for number in range(3):
                image = tmp_path / f"{process}-{number}"
                disk.image(image, rng if number else None)
                await check(image, log)
                shutil.rmtree(image)
            lock = storage._bucket._private._session_lock
            if lock is not None:
                os.close(lock)
    finally:
        disk.close()


async def test_a_pack_that_has_gone_with_all_its_objects_does_not_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody can tell any more that they are not needed: what said so may have gone next."""
    (tmp_path / "root").mkdir()
    disk, keys = Disk(tmp_path / "root"), [f"log/1/{number}" for number in range(3)]
    with disk.watched(monkeypatch):
        storage = opened(disk.root)
        for key in keys:
            await storage.put(key, bytes(5_000), mode=CREATE_ONLY)
        assert await storage.delete_many(keys[:2]) == {}
        assert await storage.delete_many(keys[2:]) == {}
    disk.image(tmp_path / "image", None)
    disk.close()
    assert await contents(opened(tmp_path / "image")) == {}


async def test_a_machine_that_dies_at_every_call_while_many_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is in flight together is synced together; of what had not returned each is there, or is not."""
    for call in range(200):
        root = tmp_path / f"{call}"
        root.mkdir()
        disk, log, is_killed = Disk(root), Log(Random(call)), True
        storage = opened(root)
        disk.calls_left = call
        with suppress(BaseExceptionGroup, Killed), disk.watched(monkeypatch):
            async with trio.open_nursery() as nursery:
                for number in range(4):
                    nursery.start_soon(partial(log._put, storage, f"log/1/{number}", 6_000))
            is_killed = False
        for number in range(4):
            disk.image(tmp_path / "image", Random(number) if number else None)
            await check(tmp_path / "image", log)
            shutil.rmtree(tmp_path / "image")
        disk.close()
        if not is_killed:
            assert call > 10
            return
