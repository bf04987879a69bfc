"""A file system that keeps names and sizes, answers reads with zeros and swallows writes: what pyfuse3 itself allows.

    python -m tests.bench.null_mount MOUNTPOINT

It has the kernel's options that fusefs asks for, and nothing behind them.
"""

from __future__ import annotations

import errno
import stat
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pyfuse3
import trio

from fusefs.kernel_tuning import tune_mount, tune_process

_KEEP_SECONDS: Final = 3600.0
_ZEROS: Final = bytes(1024 * 1024)


@dataclass(slots=True)
class _Node:
    number: int
    mode: int
    size: int = 0
    changed_ns: int = 0
    children: dict[bytes, _Node] = field(default_factory=dict)

    def attributes(self) -> pyfuse3.EntryAttributes:
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = pyfuse3.InodeT(self.number)
        entry.st_mode = pyfuse3.ModeT(self.mode)
        entry.st_nlink = 1
        entry.st_size = self.size
        entry.st_atime_ns = entry.st_mtime_ns = entry.st_ctime_ns = self.changed_ns
        entry.entry_timeout = entry.attr_timeout = _KEEP_SECONDS
        return entry


class NullOperations(pyfuse3.Operations):
    """One tree in memory; a handle is the number of its inode."""

    enable_writeback_cache = True

    def __init__(self) -> None:
        super().__init__()
        self._nodes = {pyfuse3.ROOT_INODE: _Node(pyfuse3.ROOT_INODE, stat.S_IFDIR | 0o755)}

    def _make(self, parent: int, name: bytes, mode: int) -> _Node:
        node = _Node(len(self._nodes) + 1, mode, changed_ns=time.time_ns())
        self._nodes[node.number] = self._nodes[parent].children[name] = node
        return node

    async def lookup(
        self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        node = self._nodes[parent_inode].children.get(name)
        if node is None:
            raise pyfuse3.FUSEError(errno.ENOENT)
        return node.attributes()

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        """Keep everything."""

    async def getattr(self, inode: int, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        return self._nodes[inode].attributes()

    async def setattr(
        self,
        inode: int,
        attr: pyfuse3.EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: int | None,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        node = self._nodes[inode]
        if fields.update_size:
            node.size = attr.st_size
        return node.attributes()

    async def mkdir(
        self, parent_inode: int, name: bytes, mode: int, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        return self._make(parent_inode, name, stat.S_IFDIR | mode).attributes()

    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: pyfuse3.RequestContext
    ) -> tuple[pyfuse3.FileInfo, pyfuse3.EntryAttributes]:
        node = self._make(parent_inode, name, mode)
        return pyfuse3.FileInfo(fh=pyfuse3.FileHandleT(node.number), keep_cache=True), node.attributes()

    async def unlink(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        del self._nodes[parent_inode].children[name]

    async def open(self, inode: int, flags: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        return pyfuse3.FileInfo(fh=pyfuse3.FileHandleT(inode), keep_cache=True)

    async def read(self, fh: int, off: int, size: int) -> bytes:
        return _ZEROS[: max(0, min(size, self._nodes[fh].size - off))]

    async def write(self, fh: int, off: int, buf: bytes) -> int:
        node = self._nodes[fh]
        node.size = max(node.size, off + len(buf))
        return len(buf)

    async def flush(self, fh: int) -> None:
        """Do nothing."""

    async def release(self, fh: int) -> None:
        """Do nothing."""

    async def fsync(self, fh: int, datasync: bool) -> None:
        """Do nothing."""

    async def opendir(self, inode: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileHandleT:
        return pyfuse3.FileHandleT(inode)

    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        for number, (name, node) in enumerate([*self._nodes[fh].children.items()][start_id:], start_id + 1):
            if not pyfuse3.readdir_reply(token, pyfuse3.FileNameT(name), node.attributes(), number):
                break


async def _main(mountpoint: Path) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pyfuse3.main)
        tune_mount((await trio.to_thread.run_sync(mountpoint.stat)).st_dev)


if __name__ == "__main__":
    tune_process()
    options = {*pyfuse3.default_options, "fsname=null"}
    pyfuse3.init(NullOperations(), sys.argv[1], options)
    try:
        trio.run(_main, Path(sys.argv[1]))
    finally:
        pyfuse3.close(unmount=True)
