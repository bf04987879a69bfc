"""A local disk that fails: what it cannot read, write or remove costs the cache, and not the files."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from random import Random

import pytest
import trio
from trio.testing import MockClock

from backends.base import KIB, MIB, Data
from backends.intercepted import Verb
from backends.memory import MemoryStorage
from fusefs.stage import Stage, StageFile
from tests.core.small_disk import make_read_only
from tests.core.tree import TreeOptions, open_tree, stored
from tests.support.faulty import FaultyStorage

BODY = Random(0).randbytes(6 * MIB)
BAD_SECTOR = range(600 * KIB, 604 * KIB)


async def test_what_a_read_only_disk_has_is_never_read_as_zeros(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    autojump_clock: MockClock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What it has no more is fetched for each read; a change of a file that had to give way goes up, without zeros."""
    storage = FaultyStorage(MemoryStorage())
    for number in range(5):
        await storage.put(f"small-{number}", bytes([number]) * (60 * KIB))
    async with open_tree(storage, tmp_path, TreeOptions(cache_size=6 * MIB + 64 * KIB)) as tree:
        await tree.write_file("mine", BODY)
        await tree.publish_all()
        with monkeypatch.context() as patch:
            make_read_only(patch, tmp_path)
            for number in range(5):
                assert await tree.read_file(f"small-{number}") == bytes([number]) * (60 * KIB)
            storage.calls.clear()
            assert await tree.read_file("mine") == BODY
            assert not storage.calls_of(Verb.GET_RANGE), "it can be read where it is"
            handle = await tree.open("mine")
            await tree.write(handle, 0, b"changed")
            await tree.close(handle)
            await tree.publish_all()
    assert (await stored(storage))["mine"] == b"changed" + BODY[7:]
    assert sum("cannot be removed: Read-only file system" in message for message in caplog.messages) == 1
    caplog.clear()


async def test_a_file_that_cannot_be_removed_does_not_end_the_mount(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    autojump_clock: MockClock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    storage = FaultyStorage(MemoryStorage())
    async with open_tree(storage, tmp_path) as tree:
        sending = storage.hold(Verb.PUT, key="gone")
        await tree.write_file("gone", BODY[:MIB])
        await sending.reached.wait()
        await tree.unlink("gone")
        with monkeypatch.context() as patch:
            make_read_only(patch, tmp_path)
            sending.open()
            await trio.sleep(5)
            await tree.publish_all()
    assert any("cannot be removed" in message for message in caplog.messages)
    caplog.clear()


def test_what_a_removed_file_has_left_is_not_in_its_successor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it could not be removed."""
    file = Stage(tmp_path, memory_bytes=0).new_file()
    file.write(0, b"x" * 100)
    with monkeypatch.context() as patch:
        make_read_only(patch, tmp_path)
        file.discard()
    file.write(10, b"new")
    assert file.read(0, 100) == bytes(10) + b"new" + bytes(87)


@pytest.mark.parametrize("is_changed", [False, True])
async def test_clean_bytes_that_the_disk_cannot_read_are_fetched_again(
    is_changed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    """Also of a file that is changed elsewhere, which could not be published or it."""
    storage = MemoryStorage()
    await storage.put("file", BODY[:MIB])
    expected = b"changed" + BODY[7:MIB] if is_changed else BODY[:MIB]
    read, put = StageFile.read, StageFile._put
    is_bad = False

    def read_what_is_good(self: StageFile, offset: int, length: int) -> bytes:
        if is_bad and offset < BAD_SECTOR.stop and BAD_SECTOR.start < offset + length:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return read(self, offset, length)

    def put_elsewhere(self: StageFile, offset: int, data: Data) -> int:
        nonlocal is_bad
        is_bad = is_bad and not offset <= BAD_SECTOR.start < offset + len(data)
        return put(self, offset, data)

    monkeypatch.setattr(StageFile, "read", read_what_is_good)
    monkeypatch.setattr(StageFile, "_put", put_elsewhere)
    async with open_tree(storage, tmp_path) as tree:
        handle = await tree.open("file")
        assert await tree.filesystem.read(handle, 0, MIB) == BODY[:MIB]
        if is_changed:
            await tree.write(handle, 0, b"changed")
        is_bad = True
        assert await tree.filesystem.read(handle, BAD_SECTOR.start, KIB) == BODY[BAD_SECTOR.start :][:KIB]
        is_bad = is_changed
        await tree.close(handle)
        await tree.publish_all()
    assert (await stored(storage))["file"] == expected


async def test_a_disk_that_cannot_be_written_costs_the_cache_alone(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    autojump_clock: MockClock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What the bucket has is read all the same, and what was written before goes up, with what lies beside it."""
    storage = MemoryStorage()
    await storage.put("file", BODY)
    await storage.put("other", BODY)
    expected = BODY[: 3 * MIB] + b"ours" + BODY[3 * MIB + 4 :]

    def fail(*_: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    async with open_tree(storage, tmp_path) as tree:
        handle = await tree.open("file")
        await tree.write(handle, 3 * MIB, b"ours")
        with monkeypatch.context() as patch:
            patch.setattr(os, "pwrite", fail)
            assert await tree.read_file("other") == BODY
            assert await tree.read_file("file") == expected
            with pytest.raises(OSError, match="Input/output error") as caught:
                await tree.write(handle, 0, b"nobody else has this")
            assert caught.value.errno == errno.EIO
            await tree.close(handle)
            await tree.publish_all()
    assert await stored(storage) == {"file": expected, "other": BODY}
    [told] = [record for record in caplog.records if "cannot be written" in record.getMessage()]
    assert told.levelname == "ERROR"
    caplog.clear()
