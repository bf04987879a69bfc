"""The promises of SEMANTICS.md, through the real mount on a real S3 server; each docstring is a paragraph of it."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.mount.conftest import NewMount
from tests.support.bucket import Bucket
from tests.support.mounts import Mount, wait_until

MIB = 1024 * 1024


def _configuration(tmp_path: Path, *lines: str) -> str:
    path = tmp_path / "fusefs.toml"
    path.write_text("\n".join(["[mount]", *lines]))
    return str(path)


# Files and objects


def test_one_file_is_one_object(mount: Mount, bucket: Bucket) -> None:
    """One file is one object, under the file's path and with the same bytes. What any S3 tool puts into the
    bucket shows up as files; a slash in a key makes a directory.
    """
    bucket.put("theirs/deep/file", b"put by another tool")
    assert (mount.path / "theirs" / "deep" / "file").read_bytes() == b"put by another tool"
    (mount.path / "ours").mkdir()
    (mount.path / "ours" / "file").write_bytes(b"written through the mount")
    mount.umount()
    assert bucket.read("ours/file") == b"written through the mount"


def test_reserved_prefix(mount: Mount, bucket: Bucket) -> None:
    """What fusefs keeps of its own is under `.fusefs/`. It is not shown in the tree, and no entry of that
    name can be made at the root: that is EPERM. What others have put there stays, and `fusefs check` names it.
    """
    bucket.put(".fusefs/something", b"theirs")
    assert os.listdir(mount.path) == []
    with pytest.raises(PermissionError) as refused:
        (mount.path / ".fusefs").mkdir()
    assert refused.value.errno == errno.EPERM
    (mount.path / "d").mkdir()
    (mount.path / "d" / ".fusefs").write_bytes(b"a name like any other")
    mount.umount()
    checked = mount.run([sys.executable, "-m", "fusefs", "check", mount.url, *mount.flags])
    assert checked.stdout.startswith("foreign '.fusefs/something': ")
    assert bucket.read(".fusefs/something") == b"theirs"


def test_attributes_are_kept(mount: Mount) -> None:
    """Permissions, owner and times of files, to the nanosecond, and the targets of symbolic links are kept in
    the objects' metadata, under the names that s3fs uses, and are the same after a remount.
    """
    file, link = mount.path / "file", mount.path / "link"
    file.write_bytes(b"x")
    file.chmod(0o640)
    os.chown(file, 12, 34)
    os.utime(file, ns=(1_000_000_000_123_456_789, 1_100_000_000_987_654_321))
    link.symlink_to("somewhere/else")
    written = mount.path / "written"
    written.write_bytes(b"x" * 100_000)
    written_at = written.stat().st_mtime_ns
    mount.remount()
    status = file.stat()
    assert written.stat().st_mtime_ns == written_at
    assert (status.st_mode & 0o7777, status.st_uid, status.st_gid) == (0o640, 12, 34)
    assert status.st_mtime_ns == 1_100_000_000_987_654_321
    assert status.st_atime_ns == 1_000_000_000_123_456_789
    assert os.readlink(link) == "somewhere/else"


def test_directories(mount: Mount, bucket: Bucket) -> None:
    """A directory that is empty, or has attributes of its own, is an empty object whose key ends with a
    slash. A directory that others made by a key alone stays when its last file is removed.
    """
    bucket.put("theirs/file", b"x")
    (mount.path / "ours").mkdir()
    (mount.path / "theirs" / "file").unlink()
    mount.umount()
    assert bucket.sizes() == {"ours/": 0, "theirs/": 0}
    mount.mount_cold()
    assert sorted(os.listdir(mount.path)) == ["ours", "theirs"]


# Writing


def test_a_write_is_seen_at_once(mount: Mount) -> None:
    """A write that has returned is seen by every reader of the mount at once: through other descriptors, by
    path, and in shared mappings.
    """
    path = mount.path / "file"
    path.write_bytes(bytes(8192))
    with path.open("r+b", buffering=0) as writer, path.open("rb", buffering=0) as reader:
        mapped = mmap.mmap(reader.fileno(), 8192, prot=mmap.PROT_READ)
        assert mapped[4090:4100] == bytes(10)
        os.pwrite(writer.fileno(), b"0123456789", 4090)
        assert os.pread(reader.fileno(), 10, 4090) == b"0123456789"
        assert path.read_bytes()[4090:4100] == b"0123456789"
        assert mapped[4090:4100] == b"0123456789"
        mapped.close()


def test_close(new_mount: NewMount, bucket: Bucket) -> None:
    """close returns without waiting for the bucket, and the upload begins at once, or up to five seconds later where
    a program goes on making files and the log has them meanwhile. With `wait_on_close`, and on a shared mount, the
    object is there when close returns.
    """
    for flag in ("--wait-on-close", "--shared"):
        mount = new_mount(None, flag).mount()
        (mount.path / flag).write_bytes(b"closed")
        assert bucket.read(flag) == b"closed"
        mount.umount()
    mount = new_mount().mount()
    (mount.path / "file").write_bytes(b"closed")
    wait_until(lambda: "file" in bucket.sizes(), "the upload", seconds=5)


def test_large_files_go_up_in_parts(mount: Mount, bucket: Bucket) -> None:
    """A file below the part size is one PUT. A larger new file goes up in parts while it is written, and its
    object appears, whole, after the last close, or when no part has gone up for `publish_interval`.
    """
    data = os.urandom(MIB) * 24
    with (mount.path / "large").open("wb") as writer:
        writer.write(data[: 23 * MIB])
        writer.flush()
        os.sync()  # the kernel hands its pages over when it likes, unless it is asked
        wait_until(bucket.unfinished_uploads, "the first part")
        assert bucket.sizes() == {}
        writer.write(data[23 * MIB :])
    mount.umount()
    assert bucket.unfinished_uploads() == []
    assert bucket.read("large") == data
    assert bucket.etag("large").endswith("-3")
    mount.mount_cold()
    (mount.path / "small").write_bytes(data[: 5 * MIB])
    mount.umount()
    assert "-" not in bucket.etag("small")


def test_a_small_change_in_a_large_file(mount: Mount, bucket: Bucket) -> None:
    """A small change in a large file uploads what changed, widened to a part; the store copies the rest from
    the version that is there.
    """
    data = bytearray(os.urandom(MIB) * 40)
    path = mount.path / "large"
    path.write_bytes(data)
    mount.remount()
    with path.open("r+b") as writer:
        writer.seek(20 * MIB)
        writer.write(b"changed")
        writer.seek(0, os.SEEK_END)
        writer.write(b"appended")
    data[20 * MIB : 20 * MIB + 7] = b"changed"
    data += b"appended"
    mount.umount()
    assert bucket.read("large") == data
    sent = re.findall(r"(\d+) bytes sent", mount.log)
    assert int(sent[-1]) < 12 * MIB


def test_open_files_are_published_too(new_mount: NewMount, bucket: Bucket, tmp_path: Path) -> None:
    """Any other file that stays open is published at least every `publish_interval`."""
    mount = new_mount(None, "--config", _configuration(tmp_path, 'publish_interval = "1 s"')).mount()
    with (mount.path / "log").open("wb", buffering=0) as writer:
        writer.write(b"first")
        os.posix_fadvise(
            writer.fileno(), 0, 0, os.POSIX_FADV_DONTNEED
        )  # makes the kernel hand over what it holds
        wait_until(lambda: bucket.sizes().get("log") == 5, "the first publication")
        writer.write(b" second")
        os.posix_fadvise(writer.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        wait_until(lambda: bucket.sizes().get("log") == 12, "the second publication")


# fsync


def test_fsync(mount: Mount, bucket: Bucket) -> None:
    """When fsync of a file has returned, its bytes, whichever descriptor wrote them, and its size,
    permissions, owner and name are in the log, and everything that was done before it, but for what was
    written to other files that are still open: they survive the loss of this host. The object under the name
    follows.
    """
    directory = mount.path / "a" / "b"
    directory.mkdir(parents=True)
    path = directory / "first"
    writer, other = (os.open(path, os.O_RDWR | os.O_CREAT) for _ in range(2))
    os.write(writer, b"written by one, ")
    os.pwrite(other, b"and another", 16)
    os.fchmod(other, 0o600)
    path.rename(directory / "second")
    os.fsync(other)
    assert bucket.log_size() > 0
    mount.kill()
    for descriptor in (writer, other):
        with contextlib.suppress(OSError):  # there is no mount any more to close it
            os.close(descriptor)
    mount.mount_cold()
    found = mount.path / "a" / "b" / "second"
    assert found.read_bytes() == b"written by one, and another"
    assert found.stat().st_mode & 0o777 == 0o600
    mount.umount()
    assert bucket.read("a/b/second") == b"written by one, and another"
    assert bucket.log_size() == 0


def test_fsync_of_a_directory(mount: Mount, bucket: Bucket) -> None:
    """When fsync of a directory has returned, what was made, renamed and removed before is so after the loss of
    this host.
    """
    directory = mount.path / "d"
    directory.mkdir()
    for name in ("kept", "renamed", "removed"):
        (directory / name).write_bytes(name.encode())
    descriptor = os.open(directory, os.O_RDONLY)
    (directory / "renamed").rename(directory / "new")
    (directory / "removed").unlink()
    os.fsync(descriptor)
    os.close(descriptor)
    mount.kill()
    mount.mount_cold()
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == {
        "kept": b"kept",
        "new": b"renamed",
    }


# Names


def test_a_file_has_several_names(mount: Mount, bucket: Bucket) -> None:
    """A file may have several names (link). What is done by one of them is seen by all, st_nlink counts them, and it
    is so after a remount. In the bucket each name is a whole object. One that somebody else overwrites is a file of
    its own from then on; the others stay one file.
    """
    names = [mount.path / name for name in ("one", "two", "three")]
    names[0].write_bytes(b"old")
    for name in names[1:]:
        name.hardlink_to(names[0])
    names[1].write_bytes(b"written by the second name")
    assert [(name.stat().st_nlink, name.read_bytes()) for name in names] == [(3, names[1].read_bytes())] * 3
    number = names[0].stat().st_ino
    mount.umount()
    assert {bucket.read(name.name) for name in names} == {b"written by the second name"}
    mount.mount_cold()
    assert [(name.stat().st_nlink, name.stat().st_ino) for name in names] == [(3, number)] * 3
    mount.umount()
    bucket.put("two", b"theirs")
    mount.mount_cold()
    assert [name.stat().st_nlink for name in names] == [2, 1, 2]
    names[0].write_bytes(b"ours")
    assert [name.read_bytes() for name in names] == [b"ours", b"theirs", b"ours"]


def test_rename_is_never_absent(mount: Mount, bucket: Bucket) -> None:
    """A rename is atomic in the mount, over open files too, and of whole directories. In the bucket there is
    no moment at which the file is under neither name.
    """
    before, after = mount.path / "before", mount.path / "after"
    before.mkdir()
    names = [f"file-{number}" for number in range(20)]
    for name in names:
        (before / name).write_bytes(name.encode())
    mount.umount()
    mount.mount_cold()
    absent: list[str] = []
    stop = threading.Event()

    def watch() -> None:
        while not stop.is_set():
            # Listed after `before`: what has left one of them by then must have reached the other.
            seen = {key.rpartition("/")[2] for key in bucket.sizes()}
            absent.extend(name for name in names if name not in seen)

    watcher = threading.Thread(target=watch)
    watcher.start()
    with (before / names[0]).open("rb") as reader:
        before.rename(after)
        assert reader.read() == names[0].encode()
    assert os.listdir(mount.path) == ["after"]
    assert sorted(os.listdir(after)) == sorted(names)
    mount.umount()
    stop.set()
    watcher.join()
    assert absent == []
    assert bucket.sizes() == {"after/": 0} | {f"after/{name}": len(name) for name in names}


def test_unlink_while_open(mount: Mount, bucket: Bucket) -> None:
    """A file that is unlinked while it is open, or replaced by a rename, keeps its content until the last
    close. Its name is gone from the bucket without waiting for that.
    """
    removed, replaced = mount.path / "removed", mount.path / "replaced"
    removed.write_bytes(b"removed" * 100_000)
    replaced.write_bytes(b"replaced" * 100_000)
    mount.remount()
    with removed.open("rb") as first, replaced.open("rb") as second:
        removed.unlink()
        (mount.path / "new").write_bytes(b"new")
        (mount.path / "new").rename(replaced)
        wait_until(lambda: "removed" not in bucket.sizes(), "the removal")
        wait_until(lambda: bucket.sizes()["replaced"] == 3, "the replacement")
        assert first.read() == b"removed" * 100_000
        assert second.read() == b"replaced" * 100_000
    mount.umount()
    assert bucket.sizes() == {"replaced": 3}


# Others


def test_foreign_changes_are_never_overwritten(new_mount: NewMount, bucket: Bucket, tmp_path: Path) -> None:
    """What somebody else has changed in the bucket is never overwritten. Theirs stays under the name; ours is
    kept under `.fusefs/conflicts/`, the log file says where, and the next fsync, write or close of the file says
    ESTALE.
    """
    mount = new_mount(None, "--config", _configuration(tmp_path, 'publish_interval = "1 s"')).mount()
    path = mount.path / "file"
    path.write_bytes(b"the version that both know")
    mount.remount()
    writer = os.open(path, os.O_RDWR)
    os.write(writer, b"ours")
    bucket.put("file", b"theirs")
    os.fsync(writer)
    wait_until(lambda: ".fusefs/conflicts/" in mount.log, "the publication")
    for call in (os.fsync, os.close):
        with pytest.raises(OSError, match=os.strerror(errno.ESTALE)):
            call(writer)
    kept = [key for key in bucket.sizes() if key.startswith(".fusefs/conflicts/file")]
    assert len(kept) == 1
    assert (
        bucket.read(kept[0])
        == b"oursversion that both know"[:4]
        + b"version that both know"[0:0]
        + (b"the version that both know"[4:])
    )
    assert bucket.read("file") == b"theirs"
    assert kept[0] in mount.log
    mount.remount()
    assert path.read_bytes() == b"theirs"


def test_one_version_or_none(mount: Mount, bucket: Bucket) -> None:
    """A file that was opened before the mount has seen that somebody else replaced its object gives the bytes of one
    version: those it had, or ESTALE where they are gone.
    """
    path = mount.path / "file"
    path.write_bytes(b"1" * 16 * MIB)
    mount.remount()
    with path.open("rb", buffering=0) as reader:
        assert os.pread(reader.fileno(), 4096, 0) == b"1" * 4096
        bucket.put("file", b"2" * 16 * MIB)
        assert _bytes_seen(reader.fileno()) <= set(b"1")
    with path.open("rb", buffering=0) as late:
        assert _bytes_seen(late.fileno()) in (set(), set(b"1"), set(b"2"))


def _bytes_seen(descriptor: int) -> set[int]:
    seen: set[int] = set()
    for offset in range(0, 16 * MIB, MIB):
        try:
            seen.update(os.pread(descriptor, 4096, offset))
        except OSError as error:
            if error.errno != errno.ESTALE:
                raise
    return seen


def test_foreign_entries_are_seen(new_mount: NewMount, bucket: Bucket, tmp_path: Path) -> None:
    """What others add to a directory, change or remove there is seen when it is listed again after
    `revalidate_interval`. A shared mount sees it within a second, or within four times as long as the directory
    takes to be listed, and at open at once what has become of a file that it knows.
    """
    owner = new_mount(None, "--config", _configuration(tmp_path, 'revalidate_interval = "1 s"')).mount()
    shared = new_mount(None, "--shared").mount()
    for mount in (owner, shared):
        bucket.clear()
        bucket.put("changed", b"old")
        bucket.put("removed", b"x")
        wait_until(lambda: sorted(os.listdir(mount.path)) == ["changed", "removed"], "the files")  # noqa: B023
        assert (mount.path / "changed").read_bytes() == b"old"
        bucket.clear()
        bucket.put("added", b"x")
        bucket.put("changed", b"newer")
        began = time.monotonic()
        wait_until(lambda: sorted(os.listdir(mount.path)) == ["added", "changed"], "the changes")  # noqa: B023
        wait_until(lambda: (mount.path / "changed").read_bytes() == b"newer", "the new version")  # noqa: B023
        assert time.monotonic() - began < 10


def test_read_only(new_mount: NewMount, bucket: Bucket) -> None:
    """A read-only mount refuses every change with EROFS and writes nothing to the bucket."""
    bucket.put("file", b"x")
    mount = new_mount(None, "--read-only").mount()
    assert (mount.path / "file").read_bytes() == b"x"
    changes = (
        lambda: (mount.path / "file").write_bytes(b"y"),
        lambda: (mount.path / "new").touch(),
        lambda: (mount.path / "new").mkdir(),
        lambda: (mount.path / "file").unlink(),
        lambda: (mount.path / "file").rename(mount.path / "new"),
        lambda: (mount.path / "file").chmod(0o600),
        lambda: os.truncate(mount.path / "file", 0),
        lambda: (mount.path / "link").symlink_to("file"),
    )
    for change in changes:
        with pytest.raises(OSError, match=os.strerror(errno.EROFS)):
            change()
    mount.umount()
    assert bucket.sizes() == {"file": 1}


# Failures


def test_crash(mount: Mount, bucket: Bucket) -> None:
    """After the loss of the daemon or the host, the bucket has whole versions: of each object the last one
    that was published, never a mixture.
    """
    path = mount.path / "file"
    versions = [bytes([letter]) * 12 * MIB for letter in b"abc"]
    path.write_bytes(versions[0])
    mount.remount()
    for version in versions[1:]:
        path.write_bytes(version)
    wait_until(bucket.unfinished_uploads, "an upload on its way")
    mount.kill()
    assert bucket.read("file") in versions


def test_orphaned_uploads(mount: Mount, bucket: Bucket) -> None:
    """The parts of an upload that a crash cut short are removed by the next mount, on any host. Uploads that others
    have begun are not touched, but for one of the very same key that began when the crash came and ours had not.
    """
    theirs = bucket.client.create_multipart_upload(Bucket=bucket.name, Key=bucket.prefix + "large")[
        "UploadId"
    ]
    writer = os.open(mount.path / "large", os.O_WRONLY | os.O_CREAT)
    os.write(writer, bytes(24 * MIB))
    os.sync()
    wait_until(lambda: len(bucket.unfinished_uploads()) == 2, "the upload")
    [ours] = {upload_id for _, upload_id in bucket.unfinished_uploads()} - {theirs}
    # Before that only its key is noted, under which theirs is, too.
    wait_until(lambda: any(ours.encode() in note for note in _upload_notes(bucket)), "the note of its id")
    mount.kill()
    with contextlib.suppress(OSError):  # there is no mount any more to close it
        os.close(writer)
    mount.mount_cold()
    wait_until(lambda: len(bucket.unfinished_uploads()) == 1, "the abort")
    assert [upload_id for _, upload_id in bucket.unfinished_uploads()] == [theirs]


def _upload_notes(bucket: Bucket) -> list[bytes]:
    prefix = f"{bucket.prefix}.fusefs/uploads/"
    listed = bucket.client.list_objects_v2(Bucket=bucket.name, Prefix=prefix).get("Contents", [])
    return [bucket.client.get_object(Bucket=bucket.name, Key=each["Key"])["Body"].read() for each in listed]


@pytest.mark.parametrize("way", ["SIGTERM", "SIGINT", "SIGHUP", "fusefs umount", "umount(8)"])
def test_every_end_publishes(mount: Mount, bucket: Bucket, way: str) -> None:
    """SIGTERM, SIGINT, SIGHUP, `fusefs umount` and umount(8) all end a mount with everything in the bucket, pages that
    only the kernel held included. Where not everything can be published, the process ends with an error: the next
    mount does that with what the log has, and what is not in the log either is moved to `rescued` below the cache
    directory.
    """
    (mount.path / "d").mkdir()
    for number in range(50):
        (mount.path / "d" / str(number)).write_bytes(b"x" * number)
    writer = os.open(mount.path / "open", os.O_WRONLY | os.O_CREAT)
    os.write(writer, b"only the kernel has it")
    if way.startswith("SIG"):
        os.kill(mount.pid, getattr(signal, way))
        mount.wait_for_end()
    with contextlib.suppress(OSError):  # the mount may be gone from under it
        os.close(writer)
    if way == "umount(8)":
        subprocess.run(["umount", str(mount.path)], check=True)
        mount.wait_for_end()
    elif way == "fusefs umount":
        mount.umount()
    assert not mount.is_mounted
    expected = {"d/": 0, "open": 22} | {f"d/{number}": number for number in range(50)}
    assert bucket.sizes() == expected
