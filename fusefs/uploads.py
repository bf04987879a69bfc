"""How the bytes of one file go up: as a stream, or as a patch of the version that is there; and one upload at a time.

A file that is new, small or mostly rewritten is a stream (`fusefs.stream`), which may begin while the file is still
being written. A large file that changed in places is a patch (`fusefs.patches`). Either way writers do not stop for it;
where they cut the file so much that what went up is of no use, or somebody aborts the upload, another begins.

Bytes leave the stage when the budget of what is under way has room for them (`backends.byte_budget`). Who holds some of
it waits for the store alone: a commit of the log may wait for the parts of any stream, and these for room.
"""

from __future__ import annotations

import errno
import logging
import math
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager, ExitStack, contextmanager
from typing import Final

from backends.base import CREATE_ONLY, MIB, Metadata, ObjectStorage, PutMode
from backends.byte_budget import ByteBudget
from backends.errors import InvalidPart, UploadNotFound
from backends.multipart import BufferedMultipartWriter, OnFailed, OnStored, abort_or_leave, open_writer
from fusefs import fetching
from fusefs.change_log import ChangeLog
from fusefs.content import Content, Spawn
from fusefs.errors import DamagedCache, StaleFile
from fusefs.inodes import File
from fusefs.link_lists import metadata_of
from fusefs.patches import Patches
from fusefs.stream import Stream, has_first_part
from fusefs.upload_rounds import FREE_ROUNDS, FileWasCut, check_name
from fusefs.versions import Version

_log = logging.getLogger(__name__)

RESTARTS: Final = 3
"""How often a publication begins a new upload where the one that it has begun is gone, or was given wrong bytes."""

STAGED_AT_ONCE: Final = 64 * MIB
"""Bytes of a file that are asked for together when all of it has to be staged: several GETs, whatever its size."""


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
        self._patches = Patches(
            storage, log, self._in_flight, part_size=part_size, copies_at_once=self._max_streams
        )
        self._streams: dict[File, Stream] = {}
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
                    planned = self._patches.plan(content)
                    if planned is not None:
                        return await self._patches.publish(file, target, planned, mode, metadata), metadata
                    with content.pinned():
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
        with self._alone_with(file) as content, content.pinned(), ExitStack() as stack:
            begun = self._streams.get(file)
            if begun is not None:  # by a write, while it was looked what the conflict is about
                await begun.give_up()
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
        """Let nothing else begin an upload of the file in the block."""
        content = file.content
        self._finishing.add(file)
        try:
            yield content
            # The log has been told since of the bytes that are in none of their parts.
            for upload in content.left_uploads:
                self._spawn(abort_or_leave, upload)
            content.left_uploads = ()
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
            has_first_part(file.content, self._part_size)
            and file not in self._finishing
            and sum(not stream.is_over for stream in self._streams.values()) < self._max_streams
        )

    async def _stream_for(self, file: File, target: str, metadata: Metadata) -> Stream:
        stream = self._streams.get(file)
        if stream is not None:
            if stream.key == target and stream.usable:
                return stream
            await stream.give_up()
        check_name(file, target)
        await _stage_all(file.content)
        file.content.give_back()
        return self._begin_stream(file, target, metadata)

    def _begin_stream(self, file: File, key: str, metadata: Metadata) -> Stream:
        stream = self._streams[file] = Stream(file, key, metadata, self._log)
        self._spawn(stream.run, self._open_writer)
        return stream

    def _open_writer(
        self, key: str, metadata: Metadata, on_stored: OnStored, on_failed: OnFailed
    ) -> AbstractAsyncContextManager[BufferedMultipartWriter]:
        return open_writer(
            self._storage,
            key,
            metadata=metadata,
            part_size=self._part_size,
            in_flight=self._in_flight,
            on_stored=on_stored,
            on_failed=on_failed,
        )


async def _stage_all(content: Content) -> None:
    """Fetch what is missing, many GETs at once; what there is no room for comes part by part later (`obtain`)."""
    asked_for = 0
    try:
        for gap in content.missing(0, content.size):
            for start in range(max(gap.start, asked_for), gap.end, STAGED_AT_ONCE):
                asked_for = start + STAGED_AT_ONCE
                await fetching.fetch(content, start, asked_for)
                if content.sources.budget.is_exceeded:
                    return
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
