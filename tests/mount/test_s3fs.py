"""s3fs on the same bucket: what each writes, the other reads."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.mount.conftest import NewMount
from tests.support.bucket import Bucket
from tests.support.seaweedfs import ACCESS_KEY, SECRET_KEY, SeaweedFS

MTIME_NS = 1_600_000_000_123_456_789


@pytest.fixture
def s3fs_directory(tmp_path: Path) -> Path:
    directory = tmp_path / "s3fs"
    directory.mkdir()
    (directory / "mnt").mkdir()
    password = directory / "password"
    password.touch(mode=0o600)
    password.write_text(f"{ACCESS_KEY}:{SECRET_KEY}\n")
    return directory


@contextmanager
def s3fs(directory: Path, bucket: Bucket, server: SeaweedFS) -> Iterator[Path]:
    """Mount the prefix of the test with s3fs, for the block."""
    options = f"passwd_file={directory / 'password'},url={server.endpoint},use_path_request_style,use_xattr"
    where = f"{bucket.name}:/{bucket.prefix.removesuffix('/')}"
    bucket.put("", b"")  # s3fs mounts what is there
    subprocess.run(["s3fs", where, str(directory / "mnt"), "-o", options], check=True, timeout=60)
    try:
        yield directory / "mnt"
    finally:
        subprocess.run(["umount", str(directory / "mnt")], check=True, timeout=60)


def fill(root: Path) -> None:
    """Make one of each kind, with attributes that no default has."""
    (root / "file").write_bytes(b"content")
    (root / "dir" / "below").mkdir(parents=True)
    (root / "dir" / "below" / "größe").write_bytes(b"")
    (root / "link").symlink_to("dir/below")
    os.mkfifo(root / "fifo", 0o600)
    os.setxattr(root / "file", "user.color", b"\x00\xffblue")
    os.setxattr(root / "file", "user.größe", b"large")
    os.chown(root / "file", 1234, 2345)
    (root / "file").chmod(0o2750)
    os.utime(root / "file", ns=(MTIME_NS - 1, MTIME_NS))


def check(root: Path) -> None:
    """Look at what `fill` has made."""
    assert set(os.listdir(root)) - {".fusefs"} == {"dir", "fifo", "file", "link"}
    assert (root / "file").read_bytes() == b"content"
    status = (root / "file").stat()
    assert status.st_mode == stat.S_IFREG | 0o2750
    assert (status.st_uid, status.st_gid) == (1234, 2345)
    assert status.st_mtime_ns == MTIME_NS
    assert status.st_atime_ns == MTIME_NS - 1
    assert os.readlink(root / "link") == "dir/below"
    assert os.listdir(root / "link") == ["größe"]
    assert (root / "dir" / "below" / "größe").stat().st_size == 0
    assert (root / "fifo").stat().st_mode == stat.S_IFIFO | 0o600
    found = {name: os.getxattr(root / "file", name) for name in os.listxattr(root / "file")}
    assert found == {"user.color": b"\x00\xffblue", "user.größe": b"large"}


def test_fusefs_reads_what_s3fs_has_written(
    new_mount: NewMount, bucket: Bucket, s3_server: SeaweedFS, s3fs_directory: Path
) -> None:
    with s3fs(s3fs_directory, bucket, s3_server) as root:
        fill(root)
    mount = new_mount(None, "--xattr").mount()
    check(mount.path)
    (mount.path / "file").rename(mount.path / "dir" / "renamed")
    (mount.path / "dir" / "renamed").rename(mount.path / "file")
    mount.umount()
    with s3fs(s3fs_directory, bucket, s3_server) as root:
        check(root)


def test_s3fs_reads_what_fusefs_has_written(
    new_mount: NewMount, bucket: Bucket, s3_server: SeaweedFS, s3fs_directory: Path
) -> None:
    mount = new_mount(None, "--xattr").mount()
    fill(mount.path)
    mount.umount()
    with s3fs(s3fs_directory, bucket, s3_server) as root:
        check(root)
        (root / "file").rename(root / "dir" / "renamed")
        (root / "dir" / "renamed").rename(root / "file")
    mount.mount_cold()
    check(mount.path)
