"""The numbers that entries have, or will have when they are looked up."""

from __future__ import annotations

import stat

from fusefs.attributes import fresh
from fusefs.entry_numbers import number_of_listed, numbers_in
from fusefs.inode_table import number_of_key
from fusefs.inodes import ROOT_NUMBER, Alias, Directory, Special
from fusefs.listed import UNKNOWN_DIRECTORY, ListedObject, nothing_but

OBJECT = ListedObject.pack(size=1, stored_at_ns=0, etag="e")


def new_root() -> Directory:
    return Directory(number=ROOT_NUMBER, attributes=fresh(mode=stat.S_IFDIR, uid=0, gid=0, now_ns=0))


def test_an_entry_that_nobody_has_looked_at_gets_the_number_of_its_key() -> None:
    root = new_root()
    root.attach(b"file", OBJECT)
    root.attach(b"directory", UNKNOWN_DIRECTORY)
    number_of = numbers_in(root)
    assert number_of(b"file") == number_of_key("file") == number_of_listed("", b"file", OBJECT)
    assert number_of(b"directory") == number_of_key("directory/")
    assert number_of_listed("d/", b"\xff", OBJECT) == number_of_key("d/%bytes-%FF")


def test_a_number_that_is_remembered_stays() -> None:
    root = new_root()
    root.attach(b"file", ListedObject.pack(size=1, stored_at_ns=0, etag="e", remembered=nothing_but(7)))
    assert numbers_in(root)(b"file") == 7


def test_all_names_of_an_inode_have_its_number() -> None:
    root = new_root()
    inode = Special(number=5, attributes=fresh(mode=stat.S_IFIFO, uid=0, gid=0, now_ns=0))
    root.attach(b"first", inode)
    root.attach(b"further", Alias(number=6, attributes=inode.attributes, of=inode))
    number_of = numbers_in(root)
    assert number_of(b"first") == number_of(b"further") == 5


def test_what_is_gone_has_none() -> None:
    root = new_root()
    root.attach(b"file", OBJECT)
    number_of = numbers_in(root)
    root.detach(b"file")
    assert number_of(b"file") == 0


def test_below_a_renamed_directory_numbers_follow_from_the_keys_that_there_are() -> None:
    root = new_root()
    directory = Directory(number=3, attributes=root.attributes, source="before/")
    root.attach(b"after", directory)
    directory.attach(b"file", OBJECT)
    assert numbers_in(directory)(b"file") == number_of_key("before/file")
