"""A real mount that tells how long requests were: `python -m tests.mount.counting_mount MOUNTPOINT STAGE`.

A mount of its own process, because pyfuse3 has one per process. When it has ended it prints the lengths of all reads
and writes, as JSON.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pyfuse3
import trio

from backends.memory import MemoryStorage
from fusefs.filesystem import FilesystemOptions
from fusefs.kernel_tuning import tune_mount
from fusefs.operations import FuseOperations, KernelOptions
from tests.core.tree import TreeOptions, open_tree

OPTIONS = TreeOptions(filesystem=FilesystemOptions(kernel_keeps_times=True))


class CountingOperations(FuseOperations):
    """Notes the length of each request."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)  # type: ignore[arg-type]
        self.read_lengths: list[int] = []
        self.write_lengths: list[int] = []

    async def read(self, fh: int, off: int, size: int) -> bytes:
        self.read_lengths.append(size)
        return await super().read(fh, off, size)

    async def write(self, fh: int, off: int, buf: bytes) -> int:
        self.write_lengths.append(len(buf))
        return await super().write(fh, off, buf)


async def serve(mountpoint: str, stage: Path) -> None:
    async with open_tree(MemoryStorage(), stage, OPTIONS) as tree:
        options = KernelOptions(entry_timeout_seconds=60.0, keep_cache=True, writeback_cache=True)
        operations = CountingOperations(tree.filesystem, options, tree.xattrs)
        pyfuse3.init(operations, mountpoint, {"default_permissions"})
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(pyfuse3.main)
                status = await trio.to_thread.run_sync(os.stat, mountpoint)
                await trio.to_thread.run_sync(tune_mount, status.st_dev)
                print("ready", flush=True)
        finally:
            pyfuse3.close(unmount=True)
    print(json.dumps({"read": operations.read_lengths, "write": operations.write_lengths}))


if __name__ == "__main__":
    trio.run(serve, sys.argv[1], Path(sys.argv[2]))
