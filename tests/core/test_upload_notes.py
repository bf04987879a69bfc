"""Uploads that a killed mount left are found by their notes and aborted; nobody else's are touched."""

from __future__ import annotations

from pathlib import Path

from backends.base import MIB, ObjectStorage
from backends.errors import Unavailable
from backends.memory import MemoryStorage
from backends.noting import NotingStorage
from fusefs.upload_notes import NotedUpload, UploadNotes, abort_orphans, read_notes
from tests.support.faulty import FaultyStorage

_URL = "s3://bucket/prefix"


async def _take_over(storage: ObjectStorage, orphans: list[NotedUpload], notes: UploadNotes) -> None:
    for orphan in orphans:
        notes.remember(orphan)
    await abort_orphans(NotingStorage(storage, notes), _URL, orphans)


async def test_only_what_did_not_end_is_an_orphan(tmp_path: Path) -> None:
    notes = UploadNotes(tmp_path / "uploads", _URL)
    storage = NotingStorage(MemoryStorage(), notes)
    completed = await storage.create_multipart("completed")
    await completed.complete([await completed.upload_part(1, bytes(5 * MIB))])
    await (await storage.create_multipart("aborted")).abort()
    left = await storage.create_multipart("left")
    assert read_notes(tmp_path / "uploads") == [NotedUpload(url=_URL, key="left", upload_id=left.upload_id)]


async def test_orphans_are_aborted_and_nothing_else(tmp_path: Path) -> None:
    store = MemoryStorage()
    before = UploadNotes(tmp_path / "before", _URL)
    await NotingStorage(store, before).create_multipart("left")
    await store.create_multipart("of somebody else")
    elsewhere = NotedUpload(url="s3://other", key="left", upload_id="upload-9")
    before.remember(elsewhere)
    now = UploadNotes(tmp_path / "now", _URL)
    await _take_over(store, read_notes(tmp_path / "before"), now)
    assert [upload.key for upload in await store.list_multipart_uploads()] == ["of somebody else"]
    assert read_notes(tmp_path / "now") == [elsewhere]


async def test_what_cannot_be_aborted_waits_for_the_next_mount(tmp_path: Path) -> None:
    store = FaultyStorage(MemoryStorage())
    before = UploadNotes(tmp_path / "before", _URL)
    await NotingStorage(store, before).create_multipart("left")
    store.fail(Unavailable)
    now = UploadNotes(tmp_path / "now", _URL)
    await _take_over(store, read_notes(tmp_path / "before"), now)
    assert read_notes(tmp_path / "now") == read_notes(tmp_path / "before") != []


def test_notes_that_a_crash_cut_off(tmp_path: Path) -> None:
    """A damaged line is left out; the others count."""
    path = tmp_path / "uploads"
    notes = UploadNotes(path, _URL)
    notes.begun("first", "1")
    path.write_text(path.read_text() + "[]\n7\n{\n" + '{"key": "only"}\n')
    notes.begun("second", "2")
    with path.open("a") as file:
        file.write('{"url": "s3://buck')
    assert [upload.key for upload in read_notes(path)] == ["first", "second"]
    assert read_notes(tmp_path / "missing") == []


def test_a_disk_that_refuses_notes(tmp_path: Path) -> None:
    """A mount goes on without them."""
    notes = UploadNotes(tmp_path / "no such directory" / "uploads", _URL)
    notes.begun("key", "1")
    notes.ended("1")
