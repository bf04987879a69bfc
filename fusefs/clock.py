"""The time of day as a parameter: tests give a clock of their own.

What waits (a pause, a time-out, a period) uses trio's clock, which tests replace through trio itself. `Clock` is
for what is only read: the stamps on files. `boottime` is for what must not be believed for too long: trio's clock
stands still while the host is suspended, and the others' do not.
"""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """A clock that can be shown to people."""

    def realtime_ns(self) -> int:
        """Return nanoseconds since the epoch; the host's administrator may set it forward or back."""


class SystemClock:
    """The host's clock."""

    def realtime_ns(self) -> int:
        return time.time_ns()


def boottime() -> float:
    """Return seconds since some moment, those in which the host was suspended included; nobody can set it."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
