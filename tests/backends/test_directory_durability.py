"""What the store in a directory has brought to the disk when a call returns, in which order, and in how much memory."""

from __future__ import annotations

import errno
import os
import shutil
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TypeAlias

import pytest

from backends import directory_tree
from backends.base import CREATE_ONLY, MIB, MultipartUpload, ObjectStorage, Part
from backends.directory import DirectoryStorage
from backends.errors import QuotaExceeded
from tests.backends.contract import PART_DATA, put_all

UPLOADS: Final = ".fusefs-store/uploads"
ID: Final = "0" * 32


class Steps:
    """The fsyncs and renames of a store, in order: `sync FILE`, `sync DIRECTORY/` and `rename TO`.

    Files and directories of the session have a `*` for a name, whatever it is.
    """

    def __init__(self, root: Path, patch: pytest.MonkeyPatch) -> None:
        self.taken: list[str] = []
        self._root = root
        self._patch = patch

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Note the steps of the block."""
        fsync, rename = os.fsync, os.rename

        def noted_fsync(descriptor: int) -> None:
            path = os.readlink(f"/proc/self/fd/{descriptor}")
            is_directory = os.path.isdir(path)
            self.taken.append(f"sync {self._shown(path)}{'/' if is_directory else ''}")
            # What is synced is complete: an object's or a part's record is there with its bytes.
            assert is_directory or os.path.basename(path) == "upload" or os.listxattr(descriptor)
            fsync(descriptor)

        def noted_rename(source: str, target: str) -> None:
            self.taken.append(f"rename {self._shown(target)}")
            rename(source, target)

        with self._patch.context() as patch:
            patch.setattr(os, "fsync", noted_fsync)
            patch.setattr(os, "rename", noted_rename)
            yield

    def _shown(self, path: str) -> str:
        parts = Path(path).relative_to(self._root).parts
        return "/".join(("*", *parts[4:]) if parts[:2] == (".fusefs-store", "tmp") else parts) or "."


@pytest.fixture
async def storage(tmp_path: Path) -> AsyncIterator[ObjectStorage]:
    store = DirectoryStorage(tmp_path, new_upload_id=lambda: ID)
    await store.put("dir/there", b"content")
    yield store
    await store.aclose()


@pytest.fixture
def steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Steps:
    return Steps(tmp_path, monkeypatch)


Call: TypeAlias = Callable[[ObjectStorage], Awaitable[object]]

#: The file before it gets its name, the directory after that; directories above it from the top.
WRITES: Final[dict[str, tuple[Call, list[str]]]] = {
    "put": (lambda store: store.put("dir/k", b"content"), ["sync *", "rename dir/k", "sync dir/"]),
    "put over": (lambda store: store.put("dir/there", b"new"), ["sync *", "rename dir/there", "sync dir/"]),
    "put below new directories": (
        lambda store: store.put("dir/new/newer/k", b"content"),
        ["sync *", "sync dir/", "sync dir/new/", "rename dir/new/newer/k", "sync dir/new/newer/"],
    ),
    "put below an object": (
        lambda store: store.put("dir/there/k", b"content"),
        ["sync *", "rename dir/there%=", "sync dir/", "rename dir/there/k", "sync dir/there/"],
    ),
    "copy": (lambda store: store.copy("dir/there", "k"), ["sync *", "rename k", "sync ./"]),
    "delete": (lambda store: store.delete("dir/there"), ["sync dir/"]),
    "delete what is not there": (lambda store: store.delete("dir/missing"), []),
    "begin an upload": (
        lambda store: store.create_multipart("k"),
        ["sync */upload", "sync */", f"rename {UPLOADS}/{ID}", f"sync {UPLOADS}/"],
    ),
}


@pytest.mark.parametrize("call", WRITES)
async def test_a_write_is_on_the_disk_when_it_returns(
    storage: ObjectStorage, steps: Steps, call: str
) -> None:
    write, expected = WRITES[call]
    with steps.noted():
        await write(storage)
    assert steps.taken == expected


async def test_the_places_of_uploads_are_on_the_disk_before_the_first_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = Steps(tmp_path, monkeypatch)
    store = DirectoryStorage(tmp_path, new_upload_id=lambda: ID)
    with steps.noted():
        await store.create_multipart("k")
    assert steps.taken[:4] == ["sync ./", *["sync .fusefs-store/"] * 3]
    await store.aclose()


async def test_directories_of_a_process_that_was_killed_before_it_synced_them(
    storage: ObjectStorage, tmp_path: Path, steps: Steps
) -> None:
    """Nobody can see whether they were; so the next one does it, once."""
    store = DirectoryStorage(tmp_path)
    await store.put("other", b"content")
    with steps.noted():
        await store.put("dir/k", b"content")
        await store.put("dir/l", b"content")
    assert steps.taken == [
        *("sync *", "sync ./", "rename dir/k", "sync dir/"),
        *("sync *", "rename dir/l", "sync dir/"),
    ]
    await store.aclose()


async def test_a_directory_that_others_make_anew_with_the_number_of_one_that_is_gone(
    storage: ObjectStorage, tmp_path: Path, steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    """File systems give numbers again; nobody can see whether they have synced it."""
    stat = os.stat

    def stat_with_one_number(path: Any, **how: Any) -> os.stat_result:
        status = stat(path, **how)
        is_new = path == str(tmp_path / "dir" / "new")
        return os.stat_result((status.st_mode, 4711, *status[2:])) if is_new else status

    monkeypatch.setattr(os, "stat", stat_with_one_number)
    await storage.put("dir/new/k", b"content")
    await storage.delete("dir/new/k")
    (tmp_path / "dir" / "new").mkdir()
    with steps.noted():
        await storage.put("dir/new/k", b"content")
    assert steps.taken == ["sync *", "sync dir/", "rename dir/new/k", "sync dir/new/"]


async def test_the_name_of_a_directory_is_on_the_disk_before_the_directory(
    storage: ObjectStorage, steps: Steps
) -> None:
    """It is in an attribute, where the key's segment is too long for a name; without it no listing goes on."""
    with steps.noted():
        await storage.put(f"{'l' * 300}/k", b"content")
    assert [step.partition("%")[0].rstrip("l") for step in steps.taken] == [
        *("sync *", "sync */", "rename ", "sync ./", "rename ", "sync "),
    ]


@pytest.mark.parametrize("keys", [["a/b/c", "a/d"], ["a/d", "a/b/c"]])
async def test_removals_are_on_the_disk_before_the_directory_goes(
    keys: list[str], storage: ObjectStorage, steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    await put_all(storage, keys)
    rmdir = os.rmdir

    def noted_rmdir(path: str) -> None:
        rmdir(path)
        steps.taken.append("rmdir")

    with steps.noted(), monkeypatch.context() as patch:
        patch.setattr(os, "rmdir", noted_rmdir)
        assert await storage.delete_many(keys) == {}
    assert sorted(steps.taken[:2]) == ["sync a/", "sync a/b/"]
    assert steps.taken[2:] == ["rmdir", "rmdir"]


async def test_a_batch_of_deletions_syncs_each_directory_once(storage: ObjectStorage, steps: Steps) -> None:
    await put_all(storage, ["dir/1", "dir/2", "other/1", "other/2"])
    with steps.noted():
        assert await storage.delete_many(["dir/1", "dir/2", "other/1"]) == {}
    assert sorted(steps.taken) == ["sync dir/", "sync other/"]


PART_STEPS: Final = ["sync *", f"rename {UPLOADS}/{ID}/00007", f"sync {UPLOADS}/{ID}/"]


async def test_parts_are_on_the_disk_when_they_are_stored(storage: ObjectStorage, steps: Steps) -> None:
    upload = await storage.create_multipart("k")
    with steps.noted():
        await upload.upload_part(7, b"content")
    assert steps.taken == PART_STEPS
    steps.taken.clear()
    with steps.noted():
        await upload.copy_part(7, "dir/there", 0, 7)
    assert steps.taken == PART_STEPS


async def test_an_upload_is_removed_after_its_object_is_on_the_disk(
    storage: ObjectStorage, steps: Steps
) -> None:
    upload = await storage.create_multipart("k")
    part = await upload.upload_part(1, b"content")
    with steps.noted():
        await upload.complete([part])
    assert steps.taken == ["sync *", "rename k", "sync ./", "rename *", f"sync {UPLOADS}/"]


async def test_an_aborted_upload_is_gone_from_the_disk(storage: ObjectStorage, steps: Steps) -> None:
    upload = await storage.create_multipart("k")
    with steps.noted():
        await upload.abort()
    assert steps.taken == ["rename *", f"sync {UPLOADS}/"]


# Memory


async def three_parts(storage: ObjectStorage, key: str) -> tuple[MultipartUpload, list[Part]]:
    upload = await storage.create_multipart(key)
    return upload, [await upload.upload_part(number, PART_DATA) for number in (1, 2, 3)]


async def test_no_object_is_read_into_memory_to_make_another_one(storage: ObjectStorage) -> None:
    """An assembly, a copy and a copied part of 15 MiB take less than 3 MiB."""
    upload, parts = await three_parts(storage, "source")
    tracemalloc.start()
    try:
        await upload.complete(parts)
        await storage.copy("source", "copy")
        copying = await storage.create_multipart("target")
        await copying.complete([await copying.copy_part(1, "copy", 0, 3 * len(PART_DATA))])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 3 * MIB
    assert (await storage.get_range("target")).data == 3 * PART_DATA


def files_in(directory: Path) -> list[Path]:
    return sorted(directory.rglob("*"))


def refuse(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


async def test_what_has_its_name_and_may_not_keep_it_is_in_doubt(
    storage: ObjectStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever tries again would take the object for somebody else's."""
    await storage.put("another", b"")
    with monkeypatch.context() as patch:
        patch.setattr(directory_tree, "sync_directory", refuse)
        with pytest.raises(QuotaExceeded) as caught:
            await storage.put("k", b"ours", mode=CREATE_ONLY)
    assert caught.value.is_in_doubt
    assert (await storage.get_range("k")).data == b"ours"


async def test_an_upload_is_complete_although_its_parts_cannot_be_removed(
    storage: ObjectStorage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    upload = await storage.create_multipart("k")
    part = await upload.upload_part(1, b"ours")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", refuse)
        etag = await upload.complete([part], mode=CREATE_ONLY)
    assert (await storage.head("k")).etag == etag
    assert "'k' is complete, and its parts cannot be removed" in caplog.text


async def test_an_upload_that_cannot_begin_leaves_nothing(
    storage: ObjectStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a full disk it is tried again and again."""
    await storage.put("another", b"")
    before = files_in(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse)
        with pytest.raises(QuotaExceeded):
            await storage.create_multipart("k")
    assert files_in(tmp_path) == before
