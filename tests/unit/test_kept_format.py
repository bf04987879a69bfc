"""The trailer of a kept file comes back as it was written, or not at all."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.base import KIB, MIB, TIB
from fusefs.kept_format import KeptVersion, decode, encode

VERSION: Final = KeptVersion(store="s3://bucket/prefix", key="d/ü", etag="0123-4", size=1 * MIB)
#: 1 MiB has eight blocks.
checksums = st.dictionaries(st.integers(0, 7), st.integers(0, 2**32 - 1))


@given(checksums=checksums)
def test_round_trip(checksums: dict[int, int]) -> None:
    trailer = encode(VERSION, checksums)
    assert decode(trailer, VERSION) == checksums
    assert len(trailer) <= VERSION.max_trailer_size


@given(checksums=checksums, data=st.data())
def test_a_trailer_that_was_changed_or_cut_is_refused(checksums: dict[int, int], data: st.DataObject) -> None:
    trailer = bytearray(encode(VERSION, checksums))
    with pytest.raises(ValueError, match=r"it |its "):
        decode(bytes(trailer[: data.draw(st.integers(0, len(trailer) - 1))]), VERSION)
    trailer[data.draw(st.integers(0, len(trailer) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(ValueError, match=r"it |its "):
        decode(bytes(trailer), VERSION)


@pytest.mark.parametrize(
    "other",
    [
        replace(VERSION, store="s3://other"),
        replace(VERSION, key="d/u"),
        replace(VERSION, etag="0123-5"),
        replace(VERSION, size=1 * MIB + 1),
    ],
)
def test_the_trailer_of_something_else_is_refused(other: KeptVersion) -> None:
    assert other.file_name != VERSION.file_name
    with pytest.raises(ValueError, match="another object"):
        decode(encode(other, {}), VERSION)


def test_blocks_that_the_object_does_not_have_are_left_out() -> None:
    assert decode(encode(VERSION, {7: 1, 8: 2}), VERSION) == {7: 1}


def test_the_largest_key_fits() -> None:
    largest = KeptVersion(store="s3://b", key="\x01" * KIB, etag="e" * 100, size=5 * TIB)
    assert len(encode(largest, {})) < largest.max_trailer_size
