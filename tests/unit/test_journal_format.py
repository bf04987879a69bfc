"""The log's bytes: what was encoded is decoded, and whatever else is there is recognised as damaged."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusefs.extents import Extent
from fusefs.journal_format import DamagedBatch, batch_key, decode, encode, position_of
from fusefs.log_records import (
    CONTINUED,
    SEAL,
    Batch,
    ContentRecord,
    InodeRecord,
    InUseRecord,
    LeftoverRecord,
    Position,
    StoredPart,
    UploadReference,
    Written,
)
from fusefs.versions import Version

NUMBERS: Final = st.integers(0, 2**63 - 1)
KEYS: Final = st.text(max_size=20)
NAMES: Final = st.binary(min_size=1, max_size=10)
EXTENTS: Final = st.builds(
    lambda start, length: Extent(start, start + length), NUMBERS, st.integers(1, 2**40)
)
VERSIONS: Final = st.builds(Version, KEYS, KEYS, NUMBERS)
UPLOADS: Final = st.builds(
    UploadReference,
    key=KEYS,
    upload_id=KEYS,
    parts=st.lists(st.builds(StoredPart, NUMBERS, KEYS, NUMBERS, NUMBERS), max_size=3).map(tuple),
)
CONTENTS: Final = st.builds(
    ContentRecord,
    size=NUMBERS,
    cut=st.none() | NUMBERS,
    written=st.lists(st.builds(Written, NUMBERS, st.binary(max_size=50)), max_size=3).map(tuple),
    zeros=st.lists(EXTENTS, max_size=3).map(tuple),
    referred=st.lists(EXTENTS, max_size=3).map(tuple),
    upload=st.none() | UPLOADS,
)
INODES: Final = st.builds(
    InodeRecord,
    log_id=KEYS,
    number=NUMBERS,
    path=st.none() | st.lists(NAMES, max_size=4).map(tuple),
    metadata=st.dictionaries(KEYS, KEYS, max_size=3),
    version=st.none() | VERSIONS,
    target=st.none() | st.binary(max_size=20),
    content=st.none() | CONTENTS,
    link=st.none() | KEYS,
    source=st.none() | KEYS,
)
POSITIONS: Final = st.builds(Position, st.integers(1, 2**40), st.integers(1, 2**40))
BATCHES: Final = st.builds(
    Batch,
    position=POSITIONS,
    cutoff=POSITIONS,
    acknowledged=NUMBERS,
    records=st.lists(
        INODES | st.builds(LeftoverRecord, VERSIONS) | st.builds(InUseRecord, VERSIONS), max_size=4
    ).map(tuple),
    flags=st.sampled_from([0, CONTINUED, SEAL]),
)

EXAMPLE: Final = Batch(
    position=Position(2, 7),
    cutoff=Position(2, 3),
    acknowledged=5,
    records=(
        InodeRecord(
            log_id="2-1",
            number=4711,
            path=(b"d", b"new"),
            metadata={"mode": "33152"},
            content=ContentRecord(size=12, written=(Written(8, b"data"),), zeros=(Extent(0, 8),)),
        ),
        LeftoverRecord(Version("d/old", "e0", 3)),
    ),
)

RECORDS_OF_EXAMPLE: Final = (
    bytes.fromhex("00000084 0000000000000004 7be4bd1c")
    + b'{"inode":"2-1","number":4711,"path":["d","new"],"metadata":{"mode":"33152"},'
    + b'"content":{"size":12,"written":[[8,4]],"zeros":[[0,8]]}}'
    + b"data"
    + bytes.fromhex("0000001d 0000000000000000 740b1b5f")
    + b'{"leftover":["d/old","e0",3]}'
)

WORKED_EXAMPLE: Final = (
    b"FUSEFSJ3"
    + bytes.fromhex("0000000000000002 0000000000000007 0000000000000002 0000000000000003 0000000000000005")
    + bytes.fromhex("00000000 00000002 00000000000000c5 58183bec")
    + RECORDS_OF_EXAMPLE
)

EXAMPLE_OF_AN_EARLIER_VERSION: Final = (
    b"FUSEFSJ1"
    + bytes.fromhex("0000000000000002 0000000000000007 0000000000000002 0000000000000003")
    + bytes.fromhex("00000000 00000002 00000000000000c5 ffbf3062")
    + RECORDS_OF_EXAMPLE
)


def test_readers_that_know_no_links_stop_at_them() -> None:
    """They would take a further name for an empty file."""
    name = InodeRecord(log_id="2-2", number=4712, path=(b"other",), metadata={}, link="2-1")
    encoded = encode(Batch(position=Position(2, 7), cutoff=Position(2, 3), records=(name,)))
    assert not encoded.startswith(b"FUSEFSJ1")
    assert b'"metadata":{},"link":"2-1"}' in encoded


def test_readers_that_know_no_sources_stop_at_them() -> None:
    """They would look for what is below the directory where it is not."""
    directory = InodeRecord(log_id="2-2", number=4712, path=(b"new",), metadata={}, source="old/")
    encoded = encode(Batch(position=Position(2, 7), cutoff=Position(2, 3), records=(directory,)))
    assert encoded.startswith(b"FUSEFSJ3")
    assert b'"metadata":{},"source":"old/"}' in encoded


@given(BATCHES)
def test_what_was_encoded_is_decoded(batch: Batch) -> None:
    assert decode(encode(batch), batch.position) == batch


@given(BATCHES, st.data())
def test_a_batch_that_was_cut_short_is_damaged(batch: Batch, data: st.DataObject) -> None:
    encoded = encode(batch)
    length = data.draw(st.integers(0, len(encoded) - 1))
    with pytest.raises(DamagedBatch):
        decode(encoded[:length], batch.position)


@given(BATCHES, st.data())
def test_a_batch_with_one_bit_changed_is_damaged(batch: Batch, data: st.DataObject) -> None:
    encoded = bytearray(encode(batch))
    bit = data.draw(st.integers(0, 8 * len(encoded) - 1))
    encoded[bit // 8] ^= 1 << bit % 8
    with pytest.raises(DamagedBatch):
        decode(encoded, batch.position)


@given(BATCHES, st.binary(min_size=1, max_size=100))
def test_bytes_behind_the_end_are_damage(batch: Batch, more: bytes) -> None:
    with pytest.raises(DamagedBatch):
        decode(encode(batch) + more, batch.position)


@given(st.binary(max_size=300))
def test_other_bytes_are_no_batch(data: bytes) -> None:
    with pytest.raises(DamagedBatch):
        decode(data, Position(1, 1))


@given(st.lists(INODES, min_size=2, max_size=4, unique_by=lambda record: encode_alone(record)), st.data())
def test_records_in_another_order_are_damage(records: list[InodeRecord], data: st.DataObject) -> None:
    position = Position(1, 1)
    order = data.draw(st.permutations(range(len(records))).filter(lambda found: found != sorted(found)))
    encoded = [encode_alone(record, index) for index, record in enumerate(records)]
    whole = encode(Batch(position=position, cutoff=position, records=tuple(records)))
    header = whole[: len(whole) - sum(map(len, encoded))]
    assert decode(header + b"".join(encoded), position).records == tuple(records)
    with pytest.raises(DamagedBatch):
        decode(header + b"".join(encoded[index] for index in order), position)


def encode_alone(record: InodeRecord, index: int = 0) -> bytes:
    """Return a record's own bytes, as the `index`-th of a batch."""
    position = Position(1, 1)
    padding = (LeftoverRecord(Version("", "", 0)),) * index
    with_record = encode(Batch(position=position, cutoff=position, records=(*padding, record)))
    without = encode(Batch(position=position, cutoff=position, records=padding))
    return with_record[len(without) :]


@given(BATCHES, POSITIONS)
def test_a_batch_under_another_name_is_damage(batch: Batch, elsewhere: Position) -> None:
    if elsewhere != batch.position:
        with pytest.raises(DamagedBatch):
            decode(encode(batch), elsewhere)


@given(st.lists(POSITIONS))
def test_keys_sort_as_positions_do_and_tell_them(positions: list[Position]) -> None:
    keys = [batch_key(position) for position in positions]
    assert [position_of(key) for key in keys] == positions
    assert sorted(keys) == [batch_key(position) for position in sorted(positions)]


@pytest.mark.parametrize("key", ["a", ".fusefs/journal/", ".fusefs/journal/1/1", ".fusefs/lease"])
def test_other_keys_are_no_batches(key: str) -> None:
    assert position_of(key) is None


def test_the_worked_example() -> None:
    """The bytes that ARCHITECTURE.md shows; another encoding would be another version of the format."""
    assert encode(EXAMPLE) == WORKED_EXAMPLE
    assert decode(WORKED_EXAMPLE, Position(2, 7)) == EXAMPLE


@pytest.mark.parametrize(("version", "checksum"), [(b"1", "ffbf3062"), (b"2", "b5264716")])
def test_batches_of_earlier_versions_are_read(version: bytes, checksum: str) -> None:
    """They do not say what was acknowledged."""
    encoded = EXAMPLE_OF_AN_EARLIER_VERSION.replace(b"FUSEFSJ1", b"FUSEFSJ" + version)
    encoded = encoded.replace(bytes.fromhex("ffbf3062"), bytes.fromhex(checksum))
    assert decode(encoded, Position(2, 7)) == replace(EXAMPLE, acknowledged=0)
    for length in range(len(encoded)):
        with pytest.raises(DamagedBatch):
            decode(encoded[:length], Position(2, 7))


def test_a_later_version_is_not_read() -> None:
    """Nobody is told that it is damaged in a way that only giving it up could mend."""
    with pytest.raises(
        DamagedBatch, match=r"its format is 4, .*; the version that has written it can read it"
    ):
        decode(WORKED_EXAMPLE.replace(b"FUSEFSJ3", b"FUSEFSJ4"), Position(2, 7))


def test_names_are_the_same_whatever_the_locale_of_a_mount_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another host, of another locale, has to find the files under their names."""
    record = InodeRecord(log_id="1-1", number=2, path=("é".encode(), b"caf\xe9"), metadata={})
    batch = Batch(position=Position(1, 1), cutoff=Position(1, 1), records=(record,))
    data = encode(batch)
    monkeypatch.setattr(os, "fsdecode", lambda name: name.decode("latin-1"))
    monkeypatch.setattr(os, "fsencode", lambda name: name.encode("latin-1"))
    assert encode(batch) == data
    assert decode(data, batch.position) == batch
