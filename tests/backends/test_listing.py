"""Cutting pages: against the plain definition, for any set of names."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.errors import InvalidRequest
from backends.listing import cut_page, parse_query

KEYS = st.sets(st.text(alphabet="ab/é😀", min_size=1, max_size=6), max_size=30)
SHORT = st.text(alphabet="ab/", max_size=3)


def expected_names(keys: set[str], prefix: str, delimiter: str, start_after: str) -> list[str]:
    """The listing by its definition: roll every key up, then leave out what is not after `start_after`."""
    names = set()
    for key in keys:
        if key.startswith(prefix):
            found = key.find(delimiter, len(prefix)) if delimiter else -1
            names.add(key if found < 0 else key[: found + len(delimiter)])
    return sorted((name for name in names if name.encode() > start_after.encode()), key=str.encode)


@given(keys=KEYS, prefix=SHORT, delimiter=SHORT, start_after=SHORT, page_size=st.integers(1, 7))
def test_the_pages_together_are_the_listing(
    keys: set[str], prefix: str, delimiter: str, start_after: str, page_size: int
) -> None:
    candidates = sorted(key.encode() for key in keys if key.startswith(prefix))
    names: list[str] = []
    token: str | None = None
    while True:
        query = parse_query(
            prefix, delimiter=delimiter, start_after=start_after, page_token=token, page_size=page_size
        )
        cut = cut_page(iter(candidates), query)
        assert len(cut.keys) + len(cut.prefixes) <= page_size
        assert set(cut.keys) <= keys
        names += sorted([*cut.keys, *cut.prefixes], key=str.encode)
        token = cut.next_token
        if token is None:
            break
        assert len(cut.keys) + len(cut.prefixes) == page_size
    assert names == expected_names(keys, prefix, delimiter, start_after)


def test_no_more_is_drawn_than_one_name_beyond_the_page() -> None:
    """A store may make its candidates as they are asked for."""
    candidates = iter([b"a", b"b", b"c", b"d"])
    cut_page(candidates, parse_query("", delimiter="", start_after="", page_token=None, page_size=2))
    assert list(candidates) == [b"d"]


@pytest.mark.parametrize("page_size", [0, -1, 1_001])
def test_page_sizes_outside_the_limits_are_refused(page_size: int) -> None:
    with pytest.raises(InvalidRequest):
        parse_query("", delimiter="", start_after="", page_token=None, page_size=page_size)


@pytest.mark.parametrize("token", ["not base64!", "a", "ü"])
def test_a_token_of_another_kind_is_refused(token: str) -> None:
    with pytest.raises(InvalidRequest):
        parse_query("", delimiter="", start_after="", page_token=token, page_size=1)
