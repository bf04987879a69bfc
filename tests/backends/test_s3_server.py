"""The S3 store and a real server: access, what is in the bucket, damage on the way, cancellation."""

from __future__ import annotations

import io
import re
import threading
from collections.abc import AsyncIterator
from enum import Enum, auto
from typing import TYPE_CHECKING, Any, Final

import pytest
import trio
import trio.testing
from botocore.awsrequest import AWSPreparedRequest, AWSRequest, AWSResponse

from backends.base import CREATE_ONLY, Capabilities, IfMatch, iterate_pages
from backends.errors import (
    AccessDenied,
    AuthenticationFailed,
    BucketNotFound,
    ChecksumMismatch,
    NotFound,
    PreconditionFailed,
    StorageError,
    Unavailable,
)
from backends.s3 import S3Storage
from backends.s3_client import ClientFactory, create_client
from backends.s3_options import S3Options
from backends.s3_values import content_md5
from tests.backends.s3_helpers import Wire, answer_of, error_body, options_of
from tests.support.seaweedfs import PUBLIC_BUCKET, READER_ACCESS_KEY, READER_SECRET_KEY, SeaweedFS

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

CONDITIONS: Final = ("If-Match", "If-None-Match", "x-amz-copy-source-if-match")
READER: Final = {"access_key": READER_ACCESS_KEY, "secret_key": READER_SECRET_KEY}


@pytest.fixture
def wire() -> Wire:
    return Wire()


@pytest.fixture
async def storage(s3_server: SeaweedFS, s3_prefix: str, wire: Wire) -> AsyncIterator[S3Storage]:
    store = S3Storage(options_of(s3_server), probe_prefix=s3_prefix, client_factory=wire.factory)
    yield store
    await store.aclose()


def hooked(event: str, handler: Any) -> ClientFactory:
    """A client factory whose client calls `handler` at an event of botocore."""

    def factory(options: S3Options) -> S3Client:
        client = create_client(options)
        client.meta.events.register(event, handler)
        return client

    return factory


def keys_in_bucket(client: S3Client, bucket: str, prefix: str) -> list[str]:
    listing = client.list_objects_v2(Bucket=bucket, Prefix=prefix)
    return [entry["Key"] for entry in listing.get("Contents", [])]


# Access


@pytest.mark.parametrize(
    ("changes", "expected", "said"),
    [
        ({"secret_key": "wrong"}, AuthenticationFailed, "give valid credentials"),
        ({"access_key": "unknown"}, AuthenticationFailed, "give valid credentials"),
        ({"bucket": "fusefs-no-such-bucket"}, BucketNotFound, "fusefs-no-such-bucket"),
        ({"endpoint": "http://127.0.0.1:1"}, Unavailable, "http://127.0.0.1:1"),
    ],
)
@pytest.mark.parametrize("read_only", [True, False])
async def test_the_probe_says_what_is_wrong(
    s3_server: SeaweedFS,
    changes: dict[str, Any],
    expected: type[StorageError],
    said: str,
    read_only: bool,
) -> None:
    storage = S3Storage(options_of(s3_server, **changes))
    with pytest.raises(expected, match=said) as caught:
        await storage.probe(read_only=read_only)
    assert "\n" not in str(caught.value)
    await storage.aclose()


async def test_a_mount_for_writing_needs_the_permission_to_write(
    s3_server: SeaweedFS, s3_prefix: str
) -> None:
    storage = S3Storage(options_of(s3_server, **READER), probe_prefix=s3_prefix)
    await storage.probe(read_only=True)
    with pytest.raises(AccessDenied, match=r"permission for PutObject.*mount read-only"):
        await storage.probe()
    await storage.aclose()


async def test_a_public_bucket_is_read_without_credentials(s3_server: SeaweedFS, s3_client: S3Client) -> None:
    s3_client.create_bucket(Bucket=PUBLIC_BUCKET)
    s3_client.put_object(Bucket=PUBLIC_BUCKET, Key="open", Body=b"to all")
    anonymous = {"anonymous": True, "access_key": None, "secret_key": None}
    storage = S3Storage(options_of(s3_server, bucket=PUBLIC_BUCKET, **anonymous))
    await storage.probe(read_only=True)
    assert (await storage.get_range("open")).data == b"to all"
    assert [info.key async for page in iterate_pages(storage) for info in page.objects] == ["open"]
    with pytest.raises(AccessDenied):
        await storage.put("closed", b"")
    await storage.aclose()
    s3_client.delete_object(Bucket=PUBLIC_BUCKET, Key="open")
    s3_client.delete_bucket(Bucket=PUBLIC_BUCKET)


# What is in the bucket


async def test_the_probe_leaves_nothing_in_the_bucket(
    storage: S3Storage, s3_client: S3Client, s3_server: SeaweedFS, s3_prefix: str, wire: Wire
) -> None:
    assert await storage.probe() == Capabilities()
    assert keys_in_bucket(s3_client, s3_server.bucket, s3_prefix) == []
    assert "Uploads" not in s3_client.list_multipart_uploads(Bucket=s3_server.bucket, Prefix=s3_prefix)
    assert len(wire.requests) <= 28


async def test_a_bucket_that_takes_no_object_without_a_checksum(s3_server: SeaweedFS, s3_prefix: str) -> None:
    """As Amazon does for those with a default retention (Object Lock); conditions on writes are found all the same."""

    def refuse_bare(request: AWSPreparedRequest, **_: object) -> AWSResponse | None:
        is_object = request.method == "PUT" and "?" not in request.url
        headers = {name.lower() for name in request.headers}
        if is_object and not headers & {"content-md5", "x-amz-checksum-crc32", "x-amz-copy-source"}:
            return answer_of(request, 400, error_body("InvalidRequest"))
        return None

    client_factory = hooked("before-send.s3", refuse_bare)
    storage = S3Storage(options_of(s3_server), probe_prefix=s3_prefix, client_factory=client_factory)
    assert await storage.probe() == Capabilities()
    await storage.aclose()


async def test_a_read_only_probe_is_one_request(storage: S3Storage, wire: Wire) -> None:
    await storage.probe(read_only=True)
    assert [request.method for request in wire.requests] == ["GET"]


async def test_other_programs_see_plain_objects(
    storage: S3Storage, s3_client: S3Client, s3_server: SeaweedFS, s3_prefix: str
) -> None:
    """The same bytes under the same key, with the metadata that s3fs would read."""
    await storage.put(s3_prefix + "file", b"content", metadata={"mode": "33188", "uid": "0"})
    found = s3_client.get_object(Bucket=s3_server.bucket, Key=s3_prefix + "file")
    assert found["Body"].read() == b"content"
    assert found["Metadata"] == {"mode": "33188", "uid": "0"}


async def test_what_other_programs_wrote_is_read(
    storage: S3Storage, s3_client: S3Client, s3_server: SeaweedFS, s3_prefix: str
) -> None:
    key = s3_prefix + "file"
    s3_client.put_object(Bucket=s3_server.bucket, Key=key, Body=b"content", Metadata={"mtime": "1.5"})
    assert (await storage.get_range(key)).data == b"content"
    assert (await storage.head(key)).metadata == {"mtime": "1.5"}


# Damage on the way


def damage(request: AWSPreparedRequest, **_: object) -> None:
    if request.body == b"content":
        request.body = b"Xontent"


async def test_a_body_damaged_on_its_way_is_refused(s3_server: SeaweedFS, s3_prefix: str) -> None:
    storage = S3Storage(options_of(s3_server), client_factory=hooked("before-send.s3", damage))
    with pytest.raises(ChecksumMismatch):
        await storage.put(s3_prefix + "k", b"content")
    with pytest.raises(NotFound):
        await storage.head(s3_prefix + "k")
    upload = await storage.create_multipart(s3_prefix + "k")
    with pytest.raises(ChecksumMismatch):
        await upload.upload_part(1, b"content")
    await upload.abort()
    await storage.aclose()


def damage_answer(parsed: dict[str, Any], **_: object) -> None:
    # Below the place where botocore compares, if the server sent something to compare with.
    parsed["Body"]._raw_stream = io.BytesIO(b"Xontent")


async def test_a_body_damaged_on_its_way_back_is_refused(s3_server: SeaweedFS, s3_prefix: str) -> None:
    """The server keeps the checksum that the put sent, and gives it back."""
    client_factory = hooked("after-call.s3.GetObject", damage_answer)
    storage = S3Storage(options_of(s3_server), client_factory=client_factory)
    await storage.put(s3_prefix + "k", b"content")
    with pytest.raises(ChecksumMismatch):
        await storage.get_range(s3_prefix + "k")
    await storage.aclose()


async def test_checksums_can_be_turned_off(s3_server: SeaweedFS, s3_prefix: str) -> None:
    """Then damage is not noticed, and the store says so."""
    storage = S3Storage(
        options_of(s3_server, checksum="none"),
        client_factory=hooked("before-send.s3", damage),
        probe_prefix=s3_prefix,
    )
    assert not (await storage.probe()).checksums
    await storage.put(s3_prefix + "k", b"content")
    assert (await storage.get_range(s3_prefix + "k")).data == b"Xontent"
    await storage.aclose()


CRC32: Final = "x-amz-checksum-crc32"
MD5: Final = "Content-MD5"


@pytest.mark.parametrize(
    ("choice", "ignored", "expected"),
    [
        ("auto", [], CRC32),
        ("auto", [CRC32], MD5),
        ("auto", [CRC32, MD5], None),
        ("crc32", [CRC32, MD5], CRC32),
        ("none", [], None),
    ],
)
async def test_objects_are_sent_with_what_the_store_compares(
    s3_server: SeaweedFS, s3_prefix: str, choice: str, ignored: list[str], expected: str | None
) -> None:
    """A checksum that the store ignores is not sent, unless that was said in words."""
    sent: list[str] = []

    def ignore(request: AWSRequest, **_: object) -> None:
        sent[:] = [name for name in (CRC32, MD5) if name in request.headers]
        for name in ignored:
            del request.headers[name]

    client_factory = hooked("before-sign.s3.PutObject", ignore)
    options = options_of(s3_server, checksum=choice)
    storage = S3Storage(options, probe_prefix=s3_prefix, client_factory=client_factory)
    assert (await storage.probe()).checksums == (expected is not None)
    await storage.put(s3_prefix + "k", b"content")
    assert sent == ([] if expected is None else [expected])
    await storage.aclose()


class Parts(Enum):
    """How a store takes parts that have a CRC32."""

    COMPARED = auto()
    NOT_COMPARED = auto()
    #: As S3, where the upload was not begun for that.
    REFUSED = auto()
    #: As S3, where it was, and the numbers have gaps.
    NOT_COMPLETED = auto()


@pytest.mark.parametrize(("choice", "parts"), [*(("auto", each) for each in Parts), ("none", Parts.COMPARED)])
async def test_parts_are_sent_with_what_the_store_compares(
    s3_server: SeaweedFS, s3_prefix: str, choice: str, parts: Parts
) -> None:
    sent: list[str] = []

    def ignore(request: AWSRequest, operation_name: str, **_: object) -> None:
        if operation_name == "UploadPart":
            sent[:] = [name for name in (CRC32, MD5) if name in request.headers]
            if parts is Parts.NOT_COMPARED:
                del request.headers[CRC32]

    def refuse(request: AWSPreparedRequest, **_: object) -> AWSResponse | None:
        is_part = request.method == "PUT" and "partNumber=" in request.url and CRC32 in request.headers
        is_completion = request.method == "POST" and "/copy?uploadId=" in request.url
        if parts is Parts.REFUSED and is_part:
            return answer_of(request, 400, error_body("InvalidRequest"))
        if parts is Parts.NOT_COMPLETED and is_completion:
            return answer_of(request, 500, error_body("InternalError"))
        return None

    def client_factory(options: S3Options) -> S3Client:
        client = hooked("before-sign.s3", ignore)(options)
        client.meta.events.register("before-send.s3", refuse)  # type: ignore[arg-type]
        return client

    options = options_of(s3_server, checksum=choice)
    storage = S3Storage(options, probe_prefix=s3_prefix, client_factory=client_factory)
    await storage.probe()
    upload = await storage.create_multipart(s3_prefix + "k")
    part = await upload.upload_part(1, b"content")
    assert sent == ([] if choice == "none" else [CRC32 if parts is Parts.COMPARED else MD5])
    await upload.complete([part])
    await storage.aclose()


# Stores that can do less


def forget_conditions(request: AWSRequest, operation_name: str, **_: object) -> None:
    """Make the server one that ignores conditions of writes."""
    if operation_name not in {"GetObject", "HeadObject"}:
        for name in CONDITIONS:
            del request.headers[name]
    if operation_name == "DeleteObjects":
        request.data = re.sub(rb"<ETag>.*?</ETag>", b"", request.data or b"")
        del request.headers["x-amz-checksum-crc32"]
        del request.headers["Content-MD5"]
        request.headers["Content-MD5"] = content_md5(request.data)


async def test_a_store_that_ignores_conditions_is_found_out(
    s3_server: SeaweedFS, s3_prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    """What can be looked at before the act is; the capabilities and the log say that it is not more than that."""
    storage = S3Storage(
        options_of(s3_server),
        probe_prefix=s3_prefix,
        client_factory=hooked("before-sign.s3", forget_conditions),
    )
    assert await storage.probe() == Capabilities(
        create_only=False,
        if_match=False,
        conditional_complete=False,
        conditional_copy=False,
        conditional_delete=False,
        conditional_delete_many=False,
    )
    [warning] = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert "creations, overwrites, completions of uploads, copies, deletions: fusefs looks first" in warning
    key, other = s3_prefix + "k", s3_prefix + "other"
    stale = await storage.put(key, b"first", mode=CREATE_ONLY)
    current = await storage.put(key, b"second", mode=IfMatch(stale))
    upload = await storage.create_multipart(key)
    part = await upload.copy_part(1, key, 0, 6, if_match=current)
    for refused in (
        lambda: storage.put(key, b"third", mode=CREATE_ONLY),
        lambda: storage.put(key, b"third", mode=IfMatch(stale)),
        lambda: storage.put(other, b"third", mode=IfMatch(stale)),
        lambda: storage.copy(key, other, if_match=stale),
        lambda: storage.copy(key, key, metadata={}, mode=CREATE_ONLY),
        lambda: storage.delete(key, if_match=stale),
        lambda: upload.copy_part(1, key, 0, 6, if_match=stale),
        lambda: upload.complete([part], mode=CREATE_ONLY),
    ):
        with pytest.raises(PreconditionFailed):
            await refused()
    same = await storage.put(s3_prefix + "same", b"same")
    etags = {key: stale, s3_prefix + "same": same, s3_prefix + "missing": stale}
    assert list(await storage.delete_many(etags, if_match=etags)) == [key]
    with pytest.raises(NotFound):
        await upload.copy_part(1, other, 0, 6, if_match=stale)
    await upload.complete([part], mode=IfMatch(current))
    assert (await storage.get_range(key)).data == b"second"
    await storage.aclose()


@pytest.mark.parametrize("source", ["empty", None])
async def test_a_store_that_copies_nothing_into_a_part_is_found_out(
    s3_server: SeaweedFS, s3_prefix: str, s3_client: S3Client, source: str | None
) -> None:
    """One server answers a copy with success and leaves the part empty; others take it for a part without bytes."""
    s3_client.put_object(Bucket=s3_server.bucket, Key=s3_prefix + "empty", Body=b"")

    def copy_nothing(request: AWSRequest, operation_name: str, **_: object) -> None:
        if operation_name == "UploadPartCopy":
            del request.headers["x-amz-copy-source"]
            if source is not None:
                request.headers["x-amz-copy-source"] = f"{s3_server.bucket}/{s3_prefix}{source}"

    client_factory = hooked("before-sign.s3", copy_nothing)
    storage = S3Storage(options_of(s3_server), probe_prefix=s3_prefix, client_factory=client_factory)
    assert await storage.probe() == Capabilities(copy_part=False)
    await storage.aclose()


async def test_a_probe_that_fails_leaves_nothing_in_the_bucket(
    s3_server: SeaweedFS, s3_prefix: str, s3_client: S3Client
) -> None:
    def fail(**_: object) -> None:
        raise ConnectionResetError

    client_factory = hooked("before-send.s3.CompleteMultipartUpload", fail)
    storage = S3Storage(options_of(s3_server), probe_prefix=s3_prefix, client_factory=client_factory)
    with pytest.raises(Unavailable):
        await storage.probe()
    assert keys_in_bucket(s3_client, s3_server.bucket, s3_prefix) == []
    assert "Uploads" not in s3_client.list_multipart_uploads(Bucket=s3_server.bucket, Prefix=s3_prefix)
    await storage.aclose()


def match_bare_etags_only(request: AWSRequest, operation_name: str, **_: object) -> None:
    """Make the server one that compares ETags without quotes, as Ceph does on PUT."""
    given = request.headers.get("If-Match")
    if given is not None and operation_name in {"PutObject", "CompleteMultipartUpload", "CopyObject"}:
        del request.headers["If-Match"]
        request.headers["If-Match"] = '"never"' if given.startswith('"') else f'"{given}"'


async def test_a_store_that_wants_bare_etags_gets_them(s3_server: SeaweedFS, s3_prefix: str) -> None:
    storage = S3Storage(
        options_of(s3_server),
        probe_prefix=s3_prefix,
        client_factory=hooked("before-sign.s3", match_bare_etags_only),
    )
    assert (await storage.probe()).if_match
    etag = await storage.put(s3_prefix + "k", b"first")
    await storage.put(s3_prefix + "k", b"second", mode=IfMatch(etag))
    with pytest.raises(PreconditionFailed):
        await storage.put(s3_prefix + "k", b"third", mode=IfMatch(etag))
    await storage.aclose()


# Threads


class Gate:
    """Holds requests back in their threads until it is opened; counts them."""

    def __init__(self) -> None:
        self.entered = trio.Event()
        self._token = trio.lowlevel.current_trio_token()
        self.waiting = 0
        self.most = 0
        self._open = threading.Event()
        self._lock = threading.Lock()

    def open(self) -> None:
        self._open.set()

    def hold(self, **_: object) -> None:
        with self._lock:
            self.waiting += 1
            self.most = max(self.most, self.waiting)
        trio.from_thread.run_sync(self.entered.set, trio_token=self._token)
        self._open.wait()
        with self._lock:
            self.waiting -= 1


async def test_a_put_under_way_is_not_abandoned_when_it_is_cancelled(
    s3_server: SeaweedFS, s3_prefix: str, s3_client: S3Client
) -> None:
    gate = Gate()
    done = trio.Event()
    storage = S3Storage(options_of(s3_server), client_factory=hooked("before-send.s3", gate.hold))

    async def put_and_cancel(scope: trio.CancelScope) -> None:
        with scope:
            await storage.put(s3_prefix + "k", b"content")
        done.set()

    async with trio.open_nursery() as nursery:
        scope = trio.CancelScope()
        nursery.start_soon(put_and_cancel, scope)
        await gate.entered.wait()
        scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        assert not done.is_set()
        gate.open()
    assert s3_client.get_object(Bucket=s3_server.bucket, Key=s3_prefix + "k")["Body"].read() == b"content"
    await storage.aclose()


async def test_closing_waits_for_the_calls_under_way_even_when_cancelled(
    s3_server: SeaweedFS, s3_prefix: str
) -> None:
    gate = Gate()
    closed = trio.Event()
    storage = S3Storage(options_of(s3_server), client_factory=hooked("before-send.s3", gate.hold))

    async def close() -> None:
        with trio.move_on_after(0):
            await storage.aclose()
        closed.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(storage.put, s3_prefix + "k", b"content")
        await gate.entered.wait()
        nursery.start_soon(close)
        await trio.testing.wait_all_tasks_blocked()
        assert not closed.is_set()
        gate.open()


async def test_there_are_no_more_requests_than_connections(s3_server: SeaweedFS, s3_prefix: str) -> None:
    gate = Gate()
    storage = S3Storage(
        options_of(s3_server, max_connections=2), client_factory=hooked("before-send.s3", gate.hold)
    )
    async with trio.open_nursery() as nursery:
        for number in range(6):
            nursery.start_soon(storage.put, f"{s3_prefix}{number}", b"")
        await gate.entered.wait()
        await trio.testing.wait_all_tasks_blocked()
        gate.open()
    assert 1 <= gate.most <= 2
    await storage.aclose()
