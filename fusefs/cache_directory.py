"""A mount's own directory below `cache_dir`, and what dead mounts left in theirs.

Each mount locks its directory for as long as it lives. A directory that is not locked belongs to a mount that is
gone: what it staged was either published or lost with it, so it is removed, but for the uploads that it noted: these
are `orphans` for the next mount to abort. Files that a mount could not publish are moved to `rescued/` before it
ends, and nothing here ever touches them again.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from fusefs.errors import MountError
from fusefs.upload_notes import NotedUpload, read_notes

_log = logging.getLogger(__name__)

_UPLOAD_NOTES = "uploads"


class CacheDirectory:
    """The directory of one mount. Make it with `claim`, and end it with `release`."""

    def __init__(
        self, cache_dir: Path, mount_id: str, lock: int, dead: Collection[str], orphans: list[NotedUpload]
    ) -> None:
        self._path = cache_dir / "mounts" / mount_id
        self._lock = lock
        #: The ids of mounts whose process is gone.
        self.dead = dead
        self.orphans = orphans
        self.kept = cache_dir / "kept"
        self.rescued = cache_dir / "rescued" / mount_id

    @classmethod
    def claim(cls, cache_dir: Path, mount_id: str) -> CacheDirectory:
        """Make and lock the directory, and remove those of dead mounts. Raises `MountError` if it cannot be made."""
        mounts = cache_dir / "mounts"
        try:
            mounts.mkdir(parents=True, exist_ok=True, mode=0o700)
            with _alone_in(mounts):
                dead: dict[str, list[NotedUpload]] = {}
                for left_behind in list(mounts.iterdir()):
                    noted = _remove_if_dead(left_behind)
                    if noted is not None:
                        dead[left_behind.name] = noted
                path = mounts / mount_id
                path.mkdir(mode=0o700)
                lock = _lock(path)
        except OSError as error:
            raise MountError(f"the cache directory {cache_dir} cannot be used: {error.strerror}") from error
        assert lock is not None, "nobody else knows this mount's name"
        orphans = [orphan for noted in dead.values() for orphan in noted]
        return cls(cache_dir, mount_id, lock, list(dead), orphans)

    @property
    def stage(self) -> Path:
        """Where the stage files are."""
        return self._path / "stage"

    @property
    def upload_notes(self) -> Path:
        """Where the mount notes its uploads."""
        return self._path / _UPLOAD_NOTES

    def release(self) -> None:
        """Remove everything but what was rescued, and the notes of uploads that are still to be aborted."""
        shutil.rmtree(self.stage, ignore_errors=True)
        if not read_notes(self.upload_notes):
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


def _lock(directory: Path) -> int | None:
    """Return a descriptor that holds the directory's lock, or None if another process does."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def _remove_if_dead(directory: Path) -> list[NotedUpload] | None:
    """Remove the directory of a mount that is gone, and return the uploads that it left; None if it is not gone."""
    if not directory.is_dir():
        return None  # not ours
    lock = _lock(directory)
    if lock is None:
        return None
    _log.info("removing what an earlier mount left in %s", directory)
    orphans = read_notes(directory / _UPLOAD_NOTES)
    shutil.rmtree(directory, ignore_errors=True)
    os.close(lock)
    return orphans
