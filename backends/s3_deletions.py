"""Deleting many objects of an S3 bucket at once, each only in the version that it is meant in.

S3 takes an ETag for each key of a batch. Where a store ignores it (`conditional_delete_many`), a listing just before
tells which versions are there: one request for as many keys as the batch has, if they are neighbours, as those of a
tree that is removed are. What a few pages do not tell is looked at one by one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from backends.errors import NotFound, StorageError
from backends.rules import check_if_match
from backends.s3_client import Bucket
from backends.s3_errors import from_code
from backends.s3_listing import position, read_page
from backends.s3_values import quote_etag

MAX_PAGES: Final = 4
"""Of the listing that is looked at before a batch: a thousand neighbours are on one page, or on two."""


async def delete_batch(
    bucket: Bucket, keys: Sequence[str], if_match: Mapping[str, str]
) -> dict[str, StorageError]:
    """Remove objects with one request of DeleteObjects and return what failed. Raises `NotSupported`."""
    conditions = {key: if_match[key] for key in keys if key in if_match}
    failures: dict[str, StorageError] = {}
    if conditions and not bucket.dialect.capabilities.conditional_delete_many:
        failures = await _changed(bucket, conditions)
        conditions = {}
    wanted = [_identifier(key, conditions.get(key)) for key in keys if key not in failures]
    if not wanted:
        return failures
    response = await bucket.call("delete_objects", None, {"Delete": {"Objects": wanted, "Quiet": True}})
    for entry in response.parts("Errors"):
        key, code = entry["Key"], entry.get("Code", "")
        error = from_code(code, entry.get("Message", ""), bucket.request("delete_objects", key))
        if not isinstance(error, NotFound):
            failures[key] = error
    return failures


def _identifier(key: str, etag: str | None) -> dict[str, str]:
    return {"Key": key} if etag is None else {"Key": key, "ETag": quote_etag(etag)}


async def _changed(bucket: Bucket, conditions: Mapping[str, str]) -> dict[str, StorageError]:
    """Return a failure for each key whose object is there in another version."""
    found, is_complete = await _listed_etags(bucket, _common_prefix(min(conditions), max(conditions)))
    failures: dict[str, StorageError] = {}
    for key, etag in conditions.items():
        current = found.get(key)
        if current is None and not is_complete:
            current = await bucket.current_etag(key)
        if current is not None:
            try:
                check_if_match(key, etag, current)
            except StorageError as error:
                failures[key] = error
    return failures


def _common_prefix(first: str, last: str) -> str:
    """Return what the first and the last of some keys begin with, and all between them as well."""
    length = 0
    for one, other in zip(first, last, strict=False):
        if one != other:
            break
        length += 1
    return first[:length]


async def _listed_etags(bucket: Bucket, prefix: str) -> tuple[dict[str, str], bool]:
    """Return the ETags of the objects under a prefix by key, and whether these are all."""
    found: dict[str, str] = {}
    token: str | None = None
    for _ in range(MAX_PAGES):
        arguments: dict[str, Any] = {"Prefix": prefix, "MaxKeys": 1_000, **position("", token)}
        response = await bucket.call("list_objects_v2", None, arguments)
        page = read_page(response, "", token, 1_000)
        found |= {info.key: info.etag for info in page.objects}
        token = page.next_token
        if token is None:
            return found, True
    return found, False
