"""The command line: arguments become a `Config`, and each command is one function.

Exit status: 0 when it is done, 1 when it could not be (one line on standard error says why and what to do), 2 when
the command or the configuration is wrong.
"""

from __future__ import annotations

import io
import json
import logging
import os
import pwd
import sys
import time
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Final, NoReturn

import click

from backends.errors import StorageError
from fusefs.background import open_standard_descriptors
from fusefs.config import Config
from fusefs.control import ControlClient, Progress
from fusefs.errors import ConfigError, MountError
from fusefs.flags import configuration_flags, log_flags, store_flags
from fusefs.mount_process import LINE_START, mount_here, mount_in_background, tell, without_groups
from fusefs.mountpoints import (
    FILESYSTEM_TYPE,
    check_alive,
    check_mountpoint,
    remove_if_dead,
    type_of_mount,
    unmount,
    user_of_mount,
    where_it_is,
)

GOES_ON_SECONDS: Final = 5.0
"""After which a daemon has no end in sight whose mount was unmounted; otherwise the kernel tells it at once."""

_config_option: Final = click.option(
    "--config", "config_path", metavar="FILE", type=click.Path(), help="TOML file; flags win over it."
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(version("fusefs"), prog_name="fusefs")
def main() -> None:
    """Mount an S3 bucket as a directory that a server can keep its data in."""
    open_standard_descriptors()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as standard error: names may be any bytes


@main.command()
@click.argument("url")
@click.argument("mountpoint", type=click.Path())
@configuration_flags
@_config_option
@click.option(
    "--foreground", is_flag=True, help="Stay in the foreground; SIGINT, SIGTERM and SIGHUP unmount."
)
def mount(url: str, mountpoint: str, *, config_path: str | None, foreground: bool, **flags: object) -> None:
    """Mount URL on MOUNTPOINT and return when it answers.

    URL is s3://BUCKET[/PREFIX], file:///DIRECTORY or memory://. Credentials come from the places where boto3 looks
    for them.
    """
    logging.basicConfig(format=f"{LINE_START}%(message)s")  # of warnings, as long as there is no log
    try:
        place = where_it_is(mountpoint) if mountpoint else ""  # which is a mistake, and told as one
        config = Config.from_sources(url=url, mountpoint=place, config_path=config_path, flags=flags)
    except ConfigError as error:
        _fail(str(error), status=2)
    try:
        _check_not_served(config.mount.mountpoint)
        if remove_if_dead(config.mount.mountpoint):
            tell(f"{config.mount.mountpoint} held a mount whose daemon is gone; it was removed")
        check_mountpoint(config.mount.mountpoint)
        if foreground:
            mount_here(config)
        else:
            mount_in_background(config)
    except MountError as error:
        _fail(str(error), status=1)


def _check_not_served(mountpoint: Path) -> None:
    """Raise `MountError` where a daemon of ours has a mount, without a look at that: the daemon may be stopped."""
    if type_of_mount(mountpoint) is not None and ControlClient(mountpoint).is_there():
        raise MountError(
            f"{mountpoint} is busy: fusefs serves it; unmount it with: fusefs umount {mountpoint}"
        )


@main.command()
@click.argument("mountpoint", type=click.Path())
def umount(mountpoint: str) -> None:
    """Publish everything, unmount MOUNTPOINT, and return when its daemon has ended."""
    path = where_it_is(mountpoint)
    if type_of_mount(path) is None:
        _fail(f"nothing is mounted on {path}", status=1)
    client = ControlClient(path)
    try:
        error = _watch("Publishing", client.connect("drain"))
        if error is not None:
            _fail(
                f"{path} stays mounted, because not everything could be published: {error};"
                f" give this command again, or end the mount all the same with {_termination(client.process())}",
                status=1,
            )
        has_ended, end = client.end_of_process(), client.connect("follow")
        unmount(path)
        error = _watch("Unmounting", _unless_it_goes_on(end, path, client))
        if not has_ended():
            error = error or f"{path} is unmounted, but the process of its daemon goes on"
    except ConnectionError as failure:
        _fail(_why_unanswered(path, failure), status=1)
    except MountError as failure:
        _fail(str(failure), status=1)
    if error is not None:
        _fail(error, status=1)


def _unless_it_goes_on(end: Iterator[Progress], path: Path, client: ControlClient) -> Iterator[Progress]:
    """Yield how far the end of a mount is. Raises `MountError` where it does not begin to end."""
    patience = time.monotonic() + GOES_ON_SECONDS
    for progress in end:
        yield progress
        if not (progress.ending or progress.done) and time.monotonic() > patience:
            raise MountError(
                f"{path} is unmounted, but its daemon goes on, because the mount is in another place, too (a bind"
                f" mount, a container): unmount it there, or end the mount with {_termination(client.process())}"
            )


def _termination(process: int) -> str:
    """Return how a daemon is ended whose process is `process`, or cannot be seen from here (0)."""
    return f"kill {process}" if process else "SIGTERM to its process"


def _why_unanswered(path: Path, failure: ConnectionError) -> str:
    """Return what is to be told where a daemon could not be asked, or died on the way."""
    if not isinstance(failure.__cause__, OSError):
        return f"{path}: {failure}"
    kind = type_of_mount(path)
    if kind is None:
        return f"nothing is mounted on {path}"
    if kind != FILESYSTEM_TYPE:
        return f"what is mounted on {path} is not of fusefs ({kind})"
    user = user_of_mount(path)
    if user is not None and user != os.getuid():
        return f"{path} was mounted by {_name_of(user)}; give this command as that user"
    try:
        if not ControlClient(path).is_there():
            check_alive(path)  # which would wait for a daemon that is stopped
    except MountError as error:
        return str(error)
    return f"{path}: {failure}"


def _name_of(user: int) -> str:
    try:
        return f"the user {pwd.getpwuid(user).pw_name}"
    except KeyError:
        return f"a user without a name ({user})"


@main.command()
@click.argument("mountpoint", type=click.Path())
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, for programs.")
def status(mountpoint: str, *, as_json: bool) -> None:
    """Tell how the mount on MOUNTPOINT stands: what is not in the bucket yet, its log, its lease, what failed last."""
    from fusefs.status_text import lines

    path = where_it_is(mountpoint)
    try:
        found = ControlClient(path).status()
    except ConnectionError as failure:
        _fail(_why_unanswered(path, failure), status=1)
    click.echo(json.dumps(found, indent=1) if as_json else "\n".join(lines(found)))


@main.command()
@click.argument("url")
@store_flags
@_config_option
@click.option(
    "--attributes", is_flag=True, help="Look at the metadata of each object too: a request for each."
)
def check(url: str, *, config_path: str | None, attributes: bool, **flags: object) -> None:
    """List what a mount of URL would not show as it is, and what mounts have left there. Nothing is changed.

    A line for each: what it is, the key, and why. Exit status: 0 there is nothing, 1 there is something, 2 the command
    or the configuration is wrong, 3 the bucket could not be read.
    """
    import trio

    _keep_log_quiet()
    config = _config_of_store(url, config_path, flags)
    try:
        found = trio.run(_print_findings, config, attributes)
    except StorageError as error:
        _fail(f"{config.store.url}: {error}", status=3)
    sys.exit(1 if found else 0)


def _config_of_store(url: str, config_path: str | None, flags: Mapping[str, object]) -> Config:
    """Return how a command that mounts nothing reaches its store; where that is not to be had, the command ends."""
    try:
        return Config.of_store(url, config_path=config_path, flags=flags)
    except ConfigError as error:
        _fail(str(error), status=2)


async def _print_findings(config: Config, attributes: bool) -> bool:
    """Print a line for each finding, as soon as it is found; return whether there was one."""
    from fusefs.check import findings
    from fusefs.stores import open_store

    store = open_store(config.store, retry_timeout_seconds=config.mount.retry_timeout_seconds)
    found = False
    try:
        await store.storage.probe(read_only=True)
        async for finding in findings(store.storage, attributes=attributes):
            found = True
            click.echo(finding)
    finally:
        await store.storage.aclose()
    return found


@main.command()
@click.argument("url")
@log_flags
@_config_option
@click.option(
    "--set-aside",
    is_flag=True,
    help="Move what cannot be read to .fusefs/damaged/, so that URL can be mounted.",
)
def recover(url: str, *, config_path: str | None, set_aside: bool, **flags: object) -> None:
    """Tell what can be saved of a damaged log of URL. Without --set-aside nothing is changed.

    A log on a local disk is looked at where that is, with the same --cache-dir as for the mount.

    Exit status: 0 a mount can read the log, 1 it cannot, 2 the command or the configuration is wrong, 3 the bucket
    or a log elsewhere could not be read or written.
    """
    import trio

    _keep_log_quiet()
    config = _config_of_store(url, config_path, flags)
    try:
        with without_groups():
            is_whole = trio.run(_print_diagnosis, config, set_aside)
    except MountError as error:
        _fail(str(error), status=3)
    except StorageError as error:
        _fail(f"{config.store.url}: {error}", status=3)
    sys.exit(0 if is_whole else 1)


async def _print_diagnosis(config: Config, set_aside: bool) -> bool:
    """Tell how the log stands and, if `set_aside`, mend it; return whether a mount can read it then."""
    import trio

    from fusefs.log_places import old_log_parts
    from fusefs.log_repair import LogRepair
    from fusefs.start_progress import StartProgress
    from fusefs.stores import open_store
    from fusefs.term import alone_for

    store = open_store(config.store, retry_timeout_seconds=config.mount.retry_timeout_seconds)
    try:
        await store.storage.probe(read_only=not set_aside)
        async with old_log_parts(config, store.storage) as parts:
            if not set_aside:
                found = await LogRepair(store.storage, parts).diagnose()
                click.echo(found)
                return found.is_whole
        # All logs are within reach; what there is of them may be another matter once nobody writes them.
        async with (
            alone_for("fusefs recover", config, store, StartProgress(tell, trio.current_time)) as lease,
            old_log_parts(config, store.storage, lease) as parts,
        ):
            repair = LogRepair(store.storage, parts)
            found = await repair.diagnose()
            click.echo(found)
            if not found.is_whole:
                await repair.set_aside(found)
                done = (
                    "what cannot be read is in .fusefs/damaged/" if found.lost else "the log ends before that"
                )
                click.echo(f"{done} now, and a mount applies the rest")
            return True
    finally:
        await store.storage.aclose()


def _keep_log_quiet() -> None:
    """Let a command that tells what it finds tell nothing else: its last error is the line for the user."""
    logging.disable(logging.WARNING)


def _watch(label: str, progress: Iterator[Progress]) -> str | None:
    """Show progress on a terminal until its end; return the daemon's complaint, if it has one."""
    most = 0
    last: Progress | None = None
    shown = sys.stderr if sys.stderr is not None and sys.stderr.isatty() else io.StringIO()
    with click.progressbar(length=1, label=label, file=shown) as bar:
        for last in progress:
            left = last.pending_bytes + last.pending_inodes
            most = max(most, left, 1)
            bar.length = most
            bar.update(most - left - bar.pos)
    return last.error if last is not None else None


def _fail(message: str, *, status: int) -> NoReturn:
    click.echo(f"{LINE_START}{message}", err=True)
    sys.exit(status)
