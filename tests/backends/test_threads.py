"""Calls in threads: never more at once than allowed, none abandoned, each answer to whoever has asked."""

from __future__ import annotations

import threading

import pytest
import trio
import trio.testing

from backends.errors import NoThread
from backends.threads import Threads, beside_others


async def test_each_caller_gets_the_answer_or_the_error_of_its_call() -> None:
    threads = Threads(4)
    answers: dict[int, int] = {}

    async def ask(number: int) -> None:
        if number % 5:
            answers[number] = await threads.run(lambda: number * number)
        else:
            with pytest.raises(ZeroDivisionError):
                await threads.run(lambda: number // 0)

    async with trio.open_nursery() as nursery:
        for number in range(50):
            nursery.start_soon(ask, number)
    assert answers == {number: number * number for number in range(50) if number % 5}


async def test_no_more_at_once_than_allowed() -> None:
    threads = Threads(3)
    under_way, most, lock = 0, 0, threading.Lock()
    full = threading.Barrier(3)

    def call() -> None:
        nonlocal under_way, most
        with lock:
            under_way += 1
            most = max(most, under_way)
        full.wait(10)
        with lock:
            under_way -= 1

    async with trio.open_nursery() as nursery:
        for _ in range(9):
            nursery.start_soon(threads.run, call)
    assert most == 3


async def test_a_call_that_has_begun_is_waited_for() -> None:
    """By a caller who is cancelled, and by whoever waits until nothing is under way."""
    threads = Threads(2)
    begun, may_end = threading.Event(), threading.Event()
    ended: list[str] = []

    def call() -> None:
        begun.set()
        may_end.wait(10)
        ended.append("call")

    async with trio.open_nursery() as nursery:
        with trio.CancelScope() as scope:
            nursery.start_soon(_cancel_when, begun, scope, may_end)
            await threads.run(call)
        assert ended == ["call"]
        with trio.fail_after(10):
            await threads.wait_until_idle()


async def test_a_caller_who_was_cancelled_begins_nothing() -> None:
    calls: list[str] = []
    with trio.CancelScope() as scope:
        scope.cancel()
        await Threads(1).run(lambda: calls.append("call"))
    assert scope.cancelled_caught
    assert calls == []


async def _cancel_when(begun: threading.Event, scope: trio.CancelScope, may_end: threading.Event) -> None:
    await trio.to_thread.run_sync(begun.wait, 10)
    scope.cancel()
    await trio.testing.wait_all_tasks_blocked()
    may_end.set()


async def test_a_host_without_room_for_another_thread_is_a_store_that_can_be_asked_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And no error of another kind, which would end the mount; the place of the call is free again."""
    threads = Threads(1)

    def refuse(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(trio.lowlevel, "start_thread_soon", refuse)
        with pytest.raises(NoThread, match="can't start new thread") as caught:
            await threads.run(lambda: 1)
    assert caught.value.retryable
    assert not caught.value.is_in_doubt
    with trio.fail_after(60):
        assert await threads.run(lambda: 2) == 2


async def test_what_is_to_be_done_at_last_needs_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the host has no room for one, it takes its time here; raised by a task of a mount, that would end it."""

    async def refuse(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(trio.to_thread, "run_sync", refuse)
    assert await beside_others(lambda: 5) == 5
