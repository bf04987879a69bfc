"""What the tests of the S3 store share."""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING, Any

from backends.s3_client import create_client
from backends.s3_options import S3Options
from tests.support.seaweedfs import ACCESS_KEY, SECRET_KEY, SeaweedFS

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


def options_of(server: SeaweedFS, **changes: Any) -> S3Options:
    """Options for the full account of a test server, with `changes`."""
    options = S3Options(
        bucket=server.bucket,
        endpoint=server.endpoint,
        region=server.region,
        addressing="path",
        access_key=ACCESS_KEY,
        secret_key=SECRET_KEY,
        connect_timeout_seconds=5,
    )
    return dataclasses.replace(options, **changes)


@functools.cache
def shared_client(options: S3Options) -> S3Client:
    """One client for all stores of the same options: making one costs more than most tests. It may be closed often."""
    return create_client(options)
