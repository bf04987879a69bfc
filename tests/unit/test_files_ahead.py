"""Which small files are fetched ahead: those that whoever goes through a directory will come to, and few in vain."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusefs.files_ahead import FIRST_UNUSED, GROWTH, SHARE_GROWTH, FilesAhead

NAMES = [b"%d" % number for number in range(1_000)]
MUCH = 1 << 40


def number_of(name: bytes) -> int:
    return Random(name).getrandbits(63)


def read(
    names: Sequence[bytes], opened: Sequence[bytes], *, size: int = 1, max_cost: int = MUCH
) -> tuple[int, set[bytes]]:
    """Open files in turn; return how many had not been fetched before, and what was fetched and not opened."""
    ahead = FilesAhead(lambda: names, number_of)
    fetched: set[bytes] = set()
    known: set[bytes] = set()
    missed = 0
    for name in opened:
        missed += name not in known
        taken = ahead.opened(name, lambda after: None if after in known else size, max_cost=max_cost)
        known.add(name)
        assert not known.intersection(taken), "what is known is not fetched again"
        known.update(taken)
        fetched.update(taken)
        fetched.discard(name)
        assert len(fetched) * size < max_cost + size
    return missed, fetched


@pytest.mark.parametrize(
    "key", [None, int, number_of], ids=["by name", "as numbers count", "by inode number"]
)
def test_who_opens_all_files_in_an_order_waits_for_the_first_few(key: Callable[[bytes], int] | None) -> None:
    missed, unused = read(NAMES, sorted(NAMES, key=key))
    assert missed <= 10
    assert len(unused) <= FIRST_UNUSED


def test_who_opens_all_files_in_no_order_waits_for_a_part_of_them() -> None:
    missed, unused = read(NAMES, Random(1).sample(NAMES, len(NAMES)))
    assert missed < len(NAMES) / 8
    assert not unused


def test_not_every_file_is_opened_and_some_are_overtaken() -> None:
    names = sorted(NAMES)
    opened = [
        name for start in range(0, 1_000, 10) for name in (names[start + 4], names[start], names[start + 7])
    ]
    missed, unused = read(NAMES, opened)
    assert missed <= 6
    assert len(unused) > 600


def test_single_files_out_of_a_large_directory_are_not_paid_for_with_others() -> None:
    names = [b"%d" % number for number in range(100_000)]
    _, unused = read(names, Random(1).sample(names, 100))
    assert len(unused) <= FIRST_UNUSED


def test_it_ends_where_nothing_that_was_fetched_is_opened() -> None:
    """Neighbours that were fetched in vain, again and again, are no reason to go on."""
    names = sorted(NAMES)
    ahead = FilesAhead(lambda: names, number_of)
    fetched = 0
    for start in range(0, 200, 100):
        for name in names[start : start + 2]:
            fetched += len(ahead.opened(name, lambda _: 1, max_cost=MUCH))
    assert fetched == FIRST_UNUSED


def test_one_open_is_nothing_to_go_by() -> None:
    assert read(NAMES, NAMES[:1]) == (1, set())
    assert read(NAMES, NAMES[:1] * 2)[1] == set(), "the same file again"


def test_a_few_files_that_are_opened_again_and_again_are_no_share_of_a_directory() -> None:
    assert read(NAMES, [NAMES[10], NAMES[500], NAMES[900]] * 100)[1] == set()


def test_what_was_made_since_is_no_neighbour() -> None:
    assert read(NAMES, [b"new", b"newer"])[1] == set()


@given(
    names=st.lists(st.binary(min_size=1, max_size=5), min_size=1, max_size=60, unique=True),
    choices=st.lists(st.integers(0, 1_000), max_size=80),
    size=st.integers(1, 1_000),
    max_cost=st.integers(0, 10_000),
)
def test_whatever_is_opened_what_is_fetched_in_vain_is_bounded(
    names: list[bytes], choices: list[int], size: int, max_cost: int
) -> None:
    opened = [names[choice % len(names)] for choice in choices]
    _, unused = read(names, opened, size=size, max_cost=max_cost)
    assert unused <= set(names)
    assert len(unused) <= max(FIRST_UNUSED + GROWTH * len(opened), SHARE_GROWTH * len(opened))


def test_where_somebody_is_expected_the_first_are_fetched_before_they_come() -> None:
    names = sorted(NAMES)
    ahead = FilesAhead(lambda: names, number_of, is_expected=True)
    assert ahead.expect(lambda _: 1, max_cost=MUCH) == names[:FIRST_UNUSED]
    for name in names[:FIRST_UNUSED]:
        ahead.opened(name, lambda _: None, max_cost=MUCH)
    assert ahead.is_of_use
    assert read(names, names[:1])[1] == set(), "nobody is expected elsewhere"


def test_where_somebody_is_expected_the_first_open_is_enough() -> None:
    ahead = FilesAhead(lambda: NAMES, number_of, is_expected=True)
    assert len(ahead.opened(b"0", lambda name: None if name == b"0" else 1, max_cost=MUCH)) == FIRST_UNUSED


def test_a_directory_with_little_in_it_hands_on_what_is_expected() -> None:
    for is_expected in (True, False):
        ahead = FilesAhead(lambda: [b"only"], number_of, is_expected=is_expected)
        ahead.opened(b"only", lambda _: None, max_cost=MUCH)
        assert ahead.is_of_use is is_expected


@pytest.mark.parametrize(("others", "is_of_use"), [([], True), ([b"c", b"z"], False)])
def test_who_has_opened_the_two_files_that_there_are_reads_them_all(
    others: list[bytes], is_of_use: bool
) -> None:
    ahead = FilesAhead(lambda: [b"a", b"b", *others], number_of)
    for name in (b"a", b"b"):
        ahead.opened(name, lambda _: 1, max_cost=0)
    assert ahead.is_of_use is is_of_use


def test_who_has_opened_the_only_file_twice_need_not_read_others() -> None:
    ahead = FilesAhead(lambda: [b"a"], number_of)
    for _ in range(2):
        ahead.opened(b"a", lambda _: 1, max_cost=0)
    assert not ahead.is_of_use
