"""One bucket, asked in threads: the blocking boto3 client behind coroutines.

boto3's client is made at the first call (that takes a tenth of a second, and may ask an instance's metadata service
for credentials) and shared by all threads, of which there are never more than connections in its pool. A thread is
never abandoned: a cancelled caller waits for the request under way, so a mutation has either not begun or is over.
botocore repeats nothing by itself (`backends.retrying` decides that), with one exception: it follows an AWS bucket to
its region.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import io
import logging
import math
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeAlias, TypeVar

import boto3
import trio
import urllib3
from botocore import UNSIGNED
from botocore.config import Config

from backends.base import MIB, OVERWRITE, Capabilities, CreateOnly, Data, IfMatch, Overwrite, PutMode
from backends.errors import (
    InvalidKey,
    InvalidRequest,
    NotFound,
    PreconditionFailed,
    StorageError,
    Throttled,
)
from backends.rules import check_if_match, check_mode
from backends.s3_errors import Request, incomplete, translate
from backends.s3_list_answers import read_at_once
from backends.s3_options import S3Options
from backends.s3_quick import QuickClient, Route, Unreadable, is_plain, serves
from backends.s3_values import Checksum, content_md5, quote_etag, unquote_etag
from backends.threads import Threads, beside_others

if TYPE_CHECKING:
    from botocore.awsrequest import AWSPreparedRequest, AWSRequest
    from botocore.model import OperationModel
    from mypy_boto3_s3 import S3Client

T = TypeVar("T")
Arguments: TypeAlias = Mapping[str, Any]
ClientFactory: TypeAlias = Callable[[S3Options], "S3Client"]

_log = logging.getLogger(__name__)

QUICK_RETRY_SECONDS: Final = 60.0
"""After which it is tried again whether obstore works, where the store was too busy to tell."""

_EXPECT_CONTINUE_FROM_BYTES: Final = MIB
_NO_ARGUMENTS: Final[Arguments] = {}

_NAMED: Final = ("ListObjectsV2", "ListMultipartUploads", "CompleteMultipartUpload")
"""Operations whose answer may have nothing in it but its name."""

_BARE: Final = ("DeleteObject", "DeleteObjects", "AbortMultipartUpload")
"""Those whose answer may have no body: some stores say nothing at all of a batch in which no deletion has failed."""

_OF_THE_STORE: Final = re.compile(rb"<(?:\w+:)?(?:\w+Result|Error)[\s/>]")
_NO_ANSWER: Final = (
    b"<Error><Code>BadGateway</Code><Message>what came with 200 is no answer of a store</Message></Error>"
)


class Response(dict[str, Any]):
    """An answer as botocore reads it. What S3 always says is taken by its name, and raises `Unavailable` if missing."""

    def __init__(self, fields: Mapping[str, Any], request: Request) -> None:
        super().__init__(fields)
        self._request = request

    def __missing__(self, name: str) -> NoReturn:
        raise incomplete(name, self._request)

    def part(self, name: str) -> Response:
        """Return what is below one name."""
        return Response(self[name], self._request)

    def parts(self, name: str) -> list[Response]:
        """Return what there is below a name that an answer may repeat."""
        return [Response(fields, self._request) for fields in self.get(name, [])]


@dataclass(frozen=True, slots=True)
class Body:
    """A request's body and the checksum to send with it, computed in the request's thread."""

    data: Data
    checksum: Checksum

    def arguments(self) -> Arguments:
        # botocore takes no memoryview.
        data = bytes(self.data) if isinstance(self.data, memoryview) else self.data
        return {"Body": data, **self.checksum.arguments(data)}


@dataclass(frozen=True, kw_only=True, slots=True)
class Dialect:
    """How a store takes what S3 stores differ in; `backends.s3_probe` finds it out, AWS's is the default."""

    capabilities: Capabilities = field(default_factory=Capabilities)
    #: ETags in conditions on the target have quotes, as in answers; Ceph matches only bare ones.
    quoted_etags: bool = True
    #: A condition on the source of a copy is honoured. Where it is not, copying looks first and then acts.
    source_condition: bool = True
    object_checksum: Checksum = Checksum.CRC32
    #: CRC32 takes less of the processor. S3 wants an upload to be begun for it, and then part numbers without gaps.
    part_checksum: Checksum = Checksum.MD5


def create_client(options: S3Options) -> S3Client:
    """Make the boto3 client. Blocks; raises botocore's exceptions."""
    if not options.verify_tls:
        # Said in words, and logged once; urllib3 would say it again and again.
        urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
        _log.warning("the certificate of the service is not checked: verify_tls is off")
    session = boto3.session.Session(profile_name=options.profile, region_name=options.region)
    client: S3Client = session.client(
        "s3",
        endpoint_url=options.endpoint,
        verify=options.ca_bundle if options.verify_tls else False,
        aws_access_key_id=options.access_key,
        aws_secret_access_key=options.secret_key,
        aws_session_token=options.session_token,
        config=_configuration(options),
    )
    client.meta.events.register("before-sign.s3.DeleteObjects", _add_content_md5)
    # Under this name, because botocore's own handler, which parses the answer as well, comes first otherwise.
    client.meta.events.register_first("before-parse.s3.*", read_at_once)
    client.meta.events.register_first("before-parse.s3.*", _refuse_what_is_no_answer)
    for operation in ("PutObject", "UploadPart"):
        client.meta.events.register(f"before-call.s3.{operation}", _send_small_bodies_at_once)
    return client


class Bucket:
    """The bucket of `options`; every method that asks the store may raise what `backends.s3_errors` maps to."""

    def __init__(
        self,
        options: S3Options,
        client_factory: ClientFactory = create_client,
        *,
        quick: bool = False,
        trial_prefix: str = "",
    ) -> None:
        """With `quick`, what `call_quickly` can ask goes past botocore, once a listing has shown the way.

        What is asked for trial has a key below `trial_prefix`.
        """
        self._trial_prefix = trial_prefix
        self.options = options
        self._client_factory = client_factory
        self._is_quick = quick and serves(options)
        #: When it may be tried again whether that works.
        self._quick_again_at = -math.inf
        self._threads = Threads(options.max_connections)
        self._common = {"Bucket": options.bucket}
        if options.requester_pays:
            self._common["RequestPayer"] = "requester"
        #: Replaced once, by the probe.
        self.dialect = Dialect()
        #: Where the last listing went.
        self.route: Route | None = None
        self._client: S3Client | None = None
        self._quick_client: QuickClient | None = None
        self._client_lock = threading.Lock()
        self._quick_lock = threading.Lock()
        self._closed = False

    @property
    def new_object_arguments(self) -> Arguments:
        """How objects are to be kept: encryption and storage class."""
        chosen = {
            "ServerSideEncryption": self.options.server_side_encryption,
            "SSEKMSKeyId": self.options.kms_key_id,
            "StorageClass": self.options.storage_class,
        }
        return {name: value for name, value in chosen.items() if value is not None}

    def request(self, operation: str, key: str | None) -> Request:
        """Describe a call of a client's method, for messages."""
        return Request(
            operation="".join(word.title() for word in operation.split("_")),
            bucket=self.options.bucket,
            endpoint=self.options.endpoint_shown,
            key=key,
        )

    async def call(
        self,
        operation: str,
        key: str | None = None,
        arguments: Arguments = _NO_ARGUMENTS,
        body: Body | None = None,
    ) -> Response:
        """Call the client's method `operation` in a thread and return its answer."""
        return await self.call_and_read(operation, key, arguments, _as_it_is, body)

    async def call_and_read(
        self,
        operation: str,
        key: str | None,
        arguments: Arguments,
        read: Callable[[Response], T],
        body: Body | None = None,
    ) -> T:
        """Call the client's method `operation` and, in the same thread, `read` its answer."""
        work = functools.partial(self._call_in_thread, operation, key, arguments, read, body)
        return await self._run(work)

    async def call_quickly(self, key: str, ask: Callable[[QuickClient], T]) -> T | None:
        """Let `ask` use the quicker client in a thread; None where that cannot be asked, or nothing be read from it."""
        if not self._is_quick or self.route is None or not is_plain(key):
            return None
        return await self._run(functools.partial(self._ask_in_thread, key, self.route, ask))

    async def _run(self, work: Callable[[], T]) -> T:
        if self._closed:
            raise StorageError("the store was closed")
        return await self._threads.run(work)

    async def current_etag(self, key: str) -> str | None:
        """Return the ETag of the object under `key`, or None if there is no object."""
        try:
            response = await self.call("head_object", key)
        except NotFound:
            return None
        return unquote_etag(response["ETag"])

    async def target_condition(self, key: str, mode: PutMode, *, honoured: bool) -> Arguments:
        """Return the arguments that make a write conditional; where the store ignores them, look now instead."""
        if not honoured:
            if not isinstance(mode, Overwrite):
                check_mode(key, mode, await self.current_etag(key))
            return {}
        if isinstance(mode, CreateOnly):
            return {"IfNoneMatch": "*"}
        if isinstance(mode, IfMatch):
            return {"IfMatch": quote_etag(mode.etag) if self.dialect.quoted_etags else mode.etag}
        return {}

    async def source_arguments(self, key: str, if_match: str | None) -> Arguments:
        """Return the arguments that name the source of a copy; raises `NotFound` and `PreconditionFailed`."""
        source = {"CopySource": {"Bucket": self.options.bucket, "Key": key}}
        if if_match is None:
            return source
        if self.dialect.source_condition:
            return {**source, "CopySourceIfMatch": quote_etag(if_match)}
        etag = await self.current_etag(key)
        if etag is None:
            raise NotFound(f"'{key}' does not exist")
        check_if_match(key, if_match, etag)
        return source

    async def aclose(self) -> None:
        """Wait for the calls under way, then close the connections."""
        if self._closed:
            await trio.lowlevel.checkpoint()
            return
        self._closed = True
        # The calls that are under way cannot be cancelled either.
        with trio.CancelScope(shield=True):
            await self._threads.wait_until_idle()
            self._quick_client = None
            if self._client is not None:
                await beside_others(self._client.close)

    def _call_in_thread(
        self,
        operation: str,
        key: str | None,
        arguments: Arguments,
        read: Callable[[Response], T],
        body: Body | None,
    ) -> T:
        request = self.request(operation, key)
        try:
            method = getattr(self._shared_client(), operation)
            where = self._common if key is None else {**self._common, "Key": key}
            answer = method(**where, **arguments, **(body.arguments() if body is not None else {}))
            return read(Response(answer, request))
        except Exception as error:
            raise translate(error, request) from error

    def _ask_in_thread(self, key: str, route: Route, ask: Callable[[QuickClient], T]) -> T | None:
        with self._quick_lock:
            may_try = self._is_quick and time.monotonic() >= self._quick_again_at
            if self._quick_client is None and may_try:
                self._quick_client = self._make_quick_client(route)
            client = self._quick_client
        if client is None:
            return None
        try:
            return ask(client)
        except Unreadable as error:
            _log.debug("obstore cannot read an answer that botocore will be asked for: %s", error)
            return None
        except Exception as error:
            raise translate(error, self.request("obstore", key)) from error

    def _make_quick_client(self, route: Route) -> QuickClient | None:
        checksums = self.dialect.object_checksum is Checksum.CRC32
        try:
            return QuickClient(
                self.options,
                route,
                quoted_etags=self.dialect.quoted_etags,
                checksums=checksums,
                trial_prefix=self._trial_prefix,
            )
        except Exception as error:  # of any kind: there is another way
            if isinstance(error, Throttled):  # which says nothing of this way
                self._quick_again_at = time.monotonic() + QUICK_RETRY_SECONDS
                return None
            _log.warning("small requests do not go through obstore, and are slower: %s", error)
            self._is_quick = False
            return None

    def _shared_client(self) -> S3Client:
        with self._client_lock:
            if self._client is None:
                self._client = self._client_factory(self.options)
                if self._is_quick:
                    events = self._client.meta.events
                    events.register_first("before-send.s3.ListObjectsV2", self._note_route)
            return self._client

    def _note_route(self, request: AWSPreparedRequest, **_: object) -> None:
        self.route = Route.of(request, self.options.bucket)


def _configuration(options: S3Options) -> Config:
    return Config(
        signature_version=UNSIGNED if options.anonymous else None,
        s3={"addressing_style": options.addressing},
        retries={"total_max_attempts": 1, "mode": "standard"},
        max_pool_connections=options.max_connections,
        connect_timeout=options.connect_timeout_seconds,
        read_timeout=options.read_timeout_seconds,
        tcp_keepalive=True,
        user_agent_extra=f"fusefs/{importlib.metadata.version('fusefs')}",
        # Checksums are ours (`s3_values.Checksum`): botocore's own would go into trailers, which many stores refuse.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )


def _add_content_md5(request: AWSRequest, **_: object) -> None:
    """Give DeleteObjects the header that older servers insist on; botocore sends only its newer relative."""
    body = request.body
    request.headers["Content-MD5"] = content_md5(body.encode() if isinstance(body, str) else body)


def _refuse_what_is_no_answer(
    operation_model: OperationModel, response_dict: dict[str, Any], **_: object
) -> None:
    """Make a failure of a page that came with 200 and is not the store's, or of none where the store sends one.

    botocore reads it as an answer without anything in it: no objects, no deletion that failed. Other operations have
    answers in which something would be missing (`Response`).
    """
    if response_dict["status_code"] >= 300 or operation_model.name not in (*_NAMED, *_BARE):
        return
    body = response_dict["body"]
    if (body or operation_model.name in _NAMED) and _OF_THE_STORE.search(body) is None:
        response_dict["status_code"] = 502
        response_dict["body"] = _NO_ANSWER


def _send_small_bodies_at_once(params: dict[str, Any], **_: object) -> None:
    """Spare small bodies the wait for "100 Continue", a round trip, and all bodies botocore's way of file-like pieces.

    A large body waits: a store that refuses it by closing the connection half-way could not say why.
    """
    if isinstance(params["body"], io.BytesIO):
        params["body"] = params["body"].getvalue()
    params["headers"].pop("Expect", None)
    if len(params["body"]) >= _EXPECT_CONTINUE_FROM_BYTES:
        params["headers"]["Expect"] = "100-continue"


def _as_it_is(response: Response) -> Response:
    return response


@contextlib.contextmanager
def explained_refusals(key: str, mode: PutMode = OVERWRITE) -> Iterator[None]:
    """Translate refusals of a write to `key` that S3's codes say too little of.

    404 where the object of `IfMatch` is gone is a condition that did not hold. Some stores refuse keys with "." and
    ".." between slashes, which S3 takes, as requests that are invalid in some way.
    """
    try:
        yield
    except NotFound as error:
        if isinstance(mode, IfMatch):
            raise PreconditionFailed(str(error)) from error
        raise
    except InvalidRequest as error:
        if not {".", ".."}.isdisjoint(key.split("/")):
            raise InvalidKey(str(error)) from error
        raise
