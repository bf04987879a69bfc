"""What the tests of the S3 store share."""

from __future__ import annotations

import dataclasses
import functools
import io
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from botocore.awsrequest import AWSPreparedRequest, AWSResponse, HeadersDict
from urllib3.response import HTTPResponse

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


@functools.cache
def _wired_client(options: S3Options) -> S3Client:
    return create_client(options)


class Wire:
    """A way to look at the requests of a store, and to answer some of them instead of a server.

    `factory` is for `S3Storage(client_factory=...)`. Answers that were prepared with `answer` are used up in order,
    one for each request; without any the request goes to the server.
    """

    def __init__(self) -> None:
        self.requests: list[AWSPreparedRequest] = []
        self._answers: list[tuple[int, bytes, dict[str, str]]] = []

    def factory(self, options: S3Options) -> S3Client:
        # Credentials that are looked for in the environment belong to one test.
        client = create_client(options) if options.access_key is None else _wired_client(options)
        events = client.meta.events
        events.unregister("before-send.s3", unique_id="wire")
        events.register("before-send.s3", self._before_send, unique_id="wire")  # type: ignore[arg-type]
        return client

    def answer(self, status: int = 200, body: bytes = b"", **headers: str) -> None:
        """Prepare an answer; underscores in the names of headers are dashes."""
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        self._answers.append((status, body, {"content-length": str(len(body)), **names}))

    def answer_error(self, status: int, code: str, message: str = "why") -> None:
        self.answer(status, error_body(code, message))

    def header(self, name: str, request: int = -1) -> str | None:
        """A header of the last request, or of another one."""
        value = self.requests[request].headers.get(name)
        return value.decode() if isinstance(value, bytes) else value

    def _before_send(self, request: AWSPreparedRequest, **_: object) -> AWSResponse | None:
        self.requests.append(request)
        if not self._answers:
            return None
        status, body, headers = self._answers.pop(0)
        return answer_of(request, status, body, headers)


def answer_of(
    request: AWSPreparedRequest, status: int, body: bytes, headers: Mapping[str, str] | None = None
) -> AWSResponse:
    """Return an answer that no server has given."""
    headers = headers or {"content-length": str(len(body))}
    answer = HTTPResponse(
        io.BytesIO(body),
        headers=headers,
        status=status,
        preload_content=False,
        request_method=request.method,
    )
    return AWSResponse(request.url, status, HeadersDict(headers), answer)  # type: ignore[arg-type]


def error_body(code: str, message: str = "why") -> bytes:
    return f"<Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()
