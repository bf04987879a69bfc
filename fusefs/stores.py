"""Makes the store that a configuration names, with the wrappers that every mount has.

From the inside out: the store; `metered`, which counts each request that really goes out; `gated`, for a tree whose
mount may lose the right to write; `retrying`, so that an outage is waited for; `prefixed`, so that everything above
sees keys of its own tree.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from backends.base import KIB, ObjectStorage
from backends.directory import DirectoryStorage
from backends.gated import Check, GatedStorage
from backends.memory import MemoryStorage
from backends.metered import MeteredStorage
from backends.packing_bucket import Packing
from backends.prefixed import PrefixedStorage
from backends.retrying import RetryingStorage, RetryPolicy
from backends.s3 import S3Storage
from backends.s3_options import S3Options
from fusefs.journal_format import JOURNAL_PREFIX, SEAL_SIZES
from fusefs.options import BucketStore, DirectoryStore, Store

LOG_PACKING: Final = Packing(prefix=JOURNAL_PREFIX, sizes=(max(SEAL_SIZES) + 1, 256 * KIB))
"""What of a log on the local disk shares files."""


@dataclass(frozen=True, slots=True)
class OpenStore:
    """A store ready for a mount, and the layer of it that counts requests."""

    storage: ObjectStorage
    meter: MeteredStorage

    @property
    def backend(self) -> ObjectStorage:
        """The store itself."""
        return self.meter.wrapped


def open_store(store: Store, *, retry_timeout_seconds: float) -> OpenStore:
    """Return the store; no request is made before `probe`."""
    meter = MeteredStorage(_backend(store))
    return OpenStore(_wrapped(store, meter, retry_timeout_seconds), meter)


def open_beside(
    store: Store, opened: OpenStore, *, retry_timeout_seconds: float, connections: int
) -> OpenStore:
    """Return the store that `opened` has probed once more, with `connections` of its own.

    What is asked of it does not wait behind everything else that the mount asks for: a commit behind uploads. No
    attempt takes longer than `retry_timeout_seconds`. It counts together with `opened`.
    """
    backend = opened.backend
    if isinstance(store, BucketStore) and isinstance(backend, S3Storage):
        options = _s3_options(store)
        options = replace(
            options,
            max_connections=connections,
            connect_timeout_seconds=min(options.connect_timeout_seconds, retry_timeout_seconds),
            read_timeout_seconds=min(options.read_timeout_seconds, retry_timeout_seconds),
        )
        backend = S3Storage(options, probe_prefix=store.prefix, known=backend, quick=True)
    meter = MeteredStorage(backend, counted_with=opened.meter)
    return OpenStore(_wrapped(store, meter, retry_timeout_seconds), meter)


def gated(store: Store, opened: OpenStore, check: Check, *, retry_timeout_seconds: float) -> ObjectStorage:
    """Return `opened` for those who may change something only while `check` returns, first attempt or not."""
    return _wrapped(store, GatedStorage(opened.meter, check), retry_timeout_seconds)


def above(store: Store, opened: OpenStore) -> Iterator[tuple[str, ObjectStorage]]:
    """Yield each prefix above that of the store: its URL, and what is in it. No request to it is repeated."""
    names = store.prefix.split("/")[:-1] if isinstance(store, BucketStore) else []
    for depth in range(len(names)):
        outer = store.model_copy(update={"prefix": "".join(f"{name}/" for name in names[:depth])})
        yield outer.url, _prefixed(outer, opened.meter)


def open_local(directory: Path, kind: type[DirectoryStorage] = DirectoryStorage) -> ObjectStorage:
    """Return the store of a log in a directory of this host; what it has confirmed is on the disk.

    Batches are packed, unless they are large. So are none without records: of these a seal stays when the others go.
    """
    return kind(directory, packing=LOG_PACKING)


def _wrapped(store: Store, inner: ObjectStorage, retry_timeout_seconds: float) -> ObjectStorage:
    return _prefixed(store, RetryingStorage(inner, _retry_policy(retry_timeout_seconds)))


def _prefixed(store: Store, inner: ObjectStorage) -> ObjectStorage:
    prefix = store.prefix if isinstance(store, BucketStore) else ""
    return PrefixedStorage(inner, prefix) if prefix else inner


def _retry_policy(timeout_seconds: float) -> RetryPolicy:
    policy = RetryPolicy(timeout_seconds=timeout_seconds)
    return replace(policy, probe_timeout_seconds=min(policy.probe_timeout_seconds, timeout_seconds))


def _backend(store: Store) -> ObjectStorage:
    match store:
        case BucketStore():
            return S3Storage(_s3_options(store), probe_prefix=store.prefix, quick=True)
        case DirectoryStore():
            return DirectoryStorage(store.path)
        case _:
            return MemoryStorage()


def _s3_options(store: BucketStore) -> S3Options:
    credentials = store.credentials
    return S3Options(
        bucket=store.bucket,
        endpoint=store.endpoint,
        region=store.region,
        profile=credentials.profile,
        addressing=store.addressing,
        verify_tls=store.verify_tls,
        ca_bundle=str(store.ca_bundle) if store.ca_bundle else None,
        anonymous=credentials.anonymous,
        access_key=credentials.access_key,
        secret_key=credentials.secret_key.get_secret_value() if credentials.secret_key else None,
        session_token=credentials.session_token.get_secret_value() if credentials.session_token else None,
        server_side_encryption=store.server_side_encryption,
        kms_key_id=store.kms_key_id,
        storage_class=store.storage_class,
        requester_pays=store.requester_pays,
        checksum=store.checksums,
        max_connections=store.max_connections,
        connect_timeout_seconds=store.connect_timeout_seconds,
        read_timeout_seconds=store.read_timeout_seconds,
    )
