"""Extended attributes as text: what s3fs reads and writes, and more than it can."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusefs.extended_attributes import (
    INLINE_LIMIT,
    decode,
    encode,
    from_metadata,
    is_reference,
    left_keys,
    left_metadata,
    loaded,
    named,
    object_key,
    own_key,
    shared,
    to_metadata,
)

names = st.binary(min_size=1, max_size=40).filter(lambda name: 0 not in name)
attributes = st.dictionaries(names, st.binary(max_size=100), max_size=8)


@given(attributes)
def test_text_says_what_it_was_made_of(found: dict[bytes, bytes]) -> None:
    text = encode(found)
    assert decode(text) == found
    assert text.isascii()
    assert (text == "") == (not found)


def test_the_form_of_s3fs() -> None:
    """As s3fs 1.90 has stored it."""
    text = "%7B%22user.a%22%3A%22AP8gdmFsdWU%3D%22%2C%22user.%C3%A4%22%3A%22cQ%3D%3D%22%7D"
    found = {b"user.a": b"\x00\xff value", "user.ä".encode(): b"q"}
    assert decode(text) == found
    assert encode(found) == text


def test_names_that_s3fs_writes_without_escapes() -> None:
    """A quote in a name is a quote in the text, which is not JSON then."""
    text = "%7B%22user.a%22%3A%22AP8%3D%22%2C%22user.%C3%A4%22%22%3A%22cQ%3D%3D%22%7D"
    assert decode(text) == {b"user.a": b"\x00\xff", 'user.ä"'.encode(): b"q"}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "%7B%7D",
        "%7B",
        "garbage",
        "%5B1%5D",
        "%7B%22user.a%22%3A%22!%22%7D",
        "%7B%22user.a%22%3A%22%C3%A9%22%7D",
        "[" * 2_000,
    ],
    ids=str.__len__,
)
def test_what_nobody_can_read_is_left_out(text: str) -> None:
    assert decode(text) == {}


@pytest.mark.parametrize("size", [0, 1, INLINE_LIMIT // 2, 10_000, 65_536])
def test_long_texts_are_objects_of_their_own(size: int) -> None:
    text = encode({b"user.a": b"x" * size})
    metadata = to_metadata(text)
    if len(text) <= INLINE_LIMIT:
        assert metadata == {"xattr": text}
        assert from_metadata(metadata) == text
        assert object_key(text) is None
    else:
        digest = hashlib.sha256(text.encode()).hexdigest()
        assert metadata == {"xattr-object": digest}
        reference = from_metadata(metadata)
        assert is_reference(reference)
        assert to_metadata(reference) == metadata, "a file is copied with the reference alone"
        assert object_key(text) == object_key(reference) == f".fusefs/xattrs/{digest}"


def test_a_new_text_has_a_name_of_its_own() -> None:
    """By which a file refers to its object, and which says whether others may do so, too."""
    plain = encode({b"user.a": b"x" * 10_000})
    text = named(plain)
    assert text != named(plain)
    assert decode(text) == decode(plain)
    reference = from_metadata(to_metadata(text))
    assert own_key(text) == object_key(text) == own_key(reference) == object_key(reference)
    for it in (text, reference):
        assert own_key(shared(it)) is None
        assert shared(shared(it)) == shared(it)
        assert object_key(shared(it)) == object_key(it)
        assert is_reference(shared(it)) == is_reference(it)
        assert from_metadata(to_metadata(shared(it))) == shared(reference)
    assert loaded(text, reference) == text
    assert loaded(text, shared(reference)) == shared(text)
    assert decode(shared(text)) == decode(plain)


@pytest.mark.parametrize("text", ["", "%7B%22user.a%22%3A%22AP8%3D%22%7D"])
def test_a_short_text_needs_none(text: str) -> None:
    assert named(text) == text
    assert shared(text) == text
    assert own_key(text) is None


def test_texts_that_earlier_versions_have_stored() -> None:
    """Several files may refer to the object, whose name is the text's digest."""
    plain = encode({b"user.a": b"x" * 10_000})
    reference = from_metadata(to_metadata(plain))
    assert own_key(plain) is None
    assert own_key(reference) is None
    assert loaded(plain, reference) == plain


def test_a_long_text_of_s3fs_stays_in_the_metadata() -> None:
    """What a reference means is an object that somebody has written: here nobody has."""
    plain = encode({b"user.a": b"x" * 900})
    assert len(plain) > INLINE_LIMIT
    text = from_metadata({"xattr": plain})
    assert decode(text) == decode(plain)
    assert object_key(text) is None
    assert shared(text) == text
    for _ in range(2):
        assert to_metadata(text) == {"xattr": plain}
        text = from_metadata({"xattr": text})  # as the log has it
    assert to_metadata(named(encode(decode(text)))).keys() == {"xattr-object"}


def test_what_is_left_of_earlier_ones() -> None:
    keys = [f".fusefs/xattrs/{digit * 32}" for digit in "ab"]
    assert left_keys(left_metadata(keys)) == keys
    assert left_metadata([]) == {}
    assert left_keys({}) == []
    assert left_keys({"xattr-left": "../lease"}) == []


def test_no_attributes_are_no_metadata() -> None:
    assert to_metadata("") == {}
    assert from_metadata({}) == ""
    assert from_metadata({"xattr-object": "../lease"}) == "", "only a digest is a reference"
    assert from_metadata({"xattr": "@../lease"}) == "", "a text is none"
