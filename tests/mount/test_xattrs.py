"""Extended attributes through the kernel: the errors of each call, and the programs that people use for them."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.mount.conftest import NewMount
from tests.support.bucket import Bucket
from tests.support.mounts import Mount
from tests.support.posix_calls import SOMEBODY, acting_as


@pytest.fixture
def mount(new_mount: NewMount) -> Mount:
    return new_mount(None, "--xattr", "--allow-other").mount()


def error_of(call: Callable[[], object]) -> str | None:
    """Return the name of the errno that a call answers, if it answers one."""
    try:
        call()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return None


def test_they_are_kept(mount: Mount, bucket: Bucket) -> None:
    """With `--xattr`, extended attributes (user, security and trusted) are kept with the file, in the form that s3fs
    uses; what is too long for an object's metadata is an object under `.fusefs/`. They follow a rename, and go with the
    file.
    """
    path = mount.path / "file"
    path.write_bytes(b"content")
    values = {
        "user.small": b"\x00\xff",
        "user.empty": b"",
        "security.x": b"y",
        "trusted.large": os.urandom(5_000),
    }
    for name in ("user.small", "user.empty", "security.x"):
        os.setxattr(path, name, values[name])
    mount.remount()
    assert "xattr" in bucket.client.head_object(Bucket=bucket.name, Key=f"{bucket.prefix}file")["Metadata"]
    os.setxattr(path, "trusted.large", values["trusted.large"])
    path.write_bytes(b"other content")
    path = path.rename(mount.path / "renamed")
    mount.remount()
    assert {name: os.getxattr(path, name) for name in os.listxattr(path)} == values
    assert any(key.startswith(".fusefs/xattrs/") for key in bucket.sizes())
    path.unlink()
    mount.umount()
    assert bucket.sizes() == {}


def test_each_error(mount: Mount) -> None:
    path = mount.path / "file"
    path.touch()
    assert error_of(lambda: os.getxattr(path, "user.a")) == "ENODATA"
    assert error_of(lambda: os.removexattr(path, "user.a")) == "ENODATA"
    assert error_of(lambda: os.setxattr(path, "user.a", b"1", os.XATTR_REPLACE)) == "ENODATA"
    os.setxattr(path, "user.a", b"1", os.XATTR_CREATE)
    assert error_of(lambda: os.setxattr(path, "user.a", b"2", os.XATTR_CREATE)) == "EEXIST"
    os.setxattr(path, "user.a", b"two", os.XATTR_REPLACE)
    assert os.getxattr(path, "user.a") == b"two"
    assert error_of(lambda: os.setxattr(path, "user.large", bytes(65_537))) == "E2BIG"
    assert error_of(lambda: os.setxattr(path, "user." + "n" * 251, b"")) == "ERANGE"
    os.setxattr(path, "user.large", bytes(65_536))
    assert error_of(lambda: os.setxattr(path, "system.posix_acl_access", b"\2\0\0\0")) == "ENOTSUP"
    assert error_of(lambda: os.getxattr(path, "system.posix_acl_access")) == "ENOTSUP"
    assert error_of(lambda: os.setxattr(path, "other", b"")) == "ENOTSUP"
    assert error_of(lambda: os.setxattr(path, "user.", b"")) == "EINVAL"
    assert error_of(lambda: os.getxattr(path, "security.")) == "EINVAL"
    assert error_of(lambda: os.removexattr(path, "trusted.")) == "EINVAL"
    (mount.path / "link").symlink_to("file")
    assert error_of(lambda: os.setxattr(mount.path / "link", "user.a", b"", follow_symlinks=False)) == "EPERM"
    os.removexattr(path, "user.a")
    assert os.listxattr(path) == ["user.large"]


def test_a_buffer_that_is_too_small(mount: Mount) -> None:
    """ERANGE for a value and for the list; Python's own calls ask for the size first."""
    path = mount.path / "file"
    path.touch()
    os.setxattr(path, "user.a", b"value")
    script = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
buffer = ctypes.create_string_buffer(2)
for call in (
    lambda: libc.getxattr(sys.argv[1].encode(), b"user.a", buffer, 2),
    lambda: libc.listxattr(sys.argv[1].encode(), buffer, 2),
):
    print(call(), ctypes.get_errno())
"""
    done = subprocess.run(["python3", "-c", script, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [f"-1 {errno.ERANGE}"] * 2


def test_somebody_without_privileges(mount: Mount) -> None:
    """The kernel asks what the permissions say; trusted attributes are root's."""
    path = mount.path / "file"
    path.touch(mode=0o644)
    os.setxattr(path, "user.a", b"1")
    os.setxattr(path, "trusted.b", b"2")
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with acting_as(SOMEBODY):
            assert os.listxattr(descriptor) == ["user.a"]
            assert os.getxattr(descriptor, "user.a") == b"1"
            assert error_of(lambda: os.setxattr(descriptor, "user.a", b"")) == "EACCES"
            assert error_of(lambda: os.getxattr(descriptor, "trusted.b")) == "ENODATA"
            assert error_of(lambda: os.setxattr(descriptor, "trusted.b", b"")) == "EPERM"
    finally:
        os.close(descriptor)


def test_the_programs_for_them(mount: Mount) -> None:
    """setfattr, getfattr, and cp that takes them along."""
    path, copy = mount.path / "file", mount.path / "copy"
    path.write_bytes(b"content")
    subprocess.run(["setfattr", "-n", "user.color", "-v", "blue", str(path)], check=True)
    subprocess.run(["cp", "--preserve=all", str(path), str(copy)], check=True)
    command = ["getfattr", "--absolute-names", "-d", str(copy)]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert shown == f'# file: {copy}\nuser.color="blue"\n\n'


def test_a_mount_that_was_not_asked_has_none(new_mount: NewMount, tmp_path: Path) -> None:
    path = new_mount("memory://").mount().path / "file"
    path.touch()
    assert error_of(lambda: os.getxattr(path, "user.a")) == "ENOTSUP"
    assert error_of(lambda: os.setxattr(path, "user.a", b"")) == "ENOTSUP"
    assert error_of(lambda: os.listxattr(path)) == "ENOTSUP"
