"""All packs of a directory store: which objects they have, who appends, and the end of those that nobody needs.

A pack is `packs/GROUP-TIME` in the private directory; the group is a hash of all that comes before the last slash of
its keys, the time is that of its making. Whoever appended the first object of a group is the only process that
appends others to it, as long as there is a pack of it. So a process knows its own packs without looking, and looks at
those of others when it is asked.

What is dropped is remembered by this process alone until nothing of its pack is left, which is removed then, for
good. So objects that were dropped one by one may be there again for the next process. `remove` is for who cannot have
that.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import os
import re
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from backends.base import MIB, Data
from backends.directory_files import Descriptor, closing, open_regular, read_range, sync_directory
from backends.errors import NotFound
from backends.pack_file import OwnPack
from backends.pack_format import PackedObject, scan

PACK_BYTES: Final = 4 * MIB
"""Room of a pack: what one object that is needed may keep of others that are not."""

PACK_SHARE: Final = 64
"""A pack is at most this part of the file system."""

_LOCK: Final = "lock"
_NAME: Final = re.compile(r"[0-9a-f]{16}-[0-9a-f]{16}")

_SETTLED_NS: Final = 2_000_000_000
"""A file that was last written this long ago is not written again without another time."""


@dataclass
class Pack:
    """What is known of one pack."""

    path: str
    own: OwnPack | None = None
    objects: dict[str, PackedObject] = field(default_factory=dict)
    #: Offsets of objects that were dropped.
    dropped: set[int] = field(default_factory=set)
    #: Of another process's file, as it was when it was read; None if it may be written again at the same time.
    seen: tuple[int, int, int] | None = None

    def read(self, packed: PackedObject, first: int, end: int) -> bytes:
        """Return bytes of an object. Raises `NotFound` if the file is not there any more."""
        descriptor = open_regular(self.path)
        if descriptor is None:
            raise NotFound(f"{self.path} was removed")
        with closing(descriptor):
            return read_range(descriptor, packed.start + first, packed.start + end)


class Packs:
    """The packs in a directory, which is made when the first one is. Blocking, and safe for threads.

    All methods may raise OSError. Whoever changes anything holds the lock of `locked`.
    """

    def __init__(self, private: str) -> None:
        """`private` is the store's private directory."""
        self._private: Final = private
        self._directory: Final = os.path.join(private, "packs")
        #: Guards all that follows; held as long as `locked`.
        self._guard: Final = threading.RLock()
        self._lock: Descriptor | None = None
        #: By name, which is the order in which they were made, of one group.
        self._packs: Final[dict[str, Pack]] = {}
        #: By group, to which this process appends.
        self._current: Final[dict[str, Pack]] = {}

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other threads and processes from changing anything."""
        with self._guard:
            if self._lock is None:
                self._make_directory()
                path = os.path.join(self._directory, _LOCK)
                self._lock = Descriptor(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666))
            fcntl.flock(self._lock.number, fcntl.LOCK_EX)
            try:
                yield
            finally:
                fcntl.flock(self._lock.number, fcntl.LOCK_UN)

    def _make_directory(self) -> None:
        for path in (self._private, self._directory):
            with contextlib.suppress(FileExistsError):
                os.mkdir(path)
            sync_directory(os.path.dirname(path))  # whoever has made it may have been killed before that

    # Reading

    def refresh(self) -> None:
        """Look what other processes have written, which is on the disk then, and what they have removed."""
        with self._guard:
            try:
                names = sorted(filter(_NAME.fullmatch, os.listdir(self._directory)))
            except FileNotFoundError:
                names = []
            for name in self._packs.keys() - set(names):
                self._forget(name)
            for name in names:
                if name not in self._packs or self._packs[name].own is None:
                    self._look(name)

    def _look(self, name: str) -> None:
        pack = self._packs.setdefault(name, Pack(os.path.join(self._directory, name)))
        descriptor = open_regular(pack.path)
        if descriptor is None:
            self._forget(name)
            return
        with closing(descriptor):
            status = os.fstat(descriptor)
            seen = (status.st_ino, status.st_size, status.st_mtime_ns)
            if pack.seen == seen:
                return
            objects = scan(lambda start, end: read_range(descriptor, start, end), status.st_size)
            if objects and objects[-1].end > max(each.safe for each in objects):
                os.fdatasync(descriptor)
        pack.seen = seen if time.time_ns() - status.st_mtime_ns > _SETTLED_NS else None
        pack.objects = {each.key: each for each in objects if each.offset not in pack.dropped}

    def find(self, key: str) -> tuple[Pack, PackedObject] | None:
        """Return where an object is, as far as this process has looked."""
        with self._guard:
            for pack in reversed(self._packs.values()):
                found = pack.objects.get(key)
                if found is not None:
                    return pack, found
        return None

    def names(self, prefix: bytes) -> list[bytes]:
        """Return the keys of all objects that begin with `prefix`, sorted, as far as this process has looked."""
        with self._guard:
            keys = {key.encode() for pack in self._packs.values() for key in pack.objects}
        return sorted(key for key in keys if key.startswith(prefix))

    # Appending

    def is_own(self, key: str) -> bool:
        """Return whether this process alone appends to the group of a key, and so knows what there is of it."""
        current = self._current.get(_group(key))
        return current is not None and current.own is not None and not current.own.is_removed

    def is_anothers(self, key: str) -> bool:
        """Return whether another process has appended to the group of a key, after `refresh`."""
        group = _group(key)
        return any(pack.own is None for name, pack in self._packs.items() if name.startswith(group))

    def append(self, key: str, data: Data, time_ns: int) -> tuple[Pack, PackedObject]:
        """Write an object, which `confirm` brings to the disk. Raises OSError, and then it is not there."""
        group = _group(key)
        pack = self._current.get(group)
        if pack is None or pack.own is None or not pack.own.takes(key, data):
            pack = self._begin(group)
        assert pack.own is not None
        written = pack.own.append(key, data, time_ns)
        pack.objects[key] = written
        return pack, written

    def _begin(self, group: str) -> Pack:
        """Make a pack, durably, in place of those that have nothing since they could not be synced."""
        for pack in [pack for pack in self._packs.values() if pack.own is not None and not pack.objects]:
            self._unlink(pack)
        times = [int(name.partition("-")[2], 16) for name in self._packs if name.startswith(group)]
        name = f"{group}-{max([time.time_ns(), *(each + 1 for each in times)]):016x}"
        status = os.statvfs(self._directory)
        room = min(PACK_BYTES, status.f_blocks * status.f_frsize // PACK_SHARE)
        pack = Pack(os.path.join(self._directory, name))
        pack.own = OwnPack(pack.path, room=room)
        self._packs[name] = pack
        sync_directory(self._directory)  # before there is an object: whoever reads one need not do it
        self._current[group] = pack
        return pack

    def confirm(self, pack: Pack, written: PackedObject) -> None:
        """Return when an object is on the disk. Raises OSError, and then it is not there. Takes no lock."""
        assert pack.own is not None
        try:
            pack.own.sync(written)
        except OSError:
            with self._guard:
                if pack.objects.get(written.key) == written:
                    del pack.objects[written.key]
            raise

    # Removing

    def drop(self, keys: Iterable[str]) -> None:
        """Forget objects, and remove packs of which nothing is left; keys of which there are none are no error."""
        for key in keys:
            for pack in self._packs.values():
                dropped = pack.objects.pop(key, None)
                if dropped is not None and pack.own is None:
                    pack.dropped.add(dropped.offset)
        if any(pack.own is None and not pack.objects for pack in self._packs.values()):
            self.refresh()  # where nothing is yet, there may be something by now
        empty = [pack for pack in self._packs.values() if not pack.objects]
        for pack in empty:
            self._unlink(pack)
        if empty:
            sync_directory(self._directory)

    def remove(self, pack: Pack) -> None:
        """Remove a pack for good, with all that is in it."""
        self._unlink(pack)
        sync_directory(self._directory)

    def _unlink(self, pack: Pack) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(pack.path)
        self._forget(os.path.basename(pack.path))

    def _forget(self, name: str) -> None:
        pack = self._packs.pop(name)
        if self._current.get(name.partition("-")[0]) is pack:
            del self._current[name.partition("-")[0]]
        if pack.own is not None:
            pack.own.close()

    def close(self) -> None:
        """Close the files, and remove what was begun in vain."""
        with self._guard:
            if any(pack.own is not None and not pack.objects for pack in self._packs.values()):
                with contextlib.suppress(OSError), self.locked():
                    self.drop(())
            for name in list(self._packs):
                self._forget(name)
            if self._lock is not None:
                self._lock.close()
            self._lock = None


def _group(key: str) -> str:
    return _hash(key.rpartition("/")[0])


@functools.lru_cache(16)
def _hash(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:16]
