"""S3's listings as pages of the seam."""

from __future__ import annotations

import urllib.parse
from collections.abc import Mapping
from typing import Any, Final

from backends.base import ListPage, ObjectInfo, UploadInfo
from backends.errors import StoreCorrupt, Unavailable
from backends.s3_client import Response
from backends.s3_values import nanoseconds, unquote_etag

#: First letter of our page tokens: what follows is the store's own, or the last name of the page before.
_BY_TOKEN: Final = "t"
_BY_NAME: Final = "n"


def position(start_after: str, token: str | None) -> dict[str, str]:
    """Return the arguments that say where a page begins; `token` is the `next_token` of the page before."""
    if token is None:
        return {"StartAfter": start_after} if start_after else {}
    kind, value = token[0], token[1:]
    return {"ContinuationToken" if kind == _BY_TOKEN else "StartAfter": value}


def read_page(response: Response, start_after: str, token: str | None, page_size: int) -> ListPage:
    """Return the page that `ListObjectsV2` answered.

    Stores that keep a tree list it in another order, which is put right within the page. Stores disagree whether
    `StartAfter` leaves out a rolled-up prefix that begins at or before it; here it does.
    Raises `StoreCorrupt` for a page that does not lead on, or a caller would ask for ever, and `Unavailable` where an
    entry lacks what S3 always says.
    """
    try:  # and not `Response.parts`, of which there would be one for each of thousands of entries
        objects = [_object(entry) for entry in response.get("Contents", [])]
        prefixes = [entry["Prefix"] for entry in response.get("CommonPrefixes", [])]
    except KeyError as missing:
        raise Unavailable(f"the store listed something without {missing}") from missing
    next_token = _next_token(response, [*(info.key for info in objects), *prefixes], page_size)
    if next_token in {token, _BY_TOKEN} and next_token is not None:
        raise StoreCorrupt("the store says that a listing goes on, and not where")
    return ListPage(
        objects=tuple(sorted((info for info in objects if info.key > start_after), key=_key)),
        prefixes=tuple(sorted(prefix for prefix in prefixes if prefix > start_after)),
        next_token=next_token,
    )


def _next_token(response: Response, names: list[str], page_size: int) -> str | None:
    if response.get("IsTruncated"):
        return f"{_BY_TOKEN}{response.get('NextContinuationToken', '')}"
    # SeaweedFS 4.48 forgets what is below a marker that ends a page, if nothing else comes after.
    if len(names) < page_size or not names[-1].endswith("/") or response.get("Delimiter"):
        return None
    return _BY_NAME + names[-1]


def read_uploads(response: Response) -> list[UploadInfo]:
    """Return the uploads that one page of `ListMultipartUploads` names."""
    encoded = response.get("EncodingType") == "url"
    return [
        UploadInfo(
            key=urllib.parse.unquote_plus(entry["Key"]) if encoded else entry["Key"],
            upload_id=entry["UploadId"],
            initiated_ns=nanoseconds(entry["Initiated"]) if "Initiated" in entry else 0,
        )
        for entry in response.parts("Uploads")
    ]


def _object(entry: Mapping[str, Any]) -> ObjectInfo:
    return ObjectInfo(
        key=entry["Key"],
        etag=unquote_etag(entry["ETag"]),
        size=entry["Size"],
        last_modified_ns=nanoseconds(entry["LastModified"]),
    )


def _key(info: ObjectInfo) -> str:
    return info.key
