"""Python's own standard library, copied into a mount and read back from the bucket.

`site-packages`, compiled files and the library's own tests are left out: they are as many files again, of the same
kinds, and the test is to take well under two minutes.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import subprocess
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from tests.support.bucket import Bucket
from tests.support.mounts import Mount

LEFT_OUT = ("site-packages", "test", "tests", "__pycache__")
SAMPLE = 40


@dataclass(frozen=True)
class Entry:
    """What a file system tells of one name."""

    kind: str
    mode: int
    mtime_ns: int
    digest: str


def entries(root: Path) -> dict[str, Entry]:
    """Read a whole tree. Times of directories are left out: SeaweedFS keeps no metadata for their markers."""
    found = {}
    for directory, names, files in os.walk(root):
        for name in names + files:
            path = Path(directory, name)
            status = path.lstat()
            if stat.S_ISLNK(status.st_mode):
                entry = Entry("link", 0, 0, os.readlink(path))
            elif stat.S_ISDIR(status.st_mode):
                entry = Entry("directory", 0, 0, "")
            else:
                digest = hashlib.sha256(path.read_bytes()).hexdigest()
                entry = Entry("file", status.st_mode, status.st_mtime_ns, digest)
            found[str(path.relative_to(root))] = entry
    return found


def test_standard_library(mount: Mount, bucket: Bucket, tmp_path: Path) -> None:
    """Copied in with `cp -a`, unmounted, and mounted again with nothing cached: the same names, bytes, modes, times
    and links; and the same names, sizes and bytes for boto3.
    """
    original = tmp_path / "original"
    shutil.copytree(
        sysconfig.get_path("stdlib"), original, symlinks=True, ignore=shutil.ignore_patterns(*LEFT_OUT)
    )
    (original / "a link").symlink_to("os.py")
    (original / "dangling").symlink_to("no/such/file")
    (original / "email" / "empty").mkdir()
    (original / "os.py").chmod(0o755)
    expected = entries(original)
    assert len(expected) > 500
    subprocess.run(["cp", "-a", str(original), str(mount.path / "lib")], check=True)
    mount.remount()
    assert entries(mount.path / "lib") == expected
    sizes = {key: size for key, size in bucket.sizes().items() if not key.endswith("/")}
    assert sizes == {
        f"lib/{name}": (original / name).lstat().st_size
        for name, entry in expected.items()
        if entry.kind != "directory"
    }
    for name in [name for name, entry in expected.items() if entry.kind == "file"][
        :: len(expected) // SAMPLE
    ]:
        assert bucket.digest(f"lib/{name}") == expected[name].digest, name
