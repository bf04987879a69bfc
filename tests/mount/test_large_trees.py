"""Directories with many entries through a real mount: what reading them costs, counted by the daemon itself."""

from __future__ import annotations

import os
import re
import stat
from concurrent.futures import ThreadPoolExecutor

from tests.mount.conftest import NewMount
from tests.support.bucket import Bucket
from tests.support.mounts import Mount

FILES = 1_200


def fill(bucket: Bucket, directory: str, count: int) -> None:
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda number: bucket.put(f"{directory}/f{number:04d}", b"x"), range(count)))


def requests_of(mount: Mount) -> int:
    """Unmount, and return how many requests the mount has made."""
    mount.umount()
    return int(re.findall(r"(\d+) requests", mount.log)[-1])


def test_names_are_read_without_a_request_for_each(new_mount: NewMount, bucket: Bucket) -> None:
    """The kernel is given a directory entry without attributes, and asks when somebody wants them."""
    fill(bucket, "d", FILES)
    bucket.put("d/large", b"x" * 5_000)
    empty = requests_of(new_mount().mount())
    mount = new_mount().mount()
    with os.scandir(mount.path / "d") as scanned:
        entries = {entry.name: entry for entry in scanned}
    assert sorted(entries) == sorted([*(f"f{number:04d}" for number in range(FILES)), "large"])
    assert entries["large"].is_file(), "known from its size"
    found = (mount.path / "d/f0007").stat()
    assert (found.st_ino, found.st_size) == (entries["f0007"].inode(), 1)
    assert stat.S_ISREG(found.st_mode)
    # The root, the directory's two pages, its marker, the file, and four that might have come next.
    assert requests_of(mount) - empty <= 9
