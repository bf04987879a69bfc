"""File names for segments of keys: one to one, legal everywhere, and plain wherever they can be."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.escaping import BESIDE_SUFFIX, PRIVATE_NAME, file_name, is_digested, segment_of

SEGMENTS = st.one_of(
    st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), max_size=300),
    st.text(alphabet="%25EF_~=.a", max_size=8),
)


@given(SEGMENTS)
def test_a_name_is_legal_and_leads_back_to_its_segment(segment: str) -> None:
    name = file_name(segment)
    assert 0 < len((name + BESIDE_SUFFIX).encode()) <= 255
    assert name not in {".", "..", PRIVATE_NAME}
    assert "/" not in name
    assert all(ord(character) >= 0x20 for character in name)
    assert not name.endswith(BESIDE_SUFFIX)
    assert is_digested(name) or segment_of(name) == segment


@given(SEGMENTS, SEGMENTS)
def test_no_two_segments_share_a_name(one: str, other: str) -> None:
    assert (file_name(one) == file_name(other)) == (one == other)


@given(SEGMENTS)
def test_a_name_that_no_segment_has_leads_nowhere(name: str) -> None:
    segment = segment_of(name)
    assert segment is None or file_name(segment) == name


@pytest.mark.parametrize(
    "segment", ["plain", "with space", "日本語.txt", ".hidden", "a=b&c", "back\\slash", "..."]
)
def test_common_segments_are_their_own_names(segment: str) -> None:
    assert file_name(segment) == segment


@pytest.mark.parametrize(
    ("segment", "name"),
    [
        ("", "%_"),
        (".", "%2E"),
        ("..", "%2E%2E"),
        ("100%", "100%25"),
        ("line\nfeed", "line%0Afeed"),
        (".fusefs-store", "%2Efusefs-store"),
    ],
)
def test_the_escapes_are_those_of_the_documentation(segment: str, name: str) -> None:
    """They are a format: directories on disk hold these names."""
    assert file_name(segment) == name


def test_a_long_segment_keeps_its_beginning_for_the_reader() -> None:
    name = file_name("beginning-" + "x" * 300)
    assert is_digested(name)
    assert name.startswith("beginning-xxx")
    assert len(name.encode()) <= 253


@pytest.mark.parametrize(
    "name", ["%zz", "%", "100%.txt", "%41", "%0a", ".", "..", PRIVATE_NAME, "%_x", "\udcff"]
)
def test_foreign_names_with_a_percent_belong_to_no_segment(name: str) -> None:
    assert segment_of(name) is None
