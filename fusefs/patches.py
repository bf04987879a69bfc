"""A large file that changed in places goes up as a patch: what changed is sent, and the store copies the rest.

`fusefs.upload_plan` says which is which. Writers go on, so there is a new plan in each round (`fusefs.upload_rounds`):
those of its parts go up that were not in the last one, or were written again.
"""

from __future__ import annotations

from itertools import count

import trio

from backends.base import Metadata, MultipartUpload, ObjectStorage, Part, PutMode
from backends.byte_budget import ByteBudget
from fusefs import fetching
from fusefs.change_log import ChangeLog
from fusefs.content import Content
from fusefs.inodes import File
from fusefs.object_copy import begun_upload
from fusefs.upload_plan import CopyRange, Multipart, Plan, UploadRange, plan
from fusefs.upload_rounds import FREE_ROUNDS, FileWasCut, check_name
from fusefs.versions import Version


class Patches:
    """Every patch on this mount."""

    def __init__(
        self,
        storage: ObjectStorage,
        log: ChangeLog,
        in_flight: ByteBudget,
        *,
        part_size: int,
        copies_at_once: int,
    ) -> None:
        self._storage = storage
        self._log = log
        self._in_flight = in_flight
        self._part_size = part_size
        #: Copies of parts under way, which take no memory.
        self._copies = trio.CapacityLimiter(copies_at_once)

    def plan(self, content: Content) -> Multipart | None:
        """Return what of the file would be sent now and what copied; None if nothing would be copied."""
        planned = self._plan(content)
        return planned if isinstance(planned, Multipart) and _copies(planned) else None

    async def publish(
        self, file: File, target: str, planned: Multipart, mode: PutMode, metadata: Metadata
    ) -> Version:
        """Make an object under `target` of what is planned; the content has the new version as its base then.

        Raises what the store raises, `StaleFile` if clean bytes cannot be read from the base any more, `FileWasCut` if
        what went up does not fit the file as it is now, and `MovedMeanwhile` if `target` is a name that it has lost.
        """
        content = file.content
        base = content.base
        assert base is not None, "only a base can be copied from"
        content.give_back()
        try:
            async with begun_upload(self._storage, target, metadata) as upload:
                patch = _Patch(content, base, upload, self._in_flight, self._copies)
                for upload_round in count(1):
                    if upload_round > FREE_ROUNDS:
                        content.hold_writers()
                    await patch.send(planned)
                    await self._log.commit()
                    replanned = self._plan(content)
                    if not content.unsent and replanned == planned and not self._log.is_behind(file):
                        check_name(file, target)
                        break
                    if not isinstance(replanned, Multipart) or not patch.fits(replanned):
                        raise FileWasCut
                    planned = replanned
                size = content.size
                with content.being_replaced():
                    version = Version(target, await upload.complete(patch.parts, mode=mode), size)
                    content.published(version)
                    return version
        finally:
            content.release_writers()

    def _plan(self, content: Content) -> Plan:
        base_size = content.base_limit if content.base is not None else None
        return plan(
            content.size,
            content.dirty,
            base_size,
            part_size=self._part_size,
            limits=self._storage.limits,
            can_copy=self._storage.capabilities.copy_part,
        )


class _Patch:
    """Parts of one upload, some sent from the stage and some copied from the base, by number."""

    def __init__(
        self,
        content: Content,
        base: Version,
        upload: MultipartUpload,
        in_flight: ByteBudget,
        copies: trio.CapacityLimiter,
    ) -> None:
        self._content = content
        self._base = base
        self._upload = upload
        self._in_flight = in_flight
        self._copies = copies
        self._sent: dict[int, UploadRange | CopyRange] = {}
        self._stored: dict[int, Part] = {}

    @property
    def parts(self) -> list[Part]:
        """What the store has, in order of number."""
        return [part for _, part in sorted(self._stored.items())]

    def fits(self, planned: Multipart) -> bool:
        """Return whether each part that was sent has a number in the new plan: some stores refuse to leave one out."""
        return len(self._sent) <= len(planned.parts)

    async def send(self, planned: Multipart) -> None:
        """Send the parts that are new in the plan, and those that were written again since they were sent."""
        failures: list[Exception] = []
        async with trio.open_nursery() as nursery:
            for part in planned.parts:
                if self._sent.get(part.number) != part or (
                    isinstance(part, UploadRange) and self._content.unsent.intersect(part.start, part.end)
                ):
                    self._sent[part.number] = part
                    # One waits at a time: those of other files need not queue behind all of these.
                    await nursery.start(self._send_one, part, failures)
        if failures:
            try:
                raise failures[0]
            finally:
                failures.clear()  # or else they and their frames, with bytes of files, are a cycle

    async def _send_one(
        self,
        part: UploadRange | CopyRange,
        failures: list[Exception],
        *,
        task_status: trio.TaskStatus[None],
    ) -> None:
        is_copied = isinstance(part, CopyRange)
        try:
            async with self._copies if is_copied else self._in_flight.hold(part.end - part.start):
                task_status.started()
                if not failures:  # or else each would wait for a store that is away as long as the first did
                    self._stored[part.number] = await self._store(part)
        except Exception as error:  # of any kind: the nursery would make a group of it
            failures.append(error)

    async def _store(self, part: UploadRange | CopyRange) -> Part:
        if isinstance(part, CopyRange):
            return await self._upload.copy_part(
                part.number, self._base.key, part.start, part.end - part.start, if_match=self._base.etag
            )
        return await self._upload.upload_part(
            part.number, await fetching.obtain(self._content, part.start, part.end)
        )


def _copies(planned: Multipart) -> bool:
    return any(isinstance(part, CopyRange) for part in planned.parts)
