"""What goes into the next batch of the log: as much as there is room for of what there is to tell.

A commit sends what does not fit into one batch ahead, in batches that it fills with `some_of`, and captures the rest in
one moment (`rest_of`). Nothing here changes anything, and between this and the note that the log has it there is no
await: that is what makes a batch one moment.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final

from backends.base import MIB
from fusefs.capture import Capture, bytes_to_carry, capture
from fusefs.inodes import Inode
from fusefs.log_records import InUseRecord, LeftoverRecord, Record
from fusefs.unlogged import Unlogged
from fusefs.versions import Version

BATCH_SIZE: Final = 8 * MIB
"""Bytes of files in one batch."""

HEADS_SIZE: Final = 8 * MIB
"""What the heads of records may take in one batch, beside the bytes of files."""

HEAD_SIZE: Final = 512
"""What a head is taken to have, beside extended attributes; most have 200 to 400 bytes."""


@dataclass(frozen=True, slots=True)
class BatchContents:
    """What one batch tells: of inodes, of objects that are to be deleted, and of such that are somebody's."""

    captured: Sequence[Capture]
    leftovers: Sequence[Version]
    in_use: Sequence[Version]

    def __len__(self) -> int:
        """How many things it tells of; what is in use is told of when there is a batch, and makes none."""
        return len(self.captured) + len(self.leftovers)

    @property
    def records(self) -> tuple[Record, ...]:
        """The same, as the log has it. What is in use goes before what is to be deleted."""
        return (
            *(each.record for each in self.captured),
            *(InUseRecord(version) for version in self.in_use),
            *(LeftoverRecord(version) for version in self.leftovers),
        )


def exceeds_a_batch(unlogged: Unlogged, *, counts_heads: bool = True) -> bool:
    """Return whether there is more to tell than fits into one batch, of bytes of files or of heads of records."""
    heads_size = HEADS_SIZE if counts_heads else math.inf
    carried, heads = 0, HEAD_SIZE * (len(unlogged.in_use_to_tell()) + len(unlogged.leftovers_to_tell()))
    for inode in unlogged.to_tell():
        carried += bytes_to_carry(inode)
        heads += _head_size(inode)
        if carried > BATCH_SIZE or heads > heads_size:
            return True
    return heads > heads_size


def enough_ahead(unlogged: Unlogged) -> int:
    """Return of how many things batches may tell ahead before heads are no reason for another one.

    Whoever renames a large directory again and again must not keep the last batch from coming.
    """
    return 2 * len(unlogged) + HEADS_SIZE // HEAD_SIZE


def some_of(unlogged: Unlogged) -> BatchContents:
    """Capture what goes ahead of the last batch of a commit. Raises OSError of the local disk, which names the file."""
    captured, leftovers = _capture_some(unlogged)
    in_use = list(islice(unlogged.in_use_to_tell(), max(1, HEADS_SIZE // HEAD_SIZE)))
    return BatchContents(captured, leftovers, in_use)


def rest_of(unlogged: Unlogged) -> BatchContents:
    """Capture all that there is to tell. Raises OSError of the local disk, which names the file."""
    captured = [capture(inode, room=BATCH_SIZE) for inode in unlogged.to_tell()]
    return BatchContents(captured, unlogged.leftovers_to_tell(), list(unlogged.in_use_to_tell()))


def _capture_some(unlogged: Unlogged) -> tuple[list[Capture], list[Version]]:
    """Capture inodes, and then objects that are to be deleted, until a batch is full. What is in use goes first."""
    captured: list[Capture] = []
    room, heads = BATCH_SIZE, HEADS_SIZE - HEAD_SIZE * len(unlogged.in_use_to_tell())
    if heads <= 0:
        return captured, []
    for inode in unlogged.to_tell():
        if room <= 0 or heads <= 0:
            return captured, []
        has_bytes = bytes_to_carry(inode) > 0
        captured.append(capture(inode, room=room))
        room -= captured[-1].size_bytes
        heads -= _head_size(inode)
        if has_bytes and not captured[-1].covered:
            return captured, []
    return captured, unlogged.leftovers_to_tell()[: max(1, heads // HEAD_SIZE)]


def _head_size(inode: Inode) -> int:
    return HEAD_SIZE + len(inode.subject.attributes.xattrs)
