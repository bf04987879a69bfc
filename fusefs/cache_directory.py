"""A mount's own directory below `cache_dir`, and what dead mounts left in theirs.

Each mount locks its directory for as long as it lives. A directory that is not locked belongs to a mount that is
gone: what it staged was either published or lost with it, so it is removed. The directory itself stays, empty, as the
sign that this mount is dead: whatever is mounted first, the next mount of the same prefix need not wait for its lease.
A copy of a directory is none (of the host's disk, say, while the mount lives): that it is not locked says nothing.
Files that a mount could not publish are moved to `rescued/` before it ends, and nothing here ever touches them again.
That has to go on a disk that is full of just these: a mount holds some room for it from the beginning.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from backends.base import MIB
from fusefs.errors import MountError
from fusefs.kept_content import make_room_to_begin

_log = logging.getLogger(__name__)

RESCUE_BYTES: Final = 40 * MIB
"""Of the disk, or a 64th of what is free: for directories, and for small files, of which 32 MiB may be in memory."""

MACHINE_ID: Final = Path("/etc/machine-id")
"""machine-id(5): another one on each host, and on one that was cloned as it should be."""

KEPT_DEAD: Final = 100
"""For how many dead mounts, those that were found last, the empty directory stays."""


class CacheDirectory:
    """The directory of one mount. Make it with `claim`, and end it with `release`."""

    def __init__(self, cache_dir: Path, mount_id: str, lock: int, dead: Collection[str]) -> None:
        self._path = cache_dir / "mounts" / mount_id
        self._lock = lock
        #: The ids of mounts whose process is gone without an end.
        self.dead = dead
        self.kept = cache_dir / "kept"
        self.rescued = cache_dir / "rescued" / mount_id

    @classmethod
    def claim(cls, cache_dir: Path, mount_id: str) -> CacheDirectory:
        """Make and lock the directory, and empty those of dead mounts. Raises `MountError` if it cannot be made."""
        mounts = cache_dir / "mounts"
        try:
            mounts.mkdir(parents=True, exist_ok=True, mode=0o700)
            with _alone_in(mounts):
                dead = [path for path in list(mounts.iterdir()) if _empty_if_dead(path)]
                _forget_oldest(dead)
                make_room_to_begin(cache_dir / "kept")
                path = mounts / mount_id
                path.mkdir(mode=0o700)
                lock = _lock(path)
            (path / "self").write_text(_identity(path))
            _hold_room(path / "room")
        except OSError as error:
            raise MountError(f"the cache directory {cache_dir} cannot be used: {error.strerror}") from error
        assert lock is not None, "nobody else knows this mount's name"
        return cls(cache_dir, mount_id, lock, [path.name for path in dead])

    @property
    def stage(self) -> Path:
        """Where the stage files are."""
        return self._path / "stage"

    def give_room(self) -> None:
        """Let a rescue have the room that is held for it."""
        (self._path / "room").unlink(missing_ok=True)

    def release(self) -> None:
        """Remove everything but what was rescued."""
        shutil.rmtree(self._path, ignore_errors=True)
        os.close(self._lock)


@contextmanager
def _alone_in(mounts: Path) -> Iterator[None]:
    """Keep other mounts from looking around for the block: one that is made and not locked yet would seem dead."""
    descriptor = os.open(mounts, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _hold_room(path: Path) -> None:
    """Take some of the disk with a file, if there is any."""
    with path.open("wb") as file, suppress(OSError):
        free = os.fstatvfs(file.fileno())
        os.posix_fallocate(file.fileno(), 0, min(RESCUE_BYTES, free.f_bavail * free.f_frsize // 64))


def _lock(directory: Path) -> int | None:
    """Return a descriptor that holds the directory's lock, or None if another process does."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def _empty_if_dead(directory: Path) -> bool:
    """Empty the directory of a mount that is gone; return whether it is one."""
    if not directory.is_dir():
        return False  # not ours
    try:
        lock = _lock(directory)
    except FileNotFoundError:
        return False  # its mount has just ended
    if lock is None:
        return False
    try:
        is_there = directory.exists()  # or else its mount has ended before we had the lock
        is_copy = is_there and _is_copy(directory)
        if is_there and any(directory.iterdir()):
            _log.info("removing what an earlier mount left in %s", directory)
            shutil.rmtree(directory, ignore_errors=True)
            if not is_copy:
                directory.mkdir(mode=0o700, exist_ok=True)
    finally:
        os.close(lock)
    return is_there and not is_copy


def _is_copy(directory: Path) -> bool:
    try:
        return (directory / "self").read_text() != _identity(directory)
    except FileNotFoundError:  # it was emptied, or is of an earlier version
        return False


def _identity(directory: Path) -> str:
    """Return what a directory and none of its copies has: its number, and that of the machine it is on."""
    try:
        machine = MACHINE_ID.read_text().strip()
    except OSError:
        machine = ""
    return f"{machine} {directory.stat().st_ino}\n"


def _forget_oldest(dead: Collection[Path]) -> None:
    """Remove the directories that were emptied first, if there are too many."""
    for directory in sorted(dead, key=lambda path: path.stat().st_mtime_ns)[:-KEPT_DEAD]:
        shutil.rmtree(directory, ignore_errors=True)
