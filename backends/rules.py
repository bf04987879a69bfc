"""What S3 refuses, for the stores that have no server to refuse it: pure checks, made before anything is done.

Each check returns nothing or raises the class that S3's answer is mapped to, so that a program which runs on
`memory` or `directory` meets the same limits as on S3. Sizes are those of `backends.base.S3_LIMITS`.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Mapping, Sequence

from backends.base import S3_LIMITS, CreateOnly, IfMatch, Metadata, Part, PutMode
from backends.errors import (
    EntityTooLarge,
    EntityTooSmall,
    InvalidKey,
    InvalidMetadata,
    InvalidPart,
    InvalidRequest,
    PreconditionFailed,
    RangeNotSatisfiable,
)

#: Names travel as HTTP header names, which have no case: only lower-case ones come back as they were given.
_METADATA_NAME = re.compile(r"[a-z0-9!#$%&'*+.^_`|~-]+")
_MD5 = re.compile(r"[0-9a-f]{32}")


def check_key(key: str) -> None:
    """Raise `InvalidKey` unless S3 can hold an object of this name."""
    if not key:
        raise InvalidKey("an object's key cannot be empty")
    try:
        length = len(key.encode())
    except UnicodeEncodeError as error:
        raise InvalidKey(f"the key {key!r} is not valid Unicode") from error
    if length > S3_LIMITS.max_key_length:
        raise InvalidKey(
            f"a key of {length} bytes is over the limit of {S3_LIMITS.max_key_length}: {key[:80]!r}…"
        )
    if "\0" in key:
        raise InvalidKey(f"the key {key!r} holds a NUL")
    if _climbs_out(key):
        raise InvalidKey(f"the key {key!r} has more '..' segments than names before them")


def _climbs_out(key: str) -> bool:
    """Whether a '..' goes above the bucket. S3 refuses these ("Naming Amazon S3 objects", AWS user guide)."""
    depth = 0
    for segment in key.split("/"):
        depth += -1 if segment == ".." else 1
        if depth < 0:
            return True
    return False


def check_metadata(metadata: Metadata) -> None:
    """Raise `InvalidMetadata` for a name that no header can have, for text that is not Unicode, and for too much."""
    size = 0
    for name, value in metadata.items():
        if not _METADATA_NAME.fullmatch(name):
            raise InvalidMetadata(f"{name!r} is no name for metadata: lower-case ASCII without spaces is")
        try:
            size += len(name) + len(value.encode())
        except UnicodeEncodeError as error:
            raise InvalidMetadata(f"the metadata {name!r} is not valid Unicode") from error
    if size > S3_LIMITS.max_metadata_size:
        raise InvalidMetadata(f"{size} bytes of metadata are over the limit of {S3_LIMITS.max_metadata_size}")


def check_put_size(key: str, size: int) -> None:
    """Raise `EntityTooLarge` for a body that one request cannot carry."""
    if size > S3_LIMITS.max_put_size:
        raise EntityTooLarge(f"{size} bytes are too many for one put of {key!r}")


def check_copy_size(key: str, size: int) -> None:
    """Raise `EntityTooLarge` for more than one copy (of an object or a part) may carry."""
    if size > S3_LIMITS.max_copy_size:
        raise EntityTooLarge(f"{size} bytes are too many for one copy of {key!r}")


def check_part(number: int, size: int) -> None:
    """Raise `InvalidRequest` for a part number that does not exist, `EntityTooLarge` for a part over the limit."""
    if not 1 <= number <= S3_LIMITS.max_part_number:
        raise InvalidRequest(f"part number {number} is not between 1 and {S3_LIMITS.max_part_number}")
    if size > S3_LIMITS.max_part_size:
        raise EntityTooLarge(f"part {number} has {size} bytes; the limit is {S3_LIMITS.max_part_size}")


def check_completion(wanted: Sequence[Part], held: Mapping[int, Part]) -> None:
    """Raise what S3 answers when an upload cannot be completed from `wanted`; `held` are the parts it has."""
    if not wanted:
        raise InvalidRequest("an upload cannot be completed without parts")
    for before, after in itertools.pairwise(wanted):
        if after.number <= before.number:
            raise InvalidPart(f"part {after.number} comes after part {before.number}; numbers must rise")
    for part in wanted:
        present = held.get(part.number)
        if present is None or present.etag != part.etag:
            raise InvalidPart(f"the upload has no part {part.number} with the ETag {part.etag}")
    for part in wanted[:-1]:
        size = held[part.number].size
        if size < S3_LIMITS.min_part_size:
            raise EntityTooSmall(f"part {part.number} has {size} bytes; only the last may be under 5 MiB")
    total = sum(held[part.number].size for part in wanted)
    if total > S3_LIMITS.max_object_size:
        raise EntityTooLarge(f"an object of {total} bytes is over the limit of {S3_LIMITS.max_object_size}")


def check_mode(key: str, mode: PutMode, current_etag: str | None) -> None:
    """Raise `PreconditionFailed` unless `mode` allows writing where `current_etag` is (None: nothing is there)."""
    match mode:
        case CreateOnly() if current_etag is not None:
            raise PreconditionFailed(f"{key!r} exists already")
        case IfMatch(etag) if etag != current_etag:
            raise PreconditionFailed(f"{key!r} has the ETag {current_etag}, not {etag}")
        case _:
            return


def check_if_match(key: str, if_match: str | None, current_etag: str | None) -> None:
    """Raise `PreconditionFailed` unless the object is the version `if_match`, or any version will do (None)."""
    if if_match is not None:
        check_mode(key, IfMatch(if_match), current_etag)


def check_copy_changes(source: str, target: str, metadata: Metadata | None) -> None:
    """Raise `InvalidRequest` for a copy that would change nothing, as S3 does."""
    if source == target and metadata is None:
        raise InvalidRequest(f"copying {source!r} onto itself needs new metadata")


def check_copied_range(source: str, start: int, length: int, size: int) -> None:
    """Raise `RangeNotSatisfiable` unless the range lies wholly inside the source of `size` bytes."""
    if length < 1 or start < 0 or start + length > size:
        raise RangeNotSatisfiable(
            f"bytes {start} to {start + length} are not inside {source!r} of {size} bytes"
        )


def resolve_range(key: str, start: int, length: int | None, size: int) -> tuple[int, int]:
    """Return the first byte and the one after the last that a read of an object of `size` bytes gets.

    Raises `RangeNotSatisfiable` for a range that begins at or after the end, `InvalidRequest` for one that HTTP
    cannot express.
    """
    if start < 0 or (length is not None and length < 1):
        raise InvalidRequest(f"no range begins at {start} and has {length} bytes")
    if start == 0 and length is None:
        return 0, size
    if start >= size:
        raise RangeNotSatisfiable(f"byte {start} is at or after the end of {key!r}, which has {size} bytes")
    return start, size if length is None else min(size, start + length)


def multipart_etag(parts: Sequence[Part]) -> str:
    """The ETag that S3 gives to an object made of these parts, whose own ETags are the MD5 of their bytes."""
    digests = b"".join(bytes.fromhex(part.etag) for part in parts)
    return f"{hashlib.md5(digests, usedforsecurity=False).hexdigest()}-{len(parts)}"


def have_md5_etags(parts: Sequence[Part]) -> bool:
    """Whether `multipart_etag` holds for these parts; some kinds of encryption give them other ETags."""
    return all(_MD5.fullmatch(part.etag) for part in parts)
