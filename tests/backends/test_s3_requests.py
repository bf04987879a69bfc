"""What the S3 store sends, and what it makes of odd answers: no server is asked here."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Final

import pytest
import trio

from backends.base import GIB, MIB, IfMatch, Part, UploadInfo
from backends.errors import (
    AuthenticationFailed,
    ChecksumMismatch,
    ClockSkewed,
    ConcurrentRequest,
    EntityTooLarge,
    InvalidPart,
    InvalidRequest,
    PreconditionFailed,
    RangeNotSatisfiable,
    StorageError,
    StoreCorrupt,
    Throttled,
    Unavailable,
)
from backends.s3 import S3Storage
from backends.s3_client import create_client
from backends.s3_options import S3Options
from tests.backends.s3_helpers import Wire

OPTIONS: Final = S3Options(
    bucket="pail",
    endpoint="https://s3.example",
    region="eu-west-1",
    addressing="path",
    access_key="key",
    secret_key="secret",
)
ETAG: Final = "9a0364b9e99bb480dd25e1f0284c8555"
PARTS: Final = [Part(number=1, etag=ETAG, size=1)]
PAGE: Final = b"<html><body><h1>It works!</h1></body></html>"
MODIFIED: Final = "Mon, 23 Nov 2026 05:38:52 GMT"


@pytest.fixture
def wire() -> Wire:
    return Wire()


@pytest.fixture
async def storage(wire: Wire) -> AsyncIterator[S3Storage]:
    store = S3Storage(OPTIONS, client_factory=wire.factory)
    yield store
    await store.aclose()


def storage_with(wire: Wire, **changes: Any) -> S3Storage:
    return S3Storage(dataclasses.replace(OPTIONS, **changes), client_factory=wire.factory)


def copied(etag: str = ETAG) -> bytes:
    return f"<CopyObjectResult><ETag>&quot;{etag}&quot;</ETag></CopyObjectResult>".encode()


def crc32(data: bytes) -> str:
    return base64.b64encode(zlib.crc32(data).to_bytes(4, "big")).decode()


# What is sent


async def test_a_put_carries_its_checksum_in_a_header(storage: S3Storage, wire: Wire) -> None:
    """Not in a trailer, which Ceph, JuiceFS and Swift refuse, and which botocore would choose over TLS."""
    wire.answer(etag=f'"{ETAG}"')
    assert await storage.put("k", b"content") == ETAG
    assert wire.header("x-amz-checksum-crc32") == crc32(b"content")
    assert wire.header("x-amz-trailer") is None
    assert wire.header("content-encoding") is None
    assert wire.requests[-1].body == b"content"


async def test_only_a_large_body_waits_to_be_asked_for(storage: S3Storage, wire: Wire) -> None:
    """The wait is a round trip more; it pays where a refusal spares the upload."""
    wire.answer(etag=f'"{ETAG}"')
    await storage.put("k", b"small")
    assert wire.header("expect") is None
    wire.answer(etag=f'"{ETAG}"')
    await storage.resume_multipart("k", "id").upload_part(1, bytearray(5 * MIB))
    assert wire.header("expect") == "100-continue"


async def test_a_part_carries_an_md5(storage: S3Storage, wire: Wire) -> None:
    """A CRC32 would make S3 answer 500 to part numbers with gaps."""
    wire.answer(etag=f'"{ETAG}"')
    await storage.resume_multipart("k", "id").upload_part(7, b"content")
    assert wire.header("content-md5") == "mgNkuembtIDdJeHwKEyFVQ=="
    assert wire.header("x-amz-checksum-crc32") is None


async def test_without_checksums_none_is_sent_or_asked_for(wire: Wire) -> None:
    storage = storage_with(wire, checksum="none", endpoint="http://s3.example")
    wire.answer(200, b"<ListBucketResult/>")
    for _ in range(2):
        wire.answer_error(403, "AccessDenied")
    with pytest.raises(StorageError, match="mount read-only"):
        await storage.probe()
    put = next(request for request in wire.requests if request.method == "PUT")
    assert not [name for name in put.headers if "checksum" in name.lower() or "md5" in name.lower()]
    wire.answer(200, b"content", etag=f'"{ETAG}"', x_amz_checksum_crc32="AAAAAA==")
    assert (await storage.get_range("k")).data == b"content"
    assert wire.header("x-amz-checksum-mode") is None
    await storage.aclose()


async def test_batch_deletions_carry_the_md5_that_old_servers_want(storage: S3Storage, wire: Wire) -> None:
    wire.answer(200, b"<DeleteResult/>")
    assert await storage.delete_many(["a", "b"]) == {}
    assert wire.header("content-md5") is not None


async def test_new_objects_are_kept_as_the_options_say(wire: Wire) -> None:
    """Encryption, storage class and who pays: on puts, uploads and copies alike."""
    storage = storage_with(
        wire,
        server_side_encryption="aws:kms",
        kms_key_id="the-key",
        storage_class="STANDARD_IA",
        requester_pays=True,
    )
    wire.answer(etag=f'"{ETAG}"')
    await storage.put("k", b"")
    wire.answer(200, b"<InitiateMultipartUploadResult><UploadId>u</UploadId></InitiateMultipartUploadResult>")
    await storage.create_multipart("k")
    wire.answer(200, copied())
    await storage.copy("k", "other")
    for request in range(3):
        assert wire.header("x-amz-server-side-encryption", request) == "aws:kms"
        assert wire.header("x-amz-server-side-encryption-aws-kms-key-id", request) == "the-key"
        assert wire.header("x-amz-storage-class", request) == "STANDARD_IA"
        assert wire.header("x-amz-request-payer", request) == "requester"
    await storage.aclose()


async def test_who_pays_is_said_with_every_request(wire: Wire) -> None:
    storage = storage_with(wire, requester_pays=True)
    upload = storage.resume_multipart("k", "id")
    calls: list[Callable[[], Awaitable[object]]] = [
        lambda: storage.head("k"),
        lambda: storage.get_range("k"),
        lambda: storage.delete("k"),
        lambda: storage.list_prefix(),
        lambda: storage.delete_many(["k"]),
        lambda: storage.list_multipart_uploads(),
        lambda: upload.upload_part(1, b""),
        lambda: upload.copy_part(1, "s", 0, 1),
        lambda: upload.complete([Part(number=1, etag=ETAG, size=0)]),
        lambda: upload.abort(),
    ]
    for call in calls:
        wire.answer_error(503, "ServiceUnavailable")
        with pytest.raises(Unavailable):
            await call()
        assert wire.header("x-amz-request-payer") == "requester"
    await storage.aclose()


async def test_conditions_have_quoted_etags(storage: S3Storage, wire: Wire) -> None:
    wire.answer(200, copied())
    await storage.copy("s", "t", if_match=ETAG)
    assert wire.header("x-amz-copy-source-if-match") == f'"{ETAG}"'
    wire.answer(200, b"content", etag=f'"{ETAG}"')
    await storage.get_range("k", if_match=ETAG)
    assert wire.header("if-match") == f'"{ETAG}"'


async def test_requests_name_the_program(storage: S3Storage, wire: Wire) -> None:
    wire.answer(204)
    await storage.delete("k")
    assert "fusefs/" in (wire.header("user-agent") or "")


async def test_anonymous_requests_are_not_signed(wire: Wire) -> None:
    storage = storage_with(wire, anonymous=True, access_key=None, secret_key=None)
    wire.answer(204)
    await storage.delete("k")
    assert wire.header("authorization") is None
    await storage.aclose()


async def test_a_session_token_is_sent(wire: Wire) -> None:
    storage = storage_with(wire, session_token="token")
    wire.answer(204)
    await storage.delete("k")
    assert wire.header("x-amz-security-token") == "token"
    await storage.aclose()


@pytest.mark.parametrize(
    ("addressing", "url"), [("path", "https://s3.example/pail/k"), ("virtual", "https://pail.s3.example/k")]
)
async def test_the_bucket_is_in_the_path_or_in_the_host(wire: Wire, addressing: str, url: str) -> None:
    storage = storage_with(wire, addressing=addressing)
    wire.answer(204)
    await storage.delete("k")
    assert wire.requests[-1].url == url
    await storage.aclose()


async def test_credentials_are_looked_for_in_the_environment(
    wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "from-environment")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    storage = storage_with(wire, access_key=None, secret_key=None)
    wire.answer(204)
    await storage.delete("k")
    assert "from-environment" in (wire.header("authorization") or "")
    await storage.aclose()


async def test_without_credentials_the_message_says_how_to_give_them(wire: Wire) -> None:
    storage = storage_with(wire, access_key=None, secret_key=None)
    with pytest.raises(AuthenticationFailed, match="AWS_ACCESS_KEY_ID"):
        await storage.head("k")
    assert wire.requests == []


async def test_a_profile_gives_credentials_token_and_region(
    wire: Wire, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Of two profiles the one that was named; and without one, that of the environment."""
    settings = tmp_path / "config"
    settings.write_text(
        "[default]\naws_access_key_id = ours\naws_secret_access_key = s\nregion = us-west-2\n"
        "[profile named]\naws_access_key_id = theirs\naws_secret_access_key = s\nregion = ap-south-1\n"
        "aws_session_token = token\n"
    )
    monkeypatch.setenv("AWS_CONFIG_FILE", str(settings))
    for profile, expected in ((None, "ours/*/us-west-2/s3/"), ("named", "theirs/*/ap-south-1/s3/")):
        storage = storage_with(wire, access_key=None, secret_key=None, region=None, profile=profile)
        wire.answer(204)
        await storage.delete("k")
        assert fnmatch(wire.header("authorization") or "", f"*Credential={expected}*")
        await storage.aclose()
    assert wire.header("x-amz-security-token") == "token"
    monkeypatch.setenv("AWS_PROFILE", "named")
    storage = storage_with(wire, access_key=None, secret_key=None, region=None)
    wire.answer(204)
    await storage.delete("k")
    assert "Credential=theirs/" in (wire.header("authorization") or "")
    await storage.aclose()


async def test_without_a_region_requests_are_signed_for_the_usual_one(wire: Wire) -> None:
    """Servers other than AWS have none, and nobody should have to make one up."""
    storage = storage_with(wire, region=None)
    wire.answer(204)
    await storage.delete("k")
    assert "/us-east-1/s3/" in (wire.header("authorization") or "")
    await storage.aclose()


async def test_a_missing_profile_is_named(wire: Wire) -> None:
    storage = storage_with(wire, profile="nobody")
    with pytest.raises(AuthenticationFailed, match="nobody"):
        await storage.head("k")


def test_connections_are_made_as_the_options_say() -> None:
    options = dataclasses.replace(
        OPTIONS, max_connections=7, connect_timeout_seconds=3.5, read_timeout_seconds=21
    )
    client = create_client(options)
    config: Any = client.meta.config
    assert (config.max_pool_connections, config.connect_timeout, config.read_timeout) == (7, 3.5, 21)
    assert config.tcp_keepalive
    client.close()


# What odd answers become


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (503, "SlowDown", Throttled),
        (500, "InternalError", Unavailable),
        (409, "ConditionalRequestConflict", ConcurrentRequest),
        (400, "ExpiredToken", AuthenticationFailed),
        (403, "RequestTimeTooSkewed", ClockSkewed),
        (400, "BadDigest", ChecksumMismatch),
    ],
)
async def test_a_failure_is_returned_at_once(
    storage: S3Storage, wire: Wire, status: int, code: str, expected: type[StorageError]
) -> None:
    """One request for one call: botocore repeats nothing."""
    wire.answer_error(status, code)
    with pytest.raises(expected):
        await storage.put("k", b"content")
    assert len(wire.requests) == 1


async def test_an_error_in_an_answer_of_200_is_an_error(storage: S3Storage, wire: Wire) -> None:
    """Copies and completions take long; S3 sends the status before it knows the outcome."""
    error = b"<Error><Code>InternalError</Code><Message>why</Message></Error>"
    wire.answer(200, error)
    with pytest.raises(Unavailable):
        await storage.copy("s", "t")
    wire.answer(200, error)
    with pytest.raises(Unavailable):
        await storage.resume_multipart("k", "id").complete([Part(number=1, etag=ETAG, size=1)])


async def test_a_completion_without_an_etag_has_that_of_its_parts(storage: S3Storage, wire: Wire) -> None:
    """Ceph 16.2 leaves it empty, and no ETag at all would make the next write a conflict with our own."""
    parts = [Part(number=1, etag=ETAG, size=1)]
    answer = b"<CompleteMultipartUploadResult><ETag></ETag></CompleteMultipartUploadResult>"
    wire.answer(200, answer)
    etag = await storage.resume_multipart("k", "id").complete(parts)
    assert etag == hashlib.md5(bytes.fromhex(ETAG)).hexdigest() + "-1"
    wire.answer(200, answer)
    with pytest.raises(StoreCorrupt) as caught:
        await storage.resume_multipart("k", "id").complete([Part(number=1, etag="opaque", size=1)])
    assert caught.value.is_in_doubt  # it took effect


@pytest.mark.parametrize(
    ("ask", "answer", "missing"),
    [
        (lambda storage: storage.head("k"), {"last_modified": MODIFIED}, "ETag"),
        (lambda storage: storage.head("k"), {"etag": ETAG}, "LastModified"),
        (lambda storage: storage.put("k", b"x"), {}, "ETag"),
        (lambda storage: storage.copy("s", "t"), {}, "ETag"),
        (lambda storage: storage.create_multipart("k"), {}, "UploadId"),
        (lambda storage: storage.resume_multipart("k", "id").upload_part(1, b"x"), {}, "ETag"),
        (
            lambda storage: storage.resume_multipart("k", "id").copy_part(1, "s", 0, 5),
            {},
            "ETag",
        ),
    ],
    ids=["head", "time", "put", "copy", "upload", "part", "copied part"],
)
async def test_an_answer_that_lacks_something_is_unavailability(
    ask: Callable[[S3Storage], Awaitable[object]],
    answer: dict[str, str],
    missing: str,
    storage: S3Storage,
    wire: Wire,
) -> None:
    """It is not the store's, and whether the request took effect is open."""
    wire.answer(200, b"", **answer)
    with pytest.raises(Unavailable, match=f"the answer has no {missing}; the endpoint is https://s3.example"):
        await ask(storage)


async def test_an_entry_that_lacks_something_is_unavailability(storage: S3Storage, wire: Wire) -> None:
    entry = b"<Contents><Key>k</Key><Size>1</Size></Contents>"
    wire.answer(200, b"<ListBucketResult>" + entry + b"</ListBucketResult>")
    with pytest.raises(Unavailable):
        await storage.list_prefix()


async def test_uploads_are_listed_where_the_store_does_not_tell_when_they_began(
    storage: S3Storage, wire: Wire
) -> None:
    """SeaweedFS did not in earlier versions."""
    upload = b"<Upload><Key>k</Key><UploadId>1</UploadId></Upload>"
    wire.answer(200, b"<ListMultipartUploadsResult>" + upload + b"</ListMultipartUploadsResult>")
    assert await storage.list_multipart_uploads() == (UploadInfo(key="k", upload_id="1", initiated_ns=0),)


async def test_a_batch_of_deletions_may_have_no_answer(storage: S3Storage, wire: Wire) -> None:
    """Where none has failed: it was not asked what has succeeded."""
    wire.answer(200, b"")
    assert await storage.delete_many(["k", "l"]) == {}


async def test_a_batch_of_deletions_is_not_answered_by_a_page(storage: S3Storage, wire: Wire) -> None:
    wire.answer(200, PAGE, content_type="text/html")
    with pytest.raises(Unavailable):
        await storage.delete_many(["k", "l"])


@pytest.mark.parametrize("body", [PAGE, b""], ids=["page", "empty"])
@pytest.mark.parametrize(
    "ask",
    [
        lambda storage: storage.list_prefix("d/", delimiter="/"),
        lambda storage: storage.list_multipart_uploads("k"),
        lambda storage: storage.resume_multipart("k", "id").complete(PARTS),
        lambda storage: storage.copy("k", "l"),
        lambda storage: storage.probe(read_only=True),
    ],
    ids=["list", "uploads", "complete", "copy", "probe"],
)
async def test_a_page_of_somebody_else_is_no_answer(
    ask: Callable[[S3Storage], Awaitable[object]], body: bytes, storage: S3Storage, wire: Wire
) -> None:
    """Though well-formed: a directory would be empty, an upload complete."""
    wire.answer(200, body, content_type="text/html")
    with pytest.raises(Unavailable):
        await ask(storage)


async def test_a_page_of_somebody_else_is_no_deletion(storage: S3Storage, wire: Wire) -> None:
    wire.answer(200, PAGE)
    with pytest.raises(Unavailable):
        await storage.delete("k")
    wire.answer(200, PAGE)
    with pytest.raises(Unavailable):
        await storage.resume_multipart("k", "id").abort()
    wire.answer(200)
    await storage.delete("k")


async def test_an_answer_with_nothing_in_it_is_one(storage: S3Storage, wire: Wire) -> None:
    named = b'<?xml version="1.0"?><DeleteResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"/>'
    for body in (named, b"<DeleteResult/>", b"<DeleteResult></DeleteResult>"):
        wire.answer(200, body)
        assert await storage.delete_many(["k"]) == {}


async def test_an_answer_that_is_no_xml_is_unavailability(storage: S3Storage, wire: Wire) -> None:
    wire.answer(200, b"<html>captive portal")
    with pytest.raises(Unavailable):
        await storage.list_prefix()


@pytest.mark.parametrize(
    "ask",
    [
        lambda storage: storage.get_range("k"),
        lambda storage: storage.list_prefix(),
        lambda storage: storage.delete("k"),
        lambda storage: storage.put("k", b"x", mode=IfMatch(ETAG)),
        lambda storage: storage.resume_multipart("k", "id").complete(PARTS, mode=IfMatch(ETAG)),
        lambda storage: storage.resume_multipart("k", "id").abort(),
    ],
    ids=["get", "list", "delete", "replace", "complete", "abort"],
)
async def test_a_proxy_that_finds_no_server_does_not_say_that_there_is_no_object(
    ask: Callable[[S3Storage], Awaitable[object]], storage: S3Storage, wire: Wire
) -> None:
    """Nor that it is deleted, or that a condition does not hold. Traefik answers so while the server restarts."""
    wire.answer(404, b"404 page not found\n", content_type="text/plain; charset=utf-8")
    with pytest.raises(Unavailable):
        await ask(storage)


async def test_damaged_content_is_noticed(storage: S3Storage, wire: Wire) -> None:
    wire.answer(200, b"c0ntent", etag=f'"{ETAG}"', x_amz_checksum_crc32=crc32(b"content"))
    with pytest.raises(ChecksumMismatch):
        await storage.get_range("k")
    assert wire.header("x-amz-checksum-mode") == "ENABLED"


async def test_the_checksum_of_parts_says_nothing_about_the_whole(storage: S3Storage, wire: Wire) -> None:
    wire.answer(200, b"content", etag=f'"{ETAG}-2"', x_amz_checksum_crc32="AAAAAA==-2")
    assert (await storage.get_range("k")).data == b"content"


@pytest.mark.parametrize("arguments", [(), (2, 5), (2, None)])
async def test_a_body_that_ends_early_is_not_a_short_object(
    storage: S3Storage, wire: Wire, arguments: tuple[int, int | None]
) -> None:
    status, headers = (206, {"content_range": "bytes 2-6/7"}) if arguments else (200, {})
    wire.answer(
        status, b"cut", etag=f'"{ETAG}"', **{"content_length": "7" if not arguments else "5", **headers}
    )
    with pytest.raises(Unavailable):
        await storage.get_range("k", *arguments)


async def test_fewer_bytes_than_the_range_says_is_unavailability(storage: S3Storage, wire: Wire) -> None:
    wire.answer(206, b"cut", etag=f'"{ETAG}"', content_range="bytes 2-6/7")
    with pytest.raises(Unavailable):
        await storage.get_range("k", 2, 5)


@pytest.mark.parametrize("content_range", ["bytes 0-4/7", "bytes 2-3/7", "bytes 2-6/*", "nonsense"])
async def test_another_range_than_was_asked_for_is_not_believed(
    storage: S3Storage, wire: Wire, content_range: str
) -> None:
    wire.answer(206, b"other", etag=f'"{ETAG}"', content_range=content_range)
    with pytest.raises(StoreCorrupt):
        await storage.get_range("k", 2, 5)


@pytest.mark.parametrize(
    ("start", "length", "expected"), [(2, 3, b"nte"), (0, 3, b"con"), (4, None, b"ent"), (5, 99, b"nt")]
)
async def test_a_range_is_cut_out_where_the_store_knows_none(
    storage: S3Storage, wire: Wire, start: int, length: int | None, expected: bytes
) -> None:
    wire.answer(200, b"content", etag=f'"{ETAG}"')
    result = await storage.get_range("k", start, length)
    assert (result.data, result.object_size, result.etag) == (expected, 7, ETAG)


async def test_a_range_past_the_end_is_refused_where_the_store_knows_none(
    storage: S3Storage, wire: Wire
) -> None:
    wire.answer(200, b"content", etag=f'"{ETAG}"')
    with pytest.raises(RangeNotSatisfiable):
        await storage.get_range("k", 7, 1)


@pytest.mark.parametrize("start", [3, 6])
async def test_a_whole_object_that_ends_early_is_no_range(storage: S3Storage, wire: Wire, start: int) -> None:
    wire.answer(200, b"cont", etag=f'"{ETAG}"', content_length="8")
    with pytest.raises(Unavailable):
        await storage.get_range("k", start, 2)


async def test_a_listing_that_does_not_lead_on_is_not_followed(storage: S3Storage, wire: Wire) -> None:
    """Without a token, or with the one that was given, a caller would ask for ever."""
    wire.answer(200, b"<ListBucketResult><IsTruncated>true</IsTruncated></ListBucketResult>")
    with pytest.raises(StoreCorrupt):
        await storage.list_prefix()
    truncated = b"<IsTruncated>true</IsTruncated><NextContinuationToken>again</NextContinuationToken>"
    for _ in range(2):
        wire.answer(200, b"<ListBucketResult>" + truncated + b"</ListBucketResult>")
    page = await storage.list_prefix()
    with pytest.raises(StoreCorrupt):
        await storage.list_prefix(page_token=page.next_token)


async def test_a_prefix_that_a_listing_has_passed_is_left_out(storage: S3Storage, wire: Wire) -> None:
    """Stores disagree whether `StartAfter` leaves out the prefix that it lies in."""
    prefixes = "".join(
        f"<CommonPrefixes><Prefix>{each}</Prefix></CommonPrefixes>" for each in ("a/", "b/", "c/")
    )
    wire.answer(200, f"<ListBucketResult>{prefixes}</ListBucketResult>".encode())
    page = await storage.list_prefix("", delimiter="/", start_after="b/x")
    assert page.prefixes == ("c/",)


async def test_uploads_of_others_that_come_again_and_again_end_the_listing(
    storage: S3Storage, wire: Wire
) -> None:
    """A store may take no notice of the prefix, nor of where the page before has ended."""
    page = (
        b"<ListMultipartUploadsResult><IsTruncated>true</IsTruncated>"
        b"<Upload><Key>other</Key><UploadId>1</UploadId></Upload></ListMultipartUploadsResult>"
    )
    for _ in range(2):
        wire.answer(200, page)
    assert await storage.list_multipart_uploads("k") == ()
    assert len(wire.requests) == 2


async def test_uploads_are_listed_once_though_the_store_says_more(storage: S3Storage, wire: Wire) -> None:
    """One server says that there is more, gives no marker and ignores the one that it is given."""
    upload = (
        b"<Upload><Key>a%2Bb</Key><UploadId>1</UploadId><Initiated>2026-11-23T05:38:52Z</Initiated></Upload>"
    )
    head = b"<IsTruncated>true</IsTruncated><EncodingType>url</EncodingType>"
    for _ in range(2):
        wire.answer(200, b"<ListMultipartUploadsResult>" + head + upload + b"</ListMultipartUploadsResult>")
    [found] = await storage.list_multipart_uploads()
    assert (found.key, found.upload_id) == ("a+b", "1")
    assert len(wire.requests) == 2
    assert "key-marker=a%2Bb&upload-id-marker=1" in wire.requests[-1].url


async def test_a_copy_over_the_limit_is_too_large(storage: S3Storage, wire: Wire) -> None:
    """S3 calls it an invalid request, among many others."""
    wire.answer_error(400, "InvalidRequest")
    wire.answer(200, etag=f'"{ETAG}"', content_length=str(6 * GIB), last_modified=MODIFIED)
    with pytest.raises(EntityTooLarge):
        await storage.copy("s", "t")


async def test_a_range_of_a_small_source_is_carried_over(storage: S3Storage, wire: Wire) -> None:
    """S3 copies ranges only of sources above 5 MiB; smaller ones are read and uploaded."""
    wire.answer_error(400, "InvalidRequest")
    wire.answer(200, etag=f'"{ETAG}"', content_length="7")
    wire.answer(206, b"nte", etag=f'"{ETAG}"', content_range="bytes 2-4/7")
    wire.answer(200, etag='"part"')
    part = await storage.resume_multipart("k", "id").copy_part(3, "s", 2, 3)
    assert part == Part(number=3, etag="part", size=3)
    assert wire.requests[-1].body == b"nte"
    assert wire.header("if-match", 2) == f'"{ETAG}"'


async def test_a_range_of_a_large_source_is_not_carried_over(storage: S3Storage, wire: Wire) -> None:
    """It could be gigabytes in memory; the refusal has another reason, and the caller gets it."""
    wire.answer_error(400, "InvalidRequest")
    wire.answer(200, etag=f'"{ETAG}"', content_length=str(6 * MIB))
    with pytest.raises(InvalidRequest):
        await storage.resume_multipart("k", "id").copy_part(3, "s", 2, 3)
    assert len(wire.requests) == 2


@pytest.mark.parametrize(
    ("start", "length", "if_match", "expected"),
    [(5, 3, None, RangeNotSatisfiable), (0, 1, "stale", PreconditionFailed)],
)
async def test_a_refused_copy_of_a_part_is_explained(
    storage: S3Storage,
    wire: Wire,
    start: int,
    length: int,
    if_match: str | None,
    expected: type[StorageError],
) -> None:
    wire.answer_error(400, "InvalidArgument")
    wire.answer(200, etag=f'"{ETAG}"', content_length="7")
    with pytest.raises(expected):
        await storage.resume_multipart("k", "id").copy_part(1, "s", start, length, if_match=if_match)


async def test_parts_out_of_order_are_not_even_sent(storage: S3Storage, wire: Wire) -> None:
    parts = [Part(number=2, etag="b", size=1), Part(number=1, etag="a", size=1)]
    with pytest.raises(InvalidPart):
        await storage.resume_multipart("k", "id").complete(parts)
    assert wire.requests == []


async def test_batch_deletions_tell_what_failed(storage: S3Storage, wire: Wire) -> None:
    """A key that XML cannot hold goes alone; a missing key is no failure."""
    entries = "".join(
        f"<Error><Key>{key}</Key><Code>{code}</Code></Error>"
        for key, code in (("a", "AccessDenied"), ("b", "NoSuchKey"), ("c", "InternalError"))
    )
    wire.answer_error(503, "SlowDown")
    wire.answer(200, f"<DeleteResult>{entries}</DeleteResult>".encode())
    failures = await storage.delete_many(["a", "b", "c", "bell\x07"])
    assert {key: type(error).__name__ for key, error in failures.items()} == {
        "a": "AccessDenied",
        "c": "Unavailable",
        "bell\x07": "Throttled",
    }


@pytest.mark.parametrize(("status", "code"), [(501, "NotImplemented"), (400, "InvalidArgument")])
async def test_keys_are_deleted_one_by_one_where_there_are_no_batches(
    status: int, code: str, storage: S3Storage, wire: Wire
) -> None:
    wire.answer_error(status, code)
    wire.answer(204)
    wire.answer_error(403, "AccessDenied")
    assert [*await storage.delete_many(["a", "b"])] == ["b"]
    assert [request.method for request in wire.requests] == ["POST", "DELETE", "DELETE"]


# Threads


async def test_nothing_may_be_asked_after_the_end(wire: Wire) -> None:
    storage = storage_with(wire)
    await storage.aclose()
    with pytest.raises(StorageError, match="closed"):
        await storage.head("k")


async def test_the_client_is_made_once(wire: Wire) -> None:
    made = []

    def factory(options: S3Options) -> Any:
        made.append(options)
        return wire.factory(options)

    storage = S3Storage(OPTIONS, client_factory=factory)
    for _ in range(8):
        wire.answer(204)
    async with trio.open_nursery() as nursery:
        for number in range(8):
            nursery.start_soon(storage.delete, str(number))
    assert made == [OPTIONS]
    await storage.aclose()
