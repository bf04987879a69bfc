"""The flags of the commands: one for each key of the configuration, with the same name and the same meaning."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final, NamedTuple, TypeVar

import click

from fusefs.config import STORE_FLAGS
from fusefs.options import BucketStore, Credentials, MountOptions
from fusefs.quantities import format_size

_CommandT = TypeVar("_CommandT", bound=Callable[..., None])


class _Flag(NamedTuple):
    """How a key is said on the command line. `value` None is a switch; its opposite is `--no-NAME`."""

    value: str | None
    help: str
    type: Any = None


#: By the name of the key, in the order of `--help`.
_FLAGS: Final[Mapping[str, _Flag]] = MappingProxyType(
    {
        "endpoint": _Flag("URL", "URL of the S3 service, if it is not AWS."),
        "region": _Flag("REGION", "Region of the bucket."),
        "profile": _Flag("PROFILE", "Profile of the AWS configuration files."),
        "anonymous": _Flag(None, "Send unsigned requests: for public buckets, with --read-only."),
        "cache_dir": _Flag(
            "DIR", "Where bytes are kept on the way; also the log, without --ack-after-upload.", click.Path()
        ),
        "cache_size": _Flag("SIZE", "How many bytes are kept there at most."),
        "read_only": _Flag(None, "Refuse every change."),
        "shared": _Flag(None, "Let other hosts write the same prefix; without a log, and close(2) waits."),
        "allow_other": _Flag(None, "Let other users in; the kernel checks permission bits."),
        "xattr": _Flag(None, "Keep extended attributes, at the cost of a request for each write."),
        "wait_on_close": _Flag(None, "Let close(2) wait for the upload; always so with --shared."),
        "publish_delay": _Flag("TIME", "Least time between two publications of a closed file."),
        "publish_interval": _Flag("TIME", "Most time between two publications of an open file."),
        "revalidate_interval": _Flag(
            "TIME", "How old a listing may be before the bucket is asked again; 1 s with --shared."
        ),
        "retry_timeout": _Flag("TIME", "For how long a store that does not answer is asked again."),
        "read_ahead": _Flag(
            "SIZE", "The widest window of a sequential reader, and of small files in one directory."
        ),
        "upload_workers": _Flag("NUMBER", "Publications under way at once.", int),
        "commit_interval": _Flag("TIME", "Most time until the log has what was done without fsync."),
        "log_size": _Flag("SIZE", "Bytes of the log at which everything in it is published."),
        "lease": _Flag(None, "Make sure that no other mount writes the prefix."),
        "lease_term": _Flag("TIME", "How long another host waits for a mount that died."),
        "uid": _Flag("UID", "Owner of objects that carry none.", int),
        "gid": _Flag("GID", "Group of objects that carry none.", int),
        "file_mode": _Flag("MODE", "Permissions of files that carry none, in octal."),
        "dir_mode": _Flag("MODE", "Permissions of directories that carry none, in octal."),
        "multipart_part_size": _Flag("SIZE", "Bytes of an upload's first parts, 5 MiB at least."),
        "ack_after_upload": _Flag(None, "Let fsync return when the bucket has it, not the local disk."),
        "addressing": _Flag("STYLE", "Bucket's name in the URL: auto, path or virtual."),
        "verify_tls": _Flag(None, "Check the certificate of the service."),
        "ca_bundle": _Flag("FILE", "PEM file with the authorities to trust.", click.Path()),
        "server_side_encryption": _Flag("KIND", "AES256, aws:kms or aws:kms:dsse."),
        "kms_key_id": _Flag("KEY", "The key for aws:kms."),
        "storage_class": _Flag("CLASS", "Storage class of new objects."),
        "requester_pays": _Flag(None, "Pay for the requests to somebody else's bucket."),
        "checksums": _Flag("KIND", "Of what is sent: auto (as the store verifies it), crc32 or none."),
        "max_connections": _Flag("NUMBER", "Requests under way at once.", int),
        "connect_timeout": _Flag("TIME", "How long a connection may take."),
        "read_timeout": _Flag("TIME", "How long a connection may be silent."),
        "log_file": _Flag(
            "FILE", "Where messages go: fusefs.log in --cache-dir, if not in the foreground.", click.Path()
        ),
        "log_level": _Flag("LEVEL", "The least that is told there: debug, info, warning or error."),
    }
)


_OF_FILES: Final = frozenset({"multipart_part_size", "ack_after_upload"})
"""What these say of a store matters to a mount alone."""

_OF_NEW_OBJECTS: Final = frozenset({"server_side_encryption", "kms_key_id", "storage_class"})
"""And these to whoever writes an object."""


def configuration_flags(command: _CommandT) -> _CommandT:
    """Give a click command all flags; they reach it as keyword arguments, None where they were not given."""
    return _with_flags(command, list(_FLAGS))


def store_flags(command: _CommandT) -> _CommandT:
    """Give a click command the flags that say how the store is reached to be read."""
    return _with_flags(
        command, [name for name in _FLAGS if name in STORE_FLAGS - _OF_FILES - _OF_NEW_OBJECTS]
    )


def log_flags(command: _CommandT) -> _CommandT:
    """Give a click command the flags that say how the store is reached, and where this host may have a log."""
    return _with_flags(command, [name for name in _FLAGS if name in STORE_FLAGS - _OF_FILES | {"cache_dir"}])


def _with_flags(command: _CommandT, names: list[str]) -> _CommandT:
    for name in reversed(names):
        flag = _FLAGS[name]
        word = name.replace("_", "-")
        default = default_of(name)
        text = f"{flag.help}  [default: {default}]" if default else flag.help
        if flag.value is None:
            option = click.option(f"--{word}/--no-{word}", name, default=None, help=text)
        else:
            option = click.option(f"--{word}", name, metavar=flag.value, type=flag.type, help=text)
        command = option(command)
    return command


def default_of(name: str) -> str:
    """Return what holds where a flag is not given, in the README's words; "" if that has to be found out."""
    for model in (MountOptions, BucketStore, Credentials):
        for attribute, field in model.model_fields.items():
            if name == (field.alias or attribute):
                return _shown(attribute, field.get_default())
    raise KeyError(name)


def _shown(attribute: str, value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if attribute.endswith("_bytes"):
        return format_size(value)
    if attribute.endswith("_seconds"):
        return f"{value:g} s" if value < 120 else f"{value / 60:g} min"
    if attribute.endswith("_mode"):
        return f"{value:04o}"
    return str(value) if isinstance(value, int | str) else ""
