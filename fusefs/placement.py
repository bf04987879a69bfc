"""What is where in the bucket, and which key each inode's object should have.

An object that we know of belongs to the inode whose bytes it holds (`Inode.version`), or to nobody any more: then it
is a leftover, to be overwritten by whoever gets its key or deleted. An inode's target is the key of its path; that
of an unlinked file which is still open, and not wholly staged, is a place under `.fusefs/orphans/`, so that the name
is gone from the bucket and the bytes are not.

Of a directory that was renamed before everything below it was known, not all objects have an owner yet. It has a
source, the prefix below which they are, and whatever is there belongs to it, known or not.

An upload cannot follow a rename: its object appears under the name that the file had when it began, and is copied from
there. Until that is done the name is the file's in the bucket, as if the object were there already.

Everything is synchronous, and decided anew before each publication: between two of them the tree may have changed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from backends.base import CREATE_ONLY, IfMatch, PutMode
from fusefs import extended_attributes
from fusefs.change_log import ChangeLog
from fusefs.inodes import ROOT_NUMBER, Directory, File, Inode
from fusefs.keys import RESERVED_PREFIX, name_of
from fusefs.versions import Version

ROOT_MARKER: Final = f"{RESERVED_PREFIX}root"
"""Carries the attributes of the root, which no key of its own could: a server's data directory may be the mount."""

ORPHANS_PREFIX: Final = f"{RESERVED_PREFIX}orphans/"
"""Where the content of unlinked files lies that are still open."""

DETOURS_PREFIX: Final = f"{RESERVED_PREFIX}moving/"
"""Where an object waits while its own key is taken."""


UNSEEN: Final = ""
"""In place of the ETag of a leftover that nobody has looked at: it is looked at before it is deleted."""


class Deletions:
    """The segments of keys in one directory whose objects have gone since this began."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self.objects: set[str] = set()
        #: Of directories below which something has gone, or whose marker has.
        self.directories: set[str] = set()

    def note(self, key: str) -> None:
        """Note that the object under `key` is gone."""
        if key.startswith(self._prefix):
            name, slash, _ = key[len(self._prefix) :].partition("/")
            (self.directories if slash else self.objects).add(name)


class Placement:
    """The known objects of a bucket, by key; `place`, `vacate` and `forget_leftover` are the only changes.

    `expect` and `expect_no_more` say where there will be one.
    """

    def __init__(self, root: Directory, log: ChangeLog, *, mount_id: str) -> None:
        self._root = root
        self._log = log
        self._mount_id = mount_id
        self._owners: dict[str, Inode] = {}
        self._leftovers: dict[str, Version] = {}
        self._left_markers: dict[str, None] = {}
        self._sources: dict[str, Directory] = {}
        #: Whose objects may appear under a key, or be there without an answer that said so. They are few.
        self._expected: dict[str, Inode] = {}
        #: How many owned and left objects, and sources, lie below a prefix, for each prefix of a key.
        self._below: Counter[str] = Counter()
        #: How many of those are leftovers.
        self._left_below: Counter[str] = Counter()
        self._recorders: list[Deletions] = []

    def place(self, inode: Inode, version: Version) -> None:
        """Note that the bucket holds `version` for `inode`; where it held another one there is a leftover now."""
        if inode.version != version:
            self._abandon(inode.version, inode, waits=False)
        previous = self._owners.get(version.key)
        if previous is not None and previous is not inode:
            if previous.version == version:
                self._log.in_use(version)
            previous.version = None  # its object was overwritten
        if previous is None and version.key not in self._leftovers:
            _count(self._below, version.key, 1)
        self._drop_leftover(version.key, is_in_use=self._leftovers.get(version.key) == version)
        self._owners[version.key] = inode
        inode.version = version
        inode.stored_at_ns = 0
        inode.is_doubtful = False
        if inode.parent is not None:
            inode.parent.is_indexed = False

    def vacate(self, inode: Inode) -> None:
        """Note that the object of `inode`, if it has one, belongs to nobody any more."""
        self._abandon(inode.version, inode, waits=True)
        inode.version = None

    def leave(self, version: Version) -> None:
        """Note an object of an earlier mount that belongs to nobody any more."""
        if version.key not in self._owners and version.key not in self._leftovers:
            _count(self._below, version.key, 1)
            self._add_leftover(version)
            self._log.left_over(version, waits=False)

    def forget(self, key: str) -> None:
        """Note that we do not know what is under `key`: somebody else has changed it."""
        if key in self._owners or key in self._leftovers:
            _count(self._below, key, -1)
        owner = self._owners.pop(key, None)
        if owner is not None:
            owner.version = None
        self._drop_leftover(key, is_in_use=True)

    def forget_leftover(self, version: Version) -> None:
        """Note that a leftover was deleted, or turned out to be somebody else's."""
        if self._leftovers.get(version.key) == version:
            self._drop_leftover(version.key, is_in_use=False)
            _count(self._below, version.key, -1)
            for recorder in self._recorders:
                recorder.note(version.key)

    def begin_source(self, directory: Directory, source: str) -> None:
        """Note that whatever has this prefix in the bucket is below a directory, which may have another name."""
        directory.source = source
        self._sources[source] = directory
        _count(self._below, f"{source}?", 1)  # there is something below that nobody has looked at

    def end_source(self, directory: Directory) -> None:
        """Note that everything of a directory has an owner, or that nothing below is the directory's any more."""
        assert directory.source is not None
        del self._sources[directory.source]
        _count(self._below, f"{directory.source}?", -1)
        directory.source = None

    @property
    def moving(self) -> list[Directory]:
        """The directories that have a source."""
        return list(self._sources.values())

    def moving_from(self, key: str) -> Directory | None:
        """Return the directory to which an object under `key`, or all with this prefix, belong by its source."""
        end = len(key)
        while end > 0:
            end = key.rfind("/", 0, end)
            if key[: end + 1] in self._sources:
                return self._sources[key[: end + 1]]
        return None

    def is_anothers(self, key: str, directory: Directory) -> bool:
        """Return whether what a listing of `directory` finds under a key, or a prefix, is below another directory."""
        return bool(self._sources) and self.moving_from(key) is not directory.moving_with

    def expect(self, inode: Inode, key: str) -> None:
        """Note that what makes an object of `inode` under `key` has begun, or may begin."""
        self._expected[key] = inode

    def expect_no_more(self, inode: Inode) -> None:
        """Note that nothing is under way any more that makes an object of `inode`."""
        for key in [key for key, expected in self._expected.items() if expected is inode]:
            del self._expected[key]

    def may_expect(self, inode: Inode, key: str) -> bool:
        """Return whether an upload of an inode may begin that is bound to `key`.

        Not where another inode's is, and not below a source: what a listing finds there is the directory's.
        """
        return self._expected.get(key, inode) is inode and self.moving_from(key) is None

    def next_key(self, inode: Inode) -> str | None:
        """Return where the inode's object appears next: at its target, or first where it is expected already."""
        target = self.target(inode)
        if target is None:
            return None
        return next((key for key, expected in self._expected.items() if expected is inode), target)

    def target(self, inode: Inode) -> str | None:
        """Return the key that the inode's object should have; None if there should be no object."""
        if inode.number == ROOT_NUMBER:
            return ROOT_MARKER
        if isinstance(inode, Directory):
            return inode.prefix if inode.linked else None
        if inode.linked:
            return inode.path_key
        if isinstance(inode, File) and inode.handles and inode.version and not _is_here(inode):
            return f"{ORPHANS_PREFIX}{self._nickname(inode)}"
        return None

    def is_elsewhere(self, inode: Inode) -> bool:
        """Return whether the inode has an object that lies under another key than its target."""
        return inode.version is not None and inode.version.key != self.target(inode)

    def detour(self, inode: Inode) -> str:
        """Return a key where the inode's object can wait while its own is taken."""
        return f"{DETOURS_PREFIX}{self._nickname(inode)}"

    def _nickname(self, inode: Inode) -> str:
        return inode.log_id or f"{self._mount_id}/{inode.number}"

    def obstacle(self, inode: Inode, target: str) -> Inode | None:
        """Return the inode whose object has to leave before that of `inode` can go to `target`.

        It is there, or will be, or may be for all that is known, or has the name of a directory on the way there: where
        a store keeps a file system below, it takes nothing below an object. What stays beside the directory is in
        nobody's way; its own object may be.
        """
        for owner in self._owners_of(target):
            if owner is not inode and (self.target(owner) is not None or owner.state.in_doubt):
                return owner
        for key in directories_of(target):
            for owner in self._owners_of(key):
                if owner is not inode and self.target(owner) not in (None, key):
                    return owner
        return None

    def _owners_of(self, key: str) -> Iterator[Inode]:
        """Yield whose object is under a key, and whose will be."""
        for owners in (self._owners, self._expected):
            if key in owners:
                yield owners[key]

    def has_leftover_above(self, target: str) -> bool:
        """Return whether an object that belongs to nobody has the name of a directory on the way to `target`."""
        return any(key in self._leftovers for key in directories_of(target))

    def departing_from(self, target: str) -> list[Inode] | None:
        """Return whose objects are still on their way out of the directory that had the name of `target`.

        None if there is nothing at all, or the directory stays where it is, beside the object; leftovers belong to
        nobody, and an empty list may be all that is known of them. Where a store keeps a file system below
        (SeaweedFS), no object can take the name of a directory before.
        """
        prefix = f"{target}/"
        if target.endswith("/") or not self.knows_below(prefix) or self._is_wanted(prefix):
            return None
        # Only if there may be any is it looked for them among all that there are.
        has_owners = prefix in self._owners or self._below[prefix] > self._left_below[prefix]
        owners = self._owners.items() if has_owners else ()
        departing = (*owners, *self._expected.items(), *self._sources.items())
        return [inode for key, inode in departing if key.startswith(prefix)]

    def leftovers(self) -> Mapping[str, Version]:
        """Return what the bucket has at this moment for nobody, by key."""
        return self._leftovers.copy()

    def is_leftover(self, version: Version) -> bool:
        """Return whether the bucket has this version still, for nobody."""
        return self._leftovers.get(version.key) == version

    def leftover(self, key: str) -> Version | None:
        """Return what the bucket has under a key for nobody, as far as we know."""
        return self._leftovers.get(key)

    def condition(self, target: str) -> PutMode:
        """Return the condition under which an object may be written to `target`: nobody else has changed it."""
        owner = self._owners.get(target)
        version = owner.version if owner is not None else self.leftover(target)
        return IfMatch(version.etag) if version is not None else CREATE_ONLY

    def is_departing(self, key: str) -> bool:
        """Return whether we know of an object under a key where the tree has no entry: it was deleted or moved.

        Or may appear there, of a file that was moved while that was under way.
        """
        return key in self._owners or key in self._leftovers or key in self._expected

    def has_anothers_marker(self, directory: Directory) -> bool:
        """Return whether we know of a marker under a directory's key that is of one that had the name before."""
        key = directory.bucket_prefix
        is_own = directory.version is not None and directory.version.key == key
        return not is_own and self.is_departing(key)

    def knows_below(self, prefix: str) -> bool:
        """Return whether we know of objects with this prefix; they depart where the tree has no such directory."""
        return self._has_below(prefix) or prefix in self._owners or prefix in self._leftovers

    def _has_below(self, prefix: str) -> bool:
        return bool(self._below[prefix]) or any(key.startswith(prefix) for key in self._expected)

    @contextmanager
    def recorded_deletions(self, prefix: str) -> Iterator[Deletions]:
        """Yield what gathers the leftovers that go from a directory: a listing of that time may still name them."""
        deletions = Deletions(prefix)
        self._recorders.append(deletions)
        try:
            yield deletions
        finally:
            self._recorders = [recorder for recorder in self._recorders if recorder is not deletions]

    def deletable(self, *, but: Collection[Version] = ()) -> Iterator[Version]:
        """Yield the leftovers, `but` some, whose key no inode of the tree is going to take.

        A marker comes after all below it, for stores that keep a file system below: where it goes before the objects
        under it, they show an empty directory for ever, which no object can replace.
        """
        return (
            version
            for version in self._leftovers.values()
            if version not in but
            and not (version.key.endswith("/") and self._has_below(version.key))
            and not self._is_wanted(version.key)
        )

    def mismarked(self) -> list[Directory]:
        """Return the directories without a marker under whose key that of another one was left: it would be theirs."""
        return [
            directory
            for directory in map(self._wanting, self._left_markers)
            if isinstance(directory, Directory)
            and directory.version is None
            and not directory.state.is_behind
        ]

    def _abandon(self, version: Version | None, inode: Inode, *, waits: bool) -> None:
        if version is not None and self._owners.get(version.key) is inode:
            del self._owners[version.key]
            self._add_leftover(version)
            self._log.left_over(version, waits=waits)

    def _add_leftover(self, version: Version) -> None:
        _count(self._left_below, version.key, 1)
        self._leftovers[version.key] = version
        if version.key.endswith("/"):
            self._left_markers[version.key] = None

    def _drop_leftover(self, key: str, *, is_in_use: bool) -> None:
        """Note that a leftover is none any more; `is_in_use` if what looks the same may be somebody's now."""
        leftover = self._leftovers.pop(key, None)
        if leftover is None:
            return
        self._left_markers.pop(key, None)
        _count(self._left_below, key, -1)
        if is_in_use:
            self._log.in_use(leftover)
        else:
            self._log.gone(leftover)

    def _is_wanted(self, key: str) -> bool:
        return self._wanting(key) is not None

    def _wanting(self, key: str) -> Inode | None:
        """Return the inode of the tree whose target is `key`."""
        node: object = self._root
        for segment in key.removesuffix("/").split("/"):
            if not isinstance(node, Directory):
                return None
            name = name_of(segment)
            node = node.children.get(name) if name is not None else None
        return node if isinstance(node, Inode) and self.target(node) == key else None


def _is_here(file: File) -> bool:
    """Return whether nothing is needed of a file's object any more: neither bytes nor long extended attributes."""
    return file.content.detached and not extended_attributes.is_reference(file.attributes.xattrs)


def _count(below: Counter[str], key: str, change: int) -> None:
    """Note that there is more, or less, below each prefix of a key."""
    end = key.rfind("/", 0, len(key) - 1)
    while end >= 0:
        prefix = key[: end + 1]
        below[prefix] += change
        if not below[prefix]:
            del below[prefix]
        end = key.rfind("/", 0, end)


def unseen(key: str) -> Version:
    """Return a leftover of which nothing is known but the key, which nobody writes a second time."""
    return Version(key, UNSEEN, 0)


def directories_of(target: str) -> Iterator[str]:
    """Yield the keys that objects with the names of the directories on the way to a key would have."""
    end = target.rfind("/")
    while end > 0:
        yield target[:end]
        end = target.rfind("/", 0, end)
