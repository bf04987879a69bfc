"""Makes the bucket equal to the tree: decides when an inode's object is written, moved or deleted, and does it.

Publishing is by state, not by operation. An inode that changed is *pending*; when it is due, its object is compared
with what the tree says now, and the least that makes them equal is done: a file that was written, renamed and
removed before its turn costs nothing, temp + rename is one PUT under the final name.

What may not go wrong is the order in which keys change hands. Every publication is conditional on what we know to
be under its target (`Placement.condition`), and waits while another inode's object still lies there; a circle of
such waits is broken by moving one object out of the way. A key is written before the one it replaces is deleted, so
at no moment is a file under neither name.

States of an inode: clean -> pending (`changed`) -> due (its time has come) -> running -> clean, or pending again
when it changed meanwhile or the attempt failed. `_parked` holds due inodes that wait for a key.

Nothing that was written is dropped on a failure: the inode stays pending, the failure is kept in its state for the
next fsync or close, and it is tried again.
"""

from __future__ import annotations

import heapq
import logging
import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import trio

from backends.base import CREATE_ONLY, NO_METADATA, ObjectStorage, PutMode
from backends.errors import NotFound, PreconditionFailed, StorageError
from fusefs.attributes import to_metadata
from fusefs.content import Version
from fusefs.errors import FilesystemError, StaleFile
from fusefs.inodes import File, Inode, Symlink
from fusefs.keys import RESERVED_PREFIX
from fusefs.placement import Placement
from fusefs.uploads import Uploads

_log = logging.getLogger(__name__)

SETTLE_SECONDS: Final = 0.05
"""How long a change of names waits before it is published: a temporary name is gone by then, and costs nothing."""

RETRY_SECONDS: Final = 30.0
"""Pause after an attempt that failed for good (the store's own outages are retried below, in `backends.retrying`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishOptions:
    """When and how much is published at once."""

    #: A closed file that was published less than this ago waits for the rest of it.
    delay_seconds: float = 1.0
    #: A file that stays open is published at least this often.
    interval_seconds: float = 30.0
    #: Publications under way at once.
    workers: int = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishStatistics:
    """What is still to be published, at one moment, and what was done since the mount."""

    pending_inodes: int
    pending_bytes: int
    leftovers: int
    published: int
    failed: int
    conflicts: int


class Publisher:
    """The only writer of the bucket. `run` does the work; everything else says what there is to do, or waits for it."""

    def __init__(
        self,
        storage: ObjectStorage,
        placement: Placement,
        uploads: Uploads,
        options: PublishOptions,
        *,
        mount_id: str,
    ) -> None:
        self._storage = storage
        self._placement = placement
        self._uploads = uploads
        self._options = options
        self._mount_id = mount_id

        self._pending: dict[Inode, None] = {}
        self._due_at: dict[Inode, float] = {}
        self._timetable: list[tuple[float, int, Inode]] = []
        self._entries = 0
        self._due: deque[Inode] = deque()
        self._parked: list[Inode] = []
        self._running: dict[Inode, set[str]] = {}
        self._sweeping: set[str] = set()
        self._undeletable: dict[Version, StorageError] = {}
        self._wake = trio.Event()
        self._progress = trio.lowlevel.ParkingLot()
        self._published = 0
        self._failed = 0
        self._conflicts = 0

    # What there is to do

    def changed(self, inode: Inode) -> None:
        """Note that content, attributes or name changed and the bucket must learn of it."""
        inode.state.changes += 1
        self._schedule(inode, self._due_time(inode))

    def touched(self, inode: Inode) -> None:
        """Note that only times changed: they go with the next publication, and no fsync waits for them."""
        inode.state.attributes_changed = True
        self._schedule(inode, self._due_time(inode))

    def written(self, file: File) -> None:
        """Note that content was written; parts that are full by now begin their way up."""
        self.changed(file)
        self._uploads.advance(file, self._placement.target(file))

    def closed(self, file: File) -> None:
        """Note that the last handle that could write is gone: what is pending is due soon."""
        if file in self._pending:
            self._schedule(file, self._due_time(file))

    def unlinked(self, inode: Inode) -> None:
        """Note that the inode has lost its name; its object goes unless open handles still read from it."""
        inode.state.changes += 1
        if self._placement.target(inode) is None:
            self.released(inode)
        else:
            self._schedule(inode, trio.current_time())

    def released(self, inode: Inode) -> None:
        """Note that nobody needs the inode any more: it has no name and no handle, or no use for its object."""
        self._placement.vacate(inode)
        if isinstance(inode, File):
            self._uploads.abandon(inode)
            inode.content.detach()
        self._settle(inode)
        self._wake.set()

    # Waiting for it

    async def publish(self, inode: Inode) -> None:
        """Publish the inode, with all that changed until now, and the directories above it.

        Raises the failure of an attempt that began after this call, or of one before it that was not made good.
        """
        if inode.parent is not None:
            await self.publish(inode.parent)
        goal = inode.state.changes
        attempts = inode.state.attempts + (inode in self._running)
        while inode.state.published_changes < goal and inode in self._pending:
            if inode.state.failure is not None and inode.state.attempts > attempts:
                raise inode.state.failure
            self._schedule(inode, trio.current_time())
            await inode.state.attempted.park()
        if isinstance(inode.state.failure, StaleFile):
            raise inode.state.failure

    async def publish_all(self, *, open_files: bool = True) -> None:
        """Publish everything that is pending now, and delete what is left over. Raises one of the failures, if any.

        Without `open_files`, files with a writer are left alone: that is what an fsync of a directory asks for.
        """
        goals = {
            inode: (inode.state.changes, inode.state.attempts + (inode in self._running))
            for inode in self._pending
            if open_files or not (isinstance(inode, File) and inode.writers)
        }
        for inode in goals:
            self._schedule(inode, trio.current_time())
        while any(self._is_unfinished(inode, *goal) for inode, goal in goals.items()):
            await self._progress.park()
        while self._sweeping or self._deletable():
            self._wake.set()
            await self._progress.park()
        for inode in goals:
            if inode in self._pending and inode.state.failure is not None:
                raise inode.state.failure
        for error in self._undeletable.values():
            raise error

    def statistics(self) -> PublishStatistics:
        return PublishStatistics(
            pending_inodes=len(self._pending),
            pending_bytes=sum(
                inode.content.unsent.total for inode in self._pending if isinstance(inode, File)
            ),
            leftovers=len(self._deletable()) + len(self._undeletable),
            published=self._published,
            failed=self._failed,
            conflicts=self._conflicts,
        )

    def pending_inodes(self) -> list[Inode]:
        """Return what the bucket does not have yet."""
        return list(self._pending)

    # When

    def _due_time(self, inode: Inode) -> float:
        now = trio.current_time()
        if not isinstance(inode, File) or self._is_elsewhere(inode):
            return now + SETTLE_SECONDS
        if inode.writers:
            return now + self._options.interval_seconds
        return max(now + SETTLE_SECONDS, inode.state.published_at + self._options.delay_seconds)

    def _is_elsewhere(self, inode: Inode) -> bool:
        return inode.version is not None and inode.version.key != self._placement.target(inode)

    def _schedule(self, inode: Inode, due: float) -> None:
        """Put the inode into the timetable, unless it is there for an earlier time."""
        self._pending.setdefault(inode)
        if due < self._due_at.get(inode, math.inf):
            self._due_at[inode] = due
            self._entries += 1
            heapq.heappush(self._timetable, (due, self._entries, inode))
            self._wake.set()

    def _collect_due(self) -> float:
        """Move the inodes whose time has come to the queue; return when the next one will be."""
        now = trio.current_time()
        while self._timetable:
            due, _, inode = self._timetable[0]
            if due > now and self._due_at.get(inode) == due:
                return due
            heapq.heappop(self._timetable)
            if self._due_at.get(inode) == due:
                del self._due_at[inode]
                self._due.append(inode)
        return math.inf

    # The loop

    async def run(self) -> None:
        """Publish what is due, for ever; cancel it when `publish_all` has returned and nothing will change again."""
        async with trio.open_nursery() as nursery:
            while True:
                self._wake = trio.Event()
                next_due = self._collect_due()
                self._start_publications(nursery)
                self._start_sweep(nursery)
                with trio.move_on_at(next_due):
                    await self._wake.wait()

    def _start_publications(self, nursery: trio.Nursery) -> None:
        while self._due and len(self._running) < self._options.workers:
            inode = self._due.popleft()
            target = self._placement.target(inode)
            if inode not in self._pending or (target is None and inode not in self._running):
                self._settle(inode)
            elif inode in self._running or target is None or self._is_busy(self._keys(inode, target)):
                self._parked.append(inode)
            else:
                self._begin_or_wait(nursery, inode, target)
        if self._parked and not self._running and not self._due and not self._sweeping:
            self._break_circle(nursery)

    def _begin_or_wait(self, nursery: trio.Nursery, inode: Inode, target: str) -> None:
        obstacle = self._placement.obstacle(inode, target)
        if obstacle is None:
            self._begin(nursery, inode, target)
        elif obstacle.state.failure is not None:
            self._note_failure(inode, target, obstacle.state.failure)
            self._attempt_ended(inode)
        else:
            self._schedule(obstacle, trio.current_time())
            self._parked.append(inode)

    def _break_circle(self, nursery: trio.Nursery) -> None:
        """Every due inode waits for the key of another one: take one of these out of the way."""
        for inode in self._parked:
            target = self._placement.target(inode)
            obstacle = self._placement.obstacle(inode, target) if target is not None else None
            if obstacle is not None and obstacle in self._parked:
                self._parked.remove(obstacle)
                self._begin(nursery, obstacle, self._placement.detour(obstacle))
                return
        self._due.extend(self._parked)
        self._parked.clear()

    def _begin(self, nursery: trio.Nursery, inode: Inode, target: str) -> None:
        self._running[inode] = self._keys(inode, target)
        nursery.start_soon(self._attempt, inode, target)

    def _keys(self, inode: Inode, target: str) -> set[str]:
        return {target} if inode.version is None else {target, inode.version.key}

    def _is_busy(self, keys: set[str]) -> bool:
        return not self._sweeping.isdisjoint(keys) or any(
            not busy.isdisjoint(keys) for busy in self._running.values()
        )

    def _finished(self, inode: Inode) -> None:
        """Let everybody look again who waits for the inode, or for a key that it had."""
        del self._running[inode]
        self._attempt_ended(inode)
        self._look_again()

    def _attempt_ended(self, inode: Inode) -> None:
        inode.state.attempts += 1
        inode.state.attempted.unpark_all()
        self._progress.unpark_all()

    def _look_again(self) -> None:
        self._due.extendleft(reversed(self._parked))
        self._parked.clear()
        self._progress.unpark_all()
        self._wake.set()

    def _settle(self, inode: Inode) -> None:
        """Note that the inode needs no publication any more."""
        self._pending.pop(inode, None)
        self._due_at.pop(inode, None)
        inode.state.published_changes = inode.state.changes
        inode.state.attempted.unpark_all()
        self._progress.unpark_all()

    def _is_unfinished(self, inode: Inode, changes: int, attempts: int) -> bool:
        state = inode.state
        failed = state.failure is not None and state.attempts > attempts
        tried = state.published_changes >= changes and state.attempts > attempts
        return inode in self._pending and not failed and not tried

    # One publication

    async def _attempt(self, inode: Inode, target: str) -> None:
        changes = inode.state.changes
        try:
            version = await self._carry_out(inode, target, self._placement.condition(target))
        except (PreconditionFailed, NotFound) as error:
            await self._keep_both(inode, target, error)
        except (StorageError, FilesystemError, OSError) as error:
            self._note_failure(inode, target, error)
        except Exception as error:  # a defect of ours: it must not end the mount for everybody
            _log.exception("a defect stopped the publication of %r", target)
            self._note_failure(inode, target, error)
        else:
            self._note_success(inode, version, changes)
        finally:
            self._finished(inode)

    async def _carry_out(self, inode: Inode, target: str, mode: PutMode) -> Version:
        """Make the object under `target` equal to the inode, at the least cost."""
        metadata = to_metadata(inode.attributes)
        inode.state.attributes_changed = False
        match inode:
            case File() if inode.linked and (inode.content.changed or inode.version is None):
                return await self._uploads.publish(inode, target, mode=mode, metadata=metadata)
            case File(version=Version() as source):
                version = await self._uploads.copy(source, target, mode=mode, metadata=metadata)
                inode.content.rebase(version)
                return version
            case Symlink():
                body = inode.target
            case _:
                body = b""
        etag = await self._storage.put(target, body, metadata=metadata, mode=mode)
        return Version(target, etag, len(body))

    def _note_success(self, inode: Inode, version: Version, changes: int) -> None:
        self._placement.place(inode, version)
        self._published += 1
        inode.state.published_at = trio.current_time()
        inode.state.failure = None
        if not self._is_elsewhere(inode):  # on a detour, the work is still to be done
            inode.state.published_changes = changes
        if self._placement.target(inode) is None:
            self.released(inode)
        elif self._is_pending(inode):
            self._schedule(inode, self._due_time(inode))
        else:
            self._settle(inode)

    def _is_pending(self, inode: Inode) -> bool:
        state = inode.state
        return (
            state.changes != state.published_changes or state.attributes_changed or self._is_elsewhere(inode)
        )

    def _note_failure(self, inode: Inode, target: str, error: Exception) -> None:
        self._failed += 1
        inode.state.failure = error
        inode.state.attributes_changed = True
        if isinstance(error, StaleFile):
            _log.error("%r: %s", target, error)
            self._settle(inode)
            return
        _log.error("cannot publish %r, trying again in %.0f s: %s", target, RETRY_SECONDS, error)
        self._schedule(inode, trio.current_time() + RETRY_SECONDS)

    # Somebody else was there

    async def _keep_both(self, inode: Inode, target: str, error: Exception) -> None:
        """Somebody else changed what we were to replace: leave theirs in its place, and keep ours beside it."""
        self._conflicts += 1
        kept = f"{RESERVED_PREFIX}conflicts/{target}.{self._mount_id}-{inode.number}-{self._conflicts}"
        try:
            version = await self._keep(inode, kept)
        except (StorageError, FilesystemError, OSError) as failure:
            self._note_failure(inode, target, failure)
            return
        where = f"ours is kept as {kept!r}" if version is not None else "ours had no bytes of its own"
        _log.error("%r was changed by somebody else (%s); theirs stays, %s", target, error, where)
        self._placement.forget(target)
        if inode.parent is not None:
            inode.parent.listed_at = None  # so that theirs is found
            inode.parent.detach(inode.name)
        if version is not None:
            inode.version = version
        inode.state.failure = StaleFile(f"{target!r} was changed by somebody else; {where}")
        self._settle(inode)

    async def _keep(self, inode: Inode, key: str) -> Version | None:
        if isinstance(inode, File) and inode.content.changed:
            return await self._uploads.keep(inode, key, metadata=to_metadata(inode.attributes))
        if isinstance(inode, Symlink):
            etag = await self._storage.put(key, inode.target, metadata=NO_METADATA, mode=CREATE_ONLY)
            return Version(key, etag, len(inode.target))
        return None

    # What is left over

    def _deletable(self) -> list[Version]:
        return [version for version in self._placement.deletable() if version not in self._undeletable]

    def _start_sweep(self, nursery: trio.Nursery) -> None:
        if self._sweeping:
            return
        busy = set().union(*self._running.values())
        batch = [version for version in self._deletable() if version.key not in busy]
        if batch:
            self._sweeping = {version.key for version in batch}
            nursery.start_soon(self._sweep, batch, nursery)

    async def _sweep(self, batch: Iterable[Version], nursery: trio.Nursery) -> None:
        """Delete objects that belong to nobody any more, unless somebody else has changed them."""
        limiter = trio.CapacityLimiter(self._options.workers)
        try:
            async with trio.open_nursery() as deletions:
                for version in batch:
                    deletions.start_soon(self._delete, version, limiter, nursery)
        finally:
            self._sweeping = set()
            self._look_again()

    async def _delete(self, version: Version, limiter: trio.CapacityLimiter, nursery: trio.Nursery) -> None:
        try:
            async with limiter:
                await self._storage.delete(version.key, if_match=version.etag)
        except (PreconditionFailed, NotFound):
            _log.warning("%r was changed by somebody else and is not deleted", version.key)
        except StorageError as error:
            _log.error("cannot delete %r, trying again in %.0f s: %s", version.key, RETRY_SECONDS, error)
            self._undeletable[version] = error
            nursery.start_soon(self._try_again, version)
            return
        self._placement.forget_leftover(version)

    async def _try_again(self, version: Version) -> None:
        await trio.sleep(RETRY_SECONDS)
        del self._undeletable[version]
        self._wake.set()
