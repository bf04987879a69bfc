"""How a commit has streams send what is full of them, before it captures what is left: parts need not be carried."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import trio

from fusefs.content import Content
from fusefs.inodes import File


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
        await content.flush.ask()
