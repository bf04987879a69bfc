"""What is done where somebody else has changed the object that an attempt was to replace.

Theirs stays in its place, and no bytes of ours are lost: they are kept under `.fusefs/conflicts/`, and the file has
that object from then on, without a name. What has no bytes of its own needs less: a directory's attributes are written
over theirs, and of a file with several names the others go on.
"""

from __future__ import annotations

import logging

from backends.base import ObjectStorage
from backends.errors import NotFound
from fusefs.change_log import ChangeLog, commit_all_of
from fusefs.changes import Changes
from fusefs.errors import StaleFile
from fusefs.inodes import Alias, Directory, File, Inode
from fusefs.object_writer import ObjectWriter
from fusefs.placement import Placement
from fusefs.upload_rounds import MovedMeanwhile
from fusefs.versions import Version

_log = logging.getLogger(__name__)


class Conflicts:
    """Settles one conflict after the other; each method raises what the store raises."""

    def __init__(
        self,
        storage: ObjectStorage,
        placement: Placement,
        log: ChangeLog,
        changes: Changes,
        writer: ObjectWriter,
    ) -> None:
        self._storage = storage
        self._placement = placement
        self._log = log
        self._changes = changes
        self._writer = writer

    async def keep_both(self, inode: Inode, target: str, error: Exception) -> None:
        """Leave what is under `target` in its place, and keep what is ours beside it; `error` says that it is there.

        Raises `MovedMeanwhile` where that is not to be done, or not any more.
        """
        name = self._placement.target(inode)
        if name is None:
            self._placement.forget(target)
        elif isinstance(inode, Alias):
            await self._break_link(inode, target, error)
        elif isinstance(inode, Directory):
            await self._write_over(inode, target)
        elif await self._goes_up_anew(inode, target):
            raise MovedMeanwhile(f"what was to be copied to {target!r} is somebody else's") from error
        elif self._placement.target(inode) != name:
            raise MovedMeanwhile(f"what was to be {target!r} has another name") from error
        elif inode.aliases and self._go_on_under_another_name(inode, target):
            pass  # as a change of the inode, which has its turn
        else:
            await self._keep_beside(inode, target, error)

    async def _goes_up_anew(self, inode: Inode, target: str) -> bool:
        """Let a file whose object was changed before it could be copied to `target` go up, if all its bytes are here.

        Returns whether that is so: then nothing has been changed under `target`.
        """
        version = inode.version
        if not isinstance(inode, File) or version is None or version.key == target:
            return False
        if inode.content.changed or await self._is_there(version):
            return False
        if inode.version != version or inode.content.changed or not inode.content.detached:
            return False
        _log.warning("%r was changed by somebody else; %r goes up again", version.key, target)
        self._placement.forget(version.key)
        inode.content.make_own()
        self._changes.changed(inode)
        return True

    async def _keep_beside(self, inode: Inode, target: str, error: Exception) -> None:
        # From now on nothing is written any more that would not be kept.
        inode.state.failure = StaleFile(f"{target!r} was changed by somebody else")
        kept = await self._writer.keep_beside(inode, target)
        where = f"ours is kept as {kept.key!r}" if kept is not None else "ours had no bytes of its own"
        _log.error("%r was changed by somebody else (%s); theirs stays, %s", target, error, where)
        self._placement.forget(target)
        self._placement.vacate(inode)  # at its old name, if it was on its way to a new one
        _leave_name(inode)
        inode.version = kept
        inode.state.failure = StaleFile(f"{target!r} was changed by somebody else; {where}")
        self._log.changed(inode)
        self._changes.settle(inode)

    async def _write_over(self, directory: Directory, target: str) -> None:
        """Let a marker have the directory's attributes, and the bytes that somebody else may have put into it."""
        await commit_all_of(self._log, directory)
        changes = directory.state.changes
        if directory.hides_content and self._placement.is_elsewhere(directory):
            kept = await self._writer.keep_beside(directory, target)
            if kept is not None:
                _log.error(
                    "%r has other bytes than the directory had: those are kept as %r", target, kept.key
                )
        version = await self._writer.write_marker_over(directory, target)
        self._placement.forget(target)
        self._changes.published(directory, version, changes)

    async def _break_link(self, alias: Alias, target: str, error: Exception) -> None:
        """Let the object of a further name be theirs, and a file of its own. Raises `error` if it was the first."""
        first, name = alias.of.version, self._placement.target(alias)
        if first is not None and not await self._is_there(first):
            self._changes.object_changed(alias.of)
            raise error
        if self._placement.target(alias) != name:
            raise MovedMeanwhile(f"what was to be {target!r} has another name") from error
        _log.warning("%r was changed by somebody else (%s), and is a file of its own", target, error)
        self._placement.forget(target)
        self._placement.vacate(alias)  # at its old name, if it was on its way to a new one
        self._take_out(alias)
        self._log.changed(alias)

    async def _is_there(self, version: Version) -> bool:
        try:
            return (await self._storage.head(version.key)).etag == version.etag
        except NotFound:
            return False

    def _go_on_under_another_name(self, inode: Inode, target: str) -> bool:
        """Leave to somebody else the name under which they changed the object, if there is a copy under another.

        Or an older one, if all bytes are here, which replace that then; or none yet, if there is what to make one of.
        Otherwise the other names keep what the bucket has there.
        """
        source, content = inode.version, inode.content if isinstance(inode, File) else None
        with_object = [alias for alias in inode.aliases if alias.version is not None]
        heir = next((alias for alias in with_object if alias.copied == source is not None), None)
        is_equal = heir is not None
        if heir is None and content is not None and content.detached:
            heir = next(iter(with_object), None)
        is_elsewhere = source is not None and source.key != target
        if heir is None and (is_elsewhere or content is None or content.detached):
            heir = next((alias for alias in inode.aliases if alias.version is None), None)
        if heir is None or inode.parent is None:
            for alias in list(inode.aliases):
                self._changes.let_go_of_name(alias)
                self._take_out(alias)
            return False
        _log.warning("%r was changed by somebody else; ours goes on as %r", target, heir.path_key)
        self._placement.forget(target)
        _leave_name(inode)
        assert inode.links is not None
        inode.links.aliases.remove(heir)
        inode.links.aliases.append(heir)  # the next to give up its name
        version = heir.version
        inode.lose_name()
        if version is not None:
            self._placement.vacate(inode)
            self._placement.place(inode, version)
        if content is not None and is_equal and version is not None:
            content.rebase(version)
        elif content is not None and inode.version is version:
            content.make_own()
        self._changes.settle(heir)
        self._log.changed(heir)
        self._changes.changed(inode)
        return True

    def _take_out(self, alias: Alias) -> None:
        """Let a name have what the bucket has there."""
        alias.lose_name()
        _leave_name(alias)
        self._changes.settle(alias)


def _leave_name(entry: Inode) -> None:
    """Take an entry out of its directory, so that theirs is found there."""
    if entry.parent is not None:
        entry.parent.distrust()
        entry.parent.detach(entry.name)
