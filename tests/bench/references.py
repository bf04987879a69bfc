"""File systems that are limits: the local disk without a store, and pyfuse3 with nothing behind it."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.bench.file_systems import FileSystem, ServedFileSystem


class PlainDirectory(FileSystem):
    """A directory of the local disk, which is lost with its host: what is measured on it is a limit."""

    name = "plain directory"

    def __init__(self, directory: Path) -> None:
        self.path = directory / "plain"
        self.path.mkdir(parents=True)

    def mount(self) -> None:
        """Do nothing: it is always there."""

    def umount(self) -> None:
        """Put everything on the disk, with one call: thousands of files in turn would take minutes."""
        os.sync()

    def forget(self) -> None:
        """Let the kernel forget what was read and written."""
        for path in self._files():
            _with_descriptor(
                path, lambda descriptor: os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            )

    def lose_host(self) -> None:
        """Do nothing: nothing would be left to look at."""

    def pids(self) -> set[int]:
        return set()

    def abandon(self) -> None:
        """Do nothing: no call waits for long."""

    def close(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)

    def _files(self) -> Iterator[Path]:
        return (path for path in self.path.rglob("*") if path.is_file())


def _with_descriptor(path: Path, call: Callable[[int], None]) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        call(descriptor)
    finally:
        os.close(descriptor)


class NullFileSystem(ServedFileSystem):
    """`null_mount`, which stays mounted while it is measured: only the kernel's cache is emptied."""

    keeps = False

    def __init__(self, directory: Path) -> None:
        command = [sys.executable, "-m", "tests.bench.null_mount", "{mountpoint}"]
        super().__init__("null file system", directory, command=command, environment={})
        super().mount()

    def mount(self) -> None:
        """Do nothing: it is mounted once."""

    def umount(self) -> None:
        """Do nothing: there is nothing to be stored."""

    def forget(self) -> None:
        for path in [path for path in self.path.rglob("*") if path.is_file()]:
            _with_descriptor(path, os.fsync)
            _with_descriptor(
                path, lambda descriptor: os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            )

    def lose_host(self) -> None:
        """Do nothing: nothing would be left to look at."""
