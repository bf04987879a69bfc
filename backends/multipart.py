"""Objects of unknown length on their way up: flushes of any size in, legal parts out.

`BufferedMultipartWriter` is how every streamed object reaches a store. Nothing is begun for what stays below one
part: it is a single PUT on close. From the first full part on, parts are uploaded in the background, as many as a
budget of bytes has room for, and `write` waits when it has none. Part sizes grow along the object
(`backends.part_sizes`), so that the 10,000 parts of an upload reach the store's largest object.

What has been sent can be sent again: `rewrite` replaces a part under its number, until `close`. So a file that is
written while it goes up, and then changed near its beginning, costs one part more and not a second upload.

A failure ends the upload: it is aborted, and whoever calls next gets the error. Memory held is the parts under way,
and one more unless the caller has called `reserve` before it has read what it writes; what is written is copied once,
or not at all if it is one part.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final, TypeAlias

import trio

from backends.base import (
    MIB,
    NO_METADATA,
    OVERWRITE,
    Data,
    Metadata,
    MultipartUpload,
    ObjectStorage,
    Part,
    PutMode,
)
from backends.byte_budget import ByteBudget
from backends.errors import StorageError
from backends.part_sizes import PartSizes

_log = logging.getLogger(__name__)

DEFAULT_PART_SIZE: Final = 8 * MIB
DEFAULT_IN_FLIGHT: Final = 4
"""First parts under way at once, for a writer that shares no budget."""

ABORT_TIMEOUT_SECONDS: Final = 60.0
"""How long an abort may hold up a cancellation; what it leaves is aborted later (`backends.noting`)."""


@dataclass(frozen=True, slots=True)
class SentPart:
    """A part whose bytes have left the writer: `start` to `end` of the object."""

    number: int
    start: int
    end: int


OnStored: TypeAlias = Callable[[MultipartUpload, SentPart, Part], None]
"""Is told of each part that the store has, as soon as it has it."""

OnFailed: TypeAlias = Callable[[], None]
"""Is told when a part has failed: whoever has nothing to write for now may `check` then."""


class BufferedMultipartWriter:
    """One object being written from its first byte to its last; made by `open_writer`."""

    def __init__(
        self,
        storage: ObjectStorage,
        key: str,
        *,
        metadata: Metadata,
        part_size: int,
        in_flight: ByteBudget,
        on_stored: OnStored | None = None,
        on_failed: OnFailed | None = None,
    ) -> None:
        self._on_stored = on_stored
        self._on_failed = on_failed
        self._storage = storage
        self._key = key
        self._metadata = metadata
        self._part_sizes = PartSizes(part_size, storage.limits)
        self._in_flight = in_flight

        self._nursery: trio.Nursery | None = None
        self._upload: MultipartUpload | None = None
        self._buffer = bytearray()
        #: Bytes of the budget that are held for what is buffered, or is written next.
        self._reserved = 0
        self._sent: list[SentPart] = []
        self._stored: dict[int, Part] = {}
        self._under_way = 0
        self._idle = trio.Event()
        self._failure: Exception | None = None
        self._closed = False

    def attach(self, nursery: trio.Nursery) -> None:
        """Give the writer the nursery in which its parts go up."""
        self._nursery = nursery

    @property
    def sent(self) -> tuple[SentPart, ...]:
        """The parts that have been begun, in order; what was written beyond them is still buffered."""
        return tuple(self._sent)

    @property
    def next_part_size(self) -> int:
        """Bytes of the next part: a write of just that many `bytes` is sent without being copied."""
        return self.full_size(len(self._sent) + 1)

    def full_size(self, number: int) -> int:
        """Return the bytes of a part that is not the last one."""
        _, start, end = self._part_sizes.part(number)
        return end - start

    def check(self) -> None:
        """Raise the failure of any part."""
        if self._closed:
            raise RuntimeError("the writer was closed")
        if self._failure is not None:
            raise self._failure

    async def reserve(self, size: int) -> None:
        """Return when there is room for `size` bytes in memory; it is held for what is written, or rewritten, next.

        For bytes that are written without it there is room when they are sent. Nothing may be buffered: who holds
        memory must not wait for more.
        """
        self.check()
        assert not self._reserved, "what is reserved is to be written first"
        if size:
            await self._in_flight.acquire(size)
        self._reserved = size

    async def write(self, data: Data) -> None:
        """Append bytes; waits while there is no room for more parts under way. Raises the failure of any part.

        A write that is cancelled while it waits has lost bytes, so the object can only be given up after it.
        """
        self.check()
        rest = memoryview(data)
        while len(rest):
            size = self.next_part_size
            if not self._buffer and len(rest) >= size:
                part = data if isinstance(data, bytes) and len(data) == size else bytes(rest[:size])
                rest = rest[size:]
                await self._send_next(part)
                continue
            room = size - len(self._buffer)
            self._buffer += rest[:room]
            rest = rest[room:]
            if len(self._buffer) == size:
                await self._send_next(self._take_buffer())

    async def flush(self) -> None:
        """Send what is buffered as the last part, if parts have been sent at all, and wait until all are stored.

        Before anything can be appended after it, the last part must be rewritten in its full size.
        """
        self.check()
        if self._sent and self._buffer:
            await self._send_next(self._take_buffer())
        await self._drain()

    async def rewrite(self, number: int, data: Data) -> None:
        """Replace a part that was sent; all but the last keep their length. Waits until it is stored."""
        await self._drain()
        part = self._sent[number - 1]
        if number < len(self._sent) and len(data) != part.end - part.start:
            raise ValueError(f"part {number} has {part.end - part.start} bytes, not {len(data)}")
        self._sent[number - 1] = SentPart(number, part.start, part.start + len(data))
        await self._send(number, data)
        await self._drain()

    async def close(self, mode: PutMode = OVERWRITE) -> str:
        """Make the object appear, whole, and return its ETag. Raises `PreconditionFailed`, and any part's failure."""
        await self.flush()
        if self._upload is None:
            if not self._reserved:
                await self.reserve(len(self._buffer))
            etag = await self._storage.put(self._key, self._buffer, metadata=self._metadata, mode=mode)
        else:
            parts = [self._stored[part.number] for part in self._sent]
            etag = await self._upload.complete(parts, mode=mode)
        self._closed = True
        return etag

    def forget_buffered(self) -> None:
        """Take back what was written, or reserved, and not sent: it is to be written again."""
        self._buffer = bytearray()
        if reserved := self._take_reserved():
            self._in_flight.release(reserved)

    def leave(self) -> MultipartUpload | None:
        """Let the upload be as it is, neither complete nor aborted: who has called this ends it, or a recovery."""
        self._closed = True
        return self._upload

    async def abort(self) -> None:
        """Give up; nothing appears under the key. Does nothing after a `close` that succeeded."""
        if self._closed:
            return
        self._closed = True
        if self._upload is not None:
            await abort_or_leave(self._upload)

    def _take_buffer(self) -> bytearray:
        """Return what is buffered, and begin a new buffer: the part under way keeps the old one, uncopied."""
        taken, self._buffer = self._buffer, bytearray()
        return taken

    def _take_reserved(self) -> int:
        taken, self._reserved = self._reserved, 0
        return taken

    async def _send_next(self, data: Data) -> None:
        number = len(self._sent) + 1
        start = self._sent[-1].end if self._sent else 0
        self._sent.append(SentPart(number, start, start + len(data)))
        await self._send(number, data)

    async def _send(self, number: int, data: Data) -> None:
        assert self._nursery is not None, "only open_writer makes writers"
        try:
            if self._upload is None:
                self._upload = await self._storage.create_multipart(self._key, metadata=self._metadata)
            if not self._reserved:
                await self.reserve(len(data))
        except BaseException as error:
            # These bytes are in no buffer any more: what is sent from now on would have a hole.
            self._failure = error if isinstance(error, Exception) else RuntimeError("a write was cancelled")
            raise
        self._under_way += 1
        self._nursery.start_soon(self._store, self._upload, number, data, self._take_reserved())

    async def _store(self, upload: MultipartUpload, number: int, data: Data, reserved: int) -> None:
        try:
            stored = self._stored[number] = await upload.upload_part(number, data)
            if self._on_stored is not None:
                self._on_stored(upload, self._sent[number - 1], stored)
        except Exception as error:  # of any kind: out of the nursery it would come as an ExceptionGroup
            self._failure = self._failure or error
            if self._on_failed is not None:
                self._on_failed()
        finally:
            self._in_flight.release(reserved)
            self._under_way -= 1
            if not self._under_way:
                self._idle.set()

    async def _drain(self) -> None:
        while self._under_way:
            self._idle = trio.Event()
            await self._idle.wait()
        self.check()


async def abort_or_leave(upload: MultipartUpload) -> None:
    """Abort an upload; one that cannot be aborted is left to be (`backends.noting`)."""
    try:
        await upload.abort()
    except StorageError as error:
        _log.warning("cannot abort upload %s of %r: %s", upload.upload_id, upload.key, error)


@asynccontextmanager
async def open_writer(
    storage: ObjectStorage,
    key: str,
    *,
    metadata: Metadata = NO_METADATA,
    part_size: int = DEFAULT_PART_SIZE,
    in_flight: ByteBudget | None = None,
    on_stored: OnStored | None = None,
    on_failed: OnFailed | None = None,
) -> AsyncIterator[BufferedMultipartWriter]:
    """Open a writer for the block; an upload that was not closed in it is aborted at its end, however it ends.

    `in_flight` bounds the bytes under way; writers that share one share its bound, and so their memory. Raises
    ValueError for a `part_size` below the store's minimum.
    """
    budget = in_flight or ByteBudget(DEFAULT_IN_FLIGHT * part_size)
    writer = BufferedMultipartWriter(
        storage,
        key,
        metadata=metadata,
        part_size=part_size,
        in_flight=budget,
        on_stored=on_stored,
        on_failed=on_failed,
    )
    failure: Exception | None = None
    try:
        async with trio.open_nursery() as nursery:
            writer.attach(nursery)
            try:
                yield writer
            except Exception as error:
                # Raised again outside of the nursery, which would wrap it into an ExceptionGroup.
                failure = error
            nursery.cancel_scope.cancel()
    finally:
        writer.forget_buffered()
        # Only now: a part that is stored after the abort would be an orphan.
        with trio.move_on_after(ABORT_TIMEOUT_SECONDS, shield=True) as scope:
            await writer.abort()
        if scope.cancelled_caught:
            _log.warning("gave up aborting the upload of %r after %.0f s", key, ABORT_TIMEOUT_SECONDS)
    if failure is not None:
        raise failure
