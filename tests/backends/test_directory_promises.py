"""What the store in a directory promises beyond the contract: to people, to other processes and after a crash."""

from __future__ import annotations

import errno
import itertools
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from backends.base import CREATE_ONLY, IfMatch, ObjectStorage
from backends.directory import DirectoryStorage
from backends.directory_files import translate
from backends.errors import (
    AccessDenied,
    BucketNotFound,
    InvalidKey,
    InvalidRequest,
    NotFound,
    PreconditionFailed,
    QuotaExceeded,
    StorageError,
    StoreCorrupt,
    Unavailable,
)
from tests.backends.contract import all_keys, names, put_all

PRIVATE = ".fusefs-store"
RECORD = "user.fusefs.object"


@pytest.fixture
async def storage(tmp_path: Path) -> AsyncIterator[ObjectStorage]:
    store = DirectoryStorage(tmp_path, clock_ns=lambda: 1_234_567_890_123_456_789)
    yield store
    await store.aclose()


def visible(root: Path) -> list[str]:
    """The names in the directory, without the private one."""
    return sorted(path.name for path in root.iterdir() if path.name != PRIVATE)


def private_files(root: Path) -> list[str]:
    """What lies in the private area beside locks."""
    return sorted(
        str(path.relative_to(root / PRIVATE))
        for path in (root / PRIVATE).rglob("*")
        if path.is_file() and path.name != "lock" and path.parent.name != "locks"
    )


# For people who look into the directory


async def test_an_object_is_a_plain_file_under_its_key(storage: ObjectStorage, tmp_path: Path) -> None:
    await storage.put("dir/with space/日本語.txt", b"content")
    path = tmp_path / "dir" / "with space" / "日本語.txt"
    assert path.read_bytes() == b"content"
    assert path.stat().st_mtime_ns == 1_234_567_890_123_456_789
    assert (await storage.head("dir/with space/日本語.txt")).last_modified_ns == 1_234_567_890_123_456_789


async def test_directories_go_with_their_last_object(storage: ObjectStorage, tmp_path: Path) -> None:
    await put_all(storage, ["a/b/c/one", "a/b/two"])
    await storage.delete("a/b/c/one")
    assert not (tmp_path / "a/b/c").exists()
    await storage.delete_many(["a/b/two"])
    assert visible(tmp_path) == []


async def test_a_file_copied_in_by_hand_is_an_object(storage: ObjectStorage, tmp_path: Path) -> None:
    """Its ETag is made of what the file system knows, and is good for conditions."""
    (tmp_path / "dir").mkdir()
    (tmp_path / "dir" / "foreign").write_bytes(b"by hand")
    info = await storage.head("dir/foreign")
    assert (info.size, info.metadata) == (7, {})
    assert info == (await storage.head("dir/foreign"))
    assert [each.etag for each in (await storage.list_prefix("dir/")).objects] == [info.etag]
    assert (await storage.get_range("dir/foreign", if_match=info.etag)).data == b"by hand"
    await storage.put("dir/foreign", b"by store", mode=IfMatch(info.etag))
    assert (tmp_path / "dir" / "foreign").read_bytes() == b"by store"


async def test_a_file_of_the_far_future_is_an_object(storage: ObjectStorage, tmp_path: Path) -> None:
    """Its time is the last one that 64 bits hold; a listing that told another would show none of the directory."""
    (tmp_path / "foreign").write_bytes(b"by hand")
    os.utime(tmp_path / "foreign", (10_500_000_000, 10_500_000_000))
    assert (tmp_path / "foreign").stat().st_mtime_ns > 2**63
    assert (await storage.head("foreign")).last_modified_ns == 2**63 - 1
    assert [each.last_modified_ns for each in (await storage.list_prefix()).objects] == [2**63 - 1]


async def test_a_file_edited_by_hand_is_another_version_with_the_same_metadata(
    storage: ObjectStorage, tmp_path: Path
) -> None:
    before = await storage.put("k", b"content", metadata={"mode": "33188"})
    with (tmp_path / "k").open("ab") as file:
        file.write(b" and more")
    info = await storage.head("k")
    assert info.etag != before
    assert (info.size, info.metadata) == (16, {"mode": "33188"})
    with pytest.raises(PreconditionFailed):
        await storage.put("k", b"new", mode=IfMatch(before))


async def test_what_is_no_file_of_a_key_is_left_alone(storage: ObjectStorage, tmp_path: Path) -> None:
    """Links, pipes, empty directories and names that cannot be ours do not show, and nobody waits for a pipe."""
    await storage.put("k", b"")
    (tmp_path / "link").symlink_to(tmp_path / "k")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "empty" / "deeper").mkdir(parents=True)
    (tmp_path / "100%.txt").write_bytes(b"")
    (tmp_path / "unix-\udcff").write_bytes(b"")
    assert await names(storage, "") == ["k"]
    assert await names(storage, "", "/") == ["k"]
    for key in ("link", "pipe", "empty"):
        with pytest.raises(NotFound):
            await storage.head(key)


async def test_nothing_is_read_or_written_through_a_link_to_a_directory(
    storage: ObjectStorage, tmp_path: Path
) -> None:
    """What is behind one is not the store's; a key that needs the link's place gets a directory there."""
    elsewhere = tmp_path / ".fusefs-store" / "elsewhere"
    (elsewhere / "deeper").mkdir(parents=True)
    (elsewhere / "deeper" / "theirs").write_bytes(b"theirs")
    (tmp_path / "link").symlink_to(elsewhere)
    assert await names(storage, "link/") == []
    with pytest.raises(NotFound):
        await storage.head("link/deeper/theirs")
    await storage.delete("link/deeper/theirs")
    await storage.put("link", b"beside")
    await storage.put("link/deeper/theirs", b"ours")
    assert await names(storage, "") == ["link", "link/deeper/theirs"]
    assert (elsewhere / "deeper" / "theirs").read_bytes() == b"theirs"


async def test_a_directory_that_became_a_link_is_made_anew(storage: ObjectStorage, tmp_path: Path) -> None:
    """Though it leads to the same place, which was known to survive a crash."""
    await storage.put("dir/deeper/k", b"before")
    moved = tmp_path / ".fusefs-store" / "moved"
    (tmp_path / "dir").rename(moved)
    (tmp_path / "dir").symlink_to(moved)
    await storage.put("dir/deeper/k", b"after")
    assert await names(storage, "") == ["dir/deeper/k"]
    assert (moved / "deeper" / "k").read_bytes() == b"before"


async def test_an_object_is_not_lost_to_a_link_in_its_other_place(
    storage: ObjectStorage, tmp_path: Path
) -> None:
    await put_all(storage, ["k", "k/below"])
    await storage.delete("k/below")
    (tmp_path / "k").symlink_to(tmp_path / "elsewhere")
    await storage.put("k/below", b"")
    assert await names(storage, "") == ["k", "k/below"]


async def test_a_directory_that_may_not_be_read_does_not_hide_what_is_beside_it(
    storage: ObjectStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `lost+found` of a whole disk: it is shown, and only what lists it is refused."""
    await storage.put("k", b"")
    (tmp_path / "lost+found").mkdir()
    scandir = os.scandir

    def scandir_as_another_user(path: str) -> Any:
        if path == str(tmp_path / "lost+found"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", scandir_as_another_user)
    assert await names(storage, "", "/") == ["k", "lost+found/"]
    with pytest.raises(AccessDenied):
        await storage.list_prefix("lost+found/")


async def test_a_file_that_may_not_be_read_does_not_hide_what_is_beside_it(
    storage: ObjectStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a bucket, where who may list may not read each object: it is listed, and only what reads it is refused."""
    await put_all(storage, ["a", "denied", "k"])
    before = await storage.list_prefix()
    open_file = os.open

    def open_as_another_user(path: str, flags: int, *rest: Any, **named: Any) -> int:
        if path == str(tmp_path / "denied") and not flags & os.O_PATH:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return open_file(path, flags, *rest, **named)

    monkeypatch.setattr(os, "open", open_as_another_user)
    listed = await storage.list_prefix()
    assert [replace(info, etag="") for info in listed.objects] == [
        replace(info, etag="") for info in before.objects
    ]
    assert await storage.list_prefix() == listed
    for call in (storage.head, storage.get_range):
        with pytest.raises(AccessDenied, match=str(tmp_path / "denied")):
            await call("denied")


# Between processes

INCREMENT = """
import sys, trio
from backends.base import IfMatch
from backends.directory import DirectoryStorage
from backends.errors import PreconditionFailed

async def main():
    store = DirectoryStorage(sys.argv[1])
    done = 0
    while done < 25:
        before = await store.get_range("counter")
        try:
            await store.put("counter", str(int(before.data) + 1).encode(), mode=IfMatch(before.etag))
            done += 1
        except PreconditionFailed:
            pass
    await store.aclose()

trio.run(main)
"""


async def test_a_counter_shared_by_processes_loses_no_update(storage: ObjectStorage, tmp_path: Path) -> None:
    await storage.put("counter", b"0")
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(trio.run_process, [sys.executable, "-c", INCREMENT, str(tmp_path)])
    assert (await storage.get_range("counter")).data == b"75"


RACER = """
import sys, trio
from backends.base import CREATE_ONLY, IfMatch
from backends.directory import DirectoryStorage
from backends.errors import PreconditionFailed

async def main():
    store = DirectoryStorage(sys.argv[1])
    mode = IfMatch(sys.argv[2]) if sys.argv[2] else CREATE_ONLY
    sys.stdout.write("ready\\n")
    sys.stdout.flush()
    sys.stdin.read()
    for round in range(10):
        try:
            await store.put(f"k{round}", sys.argv[3].encode(), mode=mode)
            print(f"k{round}")
        except PreconditionFailed:
            pass
    await store.aclose()

trio.run(main)
"""


@pytest.mark.parametrize("overwriting", [False, True], ids=["create-only", "if-match"])
async def test_of_eight_processes_that_write_on_a_condition_exactly_one_wins(
    storage: ObjectStorage, tmp_path: Path, overwriting: bool
) -> None:
    """Ten times, and what is there is what the winner wrote."""
    etag = (await storage.put("base", b"base")) if overwriting else ""
    for number in range(10 if overwriting else 0):
        await storage.put(f"k{number}", b"base")
    start, hold = os.pipe()
    racers = [
        await trio.lowlevel.open_process(
            [sys.executable, "-c", RACER, str(tmp_path), etag, str(number)],
            stdin=start,
            stdout=subprocess.PIPE,
        )
        for number in range(8)
    ]
    os.close(start)
    outputs = [racer.stdout for racer in racers if racer.stdout is not None]
    for output in outputs:
        assert await output.receive_some() == b"ready\n"
    os.close(hold)
    won: dict[str, list[int]] = {}
    for number, output in enumerate(outputs):
        async with output:
            for key in b"".join([chunk async for chunk in output]).decode().split():
                won.setdefault(key, []).append(number)
        assert await racers[number].wait() == 0
    for number in range(10):
        [winner] = won[f"k{number}"]
        assert (await storage.get_range(f"k{number}")).data == str(winner).encode()


async def test_two_stores_of_one_directory_see_each_other(storage: ObjectStorage, tmp_path: Path) -> None:
    other = DirectoryStorage(tmp_path)
    await storage.put("k", b"content", mode=CREATE_ONLY)
    with pytest.raises(PreconditionFailed):
        await other.put("k", b"other", mode=CREATE_ONLY)
    await other.aclose()
    await storage.put("k", b"after the other has closed")


# After a crash

KILLED = """
import sys, trio, backends.directory_tree as tree
from backends.directory import DirectoryStorage

def pause(self, key, temporary):
    print(temporary, flush=True)
    sys.stdin.read()

tree.ObjectTree.move_into_place = pause
trio.run(DirectoryStorage(sys.argv[1]).put, "k", b"new")
"""


async def test_a_killed_put_leaves_the_old_object_and_its_rest_is_removed(
    storage: ObjectStorage, tmp_path: Path
) -> None:
    """Killed just before the rename; the temporary file stays while its process lives, and no longer."""
    await storage.put("k", b"old")
    process = await trio.lowlevel.open_process(
        [sys.executable, "-c", KILLED, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    async with process.stdin, process.stdout:
        temporary = (await process.stdout.receive_some()).decode().strip()
        left = temporary.removeprefix(f"{tmp_path / PRIVATE}/")
        beside = DirectoryStorage(tmp_path)
        await beside.probe()
        assert private_files(tmp_path) == [left]
        process.kill()
        await process.wait()
    assert private_files(tmp_path) == [left]
    after = DirectoryStorage(tmp_path)
    await after.probe()
    assert private_files(tmp_path) == []
    assert (await after.get_range("k")).data == b"old"
    for store in (beside, after):
        await store.aclose()


async def test_uploads_outlive_the_process(storage: ObjectStorage, tmp_path: Path) -> None:
    upload = await storage.create_multipart("k", metadata={"mode": "1"})
    part = await upload.upload_part(1, b"data")
    await storage.aclose()
    later = DirectoryStorage(tmp_path)
    [listed] = await later.list_multipart_uploads()
    assert (listed.key, listed.upload_id) == ("k", upload.upload_id)
    await later.resume_multipart("k", listed.upload_id).complete([part])
    assert (await later.head("k")).metadata == {"mode": "1"}
    await later.aclose()


async def test_ended_uploads_and_failed_writes_leave_nothing(storage: ObjectStorage, tmp_path: Path) -> None:
    await storage.put("k", b"old")
    aborted = await storage.create_multipart("k")
    await aborted.upload_part(1, b"data")
    await aborted.abort()
    completed = await storage.create_multipart("k")
    await completed.complete([await completed.upload_part(1, b"data")])
    with pytest.raises(PreconditionFailed):
        await storage.put("k", b"new", mode=CREATE_ONLY)
    assert private_files(tmp_path) == []


async def test_closing_removes_the_session(storage: ObjectStorage, tmp_path: Path) -> None:
    await storage.put("k", b"")
    await storage.aclose()
    assert visible(tmp_path / PRIVATE / "tmp") == []
    await storage.aclose()


async def test_nothing_may_be_asked_after_the_end(storage: ObjectStorage) -> None:
    """It fails, rather than wait for ever for a thread."""
    await storage.aclose()
    with pytest.raises(StorageError, match="closed"), trio.fail_after(10):
        await storage.head("k")


async def test_closing_waits_for_calls_under_way_even_when_cancelled(
    storage: ObjectStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The put has begun and is held back in its first fsync; neither call is abandoned."""
    begun, held = trio.Event(), threading.Event()
    fsync, token = os.fsync, trio.lowlevel.current_trio_token()

    def slow_fsync(descriptor: int) -> None:
        if not held.is_set():
            token.run_sync_soon(begun.set)
            held.wait()
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", slow_fsync)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(storage.put, "k", b"whole")
        await begun.wait()
        nursery.start_soon(storage.aclose)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
        held.set()
    assert (tmp_path / "k").read_bytes() == b"whole"
    assert visible(tmp_path / PRIVATE / "tmp") == []


# Failures


@pytest.mark.parametrize("record", [b"", b"garbage", b"1 00000000\netag 7 1\n", b"2 12345678\n"])
async def test_a_damaged_record_is_reported(storage: ObjectStorage, tmp_path: Path, record: bytes) -> None:
    await storage.put("k", b"content")
    os.setxattr(tmp_path / "k", RECORD, record)
    with pytest.raises(StoreCorrupt, match="k is damaged"):
        await storage.head("k")
    assert (tmp_path / "k").read_bytes() == b"content"


async def test_a_damaged_upload_is_reported(storage: ObjectStorage, tmp_path: Path) -> None:
    upload = await storage.create_multipart("k")
    (tmp_path / PRIVATE / "uploads" / upload.upload_id / "upload").write_text("{")
    with pytest.raises(StoreCorrupt):
        await storage.list_multipart_uploads()


async def test_a_long_name_that_lost_its_segment_is_reported(storage: ObjectStorage, tmp_path: Path) -> None:
    await storage.put("x" * 300, b"")
    [name] = visible(tmp_path)
    os.removexattr(tmp_path / name, "user.fusefs.segment")
    with pytest.raises(StoreCorrupt):
        await storage.list_prefix()


@pytest.mark.parametrize("kind", ["missing", "a file"])
async def test_without_its_directory_every_call_says_so(tmp_path: Path, kind: str) -> None:
    """Above all, objects are not "not found" because a disk is not mounted."""
    root = tmp_path / "bucket"
    if kind == "a file":
        root.write_bytes(b"")
    store = DirectoryStorage(root)
    with pytest.raises(BucketNotFound, match=r"there is no directory .*bucket"):
        await store.probe()
    with pytest.raises(BucketNotFound):
        await store.head("k")
    with pytest.raises(BucketNotFound):
        await store.list_prefix()
    with pytest.raises(BucketNotFound):
        await store.put("k", b"")
    with pytest.raises(BucketNotFound):
        await store.delete("k")
    await store.aclose()


async def test_a_read_only_probe_leaves_no_trace_in_the_directory(tmp_path: Path) -> None:
    store = DirectoryStorage(tmp_path)
    await store.probe(read_only=True)
    await store.list_prefix()
    await store.list_multipart_uploads()
    await store.aclose()
    assert not (tmp_path / PRIVATE).exists()


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.EACCES, AccessDenied),
        (errno.EROFS, AccessDenied),
        (errno.ENOSPC, QuotaExceeded),
        (errno.EDQUOT, QuotaExceeded),
        (errno.ENAMETOOLONG, InvalidKey),
        (errno.EMFILE, Unavailable),
        (errno.EIO, StorageError),
        (errno.ENOENT, StorageError),
    ],
)
async def test_failures_of_the_system_are_those_of_the_seam(
    storage: ObjectStorage,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    kind: type[StorageError],
) -> None:
    """A write that fails leaves the object as it was, and no temporary file."""
    await storage.put("k", b"old")

    def fail(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(StorageError) as caught:
            await storage.put("k", b"new")
    assert type(caught.value) is kind
    assert isinstance(caught.value.__cause__, OSError)
    assert str(tmp_path) in str(caught.value)
    assert (await storage.get_range("k")).data == b"old"
    assert private_files(tmp_path) == []


def test_a_root_that_went_away_is_told_from_a_missing_file(tmp_path: Path) -> None:
    error = FileNotFoundError(errno.ENOENT, "gone")
    assert type(translate(error, str(tmp_path))) is StorageError
    assert type(translate(error, str(tmp_path / "missing"))) is BucketNotFound


# Bounded work


async def test_a_delimited_listing_does_not_read_below_what_it_rolls_up(
    storage: ObjectStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of each directory that is one common prefix, only enough to see that it is not empty."""
    await put_all(storage, [f"top/{prefix}/{deep}/x" for prefix in range(5) for deep in range(9)])
    scanned: list[str] = []
    scandir = os.scandir

    def noted(path: str) -> object:
        scanned.append(path)
        return scandir(path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", noted)
        assert len(await names(storage, "top/", "/")) == 5
        assert len(scanned) == 1 + 5 * 2
        scanned.clear()
        assert await names(storage, "top/3/", start_after="top/3/7/x") == ["top/3/8/x"]
        assert len(scanned) == 1 + 2


async def test_a_key_of_slashes_only_is_as_deep_as_it_gets(storage: ObjectStorage) -> None:
    key = "/" * 1_024
    await storage.put(key, b"deep")
    await storage.put("/" * 1_023, b"less deep")
    assert await all_keys(storage) == ["/" * 1_023, key]
    assert await names(storage, "", "/") == ["/"]
    await storage.delete_many(["/" * 1_023, key])
    assert await all_keys(storage) == []


@pytest.mark.parametrize(("start", "length"), [(-1, 1), (0, 0), (5, -1)])
async def test_ranges_that_http_cannot_express_are_refused(
    storage: ObjectStorage, start: int, length: int
) -> None:
    await storage.put("k", b"0123456789")
    with pytest.raises(InvalidRequest):
        await storage.get_range("k", start, length)


async def test_objects_and_directories_changing_places_lose_nothing(storage: ObjectStorage) -> None:
    """`x` and `x/y` written and removed at the same time: directories come and go under the writers' feet."""

    async def write(key: str) -> None:
        for number in range(15):
            await storage.put(key, str(number).encode())
            assert (await storage.get_range(key)).data == str(number).encode()
            if number < 14:
                await storage.delete(key)

    keys = ["x", "x/y", "x/y/z", "x/y/z/"]
    async with trio.open_nursery() as nursery:
        for key in keys:
            nursery.start_soon(write, key)
    assert await all_keys(storage) == keys


@pytest.mark.parametrize("look", range(1, 7))
async def test_a_directory_that_others_remove_between_any_two_looks_is_made_anew(
    look: int, storage: ObjectStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await storage.put("dir/k", b"content")
    lstat, looks = os.lstat, itertools.count(1)

    def lstat_after_removal(path: Any, **how: Any) -> os.stat_result:
        if path == str(tmp_path / "dir") and next(looks) == look:
            for file in (tmp_path / "dir").iterdir():
                file.unlink()
            (tmp_path / "dir").rmdir()
        return lstat(path, **how)

    with monkeypatch.context() as patch:
        patch.setattr(os, "lstat", lstat_after_removal)
        for number in range(look):
            await storage.put(f"dir/{number}", b"content")
    assert next(looks) > look
    assert (await storage.get_range(f"dir/{look - 1}")).data == b"content"


async def test_a_fifo_in_the_way_is_no_outage(tmp_path: Path) -> None:
    """Somebody has put it there; it is told at once, and what else there is to store has no need to wait."""
    os.mkfifo(tmp_path / "a")
    storage = DirectoryStorage(tmp_path)
    with pytest.raises(InvalidKey, match="is in the way"):
        await storage.put("a/b", b"bytes")
    await storage.put("c/b", b"bytes")
    await storage.aclose()
