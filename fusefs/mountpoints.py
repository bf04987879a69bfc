"""Directories that something is to be mounted on, or is mounted on."""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import subprocess
from pathlib import Path
from typing import Final

from fusefs.errors import MountError

_MAX_LINKS: Final = 40
"""As many as the kernel follows."""

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
    try:
        os.statvfs(path)  # stat(2) is no proof: the kernel may answer it itself
    except OSError as error:
        if error.errno in (errno.ENOTCONN, errno.ECONNABORTED):
            raise MountError(
                f"{path} holds a mount whose daemon is gone; remove it with: fusermount3 -uz {path}"
            ) from error


def sync_filesystem(mountpoint: Path) -> None:
    """Have the kernel hand over every page of the mount that it has not written yet: syncfs(2).

    Call it in a thread, and not through `pyfuse3.syncfs`, which keeps Python's global lock while the kernel waits for
    this very process to take the pages. The descriptor is open only for the call, because it makes umount(8) fail.
    Raises OSError.
    """
    descriptor = os.open(mountpoint, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if _libc.syncfs(descriptor) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), str(mountpoint))
    finally:
        os.close(descriptor)


def unmount(mountpoint: Path) -> None:
    """Ask the kernel to end the mount. Raises `MountError` if it is busy or there is none."""
    done = subprocess.run(["fusermount3", "-u", str(mountpoint)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        reason = done.stderr.strip().rpartition(": ")[2] or f"fusermount3 exited with {done.returncode}"
        raise MountError(f"{mountpoint} cannot be unmounted: {reason}")
