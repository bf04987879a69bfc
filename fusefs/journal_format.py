"""A batch of the log as bytes, and under which key it is: no I/O.

One object of the log is a batch. All integers are big-endian:

    batch   = header record*
    header  = "FUSEFSJ3" epoch:u64 sequence:u64 cutoff-epoch:u64 cutoff-sequence:u64
              acknowledged:u64 flags:u32 records:u32 body-length:u64 crc:u32
    record  = head-length:u32 data-length:u64 crc:u32 head data

`head` is a JSON object that says what the record is about, `data` are the bytes of a file. The header's checksum is
the CRC-32 (zlib's) of what comes before it; a record's is that of the batch's position, the record's index, both
lengths, the head and the data. So a batch that was cut short, changed, put together from two, or stored under
another's name is recognised as damaged (`DamagedBatch`), and so is one with bytes behind its end.

The number in the magic word is the version of the format; a reader that does not know it stops. Headers of 1 and of 2
(where a record names a link) have no `acknowledged`, and are still read. Their records name no source.
"""

from __future__ import annotations

import base64
import json
import re
import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from zlib_ng import zlib_ng

from backends.base import Data
from fusefs.extents import Extent
from fusefs.keys import RESERVED_PREFIX
from fusefs.log_records import (
    Batch,
    ContentRecord,
    InodeRecord,
    InUseRecord,
    LeftoverRecord,
    Position,
    Record,
    StoredPart,
    UploadReference,
    Written,
)
from fusefs.versions import Version

JOURNAL_PREFIX: Final = f"{RESERVED_PREFIX}journal/"
"""Below it, a directory per epoch and in it an object per batch."""

MAGIC: Final = b"FUSEFSJ3"
EARLIER_MAGIC: Final = (b"FUSEFSJ1", b"FUSEFSJ2")

_HEADER: Final = struct.Struct(">8sQQQQQIIQ")
_EARLIER_HEADER: Final = struct.Struct(">8sQQQQIIQ")
_RECORD: Final = struct.Struct(">IQI")
_RECORD_CONTEXT: Final = struct.Struct(">QQIIQ")
_CHECKSUM: Final = struct.Struct(">I")

SEAL_SIZES: Final = (_HEADER.size + _CHECKSUM.size, _EARLIER_HEADER.size + _CHECKSUM.size)
"""Bytes of a batch without records, which a seal is: of this version, and of earlier ones."""

_ESCAPED: Final = "surrogateescape"
"""How bytes of names are kept that are not UTF-8, whatever the locale of the mount is: other hosts have others."""

_BATCH_KEY: Final = re.compile(re.escape(JOURNAL_PREFIX) + r"([0-9a-f]{16})/([0-9a-f]{16})")


class DamagedBatch(Exception):
    """The bytes are no batch, or not the one that was asked for. The message says what is wrong with them."""


def batch_key(position: Position) -> str:
    """Return the key of a batch; keys sort as positions do."""
    return f"{JOURNAL_PREFIX}{position.epoch:016x}/{position.sequence:016x}"


def epoch_prefix(epoch: int) -> str:
    """Return the prefix of the keys of a term's batches."""
    return f"{JOURNAL_PREFIX}{epoch:016x}/"


def position_of(key: str) -> Position | None:
    """Return which batch an object of the journal is, None if it is none."""
    found = _BATCH_KEY.fullmatch(key)
    return Position(int(found[1], 16), int(found[2], 16)) if found else None


def encode(batch: Batch) -> bytes:
    """Return the bytes of a batch."""
    body: list[Data] = []
    for index, record in enumerate(batch.records):
        body += _encode_record(batch.position, index, record)
    length = sum(len(piece) for piece in body)
    header = _HEADER.pack(
        MAGIC,
        *batch.position,
        *batch.cutoff,
        batch.acknowledged,
        batch.flags,
        len(batch.records),
        length,
    )
    return b"".join([header, _CHECKSUM.pack(zlib_ng.crc32(header)), *body])


def decode(data: Data, expected: Position) -> Batch:
    """Return the batch that `data` is; its records refer to `data`. Raises `DamagedBatch` unless it is `expected`."""
    view = memoryview(data)
    magic = bytes(view[: len(MAGIC)])
    if magic[:-1] == MAGIC[:-1] and magic[-1:].isdigit() and magic > MAGIC:
        raise DamagedBatch(
            f"its format is {magic[-1:].decode()}, and this fusefs knows {MAGIC[-1:].decode()};"
            " the version that has written it can read it"
        )
    form = _EARLIER_HEADER if magic in EARLIER_MAGIC else _HEADER
    header_end = form.size + _CHECKSUM.size
    if len(view) < header_end:
        raise DamagedBatch(f"it has {len(view)} bytes, and a header has {header_end}")
    if magic not in (MAGIC, *EARLIER_MAGIC):
        raise DamagedBatch(f"it begins with {magic!r}, not with {MAGIC!r}")
    header = view[: form.size]
    _, epoch, sequence, cut_epoch, cut_sequence, *acknowledged, flags, count, length = form.unpack(header)
    if _CHECKSUM.unpack(view[form.size : header_end]) != (zlib_ng.crc32(header),):
        raise DamagedBatch("its header does not have the checksum that it names")
    position = Position(epoch, sequence)
    if position != expected:
        raise DamagedBatch(f"it says that it is batch {sequence} of epoch {epoch}")
    if len(view) != header_end + length:
        raise DamagedBatch(f"it has {len(view) - header_end} bytes of records, not {length}")
    return Batch(
        position=position,
        cutoff=Position(cut_epoch, cut_sequence),
        acknowledged=acknowledged[0] if acknowledged else 0,
        records=tuple(_decode_records(position, view[header_end:], count)),
        flags=flags,
    )


# Records


def _encode_record(position: Position, index: int, record: Record) -> list[Data]:
    data: list[Data] = []
    if isinstance(record, InodeRecord):
        if record.content is not None:
            data = [written.data for written in record.content.written]
        described = _describe_inode(record)
    elif isinstance(record, LeftoverRecord):
        described = {"leftover": _describe_version(record.version)}
    else:
        described = {"in-use": _describe_version(record.version)}
    head = json.dumps(described, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "surrogatepass")
    length = sum(len(piece) for piece in data)
    crc = _checksum(position, index, len(head), length, [head, *data])
    return [_RECORD.pack(len(head), length, crc), head, *data]


def _checksum(
    position: Position, index: int, head_length: int, data_length: int, pieces: Iterable[Data]
) -> int:
    crc = zlib_ng.crc32(_RECORD_CONTEXT.pack(*position, index, head_length, data_length))
    for piece in pieces:
        crc = zlib_ng.crc32(piece, crc)
    return crc


def _decode_records(position: Position, body: memoryview, count: int) -> Iterable[Record]:
    offset = 0
    for index in range(count):
        prefix = body[offset : offset + _RECORD.size]
        if len(prefix) < _RECORD.size:
            raise DamagedBatch(f"record {index} of {count} is not there")
        head_length, data_length, crc = _RECORD.unpack(prefix)
        start = offset + _RECORD.size
        offset = start + head_length + data_length
        if offset > len(body):
            raise DamagedBatch(f"record {index} is cut short")
        head, data = body[start : start + head_length], body[start + head_length : offset]
        if _checksum(position, index, head_length, data_length, [head, data]) != crc:
            raise DamagedBatch(f"record {index} does not have the checksum that it names")
        try:
            yield _read_record(json.loads(bytes(head).decode("utf-8", "surrogatepass")), data)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise DamagedBatch(f"record {index} says what nobody writes: {error!r}") from error
    if offset != len(body):
        raise DamagedBatch(f"{len(body) - offset} bytes follow the last record")


def _describe_inode(record: InodeRecord) -> dict[str, Any]:
    described: dict[str, Any] = {
        "inode": record.log_id,
        "number": record.number,
        "path": None if record.path is None else [name.decode("utf-8", _ESCAPED) for name in record.path],
        "metadata": dict(record.metadata),
    }
    if record.version is not None:
        described["version"] = _describe_version(record.version)
    if record.target is not None:
        described["target"] = base64.b64encode(record.target).decode()
    if record.content is not None:
        described["content"] = _describe_content(record.content)
    if record.link is not None:
        described["link"] = record.link
    if record.source is not None:
        described["source"] = record.source
    return described


def _describe_version(version: Version) -> list[str | int]:
    return [version.key, version.etag, version.size]


def _describe_content(content: ContentRecord) -> dict[str, Any]:
    described: dict[str, Any] = {"size": content.size}
    if content.cut is not None:
        described["cut"] = content.cut
    if content.written:
        described["written"] = [[written.start, len(written.data)] for written in content.written]
    if content.zeros:
        described["zeros"] = content.zeros
    if content.referred:
        described["referred"] = content.referred
    if content.upload is not None:
        described["upload"] = {
            "key": content.upload.key,
            "id": content.upload.upload_id,
            "parts": [[part.number, part.etag, part.start, part.end] for part in content.upload.parts],
        }
    return described


def _read_record(described: Mapping[str, Any], data: memoryview) -> Record:
    if "leftover" in described:
        return LeftoverRecord(_read_version(described["leftover"]))
    if "in-use" in described:
        return InUseRecord(_read_version(described["in-use"]))
    content = described.get("content")
    target = described.get("target")
    version = described.get("version")
    path = described["path"]
    link = described.get("link")
    source = described.get("source")
    return InodeRecord(
        log_id=str(described["inode"]),
        number=int(described["number"]),
        path=None if path is None else tuple(name.encode("utf-8", _ESCAPED) for name in path),
        metadata={str(name): str(value) for name, value in described["metadata"].items()},
        version=None if version is None else _read_version(version),
        target=None if target is None else base64.b64decode(target, validate=True),
        content=None if content is None else _read_content(content, data),
        link=None if link is None else str(link),
        source=None if source is None else str(source),
    )


def _read_version(described: Sequence[Any]) -> Version:
    key, etag, size = described
    return Version(str(key), str(etag), int(size))


def _read_content(described: Mapping[str, Any], data: memoryview) -> ContentRecord:
    written: list[Written] = []
    offset = 0
    for start, length in described.get("written", ()):
        written.append(Written(int(start), data[offset : offset + int(length)]))
        offset += int(length)
    if offset != len(data):
        raise ValueError(f"{len(data)} bytes for {offset} that were written")
    upload = described.get("upload")
    cut = described.get("cut")
    return ContentRecord(
        size=int(described["size"]),
        cut=None if cut is None else int(cut),
        written=tuple(written),
        zeros=_read_extents(described.get("zeros", ())),
        referred=_read_extents(described.get("referred", ())),
        upload=None if upload is None else _read_upload(upload),
    )


def _read_extents(described: Sequence[Any]) -> tuple[Extent, ...]:
    return tuple(Extent(int(start), int(end)) for start, end in described)


def _read_upload(described: Mapping[str, Any]) -> UploadReference:
    return UploadReference(
        key=str(described["key"]),
        upload_id=str(described["id"]),
        parts=tuple(
            StoredPart(int(number), str(etag), int(start), int(end))
            for number, etag, start, end in described["parts"]
        ),
    )
