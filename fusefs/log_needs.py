"""What the log is needed for: in which batch the story of each inode, and of each object to be deleted, begins.

The oldest of these batches is the cutoff that the next one names. A publication that succeeds makes all unneeded that
was captured before it began.

What cannot be published would keep every batch since its own. So when the log has become too long, such an inode is
told again, whole, and what is to be deleted is named again: then the older batches are not needed. That is done once
for each `max_log_bytes` that go into the log; where it takes more than half of them, once for twice what it takes.

Nothing here waits, reads or writes: the committer tells what it has appended, and asks.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, TypeAlias

from backends.base import KIB
from fusefs.change_log import Publication
from fusefs.inodes import Alias, Inode
from fusefs.keys import RESERVED_PREFIX
from fusefs.log_records import NOWHERE, Position
from fusefs.versions import Version

RECORD_SIZE: Final = KIB
"""Bytes that a record is taken to have beside those of a file."""

Needing: TypeAlias = Inode | Version
"""What the log can be needed for."""


class LogNeeds:
    """Where the story of each thing begins that the bucket lacks.

    A story begins later only when everything before is in the bucket (`publishing`, `forget`), or when a whole commit
    tells of it anew (`need_from_where_told_again`). A publication that fails changes nothing: for its duration the
    story begins where it has begun before.
    """

    def __init__(self, *, max_log_bytes: float) -> None:
        self._max_log_bytes = max_log_bytes
        #: In the order of positions, if `_is_sorted`.
        self._needed: dict[Needing, Position] = {}
        self._is_sorted = True
        #: No position in there is later.
        self._latest = NOWHERE
        #: The same of inodes that are being published, as of before that.
        self._publishing: dict[Inode, Position] = {}
        #: What the next commit tells again, and in which batch that begins, if one has any of it yet.
        self._again: dict[Needing, Position | None] = {}
        self._again_before = NOWHERE
        #: Told again since that was set.
        self._again_bytes = 0

    @property
    def is_empty(self) -> bool:
        """Whether the log is needed for nothing."""
        return not (self._needed or self._publishing)

    def cutoff_before(self, position: Position) -> Position:
        """Return from where on the log is needed, if a batch at `position` is the next one."""
        return min([next(iter(self._in_order().values()), position), *self._publishing.values()])

    def need(self, thing: Needing, since: Position) -> None:
        """Note that batches from `since` on tell of a thing; where older ones do, it stays with those."""
        if thing not in self._needed:
            self._note(thing, since)

    def recovered(self, inode: Inode, position: Position) -> None:
        """Note that batches of earlier terms, from `position` on, tell of an inode."""
        self._note(inode, position)

    def forget(self, thing: Needing) -> None:
        """Note that the bucket has all of a thing."""
        self._needed.pop(thing, None)

    @contextmanager
    def publishing(self, inode: Inode) -> Iterator[Publication]:
        """As `ChangeLog`."""
        publication = Publication(has_attributes=False)
        before = self._needed.pop(inode, None)
        if before is None:
            yield publication
            return
        self._publishing[inode] = before
        try:
            yield publication
        finally:
            del self._publishing[inode]
            if not publication.has_attributes:
                self._note(inode, before)

    def _note(self, thing: Needing, since: Position) -> None:
        """Set a position, as nothing else does: at the end, where most belong."""
        self._needed.pop(thing, None)
        self._needed[thing] = since
        self._is_sorted = self._is_sorted and since >= self._latest
        self._latest = max(self._latest, since)

    def _in_order(self) -> dict[Needing, Position]:
        if not self._is_sorted:
            self._needed = dict(sorted(self._needed.items(), key=lambda item: item[1]))
            self._is_sorted = True
        return self._needed

    # A short log

    @property
    def limit(self) -> float:
        """How long the log may be: what is told again and again must not be most of what goes into it."""
        return max(self._max_log_bytes, 2 * self._again_bytes)

    @property
    def again_before(self) -> Position:
        """What is needed from before it is to be published or told again."""
        return self._again_before

    def shorten(self, position: Position) -> None:
        """Have all published or told again that is needed from before `position`, unless some of it still has to be."""
        if not self._again:
            self._again_before, self._again_bytes = position, 0

    def to_shorten(self) -> list[Needing]:
        """Return what is to be published or told again, the oldest first."""
        return [thing for thing, position in self._in_order().items() if position < self._again_before]

    def tell_again(self, thing: Needing) -> bool:
        """Note that the next commit tells all of a thing; return False if that was noted already."""
        if thing in self._again:
            return False
        self._again[thing] = None
        return True

    def note_told(self, thing: Needing, position: Position, size_bytes: int = 0) -> None:
        """Note that the batch at `position` tells of a thing, with so many bytes of a file."""
        if thing in self._again:
            self._again[thing] = self._again[thing] or position
            self._again_bytes += RECORD_SIZE + size_bytes

    def need_from_where_told_again(self) -> None:
        """Note that older batches are not needed of what was told again, now that all of it was."""
        for thing, position in self._again.items():
            is_found = not isinstance(thing, Inode) or _is_found_by_its_name(thing)
            if position is not None and thing in self._needed and is_found:
                of = self._again.get(thing.of) if isinstance(thing, Alias) else None
                self._note(thing, min(position, of or position))
        self._again.clear()


def _is_found_by_its_name(inode: Inode) -> bool:
    """Return whether an object that an attempt may have made is under the name that a record has now.

    Of another name only older records tell. Below the reserved prefix a recovery looks for all that is ours.
    """
    state = inode.state
    attempts = state.in_doubt if state.storing is None else [*state.in_doubt, state.storing]
    name = inode.path_key
    return all(key.startswith(RESERVED_PREFIX) or key.removesuffix("/") == name for key, _ in attempts)
