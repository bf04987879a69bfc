"""File systems as the benchmark sees them: they are mounted, unmounted, lost with their host, and cost something."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from tests.bench.usage import family
from tests.support.bucket import Bucket

MOUNT_SECONDS: Final = 60.0
UMOUNT_SECONDS: Final = 300.0
_POLL_SECONDS: Final = 0.02


class FileSystemError(Exception):
    """A file system could not be mounted or unmounted. Raised with what its program has said last."""


class FileSystem(ABC):
    """One of them, with a directory of its own for everything it needs."""

    name: str
    path: Path
    #: Where its files are plain objects, if they are.
    bucket: Bucket | None = None

    @abstractmethod
    def mount(self) -> None: ...

    @abstractmethod
    def umount(self) -> None:
        """Unmount, and return when everything is stored."""

    @abstractmethod
    def forget(self) -> None:
        """Remove the local cache of an unmounted file system."""

    @abstractmethod
    def lose_host(self) -> None:
        """End it without warning, and remove all that was on the local disk."""

    @abstractmethod
    def pids(self) -> set[int]:
        """Return the processes that serve it."""

    @abstractmethod
    def close(self) -> None:
        """Take it away, whatever state it is in."""


class PlainDirectory(FileSystem):
    """A directory of the local disk, which is lost with its host: what is measured on it is a limit."""

    name = "plain directory"

    def __init__(self, directory: Path) -> None:
        self.path = directory / "plain"
        self.path.mkdir(parents=True)

    def mount(self) -> None:
        """Do nothing: it is always there."""

    def umount(self) -> None:
        """Put everything on the disk."""
        for path in self._files():
            _with_descriptor(path, os.fsync)

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


class ServedFileSystem(FileSystem):
    """A file system of a program that runs in the foreground until it is unmounted."""

    def __init__(
        self,
        name: str,
        directory: Path,
        *,
        command: Sequence[str],
        environment: Mapping[str, str],
        prepare: Sequence[str] = (),
        umount_command: Sequence[str] = ("umount", "{mountpoint}"),
        bucket: Bucket | None = None,
    ) -> None:
        """In the commands `{mountpoint}`, `{cache}` and `{state}` are its directories; `prepare` runs once, before all.

        The state is what the file system needs of a service beside the store: it outlives the host.
        """
        self.name = name
        self.bucket = bucket
        self.path = directory / "mnt"
        self._cache, self._state = directory / "cache", directory / "state"
        for each in (self.path, self._cache, self._state):
            each.mkdir(parents=True)
        self._log = directory / "output"
        self._command, self._umount_command = self._fill(command), self._fill(umount_command)
        self._environment = {**os.environ, "HOME": str(self._state), **environment}
        self._process: subprocess.Popen[bytes] | None = None
        if prepare:
            self._run(self._fill(prepare), MOUNT_SECONDS)

    def mount(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + MOUNT_SECONDS
        while not os.path.ismount(self.path):
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise FileSystemError(f"{self.name} cannot be mounted: {self._last_words()}")
            time.sleep(_POLL_SECONDS)
        self.path.stat()

    def umount(self) -> None:
        self._run(self._umount_command, UMOUNT_SECONDS)
        assert self._process is not None
        try:
            status = self._process.wait(UMOUNT_SECONDS)
        except subprocess.TimeoutExpired as error:
            raise FileSystemError(f"{self.name} did not end after its unmount") from error
        if status != 0:
            raise FileSystemError(f"{self.name} ended with {status}: {self._last_words()}")

    def forget(self) -> None:
        shutil.rmtree(self._cache)
        self._cache.mkdir()

    def lose_host(self) -> None:
        self._kill()
        self.forget()

    def pids(self) -> set[int]:
        if self._process is None or self._process.poll() is not None:
            return set()
        return family(self._process.pid)

    def close(self) -> None:
        self._kill()
        if self.bucket is not None:
            self.bucket.clear()

    def _kill(self) -> None:
        for pid in self.pids():
            os.kill(pid, signal.SIGKILL)
        if self._process is not None:
            self._process.wait()
        subprocess.run(["umount", "--lazy", self.path], check=False, capture_output=True)

    def _fill(self, command: Sequence[str]) -> list[str]:
        places = {"mountpoint": str(self.path), "cache": str(self._cache), "state": str(self._state)}
        return [word.format_map(places) for word in command]

    def _run(self, command: Sequence[str], seconds: float) -> None:
        done = subprocess.run(
            command,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
        if done.returncode != 0:
            raise FileSystemError(f"{self.name}: {' '.join((done.stderr or done.stdout).split())[-300:]}")

    def _last_words(self) -> str:
        return " ".join(self._log.read_text(errors="replace").split())[-300:]


def fusefs(
    directory: Path, url: str, *flags: str, environment: Mapping[str, str], bucket: Bucket | None
) -> FileSystem:
    """Return a default mount of this checkout. A short lease spares the mount after a lost one its wait."""
    program = [sys.executable, "-m", "fusefs"]
    options = ["--foreground", "--cache-dir", "{cache}", "--lease-term", "3 s", *flags]
    return ServedFileSystem(
        "fusefs",
        directory,
        command=[*program, "mount", url, "{mountpoint}", *options],
        umount_command=[*program, "umount", "{mountpoint}"],
        environment=environment,
        bucket=bucket,
    )
