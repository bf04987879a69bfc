"""The disk of the cache directory is full: writers wait, and hear of it only when nothing can give way."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mount.conftest import NewMount
from tests.support.bucket import Bucket
from tests.support.seaweedfs import SeaweedFS

MIB = 1024 * 1024
DISK = 32 * MIB


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of `DISK` bytes."""
    path = tmp_path / "disk"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(path)], check=True)
    yield path
    subprocess.run(["umount", "--lazy", str(path)], check=True)


@pytest.mark.parametrize("log", ["bucket", "disk"])
def test_much_more_than_the_disk_holds(
    log: str, small_disk: Path, new_mount: NewMount, bucket: Bucket
) -> None:
    """Written, read and changed: with a store that answers nothing fails, the log on the same disk or not."""
    theirs = os.urandom(MIB) * 50
    bucket.put("theirs", theirs)
    flags = ["--no-ack-after-upload"] if log == "disk" else []
    mount = new_mount(None, "--cache-dir", str(small_disk), *flags).mount()
    contents = {f"file-{number}": os.urandom(6 * MIB + number) for number in range(12)}
    contents["large"] = os.urandom(MIB) * 70
    for path, data in contents.items():
        write_durably(mount.path / path, data)
    assert (mount.path / "theirs").read_bytes() == theirs
    for path, data in contents.items():
        assert (mount.path / path).read_bytes() == data
    changed = bytearray(theirs)
    changed[20 * MIB : 20 * MIB + 7] = b"changed"
    with (mount.path / "theirs").open("r+b") as file:
        file.seek(20 * MIB)
        file.write(b"changed")
    mount.umount()
    assert {key: bucket.read(key) for key in bucket.sizes()} == {**contents, "theirs": bytes(changed)}
    assert bucket.unfinished_uploads() == []


def write_durably(path: Path, data: bytes) -> None:
    """Write in two pieces, with an fsync after each of them."""
    with path.open("wb") as file:
        for piece in (data[: len(data) // 2], data[len(data) // 2 :]):
            file.write(piece)
            file.flush()
            os.fsync(file.fileno())


@pytest.fixture
def own_server() -> Iterator[SeaweedFS]:
    """A server that may be stopped without anybody else's noticing."""
    server = SeaweedFS()
    server.start()
    yield server
    server.close()


def write_until_refused(path: Path, step: int = MIB) -> tuple[int, int]:
    """Write past the page cache, `step` bytes at a time; return how many were acknowledged, and the error."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_DIRECT)
    acknowledged = 0
    try:
        while True:
            acknowledged += os.pwrite(descriptor, bytes([acknowledged // MIB]) * step, acknowledged)
    except OSError as error:
        return acknowledged, error.errno or 0
    finally:
        with contextlib.suppress(OSError):  # that it is not in the bucket yet
            os.close(descriptor)


def test_nothing_can_give_way(
    small_disk: Path, own_server: SeaweedFS, new_mount: NewMount, tmp_path: Path
) -> None:
    """While the local disk is full, a write waits until what is on it was published and gives way. It is ENOSPC
    only when nothing can give way, because the store has not answered for `retry_timeout`; what was written before
    is not lost.
    """
    bucket = Bucket(own_server.client(), own_server.bucket, "full/")
    bucket.put("clean", bytes(8 * MIB))
    mount = new_mount(
        bucket.url, "--cache-dir", str(small_disk), "--retry-timeout", "3 s", server=own_server
    ).mount()
    assert (mount.path / "clean").read_bytes() == bytes(8 * MIB)
    first = os.urandom(5 * MIB)
    own_server.kill()
    (mount.path / "first").write_bytes(first)
    acknowledged, error = write_until_refused(mount.path / "second")
    assert error == errno.ENOSPC
    assert acknowledged + len(first) > DISK - 4 * MIB, "what was clean has given way"
    own_server.start()
    (mount.path / "third").write_bytes(b"there is room again")
    mount.umount()
    assert bucket.read("first") == first
    second = bucket.read("second")
    assert len(second) >= acknowledged
    assert second[:acknowledged] == b"".join(bytes([number]) * MIB for number in range(acknowledged // MIB))
    assert bucket.read("third") == b"there is room again"


def test_what_has_filled_the_disk_is_rescued(
    small_disk: Path, own_server: SeaweedFS, new_mount: NewMount
) -> None:
    """Where the mount has to end like that, large files are on the disk, and small ones in memory alone."""
    flags = ("--cache-dir", str(small_disk), "--retry-timeout", "1 s")
    mount = new_mount(f"s3://{own_server.bucket}/rescue/", *flags, server=own_server)
    process = mount.start()
    assert os.listdir(mount.path) == []
    own_server.kill()
    contents = {f"directory/small-{number}": b"precious" * number for number in range(1, 100)}
    (mount.path / "directory").mkdir()
    for path, data in contents.items():
        (mount.path / path).write_bytes(data)
    large, _ = write_until_refused(mount.path / "large")
    filler, error = write_until_refused(mount.path / "filler", 4_096)
    assert error == errno.ENOSPC
    process.terminate()
    _, errors = process.communicate(timeout=100)
    assert process.returncode == 1
    assert "101 changed files could not be published" in errors
    [rescued] = (small_disk / "rescued").iterdir()
    assert (rescued / "large").stat().st_size >= large
    assert (rescued / "filler").stat().st_size >= filler
    assert {path: (rescued / path).read_bytes() for path in contents} == contents
