"""What the bucket says about one directory: the pages of a listing of its prefix, read as entries."""

from __future__ import annotations

from collections.abc import Iterator
from operator import itemgetter

from backends.base import ListPage, ObjectInfo
from fusefs import keys
from fusefs.listed import UNKNOWN_DIRECTORY, ListedDirectory, ListedObject


class DirectoryListing:
    """One listing under way; what is kept of it is little, whatever the directory's size."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        #: The directory's own marker, if it has come up.
        self.marker: ObjectInfo | None = None
        self._nameless: list[str] = []

    def read(self, page: ListPage) -> list[tuple[bytes, ListedObject | ListedDirectory]]:
        """Return the entries of a page in the order of names; where one is there as both, the object is first."""
        entries: list[tuple[bytes, ListedObject | ListedDirectory]] = []
        for info in page.objects:
            if info.key == self.prefix:
                self.marker = info
            elif (name := self._name(info.key)) is not None:
                entries.append((name, ListedObject.of(info)))
        for common in page.prefixes:
            is_reserved = not self.prefix and common == keys.RESERVED_PREFIX
            if not is_reserved and (name := self._name(common)) is not None:
                entries.append((name, UNKNOWN_DIRECTORY))
        entries.sort(key=itemgetter(0))  # which is stable
        return entries

    def take_nameless(self) -> Iterator[str]:
        """Yield the keys, read since the last call, that are no names of the tree."""
        nameless, self._nameless = self._nameless, []
        return iter(nameless)

    def _name(self, key: str) -> bytes | None:
        name = keys.name_of(key[len(self.prefix) :].removesuffix("/"))
        if name is None:
            self._nameless.append(key)
        return name
