"""Makes the bucket equal to the tree: begins what is due when its turn has come, and lets others wait for it.

Publishing is by state, not by operation. An inode that changed (`changes`) is pending (`publish_queue`); when it is
due, its object is compared with what the tree says now, and the least that makes them equal is done: a file that was
written, renamed and removed before its turn costs nothing, temp + rename is one PUT under the final name. `turns`
decides who has to wait for whom, `attempts` does it, `failures` says what follows from one that fails.

What waits for the end of a source waits for somebody above, who finds out what is below the directory and says so
(`Changes.source_ended`), or why that cannot be found out (`source_failed`); then what waits fails with it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import trio

from backends.base import ObjectStorage
from fusefs.attempts import Attempts
from fusefs.change_log import ChangeLog
from fusefs.changes import Changes
from fusefs.errors import StaleFile
from fusefs.failures import Failures
from fusefs.inodes import Directory, File, Inode
from fusefs.object_writer import ObjectWriter
from fusefs.placement import Placement
from fusefs.publish_queue import PublishQueue
from fusefs.sidecars import Sidecars
from fusefs.sweeper import Sweeper
from fusefs.turns import Turn, Turns
from fusefs.uploads import Uploads

OLDEST: Final = 64
"""Inodes that are published together to shorten a log that is too long."""

GIVING_WAY_SECONDS: Final = 0.1
"""So long after a commit others are expected to follow."""

BACKLOG: Final = 2_000
"""Inodes that are ready: with more of them publishing gives way to nobody, or else the bucket would stay behind."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishOptions:
    """When and how much is published at once."""

    #: A closed file that was published less than this ago waits for the rest of it.
    delay_seconds: float = 1.0
    #: A file that stays open is published at least this often.
    interval_seconds: float = 30.0
    #: Publications under way at once.
    workers: int = 16
    #: The same while somebody waits for commits, and nobody for objects.
    workers_beside_commits: int = 4


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
    """The only writer of the tree's objects, once a recovery is over.

    `changes` is told what there is to do, `run` does it, others wait for it.
    """

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
        self._placement = placement
        self._uploads = uploads
        self._workers = options.workers
        self._workers_beside_commits = min(options.workers, options.workers_beside_commits)
        self._queue = queue = PublishQueue(
            placement,
            delay_seconds=options.delay_seconds,
            interval_seconds=options.interval_seconds,
            yields_to_bursts=log.is_kept,
        )
        sidecars = Sidecars(storage, placement, log)
        self.changes = Changes(queue, placement, uploads, log, sidecars)
        self._sweeper = Sweeper(storage, placement, log, options.workers, queue.look_again)
        self._turns = Turns(
            placement, uploads, self._sweeper, queue, interval_seconds=options.interval_seconds
        )
        self._writer = ObjectWriter(storage, uploads, log, sidecars, mount_id=mount_id)
        self._attempts = Attempts(storage, placement, log, queue, self.changes, self._writer)
        self._failures = Failures(placement, queue, self._turns, log)
        self._hurried = trio.Event()
        #: Commits that somebody waits for, and until when others are expected.
        self._commits = 0
        self._gives_way_until = -math.inf

    # The loop

    async def run(self) -> None:
        """Publish what is due, for ever; cancel it when `publish_all` has returned and nothing will change again."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._shorten_log)
            while True:
                looks_through_leftovers = self._sweeper.may_look()
                if looks_through_leftovers:
                    self._mark()
                if self._queue.advance():
                    self._begin_attempts(nursery)
                if looks_through_leftovers:
                    self._sweeper.start(nursery, self._queue.busy_keys)
                self._queue.sleep_until(self._sweeper.wakes_at)
                await self._queue.wait()

    def _begin_attempts(self, nursery: trio.Nursery) -> None:
        while self._queue.ready and len(self._queue.running) < self._at_once():
            inode = self._queue.take_ready()
            turn = self._turns.look_at(inode)
            if turn is not None:
                self._begin(nursery, turn)
            if inode not in self._queue.due and inode not in self._queue.running:
                self._queue.let_go_below(inode)

    def _at_once(self) -> int:
        """Return how many attempts may be under way: fewer while somebody waits for commits, and nobody for these."""
        now = trio.current_time()
        is_urgent = self._queue.has_asked_for or len(self._queue.ready) > BACKLOG
        if is_urgent or not (self._commits or now < self._gives_way_until):
            return self._workers
        self._queue.sleep_until(now + GIVING_WAY_SECONDS)
        return self._workers_beside_commits

    def _begin(self, nursery: trio.Nursery, turn: Turn) -> None:
        inode, target = turn
        if target is None and not inode.state.in_doubt:
            self.changes.released(inode)
            return
        self._queue.begin(inode, self._turns.keys_of(inode, target), target)
        if target is not None and target != self._placement.detour(inode):  # where nobody else comes
            self._placement.expect(inode, target)
        nursery.start_soon(self._attempt, inode, target)

    async def _attempt(self, inode: Inode, target: str | None) -> None:
        published_before, failed_before = self.changes.published_count, inode.state.failure
        try:
            await self._attempts.make(inode, target)
            if inode.state.failure is failed_before and not isinstance(failed_before, StaleFile):
                inode.state.failure = None  # what is left to be done has an attempt of its own
        except Exception as error:  # of any kind: a defect of ours must not end the mount for everybody
            had_answers = self.changes.published_count > published_before
            self._failures.note(inode, target, error, others_had_answers=had_answers)
        finally:
            self._queue.end(inode)
            if not (inode.state.in_doubt or (isinstance(inode, File) and self._uploads.is_under_way(inode))):
                self._placement.expect_no_more(inode)
            is_unknown = target is None and inode.state.in_doubt  # still: there is another look after a pause
            if self._placement.target(inode) is None and not is_unknown:
                self.changes.released(inode)

    def _mark(self) -> bool:
        """Let directories have a marker that would be seen with another one's; return whether there are any."""
        directories = self._placement.mismarked()
        for directory in directories:
            self.changes.changed(directory)
        return bool(directories)

    async def _shorten_log(self) -> None:
        """Publish what a log is kept for that has become too long; what has failed is told again, and has its time."""
        while True:
            inodes = await self._log.wait_until_grown()
            self._queue.note_moves()
            waiting = [inode for inode in inodes if inode in self._queue]
            for inode in waiting:
                if self._cannot_be_published(inode):
                    self.changes.tell_again(inode)
            for inode in [each for each in waiting if not self._cannot_be_published(each)][:OLDEST]:
                self._queue.ask_for(inode)

    def _cannot_be_published(self, inode: Inode) -> bool:
        """Return whether that is so for now: an attempt has failed, or would have to wait for who knows how long."""
        return inode.state.failure is not None or self._turns.source_awaited(inode) is not None

    # Sources

    @property
    def has_log(self) -> bool:
        """Whether what is not published yet is durable."""
        return self._log.is_kept

    def source_failed(self, directory: Directory, error: Exception) -> None:
        """Note why it cannot be found out what is below a directory: for now, nothing that waits for it can go on."""
        self._queue.let_go_of_sources()
        waiting = [inode for inode in self._queue if self._turns.source_awaited(inode) is directory]
        self._queue.fail([*waiting, *self._turns.waiting_for(*waiting, below=True)], error)
        self._queue.look_again()

    async def wait_until_hurried(self) -> None:
        """Return when somebody begins to wait for everything to be published."""
        await self._hurried.wait()

    @contextmanager
    def giving_way(self) -> Iterator[None]:
        """Say that in the block somebody waits for a commit, whose request should not wait for many others."""
        self._commits += 1
        try:
            yield
        finally:
            self._commits -= 1
            self._gives_way_until = trio.current_time() + GIVING_WAY_SECONDS

    # Waiting for it

    async def publish(self, inode: Inode) -> None:
        """Publish the inode, with all that changed until now, and the directories above it.

        Raises the failure of an attempt that began after this call, or of one before it that was not made good.
        """
        self._queue.note_moves()
        for each in reversed([inode, *inode.above()]):
            await self._publish_entry(each)

    async def _publish_entry(self, inode: Inode) -> None:
        """As `publish`, but for the directories above it."""
        goal = inode.state.changes
        attempts = inode.state.attempts + self._turns.is_under_way(inode)
        while inode.state.published_changes < goal and inode in self._queue:
            if inode.state.failure is not None and inode.state.attempts > attempts:
                raise inode.state.failure
            self._queue.ask_for(inode)
            await inode.state.attempted.park()
        if isinstance(inode.state.failure, StaleFile):
            raise inode.state.failure
        for alias in list(inode.aliases):
            await self.publish(alias)

    async def publish_all(self, *, open_files: bool = True) -> None:
        """Publish all that is pending now, and delete what is left over after that. Raises one of the failures, if any.

        Without `open_files`, files with a writer are left alone unless they were renamed: that is what an fsync of a
        directory asks for.
        """
        self._hurried.set()
        self._hurried = trio.Event()
        await self._publish_all(self._sweeper.forgive(), open_files=open_files)

    async def publish_names(self, *changed: Inode) -> None:
        """Publish every change of names that is pending now; the caller waits for those of what has `changed`.

        Raises one of the failures. What has failed before is left to its next attempt and is none of them, unless it is
        one of those that `changed`, or below.
        """
        self._queue.note_moves()
        failed = {inode for inode in self._queue if inode.state.failure is not None}
        failed.difference_update(*(inode.with_all_below() for inode in changed if failed))
        await self._publish_all(self._sweeper.failure_count, open_files=False, but=failed)

    async def _publish_all(
        self, deletions_failed: int, *, open_files: bool, but: Collection[Inode] = ()
    ) -> None:
        moving = {*self._placement.moving}
        while True:
            goals = await self._publish_pending(open_files=open_files, but=but)
            has_more = moving - {*self._placement.moving}
            if not (has_more or self._mark()):
                break
            moving -= has_more  # more is known to be pending, now that all below these is known
        leftovers = self._placement.leftovers()  # of those to come there may be no end
        while not self._sweeper.is_done(leftovers, deletions_failed):
            self._queue.wake()
            await self._queue.wait_for_progress()
        for inode in goals:
            if inode in self._queue and inode.state.failure is not None:
                raise inode.state.failure
        for error in self._sweeper.failures(deletions_failed):
            raise error

    async def _publish_pending(self, *, open_files: bool, but: Collection[Inode]) -> list[Inode]:
        """Return when of all that is pending now an attempt has succeeded or failed, and what that was."""
        self._queue.note_moves()
        inodes = [
            inode
            for inode in self._queue
            if inode not in but
            and (
                open_files
                or not (isinstance(inode, File) and inode.writers)
                or self._placement.is_elsewhere(inode)
            )
        ]
        attempted: dict[Inode, None] = {}
        while inodes:
            await self._attempt_all(inodes)
            attempted |= dict.fromkeys(inodes)
            inodes = self.changes.told_along_with(inodes)
        return list(attempted)

    async def _attempt_all(self, inodes: Sequence[Inode]) -> None:
        """Return when of all of these, as they are now, an attempt has succeeded or failed."""
        goals = {
            inode: (inode.state.changes, inode.state.attempts + self._turns.is_under_way(inode))
            for inode in inodes
        }
        for inode in goals:
            self._queue.ask_for(inode)
        for inode, goal in goals.items():
            while self._is_unfinished(inode, *goal):
                if inode not in self._queue.running:
                    self._queue.ask_for(inode)  # a second attempt may be needed
                await self._queue.wait_for_progress()

    def _is_unfinished(self, inode: Inode, changes: int, attempts: int) -> bool:
        state = inode.state
        failed = state.failure is not None and state.attempts > attempts
        tried = state.published_changes >= changes and state.attempts > attempts
        return inode in self._queue and not failed and not tried

    def statistics(self) -> PublishStatistics:
        self._queue.note_moves()
        return PublishStatistics(
            pending_inodes=len(self._queue),
            pending_bytes=sum(inode.content.unsent.total for inode in self._queue if isinstance(inode, File)),
            running=len(self._queue.running),
            failing=sum(inode.state.failure is not None for inode in self._queue),
            leftovers=self._sweeper.count(),
            moving_directories=len(self._placement.moving),
            published=self.changes.published_count,
            failed=self._failures.count,
            conflicts=self._writer.conflicts,
        )

    def pending_inodes(self) -> list[Inode]:
        """Return what the bucket does not have yet."""
        self._queue.note_moves()
        return list(self._queue)
