"""The index as bytes: everything comes back, and of damaged bytes nothing does."""

from __future__ import annotations

import stat
import zlib
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusefs import index_format
from fusefs.attributes import Attributes, Defaults
from fusefs.index_format import Block, DamagedIndex, decode_block, decode_shard, encode_block, encode_shard
from fusefs.listed import ListedDirectory, ListedEntry, ListedObject, Remembered

DEFAULTS = Defaults(uid=1, gid=2, file_mode=0o640, directory_mode=0o750)
FILE = Attributes(mode=stat.S_IFREG | 0o644, uid=3, gid=4, atime_ns=5, mtime_ns=-6, ctime_ns=7)
KINDS = st.sampled_from([stat.S_IFREG, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR])

names = st.binary(min_size=1, max_size=20).filter(lambda name: not {0, 47} & set(name) and name.strip(b"."))
prefixes = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
numbers = st.integers(2, 2**63 - 1)
times = st.integers(-(2**63), 2**63 - 1)
attributes = st.builds(
    replace, st.just(FILE), mode=KINDS, uid=numbers.map(lambda n: n % 2**32), mtime_ns=times
)
objects = st.builds(
    lambda size, time, etag, number, known: ListedObject.pack(
        size=size, stored_at_ns=time, etag=etag, remembered=Remembered(number, known)
    ),
    st.integers(0, 2**63),
    times,
    st.text("0123456789abcdef-", max_size=40),
    numbers,
    attributes,
)
links = st.builds(
    lambda target, number: ListedObject.pack(
        size=len(target),
        stored_at_ns=0,
        etag="x",
        remembered=Remembered(number, replace(FILE, mode=stat.S_IFLNK | 0o777), target),
    ),
    st.binary(min_size=1, max_size=4_095),
    numbers,
)
directories = st.builds(
    lambda number: ListedDirectory.pack(
        size=0,
        stored_at_ns=0,
        etag="",
        remembered=Remembered(number, replace(FILE, mode=stat.S_IFDIR | 0o755)),
    ),
    numbers,
)
entries = st.dictionaries(names, objects | links | directories, max_size=8)


@given(prefixes, entries)
def test_a_block_comes_back(prefix: str, known: dict[bytes, ListedEntry]) -> None:
    block = encode_block(prefix, DEFAULTS, known.items())
    found = decode_block(block)
    assert found == known
    assert {name: type(entry) for name, entry in found.items()} == {
        name: type(entry) for name, entry in known.items()
    }
    assert (block.prefix, block.defaults, block.not_after_ns) == (prefix, DEFAULTS, 0)


@given(st.dictionaries(prefixes, entries, max_size=4), times, st.booleans())
def test_a_shard_comes_back(known: dict[str, dict[bytes, ListedEntry]], time: int, is_final: bool) -> None:
    blocks = {
        prefix: replace(encode_block(prefix, DEFAULTS, found.items()), not_after_ns=time)
        for prefix, found in known.items()
    }
    shard = decode_shard(encode_shard(blocks.values(), is_final=is_final))
    assert (shard.blocks, shard.is_final) == (blocks, is_final)


def sample() -> bytes:
    known = {
        b"f%d" % number: ListedObject.pack(
            size=number, stored_at_ns=number, etag="e" * 32, remembered=Remembered(number + 2, FILE)
        )
        for number in range(20)
    }
    return encode_shard(
        [encode_block(prefix, DEFAULTS, known.items()) for prefix in ("", "d/")], is_final=True
    )


@pytest.mark.parametrize("seed", range(300))
def test_damage_anywhere_is_noticed(seed: int) -> None:
    rng = Random(seed)
    data = bytearray(sample())
    at = rng.randrange(len(data))
    match seed % 4:
        case 0:
            data[at] ^= 1 << rng.randrange(8)
        case 1:
            del data[at:]
        case 2:
            data[at:at] = rng.randbytes(rng.randrange(1, 9))
        case _:
            del data[at : at + rng.randrange(1, 9)]
    if bytes(data) != sample():
        with pytest.raises(DamagedIndex):
            decode_shard(bytes(data))


@given(st.binary(max_size=200))
def test_other_bytes_are_no_index(data: bytes) -> None:
    with pytest.raises(DamagedIndex):
        decode_shard(data)


@given(st.binary(max_size=200))
def test_a_shard_of_other_content_with_the_right_digest(content: bytes) -> None:
    """As a defect, or somebody who means harm, would write it."""
    content = index_format.MAGIC + b"\0" + content
    try:
        shard = decode_shard(content + index_format._digest(content))
        for block in shard.blocks.values():
            decode_block(block)
    except DamagedIndex:
        return


@given(st.binary(max_size=300))
def test_a_block_of_other_content(payload: bytes) -> None:
    block = Block(prefix="", not_after_ns=0, defaults=DEFAULTS, payload=zlib.compress(payload))
    try:
        found = decode_block(block)
    except DamagedIndex:
        return
    for entry in found.values():
        assert entry.number is not None


def pack(kind: int, number: int, target: bytes = b"") -> ListedObject:
    remembered = Remembered(number, replace(FILE, mode=kind), target)
    return ListedObject.pack(size=3, stored_at_ns=0, etag="", remembered=remembered)


@pytest.mark.parametrize(
    ("name", "entry"),
    [
        (b"", pack(stat.S_IFREG, 2)),
        (b"..", pack(stat.S_IFREG, 2)),
        (b"a/b", pack(stat.S_IFREG, 2)),
        (b"the root's number", pack(stat.S_IFREG, 1)),
        (b"too large a number", pack(stat.S_IFREG, 2**63)),
        (b"a directory", pack(stat.S_IFDIR, 2)),
        (b"half a target", pack(stat.S_IFLNK, 2, b"ab")),
        (b"nothing", ListedObject.pack(size=0, stored_at_ns=0, etag="")),
    ],
)
def test_entries_that_cannot_be(name: bytes, entry: ListedObject) -> None:
    with pytest.raises(DamagedIndex):
        decode_block(encode_block("", DEFAULTS, [(name, entry)]))


def test_a_block_has_no_more_than_can_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a directory with millions of entries the rest is not remembered, instead of all of them."""
    monkeypatch.setattr(index_format, "MAX_PAYLOAD", 1_000)
    known = {
        f"{number}".encode(): ListedObject.pack(
            size=1, stored_at_ns=2, etag="x", remembered=Remembered(number + 2, FILE)
        )
        for number in range(100)
    }
    read = decode_block(encode_block("d/", DEFAULTS, known.items()))
    assert 5 < len(read) < 100
    assert read.items() <= known.items()


def test_a_block_that_unpacks_to_more_than_there_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_format, "MAX_PAYLOAD", 1_000)
    block = Block(prefix="", not_after_ns=0, defaults=DEFAULTS, payload=zlib.compress(bytes(1_001)))
    with pytest.raises(DamagedIndex):
        decode_block(block)
