"""How entries come, move and go: the synchronous halves of the calls that change names.

Whoever calls them has found out what has to be known. From the checks to the change, and to what is noted of it, there
is no await: so the tree is never seen in between, and a commit has each of them whole.
"""

from __future__ import annotations

from typing import Final

from fusefs.changes import Changes
from fusefs.errors import EntryExists, NoSuchEntry, OperationNotPermitted
from fusefs.inode_table import InodeTable
from fusefs.inodes import ROOT_NUMBER, Alias, Directory, Inode, Links
from fusefs.link_lists import new_list_number
from fusefs.merging import Merger
from fusefs.rename_checks import Rename
from fusefs.renamed_directories import RenamedDirectories


class EntryChanges:
    """Changes entries, and the times of their directories and inodes, and tells everybody who has to know."""

    def __init__(
        self, inodes: InodeTable, changes: Changes, merger: Merger, renamed: RenamedDirectories
    ) -> None:
        self._inodes: Final = inodes
        self._changes: Final = changes
        self._merger: Final = merger
        self._renamed: Final = renamed

    def check_free(self, directory: Directory, name: bytes) -> None:
        """Raise `EntryExists` where something has the name, `NoSuchEntry` in a removed directory."""
        if not directory.linked:
            raise NoSuchEntry("the directory was removed")
        if name in directory.children:
            raise EntryExists(f"{name!r} exists")

    def add(self, directory: Directory, name: bytes, inode: Inode, now_ns: int) -> None:
        """Enter a new inode. Raises `EntryExists` if somebody was quicker, `NoSuchEntry` in a removed directory."""
        self.check_free(directory, name)
        directory.attach(name, inode)
        self._inodes.add(inode)
        self._note_children_changed(directory, now_ns)
        self._changes.changed(inode)

    def link(self, inode: Inode, directory: Directory, name: bytes, now_ns: int) -> None:
        """Give an inode a further name. Raises as `add`, and `NoSuchEntry` for an inode without a name."""
        if isinstance(inode, Directory):
            raise OperationNotPermitted("a directory has one name")
        if not inode.linked:
            raise NoSuchEntry(f"inode {inode.number} was removed")
        self.check_free(directory, name)
        if inode.links is None:
            inode.links = Links(number=new_list_number(inode.number))
        alias = Alias(number=self._inodes.new_number(), attributes=inode.attributes, of=inode)
        inode.links.aliases.append(alias)
        directory.attach(name, alias)
        inode.share_xattrs()  # somebody else may make a file of its own of each name
        inode.attributes = inode.attributes.changed(now_ns)
        self._note_children_changed(directory, now_ns)
        self._changes.changed(inode)

    def remove(self, directory: Directory, name: bytes, inode: Inode, now_ns: int) -> None:
        """Take an entry away that has the name; its inode may have others."""
        directory.detach(name)
        self._merger.unveil(directory, name)
        self._note_unlinked(inode, now_ns)
        self._note_children_changed(directory, now_ns)

    def move(self, rename: Rename, now_ns: int) -> None:
        """Carry out a rename that was checked, with nothing in between."""
        directory, new_directory = rename.directory, rename.new_directory
        inode, swapped = rename.inode, rename.swapped
        sources = {each: each.bucket_prefix for each in (inode, swapped) if isinstance(each, Directory)}
        directory.detach(rename.name)
        if rename.other is not None:
            new_directory.detach(rename.new_name)
        new_directory.attach(rename.new_name, inode)
        if swapped is not None:
            directory.attach(rename.name, swapped)
        else:
            self._merger.unveil(directory, rename.name)
            if rename.other is not None:
                self._note_unlinked(rename.other, now_ns)
        for moved in (inode, swapped) if swapped is not None else (inode,):
            self._note_moved(moved, now_ns)
        for moved, source in sources.items():
            self._renamed.moved(moved, source)
        self._note_children_changed(directory, now_ns)
        if new_directory is not directory:
            self._note_children_changed(new_directory, now_ns)

    def _note_children_changed(self, directory: Directory, now_ns: int) -> None:
        directory.attributes = directory.attributes.changed(now_ns, contents=True)
        if directory.parent is not None:
            directory.parent.are_times_indexed = False
        if not directory.children and directory.version is None and directory.number != ROOT_NUMBER:
            self._changes.changed(directory)  # a common prefix of nothing is gone: it needs a marker now

    def _note_unlinked(self, entry: Inode, now_ns: int) -> None:
        """Note that an entry is detached; its inode may have other names."""
        inode, gone = entry.subject, entry.lose_name()
        inode.attributes = inode.attributes.changed(now_ns)
        self._changes.unlinked(gone)
        if gone is not inode:
            self._changes.changed(inode)

    def _note_moved(self, inode: Inode, now_ns: int) -> None:
        inode.subject.attributes = inode.subject.attributes.changed(now_ns)
        self._changes.moved(inode)
        if isinstance(inode, Directory):
            for directory in inode.with_directories_below():
                directory.is_indexed = False  # but under the prefix that it had
