"""The table of inodes: which number an inode has, and what the table finds by it."""

from __future__ import annotations

import pytest

from fusefs.attributes import fresh
from fusefs.errors import NoSuchInode
from fusefs.inodes import ROOT_NUMBER, Directory, InodeTable, Special

ATTRIBUTES = fresh(mode=0, uid=0, gid=0, now_ns=0)


def table_with(*numbers: int) -> tuple[InodeTable, list[Special]]:
    table = InodeTable(Directory(number=ROOT_NUMBER, attributes=ATTRIBUTES))
    inodes = [Special(number=number, attributes=ATTRIBUTES) for number in numbers]
    for inode in inodes:
        table.add(inode)
    return table, inodes


def test_a_number_that_is_taken_is_not_given_again() -> None:
    table, (first, second) = table_with(5, 5)
    assert first.number == 5
    assert second.number != 5
    assert table[5] is first
    assert table[second.number] is second


def test_an_inode_gets_another_number() -> None:
    table, (inode,) = table_with(5)
    table.renumber(inode, 7)
    assert inode.number == 7
    assert table[7] is inode
    with pytest.raises(NoSuchInode):
        table[5]


def test_an_inode_that_the_kernel_knows_keeps_its_number() -> None:
    table, (inode,) = table_with(5)
    inode.lookups = 1
    table.renumber(inode, 7)
    assert inode.number == 5
    assert table[5] is inode


def test_an_inode_does_not_get_the_number_of_another_one() -> None:
    table, (inode, other) = table_with(5, 7)
    table.renumber(inode, 7)
    assert (inode.number, other.number) == (5, 7)
    assert (table[5], table[7]) == (inode, other)
