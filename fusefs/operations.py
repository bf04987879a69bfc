"""The pyfuse3 handlers: the kernel's requests, translated into calls of `filesystem` and back. Nothing is decided here.

Handlers that pyfuse3 would answer with ENOSYS by default are all defined where the kernel would take that for a
success from then on (fsync, fsyncdir), or where it would stop asking for something that we want to hear (flush). The
one exception is getxattr: the kernel asks for `security.capability` before each write(2), and ENOSYS to the first
makes it ask no more. A mount that was asked to have extended attributes answers.
"""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final

import pyfuse3

from fusefs.arrivals import Arrivals
from fusefs.attribute_changes import AttributeChanges
from fusefs.entry_attributes import entry_attributes, missing_entry, outlined_entry
from fusefs.errno_boundary import errno_boundary, silent_boundary
from fusefs.errors import NoSuchEntry
from fusefs.filesystem import Caller, Filesystem
from fusefs.inodes import Inode
from fusefs.namespace import Outline
from fusefs.xattr_calls import XattrCalls

READDIR_BATCH: Final = 128
"""Entries for one READDIRPLUS; the kernel's buffer takes about as many."""

_CAPACITY_BLOCKS: Final = 1 << 38
"""What statfs says: 2^38 blocks of 4 KiB, 1 PiB. A bucket has no size, and servers refuse to start on a full disk."""

_CAPACITY_FILES: Final = 1 << 40
_IO_BLOCK: Final = 4_096
_NAME_MAX: Final = 255


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelOptions:
    """What the kernel may keep without asking."""

    #: For how long it may keep names and attributes, missing names included.
    entry_timeout_seconds: float
    #: Whether it may keep the bytes of a file from one open to the next: where an open does not ask what others wrote.
    keep_cache: bool
    #: Whether it may gather writes, and so own sizes and times of files: only where no other host writes.
    writeback_cache: bool


class FuseOperations(pyfuse3.Operations):
    """One per mount."""

    supports_dot_lookup = True
    enable_acl = False

    def __init__(
        self,
        filesystem: Filesystem,
        options: KernelOptions,
        xattrs: XattrCalls | None = None,
        *,
        arrivals: Arrivals | None = None,
        collect_pages: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """`arrivals` is told of what the kernel sends of its own accord.

        `collect_pages` has the kernel hand over the writes that it has gathered, before a file takes a name: after a
        crash that would have neither these bytes nor the old ones. None: the kernel gathers none.
        """
        super().__init__()
        self._filesystem = filesystem
        self._xattrs_if_any = xattrs
        self._arrivals = arrivals or Arrivals()
        self._collect_pages = collect_pages
        self._timeout = options.entry_timeout_seconds
        self._keep_cache = options.keep_cache
        self.enable_writeback_cache = options.writeback_cache

    def _entry(self, inode: Inode) -> pyfuse3.EntryAttributes:
        return entry_attributes(inode, timeout_seconds=self._timeout)

    # Entries

    @errno_boundary
    async def lookup(
        self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        try:
            return self._entry(await self._filesystem.lookup(parent_inode, name))
        except NoSuchEntry:
            return missing_entry(timeout_seconds=self._timeout)

    @silent_boundary
    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        self._filesystem.forget(inode_list)

    @errno_boundary
    async def mkdir(
        self, parent_inode: int, name: bytes, mode: int, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        return self._entry(await self._filesystem.mkdir(parent_inode, name, mode, _caller(ctx)))

    @errno_boundary
    async def symlink(
        self, parent_inode: int, name: bytes, target: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        return self._entry(await self._filesystem.symlink(parent_inode, name, target, _caller(ctx)))

    @errno_boundary
    async def mknod(
        self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        return self._entry(await self._filesystem.mknod(parent_inode, name, mode, rdev, _caller(ctx)))

    @errno_boundary
    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: pyfuse3.RequestContext
    ) -> tuple[pyfuse3.FileInfo, pyfuse3.EntryAttributes]:
        inode, handle = await self._filesystem.create(parent_inode, name, mode, flags, _caller(ctx))
        return self._file_info(handle), self._entry(inode)

    @errno_boundary
    async def unlink(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        await self._filesystem.unlink(parent_inode, name)

    @errno_boundary
    async def rmdir(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        await self._filesystem.rmdir(parent_inode, name)

    @errno_boundary
    async def rename(
        self,
        parent_inode_old: int,
        name_old: bytes,
        parent_inode_new: int,
        name_new: bytes,
        flags: int,
        ctx: pyfuse3.RequestContext,
    ) -> None:
        names = (parent_inode_old, name_old, parent_inode_new, name_new)
        if self._collect_pages is not None and self._filesystem.replaces_while_written(*names, flags):
            await self._collect_pages()
        await self._filesystem.rename(*names, flags)

    @errno_boundary
    async def link(
        self, inode: int, new_parent_inode: int, new_name: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        return self._entry(await self._filesystem.link(inode, new_parent_inode, new_name))

    @errno_boundary
    async def readlink(self, inode: int, ctx: pyfuse3.RequestContext) -> bytes:
        return await self._filesystem.readlink(inode)

    # Attributes

    @errno_boundary
    async def getattr(self, inode: int, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        return self._entry(await self._filesystem.getattr(inode))

    @errno_boundary
    async def setattr(
        self,
        inode: int,
        attr: pyfuse3.EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: int | None,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        changes = AttributeChanges(
            mode=attr.st_mode if fields.update_mode else None,
            uid=attr.st_uid if fields.update_uid else None,
            gid=attr.st_gid if fields.update_gid else None,
            size=attr.st_size if fields.update_size else None,
            atime_ns=attr.st_atime_ns if fields.update_atime else None,
            mtime_ns=attr.st_mtime_ns if fields.update_mtime else None,
            ctime_ns=attr.st_ctime_ns if fields.update_ctime else None,
        )
        return self._entry(await self._filesystem.setattr(inode, changes))

    # Extended attributes

    @property
    def _xattrs(self) -> XattrCalls:
        if self._xattrs_if_any is None:
            raise pyfuse3.FUSEError(errno.ENOSYS)
        return self._xattrs_if_any

    @errno_boundary
    async def getxattr(self, inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> bytes:
        return await self._xattrs.get(inode, name)

    @errno_boundary
    async def listxattr(self, inode: int, ctx: pyfuse3.RequestContext) -> Sequence[bytes]:
        return await self._xattrs.names(inode, privileged=ctx.uid == 0)

    @errno_boundary
    async def setxattr(self, inode: int, name: bytes, value: bytes, ctx: pyfuse3.RequestContext) -> None:
        await self._xattrs.set(inode, name, value)

    @errno_boundary
    async def removexattr(self, inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        await self._xattrs.remove(inode, name)

    # Files

    def _file_info(self, handle: int) -> pyfuse3.FileInfo:
        return pyfuse3.FileInfo(fh=handle, keep_cache=self._keep_cache)

    @errno_boundary
    async def open(self, inode: int, flags: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        return self._file_info(await self._filesystem.open(inode, flags, _caller(ctx)))

    @errno_boundary
    async def read(self, fh: int, off: int, size: int) -> bytes:
        return await self._filesystem.read(fh, off, size)

    @errno_boundary
    async def write(self, fh: int, off: int, buf: bytes) -> int:
        with self._arrivals.arriving():
            return await self._filesystem.write(fh, off, buf)

    @errno_boundary
    async def flush(self, fh: int) -> None:
        await self._filesystem.flush(fh)

    @errno_boundary
    async def release(self, fh: int) -> None:
        await self._filesystem.release(fh)

    @errno_boundary
    async def fsync(self, fh: int, datasync: bool) -> None:
        await self._filesystem.fsync(fh)

    # Directories

    @errno_boundary
    async def opendir(self, inode: int, ctx: pyfuse3.RequestContext) -> int:
        handle = await self._filesystem.opendir(inode)
        self._arrivals.opened(ctx.pid, handle)
        return handle

    @errno_boundary
    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        """Positions 1 and 2 are behind `.` and `..`, of which the kernel keeps nothing and takes no reference."""
        dots = self._filesystem.dots(fh)
        entries = await self._filesystem.readdir(
            fh, max(start_id - len(dots), 0), READDIR_BATCH, rewound=start_id == 0
        )
        for position, (name, outline) in list(enumerate(dots, 1))[start_id:]:
            if not pyfuse3.readdir_reply(token, name, outlined_entry(outline), position):
                return
        for name, entry, place in entries:
            position = place + len(dots)
            if isinstance(entry, Outline):
                if not pyfuse3.readdir_reply(token, name, outlined_entry(entry), position):
                    return
            elif pyfuse3.readdir_reply(token, name, self._entry(entry), position):
                self._filesystem.refer(entry)
            else:
                return

    @errno_boundary
    async def releasedir(self, fh: int) -> None:
        self._arrivals.released(fh)
        await self._filesystem.releasedir(fh)

    @errno_boundary
    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        await self._filesystem.fsyncdir(fh)

    @errno_boundary
    async def statfs(self, ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        data = pyfuse3.StatvfsData()
        data.f_bsize = data.f_frsize = _IO_BLOCK
        data.f_blocks = data.f_bfree = data.f_bavail = _CAPACITY_BLOCKS
        data.f_files = data.f_ffree = data.f_favail = _CAPACITY_FILES
        data.f_namemax = _NAME_MAX
        return data


def _caller(ctx: pyfuse3.RequestContext) -> Caller:
    return Caller(uid=ctx.uid, gid=ctx.gid)
