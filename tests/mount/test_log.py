"""What the log and the lease promise, through real mounts that lose their daemon, their cache or their lease."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from fusefs.filesystem import RENAME_EXCHANGE
from tests.mount.conftest import NewMount
from tests.support.bucket import Bucket
from tests.support.mounts import Mount, wait_until
from tests.support.recording_proxy import Fate, ReceivedRequest, RecordingProxy
from tests.support.seaweedfs import SeaweedFS
from tests.support.twins import rename

UNPUBLISHED: Final = ("--publish-interval", "1 h", "--publish-delay", "1 h")


def _write_synced(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def test_commit_interval(new_mount: NewMount, bucket: Bucket) -> None:
    """What was written or done without fsync is in the log within `commit_interval`, what only the kernel held
    included.
    """
    mount = new_mount(None, "--commit-interval", "1 s", "--publish-interval", "1 h").mount()
    writer = os.open(mount.path / "open", os.O_WRONLY | os.O_CREAT)
    os.write(writer, b"only the kernel has it")
    wait_until(lambda: bucket.log_holds(b"only the kernel has it"), "the log to have it")
    mount.kill()
    with contextlib.suppress(OSError):
        os.close(writer)
    mount.mount_cold()
    assert (mount.path / "open").read_bytes() == b"only the kernel has it"


@pytest.mark.parametrize("flags", [0, RENAME_EXCHANGE], ids=["replaced", "exchanged"])
@pytest.mark.parametrize("synced", [".", "other"])
def test_a_name_that_an_open_file_takes_has_its_bytes(
    synced: str, flags: int, new_mount: NewMount, bucket: Bucket
) -> None:
    """Where a file takes the name of another one while it is open, what was written to it before is in the log together
    with that, although it was never synced.
    """
    mount = new_mount(None, "--commit-interval", "1 h").mount()
    (mount.path / "file").write_bytes(b"old")
    mount.remount()
    (mount.path / "other").touch()
    new = os.open(mount.path / "new", os.O_WRONLY | os.O_CREAT)
    os.write(new, b"only the kernel has it")
    rename(mount.path / "new", mount.path / "file", flags)
    descriptor = os.open(mount.path / synced, os.O_RDONLY)
    os.fsync(descriptor)
    mount.kill()
    for each in (new, descriptor):
        with contextlib.suppress(OSError):
            os.close(each)
    mount.mount_cold()
    assert (mount.path / "file").read_bytes() == b"only the kernel has it"
    assert not flags or (mount.path / "new").read_bytes() == b"old"


def test_the_next_mount_has_everything(new_mount: NewMount, bucket: Bucket) -> None:
    """After the loss of the daemon or the host, the next mount, on any host, shows the tree as it was at one moment,
    and not before the last fsync that returned: from the bucket alone, and before it is published. But each file
    that was open then has, of what was written to it without fsync, as much as the kernel had handed over.
    """
    mount = new_mount(None, "--publish-interval", "1 h", "--publish-delay", "1 h").mount()
    (mount.path / "old").write_bytes(b"old")
    mount.remount()
    (mount.path / "d").mkdir()
    (mount.path / "old").rename(mount.path / "d" / "renamed")
    with (
        (mount.path / "first").open("wb", buffering=0) as first,
        (mount.path / "second").open("wb") as second,
    ):
        first.write(b"written before, and closed without fsync")
        second.write(b"synced")
        second.flush()
        os.fsync(second.fileno())
        first.write(b" - lost")
        mount.kill()
        with contextlib.suppress(OSError):
            first.close()
        with contextlib.suppress(OSError):
            second.close()
    mount.mount_cold()
    assert sorted(os.listdir(mount.path)) == ["d", "first", "second"]
    assert (mount.path / "second").read_bytes() == b"synced"
    assert (mount.path / "d" / "renamed").read_bytes() == b"old"
    assert (mount.path / "first").stat().st_size in (
        0,
        40,
    )  # fsync of another file does not fetch the kernel's pages
    mount.kill()
    mount.mount_cold()
    assert (mount.path / "second").read_bytes() == b"synced"
    mount.umount()
    assert bucket.read("d/renamed") == b"old"
    assert bucket.read("second") == b"synced"
    assert bucket.log_size() == 0


def test_every_way_to_ask_for_durability(new_mount: NewMount, bucket: Bucket) -> None:
    """Writes with O_SYNC and O_DSYNC, fdatasync, and fsync of a directory: all that returned is there after a crash."""
    mount = new_mount().mount(
        "--publish-interval", "1 h", "--publish-delay", "1 h", "--commit-interval", "1 h"
    )
    descriptors = []
    for name, flags in (("sync", os.O_SYNC), ("dsync", os.O_DSYNC), ("fdatasync", 0)):
        descriptors.append(os.open(mount.path / name, os.O_WRONLY | os.O_CREAT | flags))
        for number in range(3):
            before = bucket.log_size()
            os.pwrite(descriptors[-1], name.encode() * 100, 5_000 * number)
            if not flags:
                os.fdatasync(descriptors[-1])
            assert bucket.log_size() >= before + 100 * len(name)
    (mount.path / "d").mkdir()
    descriptors.append(os.open(mount.path, os.O_RDONLY))
    os.fsync(descriptors[-1])
    mount.kill()
    for descriptor in descriptors:
        with contextlib.suppress(OSError):
            os.close(descriptor)
    mount.mount_cold()
    for name in ("sync", "dsync", "fdatasync"):
        data = (mount.path / name).read_bytes()
        assert len(data) == 10_000 + 100 * len(name)
        assert all(data[start:].startswith(name.encode() * 100) for start in (0, 5_000, 10_000))
    assert (mount.path / "d").is_dir()


def test_fsync_on_a_shared_mount(new_mount: NewMount, bucket: Bucket) -> None:
    """On a shared mount there is no log: fsync returns when the object is in the bucket under its name."""
    mount = new_mount(None, "--shared").mount()
    with (mount.path / "file").open("wb") as file:
        file.write(b"bytes")
        file.flush()
        os.fsync(file.fileno())
        assert bucket.read("file") == b"bytes"
    assert bucket.log_size() == 0


def test_a_log_on_the_local_disk(new_mount: NewMount, bucket: Bucket) -> None:
    """With `ack_after_upload = false` the log is on the local disk: fsync returns when that has it. It survives the end
    of the daemon, and not the loss of the disk. A mount that cannot see the log is refused as long as it is needed,
    also where another disk has taken the place of the right one. What log a disk has is written on the disk: its host
    may have got another name meanwhile.
    """
    mount = new_mount(
        None, "--no-ack-after-upload", "--publish-interval", "1 h", "--publish-delay", "1 h"
    ).mount()
    _write_synced(mount.path / "file", b"bytes")
    assert bucket.log_size() == 0
    mount.kill()
    log, kept = mount.cache_dir / "log", mount.cache_dir / "kept log"
    log.rename(kept)
    elsewhere = new_mount()
    for other in (elsewhere, mount):
        refused = other.run(other.mount_command())
        assert refused.returncode == 1
        assert f"{socket.gethostname()}:{log}/" in refused.stderr.splitlines()[-1]
    shutil.rmtree(log)
    kept.rename(log)
    mount.mount()
    assert (mount.path / "file").read_bytes() == b"bytes"
    mount.umount()
    assert bucket.read("file") == b"bytes"
    elsewhere.mount()
    assert (elsewhere.path / "file").read_bytes() == b"bytes"


def test_a_daemon_with_a_log_on_the_local_disk_is_killed_again_and_again(
    new_mount: NewMount, bucket: Bucket
) -> None:
    """Whenever that is: what was acknowledged is there when it is mounted with the same disk, and nowhere else."""
    mount, elsewhere = new_mount(None, "--no-ack-after-upload", "--log-size", "64 KiB"), new_mount()
    for life in range(1, 4):
        mount.mount()
        with _appender(mount.path / "file") as appender:
            assert appender.stdout is not None
            acknowledged = 0
            while acknowledged < life * 100:
                acknowledged = int(appender.stdout.readline())
            mount.kill()
            for line in appender.stdout:  # what it had told before it met the end of the mount
                acknowledged = int(line)
        refused = elsewhere.run(elsewhere.mount_command())
        assert refused.returncode == 1
        assert f"{socket.gethostname()}:{mount.cache_dir}/log/" in refused.stderr.splitlines()[-1]
        mount.mount()
        there = (mount.path / "file").read_text().splitlines()
        assert there == [f"{number}" for number in range(1, len(there) + 1)]
        assert len(there) >= acknowledged
        mount.kill()
    mount.mount()
    whole = (mount.path / "file").read_bytes()
    assert whole.splitlines()[: len(there)] == [line.encode() for line in there]
    mount.umount()
    assert bucket.read("file") == whole
    elsewhere.mount()
    assert (elsewhere.path / "file").read_bytes() == whole


@contextlib.contextmanager
def _appender(path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that appends numbered lines, tells the number of each when its fsync has returned, and ends with an
    error.
    """
    program = f"""if True:
        import os
        file = os.open({str(path)!r}, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        number = os.read(file, 1 << 24).count(b"\\n")
        while True:
            number += 1
            try:
                os.write(file, b"%d\\n" % number)
                os.fsync(file)
            except OSError:
                os._exit(0)
            print(number, flush=True)
    """
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def test_one_mount_at_a_time(new_mount: NewMount) -> None:
    """A prefix has one default mount at a time. Another one is refused as long as the first is alive; where that was
    lost, it waits for `lease_term` without a sign of life. A mount of the same host and cache directory takes over at
    once.
    """
    first, second = new_mount().mount(), new_mount()
    refused = second.run(second.mount_command())
    assert refused.returncode == 1
    *waiting, refusal = refused.stderr.splitlines()
    assert socket.gethostname() in refusal
    assert str(first.path) in refusal
    assert all(line.startswith("fusefs: waiting for the lease: ") for line in waiting)
    _write_synced(first.path / "file", b"bytes")
    first.kill()
    first.mount("--lease-term", "1 h")
    first.kill()
    new_mount("memory://", "--cache-dir", str(first.cache_dir)).mount().umount()
    first.mount()
    assert (first.path / "file").exists()
    first.umount()
    second.mount()
    assert (second.path / "file").read_bytes() == b"bytes"
    second.kill()
    first.mount()
    assert "if nothing is heard of it" in first.log


@contextlib.contextmanager
def started(mount: Mount, *flags: str) -> Iterator[subprocess.Popen[str]]:
    """The command that mounts, under way; it ends with the block, or with its failure."""
    command, environment = mount.mount_command(*flags), mount.environment
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        except BaseException:
            process.kill()
            raise


IN_BOTH_WAYS: Final = pytest.mark.parametrize(
    "flags", [(), ("--foreground",)], ids=["in the background", "in the foreground"]
)


@IN_BOTH_WAYS
def test_who_starts_a_mount_sees_what_it_waits_for(flags: tuple[str, ...], new_mount: NewMount) -> None:
    """On standard error; and whoever asks for the status is told the same. What waits can be interrupted."""
    first, second = new_mount().mount("--lease-term", "1 h"), new_mount()
    first.kill()
    with started(second, *flags) as starting:
        assert starting.stderr is not None
        waiting = starting.stderr.readline()
        assert waiting.startswith("fusefs: waiting for the lease: the prefix is mounted read-write at ")
        assert f"{first.path} on host {socket.gethostname()}" in waiting
        assert waiting.endswith("if nothing is heard of it for 3600 s more\n")
        status = second.run([sys.executable, "-m", "fusefs", "status", str(second.path)])
        assert (status.returncode, status.stderr) == (0, "")
        _, told = status.stdout.splitlines()
        assert told.startswith("starting      waiting for the lease: the prefix is mounted read-write at ")
        starting.send_signal(signal.SIGINT)
    second.wait_for_end()


def test_a_second_start_leaves_the_socket_to_the_first(new_mount: NewMount) -> None:
    """Both wait for the lease, and whichever gives up, the other one says how it stands."""
    lost, mount = new_mount().mount("--lease-term", "1 h"), new_mount()
    lost.kill()
    with started(mount, "--foreground") as first:
        assert first.stderr is not None
        assert "waiting for the lease" in first.stderr.readline()
        with started(mount, "--foreground") as second:
            assert second.stderr is not None
            assert "waiting for the lease" in second.stderr.readline()
            second.send_signal(signal.SIGINT)
        status = mount.run([sys.executable, "-m", "fusefs", "status", str(mount.path)])
        assert (status.returncode, status.stderr) == (0, "")
        assert f"process {first.pid}," in status.stdout
        first.send_signal(signal.SIGINT)
    mount.wait_for_end()


@IN_BOTH_WAYS
def test_who_starts_a_mount_sees_what_it_recovers(flags: tuple[str, ...], new_mount: NewMount) -> None:
    """On standard error, which is left by a mount in the background as soon as it is there."""
    mount = new_mount(None, *UNPUBLISHED).mount()
    _write_synced(mount.path / "file", b"bytes")
    mount.kill()
    with started(mount, *flags) as starting:
        assert starting.stderr is not None
        lines = iter(starting.stderr.readline, "")
        assert next(lines).startswith("fusefs: reading the log that an earlier mount has left: 0 of ")
        wait_until(lambda: os.path.ismount(mount.path), "the mount")
        assert flags or all(line.startswith("fusefs: ") for line in lines)  # to their end
        mount.umount()
    assert starting.returncode == 0


def test_a_mount_that_was_stopped(new_mount: NewMount) -> None:
    """A mount that others have taken over from, because it was stopped for too long, confirms nothing more: every
    change is EROFS, and the log file says who has it now. What it had confirmed is there.
    """
    first, second = new_mount().mount(), new_mount()
    with _writer(first.path / "file") as writer:
        assert _next_fsync(writer) == "0"
        os.kill(first.pid, signal.SIGSTOP)
        second.mount()
        assert (second.path / "file").read_bytes() == b"more"
        (second.path / "file").write_bytes(b"by the second")
        os.kill(first.pid, signal.SIGCONT)
        wait_until(lambda: str(second.path) in first.log, "the first to know")
        assert _next_fsync(writer) == str(errno.EROFS)
        with pytest.raises(OSError, match=os.strerror(errno.EROFS)):
            (first.path / "another").mkdir()
        refusal = first.run(first.umount_command())
        assert (refusal.returncode, "taken over" in refusal.stderr) == (1, True), refusal.stderr
    second.remount()
    assert (second.path / "file").read_bytes() == b"by the second"
    assert sorted(os.listdir(second.path)) == ["file"]


def test_a_mount_below_another_one_says_so(new_mount: NewMount, bucket: Bucket) -> None:
    """Both are let in, and what the one changes is a conflict to the other."""
    above, below = new_mount().mount(), new_mount(f"{bucket.url}below").mount()
    wait_until(lambda: f"mounted read-write at {above.path}" in below.log, "the warning")
    below.umount()
    above.umount()


def test_a_mount_that_was_cut_off(new_mount: NewMount, bucket: Bucket, s3_server: SeaweedFS) -> None:
    """What it was about to delete, and others have made again meanwhile, stays: it asks for nothing any more."""
    is_cut = threading.Event()

    def cut_by_the_deletion(request: ReceivedRequest) -> Fate:
        if request.method == "DELETE" and request.key.endswith("/empty"):
            is_cut.set()
        return Fate.CALL_LOST if is_cut.is_set() else Fate.ANSWERED

    with RecordingProxy(s3_server.endpoint, fate_of=cut_by_the_deletion) as proxy:
        first = new_mount(None, "--endpoint", proxy.endpoint, "--lease-term", "5 s").mount()
        (first.path / "empty").touch()
        wait_until(lambda: "empty" in bucket.sizes(), "the file")
        (first.path / "empty").unlink()
        wait_until(is_cut.is_set, "the deletion")
        second = new_mount().mount()
        assert os.listdir(second.path) == []
        wait_until(lambda: "empty" not in bucket.sizes(), "the deletion by the second")
        (second.path / "empty").touch()
        wait_until(lambda: "empty" in bucket.sizes(), "the file of the second")
        is_cut.clear()
        wait_until(lambda: "cannot delete 'empty'" in first.log, "the first to give up")
        assert "empty" in bucket.sizes()
        assert first.run(first.umount_command()).returncode == 1
        second.umount()
        assert "empty" in bucket.sizes()


@contextlib.contextmanager
def _writer(path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that writes and syncs at each line of input, and tells the errno.

    The test itself cannot keep a file open on a mount that is stopped: whatever it starts closes its copy, and hangs.
    """
    program = f"""if True:
        import os
        writer = os.open({str(path)!r}, os.O_WRONLY | os.O_CREAT, 0o644)
        while input():
            try:
                os.write(writer, b"more")
                os.fsync(writer)
                print(0, flush=True)
            except OSError as error:
                print(error.errno, flush=True)
    """
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def _next_fsync(writer: subprocess.Popen[str]) -> str:
    assert writer.stdin is not None
    assert writer.stdout is not None
    print("again", file=writer.stdin, flush=True)
    return writer.stdout.readline().strip()


def test_without_a_lease(mount: Mount, new_mount: NewMount, bucket: Bucket) -> None:
    mount.umount()
    for key in [key for key in bucket.sizes(housekeeping=True) if key == ".fusefs/lease"]:
        bucket.delete(key)
    without = new_mount(None, "--no-lease").mount()
    _write_synced(without.path / "file", b"bytes")
    without.kill()
    without.mount_cold()
    assert (without.path / "file").read_bytes() == b"bytes"
    assert "without a lease" in without.log
    without.umount()
    assert ".fusefs/lease" not in bucket.sizes(housekeeping=True)


def test_what_was_confirmed_without_a_lease_is_there_with_one(mount: Mount, new_mount: NewMount) -> None:
    """The lease of before says that there is no log; that was true until somebody did without."""
    mount.umount()
    without = new_mount(None, "--no-lease").mount("--publish-interval", "1 h", "--publish-delay", "1 h")
    _write_synced(without.path / "file", b"bytes")
    without.kill()
    mount.mount_cold()
    assert (mount.path / "file").read_bytes() == b"bytes"


def test_a_damaged_log_stops_the_mount(new_mount: NewMount, bucket: Bucket, tmp_path: Path) -> None:
    mount = new_mount().mount("--publish-interval", "1 h", "--publish-delay", "1 h")
    _write_synced(mount.path / "file", b"bytes")
    mount.kill()
    key = max(key for key in bucket.sizes(housekeeping=True) if key.startswith(".fusefs/journal/"))
    bucket.put(key, bucket.read(key)[:-1])
    refused = mount.run(mount.mount_command())
    assert refused.returncode == 1
    assert len(refused.stderr.splitlines()) == 1
    assert "the log is damaged" in refused.stderr
    assert key in refused.stderr
    recover = [sys.executable, "-m", "fusefs", "recover", mount.url, *mount.flags]
    told = mount.run(recover)
    assert told.returncode == 1
    assert len(told.stdout.splitlines()) == 1
    assert key in told.stdout
    assert mount.run([*recover, "--set-aside"]).returncode == 0
    mount.mount()
    assert os.listdir(mount.path) == []
    assert bucket.sizes()[key.replace("/journal/", "/damaged/")] > 0


def test_a_damaged_log_that_cannot_be_set_aside(new_mount: NewMount, tmp_path: Path) -> None:
    """What the store refuses when `recover` has the lease is told in a line, too; nothing is lost by that."""
    store = tmp_path / "bucket"
    store.mkdir()
    mount = new_mount(f"file://{store}", *UNPUBLISHED).mount()
    _write_synced(mount.path / "file", b"bytes")
    mount.kill()
    batch = max((store / ".fusefs" / "journal").glob("*/*"))
    batch.write_bytes(batch.read_bytes()[:-1])
    damaged = store / ".fusefs" / "damaged"
    damaged.mkdir()
    recover = [sys.executable, "-m", "fusefs", "recover", mount.url, "--set-aside"]
    subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(damaged)], check=True)
    try:
        refused = mount.run(recover)
    finally:
        subprocess.run(["umount", str(damaged)], check=True)
    assert refused.returncode == 3
    *waiting, line = refused.stderr.splitlines()
    assert all("waiting for the lease" in told for told in waiting)
    assert line.startswith(f"fusefs: {mount.url}: ")
    assert mount.run(recover).returncode == 0
    assert (damaged / batch.parent.name / batch.name).exists()


def test_a_log_whose_end_is_removed(new_mount: NewMount, bucket: Bucket) -> None:
    """Nothing in the log tells of that, and the lease does."""
    mount = new_mount().mount(*UNPUBLISHED)
    with (mount.path / "file").open("wb", buffering=0) as file:
        for _ in range(2):
            file.write(b"bytes")
            os.fsync(file.fileno())
        wait_until(lambda: b'"sequence": 2,' in bucket.read(".fusefs/lease"), "the lease to tell of it")
        mount.kill()
        with contextlib.suppress(OSError):
            file.close()
    key = max(key for key in bucket.sizes(housekeeping=True) if key.startswith(".fusefs/journal/"))
    bucket.delete(key)
    refused = mount.run(mount.mount_command())
    assert (refused.returncode, len(refused.stderr.splitlines())) == (1, 1)
    assert (
        f"{key}': somebody has removed it, of which '.fusefs/lease' says that it was there" in refused.stderr
    )
    check, recover = (
        [sys.executable, "-m", "fusefs", name, mount.url, *mount.flags] for name in ("check", "recover")
    )
    for command in (check, recover):
        told = mount.run(command)
        assert told.returncode == 1
        (line,) = [line for line in told.stdout.splitlines() if key in line]
        assert "somebody has removed it" in line
    assert mount.run([*recover, "--set-aside"]).returncode == 0
    mount.mount()
    assert (mount.path / "file").read_bytes() == b"bytes"


def test_a_damaged_log_on_the_local_disk(new_mount: NewMount) -> None:
    """It is told of, and set aside, where the disk is; elsewhere there is one line that says where that is."""
    mount, elsewhere = new_mount(None, "--no-ack-after-upload", *UNPUBLISHED).mount(), new_mount()
    for number in range(2):
        _write_synced(mount.path / f"file-{number}", b"bytes of %d" % number)
    mount.kill()
    (directory,) = (mount.cache_dir / "log").iterdir()
    (pack,) = (directory / ".fusefs-store" / "packs").glob("*-*")
    pack.write_bytes(pack.read_bytes().replace(b"bytes of 0", b"Bytes of 0"))
    refused = mount.run(mount.mount_command())
    assert refused.returncode == 1
    assert "the log is damaged" in refused.stderr
    assert f"in {directory}:" in refused.stderr
    recover = [sys.executable, "-m", "fusefs", "recover", mount.url, *elsewhere.flags, "--cache-dir"]
    for flags in ([], ["--set-aside"]):
        missed = elsewhere.run([*recover, str(elsewhere.cache_dir), *flags])
        assert (missed.returncode, missed.stdout, len(missed.stderr.splitlines())) == (3, "", 1)
        assert f"{socket.gethostname()}:{directory}" in missed.stderr
    told = mount.run([*recover, str(mount.cache_dir)])
    assert told.returncode == 1
    (batch,) = re.findall(rf"(\w+/\w+)' in {directory} cannot be applied", told.stdout)
    assert mount.run([*recover, str(mount.cache_dir), "--set-aside"]).returncode == 0
    mount.mount()
    assert "file-1" not in os.listdir(mount.path)
    assert b"Bytes of 0" in (directory / ".fusefs" / "damaged" / batch).read_bytes()
