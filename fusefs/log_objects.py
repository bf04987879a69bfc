"""Which objects of the bucket are those of an inode of the log, and up to which batch each of them is complete.

An object is an inode's own if the log names just that version, or if its metadata carries the inode's log id: the
mount that died has published it after the last record. It is looked for under every name that the log knows the inode
by, and where one waits while its own key is taken. Where two inodes have the same bytes, one after the other under
one key, they have the same version: if the log says that somebody else has that by now, it is not the first one's own
any more. A directory's marker that carries no metadata at all is taken for one that does: some stores keep none of
keys that end with a slash. Nothing is written.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Final

from backends.base import Metadata, ObjectInfo, ObjectStorage, iterate_pages
from backends.errors import InvalidKey, NotFound
from fusefs.change_log import LOG_KEY
from fusefs.keys import segment_of
from fusefs.link_lists import list_of
from fusefs.log_records import EVERYWHERE, NOWHERE, InodeRecord, Position
from fusefs.object_writer import CONFLICTS_PREFIX
from fusefs.placement import DETOURS_PREFIX, ORPHANS_PREFIX, ROOT_MARKER
from fusefs.replay import Replay, Replayed
from fusefs.versions import Version

LOG_ID: Final = re.compile(r"[0-9a-f]+-[0-9a-f]+")
"""How the log names an inode."""

_MARK: Final = re.compile(r"([0-9a-f]+-[0-9a-f]+)@([0-9a-f]+)-([0-9a-f]+)")


@dataclass(frozen=True, slots=True)
class OwnObject:
    """An object that is an inode's own, and the batch that it is complete with."""

    version: Version
    complete_to: Position
    #: What its metadata says, which of an upload is older than that.
    marked_at: Position = NOWHERE


class LogObjects:
    """The objects of all inodes that a log tells of; made by `of`, which knows what is `hidden`."""

    def __init__(self, storage: ObjectStorage, replay: Replay, hidden: Collection[str]) -> None:
        self._storage = storage
        self._replay = replay
        self._hidden = hidden
        #: Keys of the markers that the directories of the log have in the end.
        self._markers = {key for replayed in replay.inodes.values() for key in _markers_of(replayed)}

    @classmethod
    async def of(cls, storage: ObjectStorage, replay: Replay) -> LogObjects:
        """Look which of the objects are where no name is. Raises what the store raises."""
        hidden: set[str] = set()
        for prefix in (DETOURS_PREFIX, ORPHANS_PREFIX):
            async for page in iterate_pages(storage, prefix):
                hidden.update(
                    info.key for info in page.objects if info.key.removeprefix(prefix) in replay.inodes
                )
        return cls(storage, replay, hidden)

    async def find(self, replayed: Replayed) -> list[OwnObject]:
        """Return the objects that are the inode's own, the newest first. Raises what the store raises."""
        hidden = {detour_key(replayed), f"{ORPHANS_PREFIX}{replayed.last.log_id}"}.intersection(self._hidden)
        found = await self._look_under(replayed, [*_names(replayed), *hidden])
        at_home = _keys_of(replayed, [replayed.last.path] if replayed.last.path is not None else [])

        def age(each: OwnObject) -> tuple[Position, Position, bool]:
            told = replayed.versions.get(each.version, EVERYWHERE)
            return each.marked_at, told, each.version.key in at_home

        return sorted(found, key=age, reverse=True)

    async def _look_under(self, replayed: Replayed, keys: Iterable[str]) -> list[OwnObject]:
        found: list[OwnObject] = []
        for key in keys:
            try:
                info = await self._storage.head(key)
            except (NotFound, InvalidKey):
                continue  # under a key that the store refuses there is nothing
            own = self._own(replayed, info)
            if own is None and self._may_be_marker_of(replayed, info):
                own = OwnObject(version_of(info), NOWHERE)
            if own is not None:
                found.append(own)
                number = list_of(info.metadata or {})
                replayed.lists.update([number] if number is not None else [])
        return found

    def _own(self, replayed: Replayed, info: ObjectInfo) -> OwnObject | None:
        version = version_of(info)
        mark = _MARK.fullmatch((info.metadata or {}).get(LOG_KEY, ""))
        if mark is not None and mark[1] == replayed.last.log_id:
            marked_at = Position(int(mark[2], 16), int(mark[3], 16))
            # An upload has its mark from its beginning. One that a recovery has completed lacks bytes that the log had
            # before that; and what the log tells can be laid over any newer object, too.
            complete_to = NOWHERE if replayed.refers_to_upload_after(marked_at) else marked_at
            return OwnObject(version, complete_to, marked_at)
        return OwnObject(version, NOWHERE) if self._replay.has(replayed, version) else None

    def _may_be_marker_of(self, replayed: Replayed, info: ObjectInfo) -> bool:
        """Return whether a marker without metadata, which SeaweedFS keeps of none, is taken for the directory's own.

        That is where nothing is to be any more, or just the directory: no bytes are lost with a marker.
        """
        if not is_directory(replayed.last) or info.size or info.metadata:
            return False
        if info.key in _markers_of(replayed):
            return True
        return info.key not in self._markers and not self._replay.is_in_use(version_of(info))


def version_of(info: ObjectInfo) -> Version:
    """Return which version a store has told of."""
    return Version(info.key, info.etag, info.size)


def key_of(path: Iterable[bytes]) -> str:
    """Return the key of a file with these names on the way to it."""
    return "/".join(map(segment_of, path))


def detour_key(replayed: Replayed) -> str:
    """Return where an inode's object waits while another has its key."""
    return f"{DETOURS_PREFIX}{replayed.last.log_id}"


def marked(replayed: Replayed, metadata: Metadata) -> Metadata:
    """Return an object's metadata so that it is found to be the inode's own wherever it is."""
    mark = _MARK.fullmatch(metadata.get(LOG_KEY, ""))
    if mark is not None and mark[1] == replayed.last.log_id:
        return metadata
    return {**metadata, LOG_KEY: f"{replayed.last.log_id}@{NOWHERE.epoch:x}-{NOWHERE.sequence:x}"}


def is_directory(record: InodeRecord) -> bool:
    """Return whether an inode is a directory; what it is never changes."""
    mode = record.metadata.get("mode", "")
    return stat.S_ISDIR(int(mode) if mode.isdecimal() else 0)


def _names(replayed: Replayed) -> Iterable[str]:
    """Return the keys under which the inode's objects may be."""
    keys = dict.fromkeys(_keys_of(replayed, reversed(replayed.paths)))
    keys |= dict.fromkeys(version.key for version in replayed.versions)
    keys |= dict.fromkeys(sorted(replayed.upload_keys))
    return [key for key in keys if not key.startswith(CONFLICTS_PREFIX)]  # nobody removes those


def _keys_of(replayed: Replayed, paths: Iterable[tuple[bytes, ...]]) -> list[str]:
    keys = [key_of(path) for path in paths]
    if is_directory(replayed.last):
        return [f"{key}/" if key else ROOT_MARKER for key in keys]
    return keys


def _markers_of(replayed: Replayed) -> list[str]:
    """Return the key of the marker that a directory has in the end, if it is one that is there."""
    if replayed.last.path is None or not is_directory(replayed.last):
        return []
    return _keys_of(replayed, [replayed.last.path])
