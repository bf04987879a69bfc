"""The cache on the local disk, from one mount to the next, on a real S3 server."""

from __future__ import annotations

import os
import re
from pathlib import Path

from tests.mount.conftest import NewMount
from tests.support.bucket import Bucket
from tests.support.mounts import Mount

MIB = 1024 * 1024

OWN = 64 * 1024
"""A mount receives no more than this of what fusefs keeps for itself in the bucket."""


def received(mount: Mount) -> int:
    """Return how many bytes of objects the mount that ended last has received."""
    return int(re.findall(r"(\d+) bytes received", mount.log)[-1])


def kept_files(mount: Mount) -> list[Path]:
    return list((mount.cache_dir / "kept").iterdir())


def test_from_one_mount_to_the_next(mount: Mount, bucket: Bucket) -> None:
    """What was read or written stays on the local disk, within `cache_size` and of 100,000 files at most; that of the
    10,000 used last stays from a clean end to the next mount with the same cache directory. What was fetched or left
    there is compared with checksums before it is served: what the disk has damaged is fetched again, and the log file
    says so.
    """
    read, written = os.urandom(12 * MIB), os.urandom(9 * MIB + 5)
    bucket.put("read", read)
    assert (mount.path / "read").read_bytes() == read
    (mount.path / "written").write_bytes(written)
    mount.umount()
    assert len(read) <= received(mount) < len(read) + OWN
    mount.mount()
    assert (mount.path / "read").read_bytes() == read
    assert (mount.path / "written").read_bytes() == written
    mount.umount()
    assert received(mount) < OWN
    for path in kept_files(mount):
        with path.open("r+b") as file:
            file.seek(5 * MIB)
            file.write(b"damaged")
    mount.mount()
    assert (mount.path / "read").read_bytes() == read
    assert (mount.path / "written").read_bytes() == written
    assert mount.log.count("has damaged cached bytes of") == 2
    mount.umount()
    assert OWN < received(mount) < 2 * MIB


def test_several_mounts_share_a_directory_and_one_is_killed(new_mount: NewMount, bucket: Bucket) -> None:
    """Each reads what is right, and what the killed one leaves is nothing that anybody takes for the file."""
    bodies = {f"file-{number}": os.urandom(3 * MIB) for number in range(4)}
    for key, body in bodies.items():
        bucket.put(key, body)
    one = new_mount().mount()
    shared = ("--cache-dir", str(one.cache_dir))
    other = new_mount(None, "--read-only", *shared).mount()
    for _ in range(3):
        for mount in (one, other):
            assert {key: (mount.path / key).read_bytes() for key in bodies} == bodies
        other.umount()
        other.mount()
        one.kill()
        one.mount()
    one.umount()
    other.umount()
    assert len(kept_files(one)) == len(bodies)
    other.mount()
    assert {key: (other.path / key).read_bytes() for key in bodies} == bodies
    assert "WARNING" not in other.log
