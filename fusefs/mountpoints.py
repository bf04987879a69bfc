"""Directories that something is to be mounted on, or is mounted on."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Final

from fusefs.errors import MountError

_MAX_LINKS: Final = 40
"""As many as the kernel follows."""

FILESYSTEM_TYPE: Final = "fuse.fusefs"
"""What the kernel calls a mount of ours: pyfuse3 is told the part behind the dot as `subtype`."""

_OCTAL: Final = re.compile(rb"\\(\d{3})")
"""How the kernel writes spaces, line ends and backslashes of paths."""

_USER: Final = re.compile(rb"(?:^|,)user_id=(\d+)")
"""How the kernel tells, among the options of a FUSE mount, whose it is."""

_libc = ctypes.CDLL(None, use_errno=True)  # its calls give the global lock back


def where_it_is(mountpoint: str) -> Path:
    """Return the path of a mount point that may be named by symbolic links: where the kernel has the mount.

    Nothing is asked of what is mounted there: its daemon may hang.
    """
    path = os.path.abspath(os.path.expanduser(mountpoint))
    for _ in range(_MAX_LINKS):
        above, name = os.path.split(path)
        path = os.path.join(os.path.realpath(above), name)
        try:
            path = os.path.join(os.path.dirname(path), os.readlink(path))
        except OSError:
            break
    return Path(os.path.normpath(path))


def check_mountpoint(path: Path) -> None:
    """Raise `MountError` unless something can be mounted at `path`."""
    try:
        if not stat.S_ISDIR(path.stat().st_mode):
            raise MountError(f"{path} is not a directory")
        if os.path.ismount(path):
            check_alive(path)
            raise MountError(
                f"{path} is busy: something is mounted there; if it is of fusefs, unmount it with: fusefs umount {path}"
            )
        if any(path.iterdir()):
            raise MountError(f"{path} is not empty: give a directory with nothing in it")
    except FileNotFoundError:
        raise MountError(f"{path} does not exist; make it with: mkdir -p {path}") from None
    except OSError as error:
        check_alive(path)
        raise MountError(f"{path} cannot be used: {error.strerror}") from error


def check_alive(path: Path) -> None:
    """Raise `MountError` if `path` is a mount whose daemon is gone."""
    if _is_dead(path):
        raise MountError(f"{path} holds a mount whose daemon is gone; remove it with: fusermount3 -uz {path}")


def remove_if_dead(path: Path) -> bool:
    """Remove the mount at `path` if it is of fusefs and its daemon is gone, and return whether it was.

    Whatever has files of it open gets errors from them as before. Raises `MountError` if it cannot be removed.
    """
    if type_of_mount(path) != FILESYSTEM_TYPE or not _is_dead(path):
        return False
    unmount(path, is_lazy=True)
    return True


def _is_dead(path: Path) -> bool:
    try:
        os.statvfs(path)  # stat(2) is no proof: the kernel may answer it itself
    except OSError as error:
        return error.errno in (errno.ENOTCONN, errno.ECONNABORTED)
    return False


def type_of_mount(mountpoint: Path) -> str | None:
    """Return the type of what was mounted there last, as proc_pid_mountinfo(5) tells it; None if nothing is.

    That is not touched: its daemon may be stopped, and then whoever does waits until it goes on.
    """
    about = _mounted_at(mountpoint)
    return about[0].decode("ascii") if about else None


def user_of_mount(mountpoint: Path) -> int | None:
    """Return who has mounted the FUSE file system there; None if there is none. It is not touched either."""
    about = _mounted_at(mountpoint)
    found = _USER.search(about[-1]) if about else None
    return int(found[1]) if found else None


def _mounted_at(mountpoint: Path) -> list[bytes]:
    """Return the type, the source and the options of what was mounted there last; nothing if nothing is."""
    found: list[bytes] = []
    for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
        fields, _, about = line.partition(b" - ")
        where = _OCTAL.sub(lambda match: bytes([int(match[1], 8)]), fields.split(b" ")[4])
        if where == os.fsencode(mountpoint):
            found = about.split(b" ")
    return found


def sync_filesystem(mountpoint: Path, is_it: Callable[[], bool]) -> None:
    """Have the kernel send every page of the mount that it has not written yet: syncfs(2).

    Call it in a thread, and not through `pyfuse3.syncfs`, which keeps Python's global lock while the kernel waits for
    this very process to take the pages. The descriptor is open only for the call, because it makes umount(8) fail.
    `is_it` tells, once it is open, whether it is of the mount. If not, that is in another place or was detached (mount
    --bind, unshare(1), umount -l), and all that the host has is synced. Raises OSError.
    """
    try:
        descriptor = os.open(mountpoint, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        os.sync()
        return
    try:
        if not is_it():
            os.sync()
        elif _libc.syncfs(descriptor) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), str(mountpoint))
    finally:
        os.close(descriptor)


def unmount(mountpoint: Path, *, is_lazy: bool = False) -> None:
    """Ask the kernel to end the mount, also if it is busy if this `is_lazy`. Raises `MountError` where it does not."""
    command = ["fusermount3", "-uz" if is_lazy else "-u", str(mountpoint)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise MountError(f"{mountpoint} cannot be unmounted: {command[0]}: {error.strerror}") from error
    if done.returncode != 0:
        reason = done.stderr.strip().rpartition(": ")[2] or f"fusermount3 exited with {done.returncode}"
        if reason == os.strerror(errno.EBUSY):
            raise MountError(
                f"{mountpoint} stays mounted: a program has something of it open, or works in it; which one, tells:"
                f" fuser -vm {mountpoint}"
            )
        raise MountError(f"{mountpoint} cannot be unmounted: {reason}")
