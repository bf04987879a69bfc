"""Mounts made by the real command line in processes of their own, as a user makes them.

A `Mount` has a directory of its own with everything in it: the mount point, the cache, the log, a home. Its end is
never left to the test: `discard` takes away whatever is still there.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

COMMAND_SECONDS: Final = 120.0
"""A command that takes longer hangs."""

LEASE_TERM: Final = "2 s"

PROGRAM: Final = "fusefs"

POLL_SECONDS: Final = 0.02

_MNT_FORCE: Final = 1
_MNT_DETACH: Final = 2


class Mount:
    """One mount point, and the commands about it; `url` and `flags` are what `fusefs mount` gets."""

    def __init__(
        self,
        directory: Path,
        url: str,
        *flags: str,
        environment: Mapping[str, str] | None = None,
        program: str = PROGRAM,
    ) -> None:
        """`program` is the module to be run; another one than fusefs itself stays in the foreground."""
        self.url = url
        self.program = program
        self.flags = flags
        self.path = directory / "mnt"
        self.log_file = directory / "fusefs.log"
        self.path.mkdir(parents=True)
        self._directory = directory
        self._caches = 0
        self._foreground: subprocess.Popen[str] | None = None
        self.environment = {
            **os.environ,
            "HOME": str(directory / "home"),
            "XDG_CACHE_HOME": str(directory / "home" / "cache"),
            "XDG_DATA_HOME": str(directory / "home" / "data"),
            **(environment or {}),
        }

    @property
    def cache_dir(self) -> Path:
        return self._directory / f"cache{self._caches}"

    @property
    def is_mounted(self) -> bool:
        """Whether the kernel has a mount there, alive or dead."""
        escaped = str(self.path).replace(" ", "\\040")
        return any(line.split()[1] == escaped for line in Path("/proc/mounts").read_text().splitlines())

    @property
    def log(self) -> str:
        return self.log_file.read_text() if self.log_file.exists() else ""

    # Commands

    def mount_command(self, *more_flags: str) -> list[str]:
        where = ["--cache-dir", str(self.cache_dir), "--log-file", str(self.log_file)]
        where += [
            "--lease-term",
            LEASE_TERM,
        ]  # a mount with another cache waits for it where the one before died
        return [
            sys.executable,
            "-m",
            self.program,
            "mount",
            self.url,
            str(self.path),
            *where,
            *self.flags,
            *more_flags,
        ]

    def umount_command(self) -> list[str]:
        return [sys.executable, "-m", "fusefs", "umount", str(self.path)]

    def run(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        """Run a command to its end, whatever that is."""
        return subprocess.run(
            command,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS,
            check=False,
        )

    def mount(self, *more_flags: str) -> Mount:
        """Mount in the background."""
        if self.program != PROGRAM:
            self._foreground = self.start(*more_flags)
            return self
        done = self.run(self.mount_command(*more_flags))
        assert done.returncode == 0, f"fusefs mount: {done.stderr}\n{self.log}"
        return self

    def umount(self) -> None:
        done = self.run(self.umount_command())
        assert done.returncode == 0, f"fusefs umount: {done.stderr}\n{self.log}"
        assert not self.is_mounted
        self.wait_for_end()

    def remount(self) -> None:
        """Unmount, and mount again with an empty cache: what is there then came from the bucket."""
        self.umount()
        self.mount_cold()

    def mount_cold(self) -> None:
        """Mount with an empty cache."""
        self.forget_cache()
        self.mount()

    def forget_cache(self) -> None:
        """Let the next mount have an empty cache."""
        self._caches += 1

    def start(self, *more_flags: str) -> subprocess.Popen[str]:
        """Mount in the foreground; return the process when the mount answers."""
        process = subprocess.Popen(
            self.mount_command("--foreground", *more_flags),
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        wait_until(lambda: process.poll() is not None or os.path.ismount(self.path), "the mount")
        if process.poll() is not None:
            raise AssertionError(f"fusefs mount --foreground: {process.communicate()[1]}")
        return process

    # The daemon

    @property
    def pid(self) -> int:
        """The process that serves the mount."""
        found = list(self._daemons())
        assert len(found) == 1, f"{len(found)} daemons serve {self.path}"
        return found[0]

    def wait_for_end(self) -> None:
        """Return when no process serves the mount any more."""
        if self._foreground is not None:
            self._foreground.communicate(timeout=COMMAND_SECONDS)
            self._foreground = None
        wait_until(lambda: not list(self._daemons()), "the end of the daemon")

    def failing(self) -> int:
        """Return of how many changes the last attempt to publish has failed."""
        done = self.run([sys.executable, "-m", "fusefs", "status", "--json", str(self.path)])
        assert done.returncode == 0, f"fusefs status: {done.stderr}"
        said: dict[str, dict[str, int]] = json.loads(done.stdout)
        return said["unpublished"]["failing"]

    def peak_memory(self) -> int:
        """Return the most bytes of memory that the daemon has had (VmHWM)."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        found = re.search(r"^VmHWM:\s*(\d+) kB$", status, re.MULTILINE)
        assert found is not None
        return int(found[1]) * 1024

    def kill(self) -> None:
        """End the daemon by SIGKILL, as the loss of the host would, and remove the dead mount."""
        os.kill(self.pid, signal.SIGKILL)
        self.wait_for_end()
        detach(self.path)

    def die_mounting(self, reached: Callable[[], object]) -> None:
        """Mount with an empty cache, and end that by SIGKILL once `reached`, be it mounted by then or not."""
        self._caches += 1
        command = self.mount_command("--foreground")
        with subprocess.Popen(command, env=self.environment, stdin=subprocess.DEVNULL) as process:
            wait_until(lambda: reached() or process.poll() is not None, "the moment to die", seconds=60)
            process.kill()
        if self.is_mounted:
            detach(self.path)

    def discard(self) -> None:
        """Take the mount away, whatever state it is in, and all that it had on disk."""
        for pid in list(self._daemons()):
            os.kill(pid, signal.SIGKILL)
        if self.is_mounted:
            detach(self.path)
        self.wait_for_end()
        shutil.rmtree(self._directory, ignore_errors=True)

    def _daemons(self) -> Iterator[int]:
        """Find the daemons by their command line; the command that waits for one leads no session."""
        wanted = os.fsencode(self.path)
        for process in Path("/proc").glob("[0-9]*"):
            pid = int(process.name)
            try:
                words = (process / "cmdline").read_bytes().split(b"\0")
                waits = b"--foreground" not in words and os.getsid(pid) != pid
            except OSError:
                continue
            if b"mount" in words and wanted in words and not waits:
                yield pid


def detach(path: Path) -> None:
    """Take a mount away, and end the calls that wait for its daemon: a dead lock there shall not be one here."""
    if os.getuid() != 0:
        subprocess.run(["fusermount3", "-uz", str(path)], check=True)
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.umount2(os.fsencode(path), _MNT_FORCE | _MNT_DETACH) != 0:
        raise OSError(ctypes.get_errno(), f"cannot unmount {path}")


def wait_until(condition: Callable[[], object], what: str, *, seconds: float = 30.0) -> None:
    """Poll what another process does. Raises AssertionError if it does not come."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s in vain for {what}"
        time.sleep(POLL_SECONDS)
