"""Whose turn it is to be published: what an inode that is due has to wait for.

It waits for a key that another inode's object has, or on which somebody works; for a name that a directory still has
in the bucket; for the object of a new directory above it; and a further name of a file for the first one. Who waits for
others, and they for it, is in a circle that has to be broken.

What is below a directory that has a source, and what would go below the source, waits until the directory has none.
So all of it that nobody has looked at is below the source, and nothing else, however often a mount is lost meanwhile.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container

from fusefs.inodes import ROOT_NUMBER, Alias, Directory, Inode
from fusefs.link_lists import list_key
from fusefs.placement import Placement
from fusefs.sweeper import Sweeper


class Turns:
    """Who is due or on its way; all questions are answered as things are now."""

    def __init__(self, placement: Placement, sweeper: Sweeper, pending: Container[Inode]) -> None:
        self._placement = placement
        self._sweeper = sweeper
        self._pending = pending
        #: Those that are due, and not on their way.
        self.queued: set[Inode] = set()
        #: Of those: who was looked at, and has to wait for something that will end.
        self.parked: list[Inode] = []
        #: Those that are on their way, and the keys that nobody else may change meanwhile.
        self.running: dict[Inode, set[str]] = {}
        #: Those that are due and wait for the end of a source.
        self.waiting_for_source: dict[Inode, None] = {}
        #: Those that are due and wait for the object of a new directory, by that.
        self.waiting_below: dict[Inode, list[Inode]] = {}

    def keys_of(self, inode: Inode, target: str | None) -> set[str]:
        """Return the keys that nobody else may change while the inode is on its way to `target`."""
        keys = {key for key, _ in inode.state.in_doubt}
        if target is not None:
            keys.add(target)
        keys |= {each.version.key for each in (inode, inode.subject) if each.version is not None}
        if inode.subject.links is not None:
            keys.add(list_key(inode.subject.links.number))
        return keys

    def is_busy(self, keys: set[str]) -> bool:
        """Return whether somebody works on one of these keys."""
        return not self._sweeper.busy.isdisjoint(keys) or any(
            not busy.isdisjoint(keys) for busy in self.running.values()
        )

    def is_busy_below(self, directory: Directory) -> bool:
        """Return whether an object below a new directory's is on its way."""
        prefix = self._placement.target(directory)
        if prefix is None or not self._is_new_directory(directory):
            return False
        busy = self._sweeper.busy.union(*self.running.values())
        return any(key.startswith(prefix) for key in busy)

    def source_awaited(self, inode: Inode) -> Directory | None:
        """Return the directory whose source has to end before the inode's object is written, if there is one."""
        if not inode.linked or not self._placement.moving:
            return None
        return inode.moving_with or self._placement.moving_from(self._placement.next_key(inode) or "")

    def new_directory_above(self, inode: Inode) -> Directory | None:
        """Return a directory above whose object is new and due; one that cannot be written is not waited for."""
        for directory in inode.above():
            is_due = directory in self.queued or directory in self.running
            if is_due and self._is_new_directory(directory):
                return directory
        return None

    def is_under_way(self, inode: Inode) -> bool:
        """Return whether an attempt is on its way that the inode may fail with: its own or a new directory's above."""
        return inode in self.running or self.new_directory_above(inode) in self.running

    def _is_new_directory(self, inode: Inode) -> bool:
        return (
            isinstance(inode, Directory)
            and inode.number != ROOT_NUMBER
            and (inode.version is None or self._placement.is_elsewhere(inode))
        )

    def waits_for_name(self, target: str) -> bool:
        """Return whether a name is still leaving the bucket that cannot be a directory's and a file's there.

        That of a directory, all of it, where a file comes; that of an object that belongs to nobody, where something
        comes below it.
        """
        if self._sweeper.is_failing:
            return False
        if self._placement.has_leftover_above(target):
            return True
        departing = self._placement.departing_from(target)
        if departing is None:
            return False
        return all(inode.state.failure is None for inode in departing)

    def has_to_wait_for_first(self, alias: Alias) -> bool:
        """Return whether there is no object yet that an alias could be made a copy of, or no newer one.

        One that is about to move is not copied, but on a detour it may be waiting for the alias.
        """
        inode = alias.of
        if inode in self._pending and alias.reflected_changes <= alias.state.published_changes:
            return True
        if inode.version is None:
            return True
        return self._placement.is_elsewhere(inode) and inode.version.key != self._placement.detour(inode)

    def _obstacle(self, inode: Inode) -> Inode | None:
        if isinstance(inode, Alias) and self.has_to_wait_for_first(inode):
            return inode.of
        key = self._placement.next_key(inode)
        return self._placement.obstacle(inode, key) if key is not None else None

    def waits_for_itself(self, inode: Inode) -> bool:
        """Return whether the inode whose object is in the way waits for another, and so on in a circle."""
        seen: set[Inode] = set()
        waiting = self._waited_for_by(inode)
        while waiting:
            blocking = waiting.pop()
            if blocking is inode:
                return True
            if blocking not in seen:
                seen.add(blocking)
                waiting += self._waited_for_by(blocking)
        return False

    def _waited_for_by(self, inode: Inode) -> list[Inode]:
        key = self._placement.next_key(inode)
        if key is None:
            return []
        obstacle = self._obstacle(inode)
        departing = self._placement.departing_from(key) or []
        waiting = departing if obstacle is None else [obstacle, *departing]
        directory = self.new_directory_above(inode)
        return waiting if directory is None else [directory, *waiting]

    def waiting_for(self, *inodes: Inode, below: bool) -> list[Inode]:
        """Return the parked inodes that need a key which the object of one of these has, directly or by others.

        With `below` also those, and again who waits for them, that wait for the object of a new directory.
        """
        waiting: defaultdict[Inode | None, list[Inode]] = defaultdict(list)
        for parked in self.parked:
            waiting[self._obstacle(parked)].append(parked)
        found = [*inodes]
        seen = {*inodes}
        for blocking in found:
            new = [*waiting[blocking], *(self.waiting_below.get(blocking, []) if below else [])]
            found += [each for each in dict.fromkeys(new) if each not in seen]
            seen.update(new)
        return found[len(inodes) :]
