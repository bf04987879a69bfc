"""What a mount tells to whoever has started it, who may be gone, and what it leaves in its log."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import click
import pytest

from fusefs import background, mount
from fusefs.config import Config
from fusefs.errors import MountError
from fusefs.mount_process import _Starter, mount_here


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """A mount with a log file."""
    flags = {"log_file": str(tmp_path / "log"), "cache_dir": str(tmp_path / "cache")}
    return Config.from_sources(url="memory://", mountpoint=str(tmp_path / "mnt"), flags=flags)


@pytest.fixture
def log(config: Config) -> Iterator[Path]:
    """The log file, and the handlers of the tests afterwards."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers[:] = []
    assert config.mount.log_file is not None
    yield config.mount.log_file
    for each in root.handlers:
        each.close()
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
def pipe() -> Iterator[int]:
    """The end to write to of a pipe that nobody reads."""
    read_end, write_end = os.pipe()
    os.close(read_end)
    yield write_end
    os.close(write_end)


@pytest.mark.parametrize(
    ("error", "is_shown"), [(MountError("3 files are rescued"), False), (KeyError("a defect"), True)]
)
def test_the_log_says_what_has_ended_a_mount(
    error: Exception, is_shown: bool, config: Config, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the background nobody else hears of it; what no user can do anything about is there with its traceback."""

    async def fail(*_: object) -> None:
        raise ExceptionGroup("a nursery", [error])

    monkeypatch.setattr(mount, "run_mount", fail)
    with pytest.raises((MountError, ExceptionGroup)):
        mount_here(config)
    text = log.read_text()
    assert str(error) in text
    assert ("Traceback" in text) is is_shown


def test_nobody_has_to_hear_how_far_a_mount_is(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever has read enough of it has gone; the mount goes on."""
    told: list[str] = []

    def refuse(line: str, **_: object) -> None:
        told.append(line)
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))

    monkeypatch.setattr(click, "echo", refuse)
    _Starter(config, lambda: None).starting("waiting for the lease")
    assert told == ["fusefs: waiting for the lease"]


def test_a_mount_for_which_nobody_waits_is_none(pipe: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever was to be told has been killed, and would find it there later, without having got it."""
    monkeypatch.setattr(background, "_give_up", lambda *_: None)
    with pytest.raises(MountError, match="has gone"):
        background._tell_ready(pipe)


PROGRAM: Final = """
import sys, time
from fusefs.background import go_into_background
tell_ready = go_into_background()
if tell_ready is None:
    sys.exit(0)
if len(sys.argv) > 1:
    sys.exit(int(sys.argv[1]))
tell_ready()
time.sleep(5)
"""


def test_the_daemon_keeps_no_lock_of_whoever_has_given_the_command(tmp_path: Path) -> None:
    """As flock(1) and scripts take them: it is to be free when the command has ended, and not the daemon."""
    lock = tmp_path / "lock"
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        subprocess.run([sys.executable, "-c", PROGRAM], check=True, pass_fds=[file.fileno()], timeout=60)
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_somebody_who_ignores_the_end_of_children_gets_no_traceback() -> None:
    """A command that is started like that inherits it; that the daemon has failed is all that it can tell."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        with subprocess.Popen([sys.executable, "-c", PROGRAM, "3"], stderr=subprocess.PIPE) as command:
            assert command.stderr is not None
            errors = command.stderr.read()
    finally:
        signal.signal(signal.SIGCHLD, before)
    assert errors == b""


def test_each_of_several_directories_is_found_from_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A daemon leaves the working directory; OpenSSL takes a list in this variable."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "chdir", lambda _: None)
    monkeypatch.setenv("SSL_CERT_DIR", "/etc/ssl/certs:own::~/home")
    background._leave_working_directory()
    assert os.environ["SSL_CERT_DIR"] == f"/etc/ssl/certs:{tmp_path}/own::~/home"
