"""What was done to a tree with a log, and what a later mount may show of it.

`History` does every operation twice: on a tree and on a model of it. It keeps the model's state after each of them,
and which of the states was acknowledged last. A recovery is right if its tree is one of the states since then.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

import trio

from backends.errors import Unavailable
from fusefs.attribute_changes import AttributeChanges
from fusefs.filesystem import RENAME_EXCHANGE
from fusefs.inodes import Directory, File, Symlink
from tests.core.tree import Tree

XATTR = b"user.x"


class Entry(NamedTuple):
    """What is under a path: kind and permissions, bytes or target, the value of one attribute, and its other names."""

    mode: int
    data: bytes = b""
    xattr: bytes = b""
    names: tuple[str, ...] = ()


State: TypeAlias = Mapping[str, Entry]


@dataclass(eq=False)
class _Node:
    mode: int
    data: bytearray = field(default_factory=bytearray)
    xattr: bytes = b""
    children: dict[str, _Node] = field(default_factory=dict)

    def entry(self, names: Iterable[str]) -> Entry:
        return Entry(self.mode, bytes(self.data), self.xattr, tuple(sorted(names)))


class History:
    """Operations on a tree and their states; begin with the objects that are in the bucket already."""

    def __init__(self, before: Mapping[str, bytes]) -> None:
        self._root = _Node(stat.S_IFDIR | 0o755)
        self._handles: dict[int, _Node] = {}
        for key, data in before.items():
            directory, name = self._parent(key, make=True)
            directory.children[name] = _Node(stat.S_IFREG | 0o644, bytearray(data))
        self.states: list[State] = [self.state()]
        self.acknowledged = 0
        #: Uploads that mounts before have begun.
        self.uploads: list[tuple[str, str]] = []
        self._tree: Tree | None = None

    def attend(self, tree: Tree) -> None:
        """Go on with another tree, which has no open handles yet."""
        self._tree = tree
        self._handles.clear()

    @property
    def tree(self) -> Tree:
        assert self._tree is not None
        return self._tree

    def state(self) -> State:
        """Return what there is now, by path."""
        names: dict[_Node, list[str]] = {}
        pending = [("", self._root)]
        for path, node in pending:
            for name, child in node.children.items():
                names.setdefault(child, []).append(f"{path}{name}")
                pending.append((f"{path}{name}/", child))
        return {path: node.entry(set(paths) - {path}) for node, paths in names.items() for path in paths}

    def allows(self, state: State) -> bool:
        """Return whether a tree may be so after a crash."""
        return state in self.states[self.acknowledged :]

    def resume(self, state: State) -> None:
        """Go on from a state that was recovered: it is history, and nothing else is."""
        self._root = _Node(stat.S_IFDIR | 0o755)
        entered: set[str] = set()
        for path, entry in sorted(state.items()):
            directory, name = self._parent(path)
            known = next((self._at(other) for other in entry.names if other in entered), None)
            directory.children[name] = known or _Node(entry.mode, bytearray(entry.data), entry.xattr)
            entered.add(path)
        self.states, self.acknowledged = [self.state()], 0
        self._handles.clear()

    # Operations

    async def create(self, path: str) -> int:
        directory, name = self._parent(path)
        node = directory.children[name] = _Node(stat.S_IFREG | 0o644)
        self._note()
        handle = await self.tree.create(path)
        self._handles[handle] = node
        return handle

    async def open(self, path: str, flags: int = os.O_RDWR) -> int:
        node = self._at(path)
        if flags & os.O_TRUNC:
            del node.data[:]
            self._note()
        handle = await self.tree.open(path, flags)
        self._handles[handle] = node
        return handle

    async def write(self, handle: int, offset: int, data: bytes) -> None:
        node = self._handles[handle].data
        if offset > len(node):
            node.extend(bytes(offset - len(node)))
        node[offset : offset + len(data)] = data
        self._note()
        await self.tree.filesystem.write(handle, offset, data)

    async def truncate(self, path: str, size: int) -> None:
        data = self._at(path).data
        if size < len(data):
            del data[size:]
        else:
            data.extend(bytes(size - len(data)))
        self._note()
        await self.tree.filesystem.setattr((await self.tree.find(path)).number, AttributeChanges(size=size))

    async def chmod(self, path: str, mode: int) -> None:
        node = self._at(path)
        node.mode = stat.S_IFMT(node.mode) | mode
        self._note()
        await self.tree.filesystem.setattr((await self.tree.find(path)).number, AttributeChanges(mode=mode))

    async def set_xattr(self, path: str, value: bytes) -> None:
        self._at(path).xattr = value
        self._note()
        await self.tree.xattrs.set((await self.tree.find(path)).number, XATTR, value)

    async def mkdir(self, path: str) -> None:
        directory, name = self._parent(path)
        directory.children[name] = _Node(stat.S_IFDIR | 0o755)
        self._note()
        await self.tree.mkdir(path)

    async def symlink(self, path: str, target: bytes) -> None:
        directory, name = self._parent(path)
        directory.children[name] = _Node(stat.S_IFLNK | 0o777, bytearray(target))
        self._note()
        await self.tree.symlink(path, target)

    async def link(self, path: str, new_path: str) -> None:
        node = self._at(path)
        directory, name = self._parent(new_path)
        directory.children[name] = node
        self._note()
        await self.tree.link(path, new_path)

    async def unlink(self, path: str) -> None:
        directory, name = self._parent(path)
        del directory.children[name]
        self._note()
        await self.tree.unlink(path)

    async def rmdir(self, path: str) -> None:
        directory, name = self._parent(path)
        del directory.children[name]
        self._note()
        await self.tree.rmdir(path)

    async def rename(self, path: str, new_path: str) -> None:
        (directory, name), (new_directory, new_name) = self._parent(path), self._parent(new_path)
        if new_directory.children.get(new_name) is not directory.children[name]:
            new_directory.children[new_name] = directory.children.pop(name)
        self._note()
        await self._move(path, new_path)

    async def exchange(self, path: str, other: str) -> None:
        (directory, name), (other_directory, other_name) = self._parent(path), self._parent(other)
        node = directory.children[name]
        directory.children[name] = other_directory.children[other_name]
        other_directory.children[other_name] = node
        self._note()
        await self._move(path, other, RENAME_EXCHANGE)

    async def fsync(self, handle: int) -> None:
        state = len(self.states) - 1
        await self.tree.filesystem.fsync(handle)
        self.acknowledged = max(self.acknowledged, state)

    async def commit(self) -> None:
        state = len(self.states) - 1
        await self.tree.log.commit()
        self.acknowledged = max(self.acknowledged, state)

    async def close(self, handle: int) -> None:
        del self._handles[handle]
        await self.tree.close(handle)

    # Within

    async def _move(self, path: str, new_path: str, flags: int = 0) -> None:
        """Rename in the tree, again where what has to be known below a directory cannot be found out at once."""
        while True:
            try:
                return await self.tree.rename(path, new_path, flags)
            except Unavailable:
                await trio.sleep(1)

    def _note(self) -> None:
        """Note the state that the operation leads to; it may be there before the operation has returned."""
        self.states.append(self.state())

    def _at(self, path: str) -> _Node:
        directory, name = self._parent(path)
        return directory.children[name]

    def _parent(self, path: str, *, make: bool = False) -> tuple[_Node, str]:
        node = self._root
        *directories, name = path.split("/")
        for each in directories:
            if make and each not in node.children:
                node.children[each] = _Node(stat.S_IFDIR | 0o755)
            node = node.children[each]
        return node, name


async def state_of(tree: Tree) -> State:
    """Return what a tree shows, by path.

    Which names are one file is told by the list that they share: two files may have the same number one after the
    other, where the index was lost with a crash and the number of one of them is that of its key again.
    """
    found: dict[str, Entry] = {}
    groups: dict[int, list[str]] = {}
    link_counts: dict[int, int] = {}
    numbers: dict[int, set[int]] = {}
    pending = [""]
    for path in pending:
        for name in await tree.names(path.rstrip("/")):
            inode = await tree.find(f"{path}{name}")
            data = xattr = b""
            if isinstance(inode, Directory):
                pending.append(f"{path}{name}/")
            elif inode.link_count > 1:
                assert inode.links is not None
                groups.setdefault(inode.links.number, []).append(f"{path}{name}")
                link_counts[inode.links.number] = inode.link_count
                numbers.setdefault(inode.links.number, set()).add(inode.number)
            if (
                inode.attributes.xattrs
            ):  # before it is read: whoever closes it may be the last who knows its number
                xattr = await tree.xattrs.get(inode.number, XATTR)
            if isinstance(inode, File):
                data = await tree.read_file(f"{path}{name}")
            elif isinstance(inode, Symlink):
                data = inode.target
            found[f"{path}{name}"] = Entry(inode.attributes.mode, data, xattr)
    for group, names in groups.items():
        assert link_counts[group] == len(names), (link_counts[group], names)
        assert len(numbers[group]) == 1, (numbers[group], names)
        for name in names:
            found[name] = found[name]._replace(names=tuple(sorted(set(names) - {name})))
    return found
