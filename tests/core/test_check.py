"""What `fusefs check` finds in a bucket, and that it changes nothing."""

from __future__ import annotations

import stat
from collections.abc import Mapping

import pytest

from backends.base import ObjectStorage
from backends.memory import MemoryStorage
from backends.metered import MeteredStorage
from fusefs.attributes import fresh, to_metadata
from fusefs.check import findings


async def lines(storage: ObjectStorage, *, attributes: bool = False) -> list[str]:
    return [str(finding) async for finding in findings(storage, attributes=attributes)]


async def filled(*keys: str) -> MemoryStorage:
    storage = MemoryStorage()
    for key in keys:
        await storage.put(key, b"")
    return storage


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
        ".fusefs/lease",
        ".fusefs/disk",
        ".fusefs/index/3f",
        ".fusefs/index/crash",
        ".fusefs/journal/0000000000000001/00000000000000ff",
        ".fusefs/links/0000000000000001",
    ]
    storage = await filled(*keys)
    assert await lines(storage) == []
    assert await lines(storage, attributes=True) == []


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
        ({"mtime": "yesterday"}, 0, "the metadata 'mtime' cannot be read: 'yesterday'"),
        (
            {"mode": str(stat.S_IFLNK | 0o777)},
            4_096,
            "a symbolic link's target of 4096 bytes is too long, and shown as a file",
        ),
    ],
)
async def test_damaged_attributes(metadata: Mapping[str, str], size: int, reason: str) -> None:
    """They cost a request for each object, and are looked at when somebody asks."""
    storage = MemoryStorage()
    sound = to_metadata(fresh(mode=stat.S_IFREG | 0o644, uid=1, gid=1, now_ns=1, rdev=1))
    await storage.put("sound", b"x" * size, metadata=sound)
    await storage.put("damaged", b"x" * size, metadata={**sound, **metadata})
    assert await lines(storage) == []
    assert await lines(storage, attributes=True) == [f"damaged 'damaged': {reason}"]


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
