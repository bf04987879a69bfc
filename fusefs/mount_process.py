"""The process of a mount: this one, or a daemon. It has a log, and tells whoever has started it how far it is."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Final

import click

from backends.errors import StorageError
from fusefs.background import go_into_background
from fusefs.config import Config
from fusefs.control import Progress
from fusefs.errors import MountError, first_cause
from fusefs.quantities import brief_size, counted
from fusefs.service_manager import ServiceManager

_log = logging.getLogger(__name__)

LINE_START: Final = "fusefs: "
"""Of all that is said on standard error."""


def mount_in_background(config: Config) -> None:
    """Mount in a daemon, and return when that is ready, or has ended well. Raises `MountError`."""
    log_path = config.mount.log_file or _log_in(config.mount.cache_dir)
    tell_ready = go_into_background()
    if tell_ready is None:
        click.echo(f"{config.store.url} is mounted on {config.mount.mountpoint}; log: {log_path}")
    else:
        logged = config.mount.model_copy(update={"log_file": log_path})
        mount_here(replace(config, mount=logged), tell_ready)


def mount_here(config: Config, tell_ready: Callable[[], None] = lambda: None) -> None:
    """Mount, and return when the mount is gone and everything is published. Raises `MountError`."""
    import trio  # here, because they take half a second that no other command needs

    from fusefs.mount import run_mount

    _set_up_log(config)
    try:
        with without_groups():
            trio.run(run_mount, config, _Starter(config, tell_ready))
    except Exception as error:
        if config.mount.log_file is not None:  # where standard error leads nowhere, nothing else has it
            is_defect = not isinstance(error, MountError)
            _log.error("the mount has failed: %s", error, exc_info=is_defect)
        raise


class _Starter:
    """Who has started the mount: a terminal, the command that waits until it is ready, a service manager.

    Any of them may be gone by the time that it is told something.
    """

    def __init__(self, config: Config, tell_ready: Callable[[], None]) -> None:
        mount = config.mount
        #: Or else the log is there, and has it.
        self._shows_lines = mount.log_file is not None or mount.log_level not in ("debug", "info")
        self._tell_ready = tell_ready
        self._manager = ServiceManager.of_environment()

    def starting(self, line: str) -> None:
        if self._shows_lines:
            tell(line)
        self._manager.starting(line)

    def ready(self) -> None:
        self._tell_ready()
        self._manager.ready()

    def ending(self, left: Progress) -> None:
        changes = counted(left.pending_inodes, "change", "changes")
        self._manager.ending(f"{changes} with {brief_size(left.pending_bytes)} to be published")


def _log_in(cache_dir: Path) -> Path:
    """Return where the log goes if nobody has said so; the directory is made."""
    try:
        cache_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise MountError(f"the cache directory {cache_dir} cannot be used: {error.strerror}") from error
    return cache_dir / "fusefs.log"


def _set_up_log(config: Config) -> None:
    options = config.mount
    try:
        logging.basicConfig(
            level=options.log_level.upper(),
            filename=options.log_file,
            format="%(asctime)s %(levelname)s %(name)s: %(message)s",
            force=True,
        )
    except OSError as error:
        raise MountError(f"the log {options.log_file} cannot be written: {error.strerror}") from error
    # botocore's own log tells of headers and credentials; ours tells what matters of a request.
    for library in ("boto3", "botocore", "urllib3", "s3transfer"):
        logging.getLogger(library).setLevel(logging.WARNING)


@contextmanager
def without_groups() -> Iterator[None]:
    """Take what a user is told of in a line, or has asked for (Ctrl-C), out of the groups that nurseries make of it."""
    try:
        yield
    except BaseExceptionGroup as group:
        _, others = group.split((MountError, StorageError, KeyboardInterrupt))
        if others is not None:
            raise
        error = first_cause(group)
        raise error from error.__cause__


def tell(line: str) -> None:
    """Show how far something is, to whoever may be there."""
    with suppress(OSError):
        click.echo(f"{LINE_START}{line}", err=True)
