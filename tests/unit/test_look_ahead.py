"""Which entries are looked up ahead: those that whoever goes through all of them will come to."""

from __future__ import annotations

from random import Random

from fusefs.look_ahead import FEWEST_SORTED, MAX_WINDOW, LookAhead

SMALL = [b"f%05d" % number for number in range(1_000)]
LARGE = [b"f%05d" % number for number in range(FEWEST_SORTED + 1)]


def number_of(name: bytes) -> int:
    return Random(name).getrandbits(63)


def look_up(ahead: LookAhead, names: list[bytes]) -> list[int]:
    """Look names up in turn, those that are known already without asking; return how many each question gained."""
    known: set[bytes] = set()
    gained = []

    def is_unknown(name: bytes) -> bool:
        return name not in known

    for name in names:
        if name not in known:
            following = ahead.next_after(name, is_unknown) or []
            known |= {name, *following}
            gained.append(len(following))
    return gained


def test_in_order_of_the_listing() -> None:
    gained = look_up(LookAhead(SMALL, number_of), SMALL)
    assert gained[:3] == [4, 16, 64]
    assert max(gained) == MAX_WINDOW
    assert len(gained) == 11


def test_a_reader_that_waits_for_each_gets_no_more_than_one_that_finds_them() -> None:
    """What is under way is wanted still; the window grows when it has been gone through, and is filled up before."""
    ahead = LookAhead(SMALL, number_of)
    ends = [
        SMALL.index(following[-1]) - place if (following := ahead.next_after(name, lambda _: True)) else 0
        for place, name in enumerate(SMALL[:200])
    ]
    assert ends[:6] == [4, 4, 4, 4, 4, 16]
    assert [place for place, end in enumerate(ends) if end][5:12] == [5, 9, 13, 17, 21, 22, 38]
    assert max(ends) == MAX_WINDOW


def test_in_order_of_numbers_where_programs_sort_by_them() -> None:
    in_order = sorted(LARGE, key=number_of)
    assert len(look_up(LookAhead(LARGE, number_of), in_order)) < 100


def test_a_small_directory_is_not_sorted_by_numbers() -> None:
    in_order = sorted(SMALL, key=number_of)
    assert sum(look_up(LookAhead(SMALL, number_of), in_order[:100])) < 200


def test_single_files_out_of_a_large_directory_are_not_paid_for_with_others() -> None:
    names = Random(1).sample(LARGE, 500)
    assert sum(look_up(LookAhead(LARGE, number_of), names)) < 500


def test_names_that_are_not_in_the_listing() -> None:
    assert look_up(LookAhead(SMALL, number_of), [b"a", b"z", b"f00000x"]) == [0, 0, 0]


def test_only_what_is_wanted() -> None:
    ahead = LookAhead(SMALL, number_of)
    assert ahead.next_after(SMALL[0], lambda name: name == SMALL[7]) == [SMALL[7]]
