"""The private part of a directory store, `.fusefs-store` in its root: locks, temporary files, uploads, packs.

    lock            held while sessions come and go
    locks/XX        held (flock) while an object whose key hashes to XX is judged and changed, by any process
    tmp/SESSION/    temporary files of one process; its `lock` is held as long as the process lives
    uploads/ID/     multipart uploads, see `directory_uploads`
    packs/          objects that share files, where there are any, see `packs`

A lock is a file opened anew each time it is taken, so that it excludes threads of one process as well as other
processes, and the kernel drops it with a killed process. No thread that holds a key's lock waits for another one.

What a killed process left in its session is removed when the next session begins: whoever gets the session's lock
without waiting knows that its owner is gone.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import shutil
import tempfile
import threading
import zlib
from collections.abc import Iterator
from typing import Final

from backends.directory_files import closing, sync_directory
from backends.escaping import PRIVATE_NAME

_SHARDS: Final = 256


class PrivateArea:
    """One process's use of the private directory; created on disk when it is first written to."""

    def __init__(self, root: str) -> None:
        self._path: Final = os.path.join(root, PRIVATE_NAME)
        self._names: Final = itertools.count(1)
        # Guards the two below, which are None until the session has begun and after it has ended.
        self._opening: Final = threading.Lock()
        self._session: str | None = None
        self._session_lock: int | None = None

    @property
    def uploads(self) -> str:
        return os.path.join(self._path, "uploads")

    @contextlib.contextmanager
    def locked(self, key: str) -> Iterator[None]:
        """Hold the lock of `key` against all threads and processes."""
        self.open_session()
        shard = zlib.crc32(key.encode()) % _SHARDS
        with lock_file(os.path.join(self._path, "locks", f"{shard:02x}")):
            yield

    def new_path(self) -> str:
        """A path in this session's directory that nothing has."""
        return os.path.join(self.open_session(), str(next(self._names)))

    @contextlib.contextmanager
    def temporary(self) -> Iterator[tuple[int, str]]:
        """Create a temporary file, open for writing; what still has its name at the end is removed."""
        path = self.new_path()
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            with closing(descriptor):
                yield descriptor, path
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)

    def discard(self, directory: str) -> None:
        """Remove a directory in one step for all who look, and then its content."""
        grave = self.new_path()
        os.rename(directory, grave)
        shutil.rmtree(grave)

    def open_session(self) -> str:
        """Return this session's directory; the first call makes it and removes what dead sessions left."""
        with self._opening:
            if self._session is None:
                self._session, self._session_lock = self._begin_session()
            return self._session

    def close_session(self) -> None:
        """Remove this session's directory."""
        with self._opening:
            if self._session is not None and self._session_lock is not None:
                shutil.rmtree(self._session, ignore_errors=True)
                os.close(self._session_lock)
            self._session = self._session_lock = None

    def _begin_session(self) -> tuple[str, int]:
        sessions = os.path.join(self._path, "tmp")
        for path in (self._path, sessions, os.path.join(self._path, "locks"), self.uploads):
            with contextlib.suppress(FileExistsError):
                os.mkdir(path)
            sync_directory(os.path.dirname(path))  # whoever has made it may have been killed before that
        with lock_file(os.path.join(self._path, "lock")):
            _remove_dead_sessions(sessions)
            session = tempfile.mkdtemp(prefix=f"{os.getpid()}-", dir=sessions)
            descriptor = os.open(os.path.join(session, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            return session, descriptor


@contextlib.contextmanager
def lock_file(path: str, *, create: bool = True) -> Iterator[int]:
    """Hold the lock of a file, which is created if need be; waits for whoever holds it."""
    flags = os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if create else 0)
    with closing(os.open(path, flags, 0o666)) as descriptor:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor


def _remove_dead_sessions(sessions: str) -> None:
    with os.scandir(sessions) as entries:
        for entry in entries:
            path = os.path.join(entry.path, "lock")
            with closing(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)) as descriptor:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue
                shutil.rmtree(entry.path)
