"""Reads the bytes of a file, and fetches those that are not staged.

What is missing is claimed (`Content.claim`), so that each byte is fetched once however many tasks ask for it: whoever
finds a range claimed waits for that task, and looks again. Claimed ranges are fetched by GETs that are pinned to the
base's ETag, several at once, some of them ahead of a reader who goes forward (`fusefs.prefetch`).

Writers, publishers and evictions are at work while a task waits here. So after each await the content is looked at
anew: bytes of a base that is not the base any more are thrown away, what was cut is not asked for, and what was written
meanwhile is newer than what has come.
"""

from __future__ import annotations

import errno
from contextlib import AbstractAsyncContextManager, nullcontext
from io import BytesIO
from typing import Final

import trio

from backends.base import Data
from backends.errors import (
    NotFound,
    PreconditionFailed,
    RangeNotSatisfiable,
    StorageError,
    Throttled,
    Unavailable,
)
from fusefs import prefetch
from fusefs.block_checksums import enclosing
from fusefs.content import NEAR, Claim, Content
from fusefs.errors import DamagedCache, StaleFile, UploadFailed
from fusefs.extents import Extent, ExtentSet, joined
from fusefs.prefetch import SequentialDetector
from fusefs.versions import Version, read_version

_GONE: Final = (NotFound, PreconditionFailed, RangeNotSatisfiable)
"""What the store says where it has another version, or none."""

DAMAGED_READS: Final = 3
"""How often one read fetches again what the local disk has damaged, before it is an error."""


async def read(content: Content, offset: int, length: int, reader: SequentialDetector | None = None) -> bytes:
    """Return up to `length` bytes; fewer only at the end of the file.

    Raises `StaleFile` when the base was replaced in the bucket, and what the store raises.
    """
    end = min(offset + length, content.size)
    if offset >= end:
        return b""
    disk_is_full = False
    with content.in_use(*enclosing(offset, end, content.size)):
        try:
            data = await _read_by_stage(content, offset, end, reader)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            disk_is_full = True
            data = await _read_past_stage(content, offset, end)
    if disk_is_full:
        content.sources.budget.make_room(goal_bytes=0)
    return data


async def obtain(content: Content, start: int, end: int) -> bytes:
    """Return bytes for an upload, as `Content.take`; what is missing is fetched first.

    Where there is no room for that it does without, on the local disk or within the bound of what is staged: what is
    dirty must be able to leave either.
    """
    with content.in_use(*enclosing(start, end, content.size)):
        try:
            if content.missing_are_zeros:
                return content.take(start, end)
            if content.has_staged(start, end) or not content.sources.budget.is_exceeded:
                return await _fetch_and_take(content, start, end)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
        data = await _read_past_stage(content, start, end)
        content.unsent.remove(start, end)
        return data.ljust(end - start, b"\0")


async def _fetch_and_take(content: Content, start: int, end: int) -> bytes:
    reads = 1
    while True:
        await fetch(content, start, min(end, content.size))
        try:
            return content.take(start, end)
        except DamagedCache:  # what was damaged is not staged any more
            if reads == DAMAGED_READS:
                raise
            reads += 1


async def fetch(content: Content, start: int, end: int) -> None:
    """Stage what is missing of a range; several GETs at once where it is long. Raises as `read`."""
    asked_after = content.sources.outage.last_begun
    with content.in_use(start, end):  # or else some of it might give way while the rest is on its way
        while True:
            failures: list[Exception] = []
            async with trio.open_nursery() as nursery:
                for claim in content.claim(start, end, prefetch.FETCH_SIZE):
                    nursery.start_soon(_carry_out, content, claim, failures)
            if failures:
                try:
                    raise failures[0]
                finally:
                    failures.clear()  # or else they and their frames, with bytes of files, are a cycle
            while (claim_of_another := content.claimed_in(start, end)) is not None:
                await claim_of_another.done.wait()
            if content.has_staged(start, end):
                return
            content.sources.outage.check(asked_after)
            # The other task failed, or the file changed meanwhile: what is missing now is ours to fetch.


async def fetch_unasked(content: Content) -> None:
    """Stage what is missing of a small file, of which the caller bounds how many are fetched at once.

    A failure is not told: whoever needs the bytes asks for them.
    """
    claims = content.claim(0, content.size, prefetch.FETCH_SIZE)
    if len(claims) == 1:
        await _carry_out(content, claims[0], [], nullcontext())
        return
    async with trio.open_nursery() as nursery:  # whoever is cancelled lets go of all that is claimed
        for claim in claims:
            nursery.start_soon(_carry_out, content, claim, [], nullcontext())


async def _read_by_stage(content: Content, offset: int, end: int, reader: SequentialDetector | None) -> bytes:
    """Return bytes that are in use by way of the stage."""
    content.note_use(offset, end)
    for _ in range(DAMAGED_READS):
        if not content.has_staged(offset, end):
            await _read_through(content, offset, end, reader)
        elif reader is not None:
            _fetch_ahead(content, end, reader.observe(offset, end - offset).ahead_end)
        data = content.read_staged(offset, min(end, content.size))
        if data is not None:
            return data
        reader = None  # it has seen this read
    raise DamagedCache(f"what is staged between {offset} and {end} is damaged again and again")


async def _read_through(content: Content, offset: int, end: int, reader: SequentialDetector | None) -> None:
    if reader is None:
        await fetch(content, *enclosing(offset, end, content.size))
        return
    wish = reader.observe(offset, end - offset)
    _fetch_ahead(content, wish.end, wish.ahead_end)
    await fetch(content, wish.start, min(wish.end, content.size))


def _fetch_ahead(content: Content, start: int, end: int) -> None:
    room = content.sources.budget.room_ahead
    if end - start > room:
        # In steps, or else each read would fetch as little as it reads.
        step = max(1, min(prefetch.FETCH_SIZE, room // 2))
        end = start + room - (start + room) % step
    for claim in content.claim(start, end, prefetch.FETCH_SIZE):
        # Nobody has asked for these bytes yet: whoever does gets the error of their own request.
        content.sources.spawn(_carry_out, content, claim, [])


async def _read_past_stage(content: Content, offset: int, end: int) -> bytes:
    """Return bytes that are in use, where there is no room to stage those that are missing.

    They are in memory once: it may be a whole part. Fewer are returned where the file was cut meanwhile.
    """
    data = BytesIO()  # which gives its bytes away without a copy
    base, fetched = content.base, ExtentSet()
    while True:
        if content.base != base:
            base, fetched = content.base, ExtentSet()
        piece = _first_missing(content, offset, end, fetched)
        if piece is not None:
            asked_after = content.sources.outage.last_begun
            try:
                async with content.sources.fetch_budget.hold(piece.end - piece.start):
                    found = await _get(content, *piece, base, asked_after=asked_after)
            except _GONE as error:
                await _wait_for_successor(content, base, error)
                continue
            data.seek(piece.start - offset)
            data.write(found)
            fetched.add(*piece)
        elif _copy_staged(content, offset, end, data):
            data.truncate(max(0, content.size - offset))
            return data.getvalue()


def _first_missing(content: Content, start: int, end: int, fetched: ExtentSet) -> Extent | None:
    """Return what one GET is to bring of what is neither staged nor fetched; None if there is nothing."""
    for gap in joined(content.missing(start, end), NEAR):
        for missing in fetched.gaps(*gap):
            return Extent(missing.start, min(missing.end, missing.start + prefetch.FETCH_SIZE))
    return None


def _copy_staged(content: Content, offset: int, end: int, data: BytesIO) -> bool:
    """Put what is staged into `data`, which begins at `offset`; False where the disk has damaged some of it."""
    for extent in content.present.intersect(offset, min(end, content.size)):
        for start in range(extent.start, extent.end, prefetch.FETCH_SIZE):
            staged = content.read_staged(start, min(start + prefetch.FETCH_SIZE, extent.end))
            if staged is None:
                return False
            data.seek(start - offset)
            data.write(staged)
    return True


async def _carry_out(
    content: Content,
    claim: Claim,
    failures: list[Exception],
    limiter: AbstractAsyncContextManager[None] | None = None,
) -> None:
    """Fetch and stage one claimed range; a failure is noted, so that a nursery has no group of them to raise."""
    try:
        await _bring(
            content, claim, failures, limiter or content.sources.fetch_budget.hold(claim.end - claim.start)
        )
    except OSError as error:  # which says all, and whose frames would keep what was fetched in memory
        failures.append(error.with_traceback(None))
    except Exception as error:  # of any kind: nothing may end the nursery of the whole mount
        failures.append(error)
    finally:
        content.release(claim)


async def _bring(
    content: Content, claim: Claim, failures: list[Exception], limiter: AbstractAsyncContextManager[None]
) -> None:
    try:
        async with limiter:
            if failures:
                return  # whoever has asked for this range gets that error
            base = content.base
            data = await _get(content, claim.start, claim.end, base, asked_after=claim.asked_after)
    except _GONE as error:
        await _wait_for_successor(content, base, error)  # while others have their turn: it may take long
        return
    if content.base == base:  # or else these bytes may be older than what was published meanwhile
        content.store_fetched(claim.start, data)


async def _get(content: Content, start: int, end: int, base: Version | None, *, asked_after: int) -> Data:
    """Return what `base` has of a range, or nothing where the content does not need that any more.

    Where a request that began later than the one of the number `asked_after` has had no answer, there is none for this.
    """
    end = min(end, content.base_limit)
    if base is None or end <= start:
        return b""  # let go of, or cut, while the fetch waited for its turn
    outage = content.sources.outage
    outage.check(asked_after)
    request = outage.begin()
    try:
        body = await read_version(content.sources.storage, base, start, end)
    except (Unavailable, Throttled) as error:
        outage.found(error, request)
        raise
    except StorageError:  # of this object, and an answer
        outage.ended()
        raise
    outage.ended()
    return body


async def _wait_for_successor(content: Content, base: Version | None, error: Exception) -> None:
    """Return when `base`, which is not in the bucket any more, has got a successor: published or moved meanwhile.

    Whoever still misses bytes asks for them again. Raises `StaleFile` where it is somebody else's doing.
    """
    await content.wait_replaced()
    if content.base != base:
        return
    key = base.key if base is not None else ""
    if content.is_in_doubt:
        raise UploadFailed(f"whether {key!r} was replaced by our own upload is not known") from error
    raise StaleFile(f"{key!r} was changed in the bucket while it was open") from error
