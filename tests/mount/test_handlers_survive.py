"""No exception ends the mount: every kind, in every handler, by the system call that reaches it on a real mount."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Final, TypeAlias

import pytest

from tests.mount.raising_mount import HANDLERS, KINDS

ROOT: Final = Path(__file__).parents[2]
PATIENCE_SECONDS: Final = 30.0
SILENT: Final = {"forget", "release", "releasedir"}
"""Handlers that no system call waits for; what they raise is in the log alone."""


class RaisingMount:
    """The process of `raising_mount`, and the place where it is mounted."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "mnt"
        self.path.mkdir()
        self._log = (directory / "log").open("w+")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.mount.raising_mount", str(self.path), str(directory / "stage")],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            bufsize=0,
        )

    def wait_for_it(self) -> None:
        self._wait_until(lambda: os.path.ismount(self.path), "the mount")

    def tell(self, command: str) -> int:
        """Send a command; return how often the handler has raised."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(command.encode() + b"\n")
        answer = self._process.stdout.readline()
        assert answer, f"the mount has died:\n{self.log}"
        return int(answer)

    @contextmanager
    def raising(self, handler: str, kind: str) -> Iterator[None]:
        """Let the handler raise for the block, whose system call must reach it, and be answered."""
        self.tell(f"arm {handler} {kind}")
        answered: int | None = None
        try:
            with self._in_time():
                yield
        except OSError as error:
            answered = error.errno
        if handler in SILENT:
            self._wait_until(lambda: self.tell("how often"), f"a call of {handler}")
        raised = self.tell("disarm")
        assert raised, f"no call has reached {handler}"
        assert answered == (None if handler in SILENT else KINDS[kind][1])

    def check_answers(self) -> None:
        """Use the mount for everything that a program does."""
        with self._in_time():
            directory = self.path / "check"
            directory.mkdir()
            file = directory / "file"
            file.write_bytes(b"bytes")
            with file.open("rb") as reader:
                os.fsync(reader.fileno())
                assert reader.read() == b"bytes"
            file.rename(directory / "renamed")
            assert os.listdir(directory) == ["renamed"]
            (directory / "renamed").unlink()
            directory.rmdir()

    def unmount(self) -> int:
        """Unmount, and return how the process has ended."""
        subprocess.run(["fusermount3", "-u", str(self.path)], check=True)
        return self._process.wait(PATIENCE_SECONDS)

    def discard(self) -> None:
        """Leave neither a mount nor a process behind."""
        subprocess.run(["fusermount3", "-uz", str(self.path)], check=False, capture_output=True)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._log):
            assert pipe is not None
            pipe.close()

    @property
    def log(self) -> str:
        self._log.seek(0)
        return self._log.read()

    @contextmanager
    def _in_time(self) -> Iterator[None]:
        """Kill the mount if a system call on it hangs; the call then fails."""
        timer = threading.Timer(PATIENCE_SECONDS, self._process.kill)
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            timer.join()

    def _wait_until(self, condition: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not condition():
            assert self._process.poll() is None, f"the mount has died:\n{self.log}"
            assert time.monotonic() < deadline, f"waited in vain for {what}"
            time.sleep(0.01)


# The system call that reaches each handler: made in the block of `raising`, after what it needs is there.

Raising: TypeAlias = AbstractContextManager[None]


@contextmanager
def descriptor(path: Path, flags: int) -> Iterator[int]:
    number = os.open(path, flags)
    try:
        yield number
    finally:
        with suppress(OSError):  # `flush` and `release` are among those that raise
            os.close(number)


def on_descriptor(flags: int, call: Callable[[int], object]) -> Callable[[Path, Raising], None]:
    def reach(path: Path, raising: Raising) -> None:
        target = path if flags & os.O_DIRECTORY else path / "file"
        with descriptor(target, flags) as number, raising:
            call(number)

    return reach


def on_path(call: Callable[[Path], object]) -> Callable[[Path, Raising], None]:
    def reach(path: Path, raising: Raising) -> None:
        with raising:
            call(path)

    return reach


def forget(path: Path, raising: Raising) -> None:
    """The kernel forgets a file that is gone for good."""
    (path / "forgotten").write_bytes(b"")
    with raising:
        (path / "forgotten").unlink()


REACHING: Final[dict[str, Callable[[Path, Raising], None]]] = {
    "create": on_path(lambda path: os.close(os.open(path / "new", os.O_CREAT | os.O_WRONLY))),
    "flush": on_descriptor(os.O_WRONLY, os.close),
    "forget": forget,
    "fsync": on_descriptor(os.O_WRONLY, os.fsync),
    "fsyncdir": on_descriptor(os.O_RDONLY | os.O_DIRECTORY, os.fsync),
    "getattr": on_path(os.stat),
    "getxattr": on_path(lambda path: os.getxattr(path / "file", "user.x")),
    "link": on_path(lambda path: os.link(path / "file", path / "new")),
    "listxattr": on_path(lambda path: os.listxattr(path / "file")),
    "lookup": on_path(lambda path: os.stat(path / "file")),
    "mkdir": on_path(lambda path: os.mkdir(path / "new")),
    "mknod": on_path(lambda path: os.mknod(path / "new", stat.S_IFIFO | 0o600)),
    "open": on_path(lambda path: os.close(os.open(path / "file", os.O_RDONLY))),
    "opendir": on_path(os.listdir),
    "read": on_descriptor(os.O_RDONLY, lambda number: os.read(number, 10)),
    "readdir": on_path(os.listdir),
    "readlink": on_path(lambda path: os.readlink(path / "link")),
    "release": on_descriptor(os.O_RDONLY, os.close),
    "releasedir": on_path(os.listdir),
    "removexattr": on_path(lambda path: os.removexattr(path / "file", "user.x")),
    "rename": on_path(lambda path: os.rename(path / "file", path / "new")),
    "rmdir": on_path(lambda path: os.rmdir(path / "directory")),
    "setattr": on_path(lambda path: os.chmod(path / "file", 0o600)),
    "setxattr": on_path(lambda path: os.setxattr(path / "file", "user.x", b"")),
    "statfs": on_path(os.statvfs),
    "symlink": on_path(lambda path: os.symlink("x", path / "new")),
    "unlink": on_path(lambda path: os.unlink(path / "file")),
    "write": on_descriptor(os.O_WRONLY, lambda number: os.write(number, b"x")),
}


@pytest.fixture(scope="module")
def mount(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RaisingMount]:
    """One mount for all tests here: that it is still there for the last one is what they are about."""
    mount = RaisingMount(tmp_path_factory.mktemp("raising"))
    try:
        mount.wait_for_it()
        (mount.path / "file").write_bytes(b"bytes")
        (mount.path / "directory").mkdir()
        (mount.path / "link").symlink_to("file")
        yield mount
    finally:
        mount.discard()


def test_every_handler_is_reached_here() -> None:
    """A handler that is new needs its system call in this table."""
    assert set(REACHING) == set(HANDLERS)


@pytest.mark.parametrize("handler", HANDLERS)
def test_the_mount_survives(handler: str, mount: RaisingMount) -> None:
    """The caller gets the errno, and the next caller an answer."""
    for kind in KINDS:
        REACHING[handler](mount.path, mount.raising(handler, kind))
        mount.check_answers()


def test_the_mount_ends_as_if_nothing_had_been(mount: RaisingMount) -> None:
    mount.check_answers()
    assert mount.unmount() == 0, mount.log
