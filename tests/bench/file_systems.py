"""File systems as the benchmark sees them: they are mounted, unmounted, lost with their host, and cost something."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.bench.usage import family
from tests.support.bucket import Bucket
from tests.support.mounts import detach

MOUNT_SECONDS: Final = 60.0
BUSY_SECONDS: Final = 5.0
UMOUNT_SECONDS: Final = 300.0
_POLL_SECONDS: Final = 0.02


class FileSystemError(Exception):
    """A file system could not be mounted or unmounted. Raised with what its program has said last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """To whom everything belongs that carries no owner, and nobody else may enter it."""

    uid: int
    gid: int


class FileSystem(ABC):
    """One of them, with a directory of its own for everything it needs."""

    name: str
    path: Path
    #: Where its files are plain objects, if they are.
    bucket: Bucket | None = None
    #: Whether it promises to keep anything; a limit need not.
    keeps: bool = True

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
    def abandon(self) -> None:
        """End it without warning, so that no call waits for it any more; from any thread."""

    @abstractmethod
    def close(self) -> None:
        """Take it away, whatever state it is in."""


def _is_mount(path: Path) -> bool:
    """Whether the kernel has a mount there, alive or dead, without asking its program."""
    return any(line.split()[1] == str(path) for line in Path("/proc/mounts").read_text().splitlines())


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
        survives: bool = True,
    ) -> None:
        """In the commands `{mountpoint}`, `{cache}` and `{state}` are its directories; `prepare` runs once, before all.
        What does not survive the loss of its host (`survives`) is only killed where that is asked for.

        The state is what the file system needs of a service beside the store: it outlives the host.
        """
        self.name = name
        self.bucket = bucket
        self.path = directory / "mnt"
        self._cache, self._state = directory / "cache", directory / "state"
        for each in (self.path, self._cache, self._state):
            each.mkdir(parents=True)
        self._log = directory / "output"
        self._survives = survives
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
        """Unmount; somebody else (a server that was killed, the kernel's own work) may be there for a moment."""
        deadline = time.monotonic() + BUSY_SECONDS
        while True:
            try:
                self._run(self._umount_command, UMOUNT_SECONDS)
                break
            except FileSystemError as error:
                if "busy" not in str(error) or time.monotonic() > deadline:
                    raise
            time.sleep(_POLL_SECONDS)
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
        if self._survives:
            self.forget()

    def pids(self) -> set[int]:
        if self._process is None or self._process.poll() is not None:
            return set()
        return family(self._process.pid)

    def close(self) -> None:
        self._kill()
        if self.bucket is not None:
            self.bucket.clear()

    def abandon(self) -> None:
        """Kill its processes, and end calls that wait for them: some call their own mount, and would wait for ever."""
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if _is_mount(self.path):
            with contextlib.suppress(OSError, subprocess.CalledProcessError):  # it has gone by itself
                detach(self.path)

    def _kill(self) -> None:
        self.abandon()
        if self._process is not None:
            self._process.wait()

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
    directory: Path,
    url: str,
    *flags: str,
    environment: Mapping[str, str],
    bucket: Bucket | None,
    local_log: bool = False,
    owner: Owner | None = None,
) -> FileSystem:
    """Return a default mount of this checkout. A short lease spares the mount after a lost one its wait.

    With `local_log` fsync returns before the upload: what it confirms survives the process, not the host.
    """
    program = [sys.executable, "-m", "fusefs"]
    options = ["--foreground", "--cache-dir", "{cache}", "--lease-term", "2 s", *flags]
    options += ["--allow-other"] if os.getuid() == 0 else []
    options += ["--no-ack-after-upload"] if local_log else []
    if owner is not None:
        options += ["--uid", str(owner.uid), "--gid", str(owner.gid), "--dir-mode", "0700"]
    return ServedFileSystem(
        "fusefs, ack_after_upload=false" if local_log else "fusefs",
        directory,
        command=[*program, "mount", url, "{mountpoint}", *options],
        umount_command=[*program, "umount", "{mountpoint}"],
        environment=environment,
        bucket=bucket,
        survives=not local_log,
    )
