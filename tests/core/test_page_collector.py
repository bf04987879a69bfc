"""What was done without fsync is in the log within `commit_interval`, if a commit takes a quarter of that at most."""

from __future__ import annotations

import errno
import threading
from pathlib import Path
from typing import Final

import pytest
import trio
from trio.testing import MockClock

from backends.errors import Unavailable
from fusefs import page_collector
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
async def test_what_was_done_is_in_the_log_in_time(
    has_writers: bool, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also what was done just after a commit had begun, and so waits for the next; and while a writer waits for the
    store, so that the kernel cannot hand over its pages.
    """
    log, ends = SlowLog(), threading.Event()
    monkeypatch.setattr(page_collector, "sync_filesystem", lambda mountpoint: ends.wait())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(log.change)
        collector = PageCollector(
            Path(), has_writers=lambda: has_writers, commit=log.commit, interval_seconds=INTERVAL
        )
        nursery.start_soon(collector.run)
        await trio.sleep(20 * INTERVAL)
        ends.set()
        nursery.cancel_scope.cancel()
    assert log.commits > 20
    assert log.longest <= INTERVAL


async def test_without_a_writer_the_mount_is_not_touched(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The descriptor of the call would be in the way of umount(8)."""
    synced: list[Path] = []
    touched = trio.Event()

    def sync(mountpoint: Path) -> None:
        synced.append(mountpoint)
        trio.from_thread.run_sync(touched.set)

    monkeypatch.setattr(page_collector, "sync_filesystem", sync)
    writers = False
    log = SlowLog()
    collector = PageCollector(
        Path("mnt"), has_writers=lambda: writers, commit=log.commit, interval_seconds=INTERVAL
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(collector.run)
        await trio.sleep(10 * INTERVAL)
        assert synced == []
        writers = True
        await touched.wait()
        nursery.cancel_scope.cancel()
    assert set(synced) == {Path("mnt")}


async def test_failures_end_nothing(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Who waits for a commit, or for his pages, is told of them; here nobody does."""
    refused = 0
    enough = trio.Event()

    def refuse(mountpoint: Path) -> None:
        nonlocal refused
        refused += 1
        if refused == 3:
            trio.from_thread.run_sync(enough.set)
        raise OSError(errno.EIO, "refused")

    async def fail() -> None:
        await trio.sleep(COMMIT)
        raise Unavailable("no answer")

    monkeypatch.setattr(page_collector, "sync_filesystem", refuse)
    collector = PageCollector(Path(), has_writers=lambda: True, commit=fail, interval_seconds=INTERVAL)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(collector.run)
        await enough.wait()
        nursery.cancel_scope.cancel()
    lines = [record.getMessage() for record in caplog.records]
    assert lines.count("the kernel's pages could not be fetched: refused") >= 2
    assert lines.count("what was done without fsync is not in the log yet: no answer") >= 2


async def test_without_room_for_a_thread_the_log_is_told_of_everything_else(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("can't start new thread")

    log = SlowLog()
    monkeypatch.setattr(trio.to_thread, "run_sync", refuse)
    collector = PageCollector(Path(), has_writers=lambda: True, commit=log.commit, interval_seconds=INTERVAL)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(collector.run)
        await trio.sleep(10 * INTERVAL)
        nursery.cancel_scope.cancel()
    assert log.commits > 10
    assert "the kernel's pages could not be fetched: can't start new thread" in caplog.text


async def test_whoever_ends_does_not_wait_for_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may have to wait for the end of the mount itself, which is behind."""
    asked, gone = trio.Event(), threading.Event()
    waited_in_vain: list[bool] = []

    def wait_until_it_is_gone(mountpoint: Path) -> None:
        trio.from_thread.run_sync(asked.set)
        waited_in_vain.append(not gone.wait(10))

    monkeypatch.setattr(page_collector, "sync_filesystem", wait_until_it_is_gone)
    collector = PageCollector(Path(), has_writers=lambda: True, commit=SlowLog().commit, interval_seconds=0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(collector.run)
        await asked.wait()
        nursery.cancel_scope.cancel()
    gone.set()
    assert not waited_in_vain


async def test_who_can_do_without_waits_briefly(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not again and again, where the kernel cannot hand over its pages: each leaves a thread behind."""
    calls, is_away = 0, True

    async def collect_pages(_: Path) -> None:
        nonlocal calls
        calls += 1
        if is_away:
            await trio.sleep_forever()

    monkeypatch.setattr(page_collector, "collect_pages", collect_pages)
    collector = BriefCollector(Path())
    began = trio.current_time()
    for _ in range(10):
        await collector.collect()
    assert (calls, trio.current_time() - began) == (1, BRIEF_SECONDS)
    await trio.sleep(PAUSE_SECONDS)
    is_away = False
    for _ in range(2):
        await collector.collect()
    assert calls == 3
