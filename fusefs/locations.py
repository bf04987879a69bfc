"""Where a store is, as a URL: `s3://bucket[/prefix]`, `file:///directory`, `memory://`.

What follows the scheme is taken as it is written: S3 keys and paths may hold `%`, `?` and `#`, so nothing is decoded
and nothing is a query.
"""

from __future__ import annotations

import ipaddress
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

from backends.base import S3_LIMITS
from fusefs.errors import ConfigError
from fusefs.quantities import shown

#: "General purpose bucket naming rules" of the S3 user guide; underscores and capitals are gone since 2018.
_BUCKET: Final = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", re.ASCII)
HOUSEKEEPING: Final = ".fusefs"
"""The directory of a bucket, or of a prefix, in which mounts keep their log, their lease and more."""

_EXAMPLES: Final = "s3://bucket/prefix, file:///directory or memory://"


@dataclass(frozen=True, slots=True, kw_only=True)
class BucketLocation:
    """A bucket of an S3 server, or the part of it below a prefix."""

    bucket: str
    #: Ends with a slash, or is empty for the whole bucket.
    prefix: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectoryLocation:
    """A directory that plays a bucket."""

    path: Path


@dataclass(frozen=True, slots=True)
class MemoryLocation:
    """A bucket that is gone with the process."""


Location: TypeAlias = BucketLocation | DirectoryLocation | MemoryLocation


def parse_url(url: str) -> Location:
    """Return what the URL names. Raises `ConfigError` with an example of what it should look like."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        raise ConfigError(f"{shown(url)} is not a URL of a store; use {_EXAMPLES}")
    try:
        match scheme:
            case "s3":
                return _parse_bucket(rest)
            case "file":
                return DirectoryLocation(path=_parse_directory(rest))
            case "memory":
                return _parse_memory(rest)
    except ValueError as error:
        raise ConfigError(f"{error}; use {_EXAMPLES}") from None
    raise ConfigError(f"{shown(scheme + '://')} is not a store that fusefs knows; use {_EXAMPLES}")


def check_bucket_name(name: str) -> str:
    """Return the name of a bucket. Raises `ValueError` if S3 could not have created it."""
    if not _BUCKET.fullmatch(name) or ".." in name or _is_ip_address(name):
        raise ValueError(
            "must be 3 to 63 lower-case letters, digits, dots and hyphens, with a letter or digit at both ends, "
            f"and no IP address (got {shown(name)})"
        )
    return name


def normalize_prefix(prefix: str) -> str:
    """Return the prefix with a slash at its end, or "". Raises `ValueError` if a file system cannot be below it."""
    names = prefix.removesuffix("/").split("/") if prefix else []
    try:
        encoded = prefix.encode()
    except UnicodeEncodeError:
        raise ValueError(f"must be a prefix in UTF-8 (got {prefix!a})") from None
    if not all(names) or any(name in {".", ".."} or "\0" in name for name in names):
        raise ValueError(
            f'must be a prefix such as "team/data", without a slash at its start, "//", "." or ".." '
            f"(got {shown(prefix)})"
        )
    if HOUSEKEEPING in names:
        raise ValueError(
            f"must not lead into {HOUSEKEEPING}, where mounts keep what is theirs (got {shown(prefix)})"
        )
    if len(encoded) >= S3_LIMITS.max_key_length:
        raise ValueError(f"must leave room for names in keys of {S3_LIMITS.max_key_length} bytes")
    return "".join(name + "/" for name in names)


def _parse_bucket(rest: str) -> BucketLocation:
    bucket, _, prefix = rest.partition("/")
    if "@" in bucket or ":" in bucket:
        # What stands before an @ may be a secret, also one with a slash in it, so the message does not repeat it.
        raise ValueError(
            "a URL of a bucket has no place for credentials, which come from the environment or a profile,"
            " nor for a port, which the endpoint has"
        )
    at_fault = "bucket"
    try:
        check_bucket_name(bucket)
        at_fault = "prefix"
        return BucketLocation(bucket=bucket, prefix=normalize_prefix(prefix))
    except ValueError as error:
        raise ValueError(f"{shown('s3://' + rest)}: the {at_fault} {error}") from None


def _parse_directory(rest: str) -> Path:
    path = os.path.normpath(rest) if rest else ""
    if not path.startswith("/") or path.strip("/") == "" or "\0" in path:
        raise ValueError(f"{shown('file://' + rest)} names no directory by its absolute path (three slashes)")
    return Path("/" + path.lstrip("/"))


def _parse_memory(rest: str) -> MemoryLocation:
    if rest:
        raise ValueError(f"{shown('memory://' + rest)} has something after memory://, which has no parts")
    return MemoryLocation()


def _is_ip_address(name: str) -> bool:
    try:
        ipaddress.IPv4Address(name)
    except ValueError:
        return False
    return True
