"""What the bucket says about one directory: a listing of its prefix, read as entries.

A listing may be older than what this mount has done since. Keys that are on their way out (`departing`: deleted or
moved in the tree, and still or until a moment ago in the bucket) are no entries; and a common prefix that such a key
lies under is none either, unless the tree has the directory: it may have nothing else below it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from backends.base import ListPage, ObjectInfo
from fusefs import keys
from fusefs.inodes import Child, Directory, ImplicitDirectory


class DirectoryListing:
    """The pages of one listing, gathered; `entries` reads them."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        #: Whether the directory's own marker is there.
        self.has_marker = False
        self._objects: dict[bytes, ObjectInfo] = {}
        self._directories: set[bytes] = set()
        self._nameless: list[str] = []

    def add(self, page: ListPage) -> None:
        """Take in one page."""
        for common in page.prefixes:
            if self.prefix or common != keys.RESERVED_PREFIX:
                self._add_prefix(common)
        for info in page.objects:
            if info.key == self.prefix:
                self.has_marker = True
            else:
                self._add_object(info)

    def entries(self, known: Directory, departing: Iterable[str]) -> dict[bytes, Child]:
        """Return the entries by name. `known` is the directory as the tree has it now."""
        gone_objects, gone_prefixes = self._names_of(departing)
        found: dict[bytes, Child] = {
            name: info for name, info in self._objects.items() if name not in gone_objects
        }
        for name in self._directories:
            if name not in gone_prefixes or isinstance(known.children.get(name), Directory):
                found[name] = ImplicitDirectory()
        return found

    def not_shown(self, entries: dict[bytes, Child]) -> Iterator[tuple[str, str]]:
        """Yield the keys that cannot be seen in the tree, each with the reason."""
        for key in self._nameless:
            yield key, "its name would be too long"
        for name, info in self._objects.items():
            if isinstance(entries.get(name), ImplicitDirectory):
                yield info.key, "a directory has the same name"

    def _add_prefix(self, common: str) -> None:
        name = keys.name_of(common[len(self.prefix) : -1])
        if name is None:
            self._nameless.append(common)
        else:
            self._directories.add(name)

    def _add_object(self, info: ObjectInfo) -> None:
        name = keys.name_of(info.key[len(self.prefix) :])
        if name is None:
            self._nameless.append(info.key)
        else:
            self._objects[name] = info

    def _names_of(self, departing: Iterable[str]) -> tuple[set[bytes | None], set[bytes | None]]:
        """Return the names of departing objects in this directory, and of prefixes that have some below them."""
        objects: set[bytes | None] = set()
        prefixes: set[bytes | None] = set()
        for key in departing:
            if key.startswith(self.prefix):
                name, slash, _ = key[len(self.prefix) :].partition("/")
                (prefixes if slash else objects).add(keys.name_of(name))
        return objects, prefixes
