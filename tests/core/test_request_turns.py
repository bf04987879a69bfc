"""Requests of the kernel: one task goes on reading them, and another one does as soon as a handler waits."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pyfuse3
import pytest
import trio
import trio.lowlevel
import trio.testing

from fusefs.errno_boundary import errno_boundary
from fusefs.request_turns import MAX_WITHOUT_LOOP, FuseDevice, Trio, handled


class Device:
    """Requests that come one by one, and tasks that read them as those of pyfuse3 do."""

    def __init__(self, requests: int) -> None:
        self._left = requests
        self._turn = Trio.Lock()
        self.readers: list[str] = []
        self.events: dict[int, trio.Event] = {}
        self.answers: list[int] = []

    async def serve(self, tasks: int) -> None:
        async with Trio.open_nursery() as nursery:
            for number in range(tasks):
                nursery.start_soon(self._work, name=f"task {number}")

    async def _work(self) -> None:
        while self._left:
            async with self._turn:
                if not self._left:
                    break
                await trio.lowlevel.checkpoint()  # the kernel's next request
            self._left -= 1
            request = len(self.readers)
            self.readers.append(trio.lowlevel.current_task().name)
            self.answers.append(await self._handle(request))

    @errno_boundary
    async def _handle(self, request: int) -> int:
        if request in self.events:
            await self.events[request].wait()
        return request


async def test_a_task_goes_on_with_the_next_request_where_no_handler_waits() -> None:
    device = Device(20)
    await device.serve(2)
    assert len(set(device.readers)) == 1
    assert device.answers == list(range(20))


async def test_another_task_reads_while_a_handler_waits(autojump_clock: trio.testing.MockClock) -> None:
    device = Device(20)
    device.events = {5: trio.Event(), 7: trio.Event()}
    async with trio.open_nursery() as nursery:
        nursery.start_soon(device.serve, 3)
        await trio.testing.wait_all_tasks_blocked()
        assert device.answers == [each for each in range(20) if each not in device.events]
        assert len({device.readers[number] for number in (5, 7, 19)}) == 3
        for event in device.events.values():
            event.set()
    assert sorted(device.answers) == list(range(20))


def test_pyfuse3_has_trio_where_that_can_be_replaced() -> None:
    assert vars(pyfuse3)["trio"] in (trio, Trio)


async def test_where_the_task_that_reads_ends_the_others_hear_of_it() -> None:
    device = Device(1)
    with trio.fail_after(5):
        await device.serve(3)


async def test_whoever_is_cancelled_while_it_reads_leaves_the_turn_to_others(
    autojump_clock: trio.testing.MockClock,
) -> None:
    turn = Trio.Lock()
    with trio.move_on_after(1):
        async with turn:
            await trio.sleep_forever()
    with trio.fail_after(1):
        async with turn:
            pass


async def test_a_handler_has_what_it_waits_for_and_its_errors() -> None:
    async def wait(error: Exception | None) -> int:
        await trio.lowlevel.checkpoint()
        await trio.lowlevel.checkpoint()
        if error is not None:
            raise error
        return 7

    assert await handled(wait(None)) == 7
    with pytest.raises(ValueError, match="this"):
        await handled(wait(ValueError("this")))


async def test_a_handler_that_waits_can_be_cancelled(autojump_clock: trio.testing.MockClock) -> None:
    ended = []

    async def wait() -> None:
        try:
            await trio.sleep_forever()
        finally:
            ended.append(True)

    with trio.move_on_after(1) as scope:
        await handled(wait())
    assert scope.cancelled_caught
    assert ended


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    kernel, daemon = socket.socketpair()
    with kernel, daemon:
        yield kernel, daemon


async def test_a_request_that_is_there_is_read_before_others_run_but_not_for_long(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    kernel, daemon = pair
    now = 1.0
    device = FuseDevice(lambda: now)
    kernel.send(b"requests")
    turns = 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(count_turns)
        await device.wait_readable(daemon.fileno())
        for _ in range(20):
            before = turns
            for _ in range(5):
                await device.wait_readable(daemon.fileno())
            assert turns == before
            for _ in range(2):  # in one of them the other task has its turn, whichever trio runs first
                now += 1.01 * MAX_WITHOUT_LOOP
                await device.wait_readable(daemon.fileno())
            assert turns > before
        nursery.cancel_scope.cancel()


async def test_a_request_that_is_not_there_is_waited_for(pair: tuple[socket.socket, socket.socket]) -> None:
    kernel, daemon = pair
    device = FuseDevice(lambda: 1.0)
    kernel.send(b"one")
    await device.wait_readable(daemon.fileno())
    daemon.recv(100)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(device.wait_readable, daemon.fileno())
        await trio.testing.wait_all_tasks_blocked()
        assert nursery.child_tasks
        kernel.send(b"two")
    assert daemon.recv(100) == b"two"


async def test_whoever_waits_for_a_request_hears_that_none_will_come(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    """As pyfuse3 ends its loop."""
    _, daemon = pair
    async with trio.open_nursery() as nursery:

        async def wait() -> None:
            with pytest.raises(Trio.ClosedResourceError):
                await Trio.lowlevel.wait_readable(daemon.fileno())

        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        Trio.lowlevel.notify_closing(daemon.fileno())
