"""What is kept of entries that nobody has looked at: all of it comes back, and it takes little room."""

from __future__ import annotations

import stat
import struct
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusefs.attributes import Attributes
from fusefs.extended_attributes import encode, object_key
from fusefs.listed import ListedDirectory, ListedObject, Remembered, outline_of

ids = st.integers(0, 2**32 - 1)
times = st.integers(-(2**63), 2**63 - 1)
attributes = st.builds(
    Attributes,
    mode=st.integers(1, 2**32 - 1),
    uid=ids,
    gid=ids,
    rdev=ids,
    atime_ns=times,
    mtime_ns=times,
    ctime_ns=times,
    xattrs=st.sampled_from(["", encode({b"user.a": b"value"}), "@" + "a" * 64]),
)
remembered = st.builds(Remembered, st.integers(0, 2**64 - 1), attributes, st.binary(max_size=50))


@given(st.integers(0, 2**63), times, st.text(max_size=50), st.none() | remembered)
def test_everything_comes_back(size: int, stored_at_ns: int, etag: str, known: Remembered | None) -> None:
    entry = ListedObject.pack(size=size, stored_at_ns=stored_at_ns, etag=etag, remembered=known)
    assert (entry.size, entry.stored_at_ns, entry.etag, entry.remembered) == (
        size,
        stored_at_ns,
        etag,
        known,
    )
    assert entry.number == (known.number if known is not None else None)
    assert entry.checked() == (entry.number, entry.mode)


@given(remembered)
def test_a_number_without_attributes(known: Remembered) -> None:
    listed = ListedObject.pack(size=1, stored_at_ns=2, etag="x")
    memory = ListedObject.pack(size=3, stored_at_ns=4, etag="y", remembered=known)
    assert listed.with_memory_of(memory) == ListedObject.pack(
        size=1, stored_at_ns=2, etag="x", remembered=known
    )
    numbered = listed.with_number_of(memory)
    assert (numbered.number, numbered.remembered) == (known.number, None)
    assert listed.with_number_of(listed) is listed


def test_long_extended_attributes_are_referred_to() -> None:
    text = encode({b"user.a": bytes(60_000)})
    known = Remembered(2, Attributes(mode=1, uid=0, gid=0, atime_ns=0, mtime_ns=0, ctime_ns=0, xattrs=text))
    entry = ListedObject.pack(size=0, stored_at_ns=0, etag="", remembered=known)
    assert len(entry) < 300
    assert entry.remembered is not None
    assert object_key(entry.remembered.attributes.xattrs) == object_key(text)


def test_a_time_that_has_no_room() -> None:
    known = Remembered(2, Attributes(mode=0, uid=0, gid=0, atime_ns=2**63, mtime_ns=0, ctime_ns=0))
    with pytest.raises(struct.error):
        ListedObject.pack(size=0, stored_at_ns=0, etag="", remembered=known)


def test_an_entry_is_small() -> None:
    entry = ListedObject.pack(size=2**40, stored_at_ns=2**60, etag="d41d8cd98f00b204e9800998ecf8427e")
    assert sys.getsizeof(entry) <= 100


@pytest.mark.parametrize(
    ("entry", "kind"),
    [
        (ListedDirectory.pack(size=0, stored_at_ns=0, etag=""), stat.S_IFDIR),
        (ListedObject.pack(size=4_096, stored_at_ns=0, etag=""), stat.S_IFREG),
        (ListedObject.pack(size=4_095, stored_at_ns=0, etag=""), 0),
        (ListedObject.pack(size=0, stored_at_ns=0, etag=""), 0),
    ],
)
def test_the_kind_that_a_listing_tells(entry: ListedObject | ListedDirectory, kind: int) -> None:
    """A link has a target of up to 4,095 bytes, and a fifo is empty: only the metadata says that it is one."""
    assert outline_of(entry) == (None, kind)


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFREG])
def test_the_kind_that_is_remembered(kind: int) -> None:
    known = Remembered(7, Attributes(mode=kind | 0o600, uid=0, gid=0, atime_ns=0, mtime_ns=0, ctime_ns=0))
    entry = ListedObject.pack(size=1, stored_at_ns=0, etag="e", remembered=known)
    assert outline_of(entry) == (7, kind)
    assert outline_of(ListedObject.pack(size=1, stored_at_ns=0, etag="e").with_number_of(entry)) == (7, 0)
