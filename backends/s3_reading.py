"""Reading an object or a range of it from S3, and not believing an answer that contradicts itself.

A body is read to its end in the request's thread, so that a connection that is cut shows as `Unavailable` and never
as a short object. Whole objects are compared with the checksum that the store kept, if it is one of the algorithms
that botocore knows here; ranges have no checksum in S3.
"""

from __future__ import annotations

import functools
import re
from typing import Final

from backends.base import MIB, RangeResult
from backends.errors import RangeNotSatisfiable, StoreCorrupt, Unavailable
from backends.s3_client import Bucket, Response
from backends.s3_values import quote_etag, unquote_etag

_CONTENT_RANGE: Final = re.compile(r"bytes (\d+)-(\d+)/(\d+)")


async def read_range(
    bucket: Bucket, key: str, start: int, length: int | None, if_match: str | None
) -> RangeResult:
    """Return the bytes that `ObjectStorage.get_range` promises."""
    arguments = {} if if_match is None else {"IfMatch": quote_etag(if_match)}
    if start == 0 and length is None:
        if bucket.options.checksum != "none":
            arguments["ChecksumMode"] = "ENABLED"
        return await bucket.call_and_read("get_object", key, arguments, _read_whole)
    arguments["Range"] = f"bytes={start}-" if length is None else f"bytes={start}-{start + length - 1}"
    read = functools.partial(_read_part, start, length)
    return await bucket.call_and_read("get_object", key, arguments, read)


def _read_whole(response: Response) -> RangeResult:
    data = response["Body"].read()
    return RangeResult(body=data, etag=unquote_etag(response["ETag"]), object_size=len(data))


def _read_part(start: int, length: int | None, response: Response) -> RangeResult:
    if "ContentRange" not in response:
        return _cut_out(start, length, response)
    match = _CONTENT_RANGE.fullmatch(response["ContentRange"])
    if match is None:
        raise StoreCorrupt(f"the store answered with the range '{response['ContentRange']}'")
    first, last, size = (int(group) for group in match.groups())
    if first != start or last != _end(start, length, size) - 1:
        raise StoreCorrupt(
            f"the store answered with bytes {first} to {last} instead of {start} and {length} more"
        )
    data = response["Body"].read()
    if len(data) != last + 1 - first:
        raise Unavailable(f"the store sent {len(data)} bytes of {last + 1 - first}")
    return RangeResult(body=data, etag=unquote_etag(response["ETag"]), object_size=size)


def _cut_out(start: int, length: int | None, response: Response) -> RangeResult:
    """Take the range out of the whole object, which a store that knows no ranges sends."""
    size = response["ContentLength"]
    body = response["Body"]
    if start >= size:
        body.close()
        raise RangeNotSatisfiable(f"byte {start} of an object of {size} bytes")
    to_skip = start
    while to_skip > 0:
        skipped = len(body.read(min(to_skip, MIB)))
        if skipped == 0:
            raise Unavailable("the store ended an object early")
        to_skip -= skipped
    wanted = _end(start, length, size) - start
    data = body.read(wanted)
    body.close()
    if len(data) != wanted:
        raise Unavailable(f"the store sent {len(data)} bytes of {wanted}")
    return RangeResult(body=data, etag=unquote_etag(response["ETag"]), object_size=size)


def _end(start: int, length: int | None, size: int) -> int:
    return size if length is None else min(start + length, size)
