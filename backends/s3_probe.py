"""Asking an S3 store what it can do, by doing it: a dozen requests on trial objects that are removed again.

A store says nothing about itself, and a version number would say little: some refuse a conditional write (good), some
answer 501 (fine), some ignore the condition and overwrite (which only a trial shows). Each trial is written so that the
answer of a store that honours the condition differs from that of one that ignores it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable
from typing import Final

import trio

from backends.base import Capabilities
from backends.errors import (
    AccessDenied,
    ChecksumMismatch,
    InvalidRequest,
    NotFound,
    NotSupported,
    PreconditionFailed,
    StorageError,
    UploadNotFound,
)
from backends.s3_client import Arguments, Body, Bucket, Dialect, Response
from backends.s3_values import Checksum, quote_etag, unquote_etag

_STALE_ETAG: Final = "00000000000000000000000000000000"
_CONTENT: Final = b"a trial of fusefs, to be removed"
_OTHER_CONTENT: Final = b"another one"
#: How a store says that it does not do what a trial asked for.
_NOT_OFFERED: Final = (NotSupported, InvalidRequest)


async def check_access(bucket: Bucket, prefix: str) -> None:
    """List one key under `prefix`: raises what is wrong with the endpoint, the credentials or the bucket."""
    await bucket.call("list_objects_v2", None, {"Prefix": prefix, "MaxKeys": 1})


async def find_dialect(bucket: Bucket, prefix: str) -> Dialect:
    """Try everything that stores differ in on objects under `prefix`, which is empty before and after.

    Raises `AccessDenied` naming the permission that a mount for writing needs and that the credentials lack.
    """
    trials = _Trials(bucket, prefix)
    try:
        dialect = await trials.run()
    except BaseException as error:
        with trio.CancelScope(shield=True), contextlib.suppress(StorageError):
            await trials.clean_up()
        if isinstance(error, AccessDenied):
            raise AccessDenied(f"{error}; or mount read-only") from error
        raise
    await trials.clean_up()
    return dialect


class _Trials:
    """One run of trials on one object; `_etag` is its ETag after every put."""

    def __init__(self, bucket: Bucket, prefix: str) -> None:
        self._bucket = bucket
        self._key = f"{prefix}object"
        self._copy_key = f"{prefix}copy"
        self._etag = ""
        #: Of what is put, as soon as it is known: a bucket with a retention (Object Lock) takes nothing without one.
        self._checksum = Checksum.NONE
        #: The keys of uploads that were begun and not completed, by id.
        self._uploads: dict[str, str] = {}

    async def run(self) -> Dialect:
        object_checksum, part_checksum = await self._checksums()
        if object_checksum is Checksum.CRC32 and await self._parts_may_have_crc32():
            part_checksum = Checksum.CRC32
        self._checksum = object_checksum
        await self._put(_CONTENT, {})
        create_only = await _is_refused(self._put(_OTHER_CONTENT, {"IfNoneMatch": "*"}))
        quoted_etags = await self._etag_quotes()
        source_condition = await _is_refused(self._copy_with_stale_source())
        conditional_copy = await self._honours_copy_conditions()
        copy_part, conditional_complete = await self._multipart_abilities(part_checksum)
        conditional_delete = await _is_refused(self._delete_if_stale())
        conditional_delete_many = await self._honours_conditions_of_batches()
        return Dialect(
            capabilities=Capabilities(
                create_only=create_only,
                if_match=quoted_etags is not None,
                conditional_complete=conditional_complete,
                conditional_copy=conditional_copy,
                conditional_delete=conditional_delete,
                conditional_delete_many=conditional_delete_many,
                copy_part=copy_part,
                checksums=object_checksum is not Checksum.NONE,
            ),
            quoted_etags=quoted_etags is not False,
            source_condition=source_condition,
            object_checksum=object_checksum,
            part_checksum=part_checksum,
        )

    async def clean_up(self) -> None:
        await self._abort()
        for key in (self._key, self._copy_key):
            with contextlib.suppress(NotFound):
                await self._bucket.call("delete_object", key)

    async def _checksums(self) -> tuple[Checksum, Checksum]:
        """Return what to send with objects and with parts: what the store compares, and refuses if it differs."""
        if self._bucket.options.checksum == "none":
            return Checksum.NONE, Checksum.NONE
        if self._bucket.options.checksum == "crc32":
            return Checksum.CRC32, Checksum.MD5
        md5 = Checksum.MD5 if await self._detects_damage(Checksum.MD5) else Checksum.NONE
        crc32 = await self._detects_damage(Checksum.CRC32)
        return (Checksum.CRC32 if crc32 else md5), md5

    async def _detects_damage(self, checksum: Checksum) -> bool:
        return await _is_found_damaged(self._put(_CONTENT, checksum.arguments(_OTHER_CONTENT)))

    async def _parts_may_have_crc32(self) -> bool:
        """Return whether the store compares it, and completes an upload of such parts whose numbers have gaps."""
        if self._bucket.options.checksum != "auto":
            return False
        key = self._copy_key
        upload = {"UploadId": await self._begin_upload(key)}
        part = {**upload, "PartNumber": 2}
        of_another = Checksum.CRC32.arguments(_OTHER_CONTENT)
        try:
            damaged = self._bucket.call(
                "upload_part", key, {**part, **of_another}, Body(_CONTENT, Checksum.NONE)
            )
            if not await _is_found_damaged(damaged):
                return False
            answer = await self._bucket.call("upload_part", key, part, Body(_CONTENT, Checksum.CRC32))
            parts = {"Parts": [{"PartNumber": 2, "ETag": answer["ETag"]}]}
            await self._bucket.call("complete_multipart_upload", key, {**upload, "MultipartUpload": parts})
        except StorageError:  # of any kind: S3 says 500 to gaps
            return False
        del self._uploads[upload["UploadId"]]
        return True

    async def _etag_quotes(self) -> bool | None:
        """Return whether If-Match wants the ETag in quotes, or None if it is not honoured."""
        for quoted in (True, False):
            right, stale = (quote_etag(etag) if quoted else etag for etag in (self._etag, _STALE_ETAG))
            if await _is_accepted(self._put(_CONTENT, {"IfMatch": right})) and await _is_refused(
                self._put(_OTHER_CONTENT, {"IfMatch": stale})
            ):
                return quoted
        return None

    async def _honours_copy_conditions(self) -> bool:
        onto_itself = {**self._source(), "MetadataDirective": "REPLACE"}
        conditions = ({"IfNoneMatch": "*"}, {"IfMatch": quote_etag(_STALE_ETAG)})
        for condition in conditions:
            copy = self._bucket.call("copy_object", self._key, {**onto_itself, **condition})
            if not await _is_refused(copy):
                return False
        return True

    async def _multipart_abilities(self, checksum: Checksum) -> tuple[bool, bool]:
        """Return whether parts can be copied, and whether a completion honours conditions."""
        upload_id = await self._begin_upload(self._key)
        part = {"UploadId": upload_id, "PartNumber": 1}
        etag: str | None = None
        with contextlib.suppress(*_NOT_OFFERED, NotFound):
            # The whole source, not a range: S3 copies ranges only of sources above 5 MiB.
            copied = await self._bucket.call("upload_part_copy", self._key, {**part, **self._source()})
            etag = copied.part("CopyPartResult").get("ETag")
        if etag is None:  # refused, or taken for a part without bytes
            answer = await self._bucket.call("upload_part", self._key, part, Body(_OTHER_CONTENT, checksum))
            return False, await self._honours_complete_conditions(upload_id, answer["ETag"])
        content = await self._bucket.call_and_read("get_object", self._key, {}, _read_body)
        conditional = await self._honours_complete_conditions(upload_id, etag)
        # One server answers a copy with success and an empty part.
        completed = await self._bucket.call_and_read("get_object", self._key, {}, _read_body)
        return completed == content, conditional

    async def _honours_complete_conditions(self, upload_id: str, part_etag: str) -> bool:
        """Complete the upload, with conditions that cannot hold as long as they are honoured, then without."""
        for condition in ({"IfNoneMatch": "*"}, {"IfMatch": quote_etag(_STALE_ETAG)}):
            if not await _is_refused(self._complete(upload_id, part_etag, condition)):
                return False
        await self._complete(upload_id, part_etag, {})
        del self._uploads[upload_id]
        return True

    async def _complete(self, upload_id: str, part_etag: str, condition: Arguments) -> None:
        parts = {"Parts": [{"PartNumber": 1, "ETag": part_etag}]}
        arguments = {"UploadId": upload_id, "MultipartUpload": parts, **condition}
        await self._bucket.call("complete_multipart_upload", self._key, arguments)

    async def _begin_upload(self, key: str) -> str:
        response = await self._bucket.call("create_multipart_upload", key)
        upload_id: str = response["UploadId"]
        self._uploads[upload_id] = key
        return upload_id

    async def _abort(self) -> None:
        """Give up what is left of uploads."""
        for upload_id, key in self._uploads.items():
            with contextlib.suppress(UploadNotFound, NotFound):
                await self._bucket.call("abort_multipart_upload", key, {"UploadId": upload_id})

    async def _put(self, content: bytes, arguments: Arguments) -> None:
        response = await self._bucket.call("put_object", self._key, arguments, Body(content, self._checksum))
        self._etag = unquote_etag(response["ETag"])

    async def _copy_with_stale_source(self) -> None:
        arguments = {**self._source(), "CopySourceIfMatch": quote_etag(_STALE_ETAG)}
        await self._bucket.call("copy_object", self._copy_key, arguments)

    async def _delete_if_stale(self) -> None:
        await self._bucket.call("delete_object", self._key, {"IfMatch": quote_etag(_STALE_ETAG)})

    async def _honours_conditions_of_batches(self) -> bool:
        """Return whether a batch leaves a version that it does not mean, and removes the one that it means."""
        await self._put(_CONTENT, {})
        try:
            refused = await self._delete_in_batch(_STALE_ETAG)
            return bool(refused) and not await self._delete_in_batch(self._etag)
        except (*_NOT_OFFERED, NotFound):
            return False

    async def _delete_in_batch(self, etag: str) -> list[object]:
        """Return what the store says to have failed."""
        wanted = {"Objects": [{"Key": self._key, "ETag": quote_etag(etag)}], "Quiet": True}
        response = await self._bucket.call("delete_objects", None, {"Delete": wanted})
        failed: list[object] = response.get("Errors", [])
        return failed

    def _source(self) -> Arguments:
        return {"CopySource": {"Bucket": self._bucket.options.bucket, "Key": self._key}}


async def _is_refused(request: Awaitable[object]) -> bool:
    """Return whether a request whose condition cannot hold fails for that reason, so that conditions are honoured."""
    return await _fails_with(PreconditionFailed, request)


async def _is_found_damaged(request: Awaitable[object]) -> bool:
    """Return whether a request with the checksum of other bytes fails for that reason, so that it is compared."""
    return await _fails_with(ChecksumMismatch, request)


async def _fails_with(reason: type[StorageError], request: Awaitable[object]) -> bool:
    try:
        await request
    except reason:
        return True
    except _NOT_OFFERED:
        return False
    return False


async def _is_accepted(request: Awaitable[object]) -> bool:
    """Return whether a request whose condition holds succeeds."""
    try:
        await request
    except (PreconditionFailed, *_NOT_OFFERED):
        return False
    return True


def _read_body(response: Response) -> bytes:
    content: bytes = response["Body"].read()
    return content
