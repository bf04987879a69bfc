"""How a mount begins and ends: what its operator is told, and that nothing written is lost on the way out."""

from __future__ import annotations

import errno
import os
import pty
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import partial
from pathlib import Path

import pytest
from click.testing import CliRunner

from fusefs import cli, control, mountpoints
from fusefs.errors import MountError
from tests.mount.conftest import NewMount
from tests.support.bucket import Bucket
from tests.support.mounts import COMMAND_SECONDS, Mount, wait_until
from tests.support.seaweedfs import READER_ACCESS_KEY, READER_SECRET_KEY, SECRET_KEY, SeaweedFS

MIB = 1024 * 1024
END_SECONDS = 60.0
UNUSED_ENDPOINT = "http://127.0.0.1:9"


# The beginning


def test_mount_returns_when_it_answers(new_mount: NewMount, bucket: Bucket) -> None:
    """When `fusefs mount` has returned, the very next call finds what is in the bucket, and the daemon lives on."""
    bucket.put("directory/file", b"content")
    mount = new_mount()
    done = mount.run(mount.mount_command())
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{bucket.url.rstrip('/')} is mounted on {mount.path}; log: {mount.log_file}\n"
    assert (mount.path / "directory" / "file").read_bytes() == b"content"
    assert os.getsid(mount.pid) == mount.pid  # a closed terminal does not take it away


def test_kernel_shows_what_is_mounted(mount: Mount, bucket: Bucket) -> None:
    """findmnt and df name the bucket, and the type is fuse.fusefs."""
    [line] = [line for line in Path("/proc/mounts").read_text().splitlines() if str(mount.path) in line]
    source, _, kind, options, *_ = line.split()
    assert (source, kind) == (bucket.url.rstrip("/"), "fuse.fusefs")
    assert "default_permissions" in options.split(",")


def test_mount_point_may_have_any_name(new_mount: NewMount, bucket: Bucket) -> None:
    """Spaces, commas, backslashes and other scripts in the name of a mount point mean nothing special."""
    mount = new_mount()
    mount.path = mount.path.with_name("m t,ro\\ \u20ac")
    mount.path.mkdir()
    done = mount.run(mount.mount_command())
    assert done.returncode == 0, done.stderr
    (mount.path / "a,b \u20ac").write_bytes(b"x")
    done = mount.run(mount.umount_command())
    assert done.returncode == 0, done.stderr
    assert bucket.sizes() == {"a,b \u20ac": 1}


@pytest.mark.parametrize("name", ["b\u00fccher \u20ac", "x\\y,ro", "x\ny", "caf\udce9"])
def test_the_store_may_have_any_name(new_mount: NewMount, tmp_path: Path, name: str) -> None:
    """A directory, and a prefix as well. What is not ASCII in it is escaped as in URLs where the kernel shows it."""
    store = tmp_path / name
    store.mkdir()
    mount = new_mount(f"file://{store}")
    mount.environment["PYTHONIOENCODING"] = "utf-8:strict"
    mount.mount()
    (mount.path / "file").write_bytes(b"x")
    [line] = [line for line in Path("/proc/mounts").read_text().splitlines() if str(mount.path) in line]
    escaped = {"b\u00fccher \u20ac": "b%C3%BCcher\\040%E2%82%AC", "caf\udce9": "caf%E9"}
    assert name not in escaped or line.split()[0] == f"file://{tmp_path}/{escaped[name]}"
    mount.umount()
    assert (store / "file").read_bytes() == b"x"


def test_a_prefix_may_have_any_name(new_mount: NewMount, bucket: Bucket) -> None:
    mount = new_mount(f"{bucket.url}b\u00fccher \u20ac").mount()
    (mount.path / "file").write_bytes(b"x")
    mount.umount()
    assert bucket.sizes()["b\u00fccher \u20ac/file"] == 1


@pytest.mark.parametrize("kind", ["the mount point", "a directory above it"])
def test_a_mount_point_may_be_named_by_a_link(new_mount: NewMount, tmp_path: Path, kind: str) -> None:
    """It is the same mount point under each of its names, whichever it was mounted by: for `status`, for `umount`, and
    for a second mount, which would hide the first.
    """
    mount, other = new_mount("memory://"), new_mount("memory://")
    real, link = mount.path, tmp_path / "link"
    link.symlink_to(os.path.relpath(real, tmp_path) if kind == "the mount point" else real.parent)
    by_link = link if kind == "the mount point" else link / real.name
    for first, second in ((by_link, real), (real, by_link)):
        mount.path, other.path = first, second
        done = mount.run(mount.mount_command())
        assert (done.returncode, done.stderr) == (0, "")
        assert f"fusefs umount {real}" in complaint(other)
        done = mount.run([sys.executable, "-m", "fusefs", "status", str(second)])
        assert (done.returncode, done.stderr) == (0, "")
        done = mount.run([sys.executable, "-m", "fusefs", "umount", str(second)])
        assert (done.returncode, done.stderr) == (0, "")
        mount.path = real
        assert not mount.is_mounted


@pytest.mark.parametrize("kind", ["missing", "not empty", "a file", "busy"])
def test_mount_point_that_cannot_be_used(new_mount: NewMount, kind: str) -> None:
    """The complaint is one line that says what is wrong with the mount point, and the exit status is 1."""
    mount = new_mount()
    expected = _spoil_mount_point(mount, kind)
    error = complaint(mount)
    assert str(mount.path) in error
    assert expected in error


def _spoil_mount_point(mount: Mount, kind: str) -> str:
    match kind:
        case "missing":
            mount.path.rmdir()
            return "does not exist"
        case "not empty":
            (mount.path / "file").touch()
            return "not empty"
        case "a file":
            mount.path.rmdir()
            mount.path.touch()
            return "not a directory"
        case _:
            mount.mount()
            return f"is busy: fusefs serves it; unmount it with: fusefs umount {mount.path}"


def test_a_dead_mount_is_removed_by_the_next_one(new_mount: NewMount, tmp_path: Path) -> None:
    """After the daemon was killed it is mounted again with the same command, which says what it has found there."""
    mount = new_mount()
    mount.path = tmp_path / "a directory\\ with\nodd names"
    mount.path.mkdir()
    mount.mount()
    with (mount.path / "file").open("wb") as file:
        file.write(b"written before")
        file.flush()
        os.fsync(file.fileno())
    os.kill(mount.pid, signal.SIGKILL)
    mount.wait_for_end()
    done = mount.run(mount.mount_command())
    assert (done.returncode, done.stderr.count("daemon is gone; it was removed")) == (0, 1), done.stderr
    assert (mount.path / "file").read_bytes() == b"written before"
    assert mount.run(mount.umount_command()).returncode == 0


def test_the_dead_mount_of_another_file_system_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever uses that will know what is to be done with it."""
    monkeypatch.setattr(mountpoints, "_is_dead", lambda path: True)
    assert not mountpoints.remove_if_dead(tmp_path)  # which belongs to none at all
    assert not mountpoints.remove_if_dead(Path("/proc"))
    assert os.path.ismount("/proc")


def test_nobody_waits_for_a_daemon_that_is_stopped(
    new_mount: NewMount, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever is to unmount it, or to mount something else there, is told in a line, and does not touch the mount."""
    monkeypatch.setattr(control, "BEGIN_SECONDS", 0.1)
    mount = new_mount()
    mount.mount()
    os.kill(mount.pid, signal.SIGSTOP)
    try:
        unmounting = CliRunner().invoke(cli.main, ["umount", str(mount.path)])
        assert unmounting.exit_code == 1
        assert (
            f"fusefs: {mount.path}: the daemon of this mount (process {mount.pid}) does not"
            in unmounting.output
        )
        mounting = mount.run(mount.mount_command())
        assert (mounting.returncode, mounting.stderr.count("is busy: fusefs serves it")) == (1, 1)
    finally:
        os.kill(mount.pid, signal.SIGCONT)
    mount.umount()


def test_a_mount_that_is_used_stays(new_mount: NewMount) -> None:
    """What was written is in the bucket then, and the line says how to find who uses it."""
    mount = new_mount()
    mount.mount()
    with (mount.path / "file").open("w") as file:
        file.write("text")
        file.flush()
        done = mount.run(mount.umount_command())
        assert done.returncode == 1
        assert done.stderr == (
            f"fusefs: {mount.path} stays mounted: a program has something of it open, or works in it;"
            f" which one, tells: fuser -vm {mount.path}\n"
        )
        assert mount.is_mounted
    assert mount.run(mount.umount_command()).returncode == 0


def test_without_fusermount3_nothing_is_unmounted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root mounts without it; that it is not there is a line that names it."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MountError, match="cannot be unmounted: fusermount3: No such file or directory"):
        mountpoints.unmount(tmp_path)


def test_a_service_manager_is_told_when_it_is_mounted_and_when_it_ends(
    new_mount: NewMount, tmp_path: Path
) -> None:
    mount = new_mount()
    mount.environment["NOTIFY_SOCKET"] = str(tmp_path / "notify")
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(END_SECONDS)
        process = mount.start()
        told = [manager.recv(1000)]
        while b"READY=1" not in told[-1]:
            told.append(manager.recv(1000))
        os.close(leave_unpublished(mount))
        process.send_signal(signal.SIGTERM)
        end_of(process, mount)
        assert b"STOPPING=1\nSTATUS=" in manager.recv(1000)


def test_missing_bucket_is_a_clear_error(new_mount: NewMount) -> None:
    mount = new_mount("s3://no-such-bucket-here/prefix")
    assert "no-such-bucket-here" in complaint(mount)


def test_wrong_secret_is_a_clear_error(new_mount: NewMount) -> None:
    mount = new_mount()
    mount.environment["AWS_SECRET_ACCESS_KEY"] = "not-the-secret"
    error = complaint(mount)
    assert mount.url.rstrip("/") in error
    assert "not-the-secret" not in error + mount.log


def test_missing_credentials_are_a_clear_error(new_mount: NewMount) -> None:
    mount = new_mount()
    del mount.environment["AWS_SECRET_ACCESS_KEY"], mount.environment["AWS_ACCESS_KEY_ID"]
    assert "credentials" in complaint(mount)


def test_credentials_that_may_only_read(new_mount: NewMount, bucket: Bucket) -> None:
    """They are refused at the beginning, not at the first write, and are enough for a read-only mount."""
    bucket.put("file", b"content")
    mount = new_mount()
    mount.environment["AWS_ACCESS_KEY_ID"] = READER_ACCESS_KEY
    mount.environment["AWS_SECRET_ACCESS_KEY"] = READER_SECRET_KEY
    assert mount.url.rstrip("/") in complaint(mount)
    mount.mount("--read-only")
    assert (mount.path / "file").read_bytes() == b"content"


def test_refused_connection_is_a_clear_error(new_mount: NewMount, tmp_path: Path) -> None:
    """An endpoint that nobody listens at is asked again for `retry_timeout`, and no longer."""
    (tmp_path / "fusefs.toml").write_text('[mount]\nretry_timeout = "1 s"\n')
    mount = new_mount(None, "--config", str(tmp_path / "fusefs.toml"))
    mount.flags = ("--endpoint", UNUSED_ENDPOINT, *mount.flags[2:])
    began = time.monotonic()
    assert UNUSED_ENDPOINT in complaint(mount)
    assert time.monotonic() - began < 20


@pytest.mark.parametrize(
    ("flags", "configuration", "named"),
    [
        (["--multipart-part-size", "1 MiB"], "", "multipart_part_size"),
        (["--log-level", "loud"], "", "log_level"),
        ([], "[mount]\ncolour = 1\n", "mount.colour"),
        ([], "[system.storage.object]\nmultipart_part_size = 4096\n", "multipart_part_size"),
        ([], "[mount\n", "fusefs.toml"),
        (["--no-such-flag"], "", "--no-such-flag"),
    ],
)
def test_mistakes_in_the_configuration(
    new_mount: NewMount, tmp_path: Path, flags: list[str], configuration: str, named: str
) -> None:
    """A mistake is found before anything is mounted; the complaint names the key, and the exit status is 2."""
    (tmp_path / "fusefs.toml").write_text(configuration)
    mount = new_mount(None, *flags, "--config", str(tmp_path / "fusefs.toml"))
    done = mount.run(mount.mount_command())
    assert done.returncode == 2
    assert named in done.stderr
    assert "Traceback" not in done.stderr
    assert not mount.is_mounted


def test_mistake_in_the_url(new_mount: NewMount) -> None:
    mount = new_mount("ftp://somewhere/else")
    done = mount.run(mount.mount_command())
    assert done.returncode == 2
    assert "ftp" in done.stderr
    assert done.stderr.count("\n") == 1


def complaint(mount: Mount) -> str:
    """Try to mount and return the one line that says why it cannot be done."""
    was_mounted = mount.is_mounted
    done = mount.run(mount.mount_command())
    assert done.returncode == 1, done.stderr
    assert done.stdout == ""
    assert re.fullmatch(r"fusefs: .+\n", done.stderr), done.stderr
    assert SECRET_KEY not in done.stderr + mount.log
    assert mount.is_mounted == was_mounted
    return done.stderr


# The end


@pytest.mark.usefixtures("hangup_is_heard")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signal_publishes_everything(new_mount: NewMount, bucket: Bucket, number: signal.Signals) -> None:
    """A signal ends a mount in the foreground with status 0; what was written before is in the bucket: closed files,
    bytes that only the kernel has, and those of a file that some program still has open.
    """
    mount = new_mount()
    process = mount.start()
    descriptor = leave_unpublished(mount)
    process.send_signal(number)
    output, errors = end_of(process, mount)
    with pytest.raises(OSError, match="not connected"):
        os.fsync(descriptor)
    with suppress(OSError):
        os.close(descriptor)
    assert process.returncode == 0, errors
    assert output == ""
    assert not mount.is_mounted
    assert_published(bucket)


@pytest.mark.parametrize("is_moved", [False, True])
def test_signal_waits_for_what_the_kernel_has_sent(
    is_moved: bool, new_mount: NewMount, tmp_path: Path
) -> None:
    """The kernel says that it has handed over its pages when it has sent them. Nor are they left where the mount is in
    another place than its own: of a container, say.
    """
    (tmp_path / "bucket").mkdir()
    flags = ("--commit-interval", "1 h")
    mount = new_mount(f"file://{tmp_path}/bucket", *flags, program="tests.support.slow_writes_mount")
    process = mount.start()
    place = mount.path
    with ExitStack() as stack:
        if is_moved:
            place = tmp_path / "place"
            place.mkdir()
            subprocess.run(["mount", "--bind", str(mount.path), str(place)], check=True)
            stack.callback(subprocess.run, ["umount", "--lazy", str(place)], check=True)
            subprocess.run(["umount", str(mount.path)], check=True)
        file = os.open(place / "file", os.O_CREAT | os.O_WRONLY)
        for number in range(20):
            os.pwrite(file, b"written", number * 2 * MIB)
        process.send_signal(signal.SIGTERM)
        _, errors = end_of(process, mount)
        with suppress(OSError):
            os.close(file)
    assert process.returncode == 0, errors
    published = (tmp_path / "bucket" / "file").read_bytes()
    assert [published[number * 2 * MIB :][:7] for number in range(20)] == [b"written"] * 20


def test_signal_ends_a_mount_in_the_background(mount: Mount, bucket: Bucket) -> None:
    descriptor = leave_unpublished(mount)
    os.close(descriptor)
    os.kill(mount.pid, signal.SIGTERM)
    mount.wait_for_end()
    assert not mount.is_mounted
    assert_published(bucket)


def test_umount_publishes_everything(mount: Mount, bucket: Bucket) -> None:
    """`fusefs umount` returns when everything is in the bucket and the daemon has ended."""
    os.close(leave_unpublished(mount))
    daemon = os.pidfd_open(mount.pid)
    done = mount.run(mount.umount_command())
    assert (done.returncode, done.stderr) == (0, "")
    assert select.select([daemon], [], [], 0)[0]
    os.close(daemon)
    assert_published(bucket)


@pytest.mark.parametrize("command", [["fusermount3", "-u"], ["umount"]])
def test_plain_unmount_publishes_everything(mount: Mount, bucket: Bucket, command: list[str]) -> None:
    """Who unmounts by the system's own command loses nothing: the daemon ends when everything is in the bucket."""
    os.close(leave_unpublished(mount))
    subprocess.run([*command, str(mount.path)], check=True)
    mount.wait_for_end()
    assert_published(bucket)


def test_umount_of_a_mount_that_is_in_another_place_too(mount: Mount, tmp_path: Path) -> None:
    """The daemon goes on for who uses it there: whoever unmounts the first place is told so, and need not wait."""
    place = tmp_path / "place"
    place.mkdir()
    subprocess.run(["mount", "--bind", str(mount.path), str(place)], check=True)
    with ExitStack() as stack:
        unmount_there = partial(subprocess.run, ["umount", str(place)])
        stack.callback(unmount_there)
        daemon = mount.pid
        done = mount.run(mount.umount_command())
        assert done.returncode == 1
        assert "the mount is in another place, too" in done.stderr
        assert f"kill {daemon}" in done.stderr
        (place / "file").write_bytes(b"used")
        assert unmount_there().returncode == 0
        mount.wait_for_end()


def test_umount_of_a_busy_mount(mount: Mount) -> None:
    """It is a clear error, and the mount goes on as if nothing had happened; later it can be unmounted."""
    with (mount.path / "file").open("wb", buffering=0) as file:
        file.write(b"one")
        done = mount.run(mount.umount_command())
        assert done.returncode == 1
        assert "busy" in done.stderr
        assert str(mount.path) in done.stderr
        assert "Traceback" not in done.stderr
        file.write(b" two")
    assert (mount.path / "file").read_bytes() == b"one two"
    mount.umount()


def test_umount_of_nothing(new_mount: NewMount) -> None:
    """A directory that nothing is mounted on is one line, and status 1."""
    mount = new_mount()
    done = mount.run(mount.umount_command())
    assert done.returncode == 1
    assert done.stderr == f"fusefs: nothing is mounted on {mount.path}\n"


def test_umount_of_a_dead_mount(mount: Mount) -> None:
    """A mount whose daemon was killed can be taken away: the complaint says that it is dead, and how."""
    os.kill(mount.pid, signal.SIGKILL)
    mount.wait_for_end()
    done = mount.run(mount.umount_command())
    assert done.returncode == 1
    assert f"fusermount3 -uz {mount.path}" in done.stderr
    assert done.stderr.count("\n") == 1


def test_umount_shows_progress_on_a_terminal(mount: Mount, bucket: Bucket) -> None:
    """A bar runs to 100 % while uploads are waited for."""
    for number in range(4):
        (mount.path / f"large{number}").write_bytes(os.urandom(16 * MIB))
    shown = on_a_terminal(mount, mount.umount_command())
    assert "Publishing" in shown
    assert "100%" in shown
    assert len(set(re.findall(r"\d+%", shown))) > 1, shown
    assert len(bucket.sizes()) == 4


def on_a_terminal(mount: Mount, command: list[str]) -> str:
    """Run a command to its end with a terminal for standard error, and return what that showed."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        command, env=mount.environment, stdin=theirs, stdout=theirs, stderr=theirs
    ) as process:
        os.close(theirs)
        shown = b""
        try:
            while more := os.read(ours, 4096):
                shown += more
        except OSError as error:
            if error.errno != errno.EIO:  # that is how a terminal ends
                raise
        finally:
            os.close(ours)
        assert process.wait(COMMAND_SECONDS) == 0, shown
    return shown.decode()


def end_of(process: subprocess.Popen[str], mount: Mount) -> tuple[str, str]:
    """Wait for the end of a daemon, and return its output and its complaints; a hang is explained by its log."""
    try:
        return process.communicate(timeout=END_SECONDS)
    except subprocess.TimeoutExpired:
        raise AssertionError(f"the daemon does not end; its log:\n{mount.log}") from None


def leave_unpublished(mount: Mount) -> int:
    """Write what `assert_published` will look for, and close all but the file whose descriptor is returned."""
    (mount.path / "large").write_bytes(b"large" * 4 * MIB)
    for number in range(20):
        (mount.path / f"small{number:02}").write_bytes(b"x" * number)
    (mount.path / "link").symlink_to("large")
    descriptor = os.open(mount.path / "open", os.O_WRONLY | os.O_CREAT)
    os.write(descriptor, b"written, not closed")
    return descriptor


def assert_published(bucket: Bucket) -> None:
    sizes = {"large": 20 * MIB, "link": 5, "open": 19}
    assert bucket.sizes() == sizes | {f"small{number:02}": number for number in range(20)}
    assert bucket.read("large") == b"large" * 4 * MIB
    assert bucket.read("open") == b"written, not closed"
    assert bucket.unfinished_uploads() == []


# When the store has gone for good


@contextmanager
def own_server() -> Iterator[SeaweedFS]:
    server = SeaweedFS()
    try:
        server.start()
        yield server
    finally:
        server.close()


def test_unpublishable_bytes_are_rescued(new_mount: NewMount, tmp_path: Path) -> None:
    """If the store does not come back, the end is an error that says where the bytes are, and there they are.

    `fusefs umount` leaves the mount alone then; a signal ends it, and a second one ends the waiting.
    """
    (tmp_path / "fusefs.toml").write_text('[mount]\nretry_timeout = "1 s"\n')
    with own_server() as server:
        mount = new_mount(
            f"s3://{server.bucket}/p/", "--config", str(tmp_path / "fusefs.toml"), server=server
        )
        process = mount.start()
        (mount.path / "directory").mkdir()
        assert os.listdir(mount.path / "directory") == []
        server.kill()
        (mount.path / "directory" / "file").write_bytes(b"precious" * MIB)
        done = mount.run(mount.umount_command())
        assert done.returncode == 1
        assert re.fullmatch(r"fusefs: .* stays mounted, .*\n", done.stderr)
        assert os.path.ismount(mount.path)
        process.send_signal(signal.SIGTERM)
        _, errors = end_of(process, mount)
    assert process.returncode == 1
    assert not mount.is_mounted
    assert re.fullmatch(r"fusefs: 1 changed file could not be published; [^\n]*\n", errors)
    [rescued] = [path for path in (mount.cache_dir / "rescued").rglob("*") if path.is_file()]
    assert str(rescued.relative_to(mount.cache_dir).parts[1]) in errors
    assert rescued.name == "file"
    assert rescued.read_bytes() == b"precious" * MIB


def test_second_signal_ends_the_waiting(new_mount: NewMount) -> None:
    """With minutes of `retry_timeout` left, a second signal makes the daemon rescue what it has and end."""
    with own_server() as server:
        mount = new_mount(f"s3://{server.bucket}/p/", server=server)
        process = mount.start()
        assert os.listdir(mount.path) == []
        server.kill()
        (mount.path / "file").write_bytes(b"precious")
        process.send_signal(signal.SIGTERM)
        wait_until(lambda: "SIGTERM" in mount.log, "the first signal")
        process.send_signal(signal.SIGTERM)
        _, errors = end_of(process, mount)
    assert process.returncode == 1
    assert "rescued" in errors
    assert not mount.is_mounted
    [rescued] = [path for path in (mount.cache_dir / "rescued").rglob("*") if path.is_file()]
    assert rescued.read_bytes() == b"precious"


# Kinds of mounts


def test_read_only_mount(new_mount: NewMount, bucket: Bucket) -> None:
    """Everything can be read and nothing changed: every change is EROFS, and the bucket stays as it was."""
    bucket.put("directory/file", b"content")
    mount = new_mount(None, "--read-only").mount()
    path = mount.path / "directory" / "file"
    assert path.read_bytes() == b"content"
    for change in (
        lambda: path.write_bytes(b"new"),
        lambda: (mount.path / "new").touch(),
        lambda: path.unlink(),
        lambda: path.rename(mount.path / "new"),
        lambda: path.chmod(0o600),
        lambda: os.truncate(path, 0),
        lambda: (mount.path / "new").mkdir(),
    ):
        with pytest.raises(OSError, match="Read-only") as refused:
            change()
        assert refused.value.errno == errno.EROFS
    mount.umount()
    assert bucket.sizes() == {"directory/file": 7}


def test_a_read_only_mount_sees_what_the_owner_does(new_mount: NewMount, tmp_path: Path) -> None:
    """New times alone, too, of a file that the kernel knows, also while that is open."""
    configuration = tmp_path / "fusefs.toml"
    configuration.write_text('[mount]\nrevalidate_interval = "1 s"\n')
    owner = new_mount().mount()
    (owner.path / "file").write_bytes(b"content")
    owner.remount()
    reader = new_mount(None, "--read-only", "--config", str(configuration)).mount()
    with (reader.path / "file").open("rb") as file:
        assert file.read() == b"content"
        os.utime(owner.path / "file", (1, 2))
        (owner.path / "file").chmod(0o600)

        def attributes() -> tuple[int, float]:
            os.listdir(reader.path)
            found = (reader.path / "file").stat()
            return found.st_mode & 0o777, found.st_mtime

        wait_until(lambda: attributes() == (0o600, 2), "the new attributes")


def test_shared_mounts_see_each_others_files(new_mount: NewMount, bucket: Bucket) -> None:
    """What one host closes, another one that opens it a little later has; what one removes is gone for the other."""
    (here, there) = [new_mount(None, "--shared").mount() for _ in range(2)]
    for round_ in range(3):
        content = b"round %d" % round_ * (round_ + 1)
        (here.path / "file").write_bytes(content)
        assert bucket.read("file") == content  # close(2) has waited for it
        wait_until(lambda: _read(there.path / "file") == content, "the other mount's content", seconds=5)  # noqa: B023
    (there.path / "directory").mkdir()
    (there.path / "file").rename(there.path / "directory" / "moved")
    wait_until(lambda: not (here.path / "file").exists(), "the end of the old name", seconds=5)
    assert (here.path / "directory" / "moved").read_bytes() == content


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def test_memory_store(new_mount: NewMount) -> None:
    """memory:// needs nothing, and forgets everything with the mount."""
    mount = new_mount("memory://").mount()
    (mount.path / "file").write_bytes(b"content" * MIB)
    assert (mount.path / "file").read_bytes() == b"content" * MIB
    mount.remount()
    assert os.listdir(mount.path) == []


def test_directory_store(new_mount: NewMount, tmp_path: Path) -> None:
    """file:// keeps each file as a file of the same name and bytes below its directory."""
    store = tmp_path / "bucket"
    store.mkdir()
    mount = new_mount(f"file://{store}").mount()
    (mount.path / "directory").mkdir()
    (mount.path / "directory" / "file").write_bytes(b"content")
    mount.umount()
    assert (store / "directory" / "file").read_bytes() == b"content"
    mount.mount_cold()
    assert (mount.path / "directory" / "file").read_bytes() == b"content"


def test_two_mounts_on_one_host(new_mount: NewMount, s3_server: SeaweedFS, bucket: Bucket) -> None:
    """Mounts of different prefixes do not disturb each other, not in one cache directory either."""
    one = new_mount(bucket.url + "one/").mount()
    two = new_mount(bucket.url + "two/")
    two.mount("--cache-dir", str(one.cache_dir))
    (one.path / "file").write_bytes(b"1")
    (two.path / "file").write_bytes(b"two")
    one.umount()
    assert (two.path / "file").read_bytes() == b"two"
    (two.path / "later").write_bytes(b"later")
    two.umount()
    files = {key: size for key, size in bucket.sizes().items() if "/.fusefs/" not in key}
    assert files == {"one/file": 1, "two/file": 3, "two/later": 5}


def test_umount_does_not_load_the_client_of_s3() -> None:
    """`fusefs umount` is quick: what only a mount needs is not imported for it."""
    program = "import sys, fusefs.cli; print([name for name in ('boto3', 'trio', 'pyfuse3') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "boto3" not in done.stdout
