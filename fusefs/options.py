"""The tables of the configuration, checked one by one: what a store and a mount can be told.

Names in TOML carry no unit, because the values may ("8 MiB", "2 min"); the attributes here do. Every model is frozen,
takes keywords only, refuses keys that it does not know and never shows a secret. What is wrong with a value is a
`ValueError` whose message reads well after the key; `fusefs.config` puts the key in front.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Final, Literal, TypeAlias
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    SecretStr,
    ValidationInfo,
    field_validator,
    model_validator,
)

from backends.base import GIB, MIB, S3_LIMITS
from backends.part_sizes import largest_part_size
from fusefs.locations import check_bucket_name, normalize_prefix
from fusefs.quantities import format_size, parse_duration, parse_permissions, parse_size, shown

#: Below this the cache could not hold the parts of one upload.
_MIN_CACHE_SIZE: Final = 16 * MIB
#: What a lease allows; `fusefs.lease_record` says why.
MIN_TERM_SECONDS: Final = 1.0
MAX_TERM_SECONDS: Final = 3_600.0
#: The largest id but one; the kernel keeps the last for "no owner".
_MAX_OWNER_ID: Final = 2**32 - 2


def _absolute_path(value: object) -> Path:
    if not isinstance(value, str | Path) or "\0" in str(value):
        raise ValueError(f"must be a path (got {shown(value)})")
    path = os.path.expanduser(value)
    if not os.path.isabs(path):
        raise ValueError(f"must be an absolute path (got {shown(str(value))})")
    return Path(os.path.normpath(path))


def _existing_file(path: Path) -> Path:
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    return path


def _positive(seconds: float) -> float:
    if seconds <= 0:
        raise ValueError("must be more than 0 seconds")
    return seconds


def _legal_part_size(size: int) -> int:
    smallest, largest = S3_LIMITS.min_part_size, largest_part_size()
    if size < smallest:
        raise ValueError(f"must be at least {format_size(smallest)} (got {format_size(size)})")
    if size > largest:
        raise ValueError(f"must be at most {format_size(largest)} (got {format_size(size)})")
    return size


def _legal_cache_size(size: int) -> int:
    if size < _MIN_CACHE_SIZE:
        raise ValueError(f"must be at least {format_size(_MIN_CACHE_SIZE)} (got {format_size(size)})")
    return size


def _legal_endpoint(url: str) -> str:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    # A URL that holds a password is not repeated.
    if "@" in url:
        raise ValueError("must not hold credentials; give them in system.storage.object.credentials")
    if not host or parts.scheme not in {"http", "https"} or parts.query or parts.fragment or port == 0:
        raise ValueError(f'must be a URL such as "https://s3.example.com" (got {shown(url)})')
    return url.rstrip("/")


def _legal_term(seconds: float) -> float:
    if not MIN_TERM_SECONDS <= seconds <= MAX_TERM_SECONDS:
        raise ValueError(f"must be {MIN_TERM_SECONDS:.0f} s to {MAX_TERM_SECONDS / 3600:.0f} h")
    return seconds


ByteSize: TypeAlias = Annotated[int, PlainValidator(parse_size)]
Seconds: TypeAlias = Annotated[float, PlainValidator(parse_duration)]
PositiveSeconds: TypeAlias = Annotated[Seconds, AfterValidator(_positive)]
Permissions: TypeAlias = Annotated[int, PlainValidator(parse_permissions)]
AbsolutePath: TypeAlias = Annotated[Path, BeforeValidator(_absolute_path)]
OwnerId: TypeAlias = Annotated[int, Field(ge=0, le=_MAX_OWNER_ID)]
NonEmpty: TypeAlias = Annotated[str, Field(min_length=1)]
Secret: TypeAlias = Annotated[SecretStr, Field(min_length=1)]


class Table(BaseModel):
    """What all tables have in common."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", hide_input_in_errors=True)


class Credentials(Table):
    """One way to say who asks: a profile, a key pair, or nobody. Without this table boto3 looks in its usual places."""

    profile: NonEmpty | None = None
    access_key: NonEmpty | None = None
    secret_key: Secret | None = None
    session_token: Secret | None = None
    #: Unsigned requests, for public buckets.
    anonymous: bool = False

    @model_validator(mode="after")
    def _one_way(self) -> Credentials:
        if (self.access_key is None) != (self.secret_key is None):
            raise ValueError("access_key and secret_key belong together: give both or neither")
        if self.session_token is not None and self.access_key is None:
            raise ValueError("session_token needs access_key and secret_key")
        if (self.profile is not None) + (self.access_key is not None) + self.anonymous > 1:
            raise ValueError("give only one of profile, access_key with secret_key, and anonymous")
        return self


class MemoryStore(Table):
    """A bucket that is gone with the process, for trials; it takes no options."""

    @property
    def url(self) -> str:
        return "memory://"

    @property
    def identity(self) -> str:
        return self.url


class DirectoryStore(Table):
    """`[system.storage.fs]`: a directory that plays a bucket."""

    path: AbsolutePath

    @property
    def url(self) -> str:
        return f"file://{self.path}"

    @property
    def identity(self) -> str:
        return self.url


class BucketStore(Table):
    """`[system.storage.object]`: a bucket of an S3 server, and the way to it."""

    service: Literal["s3"] = "s3"
    bucket: Annotated[str, AfterValidator(check_bucket_name)]
    #: Ends with a slash, or is empty for the whole bucket.
    prefix: Annotated[str, AfterValidator(normalize_prefix)] = ""
    #: URL of the service; None is AWS.
    endpoint: Annotated[str, AfterValidator(_legal_endpoint)] | None = None
    #: None leaves it to boto3's chain.
    region: NonEmpty | None = None
    credentials: Credentials = Credentials()
    addressing: Literal["auto", "path", "virtual"] = "auto"
    verify_tls: bool = True
    #: A PEM file with the authorities to trust instead of the usual ones.
    ca_bundle: Annotated[AbsolutePath, AfterValidator(_existing_file)] | None = None

    server_side_encryption: Literal["AES256", "aws:kms", "aws:kms:dsse"] | None = None
    kms_key_id: NonEmpty | None = None
    storage_class: NonEmpty | None = None
    requester_pays: bool = False
    checksums: Literal["auto", "crc32", "none"] = "auto"

    multipart_part_size_bytes: Annotated[ByteSize, AfterValidator(_legal_part_size)] = Field(
        default=8 * MIB, alias="multipart_part_size"
    )
    #: Whether fsync returns when the bucket has it; or else when the local disk has it.
    ack_after_upload: bool = True
    #: Requests under way at the same time, but for those of the log and the lease, which have connections of their own.
    max_connections: Annotated[int, Field(ge=1, le=1024)] = 32
    connect_timeout_seconds: PositiveSeconds = Field(default=10.0, alias="connect_timeout")
    #: Of silence on a connection, not of a whole request.
    read_timeout_seconds: PositiveSeconds = Field(default=60.0, alias="read_timeout")

    @property
    def url(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")

    @property
    def identity(self) -> str:
        """The URL, and the service that it is meant for: two of them may have buckets of the same name."""
        return f"{self.url} at {self.endpoint}" if self.endpoint else self.url

    @field_validator("kms_key_id")
    @classmethod
    def _only_with_kms(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None and not str(info.data.get("server_side_encryption")).startswith("aws:kms"):
            raise ValueError('needs server_side_encryption = "aws:kms"')
        return value

    @field_validator("ca_bundle")
    @classmethod
    def _only_with_verification(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        if value is not None and not info.data.get("verify_tls", True):
            raise ValueError("has no meaning with verify_tls = false")
        return value


Store: TypeAlias = MemoryStore | DirectoryStore | BucketStore


class MountOptions(Table):
    """`[mount]`: where the tree appears, and how it behaves."""

    mountpoint: AbsolutePath
    read_only: bool = False
    #: Several hosts write the same prefix.
    shared: bool = False
    #: Other users may enter; the kernel checks the permission bits for them.
    allow_other: bool = False

    #: Whether files have extended attributes, for which the kernel asks at each write(2).
    xattr: bool = False

    #: Owner and permission bits of objects that carry none.
    uid: OwnerId = Field(default_factory=os.getuid)
    gid: OwnerId = Field(default_factory=os.getgid)
    file_mode: Permissions = 0o644
    directory_mode: Permissions = Field(default=0o755, alias="dir_mode")

    cache_dir: AbsolutePath
    cache_size_bytes: Annotated[ByteSize, AfterValidator(_legal_cache_size)] = Field(
        default=10 * GIB, alias="cache_size"
    )
    #: The widest window that a sequential reader is given; 0 fetches nothing ahead.
    read_ahead_bytes: ByteSize = Field(default=32 * MIB, alias="read_ahead")

    #: Whether close(2) returns only when the object is in the bucket; always so on a shared mount.
    wait_on_close: bool = False
    #: A closed file that was published less than this ago waits for the rest of it.
    publish_delay_seconds: Seconds = Field(default=1.0, alias="publish_delay")
    #: A file that stays open is published at least this often.
    publish_interval_seconds: PositiveSeconds = Field(default=30.0, alias="publish_interval")
    #: How old a listing may be before the bucket is asked again.
    revalidate_interval_seconds: Seconds = Field(default=60.0, alias="revalidate_interval")
    #: For how long a store that does not answer is asked again.
    retry_timeout_seconds: PositiveSeconds = Field(default=300.0, alias="retry_timeout")
    upload_workers: Annotated[int, Field(ge=1, le=256)] = 16

    #: What was written or done is in the log after this time at the latest, without an fsync.
    commit_interval_seconds: PositiveSeconds = Field(default=5.0, alias="commit_interval")
    #: When the log has more bytes than this, what it tells of is published at once.
    log_size_bytes: ByteSize = Field(default=256 * MIB, alias="log_size")
    #: Whether the mount makes sure that it is the only one that writes.
    lease: bool = True
    #: For how long others wait that find the lease of a mount that shows no sign of life.
    lease_term_seconds: Annotated[Seconds, AfterValidator(_legal_term)] = Field(
        default=15.0, alias="lease_term"
    )

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    #: None is standard error.
    log_file: AbsolutePath | None = None

    @field_validator("wait_on_close")
    @classmethod
    def _always_when_shared(cls, value: bool, info: ValidationInfo) -> bool:
        if info.data.get("shared") and not value:
            raise ValueError("cannot be false on a shared mount, whose close always waits")
        return value
