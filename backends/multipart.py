"""Objects of unknown length on their way up: flushes of any size in, legal parts out.

`BufferedMultipartWriter` is how every streamed object reaches a store. Nothing is begun for what stays below one
part: it is a single PUT on close. From the first full part on, parts are uploaded in the background, a bounded number
at a time, and `write` waits when that number is reached. Part sizes grow along the object (`backends.part_sizes`),
so that the 10,000 parts of an upload reach the store's largest object.

What has been sent can be sent again: `rewrite` replaces a part under its number, until `close`. So a file that is
written while it goes up, and then changed near its beginning, costs one part more and not a second upload.

A failure ends the upload: it is aborted, and whoever calls next gets the error. Memory held is the parts under way
and one more.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterable, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import trio

from backends.base import MIB, NO_METADATA, OVERWRITE, Data, Metadata, MultipartUpload, ObjectStorage, Part, PutMode
from backends.errors import StorageError
from backends.part_sizes import part_size_at

_log = logging.getLogger(__name__)

DEFAULT_PART_SIZE: Final = 8 * MIB
DEFAULT_IN_FLIGHT: Final = 4
ABORT_TIMEOUT_SECONDS: Final = 60.0
"""How long an abort may hold up a cancellation; what it leaves behind is an orphan, found at the next mount."""


@dataclass(frozen=True, slots=True)
class SentPart:
    """A part whose bytes have left the writer: `start` to `end` of the object."""

    number: int
    start: int
    end: int


class BufferedMultipartWriter:
    """One object being written from its first byte to its last; made by `open_writer`."""

    def __init__(
        self,
        storage: ObjectStorage,
        key: str,
        nursery: trio.Nursery,
        *,
        metadata: Metadata,
        part_size: int,
        in_flight: trio.CapacityLimiter,
    ) -> None:
        if part_size < storage.limits.min_part_size:
            raise ValueError(f"part_size is below the store's minimum of {storage.limits.min_part_size}")
        self._storage = storage
        self._key = key
        self._metadata = metadata
        self._part_size = part_size
        self._nursery = nursery
        self._in_flight = in_flight

        self._upload: MultipartUpload | None = None
        self._buffer = bytearray()
        self._sent: list[SentPart] = []
        self._stored: dict[int, Part] = {}
        self._under_way = 0
        self._idle = trio.Event()
        self._failure: Exception | None = None
        self._closed = False

    @property
    def sent(self) -> tuple[SentPart, ...]:
        """The parts that have been begun, in order; what was written beyond them is still buffered."""
        return tuple(self._sent)

    @property
    def next_part_size(self) -> int:
        """Bytes of the next part: a write of just that many is sent without being copied into a buffer."""
        return part_size_at(len(self._sent) + 1, self._part_size)

    async def write(self, data: Data) -> None:
        """Append bytes; waits while the parts under way are as many as may be. Raises the failure of any part."""
        self._check_open()
        if not self._buffer and len(data) == self.next_part_size:
            await self._send_next(data)
            return
        self._buffer += data
        while len(self._buffer) >= self.next_part_size:
            size = self.next_part_size
            part = bytes(memoryview(self._buffer)[:size])
            del self._buffer[:size]
            await self._send_next(part)

    async def flush(self) -> None:
        """Send what is buffered as the last part, if parts have been sent at all, and wait until all are stored.

        Nothing can be appended after it; `rewrite` of the last part may make that longer or shorter.
        """
        self._check_open()
        if self._sent and self._buffer:
            rest = bytes(self._buffer)
            self._buffer.clear()
            await self._send_next(rest)
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
            etag = await self._storage.put(self._key, self._buffer, metadata=self._metadata, mode=mode)
        else:
            parts = [self._stored[part.number] for part in self._sent]
            etag = await self._upload.complete(parts, mode=mode)
        self._closed = True
        return etag

    async def abort(self) -> None:
        """Give up; nothing appears under the key. Does nothing after a `close` that succeeded."""
        if self._closed:
            return
        self._closed = True
        if self._upload is not None:
            try:
                await self._upload.abort()
            except StorageError as error:
                _log.warning("cannot abort upload %s of %r: %s", self._upload.upload_id, self._key, error)

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("the writer was closed")
        if self._failure is not None:
            raise self._failure

    async def _send_next(self, data: Data) -> None:
        number = len(self._sent) + 1
        start = self._sent[-1].end if self._sent else 0
        self._sent.append(SentPart(number, start, start + len(data)))
        await self._send(number, data)

    async def _send(self, number: int, data: Data) -> None:
        if self._upload is None:
            self._upload = await self._storage.create_multipart(self._key, metadata=self._metadata)
        await self._in_flight.acquire_on_behalf_of(slot := object())
        self._under_way += 1
        self._nursery.start_soon(self._store, self._upload, number, data, slot)

    async def _store(self, upload: MultipartUpload, number: int, data: Data, slot: object) -> None:
        try:
            self._stored[number] = await upload.upload_part(number, data)
        except StorageError as error:
            self._failure = self._failure or error
        finally:
            self._in_flight.release_on_behalf_of(slot)
            self._under_way -= 1
            if not self._under_way:
                self._idle.set()

    async def _drain(self) -> None:
        while self._under_way:
            self._idle = trio.Event()
            await self._idle.wait()
        self._check_open()


@asynccontextmanager
async def open_writer(
    storage: ObjectStorage,
    key: str,
    *,
    metadata: Metadata = NO_METADATA,
    part_size: int = DEFAULT_PART_SIZE,
    in_flight: trio.CapacityLimiter | None = None,
) -> AsyncIterator[BufferedMultipartWriter]:
    """Open a writer for the block; an upload that was not closed in it is aborted at its end, however it ends.

    `in_flight` bounds the parts under way; writers that share one share its bound, and so their memory. Raises
    ValueError for a `part_size` below the store's minimum.
    """
    limiter = in_flight or trio.CapacityLimiter(DEFAULT_IN_FLIGHT)
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        writer = BufferedMultipartWriter(
            storage, key, nursery, metadata=metadata, part_size=part_size, in_flight=limiter
        )
        try:
            yield writer
        except Exception as error:
            # Raised again outside of the nursery, which would wrap it into an ExceptionGroup.
            failure = error
            nursery.cancel_scope.cancel()
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + ABORT_TIMEOUT_SECONDS):
                await writer.abort()
    if failure is not None:
        raise failure


async def put_multipart(
    storage: ObjectStorage,
    key: str,
    chunks: AsyncIterable[Data],
    *,
    metadata: Metadata = NO_METADATA,
    mode: PutMode = OVERWRITE,
    part_size: int = DEFAULT_PART_SIZE,
) -> str:
    """Store an object of any length from chunks of any size, and return its ETag."""
    async with open_writer(storage, key, metadata=metadata, part_size=part_size) as writer:
        async for chunk in chunks:
            await writer.write(chunk)
        return await writer.close(mode)
