"""Which names there are, which keys they make, and how what cannot be both is written."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fusefs.errors import CrossesReserved, NameTooLong
from fusefs.keys import check_name, join, name_of, name_of_file_beside, segment_of

MARKS = ["%bytes-", "%key-", "%file-"]

plain_names = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1).filter(
    lambda name: (
        name not in (".", "..", ".fusefs") and len(name.encode()) <= 255 and not name.startswith(tuple(MARKS))
    )
)
#: What goes wrong goes wrong where escapes are escaped.
pieces = st.sampled_from(
    [*MARKS, "%", "%25", "%2E", "%FF", "%00", "%ff", ".", "..", "x", "é", "", "\0", "%2F"]
)
segments = st.one_of(st.lists(pieces).map("".join), st.text(st.characters(exclude_categories=["Cs"]))).filter(
    lambda segment: "/" not in segment
)
names = st.one_of(
    segments.map(str.encode),
    st.lists(st.one_of(pieces.map(str.encode), st.sampled_from([b"\xff", b"\xc3", b"\xed\xa0\x80"]))).map(
        b"".join
    ),
    st.binary(min_size=1, max_size=255),
).filter(lambda name: name not in (b"", b".", b"..") and not {0, 47} & set(name) and len(name) <= 255)


@given(plain_names)
def test_a_name_becomes_a_segment_and_the_same_name_again(name: str) -> None:
    assert join("d/", name.encode()) == f"d/{name}"
    assert name_of(name) == name.encode()
    assert segment_of(name.encode()) == name


@given(names)
@example(b"%key-%25bytes-")
@example(b"%key-%25key-a")
@example(b"%file-%file-a")
def test_every_name_has_a_segment_under_which_it_is_found_again(name: bytes) -> None:
    segment = segment_of(name)
    assert "/" not in segment
    assert name in (name_of(segment), name_of_file_beside(segment))


@given(segments)
@example("%bytes-%25key-")
@example("%bytes-%25file-a")
@example("%bytes-a")
@example("%key-")
def test_every_segment_has_a_name_that_means_it(segment: str) -> None:
    """Or the name would be too long, for which there is no name."""
    for name in (name_of(segment), name_of_file_beside(segment)):
        if name is not None:
            check_name(name)
            assert name not in (b"", b".", b"..")
            assert not {0, 47} & set(name)
            assert segment_of(name) == segment
    assert name_of(segment) is not None or len(segment.encode()) > 80


@pytest.mark.parametrize("letter", ["a", "ä", "𝄞"])
def test_names_have_255_bytes_at_most(letter: str) -> None:
    """Bytes, not characters, as everywhere on Linux."""
    longest = letter * (255 // len(letter.encode()))
    longest += "a" * (255 - len(longest.encode()))
    check_name(longest.encode())
    assert name_of(longest) == longest.encode()
    with pytest.raises(NameTooLong):
        check_name(longest.encode() + b"a")
    assert name_of(longest + "a") is None


@pytest.mark.parametrize(
    ("name", "segment"),
    [
        (b"caf\xe9", "%bytes-caf%E9"),
        (b"\xff", "%bytes-%FF"),
        (b"\xed\xa0\x80", "%bytes-%ED%A0%80"),
        (b"\xc0\xaf", "%bytes-%C0%AF"),
        (b"100%\xff", "%bytes-100%25%FF"),
        ("ä\udcff".encode(errors="surrogateescape"), "%bytes-ä%FF"),
        (b"100%", "100%"),
        (b"%41", "%41"),
        (b"%bytes-%FF", "%bytes-%25bytes-%25FF"),
        (b"%key-a", "%bytes-%25key-a"),
    ],
)
def test_names_that_are_no_segments(name: bytes, segment: str) -> None:
    """Latin-1, surrogates and overlong forms, and what looks like an escaped name or segment."""
    assert join("d/", name) == f"d/{segment}"
    assert name_of(segment) == name


@pytest.mark.parametrize(
    ("segment", "name"),
    [
        ("", b"%key-"),
        (".", b"%key-%2E"),
        ("..", b"%key-%2E%2E"),
        ("a\0b", b"%key-a%00b"),
        ("%bytes-", b"%key-%25bytes-"),
        ("%bytes-a", b"%key-%25bytes-a"),
        ("%bytes-%ff", b"%key-%25bytes-%25ff"),
        ("%key-%2E", b"%key-%25key-%252E"),
        ("%file-a", b"%key-%25file-a"),
    ],
)
def test_segments_that_are_no_names(segment: str, name: bytes) -> None:
    """Each has a name by which it is found, and no new entry gets that name."""
    assert name_of(segment) == name
    assert segment_of(name) == segment
    with pytest.raises(CrossesReserved):
        join("d/", name)


def test_a_file_beside_a_directory_has_a_name_of_its_own() -> None:
    assert name_of_file_beside("x") == b"%file-x"
    assert name_of_file_beside("..") == b"%file-%key-%2E%2E"
    assert name_of_file_beside("n" * 250) is None
    assert segment_of(b"%file-x") == "x"
    with pytest.raises(CrossesReserved):
        join("d/", b"%file-x")


def test_only_the_root_reserves_a_name() -> None:
    with pytest.raises(CrossesReserved):
        join("", b".fusefs")
    assert join("d/", b".fusefs") == "d/.fusefs"
    assert join("", b".fusefs2") == ".fusefs2"


def test_a_key_has_room_for_a_markers_slash() -> None:
    """1,023 bytes: a directory of that name has a marker with one more, and S3 takes 1,024."""
    directory = "d" * 200 + "/"
    prefix = directory * 5
    longest = b"n" * (1_023 - len(prefix))
    assert len(join(prefix, longest)) == 1_023
    with pytest.raises(NameTooLong):
        join(prefix, longest + b"n")


def test_escaped_names_take_more_room_in_a_key() -> None:
    assert join("d/", b"\xff" * 255) == "d/%bytes-" + "%FF" * 255
    with pytest.raises(NameTooLong):
        join("d/" * 200, b"\xff" * 255)


def test_a_store_inside_a_prefix_has_shorter_keys() -> None:
    assert join("d/", b"name", max_length=7) == "d/name"
    with pytest.raises(NameTooLong):
        join("d/", b"name", max_length=6)
