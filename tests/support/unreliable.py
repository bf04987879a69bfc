"""What becomes of requests on a way to a store that is not to be relied on."""

from __future__ import annotations

import random
from typing import Final

from tests.support.recording_proxy import Fate, ReceivedRequest

SHARE: Final = 0.06
"""Of requests that meet a fault."""

_FAULTS: Final = (
    Fate.LATE,
    Fate.REFUSED,
    Fate.CALL_LOST,
    Fate.ANSWER_LOST,
    Fate.ANSWER_LOST,
    Fate.ANSWER_CUT,
)


class Weather:
    """The fate of each request: by chance, and while `is_bad` nothing reaches the store.

    Only what a mount tries at its beginning to know the store is always answered: it waits for that no longer than its
    user would.
    """

    def __init__(self, seed: int, *, share: float = SHARE) -> None:
        self.is_bad = False
        self._share = share
        self._random = random.Random(seed)

    def __call__(self, request: ReceivedRequest) -> Fate:
        if self.is_bad:
            return Fate.CALL_LOST
        return self._random.choice(_FAULTS) if self._random.random() < self._share else Fate.ANSWERED
