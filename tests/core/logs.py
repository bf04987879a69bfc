"""What there is of a log in a store, for tests that look at it from outside, and a short one to be looked at."""

from __future__ import annotations

from pathlib import Path

from backends.base import ObjectStorage, iterate_pages
from fusefs.journal_format import JOURNAL_PREFIX, SEAL_SIZES
from tests.core.tree import NEVER_PUBLISHED, TreeOptions, open_tree


async def log_objects(storage: ObjectStorage) -> dict[str, int]:
    """Return the keys of all batches and seals, in order, and their sizes."""
    pages = iterate_pages(storage, JOURNAL_PREFIX)
    return {info.key: info.size async for page in pages for info in page.objects}


async def batches(storage: ObjectStorage) -> list[str]:
    """Return the keys of the batches that tell of something: an empty log has others at most."""
    return [key for key, size in (await log_objects(storage)).items() if size not in SEAL_SIZES]


async def log_size(storage: ObjectStorage) -> int:
    """Return the bytes of the batches that tell of something."""
    return sum(size for size in (await log_objects(storage)).values() if size not in SEAL_SIZES)


async def commit_thrice(storage: ObjectStorage, directory: Path) -> None:
    """Leave a log of three batches, each of which makes a file longer."""
    options = TreeOptions(logged=True, publish=NEVER_PUBLISHED)
    async with open_tree(storage, directory, options) as tree:
        handle = await tree.create("file")
        for number in range(3):
            await tree.write(handle, number, b"%d" % number)
            await tree.filesystem.fsync(handle)
