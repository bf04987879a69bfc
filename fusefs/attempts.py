"""One attempt to make the bucket equal to one inode.

Every attempt is conditional on what we know to be under its target (`Placement.condition`). One without an answer may
have taken effect. Before the next one the store is asked, so that our own object is neither taken for somebody else's
nor left behind under a name that is no longer the inode's.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext

from backends.base import Metadata, ObjectInfo, ObjectStorage
from backends.errors import NotFound, PreconditionFailed
from fusefs.change_log import ChangeLog, Publication, commit_all_of, without_mark
from fusefs.changes import Changes
from fusefs.conflicts import Conflicts
from fusefs.errors import StaleFile
from fusefs.inodes import Alias, Directory, File, Inode
from fusefs.link_lists import metadata_of
from fusefs.object_writer import ObjectWriter, has_to_go_up
from fusefs.placement import Placement
from fusefs.publish_queue import PublishQueue
from fusefs.upload_rounds import MovedMeanwhile
from fusefs.versions import Version

_log = logging.getLogger(__name__)


class Attempts:
    """Carries attempts out; several at a time, each of another inode."""

    def __init__(
        self,
        storage: ObjectStorage,
        placement: Placement,
        log: ChangeLog,
        queue: PublishQueue,
        changes: Changes,
        writer: ObjectWriter,
    ) -> None:
        self._storage = storage
        self._placement = placement
        self._log = log
        self._queue = queue
        self._changes = changes
        self._writer = writer
        self._conflicts = Conflicts(storage, placement, log, changes, writer)

    async def make(self, inode: Inode, target: str | None) -> None:
        """Bring the inode's object to `target`; without one, find out only whether it has an object.

        Raises what the store raises, `FilesystemError`, and OSError of the local disk.
        """
        inode.state.storing = None
        try:
            try:
                await self._settle_doubts(inode)
            finally:
                if isinstance(inode, File):
                    inode.content.note_looked(is_in_doubt=bool(inode.state.in_doubt))
            if target is not None:
                await self._publish(inode, target)
        except MovedMeanwhile:
            inode.state.attributes_changed = True
            self._queue.schedule_now(inode)

    async def _settle_doubts(self, inode: Inode) -> None:
        """Look whether an attempt that had no answer took effect; then its object is not somebody else's but ours."""
        while inode.state.in_doubt:
            key, metadata = inode.state.in_doubt[-1]
            try:
                found = await self._storage.head(key)
            except NotFound:
                inode.state.in_doubt.pop()
                continue
            inode.state.in_doubt.pop()
            version = Version(found.key, found.etag, found.size)
            if _is_ours(inode, found, metadata) and version != inode.version:
                if isinstance(inode, File):
                    inode.content.adopt(version)
                self._placement.place(inode, version)

    async def _publish(self, inode: Inode, target: str) -> None:
        if not has_to_go_up(inode):
            await commit_all_of(self._log, inode)
            if target not in (self._placement.target(inode), self._placement.detour(inode)):
                raise MovedMeanwhile(f"{target!r} is not the name of its inode any more")
        # Or else an upload sees to both before it completes, and spares the log what is in parts.
        changes = self._changes_to_come(inode)
        of_aliases = {alias: alias.state.changes for alias in inode.aliases}
        try:
            with self._publishing(inode, target) as publication:
                version, publication.has_attributes = await self._carry_out(inode, target)
        except (PreconditionFailed, NotFound, StaleFile) as error:
            if isinstance(inode, File):
                inode.content.note_looked(is_in_doubt=False)  # also where an earlier request had no answer
            if self._has_only_passed(inode, target):
                self._placement.forget(target)
                self._note_passed(inode, target)
                raise MovedMeanwhile(f"there is something else under {target!r} now") from error
            if await self._has_gone(target):
                raise MovedMeanwhile(f"what was left under {target!r} has gone") from error
            await self._conflicts.keep_both(inode, target, error)
        else:
            self._changes.published(inode, version, changes if publication.has_attributes else None)
            self._let_aliases_follow(inode, of_aliases)

    def _changes_to_come(self, inode: Inode) -> int:
        """Return how many changes the bucket will have after an attempt that begins now."""
        if isinstance(inode, Alias) and inode.of in self._queue:
            return inode.reflected_changes
        return inode.state.changes

    def _publishing(self, inode: Inode, target: str) -> AbstractContextManager[Publication]:
        """Tell the log of an attempt after which it is not needed; on a detour it is, and of a copy that is too old."""
        is_too_old = isinstance(inode, Alias) and inode.of in self._queue
        if is_too_old or self._placement.target(inode) != target:
            return nullcontext(Publication())
        return self._log.publishing(inode)

    async def _carry_out(self, inode: Inode, target: str) -> tuple[Version, bool]:
        """Return what is in the bucket now, and whether its metadata has the attributes of the time when this began."""
        metadata = {**metadata_of(inode), **self._log.mark(inode)}
        inode.state.attributes_changed = False
        inode.state.storing = (target, metadata)
        condition = self._placement.condition(target)
        written = await self._writer.write(inode, target, mode=condition, metadata=metadata)
        return written.version, without_mark(written.metadata) == without_mark(metadata)

    async def _has_gone(self, target: str) -> bool:
        """Return whether what belonged to nobody is not to be replaced any more: a deletion of ours had no answer."""
        leftover = self._placement.leftover(target)
        if leftover is None:
            return False
        try:
            await self._storage.head(target)
        except NotFound:
            self._placement.forget_leftover(leftover)
            return True
        return False

    def _has_only_passed(self, inode: Inode, target: str) -> bool:
        """Return whether a name is not the inode's any more, and never had an object of it, for all that is known.

        What is under it is of no more interest where the inode has no name at all, unless it may be a marker of ours.
        """
        is_its_own = target in (self._placement.target(inode), self._placement.detour(inode))
        is_of_interest = inode.linked or isinstance(inode, Directory)
        return is_of_interest and not is_its_own and (inode.version is None or inode.version.key != target)

    def _note_passed(self, inode: Inode, target: str) -> None:
        """Note that somebody has put something under such a name, which may be a request of ours that was repeated."""
        if isinstance(inode, Directory) and inode.state.storing is not None:
            inode.state.in_doubt.append(inode.state.storing)
        else:
            _log.warning(
                "%r was put there by somebody else; what was to be %r goes up again", target, inode.path_key
            )

    def _let_aliases_follow(self, inode: Inode, changes: Mapping[Alias, int]) -> None:
        """Make the other names' objects equal to the one that was just published."""
        for alias in inode.aliases:
            alias.reflected_changes = changes.get(alias, 0)
            if alias in self._queue:
                self._queue.schedule_now(alias)


def _is_ours(inode: Inode, found: ObjectInfo, metadata: Metadata) -> bool:
    """Return whether an object is what an attempt has written of an inode.

    Stores that keep no metadata of markers have nothing of those that could tell, and no bytes are lost with one.
    """
    is_bare_marker = isinstance(inode, Directory) and not (found.size or found.metadata)
    return is_bare_marker or found.metadata == metadata
