"""What was done without fsync is in the log within `commit_interval`, if a commit takes a quarter of that at most."""

from __future__ import annotations

import errno
from typing import Final

import pytest
import trio
from trio.testing import MockClock

from backends.errors import Unavailable
from fusefs.page_collector import BRIEF_SECONDS, PAUSE_SECONDS, BriefCollector, PageCollector

INTERVAL: Final = 5.0
COMMIT: Final = INTERVAL / 4
STEP: Final = INTERVAL / 50


class SlowLog:
    """Notes for how long changes were in memory alone; one is made every `STEP`."""

    def __init__(self) -> None:
        self.waiting: list[float] = []
        self.longest = 0.0
        self.commits = 0

    async def change(self) -> None:
        while True:
            self.waiting.append(trio.current_time())
            await trio.sleep(STEP)

    async def commit(self) -> None:
        captured, self.waiting = self.waiting, []
        await trio.sleep(COMMIT)
        self.commits += 1
        self.longest = max([self.longest, *(trio.current_time() - done for done in captured)])


@pytest.mark.parametrize("has_writers", [False, True])
async def test_what_was_done_is_in_the_log_in_time(has_writers: bool, autojump_clock: MockClock) -> None:
    """Also what was done just after a commit had begun, and so waits for the next; and while a writer waits for the
    store, so that the kernel cannot hand over its pages.
    """
    log = SlowLog()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(log.change)
        collector = PageCollector(
            trio.sleep_forever, has_writers=lambda: has_writers, commit=log.commit, interval_seconds=INTERVAL
        )
        nursery.start_soon(collector.run)
        await trio.sleep(20 * INTERVAL)
        nursery.cancel_scope.cancel()
    assert log.commits > 20
    assert log.longest <= INTERVAL


async def test_without_a_writer_the_mount_is_not_touched(autojump_clock: MockClock) -> None:
    """The descriptor of the call would be in the way of umount(8)."""
    calls = 0

    async def collect() -> None:
        nonlocal calls
        calls += 1

    writers = False
    collector = PageCollector(
        collect, has_writers=lambda: writers, commit=SlowLog().commit, interval_seconds=INTERVAL
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(collector.run)
        await trio.sleep(10 * INTERVAL)
        assert calls == 0
        writers = True
        await trio.sleep(10 * INTERVAL)
        nursery.cancel_scope.cancel()
    assert calls >= 10


async def test_failures_end_nothing(autojump_clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    """Who waits for a commit, or for his pages, is told of them; here nobody does."""

    async def refuse() -> None:
        raise OSError(errno.EIO, "refused")

    async def fail() -> None:
        await trio.sleep(COMMIT)
        raise Unavailable("no answer")

    collector = PageCollector(refuse, has_writers=lambda: True, commit=fail, interval_seconds=INTERVAL)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(collector.run)
        await trio.sleep(10 * INTERVAL)
        nursery.cancel_scope.cancel()
    lines = [record.getMessage() for record in caplog.records]
    assert lines.count("the kernel's pages could not be fetched: refused") >= 2
    assert lines.count("what was done without fsync is not in the log yet: no answer") >= 2


async def test_who_can_do_without_waits_briefly(autojump_clock: MockClock) -> None:
    """And not again and again, where the kernel cannot hand over its pages: each leaves a thread behind."""
    calls, is_away = 0, True

    async def collect_pages() -> None:
        nonlocal calls
        calls += 1
        if is_away:
            await trio.sleep_forever()

    collector = BriefCollector(collect_pages)
    began = trio.current_time()
    for _ in range(10):
        await collector.collect()
    assert (calls, trio.current_time() - began) == (1, BRIEF_SECONDS)
    await trio.sleep(PAUSE_SECONDS)
    is_away = False
    for _ in range(2):
        await collector.collect()
    assert calls == 3
