"""The seam: what fusefs asks of a place that keeps objects, the same for every store.

The vocabulary is S3's, because that is where the data lives: keys, ETags, parts. An ETag is an opaque string
without quotes. Keys are `str`; a store keeps every key that S3 does (1 to 1,024 bytes of UTF-8), or raises
`InvalidKey`. User metadata maps lower-case ASCII names to `str` values (any Unicode; together at most 2 KiB on
S3), and comes back as it was given.

All calls are trio coroutines and checkpoints. A mutation is never abandoned half-way by a cancellation: either it
was not begun, or the call waits for its end. Failures are classes of `backends.errors`; every method may raise
`Unavailable`, `Throttled`, `AccessDenied`, `AuthenticationFailed` and `StorageError`, so the docstrings name only
what comes on top of these. No store retries: `backends.retrying` is the only place that does.

The core is small on purpose. What can be said with it (a listing over all pages, a copy of any size, a stream of
unknown length) is a function or a class on top: `iterate_pages` here, `backends.multipart` for uploads.
"""

from __future__ import annotations

import abc
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, TypeAlias

from backends.errors import StorageError

KIB: Final = 1024
MIB: Final = 1024 * KIB
GIB: Final = 1024 * MIB
TIB: Final = 1024 * GIB

Metadata: TypeAlias = Mapping[str, str]
NO_METADATA: Final[Metadata] = MappingProxyType({})
NO_ETAGS: Final[Mapping[str, str]] = MappingProxyType({})

#: What a request body may be. Stores read it and never keep or change it.
Data: TypeAlias = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True)
class Overwrite:
    """Write whatever is there."""


@dataclass(frozen=True, slots=True)
class CreateOnly:
    """Write only if no object has the key; `PreconditionFailed` otherwise. Atomic: of many writers one wins."""


@dataclass(frozen=True, slots=True)
class IfMatch:
    """Write only over the object with this ETag; `PreconditionFailed` if it is another one or is gone."""

    etag: str


PutMode: TypeAlias = Overwrite | CreateOnly | IfMatch

OVERWRITE: Final = Overwrite()
CREATE_ONLY: Final = CreateOnly()


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectInfo:
    """One version of an object, as `head` and listings tell of it."""

    key: str
    etag: str
    size: int
    #: Nanoseconds since the epoch, within 64 bits with a sign; stores that count in seconds round down.
    last_modified_ns: int
    #: None where the answer does not carry it (a listing), which is not the same as having none.
    metadata: Metadata | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RangeResult:
    """Bytes of one version of an object."""

    #: As they have come: the memory may be a client's own, and to copy it takes the interpreter's time.
    body: Data
    etag: str
    #: Of the whole object, not of `body`.
    object_size: int

    @property
    def data(self) -> bytes:
        """The bytes as Python's own, copied if they are not."""
        return bytes(self.body)


@dataclass(frozen=True, slots=True, kw_only=True)
class ListPage:
    """Part of a listing, in key order over `objects` and `prefixes` together; either may be empty."""

    objects: tuple[ObjectInfo, ...]
    #: Common prefixes, each ending with the delimiter.
    prefixes: tuple[str, ...]
    #: Give it to the next call; None on the last page.
    next_token: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A part that the store holds for an upload that is not complete yet."""

    number: int
    etag: str
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadInfo:
    """A multipart upload that was begun and neither completed nor aborted."""

    key: str
    upload_id: str
    #: 0 where the store does not tell.
    initiated_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What a store can do, found by `ObjectStorage.probe`; checked before the call, not after its failure.

    Where the store honours a condition, it is atomic. Where it does not, `S3Storage` looks first and then acts: what
    somebody else changed before is noticed, and what changes in between is overwritten. The probe logs which these are.
    """

    #: `put(mode=CreateOnly())` is atomic.
    create_only: bool = True
    #: `put(mode=IfMatch(...))` is atomic.
    if_match: bool = True
    #: `complete(mode=...)` is atomic.
    conditional_complete: bool = True
    #: `copy(mode=...)`, a condition on the target, is atomic.
    conditional_copy: bool = True
    #: `delete(if_match=...)` is atomic.
    conditional_delete: bool = True
    #: `delete_many(if_match=...)` is atomic for each key.
    conditional_delete_many: bool = True
    #: `MultipartUpload.copy_part` works. Where it does not, the bytes are fetched and uploaded.
    copy_part: bool = True
    #: Bodies are sent with a checksum that the store verifies.
    checksums: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Sizes that S3 publishes ("Amazon S3 multipart upload limits", AWS documentation); all stores here share them."""

    min_part_size: int = 5 * MIB
    max_part_size: int = 5 * GIB
    #: Of one `copy` and of one `copy_part`.
    max_copy_size: int = 5 * GIB
    max_part_number: int = 10_000
    max_object_size: int = 5 * TIB
    #: Of one `put`; here all larger objects go up in parts long before.
    max_put_size: int = 5 * GIB
    #: Bytes of UTF-8.
    max_key_length: int = 1_024
    #: Sum of the bytes of names and values.
    max_metadata_size: int = 2 * KIB
    #: Keys in one request of `delete_many`; a longer list is several requests.
    max_delete_batch: int = 1_000


S3_LIMITS: Final = Limits()


class MultipartUpload(abc.ABC):
    """An object on its way up in parts; it appears under its key when `complete` returns, whole, or never.

    Parts may be uploaded in any order and at the same time, and again under the same number (the last one counts).
    Numbers are 1 to `max_part_number` and may have gaps.
    """

    @property
    @abc.abstractmethod
    def key(self) -> str:
        """Where the object will appear."""

    @property
    @abc.abstractmethod
    def upload_id(self) -> str:
        """The store's name for this upload; `ObjectStorage.resume_multipart` takes it, also in another process."""

    @abc.abstractmethod
    async def upload_part(self, number: int, data: Data) -> Part:
        """Store `data` as part `number`.

        Raises `UploadNotFound`; `InvalidRequest` for a number outside 1 to 10,000; `EntityTooLarge`.
        """

    @abc.abstractmethod
    async def copy_part(
        self, number: int, source: str, start: int, length: int, *, if_match: str | None = None
    ) -> Part:
        """Store bytes `start` to `start + length` of the object `source` as part `number`, inside the store.

        Raises `NotFound` and `PreconditionFailed` (of the source, whose ETag is `if_match`), `UploadNotFound`,
        `RangeNotSatisfiable` when the range is not wholly inside the source, `EntityTooLarge`, `NotSupported`.
        """

    @abc.abstractmethod
    async def complete(self, parts: Sequence[Part], *, mode: PutMode = OVERWRITE) -> str:
        """Make the object out of `parts`, in rising order of number, and return its ETag.

        Raises `PreconditionFailed` (the upload lives on), `EntityTooSmall` for a part below the minimum that is
        not the last, `InvalidPart`, `UploadNotFound`; `InvalidRequest` for no parts at all.
        """

    @abc.abstractmethod
    async def abort(self) -> None:
        """Give the parts up. Aborting what is no longer there is not an error."""


class ObjectStorage(abc.ABC):
    """A bucket, or a prefix of one."""

    @property
    @abc.abstractmethod
    def capabilities(self) -> Capabilities:
        """What this store can do; before `probe` has run, what stores of this kind usually can."""

    @property
    def limits(self) -> Limits:
        return S3_LIMITS

    @abc.abstractmethod
    async def probe(self, *, read_only: bool = False) -> Capabilities:
        """Ask the store, once at mount, whether the bucket is there and what it can do.

        With `read_only` nothing is written and only access is checked. Otherwise trial objects are written under
        `.fusefs/probe/` and removed again. Raises `BucketNotFound`, `WrongRegion`, `AccessDenied` and
        `AuthenticationFailed` with messages that an operator can act on.
        """

    @abc.abstractmethod
    async def head(self, key: str) -> ObjectInfo:
        """Return the object's newest version, metadata included. Raises `NotFound`."""

    @abc.abstractmethod
    async def get_range(
        self, key: str, start: int = 0, length: int | None = None, *, if_match: str | None = None
    ) -> RangeResult:
        """Return bytes `start` to `start + length`, or to the end of the object if it comes first.

        With `start == 0` and `length is None` it is the whole object, which may be empty. `length` is at least 1.
        Raises `NotFound`; `PreconditionFailed` when the ETag is not `if_match`; `RangeNotSatisfiable` when a range
        was asked for and begins at or after the end; `ObjectArchived`; `ChecksumMismatch`.
        """

    @abc.abstractmethod
    async def put(
        self, key: str, data: Data, *, metadata: Metadata = NO_METADATA, mode: PutMode = OVERWRITE
    ) -> str:
        """Store an object and return its ETag.

        Raises `PreconditionFailed`, `InvalidKey`, `InvalidMetadata`, `EntityTooLarge`, `QuotaExceeded`,
        `ConcurrentRequest`.
        """

    @abc.abstractmethod
    async def copy(
        self,
        source: str,
        target: str,
        *,
        if_match: str | None = None,
        metadata: Metadata | None = None,
        mode: PutMode = OVERWRITE,
    ) -> str:
        """Copy an object inside the store and return the new ETag; `source` and `target` may be the same key.

        `if_match` is the source's ETag, `mode` is about the target. `metadata` replaces the source's unless None
        (a copy of a key onto itself needs it). Raises `NotFound`, `PreconditionFailed` (of either), `InvalidKey`,
        `InvalidMetadata`, `EntityTooLarge` over `limits.max_copy_size`.
        """

    @abc.abstractmethod
    async def delete(self, key: str, *, if_match: str | None = None) -> None:
        """Remove an object. A missing key is not an error, unless `if_match` is given (`PreconditionFailed`)."""

    @abc.abstractmethod
    async def delete_many(
        self, keys: Iterable[str], *, if_match: Mapping[str, str] = NO_ETAGS
    ) -> Mapping[str, StorageError]:
        """Remove objects in batches and return what failed, by key. Missing keys are not failures.

        A key for which `if_match` has an ETag is removed in that version only: another one is `PreconditionFailed`,
        and stores differ whether none is.
        """

    @abc.abstractmethod
    async def list_prefix(
        self,
        prefix: str = "",
        *,
        delimiter: str = "",
        start_after: str = "",
        page_token: str | None = None,
        page_size: int = 1_000,
    ) -> ListPage:
        """Return one page of the keys that begin with `prefix`, in the order of their UTF-8 bytes.

        With a `delimiter`, keys that hold it after the prefix are rolled up into `ListPage.prefixes`, each named
        once. `start_after` leaves out every key, and every rolled-up prefix, up to and including it. `page_token`
        is `ListPage.next_token` of the page before, with all other arguments the same; `page_size` is an upper
        bound of 1 to 1,000, and a page may hold fewer, or none, and still have a next one.
        """

    @abc.abstractmethod
    async def create_multipart(self, key: str, *, metadata: Metadata = NO_METADATA) -> MultipartUpload:
        """Begin an upload in parts. Raises `InvalidKey`, `InvalidMetadata`."""

    @abc.abstractmethod
    def resume_multipart(self, key: str, upload_id: str) -> MultipartUpload:
        """Return the upload that was begun under this id. No request: whether it still exists shows when it is used."""

    @abc.abstractmethod
    async def list_multipart_uploads(self, prefix: str = "") -> Sequence[UploadInfo]:
        """Return the uploads under `prefix` that were begun and neither completed nor aborted."""

    @abc.abstractmethod
    async def aclose(self) -> None:
        """Give connections and threads back. Calls under way are waited for; no call may follow."""


async def iterate_pages(
    storage: ObjectStorage, prefix: str = "", *, delimiter: str = "", start_after: str = ""
) -> AsyncGenerator[ListPage, None]:
    """Yield every page of a listing; each is asked for when the one before has been used."""
    token: str | None = None
    while True:
        page = await storage.list_prefix(
            prefix, delimiter=delimiter, start_after=start_after, page_token=token
        )
        yield page
        token = page.next_token
        if token is None:
            return
