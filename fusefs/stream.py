"""One file on its way up as a stream, from its first byte to its last.

A stream (`backends.multipart`) is one PUT below a part, parts of growing size above. It may begin while the file is
still being written: whenever a part is full and the writer has moved on, it goes up in the background (`advance`).
`finish` sends the rest, in rounds (`fusefs.upload_rounds`).

The log refers to parts of a stream instead of carrying their bytes. Before such a part is replaced, or the stream is
given up, the log gets the bytes; where it cannot take them the parts stay where they are.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable
from contextlib import AbstractAsyncContextManager
from itertools import count
from typing import Final, TypeAlias

import trio

from backends.base import MIB, Metadata, MultipartUpload, Part, PutMode
from backends.errors import StorageError
from backends.multipart import BufferedMultipartWriter, OnFailed, OnStored, SentPart
from fusefs import fetching
from fusefs.change_log import ChangeLog
from fusefs.content import Content
from fusefs.errors import FilesystemError, let_go_of_frames
from fusefs.inodes import File
from fusefs.keys import RESERVED_PREFIX
from fusefs.log_records import StoredPart
from fusefs.open_upload import Flush, OpenUpload
from fusefs.upload_rounds import FREE_ROUNDS, FileWasCut, check_name
from fusefs.versions import Version

_log = logging.getLogger(__name__)

LAG: Final = 1 * MIB
"""How far behind the end of what was written a stream stays: the kernel may send its last pages again, fuller."""

WriterFactory: TypeAlias = Callable[
    [str, Metadata, OnStored, OnFailed], AbstractAsyncContextManager[BufferedMultipartWriter]
]


def has_first_part(content: Content, part_size: int) -> bool:
    """Return whether a stream of a new file would find its first part full, and the writer beyond it."""
    return content.base is None and part_size + LAG <= _written_without_gap(content)


def _written_without_gap(content: Content) -> int:
    """Return how far a new file was written from its first byte on, holes before the last of it included.

    What it has only grown by is left to its end: a file that has its size before its bytes would go up twice.
    """
    first = next(iter(content.dirty), None)
    return min(first.end, content.written_end) if first is not None and first.start == 0 else 0


class Stream:
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
        #: Whether the upload is on its way to be aborted, with whatever the bucket gets of it until then.
        self._is_given_up = False

    @property
    def usable(self) -> bool:
        """Whether parts have gone up that can still become the file's object: none failed, nor was the file cut."""
        return not self._done.is_set() and 0 < self._fed <= self._content.size

    @property
    def is_over(self) -> bool:
        """Whether the task has ended, with a version or a failure that `finish` will tell."""
        return self._done.is_set()

    def advance(self) -> None:
        """Let the task look for parts that are full, or have failed."""
        self._changed.set()

    async def run(self, open_writer: WriterFactory) -> None:
        """Send parts as they fill, and when `finish` says so the rest; keep the outcome for it."""
        try:
            async with open_writer(self.key, self.metadata, self._note_stored, self.advance) as writer:
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
            if isinstance(
                error, StorageError | FilesystemError | OSError
            ):  # a defect is told with its frames
                let_go_of_frames(error)
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
            writer.check()
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
        while self._mode is None:
            end = self._fed + writer.next_part_size
            if end + lag > _written_without_gap(self._content):
                break
            await self._feed(writer, end)

    async def _feed(self, writer: BufferedMultipartWriter, end: int) -> None:
        """Read what comes next and send it; less than a part stays in the writer, until that is told what to do."""
        start, self._fed = self._fed, end
        await writer.reserve(end - start)
        self._check_not_cut()
        self.moved_at = trio.current_time()
        await writer.write(await fetching.obtain(self._content, start, end))

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
        with self._content.being_replaced():
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
        await writer.rewrite(number, await fetching.obtain(self._content, start, end))

    # What the log may refer to

    def _note_stored(self, upload: MultipartUpload, sent: SentPart, stored: Part) -> None:
        self.moved_at = trio.current_time()
        if self._is_given_up or self.key.startswith(RESERVED_PREFIX):
            return  # nobody may refer to it, or the file's own object is another one
        content = self._content
        if content.upload is None:
            content.upload = OpenUpload(upload.key, upload.upload_id)
        content.upload.parts[sent.number] = StoredPart(sent.number, stored.etag, sent.start, sent.end)

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
        self._is_given_up = True  # parts may still be on their way
        upload = self._content.upload
        if upload is None:
            return
        if not self._log.must_keep(self._file):
            self._content.upload = None  # no batch may refer to it
            return
        try:
            # Of a part that is withdrawn only the log may not know yet.
            await self._withdraw(upload.parts.keys() | upload.logged)
        except BaseException as error:
            _log.warning(
                "the log needs upload %s of %r, which is not aborted: %r", upload.upload_id, self.key, error
            )
            left = writer.leave()
            assert left is not None, "it has parts"
            self._content.left_uploads += (left,)
            if not isinstance(error, Exception):
                raise
