"""Uploads in parts to S3.

Parts carry an MD5 rather than a CRC32: S3 has to be told of CRC32 when the upload begins, and then wants part numbers
from 1 without gaps, which this seam does not promise.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from backends.base import OVERWRITE, S3_LIMITS, Data, MultipartUpload, Part, PutMode
from backends.errors import (
    InvalidPart,
    InvalidRequest,
    NotFound,
    StoreCorrupt,
    UploadNotFound,
)
from backends.rules import (
    check_copied_range,
    check_if_match,
    check_part,
    have_md5_etags,
    multipart_etag,
)
from backends.s3_client import Body, Bucket, explained_refusals
from backends.s3_reading import read_range
from backends.s3_values import quote_etag, unquote_etag


class S3Upload(MultipartUpload):
    """An upload that the store knows by `upload_id`; keeps nothing else, so any process can go on with it."""

    def __init__(self, bucket: Bucket, key: str, upload_id: str) -> None:
        self._bucket = bucket
        self._key = key
        self._upload_id = upload_id

    @property
    def key(self) -> str:
        return self._key

    @property
    def upload_id(self) -> str:
        return self._upload_id

    async def upload_part(self, number: int, data: Data) -> Part:
        size = memoryview(data).nbytes
        check_part(number, size)
        body = Body(data, self._bucket.dialect.part_checksum)
        response = await self._bucket.call("upload_part", self._key, self._part(number), body)
        return Part(number=number, etag=unquote_etag(response["ETag"]), size=size)

    async def copy_part(
        self, number: int, source: str, start: int, length: int, *, if_match: str | None = None
    ) -> Part:
        check_part(number, length)
        arguments = {
            **self._part(number),
            **await self._bucket.source_arguments(source, if_match),
            "CopySourceRange": f"bytes={start}-{start + length - 1}",
        }
        try:
            response = await self._bucket.call("upload_part_copy", self._key, arguments)
        except InvalidRequest:
            return await self._copy_refused_range(number, source, start, length, if_match)
        return Part(number=number, etag=unquote_etag(response.part("CopyPartResult")["ETag"]), size=length)

    async def complete(self, parts: Sequence[Part], *, mode: PutMode = OVERWRITE) -> str:
        if not parts:
            raise InvalidRequest(f"the upload of '{self._key}' has no parts to be completed from")
        if any(after.number <= before.number for before, after in itertools.pairwise(parts)):
            raise InvalidPart(f"the parts of '{self._key}' are not in rising order")
        listed = [{"PartNumber": part.number, "ETag": quote_etag(part.etag)} for part in parts]
        honoured = self._bucket.dialect.capabilities.conditional_complete
        condition = await self._bucket.target_condition(self._key, mode, honoured=honoured)
        arguments = {"UploadId": self._upload_id, "MultipartUpload": {"Parts": listed}, **condition}
        with explained_refusals(self._key, mode):
            response = await self._bucket.call("complete_multipart_upload", self._key, arguments)
        etag = unquote_etag(response.get("ETag", ""))
        if etag:
            return etag
        # Ceph 16.2 does not say it; asking for it now might find the object of somebody else.
        if not have_md5_etags(parts):
            nameless = StoreCorrupt(f"the store completed the upload of '{self._key}' without an ETag")
            nameless.is_in_doubt = True  # the object is there: whoever tries again has to know it for our own
            raise nameless
        return multipart_etag(parts)

    async def abort(self) -> None:
        try:
            await self._bucket.call("abort_multipart_upload", self._key, {"UploadId": self._upload_id})
        except (UploadNotFound, NotFound):
            return

    def _part(self, number: int) -> dict[str, Any]:
        return {"UploadId": self._upload_id, "PartNumber": number}

    async def _copy_refused_range(
        self, number: int, source: str, start: int, length: int, if_match: str | None
    ) -> Part:
        """Find out why a copy was refused, and fetch and upload instead if that serves.

        S3 refuses with the same code a range beyond the end, which is the caller's to know, and any range of a
        source below 5 MiB, which is cheap to carry through this process.
        """
        response = await self._bucket.call("head_object", source)
        size, etag = response["ContentLength"], unquote_etag(response["ETag"])
        check_if_match(source, if_match, etag)
        check_copied_range(source, start, length, size)
        if size > S3_LIMITS.min_part_size:
            raise InvalidRequest(f"the store does not copy bytes {start} to {start + length} of '{source}'")
        return await self.upload_part(
            number, (await read_range(self._bucket, source, start, length, etag)).data
        )
