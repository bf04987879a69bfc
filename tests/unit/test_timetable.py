"""A timetable gives what is due, once, at the earliest time that was asked for."""

from __future__ import annotations

import math
import weakref

from hypothesis import given
from hypothesis import strategies as st

from fusefs.timetable import OUTDATED, Timetable

_STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.integers(0, 5), st.integers(0, 50)),
        st.tuples(st.just("drop"), st.integers(0, 5), st.just(0)),
        st.tuples(st.just("take"), st.just(0), st.integers(0, 50)),
    )
)


@given(_STEPS)
def test_it_is_a_map_of_earliest_times(steps: list[tuple[str, int, int]]) -> None:
    table: Timetable[int] = Timetable()
    model: dict[int, int] = {}
    for step, thing, time in steps:
        if step == "put":
            earlier = time < model.get(thing, 1000)
            assert table.put(thing, time) is earlier
            model[thing] = min(time, model.get(thing, time))
        elif step == "drop":
            table.drop(thing)
            model.pop(thing, None)
        else:
            due = table.take_due(time)
            assert sorted(due) == sorted(thing for thing, at in model.items() if at <= time)
            assert [model[thing] for thing in due] == sorted(model[thing] for thing in due)
            model = {thing: at for thing, at in model.items() if at > time}
            assert table.next_due() == min(model.values(), default=math.inf)


class Thing:
    """Something that can be seen to be gone."""


def test_what_was_taken_out_is_not_kept() -> None:
    """But for a few: or else files that were removed would be in memory until the time at which they had been due."""
    table: Timetable[Thing] = Timetable()
    things = [Thing() for _ in range(10 * OUTDATED)]
    gone = [weakref.ref(thing) for thing in things]
    while things:
        table.put(things[-1], 50)
        table.drop(things.pop())
    assert sum(reference() is not None for reference in gone) <= OUTDATED
    assert table.take_due(50) == []
