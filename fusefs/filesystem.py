"""POSIX on the tree, without FUSE: every operation as a coroutine on inode and handle numbers.

The kernel has checked permissions by the time a request arrives (`default_permissions`), holds a lookup count for
each inode that it names, and serialises operations on one directory. What is left is the meaning: who is told, what
changes, and what must be in the bucket before the answer.

Three kinds of mount differ here and nowhere below. An owner answers from memory and publishes behind. A shared mount
publishes before it answers where another host could look next: at close, at fsync, after a change of names. A
read-only mount refuses every change with `ReadOnlyFilesystem`.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final

from backends.base import MIB, S3_LIMITS, Data
from backends.errors import is_outage
from fusefs import fetching
from fusefs.attribute_changes import AttributeChanges, with_owner_and_mode, with_times, without_set_id_bits
from fusefs.attributes import Attributes, fresh
from fusefs.change_log import ChangeLog
from fusefs.clock import Clock
from fusefs.errors import (
    BadHandle,
    EntryExists,
    FileTooLarge,
    InvalidArgument,
    IsADirectory,
    LeaseLapsed,
    NoSuchInode,
    NotADirectory,
    ReadOnlyFilesystem,
    StaleFile,
)
from fusefs.inode_table import InodeTable
from fusefs.inodes import Directory, File, Inode, Symlink, check_not_stale
from fusefs.look_ahead import MAX_WINDOW
from fusefs.namespace import Namespace, Outline
from fusefs.open_files import Handles, OpenDirectory, OpenFile
from fusefs.prefetch import SequentialDetector
from fusefs.publisher import Publisher
from fusefs.stage_budget import StageBudget
from fusefs.stage_writer import StageWriter

MAX_FILE_SIZE: Final = S3_LIMITS.max_object_size
"""Bytes: what S3 allows for one object."""

RENAME_NOREPLACE: Final = 1
RENAME_EXCHANGE: Final = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class FilesystemOptions:
    """What kind of mount it is."""

    read_only: bool = False
    shared: bool = False
    #: Whether close(2) returns only when the object is in the bucket, as it always does on a shared mount.
    wait_on_close: bool = False
    #: Whether the kernel tells the times of writes (its writeback cache): what it hands over was written earlier.
    kernel_keeps_times: bool = False
    #: The widest window that a sequential reader is given.
    read_ahead_bytes: int = 32 * MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who asks."""

    uid: int
    gid: int


class Filesystem:
    """The operations. Inodes and handles go in and out by the numbers that the kernel uses."""

    def __init__(
        self,
        namespace: Namespace,
        inodes: InodeTable,
        publisher: Publisher,
        log: ChangeLog,
        budget: StageBudget,
        clock: Clock,
        options: FilesystemOptions,
    ) -> None:
        self._namespace = namespace
        self._inodes = inodes
        self._publisher = publisher
        self._changes = publisher.changes
        self._log = log
        self._stage = StageWriter(budget, publisher, log)
        self._clock = clock
        self._options = options
        self._budget = budget
        self._handles = Handles()

    def check_writable(self) -> None:
        """Raise `ReadOnlyFilesystem`, or what is below it, where nothing may be changed."""
        if self._options.read_only:
            raise ReadOnlyFilesystem("the mount is read-only")
        self._log.check()

    # Entries

    async def lookup(self, parent: int, name: bytes) -> Inode:
        """Return the entry, which the kernel refers to from now on."""
        if name == b".":
            return self._referred_to(self._inodes[parent])
        directory = self._directory(parent)
        if name == b"..":
            inode: Inode = directory.parent or directory
        else:
            directory.lookups_within += 1
            inode = await self._namespace.lookup(directory, name, wholly=False)
        return self._referred_to(inode)

    def forget(self, references: Iterable[tuple[int, int]]) -> None:
        """Take back the kernel's references, given as inode number and count."""
        for number, count in references:
            inode = self._inodes.forget(number, count)
            if inode is not None:
                self._namespace.drop_if_unused(inode)

    async def mkdir(self, parent: int, name: bytes, mode: int, caller: Caller) -> Inode:
        directory = await self._prepare_create(parent, name)
        made = self._namespace.new_directory(
            self._fresh(directory, stat.S_IFDIR | stat.S_IMODE(mode), caller)
        )
        return await self._add(directory, name, made)

    async def symlink(self, parent: int, name: bytes, target: bytes, caller: Caller) -> Inode:
        directory = await self._prepare_create(parent, name)
        made = self._namespace.new_symlink(self._fresh(directory, stat.S_IFLNK | 0o777, caller), target)
        return await self._add(directory, name, made)

    async def mknod(self, parent: int, name: bytes, mode: int, rdev: int, caller: Caller) -> Inode:
        directory = await self._prepare_create(parent, name)
        attributes = replace(self._fresh(directory, mode, caller), rdev=rdev)
        regular = stat.S_IFMT(mode) in (0, stat.S_IFREG)
        if regular:
            attributes = replace(attributes, mode=stat.S_IFREG | stat.S_IMODE(mode))
        make = self._namespace.new_file if regular else self._namespace.new_special
        return await self._add(directory, name, make(attributes))

    async def create(
        self, parent: int, name: bytes, mode: int, flags: int, caller: Caller
    ) -> tuple[Inode, int]:
        """Make a file and open it; returns the inode and the handle.

        Raises `NoSuchInode` where the name is taken and `flags` do not say O_EXCL: the kernel believes what it was told
        before somebody else took it. It looks again then, and opens what there is, if permissions let it.
        """
        try:
            directory = await self._prepare_create(parent, name)
        except EntryExists as error:
            if flags & os.O_EXCL:
                raise
            raise NoSuchInode(f"{name!r} has come up since it was looked up") from error
        file = self._namespace.new_file(self._fresh(directory, stat.S_IFREG | stat.S_IMODE(mode), caller))
        handle = self._open(file, flags)  # first: a file that is being written is not published at once
        self._namespace.add(directory, name, file, self._clock.realtime_ns())
        return self._referred_to(file), handle

    async def link(self, number: int, parent: int, name: bytes) -> Inode:
        """Give anything but a directory a further name."""
        inode = self._inodes[number]
        directory = await self._prepare_create(parent, name)
        check_not_stale(inode)  # what is being kept beside somebody else's will have no name
        self._namespace.link(inode, directory, name, self._clock.realtime_ns())
        return await self._entered(inode)

    async def unlink(self, parent: int, name: bytes) -> None:
        self.check_writable()
        directory = self._directory(parent)
        inode = await self._namespace.unlink(directory, name, self._clock.realtime_ns())
        self._namespace.drop_if_unused(inode)
        await self._names_changed(inode)

    async def rmdir(self, parent: int, name: bytes) -> None:
        self.check_writable()
        inode = await self._namespace.rmdir(self._directory(parent), name, self._clock.realtime_ns())
        self._namespace.drop_if_unused(inode)
        await self._names_changed(inode)

    async def rename(self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int) -> None:
        """As renameat2(2); raises `InvalidArgument` for flags other than RENAME_NOREPLACE and RENAME_EXCHANGE."""
        self.check_writable()
        if flags not in (0, RENAME_NOREPLACE, RENAME_EXCHANGE):
            raise InvalidArgument(f"rename flags {flags:#x} are not known")
        directory, new_directory = self._directory(parent), self._directory(new_parent)
        with self._inodes.kept():
            replaced = await self._namespace.rename(
                directory,
                name,
                new_directory,
                new_name,
                self._clock.realtime_ns(),
                exchange=flags == RENAME_EXCHANGE,
                replace=flags != RENAME_NOREPLACE,
            )
        renamed = (directory.children.get(name), new_directory.children.get(new_name))
        if replaced is not None:
            self._namespace.drop_if_unused(replaced)
        await self._names_changed(*(entry for entry in renamed if isinstance(entry, Inode)))

    def replaces_while_written(
        self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int
    ) -> bool:
        """Return whether a rename gives the name of another entry to a file that somebody has open for writing."""
        moved = self._directory(parent).children.get(name)
        replaced = self._directory(new_parent).children.get(new_name)
        takers = (moved, replaced) if flags == RENAME_EXCHANGE else (moved,)
        return replaced is not None and any(isinstance(each, Inode) and _is_written(each) for each in takers)

    async def readlink(self, number: int) -> bytes:
        inode = self._inodes[number]
        if not isinstance(inode, Symlink):
            raise InvalidArgument(f"inode {number} is no symbolic link")
        return inode.target

    # Attributes

    async def getattr(self, number: int) -> Inode:
        return self._inodes[number]

    async def setattr(self, number: int, changes: AttributeChanges) -> Inode:
        """Change what is not None.

        New times alone are published with what else there is, or a little later; nobody waits for them. On a shared
        mount every other change is published now, unless the file is open for writing and will be at its close.
        """
        self.check_writable()
        inode = self._inodes[number]
        now_ns = self._clock.realtime_ns()
        if changes.size is not None:
            await self._truncate(self._file(inode), changes.size, now_ns)
        self._set_owner_and_mode(inode, changes, now_ns)
        self._set_times(inode, changes, now_ns)
        if self._options.shared and not (isinstance(inode, File) and inode.writers):
            await self._publisher.publish(inode)
        return inode

    def _set_times(self, inode: Inode, changes: AttributeChanges, now_ns: int) -> None:
        attributes = with_times(inode.attributes, changes, now_ns)
        if attributes is None:
            return
        inode.attributes = attributes
        if inode.linked:
            self._changes.touched(inode)

    def _set_owner_and_mode(self, inode: Inode, changes: AttributeChanges, now_ns: int) -> None:
        attributes = with_owner_and_mode(
            inode.attributes, changes, now_ns, kernel_keeps_times=self._options.kernel_keeps_times
        )
        if attributes is None:
            return
        inode.attributes = attributes
        if inode.linked:
            inode.state.attributes_changed = True
            self._changes.changed(inode)

    # Files

    @property
    def has_writers(self) -> bool:
        """Whether a file is open for writing."""
        return self._handles.any_writable

    async def open(self, number: int, flags: int, caller: Caller) -> int:
        """Return a new handle; O_TRUNC in `flags` empties the file, and takes set-ID bits away as a write would.

        Raises `StaleFile` where somebody else has replaced the object, and `NoSuchInode` for a file that was removed
        and is open nowhere: the kernel then looks the path up again.
        """
        file = self._file(self._inodes[number])
        _check_has_content(file)
        if self._options.shared:
            await self._namespace.check_current(file)
            _check_has_content(file)  # somebody may have removed it meanwhile
        if flags & os.O_ACCMODE != os.O_RDONLY or flags & os.O_TRUNC:
            self.check_writable()
        if flags & os.O_TRUNC:
            await self._truncate(file, 0, self._clock.realtime_ns())
            self._take_set_id_bits(file, caller.uid)
        if flags & os.O_ACCMODE == os.O_RDONLY:
            self._namespace.opened(
                file, fetch_ahead_bytes=min(self._options.read_ahead_bytes, self._budget.room_ahead)
            )
        return self._open(file, flags)

    async def read(self, handle: int, offset: int, length: int) -> bytes:
        opened = self._handles.get(handle, OpenFile)
        try:
            return await fetching.read(opened.file.content, offset, length, opened.reader)
        except StaleFile:
            self._namespace.found_stale(opened.file)
            raise

    async def write(self, handle: int, offset: int, data: Data) -> int:
        """Put `data` into the file and return its length. Raises `StaleFile` if somebody else changed the object."""
        opened = self._handles.get(handle, OpenFile)
        if not opened.writable:
            raise BadHandle(f"{handle} is not open for writing")
        if offset + len(data) > MAX_FILE_SIZE:
            raise FileTooLarge(f"a file can have {MAX_FILE_SIZE} bytes")
        file = opened.file
        await self._log.wait_for_room()
        await file.content.wait_writable()
        await self._stage.write(file, offset, data)
        if not self._options.kernel_keeps_times:
            file.attributes = file.attributes.changed(self._clock.realtime_ns(), contents=True)
        self._changes.written(file)
        return len(data)

    async def flush(self, handle: int) -> None:
        """Come once per close(2) of a descriptor. Raises a failure that is not made good yet.

        That of an outage is, once the log has the file: whoever was told so by fsync has lost nothing.
        """
        opened = self._handles.get(handle, OpenFile)
        if opened.writable and (self._options.shared or self._options.wait_on_close):
            await self._publisher.publish(opened.file)
        elif opened.writable and (failure := opened.file.state.failure) is not None:
            was_away = isinstance(failure, LeaseLapsed) or is_outage(failure)
            if not (was_away and self._log.has(opened.file)):
                raise failure

    async def release(self, handle: int) -> None:
        """Come once per open(2), when its last descriptor is closed."""
        opened = self._handles.remove(handle, OpenFile)
        file = opened.file
        file.handles -= 1
        file.writers -= opened.writable
        if opened.writable:
            self._changes.closed(file)
        if file.handles == 0 and not file.linked:
            self._changes.released(file)
        self._namespace.drop_if_unused(file)

    async def release_all(self) -> None:
        """Close what is open still, when the kernel has gone: of what was closed just before, it does not tell."""
        for handle in self._handles.of_files():
            await self.release(handle)

    async def fsync(self, handle: int) -> None:
        """Return when the file, as it is now, is durable under its name. Raises why it is not."""
        file = self._handles.get(handle, OpenFile).file
        if not self._log.is_kept:
            await self._publisher.publish(file)
            return
        with self._publisher.giving_way():
            await self._log.commit()
        check_not_stale(file)  # or what the log has by now may be a file without this name

    # Directories

    async def opendir(self, number: int) -> int:
        """Return a new handle. Nothing is listed before it is read: servers open directories to fsync them."""
        return self._handles.add(OpenDirectory(self._directory(number)))

    async def readdir(
        self, handle: int, start: int, count: int, *, rewound: bool = True
    ) -> list[tuple[bytes, Inode | Outline, int]]:
        """Return up to `count` entries after position `start`, each with the position after it.

        An empty answer means the end. Reading from position 0 takes the names anew, as rewinddir(3) asks for, unless
        it is not `rewound`: seekdir(3) leaves the positions that were told what they are. Of a large directory the
        first come while the rest is still being listed. An entry that nobody has looked at is an outline, unless the
        reader looks entries up: then attributes are fetched ahead, and come with the names. Entries are not referred
        to by the kernel until `refer` says so.
        """
        opened = self._handles.get(handle, OpenDirectory)
        directory = opened.directory
        if start == 0 and (rewound or not opened.has_names):
            opened.names = await self._namespace.names(directory)
        elif directory.lookups_within != opened.lookups_seen and opened.ahead is None:
            opened.ahead = self._namespace.attributes_ahead(directory)
        opened.lookups_seen = directory.lookups_within
        while names := await opened.names.take(start, count):
            if opened.ahead is not None:
                await opened.ahead.resolve(names, opened.names.known(start + len(names), MAX_WINDOW))
            entries = list(self._namespace.outlines(directory, names, start))
            if entries:
                return entries
            start += len(names)
        return []

    def dots(self, handle: int) -> list[tuple[bytes, Outline]]:
        """Return what `readdir` leaves out: the directory itself and the one above, which for the root is itself."""
        directory = self._handles.get(handle, OpenDirectory).directory
        above = directory.parent or directory
        return [(b".", Outline(directory.number, stat.S_IFDIR)), (b"..", Outline(above.number, stat.S_IFDIR))]

    def refer(self, inode: Inode) -> None:
        """Note that the kernel has been given an entry of a directory and refers to its inode."""
        self._referred_to(inode)

    async def releasedir(self, handle: int) -> None:
        opened = self._handles.remove(handle, OpenDirectory)
        if opened.ahead is not None:
            opened.ahead.stop()

    async def fsyncdir(self, handle: int) -> None:
        """Return when every change of names made until now is durable.

        Without a log that means the bucket. A file that is open for writing is then published only where the bucket
        does not have its name in this directory.
        """
        directory = self._handles.get(handle, OpenDirectory).directory
        if self._log.is_kept:
            with self._publisher.giving_way():
                await self._log.commit()
            return
        await self._publisher.publish(directory)
        for child in list(directory.inodes()):
            if isinstance(child, File) and child.writers and not _has_its_name(child):
                await self._publisher.publish(child)
        await self._publisher.publish_all(open_files=False)

    # Within

    def _directory(self, number: int) -> Directory:
        inode = self._inodes[number]
        if not isinstance(inode, Directory):
            raise NotADirectory(f"inode {number} is no directory")
        return inode

    def _file(self, inode: Inode) -> File:
        if isinstance(inode, Directory):
            raise IsADirectory(f"{inode.path_key!r} is a directory")
        if not isinstance(inode, File):
            raise InvalidArgument(f"{inode.path_key!r} is no regular file")
        return inode

    async def _prepare_create(self, parent: int, name: bytes) -> Directory:
        self.check_writable()
        directory = self._directory(parent)
        await self._namespace.prepare_create(directory, name)
        return directory

    def _fresh(self, directory: Directory, mode: int, caller: Caller) -> Attributes:
        """Return attributes for a new entry: a directory with the set-group-ID bit hands its group down."""
        gid = caller.gid
        if directory.attributes.mode & stat.S_ISGID:
            gid = directory.attributes.gid
            mode |= stat.S_ISGID if stat.S_ISDIR(mode) else 0
        return fresh(mode=mode, uid=caller.uid, gid=gid, now_ns=self._clock.realtime_ns())

    async def _add(self, directory: Directory, name: bytes, inode: Inode) -> Inode:
        self._namespace.add(directory, name, inode, self._clock.realtime_ns())
        return await self._entered(inode)

    async def _entered(self, inode: Inode) -> Inode:
        self._referred_to(inode)  # now: while it is published, somebody may remove it
        try:
            await self._names_changed(inode)
        except BaseException:
            self.forget([(inode.number, 1)])
            raise
        return inode

    async def _names_changed(self, *inodes: Inode) -> None:
        if self._options.shared:
            await self._publisher.publish_names(*inodes)

    def _take_set_id_bits(self, file: File, writer_uid: int) -> None:
        attributes = without_set_id_bits(file.attributes, writer_uid)
        if attributes != file.attributes:
            file.attributes = attributes
            if file.linked:
                file.state.attributes_changed = True
                self._changes.changed(file)

    def _open(self, file: File, flags: int) -> int:
        opened = OpenFile(file, flags, SequentialDetector(self._options.read_ahead_bytes))
        file.handles += 1
        file.writers += opened.writable
        return self._handles.add(opened)

    async def _truncate(self, file: File, size: int, now_ns: int) -> None:
        if size > MAX_FILE_SIZE:
            raise FileTooLarge(f"a file can have {MAX_FILE_SIZE} bytes")
        await file.content.wait_writable()
        _check_has_content(file)
        if size == file.content.size and self._options.kernel_keeps_times:
            return  # the kernel has changed no time, and would show ours once it has forgotten the file
        self._stage.truncate(file, size)
        file.attributes = file.attributes.changed(now_ns, contents=True)
        self._changes.written(file)

    @staticmethod
    def _referred_to(inode: Inode) -> Inode:
        inode.lookups += 1
        return inode


def _check_has_content(file: File) -> None:
    """Raise `StaleFile`, or `NoSuchInode` for a file that was removed while it was open nowhere."""
    check_not_stale(file)
    if not file.linked and not file.handles:
        raise NoSuchInode(f"inode {file.number} was removed, and its content with it")


def _has_its_name(file: File) -> bool:
    """Return whether the bucket has the file's object, as old as it may be, under the file's name."""
    return file.version is not None and file.version.key == file.path_key


def _is_written(inode: Inode) -> bool:
    """Return whether somebody has the file open for writing, under whichever of its names."""
    return isinstance(inode.subject, File) and bool(inode.subject.writers)
