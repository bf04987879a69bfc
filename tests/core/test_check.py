"""What `fusefs check` finds in a bucket, and that it changes nothing."""

from __future__ import annotations

import stat
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import trio

from backends.base import ObjectStorage
from backends.intercepted import Verb
from backends.memory import MemoryStorage
from backends.metered import MeteredStorage
from fusefs.attributes import fresh, to_metadata
from fusefs.check import findings
from fusefs.journal_format import batch_key, encode
from fusefs.keys import join
from fusefs.lease_record import Identity, LeaseRecord, LogEnd, LogPlace
from fusefs.log_records import Batch, LeftoverRecord, Position
from fusefs.stored_lease import LEASE_KEY
from fusefs.versions import Version
from tests.support.faulty import FaultyStorage


async def lines(storage: ObjectStorage, *, attributes: bool = False) -> list[str]:
    return [str(finding) async for finding in findings(storage, attributes=attributes)]


async def filled(*keys: str) -> MemoryStorage:
    storage = MemoryStorage()
    for key in keys:
        await storage.put(key, b"")
    return storage


async def put_batch(storage: MemoryStorage, epoch: int, sequence: int) -> None:
    position = Position(epoch, sequence)
    records = (LeftoverRecord(Version("key", "etag", 1)),)
    await storage.put(
        batch_key(position), encode(Batch(position=position, cutoff=Position(epoch, 1), records=records))
    )


async def put_lease(storage: MemoryStorage, **changes: Any) -> None:
    """Let there be a lease of the third term."""
    record = LeaseRecord(
        epoch=3,
        identity=Identity(holder="a", host="host", pid=7, mountpoint="/mnt"),
        since="2026-01-02 03:04:05 UTC",
        term_seconds=30.0,
        beat=1,
        mark="71c0",
        **{"logs": (LogPlace("", 3, end=LogEnd(3, 2)),), **changes},
    )
    await storage.put(LEASE_KEY, record.encode())


async def test_a_bucket_that_a_mount_shows_as_it_is() -> None:
    """Escaped names of ours included, and what is ours and in its place."""
    keys = [
        "a",
        "a.b",
        "a0",
        "d/",
        "d/e/f",
        "%bytes-%FF",
        ".fusefs/root",
        ".fusefs/disk",
        ".fusefs/index/3f",
        ".fusefs/index/crash",
        ".fusefs/index/time",
        ".fusefs/links/0000000000000001",
    ]
    storage = await filled(*keys)
    await put_lease(storage)
    for sequence in (1, 2):
        await put_batch(storage, 3, sequence)
    assert await lines(storage) == []
    assert await lines(storage, attributes=True) == []


LAST = ".fusefs/journal/0000000000000003/0000000000000002"


@pytest.mark.parametrize(
    ("batches", "changes", "line"),
    [
        (
            (1,),
            {},
            f"damaged '{LAST}': somebody has removed it, of which '.fusefs/lease' says that it was there;"
            " `fusefs recover` tells what can be saved of the log",
        ),
        (
            (),
            {},
            f"damaged '{LAST}': somebody has removed it, of which '.fusefs/lease' says that it was there;"
            " `fusefs recover` tells what can be saved of the log",
        ),
        ((), {"logs": (LogPlace("", 3, end=LogEnd(3, 2, is_needed=False)),)}, None),
        ((), {"logs": (LogPlace("", 3),)}, None),
        ((), {"logs": (), "released": True}, None),
        # What is on the disk may say that nothing of it is needed.
        ((), {"logs": (LogPlace("", 3, end=LogEnd(3, 2)), LogPlace("a:/log", 3, "d1"))}, None),
    ],
)
async def test_a_log_that_is_shorter_than_the_lease_says(
    batches: tuple[int, ...], changes: dict[str, Any], line: str | None
) -> None:
    storage = MemoryStorage()
    await put_lease(storage, **changes)
    for sequence in batches:
        await put_batch(storage, 3, sequence)
    assert await lines(storage) == ([] if line is None else [line])


@pytest.mark.parametrize(
    ("key", "data", "line"),
    [
        (
            LAST,
            b"",
            f"damaged '{LAST}': it has 0 bytes, and a header has 68; `fusefs recover` tells",
        ),
        (
            LEASE_KEY,
            b"",
            f"damaged '{LEASE_KEY}': the object {LEASE_KEY} says who writes this prefix",
        ),
    ],
)
async def test_what_stops_every_mount(key: str, data: bytes, line: str) -> None:
    storage = MemoryStorage()
    await put_lease(storage)
    await put_batch(storage, 3, 1)
    await storage.put(key, data)
    (found,) = await lines(storage)
    assert found.startswith(line)


async def test_a_mount_that_ends_meanwhile() -> None:
    """It removes its log when it has given the lease back: that is no damage."""
    storage = MemoryStorage()
    await put_lease(storage)
    for sequence in (1, 2):
        await put_batch(storage, 3, sequence)
    faulty = FaultyStorage(storage)
    gate = faulty.hold(Verb.LIST_PREFIX, call=2)

    async def end() -> None:
        await gate.reached.wait()
        await put_lease(storage, logs=(), released=True)
        await storage.delete_many([batch_key(Position(3, sequence)) for sequence in (1, 2)])
        gate.open()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(end)
        assert await lines(faulty) == []


@pytest.mark.parametrize(
    ("key", "line"),
    [
        ("a//b", "escaped 'a//b': it cannot be a path, and is shown as 'a/%key-/b'"),
        ("/", "escaped '/': it cannot be a path, and is shown as '%key-'"),
        ("a/../b\n", "escaped 'a/../b\\n': it cannot be a path, and is shown as 'a/%key-%2E%2E/b\\n'"),
        ("%key-", "escaped '%key-': it cannot be a path, and is shown as '%key-%25key-'"),
        ("d/" + "n" * 256, f"hidden 'd/{'n' * 256}': 256 bytes between two slashes are too long for a name"),
        (
            ".fusefs/conflicts/f.m-1-1",
            "conflict '.fusefs/conflicts/f.m-1-1': ours, of a file that somebody else had changed; "
            "nothing reads it any more",
        ),
        (
            ".fusefs/orphans/m/1",
            "leftover '.fusefs/orphans/m/1': a file that was removed while it was open; "
            "needed until its mount has ended",
        ),
        (
            ".fusefs/moving/m/1",
            "leftover '.fusefs/moving/m/1': a file on its way to another name; its mount did not finish",
        ),
        (
            ".fusefs/damaged/0000000000000001/0000000000000007",
            "leftover '.fusefs/damaged/0000000000000001/0000000000000007': set aside by `fusefs recover`; "
            "nothing reads it any more",
        ),
        (".fusefs/probe/1/2", "leftover '.fusefs/probe/1/2': a trial object of a mount that was beginning"),
    ],
)
async def test_one_line_for_each_key(key: str, line: str) -> None:
    """However odd the key is; keys beside it are no findings."""
    assert await lines(await filled(key, "other")) == [line]


@pytest.mark.parametrize("name", [b"%key-x", b"%bytes-x", b"%key-\xff"])
async def test_a_file_that_somebody_has_called_so(name: bytes) -> None:
    """Its name begins like one that stands for a key, and stands for none: it is shown as it is called."""
    assert await lines(await filled(join("", name))) == []


@pytest.mark.parametrize(
    "key",
    [
        ".fusefs/",
        ".fusefs/notes.txt",
        ".fusefs/lease.bak",
        ".fusefs/rooted/x",
        ".fusefs/journal/notes.txt",
        ".fusefs/journal/0000000000000001/00000000000000ff.bak",
        ".fusefs/index/",
        ".fusefs/index/404",
        ".fusefs/links/1",
        ".fusefs/xattrs/" + "g" * 64,
    ],
)
async def test_objects_of_others_where_only_ours_should_be(key: str) -> None:
    """Under every key that no part of fusefs makes."""
    assert await lines(await filled(key, "other")) == [
        f"foreign {key!r}: not of fusefs, which alone keeps things there; it is not shown, and stays"
    ]


async def test_objects_beside_directories_of_their_names() -> None:
    """Each once, though other keys come between the two in the order of a listing."""
    storage = await filled("x", "x-y", "x.z/a", "x/a", "x/b", "x/b/c", "x0", "y", "y/", "z")
    same = "there is a directory of the same name"
    assert await lines(storage) == [
        f"escaped '{key}': {same}, and it is shown as '{path}'"
        for key, path in (("x", "%file-x"), ("x/b", "x/%file-b"), ("y", "%file-y"))
    ]
    long = "n" * 250
    assert await lines(await filled(long, f"{long}/a")) == [f"hidden '{long}': {same}"]


async def test_a_marker_with_content() -> None:
    storage = MemoryStorage()
    await storage.put("d/", b"content")
    [line] = await lines(storage)
    assert line == "hidden 'd/': a directory's marker has no content here, and this has 7 bytes"


@pytest.mark.parametrize("kind", [stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK])
async def test_bytes_in_what_is_no_file(kind: int) -> None:
    """Its kind is in the metadata, which is looked at when somebody asks."""
    storage = MemoryStorage()
    for key, data in (("d/", b""), ("empty", b""), ("p", b"content")):
        await storage.put(key, data, metadata={"mode": str(kind | 0o644)})
    assert await lines(storage) == []
    [line] = await lines(storage, attributes=True)
    assert line == "hidden 'p': a fifo, socket or device has no content here, and this has 7 bytes"


async def test_unfinished_uploads() -> None:
    storage = MemoryStorage()
    upload = await storage.create_multipart("big")
    [line] = await lines(storage)
    assert line.startswith("upload 'big': begun ")
    assert line.endswith(f" UTC and not completed: {upload.upload_id}")


@pytest.mark.parametrize(
    ("metadata", "size", "reason"),
    [
        ({"mode": "rw-r--r--"}, 0, "the metadata 'mode' cannot be read: 'rw-r--r--'"),
        ({"uid": "4294967295"}, 0, "the metadata 'uid' cannot be read: '4294967295'"),
        ({"fusefs-links": "-1"}, 0, "the metadata 'fusefs-links' names no list of names: '-1'"),
        ({"mtime": "yesterday"}, 0, "the metadata 'mtime' cannot be read: 'yesterday'"),
        (
            {"mode": str(stat.S_IFLNK | 0o777)},
            4_096,
            "a symbolic link's target of 4096 bytes is too long, and shown as a file",
        ),
        (
            {"mode": str(stat.S_IFDIR | 0o755)},
            0,
            "a directory's key ends with a slash, and this is shown as a file",
        ),
    ],
)
async def test_damaged_attributes(metadata: Mapping[str, str], size: int, reason: str) -> None:
    """They cost a request for each object, and are looked at when somebody asks."""
    storage = MemoryStorage()
    sound = to_metadata(replace(fresh(mode=stat.S_IFREG | 0o644, uid=1, gid=1, now_ns=1), rdev=1))
    await storage.put("sound", b"x" * size, metadata=sound)
    await storage.put("damaged", b"x" * size, metadata={**sound, **metadata})
    assert await lines(storage) == []
    assert await lines(storage, attributes=True) == [f"damaged 'damaged': {reason}"]


async def test_markers_whose_keys_are_ours() -> None:
    """The root has one, and one that is out of the way of another has its directory's kind."""
    storage = MemoryStorage()
    marker = to_metadata(fresh(mode=stat.S_IFDIR | 0o755, uid=1, gid=1, now_ns=1))
    moving = ".fusefs/moving/0123456789ab-1"
    for key in (".fusefs/root", moving):
        await storage.put(key, b"", metadata=marker)
    assert await lines(storage, attributes=True) == await lines(storage)


async def test_extended_attributes_in_objects_of_their_own() -> None:
    """What nobody refers to was left when a file was removed; what is not there was lost."""
    storage = MemoryStorage()
    kept, unused, lost = (character * 64 for character in "abc")
    for digest in (kept, unused):
        await storage.put(f".fusefs/xattrs/{digest}", b"%7B%7D")
    await storage.put("whole", b"", metadata={"xattr-object": kept})
    await storage.put("damaged", b"", metadata={"xattr-object": lost})
    assert await lines(storage) == []
    assert await lines(storage, attributes=True) == [
        f"leftover '.fusefs/xattrs/{unused}': extended attributes that no object refers to",
        f"damaged 'damaged': its extended attributes are not there: '.fusefs/xattrs/{lost}'",
    ]


async def test_one_listing_is_all_it_takes() -> None:
    storage = MeteredStorage(await filled(*(f"{number:04}" for number in range(2_500))))
    assert await lines(storage) == []
    assert storage.statistics().requests == 4, "three pages of keys, and one of uploads"
