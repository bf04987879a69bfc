"""What the kernel sends to a mount, and what was raised for it after mounting."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from backends.base import S3_LIMITS
from fusefs.kernel_tuning import MAX_RATIO_PERCENT, READ_AHEAD_KIB
from tests.mount.conftest import NewMount

MIB: Final = 1024 * 1024


def test_read_ahead_is_raised(new_mount: NewMount) -> None:
    """Where the process may; the mount is ready only after that."""
    mount = new_mount("memory://").mount()
    device = os.stat(mount.path).st_dev
    backing = Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}")
    assert int((backing / "read_ahead_kb").read_text()) == READ_AHEAD_KIB
    assert int((backing / "max_ratio").read_text()) == MAX_RATIO_PERCENT


@pytest.mark.parametrize("flags", [[], ["--shared"]], ids=["default", "shared"])
def test_the_kernel_takes_writes_alone_but_on_a_shared_mount(flags: list[str], new_mount: NewMount) -> None:
    """It needs no daemon for them: that one is stopped."""
    mount = new_mount("memory://", *flags).mount()
    with (mount.path / "file").open("wb", buffering=0) as file:
        file.write(b"1")  # which the kernel asks something for
        writing = threading.Thread(target=file.write, args=[b"2"])
        os.kill(mount.pid, signal.SIGSTOP)
        try:
            writing.start()
            writing.join(1 if flags else 60)
            assert writing.is_alive() == bool(flags)
        finally:
            os.kill(mount.pid, signal.SIGCONT)
            writing.join()
    assert (mount.path / "file").read_bytes() == b"12"


def test_what_lies_beyond_the_largest_object_fails_when_the_kernel_hands_it_over(new_mount: NewMount) -> None:
    """Only truncate(2) asks before; what else there is in the file stays."""
    mount = new_mount("memory://").mount()
    path = mount.path / "file"
    with path.open("w+b", buffering=0) as file:
        file.write(b"bytes")
        with pytest.raises(OSError, match=os.strerror(errno.EFBIG)):
            file.truncate(S3_LIMITS.max_object_size + 1)
        assert os.pwrite(file.fileno(), b"x", S3_LIMITS.max_object_size) == 1
        with pytest.raises(OSError, match=os.strerror(errno.EFBIG)):
            os.fsync(file.fileno())
        os.fsync(file.fileno())  # it is told once
        assert os.pread(file.fileno(), 5, 0) == b"bytes"
    # Here, too, and then umount has nothing to say of it.
    assert subprocess.run(["sync", "--file-system", path], check=False).returncode == 1


def test_a_shared_mount_refuses_at_once_what_lies_beyond_the_largest_object(new_mount: NewMount) -> None:
    mount = new_mount("memory://", "--shared").mount()
    with (mount.path / "file").open("wb", buffering=0) as file:
        with pytest.raises(OSError, match=os.strerror(errno.EFBIG)):
            os.pwrite(file.fileno(), b"x", S3_LIMITS.max_object_size)
        assert os.fstat(file.fileno()).st_size == 0


@pytest.fixture
def counting_mount(tmp_path: Path) -> Iterator[tuple[Path, subprocess.Popen[str]]]:
    """A mount point and the process that serves it, whose output is the lengths of all requests."""
    path = tmp_path / "mnt"
    path.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.mount.counting_mount", str(path), str(tmp_path / "stage")],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "ready\n"
        yield path, process
    finally:
        subprocess.run(["fusermount3", "-uz", str(path)], check=False, capture_output=True)
        process.wait(30)
        process.stdout.close()


def test_requests_are_of_a_mebibyte(counting_mount: tuple[Path, subprocess.Popen[str]]) -> None:
    """What a program writes and reads in small pieces, one after the other, comes and goes in large ones."""
    path, process = counting_mount
    data = os.urandom(32 * MIB)
    with (path / "file").open("w+b", buffering=0) as file:
        for start in range(0, len(data), 64 * 1024):
            file.write(data[start : start + 64 * 1024])
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        file.seek(0)
        assert b"".join(iter(lambda: file.read(64 * 1024), b"")) == data
    subprocess.run(["fusermount3", "-u", str(path)], check=True)
    lengths = json.loads(process.communicate(timeout=30)[0])
    assert max(lengths["write"]) == max(lengths["read"]) == MIB
    for direction in ("write", "read"):
        large = sum(length for length in lengths[direction] if length == MIB)
        assert large >= 0.75 * len(data), lengths[direction]
