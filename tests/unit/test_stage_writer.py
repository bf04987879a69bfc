"""What a write does where the cache or the disk is full. With a real one: `tests/core/test_log_on_full_disk.py`."""

from __future__ import annotations

import errno
import stat
from typing import cast

import pytest

from backends.base import Data
from backends.errors import Unavailable
from fusefs.attributes import fresh
from fusefs.change_log import ChangeLog
from fusefs.content import Content
from fusefs.errors import StaleFile
from fusefs.inodes import File, Inode
from fusefs.publisher import Publisher
from fusefs.stage_budget import StageBudget
from fusefs.stage_writer import FULL_DISK_ATTEMPTS, StageWriter


class Bytes:
    """A content on a disk that is full for so many calls."""

    def __init__(self, calls: list[str]) -> None:
        self._calls = calls
        self.full = 0
        self.changed = False

    def write(self, offset: int, data: Data) -> None:
        self._calls.append("write")
        if self.full:
            self.full -= 1
            raise OSError(errno.ENOSPC, "full")

    def truncate(self, size: int) -> None:
        self.write(size, b"")


class Changes:
    def __init__(self, calls: list[str]) -> None:
        self._calls = calls

    def changed(self, inode: Inode) -> None:
        self._calls.append("told")


class Surroundings:
    """The cache's budget, the publisher and the log, as a writer sees them."""

    def __init__(self, calls: list[str]) -> None:
        self._calls = calls
        self.changes = Changes(calls)
        #: Calls of `make_room` after which too much is staged still.
        self.exceeded = 0
        #: Whether there is anything that can.
        self.gives_way = True
        self.failure: Exception | None = None
        self.log_gives_way = False
        self.log_failure: Exception | None = None

    @property
    def is_exceeded(self) -> bool:
        return self.exceeded > 0

    def make_room(self, *, goal_bytes: int | None = None) -> bool:
        self._calls.append("make room" if goal_bytes is None else "give way")
        self.exceeded = max(self.exceeded - 1, 0)
        return self.gives_way

    async def publish(self, inode: Inode) -> None:
        self._calls.append("publish")

    async def publish_all(self) -> None:
        self._calls.append("publish all")
        if self.failure is not None:
            raise self.failure

    async def give_way(self) -> bool:
        self._calls.append("cut the log")
        if self.log_failure is not None:
            raise self.log_failure
        return self.log_gives_way


class Place:
    """One file, and what a write of it does."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.content = Bytes(self.calls)
        self.around = Surroundings(self.calls)
        self.file = File(
            number=2,
            attributes=fresh(mode=stat.S_IFREG, uid=0, gid=0, now_ns=0),
            content=cast(Content, self.content),
        )
        self.writer = StageWriter(
            cast(StageBudget, self.around), cast(Publisher, self.around), cast(ChangeLog, self.around)
        )

    async def write(self) -> list[str]:
        await self.writer.write(self.file, 0, b"x")
        return self.calls


async def test_where_there_is_room_nothing_else_is_done() -> None:
    assert await Place().write() == ["write"]


async def test_where_the_cache_is_full_the_file_goes_first_and_then_everything() -> None:
    place = Place()
    place.around.exceeded = 1
    assert await place.write() == ["publish", "make room", "write"]
    place = Place()
    place.around.exceeded = 2
    assert await place.write() == ["publish", "make room", "publish all", "make room", "write"]


async def test_a_cache_that_is_full_of_what_cannot_be_published() -> None:
    """As long as anything else can, the writer only waits: the failure is no answer to him."""
    place = Place()
    place.around.failure = Unavailable("no answer")
    place.around.exceeded = 2
    await place.write()
    place.around.exceeded = 3
    with pytest.raises(OSError, match="nothing in the cache can give way: no answer") as caught:
        await place.write()
    assert caught.value.errno == errno.ENOSPC


async def test_on_a_full_disk_clean_bytes_give_way_first() -> None:
    place = Place()
    place.content.full = 1
    assert await place.write() == ["write", "give way", "write"]


async def test_on_a_full_disk_without_clean_bytes_everything_is_published_and_the_log_cut() -> None:
    place = Place()
    place.content.full = 1
    place.around.gives_way = False
    place.around.log_gives_way = True
    place.around.failure = Unavailable("no answer")
    made = ["write", "give way", "publish all", "give way", "cut the log", "write"]
    assert await place.write() == made


@pytest.mark.parametrize("fails", ["failure", "log_failure"])
async def test_a_full_disk_on_which_nothing_can_give_way(fails: str) -> None:
    place = Place()
    place.content.full = 1
    place.around.gives_way = False
    failure = Unavailable("no answer")
    setattr(place.around, fails, failure)
    with pytest.raises(OSError, match="full") as caught:
        await place.write()
    assert caught.value.__cause__ is failure


async def test_others_may_have_the_room_again_and_again() -> None:
    place = Place()
    place.content.full = FULL_DISK_ATTEMPTS - 1
    assert (await place.write()).count("write") == FULL_DISK_ATTEMPTS
    place.content.full = FULL_DISK_ATTEMPTS
    with pytest.raises(OSError, match="full"):
        await place.write()


async def test_what_is_written_before_a_failure_is_told_of() -> None:
    place = Place()
    place.content.changed = True
    place.content.full = 1
    assert await place.write() == ["write", "told", "give way", "write"]
    place.content.full = 1
    place.calls.clear()
    with pytest.raises(OSError, match="full"):
        place.writer.truncate(place.file, 7)
    assert place.calls == ["write", "told"]


async def test_a_file_that_somebody_else_has_changed_is_not_written() -> None:
    place = Place()
    place.file.state.failure = StaleFile("somebody else's")
    with pytest.raises(StaleFile):
        await place.write()
    assert place.calls == []
