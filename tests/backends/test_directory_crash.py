"""A machine dies while a directory store writes: whatever the disk has kept, all that had returned is there.

Nothing is there that nobody wrote, and the store can be used. The process may have been killed before, at any of its
system calls, and another one have gone on with what it saw then, but nobody had synced.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Final

import pytest

from backends.base import CREATE_ONLY, ObjectStorage, iterate_pages
from tests.core.hosts import PromptDirectory
from tests.support.crashing_disk import Disk, Killed

LONG: Final = "l" * 300
KEYS: Final = ("x", "x/y", "x/y/z", "d/e/f", "d/e/g", f"{LONG}/k", f"d/{LONG}")
WALKS: Final = 16
STEPS: Final = 12

Bucket = dict[str, bytes]


async def step(storage: ObjectStorage, rng: Random, there: Bucket, coming: dict[str, bytes | None]) -> None:
    """Do something; `coming` becomes what it leads to, before it is done."""
    key, other = rng.choice(KEYS), rng.choice(KEYS)
    data = rng.randbytes(rng.choice([1, 50, 5_000]))
    match rng.randrange(7):
        case 0 | 1:
            coming[key] = data
            await storage.put(key, data)
        case 2 if key not in there:
            coming[key] = data
            await storage.put(key, data, mode=CREATE_ONLY)
        case 3 if key in there:
            coming[key] = None
            await storage.delete(key)
        case 4:
            coming |= dict.fromkeys({key, other} & there.keys())
            assert await storage.delete_many([key, other]) == {}
        case 5 if key in there and key != other:
            coming[other] = there[key]
            await storage.copy(key, other)
        case 6:
            upload = await storage.create_multipart(key)
            part = await upload.upload_part(1, data)
            if rng.random() < 0.8:
                coming[key] = data
                await upload.complete([part])
            else:
                await upload.abort()


async def contents(storage: ObjectStorage) -> Bucket:
    keys = [info.key async for page in iterate_pages(storage) for info in page.objects]
    return {key: (await storage.get_range(key)).data for key in keys}


async def check(image: Path, allowed: Mapping[str, set[bytes | None]]) -> None:
    """Each key has what it may have, and the store is of use."""
    storage = PromptDirectory(image)
    found = await contents(storage)
    for key in KEYS:
        assert found.get(key) in allowed[key], key
    assert found.keys() <= set(KEYS)
    for key in KEYS:
        await storage.put(key, b"new")
    assert await contents(storage) == dict.fromkeys(KEYS, b"new")
    for upload in await storage.list_multipart_uploads():
        again = storage.resume_multipart(upload.key, upload.upload_id)
        await again.complete([await again.upload_part(1, b"part")])
    await storage.aclose()


@pytest.mark.parametrize("seed", range(WALKS))
async def test_what_has_returned_survives_the_machine(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = Random(seed)
    (tmp_path / "root").mkdir()
    disk = Disk(tmp_path / "root")
    #: What the last call for a key that has returned led to, and all that were begun since.
    allowed: dict[str, set[bytes | None]] = {key: {None} for key in KEYS}
    try:
        for process in range(8):
            storage = PromptDirectory(disk.root)
            there = await contents(storage)
            disk.calls, disk.calls_left = 0, rng.randrange(1, 60)
            with suppress(Killed), disk.watched(monkeypatch):
                for _ in range(STEPS):
                    coming: dict[str, bytes | None] = {}
                    try:
                        await step(storage, rng, there, coming)
                    finally:
                        for key, data in coming.items():
                            allowed[key].add(data)
                    for key, data in coming.items():
                        allowed[key] = {data}
                        there.pop(key, None)
                        there |= {key: data} if data is not None else {}
            for number in range(2):
                image = tmp_path / f"{process}-{number}"
                disk.image(image, rng if number else None)
                await check(image, allowed)
                shutil.rmtree(image)
            lock = storage._bucket._private._session_lock
            if lock is not None:
                os.close(lock)
    finally:
        disk.close()
