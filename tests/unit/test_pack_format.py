"""A pack's bytes: what was written is found, and what is cut, changed or put elsewhere is never taken for it."""

from __future__ import annotations

from random import Random
from typing import Final

from hypothesis import given
from hypothesis import strategies as st

from backends.pack_format import BLOCK_BYTES, PackedObject, aligned, encode, is_whole, record_length, scan

KEYS: Final = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12)
BODIES: Final = st.builds(
    lambda size, seed: Random(seed).randbytes(size),
    st.sampled_from([0, 1, 100, 4_000, 4_096, 5_000, 9_000]),
    st.integers(0, 9),
)
OBJECTS: Final = st.lists(st.tuples(KEYS, BODIES, st.booleans()), min_size=1, max_size=5)
"""With each, whether all before it was on the disk when it was written."""

Objects = list[tuple[str, bytes, bool]]


def pack(objects: Objects) -> bytes:
    """Return a pack as it is written, with zeros behind the last record."""
    data, safe = b"", 0
    for key, body, is_safe in objects:
        safe = len(data) if is_safe else safe
        data += encode(key, body, offset=len(data), safe=safe, time_ns=len(data) + 7)
    return data + bytes(2 * BLOCK_BYTES)


def found(data: bytes) -> list[tuple[str, bytes]]:
    return [(each.key, body_in(data, each)) for each in objects_in(data)]


def objects_in(data: bytes) -> list[PackedObject]:
    return scan(lambda start, end: data[start:end], len(data))


def body_in(data: bytes, packed: PackedObject) -> bytes:
    return data[packed.start : packed.start + packed.size]


@given(OBJECTS)
def test_what_was_written_is_found(objects: Objects) -> None:
    data = pack(objects)
    assert found(data) == [(key, body) for key, body, _ in objects]
    assert all(each.time_ns == each.offset + 7 for each in objects_in(data))


@given(KEYS, BODIES)
def test_a_record_takes_whole_blocks(key: str, body: bytes) -> None:
    record = encode(key, body, offset=0, safe=0, time_ns=0)
    assert len(record) == record_length(key, body) == aligned(len(record))
    (packed,) = objects_in(record)
    assert packed.end == len(record)


@given(OBJECTS, st.data())
def test_a_pack_that_was_cut_short(objects: Objects, draw: st.DataObject) -> None:
    """What was behind the cut is not there, or not whole where it is known to have been there."""
    data = pack(objects)
    length = draw.draw(st.integers(0, len(data)))
    left = found(data[:length])
    written = [(key, body) for key, body, _ in objects]
    assert [key for key, _ in left] == [key for key, _ in written[: len(left)]]
    for packed, (_, body) in zip(objects_in(data[:length]), written, strict=False):
        is_cut = packed.start + packed.size > length
        assert body_in(data[:length], packed) == (body if not is_cut else body[: length - packed.start])
        assert not is_cut or packed.end <= max(each.safe for each in objects_in(data))


@given(OBJECTS, st.data())
def test_a_bit_that_was_changed(objects: Objects, draw: st.DataObject) -> None:
    """No other object is lost. That one has not the checksum that it names, if it is there, or was on its way."""
    data = bytearray(pack(objects))
    whole = objects_in(bytes(data))
    hit = draw.draw(st.sampled_from(whole))
    byte = draw.draw(st.integers(hit.offset, hit.start + hit.size - 1) | st.integers(0, len(data) - 1))
    bit = 8 * byte + draw.draw(st.integers(0, 7))
    data[bit // 8] ^= 1 << bit % 8
    left = {each.offset: each for each in objects_in(bytes(data))}
    safe = max(each.safe for each in whole)
    for number, packed in enumerate(whole):
        end = whole[number + 1].offset if number + 1 < len(whole) else len(data)
        if not packed.offset <= bit // 8 < end:
            assert left[packed.offset] == packed
            continue
        changed = left.get(packed.offset)
        if changed is not None:
            assert changed == packed
            is_hit = packed.start <= bit // 8 < packed.start + packed.size
            assert is_whole(changed, lambda start, end: bytes(data[start:end])) != is_hit
            assert not is_hit or packed.end <= safe
    assert left.keys() <= {each.offset for each in whole}


@given(OBJECTS, st.data())
def test_blocks_that_were_not_written(objects: Objects, draw: st.DataObject) -> None:
    """A crash has kept some of those behind what was safe: an object is there as it was written, or not at all."""
    data = bytearray(pack(objects))
    whole = objects_in(bytes(data))
    safe = max(each.safe for each in whole)
    for block in range(safe // BLOCK_BYTES, len(data) // BLOCK_BYTES):
        if draw.draw(st.booleans()):
            data[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES] = bytes(BLOCK_BYTES)
    left = dict.fromkeys(found(bytes(data)))
    assert left.keys() <= {(key, body) for key, body, _ in objects}
    assert all((each.key, body_in(pack(objects), each)) in left for each in whole if each.end <= safe)


@given(st.binary(max_size=3 * BLOCK_BYTES))
def test_anything(data: bytes) -> None:
    assert found(data) == []


def test_the_copy_of_a_pack_within_an_object() -> None:
    """A file of the mount may be a copy of its log; where the head of the batch is damaged, its bytes are looked at."""
    inner = pack([("inner", b"stale", True)])
    (copied,) = [
        each for each in objects_in(pack([("first", b"1", True), ("copy", b"", True)])) if each.offset
    ]
    aligned_copy = bytes(-copied.start % BLOCK_BYTES) + inner
    data = bytearray(pack([("first", b"1", True), ("copy", aligned_copy, True), ("last", b"3", True)]))
    assert data.find(inner[:BLOCK_BYTES]) % BLOCK_BYTES == 0
    data[copied.offset] ^= 1
    assert found(bytes(data)) == [("first", b"1"), ("last", b"3")]
