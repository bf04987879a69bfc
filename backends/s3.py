"""Objects in an S3 bucket, on AWS or any server that speaks its protocol.

What S3 stores differ in (`s3_client.Dialect`) is found by `probe`. A condition that the store does not honour is
looked at before the act, which keeps the promise towards one writer and not towards racing ones; `capabilities` tells.
"""

from __future__ import annotations

import logging
import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Final

from backends.base import (
    NO_ETAGS,
    NO_METADATA,
    OVERWRITE,
    Capabilities,
    Data,
    IfMatch,
    ListPage,
    Metadata,
    ObjectInfo,
    ObjectStorage,
    Overwrite,
    PutMode,
    RangeResult,
    UploadInfo,
)
from backends.errors import (
    InvalidKey,
    InvalidRequest,
    NotFound,
    NotSupported,
    StorageError,
)
from backends.rules import (
    check_copy_changes,
    check_copy_size,
    check_if_match,
    check_key,
    check_mode,
    check_put_size,
)
from backends.s3_client import (
    Arguments,
    Body,
    Bucket,
    ClientFactory,
    create_client,
    explained_refusals,
)
from backends.s3_deletions import delete_batch
from backends.s3_listing import position, read_page, read_uploads
from backends.s3_multipart import S3Upload
from backends.s3_options import S3Options
from backends.s3_probe import check_access, find_dialect
from backends.s3_quick import QuickClient, can_put
from backends.s3_reading import read_range
from backends.s3_values import (
    decode_metadata,
    encode_metadata,
    nanoseconds,
    unquote_etag,
)

_log = logging.getLogger(__name__)

#: What XML 1.0 cannot say, not even escaped; keys with these are removed one by one.
_NOT_IN_XML: Final = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")


class S3Storage(ObjectStorage):
    """A bucket. `probe_prefix` is the part of it that the probe may list and write to, "" or ending in a slash.

    `known` is another way to the same bucket, which has been probed. `quick` lets the requests that come by the
    thousand go through obstore (`backends.s3_quick`) once it has been probed itself, or is known.
    """

    def __init__(
        self,
        options: S3Options,
        *,
        probe_prefix: str = "",
        client_factory: ClientFactory = create_client,
        known: S3Storage | None = None,
        quick: bool = False,
    ) -> None:
        self._bucket = Bucket(options, client_factory, quick=quick, trial_prefix=probe_prefix)
        if known is not None:
            self._bucket.dialect = known._bucket.dialect
            self._bucket.route = known._bucket.route
        self._probe_prefix = probe_prefix

    @property
    def capabilities(self) -> Capabilities:
        return self._bucket.dialect.capabilities

    async def probe(self, *, read_only: bool = False) -> Capabilities:
        await check_access(self._bucket, self._probe_prefix)
        if not read_only:
            trials = f"{self._probe_prefix}.fusefs/probe/{secrets.token_hex(8)}/"
            self._bucket.dialect = await find_dialect(self._bucket, trials)
            _log_what_is_missing(self.capabilities)
        return self.capabilities

    async def head(self, key: str) -> ObjectInfo:
        check_key(key)
        quickly = await self._bucket.call_quickly(key, lambda client: client.head(key))
        if quickly is not None:
            return quickly
        response = await self._bucket.call("head_object", key)
        return ObjectInfo(
            key=key,
            etag=unquote_etag(response["ETag"]),
            size=response["ContentLength"],
            last_modified_ns=nanoseconds(response["LastModified"]),
            metadata=decode_metadata(response.get("Metadata", {})),
        )

    async def get_range(
        self, key: str, start: int = 0, length: int | None = None, *, if_match: str | None = None
    ) -> RangeResult:
        if start < 0 or (length is not None and length < 1):
            raise InvalidRequest(f"{length} bytes from {start} of '{key}' are no range")
        check_key(key)
        ask = partial(QuickClient.get_range, key=key, start=start, length=length, if_match=if_match)
        quickly = await self._bucket.call_quickly(key, ask)
        if quickly is not None:
            return quickly
        return await read_range(self._bucket, key, start, length, if_match)

    async def put(
        self, key: str, data: Data, *, metadata: Metadata = NO_METADATA, mode: PutMode = OVERWRITE
    ) -> str:
        size = memoryview(data).nbytes
        check_put_size(key, size)
        arguments = self._new_object(key, metadata)
        capable = self.capabilities.if_match if isinstance(mode, IfMatch) else self.capabilities.create_only
        checksum = self._bucket.dialect.object_checksum
        if can_put(size, metadata, checksum) and (capable or isinstance(mode, Overwrite)):
            ask = partial(QuickClient.put, key=key, data=data, metadata=metadata, mode=mode)
            with explained_refusals(key, mode):
                quickly = await self._bucket.call_quickly(key, ask)
            if quickly is not None:
                return quickly
        condition = await self._bucket.target_condition(key, mode, honoured=capable)
        body = Body(data, checksum)
        with explained_refusals(key, mode):
            response = await self._bucket.call("put_object", key, {**arguments, **condition}, body)
        return unquote_etag(response["ETag"])

    async def copy(
        self,
        source: str,
        target: str,
        *,
        if_match: str | None = None,
        metadata: Metadata | None = None,
        mode: PutMode = OVERWRITE,
    ) -> str:
        check_key(source)
        check_key(target)
        check_copy_changes(source, target, metadata)
        arguments = dict(self._bucket.new_object_arguments)
        if metadata is not None:
            arguments |= {"MetadataDirective": "REPLACE", "Metadata": encode_metadata(metadata)}
        honoured = self.capabilities.conditional_copy
        arguments |= await self._bucket.source_arguments(source, if_match)
        arguments |= await self._bucket.target_condition(target, mode, honoured=honoured)
        try:
            with explained_refusals(target):
                response = await self._bucket.call("copy_object", target, arguments)
        except (NotFound, InvalidRequest) as error:
            return await self._copy_otherwise(error, source, target, if_match, metadata, mode)
        return unquote_etag(response.part("CopyObjectResult")["ETag"])

    async def delete(self, key: str, *, if_match: str | None = None) -> None:
        mode = OVERWRITE if if_match is None else IfMatch(if_match)
        honoured = self.capabilities.conditional_delete
        check_key(key)
        condition = await self._bucket.target_condition(key, mode, honoured=honoured)
        try:
            with explained_refusals(key, mode):
                await self._bucket.call("delete_object", key, condition)
        except NotFound:
            return

    async def delete_many(
        self, keys: Iterable[str], *, if_match: Mapping[str, str] = NO_ETAGS
    ) -> Mapping[str, StorageError]:
        failures: dict[str, StorageError] = {}
        together: list[str] = []
        for key in keys:
            try:
                check_key(key)
            except InvalidKey as error:  # which would fail its whole batch
                failures[key] = error
                continue
            if _NOT_IN_XML.search(key):
                await self._delete_one(key, if_match.get(key), failures)
            else:
                together.append(key)
        size = self.limits.max_delete_batch
        for first in range(0, len(together), size):
            batch = together[first : first + size]
            try:
                failures |= await delete_batch(self._bucket, batch, if_match)
            except (NotSupported, InvalidRequest):  # as the probe has it
                for key in batch:
                    await self._delete_one(key, if_match.get(key), failures)
        return failures

    async def list_prefix(
        self,
        prefix: str = "",
        *,
        delimiter: str = "",
        start_after: str = "",
        page_token: str | None = None,
        page_size: int = 1_000,
    ) -> ListPage:
        arguments = {"Prefix": prefix, "MaxKeys": page_size, **position(start_after, page_token)}
        if delimiter:
            arguments["Delimiter"] = delimiter
        response = await self._bucket.call("list_objects_v2", None, arguments)
        return read_page(response, start_after, page_token, page_size)

    async def create_multipart(self, key: str, *, metadata: Metadata = NO_METADATA) -> S3Upload:
        arguments = self._new_object(key, metadata)
        with explained_refusals(key):
            response = await self._bucket.call("create_multipart_upload", key, arguments)
        return self.resume_multipart(key, response["UploadId"])

    def resume_multipart(self, key: str, upload_id: str) -> S3Upload:
        check_key(key)
        return S3Upload(self._bucket, key, upload_id)

    async def list_multipart_uploads(self, prefix: str = "") -> Sequence[UploadInfo]:
        """Return the uploads; ends on a page without news, too, as some stores say "more" and not where."""
        found: dict[tuple[str, str], UploadInfo] = {}
        markers: dict[str, str] = {}
        while True:
            arguments = {"Prefix": prefix, "EncodingType": "url", **markers}
            response = await self._bucket.call("list_multipart_uploads", None, arguments)
            uploads = read_uploads(response)
            news = [each for each in uploads if (each.key, each.upload_id) not in found]
            found |= {(each.key, each.upload_id): each for each in news}
            if not response.get("IsTruncated") or not news:
                return tuple(each for each in found.values() if each.key.startswith(prefix))
            markers = {"KeyMarker": news[-1].key, "UploadIdMarker": news[-1].upload_id}

    async def aclose(self) -> None:
        await self._bucket.aclose()

    def _new_object(self, key: str, metadata: Metadata) -> Arguments:
        check_key(key)
        return {"Metadata": encode_metadata(metadata), **self._bucket.new_object_arguments}

    async def _copy_otherwise(
        self,
        error: StorageError,
        source: str,
        target: str,
        if_match: str | None,
        metadata: Metadata | None,
        mode: PutMode,
    ) -> str:
        """Raise the error for a copy that S3 refused with a code that says too little, or make the copy in another way.

        SeaweedFS 4.48 does not find directory markers as sources of copies; they are empty, so a put does the same.
        """
        info = await self.head(source)
        check_copy_size(source, info.size)
        check_if_match(source, if_match, info.etag)
        if isinstance(error, NotFound) and isinstance(mode, IfMatch):
            check_mode(target, mode, await self._bucket.current_etag(target))
        if isinstance(error, NotFound) and info.size == 0:
            kept = metadata if metadata is not None else info.metadata or NO_METADATA
            return await self.put(target, b"", metadata=kept, mode=mode)
        raise error

    async def _delete_one(self, key: str, if_match: str | None, failures: dict[str, StorageError]) -> None:
        try:
            await self.delete(key, if_match=if_match)
        except StorageError as error:
            failures[key] = error


def _log_what_is_missing(capabilities: Capabilities) -> None:
    conditions = {
        "creations": capabilities.create_only,
        "overwrites": capabilities.if_match,
        "completions of uploads": capabilities.conditional_complete,
        "copies": capabilities.conditional_copy,
        "deletions": capabilities.conditional_delete and capabilities.conditional_delete_many,
    }
    missing = [name for name, honoured in conditions.items() if not honoured]
    if missing:
        _log.warning(
            "the store ignores conditions on %s: fusefs looks first and then acts, so what somebody else writes"
            " in between is overwritten",
            ", ".join(missing),
        )
    if not capabilities.checksums:
        _log.info("the store gets no checksums with objects, so damage on the way to it is not noticed")
    if not capabilities.copy_part:
        _log.info("the store copies no parts: a change in a large file sends all of it")
