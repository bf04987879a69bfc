"""What rename refuses. What follows from it for a mount is in `tests/core/test_namespace.py`."""

from __future__ import annotations

import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusefs.attributes import fresh
from fusefs.errors import (
    DirectoryNotEmpty,
    EntryExists,
    FilesystemError,
    InvalidArgument,
    IsADirectory,
    NameTooLong,
    NoSuchEntry,
    NotADirectory,
    StaleFile,
)
from fusefs.inodes import ROOT_NUMBER, Directory, Inode, Special
from fusefs.keys import name_of_file_beside
from fusefs.rename_checks import Rename, check_empty, check_rename
from fusefs.versions import Version

MAX_KEY_LENGTH = 60

names = st.sampled_from([b"a", b"b" * 9, "é".encode() * 5, b"\xff\xfe", b"%b", b"%key-%2E"])
trees = st.recursive(st.none(), lambda below: st.dictionaries(names, below, max_size=3), max_leaves=8)
Shape = dict[bytes, "Shape | None"]


def new_directory(above: Directory | None = None, name: bytes = b"") -> Directory:
    number = ROOT_NUMBER if above is None else 2
    directory = Directory(number=number, attributes=fresh(mode=stat.S_IFDIR, uid=0, gid=0, now_ns=0))
    if above is not None:
        above.attach(name, directory)
    return directory


def new_special(above: Directory, name: bytes) -> Special:
    inode = Special(number=3, attributes=fresh(mode=stat.S_IFIFO, uid=0, gid=0, now_ns=0))
    above.attach(name, inode)
    return inode


def fill(directory: Directory, shape: Shape) -> None:
    for name, below in shape.items():
        if below is None:
            new_special(directory, name)
        else:
            fill(new_directory(directory, name), below)


def check(inode: Inode, above: Directory, name: bytes, *, exchange: bool = False) -> None:
    """Check the rename of an entry to a name below a directory."""
    assert inode.parent is not None
    other = above.children.get(name)
    assert other is None or isinstance(other, Inode)
    rename = Rename(
        directory=inode.parent,
        name=inode.name,
        inode=inode,
        new_directory=above,
        new_name=name,
        other=other,
        exchange=exchange,
    )
    check_rename(rename, max_key_length=MAX_KEY_LENGTH)


def is_refused(inode: Inode, above: Directory, name: bytes, *, exchange: bool = False) -> bool:
    try:
        check(inode, above, name, exchange=exchange)
    except NameTooLong:
        return True
    return False


def too_long_in(directory: Directory) -> bool:
    """Return whether the key of anything below is too long, with a byte for the slash of a marker."""
    below = list(directory.with_all_below())[1:]
    return any(len(inode.path_key.encode()) >= MAX_KEY_LENGTH for inode in below)


@given(trees, names, names)
def test_a_directory_moves_where_every_key_below_it_fits(
    shape: Shape | None, above: bytes, name: bytes
) -> None:
    """That is so exactly where no key would be too long when it has moved."""
    root = new_directory()
    moved, target = new_directory(root, b"moved"), new_directory(root, above)
    fill(moved, shape or {})
    refused = is_refused(moved, target, name)
    root.detach(b"moved")
    target.attach(name, moved)
    assert refused == too_long_in(moved)


@given(trees, names)
def test_both_directories_of_an_exchange_have_to_fit(shape: Shape | None, name: bytes) -> None:
    root = new_directory()
    above = new_directory(root, b"above" * 4)
    deep, shallow = new_directory(above, b"deep"), new_directory(root, name)
    fill(shallow, shape or {})
    refused = is_refused(deep, root, name, exchange=True)
    assert refused == is_refused(shallow, above, b"deep", exchange=True)
    above.detach(b"deep")
    root.detach(name)
    above.attach(b"deep", shallow)
    assert refused == too_long_in(shallow)


@pytest.mark.parametrize(
    ("path", "target", "exchange", "error"),
    [
        (b"full", b"full/x", False, InvalidArgument),
        (b"full", b"full/below/x", True, InvalidArgument),
        (b"full/below", b"full", True, InvalidArgument),
        (b"full/below", b"full", False, DirectoryNotEmpty),
        (b"empty", b"full", False, DirectoryNotEmpty),
        (b"fifo", b"empty", False, IsADirectory),
        (b"empty", b"fifo", False, NotADirectory),
        (b"empty", b"full/below", False, None),
        (b"fifo", b"full/fifo", False, None),
        (b"full", b"fifo", True, None),
        (b"fifo", b"gone", False, None),
    ],
)
def test_kinds_and_places(
    path: bytes, target: bytes, exchange: bool, error: type[FilesystemError] | None
) -> None:
    root = new_directory()
    fill(root, {b"full": {b"below": {}, b"fifo": None}, b"empty": {}, b"fifo": None})
    above, _, name = target.rpartition(b"/")
    inode, directory = found(root, path), found(root, above)
    assert isinstance(directory, Directory)
    if error is None:
        check(inode, directory, name, exchange=exchange)
    else:
        with pytest.raises(error):
            check(inode, directory, name, exchange=exchange)


def found(root: Directory, path: bytes) -> Inode:
    inode: Inode = root
    for name in path.split(b"/") if path else ():
        assert isinstance(inode, Directory)
        child = inode.children[name]
        assert isinstance(child, Inode)
        inode = child
    return inode


def test_nothing_moves_into_a_directory_that_was_removed() -> None:
    root = new_directory()
    removed = new_directory(root, b"removed")
    inode = new_special(root, b"x")
    root.detach(b"removed")
    with pytest.raises(NoSuchEntry):
        check(inode, removed, b"x")


def test_what_is_beside_a_directory_keeps_its_key() -> None:
    """Only another directory can take the place of that one."""
    root = new_directory()
    directory, fifo = new_directory(root, b"d"), new_special(root, b"fifo")
    other = new_directory(root, b"other")
    beside = name_of_file_beside("d")
    assert beside is not None
    new_special(root, beside)
    with pytest.raises(EntryExists):
        check(directory, root, b"fifo", exchange=True)
    with pytest.raises(EntryExists):
        check(fifo, root, b"d", exchange=True)
    check(other, root, b"d", exchange=True)


def test_a_marker_with_bytes_of_somebody_else_is_not_empty() -> None:
    directory = new_directory(new_directory(), b"d")
    check_empty(directory)
    directory.version = Version("d/", "e", 0)
    check_empty(directory)
    directory.version = Version("d/", "e", 1)
    with pytest.raises(DirectoryNotEmpty):
        check_empty(directory)


def test_what_is_being_kept_beside_somebody_elses_gets_no_other_name() -> None:
    root = new_directory()
    kept, other = new_special(root, b"kept"), new_special(root, b"other")
    kept.state.failure = StaleFile("changed by somebody else")
    with pytest.raises(StaleFile):
        check(kept, root, b"new")
    with pytest.raises(StaleFile):
        check(other, root, b"kept", exchange=True)
    check(other, root, b"kept")
