"""How `fusefs umount` and `fusefs status` talk to the daemon of a mount: a socket, and one JSON object per line.

The socket lies in a directory that only the mount's owner can enter, under a name made from the mount point. A client
sends one word:

    drain     publish everything that is pending; the mount stays
    follow    tell of the end of the daemon
    status    tell how the mount stands, in one line (`fusefs.status`)

and gets that line, or one of progress (`pending_inodes`, `pending_bytes`) several times a second, and a last one with
`done` true and `error` null or a sentence. A connection that ends without it means that the daemon died.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio

from fusefs.errors import MountError

_log = logging.getLogger(__name__)

PROGRESS_SECONDS: Final = 0.2

STATUS_SECONDS: Final = 10.0
"""A daemon that has not said in this time how it stands hangs, or is stopped."""

BEGIN_SECONDS: Final = 60.0
"""The same for one that has not begun to do what it was asked for: longer, since nobody tries again by himself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """What is still to be published; at the end, why not all of it was."""

    pending_inodes: int
    pending_bytes: int
    done: bool = False
    error: str | None = None


def socket_path(mountpoint: Path) -> Path:
    """Return where the daemon of the mount at `mountpoint` listens; it depends on the user and nothing else."""
    uid = os.getuid()
    runtime = Path("/run") if uid == 0 else Path(f"/run/user/{uid}")
    directory = runtime / "fusefs" if os.access(runtime, os.W_OK) else Path(f"/tmp/fusefs-{uid}")
    digest = hashlib.sha256(os.fsencode(mountpoint)).hexdigest()[:16]
    return directory / f"{digest}.sock"


class ControlServer:
    """The daemon's side. `drain` publishes everything, `progress` and `status` tell what is left: the mount's own."""

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
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(STATUS_SECONDS)
            return connection.connect_ex(str(self._path)) == 0

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Answer clients until cancelled. Raises `MountError` where there cannot be a socket."""
        with trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            try:
                _make_private(self._path.parent)
                self._path.unlink(missing_ok=True)  # of a daemon that died
                await listener.bind(str(self._path))
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
            except Exception as failure:
                error = f"{type(failure).__name__}: {failure}"
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
        left = self._progress()
        await _send(
            stream,
            Progress(
                pending_inodes=left.pending_inodes, pending_bytes=left.pending_bytes, done=True, error=error
            ),
        )


def _make_private(directory: Path) -> None:
    """Make the directory. Raises OSError where it is another user's, who could put a socket of their own there."""
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    if directory.lstat().st_uid != os.getuid():
        raise PermissionError(errno.EPERM, "it belongs to another user")


async def _send(stream: trio.abc.Stream, progress: Progress) -> None:
    line = json.dumps(
        {
            "pending_inodes": progress.pending_inodes,
            "pending_bytes": progress.pending_bytes,
            "done": progress.done,
            "error": progress.error,
        }
    )
    await stream.send_all(line.encode() + b"\n")


class ControlClient:
    """The command's side; plain blocking sockets. Raises ConnectionError if the daemon is not there or goes away."""

    def __init__(self, mountpoint: Path) -> None:
        self._path = socket_path(mountpoint)

    def connect(self, request: str) -> Iterator[Progress]:
        """Send a request now, and return the progress to be read, up to and including the last line.

        The daemon has begun to answer when this returns: whoever follows it will hear of its end.
        """
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.settimeout(BEGIN_SECONDS)
            connection.connect(str(self._path))
            connection.sendall(request.encode() + b"\n")
            connection.recv(1, socket.MSG_PEEK)
            connection.settimeout(None)
        except OSError as error:
            connection.close()
            raise ConnectionError(f"no daemon answers for this mount: {error.strerror or error}") from error
        return self._read(connection)

    def status(self) -> Mapping[str, object]:
        """Return how the mount stands."""
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
                connection.settimeout(STATUS_SECONDS)
                connection.connect(str(self._path))
                connection.sendall(b"status\n")
                with connection.makefile("rb") as lines:
                    line = lines.readline()
        except OSError as error:
            raise ConnectionError(f"no daemon answers for this mount: {error.strerror or error}") from error
        if not line.endswith(b"\n"):
            raise ConnectionError("the daemon of this mount died")
        answer: Mapping[str, object] = json.loads(line)
        return answer

    @staticmethod
    def _read(connection: socket.socket) -> Iterator[Progress]:
        with connection, connection.makefile("rb") as lines:
            for line in lines:
                progress = Progress(**json.loads(line))
                yield progress
                if progress.done:
                    return
        raise ConnectionError("the daemon of this mount died")
