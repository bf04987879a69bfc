"""How `fusefs umount` and `fusefs status` talk to the daemon of a mount: a socket, and one JSON object per line.

The socket lies in a directory that only the mount's owner can enter, under a name made from the mount point. A client
sends one word:

    drain     publish everything that is pending; the mount stays
    follow    tell of the end of the daemon
    status    tell how the mount stands, in one line (`fusefs.status`)

and gets that line, or one of progress (`pending_inodes`, `pending_bytes`) several times a second, and a last one with
`done` true and `error` null or a sentence. A connection that ends without it means that the daemon died.

In /tmp another user may have made that directory first, and could tell anything: their socket is not talked to.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import select
import socket
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

STATUS_SECONDS: Final = 10.0
"""A daemon that has not said in this time how it stands hangs, or is stopped."""

BEGIN_SECONDS: Final = 60.0
"""The same for one that has not begun to do what it was asked for: longer, since nobody tries again by himself."""

END_SECONDS: Final = 60.0
"""For how long the process of a daemon may go on after its mount: it gives its lease back, and cleans up."""


_CREDENTIALS: Final = struct.Struct("iII")
"""What the kernel tells of who listens: process, user and group (struct ucred)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """What is still to be published; at the end, why not all of it was."""

    pending_inodes: int
    pending_bytes: int
    #: Whether the mount has begun to end.
    ending: bool = False
    done: bool = False
    error: str | None = None


def socket_path(mountpoint: Path) -> Path:
    """Return where the daemon of the mount at `mountpoint` listens; it depends on the user and nothing else.

    Not below /run/user: that comes with a user's first login and goes with the last one, sockets of daemons included.
    """
    uid = os.getuid()
    is_root = uid == 0 and os.access("/run", os.W_OK)
    directory = Path("/run/fusefs") if is_root else Path(f"/tmp/fusefs-{uid}")
    digest = hashlib.sha256(os.fsencode(mountpoint)).hexdigest()[:16]
    return directory / f"{digest}.sock"


def is_listened_to(path: Path) -> bool:
    """Return whether a daemon is there, be it that it is stopped and answers nobody."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(STATUS_SECONDS)
        try:
            _connect(connection, path)
        except OSError:
            return False
        return True


def _connect(connection: socket.socket, path: Path) -> None:
    """Connect to a daemon of this user. Raises OSError, also where it is another user who listens there."""
    connection.connect(str(path))
    _, user = _listener(connection)
    if user != os.getuid():
        raise PermissionError(errno.EPERM, f"another user listens on {path}")


def _listener(connection: socket.socket) -> tuple[int, int]:
    """Return the process and the user that listen on the other side."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    process, user, _ = _CREDENTIALS.unpack(credentials)
    return process, user


def _unanswered(connection: socket.socket, error: OSError) -> ConnectionError:
    """Return what is to be told of a daemon that could not be asked: where it is there, who it is, and what to do."""
    if not isinstance(error, TimeoutError):
        return ConnectionError(f"no daemon answers for this mount: {error.strerror or error}")
    process, _ = _listener(connection)
    silent = "does not answer: it is stopped, or hangs"
    if not process:  # it is in another container
        return ConnectionError(f"the daemon of this mount {silent}")
    return ConnectionError(
        f"the daemon of this mount (process {process}) {silent}; let it go on with kill -CONT {process}, or end it"
        f" with kill -KILL {process}: the next mount has what is in the log"
    )


def _wait_for_end(process: int) -> bool:
    """Return whether a process ends soon, and close the descriptor (pidfd_open(2)) of it."""
    try:
        ended, _, _ = select.select([process], [], [], END_SECONDS)
    finally:
        os.close(process)
    return bool(ended)


class ControlClient:
    """The command's side; plain blocking sockets. Raises ConnectionError if the daemon is not there or goes away."""

    def __init__(self, mountpoint: Path) -> None:
        self._path = socket_path(mountpoint)

    def is_there(self) -> bool:
        """Return whether the daemon is, as `is_listened_to` has it."""
        return is_listened_to(self._path)

    def connect(self, request: str) -> Iterator[Progress]:
        """Send a request now, and return the progress to be read, up to and including the last line.

        The daemon has begun to answer when this returns: whoever follows it will hear of its end.
        """
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.settimeout(BEGIN_SECONDS)
            _connect(connection, self._path)
            connection.sendall(request.encode() + b"\n")
            connection.recv(1, socket.MSG_PEEK)
            connection.settimeout(None)
        except OSError as error:
            with connection:
                raise _unanswered(connection, error) from error
        return self._read(connection)

    def process(self) -> int:
        """Return the number of the daemon's process; 0 where that cannot be seen from here."""
        with self._connected() as connection:
            return _listener(connection)[0]

    def end_of_process(self) -> Callable[[], bool]:
        """Return what waits for the end of the daemon's process then, and returns whether that has come.

        A process that cannot be seen (it is in another container) is not waited for.
        """
        number = self.process()
        try:
            process = os.pidfd_open(number)
        except OSError:
            return lambda: True
        return partial(_wait_for_end, process)

    def status(self) -> Mapping[str, object]:
        """Return how the mount stands."""
        with self._connected() as connection:
            connection.sendall(b"status\n")
            with connection.makefile("rb") as lines:
                line = lines.readline()
        if not line.endswith(b"\n"):
            raise ConnectionError("the daemon of this mount died")
        answer: Mapping[str, object] = json.loads(line)
        return answer

    @contextmanager
    def _connected(self) -> Iterator[socket.socket]:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            try:
                connection.settimeout(STATUS_SECONDS)
                _connect(connection, self._path)
                yield connection
            except OSError as error:
                raise _unanswered(connection, error) from error

    @staticmethod
    def _read(connection: socket.socket) -> Iterator[Progress]:
        with connection, connection.makefile("rb") as lines:
            for line in lines:
                progress = Progress(**json.loads(line))
                yield progress
                if progress.done:
                    return
        raise ConnectionError("the daemon of this mount died")
