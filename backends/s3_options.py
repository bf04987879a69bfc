"""What an operator can say about an S3 bucket and the way to it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

Addressing: TypeAlias = Literal["auto", "path", "virtual"]
ChecksumChoice: TypeAlias = Literal["auto", "crc32", "none"]


@dataclass(frozen=True, kw_only=True, slots=True)
class S3Options:
    """One bucket and how to reach it.

    Credentials come from boto3's whole chain (environment, profiles, SSO, processes, container and instance roles),
    unless a key pair is given here or `anonymous` asks for unsigned requests. Raises `ValueError` for options that
    contradict each other.
    """

    bucket: str
    #: URL of the service; None is AWS.
    endpoint: str | None = None
    #: None leaves it to boto3's chain; AWS buckets in another region are followed there.
    region: str | None = None
    #: Name of a profile in the AWS configuration files.
    profile: str | None = None
    #: Whether the bucket's name goes into the path of a URL or into its host; "auto" is boto3's choice.
    addressing: Addressing = "auto"
    verify_tls: bool = True
    #: Path of a PEM file with the authorities to trust instead of the usual ones.
    ca_bundle: str | None = None

    anonymous: bool = False
    access_key: str | None = field(default=None, repr=False)
    secret_key: str | None = field(default=None, repr=False)
    session_token: str | None = field(default=None, repr=False)

    #: "AES256", "aws:kms", "aws:kms:dsse"; None leaves it to the bucket's default.
    server_side_encryption: str | None = None
    kms_key_id: str | None = None
    #: None leaves it to the bucket's default.
    storage_class: str | None = None
    requester_pays: bool = False
    #: "auto" finds out what the store verifies; "crc32" sends it without asking; "none" neither sends nor checks.
    checksum: ChecksumChoice = "auto"

    #: Requests under way at the same time, each in a thread and on a connection of its own.
    max_connections: int = 32
    connect_timeout_seconds: float = 10.0
    #: Of silence on a connection, not of a whole request.
    read_timeout_seconds: float = 60.0

    @property
    def endpoint_shown(self) -> str:
        """Where the service is, for people."""
        return self.endpoint or "AWS's own"

    def __post_init__(self) -> None:
        if not self.bucket:
            raise ValueError("bucket: a name is needed")
        if (self.access_key is None) != (self.secret_key is None):
            raise ValueError("access_key and secret_key: give both or neither")
        if self.session_token is not None and self.access_key is None:
            raise ValueError("session_token: it needs access_key and secret_key")
        if self.anonymous and (self.access_key is not None or self.profile is not None):
            raise ValueError("anonymous: it excludes access_key and profile")
        if self.kms_key_id is not None and not (self.server_side_encryption or "").startswith("aws:kms"):
            raise ValueError('kms_key_id: it needs server_side_encryption = "aws:kms"')
        if self.max_connections < 1:
            raise ValueError("max_connections: at least 1")
        if self.connect_timeout_seconds <= 0 or self.read_timeout_seconds <= 0:
            raise ValueError("connect_timeout_seconds and read_timeout_seconds: more than 0")
