"""What there is of a log in a store, for tests that look at it from outside."""

from __future__ import annotations

from backends.base import ObjectStorage, iterate_pages
from fusefs.journal_format import JOURNAL_PREFIX, SEAL_SIZES


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
