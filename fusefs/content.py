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

On a mount with a log, `unlogged` tells what the log has not been given yet; `changes_to_log` reads it, and
`note_logged` clears it. Bytes that went up as `parts` of an upload under way need not be given to the log again.

Everything here is synchronous but `read` and `fetch`; after each of their awaits the sets are looked at anew,
because writers and publishers have been at work meanwhile.
"""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, Final, Protocol

import trio

from backends.base import MIB, Data, ObjectStorage
from backends.errors import NotFound, PreconditionFailed, RangeNotSatisfiable
from fusefs.block_checksums import enclosing
from fusefs.errors import DamagedCache, StaleFile
from fusefs.extents import Extent, ExtentSet
from fusefs.kept_content import KeptContent
from fusefs.open_upload import Flush, OpenUpload
from fusefs.prefetch import SequentialDetector
from fusefs.stage import Stage, StageFile
from fusefs.stage_budget import StageBudget
from fusefs.staged_bytes import StagedBytes

_log = logging.getLogger(__name__)

FETCH_SIZE: Final = 4 * MIB
"""Bytes of one ranged GET: long enough to be limited by the network and not by the request, and many fit a window."""

DAMAGED_READS: Final = 3
"""How often one read fetches again what the local disk has damaged, before it is an error."""


class Spawn(Protocol):
    """Starts a task in the mount's nursery; `trio.Nursery.start_soon`."""

    def __call__(self, async_fn: Callable[..., Coroutine[Any, Any, None]], *args: Any) -> object: ...


@dataclass(frozen=True, slots=True)
class Version:
    """One immutable state of an object."""

    key: str
    etag: str
    size: int


@dataclass(frozen=True, slots=True)
class ContentSources:
    """What every content of a mount shares: where bytes are staged, fetched from, and who fetches ahead."""

    stage: Stage
    storage: ObjectStorage
    spawn: Spawn
    budget: StageBudget
    #: Bounds the ranged GETs under way for all files together, and so the memory they hold.
    fetch_limiter: trio.CapacityLimiter
    kept: KeptContent
    #: Whether somebody asks what the log has not been given yet.
    logged: bool = False


@dataclass(eq=False, slots=True)
class _Fetch:
    """A range that some task is fetching; others wait for it instead of fetching it too."""

    start: int
    end: int
    done: trio.Event = field(default_factory=trio.Event)


class Content:
    """The bytes of one file. A new file has no base; a file from the bucket begins with nothing staged."""

    def __init__(self, sources: ContentSources, *, base: Version | None = None) -> None:
        self._sources = sources
        self._staged = StagedBytes(sources.stage.new_file(), ExtentSet())
        self._fetching: list[_Fetch] = []
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
        #: Set while a stream sends parts as the file grows.
        self.flush: Flush | None = None
        #: While writers have to wait, and while the base is being replaced: an event takes 272 bytes.
        self._writable: trio.Event | None = None
        self._replaced: trio.Event | None = None
        self._pins = 0
        self._is_untouched = base is not None
        self._damage_reported = False
        self._missing_are_zeros = False

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
        return self.base is not None and not (self.changed or self._staged.present or self._fetching)

    def write(self, offset: int, data: Data) -> None:
        """Put bytes into the stage; beyond the end the file grows, with zeros in between.

        Raises OSError of the local disk; what was written before it is part of the file, as with write(2).
        """
        self._take_over_kept()
        view = memoryview(data)
        while view:
            end = offset + self._staged.file.write(offset, view)
            if offset > self.size:
                self._mark_written(self.size, offset)
            self._mark_written(offset, end)
            if end > self.size:
                self._resize(end)
            self._staged.note_use(offset, end, self.size)
            view = view[end - offset :]
            offset = end
            self._note_staged()

    def truncate(self, size: int) -> None:
        """Cut the file, or let it grow with zeros."""
        self._take_over_kept()
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
        """Return present bytes for an upload, and note that it has them.

        Raises `DamagedCache` where the disk has damaged clean ones, which have to be fetched again then.
        """
        is_whole = self._missing_are_zeros or self._staged.present.covers(start, min(end, self.size))
        data = self._read_checked(start, end) if is_whole else None
        if data is None:
            raise DamagedCache(f"staged bytes between {start} and {end} were damaged")
        self.unsent.remove(start, end)
        return data

    def staged(self, start: int, end: int) -> Iterator[tuple[Extent, bytes | None]]:
        """Yield a range of present bytes in pieces; None in the place of bytes is a piece of zeros."""
        return self._staged.pieces(start, end)

    def staged_bytes(self, start: int, end: int) -> int:
        """Return how many bytes of a range `staged` yields at most, those of zeros left out."""
        return self._staged.file.allocated_in(start, end)

    def note_unlogged(self, start: int, end: int) -> None:
        """Note that the log has to be given what the file has of a range."""
        self.unlogged.add(start, min(end, self.size))

    def note_all_unlogged(self) -> None:
        """Note that the log has to be given all that the base does not have, as if it had been given nothing."""
        for extent in self.dirty:
            self.unlogged.add(*extent)
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

    def detach(self) -> None:
        """Let go of the base: `detached` is true, or its bytes will never be asked for again."""
        self.base = None
        self.base_limit = 0

    @contextmanager
    def pinned(self) -> Iterator[None]:
        """Keep every staged byte staged for the block: uploads and reads fetch clean bytes, and use them later."""
        self._pins += 1
        try:
            yield
        finally:
            self._pins -= 1
            self._note_staged()

    @contextmanager
    def zeros_for_missing(self) -> Iterator[None]:
        """Let uploads take bytes that can be fetched nowhere any more, as zeros, for the block."""
        self._missing_are_zeros = True
        try:
            yield
        finally:
            self._missing_are_zeros = False

    @contextmanager
    def being_replaced(self) -> Iterator[None]:
        """Say that the block puts another version in the place of the base, and notes it.

        The store has it before we know: a read that finds the base gone in between waits for the end of the block.
        """
        replaced = self._replaced = trio.Event()
        try:
            yield
        finally:
            self._replaced = None
            replaced.set()

    def evict(self, wanted: int) -> None:
        """Give back the disk space of bytes that the base has; they are fetched again when they are read.

        Of a large file goes what was not used for longest, until that are `wanted` bytes. So what gives way to a reader
        is behind them, and not what was fetched ahead.
        """
        if self._pins or self.base is None:
            return
        self._staged.evict(wanted, self.dirty, self.base_limit)
        self._note_staged()

    def keep(self, used_at_ns: int, deadline: float) -> None:
        """Leave what is clean to later mounts, at the end of this one; the content is of no use after it.

        Blocks that have no checksum yet are read for it until `deadline`, on the monotonic clock, and what is in memory
        is written to the disk.
        """
        base = self.base
        if base is None or self.changed or (self._staged.file.is_in_memory and time.monotonic() >= deadline):
            return
        checksums = self._staged.prepare_to_keep(base.size, deadline)
        if checksums:
            self._sources.kept.keep(
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

    async def read(self, offset: int, length: int, reader: SequentialDetector | None = None) -> bytes:
        """Return up to `length` bytes; fewer only at the end of the file.

        Raises `StaleFile` when the base was replaced in the bucket, and what the store raises.
        """
        end = min(offset + length, self.size)
        if offset >= end:
            return b""
        disk_is_full = False
        with self.pinned():
            try:
                data = await self._read_staged(offset, end, reader)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                disk_is_full = True
                data = await self._read_past_stage(offset, end)
        if disk_is_full:
            self._sources.budget.make_room(goal_bytes=0)
        return data

    async def _read_staged(self, offset: int, end: int, reader: SequentialDetector | None) -> bytes:
        """Return bytes of a pinned content by way of the stage."""
        self._staged.note_use(offset, end, self.size)
        for _ in range(DAMAGED_READS):
            if not self._staged.present.covers(offset, min(end, self.base_limit)):
                await self._read_through(offset, end, reader)
            elif reader is not None:
                self._fetch_ahead(end, reader.observe(offset, end - offset).ahead_end)
            data = self._read_checked(offset, min(end, self.size))
            if data is not None:
                return data
            reader = None  # it has seen this read
        raise DamagedCache(f"what is staged between {offset} and {end} is damaged again and again")

    async def obtain(self, start: int, end: int) -> bytes:
        """Return bytes of a pinned content for an upload, as `take`; what is missing is fetched first.

        Where the local disk has no room for that it does without: what is dirty must be able to leave a full disk.
        """
        try:
            if not self._missing_are_zeros:
                await self.fetch(start, min(end, self.size))
            return self.take(start, end)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
        data = await self._read_past_stage(start, min(end, self.size))
        self.unsent.remove(start, end)
        return data.ljust(end - start, b"\0")

    async def _read_past_stage(self, offset: int, end: int) -> bytes:
        """Return bytes of a pinned content where the local disk has no room for those that are missing.

        They are in memory once: it may be a whole part. Fewer are returned where the file was cut meanwhile.
        """
        data = BytesIO()  # which gives its bytes away without a copy
        base, fetched = self.base, ExtentSet()
        while True:
            if self.base != base:
                base, fetched = self.base, ExtentSet()
            piece = self._first_missing(offset, end, fetched)
            if piece is not None:
                async with self._sources.fetch_limiter:
                    found = await self._get(_Fetch(*piece), base)
                data.seek(piece.start - offset)
                data.write(found)
                fetched.add(*piece)
            elif self._copy_staged(offset, end, data):
                data.truncate(max(0, self.size - offset))
                return data.getvalue()

    def _first_missing(self, start: int, end: int, fetched: ExtentSet) -> Extent | None:
        """Return what one GET is to bring of what is neither staged nor fetched; None if there is nothing."""
        for gap in self._staged.present.gaps(start, max(start, min(end, self.base_limit))):
            for missing in fetched.gaps(*gap):
                return Extent(missing.start, min(missing.end, missing.start + FETCH_SIZE))
        return None

    def _copy_staged(self, offset: int, end: int, data: BytesIO) -> bool:
        """Put what is staged into `data`, which begins at `offset`; False where the disk has damaged some of it."""
        for extent in self._staged.present.intersect(offset, min(end, self.size)):
            for start in range(extent.start, extent.end, FETCH_SIZE):
                staged = self._read_checked(start, min(start + FETCH_SIZE, extent.end))
                if staged is None:
                    return False
                data.seek(start - offset)
                data.write(staged)
        return True

    async def fetch(self, start: int, end: int) -> None:
        """Stage what is missing of a range; several GETs at once where it is long. Raises as `read`."""
        while True:
            failures: list[Exception] = []
            async with trio.open_nursery() as nursery:
                for fetch in self._begin_missing(start, end):
                    nursery.start_soon(self._carry_out, fetch, failures)
            if failures:
                raise failures[0]
            while (fetch_of_another := self._overlapping(start, end)) is not None:
                await fetch_of_another.done.wait()
            if self._staged.present.covers(start, min(end, self.base_limit)):
                return
            # The other task failed, or the file changed meanwhile: what is missing now is ours to fetch.

    async def fetch_unasked(self) -> None:
        """Stage what is missing of a small file, of which the caller bounds how many are fetched at once.

        A failure is not told: whoever needs the bytes asks for them.
        """
        begun = self._begin_missing(0, self.size)
        if len(begun) == 1:
            await self._carry_out(begun[0], [], nullcontext())
            return
        async with trio.open_nursery() as nursery:  # whoever is cancelled lets go of all that is claimed
            for fetch in begun:
                nursery.start_soon(self._carry_out, fetch, [], nullcontext())

    def _note_staged(self) -> None:
        clean = 0 if self.base is None or self._pins else self._staged.present.total - self.dirty.total
        allocated = self._staged.file.allocated
        self._sources.budget.note(self, allocated, clean, min(allocated, self.dirty.total))

    def _take_over_kept(self) -> None:
        """Stage what an earlier mount has kept, before the file is read or changed for the first time."""
        base = self.base
        if self._is_untouched and base is not None:
            checksums = self._sources.kept.take_over(
                self._staged.file, key=base.key, etag=base.etag, size=base.size
            )
            self._staged.take_over(checksums, base.size)
            self._note_staged()
        self._is_untouched = False

    def _read_checked(self, start: int, end: int) -> bytes | None:
        """Return staged bytes; None where the disk has damaged some of them, which are not present any more then.

        Raises `DamagedCache` for those that nobody else has.
        """
        data = self._staged.read(start, end, size=self.size, replaceable=self.base_limit)
        if data is None:
            self._note_staged()
            self._tell_of_damage()
        return data

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
        if self._sources.logged:
            self.unlogged.add(start, end)

    def _resize(self, size: int) -> None:
        self.size = size
        self.resized = self.base is None or size != self.base.size

    async def _read_through(self, offset: int, end: int, reader: SequentialDetector | None) -> None:
        if reader is None:
            await self.fetch(*enclosing(offset, end, self.size))
            return
        wish = reader.observe(offset, end - offset)
        self._fetch_ahead(wish.end, wish.ahead_end)
        await self.fetch(wish.start, min(wish.end, self.size))

    def _fetch_ahead(self, start: int, end: int) -> None:
        for fetch in self._begin_missing(start, end):
            # Nobody has asked for these bytes yet: whoever does gets the error of their own request.
            self._sources.spawn(self._carry_out, fetch, [])

    def _begin_missing(self, start: int, end: int) -> list[_Fetch]:
        """Claim the ranges, none longer than one GET, that are neither present nor being fetched."""
        self._take_over_kept()
        self._staged.note_use(start, end, self.size)
        absent = ExtentSet()
        for gap in self._staged.present.gaps(start, max(start, min(end, self.base_limit))):
            absent.add(gap.start, gap.end)
        for fetch in self._fetching:
            absent.remove(fetch.start, fetch.end)
        begun = [
            _Fetch(position, min(position + FETCH_SIZE, gap.end))
            for gap in absent
            for position in range(gap.start, gap.end, FETCH_SIZE)
        ]
        self._fetching.extend(begun)
        return begun

    def _overlapping(self, start: int, end: int) -> _Fetch | None:
        return next((fetch for fetch in self._fetching if fetch.start < end and start < fetch.end), None)

    async def _carry_out(
        self,
        fetch: _Fetch,
        failures: list[Exception],
        limiter: AbstractAsyncContextManager[None] | None = None,
    ) -> None:
        """Fetch and stage one claimed range; a failure is noted, so that a nursery has no group of them to raise."""
        try:
            async with limiter or self._sources.fetch_limiter:
                if failures:
                    return  # whoever has asked for this range gets that error
                base = self.base
                data = await self._get(fetch, base)
            if self.base == base:  # or else these bytes may be older than what was published meanwhile
                self._make_room_and_store(fetch.start, data)
        except Exception as error:  # of any kind: nothing may end the nursery of the whole mount
            failures.append(error)
        finally:
            self._fetching.remove(fetch)
            fetch.done.set()

    async def _get(self, fetch: _Fetch, base: Version | None) -> bytes:
        end = min(fetch.end, self.base_limit)
        if base is None or end <= fetch.start:
            return b""  # let go of, or cut, while the fetch waited for its turn
        try:
            # A whole object is asked for as such: S3 has checksums of objects, not of ranges.
            length = None if (fetch.start, end) == (0, base.size) else end - fetch.start
            result = await self._sources.storage.get_range(base.key, fetch.start, length, if_match=base.etag)
        except (NotFound, PreconditionFailed, RangeNotSatisfiable) as error:
            if self._replaced is not None:
                await self._replaced.wait()
            if self.base != base:
                return b""  # published or moved meanwhile; whoever still misses bytes asks for them again
            raise StaleFile(f"{base.key!r} was changed in the bucket while it was open") from error
        return result.data

    def _make_room_and_store(self, start: int, data: bytes) -> None:
        """Stage fetched bytes; where the disk is full, let other contents give theirs back first."""
        try:
            self._store_fetched(start, data)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            self._sources.budget.make_room(keep=self, goal_bytes=0)
            self._store_fetched(start, data)

    def _store_fetched(self, start: int, data: bytes) -> None:
        self._staged.store(start, data, size=self.size, replaceable=self.base_limit)
        self._note_staged()
