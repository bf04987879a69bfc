"""Changes the bytes of files in the stage. Where that is full, it publishes first, so that clean bytes can give way.

Full is a cache that has as much as it may, and a disk that has no room: the same is done for both. What a change has
done before it fails is part of the file, and told of like all of it.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from backends.base import Data
from backends.errors import StorageError
from fusefs.change_log import ChangeLog
from fusefs.inodes import File, check_not_stale
from fusefs.publisher import Publisher
from fusefs.stage_budget import StageBudget

FULL_DISK_ATTEMPTS: Final = 5
"""Of a write, most after everything was published; while it waited for that, other writers may have had the room."""


class StageWriter:
    """Writes and cuts; the caller notes what has succeeded (`Changes.written`)."""

    def __init__(self, budget: StageBudget, publisher: Publisher, log: ChangeLog) -> None:
        self._budget: Final = budget
        self._publisher: Final = publisher
        self._changes: Final = publisher.changes
        self._log: Final = log

    async def write(self, file: File, offset: int, data: Data) -> None:
        """Write into the stage; where it is full, first publish, so that clean bytes can make room.

        Raises what keeps this file from being published, or OSError (ENOSPC) where nothing can give way.
        """
        if self._budget.is_exceeded:
            await self._publisher.publish(file)
            self._budget.make_room()
        if self._budget.is_exceeded:
            failure = await self._publish_what_can_be()
            self._budget.make_room()
            if failure is not None and self._budget.is_exceeded:
                raise OSError(errno.ENOSPC, f"nothing in the cache can give way: {failure}") from failure
            if self._budget.is_exceeded:
                self._budget.accept_dirty()
        for attempt in range(1, FULL_DISK_ATTEMPTS + 1):
            check_not_stale(file)  # a publication that was waited for may have found that out
            try:
                with self._telling(file):
                    file.content.write(offset, data)
                return
            except OSError as error:
                if error.errno != errno.ENOSPC or attempt == FULL_DISK_ATTEMPTS:
                    raise
                full = error.with_traceback(None)  # its frames, with bytes of files, would be a cycle with it
            if not self._budget.make_room(goal_bytes=0):
                await self._publish_or_raise(full)

    def truncate(self, file: File, size: int) -> None:
        """Cut the file, or let it grow with zeros. Raises OSError of the local disk."""
        with self._telling(file):
            file.content.truncate(size)

    async def _publish_or_raise(self, full: OSError) -> None:
        """Publish everything on a full disk, and let it give way; raises `full` where that makes no room."""
        failure = await self._publish_what_can_be()
        has_room = self._budget.make_room(goal_bytes=0)
        try:
            has_room |= await self._log.give_way()
        except StorageError as error:
            failure = failure or error
        if not has_room and failure is not None:
            raise full from failure

    async def _publish_what_can_be(self) -> Exception | None:
        """Publish everything, and return one of the failures, if any: it is no answer to the writer of another file."""
        try:
            await self._publisher.publish_all()
        except Exception as error:
            return error
        return None

    @contextmanager
    def _telling(self, file: File) -> Iterator[None]:
        """Note what the block has changed before it fails, by whatever: what nobody knows of is lost."""
        try:
            yield
        except BaseException:
            if file.content.changed:
                self._changes.changed(file)
            raise
