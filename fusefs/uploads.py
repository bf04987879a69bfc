"""How the bytes of one file go up: as a stream, or as a patch of the version that is there.

A file that is new, small or mostly rewritten is a stream (`backends.multipart`): one PUT below a part, parts of
growing size above. A stream may begin while the file is still being written: whenever a part is full and the writer
has moved on, it goes up in the background (`advance`). A large file that changed in places is a patch: its dirty
ranges are uploaded, and the store copies the rest from the base (`fusefs.upload_plan`).

Either way the object must be one whole version, and writers do not stop for an upload: it goes in rounds
(`fusefs.upload_rounds`).

Bytes leave the stage when the budget of what is under way has room for them (`backends.byte_budget`). Who holds some of
it waits for the store alone: a commit of the log may wait for the parts of any stream, and these for room.

The log refers to parts of a stream instead of carrying their bytes. Before such a part is replaced, or the stream is
given up, the log gets the bytes; where it cannot take them the parts stay where they are.
"""

from __future__ import annotations

import errno
import logging
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractAsyncContextManager, ExitStack, contextmanager
from itertools import count
from typing import Final, TypeAlias

import trio

from backends.base import CREATE_ONLY, MIB, Metadata, MultipartUpload, ObjectStorage, Part, PutMode
from backends.byte_budget import ByteBudget
from backends.errors import InvalidPart, StorageError, UploadNotFound
from backends.multipart import (
    BufferedMultipartWriter,
    OnStored,
    open_writer,
)
from backends.multipart import SentPart as WrittenPart
from fusefs.change_log import ChangeLog
from fusefs.content import Content, Spawn, Version
from fusefs.errors import DamagedCache, StaleFile
from fusefs.inodes import File
from fusefs.keys import RESERVED_PREFIX
from fusefs.link_lists import metadata_of
from fusefs.object_copy import begun_upload
from fusefs.open_upload import Flush, OpenUpload, SentPart
from fusefs.upload_plan import CopyRange, Multipart, Plan, UploadRange, plan
from fusefs.upload_rounds import FREE_ROUNDS, FileWasCut, check_name

_log = logging.getLogger(__name__)

RESTARTS: Final = 3
"""How often a publication begins a new upload where the one that it has begun is gone, or was given wrong bytes."""

LAG: Final = 1 * MIB
"""How far behind the end of what was written a stream stays: the kernel may send its last pages again, fuller."""

STAGED_AT_ONCE: Final = 64 * MIB
"""Bytes of a file that are asked for together when all of it has to be staged: several GETs, whatever its size."""

WriterFactory: TypeAlias = Callable[
    [str, Metadata, OnStored], AbstractAsyncContextManager[BufferedMultipartWriter]
]


class _Stream:
    """One file on its way up from its first byte to its last; `run` is its task, from the first part to the end."""

    def __init__(self, file: File, key: str, metadata: Metadata, log: ChangeLog) -> None:
        self.key = key
        self.metadata = metadata
        self._file = file
        self._content = file.content
        self._log = log
        self._fed = 0
        #: When a part of it was last begun, or stored.
        self.moved_at = -math.inf
        self._changed = trio.Event()
        self._mode: PutMode | None = None
        self._done = trio.Event()
        self._version: Version | None = None
        self._failure: Exception | None = None
        self._cancel_scope = trio.CancelScope()

    @property
    def usable(self) -> bool:
        """Whether parts have gone up that can still become the file's object: none failed, nor was the file cut."""
        return not self._done.is_set() and 0 < self._fed <= self._content.size

    def advance(self) -> None:
        """Let the task look for parts that are full."""
        self._changed.set()

    async def run(self, open_writer: WriterFactory) -> None:
        """Send parts as they fill, and when `finish` says so the rest; keep the outcome for it."""
        try:
            async with open_writer(self.key, self.metadata, self._note_stored) as writer:
                try:
                    with self._cancel_scope:
                        mode = await self._send_until_told(writer)
                        await self._send_until_whole(writer)
                    # Too late to give up from here on: after a cancelled call nobody would know what is in the bucket.
                    if not self._cancel_scope.cancel_called:
                        self._version = await self._complete(writer, mode)
                finally:
                    self._end_flush()
                    if self._version is None:
                        await self._give_bytes_to_log(writer)
        except Exception as error:  # of any kind: nothing may end the nursery of the whole mount
            self._failure = error
        finally:
            self._content.upload = None
            self._content.release_writers()
            if self._version is None:
                self._content.give_back()
            self._done.set()

    async def finish(self, mode: PutMode) -> Version:
        """Send the rest and return the version that the file has become. Raises what stopped it."""
        self._mode = mode
        self._changed.set()
        await self._done.wait()
        if self._version is None:
            raise self._failure or StorageError(f"the upload of {self.key!r} was given up")
        return self._version

    async def _send_until_told(self, writer: BufferedMultipartWriter) -> PutMode:
        """Send parts as they fill, until `finish` is called; who has asked for a flush then waits for the rest."""
        while self._mode is None:
            self._changed = trio.Event()
            flush = self._content.flush = Flush(self._changed, writer.next_part_size)
            await self._feed_full_parts(writer, LAG)
            await self._changed.wait()
            if flush.asked and self._mode is None:
                await self._feed_full_parts(writer, 0)
                await writer.flush()
                flush.done.set()
        return self._mode

    def _end_flush(self) -> None:
        """Let nobody wait any more for parts that are under way, or will not come."""
        last, self._content.flush = self._content.flush, None
        if last is not None:
            last.done.set()

    async def give_up(self) -> None:
        """Abort the upload and return when nothing of it is under way."""
        self._cancel_scope.cancel()
        self._changed.set()
        with trio.CancelScope(shield=True):
            await self._done.wait()

    async def _feed_full_parts(self, writer: BufferedMultipartWriter, lag: int) -> None:
        while self._mode is None and self._fed + writer.next_part_size + lag <= self._written_without_gap():
            await self._feed(writer, self._fed + writer.next_part_size)

    def _written_without_gap(self) -> int:
        first = next(iter(self._content.dirty), None)
        return first.end if first is not None and first.start == 0 else 0

    async def _feed(self, writer: BufferedMultipartWriter, end: int) -> None:
        """Read what comes next and send it; less than a part stays in the writer, until that is told what to do."""
        start, self._fed = self._fed, end
        await writer.reserve(end - start)
        self._check_not_cut()
        self.moved_at = trio.current_time()
        await writer.write(await self._content.obtain(start, end))

    async def _send_until_whole(self, writer: BufferedMultipartWriter) -> None:
        """Send what is missing and what was written again, until there is nothing of either."""
        content = self._content
        for upload_round in count(1):
            if upload_round > FREE_ROUNDS:
                content.hold_writers()
            await self._send_rest(writer)
            self._end_flush()  # the next commit finds the parts there
            if self._is_left_behind() and not self._is_told():
                self._log.changed(self._file)
            await self._log.commit()
            # The bytes of a single PUT are in memory from now on: nothing may wait for the log any more.
            if not writer.sent and content.size < writer.next_part_size:
                await self._feed(writer, content.size)
            if self._fed == content.size and not content.unsent and not self._log.is_behind(self._file):
                if not (writer.sent and self._is_left_behind() and self._is_told()):
                    check_name(self._file, self.key)
                return
            self._check_not_cut()
            await self._send_again(writer)

    def _is_left_behind(self) -> bool:
        """Return whether the file has another name by now than the one under which its object will appear."""
        is_name = not self.key.startswith(RESERVED_PREFIX)
        return is_name and self._file.linked and self._file.path_key != self.key

    def _is_told(self) -> bool:
        """Return whether the log, if there is one, says of the file as it is named now where its object will appear."""
        upload = self._content.upload
        return not self._log.is_kept or (upload is not None and upload.told_under == self._file.path_key)

    def _check_not_cut(self) -> None:
        if self._fed > self._content.size:
            raise FileWasCut

    async def _complete(self, writer: BufferedMultipartWriter, mode: PutMode) -> Version:
        size = self._content.size
        version = Version(self.key, await writer.close(mode), size)
        self._content.published(version)
        return version

    async def _send_rest(self, writer: BufferedMultipartWriter) -> None:
        """Send what is missing, but for a file that is less than a part: that is read when the log has it."""
        content = self._content
        if writer.sent and self._fed < content.size:
            await self._fill_last_part(writer)
        while self._fed < content.size and self._fed + writer.next_part_size <= content.size:
            await self._feed(writer, self._fed + writer.next_part_size)
        if writer.sent and self._fed < content.size:
            await self._feed(writer, content.size)  # the next round sends what it grows by meanwhile
        if writer.sent:
            await writer.flush()

    async def _fill_last_part(self, writer: BufferedMultipartWriter) -> None:
        """Send the last part again, longer, if it was the end of the file when it was sent."""
        last = writer.sent[-1]
        full_end = last.start + writer.full_size(last.number)
        if last.end == self._fed < full_end:
            await self._withdraw([last.number])
            self._check_not_cut()
            self._fed = min(full_end, self._content.size)
            await self._rewrite(writer, last.number, last.start, self._fed)

    async def _send_again(self, writer: BufferedMultipartWriter) -> None:
        content = self._content
        if not writer.sent:
            # It is all in the writer's buffer, and older than the file by now.
            writer.forget_buffered()
            self._fed = 0
        for part in writer.sent:
            if content.unsent.intersect(part.start, part.end):
                await self._withdraw([part.number])
                await self._rewrite(writer, part.number, part.start, part.end)

    async def _rewrite(self, writer: BufferedMultipartWriter, number: int, start: int, end: int) -> None:
        await writer.reserve(end - start)
        self._check_not_cut()
        await writer.rewrite(number, await self._content.obtain(start, end))

    # What the log may refer to

    def _note_stored(self, upload: MultipartUpload, sent: WrittenPart, stored: Part) -> None:
        self.moved_at = trio.current_time()
        if self.key.startswith(RESERVED_PREFIX):
            return  # the file's own object is another one
        content = self._content
        if content.upload is None:
            content.upload = OpenUpload(upload.key, upload.upload_id)
        content.upload.parts[sent.number] = SentPart(sent.number, stored.etag, sent.start, sent.end)

    async def _withdraw(self, numbers: Iterable[int]) -> None:
        """Give the log the bytes of parts that it refers to, and let it refer to them no more."""
        upload = self._content.upload
        if upload is None:
            return
        in_log = upload.logged.intersection(numbers)
        for number in numbers:
            part = upload.parts.pop(number, None)
            if part is not None and number in in_log:
                self._content.note_unlogged(part.start, part.end)
        if in_log:
            self._log.changed(self._file)
            self._end_flush()  # or else the commit waits for parts, and these for the commit
            await self._log.commit()
            upload.logged -= in_log

    async def _give_bytes_to_log(self, writer: BufferedMultipartWriter) -> None:
        """Let the log need the upload no more; where that is not possible, leave it in the bucket."""
        writer.forget_buffered()  # nobody may hold memory and wait for the log
        upload = self._content.upload
        if upload is None:
            return
        if not self._log.must_keep(self._file):
            # From now on it is on its way to be aborted: no batch may refer to it.
            self._content.upload = None
            return
        try:
            await self._withdraw(list(upload.parts))
        except BaseException as error:
            _log.warning("the log needs upload %s of %r, which is not aborted", upload.upload_id, self.key)
            writer.leave()
            if not isinstance(error, Exception):
                raise


class Uploads:
    """Every upload of file content on this mount."""

    def __init__(
        self,
        storage: ObjectStorage,
        spawn: Spawn,
        log: ChangeLog,
        *,
        part_size: int,
        bytes_in_flight: int,
    ) -> None:
        self._log = log
        self._storage = storage
        self._spawn = spawn
        self._part_size = part_size
        #: Of every body that is made of a file's bytes.
        self._in_flight = ByteBudget(bytes_in_flight)
        #: Uploads of files that are still being written: with more of them, none would be done sooner.
        self._max_streams = bytes_in_flight // part_size
        #: Copies of parts under way, which take no memory.
        self._copies = trio.CapacityLimiter(self._max_streams)
        self._streams: dict[File, _Stream] = {}
        #: Files whose upload is being finished: no other may take what is unsent of them.
        self._finishing: set[File] = set()

    def advance(self, file: File, key: str | None) -> bool:
        """Let parts go up that are full by now; return whether with them an upload begins, to `key`."""
        stream = self._streams.get(file)
        if stream is not None:
            stream.advance()
        elif key is not None and self._may_begin_stream(file):
            self._begin_stream(file, key, {**metadata_of(file), **self._log.mark(file)})
            return True
        return False

    def is_under_way(self, file: File) -> bool:
        """Return whether an upload of the file has begun which has not been finished, nor given up."""
        return file in self._streams

    def last_moved_at(self, file: File) -> float:
        """Return when a part of a file that is being written was last begun or stored; minus infinity if none was."""
        stream = self._streams.get(file)
        return stream.moved_at if stream is not None and stream.usable else -math.inf

    def abandon(self, file: File) -> None:
        """Give up what was begun: nobody needs the object any more."""
        stream = self._streams.get(file)
        if stream is not None:
            self._spawn(stream.give_up)
        if file not in self._finishing:
            self._streams.pop(file, None)

    async def publish(
        self, file: File, target: str, *, mode: PutMode, metadata: Metadata
    ) -> tuple[Version, Metadata]:
        """Make the object under `target` equal to the file; its content has the new version as its base then.

        Returns the version and its metadata, which is older than `metadata` where parts went up before that was known.
        Raises what the store raises, `StaleFile` if clean bytes cannot be read from the base any more, and
        `MovedMeanwhile` where `target` is a name that the file has lost, unless the log knows that it is there.
        """
        with self._alone_with(file) as content:
            cuts = restarts = 0
            while True:
                if cuts >= FREE_ROUNDS:
                    content.hold_writers()
                try:
                    planned = self._plan(content)
                    if isinstance(planned, Multipart) and _copies(planned):
                        return await self._patch(file, target, planned, mode, metadata), metadata
                    stream = await self._stream_for(file, target, metadata)
                    file.state.storing = (target, stream.metadata)
                    return await stream.finish(mode), stream.metadata
                except FileWasCut:
                    # The parts that went up do not fit any more; the next plan is for the shorter file.
                    cuts += 1
                except (UploadNotFound, InvalidPart, DamagedCache) as error:
                    # Somebody else (a rule of the bucket, an operator) has aborted it, and all of it is staged still;
                    # or the disk has damaged clean bytes, which are fetched again.
                    restarts += 1
                    if restarts > RESTARTS:
                        raise
                    _log.warning("beginning the upload of %r anew: %s", target, error)

    async def keep(self, file: File, key: str, *, metadata: Metadata) -> Version:
        """Store the file's bytes under another key than its own.

        Where the base is gone, what was not staged is zeros; the log says which ranges are the file's own. Every other
        failure is raised: the caller deletes what this has kept, so nothing may be missing that the bucket still has.
        """
        with self._alone_with(file) as content, ExitStack() as stack:
            try:
                await _stage_all(content)
            except StaleFile:
                staged = [(extent.start, extent.end) for extent in content.present]
                _log.error("%r: only these ranges could be kept, the rest is zeros: %s", key, staged)
                stack.enter_context(content.zeros_for_missing())
            content.give_back()
            return await self._begin_stream(file, key, metadata).finish(CREATE_ONLY)

    @contextmanager
    def _alone_with(self, file: File) -> Iterator[Content]:
        """Let nothing else begin an upload of the file in the block, nor anything staged be evicted."""
        content = file.content
        self._finishing.add(file)
        try:
            with content.pinned():
                yield content
        except BaseException:
            content.give_back()
            raise
        finally:
            content.release_writers()
            self._finishing.remove(file)
            self._streams.pop(file, None)

    # Streams

    def _may_begin_stream(self, file: File) -> bool:
        return (
            file.content.base is None
            and file.content.dirty.covers(0, self._part_size + LAG)
            and file not in self._finishing
            and len(self._streams) < self._max_streams
        )

    async def _stream_for(self, file: File, target: str, metadata: Metadata) -> _Stream:
        stream = self._streams.get(file)
        if stream is not None:
            if stream.key == target and stream.usable:
                return stream
            await stream.give_up()
        check_name(file, target)
        await _stage_all(file.content)
        file.content.give_back()
        return self._begin_stream(file, target, metadata)

    def _begin_stream(self, file: File, key: str, metadata: Metadata) -> _Stream:
        stream = self._streams[file] = _Stream(file, key, metadata, self._log)
        self._spawn(stream.run, self._open_writer)
        return stream

    def _open_writer(
        self, key: str, metadata: Metadata, on_stored: OnStored
    ) -> AbstractAsyncContextManager[BufferedMultipartWriter]:
        return open_writer(
            self._storage,
            key,
            metadata=metadata,
            part_size=self._part_size,
            in_flight=self._in_flight,
            on_stored=on_stored,
        )

    # Patches

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

    async def _patch(
        self, file: File, target: str, planned: Multipart, mode: PutMode, metadata: Metadata
    ) -> Version:
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
            raise failures[0]

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
                self._stored[part.number] = await self._store(part)
        except Exception as error:  # of any kind: the nursery would make a group of it
            failures.append(error)

    async def _store(self, part: UploadRange | CopyRange) -> Part:
        if isinstance(part, CopyRange):
            return await self._upload.copy_part(
                part.number, self._base.key, part.start, part.end - part.start, if_match=self._base.etag
            )
        return await self._upload.upload_part(part.number, await self._content.obtain(part.start, part.end))


async def _stage_all(content: Content) -> None:
    """Fetch what is missing, many GETs at once; a disk that has no room for it gets it part by part later."""
    asked_for = 0
    try:
        for gap in content.present.gaps(0, content.base_limit):
            for start in range(max(gap.start, asked_for), gap.end, STAGED_AT_ONCE):
                asked_for = start + STAGED_AT_ONCE
                await content.fetch(start, asked_for)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise


def _copies(planned: Multipart) -> bool:
    return any(isinstance(part, CopyRange) for part in planned.parts)
