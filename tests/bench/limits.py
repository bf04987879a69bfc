"""What the store allows by itself: the same bytes through an S3 client, one request after the other."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from tests.bench.arena import KIB, MIB, Figure, Sizes, Span, pattern
from tests.bench.raw_client import RawClient
from tests.bench.usage import RequestCounter

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

NAME: Final = "S3 client"
LISTINGS: Final = ("listing of some objects", "listing of many objects")


def measure_limits(
    client: S3Client, bucket: str, sizes: Sizes, count_requests: RequestCounter
) -> list[Figure]:
    """Measure PUTs of what a commit is about, GETs of a block, and one object of the size of a stream."""
    client.meta.events.register_last("before-call.s3", _send_at_once)
    key, stream = f"limits-{uuid.uuid4().hex}", pattern(1, sizes.stream_bytes)
    figures = []

    def timed(
        what: str, unit: str, times: int, call: Callable[[], object], value: Callable[[float], float]
    ) -> None:
        latencies, asked = [], count_requests()
        for _ in range(times):
            began = time.perf_counter()
            call()
            latencies.append(time.perf_counter() - began)
        span = Span(seconds=sum(latencies), requests=count_requests() - asked)
        median = sorted(latencies)[times // 2]
        figures.append(Figure(what=what, value=value(median), unit=unit, span=span))

    page = pattern(2, 8 * KIB)
    timed(
        "one PUT of 8 KiB, p50",
        "ms",
        sizes.commits,
        lambda: client.put_object(Bucket=bucket, Key=key, Body=page),
        lambda seconds: seconds * 1e3,
    )
    timed(
        "one PUT of the stream",
        "MiB/s",
        1,
        lambda: client.put_object(Bucket=bucket, Key=key, Body=stream),
        lambda seconds: len(stream) / MIB / seconds,
    )
    timed(
        "one GET of 4 KiB, p50",
        "ms",
        sizes.random_reads,
        lambda: client.get_object(Bucket=bucket, Key=key, Range="bytes=4096-8191")["Body"].read(),
        lambda seconds: seconds * 1e3,
    )
    timed(
        "one GET of the stream",
        "MiB/s",
        1,
        lambda: client.get_object(Bucket=bucket, Key=key)["Body"].read(),
        lambda seconds: len(stream) / MIB / seconds,
    )
    client.delete_object(Bucket=bucket, Key=key)
    return figures


def measure_listings(
    endpoint: str, bucket: str, prefix: str, sizes: Sizes, count_requests: RequestCounter
) -> list[Figure]:
    """Measure what the store takes to list directories, by a client that only asks."""
    client, figures = RawClient(endpoint, bucket), []
    for what, name in zip(LISTINGS, sizes.listed, strict=True):
        asked, began = count_requests(), time.perf_counter()
        found = sum(page.count(b"<Key>") for page in client.list_pages(f"{prefix}{name}/"))
        span = Span(seconds=time.perf_counter() - began, requests=count_requests() - asked)
        if found < sizes.listed[name]:
            raise OSError(f"the store lists {found} of {sizes.listed[name]} objects")
        figures.append(Figure(what=what, value=span.seconds, unit="s", span=span))
    client.close()
    return figures


def _send_at_once(params: dict[str, Any], **_: object) -> None:
    """Spare a PUT the round trip of "100 Continue": it is a limit."""
    params["headers"].pop("Expect", None)
