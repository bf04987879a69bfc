"""A directory that others have filled is renamed on a real mount, which is lost right after that."""

from __future__ import annotations

import os
from pathlib import Path

from tests.mount.conftest import NewMount
from tests.support.bucket import Bucket


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _names(path: Path) -> list[str]:
    return sorted(
        str((Path(directory) / name).relative_to(path))
        for directory, _, names in os.walk(path)
        for name in names
    )


def test_renamed_unlisted_and_lost(new_mount: NewMount, bucket: Bucket) -> None:
    """The next mount has it under the new name, with what was made, moved and removed in it, and moves the objects."""
    for number in range(60):
        bucket.put(f"old/{number % 4}/deep/{number}", str(number).encode())
    mount = new_mount().mount()
    (mount.path / "old").rename(mount.path / "new")
    (mount.path / "old").mkdir()
    (mount.path / "old" / "another").write_bytes(b"another")
    (mount.path / "new" / "3" / "deep").rename(mount.path / "out")
    (mount.path / "new" / "0" / "deep" / "0").unlink()
    (mount.path / "new" / "0" / "deep" / "4").write_bytes(b"changed")
    _sync_directory(mount.path)
    mount.kill()
    mount.mount_cold()
    expected = {
        **{f"new/{n % 4}/deep/{n}": str(n).encode() for n in range(60) if n % 4 != 3 and n},
        **{f"out/{n}": str(n).encode() for n in range(3, 60, 4)},
        "new/0/deep/4": b"changed",
        "old/another": b"another",
    }
    assert _names(mount.path) == sorted(expected)
    assert {name: (mount.path / name).read_bytes() for name in expected} == expected
    mount.umount()
    assert {key for key in bucket.sizes() if not key.endswith("/")} == set(expected)
    assert bucket.log_size() == 0
    mount.mount_cold()
    assert _names(mount.path) == sorted(expected)
