"""Names and keys that cannot be each other, through the kernel and on the real S3 server."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from tests.mount.conftest import NewMount
from tests.support.arena import DirectoryObjects
from tests.support.bucket import Bucket
from tests.support.mounts import Mount


def test_names_of_any_bytes(mount: Mount, bucket: Bucket) -> None:
    """They are the same after a remount, and an S3 tool finds them under a key that says which bytes they are."""
    os.mkdir(os.fsencode(mount.path) + b"/caf\xe9")
    path = os.fsencode(mount.path) + b"/caf\xe9/" + b"\xff" * 82
    with open(path, "wb") as file:
        file.write(b"content")
    mount.remount()
    assert os.listdir(os.fsencode(mount.path)) == [b"caf\xe9"]
    with open(path, "rb") as file:
        assert file.read() == b"content"
    assert bucket.sizes()["%bytes-caf%E9/%bytes-" + "%FF" * 82] == 7


def test_escaped_names(new_mount: NewMount, tmp_path: Path) -> None:
    """A name may be any bytes. One that is not UTF-8 is `%bytes-` in the key, with `%XX` for each such byte. A key that
    cannot be a name (`a//b`, a segment `.` or `..`, a NUL) shows up as `%key-` with what can be said of it, and an
    object `x` beside a directory `x/` as `%file-x`; each can be read, changed, removed and renamed under that name,
    which no new entry can have (EPERM).
    """
    store = tmp_path / "bucket"
    store.mkdir()
    objects = DirectoryObjects(store)
    for key in ("a//b", "a/./c", "a/../d", "a"):
        objects.put(key, key.encode())
    mount = new_mount(f"file://{store}").mount()
    (mount.path / "%file-a").write_bytes(b"changed as well")
    directory = mount.path / "a"
    assert sorted(os.listdir(directory)) == ["%key-", "%key-%2E", "%key-%2E%2E"]
    assert (directory / "%key-" / "b").read_bytes() == b"a//b"
    (directory / "%key-" / "b").write_bytes(b"changed")
    with pytest.raises(PermissionError):
        (mount.path / "%key-%2E").mkdir()
    (directory / "%key-%2E" / "c").unlink()
    (directory / "%key-%2E%2E" / "d").rename(directory / os.fsdecode(b"\xe9"))
    mount.umount()
    assert objects.read("a//b") == b"changed"
    assert objects.read("a") == b"changed as well"
    assert objects.read("a/%bytes-%E9") == b"a/../d"
    assert not {"a/./c", "a/../d"} & set(objects.sizes())


def test_directories_that_others_have_made(bucket: Bucket, new_mount: NewMount) -> None:
    """By keys alone, or by an object with bytes, which SeaweedFS drops: both take attributes and another name."""
    bucket.put("by key/file", b"content")
    bucket.put("by object/", b"bytes of a directory")
    mount = new_mount().mount()
    for name in ("by key", "by object"):
        (mount.path / name).chmod(0o700)
    mount.umount()
    assert bucket.sizes() == {"by key/": 0, "by key/file": 7, "by object/": 0}
    mount.mount()
    assert (mount.path / "by key").stat().st_mode & 0o777 == 0o700
    for name in ("by key", "by object"):
        (mount.path / name).rename(mount.path / f"{name}, moved")
    mount.umount()
    assert bucket.sizes() == {"by key, moved/": 0, "by key, moved/file": 7, "by object, moved/": 0}


def test_paths_as_long_as_keys(new_mount: NewMount) -> None:
    """1,023 bytes, of a file or a directory; a rename that would make a longer one below is refused as well."""
    mount = new_mount("memory://").mount()
    directory = mount.path / ("d" * 255) / ("e" * 255) / ("f" * 255)
    directory.mkdir(parents=True)
    for longest in (directory / ("n" * 255), directory / ("ä" * 127 + "n")):
        longest.write_bytes(b"content")
        assert longest.read_bytes() == b"content"
        longest.unlink()
        longest.mkdir()
    short = mount.path / "short"
    (short / "a" / "b").mkdir(parents=True)
    for call in (
        lambda: (longest / "x").touch(),
        lambda: (longest / "x").mkdir(),
        lambda: (longest / "x").symlink_to("x"),
        lambda: short.rename(longest / "x"),
        lambda: short.rename(directory / ("m" * 253)),
    ):
        with pytest.raises(OSError, match="too long") as refused:
            call()
        assert refused.value.errno == errno.ENAMETOOLONG
    short.rename(directory / ("m" * 251))
    assert (directory / ("m" * 251) / "a" / "b").is_dir()


def test_what_was_fsynced_has_its_name_and_attributes_after_a_crash(new_mount: NewMount) -> None:
    """Names of any bytes, and extended attributes from wherever they are kept."""
    mount = new_mount(None, "--xattr").mount()
    root = os.fsencode(mount.path)
    value = os.urandom(3_000)
    os.mkdir(root + b"/\xe9")
    descriptor = os.open(root + b"/\xe9/%key-x", os.O_WRONLY | os.O_CREAT)
    os.write(descriptor, b"content")
    os.setxattr(descriptor, "user.large", value)
    os.fsync(descriptor)
    os.setxattr(root + b"/\xe9", "user.small", b"small")
    os.fsync(descriptor)
    mount.kill()
    with pytest.raises(OSError, match="not connected"):
        os.close(descriptor)
    mount.mount_cold()
    assert os.listdir(root) == [b"\xe9"]
    assert os.listdir(root + b"/\xe9") == [b"%key-x"]
    with open(root + b"/\xe9/%key-x", "rb") as file:
        assert file.read() == b"content"
        assert os.getxattr(file.fileno(), "user.large") == value
    assert os.getxattr(root + b"/\xe9", "user.small") == b"small"
