"""What earlier mounts of the same cache directory have kept: clean bytes that need not be fetched again.

At its end a mount moves the stage files of what is in the bucket to `cache_dir/kept`, one file for each version of an
object (`fusefs.kept_format`). A later mount takes such a file over, by renaming it into its own stage, when the object
is first read or written: so of several mounts one gets it, and nobody reads what another one writes. Every block is
compared with its checksum before it is served (`fusefs.staged_bytes`).

Nothing is synced to the disk, and nothing is kept of a mount that was killed: what a crash leaves behind is found
damaged, reported, and fetched. Kept files that nobody has taken over count towards `cache_size` with the stage, as
what was used before everything else, and so give way first. They outlive an object that has changed until then.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Final

from backends.base import MIB
from fusefs import kept_format
from fusefs.kept_format import KeptVersion
from fusefs.log_room import disk_space
from fusefs.stage import StageFile
from fusefs.stage_budget import StageBudget

_log = logging.getLogger(__name__)

MAX_FILES: Final = 10_000
"""How many kept files a mount looks at: their number is bounded as their bytes are. Older ones are removed."""

ROOM_TO_BEGIN: Final = MIB
"""Bytes of the disk that a mount needs before anything can give way to it: for directories, and which log is there."""

PATIENCE_SECONDS: Final = 2.0
"""How long the end of a mount may take to read what has no checksum yet; what is left then is not kept."""


class KeptContent:
    """The kept files of all stores, for one mount of `store`."""

    def __init__(self, directory: Path, budget: StageBudget, *, store: str) -> None:
        self._directory = directory
        self._budget = budget
        self._store = store
        #: Those that were there at the beginning and that this mount has neither taken over nor removed.
        self._files: dict[str, _KeptFile] = {}
        for name, allocated in self._oldest_first():
            file = self._files[name] = _KeptFile(self, name)
            budget.note(file, allocated, allocated)
        budget.make_room()

    def take_over(self, file: StageFile, *, key: str, etag: str, size: int) -> dict[int, int]:
        """Put what is kept of a version into an empty stage file, and return checksums of its blocks, if any."""
        version = KeptVersion(store=self._store, key=key, etag=etag, size=size)
        kept = self._files.pop(version.file_name, None)
        if kept is None:
            return {}
        self._budget.note(kept, 0, 0)
        path = self._directory / version.file_name
        try:
            file.take_over(path)
            checksums = kept_format.decode(file.cut(size, version.max_trailer_size), version)
        except FileNotFoundError:
            return {}  # another mount was quicker
        except (OSError, ValueError) as error:
            _log.warning("%s cannot be used, %r is fetched again: %s", path, key, error)
            file.discard()
            return {}
        return checksums

    def keep(
        self,
        file: StageFile,
        checksums: Mapping[int, int],
        *,
        key: str,
        etag: str,
        size: int,
        used_at_ns: int,
    ) -> None:
        """Leave a stage file, empty then, to later mounts. Where the disk refuses it, it is not kept."""
        version = KeptVersion(store=self._store, key=key, etag=etag, size=size)
        path = self._directory / version.file_name
        try:
            file.leave_at(path, size, kept_format.encode(version, checksums))
            os.utime(path, ns=(used_at_ns, used_at_ns))
        except OSError as error:
            _log.debug("%r is not kept: %s", key, error)
            file.discard()

    def _oldest_first(self) -> Iterator[tuple[str, int]]:
        """Yield name and bytes on the disk of the newest `MAX_FILES`, and remove what is beyond."""
        found = sorted(_scan(self._directory), reverse=True)
        for _, name, _ in found[MAX_FILES:]:
            _remove(self._directory / name)
        for _, name, allocated in reversed(found[:MAX_FILES]):
            yield name, allocated


class _KeptFile:
    """A file that nobody has taken over; to the budget it is a content, all of it clean."""

    def __init__(self, owner: KeptContent, name: str) -> None:
        self._owner = owner
        self._name = name

    def evict(self, wanted: int) -> None:
        self._owner._files.pop(self._name, None)
        _remove(self._owner._directory / self._name)
        self._owner._budget.note(self, 0, 0)

    def keep(self, used_at_ns: int, deadline: float) -> None:
        """Stay where it is."""


def make_room_to_begin(directory: Path) -> None:
    """Let what is kept in `directory` give way where the disk is full, those first that were not used for longest.

    The budget, which sees to that later, comes when a mount has its own directory, and a log.
    """
    if _is_full(directory.parent):
        for _, name, _ in sorted(_scan(directory)):
            _remove(directory / name)
            if not _is_full(directory):
                break


def _is_full(directory: Path) -> bool:
    free, _ = disk_space(directory)
    return free < ROOM_TO_BEGIN


def _scan(directory: Path) -> Iterator[tuple[int, str, int]]:
    """Yield the files: when each was used last, its name, and the bytes that it takes of the disk."""
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        with os.scandir(directory) as entries:
            for entry in entries:
                if entry.is_file(follow_symlinks=False):
                    status = entry.stat(follow_symlinks=False)
                    yield status.st_mtime_ns, entry.name, status.st_blocks * 512
    except OSError as error:
        _log.warning("what earlier mounts have kept in %s is not used: %s", directory, error.strerror)


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        _log.warning("%s cannot be removed: %s", path, error.strerror)


def keep_all(budget: StageBudget) -> None:
    """Keep what is clean at the end of a mount; what was used last comes first, and is removed last later on.

    What the next mount would not look at is left, and goes with the stage.
    """
    now_ns, deadline = time.time_ns(), time.monotonic() + PATIENCE_SECONDS
    for age, content in enumerate(islice(reversed(budget.by_last_use), MAX_FILES)):
        content.keep(now_ns - age, deadline)
