"""A shared mount through the kernel, which keeps names and attributes, missing names included, for a while."""

from __future__ import annotations

import errno
import os

import pytest

from tests.mount.conftest import NewMount
from tests.support.bucket import Bucket
from tests.support.mounts import wait_until

MIB = 1024 * 1024


def test_what_the_kernel_keeps_expires(new_mount: NewMount, bucket: Bucket) -> None:
    """Asked by path alone, without a listing of the directory that would tell."""
    for name in ("changed", "chmodded", "removed", "d/removed"):
        bucket.put(name, b"old")
    path = new_mount(None, "--shared").mount().path
    assert not (path / "added").exists()
    assert not (path / "d" / "added").exists()
    sizes = [(path / name).stat().st_size for name in ("changed", "chmodded", "removed", "d/removed")]
    assert sizes == [3, 3, 3, 3]
    for name in ("added", "d/added", "changed"):
        bucket.put(name, b"newer")
    for name in ("removed", "d/removed"):
        bucket.client.delete_object(Bucket=bucket.name, Key=bucket.prefix + name)
    key = f"{bucket.prefix}chmodded"
    bucket.client.copy_object(
        Bucket=bucket.name,
        Key=key,
        CopySource={"Bucket": bucket.name, "Key": key},
        Metadata={"mode": str(0o100600)},
        MetadataDirective="REPLACE",
    )
    for name in ("added", "d/added"):
        wait_until((path / name).exists, name)
    wait_until(lambda: (path / "changed").stat().st_size == 5, "the new size")
    wait_until(lambda: (path / "chmodded").stat().st_mode == 0o100600, "the new mode")
    for name in ("removed", "d/removed"):
        wait_until(lambda: not (path / name).exists(), name)  # noqa: B023


def test_open_waits_for_nothing_to_expire(new_mount: NewMount, bucket: Bucket) -> None:
    """It gives what is there now; a file that was open before is the version that it was, or ESTALE."""
    for name in ("changed", "removed"):
        bucket.put(name, b"old" * 3 * MIB)
    path = new_mount(None, "--shared").mount().path
    descriptors = [os.open(path / name, os.O_RDONLY) for name in ("changed", "removed")]
    try:
        bucket.put("changed", b"new")
        bucket.client.delete_object(Bucket=bucket.name, Key=f"{bucket.prefix}removed")
        assert (path / "changed").read_bytes() == b"new"
        with pytest.raises(FileNotFoundError):
            (path / "removed").open("rb")
        for descriptor in descriptors:
            with pytest.raises(OSError, match="Stale") as stale:
                os.pread(descriptor, 3, 8 * MIB)
            assert stale.value.errno == errno.ESTALE
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
