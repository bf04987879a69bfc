"""Checksums of the clean blocks of one file, so that what the local disk has damaged is not taken for the file.

Pure data: which blocks have a checksum, and what the bytes of a block must add up to. A block has one from the moment
when it was fetched, or read to be kept, until one of its bytes is written, cut or evicted; only blocks that are
staged whole have one. Bytes that exist nowhere else (dirty ones) have none: nothing could be done about them.

What a change leaves of a block could not be checked any more after it, so that is done before (`left_in_part`).
Blocks that an earlier mount has kept are *unproved* until they are read for the first time. When one of them loses its
checksum before that, what remains of it has to be dropped.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from zlib_ng import zlib_ng

from backends.base import KIB, Data
from fusefs.extents import Extent

BLOCK_SIZE: Final = 128 * KIB
"""What is checked together: as much as a random read is rounded to."""


class BlockChecksums:
    """The checksums of one file; `file_size`, where it is asked for, is where the file's last block ends."""

    def __init__(self, kept: Mapping[int, int] | None = None) -> None:
        """`kept` are checksums by number of the block that nobody has compared with the disk yet."""
        self._checksums = dict(kept or {})
        self._unproved = set(self._checksums)

    def __len__(self) -> int:
        return len(self._checksums)

    @property
    def by_block(self) -> dict[int, int]:
        """The checksums, by number of the block."""
        return self._checksums.copy()

    @property
    def all_proved(self) -> bool:
        """Whether every block with a checksum has been seen to be right in this mount."""
        return not self._unproved

    def extents(self, file_size: int) -> Iterator[Extent]:
        """Return where the blocks are that have a checksum."""
        return (_extent(number, file_size) for number in sorted(self._checksums))

    def lacking(self, start: int, end: int, file_size: int) -> list[Extent]:
        """Return the whole blocks of a range that have no checksum."""
        return [
            _extent(number, file_size)
            for number in whole_blocks(start, end, file_size)
            if number not in self._checksums
        ]

    def record(self, start: int, data: Data, file_size: int) -> None:
        """Note the checksums of the blocks that are whole in `data`, the bytes of the file from `start` on."""
        view = memoryview(data)
        for number in whole_blocks(start, start + len(view), file_size):
            block = _extent(number, file_size)
            self._checksums[number] = zlib_ng.crc32(view[block.start - start : block.end - start])
            self._unproved.discard(number)

    def forget(self, start: int, end: int) -> list[Extent]:
        """Note that bytes change or go; return which blocks are unproved among them, and not to be trusted any more."""
        if not self._checksums or start >= end:
            return []
        touched = range(start // BLOCK_SIZE, -(-end // BLOCK_SIZE))
        fewer = touched if len(touched) < len(self._checksums) else list(self._checksums)
        numbers = [number for number in fewer if number in touched and number in self._checksums]
        for number in numbers:
            del self._checksums[number]
        unproved = self._unproved.intersection(numbers)
        self._unproved -= unproved
        return [Extent(number * BLOCK_SIZE, (number + 1) * BLOCK_SIZE) for number in sorted(unproved)]

    def left_in_part(self, start: int, end: int, file_size: int) -> list[Extent]:
        """Return the blocks with a checksum of which a change of a range leaves something as it is."""
        if not self._checksums or start >= end:
            return []
        edges = sorted({start // BLOCK_SIZE, (end - 1) // BLOCK_SIZE})
        blocks = [_extent(number, file_size) for number in edges if number in self._checksums]
        return [block for block in blocks if block.start < start or end < block.end]

    def widened(self, start: int, end: int, file_size: int) -> Extent:
        """Return what to read for a range so that all of its blocks that have a checksum can be compared."""
        wide = enclosing(start, end, file_size)
        return Extent(
            wide.start if start // BLOCK_SIZE in self._checksums else start,
            wide.end if (end - 1) // BLOCK_SIZE in self._checksums else end,
        )

    def damaged(self, start: int, data: Data, file_size: int) -> list[Extent]:
        """Compare `data`, the bytes from `start` on, with the checksums; return the blocks that are not the same."""
        view = memoryview(data)
        wrong = []
        for number in whole_blocks(start, start + len(view), file_size):
            expected = self._checksums.get(number)
            if expected is None:
                continue
            block = _extent(number, file_size)
            if zlib_ng.crc32(view[block.start - start : block.end - start]) == expected:
                self._unproved.discard(number)
            else:
                wrong.append(block)
        return wrong


def enclosing(start: int, end: int, file_size: int) -> Extent:
    """Return the range of whole blocks that a range lies in."""
    return Extent(start - start % BLOCK_SIZE, min(end + -end % BLOCK_SIZE, file_size))


def whole_blocks(start: int, end: int, file_size: int) -> range:
    """Return the numbers of the blocks that lie inside a range wholly; the last block of a file may be short."""
    beyond = -(-end // BLOCK_SIZE) if end == file_size else end // BLOCK_SIZE
    return range(-(-start // BLOCK_SIZE), beyond)


def _extent(number: int, file_size: int) -> Extent:
    return Extent(number * BLOCK_SIZE, min((number + 1) * BLOCK_SIZE, file_size))
