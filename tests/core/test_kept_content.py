"""What a mount keeps for the next one: it spares the requests, and is never believed unseen."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Final

import pytest
from trio.testing import MockClock

from backends.base import KIB, MIB
from backends.intercepted import Verb
from backends.memory import MemoryStorage
from fusefs import kept_content
from fusefs.attribute_changes import AttributeChanges
from fusefs.block_checksums import BLOCK_SIZE, BlockChecksums
from fusefs.errors import DamagedCache
from fusefs.extents import Extent, ExtentSet
from fusefs.kept_format import KeptVersion
from fusefs.stage import Stage
from fusefs.stage_budget import StageBudget
from fusefs.staged_bytes import StagedBytes
from tests.core.small_disk import disk_use, limit_disk, refuse_holes
from tests.core.tree import TreeOptions, open_tree, stored
from tests.support.faulty import FaultyStorage

BODY: Final = Random(0).randbytes(3 * MIB + 1_000)


@pytest.fixture
async def faulty() -> FaultyStorage:
    """A store with one object, `file`."""
    faulty = FaultyStorage(MemoryStorage())
    await faulty.put("file", BODY)
    return faulty


async def read_in_a_mount(faulty: FaultyStorage, directory: Path, path: str = "file") -> bytes:
    async with open_tree(faulty, directory) as tree:
        return await tree.read_file(path)


def fetched(faulty: FaultyStorage) -> int:
    """Return how many times bytes were asked for, and begin to count anew."""
    count = len(faulty.calls_of(Verb.GET_RANGE))
    faulty.calls.clear()
    return count


def kept_files(directory: Path) -> list[Path]:
    return sorted((directory / "kept").iterdir(), key=lambda path: path.stat().st_mtime_ns)


async def test_what_was_read_is_there_after_a_remount(
    autojump_clock: MockClock, faulty: FaultyStorage, tmp_path: Path
) -> None:
    """As often as it is mounted again, and whether it is read or not."""
    assert await read_in_a_mount(faulty, tmp_path) == BODY
    assert fetched(faulty) > 0
    for _ in range(2):
        assert await read_in_a_mount(faulty, tmp_path) == BODY
    async with open_tree(faulty, tmp_path):
        pass
    assert await read_in_a_mount(faulty, tmp_path) == BODY
    assert fetched(faulty) == 0


async def test_what_was_written_is_there_after_a_remount(
    autojump_clock: MockClock, faulty: FaultyStorage, tmp_path: Path
) -> None:
    """Once it was published; what was cut off or replaced is not."""
    async with open_tree(faulty, tmp_path) as tree:
        await tree.write_file("new", BODY)
        handle = await tree.open("file")
        await tree.write(handle, 1 * MIB, b"changed")
        await tree.filesystem.setattr((await tree.find("file")).number, AttributeChanges(size=2 * MIB))
        await tree.close(handle)
        await tree.publish_all()
    contents = await stored(faulty)
    fetched(faulty)
    async with open_tree(faulty, tmp_path) as tree:
        assert {path: await tree.read_file(path) for path in contents} == contents
    assert fetched(faulty) == 0


async def test_only_what_is_missing_is_fetched(
    autojump_clock: MockClock, faulty: FaultyStorage, tmp_path: Path
) -> None:
    async with open_tree(faulty, tmp_path) as tree:
        handle = await tree.open("file", os.O_RDONLY)
        await tree.filesystem.read(handle, 2 * MIB, 10)
        await tree.close(handle)
    fetched(faulty)
    async with open_tree(faulty, tmp_path) as tree:
        handle = await tree.open("file", os.O_RDONLY)
        assert await tree.filesystem.read(handle, 2 * MIB + BLOCK_SIZE - 10, 10)
        assert fetched(faulty) == 0
        assert await tree.filesystem.read(handle, 0, 4 * MIB) == BODY
        assert fetched(faulty) == 2
        await tree.close(handle)


async def test_what_was_not_published_is_not_kept(
    autojump_clock: MockClock, faulty: FaultyStorage, tmp_path: Path
) -> None:
    async with open_tree(faulty, tmp_path) as tree:
        assert await tree.read_file("file") == BODY
        handle = await tree.open("file")
        await tree.write(handle, 0, b"lost")
    assert kept_files(tmp_path) == []
    assert await read_in_a_mount(faulty, tmp_path) == BODY


async def test_a_mount_that_fails_keeps_nothing(
    autojump_clock: MockClock, faulty: FaultyStorage, tmp_path: Path
) -> None:
    async def fail() -> None:
        async with open_tree(faulty, tmp_path) as tree:
            await tree.read_file("file")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        await fail()
    assert kept_files(tmp_path) == []


async def test_another_version_is_fetched(
    autojump_clock: MockClock, faulty: FaultyStorage, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await read_in_a_mount(faulty, tmp_path)
    await faulty.put("file", BODY[::-1])
    assert await read_in_a_mount(faulty, tmp_path) == BODY[::-1]
    assert not caplog.records


# Damage


def change_a_block(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(MIB + 5)
        file.write(b"damaged")


def change_every_block(path: Path) -> None:
    with path.open("r+b") as file:
        for start in range(0, len(BODY), BLOCK_SIZE):
            file.seek(start)
            file.write(b"damaged")


def cut(path: Path) -> None:
    os.truncate(path, MIB)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(bytes(10))


def damage_the_trailer(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\xff" if path.read_bytes()[-1:] != b"\xff" else b"\0")


def replace_by_something_huge(path: Path) -> None:
    os.truncate(path, 1 << 40)


@pytest.mark.parametrize(
    "damage",
    [
        change_a_block,
        change_every_block,
        cut,
        empty,
        append,
        damage_the_trailer,
        replace_by_something_huge,
    ],
)
@pytest.mark.parametrize("how", ["read", "write", "overwrite a part"])
async def test_what_was_damaged_is_fetched_again_and_reported_once(
    autojump_clock: MockClock,
    faulty: FaultyStorage,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    damage: Callable[[Path], None],
    how: str,
) -> None:
    await read_in_a_mount(faulty, tmp_path)
    fetched(faulty)
    damage(kept_files(tmp_path)[0])
    expected = bytearray(BODY)
    async with open_tree(faulty, tmp_path) as tree:
        handle = await tree.open("file")
        if how != "read":
            await tree.write(handle, MIB + 10, b"new")
            expected[MIB + 10 : MIB + 13] = b"new"
        if how == "overwrite a part":
            await tree.filesystem.fsync(handle)
            assert (await stored(faulty))["file"] == expected
        assert await tree.filesystem.read(handle, 0, 4 * MIB) == expected
        assert fetched(faulty) > 0
        await tree.filesystem.fsync(handle)
        await tree.close(handle)
    if not (damage is change_a_block and how != "read"):  # there the damaged block is not even looked at
        assert len([record for record in caplog.records if record.levelname == "WARNING"]) >= 1
    assert await read_in_a_mount(faulty, tmp_path) == expected


async def test_the_file_of_another_object_is_not_served(
    autojump_clock: MockClock, faulty: FaultyStorage, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await faulty.put("other", BODY[::-1])
    async with open_tree(faulty, tmp_path) as tree:
        for path in ("file", "other"):
            await tree.read_file(path)
    one, other = kept_files(tmp_path)
    shutil.copyfile(one, other)
    async with open_tree(faulty, tmp_path) as tree:
        assert await tree.read_file("file") == BODY
        assert await tree.read_file("other") == BODY[::-1]
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "another object" in caplog.text


async def test_what_is_damaged_during_the_mount_is_fetched_again_and_reported_once(
    autojump_clock: MockClock, faulty: FaultyStorage, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_tree(faulty, tmp_path) as tree:
        handle = await tree.open("file", os.O_RDONLY)
        assert await tree.filesystem.read(handle, 0, 4 * MIB) == BODY
        for _ in range(2):
            [staged] = (tmp_path / "stage").iterdir()
            change_every_block(staged)
            assert await tree.filesystem.read(handle, MIB - 1, MIB) == BODY[MIB - 1 : 2 * MIB - 1]
            assert await tree.filesystem.read(handle, 0, 4 * MIB) == BODY
        await tree.close(handle)
    assert len(caplog.records) == 1
    assert "damaged" in caplog.text


async def test_damage_does_not_reach_the_bucket(
    autojump_clock: MockClock, faulty: FaultyStorage, tmp_path: Path
) -> None:
    """Clean bytes beside changed ones go up with them."""
    async with open_tree(faulty, tmp_path) as tree:
        assert await tree.read_file("file") == BODY
        [staged] = (tmp_path / "stage").iterdir()
        change_every_block(staged)
        handle = await tree.open("file")
        await tree.write(handle, 2 * MIB, bytes(BLOCK_SIZE))
        await tree.filesystem.fsync(handle)
        await tree.close(handle)
        assert await stored(faulty) == {
            "file": BODY[: 2 * MIB] + bytes(BLOCK_SIZE) + BODY[2 * MIB + BLOCK_SIZE :]
        }


@pytest.mark.parametrize(
    "change",
    ["write", "append", "write behind the end", "cut", "grow"],
    ids=lambda change: change.replace(" ", "-"),
)
async def test_damage_beside_a_change_inside_of_a_block_does_not_reach_the_bucket(
    change: str,
    autojump_clock: MockClock,
    faulty: FaultyStorage,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What the change leaves of the block could not be compared any more after it."""
    odd = BODY[: len(BODY) - BLOCK_SIZE // 2]
    await faulty.put("file", odd)
    expected = bytearray(odd)
    async with open_tree(faulty, tmp_path) as tree:
        assert await tree.read_file("file") == odd
        [staged] = (tmp_path / "stage").iterdir()
        change_every_block(staged)
        handle = await tree.open("file")
        number = (await tree.find("file")).number
        if change in ("cut", "grow"):
            size = len(odd) + (10 if change == "grow" else -BLOCK_SIZE)
            await tree.filesystem.setattr(number, AttributeChanges(size=size))
            del expected[size:]
            expected.extend(bytes(size - len(expected)))
        else:
            offset = {"write": 2 * MIB + 100, "append": len(odd), "write behind the end": len(odd) + 100}[
                change
            ]
            await tree.write(handle, offset, b"new")
            expected.extend(bytes(max(0, offset - len(expected))))
            expected[offset : offset + 3] = b"new"
        assert await tree.filesystem.read(handle, 0, 8 * MIB) == expected
        await tree.filesystem.fsync(handle)
        await tree.close(handle)
        assert await stored(faulty) == {"file": expected}
    assert "damaged" in caplog.text


async def test_what_nobody_else_has_is_an_error_when_it_is_damaged(
    autojump_clock: MockClock, faulty: FaultyStorage, tmp_path: Path
) -> None:
    """The object of a file that is removed while it is open may go as soon as all of it was read."""
    async with open_tree(faulty, tmp_path) as tree:
        handle = await tree.open("file", os.O_RDONLY)
        await tree.filesystem.read(handle, 0, 4 * MIB)
        await tree.unlink("file")
        await tree.publish_all()
        assert await stored(faulty) == {}
        [staged] = (tmp_path / "stage").iterdir()
        change_a_block(staged)
        assert await tree.filesystem.read(handle, 0, MIB) == BODY[:MIB]
        with pytest.raises(DamagedCache):
            await tree.filesystem.read(handle, MIB, MIB)
        await tree.close(handle)


async def test_an_object_stays_as_long_as_what_was_kept_of_it_is_not_proved(
    autojump_clock: MockClock, faulty: FaultyStorage, tmp_path: Path
) -> None:
    await read_in_a_mount(faulty, tmp_path)
    change_a_block(kept_files(tmp_path)[0])
    async with open_tree(faulty, tmp_path) as tree:
        handle = await tree.open("file", os.O_RDONLY)
        await tree.filesystem.read(handle, 0, 10)
        await tree.unlink("file")
        await tree.publish_all()
        assert await tree.filesystem.read(handle, 0, 4 * MIB) == BODY
        await tree.close(handle)
        await tree.publish_all()
        assert await stored(faulty, ours=True) == {}


# Bounds


async def test_kept_files_give_way_first_and_the_oldest_of_them_at_first(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    storage = MemoryStorage()
    bodies = {f"file-{number}": Random(number).randbytes(2 * MIB) for number in range(6)}
    for path, body in bodies.items():
        await storage.put(path, body)
    options = TreeOptions(cache_size=13 * MIB)
    async with open_tree(storage, tmp_path, options) as tree:
        for path in bodies:
            await tree.read_file(path)
    oldest = kept_files(tmp_path)[:3]
    assert len(kept_files(tmp_path)) == 6
    async with open_tree(storage, tmp_path, options) as tree:
        await tree.write_file("new", Random(9).randbytes(6 * MIB))
        assert not any(path.exists() for path in oldest)
        assert len(kept_files(tmp_path)) == 3
        assert tree.sources.budget.total <= 13 * MIB
        for path, body in bodies.items():
            assert await tree.read_file(path) == body
            assert tree.sources.budget.total <= 13 * MIB
        await tree.publish_all()
    used = sum(path.stat().st_blocks * 512 for path in kept_files(tmp_path))
    assert used <= 13 * MIB + 7 * 4 * KIB


async def test_kept_files_give_way_to_a_recovery_on_a_full_disk(
    autojump_clock: MockClock, faulty: FaultyStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As to a write: a mount that is refused for want of room would be so for ever."""
    here, changed = tmp_path / "here", BODY[:MIB]
    assert await read_in_a_mount(faulty, here) == BODY
    async with open_tree(faulty, tmp_path / "lost", TreeOptions(logged=True)) as tree:
        await tree.write_file("new", changed)
        await tree.log.commit()
    limit_disk(monkeypatch, here, disk_use(here) + 8 * KIB)
    async with open_tree(faulty, here, TreeOptions(logged=True)) as tree:
        assert await tree.read_file("new") == changed
        assert kept_files(here) == []


async def test_a_smaller_cache_begins_by_removing(
    autojump_clock: MockClock, faulty: FaultyStorage, tmp_path: Path
) -> None:
    await read_in_a_mount(faulty, tmp_path)
    async with open_tree(faulty, tmp_path, TreeOptions(cache_size=2 * MIB)) as tree:
        assert kept_files(tmp_path) == []
        assert tree.sources.budget.total == 0


async def test_the_number_of_kept_files_is_bounded(
    autojump_clock: MockClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the end of a mount, which leaves no more than the next one looks at, and at its beginning."""
    monkeypatch.setattr(kept_content, "MAX_FILES", 7)
    storage = MemoryStorage()
    async with open_tree(storage, tmp_path) as tree:
        for number in range(9):
            await tree.write_file(f"file-{number}", b"small")
        await tree.publish_all()
    assert len(kept_files(tmp_path)) == 7
    newest = kept_files(tmp_path)[2:]
    monkeypatch.setattr(kept_content, "MAX_FILES", 5)
    async with open_tree(storage, tmp_path) as tree:
        assert kept_files(tmp_path) == newest
        assert {await tree.read_file(f"file-{number}") for number in range(9)} == {b"small"}


@pytest.mark.parametrize("has_holes", [True, False])
async def test_the_end_of_a_mount_does_not_read_for_long(
    autojump_clock: MockClock, has_holes: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it has fetched has its checksums already; what it has written is kept as far as there is time."""
    monkeypatch.setattr(kept_content, "PATIENCE_SECONDS", 0)
    if not has_holes:
        refuse_holes(monkeypatch)
    faulty = FaultyStorage(MemoryStorage())
    await faulty.put("read", BODY)
    async with open_tree(faulty, tmp_path) as tree:
        await tree.read_file("read")
        await tree.write_file("written", BODY)
        await tree.publish_all()
    assert len(kept_files(tmp_path)) == 1


async def test_files_that_are_not_ours_are_left_alone(
    autojump_clock: MockClock, faulty: FaultyStorage, tmp_path: Path
) -> None:
    (tmp_path / "kept" / "directory").mkdir(parents=True)
    (tmp_path / "kept" / "link").symlink_to(tmp_path / "nowhere")
    assert await read_in_a_mount(faulty, tmp_path) == BODY
    assert {"directory", "link"} < {path.name for path in (tmp_path / "kept").iterdir()}


async def test_a_place_that_cannot_be_used_costs_only_the_cache(
    autojump_clock: MockClock, faulty: FaultyStorage, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "kept").write_bytes(b"")
    assert await read_in_a_mount(faulty, tmp_path) == BODY
    assert await read_in_a_mount(faulty, tmp_path) == BODY
    assert "is not used" in caplog.text


# Several mounts


async def test_of_two_mounts_one_gets_what_was_kept(
    autojump_clock: MockClock, faulty: FaultyStorage, tmp_path: Path
) -> None:
    """And each leaves what it has, in the same place, to whoever comes next."""
    await read_in_a_mount(faulty, tmp_path)
    fetched(faulty)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "kept").symlink_to(tmp_path / "kept")
    async with open_tree(faulty, tmp_path) as one, open_tree(faulty, tmp_path / "other") as other:
        assert await one.read_file("file") == BODY
        assert fetched(faulty) == 0
        assert await other.read_file("file") == BODY
        assert fetched(faulty) > 0
    assert len(kept_files(tmp_path)) == 1
    assert await read_in_a_mount(faulty, tmp_path) == BODY
    assert fetched(faulty) == 0


def test_another_store_has_its_own(tmp_path: Path) -> None:
    budget = StageBudget(1 << 30)
    one, other = (
        KeptVersion(store=store, key="k", etag="e", size=1).file_name
        for store in ("s3://a", "s3://a at https://s3.example.com")
    )
    assert one != other
    (tmp_path / one).write_bytes(b"x" * 5000)
    kept_content.KeptContent(tmp_path, budget, store="s3://a")
    assert budget.total > 0


def test_what_is_to_be_kept_is_looked_at_once_however_many_places_were_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once for each place, a database that was read at random for a while held up the end of its mount for hours."""
    extents, looked = BlockChecksums.extents, 0

    def look(self: BlockChecksums, file_size: int) -> Iterator[Extent]:
        nonlocal looked
        looked += 1
        return extents(self, file_size)

    size = 200 * BLOCK_SIZE
    staged = StagedBytes(Stage(tmp_path).new_file(), ExtentSet())
    staged.take_over(dict.fromkeys(range(0, 200, 2), 0), size)
    monkeypatch.setattr(BlockChecksums, "extents", look)
    assert len(staged.prepare_to_keep(size, math.inf)) == 100
    assert looked == 1
