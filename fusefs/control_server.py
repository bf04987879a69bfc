"""The daemon's side of `control`."""

from __future__ import annotations

import errno
import json
import logging
import os
import socket
import stat
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Final

import trio

from backends.errors import StorageError
from fusefs.control import Progress, is_listened_to
from fusefs.errors import FilesystemError, MountError

_log = logging.getLogger(__name__)

PROGRESS_SECONDS: Final = 0.2


class ControlServer:
    """The socket. `drain` publishes everything, `progress` and `status` tell what is left: the mount's own."""

    def __init__(
        self,
        path: Path,
        *,
        drain: Callable[[], Awaitable[None]],
        progress: Callable[[], Progress],
        status: Callable[[], Mapping[str, object]],
    ) -> None:
        self._path = path
        self._drain = drain
        self._progress = progress
        self._status = status
        self.is_serving = False
        self._ended = trio.Event()
        self._error: str | None = None
        self._followers = 0
        self._all_told = trio.Event()

    def is_taken(self) -> bool:
        """Return whether another daemon answers there: one that is ending, or that begins as well."""
        return is_listened_to(self._path)

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Answer clients until cancelled. Raises `MountError` where there cannot be a socket."""
        with trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            try:
                _make_private(self._path.parent)
                self._path.unlink(missing_ok=True)  # of a daemon that died
                await listener.bind(str(self._path))
                self._path.chmod(0o600)
                listener.listen()
                ours = self._path.stat()
            except OSError as error:
                raise MountError(f"{self._path.parent} cannot hold a socket: {error.strerror}") from error
            try:
                self.is_serving = True
                task_status.started()
                await trio.serve_listeners(self._answer, [trio.SocketListener(listener)])
            finally:
                self._remove(ours)

    def _remove(self, ours: os.stat_result) -> None:
        """Remove the socket, unless the next mount of this mount point has put its own there already."""
        with suppress(FileNotFoundError):
            if os.path.samestat(self._path.stat(), ours):
                self._path.unlink()

    async def tell_end(self, error: str | None) -> None:
        """Tell followers how the mount ended, and return when they know."""
        self._error = error
        self._ended.set()
        if self._followers:
            with trio.move_on_after(5 * PROGRESS_SECONDS):
                await self._all_told.wait()

    async def _answer(self, stream: trio.abc.Stream) -> None:
        try:
            request = (await stream.receive_some(64)).strip()
            if request == b"drain":
                await self._answer_drain(stream)
            elif request == b"follow":
                await self._answer_follow(stream)
            elif request == b"status":
                await stream.send_all(json.dumps(self._status()).encode() + b"\n")
        except* (trio.BrokenResourceError, trio.ClosedResourceError):
            _log.debug("a client of the control socket went away")
        except* Exception:  # it must not end the mount
            _log.exception("a defect stopped an answer on the control socket")

    async def _answer_drain(self, stream: trio.abc.Stream) -> None:
        error: str | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._tell_progress, stream)
            try:
                await self._drain()
            except (FilesystemError, MountError, StorageError, OSError) as failure:
                error = str(failure)
            except Exception as failure:
                error = f"a defect of fusefs: {failure!r}"
            nursery.cancel_scope.cancel()
        await self._tell_last(stream, error)

    async def _answer_follow(self, stream: trio.abc.Stream) -> None:
        self._followers += 1
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._tell_progress, stream)
                await self._ended.wait()
                nursery.cancel_scope.cancel()
            await self._tell_last(stream, self._error)
        finally:
            self._followers -= 1
            if self._ended.is_set() and not self._followers:
                self._all_told.set()

    async def _tell_progress(self, stream: trio.abc.Stream) -> None:
        while True:
            await _send(stream, self._progress())
            await trio.sleep(PROGRESS_SECONDS)

    async def _tell_last(self, stream: trio.abc.Stream, error: str | None) -> None:
        await _send(stream, replace(self._progress(), done=True, error=error))


def _make_private(directory: Path) -> None:
    """Make the directory. Raises OSError where others could put a socket of their own there."""
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    found = directory.lstat()
    if found.st_uid != os.getuid():
        raise PermissionError(errno.EPERM, "it belongs to another user")
    if not stat.S_ISDIR(found.st_mode):
        raise NotADirectoryError(errno.ENOTDIR, "it is a symbolic link")
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise PermissionError(errno.EPERM, f"others may write to it; end that with: chmod go-w {directory}")


async def _send(stream: trio.abc.Stream, progress: Progress) -> None:
    await stream.send_all(json.dumps(asdict(progress)).encode() + b"\n")
