"""What the rest of a mount tells of its changes, and what it may ask: which of them the bucket does not have yet.

Whoever changes the tree says so here, without an await between the two. The log is told of it, and the inode is
pending until the bucket has all of it (`published`), or needs nothing of it any more (`released`, `lost`).

What goes up is never given up half-way: an inode that nobody needs any more while its attempt runs is released when
that has ended, so that no object is made of bytes that are being thrown away.
"""

from __future__ import annotations

from collections.abc import Collection

import trio

from fusefs import extended_attributes
from fusefs.change_log import ChangeLog
from fusefs.errors import StaleFile
from fusefs.inodes import Alias, Directory, File, Inode
from fusefs.placement import Placement
from fusefs.publish_queue import PublishQueue
from fusefs.sidecars import Sidecars
from fusefs.uploads import Uploads
from fusefs.versions import Version


class Changes:
    """All changes of one mount. Everything is synchronous."""

    def __init__(
        self,
        queue: PublishQueue,
        placement: Placement,
        uploads: Uploads,
        log: ChangeLog,
        sidecars: Sidecars,
    ) -> None:
        self._queue = queue
        self._placement = placement
        self._uploads = uploads
        self._log = log
        self._sidecars = sidecars
        #: Names that changed only because an object of their inode lies elsewhere, and how many changes that made.
        self._told_along: dict[Inode, int] = {}
        #: How often the bucket was made equal to an inode.
        self.published_count = 0

    # By the mount

    def changed(self, inode: Inode) -> None:
        """Note that content, attributes or name changed and the bucket must learn of it."""
        if not isinstance(inode, File) or not inode.writers:
            self._queue.note_activity()
        self._note_changed(inode)

    def moved(self, inode: Inode) -> None:
        """Note that the inode has another name, and with it all that is below."""
        self.changed(inode)
        if isinstance(inode, Directory):
            self._queue.moved(inode)
            self._log.moved(inode)
        self._queue.look_again_at(inode)

    def source_ended(self, directory: Directory) -> None:
        """Note that all below a directory is known, or nothing of it needed; who has waited for that has its turn."""
        self._placement.end_source(directory)
        self._queue.let_go_of_sources()
        self._queue.look_again()

    def touched(self, inode: Inode) -> None:
        """Note that only times changed: they go with the next publication, and no fsync waits for them.

        But for an inode with several names: whether their objects are one file is seen by their times.
        """
        if inode.subject.aliases:
            self.changed(inode)
            return
        inode.state.attributes_changed = True
        self._log.touched(inode)
        self._queue.schedule(inode)

    def written(self, file: File) -> None:
        """Note that content was written; parts that are full by now begin their way up."""
        self.changed(file)
        key = self._placement.target(file)
        if key is not None and not self._placement.may_expect(file, key):
            key = None  # it is somebody else's for now
        if self._uploads.advance(file, key) and key is not None:
            self._placement.expect(file, key)

    def object_changed(self, inode: Inode) -> None:
        """Note that somebody else has changed the inode's object: its next attempt, at once, finds what is to be done.

        Its other names wait for that, each of which would fail before.
        """
        self._log.changed(inode)
        self._queue.changed(inode)
        self._queue.ask_for(inode)

    def closed(self, file: File) -> None:
        """Note that a handle that could write is gone: if that was the last one, what is pending is due soon."""
        self._queue.note_activity()
        if file in self._queue:
            self._queue.schedule(file)

    def unlinked(self, inode: Inode) -> None:
        """Note that the inode has lost its name; its object goes unless open handles still read from it."""
        inode.state.changes += 1
        self._log.changed(inode)
        self._sidecars.leave_list(inode.subject)  # in the same batch of the log
        self._queue.look_again_at(inode)
        if isinstance(inode, Directory) and inode.source is not None:
            self.source_ended(inode)
        if self._placement.target(inode) is None:
            self.released(inode)
        else:
            self._queue.schedule_now(inode)

    def released(self, inode: Inode) -> None:
        """Note that nobody needs the inode any more: it has no name and no handle, or no use for its object."""
        if isinstance(inode, File):
            self._uploads.abandon(inode)
        if inode in self._queue.running:
            return  # it is released when that has ended
        self._sidecars.leave_list(inode)
        if inode.state.in_doubt:
            # There may be an object that we do not know of, and it must not be taken for theirs.
            for key, _ in inode.state.in_doubt:
                if self._placement.may_expect(inode, key):
                    self._placement.expect(inode, key)
            self._queue.schedule_now(inode)
            return
        self._sidecars.leave_xattrs(inode, but=None)
        self._placement.vacate(inode)
        self._placement.expect_no_more(inode)
        if isinstance(inode, File):
            if not inode.handles:
                inode.content.discard()
            elif inode.content.detached:
                inode.content.detach()
            # Or else somebody else has changed the object, and who still reads the file has to hear of it.
        if not isinstance(inode.state.failure, StaleFile):
            inode.state.failure = None
        self.settle(inode)
        self._queue.wake()

    def lost(self, inode: Inode) -> None:
        """Note that somebody else replaced or removed the object of an inode that had nothing to publish."""
        inode.share_xattrs()  # they may have moved it
        if inode.version is not None:
            inode.state.failure = StaleFile(f"{inode.version.key!r} was changed by somebody else")
            self._placement.forget(inode.version.key)
        self._log.changed(inode)
        self.settle(inode)

    def joined(self, entry: Inode, alias: Alias) -> None:
        """Note that an entry turned out to be a further name of another inode: an alias has taken its place."""
        if self._log.tells_of(entry):  # and a recovery would find it beside the alias
            self._log.changed(entry)
            self.changed(alias)
        self.settle(entry)

    def let_go_of_name(self, alias: Alias) -> None:
        """Note that an alias is none any more, and its object a file of its own: it is not to be removed for that."""
        if alias.version is not None:
            self._placement.forget(alias.version.key)
        alias.state.in_doubt.clear()  # whatever there is under its key
        self._placement.expect_no_more(alias)
        alias.is_in_log = False
        self.settle(alias)

    # What a listing of the bucket may say and the tree knows better

    def is_unpublished(self, inode: Inode) -> bool:
        """Return whether something of the inode is still on its way into the bucket."""
        self._queue.note_moves()
        return inode in self._queue

    def needs(self, inode: Inode) -> bool:
        """Return whether there is more to know of the inode than its object says, or of its object than its name."""
        state = inode.state
        is_settled = not (state.is_behind or state.in_doubt or state.failure is not None)
        return (
            not is_settled
            or self.is_unpublished(inode)
            or inode in self._queue.running
            or self._log.tells_of(inode)
        )

    # By those who publish

    def published(self, inode: Inode, version: Version, changes: int | None) -> None:
        """Note what the bucket has now, all of the first `changes` changes; None: but for their attributes."""
        self._placement.place(inode, version)
        self.published_count += 1
        inode.state.published_at = trio.current_time()
        inode.state.failure = None
        inode.state.in_doubt.clear()
        if changes is None:
            inode.state.attributes_changed = True
        elif not self._placement.is_elsewhere(inode):  # on a detour, the work is still to be done
            inode.state.published_changes = changes
        if self._placement.is_elsewhere(inode):
            # The log may know the new name by now, and not that the object is under another.
            self._note_changed(inode)
            self._told_along |= {each: each.state.changes for each in (inode.subject, *inode.subject.aliases)}
        if inode.state.is_behind or self._placement.is_elsewhere(inode):
            self._queue.schedule_anew(inode)
        else:
            self.settle(inode)
            self._sidecars.leave_xattrs(inode, but=extended_attributes.own_key(inode.attributes.xattrs))

    def settle(self, inode: Inode) -> None:
        """Note that the inode needs no publication any more."""
        self._queue.settle(inode)
        self._log.settled(inode)
        self._told_along.pop(inode, None)
        inode.state.published_changes = inode.state.changes

    def told_along_with(self, inodes: Collection[Inode]) -> list[Inode]:
        """Return which names of some inodes are pending because an object of those has lain elsewhere meanwhile."""
        if not self._told_along:
            return []
        subjects = {inode.subject for inode in inodes}
        return [
            inode
            for inode, changes in self._told_along.items()
            if inode.subject in subjects
            and inode.state.published_changes < changes
            and inode.state.failure is None
        ]

    def tell_again(self, inode: Inode) -> None:
        """Let the log have all of an inode again, under all its names, unless an attempt is under way.

        It counts as a change, so that a later attempt makes that unneeded, too, where a name had been published.
        """
        names = (inode.subject, *inode.subject.aliases)
        if not self._queue.running.keys().isdisjoint(names):
            return
        self._log.tell_again(inode)
        for each in names:
            each.state.changes += 1
            self._queue.schedule_retry(each)

    def _note_changed(self, inode: Inode) -> None:
        for each in (inode.subject, *inode.subject.aliases):
            self._log.changed(each)
            self._queue.changed(each)
