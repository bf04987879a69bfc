"""Pages are fetched when they are here: the kernel is done with syncfs(2) when it has sent them, or not even then."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pytest
import trio
import trio.testing

from backends.errors import QuotaExceeded
from fusefs import arrivals, kernel_pages
from fusefs.arrivals import Arrivals
from fusefs.kernel_pages import MAX_ROUNDS, MIN_ROUNDS, KernelPages

HANDLE: Final = 7


@dataclass
class Kernel:
    """Sends what `rounds` says, one after the other, each time that it is asked, and the release behind."""

    rounds: Sequence[int]
    arrivals: Arrivals = field(default_factory=Arrivals)
    is_mounted: bool = True
    asked: int = 0
    answered: int = 0
    #: Opened to let writes be handled.
    gate: trio.Event = field(default_factory=trio.Event)
    #: Set when all of a round has come; of one more than that.
    has_come: trio.Event = field(default_factory=trio.Event)
    has_come_again: trio.Event = field(default_factory=trio.Event)
    failure: Exception | None = None

    def sync_filesystem(self, mountpoint: Path, is_it: Callable[[], bool]) -> None:
        """Take the place of `mountpoints.sync_filesystem`."""
        assert not is_it()
        thread = threading.get_native_id()
        if self.is_mounted:
            trio.from_thread.run_sync(self.arrivals.opened, thread, HANDLE)
            assert is_it()
        trio.from_thread.run_sync(self._send)

    def _send(self) -> None:
        sent = self.rounds[self.asked] if self.asked < len(self.rounds) else 0
        self.asked += 1
        for _ in range(sent):
            self.nursery.start_soon(self._handle)
        self.nursery.start_soon(self._release)

    async def _handle(self) -> None:
        try:
            with self.arrivals.arriving():
                await self.gate.wait()
                self.answered += 1
                if self.failure is not None:
                    raise self.failure
        except Exception:
            assert self.failure is not None

    async def _release(self) -> None:
        await trio.testing.wait_all_tasks_blocked()
        self.arrivals.released(HANDLE)
        (self.has_come_again if self.has_come.is_set() else self.has_come).set()

    @asynccontextmanager
    async def running(self, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[KernelPages]:
        monkeypatch.setattr(kernel_pages, "sync_filesystem", self.sync_filesystem)
        async with trio.open_nursery() as self.nursery:
            yield KernelPages(Path(), self.arrivals)


async def test_what_was_sent_has_to_be_dealt_with(monkeypatch: pytest.MonkeyPatch) -> None:
    """And what came later has not."""
    kernel = Kernel([3])
    async with kernel.running(monkeypatch) as pages, trio.open_nursery() as nursery:
        collected = trio.Event()

        async def collect() -> None:
            await pages.collect()
            collected.set()

        nursery.start_soon(collect)
        await kernel.has_come.wait()
        with kernel.arrivals.arriving():
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert not collected.is_set()
            kernel.gate.set()
            with trio.fail_after(10):
                await kernel.has_come_again.wait()
        await collected.wait()
    assert kernel.answered == 3


@pytest.mark.parametrize(
    ("rounds", "asked"), [([], MIN_ROUNDS), ([100, 100, 2], 3), ([100] * 100, MAX_ROUNDS)]
)
async def test_it_is_asked_until_few_come(
    rounds: list[int], asked: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was on its way when it was written to again comes then, or was kept back because of too many others."""
    kernel = Kernel(rounds)
    kernel.gate.set()
    async with kernel.running(monkeypatch) as pages:
        await pages.collect()
    assert kernel.asked == asked
    assert kernel.answered == sum(rounds[:asked])


async def test_why_a_page_was_refused_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel tells only who syncs that file; and once, so that the next time is none."""
    kernel = Kernel([1], failure=QuotaExceeded("of the store"))
    kernel.gate.set()
    async with kernel.running(monkeypatch) as pages:
        with pytest.raises(OSError, match=os.strerror(errno.EDQUOT)):
            await pages.collect()
        await pages.collect()


async def test_where_the_mount_cannot_be_opened_it_has_to_be_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was detached, or is there for other programs only: the kernel sends what it has, and nothing says when."""
    monkeypatch.setattr(arrivals, "QUIET_SECONDS", 0.01)
    kernel = Kernel([5], is_mounted=False)
    async with kernel.running(monkeypatch) as pages, trio.open_nursery() as nursery:
        nursery.start_soon(pages.collect)
        await kernel.has_come.wait()
        kernel.gate.set()
    assert (kernel.asked, kernel.answered) == (1, 5)


async def test_a_failure_of_the_kernel_and_want_of_a_thread_are_raised(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(mountpoint: Path, is_it: Callable[[], bool]) -> None:
        raise OSError(errno.EIO, "refused")

    async def no_thread(*_: object, **__: object) -> None:
        raise RuntimeError("can't start new thread")

    pages = KernelPages(Path(), Arrivals())
    monkeypatch.setattr(kernel_pages, "sync_filesystem", refuse)
    with pytest.raises(OSError, match="refused"):
        await pages.collect()
    monkeypatch.setattr(trio.to_thread, "run_sync", no_thread)
    with pytest.raises(OSError, match="can't start new thread"):
        await pages.collect()


async def test_whoever_ends_does_not_wait_for_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may have to wait for the end of the mount itself, which is behind."""
    asked, gone = trio.Event(), threading.Event()
    waited_in_vain: list[bool] = []

    def wait_until_it_is_gone(mountpoint: Path, is_it: Callable[[], bool]) -> None:
        trio.from_thread.run_sync(asked.set)
        waited_in_vain.append(not gone.wait(10))

    monkeypatch.setattr(kernel_pages, "sync_filesystem", wait_until_it_is_gone)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(KernelPages(Path(), Arrivals()).collect)
        await asked.wait()
        nursery.cancel_scope.cancel()
    gone.set()
    assert not waited_in_vain
