"""`fusefs status`: what a user is told of a mount that runs."""

from __future__ import annotations

import json
import os
import pwd
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from fusefs import cli
from tests.mount.conftest import NewMount
from tests.support.bucket import Bucket
from tests.support.mounts import Mount, wait_until


def _status(mount: Mount, *flags: str) -> list[str]:
    done = mount.run([sys.executable, "-m", "fusefs", "status", str(mount.path), *flags])
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def _as_json(mount: Mount) -> Any:
    return json.loads("\n".join(_status(mount, "--json")))


def _write_synced(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def test_what_is_not_in_the_bucket_yet(new_mount: NewMount) -> None:
    """It is in the log; when it is published, nothing is left."""
    mount = new_mount().mount("--publish-interval", "1 h", "--publish-delay", "1 h")
    _write_synced(mount.path / "file", b"old")
    wait_until(lambda: _as_json(mount)["unpublished"]["changes"] == 0, "the first publication")
    _write_synced(mount.path / "file", b"x" * 100_000)
    told = _as_json(mount)
    assert told["url"] == mount.url.rstrip("/")
    assert (told["mountpoint"], told["mode"], told["pid"]) == (str(mount.path), "default", mount.pid)
    assert told["unpublished"] == {
        "changes": 1,
        "bytes": 100_000,
        "deletions": 0,
        "under_way": 0,
        "failing": 0,
        "renamed_directories": 0,
    }
    assert told["log"]["place"] == "the bucket"
    assert told["log"]["batches"] >= 1
    assert told["log"]["bytes"] >= 100_000
    assert 0 <= told["log"]["age_seconds"] <= told["uptime_seconds"]
    assert told["log"]["unlogged_bytes"] == 0
    assert told["lease"]["held"]
    assert told["lease"]["term"] == 1
    assert told["lease"]["lost"] is None
    assert told["requests"]["bytes_sent"] >= 100_000
    assert told["last_warning"] is None
    assert len(_status(mount)) == 5
    assert "1 change with 97.7 KiB" in _status(mount)[1]


def test_mounts_without_a_log(new_mount: NewMount) -> None:
    mount = new_mount(None, "--shared").mount()
    told = _as_json(mount)
    assert (told["mode"], told["log"], told["lease"]) == ("shared", None, None)


def test_without_a_lease_and_with_a_log_on_the_disk(new_mount: NewMount) -> None:
    mount = new_mount(None, "--no-lease", "--no-ack-after-upload").mount()
    told = _as_json(mount)
    assert told["lease"] is None
    assert str(mount.cache_dir) in told["log"]["place"]


def test_what_failed_last(new_mount: NewMount, bucket: Bucket) -> None:
    """Somebody else's object is in the way of ours, and that is what the log says, too."""
    mount = new_mount().mount()
    assert os.listdir(mount.path) == []
    bucket.put("file", b"theirs")
    (mount.path / "file").write_bytes(b"ours")
    wait_until(lambda: _as_json(mount)["last_warning"], "the conflict")
    told = _as_json(mount)["last_warning"]
    assert told["level"] == "error"
    assert "'file' was changed by somebody else" in told["message"]
    assert told["message"] in mount.log


def test_where_nothing_is_mounted(new_mount: NewMount, tmp_path: Path) -> None:
    mount = new_mount()
    done = mount.run([sys.executable, "-m", "fusefs", "status", str(tmp_path)])
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == f"fusefs: nothing is mounted on {tmp_path}\n"


@pytest.mark.parametrize("command", ["status", "umount"])
def test_a_mount_of_something_else(command: str) -> None:
    assert _refusal(command, Path("/proc")) == "fusefs: what is mounted on /proc is not of fusefs (proc)\n"


@pytest.mark.parametrize("command", ["status", "umount"])
def test_a_mount_of_somebody_else(new_mount: NewMount, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    """Its daemon listens where only that user looks, who is named."""
    mount = new_mount().mount()
    with monkeypatch.context() as patch:
        patch.setattr(os, "getuid", lambda: 4_000_000)
        said = _refusal(command, mount.path)
    owner = pwd.getpwuid(os.getuid()).pw_name
    assert said == f"fusefs: {mount.path} was mounted by the user {owner}; give this command as that user\n"
    assert mount.is_mounted


@pytest.mark.parametrize("command", ["status", "umount"])
def test_a_mount_whose_daemon_is_gone(new_mount: NewMount, command: str) -> None:
    mount = new_mount().mount()
    os.kill(mount.pid, signal.SIGKILL)
    mount.wait_for_end()
    said = _refusal(command, mount.path)
    assert f"{mount.path} holds a mount whose daemon is gone; remove it with: fusermount3 -uz" in said


def _refusal(command: str, path: Path) -> str:
    done = CliRunner().invoke(cli.main, [command, str(path)])
    assert done.exit_code == 1
    return done.output
