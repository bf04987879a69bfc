"""A local disk that is full, or cannot do what others can, when a test says so."""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

import pytest

from backends.base import Data
from fusefs import stage
from fusefs.stage import StageFile


def disk_use(directory: Path) -> int:
    """Return how many bytes of the disk the files below a directory take."""
    return sum(path.stat().st_blocks * 512 for path in directory.rglob("*") if path.is_file())


def limit_disk(monkeypatch: pytest.MonkeyPatch, directory: Path, limit: int) -> None:
    """Let the stage be on a disk of that many bytes."""
    write = StageFile.write

    def write_what_fits(self: StageFile, offset: int, data: Data) -> int:
        room = limit - disk_use(directory)
        if room <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(self, offset, memoryview(data)[:room])

    monkeypatch.setattr(StageFile, "write", write_what_fits)


def refuse_holes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the stage be on a file system that cannot punch holes into files."""

    def refuse(*_: int) -> int:
        ctypes.set_errno(errno.EOPNOTSUPP)
        return -1

    monkeypatch.setattr(stage, "_fallocate", refuse)
