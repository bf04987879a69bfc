"""`python -m tests.support.slow_writes_mount mount ...` is `fusefs mount ...` where each WRITE takes a while.

As it does where the cache is full. In the foreground only.
"""

from __future__ import annotations

from typing import Final

import trio

from backends.base import Data
from fusefs.cli import main
from fusefs.filesystem import Filesystem

SECONDS: Final = 0.3

_write = Filesystem.write


async def write_slowly(self: Filesystem, handle: int, offset: int, data: Data) -> int:
    data = bytes(data)  # the buffer is the kernel's next request by then
    await trio.sleep(SECONDS)
    return await _write(self, handle, offset, data)


if __name__ == "__main__":
    Filesystem.write = write_slowly  # type: ignore[method-assign]
    main()
