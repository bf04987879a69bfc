"""One file's bytes: what is staged, what is dirty, and the version in the bucket that holds the rest.

Three sets of byte ranges tell where each byte is. `present` bytes are in the stage; every other byte below
`base_limit` is in the base version and is fetched when it is read; there are no further bytes, so

    [0, size)  is covered by  present + [0, base_limit)          (invariant 1)
    dirty      is inside      present                            (invariant 2)
    unsent     is inside      dirty                              (invariant 3)

`dirty` is what differs from the base. `unsent` is the part of it that no upload has read yet: an upload takes bytes
with `take`, which removes them from `unsent`; a write puts them back. Whoever completes an upload looks, with no
`await` between, whether `unsent` is empty inside what it sent: then the object is one whole version of the file.

`fusefs.staged_bytes` has what is present, and notices what the local disk has damaged: that is not present any more,
is reported, and fetched again. What an earlier mount has kept of the base (`fusefs.kept_content`) becomes present when
the file is first touched, and is checked as well.

    blocks with a checksum  are inside  present without dirty    (invariant 4)

On a mount with a log, `unlogged` tells what the log has not been given yet; `fusefs.capture` reads it, and takes out
what it has captured. Bytes that went up as parts of an `upload` under way need not be given to the log again.

Everything here is synchronous, and so one step for every other task, but for `wait_writable` and `wait_replaced`.
`fusefs.fetching` reads contents, and fetches what is missing.
"""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

import trio

from backends.base import KIB, Data, MultipartUpload, ObjectStorage
from backends.byte_budget import ByteBudget
from backends.errors import StorageError
from fusefs.errors import DamagedCache
from fusefs.extents import Extent, ExtentSet, joined
from fusefs.kept_content import KeptContent
from fusefs.open_upload import Flush, OpenUpload
from fusefs.read_outage import ReadOutage
from fusefs.stage import Stage, StageFile
from fusefs.stage_budget import StageBudget
from fusefs.staged_bytes import StagedBytes
from fusefs.versions import Version

_log = logging.getLogger(__name__)

NEAR: Final = 64 * KIB
"""Bytes between two missing ranges that are fetched with them: a GET costs as much as a few times that."""


class Spawn(Protocol):
    """Starts a task in the mount's nursery; `trio.Nursery.start_soon`."""

    def __call__(self, async_fn: Callable[..., Coroutine[Any, Any, None]], *args: Any) -> object: ...


@dataclass(frozen=True, slots=True)
class ContentSources:
    """What every content of a mount shares: where bytes are staged, fetched from, and who fetches ahead."""

    stage: Stage
    storage: ObjectStorage
    spawn: Spawn
    budget: StageBudget
    #: Bounds what the ranged GETs under way hold in memory, for all files together.
    fetch_budget: ByteBudget
    kept: KeptContent
    #: Whether somebody asks what the log has not been given yet.
    logged: bool = False
    outage: ReadOutage = field(default_factory=ReadOutage)


@dataclass(eq=False, slots=True)
class Claim:
    """A range that some task is fetching; others wait for it instead of fetching it too."""

    start: int
    end: int
    #: Which request was the last when somebody asked for the range (`ReadOutage`).
    asked_after: int
    done: trio.Event = field(default_factory=trio.Event)


class Content:
    """The bytes of one file. A new file has no base; a file from the bucket begins with nothing staged."""

    def __init__(self, sources: ContentSources, *, base: Version | None = None) -> None:
        self.sources = sources
        self._staged = StagedBytes(sources.stage.new_file(), ExtentSet())
        self._claims: list[Claim] = []
        self.base = base
        self.size = base.size if base else 0
        self.base_limit = self.size
        self.dirty = ExtentSet()
        self.unsent = ExtentSet()
        self.resized = False
        self.unlogged = ExtentSet()
        #: The least size since the log was last told of one; None if the file was not cut.
        self.cut: int | None = None
        self.logged_size = self.size
        self.upload: OpenUpload | None = None
        #: Whether the log refers to parts of an upload, be it this one or one that has ended since it was told last.
        self.is_referred = False
        #: Uploads that have failed, and could not be aborted before the log had the bytes of their parts.
        self.left_uploads: tuple[MultipartUpload, ...] = ()
        #: Set while a stream sends parts as the file grows.
        self.flush: Flush | None = None
        #: While writers have to wait, and while the base is, or may be, being replaced: an event takes 272 bytes.
        self._writable: trio.Event | None = None
        self._replaced: trio.Event | None = None
        #: Whether the base may have been replaced by a request that had no answer.
        self.is_in_doubt = False
        self._pins = 0
        #: Ranges that are being read.
        self._in_use: list[Extent] = []
        self._is_untouched = base is not None
        self._damage_reported = False
        #: While `zeros_for_missing`.
        self.missing_are_zeros = False

    @classmethod
    def restored(
        cls,
        sources: ContentSources,
        file: StageFile,
        *,
        base: Version | None,
        size: int,
        written: ExtentSet,
        base_limit: int,
    ) -> Content:
        """Return a content with `written` bytes in `file` already; the others, up to `base_limit`, are the base's."""
        content = cls(sources, base=base)
        content._is_untouched = False
        content._staged = StagedBytes(file, written)
        content.size = content.logged_size = size
        content.base_limit = base_limit
        content.dirty, content.unsent = written.copy(), written.copy()
        content.resized = base is None or size != base.size
        content._note_staged()
        return content

    @property
    def present(self) -> ExtentSet:
        """Which bytes are staged."""
        return self._staged.present

    @property
    def changed(self) -> bool:
        """Whether the file differs from its base."""
        return bool(self.dirty) or self.resized

    @property
    def detached(self) -> bool:
        """Whether every byte is staged and was seen to be right, so that the base is not needed any more."""
        return self._staged.present.covers(0, self.base_limit) and self._staged.checksums.all_proved

    @property
    def is_bare(self) -> bool:
        """Whether the bucket has all bytes and the local disk none, and nobody fetches any."""
        return self.base is not None and not (self.changed or self._staged.present or self._claims)

    def write(self, offset: int, data: Data) -> None:
        """Put bytes into the stage; beyond the end the file grows, with zeros in between.

        Raises OSError of the local disk; what was written before it is part of the file, as with write(2).
        """
        self._take_over_kept()
        view = memoryview(data)
        self._prove_around(min(offset, self.size), offset + len(view))
        while view:
            end = offset + self._staged.file.write(offset, view)
            if offset > self.size:
                self._mark_written(self.size, offset)
            self._mark_written(offset, end)
            if end > self.size:
                self._resize(end)
            self.note_use(offset, end)
            view = view[end - offset :]
            offset = end
            self._note_staged()

    def truncate(self, size: int) -> None:
        """Cut the file, or let it grow with zeros."""
        self._take_over_kept()
        self._prove_around(min(size, self.size), max(size, self.size))
        if size < self.size:
            self._staged.truncate(size, self.size)
            for extents in (self.dirty, self.unsent, self.unlogged):
                extents.truncate(size)
            self.base_limit = min(self.base_limit, size)
            self.cut = size if self.cut is None else min(self.cut, size)
        elif size > self.size:
            self._mark_written(self.size, size)
        if size != self.size:
            self._resize(size)
        self._note_staged()

    def take(self, start: int, end: int) -> bytes:
        """Return present bytes for an upload, and note that it has them: all of a range, with zeros beyond the end.

        Raises `DamagedCache` where the disk has damaged clean ones, which have to be fetched again then.
        """
        present_end = min(end, self.size)
        is_whole = self.missing_are_zeros or self._staged.present.covers(start, present_end)
        data = self.read_staged(start, present_end) if is_whole else None
        if data is None:
            raise DamagedCache(f"staged bytes between {start} and {end} were damaged")
        self.unsent.remove(start, end)
        return data.ljust(end - start, b"\0")

    def staged(self, start: int, end: int) -> Iterator[tuple[Extent, bytes | None]]:
        """Yield a range of present bytes in pieces; None in the place of bytes is a piece of zeros."""
        return self._staged.pieces(start, end)

    def staged_length(self, start: int, end: int) -> int:
        """Return how many bytes of a range `staged` yields at most, those of zeros left out."""
        return self._staged.file.allocated_in(start, end)

    @property
    def written_end(self) -> int:
        """Where what was written ends, to a block: beyond it a file without a base has only grown, with zeros."""
        return min(self._staged.file.data_end, self.size)

    def note_unlogged(self, start: int, end: int) -> None:
        """Note that the log has to be given what the base lacks of a range: the rest may be nowhere here."""
        for extent in self.dirty.intersect(start, end):
            self.unlogged.add(*extent)

    def note_all_unlogged(self) -> None:
        """Note that the log has to be given all that the base does not have, as if it had been given nothing."""
        self.unlogged = ExtentSet(sorted([*self.unlogged, *self.dirty]))
        self.cut = self.base_limit if self.cut is None else min(self.cut, self.base_limit)

    def give_back(self) -> None:
        """Note that no upload has anything: the one that took bytes has failed."""
        self.unsent = self.dirty.copy()

    def published(self, version: Version) -> None:
        """Take `version` as the new base; it holds every byte but those that are still unsent."""
        self.base = version
        self.base_limit = min(version.size, self.size)
        self.dirty = self.unsent.copy()
        self.resized = version.size != self.size
        self._note_staged()

    def rebase(self, version: Version) -> None:
        """Take `version`, a copy of the base with the same bytes, in its place."""
        self.base = version

    def adopt(self, version: Version) -> None:
        """Take `version` as the base, which an upload of this content has become: it differs in dirty bytes only."""
        self.base = version
        self.base_limit = min(self.base_limit, version.size)
        self.resized = version.size != self.size

    def make_own(self) -> None:
        """Let go of a base that is gone, of which all bytes are here (`detached`): they go up, and into the log."""
        self.detach()
        self.dirty = ExtentSet([(0, self.size)] if self.size else [])
        self.unsent = self.dirty.copy()
        self.resized = True
        if self.sources.logged:
            self.note_all_unlogged()
        self._note_staged()

    def detach(self) -> None:
        """Let go of the base: `detached` is true, or its bytes will never be asked for again."""
        self.base = None
        self.base_limit = 0

    @contextmanager
    def pinned(self) -> Iterator[None]:
        """Keep every staged byte staged for the block: uploads fetch clean bytes, and use them later."""
        self._pins += 1
        try:
            yield
        finally:
            self._pins -= 1
            self._note_staged()

    @contextmanager
    def in_use(self, start: int, end: int) -> Iterator[None]:
        """Keep what is staged of a range staged for the block: reads fetch bytes, and return them later.

        Not all of the file: where there are many readers, one of them is always at work.
        """
        extent = Extent(start, end)
        self._in_use.append(extent)
        try:
            yield
        finally:
            self._in_use.remove(extent)
            self._note_staged()

    @contextmanager
    def zeros_for_missing(self) -> Iterator[None]:
        """Let uploads take bytes that can be fetched nowhere any more, as zeros, for the block.

        Readers go on with what they had: to them these bytes are gone with the base, and no zeros.
        """
        base, base_limit, dirty = self.base, self.base_limit, self.dirty
        self.missing_are_zeros = True
        try:
            yield
        finally:
            self.missing_are_zeros = False
            self.base, self.base_limit, self.dirty = base, base_limit, dirty

    @contextmanager
    def being_replaced(self) -> Iterator[None]:
        """Say that the block puts another version in the place of the base, and notes it.

        The store has it before we know: a read that finds the base gone in between waits for the end of the block, and,
        where that is in doubt, until somebody has looked (`note_looked`).
        """
        replaced = self._replaced = trio.Event()
        try:
            yield
        except StorageError as error:
            self.is_in_doubt = error.is_in_doubt
            raise
        finally:
            if not self.is_in_doubt:
                self._replaced = None
                replaced.set()

    def note_looked(self, *, is_in_doubt: bool) -> None:
        """Note that it was looked whether the base was replaced, and whether that is not known even so."""
        if self._replaced is not None:
            self._replaced.set()
        self._replaced = trio.Event() if is_in_doubt else None
        self.is_in_doubt = is_in_doubt

    def evict(self, wanted: int) -> None:
        """Give back the disk space of bytes that the base has; they are fetched again when they are read.

        Of a large file goes what was not used for longest, until that are `wanted` bytes. So what gives way to a reader
        is behind them, and not what was fetched ahead.
        """
        if self._pins or self.base is None:
            return
        try:
            self._staged.evict(
                wanted, dirty=self.dirty, in_use=ExtentSet(self._in_use), replaceable=self.base_limit
            )
        except OSError as error:  # nothing that whoever needs room could do about
            _log.warning("the local disk does not give back cached bytes of %r: %s", self.base.key, error)
            can_be_read = error.errno == errno.EROFS
            if not (can_be_read or self.dirty or self._in_use):
                self._staged.discard()
        self._note_staged()

    def keep(self, used_at_ns: int, deadline: float) -> None:
        """Leave what is clean to later mounts, at the end of this one; the content is of no use after it.

        Blocks that have no checksum yet are read for it until `deadline`, on the monotonic clock, and what is in memory
        is written to the disk.
        """
        base = self.base
        if base is None or self.changed or (self._staged.file.is_in_memory and time.monotonic() >= deadline):
            return
        try:
            checksums = self._staged.prepare_to_keep(base.size, deadline)
        except OSError as error:
            _log.warning("what is cached of %r is not kept: %s", base.key, error)
            return
        if checksums:
            self.sources.kept.keep(
                self._staged.file,
                checksums,
                key=base.key,
                etag=base.etag,
                size=base.size,
                used_at_ns=used_at_ns,
            )

    def discard(self) -> None:
        """Remove everything from the local disk; the file is gone for good, and nothing is fetched for it any more."""
        self.detach()
        self._staged.discard()
        self.dirty, self.unsent, self.unlogged = (ExtentSet() for _ in range(3))
        self._note_staged()

    def rescue(self, where: Path) -> None:
        """Move what is staged to a file of its own; bytes that were never staged are holes in it."""
        self._staged.file.move_to(where, self.size)

    def hold_writers(self) -> None:
        """Let writers wait, so that an upload of a file that never rests can end."""
        if self._writable is None:
            self._writable = trio.Event()

    def release_writers(self) -> None:
        """Let writers go on."""
        if self._writable is not None:
            self._writable.set()
            self._writable = None

    async def wait_writable(self) -> None:
        """Return when no upload holds writers back."""
        while self._writable is not None:
            await self._writable.wait()

    async def wait_replaced(self) -> None:
        """Return when no block of `being_replaced` is under way, or in doubt, that was when this was called.

        It `is_in_doubt` still where nobody could find out.
        """
        if self._replaced is not None:
            await self._replaced.wait()

    def missing(self, start: int, end: int) -> list[Extent]:
        """Return what has to be fetched of a range before it can be read."""
        return self._staged.present.gaps(start, max(start, min(end, self.base_limit)))

    def has_staged(self, start: int, end: int) -> bool:
        """Whether nothing is `missing` of a range."""
        return self._staged.present.covers(start, min(end, self.base_limit))

    def read_staged(self, start: int, end: int) -> bytes | None:
        """Return staged bytes; None where the disk has damaged or lost some of them, which are not present any more.

        Raises `DamagedCache`, or OSError of the disk, for those that nobody else has.
        """
        try:
            data = self._staged.read(start, end, size=self.size, replaceable=self.base_limit)
        except OSError:
            if self.base is None or not self._drop_unreadable(start, end):
                raise
            data = None
        if data is None:
            self._note_staged()
            self._tell_of_damage()
        return data

    def note_use(self, start: int, end: int) -> None:
        """Note that bytes are written, read, or fetched for who will read them."""
        self._staged.note_use(start, end, self.size)

    def claim(self, start: int, end: int, max_length: int) -> list[Claim]:
        """Claim the ranges, none of which has a multiple of `max_length` inside, that are neither present nor claimed.

        A little that is present between them is claimed as well: the bytes cost less than another GET. Whoever claims
        fetches them, or fails to, and has to `release` each of them.
        """
        self._take_over_kept()
        self.note_use(start, end)
        absent = ExtentSet(joined(self.missing(start, end), NEAR))
        for claim in self._claims:
            absent.remove(claim.start, claim.end)
        asked_after = self.sources.outage.last_begun
        claims = [
            Claim(max(position, gap.start), min(position + max_length, gap.end), asked_after)
            for gap in absent
            for position in range(gap.start - gap.start % max_length, gap.end, max_length)
        ]
        claims = [claim for claim in claims if not self.has_staged(claim.start, claim.end)]
        self._claims.extend(claims)
        return claims

    def claimed_in(self, start: int, end: int) -> Claim | None:
        """Return a claim that has bytes of a range, if there is one."""
        return next((claim for claim in self._claims if claim.start < end and start < claim.end), None)

    def release(self, claim: Claim) -> None:
        """Note that nobody fetches a claimed range any more, and wake those who wait for it."""
        self._claims.remove(claim)
        claim.done.set()

    def store_fetched(self, start: int, data: Data) -> None:
        """Stage fetched bytes of the base; where the disk is full, let other contents give theirs back first."""
        try:
            self._store_fetched(start, data)
            return
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
        # Not in there: the next failure would keep this one, and what its frames have, as its context.
        self.sources.budget.make_room(keep=self, goal_bytes=0)
        self.sources.budget.is_disk_full = True
        self._store_fetched(start, data)

    def _store_fetched(self, start: int, data: Data) -> None:
        self._staged.store(start, data, size=self.size, replaceable=self.base_limit)
        self.sources.budget.is_disk_full = False
        self._note_staged()

    def _note_staged(self) -> None:
        clean = 0 if self.base is None or self._pins else self._staged.present.total - self.dirty.total
        allocated = self._staged.file.allocated
        self.sources.budget.note(self, allocated, clean, min(allocated, self.dirty.total))

    def _take_over_kept(self) -> None:
        """Stage what an earlier mount has kept, before the file is read or changed for the first time."""
        base = self.base
        if self._is_untouched and base is not None:
            checksums = self.sources.kept.take_over(
                self._staged.file, key=base.key, etag=base.etag, size=base.size
            )
            self._staged.take_over(checksums, base.size)
            self._note_staged()
        self._is_untouched = False

    def _prove_around(self, start: int, end: int) -> None:
        """Drop what is damaged of the blocks that a change of a range leaves in part, and takes the checksums of."""
        for block in self._staged.checksums.left_in_part(start, end, self.size):
            self.read_staged(*block)

    def _drop_unreadable(self, start: int, end: int) -> bool:
        """Let bytes that the disk cannot read be fetched again; return whether the base has any of them."""
        if not self.changed:
            self._staged.discard()
            return True
        return self._staged.drop_clean(
            start, end, dirty=self.dirty, size=self.size, replaceable=self.base_limit
        )

    def _tell_of_damage(self) -> None:
        if self.base is not None and not self._damage_reported:
            self._damage_reported = True
            _log.warning(
                "the local disk has damaged cached bytes of %r; they are fetched again", self.base.key
            )

    def _mark_written(self, start: int, end: int) -> None:
        self._staged.note_written(start, end)
        self.dirty.add(start, end)
        self.unsent.add(start, end)
        if self.sources.logged:
            self.unlogged.add(start, end)

    def _resize(self, size: int) -> None:
        self.size = size
        self.resized = self.base is None or size != self.base.size
