"""The time of day and the passing of time, as parameters: tests give a clock of their own.

What waits (a pause, a time-out, a period) uses trio's clock, which tests replace through trio itself. This one is
for what is only read: stamps on files, and durations in tasks that may run without trio.
"""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Two clocks: one that only goes forward, and one that can be shown to people."""

    def monotonic_seconds(self) -> float:
        """Return seconds since an unspecified moment; only differences mean something."""

    def realtime_ns(self) -> int:
        """Return nanoseconds since the epoch; the host's administrator may set it forward or back."""


class SystemClock:
    """The host's clocks."""

    def monotonic_seconds(self) -> float:
        return time.monotonic()

    def realtime_ns(self) -> int:
        return time.time_ns()
