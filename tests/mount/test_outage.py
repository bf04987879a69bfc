"""The store goes away and comes back while it is needed: what was to be done is done, and nothing is lost."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mount.conftest import NewMount
from tests.support.bucket import Bucket
from tests.support.mounts import wait_until
from tests.support.seaweedfs import SeaweedFS

MIB = 1024 * 1024


@pytest.fixture
def own_server() -> Iterator[SeaweedFS]:
    """A server that may be stopped without anybody else's noticing."""
    server = SeaweedFS()
    server.start()
    yield server
    server.close()


def _make_tree(root: Path) -> dict[str, bytes]:
    contents = {f"d{number % 7}/small-{number}": os.urandom(number * 17) for number in range(300)}
    contents |= {f"large-{number}": os.urandom(12 * MIB) for number in range(6)}
    for path, data in contents.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(data)
    return contents


def test_outage_in_the_middle_of_a_copy(own_server: SeaweedFS, new_mount: NewMount, tmp_path: Path) -> None:
    """The server is killed while a tree is being copied in, and started again: the copy finishes, all of it arrives."""
    contents = _make_tree(tmp_path / "original")
    bucket = Bucket(own_server.client(), own_server.bucket, "copy/")
    mount = new_mount(bucket.url, server=own_server).mount()
    copying = threading.Thread(target=shutil.copytree, args=(tmp_path / "original", mount.path / "copy"))
    copying.start()
    wait_until(lambda: len(bucket.sizes()) > 20, "the first files")
    own_server.kill()
    copying.join(timeout=2)
    own_server.start()
    copying.join(timeout=120)
    assert not copying.is_alive()
    mount.umount()
    files = [key for key in bucket.sizes() if not key.endswith("/")]
    assert sorted(files) == sorted(f"copy/{path}" for path in contents)
    for path, data in contents.items():
        assert bucket.read(f"copy/{path}") == data
    # One that was killed while it completed an upload may list that still; to abort it would cost it the object.
    assert len(bucket.unfinished_uploads()) <= 1


def test_outage_while_unmounting(own_server: SeaweedFS, new_mount: NewMount) -> None:
    """umount waits for the store to come back, and ends with everything published."""
    bucket = Bucket(own_server.client(), own_server.bucket, "unmounting/")
    mount = new_mount(bucket.url, server=own_server).mount()
    assert os.listdir(mount.path) == []  # so that the mount knows which names are free
    own_server.kill()
    contents = {f"file-{number}": os.urandom(1000 + number) for number in range(20)}
    for name, data in contents.items():
        (mount.path / name).write_bytes(data)
    unmounting = subprocess.Popen(
        mount.umount_command(), env=mount.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    with pytest.raises(subprocess.TimeoutExpired):
        unmounting.wait(timeout=2)
    own_server.start()
    assert unmounting.wait(timeout=120) == 0
    assert {name: bucket.read(name) for name in bucket.sizes()} == contents


def _waits_for_fuse(thread: threading.Thread) -> bool:
    return "fuse" in Path(f"/proc/self/task/{thread.native_id}/stack").read_text()


def test_many_who_wait_for_the_store_keep_nobody_else(own_server: SeaweedFS, new_mount: NewMount) -> None:
    """As many as a large server has processes: each takes a task of the daemon, and others are there for the rest."""
    bucket = Bucket(own_server.client(), own_server.bucket, "many/")
    for number in range(300):
        bucket.put(f"{number}/file", b"")
    mount = new_mount(bucket.url, server=own_server).mount()
    directories = [path for path in mount.path.iterdir() if path.is_dir()]
    own_server.kill()
    waiting = [threading.Thread(target=(path / "file").exists, daemon=True) for path in directories]
    other = threading.Thread(target=os.statvfs, args=(mount.path,), daemon=True)
    for thread in waiting:
        thread.start()
    wait_until(lambda: all(map(_waits_for_fuse, waiting)), "all of them")
    other.start()
    other.join(timeout=20)
    assert not other.is_alive()
    own_server.start()
    for thread in waiting:
        thread.join(timeout=120)
        assert not thread.is_alive()


def test_outage_that_does_not_end(own_server: SeaweedFS, new_mount: NewMount) -> None:
    """umount and SIGTERM end although the lease has lapsed, and say what is only in the log; the next mount has it."""
    bucket = Bucket(own_server.client(), own_server.bucket, "lapse/")
    mount = new_mount(bucket.url, server=own_server)
    daemon = mount.start("--retry-timeout", "2 s", "--publish-delay", "1 h", "--publish-interval", "1 h")
    with (mount.path / "file").open("wb") as file:
        file.write(b"bytes")
        file.flush()
        os.fsync(file.fileno())
        own_server.kill()
        wait_until(lambda: "the lease has lapsed" in mount.log, "the end of the lease")
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            os.fsync(file.fileno())
    refused = mount.run(mount.umount_command())
    assert refused.returncode == 1
    assert "Suspended" not in refused.stderr
    assert (
        f"the endpoint is {own_server.endpoint}; give this command again, or end the mount" in refused.stderr
    )
    assert refused.stderr.endswith(f"all the same with kill {daemon.pid}\n")
    assert mount.is_mounted
    daemon.send_signal(signal.SIGTERM)
    _, error = daemon.communicate(timeout=60)
    assert daemon.returncode == 1
    assert "1 change is in the log and not published yet" in error
    own_server.start()
    mount.mount()
    assert (mount.path / "file").read_bytes() == b"bytes"
    mount.umount()
    assert bucket.read("file") == b"bytes"
