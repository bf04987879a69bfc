"""The store in a directory in which small objects share files keeps the contract; and what that is about."""

from __future__ import annotations

import errno
import gc
import os
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, ClassVar, Final

import pytest
import trio

from backends.base import CREATE_ONLY, KIB, IfMatch, ObjectStorage, iterate_pages
from backends.directory import DirectoryStorage
from backends.errors import PreconditionFailed, QuotaExceeded, StorageError
from backends.packing_bucket import Packing
from tests.backends.contract import OPAQUE_ETAGS, StorageContract

EVERYTHING: Final = Packing(prefix="", sizes=(0, 256 * KIB))
LOG: Final = Packing(prefix="log/", sizes=(10, 100))


def opened(directory: Path, packing: Packing = LOG) -> DirectoryStorage:
    """Return the store as another process would open it."""
    return DirectoryStorage(directory, packing=packing)


class TestPackingStorage(StorageContract):
    """The whole contract, with every new object that has no metadata in a pack."""

    deviations: ClassVar[frozenset[str]] = frozenset({OPAQUE_ETAGS})

    @pytest.fixture
    async def storage(self, tmp_path: Path) -> AsyncIterator[ObjectStorage]:
        store = opened(tmp_path, EVERYTHING)
        await store.probe()
        yield store
        await store.aclose()


@pytest.fixture
async def storage(tmp_path: Path) -> AsyncIterator[DirectoryStorage]:
    store = opened(tmp_path)
    yield store
    await store.aclose()


def body(number: int) -> bytes:
    return f"the body of {number}".encode()


async def append(storage: ObjectStorage, *numbers: int) -> None:
    for number in numbers:
        await storage.put(f"log/1/{number}", body(number), mode=CREATE_ONLY)


async def contents(storage: ObjectStorage, prefix: str = "log/") -> dict[str, bytes]:
    keys = [info.key async for page in iterate_pages(storage, prefix) for info in page.objects]
    return {key: (await storage.get_range(key)).data for key in keys}


def bodies(*numbers: int) -> dict[str, bytes]:
    return {f"log/1/{number}": body(number) for number in numbers}


def packs(directory: Path) -> list[Path]:
    return sorted((directory / ".fusefs-store" / "packs").glob("*-*"))


async def test_small_new_objects_share_a_file(storage: ObjectStorage, tmp_path: Path) -> None:
    await append(storage, *range(20))
    assert len(packs(tmp_path)) == 1
    assert not (tmp_path / "log").exists()
    assert await contents(storage) == bodies(*range(20))
    assert await contents(opened(tmp_path)) == bodies(*range(20))


@pytest.mark.parametrize("size", [9, 101])
async def test_an_object_that_is_too_small_or_too_large_is_a_file(
    size: int, storage: ObjectStorage, tmp_path: Path
) -> None:
    await append(storage, 1)
    await storage.put("log/1/2", bytes(size), mode=CREATE_ONLY)
    assert (tmp_path / "log/1/2").read_bytes() == bytes(size)
    assert await contents(storage) == {**bodies(1), "log/1/2": bytes(size)}


async def test_files_of_an_earlier_version(storage: ObjectStorage, tmp_path: Path) -> None:
    """They are there as ever, and in the way of new objects; a new one beside them is packed."""
    before = DirectoryStorage(tmp_path)
    await append(before, 1, 2)
    await before.aclose()
    with pytest.raises(PreconditionFailed):
        await append(storage, 2)
    await append(storage, 3)
    assert await contents(storage) == bodies(1, 2, 3)
    assert len(packs(tmp_path)) == 1


async def test_a_pack_goes_with_the_last_of_its_objects(storage: ObjectStorage, tmp_path: Path) -> None:
    await append(storage, 1, 2, 3)
    assert await storage.delete_many(["log/1/1", "log/1/3", "log/1/4"]) == {}
    assert await contents(storage) == bodies(2)
    assert len(packs(tmp_path)) == 1
    assert await storage.delete_many(["log/1/2"]) == {}
    assert packs(tmp_path) == []
    assert await contents(opened(tmp_path)) == {}
    await append(storage, 1)
    assert await contents(opened(tmp_path)) == bodies(1)


async def test_what_is_deleted_alone_is_gone_for_good(storage: ObjectStorage, tmp_path: Path) -> None:
    """The others of its pack are files then, and the same versions."""
    await append(storage, 1, 2, 3)
    etag = (await storage.head("log/1/3")).etag
    await storage.delete("log/1/2")
    assert packs(tmp_path) == []
    assert await contents(opened(tmp_path)) == bodies(1, 3)
    assert (await storage.head("log/1/3")).etag == etag
    await storage.put("log/1/3", b"over", mode=IfMatch(etag))
    await append(storage, 2)
    assert await contents(opened(tmp_path)) == {**bodies(1, 2), "log/1/3": b"over"}


async def test_a_pack_has_an_end(
    storage: ObjectStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backends.packs.PACK_BYTES", 5 * 4_096)
    await append(storage, *range(12))
    assert [path.stat().st_size for path in packs(tmp_path)] == [5 * 4_096] * 3
    assert await contents(opened(tmp_path)) == bodies(*range(12))
    assert await storage.delete_many([f"log/1/{number}" for number in range(11)]) == {}
    assert len(packs(tmp_path)) == 1
    await append(storage, *range(20, 30))
    assert await contents(storage) == bodies(11, *range(20, 30))


async def test_zeros_are_written_ahead_and_given_back(storage: ObjectStorage, tmp_path: Path) -> None:
    await append(storage, 1)
    (pack,) = packs(tmp_path)
    assert pack.stat().st_size > 4_096
    assert pack.stat().st_blocks * 512 >= pack.stat().st_size
    await storage.aclose()
    assert pack.stat().st_size == 4_096
    assert await contents(opened(tmp_path)) == bodies(1)


# Two processes


async def test_a_writer_that_another_process_has_ended(storage: ObjectStorage, tmp_path: Path) -> None:
    """It may have been stopped for long: what it appends next finds its place taken, and the other has all before."""
    await append(storage, 1, 2)
    other = opened(tmp_path)
    with pytest.raises(PreconditionFailed):
        await other.put("log/1/2", b"end", mode=CREATE_ONLY)
    await other.put("log/1/3", b"end", mode=CREATE_ONLY)
    with pytest.raises(PreconditionFailed):
        await append(storage, 3)
    assert await contents(other) == {**bodies(1, 2), "log/1/3": b"end"}


async def test_a_writer_that_has_not_begun_is_ended_too(storage: ObjectStorage, tmp_path: Path) -> None:
    other = opened(tmp_path)
    await other.put("log/1/1", b"end", mode=CREATE_ONLY)
    with pytest.raises(PreconditionFailed):
        await append(storage, 1)


async def test_two_processes_that_write_the_same(storage: ObjectStorage, tmp_path: Path) -> None:
    """Of one key one of them wins; what the second one has beside that is no less there."""
    other = opened(tmp_path)
    await append(storage, 1, 2)
    for number in (1, 2):
        with pytest.raises(PreconditionFailed):
            await append(other, number)
    await append(other, 3)
    with pytest.raises(PreconditionFailed):
        await append(storage, 3)
    await append(storage, 4)
    assert await contents(storage) == await contents(other) == bodies(1, 2, 3, 4)


async def test_a_pack_that_another_process_has_taken_apart(storage: ObjectStorage, tmp_path: Path) -> None:
    other = opened(tmp_path)
    await append(storage, 1, 2)
    await other.copy("log/1/2", "aside")
    await other.delete("log/1/2")
    assert packs(tmp_path) == []
    await append(storage, 3)
    with pytest.raises(PreconditionFailed):
        await append(storage, 1)
    for each in (storage, other):
        assert await contents(each) == bodies(1, 3)
        assert (await each.get_range("aside")).data == body(2)


async def test_what_is_written_again_is_newer_than_what_is_back(
    storage: ObjectStorage, tmp_path: Path
) -> None:
    """For another process nothing was dropped from a pack of which something is left."""
    await append(storage, 1, 2)
    await storage.delete_many(["log/1/1"])
    await storage.put("log/1/1", b"new", mode=CREATE_ONLY)
    other = opened(tmp_path)
    assert await contents(other) == {**bodies(2), "log/1/1": b"new"}
    await other.delete("log/1/2")
    for each in (storage, other, opened(tmp_path)):
        assert await contents(each) == {"log/1/1": b"new"}


async def test_a_pack_that_somebody_has_moved_away(storage: ObjectStorage, tmp_path: Path) -> None:
    """So does the system, in place of removing it, where it is open, in some file systems. No new object goes there."""
    await append(storage, 1)
    (pack,) = packs(tmp_path)
    pack.rename(pack.with_name(".nfs0001"))
    await append(storage, 2)
    assert await contents(storage) == await contents(opened(tmp_path)) == bodies(2)


async def test_another_process_sees_what_is_there_now(storage: ObjectStorage, tmp_path: Path) -> None:
    other = opened(tmp_path)
    for number in range(5):
        await append(storage, number)
        assert (await other.get_range(f"log/1/{number}")).data == body(number)
        assert await contents(other) == bodies(*range(number + 1))
    await storage.delete_many([f"log/1/{number}" for number in range(5)])
    assert await contents(other) == {}


async def test_many_that_write_at_a_time(storage: ObjectStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    """One sync does for all that were there when it began."""
    syncs = 0
    fdatasync = os.fdatasync

    def counted(descriptor: int) -> None:
        nonlocal syncs
        syncs += 1
        fdatasync(descriptor)

    monkeypatch.setattr(os, "fdatasync", counted)
    async with trio.open_nursery() as nursery:
        for number in range(100):
            nursery.start_soon(append, storage, number)
    assert syncs <= 100
    assert await contents(storage) == bodies(*range(100))


async def test_an_object_is_packed_while_a_file_is_removed(
    storage: ObjectStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That takes the disk long if the file is large."""
    await append(storage, 1)
    await storage.put("log/1/2", bytes(101), mode=CREATE_ONLY)
    unlink, has_begun, is_packed = os.unlink, threading.Event(), threading.Event()
    was_packed: list[bool] = []

    def slow_unlink(path: str, **options: Any) -> None:
        if path.endswith("log/1/2"):
            has_begun.set()
            was_packed.append(is_packed.wait(2))
        unlink(path, **options)

    monkeypatch.setattr(os, "unlink", slow_unlink)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(storage.delete_many, ["log/1/1", "log/1/2"])
        await trio.to_thread.run_sync(has_begun.wait, 2)
        await append(storage, 3)
        is_packed.set()
    assert was_packed == [True]
    assert await contents(storage) == bodies(3)


# Failures


def failing(monkeypatch: pytest.MonkeyPatch, name: str, number: int) -> list[int]:
    """Let a call of `os` fail while the list has something."""
    real, left = getattr(os, name), [number]

    def call(*args: Any) -> Any:
        if left:
            raise OSError(left[0], os.strerror(left[0]))
        return real(*args)

    monkeypatch.setattr(os, name, call)
    return left


async def test_a_sync_that_fails(
    storage: ObjectStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody knows what the disk has kept, whatever the next sync says: it is all written anew, elsewhere."""
    await append(storage, 1)
    left = failing(monkeypatch, "fdatasync", errno.EIO)
    with pytest.raises(StorageError):
        await append(storage, 2)
    assert await contents(storage) == bodies(1)
    left.clear()
    await append(storage, 2, 3)
    assert await contents(storage) == await contents(opened(tmp_path)) == bodies(1, 2, 3)
    assert len(packs(tmp_path)) == 2
    await storage.delete_many(list(bodies(1, 2, 3)))
    assert packs(tmp_path) == []


async def test_a_disk_on_which_every_sync_fails(
    storage: ObjectStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often it is tried, that takes no more of the disk, and no more descriptors."""
    await append(storage, 1)
    left = failing(monkeypatch, "fdatasync", errno.ENOSPC)
    for _ in range(10):
        with pytest.raises(QuotaExceeded):
            await append(storage, 2)
    assert len(packs(tmp_path)) == 2
    left.clear()
    await append(storage, 2)
    assert len(packs(tmp_path)) == 2
    assert await contents(storage) == await contents(opened(tmp_path)) == bodies(1, 2)


async def test_a_full_disk(storage: ObjectStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = failing(monkeypatch, "pwrite", errno.ENOSPC)
    with pytest.raises(QuotaExceeded):
        await append(storage, 1)
    assert sum(path.stat().st_size for path in packs(tmp_path)) == 0
    assert await contents(storage) == {}
    left.clear()
    await append(storage, 1)
    assert await contents(opened(tmp_path)) == bodies(1)


async def test_a_pack_that_was_begun_in_vain(
    storage: ObjectStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where its process goes on, it is used; else the next one that removes anything removes it, too."""
    other = opened(tmp_path)
    left = failing(monkeypatch, "pwrite", errno.ENOSPC)
    with pytest.raises(QuotaExceeded):
        await append(storage, 1)
    left.clear()
    assert len(packs(tmp_path)) == 1
    await other.put("log/2/1", body(1), mode=CREATE_ONLY)
    await other.delete_many(["log/2/1"])
    assert packs(tmp_path) == []
    await append(storage, 1)
    assert await contents(other) == bodies(1)
    left.append(errno.ENOSPC)
    with pytest.raises(QuotaExceeded):
        await other.put("log/2/1", body(1), mode=CREATE_ONLY)
    assert len(packs(tmp_path)) == 2
    left.clear()
    await other.aclose()
    assert len(packs(tmp_path)) == 1


async def test_the_end_of_a_store_whose_disk_fails(
    storage: ObjectStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was begun in vain stays, and harms nobody."""
    failing(monkeypatch, "pwrite", errno.EIO)
    with pytest.raises(StorageError):
        await append(storage, 1)
    failing(monkeypatch, "unlink", errno.EIO)
    await storage.aclose()
    assert len(packs(tmp_path)) == 1


async def test_a_disk_with_room_for_the_record_alone(
    storage: ObjectStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.pwrite

    def write_what_fits(descriptor: int, data: memoryview, offset: int) -> int:
        if offset >= 2 * 4_096:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(descriptor, data[: 2 * 4_096 - offset], offset)

    monkeypatch.setattr(os, "pwrite", write_what_fits)
    await append(storage, 1, 2)
    with pytest.raises(QuotaExceeded):
        await append(storage, 3)
    (pack,) = packs(tmp_path)
    assert pack.stat().st_size == 2 * 4_096
    assert await contents(opened(tmp_path)) == bodies(1, 2)


async def test_damage(storage: ObjectStorage, tmp_path: Path) -> None:
    """What was there before others is given out as it is; what may never have been whole is not there."""
    await append(storage, 1, 2, 3)
    await storage.aclose()
    (pack,) = packs(tmp_path)
    whole = pack.read_bytes()
    for number, left in ((1, {1, 2, 3}), (2, {1, 2, 3}), (3, {1, 2})):
        pack.write_bytes(whole.replace(body(number), b"X" + body(number)[1:]))
        there = await contents(opened(tmp_path))
        assert there.keys() == bodies(*left).keys()
        assert [key for key in there if there[key] != bodies(1, 2, 3)[key]] == [
            f"log/1/{each}" for each in left if each == number
        ]


async def test_who_has_gone_without_closing_leaves_no_file_open(tmp_path: Path) -> None:
    storage = opened(tmp_path)
    await append(storage, 1)
    assert open_below(tmp_path)
    del storage
    gc.collect()
    assert not open_below(tmp_path)


def open_below(directory: Path) -> list[str]:
    """Return the files below a directory that this process has open."""
    paths = [os.readlink(path) for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
    return [path for path in paths if path.startswith(str(directory))]
