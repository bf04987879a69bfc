"""Makes the log equal to the tree: gathers what changed, captures it in one moment, and lets many wait for one PUT.

A commit asks for a capture of everything that changed, whoever changed it, and returns when the batch with it is
acknowledged; so the log is always a prefix of the tree's history. Commits that come while a capture waits for its
turn share it. What does not fit into one batch goes ahead in batches that count only together with the last one,
which is captured when little is left, in one moment: of what went ahead it has only what has changed since.

The log keeps what the bucket does not have yet. What it has to be told is in `unlogged`, what goes into one batch of it
in `batch_contents`, from which batch on it is needed in `log_needs`, and `log_trimmer` deletes what is not.

    not noted -> unlogged (`changed`) -> captured, needed -> (published) -> not needed
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import trio

from backends.base import Metadata
from backends.errors import StorageError
from fusefs.batch_contents import BatchContents, enough_ahead, exceeds_a_batch, rest_of, some_of
from fusefs.capture import bytes_to_carry, has_ended_upload, note_captured
from fusefs.change_log import LOG_KEY, Publication
from fusefs.inodes import Directory, File, Inode
from fusefs.journal import Journal, JournalStatistics
from fusefs.lease import Lease
from fusefs.log_needs import LogNeeds
from fusefs.log_records import CONTINUED, Position
from fusefs.log_trimmer import LogTrimmer
from fusefs.stream_flush import flushed, part_size
from fusefs.unlogged import Unlogged
from fusefs.versions import Version

_log = logging.getLogger(__name__)

BATCHES_BEFORE_HOLD: Final = 8
"""Batches that one commit sends ahead before writers have to wait until it has caught up."""

GATHER_SECONDS: Final = 0.0003
"""How long a commit waits for others, where several came at once before: that is less than a request costs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitStatistics:
    """What is not committed yet, and how long the log is."""

    unlogged_inodes: int
    unlogged_bytes: int
    journal: JournalStatistics


class Committer:
    """The change log of a mount that is the only writer. `run` does the work.

    `patience_seconds` is how long a commit waits for a lease that has lapsed. A log that `is_on_disk` takes room of the
    local disk, and is nearer than the store: it does not wait for parts of streams, but carries their bytes.
    """

    is_kept = True

    def __init__(
        self,
        journal: Journal,
        lease: Lease,
        *,
        patience_seconds: float,
        max_log_bytes: float = math.inf,
        is_on_disk: bool = False,
    ) -> None:
        self._journal = journal
        self._lease = lease
        self._patience_seconds = patience_seconds
        self._is_on_disk = is_on_disk
        self._epoch = journal.next_position.epoch

        self._unlogged = Unlogged()
        self._needs = LogNeeds(max_log_bytes=max_log_bytes)
        self._trimmer = LogTrimmer(journal, lease, self._needs, self._unlogged)
        #: Whether the last batch counts only with a further one.
        self._is_continued = False

        self._nursery: trio.Nursery | None = None
        self._requested = trio.Event()
        self._waiting = 0
        self._captures = 0
        self._capture_failure: Exception | None = None
        self._captured = trio.lowlevel.ParkingLot()
        #: The last batch that was acknowledged, with all before it, when the lease was held.
        self._confirmed = 0
        self._busy_before = False
        self._room = trio.Event()
        self._room.set()
        #: Whether the next batch is to be sent for its cutoff's sake, with nothing to tell.
        self._cutoff_asked_for = False
        self._grown = trio.Event()
        #: From then on the log may be as long as it is: what is told again to shorten it would have to be committed.
        self._is_finishing = False

    def statistics(self) -> CommitStatistics:
        """Return the counts of this moment."""
        return CommitStatistics(
            unlogged_inodes=len(self._unlogged.inodes),
            unlogged_bytes=sum(bytes_to_carry(inode) for inode in self._unlogged.inodes),
            journal=self._journal.statistics(),
        )

    # What there is to tell

    def changed(self, inode: Inode) -> None:
        """As `ChangeLog`."""
        self._unlogged.changed(inode)

    def moved(self, directory: Directory) -> None:
        """As `ChangeLog`."""
        self._unlogged.moved(directory)

    def touched(self, inode: Inode) -> None:
        """As `ChangeLog`."""
        self._unlogged.touched(inode)

    def left_over(self, version: Version, *, waits: bool) -> None:
        """As `ChangeLog`."""
        self._unlogged.left_over(version, waits=waits)

    def gone(self, version: Version) -> None:
        """As `ChangeLog`."""
        self._unlogged.gone(version)
        self._forget_need(version)

    def in_use(self, version: Version) -> None:
        """As `ChangeLog`. Whoever had it, or its deletion, may be in the log longer than whoever has it now."""
        self._unlogged.in_use(version)
        self._forget_need(version)

    def recovered(self, inode: Inode, position: Position) -> None:
        """Note that batches of earlier terms, from `position` on, tell of the inode."""
        self._unlogged.forget(inode)
        inode.is_in_log = True
        inode.told_at = Position(self._epoch, 0)  # or before; how far their batches go does not matter
        self._needs.recovered(inode, position)

    def restored(self) -> None:
        """Note that the tree has all that earlier terms have left: what nobody needs of their logs can go."""
        self._trimmer.restored()

    # What is not needed any more

    @contextmanager
    def publishing(self, inode: Inode) -> Iterator[Publication]:
        """As `ChangeLog`."""
        with self._needs.publishing(inode) as publication:
            yield publication
        self._trimmer.look_for_end()

    def settled(self, inode: Inode) -> None:
        """As `ChangeLog`."""
        self._unlogged.forget_times(inode)
        if has_ended_upload(inode) and not inode.aliases:  # whose names would have to be told with it
            self._unlogged.completed(inode)
        self._forget_need(inode)

    def _forget_need(self, thing: Inode | Version) -> None:
        self._needs.forget(thing)
        self._trimmer.look_for_end()

    # What publications ask

    def is_behind(self, inode: Inode) -> bool:
        """As `ChangeLog`."""
        return self._unlogged.is_behind(inode)

    def has(self, inode: Inode) -> bool:
        """As `ChangeLog`."""
        told = inode.told_at
        return told is not None and told <= (self._epoch, self._confirmed) and not self.is_behind(inode)

    def tells_of(self, inode: Inode) -> bool:
        """As `ChangeLog`. What is needed of the log is not before the cutoff, and so neither is what was told last."""
        is_told = inode.told_at is not None and inode.told_at >= self._trimmer.cutoff
        return self._unlogged.is_noted(inode) or is_told

    def must_keep(self, file: File) -> bool:
        """As `ChangeLog`."""
        upload = file.content.upload
        return upload is not None and bool(upload.logged)

    def mark(self, inode: Inode) -> Metadata:
        """As `ChangeLog`."""
        self._unlogged.name(inode)
        return {LOG_KEY: f"{inode.log_id}@{self._epoch:x}-{self._journal.last_sequence:x}"}

    # Committing

    async def commit(self) -> None:
        """As `ChangeLog`. Raises `LeaseLost`, `LeaseLapsed`, what the store raises, and OSError of the local disk."""
        if self._unlogged.is_urgent:
            await self._wait_for_capture()
        sequence = self._journal.last_sequence
        await self._journal.acknowledged(sequence)
        # Only now: where somebody has taken over and emptied the log, a batch arrives and counts for nobody.
        if not self._lease.is_held:
            await self._lease.wait_held(patience_seconds=self._patience_seconds)
        self._confirmed = max(self._confirmed, sequence)

    def check(self) -> None:
        """As `ChangeLog`."""
        self._journal.check()
        if self._lease.lost_reason is not None:
            self._lease.check()

    def has_caused(self, error: Exception) -> bool:
        """As `ChangeLog`."""
        return error is self._capture_failure or error is self._journal.failure

    async def wait_for_room(self) -> None:
        """As `ChangeLog`."""
        self.check()
        while not self._room.is_set():
            await self._room.wait()

    async def _wait_for_capture(self) -> None:
        goal = self._captures + 1
        self._waiting += 1
        self._requested.set()
        try:
            while self._captures < goal:
                await self._captured.park()
        finally:
            self._waiting -= 1
        if self._capture_failure is not None:
            raise self._capture_failure

    async def run(self) -> None:
        """Capture and send what commits ask for, and trim the log, for ever."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self._trimmer.run, nursery)
            while True:
                await self._requested.wait()
                self._requested = trio.Event()
                try:
                    await self._gather()
                    async with flushed(self._streams_to_flush()):
                        await self._send(nursery)
                    self._capture_failure = None
                except OSError as error:
                    _log.error("nothing can be committed: %s", error)
                    self._capture_failure = error
                except StorageError as error:  # of batches before this one, and told by the journal
                    self._capture_failure = error
                except Exception as error:  # a defect of ours: it must not end the mount for everybody
                    _log.exception("a defect stopped a commit")
                    self._capture_failure = error
                self._captures += 1
                self._captured.unpark_all()
                self._room.set()

    async def _gather(self) -> None:
        await self._journal.wait_for_slot()
        waiting = 0
        while self._busy_before and self._waiting > waiting:
            waiting = self._waiting
            await trio.sleep(GATHER_SECONDS)
        self._busy_before = self._waiting > 1

    async def _send(self, nursery: trio.Nursery) -> None:
        ahead = told = 0
        enough = enough_ahead(self._unlogged)
        # No await between this and the last capture: what is captured is one moment.
        while exceeds_a_batch(self._unlogged, counts_heads=told <= enough):
            contents = some_of(self._unlogged)
            self._append(nursery, contents, is_continued=True)
            ahead += 1
            told += len(contents)
            if ahead == BATCHES_BEFORE_HOLD:
                self._room = trio.Event()
            await self._journal.wait_for_slot()
        contents = rest_of(self._unlogged)
        if len(contents) or self._is_continued or self._cutoff_asked_for:
            self._append(nursery, contents, is_continued=False)
        self._cutoff_asked_for = False
        self._unlogged.clear()
        self._trimmer.look_for_end()  # what came and went may have been all that there was

    def _streams_to_flush(self) -> list[File]:
        """Return the files of which full parts can be in the bucket first, and not in the log, if they are streams.

        That is a request before the log's own, for what spares it a part, or a batch.
        """
        if self._is_on_disk:
            return []
        is_too_much = exceeds_a_batch(self._unlogged, counts_heads=False)
        return [
            inode
            for inode in self._unlogged.inodes
            if isinstance(inode, File) and bytes_to_carry(inode) >= (1 if is_too_much else part_size(inode))
        ]

    def _append(self, nursery: trio.Nursery, contents: BatchContents, *, is_continued: bool) -> None:
        """Send a batch on its way, and note what the log has with it.

        That only then: what was in a batch that cannot be made has to be in a later one. Which things are needed from
        where is noted before, because the batch names its cutoff; if it cannot be made the next one has its position.
        """
        position = self._journal.next_position
        for each in contents.captured:
            if each.inode in self._unlogged.inodes and _is_to_be_settled(each.inode):
                self._needs.need(each.inode, self._unlogged.told_from(each.inode, position))
            self._needs.note_told(each.inode, position, each.size_bytes)
        for version in contents.leftovers:
            self._needs.need(version, position)
            self._needs.note_told(version, position)
        if not is_continued:
            self._needs.need_from_where_told_again()
        cutoff = self._needs.cutoff_before(position)
        flags = CONTINUED if is_continued else 0
        sequence = self._journal.append(nursery, contents.records, cutoff=cutoff, flags=flags)
        self._unlogged.note_told_in_use(contents.in_use)
        for each in contents.captured:
            each.inode.is_in_log = each.inode.linked
            each.inode.told_at = position
            note_captured(each)
        self._is_continued = is_continued
        if is_continued:
            self._unlogged.note_told_ahead([each.inode for each in contents.captured], contents.leftovers)
        else:  # or else it counts only together with one that may never arrive
            nursery.start_soon(self._trimmer.note_cutoff, sequence, cutoff)
        if self._journal.size_from(cutoff) > self._needs.limit and not self._is_finishing:
            self._grown.set()

    @property
    def has_everything(self) -> bool:
        """Whether the log, or the bucket, has all that was done, for certain."""
        return (
            not self._unlogged.is_urgent
            and self._confirmed == self._journal.last_sequence
            and self._lease.lost_reason is None
        )

    # A short log

    async def give_way(self) -> bool:
        """As `ChangeLog`."""
        cutoff = self._needs.cutoff_before(self._journal.next_position)
        if not self._is_on_disk or not self._journal.count_before(cutoff):
            return False
        self._cutoff_asked_for = True
        await self._wait_for_capture()
        await self._journal.acknowledged(self._journal.last_sequence)
        await self._journal.trim(cutoff)
        return True

    async def wait_until_grown(self) -> list[Inode]:
        """As `ChangeLog`."""
        await self._grown.wait()
        self._grown = trio.Event()
        if self._journal.size_from(self._needs.again_before) > self._needs.limit:
            self._needs.shorten(self._journal.next_position)
        keeping = self._needs.to_shorten()
        for thing in keeping:
            if isinstance(thing, Version):  # why it is not deleted does not matter: its record is short
                self._needs.tell_again(thing)
                self._unlogged.left_over_still(thing)
        return [thing for thing in keeping if isinstance(thing, Inode)]

    def tell_again(self, inode: Inode) -> None:
        """As `ChangeLog`."""
        for each in (inode.subject, *inode.subject.aliases):
            if not self._needs.tell_again(each):
                continue
            self._unlogged.changed(each)
            each.is_in_log = True  # or else it is not told of one without a name any more
            if isinstance(each, File):
                each.content.note_all_unlogged()

    @property
    def is_empty(self) -> bool:
        """Whether the log is empty, and there is nothing that ought to be in it."""
        return self._trimmer.is_empty

    async def finish(self) -> None:
        """Commit all, times too, and empty the log if nothing of it is needed, but for a batch that says so.

        To be called when nothing changes any more. Raises what `commit` raises.
        """
        if self._nursery is None:
            return
        self._is_finishing = True
        if len(self._unlogged):  # times alone, perhaps, which no commit waits for, and there is no next batch
            await self._wait_for_capture()
        await self.commit()
        await self._trimmer.finish(self._nursery)

    async def remove(self) -> None:
        """Delete what `finish` has left, when no lease tells of it: nothing is committed any more. Raises nothing."""
        if self.is_empty:
            await self._journal.remove()


def _is_to_be_settled(inode: Inode) -> bool:
    """Return whether the log is needed of an inode until the bucket has all of it.

    Not of what has lost its name to somebody else: what is kept of it stays where it is, for as long as it is open.
    """
    is_behind = inode.state.changes != inode.state.published_changes
    return inode.linked or (inode.version is not None and is_behind)
