"""When a burst of changes is over."""

from __future__ import annotations

import math

from fusefs.burst import MAX_SECONDS, QUIET_SECONDS, Burst


def test_before_the_first_change_nothing_waits() -> None:
    assert Burst().waits_until(100.0) == -math.inf


def test_each_change_puts_the_end_off() -> None:
    burst = Burst()
    for now in (100.0, 100.03, 100.06):
        burst.note(now)
        assert burst.waits_until(100.0) == now + QUIET_SECONDS


def test_nothing_waits_for_ever() -> None:
    burst = Burst()
    burst.note(100.0 + MAX_SECONDS)
    assert burst.waits_until(100.0) == 100.0 + MAX_SECONDS
