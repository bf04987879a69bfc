"""At no moment do two mounts hold the lease, whatever the network, the processes and their clocks do.

Three mounts take the lease, renew it, crash, are stopped and go on, and give it back. Requests and answers are late by
more than a term, or lost; a request whose time was over arrives nevertheless; each mount is cut off now and then;
clocks run apart by 3 %. After every single step of any task it is checked how many hold it.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Awaitable, Callable
from random import Random
from typing import Final

import pytest
import trio
from trio.abc import Instrument
from trio.testing import MockClock

from backends.errors import StorageError, Unavailable
from backends.intercepted import InterceptedStorage, Request, T
from backends.memory import MemoryStorage
from fusefs.errors import LeaseHeld
from fusefs.lease_acquisition import acquire
from fusefs.stored_lease import StoredLease
from tests.core.leases import WallClock, claim, take

TERM: Final = 10.0
MOUNTS: Final = 3
SIMULATED_SECONDS: Final = 1_500.0
SEEDS: Final = range(16)


class Network(InterceptedStorage):
    """The store as one mount sees it."""

    def __init__(self, inner: MemoryStorage, rng: Random, nursery: trio.Nursery) -> None:
        super().__init__(inner)
        self._rng = rng
        self._nursery = nursery
        self.is_cut = False

    async def _carry_out(self, request: Request, send: Callable[[], Awaitable[T]]) -> T:
        with trio.CancelScope(shield=True):  # what has begun is waited for, as the seam has it
            return await self._exchange(send)
        raise AssertionError("unreachable")

    async def _exchange(self, send: Callable[[], Awaitable[T]]) -> T:
        await self._travel()
        fate = self._rng.random()
        if self.is_cut or fate < 0.05:
            raise Unavailable("the request is lost")
        if fate < 0.1:
            self._nursery.start_soon(self._arrive_late, send)
            raise Unavailable("the request takes too long")
        result = await send()
        await self._travel()
        if self.is_cut or fate < 0.15:
            raise Unavailable("the answer is lost")
        return result

    async def _travel(self) -> None:
        slow = self._rng.random() < 0.05
        await trio.sleep(self._rng.uniform(0, 2 * TERM if slow else TERM / 50))

    async def _arrive_late(self, send: Callable[[], Awaitable[object]]) -> None:
        await trio.sleep(self._rng.uniform(0, 3 * TERM))
        with contextlib.suppress(StorageError):
            await send()


class Watch(Instrument):
    """Looks at the leases of all processes that live after each step of a task."""

    def __init__(self) -> None:
        self.leases: dict[int, StoredLease] = {}
        self.taken: list[StoredLease] = []
        self.violations: list[str] = []

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        held = [lease.epoch for lease in self.leases.values() if lease.is_held]
        if len(held) > 1:
            self.violations.append(f"at {trio.current_time():.3f} s: {held}")


class Host:
    """One mount after the other on one host."""

    def __init__(self, number: int, storage: Network, rng: Random, watch: Watch) -> None:
        self._number = number
        self._storage = storage
        self._rng = rng
        self._watch = watch
        self._rate = rng.uniform(0.97, 1.03)
        self._mounts = 0
        self._dead: set[str] = set()

    def _now(self) -> float:
        return 1_000.0 * self._number + trio.current_time() * self._rate

    async def run(self) -> None:
        while True:
            await self._pause()
            self._mounts += 1
            name = f"{self._number}-{self._mounts}"
            wait = self._rng.choice([0.0, TERM, math.inf])
            try:
                lease = await acquire(
                    self._storage,
                    claim(name, term_seconds=TERM, known_dead=self._dead, wait_seconds=wait),
                    clock=WallClock(self._rng.randrange(10**18)),
                    now=self._now,
                )
            except (LeaseHeld, StorageError):
                continue
            self._watch.leases[self._number] = lease
            self._watch.taken.append(lease)
            await self._hold(lease)
            del self._watch.leases[self._number]
            self._dead.add(name)

    async def _hold(self, lease: StoredLease) -> None:
        """Live for some time, being stopped now and then; end well, by a crash, or because it is lost."""
        for _ in range(self._rng.randrange(8)):
            with trio.move_on_after(self._rng.expovariate(1 / (3 * TERM))):
                await lease.run()
                return
            await self._pause()
        if self._rng.random() < 0.5:
            await lease.release()

    async def _pause(self) -> None:
        await trio.sleep(self._rng.choice([0, TERM / 10, TERM, 3 * TERM]) * self._rng.random())

    async def cut_off_at_times(self) -> None:
        while True:
            await trio.sleep(self._rng.expovariate(1 / (10 * TERM)))
            self._storage.is_cut = True
            await trio.sleep(self._rng.uniform(0, 3 * TERM))
            self._storage.is_cut = False


@pytest.mark.parametrize("seed", SEEDS)
async def test_no_two_hold_it(seed: int, autojump_clock: MockClock) -> None:
    rng = Random(seed)
    store = MemoryStorage()
    watch = Watch()
    trio.lowlevel.add_instrument(watch)
    async with trio.open_nursery() as nursery:
        for number in range(MOUNTS):
            host = Host(number, Network(store, rng, nursery), rng, watch)
            nursery.start_soon(host.run)
            nursery.start_soon(host.cut_off_at_times)
        await trio.sleep(SIMULATED_SECONDS)
        nursery.cancel_scope.cancel()
    trio.lowlevel.remove_instrument(watch)
    assert watch.violations == []
    epochs = [lease.epoch for lease in watch.taken]
    assert len(epochs) == len(set(epochs))
    assert len(epochs) > SIMULATED_SECONDS / TERM / 20
    # However it went, the next one does not wait for ever.
    began = trio.current_time()
    assert (await take(store, "last")).epoch > max(epochs)
    assert trio.current_time() - began <= TERM * 1.001
