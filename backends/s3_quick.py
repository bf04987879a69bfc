"""The requests that come by the thousand (HEAD, ranged GET, PUT of something small), past botocore.

botocore takes 1.2 to 1.5 ms of the interpreter's time for each, and nothing else of the process runs meanwhile;
obstore, a client in Rust, takes less than a tenth of that. What it cannot say as S3 does is left to botocore: keys
that its paths would change ("d/", "a//b"), encryption and other choices for new objects, authorities of one's own; any
answer that it cannot read; and whole objects whose ETag is not the MD5 of their bytes, since botocore compares those
with the checksums that S3 may have of them.

It goes where botocore's requests have gone (`Route`), through the same proxy and with the same credentials. Failures
become the same classes by the same tables, from the status and the body: obstore has no fields for them, and quotes
them in its message.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import re
import secrets
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit
from urllib.request import getproxies

import boto3
import obstore
from botocore.credentials import Credentials
from botocore.httpsession import ProxyConfiguration
from botocore.utils import get_environ_proxies
from obstore.exceptions import BaseError
from obstore.store import S3Store

from backends.base import MIB, CreateOnly, Data, IfMatch, Metadata, ObjectInfo, PutMode, RangeResult
from backends.errors import NotFound, StorageError, StoreCorrupt, Unavailable
from backends.s3_errors import Request, from_answer
from backends.s3_options import S3Options
from backends.s3_values import (
    Checksum,
    decode_metadata,
    encode_metadata,
    nanoseconds,
    quote_etag,
    unquote_etag,
)

if TYPE_CHECKING:
    from botocore.awsrequest import AWSPreparedRequest
    from obstore import GetOptions, GetResult, ObjectMeta
    from obstore import PutMode as QuickMode
    from obstore.store import ClientConfig, S3Config, S3Credential

MAX_BODY: Final = MIB
"""Bytes of one PUT. A longer one might take longer than a store may be silent, and a request is little beside it."""

_REFRESH_AHEAD: Final = timedelta(minutes=5)
"""obstore asks for credentials again so long before they end."""

_CREDENTIALS_TTL: Final = 2 * _REFRESH_AHEAD

_WHOLE_REQUEST: Final = "1day"
"""obstore would end a request after 30 s, however much there is to receive: silence is what counts."""

_OBSTORES_OWN: Final = ("AWS_SERVER_SIDE_ENCRYPTION", "AWS_SSE_", "AWS_CHECKSUM_ALGORITHM", "AWS_S3_EXPRESS")
"""Beginnings of environment variables that obstore follows and boto3 does not; it cannot be told not to."""

#: Keys that a path of obstore stands for as they are; others it refuses, or asks for something else.
_PLAIN_KEY: Final = re.compile(
    r"(?!\.{1,2}(?:/|$))[^/\x00-\x1f\x7f]+(?:/(?!\.{1,2}(?:/|$))[^/\x00-\x1f\x7f]+)*"
)

_SIGNED_FOR: Final = re.compile(r"AWS4-HMAC-SHA256 Credential=[^/]*/\d+/([^/]+)/s3/aws4_request")
_ANSWER: Final = re.compile(
    r"Error performing \S+ \S+ in \S+ - Server returned non-2xx status code: (\d{3})[^:]*: ?(.*)", re.DOTALL
)
_MD5: Final = re.compile(r"[0-9a-f]{32}")
_CODE: Final = re.compile(r"<Code>(.*?)</Code>", re.DOTALL)
_MESSAGE: Final = re.compile(r"<Message>(.*?)</Message>", re.DOTALL)
_REGION: Final = re.compile(r"<Region>(.*?)</Region>", re.DOTALL)
_DETAILS: Final = "\n\nDebug source:"
_CAUSE: Final = re.compile(r'message: "([^"]+)"|kind: (\w+)')
_NO_ANSWER: Final = "HTTP error"
_NOT_UNDERSTOOD: Final = "invalid utf-8"
#: After these nothing has been done: no credentials, another region.
_NOT_DONE: Final = ("lacked valid authentication", "Received redirect without LOCATION")


class Unreadable(Exception):
    """obstore can make nothing of an answer; botocore may."""


@dataclass(frozen=True, slots=True)
class Route:
    """Where botocore sends what is for the bucket."""

    endpoint: str
    #: Whether the bucket's name is in the endpoint.
    is_virtual: bool
    region: str

    @classmethod
    def of(cls, request: AWSPreparedRequest, bucket: str) -> Route | None:
        """Return the way that a request about the bucket itself takes; None if it is not signed in the usual way."""
        signed = _SIGNED_FOR.match(_text(request.headers.get("Authorization", "")))
        if signed is None:
            return None
        address = request.url.partition("?")[0].rstrip("/")
        is_virtual = not address.endswith(f"/{bucket}")
        return cls(address if is_virtual else address[: -len(bucket) - 1], is_virtual, signed[1])


def serves(options: S3Options) -> bool:
    """Return whether obstore can do what the options ask for."""
    asks_for_more = (
        options.anonymous
        or options.requester_pays
        or options.ca_bundle is not None
        or not options.verify_tls
        or options.server_side_encryption is not None
        or options.storage_class is not None
        or options.checksum == "crc32"
        or any(name.startswith(_OBSTORES_OWN) for name in os.environ)
    )
    return not asks_for_more


def is_plain(key: str) -> bool:
    """Return whether obstore can name the key."""
    return _PLAIN_KEY.fullmatch(key) is not None


def can_put(size: int, metadata: Metadata, checksum: Checksum) -> bool:
    """Return whether obstore can put an object; where stores verify MD5 only, it cannot send what they verify."""
    names = {name.lower() for name in metadata}
    return size <= MAX_BODY and checksum is not Checksum.MD5 and names.isdisjoint(_HEADERS)


class QuickClient:
    """Calls that block, for many threads. They raise `StorageError`, and `Unreadable` where botocore may know."""

    def __init__(
        self, options: S3Options, route: Route, *, quoted_etags: bool, checksums: bool, trial_prefix: str = ""
    ) -> None:
        """Block, for credentials and, over TLS, for a trial: the ways to trust a server are many.

        Raises botocore's exceptions, `LookupError` where it knows no credentials, and what the trial raises.
        """
        self._options = options
        self._quoted_etags = quoted_etags
        #: What says that of the ETags of PUTs, and of whole objects that are read, until one is not: under a customer's
        #: key (KMS), and in some stores, they are something else. One object that was read says nothing of PUTs.
        self._puts_are_md5 = self._reads_are_md5 = True
        silence = timedelta(seconds=options.read_timeout_seconds)
        # Under this name, because a variable AWS_ENDPOINT_URL_S3 would overrule `endpoint`.
        config: S3Config = {"aws_endpoint_url_s3": route.endpoint}
        if checksums:
            config["checksum_algorithm"] = "SHA256"
        self._store = S3Store(
            options.bucket,
            config=config,
            region=route.region,
            virtual_hosted_style_request=route.is_virtual,
            credential_provider=_provider(options),
            # As they are by default: obstore would take them from the environment, where they may be meant for others.
            skip_signature=False,
            unsigned_payload=False,
            request_payer=False,
            conditional_put="etag",
            client_options={
                "allow_http": route.endpoint.startswith("http://"),
                "connect_timeout": timedelta(seconds=options.connect_timeout_seconds),
                "read_timeout": silence,
                "timeout": _WHOLE_REQUEST,
                "user_agent": f"fusefs/{importlib.metadata.version('fusefs')}",
                **_way_out(route.endpoint),
            },
            retry_config={"max_retries": 0},
        )
        if route.endpoint.startswith("https://"):
            with suppress(NotFound):
                self.head(f"{trial_prefix}.fusefs/probe/{secrets.token_hex(8)}")

    def head(self, key: str) -> ObjectInfo:
        """As `ObjectStorage.head`."""
        try:
            result = obstore.get(self._store, key, options={"head": True})
        except (BaseError, FileNotFoundError) as error:
            raise self._translated(error, "HeadObject", key) from error
        meta = result.meta
        return ObjectInfo(
            key=key,
            etag=_etag(meta),
            size=meta["size"],
            last_modified_ns=nanoseconds(meta["last_modified"]),
            metadata=decode_metadata(_metadata(result)),
        )

    def get_range(self, key: str, start: int, length: int | None, if_match: str | None) -> RangeResult:
        """As `ObjectStorage.get_range`."""
        options: GetOptions = {} if if_match is None else {"if_match": quote_etag(if_match)}
        if length is not None:
            options["range"] = (start, start + length)
        elif start > 0:
            options["range"] = {"offset": start}
        else:
            return self._get_whole(key, options)
        result, data = self._get(key, options)
        size = result.meta["size"]
        expected = (start, size if length is None else min(start + length, size))
        if result.range != expected or len(data) != expected[1] - start:
            raise StoreCorrupt(
                f"the store answered with {len(data)} bytes of {result.range}, not of {expected}"
            )
        return RangeResult(body=data, etag=_etag(result.meta), object_size=size)

    def put(self, key: str, data: Data, metadata: Metadata, mode: PutMode) -> str:
        """As `ObjectStorage.put`. `Unreadable` only where nothing was done: or else the object may be there."""
        attributes = encode_metadata(metadata)
        body = data if isinstance(data, bytes) else bytes(data)
        try:
            result = obstore.put(
                self._store,
                key,
                body,
                attributes=attributes,
                mode=self._mode(mode),
                use_multipart=False,
            )
        except (BaseError, FileNotFoundError) as error:
            try:
                raise self._translated(error, "PutObject", key) from error
            except Unreadable as unreadable:
                if any(text in str(unreadable) for text in _NOT_DONE):
                    raise
                raise Unavailable(str(unreadable)) from error
        etag = unquote_etag(result["e_tag"] or "")
        if self._puts_are_md5 and etag != _md5(body):
            self._check_stored(key, etag, len(body), metadata)
        return etag

    def _check_stored(self, key: str, etag: str, size: int, metadata: Metadata) -> None:
        """Raise `Unavailable` unless the object is there: obstore follows a 303, with which a PUT becomes a GET.

        What that brings has an ETag as well: a proxy's page, for one.
        """
        try:
            found = self.head(key)
        except (StorageError, Unreadable) as error:
            raise Unavailable(f"whether {key!r} was stored cannot be told: {error}") from error
        has_metadata = metadata.items() <= (found.metadata or {}).items()  # a gateway may add some
        if (found.etag, found.size) != (etag, size) or not has_metadata:
            raise Unavailable(f"what has answered to the PUT of {key!r} with {etag} has not stored it")
        self._puts_are_md5 = self._reads_are_md5 = False

    def _get_whole(self, key: str, options: GetOptions) -> RangeResult:
        """Return the whole object, compared with its ETag, which is the MD5 of most; `Unreadable` where it is not."""
        if not self._reads_are_md5:
            raise Unreadable("ETags say nothing of the bytes here")
        result, data = self._get(key, options, read_if=_MD5)
        etag = _etag(result.meta)
        if len(data) != result.meta["size"]:
            raise Unreadable(f"{len(data)} bytes of {result.meta['size']}")
        if _md5(data) != etag:
            self._reads_are_md5 = False
            raise Unreadable(f"{etag} is not the MD5 of {len(data)} bytes")
        return RangeResult(body=data, etag=etag, object_size=len(data))

    def _get(
        self, key: str, options: GetOptions, *, read_if: re.Pattern[str] | None = None
    ) -> tuple[GetResult, memoryview]:
        """Return an answer and its body; `Unreadable` before the body comes if the ETag does not match `read_if`."""
        try:
            result = obstore.get(self._store, key, options=options)
            if read_if is not None and not read_if.fullmatch(_etag(result.meta)):
                raise Unreadable(f"{result.meta['e_tag']} is no MD5")
            return result, memoryview(result.bytes())
        except (BaseError, FileNotFoundError) as error:
            raise self._translated(error, "GetObject", key) from error

    def _mode(self, mode: PutMode) -> QuickMode:
        if isinstance(mode, CreateOnly):
            return "create"
        if isinstance(mode, IfMatch):
            return {"e_tag": quote_etag(mode.etag) if self._quoted_etags else mode.etag}
        return "overwrite"

    def _translated(self, error: Exception, operation: str, key: str) -> StorageError | Unreadable:
        text, _, details = str(error).partition(_DETAILS)
        # A name must not be taken for an answer; in addresses it is escaped.
        text = text.replace(f"location {key} ", "").replace(f"path {key}: ", "")
        request = Request(
            operation=operation, bucket=self._options.bucket, endpoint=self._options.endpoint_shown, key=key
        )
        answer = _ANSWER.search(text)
        if answer is not None:
            code, message, region = (
                found[1] if (found := pattern.search(answer[2])) else ""
                for pattern in (_CODE, _MESSAGE, _REGION)
            )
            return from_answer(int(answer[1]), code or answer[1], message, request, region=region)
        if _NO_ANSWER not in text or _NOT_UNDERSTOOD in details:
            return Unreadable(text)
        causes = _CAUSE.findall(details)
        said = f"{' '.join(text.split())} ({causes[-1][0] or causes[-1][1]})" if causes else text
        return Unavailable(f"{operation} of {request.target}: {said}; the endpoint is {request.endpoint}")


def _md5(data: Data) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def _way_out(endpoint: str) -> ClientConfig:
    """Return the proxy that botocore finds in the environment, or that there is none for the endpoint.

    obstore would look for one itself, in ALL_PROXY too, which means nothing to botocore, and sees no port in NO_PROXY.
    """
    if not getproxies():
        return {}
    proxy = ProxyConfiguration(get_environ_proxies(endpoint)).proxy_url_for(endpoint)
    if proxy:
        return {"proxy_url": proxy}
    return {"proxy_url": endpoint, "proxy_excludes": urlsplit(endpoint).hostname or ""}


def _provider(options: S3Options) -> _Provider:
    if options.access_key is not None and options.secret_key is not None:
        return _Provider(Credentials(options.access_key, options.secret_key, options.session_token))
    session = boto3.session.Session(profile_name=options.profile, region_name=options.region)
    credentials = session.get_credentials()
    if credentials is None:
        raise LookupError("no credentials are known")
    return _Provider(credentials)


class _Provider:
    """Gives obstore the credentials that botocore has, refreshed if need be; it looks for none of its own then."""

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials

    def __call__(self) -> S3Credential:
        frozen = self._credentials.get_frozen_credentials()
        if frozen.access_key is None or frozen.secret_key is None:
            raise LookupError("credentials are not complete")
        return {
            "access_key_id": frozen.access_key,
            "secret_access_key": frozen.secret_key,
            "token": frozen.token,
            "expires_at": self._end(),
        }

    def _end(self) -> datetime:
        """Return when obstore is to take these for over: where botocore tells an end, it can use them until then.

        botocore asks for others 15 minutes before, and goes on with these if it gets no others, from a process say.
        """
        end: datetime | None = getattr(self._credentials, "_expiry_time", None)
        latest = datetime.now(UTC) + _CREDENTIALS_TTL
        return latest if end is None else min(latest, end.astimezone(UTC) + _REFRESH_AHEAD)


def _text(header: object) -> str:
    return header.decode() if isinstance(header, bytes) else str(header)


def _etag(meta: ObjectMeta) -> str:
    if meta["e_tag"] is None:
        raise Unreadable("an answer without an ETag")
    return unquote_etag(meta["e_tag"])


def _metadata(result: GetResult) -> dict[str, str]:
    return {name: value for name, value in result.attributes.items() if name.lower() not in _HEADERS}


_HEADERS: Final = frozenset(
    (
        "content-disposition",
        "content-encoding",
        "content-language",
        "content-type",
        "cache-control",
        "storage-class",
    )
)
"""Names that stand for headers of their own where obstore has names of user metadata."""
