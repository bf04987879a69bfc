"""Changes of names: what the tree is then, and who is told."""

from __future__ import annotations

import stat
from dataclasses import replace
from typing import cast

import pytest

from fusefs import extended_attributes
from fusefs.attributes import fresh
from fusefs.changes import Changes
from fusefs.entry_changes import EntryChanges
from fusefs.errors import EntryExists, NoSuchEntry, OperationNotPermitted
from fusefs.inode_table import InodeTable
from fusefs.inodes import ROOT_NUMBER, Directory, Inode, Special
from fusefs.merging import Merger
from fusefs.rename_checks import Rename
from fusefs.renamed_directories import RenamedDirectories
from fusefs.versions import Version

NOW = 7


class Told:
    """Whoever is told of changes."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, object]] = []

    def changed(self, inode: Inode) -> None:
        self.calls.append(("changed", inode))

    def unlinked(self, inode: Inode) -> None:
        self.calls.append(("unlinked", inode))

    def moved(self, inode: Inode, source: str | None = None) -> None:
        self.calls.append(("moved", inode) if source is None else ("moved from", source))

    def unveil(self, directory: Directory, name: bytes) -> None:
        self.calls.append(("unveil", name))


class Tree:
    """A root with entries, and what was told of them."""

    def __init__(self) -> None:
        self.told = Told()
        self.root = Directory(number=ROOT_NUMBER, attributes=fresh(mode=stat.S_IFDIR, uid=0, gid=0, now_ns=0))
        self.inodes = InodeTable(self.root)
        self.entries = EntryChanges(
            self.inodes,
            cast(Changes, self.told),
            cast(Merger, self.told),
            cast(RenamedDirectories, self.told),
        )

    def special(self, directory: Directory, name: bytes) -> Special:
        number = self.inodes.new_number()
        inode = Special(number=number, attributes=fresh(mode=stat.S_IFIFO, uid=0, gid=0, now_ns=0))
        self._enter(directory, name, inode)
        return inode

    def directory(self, above: Directory, name: bytes) -> Directory:
        number = self.inodes.new_number()
        directory = Directory(number=number, attributes=fresh(mode=stat.S_IFDIR, uid=0, gid=0, now_ns=0))
        self._enter(above, name, directory)
        return directory

    def _enter(self, directory: Directory, name: bytes, inode: Inode) -> None:
        self.entries.add(directory, name, inode, 0)
        self.told.calls.clear()

    def rename(self, inode: Inode, directory: Directory, name: bytes, *, exchange: bool = False) -> None:
        assert inode.parent is not None
        other = directory.children.get(name)
        assert other is None or isinstance(other, Inode)
        rename = Rename(
            directory=inode.parent,
            name=inode.name,
            inode=inode,
            new_directory=directory,
            new_name=name,
            other=other,
            exchange=exchange,
        )
        self.entries.move(rename, NOW)


def is_touched(inode: Inode, *, contents: bool) -> bool:
    """Return whether the change of a name has changed an inode's times, those of its own contents included."""
    assert (inode.attributes.mtime_ns == NOW) == contents
    return inode.attributes.ctime_ns == NOW


def test_a_new_entry() -> None:
    tree = Tree()
    inode = Special(number=5, attributes=fresh(mode=stat.S_IFIFO, uid=0, gid=0, now_ns=0))
    tree.entries.add(tree.root, b"x", inode, NOW)
    assert tree.root.children == {b"x": inode}
    assert tree.inodes[5] is inode
    assert is_touched(tree.root, contents=True)
    assert tree.told.calls == [("changed", inode)]


def test_nothing_comes_under_a_name_that_is_not_free_or_into_what_was_removed() -> None:
    tree = Tree()
    inode, removed = tree.special(tree.root, b"x"), tree.directory(tree.root, b"removed")
    tree.entries.remove(tree.root, b"removed", removed, NOW)
    tree.told.calls.clear()
    for directory, name, error in ((tree.root, b"x", EntryExists), (removed, b"y", NoSuchEntry)):
        with pytest.raises(error):
            tree.entries.add(directory, name, inode, NOW)
        with pytest.raises(error):
            tree.entries.link(inode, directory, name, NOW)
    assert tree.told.calls == []
    assert not inode.aliases


def test_what_can_have_no_further_name() -> None:
    tree = Tree()
    inode, directory = tree.special(tree.root, b"x"), tree.directory(tree.root, b"d")
    with pytest.raises(OperationNotPermitted):
        tree.entries.link(directory, tree.root, b"y", NOW)
    tree.entries.remove(tree.root, b"x", inode, NOW)
    with pytest.raises(NoSuchEntry):
        tree.entries.link(inode, tree.root, b"y", NOW)


def test_a_further_name_and_the_end_of_the_first() -> None:
    """The object with the extended attributes stays from then on: more than one may refer to it."""
    tree = Tree()
    inode = tree.special(tree.root, b"first")
    text = extended_attributes.named(extended_attributes.encode({b"user.a": bytes(60_000)}))
    inode.attributes = replace(inode.attributes, xattrs=text)
    tree.entries.link(inode, tree.root, b"further", NOW)
    (alias,) = inode.aliases
    assert inode.attributes.xattrs == extended_attributes.shared(text) != text
    assert tree.root.children == {b"first": inode, b"further": alias}
    assert is_touched(inode, contents=False)
    assert tree.told.calls == [("changed", inode)]
    tree.told.calls.clear()
    tree.entries.remove(tree.root, b"first", inode, NOW)
    assert tree.root.children == {b"further": inode}
    assert inode.linked
    assert tree.told.calls == [("unveil", b"first"), ("unlinked", alias), ("changed", inode)]


def test_a_common_prefix_of_nothing_needs_a_marker() -> None:
    tree = Tree()
    directory = tree.directory(tree.root, b"d")
    for marker, told in ((None, [("changed", directory)]), (Version("d/", "e", 0), [])):
        inode = tree.special(directory, b"x")
        directory.version = marker
        tree.root.are_times_indexed = True
        tree.entries.remove(directory, b"x", inode, NOW)
        assert not tree.root.are_times_indexed
        assert tree.told.calls == [("unveil", b"x"), ("unlinked", inode), *told]
        tree.told.calls.clear()


def test_a_rename_over_another_entry() -> None:
    tree = Tree()
    directory = tree.directory(tree.root, b"d")
    inode, other = tree.special(tree.root, b"x"), tree.special(directory, b"y")
    tree.rename(inode, directory, b"y")
    assert directory.children == {b"y": inode}
    assert set(tree.root.children) == {b"d"}
    assert not other.linked
    assert is_touched(inode, contents=False)
    assert is_touched(other, contents=False)
    assert is_touched(directory, contents=True)
    assert is_touched(tree.root, contents=True)
    assert tree.told.calls == [("unveil", b"x"), ("unlinked", other), ("moved", inode)]


def test_a_rename_of_a_directory_tells_where_it_was() -> None:
    """And that the index knows nothing below it under its new keys."""
    tree = Tree()
    directory = tree.directory(tree.root, b"d")
    below = tree.directory(directory, b"below")
    directory.is_indexed = below.is_indexed = True
    tree.rename(directory, tree.root, b"e")
    assert not directory.is_indexed
    assert not below.is_indexed
    assert tree.told.calls == [("unveil", b"d"), ("moved", directory), ("moved from", "d/")]


def test_an_exchange_takes_nobodys_name() -> None:
    tree = Tree()
    directory = tree.directory(tree.root, b"d")
    inode, other = tree.special(tree.root, b"x"), tree.directory(directory, b"y")
    tree.rename(inode, directory, b"y", exchange=True)
    assert directory.children == {b"y": inode}
    assert tree.root.children == {b"d": directory, b"x": other}
    assert tree.told.calls == [("moved", inode), ("moved", other), ("moved from", "d/y/")]
