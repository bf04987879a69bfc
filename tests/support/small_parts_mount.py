"""`python -m tests.support.small_parts_mount mount ...` is `fusefs mount ...` with sizes a thousandth of S3's.

So streams, patches, copies, eviction and a log that is too long take files of some kilobytes. On a store in a directory
only, which keeps the limits that it is told; and in the foreground only, since in the background it is `fusefs` again.
Of its requests, the share that `FAULT_SHARE` in the environment says fails, before it has taken effect or after.
"""

from __future__ import annotations

import os
import random
from collections.abc import Awaitable, Callable
from typing import Final

from backends import base, rules
from backends.base import GIB, KIB, Limits, ObjectStorage
from backends.errors import Unavailable
from backends.intercepted import InterceptedStorage, Request, T
from fusefs import (
    assembly,
    batch_contents,
    block_checksums,
    options,
    prefetch,
    stage,
    staged_bytes,
    stores,
    stream,
    uploads,
)
from fusefs.cli import main
from fusefs.options import Store

LIMITS: Final = Limits(min_part_size=5 * KIB, max_copy_size=1024 * KIB, max_object_size=GIB)


class UnreliableStorage(InterceptedStorage):
    """Loses calls and answers by chance."""

    def __init__(self, inner: ObjectStorage, *, share: float) -> None:
        super().__init__(inner)
        self._share = share

    async def _carry_out(self, request: Request, send: Callable[[], Awaitable[T]]) -> T:
        is_lost = random.random() < self._share
        if is_lost and random.random() < 0.5:
            raise Unavailable(f"injected: the call {request.verb} {request.key!r} is lost")
        result = await send()
        if is_lost:
            raise Unavailable(f"injected: the answer to {request.verb} {request.key!r} is lost")
        return result


def let_store_fail(share: float) -> None:
    backend = stores._backend

    def unreliable(store: Store) -> ObjectStorage:
        return UnreliableStorage(backend(store), share=share)

    stores._backend = unreliable


if __name__ == "__main__":
    base.S3_LIMITS = rules.S3_LIMITS = LIMITS  # type: ignore[misc, attr-defined]
    assembly.DEFAULT_PART_SIZE, assembly.PART_MEMORY = 8 * KIB, 64 * KIB  # type: ignore[misc]
    stream.LAG, uploads.STAGED_AT_ONCE = KIB, 64 * KIB  # type: ignore[misc]
    prefetch.FETCH_SIZE = staged_bytes.EVICTED_AT_ONCE = 4 * KIB  # type: ignore[misc]
    staged_bytes.PIECE_SIZE = 2 * KIB  # type: ignore[misc]
    block_checksums.BLOCK_SIZE = prefetch.BLOCK_SIZE = KIB  # type: ignore[misc]
    prefetch.FIRST_WINDOW, prefetch.MAX_GAP = 4 * KIB, 8 * KIB  # type: ignore[misc]
    batch_contents.BATCH_SIZE = 32 * KIB  # type: ignore[misc]
    stage.MEMORY_FILE_BYTES, stage.MEMORY_BYTES = 16 * KIB, 32 * KIB  # type: ignore[misc]
    options._MIN_CACHE_SIZE = 16 * KIB  # type: ignore[misc]
    let_store_fail(float(os.environ.get("FAULT_SHARE", "0")))
    main()
