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


class Limits:
    """Measures one S3 client, which asks for one thing after the other."""

    def __init__(self, client: S3Client, bucket: str, sizes: Sizes, count_requests: RequestCounter) -> None:
        client.meta.events.register_last("before-call.s3", _send_at_once)
        self._client, self._bucket, self._sizes = client, bucket, sizes
        self._count_requests = count_requests
        self._key = f"limits-{uuid.uuid4().hex}"

    def commits(self) -> list[Figure]:
        """Measure PUTs of what a commit is about."""
        page = pattern(2, 8 * KIB)
        span, median = self._timed(self._sizes.commits, lambda: self._put(page))
        self._client.delete_object(Bucket=self._bucket, Key=self._key)
        return [Figure(what="one PUT of 8 KiB, p50", value=median * 1e3, unit="ms", span=span)]

    def streams(self) -> list[Figure]:
        """Measure one object of the size of a stream, and GETs of blocks of it."""
        content, figures = pattern(1, self._sizes.stream_bytes), []
        for what, call in (("one PUT", lambda: self._put(content)), ("one GET", self._get)):
            span, seconds = self._timed(1, call)
            rate = len(content) / MIB / seconds
            figures.append(Figure(what=f"{what} of the stream", value=rate, unit="MiB/s", span=span))
        span, median = self._timed(self._sizes.random_reads, lambda: self._get("bytes=4096-8191"))
        figures.append(Figure(what="one GET of 4 KiB, p50", value=median * 1e3, unit="ms", span=span))
        self._client.delete_object(Bucket=self._bucket, Key=self._key)
        return figures

    def _put(self, data: bytes) -> None:
        self._client.put_object(Bucket=self._bucket, Key=self._key, Body=data)

    def _get(self, wanted: str = "bytes=0-") -> None:
        self._client.get_object(Bucket=self._bucket, Key=self._key, Range=wanted)["Body"].read()

    def _timed(self, times: int, call: Callable[[], None]) -> tuple[Span, float]:
        """Return the span of all calls, and the median of their seconds."""
        latencies, asked = [], self._count_requests()
        for _ in range(times):
            began = time.perf_counter()
            call()
            latencies.append(time.perf_counter() - began)
        span = Span(seconds=sum(latencies), requests=self._count_requests() - asked)
        return span, sorted(latencies)[times // 2]


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
