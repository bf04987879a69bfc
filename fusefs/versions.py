"""What the tree, whoever publishes it and the log all name: one state of one object."""

from __future__ import annotations

from dataclasses import dataclass

from backends.base import Data, ObjectStorage
from backends.errors import StoreCorrupt


@dataclass(frozen=True, slots=True)
class Version:
    """One immutable state of an object."""

    key: str
    etag: str
    size: int


async def read_version(storage: ObjectStorage, version: Version, start: int, end: int) -> Data:
    """Return the bytes from `start` to `end` of just this version. Raises what the store raises.

    That is `StoreCorrupt` where it sends more or fewer: Google unpacks an object with the Content-Encoding gzip on its
    way, and has told the size and the ETag of the packed one.
    """
    # A whole object is asked for as such: S3 has checksums of objects, not of ranges.
    length = None if (start, end) == (0, version.size) else end - start
    body = (await storage.get_range(version.key, start, length, if_match=version.etag)).body
    sent = memoryview(body).nbytes
    if sent != end - start:
        raise StoreCorrupt(f"the store sent {sent} bytes of {version.key!r} instead of {end - start}")
    return body
