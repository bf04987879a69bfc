"""Lets a command go on as a daemon, and end itself when that is ready.

The daemon is this process after fork(2), so what was imported, read and checked before is there: that is half of the
time in which a mount begins. It has a session and a working directory of its own from the beginning, and until it is
ready the standard error of whoever has given the command.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Final

from fusefs.errors import MountError

_READY: Final = b"ready"

_PATHS_IN_ENVIRONMENT: Final = frozenset(
    {
        "AWS_CA_BUNDLE",
        "AWS_CONFIG_FILE",
        "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
        "AWS_LOGIN_CACHE_DIRECTORY",
        "AWS_SHARED_CREDENTIALS_FILE",
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        "REQUESTS_CA_BUNDLE",
        "SSL_CERT_DIR",
        "SSL_CERT_FILE",
    }
)
"""What libraries look for in the environment, and may be relative to the working directory."""

_STANDARD_INPUT: Final = 0
_STANDARD_OUTPUT: Final = 1
_STANDARD_ERROR: Final = 2


def open_standard_descriptors() -> None:
    """Let none of the three be closed: what is opened next would have its number, and be lost with what that is for."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= _STANDARD_ERROR:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)


def go_into_background() -> Callable[[], None] | None:
    """Return twice: in a daemon at once, and None where the command was given when the daemon is ready.

    What the daemon gets is called as soon as it is, and raises `MountError` if the command has gone. Where the daemon
    ends before, the command ends with the same status, or raises `MountError` if a signal ended it. Whoever interrupts
    the command ends the daemon too.
    """
    read_end, write_end = os.pipe()
    daemon = os.fork()
    if daemon == 0:
        os.close(read_end)
        os.setsid()
        _give_up(_STANDARD_INPUT, _STANDARD_OUTPUT)
        _close_inherited()
        _leave_working_directory()
        return partial(_tell_ready, write_end)
    os.close(write_end)
    _interrupt_on_end()
    try:
        with os.fdopen(read_end, "rb") as ready:
            if ready.read() == _READY:
                return None
        try:
            _, status = os.waitpid(daemon, 0)
        except ChildProcessError:
            # Whoever has started us ignores the end of children, and then the kernel tells nobody how that was.
            sys.exit(1)
    except KeyboardInterrupt:
        # In a session of its own it hears of nothing, and would go on for nobody.
        os.kill(daemon, signal.SIGTERM)
        raise
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        raise MountError(
            f"the process of the mount was ended by a signal ({signal.strsignal(-code)}) before it answered;"
            " mount again"
        )
    sys.exit(code or 1)


def _close_inherited() -> None:
    """Close what whoever has given the command had open beside the three, such as the lock of a script.

    What Python has opened is not inheritable.
    """
    for number in map(int, os.listdir("/proc/self/fd")):
        with suppress(OSError):  # that of the directory is closed by now
            if number > _STANDARD_ERROR and os.get_inheritable(number):
                os.close(number)


def _leave_working_directory() -> None:
    """Keep no directory busy that somebody may want to remove, or to unmount."""
    for name in _PATHS_IN_ENVIRONMENT & os.environ.keys():
        paths = os.environ[name].split(os.pathsep) if name == "SSL_CERT_DIR" else [os.environ[name]]
        os.environ[name] = os.pathsep.join(map(_absolute, paths))
    os.chdir("/")


def _absolute(path: str) -> str:
    return os.path.abspath(path) if path and path[0] not in "~$" else path  # which boto3 expands


def _interrupt_on_end() -> None:
    """Let what ends this process be as Ctrl-C, unless it is to be ignored (nohup)."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler)


def _tell_ready(write_end: int) -> None:
    _give_up(_STANDARD_ERROR)
    try:
        os.write(write_end, _READY)
    except OSError as error:
        raise MountError("the command that was to wait for the mount has gone") from error
    os.close(write_end)


def _give_up(*descriptors: int) -> None:
    """Let whoever has given the command have an end of what is written there, or be the only one who reads it."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in descriptors:
        os.dup2(nowhere, descriptor)
    os.close(nowhere)
