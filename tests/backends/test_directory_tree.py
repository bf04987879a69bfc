"""Listing a large directory of the directory store page by page, without reading all of it for each page."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from backends.directory_private import PrivateArea
from backends.directory_tree import ObjectTree
from backends.listing import Query, cut_page

COUNT = 3_000
LATER_NS = 10 * 10**9


@pytest.fixture
def scanned(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The directories that were read."""
    scandir, scanned = os.scandir, list[str]()

    def scan(path: str) -> object:
        scanned.append(os.path.basename(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", scan)
    return scanned


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A directory of many files and directories below the root of the store."""
    large = tmp_path / "large"
    large.mkdir()
    for number in range(COUNT):
        (large / f"{number:04}").touch()
    for number in range(0, COUNT, 500):
        (large / f"{number:04}-").mkdir()
        (large / f"{number:04}-" / "file").touch()
    return large


def tree_of(root: Path, *, settled: bool) -> ObjectTree:
    ahead_ns = LATER_NS if settled else 0
    return ObjectTree(str(root), PrivateArea(str(root)), lambda: time.time_ns() + ahead_ns)


def names(tree: ObjectTree, delimiter: bytes, after: bytes = b"") -> Iterator[str]:
    """List what is below `large/`, page by page."""
    while True:
        query = Query(prefix=b"large/", delimiter=delimiter, after=after, page_size=100)
        cut = cut_page(tree.walk(query), query)
        found = sorted([*cut.keys, *cut.prefixes])
        yield from found
        if cut.next_token is None:
            return
        after = found[-1].encode()


@pytest.mark.parametrize("settled", [True, False])
@pytest.mark.parametrize("delimiter", [b"", b"/"])
def test_a_directory_that_does_not_change_is_read_once(
    large: Path, scanned: list[str], delimiter: bytes, *, settled: bool
) -> None:
    """Not so one that has changed just now: its time may stay the same with the next change."""
    expected = {f"large/{number:04}" for number in range(COUNT)}
    end = "" if delimiter else "file"
    expected |= {f"large/{number:04}-/{end}" for number in range(0, COUNT, 500)}
    tree = tree_of(large.parent, settled=settled)
    found = list(names(tree, delimiter))
    assert found == sorted(expected)
    assert tree._snapshot is None, "nobody needs it any more"
    assert (scanned.count("large") == 1) == settled


def test_what_is_made_and_removed_between_two_pages(large: Path) -> None:
    tree = tree_of(large.parent, settled=True)
    listing = names(tree, b"/")
    assert next(listing) == "large/0000"
    before = large.stat().st_ctime_ns
    (large / "2990").unlink()
    extra = 0
    while large.stat().st_ctime_ns == before:  # times are coarse
        extra += 1
        (large / f"2991-{extra}").touch()
    (large / "2992-").touch()
    rest = set(listing)
    assert "large/2990" not in rest
    assert "large/2992-" in rest
