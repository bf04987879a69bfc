"""Extended attributes, for a mount that has them: getxattr(2) and its kin on the inodes of the tree.

They are part of an inode's attributes and go to the bucket with them; the kernel has checked who may do what. POSIX
ACLs are refused: nobody here would keep to them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from backends.base import ObjectStorage
from backends.errors import NotFound
from fusefs import extended_attributes
from fusefs.clock import Clock
from fusefs.errors import (
    FilesystemError,
    InvalidArgument,
    NoRoomForAttributes,
    NoSuchAttribute,
    NotSupportedHere,
)
from fusefs.inode_table import InodeTable
from fusefs.inodes import File, Inode, is_joined
from fusefs.publisher import Publisher


class XattrCalls:
    """The operations; inodes go in by the numbers that the kernel uses."""

    def __init__(
        self,
        storage: ObjectStorage,
        inodes: InodeTable,
        publisher: Publisher,
        clock: Clock,
        check_writable: Callable[[], None],
        *,
        shared: bool = False,
    ) -> None:
        """`check_writable` raises what every change of this mount has to raise, if it may change nothing."""
        self._storage = storage
        self._inodes = inodes
        self._publisher = publisher
        self._changes = publisher.changes
        self._clock = clock
        self._check_writable = check_writable
        self._shared = shared

    async def get(self, number: int, name: bytes) -> bytes:
        """Return a value. Raises `NoSuchAttribute`, and `NotSupportedHere` for names that no file here can have."""
        _check_namespace(name)
        inode = self._inodes[number]
        await self._load(inode)
        return _value(inode, name)

    async def names(self, number: int, *, privileged: bool) -> list[bytes]:
        """Return the names that the caller may see, sorted."""
        inode = self._inodes[number]
        await self._load(inode)
        found = extended_attributes.decode(inode.attributes.xattrs)
        return [name for name in found if privileged or not name.startswith(extended_attributes.PRIVILEGED)]

    async def set(self, number: int, name: bytes, value: bytes) -> None:
        """Give an attribute a value. Raises `NotSupportedHere` and `NoRoomForAttributes`."""
        self._check_writable()
        _check_namespace(name)
        inode = self._inodes[number]
        await self._load(inode)
        changed = extended_attributes.decode(inode.attributes.xattrs) | {name: value}
        if sum(len(name) + len(value) for name, value in changed.items()) > extended_attributes.MAX_TOTAL:
            raise NoRoomForAttributes(f"{inode.path_key!r} has {extended_attributes.MAX_TOTAL} bytes of them")
        await self._change(inode, changed)

    async def remove(self, number: int, name: bytes) -> None:
        """Take an attribute away. Raises `NoSuchAttribute` and `NotSupportedHere`."""
        self._check_writable()
        _check_namespace(name)
        inode = self._inodes[number]
        await self._load(inode)
        _value(inode, name)
        changed = extended_attributes.decode(inode.attributes.xattrs)
        del changed[name]
        await self._change(inode, changed)

    async def _load(self, inode: Inode) -> None:
        """Fetch what is in an object of its own. Raises `FilesystemError` where that is missing or damaged."""
        while extended_attributes.is_reference(reference := inode.attributes.xattrs):
            key = extended_attributes.object_key(reference)
            assert key is not None
            try:
                text = (await self._storage.get_range(key)).data.decode()
                text = extended_attributes.loaded(text, reference)
            except NotFound as error:
                text = await self._said_now(inode)
                if text == reference:
                    raise FilesystemError(
                        f"the extended attributes of {inode.path_key!r} are gone"
                    ) from error
            except ValueError as error:
                raise FilesystemError(
                    f"the extended attributes of {inode.path_key!r} in {key!r} are damaged"
                ) from error
            if inode.attributes.xattrs == reference:
                inode.attributes = replace(inode.attributes, xattrs=text)
                inode.note_stored_xattrs()

    async def _said_now(self, inode: Inode) -> str:
        """Return what the metadata says by now: whoever has given the file others has removed those."""
        if inode.version is None:
            return inode.attributes.xattrs
        info = await self._storage.head(inode.version.key)
        return extended_attributes.from_metadata(info.metadata or {})

    async def _change(self, inode: Inode, changed: Mapping[bytes, bytes]) -> None:
        attributes = inode.attributes.changed(self._clock.realtime_ns())
        inode.attributes = replace(
            attributes, xattrs=extended_attributes.named(extended_attributes.encode(changed))
        )
        if inode.aliases or not is_joined(inode):
            inode.share_xattrs()
        if inode.linked:
            inode.state.attributes_changed = True
            self._changes.changed(inode)
        if self._shared and not (isinstance(inode, File) and inode.writers):
            await self._publisher.publish(inode)


def _check_namespace(name: bytes) -> None:
    if name in extended_attributes.NAMESPACES:
        raise InvalidArgument(f"{name!r} is the beginning of a name, and none")
    if not name.startswith(extended_attributes.NAMESPACES):
        raise NotSupportedHere(f"no file here has {name!r}")


def _value(inode: Inode, name: bytes) -> bytes:
    found = extended_attributes.decode(inode.attributes.xattrs).get(name)
    if found is None:
        raise NoSuchAttribute(f"{inode.path_key!r} has no {name!r}")
    return found
