"""A budget of bytes is not exceeded, is given out in order, and nobody waits for what is there."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import pytest
import trio
from hypothesis import example, given, settings
from hypothesis import strategies as st
from trio.testing import wait_all_tasks_blocked

from backends.byte_budget import ByteBudget

LIMIT: Final = 1_280
SHORT_LIMIT: Final = LIMIT // 8
LONGEST_SHORT: Final = 10

SIZES: Final = st.one_of(
    st.integers(0, LONGEST_SHORT),
    st.integers(LONGEST_SHORT + 1, LIMIT),
    st.integers(LIMIT + 1, 3 * LIMIT),
)
#: A size asks for bytes; a list of two ends, or cancels, one of those who have or want some.
STEPS: Final = st.lists(st.one_of(SIZES, st.tuples(st.booleans(), st.integers(0, 20))), max_size=60)


@dataclass(eq=False)
class _Borrower:
    """Asks for bytes, and holds them until it is told to end, or is cancelled."""

    size: int
    has_got: bool = False
    has_left: bool = False
    end: trio.Event = field(default_factory=trio.Event)
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)

    @property
    def is_short(self) -> bool:
        return self.size <= LONGEST_SHORT

    async def run(self, budget: ByteBudget, got: list[_Borrower]) -> None:
        with self.scope:
            async with budget.hold(self.size):
                self.has_got = True
                got.append(self)
                await self.end.wait()
        self.has_left = True


def assert_is_fair(borrowers: list[_Borrower], got: list[_Borrower], limit: int) -> None:
    """Of the borrowers of one kind, in the order in which they came."""
    held = [each.size for each in borrowers if each.has_got and not each.has_left]
    waiting = [each.size for each in borrowers if not each.has_got and not each.has_left]
    assert sum(held) <= limit or len([size for size in held if size]) == 1
    assert [each for each in borrowers if each.has_got] == got  # first come, first served
    assert not waiting or (sum(held) > 0 and sum(held) + waiting[0] > limit)  # whose turn it is has to wait


@given(steps=STEPS)
@example(steps=[1_000, 2_000, 500, 300, (True, 1)])  # those behind a long one go when that gives up
@example(steps=[1_281, 11, 11, 11, 11, (False, 0)])  # several at once
@example(steps=[2_000, 1_000, 5, (False, 0), (False, 0)])
@settings(max_examples=150, deadline=None)
def test_a_budget_is_kept_and_given_out_in_order(steps: list[int | tuple[bool, int]]) -> None:
    """Whoever comes, ends and is cancelled, in any order; and everything is back at the end."""

    async def main() -> None:
        budget = ByteBudget(LIMIT)
        borrowers: list[_Borrower] = []
        got: list[_Borrower] = []
        before = 0
        async with trio.open_nursery() as nursery:
            for step in steps:
                there = [each for each in borrowers if not each.has_left]
                if isinstance(step, int):
                    borrowers.append(_Borrower(step))
                    nursery.start_soon(borrowers[-1].run, budget, got)
                elif there:
                    cancels, index = step
                    chosen = there[index % len(there)]
                    chosen.scope.cancel() if cancels else chosen.end.set()
                await wait_all_tasks_blocked()
                got[before:] = sorted(got[before:], key=borrowers.index)  # trio wakes them in any order
                before = len(got)
                for is_short, limit in ((True, SHORT_LIMIT), (False, LIMIT)):
                    assert_is_fair(
                        [each for each in borrowers if each.is_short is is_short],
                        [each for each in got if each.is_short is is_short],
                        limit,
                    )
            for each in borrowers:
                each.end.set()
        assert all(each.has_got or each.scope.cancel_called for each in borrowers)
        assert budget.used == 0

    trio.run(main)


async def test_cancelling_whom_a_release_has_just_woken_gives_back_its_bytes() -> None:
    """Both in one moment: the task has got them and meets the cancellation at its next wait, or has not got them."""
    budget = ByteBudget(LIMIT)
    await budget.acquire(LIMIT)
    borrower = _Borrower(LIMIT)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(borrower.run, budget, [])
        await wait_all_tasks_blocked()
        budget.release(LIMIT)
        borrower.scope.cancel()
    assert budget.used == 0
    with trio.fail_after(1):
        await budget.acquire(LIMIT)


async def test_cancelling_all_at_once_gives_back_all() -> None:
    """Of two that are cancelled together, one may give back what the other has been waiting for."""
    for _ in range(20):  # trio runs them in any order
        budget = ByteBudget(LIMIT)
        async with trio.open_nursery() as nursery:
            for _ in range(6):
                nursery.start_soon(_Borrower(LIMIT).run, budget, [])
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        assert budget.used == 0


async def test_an_error_gives_back_what_was_held() -> None:
    budget = ByteBudget(LIMIT)
    with pytest.raises(ZeroDivisionError):
        async with budget.hold(LIMIT):
            raise ZeroDivisionError
    assert budget.used == 0


async def test_no_more_bodies_than_that_however_short_they_are() -> None:
    """Of the long and of the short ones each."""
    budget = ByteBudget(LIMIT, max_bodies=2)
    async with trio.open_nursery() as nursery:
        for size in (1, 1, 1, LIMIT // 4, LIMIT // 4, LIMIT // 4):
            nursery.start_soon(budget.acquire, size)
        await wait_all_tasks_blocked()
        assert budget.used == 2 + 2 * (LIMIT // 4)
        budget.release(1)
        budget.release(LIMIT // 4)
    assert budget.used == 2 + 2 * (LIMIT // 4)
