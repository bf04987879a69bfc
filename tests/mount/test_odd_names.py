"""Names and keys that cannot be each other, through the kernel and on the real S3 server."""

from __future__ import annotations

import os
from pathlib import Path

from tests.mount.conftest import NewMount
from tests.support.bucket import Bucket
from tests.support.differential import DirectoryObjects
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
    object `x` beside a directory `x/` as `%file-x`; each can be read, changed, removed and renamed under that name.
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
    (directory / "%key-%2E" / "c").unlink()
    (directory / "%key-%2E%2E" / "d").rename(directory / os.fsdecode(b"\xe9"))
    mount.umount()
    assert objects.read("a//b") == b"changed"
    assert objects.read("a") == b"changed as well"
    assert objects.read("a/%bytes-%E9") == b"a/../d"
    assert not {"a/./c", "a/../d"} & set(objects.sizes())
