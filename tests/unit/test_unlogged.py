"""What the log has yet to be told."""

from __future__ import annotations

import stat

from fusefs.attributes import fresh
from fusefs.inodes import ROOT_NUMBER, Alias, Directory, Inode, Links, Special
from fusefs.log_records import Position
from fusefs.unlogged import Unlogged
from fusefs.versions import Version

OBJECT = Version("k", "e", 1)


def new_directory(number: int = ROOT_NUMBER) -> Directory:
    return Directory(number=number, attributes=fresh(mode=stat.S_IFDIR, uid=0, gid=0, now_ns=0))


def new_inode(directory: Directory, name: bytes = b"x") -> Special:
    inode = Special(number=2, attributes=fresh(mode=stat.S_IFIFO, uid=0, gid=0, now_ns=0))
    directory.attach(name, inode)
    return inode


def told(unlogged: Unlogged) -> list[Inode]:
    return list(unlogged.to_tell())


def test_what_changed_is_told_once_and_urgent() -> None:
    unlogged, inode = Unlogged(), new_inode(new_directory())
    unlogged.changed(inode)
    unlogged.changed(inode)
    assert told(unlogged) == [inode]
    assert unlogged.is_urgent
    assert unlogged.is_behind(inode)
    unlogged.clear()
    assert told(unlogged) == []
    assert not unlogged.is_behind(inode)


def test_times_alone_are_told_and_not_urgent() -> None:
    unlogged, inode = Unlogged(), new_inode(new_directory())
    unlogged.touched(inode)
    assert told(unlogged) == [inode]
    assert unlogged.is_noted(inode)
    assert not unlogged.is_urgent
    assert not unlogged.is_behind(inode)
    unlogged.forget_times(inode)
    assert told(unlogged) == []


def test_more_than_times_is_not_forgotten_with_them() -> None:
    unlogged, inode = Unlogged(), new_inode(new_directory())
    unlogged.changed(inode)
    unlogged.touched(inode)
    unlogged.forget_times(inode)
    assert unlogged.is_behind(inode)
    unlogged.forget(inode)
    assert not unlogged.is_noted(inode)


def test_each_inode_has_a_name_of_its_own_that_stays() -> None:
    unlogged, directory = Unlogged(), new_directory()
    inodes = [new_inode(directory, name) for name in (b"1", b"2")]
    for inode in inodes:
        unlogged.changed(inode)
    names = [inode.log_id for inode in inodes]
    assert len(set(names)) == 2
    for inode in inodes:
        unlogged.touched(inode)
        unlogged.name(inode)
    assert [inode.log_id for inode in inodes] == names


def test_two_terms_give_no_name_twice() -> None:
    inodes = [new_inode(new_directory()) for _ in range(2)]
    for inode in inodes:
        Unlogged().name(inode)
    assert inodes[0].log_id != inodes[1].log_id


def test_what_went_ahead_is_told_again_if_it_has_changed_since() -> None:
    unlogged, directory = Unlogged(), new_directory()
    first, second = new_inode(directory, b"1"), new_inode(directory, b"2")
    unlogged.changed(first)
    unlogged.changed(second)
    unlogged.note_told_ahead([first, second], [])
    assert told(unlogged) == []
    assert unlogged.is_urgent  # it counts only with a batch that is still to come
    unlogged.touched(second)
    assert told(unlogged) == [second]


def test_what_came_and_went_between_two_commits_is_not_told() -> None:
    unlogged, directory = Unlogged(), new_directory()
    inode = new_inode(directory)
    unlogged.changed(inode)
    directory.detach(b"x")
    assert told(unlogged) == []


def test_that_a_name_has_gone_is_told_if_anybody_can_know_it() -> None:
    unlogged, directory = Unlogged(), new_directory()
    in_bucket, in_log, gone_in_log = (new_inode(directory, name) for name in (b"1", b"2", b"3"))
    in_bucket.version = Version("1", "e", 0)
    in_log.is_in_log, gone_in_log.is_in_log = True, False
    gone_in_log.version = Version("3", "e", 0)
    for inode in (in_bucket, in_log, gone_in_log):
        unlogged.changed(inode)
        directory.detach(inode.name)
    assert told(unlogged) == [in_bucket, in_log]


def test_of_an_inode_whose_names_are_not_all_known_nothing_is_told() -> None:
    unlogged, inode = Unlogged(), new_inode(new_directory())
    inode.links = Links(number=1, is_joined=False)
    unlogged.changed(inode)
    assert told(unlogged) == []


def test_what_is_below_a_renamed_directory_is_told() -> None:
    unlogged, root = Unlogged(), new_directory()
    directory = new_directory(3)
    root.attach(b"d", directory)
    below = new_inode(directory)
    unlogged.moved(directory)
    assert len(unlogged) == 1
    assert unlogged.is_behind(below)
    assert told(unlogged) == [below]
    later = new_inode(directory, b"later")
    assert not unlogged.is_noted(later)  # it has come after the rename, and says so itself


def test_a_further_name_begins_where_its_inode_went_ahead() -> None:
    unlogged, directory = Unlogged(), new_directory()
    inode = new_inode(directory)
    alias = Alias(number=0, attributes=inode.attributes, of=inode)
    inode.told_at = Position(1, 4)
    assert unlogged.told_from(alias, Position(1, 5)) == (1, 5)  # in an earlier commit, which is whole
    unlogged.changed(inode)
    unlogged.note_told_ahead([inode], [])
    assert unlogged.told_from(alias, Position(1, 5)) == (1, 4)
    assert unlogged.told_from(inode, Position(1, 5)) == (1, 5)


def test_an_object_whose_deletion_waits_is_urgent() -> None:
    for waits in (False, True):
        unlogged = Unlogged()
        unlogged.left_over(OBJECT, waits=waits)
        unlogged.left_over_still(OBJECT)
        assert unlogged.is_urgent == waits


def test_an_object_that_is_to_be_deleted_is_told_until_it_is_gone() -> None:
    unlogged = Unlogged()
    unlogged.left_over(OBJECT, waits=False)
    assert unlogged.leftovers_to_tell() == [OBJECT]
    unlogged.note_told_ahead([], [OBJECT])
    assert unlogged.leftovers_to_tell() == []
    unlogged.left_over(OBJECT, waits=True)
    assert unlogged.leftovers_to_tell() == [OBJECT]
    unlogged.gone(OBJECT)
    assert unlogged.leftovers_to_tell() == []
    assert len(unlogged) == 0


def test_whoever_has_the_object_now_is_told_of_in_place_of_its_deletion() -> None:
    unlogged = Unlogged()
    unlogged.left_over(OBJECT, waits=True)
    unlogged.in_use(OBJECT)
    assert unlogged.leftovers_to_tell() == []
    assert list(unlogged.in_use_to_tell()) == [OBJECT]
    assert len(unlogged) == 0
    unlogged.clear()  # a commit tells of what fits into its last batch alone, and keeps the others
    assert list(unlogged.in_use_to_tell()) == [OBJECT]
    unlogged.note_told_in_use([OBJECT])
    assert not unlogged.in_use_to_tell()
