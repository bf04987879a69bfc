"""Ten thousand files that are open and dirty at once cost the daemon no more than it may have."""

from __future__ import annotations

import json
import os
import resource
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from fusefs.stage import MAX_OPEN_FILES
from tests.mount.conftest import NewMount
from tests.support.arena import DirectoryObjects
from tests.support.mounts import Mount, wait_until

FILES: Final = 10_000
MIB: Final = 1024 * 1024

PEAK_MEMORY: Final = 232 * MIB
"""60 MiB for Python and what is loaded into it, 32 of small files, and 14 KiB for each, on its way into the log too.
What the test measured is in its output.
"""

OTHER_DESCRIPTORS: Final = 100
"""Beside those of the stage: the kernel's, the log, connections to the store."""


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    """Let this process have as many files open as the test needs."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (FILES + 1_000, max(limits[1], FILES + 1_000)))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def body(number: int) -> bytes:
    return f"{number} ".encode() * (number % 400 + 1) * 6


def path_of(number: int) -> str:
    return f"d{number % 20}/file-{number}"


def descriptors_of(mount: Mount) -> int:
    return len(os.listdir(f"/proc/{mount.pid}/fd"))


def unpublished_bytes(mount: Mount) -> int:
    command = [sys.executable, "-m", "fusefs", "status", "--json", str(mount.path)]
    said: dict[str, dict[str, int]] = json.loads(mount.run(command).stdout)
    return said["unpublished"]["bytes"]


def staged_files(mount: Mount) -> int:
    return len(list(mount.cache_dir.glob("mounts/*/stage/*")))


def files_of(bucket: DirectoryObjects) -> dict[str, int]:
    sizes = bucket.sizes().items()
    return {key: size for key, size in sizes if not key.endswith("/") and not key.startswith(".fusefs/")}


def test_ten_thousand_files_open_and_dirty_at_once(
    many_descriptors: None, new_mount: NewMount, tmp_path: Path
) -> None:
    """They are written twice, read back while they are open, and whole in the bucket after the mount has ended."""
    configuration = tmp_path / "fusefs.toml"
    configuration.write_text('[mount]\npublish_interval = "1 h"\n')
    (tmp_path / "bucket").mkdir()
    bucket = DirectoryObjects(tmp_path / "bucket")
    mount = new_mount(f"file://{tmp_path / 'bucket'}", "--config", str(configuration)).mount()
    for directory in range(20):
        (mount.path / f"d{directory}").mkdir()
    total = sum(len(body(number)) for number in range(FILES))
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
    descriptors = [os.open(mount.path / path_of(number), flags) for number in range(FILES)]
    for write in (lambda number: bytes(len(body(number))), body):
        for number, descriptor in enumerate(descriptors):
            os.pwrite(descriptor, write(number), 0)
        os.sync()  # the kernel begins to hand over what it has
        wait_until(lambda: unpublished_bytes(mount) == total, "the pages of all files")
        assert staged_files(mount) > 2 * MAX_OPEN_FILES  # the others are in memory
        assert descriptors_of(mount) <= MAX_OPEN_FILES + OTHER_DESCRIPTORS
    assert files_of(bucket) == {}
    for number, descriptor in enumerate(descriptors):
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        assert os.pread(descriptor, 20_000, 0) == body(number)
    for descriptor in descriptors:
        os.close(descriptor)
    most = mount.peak_memory()
    mount.umount()
    print(f"peak memory of the daemon: {most / MIB:.0f} MiB")
    assert most <= PEAK_MEMORY
    assert files_of(bucket) == {path_of(number): len(body(number)) for number in range(FILES)}
    for number in range(0, FILES, 97):
        assert bucket.read(path_of(number)) == body(number)
