"""When programs make many changes one right after the other, so that what is not urgent had better wait: a burst.

Pure: times are the caller's.
"""

from __future__ import annotations

import math
from typing import Final

QUIET_SECONDS: Final = 0.05
"""A burst is over when nothing has happened for so long."""

MAX_SECONDS: Final = 5.0
"""So long at most something waits for a pause: perhaps there is none that is long enough to do it all."""


class Burst:
    """The last burst of changes, be it over or not."""

    def __init__(self) -> None:
        self._last = -math.inf

    def note(self, now: float) -> None:
        """Note that something has changed."""
        self._last = now

    def waits_until(self, waiting_since: float) -> float:
        """Return until when things wait that could have been done at `waiting_since`, as far as is known now."""
        return min(self._last + QUIET_SECONDS, waiting_since + MAX_SECONDS)
