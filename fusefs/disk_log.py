"""The log on the local disk: a store in a directory below `cache_dir`, one for each prefix, and which log it is.

Host and path do not say which it is. They may be the same where the disk is another one (a container that was started
on another node, a cloned machine, a cache directory that was made anew), and the disk may come to a host of another
name. So the first mount draws an identity, which is kept with the log and stands in the lease beside host and path,
which are for people.

It is an object of the store in the directory, so it is there, whole and durable, before a lease can name it; so are the
names of the directories above, of which a new mount cannot know whether whoever made them has synced them. One that
cannot be read is never replaced: the lease may say that what was confirmed is in this very log. The limit: a copy of
the directory, or an older state of the disk, has the same identity.
"""

from __future__ import annotations

import hashlib
import os
import re
import socket
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio

from backends.base import CREATE_ONLY, ObjectStorage
from backends.errors import NotFound, PreconditionFailed, StorageError
from fusefs.config import Config
from fusefs.errors import MountError
from fusefs.stored_lease import DISK_KEY, LEASE_KEY
from fusefs.stores import open_local

_IDENTITY: Final = re.compile(rb"[0-9a-f]{32}\n?")
"""Without the line feed where a person has written it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskLog:
    """A log on the local disk, open."""

    #: Host and path, as the lease tells them to people.
    place: str
    #: Which log it is: random, and in the directory as long as the log is.
    disk: str
    storage: ObjectStorage
    directory: Path


def place_on_disk(config: Config) -> str:
    """Return the name of the place of a log on the local disk, for people."""
    return f"{socket.gethostname()}:{_directory(config)}"


def has_disk_log(config: Config) -> bool:
    """Return whether this host may have a log of the prefix."""
    return (_directory(config) / DISK_KEY).exists()


@asynccontextmanager
async def open_disk_log(config: Config) -> AsyncIterator[DiskLog]:
    """Open the log of this host for the block, and make its directory if there is none. Raises `MountError`."""
    directory = _directory(config)
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise MountError(f"there can be no log in {directory}: {error}") from error
    storage = open_local(directory)
    try:
        try:
            await storage.probe()
            said = await _said(storage)
            _sync_names(directory)
        except (StorageError, OSError) as error:
            raise MountError(f"there can be no log in {directory}: {error}") from error
        if not _IDENTITY.fullmatch(said):
            raise MountError(
                f"the file {directory / DISK_KEY} says which log is there, and is damaged: write into it what the"
                f' object {LEASE_KEY} in the bucket has as "disk", or remove it if that names no log on this disk'
            )
        yield DiskLog(
            place=place_on_disk(config), disk=said.decode().strip(), storage=storage, directory=directory
        )
    finally:
        with trio.CancelScope(shield=True):
            await storage.aclose()


def _sync_names(directory: Path) -> None:
    """Let a crash of the machine leave the directory, and which log it has. Raises OSError.

    Whoever has made them, or a directory above, may have been killed before that was on the disk.
    """
    for path in ((directory / DISK_KEY).parent, directory):
        _sync(path)
    for above in directory.parents:
        with suppress(OSError):  # one that is not to be read, or not ours: it was there before
            _sync(above)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _directory(config: Config) -> Path:
    digest = hashlib.sha256(config.store.identity.encode(errors="surrogateescape")).hexdigest()
    return config.mount.cache_dir / "log" / digest[:16]


async def _said(storage: ObjectStorage) -> bytes:
    """Return what the directory says of which log it has. Raises what the store raises."""
    try:
        return (await storage.get_range(DISK_KEY)).data
    except NotFound:
        with suppress(PreconditionFailed):  # another mount was quicker, and what that wrote holds
            await storage.put(DISK_KEY, f"{uuid.uuid4().hex}\n".encode(), mode=CREATE_ONLY)
    return (await storage.get_range(DISK_KEY)).data
