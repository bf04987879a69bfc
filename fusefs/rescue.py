"""What neither the bucket nor the log has when a mount ends: it is moved to a directory, and not thrown away."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterable
from pathlib import Path

from fusefs.inodes import File, Inode

_log = logging.getLogger(__name__)


def rescue(inodes: Iterable[Inode], directory: Path) -> int:
    """Move the bytes of changed files below a directory, under their paths; return of how many files there are any.

    Raises nothing: what cannot be moved either is told of in the log, as is where everything else is.
    """
    files = [inode for inode in inodes if isinstance(inode, File) and inode.linked and inode.content.changed]
    for file in files:
        where = directory.joinpath(*map(os.fsdecode, file.path))
        try:
            _move(file, where)
        except OSError as error:
            _log.error("%r was not published and cannot be rescued: %s", file.path_key, error)
            continue
        staged = [(extent.start, extent.end) for extent in file.content.present]
        _log.error(
            "%r was not published; bytes %s of %d are in %r", file.path_key, staged, file.size, f"{where}"
        )
    return len(files)


def _move(file: File, where: Path) -> None:
    """Move a file's bytes; for those that are in memory alone, clean bytes make room where there is none."""
    while True:
        try:
            where.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            file.content.rescue(where)
            return
        except OSError as error:
            if error.errno != errno.ENOSPC or not file.content.sources.budget.give_back_all():
                raise
