"""The room that a log on the local disk will need, which the stage leaves to it.

What is published is in the log first. So a full disk is a dead end for a log that is on it: nothing could be published
to become clean and give way. The stage therefore stops before that, while there is room for all that the log may still
be given: every dirty byte once more (bytes of parts that it refers to included, which it is given if their upload
fails), the batches that are on their way, and a reserve for what else batches tell.

The disk is asked at each write, so what others take of it, or the stage without asking, shortens the stage's share and
not the log's. A limit: where others fill the disk to the last byte, or several mounts share it and each leaves room
for itself, a batch may meet a full disk all the same. It takes the place of clean bytes then, and otherwise waits.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from backends.base import MIB
from fusefs.journal import Journal
from fusefs.stage_budget import StageBudget

RESERVE: Final = 32 * MIB
"""For names and attributes in batches, some 90,000 of them, and what the file system needs for a file."""

RESERVE_SHARE: Final = 16
"""The reserve is at most this part of the file system."""


class LogRoom:
    """Decides how much a stage may take of a disk, whose `directory` has the log."""

    def __init__(self, directory: Path, budget: StageBudget, journal: Journal) -> None:
        self._directory = directory
        self._budget = budget
        self._journal = journal

    def is_left_after(self, length: int) -> bool:
        """Return whether the log has the room it needs after so many more bytes, which may have to go there, too."""
        free, size = disk_space(self._directory)
        needed = self._budget.dirty + self._journal.bytes_in_flight + min(RESERVE, size // RESERVE_SHARE)
        return free >= 2 * length + needed


def disk_space(directory: Path) -> tuple[int, int]:
    """Return the bytes that can be taken of the file system with a directory, and those that it has."""
    status = os.statvfs(directory)
    return status.f_bavail * status.f_frsize, status.f_blocks * status.f_frsize
