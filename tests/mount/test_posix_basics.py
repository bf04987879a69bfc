"""What POSIX programs rely on, through the kernel and on the real S3 server."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from fusefs.journal_format import JOURNAL_PREFIX, SEAL_SIZES
from tests.mount.conftest import NewMount
from tests.support.bucket import Bucket
from tests.support.mounts import Mount, wait_until

MIB = 1024 * 1024


def bytes_of(size: int, seed: int = 0) -> bytes:
    """Return bytes that repeat nowhere within a page's distance."""
    return b"".join((seed + at).to_bytes(8, "little") for at in range(0, size, 8))[:size]


# Names


def test_rename_replaces_a_file_that_is_open(mount: Mount, bucket: Bucket) -> None:
    """A reader of the replaced file keeps its content; the name has the new one, in the bucket too."""
    old, new = mount.path / "current", mount.path / "current.tmp"
    old.write_bytes(b"old")
    with old.open("rb") as reader:
        new.write_bytes(b"new")
        new.rename(old)
        assert reader.read() == b"old"
        assert os.fstat(reader.fileno()).st_nlink == 0
    assert old.read_bytes() == b"new"
    assert os.listdir(mount.path) == ["current"]
    mount.umount()
    assert bucket.sizes() == {"current": 3}
    assert bucket.read("current") == b"new"


def test_rename_follows_an_open_writer(mount: Mount, bucket: Bucket) -> None:
    """What is written after the file was renamed is under the new name, and nothing is under the old one."""
    before, after = mount.path / "before", mount.path / "after"
    with before.open("wb") as writer:
        writer.write(b"first ")
        writer.flush()
        before.rename(after)
        writer.write(b"second")
    assert after.read_bytes() == b"first second"
    mount.umount()
    assert bucket.sizes() == {"after": 12}
    assert bucket.read("after") == b"first second"


def test_rename_moves_a_directory_with_all_that_is_below(mount: Mount, bucket: Bucket) -> None:
    """A directory moves in one call, entries not looked at yet included, and comes back so after a remount."""
    (mount.path / "a" / "deep").mkdir(parents=True)
    (mount.path / "a" / "one").write_bytes(b"1")
    (mount.path / "a" / "deep" / "two").write_bytes(b"2")
    mount.remount()
    (mount.path / "a").rename(mount.path / "b")
    assert (mount.path / "b" / "deep" / "two").read_bytes() == b"2"
    assert not (mount.path / "a").exists()
    mount.remount()
    assert os.listdir(mount.path) == ["b"]
    assert (mount.path / "b" / "one").read_bytes() == b"1"
    assert (mount.path / "b" / "deep" / "two").read_bytes() == b"2"
    assert {key for key in bucket.sizes() if not key.endswith("/")} == {"b/one", "b/deep/two"}


def test_unlinked_file_lives_until_its_last_close(mount: Mount, bucket: Bucket) -> None:
    """An open file can be written and read after its name is gone, published before or not; then it is gone."""
    for name in ("published", "never published"):
        path = mount.path / name
        with path.open("w+b") as file:
            file.write(bytes_of(2 * MIB))
            file.flush()
            if name == "published":
                os.fsync(file.fileno())
            path.unlink()
            file.write(b"end")
            file.seek(0)
            assert file.read() == bytes_of(2 * MIB) + b"end"
        assert not path.exists()
    mount.umount()
    assert bucket.sizes() == {}


def test_directories_exist_on_their_own(mount: Mount) -> None:
    """An empty directory is there after a remount; rmdir takes it, and refuses one with entries."""
    (mount.path / "empty").mkdir()
    (mount.path / "full").mkdir()
    (mount.path / "full" / "file").touch()
    (mount.path / "full" / "below").mkdir()
    assert (mount.path / "full").stat().st_nlink == 3
    mount.remount()
    assert (mount.path / "full").stat().st_nlink == 1, "which find(1) and others take for unknown"
    assert sorted(os.listdir(mount.path)) == ["empty", "full"]
    with pytest.raises(OSError, match="not empty") as refused:
        (mount.path / "full").rmdir()
    assert refused.value.errno == errno.ENOTEMPTY
    (mount.path / "empty").rmdir()
    assert sorted(os.listdir(mount.path / "full")) == ["below", "file"]
    assert (mount.path / "full").stat().st_nlink == 3
    mount.remount()
    assert os.listdir(mount.path) == ["full"]


def test_dots_are_listed(mount: Mount) -> None:
    """With the numbers that stat(2) tells: `ls -a` and whoever reads a directory by getdents(2) expect them."""
    (mount.path / "d/e").mkdir(parents=True)

    def listed(path: str) -> dict[str, int]:
        printed = subprocess.check_output(["ls", "-ai1", path], cwd=mount.path, text=True)
        return {name: int(number) for number, name in map(str.split, printed.splitlines())}

    root, d, e = (os.stat(mount.path / path).st_ino for path in (".", "d", "d/e"))
    assert listed("d") == {".": d, "..": root, "e": e}
    assert listed("d/e") == {".": e, "..": d}
    assert {**listed("."), "..": root} == {".": root, "..": root, "d": d}, "the kernel knows what is above"


def test_removed_directory_stays_removed(mount: Mount, bucket: Bucket) -> None:
    """A tree that was published and is removed does not come back, not as empty directories either."""
    (mount.path / "tree" / "deep").mkdir(parents=True)
    for number in range(20):
        (mount.path / "tree" / "deep" / str(number)).touch()
    fsync_directory(mount.path)
    shutil.rmtree(mount.path / "tree")
    mount.remount()
    assert os.listdir(mount.path) == []
    (mount.path / "tree").write_bytes(b"a file now")
    mount.umount()
    assert bucket.sizes() == {"tree": 10}


def test_symbolic_links(mount: Mount) -> None:
    """A link's target is any bytes, and is the same after a remount; a dangling link is a link nevertheless."""
    (mount.path / "file").write_bytes(b"content")
    targets = {"to file": "file", "dangling": "../no/where", "odd": "a b\tc\u20ac"}
    for name, target in targets.items():
        (mount.path / name).symlink_to(target)
    mount.remount()
    assert {name: os.readlink(mount.path / name) for name in targets} == targets
    assert (mount.path / "to file").read_bytes() == b"content"


def test_listing_of_a_large_directory(mount: Mount) -> None:
    """2,000 entries are listed, each once, before and after a remount; so it is when some are gone."""
    directory = mount.path / "many"
    directory.mkdir()
    names = {f"entry {number:04}" for number in range(2_000)}
    for name in names:
        (directory / name).touch()
    assert sorted(os.listdir(directory)) == sorted(names)
    mount.remount()
    assert sorted(os.listdir(directory)) == sorted(names)
    gone = {name for name in names if name.endswith("7")}
    for name in gone:
        (directory / name).unlink()
    assert sorted(os.listdir(directory)) == sorted(names - gone)
    mount.remount()
    assert sorted(os.listdir(directory)) == sorted(names - gone)


def test_reserved_prefix_is_not_a_name(mount: Mount) -> None:
    """`.fusefs` at the root is ours: it is not shown, and nobody makes it."""
    with pytest.raises(PermissionError):
        (mount.path / ".fusefs").mkdir()
    assert os.listdir(mount.path) == []
    (mount.path / "sub").mkdir()
    (mount.path / "sub" / ".fusefs").mkdir()


# Content


def test_append(mount: Mount) -> None:
    """Two O_APPEND descriptors never overwrite each other, also on a file that was in the bucket before."""
    path = mount.path / "log"
    path.write_bytes(b"0")
    mount.remount()
    with path.open("ab", buffering=0) as one, path.open("ab", buffering=0) as two:
        for _ in range(50):
            one.write(b"1")
            two.write(b"2")
    assert path.read_bytes() == b"0" + b"12" * 50
    mount.remount()
    assert path.read_bytes() == b"0" + b"12" * 50


def test_open_flags(mount: Mount) -> None:
    """O_TRUNC empties, O_EXCL refuses what exists, and without O_CREAT nothing is made."""
    path = mount.path / "file"
    path.write_bytes(b"something long")
    os.close(os.open(path, os.O_WRONLY | os.O_TRUNC))
    assert path.read_bytes() == b""
    with pytest.raises(FileExistsError):
        os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    with pytest.raises(FileNotFoundError):
        os.open(mount.path / "missing", os.O_WRONLY)
    with pytest.raises(NotADirectoryError):
        os.open(path / "below", os.O_RDONLY)
    with pytest.raises(IsADirectoryError):
        os.open(mount.path, os.O_WRONLY)


def test_truncate_both_ways(mount: Mount) -> None:
    """A file cut and grown again has zeros where the bytes were, published in between or not."""
    for name in ("local", "remote"):
        path = mount.path / name
        path.write_bytes(bytes_of(3 * MIB))
        if name == "remote":
            mount.remount()
        os.truncate(path, 1000)
        os.truncate(path, 5000)
        assert path.read_bytes() == bytes_of(1000) + bytes(4000)
    mount.remount()
    for name in ("local", "remote"):
        assert (mount.path / name).read_bytes() == bytes_of(1000) + bytes(4000)


def test_sparse_file(mount: Mount) -> None:
    """A hole reads as zeros here and in the bucket, before and after it was published."""
    path = mount.path / "sparse"
    with path.open("wb") as file:
        file.seek(7 * MIB)
        file.write(b"end")
    assert path.read_bytes() == bytes(7 * MIB) + b"end"
    mount.remount()
    assert path.stat().st_size == 7 * MIB + 3
    assert path.read_bytes() == bytes(7 * MIB) + b"end"


def test_overwrite_in_the_middle_of_a_large_file(mount: Mount, bucket: Bucket) -> None:
    """Changed bytes of a file of several parts reach the bucket, and the rest stays."""
    content = bytearray(bytes_of(40 * MIB))
    path = mount.path / "large"
    path.write_bytes(content)
    mount.remount()
    with path.open("r+b") as file:
        for at in (5, 17 * MIB + 3, 40 * MIB - 2):
            file.seek(at)
            file.write(b"CHANGED")
            content[at : at + 7] = b"CHANGED"
    assert path.read_bytes() == content
    mount.umount()
    assert bucket.read("large") == content


def test_shared_mapping_is_coherent(mount: Mount, bucket: Bucket) -> None:
    """What is written through a shared mapping is what read(2) and the bucket have, and the other way round."""
    path = mount.path / "mapped"
    path.write_bytes(bytes(3 * mmap.PAGESIZE))
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapping:
        mapping[mmap.PAGESIZE - 2 : mmap.PAGESIZE + 2] = b"MMAP"
        assert os.pread(file.fileno(), 4, mmap.PAGESIZE - 2) == b"MMAP"
        os.pwrite(file.fileno(), b"write", 100)
        assert mapping[100:105] == b"write"
        mapping.flush()
        mapping[0:4] = b"late"
    mount.umount()
    stored = bucket.read("mapped")
    assert stored[100:105] == b"write"
    assert stored[mmap.PAGESIZE - 2 : mmap.PAGESIZE + 2] == b"MMAP"
    assert stored[:4] == b"late"


# Attributes


def test_times_are_kept(mount: Mount) -> None:
    """Times set to the nanosecond are there after a remount."""
    path = mount.path / "file"
    path.write_bytes(b"x")
    os.utime(path, ns=(1_000_000_000_123_456_789, 1_600_000_000_987_654_321))
    assert path.stat().st_mtime_ns == 1_600_000_000_987_654_321
    mount.remount()
    assert path.stat().st_mtime_ns == 1_600_000_000_987_654_321


def test_mode_at_creation_does_not_bind_the_creator(mount: Mount) -> None:
    """A file created with mode 0444 is written through the descriptor that made it; git does that."""
    path = mount.path / "object"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o444)
    os.write(descriptor, b"content")
    os.close(descriptor)
    mount.remount()
    assert path.read_bytes() == b"content"
    assert stat.S_IMODE(path.stat().st_mode) == 0o444


def test_mode_and_owner_are_kept(mount: Mount) -> None:
    """chmod and chown are there after a remount, and cost no byte of content."""
    path = mount.path / "file"
    path.write_bytes(b"content")
    mount.remount()
    path.chmod(0o640)
    os.chown(path, 1234, 2345)
    mount.remount()
    status = path.stat()
    assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid) == (0o640, 1234, 2345)
    assert path.read_bytes() == b"content"


def test_mode_and_owner_of_directories_are_kept(new_mount: NewMount, tmp_path: Path) -> None:
    """The same for directories and the root, where the store keeps metadata of keys that end in a slash.

    SeaweedFS does not: this is shown on a bucket in a directory.
    """
    store = tmp_path / "bucket"
    store.mkdir()
    mount = new_mount(f"file://{store}").mount()
    for path in (mount.path, mount.path / "directory"):
        path.mkdir(exist_ok=True)
        path.chmod(0o750)
        os.chown(path, 1234, 2345)
    mount.remount()
    for path in (mount.path, mount.path / "directory"):
        status = path.stat()
        assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid) == (0o750, 1234, 2345)


def test_permissions_of_directories_after_a_kill(new_mount: NewMount, tmp_path: Path) -> None:
    """What was taken away from others is not theirs again because an index of before still has it."""
    store = tmp_path / "bucket"
    store.mkdir()
    mount = new_mount(f"file://{store}").mount()
    directory = mount.path / "directory"
    directory.mkdir(0o755)
    mount.path.chmod(0o755)
    mount.remount()
    for path in (mount.path, directory):
        path.chmod(0o700)
        os.utime(path, ns=(1, 2))
    fsync_directory(mount.path)
    journal = store / JOURNAL_PREFIX
    wait_until(lambda: _sizes_below(journal) == [max(SEAL_SIZES)], "the end of the log")
    mount.kill()
    mount.mount_cold()
    for path in (mount.path, directory):
        status = path.stat()
        assert (stat.S_IMODE(status.st_mode), status.st_mtime_ns) == (0o700, 2)


def _sizes_below(directory: Path) -> list[int]:
    """Return the sizes of all files, but for such as are removed meanwhile."""
    sizes = []
    for path in directory.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            status = path.stat()
            sizes += [status.st_size] if stat.S_ISREG(status.st_mode) else []
    return sizes


def test_what_the_kernel_does_not_let_a_mount_do(new_mount: NewMount) -> None:
    """No file without a name, no device, and no rights by set-ID bits, which are kept all the same."""
    path = new_mount("memory://", "--allow-other").mount().path
    with pytest.raises(OSError, match=os.strerror(errno.EOPNOTSUPP)):
        os.open(path, os.O_TMPFILE | os.O_RDWR)
    os.mknod(path / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    with pytest.raises(PermissionError) as refused:
        os.open(path / "null", os.O_RDWR)
    assert refused.value.errno == errno.EACCES
    assert (path / "null").stat().st_rdev == os.makedev(1, 3)
    program = path / "id"
    shutil.copy("/usr/bin/id", program)
    os.chown(program, 1234, 1234)
    program.chmod(0o6755)
    assert subprocess.check_output(["./id", "-u"], cwd=path, user=4321).strip() == b"4321"
    assert stat.S_IMODE(program.stat().st_mode) == 0o6755


def test_statfs_promises_room(mount: Mount) -> None:
    """A bucket has no size: there is always room, and names may have 255 bytes."""
    answer = os.statvfs(mount.path)
    assert answer.f_bavail * answer.f_frsize >= 1 << 40
    assert answer.f_favail > 1_000_000
    assert answer.f_namemax == 255


# Durability


def test_fsynced_bytes_are_in_the_bucket_when_fsync_returns(mount: Mount, bucket: Bucket) -> None:
    """fsync in the middle of a file, again and again, while it stays open: boto3 sees them in the log at once."""
    with (mount.path / "wal").open("wb", buffering=0) as file:
        for number in range(10):
            written = bytes_of(1000, number)
            file.write(written)
            os.fsync(file.fileno())
            log = [key for key in bucket.sizes(housekeeping=True) if key.startswith(JOURNAL_PREFIX)]
            assert any(written in bucket.read(key) for key in log)


def test_what_was_fsynced_survives_the_loss_of_the_host(mount: Mount) -> None:
    """The daemon is killed and the cache lost after fsync of a file and of its directory: all of it is there."""
    directory = mount.path / "data"
    directory.mkdir()
    descriptor = os.open(directory / "new", os.O_WRONLY | os.O_CREAT)
    os.write(descriptor, bytes_of(6 * MIB))
    os.fsync(descriptor)
    (directory / "new").rename(directory / "final")
    (directory / "sub").mkdir()
    fsync_directory(directory)
    mount.kill()
    with pytest.raises(OSError, match="not connected"):
        os.close(descriptor)
    mount.mount_cold()
    assert sorted(os.listdir(directory)) == ["final", "sub"]
    assert (directory / "final").read_bytes() == bytes_of(6 * MIB)


def test_removal_is_durable_after_fsync_of_the_directory(mount: Mount) -> None:
    """A file removed and its directory fsynced does not come back."""
    (mount.path / "file").write_bytes(b"x")
    fsync_directory(mount.path)
    (mount.path / "file").unlink()
    fsync_directory(mount.path)
    mount.kill()
    mount.mount_cold()
    assert os.listdir(mount.path) == []


def test_closed_files_are_published_soon(mount: Mount, bucket: Bucket) -> None:
    """Nobody has to ask: a file that was closed is in the bucket a moment later."""
    (mount.path / "file").write_bytes(b"content")
    wait_until(lambda: bucket.sizes() == {"file": 7}, "the object", seconds=5)


def test_file_that_stays_open_is_published_now_and_then(
    new_mount: NewMount, bucket: Bucket, tmp_path: Path
) -> None:
    """`publish_interval` bounds how long the writes of an open file are only here."""
    config = tmp_path / "fusefs.toml"
    config.write_text('[mount]\npublish_interval = "1 s"\n')
    mount = new_mount(None, "--config", str(config)).mount()
    descriptor = os.open(mount.path / "open", os.O_WRONLY | os.O_CREAT)
    try:
        os.write(descriptor, b"content")
        wait_until(lambda: bucket.sizes().get("open") == 7, "the object", seconds=20)
        assert bucket.read("open") == b"content"
    finally:
        os.close(descriptor)


def fsync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
