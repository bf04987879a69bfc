"""How far a mount is that does not answer yet: it asks the store, waits for the lease, or recovers what was left.

Told in lines, to the log and to whoever has started the mount: at once where something else begins, and then now and
again. `fusefs status` tells the last one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

_log = logging.getLogger(__name__)

REPEAT_SECONDS: Final = 5.0
"""From one line about the same to the next."""


class StartProgress:
    """The last line, and when it was told; `now` counts seconds, and `tell` is given those that are to be shown."""

    def __init__(self, tell: Callable[[str], None], now: Callable[[], float]) -> None:
        self._tell: Final = tell
        self._now: Final = now
        self.line = "it asks the store"
        self._subject = ""
        self._told_at = 0.0

    def note(self, subject: str, line: str) -> None:
        """Note how far it is with something; `subject` says what that is, and `line` the rest."""
        self.line = f"{subject}: {line}"
        if subject == self._subject and self._now() < self._told_at + REPEAT_SECONDS:
            return
        self._subject, self._told_at = subject, self._now()
        _log.info("%s", self.line)
        self._tell(self.line)


def tell_nobody(line: str) -> None:
    """Show no line; the log has it anyway."""
