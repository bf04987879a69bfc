"""Which blocks have a checksum, against a model that knows the bytes of a file and those of its disk."""

from __future__ import annotations

from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusefs import block_checksums
from fusefs.block_checksums import BlockChecksums, whole_blocks

BLOCK: Final = 8
SIZE: Final = 60


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block_checksums, "BLOCK_SIZE", BLOCK)


class Model:
    """A file of `SIZE` bytes, and which of its blocks have a checksum."""

    def __init__(self) -> None:
        self.checksums = BlockChecksums()
        self.data = bytearray(range(SIZE))
        self.known: set[int] = set()

    def blocks(self, start: int, end: int) -> set[int]:
        """Return the blocks that a range touches."""
        return {offset // BLOCK for offset in range(start, end)}

    def record(self, start: int, end: int) -> None:
        self.checksums.record(start, self.data[start:end], SIZE)
        self.known |= {
            number
            for number in self.blocks(start, end)
            if start <= number * BLOCK and end >= min((number + 1) * BLOCK, SIZE)
        }

    def forget(self, start: int, end: int) -> None:
        assert self.checksums.forget(start, end) == []
        self.known -= self.blocks(start, end)

    def damage(self, start: int, end: int) -> None:
        for offset in range(start, end):
            self.data[offset] ^= 1
        wide = self.checksums.widened(start, end, SIZE)
        assert wide.start <= start
        assert end <= wide.end
        found = self.checksums.damaged(wide.start, self.data[wide.start : wide.end], SIZE)
        assert {block.start // BLOCK for block in found} == self.known & self.blocks(start, end)
        for offset in range(start, end):
            self.data[offset] ^= 1


ranges = st.tuples(st.integers(0, SIZE), st.integers(0, SIZE)).map(sorted).map(tuple)
steps = st.lists(st.tuples(st.sampled_from(["record", "record", "forget", "damage"]), ranges), max_size=30)


@settings(max_examples=300)
@given(work=steps)
def test_every_damaged_block_with_a_checksum_is_found_and_no_other(
    work: list[tuple[str, tuple[int, int]]],
) -> None:
    model = Model()
    for name, (start, end) in work:
        if start < end:
            getattr(model, name)(start, end)
        assert set(model.checksums.by_block) == model.known
        assert {extent.start // BLOCK for extent in model.checksums.extents(SIZE)} == model.known
        lacking = model.checksums.lacking(0, SIZE, SIZE)
        assert {extent.start // BLOCK for extent in lacking} == model.blocks(0, SIZE) - model.known


def kept(data: bytes) -> BlockChecksums:
    recorded = BlockChecksums()
    recorded.record(0, data, len(data))
    return BlockChecksums(recorded.by_block)


def test_a_kept_block_is_proved_when_it_is_read() -> None:
    checksums = kept(bytes(20))
    assert not checksums.all_proved
    assert checksums.damaged(0, bytes(16), 20) == []
    assert not checksums.all_proved
    assert checksums.damaged(16, bytes(4), 20) == []
    assert checksums.all_proved


def test_what_is_left_of_an_unproved_block_is_not_to_be_trusted() -> None:
    """The whole block, also beyond what changes; one that was read is known to be right, and is not named."""
    checksums = kept(bytes(40))
    assert checksums.damaged(8, bytes(8), 40) == []
    assert checksums.forget(10, 26) == [(16, 24), (24, 32)]
    assert sorted(checksums.by_block) == [0, 4]
    assert checksums.forget(10, 26) == []


@given(start=st.integers(0, SIZE), end=st.integers(0, SIZE))
def test_whole_blocks(start: int, end: int) -> None:
    expected = [
        number
        for number in range(-(-SIZE // BLOCK))
        if start <= number * BLOCK and min((number + 1) * BLOCK, SIZE) <= end
    ]
    assert list(whole_blocks(start, end, SIZE)) == expected


def test_nothing_has_no_checksum() -> None:
    checksums: Any = BlockChecksums()
    assert not checksums
    assert checksums.all_proved
    assert checksums.widened(3, 5, SIZE) == (3, 5)
    assert list(whole_blocks(0, 0, 0)) == []
