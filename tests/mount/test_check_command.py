"""The command `fusefs check`: its lines, its exit status, and that the bucket is the same after it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.mount.conftest import NewMount
from tests.support.bucket import Bucket
from tests.support.mounts import Mount, wait_until
from tests.support.seaweedfs import SeaweedFS


def check(mount: Mount, *flags: str) -> subprocess.CompletedProcess[str]:
    """Run the command on the store of a mount."""
    return mount.run([sys.executable, "-m", "fusefs", "check", mount.url, *flags])


def test_a_bucket_without_findings(mount: Mount, s3_server: SeaweedFS) -> None:
    """What a mount keeps of its own, in its place, is no finding."""
    (mount.path / "d").mkdir()
    (mount.path / "d" / "file").write_bytes(b"content")
    mount.path.chmod(0o700)
    (mount.path / "link").symlink_to("d/file")
    mount.umount()
    done = check(mount, "--endpoint", s3_server.endpoint, "--attributes")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_line_for_each_finding(mount: Mount, bucket: Bucket, s3_server: SeaweedFS) -> None:
    """A conflict, and an upload that nobody completes; the bucket stays as it is."""
    path = mount.path / "file"
    path.write_bytes(b"first")
    wait_until(lambda: bucket.sizes() == {"file": 5}, "the object")
    with path.open("r+b") as file:
        bucket.put("file", b"theirs")
        file.write(b"ours")
    wait_until(lambda: len(bucket.sizes()) == 2, "the conflict")
    upload = bucket.client.create_multipart_upload(Bucket=bucket.name, Key=f"{bucket.prefix}big")
    mount.umount()
    before = bucket.sizes()
    done = check(mount, "--endpoint", s3_server.endpoint)
    assert done.returncode == 1
    assert done.stderr == ""
    conflict, unfinished = done.stdout.splitlines()
    assert conflict.startswith("conflict '.fusefs/conflicts/file.")
    assert unfinished.startswith("upload 'big': begun ")
    assert unfinished.endswith(upload["UploadId"])
    assert bucket.sizes() == before
    assert len(bucket.unfinished_uploads()) == 1


@pytest.mark.parametrize(
    ("url", "flags", "status"),
    [
        ("s3:bucket", [], 2),
        ("memory://", ["--region", "x"], 2),
        ("file:///no/such/directory", [], 3),
        ("s3://no-such-bucket", ["--anonymous"], 3),
        ("s3://bucket", ["--anonymous", "--endpoint", "http://127.0.0.1:9", "--retry-timeout", "1 s"], 3),
    ],
)
def test_where_it_cannot_look(
    new_mount: NewMount, s3_server: SeaweedFS, url: str, flags: list[str], status: int
) -> None:
    """One line on standard error that says why, and an exit status of its own."""
    if url.startswith("s3://") and "--endpoint" not in flags:
        flags = [*flags, "--endpoint", s3_server.endpoint]
    done = check(new_mount(url), *flags)
    assert done.returncode == status
    assert done.stdout == ""
    assert done.stderr.startswith("fusefs: ")
    assert done.stderr.count("\n") == 1


def test_keys_of_a_directory_that_plays_a_bucket(new_mount: NewMount, tmp_path: Path) -> None:
    """They are escaped in it; what is said is about the keys."""
    store = tmp_path / "bucket"
    (store / "a" / "%_").mkdir(parents=True)
    (store / "a" / "%_" / "b").write_bytes(b"content")
    done = check(new_mount(f"file://{store}"))
    assert done.returncode == 1
    assert done.stdout == "escaped 'a//b': it cannot be a path, and is shown as 'a/%key-/b'\n"
