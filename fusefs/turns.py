"""Whose turn it is to be published: what an inode that is due has to wait for, and what begins if it has not.

What may not go wrong is the order in which keys change hands. An inode waits for a key that another inode's object has,
or on which somebody works; for a name that a directory still has in the bucket; for the object of a new directory above
it; and a further name of a file for the first one. Who waits for others, and they for it, is in a circle, which is
broken by moving one object out of the way. A key is written before the one that it replaces is deleted, so at no moment
is a file under neither name.

A new directory's object is written before anything below it, and by itself: SeaweedFS, asked for `d/` and `d/file` at
once, confirms both and loses one now and then.

What is below a directory that has a source, and what would go below the source, waits until the directory has none.
So all of it that nobody has looked at is below the source, and nothing else, however often a mount is lost meanwhile.
"""

from __future__ import annotations

import math
from collections import defaultdict
from itertools import chain
from typing import NamedTuple

from fusefs.inodes import ROOT_NUMBER, Alias, Directory, File, Inode
from fusefs.link_lists import list_key
from fusefs.placement import Placement, directories_of
from fusefs.publish_queue import PublishQueue
from fusefs.sweeper import Sweeper
from fusefs.uploads import Uploads


class Turn(NamedTuple):
    """An attempt that may begin."""

    inode: Inode
    #: Where its object goes; None: nowhere, because nobody needs one any more.
    target: str | None


class Turns:
    """Decides about who is due; all questions are answered as things are now."""

    def __init__(
        self,
        placement: Placement,
        uploads: Uploads,
        sweeper: Sweeper,
        queue: PublishQueue,
        *,
        interval_seconds: float,
    ) -> None:
        self._placement = placement
        self._uploads = uploads
        self._sweeper = sweeper
        self._queue = queue
        self._interval_seconds = interval_seconds

    def look_at(self, inode: Inode) -> Turn | None:
        """Return which attempt begins now that an inode is due: its own, one that is in its way, or none.

        If it has to wait it is set aside, or scheduled anew, and whoever it waits for has to hurry.
        """
        if inode not in self._queue:  # it was settled meanwhile
            self._queue.end_turn(inode)
            return None
        if self.source_awaited(inode) is not None:
            self._queue.wait_for_source(inode)
            return None
        directory = self.new_directory_above(inode)
        if directory is not None:
            self._queue.wait_below(directory, inode)
            return None
        target = self._placement.next_key(inode)
        if self._is_kept_back(inode, target):
            self._queue.park(inode, for_what_is_under_way=True)
            return None
        departing = self._departing_awaited(target) if target is not None else None
        if departing is not None:
            return self._clear_name(inode, departing)
        if self._queue.put_off(inode, self._can_wait_until(inode)):
            return None
        if isinstance(inode, Alias) and target is not None and self._has_to_wait_for_first(inode):
            self._wait_for_first(inode)
            return None
        obstacle = self._placement.obstacle(inode, target) if target is not None else None
        if obstacle is not None:
            return self._clear_key(inode, obstacle)
        self._queue.end_turn(inode)
        return Turn(inode, target)

    def _clear_name(self, inode: Inode, departing: list[Inode]) -> Turn | None:
        """Let the name of a directory that has gone be free soon, where an object is to have it."""
        for each in departing:
            if not self._placement.is_elsewhere(each):
                self._hurry(each)
        is_in_circle = inode.version is not None and self._waits_for_itself(inode)
        if is_in_circle or not departing:
            self._queue.park(inode)
        else:
            self._queue.wait_for_key(inode, departing[-1])
        return self._detour(inode) if is_in_circle else None

    def _clear_key(self, inode: Inode, obstacle: Inode) -> Turn | None:
        """Let the key be free soon that the object of another inode has."""
        if self._may_close_circle(inode, obstacle) and self._waits_for_itself(inode):
            self._queue.park(inode)
            return self._detour(obstacle)
        self._hurry(obstacle)
        self._queue.wait_for_key(inode, obstacle)
        return None

    def _may_close_circle(self, inode: Inode, obstacle: Inode) -> bool:
        """Return whether all may wait for each other once an inode waits for another one, which is cheap to tell.

        Not where nobody waits for the inode yet, nor where who is waited for in the end is on its way, or will be
        looked at: then that one closes the circle. Where many wait in a row, this is asked for each of them.
        """
        if not self._queue.may_be_awaited(inode):
            return False
        seen = {inode}
        while obstacle not in seen:
            seen.add(obstacle)
            awaited = self._queue.waiting_for_key.awaited_by(obstacle)
            if awaited is None:
                return self._queue.waits_for_others(obstacle)
            obstacle = awaited
        return True

    def _detour(self, inode: Inode) -> Turn | None:
        """Return an attempt that lets an inode's object wait elsewhere, so that a circle is none any more."""
        if self.source_awaited(inode) is not None:
            return None  # that will end, and then the circle can be broken
        detour = self._placement.detour(inode)
        if inode in self._queue.running or self._is_busy(self.keys_of(inode, detour)):
            return None
        return Turn(inode, detour)

    def _hurry(self, inode: Inode) -> None:
        """Let an inode be due now, because another one needs the key that its object has, or its upload."""
        self._queue.schedule_now(inode)
        if not self._placement.is_elsewhere(inode):
            self._queue.ask_for(inode)  # or else it would wait for its file to be closed

    def _wait_for_first(self, alias: Alias) -> None:
        """Let an alias wait until its inode has been published; that of an open file may take its time."""
        is_asked_for = self._queue.is_asked_for(alias)
        if is_asked_for or not self._queue.put_off(alias, self._can_wait_until(alias.of)):
            self._queue.park(alias)
            self._queue.ask_for(alias.of)

    def _can_wait_until(self, inode: Inode) -> float:
        """Return until when a due inode can wait: a file that was opened again since then is being rewritten.

        One that goes up as a stream is not to be ended for the interval's sake: what is written behind it would be a
        change of the object then, with all before it copied, again and again.
        """
        if not isinstance(inode, File) or not inode.writers:
            return -math.inf
        if self._queue.is_asked_for(inode) or self._placement.is_elsewhere(inode):
            return -math.inf
        since = max(self._queue.pending_since(inode), self._uploads.last_moved_at(inode))
        return since + self._interval_seconds

    # What it waits for

    def _is_kept_back(self, inode: Inode, target: str | None) -> bool:
        """Return whether an attempt or a deletion is under way that the inode's would meet."""
        return (
            inode in self._queue.running
            or self._is_busy(self.keys_of(inode, target) | self._keys_above(inode, target))
            or self._is_busy_below(inode)
        )

    def keys_of(self, inode: Inode, target: str | None) -> set[str]:
        """Return the keys that nobody else may change while the inode is on its way to `target`."""
        keys = {key for key, _ in inode.state.in_doubt}
        if target is not None:
            keys.add(target)
        keys |= {each.version.key for each in (inode, inode.subject) if each.version is not None}
        if inode.subject.links is not None:
            keys.add(list_key(inode.subject.links.number))
        return keys

    def _keys_above(self, inode: Inode, target: str | None) -> set[str]:
        """Return the keys on the way to the target that nobody may be working on: of objects with directories' names.

        Where an object appears under a name that its inode has no more, also markers: one of them may be another
        directory's by now, and new.
        """
        keys = set(directories_of(target or ""))
        return keys if target == self._placement.target(inode) else keys.union([f"{key}/" for key in keys])

    def _is_busy(self, keys: set[str]) -> bool:
        """Return whether somebody works on one of these keys."""
        return not self._sweeper.busy.isdisjoint(keys) or any(
            not busy.isdisjoint(keys) for busy in self._queue.running.values()
        )

    def _is_busy_below(self, inode: Inode) -> bool:
        """Return whether an object below a new directory's is on its way, or out of the bucket.

        One that is moved away is only read there. Where a large directory had the name before, some always are, and
        there is always something to be deleted: that waits for the new one.
        """
        prefix = self._placement.target(inode) if self._is_new_directory(inode) else None
        if prefix is None:
            return False
        written = (target for target in self._queue.targets.values() if target is not None)
        in_doubt = (key for running in self._queue.running for key, _ in running.state.in_doubt)
        is_busy = any(key.startswith(prefix) for key in chain(self._sweeper.busy, written, in_doubt))
        if is_busy:
            self._sweeper.hold_back(prefix)
        return is_busy

    def source_awaited(self, inode: Inode) -> Directory | None:
        """Return the directory whose source has to end before the inode's object is written, if there is one."""
        if not inode.linked or not self._placement.moving:
            return None
        return inode.moving_with or self._placement.moving_from(self._placement.next_key(inode) or "")

    def new_directory_above(self, inode: Inode) -> Directory | None:
        """Return a directory above whose object is new and due; one that cannot be written is not waited for."""
        for directory in inode.above():
            is_due = directory in self._queue.due or directory in self._queue.running
            if is_due and self._is_new_directory(directory):
                return directory
        return None

    def is_under_way(self, inode: Inode) -> bool:
        """Return whether an attempt is on its way that the inode may fail with: its own or a new directory's above."""
        return inode in self._queue.running or self.new_directory_above(inode) in self._queue.running

    def _is_new_directory(self, inode: Inode) -> bool:
        return (
            isinstance(inode, Directory)
            and inode.number != ROOT_NUMBER
            and (inode.version is None or self._placement.is_elsewhere(inode))
        )

    def _departing_awaited(self, target: str) -> list[Inode] | None:
        """Return who has to leave a name of the bucket that cannot be a directory's and a file's there; None if nobody.

        That of a directory, all of it, where a file comes; that of an object that belongs to nobody, where something
        comes below it. What belongs to nobody is not in the list, which may be empty.
        """
        if self._sweeper.is_failing:
            return None
        if self._placement.has_leftover_above(target):
            return []
        departing = self._placement.departing_from(target)
        if departing is None or any(inode.state.failure is not None for inode in departing):
            return None
        return departing

    def _has_to_wait_for_first(self, alias: Alias) -> bool:
        """Return whether there is no object yet that an alias could be made a copy of, or no newer one.

        One that is about to move is not copied, but on a detour it may be waiting for the alias.
        """
        inode = alias.of
        if inode in self._queue and alias.reflected_changes <= alias.state.published_changes:
            return True
        if inode.version is None:
            return True
        return self._placement.is_elsewhere(inode) and inode.version.key != self._placement.detour(inode)

    def _obstacle(self, inode: Inode) -> Inode | None:
        if isinstance(inode, Alias) and self._has_to_wait_for_first(inode):
            return inode.of
        key = self._placement.next_key(inode)
        return self._placement.obstacle(inode, key) if key is not None else None

    def _waits_for_itself(self, inode: Inode) -> bool:
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
        for parked in self._queue.parked:
            waiting[self._obstacle(parked)].append(parked)
        found = [*inodes]
        seen = {*inodes}
        for blocking in found:
            new = [*waiting[blocking], *self._queue.waiting_for_key.waiting_for(blocking)]
            new += self._queue.waiting_below.waiting_for(blocking) if below else ()
            found += [each for each in dict.fromkeys(new) if each not in seen]
            seen.update(new)
        return found[len(inodes) :]
