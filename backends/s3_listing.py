"""S3's listings as pages of the seam."""

from __future__ import annotations

import urllib.parse
from collections.abc import Mapping
from typing import Any

from backends.base import ListPage, ObjectInfo, UploadInfo
from backends.errors import StoreCorrupt
from backends.s3_client import Response
from backends.s3_values import nanoseconds, unquote_etag


def read_page(response: Response, start_after: str, token: str | None) -> ListPage:
    """Return the page that `ListObjectsV2` answered.

    Stores disagree whether `StartAfter` leaves out a rolled-up prefix that begins at or before it; here it does.
    Raises `StoreCorrupt` for a page that does not lead on, or a caller would ask for ever.
    """
    next_token = response.get("NextContinuationToken") if response.get("IsTruncated") else None
    if response.get("IsTruncated") and (not next_token or next_token == token):
        raise StoreCorrupt("the store says that a listing goes on, and not where")
    objects = (_object(entry) for entry in response.get("Contents", []))
    prefixes = (entry["Prefix"] for entry in response.get("CommonPrefixes", []))
    return ListPage(
        objects=tuple(info for info in objects if info.key > start_after),
        prefixes=tuple(prefix for prefix in prefixes if prefix > start_after),
        next_token=next_token,
    )


def read_uploads(response: Response) -> list[UploadInfo]:
    """Return the uploads that one page of `ListMultipartUploads` names."""
    encoded = response.get("EncodingType") == "url"
    return [
        UploadInfo(
            key=urllib.parse.unquote_plus(entry["Key"]) if encoded else entry["Key"],
            upload_id=entry["UploadId"],
            initiated_ns=nanoseconds(entry["Initiated"]),
        )
        for entry in response.get("Uploads", [])
    ]


def _object(entry: Mapping[str, Any]) -> ObjectInfo:
    return ObjectInfo(
        key=entry["Key"],
        etag=unquote_etag(entry["ETag"]),
        size=entry["Size"],
        last_modified_ns=nanoseconds(entry["LastModified"]),
    )
