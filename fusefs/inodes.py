"""The nodes of the tree.

An inode exists for as long as the tree, the kernel (its lookup count), an open handle or an unfinished publication
needs it. `Directory.children` holds inodes, and for objects that nobody has looked at yet just what the listing
told of them: a listed directory of many objects costs little until its files are used.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Final, TypeAlias

import trio

from backends.base import Metadata
from fusefs import extended_attributes
from fusefs.attributes import Attributes
from fusefs.content import Content
from fusefs.errors import StaleFile
from fusefs.files_ahead import FilesAhead
from fusefs.keys import name_of_file_beside, segment_of
from fusefs.listed import ListedDirectory, ListedObject
from fusefs.log_records import Position
from fusefs.look_ahead import LookAhead
from fusefs.versions import Version

ROOT_NUMBER: Final = 1
"""FUSE's number of the root (FUSE_ROOT_ID)."""


@dataclass(eq=False, slots=True, kw_only=True)
class PublishState:
    """Where an inode stands between the tree and the bucket; only `publisher` and what it is made of change it."""

    #: Rises with every change of content, attributes or name.
    changes: int = 0
    #: The value of `changes` that the bucket has.
    published_changes: int = 0
    #: Whether the bucket's metadata is older than the inode's attributes.
    attributes_changed: bool = False
    #: Key and metadata of what the last attempt was to store.
    storing: tuple[str, Metadata] | None = None
    #: The same of attempts without an answer since the last that succeeded: they may have stored it nevertheless.
    in_doubt: list[tuple[str, Metadata]] = field(default_factory=list)
    #: Why the last attempt failed; None as soon as one succeeds.
    failure: Exception | None = None
    #: Attempts that ended, well or not; whoever waits for one looks at this to see a new one.
    attempts: int = 0
    #: When the last attempt that succeeded ended, on trio's clock.
    published_at: float = -math.inf
    #: Woken after every attempt.
    attempted: trio.lowlevel.ParkingLot = field(default_factory=trio.lowlevel.ParkingLot)

    @property
    def is_behind(self) -> bool:
        """Whether there is something of content, attributes or name that the bucket lacks."""
        return self.changes != self.published_changes or self.attributes_changed


@dataclass(eq=False, repr=False, slots=True, kw_only=True)
class Inode:
    """What all nodes have. Which kind it is follows from the class, and so does `attributes.kind`."""

    number: int
    attributes: Attributes
    #: The directory that holds the entry, and its name there; None and b"" when it was unlinked.
    parent: Directory | None = None
    name: bytes = b""
    #: What the bucket holds for this inode, wherever it holds it; None: nothing yet.
    version: Version | None = None
    #: References that the kernel holds (FUSE lookup count).
    lookups: int = 0
    #: Handles that are open on it.
    handles: int = 0
    #: What the log calls it, and the metadata of its objects; "" as long as no log has had to.
    log_id: str = ""
    #: Whether the last batch that tells of it says that it has a name; None if there is no such batch.
    is_in_log: bool | None = None
    #: The last batch that tells of it.
    told_at: Position | None = None
    state: PublishState = field(default_factory=PublishState)
    #: When the store received the object, by its own clock, and as a listing says it. 0: since this mount wrote it,
    #: nobody has looked. Less than 0: not after that time (markers, of which only the index tells). None: not known.
    #: A nanosecond less than that where the attributes may have changed again within the second.
    stored_at_ns: int | None = None
    #: Whether somebody else has changed the attributes since they were read.
    is_doubtful: bool = False
    #: None: it has, and had, one name.
    links: Links | None = None
    #: Keys of objects with its extended attributes, those of now and of before, to which nothing else refers.
    stored_xattrs: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.number} {self.path_key!r}>"

    @property
    def linked(self) -> bool:
        """Whether the inode has a name."""
        return self.parent is not None or self.number == ROOT_NUMBER

    @property
    def path_key(self) -> str:
        """The key of the inode's path, without a slash at the end; '' for the root."""
        return "/".join(map(segment_of, self.path))

    @property
    def bucket_key(self) -> str:
        """The key under which a listing finds the entry, which is no directory; '' for what has no name."""
        return self.parent.bucket_prefix + segment_of(self.name) if self.parent is not None else ""

    @property
    def moving_with(self) -> Directory | None:
        """The nearest directory on the way from here to the root, itself included, that has a source."""
        if isinstance(self, Directory) and self.source is not None:
            return self
        return next((directory for directory in self.above() if directory.source is not None), None)

    @property
    def path(self) -> list[bytes]:
        """The names on the way from the root."""
        names: list[bytes] = []
        node: Inode = self
        while node.parent is not None:
            names.append(node.name)
            node = node.parent
        names.reverse()
        return names

    def above(self) -> Iterator[Directory]:
        """Yield the directory that holds the entry, the one above that, and so on up to the root."""
        directory = self.parent
        while directory is not None:
            yield directory
            directory = directory.parent

    def with_all_below(self) -> Iterator[Inode]:
        """Yield the inode and all below it, each before what is below it; in a loop: a key has room for 512 levels."""
        waiting: list[Inode] = [self]
        while waiting:
            inode = waiting.pop()
            yield inode
            if isinstance(inode, Directory):
                waiting.extend(reversed(list(inode.inodes())))

    @property
    def size(self) -> int:
        """What st_size says."""
        return 0

    @property
    def link_count(self) -> int:
        """What st_nlink says."""
        return 1 + len(self.aliases) if self.linked else 0

    @property
    def aliases(self) -> list[Alias]:
        """The further names; whoever reads this must not change it."""
        return self.links.aliases if self.links is not None else []

    @property
    def subject(self) -> Inode:
        """What an entry stands for: itself, but for an alias."""
        return self

    @property
    def hides_content(self) -> bool:
        """Whether its object has bytes that no call shows: somebody else has put them into a marker, or a fifo."""
        is_shown = isinstance(self.subject, File | Symlink)
        return not is_shown and self.version is not None and self.version.size > 0

    def note_stored_xattrs(self) -> None:
        """Note that the bucket has, or will have, the object with the extended attributes."""
        own = extended_attributes.own_key(self.attributes.xattrs)
        if own is not None and own not in self.stored_xattrs:
            self.stored_xattrs += (own,)

    def share_xattrs(self) -> None:
        """Note that the object with the extended attributes is not this inode's alone, if they have one: it stays."""
        xattrs = self.attributes.xattrs
        own = extended_attributes.own_key(xattrs)
        self.stored_xattrs = tuple(key for key in self.stored_xattrs if key != own)
        self.attributes = replace(self.attributes, xattrs=extended_attributes.shared(xattrs))

    def lose_name(self) -> Inode:
        """Go on under a further name, now that the entry is detached; return the entry that is of no use any more."""
        if not self.aliases:
            return self
        assert self.links is not None
        heir = self.links.aliases.pop()
        directory, name = heir.parent, heir.name
        assert directory is not None
        directory.detach(name)
        directory.attach(name, self)
        return heir


@dataclass(eq=False, repr=False, slots=True, kw_only=True)
class Alias(Inode):
    """A further name of an inode: what is published under it is an object of its own, a copy of that inode's.

    The kernel is never told of it; number and attributes are nobody's.
    """

    of: Inode
    #: The version of the inode's object of which its own is a copy.
    copied: Version | None = None
    #: How many of its changes the inode's object has by now.
    reflected_changes: int = 0

    @property
    def subject(self) -> Inode:
        return self.of

    def lose_name(self) -> Inode:
        if self in self.of.aliases:
            self.of.aliases.remove(self)
        return self


@dataclass(eq=False, slots=True, kw_only=True)
class Links:
    """What there is to know of an inode with several names."""

    #: Under which the names are listed in the bucket (`fusefs.link_lists`).
    number: int
    aliases: list[Alias] = field(default_factory=list)
    #: Whether the others of the names that the bucket has are known.
    is_joined: bool = True
    #: The list in the bucket, as far as this mount knows, and what it says.
    listed: Version | None = None
    names: tuple[str, ...] = ()


@dataclass(eq=False, repr=False, slots=True, kw_only=True)
class File(Inode):
    """A regular file."""

    content: Content
    #: Handles among `handles` that may write.
    writers: int = 0

    @property
    def size(self) -> int:
        return self.content.size


@dataclass(eq=False, repr=False, slots=True, kw_only=True)
class Symlink(Inode):
    """A symbolic link; its object holds the target, as s3fs stores it."""

    target: bytes

    @property
    def size(self) -> int:
        return len(self.target)


@dataclass(eq=False, repr=False, slots=True, kw_only=True)
class Special(Inode):
    """A fifo, a socket or a device; its object is empty, and the kind is in the metadata's mode."""


@dataclass(eq=False, repr=False, slots=True, kw_only=True)
class Directory(Inode):
    """A directory; its object, if it has one, is the marker under its key with a slash."""

    #: Changed through `attach` and `detach` only, which keep `subdirectories` and the children's parents right.
    children: dict[bytes, Child] = field(default_factory=dict)
    #: Where the bucket has what is below it (a prefix of keys), if it was renamed before all of that was known; None
    #: as soon as that is so, and where it follows from the directory above. Changed by `Placement` alone.
    source: str | None = None
    #: When its listing was complete, on the monotonic clock; None if it has not been listed.
    listed_at: float | None = None
    #: How many seconds its last listing has taken, but for what an outage has added.
    listing_took: float = 0.0
    #: How often somebody else's change was found that the listing has not told of; `distrust` counts.
    distrusted: int = 0
    #: When the listing of it that is under way began; later than any time if there is none.
    listing_since: float = math.inf
    subdirectories: int = 0
    #: Under which prefix its last listing has found keys that cannot be shown; None if there are none.
    hiding_prefix: str | None = None
    #: How often entries were looked up: whoever does that after reading names wants attributes.
    lookups_within: int = 0
    #: Which entries will be looked up next, since somebody has read the names.
    look_ahead: LookAhead | None = None
    #: Which files will be opened next, since one was opened that was not on the local disk.
    files_ahead: FilesAhead | None = None
    #: Which directories will be read next, since one was read that had not been listed.
    directories_ahead: FilesAhead | None = None
    #: Whether the index has everything that is known of the entries, but for times of directories among them.
    is_indexed: bool = False
    #: Whether it has those as well.
    are_times_indexed: bool = True

    @property
    def prefix(self) -> str:
        """The prefix of the keys that everything below it should have; '' for the root."""
        return f"{self.path_key}/" if self.parent is not None else ""

    @property
    def bucket_prefix(self) -> str:
        """The prefix under which it is listed: another one below a directory that has a source."""
        segments: list[str] = []
        node = self
        while node.source is None and node.parent is not None:
            segments.append(f"{segment_of(node.name)}/")
            node = node.parent
        return (node.source or "") + "".join(reversed(segments))

    @property
    def hides_keys(self) -> bool:
        """Whether the bucket has keys in it that cannot be shown; those do not come along when it is renamed."""
        return self.hiding_prefix == self.prefix

    @property
    def link_count(self) -> int:
        """1 as long as nobody knows the number of subdirectories: find(1) and others take 2 for none."""
        if not self.linked:
            return 0
        return 1 if self.listed_at is None else 2 + self.subdirectories

    def attach(self, name: bytes, child: Child) -> None:
        """Put an entry under a name that is free or holds the listing's word of the same entry."""
        if name in self.children:
            self.detach(name)
        self.is_indexed = False
        self.children[name] = child
        if isinstance(child, ListedObject):
            return
        self.subdirectories += isinstance(child, Directory | ListedDirectory)
        if isinstance(child, Inode):
            child.parent = self
            child.name = name

    def detach(self, name: bytes) -> None:
        """Remove the entry of that name, if there is one; an inode is unlinked by it."""
        child = self.children.pop(name, None)
        self.is_indexed = self.is_indexed and child is None
        self.subdirectories -= isinstance(child, Directory | ListedDirectory)
        if isinstance(child, Inode):
            child.parent = None
            child.name = b""

    def distrust(self) -> None:
        """Let the next lookup list the directory: the bucket has something else than the listing has told.

        A listing that is under way may have merged that page already, and does not tell of it either.
        """
        self.listed_at = None
        self.distrusted += 1

    def veil(self, name: bytes) -> bool:
        """Make room for a directory: give what has its name that of a file beside it; return whether there is such."""
        beside = name_of_file_beside(segment_of(name))
        if beside is None:
            return False
        child = self.children[name]
        self.detach(name)
        self.attach(beside, child)
        return True

    def unveil(self, name: bytes) -> Child | None:
        """Give the file beside a directory that is gone its own name, if there is such a file, and return it."""
        beside = name_of_file_beside(segment_of(name))
        child = self.children.get(beside) if beside is not None else None
        if beside is not None and child is not None:
            self.detach(beside)
            self.attach(name, child)
        return child

    def has_file_beside(self, name: bytes) -> bool:
        """Return whether an object has the same key as the directory `name`, but for the slash."""
        return name_of_file_beside(segment_of(name)) in self.children

    def with_directories_below(self) -> Iterator[Directory]:
        """Yield the directory and those below it, each before what is below it, as far as they are inodes."""
        waiting = [self]
        while waiting:
            directory = waiting.pop()
            yield directory
            if directory.subdirectories:
                children = directory.children.values()
                waiting.extend(child for child in children if isinstance(child, Directory))

    def inodes(self) -> Iterator[Inode]:
        """Return the children that are inodes already."""
        return (child for child in self.children.values() if isinstance(child, Inode))


Child: TypeAlias = Inode | ListedObject | ListedDirectory
"""An entry: an inode, or what a listing told of one that nobody has looked at."""


def is_joined(entry: Inode) -> bool:
    """Return whether all names of an entry's inode are known."""
    links = entry.subject.links
    return links is None or links.is_joined


def check_not_stale(inode: Inode) -> None:
    """Raise `StaleFile` where a publication has found that somebody else changed the inode's object."""
    if isinstance(inode.state.failure, StaleFile):
        raise inode.state.failure
