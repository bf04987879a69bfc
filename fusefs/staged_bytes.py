"""The bytes of one file that the local disk has: which they are, whether they are still right, which were used last.

`present` says which bytes are staged. Blocks that came from the bucket have checksums (`fusefs.block_checksums`) and
are compared with them whenever they are read: what the local disk has damaged is not present any more. The checksum of
a block that is written, cut or evicted is forgotten with that, so that

    blocks with a checksum  are inside  present

How long the file is, which of its bytes are dirty and which the bucket has is known to `fusefs.content`, and is told
with each call: `size` is where the file ends, `replaceable` where what can be fetched again ends.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Final

from backends.base import KIB, MIB, Data
from fusefs.block_checksums import BlockChecksums, enclosing
from fusefs.errors import DamagedCache
from fusefs.extents import Extent, ExtentSet
from fusefs.stage import StageFile

EVICTED_AT_ONCE: Final = 4 * MIB
"""Of a large file, bytes that are noted as used together and evicted together: two such ranges for each GET."""

PIECE_SIZE: Final = 64 * KIB
"""Bytes that are looked at together for whether they are all zeros."""

_ZEROS: Final = bytes(PIECE_SIZE)


class StagedBytes:
    """The stage file of one content, with what is known of the bytes in it."""

    __slots__ = ("_used", "checksums", "file", "present")

    def __init__(self, file: StageFile, present: ExtentSet) -> None:
        """`present` bytes are in the file already."""
        self.file = file
        self.present = present
        self.checksums = BlockChecksums()
        #: Which ranges of `EVICTED_AT_ONCE` were used, the last one at the end. What is in none is evicted last.
        self._used: dict[int, None] = {}

    def read(self, start: int, end: int, *, size: int, replaceable: int) -> bytes | None:
        """Return present bytes; None where the disk has damaged some of them, which are not present any more then.

        Raises `DamagedCache` for those that nobody else has.
        """
        if start >= end:
            return b""
        if not self.checksums:
            return self.file.read(start, end - start)
        wide = self.checksums.widened(start, end, size)
        data = self.file.read(wide.start, wide.length)
        damaged = self.checksums.damaged(wide.start, data, size)
        if damaged:
            self._drop_damaged(damaged, replaceable)
            return None
        return data if wide == (start, end) else data[start - wide.start : end - wide.start]

    def pieces(self, start: int, end: int) -> Iterator[tuple[Extent, bytes | None]]:
        """Yield a range of present bytes in pieces, unchecked; None in the place of bytes is a piece of zeros."""
        for data_start, data_end in self.file.data_in(start, end):
            if start < data_start:
                yield Extent(start, data_start), None
            for piece_start in range(data_start, data_end, PIECE_SIZE):
                piece = Extent(piece_start, min(piece_start + PIECE_SIZE, data_end))
                data = self.file.read(piece.start, piece.length)
                yield piece, None if data == _ZEROS[: piece.length] else data
            start = data_end
        if start < end:
            yield Extent(start, end), None

    def note_written(self, start: int, end: int) -> None:
        """Note that the file has other bytes in a range, and count them as present."""
        self._forget_checksums(start, end)
        self.present.add(start, end)

    def store(self, start: int, data: Data, *, size: int, replaceable: int) -> None:
        """Stage fetched bytes where nothing newer has been written and the file was not cut.

        Raises OSError (ENOSPC) where the disk takes them not, for any reason: they can be used without it.
        """
        view = memoryview(data)
        end = min(start + len(view), replaceable)
        for gap in list(self.present.gaps(start, max(start, end))):
            position = gap.start
            while position < gap.end:
                written = self.file.write_fetched(position, view[position - start : gap.end - start])
                self.present.add(position, position + written)
                position += written
            self.checksums.record(gap.start, view[gap.start - start : gap.end - start], size)
        self.note_use(start, end, size)

    def truncate(self, size: int, former_size: int) -> None:
        """Forget everything from `size` on, of a file that was longer."""
        self._forget_checksums(size, former_size)
        self.file.truncate(size)
        self.present.truncate(size)

    def discard(self) -> None:
        """Forget everything."""
        self.present = ExtentSet()
        self.checksums = BlockChecksums()
        self._used.clear()
        self.file.discard()

    def drop_clean(self, start: int, end: int, *, dirty: ExtentSet, size: int, replaceable: int) -> bool:
        """Count what is clean of a range's blocks as not present, and return whether there was any.

        Their disk space is not given back: where the disk cannot read, it may not do that either.
        """
        wide = enclosing(start, end, size)
        gaps = dirty.gaps(wide.start, min(wide.end, replaceable))
        clean = [extent for gap in gaps for extent in self.present.intersect(*gap)]
        for extent in clean:
            self.present.remove(*extent)
            self.checksums.forget(*extent)
        return bool(clean)

    def note_use(self, start: int, end: int, size: int) -> None:
        """Note that bytes are written, read, or fetched for who will read them. A small file goes as a whole."""
        if size > EVICTED_AT_ONCE:
            for unit in range(start // EVICTED_AT_ONCE, -(-min(end, size) // EVICTED_AT_ONCE)):
                self._used.pop(unit, None)
                self._used[unit] = None

    def evict(self, wanted: int, *, dirty: ExtentSet, in_use: ExtentSet, replaceable: int) -> None:
        """Give back the disk space of `wanted` bytes that are neither dirty nor in use, or of all if there are no more.

        Of a large file that is what was not used for longest.
        """
        goal = self.file.allocated - wanted
        for unit in list(self._used) if goal > 0 else []:
            if self.file.allocated <= goal:
                break
            start, end = unit * EVICTED_AT_ONCE, (unit + 1) * EVICTED_AT_ONCE
            self._drop_clean(start, min(end, replaceable), dirty, in_use)
            if not self.present.intersect(start, end):
                del self._used[unit]
        else:
            if not (dirty or in_use):
                self.file.discard()
            self._drop_clean(0, replaceable, dirty, in_use)

    def take_over(self, checksums: Mapping[int, int], size: int) -> None:
        """Count as present what an earlier mount has left in the file: the blocks that have `checksums`, by number."""
        self.checksums = BlockChecksums(checksums)
        for extent in self.checksums.extents(size):
            self.present.add(*extent)
            self.note_use(*extent, size)

    def prepare_to_keep(self, size: int, deadline: float) -> Mapping[int, int]:
        """Leave in the file, all of it clean, what has a checksum; return these, by number of the block.

        Blocks that have none yet are read for it until `deadline`, on the monotonic clock.
        """
        self._add_checksums(size, deadline)
        kept = ExtentSet(self.checksums.extents(size))
        for extent in self.present:
            for gap in kept.gaps(*extent):
                self.file.give_back(gap.start, gap.length)
        return self.checksums.by_block

    def _add_checksums(self, size: int, deadline: float) -> None:
        for extent in self.present:
            for block in self.checksums.lacking(*extent, size):
                if time.monotonic() >= deadline:
                    return
                self.checksums.record(block.start, self.file.read(block.start, block.length), size)

    def _drop_damaged(self, blocks: list[Extent], replaceable: int) -> None:
        if blocks[-1].end > replaceable:
            raise DamagedCache(f"bytes {blocks[0].start} to {blocks[-1].end} of a removed file were damaged")
        for block in blocks:
            self.file.punch_hole(block.start, block.length)
            self.checksums.forget(*block)
            self.present.remove(*block)

    def _drop_clean(self, start: int, end: int, dirty: ExtentSet, in_use: ExtentSet) -> None:
        clean = (each for gap in dirty.gaps(start, end) for each in self.present.intersect(*gap))
        for unused in [part for extent in clean for part in in_use.gaps(*extent)]:
            if not self.file.give_back(unused.start, unused.length):
                return
            self.present.remove(*unused)
            self.checksums.forget(*unused)

    def _forget_checksums(self, start: int, end: int) -> None:
        """Note that bytes change, and drop what could not be checked any more after it."""
        for block in self.checksums.forget(start, end):
            self.present.remove(*block)
