"""What the log is told of keys that cannot be shown: the first few of each directory, and how many more there are.

Each is named once. A bucket may have millions of them, and what was named is remembered: so neither the keys of one
directory nor the directories are told of without an end. `fusefs check` lists all.
"""

from __future__ import annotations

import logging
from typing import Final

_log = logging.getLogger(__name__)

KEYS_NAMED: Final = 5
"""Of one directory."""

DIRECTORIES: Final = 1_000
"""Of which keys are named: with keys of a kilobyte, 5 MB are remembered."""


class HiddenKeys:
    """The keys that were named, and of which directories was told that there are more."""

    def __init__(self) -> None:
        self._named: dict[str, set[str]] = {}
        #: None stands for all directories of which no key is named.
        self._have_more: set[str | None] = set()

    def note(self, prefix: str, key: str, reason: str) -> bool:
        """Name a key of a directory, if there is room for it; return whether it is named, now or before."""
        if prefix not in self._named and len(self._named) >= DIRECTORIES:
            return False
        named = self._named.setdefault(prefix, set())
        if key not in named and len(named) < KEYS_NAMED:
            named.add(key)
            _log.warning("the object %r cannot be shown: %s", key, reason)
        return key in named

    def note_more(self, prefix: str, count: int) -> None:
        """Note how many keys of a directory are not named."""
        known = prefix if prefix in self._named else None
        if known in self._have_more:
            return
        self._have_more.add(known)
        if known is None:
            _log.warning("objects in further directories cannot be shown: `fusefs check` lists them")
        else:
            _log.warning(
                "%s more objects in %r cannot be shown: `fusefs check` lists them",
                f"{count:,}",
                prefix or "/",
            )
