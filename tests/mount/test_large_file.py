"""A large file goes through a daemon whose memory does not grow with it."""

from __future__ import annotations

import hashlib
import os

from tests.support.bucket import Bucket
from tests.support.mounts import Mount

MIB = 1024 * 1024
SIZE = (2 * 1024 + 256) * MIB
"""Beyond what 31 bits count; the memory is at its peak long before."""

PEAK_MEMORY = 300 * MIB
"""64 MiB of parts in memory (`mount.PART_MEMORY`), as much again that boto3 and the allocator hold of those just sent,
50 MiB of ranges being fetched, and 90 MiB for Python with boto3 loaded. What the test measured is in its output.
"""


def test_sequential_write_in_bounded_memory(mount: Mount, bucket: Bucket) -> None:
    """Written from beginning to end, it is identical in the bucket, and the daemon never had more than PEAK_MEMORY."""
    block = os.urandom(MIB)
    digest = hashlib.sha256()
    with (mount.path / "large").open("wb", buffering=0) as writer:
        for number in range(SIZE // MIB):
            stamped = number.to_bytes(8, "little") + block[8:]
            digest.update(stamped)
            writer.write(stamped)
        os.fsync(writer.fileno())
    peak = mount.peak_memory()
    print(f"peak memory of the daemon: {peak / MIB:.0f} MiB")
    mount.umount()
    assert bucket.sizes() == {"large": SIZE}
    assert bucket.digest("large") == digest.hexdigest()
    assert peak <= PEAK_MEMORY
