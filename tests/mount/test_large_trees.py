"""Directories with many entries through a real mount: what reading them costs, counted by the daemon itself."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.bench.raw_client import put_many
from tests.mount.conftest import NewMount
from tests.support.bucket import Bucket
from tests.support.mounts import Mount
from tests.support.recording_proxy import Fate, ReceivedRequest, RecordingProxy
from tests.support.seaweedfs import SeaweedFS

FILES = 1_200

MANY = 9_500
"""Not a multiple of a page, after which there would be one more to ask for."""

HOLD_SECONDS = 60.0
"""How long a page is held back at most: only where the first entries wait for it."""

MEMORY_OF_AN_ENTRY = 1_000
"""Bytes; an inode would take 3,500. What the test measured is in its output."""

WORKING_TREE = [f"package{number // 100:02d}/module{number:04d}" for number in range(5_000)]


def fill(bucket: Bucket, keys: Iterable[str], body: bytes) -> None:
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda key: bucket.put(key, body), keys))


def requests_of(mount: Mount) -> int:
    """Unmount, and return how many requests the mount has made."""
    mount.umount()
    return int(re.findall(r"(\d+) requests", mount.log)[-1])


def test_names_are_read_without_a_request_for_each(new_mount: NewMount, bucket: Bucket) -> None:
    """The kernel is given a directory entry without attributes, and asks when somebody wants them."""
    fill(bucket, (f"d/f{number:04d}" for number in range(FILES)), b"x")
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
    # The root, two pages, the marker, the file and four that might have come next; the index, read and written.
    assert requests_of(mount) - empty <= 20


def test_attributes_after_a_remount_cost_no_request_for_each(mount: Mount, bucket: Bucket) -> None:
    """Inode numbers, permissions, owners and times of files, directories and links are after a remount what they were
    before, without a request for each of them."""
    (mount.path / "d").mkdir()
    for number in range(FILES):
        (mount.path / f"d/f{number:04d}").write_bytes(b"x")
        os.utime(mount.path / f"d/f{number:04d}", ns=(number, number))
    (mount.path / "d/directory").mkdir(0o710)
    os.chown(mount.path / "d/directory", 7, 8)
    (mount.path / "d/link").symlink_to("target")
    before = {entry.name: entry.lstat() for entry in (mount.path / "d").iterdir()}
    mount.remount()
    after = {entry.name: entry.lstat() for entry in (mount.path / "d").iterdir()}
    assert list(map(comparable, after.values())) == [comparable(before[name]) for name in after]
    assert len(after) == FILES + 2
    assert (mount.path / "d/link").readlink().name == "target"
    made = requests_of(mount)
    assert made <= 20, "the lease, the root, two pages, the index"


def test_a_directory_of_many_keys(new_mount: NewMount, bucket: Bucket, s3_server: SeaweedFS) -> None:
    """Its first entries come while the second page is held back; it costs its pages, and little memory for each name.

    Some 10,000 keys and not 100,000, which a busy machine takes minutes to make; `scripts/bench` lists those.
    """
    put_many(s3_server.endpoint, s3_server.bucket, f"{bucket.prefix}d/", MANY)
    pages: list[ReceivedRequest] = []
    reading, released = threading.Event(), threading.Event()
    was_released: list[bool] = []

    def hold_the_second_page(request: ReceivedRequest) -> Fate:
        if reading.is_set() and request.is_listing:
            pages.append(request)
            if len(pages) == 2:
                was_released.append(released.wait(HOLD_SECONDS))
        return Fate.ANSWERED

    with RecordingProxy(s3_server.endpoint, fate_of=hold_the_second_page) as proxy:
        mount = new_mount(None, "--endpoint", proxy.endpoint).mount()
        assert (mount.path / "d").is_dir()
        before = mount.peak_memory()
        reading.set()
        with os.scandir(mount.path / "d") as entries:
            names = [next(entries).name]
            released.set()
            names += [entry.name for entry in entries]
        assert was_released == [True], "the first entries have waited for the second page"
        assert sorted(names) == [f"{number:06}" for number in range(MANY)]
        assert len(pages) == -(-MANY // 1_000)
        grown = mount.peak_memory() - before
        print(f"memory of the daemon: {grown / MANY:.0f} bytes more for each entry")
        assert grown <= MANY * MEMORY_OF_AN_ENTRY
        mount.umount()


def comparable(status: os.stat_result) -> tuple[int, ...]:
    return (status.st_mode, status.st_ino, status.st_uid, status.st_gid, status.st_size, status.st_mtime_ns)


def test_git_status_of_a_warm_tree_costs_no_request(
    new_mount: NewMount, bucket: Bucket, s3_server: SeaweedFS, tmp_path: Path
) -> None:
    """Of 5,000 files in 50 directories: neither for what is there nor for a .gitignore that is not."""
    fill(bucket, WORKING_TREE, b"")
    with RecordingProxy(s3_server.endpoint) as proxy:
        flags = ("--endpoint", proxy.endpoint, "--revalidate-interval", "1h")
        mount = new_mount(None, *flags).mount()
        git = ["git", f"--git-dir={tmp_path}/repository", f"--work-tree={mount.path}"]
        environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0", "GIT_CONFIG_GLOBAL": os.devnull}

        def run(*command: str) -> str:
            done = subprocess.run(
                [*git, *command], env=environment, check=True, capture_output=True, text=True
            )
            return done.stdout

        run("init", "--quiet")
        run("add", "--all")
        assert len(run("status", "--porcelain").splitlines()) == len(WORKING_TREE)
        proxy.requests.clear()
        assert len(run("status", "--porcelain").splitlines()) == len(WORKING_TREE)
        assert [request for request in proxy.requests if "/.fusefs/" not in f"/{request.key}"] == []
        mount.umount()
