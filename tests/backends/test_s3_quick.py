"""The quicker client: which way it goes, what it leaves to botocore, and what it makes of answers."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

import pytest
from botocore.awsrequest import AWSPreparedRequest
from botocore.credentials import Credentials, RefreshableCredentials

from backends import s3_client, s3_quick
from backends.base import CREATE_ONLY, IfMatch
from backends.errors import (
    AccessDenied,
    AuthenticationFailed,
    BucketNotFound,
    ConcurrentRequest,
    InvalidRequest,
    NotFound,
    PreconditionFailed,
    RangeNotSatisfiable,
    StorageError,
    StoreCorrupt,
    Throttled,
    Unavailable,
    WrongRegion,
)
from backends.s3 import S3Storage
from backends.s3_client import QUICK_RETRY_SECONDS
from backends.s3_options import S3Options
from backends.s3_quick import MAX_BODY, QuickClient, Route, Unreadable, can_put, is_plain, serves
from backends.s3_values import Checksum
from tests.backends.s3_helpers import Wire, options_of
from tests.support.seaweedfs import SeaweedFS

OPTIONS = S3Options(
    bucket="bucket", access_key="key", secret_key="secret", connect_timeout_seconds=1, read_timeout_seconds=1
)
ETAG = hashlib.md5(b"content").hexdigest()


class Answering:
    """A server that gives every request the same answer, and notes the requests."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.leads_puts_elsewhere = False
        self.say()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def say(self, status: int = 200, body: bytes = b"", **headers: str) -> None:
        """Answer like this from now on; underscores in the names of headers are dashes."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        usual = {"ETag": f'"{ETAG}"', "Last-Modified": "Sun, 29 Nov 2026 01:00:00 GMT"}
        self._answer = (status, body, {**usual, "Content-Length": str(len(body)), **named})

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _respond(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                server.requests.append(
                    (self.command, self.path, {k.lower(): v for k, v in self.headers.items()})
                )
                status, body, headers = server._answer
                if self.command == "PUT" and server.leads_puts_elsewhere:
                    status, body, headers = 303, b"", {"Location": "/page", "Content-Length": "0"}
                elif self.path == "/page":
                    status, body, headers = 200, b"page", {"ETag": '"page"', "Content-Length": "4"}
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            do_GET = do_HEAD = do_PUT = _respond  # noqa: N815

            def log_message(self, *_: object) -> None: ...

        return Handler


@pytest.fixture
def server() -> Iterator[Answering]:
    server = Answering()
    yield server
    server.close()


@pytest.fixture
def client(server: Answering) -> QuickClient:
    return QuickClient(OPTIONS, Route(server.endpoint, False, "eu-west-1"), quoted_etags=True, checksums=True)


@pytest.fixture
async def storage(s3_server: SeaweedFS, s3_prefix: str, wire: Wire) -> AsyncIterator[S3Storage]:
    store = S3Storage(options_of(s3_server), probe_prefix=s3_prefix, client_factory=wire.factory, quick=True)
    await store.probe()
    wire.requests.clear()
    yield store
    await store.aclose()


@pytest.fixture
def wire() -> Wire:
    return Wire()


# The way


def _request(url: str, authorization: str | bytes) -> AWSPreparedRequest:
    headers: Any = {"Authorization": authorization}
    return AWSPreparedRequest("GET", url, headers, b"", False)


SIGNED = "AWS4-HMAC-SHA256 Credential=key/20261129/eu-west-1/s3/aws4_request, SignedHeaders=host, Signature=0"


@pytest.mark.parametrize(
    ("url", "endpoint", "is_virtual"),
    [
        ("http://127.0.0.1:8333/bucket?list-type=2&prefix=bucket", "http://127.0.0.1:8333", False),
        ("http://host/s3/bucket/?list-type=2", "http://host/s3", False),
        (
            "https://bucket.s3.eu-west-1.amazonaws.com/?list-type=2",
            "https://bucket.s3.eu-west-1.amazonaws.com",
            True,
        ),
        (
            "https://bucket.s3.eu-west-1.amazonaws.com?list-type=2",
            "https://bucket.s3.eu-west-1.amazonaws.com",
            True,
        ),
    ],
)
@pytest.mark.parametrize("authorization", [SIGNED, SIGNED.encode()])
def test_it_goes_where_botocore_went(
    url: str, endpoint: str, is_virtual: bool, authorization: str | bytes
) -> None:
    assert Route.of(_request(url, authorization), "bucket") == Route(endpoint, is_virtual, "eu-west-1")


def test_what_is_signed_in_another_way_shows_none() -> None:
    assert Route.of(_request("http://host/bucket", ""), "bucket") is None
    assert Route.of(_request("http://host/bucket", SIGNED.replace("/s3/", "/s3express/")), "bucket") is None


@pytest.mark.parametrize(
    "key", ["a", "a/b", "a b/ü%20+~*'()!$&,:;=@", "...", ".a/..b", "a\\b", "\u2028", "%2F"]
)
def test_a_key_arrives_as_it_is(key: str, client: QuickClient, server: Answering) -> None:
    assert is_plain(key)
    client.head(key)
    assert unquote(server.requests[-1][1]) == f"/bucket/{key}"


@pytest.mark.parametrize(
    "key", ["", "/", "a/", "/a", "a//b", ".", "..", "a/./b", "../a", "a/..", "a\tb", "a\n", "a\x7f", "a\0"]
)
def test_other_keys_are_left_to_botocore(key: str) -> None:
    assert not is_plain(key)


@pytest.mark.parametrize(
    "name", ["AWS_SERVER_SIDE_ENCRYPTION", "AWS_SSE_CUSTOMER_KEY_BASE64", "AWS_S3_EXPRESS"]
)
def test_what_it_would_take_from_the_environment_keeps_it_out(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "true")
    assert not serves(OPTIONS)


@pytest.mark.parametrize(
    "choice",
    [
        {"anonymous": True, "access_key": None, "secret_key": None},
        {"requester_pays": True},
        {"ca_bundle": "/ca.pem"},
        {"verify_tls": False},
        {"server_side_encryption": "AES256"},
        {"storage_class": "STANDARD_IA"},
        {"checksum": "crc32"},
    ],
    ids=str,
)
def test_options_that_it_does_not_know_are_left_to_botocore(choice: dict[str, Any]) -> None:
    assert serves(OPTIONS)
    assert not serves(dataclasses.replace(OPTIONS, **choice))


async def test_small_requests_go_past_botocore(storage: S3Storage, s3_prefix: str, wire: Wire) -> None:
    key = f"{s3_prefix}file"
    etag = await storage.put(key, b"content", metadata={"mode": "1", "name": "ü"}, mode=CREATE_ONLY)
    etag = await storage.put(key, memoryview(b"more content"), metadata={"name": "ü"}, mode=IfMatch(etag))
    info = await storage.head(key)
    assert (info.etag, info.size, info.metadata) == (etag, 12, {"name": "ü"})
    assert (await storage.get_range(key)).data == b"more content"
    assert (await storage.get_range(key, 5)).data == b"content"
    assert (await storage.get_range(key, 5, 100, if_match=etag)).data == b"content"
    with pytest.raises(PreconditionFailed):
        await storage.put(key, b"", mode=CREATE_ONLY)
    with pytest.raises(PreconditionFailed):
        await storage.put(f"{key}-gone", b"", mode=IfMatch(etag))
    with pytest.raises(RangeNotSatisfiable):
        await storage.get_range(key, 12, 1)
    with pytest.raises(NotFound):
        await storage.head(f"{key}-gone")
    assert wire.requests == []
    await storage.delete(key)


async def test_a_failure_that_passes_does_not_end_it(
    s3_server: SeaweedFS, s3_prefix: str, wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store was busy when it was tried whether obstore works: it is tried again after a minute."""
    trials = 0

    def make(*arguments: Any, **more: Any) -> QuickClient:
        nonlocal trials
        trials += 1
        if trials == 1:
            raise Throttled("SlowDown")
        return QuickClient(*arguments, **more)

    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr(s3_client, "QuickClient", make)
    store = S3Storage(options_of(s3_server), probe_prefix=s3_prefix, client_factory=wire.factory, quick=True)
    await store.probe()
    await store.put(f"{s3_prefix}k", b"bytes")
    wire.requests.clear()
    await store.head(f"{s3_prefix}k")
    assert len(wire.requests) == trials == 1
    now = QUICK_RETRY_SECONDS
    await store.head(f"{s3_prefix}k")
    assert (len(wire.requests), trials) == (1, 2)
    await store.aclose()


async def test_large_bodies_and_odd_keys_do_not(storage: S3Storage, s3_prefix: str, wire: Wire) -> None:
    await storage.put(f"{s3_prefix}large", bytes(MAX_BODY + 1))
    await storage.put(f"{s3_prefix}marker/", b"")
    await storage.head(f"{s3_prefix}marker/")
    assert [request.method for request in wire.requests] == ["PUT", "PUT", "HEAD"]
    await storage.delete_many([f"{s3_prefix}large", f"{s3_prefix}marker/"])


async def test_another_way_to_a_probed_bucket_needs_no_probe(
    storage: S3Storage, s3_server: SeaweedFS, s3_prefix: str
) -> None:
    wire = Wire()
    beside = S3Storage(options_of(s3_server), client_factory=wire.factory, known=storage, quick=True)
    await beside.put(f"{s3_prefix}beside", b"")
    assert wire.requests == []
    await beside.delete(f"{s3_prefix}beside")
    await beside.aclose()


@pytest.fixture
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)


def _all_proxy(endpoint: str) -> dict[str, str]:
    return {"ALL_PROXY": "http://127.0.0.1:1"}


def _no_proxy_with_a_port(endpoint: str) -> dict[str, str]:
    return {"http_proxy": "http://127.0.0.1:1", "no_proxy": endpoint.removeprefix("http://")}


@pytest.mark.usefixtures("no_proxies")
@pytest.mark.parametrize("variables", [_all_proxy, _no_proxy_with_a_port])
def test_no_proxy_is_asked_that_botocore_does_not_ask(
    variables: Callable[[str], dict[str, str]], server: Answering, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or else the probe would be answered, and nothing after it."""
    for name, value in variables(server.endpoint).items():
        monkeypatch.setenv(name, value)
    QuickClient(OPTIONS, Route(server.endpoint, False, "eu-west-1"), quoted_etags=True, checksums=True).head(
        "key"
    )
    assert len(server.requests) == 1


@pytest.mark.usefixtures("no_proxies")
def test_the_proxy_of_botocore_is_asked(server: Answering, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", server.endpoint)
    route = Route("http://store.example", False, "eu-west-1")
    QuickClient(OPTIONS, route, quoted_etags=True, checksums=True).head("key")
    assert server.requests[0][1] == "http://store.example/bucket/key"


# Credentials


@pytest.mark.parametrize(
    "endpoint", ["AWS_ENDPOINT", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_S3_ENDPOINT"]
)
def test_what_the_environment_says_to_obstore_does_not_count(
    endpoint: str, server: Answering, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", "of somebody else")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "other")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "other")
    monkeypatch.setenv(endpoint, "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_PROXY_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")
    QuickClient(OPTIONS, Route(server.endpoint, False, "eu-west-1"), quoted_etags=True, checksums=True).head(
        "key"
    )
    headers = server.requests[-1][2]
    assert "Credential=key/" in headers["authorization"]
    assert "/eu-west-1/s3/" in headers["authorization"]
    assert "x-amz-security-token" not in headers


def test_credentials_come_from_the_chain_of_boto3(server: Answering, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "of-the-environment")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "token")
    options = S3Options(bucket="bucket")
    QuickClient(options, Route(server.endpoint, False, "eu-west-1"), quoted_etags=True, checksums=True).head(
        "key"
    )
    headers = server.requests[-1][2]
    assert "Credential=of-the-environment/" in headers["authorization"]
    assert headers["x-amz-security-token"] == "token"


@pytest.mark.parametrize(("seconds", "expected"), [(60, 60), (100_000, 300)])
def test_credentials_are_asked_for_again_before_they_end(seconds: int, expected: int) -> None:
    """A process or an agent that keeps them may give some that end in a minute; obstore asks five minutes ahead."""
    end = datetime.now(UTC) + timedelta(seconds=seconds)
    given = {"access_key": "key", "secret_key": "secret", "token": "token", "expiry_time": end.isoformat()}
    credentials = RefreshableCredentials.create_from_metadata(given, lambda: given, "process")
    expires_at = s3_quick._Provider(credentials)()["expires_at"]
    assert expires_at is not None
    asked_again_in = expires_at - timedelta(minutes=5) - datetime.now(UTC)
    assert abs(asked_again_in.total_seconds() - expected) < 30


def test_credentials_that_cannot_be_had_are_left_to_botocore_to_complain_of(
    server: Answering, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing was sent, so this is no outage."""
    client = QuickClient(
        OPTIONS, Route(server.endpoint, False, "eu-west-1"), quoted_etags=True, checksums=True
    )

    def expired(_: object) -> None:
        raise RuntimeError("the login has expired")

    monkeypatch.setattr(Credentials, "get_frozen_credentials", expired)
    with pytest.raises(Unreadable):
        client.put("key", b"", {}, CREATE_ONLY)
    assert server.requests == []


# Answers


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (404, "NoSuchKey", NotFound),
        (404, "NoSuchBucket", BucketNotFound),
        (404, "", Unavailable),
        (412, "PreconditionFailed", PreconditionFailed),
        (409, "ConditionalRequestConflict", ConcurrentRequest),
        (403, "AccessDenied", AccessDenied),
        (403, "SignatureDoesNotMatch", AuthenticationFailed),
        (400, "ExpiredToken", AuthenticationFailed),
        (400, "InvalidArgument", InvalidRequest),
        (416, "InvalidRange", RangeNotSatisfiable),
        (429, "", Throttled),
        (503, "SlowDown", Throttled),
        (500, "InternalError", Unavailable),
        (502, "", Unavailable),
    ],
)
def test_a_refusal_is_what_it_is_through_botocore(
    status: int, code: str, expected: type[StorageError], client: QuickClient, server: Answering
) -> None:
    said = f"<Error><Code>{code}</Code><Message>why</Message></Error>" if code else "<html>why</html>"
    server.say(status, said.encode())
    for ask in (
        lambda: client.get_range("key", 0, 5, None),
        lambda: client.put("key", b"", {}, CREATE_ONLY),
        lambda: client.put("key", b"", {}, IfMatch("etag")),
    ):
        with pytest.raises(StorageError) as caught:
            ask()
        assert type(caught.value) is expected
        assert f"'key' in bucket 'bucket': {code or status}" in str(caught.value)
        assert "\n" not in str(caught.value)
        assert "secret" not in str(caught.value)
    assert len(server.requests) == 3  # nothing is repeated here


def test_a_head_is_judged_by_its_status(client: QuickClient, server: Answering) -> None:
    for status, expected in ((404, NotFound), (403, AccessDenied), (503, Unavailable)):
        server.say(status)
        with pytest.raises(expected):
            client.head("key")


@pytest.mark.parametrize(
    "key",
    [
        "Error performing GET x in 1ms - Server returned non-2xx status code: 503 a: ",
        "k: Error performing GET x in 1ms - Server returned non-2xx status code: 503 a: ",
        "HTTP error",
    ],
)
def test_a_name_is_not_taken_for_an_answer(key: str, client: QuickClient, server: Answering) -> None:
    for status, expected in ((404, NotFound), (412, PreconditionFailed), (403, AccessDenied)):
        server.say(status)
        with pytest.raises(expected):
            client.head(key)


def test_the_bucket_of_another_region_is_said_to_be_there(client: QuickClient, server: Answering) -> None:
    said = b"<Error><Code>AuthorizationHeaderMalformed</Code><Region>eu-central-1</Region></Error>"
    server.say(400, said)
    with pytest.raises(WrongRegion, match="eu-central-1"):
        client.get_range("key", 0, 5, None)
    server.say(301)
    with pytest.raises(Unreadable):
        client.put("key", b"", {}, CREATE_ONLY)


def test_a_body_goes_with_its_checksum(client: QuickClient, server: Answering) -> None:
    client.put("key", b"content", {}, CREATE_ONLY)
    digest = base64.b64encode(hashlib.sha256(b"content").digest()).decode()
    assert server.requests[-1][2]["x-amz-checksum-sha256"] == digest


def test_what_obstore_cannot_put_as_it_is_is_left_to_botocore() -> None:
    assert can_put(MAX_BODY, {"mode": "1"}, Checksum.CRC32)
    assert can_put(0, {}, Checksum.NONE)
    assert not can_put(MAX_BODY + 1, {}, Checksum.CRC32)
    assert not can_put(0, {"Content-Type": "text/plain"}, Checksum.CRC32)
    assert not can_put(0, {}, Checksum.MD5)


def test_no_answer_is_unavailable() -> None:
    nowhere = QuickClient(
        OPTIONS, Route("http://127.0.0.1:1", False, "eu-west-1"), quoted_etags=True, checksums=True
    )
    for ask in (
        lambda: nowhere.head("key"),
        lambda: nowhere.get_range("key", 0, 5, None),
        lambda: nowhere.put("key", b"", {}, CREATE_ONLY),
    ):
        with pytest.raises(Unavailable, match="Connection refused"):
            ask()


def test_a_body_that_ends_early_is_no_short_object(client: QuickClient, server: Answering) -> None:
    server.say(206, b"cont", Content_Length="7", Content_Range="bytes 0-6/7")
    with pytest.raises(Unavailable):
        client.get_range("key", 0, 7, None)


def test_another_range_than_was_asked_for_is_refused(client: QuickClient, server: Answering) -> None:
    server.say(206, b"ont", Content_Range="bytes 1-3/7")
    with pytest.raises((StoreCorrupt, Unreadable)):
        client.get_range("key", 0, 3, None)


@pytest.mark.parametrize(
    "headers", [{"x_amz_meta_name": "m\xfc"}, {"ETag": "\xfc"}, {"Last_Modified": "yesterday"}], ids=str
)
def test_what_it_cannot_read_is_left_to_botocore(
    headers: dict[str, str], client: QuickClient, server: Answering
) -> None:
    server.say(200, b"", **headers)
    with pytest.raises(Unreadable):
        client.head("key")


def test_a_store_without_ranges_is_left_to_botocore(client: QuickClient, server: Answering) -> None:
    server.say(200, b"content")
    with pytest.raises(Unreadable):
        client.get_range("key", 0, 3, None)


def test_the_etag_of_a_put_that_cannot_be_read_is_no_answer(client: QuickClient, server: Answering) -> None:
    """The object may be there: who asks once more must know that."""
    server.say(200, ETag="\xfc")
    with pytest.raises(Unavailable):
        client.put("key", b"", {}, CREATE_ONLY)


def test_a_put_that_was_led_elsewhere_has_stored_nothing(client: QuickClient, server: Answering) -> None:
    """A proxy's page, say, which has an ETag as well."""
    server.leads_puts_elsewhere = True
    for status, why in ((200, "has not stored it"), (404, "cannot be told")):
        server.say(status, b"page", ETag='"page"')
        with pytest.raises(Unavailable, match=why):
            client.put("key", b"content", {}, CREATE_ONLY)


def test_that_puts_are_looked_at_does_not_end_with_one_object_of_another_kind(
    client: QuickClient, server: Answering
) -> None:
    server.say(200, b"content", ETag=f'"{"0" * 32}"')
    with pytest.raises(Unreadable):
        client.get_range("under a customer's key", 0, None, None)
    server.leads_puts_elsewhere = True
    with pytest.raises(Unavailable):
        client.put("key", b"content", {}, CREATE_ONLY)


def test_etags_of_another_kind_are_those_of_what_is_stored(client: QuickClient, server: Answering) -> None:
    """Under a customer's key, say; that is looked at once. A gateway may add metadata of its own."""
    server.say(200, b"content", ETag='"another kind"', x_amz_meta_mode="1", x_amz_meta_added="1")
    for _ in range(2):
        assert client.put("key", b"content", {"mode": "1"}, CREATE_ONLY) == "another kind"
    assert [method for method, _, _ in server.requests] == ["PUT", "HEAD", "PUT"]


def test_a_whole_object_is_compared_with_its_etag(client: QuickClient, server: Answering) -> None:
    server.say(200, b"content")
    assert client.get_range("key", 0, None, None).data == b"content"
    server.say(200, b"content", ETag='"0123456789abcdef0123456789abcdef-2"')
    with pytest.raises(Unreadable):
        client.get_range("key", 0, None, None)
    server.say(200, b"content")
    assert client.get_range("key", 0, None, None).data == b"content"


def test_damage_and_etags_of_another_kind_leave_whole_objects_to_botocore(
    client: QuickClient, server: Answering
) -> None:
    server.say(200, b"damaged")
    with pytest.raises(Unreadable):
        client.get_range("key", 0, None, None)
    asked = len(server.requests)
    server.say(200, b"content")
    with pytest.raises(Unreadable):
        client.get_range("key", 0, None, None)
    assert len(server.requests) == asked


async def test_botocore_reads_what_obstore_cannot(
    storage: S3Storage, s3_client: Any, s3_server: SeaweedFS, s3_prefix: str, wire: Wire
) -> None:
    """An object in parts has no MD5 as its ETag."""
    key = f"{s3_prefix}parts"
    upload = await storage.create_multipart(key)
    part = await upload.upload_part(1, b"content")
    await upload.complete([part])
    wire.requests.clear()
    assert (await storage.get_range(key)).data == b"content"
    assert [request.method for request in wire.requests] == ["GET"]
    assert (await storage.get_range(key, 0, 3)).data == b"con"
    assert len(wire.requests) == 1
    await storage.delete(key)
