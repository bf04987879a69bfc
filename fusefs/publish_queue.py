"""Which inodes are pending, when each of them is due, and what it waits for then: the state of all publishing.

States of an inode: clean -> pending (`changed`) -> due (its time has come) -> running -> clean, or pending again
when it changed meanwhile or the attempt failed. A due inode is looked at in its turn (`ready`). If it has to wait then,
it is set aside until that ends: an attempt or a deletion that has a key (`parked`), another inode whose object has its
key (`waiting_for_key`), the object of a new directory above it (`waiting_below`), or the source of a directory
(`waiting_for_source`).

No request is made here and nothing decided but times; the clock is a parameter.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Final

import trio

from fusefs.burst import Burst
from fusefs.inodes import Directory, File, Inode
from fusefs.moves import Moves
from fusefs.placement import Placement
from fusefs.ready_line import ReadyLine
from fusefs.timetable import Timetable
from fusefs.waits import Waits

SETTLE_SECONDS: Final = 0.05
"""How long a change of names waits before it is published: a temporary name is gone by then, and costs nothing."""

RETRY_SECONDS: Final = 30.0
"""Pause after an attempt that failed for good (the store's own outages are retried below, in `backends.retrying`)."""

LOOK_SECONDS: Final = 1.0
LOOKS: Final = 100
"""How often, and how many, of those who wait for a key are looked at although nothing has become of who has it."""


class PublishQueue:
    """The pending inodes, as a collection, and what is to be known of each; others read its fields and change none."""

    def __init__(
        self,
        placement: Placement,
        *,
        delay_seconds: float,
        interval_seconds: float,
        yields_to_bursts: bool,
        now: Callable[[], float] = trio.current_time,
    ) -> None:
        self._placement = placement
        self._delay_seconds = delay_seconds
        self._interval_seconds = interval_seconds
        self._yields_to_bursts = yields_to_bursts
        self._now = now

        #: Since when the bucket lacks something of them.
        self._pending: dict[Inode, float] = {}
        #: Directories with another name: what is below them belongs to `_pending`, before anybody looks there.
        self._moves = Moves()
        self._timetable: Timetable[Inode] = Timetable()
        #: Those for which somebody waits, and that are not on their way.
        self._asked_for: set[Inode] = set()
        self._burst = Burst()

        #: Those that are due, and not on their way.
        self.due: set[Inode] = set()
        #: Of those: who is to be looked at, in this order; who somebody waits for has not to wait for the rest.
        self.ready: Final = ReadyLine(self.is_asked_for)
        #: Who was looked at, and has to wait for something that will end.
        self.parked: dict[Inode, None] = {}
        #: Of those: who waits for what is not under way yet.
        self._parked_for_others: set[Inode] = set()
        #: Who waits until the object of another inode has left a key, by that.
        self.waiting_for_key: Final = Waits()
        self._look_again_by = math.inf
        #: Who waits for the end of a source.
        self.waiting_for_source: dict[Inode, None] = {}
        #: Who waits for the object of a new directory, by that.
        self.waiting_below: Final = Waits()
        #: Those that are on their way, and the keys that nobody else may change meanwhile.
        self.running: dict[Inode, set[str]] = {}
        #: Where the objects of the same appear, if they have any then.
        self.targets: dict[Inode, str | None] = {}

        #: Since when there has been something ready all the time.
        self._ready_since = math.inf
        #: Until when `wait` waits, if nothing wakes it.
        self._sleeps_until = -math.inf
        self._wake = trio.Event()
        self._progress = trio.lowlevel.ParkingLot()

    # What is pending

    def __contains__(self, inode: Inode) -> bool:
        return inode in self._pending

    def __iter__(self) -> Iterator[Inode]:
        return iter(self._pending)

    def __len__(self) -> int:
        return len(self._pending)

    def pending_since(self, inode: Inode) -> float:
        """Return since when the bucket has lacked something of an inode."""
        return self._pending.get(inode, -math.inf)

    def changed(self, inode: Inode) -> None:
        """Note that the bucket lacks something of the inode."""
        inode.state.changes += 1
        self.schedule(inode)

    def moved(self, directory: Directory) -> None:
        """Note that a directory has another name, and so all below it another path; `note_moves` looks who that is."""
        self._moves.add(directory)

    def note_moves(self) -> None:
        """Let all that is below renamed directories be pending, before anybody asks what is."""
        for inode in self._moves.take():
            self.changed(inode)
            self.look_again_at(inode)

    def settle(self, inode: Inode) -> None:
        """Note that the inode needs no publication any more."""
        self._pending.pop(inode, None)
        self._asked_for.discard(inode)
        self._timetable.drop(inode)
        if inode not in self.running:  # or else they look when that ends, and before who is below
            self._look_again_at_key_of(inode)
        inode.state.attempted.unpark_all()
        self._progress.unpark_all()

    # When it is due

    def schedule(self, inode: Inode) -> None:
        """Let the inode be due when one of its kind should be."""
        self.schedule_at(inode, self._due_time(inode))

    def schedule_anew(self, inode: Inode) -> None:
        """Let an inode that was published, and changed meanwhile, be due as if it had become pending only now."""
        self._pending[inode] = self._now()
        self.schedule(inode)

    def schedule_now(self, inode: Inode) -> None:
        """Let the inode be due at once."""
        self.schedule_at(inode, self._now())

    def schedule_retry(self, inode: Inode) -> None:
        """Let the inode be due when what has failed is tried again."""
        self.schedule_at(inode, self._now() + RETRY_SECONDS)

    def schedule_at(self, inode: Inode, due: float) -> None:
        """Put the inode into the timetable, unless it is there for an earlier time or is due already."""
        if inode not in self._pending:
            self._pending[inode] = self._now()
        if inode not in self.due and self._timetable.put(inode, due) and due < self._sleeps_until:
            self._wake.set()

    def ask_for(self, inode: Inode) -> None:
        """Let the inode be due at once, because somebody waits for it."""
        self._asked_for.add(inode)
        self.ready.hurry(inode)
        self.schedule_now(inode)
        self._wake.set()

    @property
    def has_asked_for(self) -> bool:
        """Whether somebody waits for an attempt that has not begun."""
        return bool(self._asked_for)

    def is_asked_for(self, inode: Inode) -> bool:
        """Return whether somebody waits for the next attempt."""
        return inode in self._asked_for

    def note_activity(self) -> None:
        """Note that a program has done something with names or files, and may go on with that at once."""
        self._burst.note(self._now())

    def _due_time(self, inode: Inode) -> float:
        now = self._now()
        if not isinstance(inode, File) or self._placement.is_elsewhere(inode):
            return now + SETTLE_SECONDS
        if inode.writers:
            return now + self._interval_seconds
        return max(now + SETTLE_SECONDS, inode.state.published_at + self._delay_seconds)

    # Who is due

    def advance(self) -> bool:
        """Let what is due by now be ready; return whether it may be looked at, and does not yield to a burst.

        A program that makes many files has the processor then. What it has made is in the log soon, which tells of many
        of them with one PUT.
        """
        self._wake = trio.Event()
        now = self._now()
        due = self._timetable.take_due(now)
        if now >= self._look_again_by:
            self.ready.extend(self.waiting_for_key.release_some(LOOKS))
            self._look_again_by = now + LOOK_SECONDS if self.waiting_for_key else math.inf
        self.ready.extend(due)
        self.due.update(due)
        if self.ready:
            self.note_moves()
        self._ready_since = min(self._ready_since, now) if self.ready else math.inf
        self._sleeps_until = min(self._timetable.next_due(), self._look_again_by)
        burst_ends = self._burst.waits_until(self._ready_since)
        if not self.ready or not self._yields_to_bursts or self._asked_for or now >= burst_ends:
            return True
        self._sleeps_until = min(self._sleeps_until, burst_ends)
        return False

    def sleep_until(self, time: float) -> None:
        """Let `wait` return then, at the latest."""
        self._sleeps_until = min(self._sleeps_until, time)

    async def wait(self) -> None:
        """Return when something may be due, or may go on, since `advance`."""
        with trio.move_on_at(self._sleeps_until):
            await self._wake.wait()

    def take_ready(self) -> Inode:
        """Take out the first that is ready; it stays due, and has to be set aside unless `end_turn` says otherwise."""
        return self.ready.take()

    def park(self, inode: Inode, *, for_what_is_under_way: bool = False) -> None:
        """Set a due inode aside until any attempt or deletion has ended."""
        self.parked[inode] = None
        if not for_what_is_under_way:
            self._parked_for_others.add(inode)

    def wait_for_key(self, inode: Inode, owner: Inode) -> None:
        """Set a due inode aside until something becomes of the one whose object, or one below, has its key."""
        if not self.waiting_for_key:
            self._look_again_by = self._now() + LOOK_SECONDS
            self.sleep_until(self._look_again_by)
        self.waiting_for_key.add(inode, owner)

    def wait_for_source(self, inode: Inode) -> None:
        """Set a due inode aside until a source has ended."""
        self.waiting_for_source[inode] = None

    def wait_below(self, directory: Directory, inode: Inode) -> None:
        """Set a due inode aside until a new directory above has its object, or cannot have it for now."""
        self.waiting_below.add(inode, directory)

    def waits_for_others(self, inode: Inode) -> bool:
        """Return whether a due inode waits for what others have to do first, and not only for a key."""
        is_parked = inode in self._parked_for_others
        return is_parked or inode in self.waiting_below or inode in self.waiting_for_source

    def may_be_awaited(self, inode: Inode) -> bool:
        """Return whether anybody who was set aside may wait for an inode; of who is parked it is not noted for whom."""
        is_awaited = self.waiting_for_key.is_awaited(inode) or self.waiting_below.is_awaited(inode)
        return is_awaited or bool(self._parked_for_others)

    def put_off(self, inode: Inode, until: float) -> bool:
        """Schedule a due inode anew, if that time has not come yet; return whether that is so."""
        if until <= self._now():
            return False
        self.end_turn(inode)
        self.schedule_at(inode, until)
        return True

    def end_turn(self, inode: Inode) -> None:
        """Note that an inode is not due any more: it begins, is to be scheduled anew, or is not pending at all."""
        self.due.discard(inode)

    def look_again(self) -> None:
        """Let everybody who is parked have another look: something has ended."""
        self._let_go(list(self.parked))
        self.parked.clear()
        self._parked_for_others.clear()
        self._progress.unpark_all()
        self._wake.set()

    def look_again_at(self, inode: Inode) -> None:
        """Let an inode that is set aside have another look, and who waits for it: it has another name, or none.

        A directory above that it waits for may be below it by now, and wait for it.
        """
        if inode in self.waiting_for_source:
            del self.waiting_for_source[inode]
            self.ready.extend([inode])
        elif self.waiting_below.discard(inode):
            self.ready.extend([inode])
        self._look_again_at_key_of(inode)
        self._wake.set()

    def _look_again_at_key_of(self, inode: Inode) -> None:
        """Let an inode have another look, and who waits for it, if that is for a key."""
        if self.waiting_for_key.discard(inode):
            self.ready.extend([inode])
        self._let_go(self.waiting_for_key.release(inode))

    def let_go_of_sources(self) -> None:
        """Let everybody who waits for the end of a source have another look, or for what that may have named."""
        self._let_go(
            [*self.waiting_for_source, *self.waiting_for_key.release_some(len(self.waiting_for_key))]
        )
        self.waiting_for_source.clear()

    def let_go_below(self, directory: Inode) -> None:
        """Let those have another look who wait for the object of a directory."""
        self._let_go(self.waiting_below.release(directory))

    def _let_go(self, waiting: Sequence[Inode]) -> None:
        self.ready.extend_front(waiting)

    # Who is on its way

    @property
    def busy_keys(self) -> set[str]:
        """The keys that are changed by what is on its way."""
        return set().union(*self.running.values())

    def begin(self, inode: Inode, keys: set[str], target: str | None) -> None:
        """Note that an attempt begins, in which nobody else may change these keys; an object appears under `target`."""
        self._asked_for.discard(inode)
        self.running[inode] = keys
        self.targets[inode] = target

    def end(self, inode: Inode) -> None:
        """Note that an attempt has ended; everybody looks again who waits for the inode, or for a key that it had."""
        del self.running[inode], self.targets[inode]
        self._note_attempt(inode)
        self.let_go_below(inode)
        self._look_again_at_key_of(inode)
        self.look_again()

    def fail(self, inodes: Sequence[Inode], error: Exception, *, ending: Inode | None = None) -> None:
        """Let inodes fail that have waited. Who is below a new directory stays due: that is tried again before it.

        `ending` is the one whose attempt has failed, which `end` counts.
        """
        have_turn = {
            each
            for each in inodes
            if each in self.ready or each in self.parked or each in self.waiting_for_key
        }
        for each in have_turn:
            self.ready.discard(each)
            self.parked.pop(each, None)
            self._parked_for_others.discard(each)
            self.waiting_for_key.discard(each)
        self.due -= have_turn
        for each in inodes:
            if each not in self:
                continue  # it was settled meanwhile
            each.state.failure = error
            if each in have_turn:
                self.schedule_retry(each)
                self.let_go_below(each)
            if each is not ending:
                self._note_attempt(each)

    def fail_all(self, error: Exception) -> None:
        """Let everybody fail who is due, but for those that wait for a source."""
        self.fail([*self.ready, *self.parked, *self.waiting_for_key, *self.waiting_below], error)

    def _note_attempt(self, inode: Inode) -> None:
        inode.state.attempts += 1
        inode.state.attempted.unpark_all()
        self._progress.unpark_all()

    # Waiting for it

    async def wait_for_progress(self) -> None:
        """Return when anything has been settled, has ended, or has failed."""
        await self._progress.park()

    def wake(self) -> None:
        """Let `wait` return: something else than an inode may be done."""
        self._wake.set()
