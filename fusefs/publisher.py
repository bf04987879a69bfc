"""Makes the bucket equal to the tree: decides when an inode's object is written, moved or deleted, and does it.

Publishing is by state, not by operation. An inode that changed is *pending*; when it is due, its object is compared
with what the tree says now, and the least that makes them equal is done: a file that was written, renamed and
removed before its turn costs nothing, temp + rename is one PUT under the final name.

What may not go wrong is the order in which keys change hands. Every publication is conditional on what we know to
be under its target (`Placement.condition`), and waits while another inode's object still lies there; a circle of
such waits is broken by moving one object out of the way. A key is written before the one it replaces is deleted, so
at no moment is a file under neither name.

An attempt without an answer may have taken effect. Before the next one the store is asked, so that our own object is
neither taken for somebody else's nor left behind under a name that is no longer the inode's.

States of an inode: clean -> pending (`changed`) -> due (its time has come) -> running -> clean, or pending again
when it changed meanwhile or the attempt failed. `_parked` holds due inodes that wait for a key; when the attempt that
they wait for fails, they fail with it.

What waits for the end of a source waits for somebody above, who finds out what is below the directory and says so
(`source_ended`), or why that cannot be found out (`source_failed`); then what waits fails with it.

A new directory's object is written before anything below it, and by itself: SeaweedFS, asked for `d/` and `d/file` at
once, confirms both and loses one now and then.

In an outage what has had no turn fails with the first attempt, so that an outage is told once and not for every few of
them; if others had an answer meanwhile, only what waits for the failed one does. What the store refuses of one object
keeps nothing back.

What goes up is never given up half-way: an inode that nobody needs any more while its attempt runs is released when
that has ended, so that no object is made of bytes that are being thrown away.

Nothing that was written is dropped on a failure: the inode stays pending, the failure is kept in its state for the
next fsync or close, and it is tried again.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Final

import trio

from backends.base import ObjectStorage
from backends.errors import NotFound, PreconditionFailed, StorageError, Unavailable, is_outage
from fusefs import extended_attributes
from fusefs.burst import Burst
from fusefs.change_log import ChangeLog, Publication, without_mark
from fusefs.content import Version
from fusefs.errors import FilesystemError, LeaseLapsed, StaleFile
from fusefs.inodes import Alias, Directory, File, Inode
from fusefs.link_lists import metadata_of
from fusefs.moves import Moves
from fusefs.object_writer import ObjectWriter, has_to_go_up
from fusefs.placement import Placement, directories_of
from fusefs.sidecars import Sidecars
from fusefs.sweeper import Sweeper
from fusefs.timetable import Timetable
from fusefs.turns import Turns
from fusefs.uploads import MovedMeanwhile, Uploads

_log = logging.getLogger(__name__)

SETTLE_SECONDS: Final = 0.05
"""How long a change of names waits before it is published: a temporary name is gone by then, and costs nothing."""

OLDEST: Final = 64
"""Inodes that are published together to shorten a log that is too long."""

RETRY_SECONDS: Final = 30.0
"""Pause after an attempt that failed for good (the store's own outages are retried below, in `backends.retrying`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishOptions:
    """When and how much is published at once."""

    #: A closed file that was published less than this ago waits for the rest of it.
    delay_seconds: float = 1.0
    #: A file that stays open is published at least this often.
    interval_seconds: float = 30.0
    #: Publications under way at once.
    workers: int = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishStatistics:
    """What is still to be published, at one moment, and what was done since the mount."""

    pending_inodes: int
    pending_bytes: int
    #: Of the pending ones, those on their way now, and those of which the last attempt failed.
    running: int
    failing: int
    leftovers: int
    #: Directories that were renamed before all below them was known, and it is not known yet.
    moving_directories: int
    published: int
    failed: int
    conflicts: int


class Publisher:
    """The only writer of the bucket. `run` does the work; everything else says what there is to do, or waits for it."""

    def __init__(
        self,
        storage: ObjectStorage,
        placement: Placement,
        uploads: Uploads,
        log: ChangeLog,
        options: PublishOptions,
        *,
        mount_id: str,
    ) -> None:
        self._log = log
        self._storage = storage
        self._placement = placement
        self._uploads = uploads
        self._options = options
        self._sidecars = Sidecars(storage, placement, log)
        self._writer = ObjectWriter(storage, uploads, log, self._sidecars, mount_id=mount_id)
        self._sweeper = Sweeper(storage, placement, log, options.workers, self._look_again)

        self._pending: dict[Inode, None] = {}
        #: Directories with another name: what is below them belongs to `_pending`, before anybody looks there.
        self._moves = Moves()
        self._turns = Turns(placement, self._sweeper, self._pending)
        self._timetable: Timetable[Inode] = Timetable()
        self._due: deque[Inode] = deque()
        self._burst = Burst()
        #: Since when there has been something due all the time.
        self._due_since = math.inf
        #: Those for which somebody waits, and that are not on their way.
        self._asked_for: set[Inode] = set()
        #: Until when the loop sleeps, if nothing wakes it.
        self._sleeps_until = -math.inf
        self._wake = trio.Event()
        self._hurried = trio.Event()
        self._progress = trio.lowlevel.ParkingLot()
        self._published = 0
        self._failed = 0

    # What there is to do

    def changed(self, inode: Inode) -> None:
        """Note that content, attributes or name changed and the bucket must learn of it."""
        if not isinstance(inode, File) or not inode.writers:
            self._burst.note(trio.current_time())
        for each in (inode.subject, *inode.subject.aliases):
            self._log.changed(each)
            self._note_changed(each)

    def moved(self, inode: Inode) -> None:
        """Note that the inode has another name, and with it all that is below."""
        self.changed(inode)
        if isinstance(inode, Directory):
            self._moves.add(inode)
            self._log.moved(inode)
        self._look_again_at(inode)

    def source_ended(self, directory: Directory) -> None:
        """Note that all below a directory is known, or nothing of it needed; who has waited for that has its turn."""
        self._placement.end_source(directory)
        self._let_go_of_sources()
        self._look_again()

    def source_failed(self, directory: Directory, error: Exception) -> None:
        """Note why it cannot be found out what is below a directory: for now, nothing that waits for it can go on."""
        self._let_go_of_sources()
        waiting = [inode for inode in self._pending if self._turns.source_awaited(inode) is directory]
        self._fail_too([*waiting, *self._turns.waiting_for(*waiting, below=True)], error)
        self._look_again()

    async def wait_until_hurried(self) -> None:
        """Return when somebody begins to wait for everything to be published."""
        await self._hurried.wait()

    def _let_go_of_sources(self) -> None:
        self._due.extendleft(reversed(list(self._turns.waiting_for_source)))
        self._turns.waiting_for_source.clear()

    def _look_again_at(self, inode: Inode) -> None:
        """Let an inode that waits for the end of a source have another look: it may be elsewhere by now."""
        if inode in self._turns.waiting_for_source:
            del self._turns.waiting_for_source[inode]
            self._due.append(inode)
            self._wake.set()

    def _note_changed(self, inode: Inode) -> None:
        inode.state.changes += 1
        self._schedule(inode, self._due_time(inode))

    def _note_moved(self) -> None:
        for inode in self._moves.take():
            self._note_changed(inode)
            self._look_again_at(inode)

    def touched(self, inode: Inode) -> None:
        """Note that only times changed: they go with the next publication, and no fsync waits for them.

        But for an inode with several names: whether their objects are one file is seen by their times.
        """
        if inode.subject.aliases:
            self.changed(inode)
            return
        inode.state.attributes_changed = True
        self._log.touched(inode)
        self._schedule(inode, self._due_time(inode))

    def written(self, file: File) -> None:
        """Note that content was written; parts that are full by now begin their way up."""
        self.changed(file)
        key = self._placement.target(file)
        if key is not None and not self._placement.may_expect(file, key):
            key = None  # another file had the name when its upload began
        if self._uploads.advance(file, key) and key is not None:
            self._placement.expect(file, key)

    def closed(self, file: File) -> None:
        """Note that the last handle that could write is gone: what is pending is due soon."""
        self._burst.note(trio.current_time())
        if file in self._pending:
            self._schedule(file, self._due_time(file))

    def unlinked(self, inode: Inode) -> None:
        """Note that the inode has lost its name; its object goes unless open handles still read from it."""
        inode.state.changes += 1
        self._log.changed(inode)
        self._sidecars.leave_list(inode.subject)  # in the same batch of the log
        self._look_again_at(inode)
        if isinstance(inode, Directory) and inode.source is not None:
            self.source_ended(inode)
        if self._placement.target(inode) is None:
            self.released(inode)
        else:
            self._schedule(inode, trio.current_time())

    def released(self, inode: Inode) -> None:
        """Note that nobody needs the inode any more: it has no name and no handle, or no use for its object."""
        if isinstance(inode, File):
            self._uploads.abandon(inode)
        if inode in self._turns.running:
            return  # `_finished` comes back here
        self._sidecars.leave_list(inode)
        if inode.state.in_doubt:
            self._schedule(inode, trio.current_time())  # there may be an object that we do not know of
            return
        self._sidecars.leave_xattrs(inode, but=None)
        self._placement.vacate(inode)
        self._placement.expect_no_more(inode)
        if isinstance(inode, File):
            inode.content.detach()
            if not inode.handles:
                inode.content.discard()
        self._settle(inode)
        self._wake.set()

    def lost(self, inode: Inode) -> None:
        """Note that somebody else replaced or removed the object of an inode that had nothing to publish."""
        inode.share_xattrs()  # they may have moved it
        if inode.version is not None:
            inode.state.failure = StaleFile(f"{inode.version.key!r} was changed by somebody else")
            self._placement.forget(inode.version.key)
        self._log.changed(inode)
        self._settle(inode)

    def let_go_of_name(self, alias: Alias) -> None:
        """Note that an alias is none any more, and its object a file of its own: it is not to be removed for that."""
        if alias.version is not None:
            self._placement.forget(alias.version.key)
        alias.is_in_log = False
        self._settle(alias)

    @property
    def has_log(self) -> bool:
        """Whether what is not published yet is durable."""
        return self._log.is_kept

    # What a listing of the bucket may say and the tree knows better

    def is_unpublished(self, inode: Inode) -> bool:
        """Return whether something of the inode is still on its way into the bucket."""
        self._note_moved()
        return inode in self._pending

    def needs(self, inode: Inode) -> bool:
        """Return whether there is more to know of the inode than its object says, or of its object than its name."""
        state = inode.state
        is_settled = not (state.is_behind or state.in_doubt or state.failure is not None)
        return (
            not is_settled
            or self.is_unpublished(inode)
            or inode in self._turns.running
            or self._log.tells_of(inode)
        )

    # Waiting for it

    async def publish(self, inode: Inode) -> None:
        """Publish the inode, with all that changed until now, and the directories above it.

        Raises the failure of an attempt that began after this call, or of one before it that was not made good.
        """
        self._note_moved()
        if inode.parent is not None:
            await self.publish(inode.parent)
        goal = inode.state.changes
        attempts = inode.state.attempts + self._turns.is_under_way(inode)
        while inode.state.published_changes < goal and inode in self._pending:
            if inode.state.failure is not None and inode.state.attempts > attempts:
                raise inode.state.failure
            self._ask_for(inode)
            await inode.state.attempted.park()
        if isinstance(inode.state.failure, StaleFile):
            raise inode.state.failure
        for alias in list(inode.aliases):
            await self.publish(alias)

    async def publish_all(self, *, open_files: bool = True) -> None:
        """Publish everything that is pending now, and delete what is left over. Raises one of the failures, if any.

        Without `open_files`, files with a writer are left alone unless they were renamed: that is what an fsync of a
        directory asks for.
        """
        deletions_failed = self._sweeper.forgive()
        self._hurried.set()
        self._hurried = trio.Event()
        moving = {*self._placement.moving}
        while True:
            goals = await self._publish_pending(open_files=open_files)
            has_more = moving - {*self._placement.moving}
            if not has_more:
                break
            moving -= has_more  # more is known to be pending, now that all below these is known
        while not self._sweeper.is_done(deletions_failed):
            self._wake.set()
            await self._progress.park()
        for inode in goals:
            if inode in self._pending and inode.state.failure is not None:
                raise inode.state.failure
        for error in self._sweeper.failures(deletions_failed):
            raise error

    async def _publish_pending(self, *, open_files: bool) -> list[Inode]:
        """Return when of all that is pending now an attempt has succeeded or failed, and what that was."""
        self._note_moved()
        goals = {
            inode: (inode.state.changes, inode.state.attempts + self._turns.is_under_way(inode))
            for inode in self._pending
            if open_files
            or not (isinstance(inode, File) and inode.writers)
            or self._placement.is_elsewhere(inode)
        }
        for inode in goals:
            self._ask_for(inode)
        for inode, goal in goals.items():
            while self._is_unfinished(inode, *goal):
                if inode not in self._turns.running:
                    self._ask_for(inode)  # a second attempt may be needed
                await self._progress.park()
        return list(goals)

    def statistics(self) -> PublishStatistics:
        self._note_moved()
        return PublishStatistics(
            pending_inodes=len(self._pending),
            pending_bytes=sum(
                inode.content.unsent.total for inode in self._pending if isinstance(inode, File)
            ),
            running=len(self._turns.running),
            failing=sum(inode.state.failure is not None for inode in self._pending),
            leftovers=self._sweeper.count(),
            moving_directories=len(self._placement.moving),
            published=self._published,
            failed=self._failed,
            conflicts=self._writer.conflicts,
        )

    def pending_inodes(self) -> list[Inode]:
        """Return what the bucket does not have yet."""
        self._note_moved()
        return list(self._pending)

    # When

    def _due_time(self, inode: Inode) -> float:
        now = trio.current_time()
        if not isinstance(inode, File) or self._placement.is_elsewhere(inode):
            return now + SETTLE_SECONDS
        if inode.writers:
            return now + self._options.interval_seconds
        return max(now + SETTLE_SECONDS, inode.state.published_at + self._options.delay_seconds)

    def _schedule(self, inode: Inode, due: float) -> None:
        """Put the inode into the timetable, unless it is there for an earlier time or is due already."""
        if inode not in self._pending:
            self._pending[inode] = None
            inode.state.pending_since = trio.current_time()
        if inode not in self._turns.queued and self._timetable.put(inode, due) and due < self._sleeps_until:
            self._wake.set()

    def _ask_for(self, inode: Inode) -> None:
        """Let the inode be due now, because somebody waits for it."""
        inode.state.asked_for = True
        self._asked_for.add(inode)
        self._schedule(inode, trio.current_time())
        self._wake.set()

    def _can_wait_until(self, inode: Inode) -> float:
        """Return until when a due inode can wait: a file that was opened again since then is being rewritten.

        One that goes up as a stream is not to be ended for the interval's sake: what is written behind it would be a
        change of the object then, with all before it copied, again and again.
        """
        if (
            not isinstance(inode, File)
            or not inode.writers
            or inode.state.asked_for
            or self._placement.is_elsewhere(inode)
        ):
            return -math.inf
        since = max(inode.state.pending_since, self._uploads.last_moved_at(inode))
        return since + self._options.interval_seconds

    # The loop

    async def run(self) -> None:
        """Publish what is due, for ever; cancel it when `publish_all` has returned and nothing will change again."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._shorten_log)
            while True:
                self._wake = trio.Event()
                due = self._timetable.take_due(trio.current_time())
                self._due.extend(due)
                self._turns.queued.update(due)
                if self._due:
                    self._note_moved()
                self._due_since = min(self._due_since, trio.current_time()) if self._due else math.inf
                self._sleeps_until = self._timetable.next_due()
                if self._gives_way():
                    self._sleeps_until = min(self._sleeps_until, self._burst.waits_until(self._due_since))
                else:
                    self._start_publications(nursery)
                self._sweeper.start(nursery, set().union(*self._turns.running.values()))
                with trio.move_on_at(self._sleeps_until):
                    await self._wake.wait()

    def _gives_way(self) -> bool:
        """Return whether what is due waits for now, so that a program that makes many files has the processor.

        What it has made is in the log soon, which tells of many of them with one PUT.
        """
        is_urgent = not self._log.is_kept or bool(self._asked_for)
        return (
            bool(self._due)
            and not is_urgent
            and trio.current_time() < self._burst.waits_until(self._due_since)
        )

    async def _shorten_log(self) -> None:
        """Publish what a log is kept for that has become too long; what has failed is told again, and has its time."""
        while True:
            inodes = await self._log.wait_until_grown()
            self._note_moved()
            waiting = [inode for inode in inodes if inode in self._pending]
            for inode in waiting:
                if self._cannot_be_published(inode):
                    self._tell_again(inode)
            for inode in [each for each in waiting if not self._cannot_be_published(each)][:OLDEST]:
                self._ask_for(inode)

    def _cannot_be_published(self, inode: Inode) -> bool:
        """Return whether that is so for now: an attempt has failed, or would have to wait for who knows how long."""
        return inode.state.failure is not None or self._turns.source_awaited(inode) is not None

    def _tell_again(self, inode: Inode) -> None:
        """Let the log have all of an inode again, under all its names, unless an attempt is under way.

        It counts as a change, so that a later attempt makes that unneeded, too, where a name had been published.
        """
        names = (inode.subject, *inode.subject.aliases)
        if not self._turns.running.keys().isdisjoint(names):
            return
        self._log.tell_again(inode)
        for each in names:
            each.state.changes += 1
            self._schedule(each, trio.current_time() + RETRY_SECONDS)

    def _start_publications(self, nursery: trio.Nursery) -> None:
        while self._due and len(self._turns.running) < self._options.workers:
            inode = self._due.popleft()
            self._start_or_park(nursery, inode)
            if inode not in self._turns.queued and inode not in self._turns.running:
                self._let_go_below(inode)

    def _start_or_park(self, nursery: trio.Nursery, inode: Inode) -> None:
        if inode not in self._pending:  # it was settled meanwhile
            self._turns.queued.discard(inode)
            return
        if self._turns.source_awaited(inode) is not None:
            self._turns.waiting_for_source[inode] = None
            return
        target = self._placement.next_key(inode)
        directory = self._turns.new_directory_above(inode)
        if directory is not None:
            self._turns.waiting_below.setdefault(directory, []).append(inode)
            return
        if (
            inode in self._turns.running
            or self._turns.is_busy(self._turns.keys_of(inode, target) | self._keys_above(inode, target))
            or (isinstance(inode, Directory) and self._turns.is_busy_below(inode))
        ):
            self._turns.parked.append(inode)
            return
        if target is not None and self._turns.waits_for_name(target):
            self._turns.parked.append(inode)
            for departing in self._placement.departing_from(target) or []:
                if not self._placement.is_elsewhere(departing):
                    self._hurry(departing)
            if inode.version is not None and self._turns.waits_for_itself(inode):
                self._take_detour(nursery, inode)
            return
        self._turns.queued.discard(inode)
        if self._can_wait_until(inode) > trio.current_time():
            self._schedule(inode, self._can_wait_until(inode))
        elif target is None and not inode.state.in_doubt:
            self.released(inode)
        elif target is None:
            self._begin(nursery, inode, None)
        elif isinstance(inode, Alias) and self._turns.has_to_wait_for_first(inode):
            self._wait_for_first(inode)
        else:
            self._begin_or_wait(nursery, inode, target)

    def _keys_above(self, inode: Inode, target: str | None) -> set[str]:
        """Return the keys on the way to the target that nobody may be working on: of objects with directories' names.

        Where an object appears under a name that its inode has no more, also markers: one of them may be another
        directory's by now, and new.
        """
        keys = set(directories_of(target or ""))
        return keys if target == self._placement.target(inode) else keys.union([f"{key}/" for key in keys])

    def _hurry(self, inode: Inode) -> None:
        """Let an inode be due now, because another one needs the key that its object has, or its upload."""
        self._schedule(inode, trio.current_time())
        if not self._placement.is_elsewhere(inode):
            self._ask_for(inode)  # or else it would wait for its file to be closed

    def _begin_or_wait(self, nursery: trio.Nursery, inode: Inode, target: str) -> None:
        obstacle = self._placement.obstacle(inode, target)
        if obstacle is None:
            self._begin(nursery, inode, target)
            return
        self._turns.parked.append(inode)
        self._turns.queued.add(inode)
        if self._turns.waits_for_itself(inode):
            self._take_detour(nursery, obstacle)
        else:
            self._hurry(obstacle)

    def _take_detour(self, nursery: trio.Nursery, inode: Inode) -> None:
        """Let an inode's object wait elsewhere, so that a circle is none any more."""
        if self._turns.source_awaited(inode) is not None:
            return  # that will end, and then the circle can be broken
        detour = self._placement.detour(inode)
        if inode not in self._turns.running and not self._turns.is_busy(self._turns.keys_of(inode, detour)):
            self._begin(nursery, inode, detour)

    def _wait_for_first(self, alias: Alias) -> None:
        """Let an alias wait until its inode has been published; that of an open file may take its time."""
        later = self._can_wait_until(alias.of)
        if later > trio.current_time() and not alias.state.asked_for:
            self._schedule(alias, later)
            return
        self._turns.parked.append(alias)
        self._turns.queued.add(alias)
        self._ask_for(alias.of)

    def _begin(self, nursery: trio.Nursery, inode: Inode, target: str | None) -> None:
        inode.state.asked_for = False
        self._asked_for.discard(inode)
        self._turns.running[inode] = self._turns.keys_of(inode, target)
        if target is not None and has_to_go_up(inode):
            self._placement.expect(inode, target)
        nursery.start_soon(self._attempt, inode, target)

    def _let_go_below(self, directory: Inode) -> None:
        self._due.extendleft(reversed(self._turns.waiting_below.pop(directory, [])))

    def _finished(self, inode: Inode) -> None:
        """Let everybody look again who waits for the inode, or for a key that it had."""
        del self._turns.running[inode]
        if not (inode.state.in_doubt or (isinstance(inode, File) and self._uploads.is_under_way(inode))):
            self._placement.expect_no_more(inode)
        if self._placement.target(inode) is None:
            self.released(inode)
        self._attempt_ended(inode)
        self._let_go_below(inode)
        self._look_again()

    def _attempt_ended(self, inode: Inode) -> None:
        inode.state.attempts += 1
        inode.state.attempted.unpark_all()
        self._progress.unpark_all()

    def _look_again(self) -> None:
        self._due.extendleft(reversed(self._turns.parked))
        self._turns.parked.clear()
        self._progress.unpark_all()
        self._wake.set()

    def _settle(self, inode: Inode) -> None:
        """Note that the inode needs no publication any more."""
        self._pending.pop(inode, None)
        self._asked_for.discard(inode)
        self._timetable.drop(inode)
        self._log.settled(inode)
        inode.state.published_changes = inode.state.changes
        inode.state.attempted.unpark_all()
        self._progress.unpark_all()

    def _is_unfinished(self, inode: Inode, changes: int, attempts: int) -> bool:
        state = inode.state
        failed = state.failure is not None and state.attempts > attempts
        tried = state.published_changes >= changes and state.attempts > attempts
        return inode in self._pending and not failed and not tried

    # One publication

    async def _attempt(self, inode: Inode, target: str | None) -> None:
        """Bring the inode's object to `target`; without one, find out only whether it has an object."""
        inode.state.storing = None
        published_before = self._published
        try:
            await self._settle_doubts(inode)
            if target is None:
                return
            if not has_to_go_up(inode):
                await self._log_all_of(inode)
                if target not in (self._placement.target(inode), self._placement.detour(inode)):
                    raise MovedMeanwhile(f"{target!r} is not the name of its inode any more")
            # Or else an upload sees to both before it completes, and spares the log what is in parts.
            changes = self._changes_to_come(inode)
            of_aliases = {alias: alias.state.changes for alias in inode.aliases}
            try:
                with self._publishing(inode, target) as publication:
                    version, publication.has_attributes = await self._carry_out(inode, target)
            except (PreconditionFailed, NotFound, StaleFile) as error:
                if self._has_only_passed(inode, target):
                    _log.warning(
                        "%r was put there by somebody else; what was to be %r goes up again",
                        target,
                        inode.path_key,
                    )
                    self._placement.forget(target)
                    raise MovedMeanwhile(f"somebody else has {target!r} now") from error
                await self._keep_both(inode, target, error)
            else:
                self._note_success(inode, version, changes if publication.has_attributes else None)
                self._let_aliases_follow(inode, of_aliases)
        except MovedMeanwhile:
            inode.state.attributes_changed = True
            self._schedule(inode, trio.current_time())
        except (StorageError, FilesystemError, OSError) as error:
            self._note_failure(inode, target, error, published_before)
        except Exception as error:  # a defect of ours: it must not end the mount for everybody
            _log.exception("a defect stopped the publication of %r", target)
            self._note_failure(inode, target, error, published_before)
        finally:
            self._finished(inode)

    def _has_only_passed(self, inode: Inode, target: str) -> bool:
        """Return whether a name is not the inode's any more, and never had an object of it."""
        is_its_own = target in (self._placement.target(inode), self._placement.detour(inode))
        return inode.linked and not is_its_own and (inode.version is None or inode.version.key != target)

    def _changes_to_come(self, inode: Inode) -> int:
        """Return how many changes the bucket will have after an attempt that begins now."""
        if isinstance(inode, Alias) and inode.of in self._pending:
            return inode.reflected_changes
        return inode.state.changes

    def _let_aliases_follow(self, inode: Inode, changes: Mapping[Alias, int]) -> None:
        """Make the other names' objects equal to the one that was just published."""
        for alias in inode.aliases:
            alias.reflected_changes = changes.get(alias, 0)
            if alias in self._pending:
                self._schedule(alias, trio.current_time())

    def _publishing(self, inode: Inode, target: str) -> AbstractContextManager[Publication]:
        """Tell the log of an attempt after which it is not needed; on a detour it is, and of a copy that is too old."""
        is_too_old = isinstance(inode, Alias) and inode.of in self._pending
        if is_too_old or self._placement.target(inode) != target:
            return nullcontext(Publication())
        return self._log.publishing(inode)

    async def _log_all_of(self, inode: Inode) -> None:
        """Return when the log has the inode as it is now: it may change again while a commit is on its way."""
        await self._log.commit()
        while self._log.is_behind(inode):
            await self._log.commit()

    async def _carry_out(self, inode: Inode, target: str) -> tuple[Version, bool]:
        """Return what is in the bucket now, and whether its metadata has the attributes of the time when this began."""
        metadata = {**metadata_of(inode), **self._log.mark(inode)}
        inode.state.attributes_changed = False
        inode.state.storing = (target, metadata)
        condition = self._placement.condition(target)
        written = await self._writer.write(inode, target, mode=condition, metadata=metadata)
        await self._sidecars.list_names(inode.subject)
        return written.version, without_mark(written.metadata) == without_mark(metadata)

    def _note_success(self, inode: Inode, version: Version, changes: int | None) -> None:
        """Note what the bucket has now, all of the first `changes` changes; None: but for their attributes."""
        self._placement.place(inode, version)
        self._published += 1
        inode.state.published_at = trio.current_time()
        inode.state.failure = None
        inode.state.in_doubt.clear()
        if changes is None:
            inode.state.attributes_changed = True
        elif not self._placement.is_elsewhere(inode):  # on a detour, the work is still to be done
            inode.state.published_changes = changes
        if self._is_pending(inode):
            inode.state.pending_since = trio.current_time()
            self._schedule(inode, self._due_time(inode))
        else:
            self._settle(inode)
            self._sidecars.leave_xattrs(inode, but=extended_attributes.own_key(inode.attributes.xattrs))

    def _is_pending(self, inode: Inode) -> bool:
        return inode.state.is_behind or self._placement.is_elsewhere(inode)

    def _note_failure(
        self, inode: Inode, target: str | None, error: Exception, published_before: int
    ) -> None:
        """Note why an attempt failed, and when the next one will be; those who wait for this one fail with it.

        `published_before` is how many attempts had succeeded when this one began.
        """
        if target is None:
            _log.error("an object may be left of what was removed: %r: %s", inode.state.in_doubt, error)
            inode.state.in_doubt.clear()
            return
        storing = inode.state.storing
        # Only a lost answer leaves it open; every other error says that nothing was done.
        if isinstance(error, Unavailable) and storing is not None and storing not in inode.state.in_doubt:
            inode.state.in_doubt.append(storing)
        if self._placement.target(inode) is None:
            return  # removed meanwhile
        _log.error("cannot publish %r, trying again in %.0f s: %s", target, RETRY_SECONDS, error)
        self._failed += 1
        inode.state.failure = error
        inode.state.attributes_changed = True  # what `_carry_out` took for done is not
        self._schedule(inode, trio.current_time() + RETRY_SECONDS)
        is_away = isinstance(error, LeaseLapsed) or is_outage(error)
        if is_away and self._published == published_before:
            # Nobody else had an answer meanwhile: every few of them would wait for as long, one after the other.
            below = [each for waiting in self._turns.waiting_below.values() for each in waiting]
            self._fail_too([*self._due, *self._turns.parked, *below], error)
        else:
            # Of several new directories in each other each would fail by itself, and the first be tried again before
            # the last. What the store refuses of a directory it may take below: that is to be tried.
            self._fail_too(self._turns.waiting_for(inode, below=is_away), error)

    def _fail_too(self, waiting: Sequence[Inode], error: Exception) -> None:
        """Let those fail that wait. Who is below a new directory stays due: that is tried again before it."""
        have_turn = {*waiting}.intersection([*self._due, *self._turns.parked])
        self._due = deque(each for each in self._due if each not in have_turn)
        self._turns.parked[:] = [each for each in self._turns.parked if each not in have_turn]
        self._turns.queued -= have_turn
        for each in waiting:
            if each not in self._pending:
                continue  # it was settled meanwhile
            each.state.failure = error
            if each in have_turn:
                self._schedule(each, trio.current_time() + RETRY_SECONDS)
                self._let_go_below(each)
            self._attempt_ended(each)

    async def _settle_doubts(self, inode: Inode) -> None:
        """Look whether an attempt that had no answer took effect; then its object is not somebody else's but ours."""
        while inode.state.in_doubt:
            key, metadata = inode.state.in_doubt[-1]
            try:
                found = await self._storage.head(key)
            except NotFound:
                inode.state.in_doubt.pop()
                continue
            inode.state.in_doubt.pop()
            version = Version(found.key, found.etag, found.size)
            if found.metadata == metadata and version != inode.version:
                if isinstance(inode, File):
                    inode.content.adopt(version)
                self._placement.place(inode, version)

    # Somebody else was there

    async def _keep_both(self, inode: Inode, target: str, error: Exception) -> None:
        """Somebody else changed what we were to replace: leave theirs in its place, and keep ours beside it."""
        if self._placement.target(inode) is None:
            self._placement.forget(target)
            return
        if isinstance(inode, Alias):
            await self._break_link(inode, target, error)
            return
        if inode.aliases and self._go_on_under_another_name(inode, target):
            return
        if isinstance(inode, Directory):
            await self._log_all_of(inode)
            changes = inode.state.changes
            if inode.hides_content and self._placement.is_elsewhere(inode):
                kept = await self._writer.keep_beside(inode, target)
                if kept is not None:
                    _log.error(
                        "%r has other bytes than the directory had: those are kept as %r", target, kept.key
                    )
            version = await self._writer.write_marker_over(inode, target)
            self._placement.forget(target)
            self._note_success(inode, version, changes)
            return
        # From now on nothing is written any more that would not be kept.
        inode.state.failure = StaleFile(f"{target!r} was changed by somebody else")
        kept = await self._writer.keep_beside(inode, target)
        where = f"ours is kept as {kept.key!r}" if kept is not None else "ours had no bytes of its own"
        _log.error("%r was changed by somebody else (%s); theirs stays, %s", target, error, where)
        self._placement.forget(target)
        self._placement.vacate(inode)  # at its old name, if it was on its way to a new one
        if inode.parent is not None:
            inode.parent.distrust()  # so that theirs is found
            inode.parent.detach(inode.name)
        inode.version = kept
        inode.state.failure = StaleFile(f"{target!r} was changed by somebody else; {where}")
        self._log.changed(inode)
        self._settle(inode)

    async def _break_link(self, alias: Alias, target: str, error: Exception) -> None:
        """Somebody else changed the object of a further name: it is theirs now. Raises `error` if it was the first."""
        first = alias.of.version
        if first is not None and not await self._is_there(first):
            self.changed(alias.of)  # whose next attempt finds what to do
            raise error
        _log.warning("%r was changed by somebody else (%s), and is a file of its own", target, error)
        self._placement.forget(target)
        self._placement.vacate(alias)  # at its old name, if it was on its way to a new one
        self._take_out(alias)
        self._log.changed(alias)

    async def _is_there(self, version: Version) -> bool:
        try:
            return (await self._storage.head(version.key)).etag == version.etag
        except NotFound:
            return False

    def _go_on_under_another_name(self, inode: Inode, target: str) -> bool:
        """Leave to somebody else the name under which they changed the object, if there is a copy under another.

        Otherwise the other names keep what the bucket has there.
        """
        source = inode.version
        heir = next((alias for alias in inode.aliases if alias.copied == source is not None), None)
        if heir is None or inode.parent is None or heir.version is None:
            for alias in list(inode.aliases):
                self.let_go_of_name(alias)
                self._take_out(alias)
            return False
        _log.warning("%r was changed by somebody else; ours goes on as %r", target, heir.path_key)
        self._placement.forget(target)
        self._placement.vacate(inode)
        inode.parent.distrust()
        inode.parent.detach(inode.name)
        assert inode.links is not None
        inode.links.aliases.remove(heir)
        inode.links.aliases.append(heir)  # the next to give up its name
        version = heir.version
        inode.lose_name()
        self._placement.place(inode, version)
        if isinstance(inode, File):
            inode.content.rebase(version)
        self._settle(heir)
        self._log.changed(heir)
        self.changed(inode)
        return True

    def _take_out(self, alias: Alias) -> None:
        """Let a name have what the bucket has there."""
        alias.lose_name()
        if alias.parent is not None:
            alias.parent.distrust()
            alias.parent.detach(alias.name)
        self._settle(alias)
