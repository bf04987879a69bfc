"""Records of the directory store: a format on disk, and every damage to one is noticed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.directory_records import Version, decode, encode

VERSIONS = st.builds(
    Version,
    etag=st.from_regex(r"[0-9a-f]{32}(-[0-9]{1,5})?", fullmatch=True),
    size=st.integers(0, 5 << 40),
    mtime_ns=st.integers(0, 1 << 62),
    metadata=st.dictionaries(st.from_regex(r"[a-z0-9_.-]{1,9}", fullmatch=True), st.text(), max_size=4),
)


@given(VERSIONS)
def test_a_record_comes_back_as_it_was_given(version: Version) -> None:
    assert decode(encode(version)) == version


@given(VERSIONS, st.data())
def test_a_record_that_was_changed_or_cut_is_refused(version: Version, data: st.DataObject) -> None:
    record = encode(version)
    position = data.draw(st.integers(0, len(record) - 1))
    flipped = bytes([record[position] ^ 1 << data.draw(st.integers(0, 7))])
    for damaged in (record[:position], record[:position] + flipped + record[position + 1 :]):
        with pytest.raises(ValueError, match="wrong format or checksum"):
            decode(damaged)


def test_the_format_is_the_documented_one() -> None:
    """Directories on disk hold it: a change needs another number."""
    version = Version(etag="abc", size=7, mtime_ns=9, metadata={"mode": "33188", "note": "ü\n"})
    body = "abc 7 9\nmode 5\n33188\nnote 3\nü\n\n".encode()
    assert encode(version).partition(b"\n")[2] == body
    assert encode(version).startswith(b"1 ")


def test_two_kibibytes_of_metadata_fit_where_a_file_system_gives_four() -> None:
    version = Version(etag="a" * 38, size=1, mtime_ns=1, metadata={"x": "\n" * 2_047})
    assert len(encode(version)) < 2_300
