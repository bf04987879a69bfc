"""The names of an inode that has several, as the bucket keeps them.

Each name is an object of its own, and all say in their metadata (`LINK_KEY`) which list has their keys. A key is one
of the inode's names if both say so: the object names the list, and the list the key. So an object that somebody else
puts under a name is a file of its own, and so is a copy that somebody makes with all its metadata; neither is written
when the inode is.

The number of a list is that of the inode when the list was begun, behind as many random bits: a mount gives a file
whose number nobody has kept one by its key, and so the same to a later file under that key.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from backends.base import CREATE_ONLY, IfMatch, Metadata, ObjectStorage, PutMode
from backends.errors import NotFound, PreconditionFailed, StorageError
from fusefs.attributes import to_metadata
from fusefs.inode_table import NUMBER_BITS
from fusefs.inodes import ROOT_NUMBER, Inode
from fusefs.keys import RESERVED_PREFIX
from fusefs.versions import Version

LINK_KEY: Final = "fusefs-links"
"""The name in an object's metadata under which the number of its list is, in hexadecimal digits."""

LISTS_PREFIX: Final = f"{RESERVED_PREFIX}links/"

NUMBER_DIGITS: Final = 32
"""Of a list's number; those of earlier versions have half as many."""

_NUMBER: Final = re.compile(f"[0-9a-f]{{1,{NUMBER_DIGITS}}}")

ATTEMPTS: Final = 3
"""Of one list, where another host or a deletion of ours comes between."""


def new_list_number(inode_number: int) -> int:
    """Return the number of a new list of an inode's names."""
    return secrets.randbits(64) << 64 | inode_number


def inode_number(list_number: int) -> int:
    """Return which number the inode of a list had when that was begun."""
    return list_number % (1 << 64)


def list_key(number: int) -> str:
    """Return the key of a list."""
    return f"{LISTS_PREFIX}{number:016x}"


def list_of(metadata: Metadata) -> int | None:
    """Return the number of the list that an object's metadata names; none of an inode that cannot be."""
    text = metadata.get(LINK_KEY, "")
    number = int(text, 16) if _NUMBER.fullmatch(text) else 0
    return number if ROOT_NUMBER < inode_number(number) < 1 << NUMBER_BITS else None


def metadata_of(inode: Inode) -> dict[str, str]:
    """Return what the metadata of an inode's objects says, but for the log."""
    return to_metadata(inode.subject.attributes) | link_metadata(inode)


def link_metadata(inode: Inode) -> dict[str, str]:
    """Return the part of it that names the list, if the inode has several names."""
    links = inode.subject.links
    return {LINK_KEY: f"{links.number:x}"} if links is not None and links.aliases else {}


async def read_list(storage: ObjectStorage, number: int) -> tuple[tuple[str, ...], Version | None]:
    """Return the keys of a list; none where there is no list, or nobody can read it. Raises what the store raises."""
    try:
        found = await storage.get_range(list_key(number))
    except NotFound:
        return (), None
    version = Version(list_key(number), found.etag, len(found.data))
    try:
        keys = tuple(str(key) for key in json.loads(found.data))
        "".join(keys).encode()  # JSON may have what no key has: half of a surrogate pair
        return keys, version
    except (ValueError, TypeError, RecursionError):
        return (), version


async def write_list(storage: ObjectStorage, number: int, keys: Sequence[str]) -> Version:
    """Replace a list, or begin it. Raises what the store raises."""
    key, data = list_key(number), json.dumps(list(keys)).encode()
    for attempt in range(1, ATTEMPTS + 1):
        mode: PutMode = CREATE_ONLY
        with suppress(NotFound):
            mode = IfMatch((await storage.head(key)).etag)
        try:
            return Version(key, await storage.put(key, data, mode=mode), len(data))
        except (PreconditionFailed, NotFound) as error:
            if attempt == ATTEMPTS:
                raise StorageError(f"somebody else writes {key!r} all the time") from error
    raise AssertionError("unreachable")
