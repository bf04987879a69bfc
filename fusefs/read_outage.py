"""What the last request for bytes of files has found, where the store did not answer: for those who wait meanwhile.

Few requests are under way at once, and each is repeated for `retry_timeout`. Whoever waits for another's request, or
for a turn of their own, would wait for several of them, one after the other.
"""

from __future__ import annotations

import copy

from backends.errors import StorageError


class ReadOutage:
    """Of all files of a mount; over with the first answer. Requests are numbered in the order in which they begin."""

    def __init__(self) -> None:
        self._begun = 0
        self._unanswered = 0
        self._error: StorageError | None = None

    @property
    def last_begun(self) -> int:
        """The number of the last request: those that begin after this moment have higher ones."""
        return self._begun

    def begin(self) -> int:
        """Return the number of a request that begins."""
        self._begun += 1
        return self._begun

    def found(self, error: StorageError, request: int) -> None:
        """Note that a request has had no answer."""
        self._error, self._unanswered = error, request

    def ended(self) -> None:
        """Note that the store has answered."""
        self._error = None

    def check(self, last_begun: int) -> None:
        """Raise the error of a request that began after this one: it was waited for as long as one's own would be."""
        if self._error is not None and last_begun < self._unanswered:
            raise copy.copy(self._error)  # without the frames of others, which have bytes of files
