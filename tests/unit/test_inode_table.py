"""Inodes by number."""

from __future__ import annotations

import stat
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusefs.attributes import fresh
from fusefs.errors import NoSuchInode
from fusefs.inode_table import NUMBER_BITS, InodeTable, number_of_key
from fusefs.inodes import ROOT_NUMBER, Directory


def new_directory(number: int) -> Directory:
    return Directory(number=number, attributes=fresh(mode=stat.S_IFDIR, uid=0, gid=0, now_ns=0))


def new_table() -> InodeTable:
    return InodeTable(new_directory(ROOT_NUMBER), Random(0))


@given(st.text())
def test_numbers_of_keys_are_no_special_ones(key: str) -> None:
    """0 is none, and 1 the root."""
    assert ROOT_NUMBER < number_of_key(key) < 1 << NUMBER_BITS
    assert number_of_key(key) == number_of_key(key)


def test_a_directory_and_an_object_of_its_name_have_two_numbers() -> None:
    assert number_of_key("x") != number_of_key("x/")


def test_no_two_inodes_have_one_number() -> None:
    """Two keys with one hash, or a number that an index remembers and a new inode has drawn."""
    table = new_table()
    first, second = new_directory(7), new_directory(7)
    table.add(first)
    table.add(second)
    assert first.number == 7
    assert second.number != 7
    assert table[7] is first
    assert table[second.number] is second


def test_what_the_kernel_knows_keeps_its_number() -> None:
    table = new_table()
    known, unknown = new_directory(7), new_directory(8)
    table.add(known)
    table.add(unknown)
    known.lookups = 1
    table.renumber(known, 9)
    table.renumber(unknown, 7)
    assert (known.number, unknown.number) == (7, 8)
    table.renumber(unknown, 9)
    assert table[9] is unknown
    with pytest.raises(NoSuchInode):
        table[8]


def test_an_inode_is_told_of_when_the_last_reference_goes() -> None:
    table = new_table()
    inode = new_directory(7)
    inode.lookups = 3
    table.add(inode)
    assert table.forget(7, 2) is None
    assert table.forget(7, 1) is inode
    assert table.forget(8, 1) is None
    assert table[7] is inode  # until it is dropped
    table.drop(inode)
    assert len(table) == 1


def test_an_inode_that_another_has_replaced_is_not_dropped_for_it() -> None:
    table = new_table()
    inode = new_directory(7)
    table.add(inode)
    table.drop(new_directory(7))
    assert table[7] is inode


def test_inodes_are_kept_as_long_as_any_block_needs_them() -> None:
    table = new_table()
    with table.kept():
        with table.kept():
            assert table.are_kept
        assert table.are_kept
    assert not table.are_kept
