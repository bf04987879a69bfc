"""Which directories a recovery finds to be there, although no listing of their parents can tell that any more.

Where something is to leave a directory, its prefix in a listing may stand for nothing else. So it is looked whether
there is anything that the recovery does not know. What is below a source belongs to the directory that has it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import aclosing
from typing import TypeAlias

from backends.base import ObjectStorage, iterate_pages
from fusefs.keys import RESERVED_PREFIX, name_of, segment_of

Path: TypeAlias = tuple[bytes, ...]
"""The names on the way from the root."""


class Sources:
    """Paths and keys, where the objects below some directories are not under the keys of their paths."""

    def __init__(self, sources: Mapping[Path, str]) -> None:
        """`sources` has the prefix in the bucket of each such directory."""
        self._by_path = sources
        self._by_prefix = {prefix: path for path, prefix in sources.items()}

    def prefixes(self) -> Iterable[str]:
        return self._by_prefix

    def above(self, path: Path) -> Path:
        """Return the path of the nearest such directory, which may be the one with this path; else the root's."""
        while path and path not in self._by_path:
            path = path[:-1]
        return path

    def key_of(self, path: Path) -> str:
        """Return the key under which the object of a path is if it has not moved, without a slash at the end."""
        above = self.above(path)
        key = self._by_path.get(above, "") + "".join(f"{segment_of(name)}/" for name in path[len(above) :])
        return key.removesuffix("/")

    def path_of(self, prefix: str) -> Path | None:
        """Return the path of the directory with a prefix; None if it has no name, or is a source itself."""
        source = next((each for each in _prefixes_of(prefix)[::-1] if each in self._by_prefix), "")
        segments = prefix.removeprefix(source).split("/")[:-1]
        names = [name for name in map(name_of, segments) if name is not None]
        if not names or len(names) < len(segments):
            return None
        return (*self._by_prefix.get(source, ()), *names)


class DirectorySearch:
    """One search; `found` are the paths of directories that are there."""

    def __init__(
        self,
        storage: ObjectStorage,
        sources: Mapping[Path, str],
        objects: Iterable[tuple[Path, str]],
        leftovers: Iterable[str],
    ) -> None:
        """`objects`: of recovered inodes, with the paths; `leftovers`: of those that belong to nobody. Both by key."""
        self._storage = storage
        self._sources = Sources(sources)
        self.found: set[Path] = set()
        self._known = {*leftovers}
        for path, key in objects:
            self._known.add(key)
            if key.removesuffix("/") == self._sources.key_of(path):
                self._note(path if key.endswith("/") else path[:-1])
        self._known_prefixes = {*self._sources.prefixes()}.union(
            *map(_prefixes_of, (*self._known, *self._sources.prefixes()))
        )

    def unknown(self) -> list[str]:
        """Return the prefixes that are to be looked into."""
        paths = {prefix: self._sources.path_of(prefix) for prefix in self._known_prefixes}
        return [
            prefix
            for prefix, path in paths.items()
            if path is not None and path not in self.found and not prefix.startswith(RESERVED_PREFIX)
        ]

    async def look_into(self, prefix: str) -> None:
        """Look whether there is anything else below a prefix. Raises what the store raises."""
        path = self._sources.path_of(prefix)
        async with aclosing(iterate_pages(self._storage, prefix, delimiter="/")) as pages:
            async for page in pages:
                has_others = any(info.key not in self._known for info in page.objects)
                if path is not None and (has_others or not self._known_prefixes.issuperset(page.prefixes)):
                    self._note(path)
                    return

    def _note(self, path: Path) -> None:
        """Note that a directory is there, and so are those above, as far as that follows."""
        above = self._sources.above(path)
        self.found.update(path[:length] for length in range(len(above) + 1, len(path) + 1))


def _prefixes_of(key: str) -> list[str]:
    """Return the prefix of each directory on the way to a key; that of a marker's own is one of them."""
    return [key[: end + 1] for end, letter in enumerate(key) if letter == "/"]
