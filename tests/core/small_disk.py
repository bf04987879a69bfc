"""A local disk that is full, or cannot do what others can, when a test says so."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

from backends.base import NO_ETAGS, NO_METADATA, OVERWRITE, Data, Metadata, PutMode
from backends.errors import QuotaExceeded, StorageError
from backends.memory import MemoryStorage
from fusefs import log_room, stage
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


def make_read_only(patch: pytest.MonkeyPatch, directory: Path) -> None:
    """Let the disk be as ext4 makes it after an error: what is there can be read, and nothing else can be done."""
    open_file, unlink = os.open, Path.unlink

    def refuse(*_: object) -> int:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    def refuse_hole(*_: int) -> int:
        ctypes.set_errno(errno.EROFS)
        return -1

    def open_to_read(path: Any, flags: int, *more: Any, **named: Any) -> int:
        is_on_disk = str(path).startswith(str(directory))
        return refuse() if is_on_disk and flags & os.O_ACCMODE else open_file(path, flags, *more, **named)

    def keep(self: Path, missing_ok: bool = False) -> None:
        if self.is_relative_to(directory) and self.exists():
            refuse()
        unlink(self, missing_ok)

    patch.setattr(stage, "_fallocate", refuse_hole)
    patch.setattr(os, "open", open_to_read)
    patch.setattr(os, "pwrite", refuse)
    patch.setattr(os, "ftruncate", refuse)
    patch.setattr(Path, "unlink", keep)


class LogOnSmallDisk(MemoryStorage):
    """The log of a mount, on a disk of `limit` bytes that the stage in `directory` is on, too.

    What `others` take of it is theirs.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, directory: Path, limit: int) -> None:
        super().__init__()
        self._directory = directory
        self._limit = limit
        self._log: dict[str, int] = {}
        self.others = 0
        #: How often the log was refused room.
        self.refused = 0
        write = StageFile._put

        def write_what_fits(file: StageFile, offset: int, data: Data) -> int:
            room = self.free
            if room <= 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return write(file, offset, memoryview(data)[:room])

        monkeypatch.setattr(StageFile, "_put", write_what_fits)
        monkeypatch.setattr(log_room, "disk_space", lambda _: (max(self.free, 0), limit))

    @property
    def log_bytes(self) -> int:
        """What the log takes."""
        return sum(self._log.values())

    @property
    def free(self) -> int:
        """What nobody has taken."""
        return self._limit - disk_use(self._directory) - self.log_bytes - self.others

    async def put(
        self, key: str, data: Data, *, metadata: Metadata = NO_METADATA, mode: PutMode = OVERWRITE
    ) -> str:
        size = -(-memoryview(data).nbytes // stage.BLOCK_BYTES) * stage.BLOCK_BYTES
        if size > self.free:
            self.refused += 1
            raise QuotaExceeded("the disk is full")
        self._log[key] = size
        return await super().put(key, data, metadata=metadata, mode=mode)

    async def delete(self, key: str, *, if_match: str | None = None) -> None:
        await super().delete(key, if_match=if_match)
        self._log.pop(key, None)

    async def delete_many(
        self, keys: Iterable[str], *, if_match: Mapping[str, str] = NO_ETAGS
    ) -> Mapping[str, StorageError]:
        keys = list(keys)
        failed = await super().delete_many(keys, if_match=if_match)
        for key in set(keys) - set(failed):
            self._log.pop(key, None)
        return failed
