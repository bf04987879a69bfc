"""Makes the log equal to the tree: gathers what changed, captures it in one moment, and lets many wait for one PUT.

A commit asks for a capture of everything that changed, whoever changed it, and returns when the batch with it is
acknowledged; so the log is always a prefix of the tree's history. Commits that come while a capture waits for its
turn share it. What does not fit into one batch goes ahead in batches that count only together with the last one,
which is captured when little is left, in one moment: of what went ahead it has only what has changed since.

The log keeps what the bucket does not have yet. `_needed` says for each inode (and each object that is to be deleted)
in which batch its story begins; the oldest of these is the cutoff that the next batch names. A publication that
succeeds makes all unneeded that was captured before it began.

What cannot be published would keep every batch since its own. So when the log has become too long, such an inode is
told again, whole, and what is to be deleted is named again: then the older batches are not needed. That is done once
for each `max_log_bytes` that go into the log; where it takes more than half of them, once for twice what it takes.

    not noted -> unlogged (`changed`) -> captured, needed -> (published) -> not needed
"""

from __future__ import annotations

import logging
import math
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Final, TypeAlias

import trio

from backends.base import KIB, MIB, Metadata
from backends.errors import StorageError
from fusefs.capture import Capture, bytes_to_carry, capture, is_behind, note_captured, stored_version
from fusefs.change_log import LOG_KEY, Publication
from fusefs.content import Version
from fusefs.errors import LeaseLost
from fusefs.inodes import Alias, Directory, File, Inode, is_joined
from fusefs.journal import Journal, JournalStatistics
from fusefs.journal_format import CONTINUED, InUseRecord, LeftoverRecord, Position, Record, StoredVersion
from fusefs.keys import RESERVED_PREFIX
from fusefs.lease import Lease
from fusefs.moves import Moves
from fusefs.stream_flush import flushed, part_size

_log = logging.getLogger(__name__)

BATCH_SIZE: Final = 8 * MIB
"""Bytes of files in one batch."""

HEADS_SIZE: Final = 8 * MIB
"""What the heads of records may take in one batch, beside the bytes of files."""

HEAD_SIZE: Final = 512
"""What a head is taken to have, beside extended attributes; most have 200 to 400 bytes."""

BATCHES_BEFORE_HOLD: Final = 8
"""Batches that one commit sends ahead before writers have to wait until it has caught up."""

GATHER_SECONDS: Final = 0.0003
"""How long a commit waits for others, where several came at once before: that is less than a request costs."""

IDLE_SECONDS: Final = 1.0
"""How long nothing may be needed of the log before it is removed."""

TRIM_BATCHES: Final = 32
"""Batches that are worth a request to delete them."""

TRIM_RETRY_SECONDS: Final = 30.0
"""Pause after some could not be deleted (the store's outages are retried below, in `backends.retrying`)."""

RECORD_SIZE: Final = KIB
"""Bytes that a record is taken to have beside those of a file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitStatistics:
    """What was committed since the mount, and what is not yet."""

    commits: int
    unlogged_inodes: int
    unlogged_bytes: int
    journal: JournalStatistics


_Needing: TypeAlias = Inode | StoredVersion


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
        self._max_log_bytes = max_log_bytes
        self._is_on_disk = is_on_disk
        self._epoch = journal.next_position.epoch
        #: Not the epoch: where a lease was removed these begin again, and objects carry the ids for ever.
        self._term_id = secrets.token_hex(6)
        self._next_id = 1

        #: Inodes of which the log has an older state; True where a commit has to tell of them.
        self._unlogged: dict[Inode, bool] = {}
        #: Directories with another name: what is below them belongs to `_unlogged`, by the time of the next capture.
        self._moves = Moves()
        self._unlogged_leftovers: dict[StoredVersion, bool] = {}
        #: Objects of which the log may say that they are another's, or to be deleted: the next batch says otherwise.
        self._in_use: dict[StoredVersion, None] = {}
        #: Of both: what batches since the last commit have told as it is, and will count with the next one.
        self._ahead: set[_Needing] = set()
        #: Whether the last batch counts only with a further one.
        self._is_continued = False
        #: In the order of positions.
        self._needed: dict[_Needing, Position] = {}
        #: The same of inodes that are being published, as of before that.
        self._publishing: dict[Inode, Position] = {}
        #: What the next commit tells again, and in which batch that begins, if one has any of it yet.
        self._again: dict[_Needing, Position | None] = {}
        #: What is needed from before it is to be published or told again; and how many bytes were told again since.
        self._again_before = Position(0, 0)
        self._again_bytes = 0
        #: Before that, what is needed of earlier terms is not known.
        self._is_restored = False

        self._nursery: trio.Nursery | None = None
        self._requested = trio.Event()
        self._waiting = 0
        self._captures = 0
        self._capture_failure: Exception | None = None
        self._captured = trio.lowlevel.ParkingLot()
        self._commits = 0
        #: The last batch that was acknowledged, with all before it, when the lease was held.
        self._confirmed = 0
        self._busy_before = False
        self._room = trio.Event()
        self._room.set()
        #: Whether the next batch is to be sent for its cutoff's sake, with nothing to tell.
        self._cutoff_asked_for = False
        #: What is before it counts no more, whatever happens: a batch in the store says so, or there is no log.
        self._cutoff = Position(0, 0)
        self._trim_wanted = trio.Event()
        self._grown = trio.Event()

    def statistics(self) -> CommitStatistics:
        """Return the counts of this moment."""
        return CommitStatistics(
            commits=self._commits,
            unlogged_inodes=len(self._unlogged),
            unlogged_bytes=self._bytes_to_carry(),
            journal=self._journal.statistics(),
        )

    # What there is to tell

    def changed(self, inode: Inode) -> None:
        """As `ChangeLog`."""
        self._name(inode)
        self._unlogged[inode] = True
        self._ahead.discard(inode)

    def moved(self, directory: Directory) -> None:
        """As `ChangeLog`."""
        self._moves.add(directory)

    def touched(self, inode: Inode) -> None:
        """As `ChangeLog`."""
        self._name(inode)
        self._unlogged.setdefault(inode, False)
        self._ahead.discard(inode)

    def left_over(self, version: Version, *, waits: bool) -> None:
        """As `ChangeLog`."""
        stored = StoredVersion(version.key, version.etag, version.size)
        self._unlogged_leftovers[stored] = waits
        self._ahead.discard(stored)

    def gone(self, version: Version) -> None:
        """As `ChangeLog`."""
        stored = stored_version(version)
        assert stored is not None
        self._unlogged_leftovers.pop(stored, None)
        self._forget_need(stored)

    def in_use(self, version: Version) -> None:
        """As `ChangeLog`. Whoever had it, or its deletion, may be in the log longer than whoever has it now."""
        stored = stored_version(version)
        assert stored is not None
        self._in_use[stored] = None
        self.gone(version)

    def recovered(self, inode: Inode, position: Position) -> None:
        """Note that batches of earlier terms, from `position` on, tell of the inode."""
        self._unlogged.pop(inode, None)
        inode.is_in_log = True
        inode.told_at = Position(self._epoch, 0)  # or before; how far their batches go does not matter
        self._needed[inode] = position

    def restored(self) -> None:
        """Note that the tree has all that earlier terms have left: what nobody needs of their logs can go."""
        self._is_restored = True
        self._look_for_end()

    def _note_moved(self) -> None:
        for inode in self._moves.take():
            self.changed(inode)

    def _name(self, inode: Inode) -> None:
        if not inode.log_id:
            inode.log_id = f"{self._term_id}-{self._next_id:x}"
            self._next_id += 1

    # What is not needed any more

    @contextmanager
    def publishing(self, inode: Inode) -> Iterator[Publication]:
        """As `ChangeLog`. The caller has committed, so that what the log lacks of the inode are times."""
        if not self._unlogged.get(inode, True):
            del self._unlogged[inode]
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
                self._needed[inode] = before
                self._sort_needed()
        self._look_for_end()

    def settled(self, inode: Inode) -> None:
        """As `ChangeLog`."""
        if not self._unlogged.get(inode, True):
            del self._unlogged[inode]
        self._forget_need(inode)

    def _forget_need(self, thing: _Needing) -> None:
        self._needed.pop(thing, None)
        self._look_for_end()

    def _look_for_end(self) -> None:
        if self._is_idle:
            self._trim_wanted.set()

    @property
    def _is_idle(self) -> bool:
        noted = self._needed or self._publishing or self._unlogged or self._unlogged_leftovers
        return self._is_restored and not noted

    # What publications ask

    def is_behind(self, inode: Inode) -> bool:
        """As `ChangeLog`."""
        self._note_moved()
        return self._unlogged.get(inode, False)

    def has(self, inode: Inode) -> bool:
        """As `ChangeLog`."""
        told = inode.told_at
        return told is not None and told <= (self._epoch, self._confirmed) and not self.is_behind(inode)

    def tells_of(self, inode: Inode) -> bool:
        """As `ChangeLog`. What is needed of the log is not before the cutoff, and so neither is what was told last."""
        self._note_moved()
        return inode in self._unlogged or (inode.told_at is not None and inode.told_at >= self._cutoff)

    def must_keep(self, file: File) -> bool:
        """As `ChangeLog`."""
        upload = file.content.upload
        return upload is not None and bool(upload.logged)

    def mark(self, inode: Inode) -> Metadata:
        """As `ChangeLog`."""
        self._name(inode)
        return {LOG_KEY: f"{inode.log_id}@{self._epoch:x}-{self._journal.last_sequence:x}"}

    # Committing

    async def commit(self) -> None:
        """As `ChangeLog`. Raises `LeaseLost`, `LeaseLapsed`, what the store raises, and OSError of the local disk."""
        if self._is_urgent():
            await self._wait_for_capture()
        sequence = self._journal.last_sequence
        await self._journal.acknowledged(sequence)
        # Only now: where somebody has taken over and emptied the log, a batch arrives and counts for nobody.
        await self._lease.wait_held(patience_seconds=self._patience_seconds)
        self._confirmed = max(self._confirmed, sequence)
        self._commits += 1

    def check(self) -> None:
        """As `ChangeLog`."""
        self._journal.check()
        if self._lease.lost_reason is not None:
            self._lease.check()

    async def wait_for_room(self) -> None:
        """As `ChangeLog`."""
        self.check()
        while not self._room.is_set():
            await self._room.wait()

    def _is_urgent(self) -> bool:
        return any(self._unlogged.values()) or any(self._unlogged_leftovers.values())

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
            nursery.start_soon(self._trim)
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
        # Whoever renames a large directory again and again must not keep the last batch from coming.
        enough = 2 * (len(self._unlogged) + len(self._unlogged_leftovers)) + HEADS_SIZE // HEAD_SIZE
        # No await between this and the last capture: what is captured is one moment.
        while self._exceeds_a_batch(HEADS_SIZE if told <= enough else math.inf):
            captured, leftovers = self._capture_some()
            self._append(nursery, captured, leftovers, flags=CONTINUED)
            ahead += 1
            told += len(captured) + len(leftovers)
            if ahead == BATCHES_BEFORE_HOLD:
                self._room = trio.Event()
            await self._journal.wait_for_slot()
        captured = [capture(inode, room=BATCH_SIZE) for inode in self._to_tell()]
        leftovers = self._leftovers_to_tell()
        if captured or leftovers or self._is_continued or self._cutoff_asked_for:
            self._append(nursery, captured, leftovers)
        self._cutoff_asked_for = False
        self._unlogged.clear()
        self._unlogged_leftovers.clear()
        self._ahead.clear()
        self._look_for_end()  # what came and went may have been all that there was

    def _streams_to_flush(self) -> list[File]:
        """Return the files of which full parts can be in the bucket first, and not in the log, if they are streams.

        That is a request before the log's own, for what spares it a part, or a batch.
        """
        if self._is_on_disk:
            return []
        is_too_much = self._exceeds_a_batch(math.inf)
        return [
            inode
            for inode in self._unlogged
            if isinstance(inode, File) and bytes_to_carry(inode) >= (1 if is_too_much else part_size(inode))
        ]

    def _to_tell(self) -> Iterator[Inode]:
        """Yield what the next batch has to tell of, if there is room for it."""
        for inode in self._unlogged:
            if self._is_worth_telling(inode) and (inode not in self._ahead or is_behind(inode)):
                yield inode

    def _leftovers_to_tell(self) -> list[StoredVersion]:
        return [version for version in self._unlogged_leftovers if version not in self._ahead]

    def _exceeds_a_batch(self, heads_size: float) -> bool:
        self._note_moved()
        carried, heads = 0, HEAD_SIZE * (len(self._in_use) + len(self._leftovers_to_tell()))
        for inode in self._to_tell():
            carried += bytes_to_carry(inode)
            heads += _head_size(inode)
            if carried > BATCH_SIZE or heads > heads_size:
                return True
        return heads > heads_size

    def _bytes_to_carry(self) -> int:
        return sum(bytes_to_carry(inode) for inode in self._unlogged)

    def _is_worth_telling(self, inode: Inode) -> bool:
        """Return whether a reader of the log has to know; of what came and went between two batches it has not.

        That what has an object has no name any more is told once. Of an inode of which not all names are known yet
        nobody has changed more than a directory above, which says where everything below it is (`Directory.source`).
        """
        if not is_joined(inode):
            return False
        return inode.linked or (inode.version is not None if inode.is_in_log is None else inode.is_in_log)

    def _capture_some(self) -> tuple[list[Capture], list[StoredVersion]]:
        """Capture inodes, and then objects that are to be deleted, until a batch is full. What is in use goes first."""
        captured: list[Capture] = []
        room, heads = BATCH_SIZE, HEADS_SIZE - HEAD_SIZE * len(self._in_use)
        if heads <= 0:
            return captured, []
        for inode in self._to_tell():
            if room <= 0 or heads <= 0:
                return captured, []
            has_bytes = bytes_to_carry(inode) > 0
            captured.append(capture(inode, room=room))
            room -= captured[-1].size_bytes
            heads -= _head_size(inode)
            if has_bytes and not captured[-1].covered:
                return captured, []
        return captured, self._leftovers_to_tell()[: max(1, heads // HEAD_SIZE)]

    def _append(
        self,
        nursery: trio.Nursery,
        captured: Sequence[Capture],
        leftovers: Sequence[StoredVersion] = (),
        *,
        flags: int = 0,
    ) -> None:
        """Send a batch on its way, and note what the log has with it.

        That only then: what was in a batch that cannot be made has to be in a later one. Which things are needed from
        where is noted before, because the batch names its cutoff; if it cannot be made the next one has its position.
        """
        position = self._journal.next_position
        is_sorted = True
        for each in captured:
            if each.inode.linked or each.inode.version is not None:
                start = self._told_from(each.inode, position)
                is_sorted = is_sorted and start == position
                self._needed.setdefault(each.inode, start)
            self._note_told(each.inode, position, each.size_bytes)
        for version in leftovers:
            self._needed.setdefault(version, position)
            self._note_told(version, position, 0)
        if not is_sorted:
            self._sort_needed()
        if not flags & CONTINUED:
            self._need_from_where_told_again()
        cutoff = self._cutoff_before(position)
        most = max(1, HEADS_SIZE // HEAD_SIZE) if flags & CONTINUED else None
        in_use = list(islice(self._in_use, most))
        records: tuple[Record, ...] = (
            *(each.record for each in captured),
            *(InUseRecord(version) for version in in_use),
            *(LeftoverRecord(version) for version in leftovers),
        )
        sequence = self._journal.append(nursery, records, cutoff=cutoff, flags=flags)
        for version in in_use:
            del self._in_use[version]
        for each in captured:
            each.inode.is_in_log = each.inode.linked
            each.inode.told_at = position
            note_captured(each)
        self._is_continued = bool(flags & CONTINUED)
        self._ahead.update([each.inode for each in captured], leftovers)
        if not flags & CONTINUED:  # or else it counts only together with one that may never arrive
            nursery.start_soon(self._note_cutoff, sequence, cutoff)
        if self._journal.size_from(cutoff) > self._limit:
            self._grown.set()

    def _told_from(self, inode: Inode, position: Position) -> Position:
        """Return in which batch a commit begins to tell of an inode that the one at `position` has.

        A further name is nothing without its inode, which may be in a batch before.
        """
        told = inode.subject.told_at
        return told if isinstance(inode, Alias) and inode.of in self._ahead and told is not None else position

    @property
    def has_everything(self) -> bool:
        """Whether the log, or the bucket, has all that was done, for certain."""
        return (
            not self._is_urgent()
            and self._confirmed == self._journal.last_sequence
            and self._lease.lost_reason is None
        )

    # A short log

    def _cutoff_before(self, position: Position) -> Position:
        """Return from where on the log is needed, if a batch at `position` is the next one."""
        return min([next(iter(self._needed.values()), position), *self._publishing.values()])

    async def give_way(self) -> bool:
        """As `ChangeLog`."""
        cutoff = self._cutoff_before(self._journal.next_position)
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
        if not self._again and self._journal.size_from(self._again_before) > self._limit:
            self._again_before, self._again_bytes = self._journal.next_position, 0
        keeping = [thing for thing, position in self._needed.items() if position < self._again_before]
        for thing in keeping:
            if isinstance(thing, StoredVersion):  # why it is not deleted does not matter: its record is short
                self._again.setdefault(thing)
                self._unlogged_leftovers.setdefault(thing, False)
        return [thing for thing in keeping if isinstance(thing, Inode)]

    @property
    def _limit(self) -> float:
        """How long the log may be: what is told again and again must not be most of what goes into it."""
        return max(self._max_log_bytes, 2 * self._again_bytes)

    def tell_again(self, inode: Inode) -> None:
        """As `ChangeLog`."""
        for each in (inode.subject, *inode.subject.aliases):
            if each in self._again:
                continue
            self._again[each] = None
            self.changed(each)
            each.is_in_log = True  # or else it is not told of one without a name any more
            if isinstance(each, File):
                each.content.note_all_unlogged()

    def _note_told(self, thing: _Needing, position: Position, size_bytes: int) -> None:
        if thing in self._again:
            self._again[thing] = self._again[thing] or position
            self._again_bytes += RECORD_SIZE + size_bytes

    def _need_from_where_told_again(self) -> None:
        """Note that older batches are not needed of what was told again, now that all of it was."""
        for thing, position in self._again.items():
            is_found = not isinstance(thing, Inode) or _is_found_by_its_name(thing)
            if position is not None and thing in self._needed and is_found:
                of = self._again.get(thing.of) if isinstance(thing, Alias) else None
                self._needed[thing] = min(position, of or position)
        if self._again:
            self._sort_needed()
        self._again.clear()

    def _sort_needed(self) -> None:
        self._needed = dict(sorted(self._needed.items(), key=lambda item: item[1]))

    @property
    def is_empty(self) -> bool:
        """Whether the log is empty, and there is nothing that ought to be in it."""
        return self._is_idle and self._journal.is_empty

    async def finish(self) -> None:
        """Empty the log, if nothing of it is needed, but for a batch that says so. Raises what the store raises."""
        if self._is_idle and self._nursery is not None:
            self._in_use.clear()  # of an empty log there is nothing to say
            await self._journal.finish(self._nursery)
            if self._journal.is_empty:
                self._cutoff = Position(self._epoch, self._journal.last_sequence)
                if self._journal.last_sequence:
                    self._lease.acknowledged(self._journal.last_sequence, is_needed=False)

    async def remove(self) -> None:
        """Delete what `finish` has left, when no lease tells of it: nothing is committed any more. Raises nothing."""
        if self.is_empty:
            await self._journal.remove()

    async def _note_cutoff(self, sequence: int, cutoff: Position) -> None:
        try:
            await self._journal.acknowledged(sequence)
        except Exception:
            return  # a later batch will name a cutoff, too; who waits for this one has the error
        self._lease.acknowledged(sequence)
        if cutoff > self._cutoff:
            self._cutoff = cutoff
        if self._journal.count_before(self._cutoff) >= TRIM_BATCHES:
            self._trim_wanted.set()

    async def _trim(self) -> None:
        while True:
            await self._trim_wanted.wait()
            self._trim_wanted = trio.Event()
            if not await self._trimmed():
                await trio.sleep(TRIM_RETRY_SECONDS)
                self._trim_wanted.set()

    async def _trimmed(self) -> bool:
        """Delete what is not needed, and empty the log if nothing is for a while; return whether that is done."""
        if not await self._journal.trim(self._cutoff):
            return False
        if not self._is_idle:
            return True
        with trio.move_on_after(IDLE_SECONDS) as idling:
            await self._trim_wanted.wait()
        if not idling.cancelled_caught:
            return True
        try:
            await self.finish()
        except LeaseLost:
            return True  # and nobody's from now on
        except Exception as error:  # of any kind: nothing may end the nursery of the whole mount
            _log.warning("the log is not removed: %s", error)
            return False
        return self._journal.is_empty or not self._is_idle


def _head_size(inode: Inode) -> int:
    return HEAD_SIZE + len(inode.subject.attributes.xattrs)


def _is_found_by_its_name(inode: Inode) -> bool:
    """Return whether an object that an attempt may have made is under the name that a record has now.

    Of another name only older records tell. Below the reserved prefix a recovery looks for all that is ours.
    """
    state = inode.state
    attempts = state.in_doubt if state.storing is None else [*state.in_doubt, state.storing]
    name = inode.path_key
    return all(key.startswith(RESERVED_PREFIX) or key.removesuffix("/") == name for key, _ in attempts)
