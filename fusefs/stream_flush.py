"""How a commit has streams send what is full of them, before it captures what is left: parts need not be carried."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final

import trio

from backends.base import MIB
from fusefs.content import Content
from fusefs.inodes import File
from fusefs.open_upload import Flush

SILENCE_SECONDS: Final = 60.0
"""How long no part has to arrive for a commit to carry the bytes of those that are under way itself, beside a second
for each MiB of a part: on a slow line they would go up twice.
"""


def part_size(file: File) -> float:
    """Return how many bytes a stream sends next; infinite for what is none, or has begun just now."""
    return math.inf if file.content.flush is None else file.content.flush.part_size


@asynccontextmanager
async def flushed(files: Sequence[File]) -> AsyncIterator[None]:
    """Have the full parts of streams in the bucket, and let their writers wait to the end of the block.

    Or else the parts would never be all there, and what is written until the capture would be in none of them.
    """
    held: list[Content] = []
    try:
        if files:
            async with trio.open_nursery() as nursery:
                for file in files:
                    nursery.start_soon(_flush, file.content, held)
        yield
    finally:
        for content in held:
            content.release_writers()


async def _flush(content: Content, held: list[Content]) -> None:
    """Ask a stream as it is now: it may have begun just before, and has a new flush whenever it looks for parts."""
    if content.flush is not None:
        content.hold_writers()
        held.append(content)
        await _wait_while_parts_arrive(content, content.flush)


async def _wait_while_parts_arrive(content: Content, flush: Flush) -> None:
    """Return when a flush is over, or nothing more comes of it: in an outage a commit has that before it, too."""
    while not flush.done.is_set():
        sent = _parts_sent(content)
        with trio.move_on_after(SILENCE_SECONDS + flush.part_size / MIB):
            await flush.ask()
        if _parts_sent(content) == sent:
            return


def _parts_sent(content: Content) -> int:
    return 0 if content.upload is None else len(content.upload.parts)
