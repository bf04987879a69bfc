"""What goes into one batch of the log."""

from __future__ import annotations

import stat
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backends.base import KIB
from backends.memory import MemoryStorage
from fusefs import batch_contents, staged_bytes
from fusefs.attributes import fresh
from fusefs.batch_contents import HEAD_SIZE, BatchContents, enough_ahead, exceeds_a_batch, rest_of, some_of
from fusefs.capture import note_captured
from fusefs.content import Content
from fusefs.inodes import ROOT_NUMBER, Directory, File, Special
from fusefs.log_records import InUseRecord, LeftoverRecord
from fusefs.unlogged import Unlogged
from fusefs.versions import Version
from tests.core.test_content import open_sources

HEADS = 4


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_contents, "HEADS_SIZE", HEADS * HEAD_SIZE)
    monkeypatch.setattr(batch_contents, "BATCH_SIZE", 4 * KIB)


def new_root() -> Directory:
    return Directory(number=ROOT_NUMBER, attributes=fresh(mode=stat.S_IFDIR, uid=0, gid=0, now_ns=0))


def new_special(directory: Directory, name: bytes, xattrs: str = "") -> Special:
    attributes = fresh(mode=stat.S_IFIFO, uid=0, gid=0, now_ns=0)
    inode = Special(number=2, attributes=replace(attributes, xattrs=xattrs))
    directory.attach(name, inode)
    return inode


def objects(count: int) -> list[Version]:
    return [Version(f"{number}", "e", 1) for number in range(count)]


def note(unlogged: Unlogged, contents: BatchContents) -> None:
    """Say that a batch with this is on its way."""
    for captured in contents.captured:
        note_captured(captured)
    unlogged.note_told_in_use(contents.in_use)
    unlogged.note_told_ahead([captured.inode for captured in contents.captured], contents.leftovers)


def batches_of(unlogged: Unlogged) -> list[BatchContents]:
    """Return what batches tell in which a commit sends everything."""
    batches = []
    while exceeds_a_batch(unlogged):
        batches.append(some_of(unlogged))
        note(unlogged, batches[-1])
    batches.append(rest_of(unlogged))
    note(unlogged, batches[-1])
    return batches


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    inodes=st.lists(st.integers(0, 3 * HEAD_SIZE), max_size=12),
    leftovers=st.integers(0, 12),
    in_use=st.integers(0, 12),
)
def test_a_commit_tells_of_everything_once_in_batches_that_are_not_too_large(
    inodes: list[int], leftovers: int, in_use: int
) -> None:
    """A single head may be larger than there is room for."""
    unlogged, root = Unlogged(), new_root()
    for number, size in enumerate(inodes):
        unlogged.changed(new_special(root, b"%d" % number, "x" * size))
    for version in objects(leftovers):
        unlogged.left_over(version, waits=True)
    for version in objects(in_use):
        unlogged.in_use(Version(version.key, "used", 1))
    expected = list(unlogged.inodes)
    batches = batches_of(unlogged)
    assert [each.inode for contents in batches for each in contents.captured] == expected
    assert [version for contents in batches for version in contents.leftovers] == objects(leftovers)
    assert len([version for contents in batches for version in contents.in_use]) == in_use
    for contents in batches:
        heads = [HEAD_SIZE + len(each.inode.attributes.xattrs) for each in contents.captured]
        assert sum(heads[:-1]) < HEADS * HEAD_SIZE
        assert len(contents.records) <= HEADS + 1
        assert len(contents.records) == len(contents) + len(contents.in_use)


def test_what_is_in_use_goes_before_what_is_to_be_deleted() -> None:
    """They may look the same, and a reader takes what comes last."""
    (version,) = objects(1)
    contents = BatchContents([], [version], [version])
    assert contents.records == (InUseRecord(version), LeftoverRecord(version))


def test_heads_are_no_reason_for_more_batches_for_ever() -> None:
    unlogged, root = Unlogged(), new_root()
    for number in range(HEADS + 1):
        unlogged.changed(new_special(root, b"%d" % number))
    assert exceeds_a_batch(unlogged)
    assert not exceeds_a_batch(unlogged, counts_heads=False)
    assert enough_ahead(unlogged) >= 2 * (HEADS + 1)


def new_file(directory: Directory, content: Content) -> File:
    attributes = fresh(mode=stat.S_IFREG, uid=0, gid=0, now_ns=0)
    file = File(number=3, attributes=attributes, content=content)
    directory.attach(b"file", file)
    return file


async def test_a_large_file_goes_ahead_piece_by_piece(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And no byte of it twice, but for those that are written again meanwhile."""
    monkeypatch.setattr(staged_bytes, "PIECE_SIZE", KIB)
    async with open_sources(MemoryStorage(), tmp_path) as sources:
        root, unlogged = new_root(), Unlogged()
        file = new_file(root, Content(replace(sources, logged=True)))
        for start in range(0, 10 * KIB, KIB):
            file.content.write(start, b"x" * KIB)
        unlogged.changed(file)
        assert exceeds_a_batch(unlogged, counts_heads=False)
        batches = batches_of(unlogged)
        assert all(captured.size_bytes <= 4 * KIB for contents in batches for captured in contents.captured)
        assert sum(captured.size_bytes for contents in batches for captured in contents.captured) == 10 * KIB
        assert [captured.inode for captured in batches[-1].captured] == [file]
        unlogged.clear()
        file.content.write(0, b"y")
        unlogged.changed(file)
        (last,) = batches_of(unlogged)
        assert [captured.size_bytes for captured in last.captured] == [1]
