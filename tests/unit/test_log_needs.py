"""From which batch on the log is needed, against a model that keeps every position by itself."""

from __future__ import annotations

import math
import stat
from contextlib import ExitStack, suppress

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from fusefs.attributes import fresh
from fusefs.change_log import Publication
from fusefs.inodes import ROOT_NUMBER, Alias, Directory, Inode, Links, Special
from fusefs.log_needs import RECORD_SIZE, LogNeeds, Needing
from fusefs.log_records import Position
from fusefs.versions import Version

EPOCH = 3
LOG_BYTES = 10 * RECORD_SIZE


def at(sequence: int) -> Position:
    return Position(EPOCH, sequence)


def new_needs() -> LogNeeds:
    return LogNeeds(max_log_bytes=LOG_BYTES)


def new_inode(name: bytes = b"x") -> Special:
    root = Directory(number=ROOT_NUMBER, attributes=fresh(mode=stat.S_IFDIR, uid=0, gid=0, now_ns=0))
    inode = Special(number=2, attributes=fresh(mode=stat.S_IFIFO, uid=0, gid=0, now_ns=0))
    root.attach(name, inode)
    return inode


def tell(needs: LogNeeds, things: list[Needing], position: Position) -> None:
    """Tell of things in a batch that is a whole commit."""
    for thing in things:
        needs.need(thing, position)
        needs.note_told(thing, position)
    needs.need_from_where_told_again()


class NeedsAgainstDict(RuleBasedStateMachine):
    """After any history the cutoff is the oldest position that anything is needed from."""

    def __init__(self) -> None:
        super().__init__()
        self.needs = new_needs()
        self.inodes = [new_inode() for _ in range(4)]
        self.things: list[Needing] = [*self.inodes, *(Version(f"{n}", "e", 1) for n in range(2))]
        self.model: dict[Needing, Position] = {}
        self.published: dict[Inode, tuple[ExitStack, Publication, Position | None]] = {}
        self.again: set[Needing] = set()
        self.told: dict[Needing, Position] = {}
        self.next = 1

    @rule(told=st.sets(st.integers(0, 5), max_size=6), is_continued=st.booleans())
    def append(self, told: set[int], is_continued: bool) -> None:
        for number in told:
            thing = self.things[number]
            self.needs.need(thing, at(self.next))
            self.needs.note_told(thing, at(self.next))
            self.model.setdefault(thing, at(self.next))
            if thing in self.again:
                self.told.setdefault(thing, at(self.next))
        if not is_continued:
            self.needs.need_from_where_told_again()
            self.model |= {thing: self.told[thing] for thing in self.told if thing in self.model}
            self.again.clear()
            self.told.clear()
        self.next += 1

    @rule(number=st.integers(0, 3), earlier=st.integers(1, 3))
    def told_of_before(self, number: int, earlier: int) -> None:
        """As of a further name whose inode was in a batch before."""
        since = at(max(1, self.next - earlier))
        self.needs.need(self.inodes[number], since)
        self.model.setdefault(self.inodes[number], since)

    @rule(number=st.integers(0, 3), epoch=st.integers(1, EPOCH - 1))
    def recover(self, number: int, epoch: int) -> None:
        self.needs.recovered(self.inodes[number], Position(epoch, 5))
        self.model[self.inodes[number]] = Position(epoch, 5)

    @rule(number=st.integers(0, 5))
    def forget(self, number: int) -> None:
        self.needs.forget(self.things[number])
        self.model.pop(self.things[number], None)

    @rule(number=st.integers(0, 5))
    def tell_again(self, number: int) -> None:
        thing = self.things[number]
        assert self.needs.tell_again(thing) == (thing not in self.again)
        self.again.add(thing)

    @rule(number=st.integers(0, 3))
    def begin_publication(self, number: int) -> None:
        inode = self.inodes[number]
        if inode not in self.published:
            block = ExitStack()
            publication = block.enter_context(self.needs.publishing(inode))
            self.published[inode] = (block, publication, self.model.pop(inode, None))

    @precondition(lambda self: self.published)
    @rule(succeeds=st.booleans())
    def end_publication(self, succeeds: bool) -> None:
        inode, (block, publication, before) = self.published.popitem()
        publication.has_attributes = succeeds
        block.close()
        if not succeeds and before is not None:
            self.model[inode] = before

    @invariant()
    def cutoff_is_the_oldest_position(self) -> None:
        held = [before for _, _, before in self.published.values() if before is not None]
        assert self.needs.cutoff_before(at(self.next)) == min([at(self.next), *self.model.values(), *held])
        assert self.needs.is_empty == (not self.model and not held)

    @invariant()
    def what_is_to_go_is_told_the_oldest_first(self) -> None:
        self.needs.shorten(at(self.next))
        found = [self.model[thing] for thing in self.needs.to_shorten()]
        assert found == sorted(found)
        before = self.needs.again_before
        assert len(found) == sum(position < before for position in self.model.values())


TestNeedsAgainstDict = NeedsAgainstDict.TestCase


def test_a_publication_that_raises_changes_nothing() -> None:
    needs, inode = new_needs(), new_inode()
    tell(needs, [inode], at(1))
    with suppress(OSError), needs.publishing(inode):
        tell(needs, [inode], at(2))
        assert needs.cutoff_before(at(3)) == at(1)
        raise OSError("no answer")
    assert needs.cutoff_before(at(3)) == at(1)


def test_what_changed_during_a_publication_is_needed_from_there() -> None:
    needs, inode = new_needs(), new_inode()
    tell(needs, [inode], at(1))
    with needs.publishing(inode) as publication:
        tell(needs, [inode], at(2))
        publication.has_attributes = True
    assert needs.cutoff_before(at(3)) == at(2)


def test_a_publication_that_fails_is_put_back_before_what_was_told_again_since() -> None:
    needs, told_again, failed = new_needs(), new_inode(b"1"), new_inode(b"2")
    tell(needs, [told_again], at(1))
    tell(needs, [failed], at(2))
    needs.tell_again(told_again)
    tell(needs, [told_again], at(3))
    with needs.publishing(failed):
        assert needs.cutoff_before(at(4)) == at(2)
    assert needs.cutoff_before(at(4)) == at(2)


def test_an_attempt_elsewhere_keeps_the_batches_that_tell_of_that_name() -> None:
    """A recovery looks for its object only where the log says."""
    needs, inode = new_needs(), new_inode(b"new")
    inode.state.in_doubt.append(("old", {}))
    tell(needs, [inode], at(1))
    needs.tell_again(inode)
    tell(needs, [inode], at(2))
    assert needs.cutoff_before(at(3)) == at(1)
    inode.state.in_doubt[:] = [("new", {}), (".fusefs/moving/1", {})]
    needs.tell_again(inode)
    tell(needs, [inode], at(3))
    assert needs.cutoff_before(at(4)) == at(3)


def test_a_further_name_that_is_told_again_is_needed_from_where_its_inode_is() -> None:
    needs, inode = new_needs(), new_inode()
    alias = Alias(number=0, attributes=inode.attributes, of=inode)
    inode.links = Links(number=1, aliases=[alias])
    tell(needs, [inode, alias], at(1))
    needs.tell_again(inode)
    needs.tell_again(alias)
    needs.note_told(inode, at(2))
    needs.note_told(alias, at(3))
    assert needs.cutoff_before(at(4)) == at(1)
    needs.need_from_where_told_again()
    assert needs.cutoff_before(at(4)) == at(2)
    needs.forget(inode)
    assert needs.cutoff_before(at(4)) == at(2)


def test_what_is_told_again_is_not_most_of_the_log() -> None:
    needs, inode = new_needs(), new_inode()
    tell(needs, [inode], at(1))
    assert needs.limit == LOG_BYTES
    needs.tell_again(inode)
    needs.note_told(inode, at(2), 100 * LOG_BYTES)
    assert needs.limit == 2 * (RECORD_SIZE + 100 * LOG_BYTES)
    needs.shorten(at(9))
    assert needs.again_before < at(1)  # as long as the commit is not whole
    needs.need_from_where_told_again()
    needs.shorten(at(3))
    assert needs.to_shorten() == [inode]
    assert needs.limit == LOG_BYTES


def test_a_log_without_a_limit_has_none() -> None:
    assert LogNeeds(max_log_bytes=math.inf).limit == math.inf


def test_an_older_story_is_kept_in_order_behind_one_that_was_told_again() -> None:
    needs, again, older = new_needs(), new_inode(), new_inode()
    needs.need(again, at(1))
    needs.tell_again(again)
    needs.note_told(again, at(5))
    needs.need_from_where_told_again()
    assert needs.cutoff_before(at(6)) == at(5)
    needs.need(older, at(3))
    assert needs.cutoff_before(at(6)) == at(3)
