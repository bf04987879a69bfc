"""A prefix of a bucket as boto3 shows it: what everybody else than fusefs sees."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from botocore.exceptions import ClientError

from fusefs.journal_format import JOURNAL_PREFIX, SEAL_SIZES
from fusefs.stored_lease import LEASE_KEY
from fusefs.tree_index import INDEX_PREFIX
from fusefs.upload_notes import NOTES_PREFIX

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import CompletedPartTypeDef, ObjectIdentifierTypeDef

HOUSEKEEPING: Final = (LEASE_KEY, JOURNAL_PREFIX, INDEX_PREFIX, NOTES_PREFIX)
"""What a mount keeps for itself, and that no file is about."""

_CHUNK: Final = 1024 * 1024
_PAGE: Final = 1000


@dataclass(frozen=True, slots=True)
class Bucket:
    """The objects below `prefix`, by their keys without it."""

    client: S3Client
    name: str
    prefix: str

    @property
    def url(self) -> str:
        return f"s3://{self.name}/{self.prefix}"

    def sizes(self, *, housekeeping: bool = False) -> dict[str, int]:
        """List what is there, with sizes; the lease, the log and the index only with `housekeeping`."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.name, Prefix=self.prefix)
        return {
            entry["Key"].removeprefix(self.prefix): entry["Size"]
            for page in pages
            for entry in page.get("Contents", [])
            if housekeeping or not entry["Key"].removeprefix(self.prefix).startswith(HOUSEKEEPING)
        }

    def log_size(self) -> int:
        """Return the bytes of the batches of the log that tell of something: an empty log has others at most."""
        return sum(
            size
            for key, size in self.sizes(housekeeping=True).items()
            if key.startswith(JOURNAL_PREFIX) and size not in SEAL_SIZES
        )

    def log_holds(self, data: bytes) -> bool:
        """Whether a batch of the log carries these bytes."""
        for key in self.sizes(housekeeping=True):
            if key.startswith(JOURNAL_PREFIX):
                with suppress(ClientError):  # it may have been trimmed since it was listed
                    if data in self.read(key):
                        return True
        return False

    def read(self, key: str) -> bytes:
        return self.client.get_object(Bucket=self.name, Key=self.prefix + key)["Body"].read()

    def read_range(self, key: str, start: int, length: int) -> bytes:
        wanted = f"bytes={start}-{start + length - 1}"
        return self.client.get_object(Bucket=self.name, Key=self.prefix + key, Range=wanted)["Body"].read()

    def etag(self, key: str) -> str:
        """Return the ETag; one of an object that went up in parts ends with a hyphen and their number."""
        return self.client.head_object(Bucket=self.name, Key=self.prefix + key)["ETag"].strip('"')

    def metadata(self, key: str) -> Mapping[str, str]:
        """Return an object's metadata; none where there is no object."""
        try:
            return self.client.head_object(Bucket=self.name, Key=self.prefix + key)["Metadata"]
        except ClientError:
            return {}

    def digest(self, key: str) -> str:
        """Return the SHA-256 of an object, read in pieces."""
        body = self.client.get_object(Bucket=self.name, Key=self.prefix + key)["Body"]
        digest = hashlib.sha256()
        for chunk in body.iter_chunks(_CHUNK):
            digest.update(chunk)
        return digest.hexdigest()

    def put(self, key: str, data: bytes) -> None:
        self.client.put_object(Bucket=self.name, Key=self.prefix + key, Body=data)

    def delete(self, key: str) -> None:
        self.client.delete_object(Bucket=self.name, Key=self.prefix + key)

    def put_copies(self, key: str, source: str, count: int) -> None:
        """Make an object of `count` copies of another one, inside the server."""
        target = self.prefix + key
        upload_id = self.client.create_multipart_upload(Bucket=self.name, Key=target)["UploadId"]
        parts: list[CompletedPartTypeDef] = []
        for number in range(1, count + 1):
            copied = self.client.upload_part_copy(
                Bucket=self.name,
                Key=target,
                UploadId=upload_id,
                PartNumber=number,
                CopySource={"Bucket": self.name, "Key": self.prefix + source},
            )
            parts.append({"PartNumber": number, "ETag": copied["CopyPartResult"]["ETag"]})
        self.client.complete_multipart_upload(
            Bucket=self.name, Key=target, UploadId=upload_id, MultipartUpload={"Parts": parts}
        )

    def clear(self) -> None:
        """Remove everything, parts of unfinished uploads included."""
        keys = [self.prefix + key for key in self.sizes(housekeeping=True)]
        for first in range(0, len(keys), _PAGE):
            objects: list[ObjectIdentifierTypeDef] = [{"Key": key} for key in keys[first : first + _PAGE]]
            self.client.delete_objects(Bucket=self.name, Delete={"Objects": objects, "Quiet": True})
        for upload in self.unfinished_uploads():
            self.client.abort_multipart_upload(Bucket=self.name, Key=upload[0], UploadId=upload[1])

    def unfinished_uploads(self) -> list[tuple[str, str]]:
        """Return key and id of the multipart uploads that were begun and not ended."""
        answer = self.client.list_multipart_uploads(Bucket=self.name, Prefix=self.prefix)
        return [(upload["Key"], upload["UploadId"]) for upload in answer.get("Uploads", [])]
