"""Which names there are, and which keys they make."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusefs.errors import CrossesReserved, InvalidName, NameTooLong
from fusefs.keys import check_name, join, name_of

names = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1).filter(
    lambda name: name not in (".", "..", ".fusefs") and len(name.encode()) <= 255
)


@given(names)
def test_a_name_becomes_a_segment_and_the_same_name_again(name: str) -> None:
    assert join("d/", name.encode()) == f"d/{name}"
    assert name_of(name) == name.encode()


@pytest.mark.parametrize("letter", ["a", "ä", "𝄞"])
def test_names_have_255_bytes_at_most(letter: str) -> None:
    """Bytes, not characters, as everywhere on Linux."""
    longest = letter * (255 // len(letter.encode()))
    longest += "a" * (255 - len(longest.encode()))
    assert check_name(longest.encode()) == longest
    assert name_of(longest) == longest.encode()
    with pytest.raises(NameTooLong):
        check_name(longest.encode() + b"a")
    assert name_of(longest + "a") is None


@pytest.mark.parametrize("name", [b"\xff", b"caf\xe9", b"\xed\xa0\x80", b"\xc0\xaf"])
def test_bytes_that_are_not_utf8_are_no_name(name: bytes) -> None:
    """Latin-1, surrogates and overlong forms included: no key can hold them."""
    with pytest.raises(InvalidName):
        check_name(name)


def test_only_the_root_reserves_a_name() -> None:
    with pytest.raises(CrossesReserved):
        join("", b".fusefs")
    assert join("d/", b".fusefs") == "d/.fusefs"
    assert join("", b".fusefs2") == ".fusefs2"


@pytest.mark.parametrize("segment", ["", ".", "..", "a\0b", "a/b", "a" * 256])
def test_segments_that_are_no_names(segment: str) -> None:
    assert name_of(segment) is None


def test_a_key_has_room_for_a_markers_slash() -> None:
    """1,023 bytes: a directory of that name has a marker with one more, and S3 takes 1,024."""
    directory = "d" * 200 + "/"
    prefix = directory * 5
    longest = b"n" * (1_023 - len(prefix))
    assert len(join(prefix, longest)) == 1_023
    with pytest.raises(NameTooLong):
        join(prefix, longest + b"n")


def test_a_store_inside_a_prefix_has_shorter_keys() -> None:
    assert join("d/", b"name", max_length=7) == "d/name"
    with pytest.raises(NameTooLong):
        join("d/", b"name", max_length=6)
