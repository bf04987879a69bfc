"""The command `fusefs mount` where it can do nothing: places that cannot be written, and a user who gives up."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.mount.conftest import NewMount
from tests.support.mounts import COMMAND_SECONDS
from tests.support.seaweedfs import ACCESS_KEY, SECRET_KEY


@pytest.mark.parametrize("foreground", [False, True])
@pytest.mark.parametrize("flag", ["--cache-dir", "--log-file"])
def test_a_place_that_cannot_be_written(
    new_mount: NewMount, tmp_path: Path, flag: str, *, foreground: bool
) -> None:
    """A cache directory or a log below a file is one line that names it, and exit status 1."""
    (tmp_path / "file").touch()
    place = tmp_path / "file" / "below"
    mount = new_mount("memory://", flag, str(place), *(["--foreground"] if foreground else []))
    done = mount.run(mount.mount_command())
    assert done.returncode == 1
    assert done.stderr.startswith("fusefs: ")
    assert done.stderr.count("\n") == 1
    assert f"{place}" in done.stderr
    assert not mount.is_mounted


def test_a_cache_directory_that_cannot_be_made(new_mount: NewMount, tmp_path: Path) -> None:
    """The complaint is about the cache directory, also where the log would go there."""
    (tmp_path / "file").touch()
    place = tmp_path / "file" / "below"
    mount = new_mount("memory://", "--cache-dir", str(place))
    done = mount.run(
        [part for part in mount.mount_command() if part not in ("--log-file", str(mount.log_file))]
    )
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert done.stderr.startswith(f"fusefs: the cache directory {place} cannot be used: ")


def test_no_directory_is_made_for_a_log(new_mount: NewMount, tmp_path: Path) -> None:
    """A mistyped name is told, and not made true."""
    place = tmp_path / "missing" / "log"
    mount = new_mount("memory://", "--log-file", str(place))
    done = mount.run(mount.mount_command())
    assert (done.returncode, done.stderr) == (
        1,
        f"fusefs: the log {place} cannot be written: No such file or directory\n",
    )
    assert not place.parent.exists()


def test_what_lies_in_the_working_directory_is_not_run(new_mount: NewMount, tmp_path: Path) -> None:
    """A module of the same name there is somebody else's."""
    (tmp_path / "fusefs.py").write_text("raise SystemExit('not this one')\n")
    mount = new_mount("memory://")
    _, _, _, *arguments = mount.mount_command()
    command = [str(Path(sys.executable).with_name("fusefs")), *arguments]
    subprocess.run(
        command, cwd=tmp_path, env=mount.environment, check=True, capture_output=True, timeout=COMMAND_SECONDS
    )
    assert mount.is_mounted


def test_the_working_directory_is_not_kept_busy(new_mount: NewMount, tmp_path: Path) -> None:
    """By the daemon, which finds what was named relative to it all the same, by the environment included."""
    (tmp_path / "credentials").write_text(
        f"[default]\naws_access_key_id = {ACCESS_KEY}\naws_secret_access_key = {SECRET_KEY}\n"
    )
    mount = new_mount(None, "--cache-dir", "cache", "--log-file", "log")
    del mount.environment["AWS_SECRET_ACCESS_KEY"], mount.environment["AWS_ACCESS_KEY_ID"]
    mount.environment["AWS_SHARED_CREDENTIALS_FILE"] = "credentials"
    subprocess.run(
        mount.mount_command(), cwd=tmp_path, env=mount.environment, check=True, timeout=COMMAND_SECONDS
    )
    assert os.readlink(f"/proc/{mount.pid}/cwd") == "/"
    assert (tmp_path / "cache" / "mounts").is_dir()
    assert (tmp_path / "log").is_file()


def test_two_hyphens_end_the_flags(new_mount: NewMount) -> None:
    """What follows them is the URL and the mount point, as for any command, also in the background."""
    mount = new_mount("memory://")
    python, dash, program, command, url, path, *flags = mount.mount_command()
    done = mount.run([python, dash, program, command, *flags, "--", url, path])
    assert (done.returncode, done.stderr) == (0, "")
    assert mount.is_mounted


@pytest.mark.parametrize("flags", [[], ["--foreground"]])
def test_what_is_not_as_it_should_be_is_said_once(
    new_mount: NewMount, tmp_path: Path, flags: list[str]
) -> None:
    """By the command, in a line as its others, and not by the daemon again."""
    path = tmp_path / "fusefs.toml"
    path.write_text("[system.storage.object.credentials]\naccess_key = 'x'\nsecret_key = 'y'\n")
    path.chmod(0o644)
    mount = new_mount(f"file://{tmp_path}/missing", "--config", str(path), *flags)
    done = mount.run(mount.mount_command())
    assert done.returncode == 1
    warning, error = done.stderr.splitlines()
    assert warning == f"fusefs: {path}: holds secret_key and everybody may read it; chmod 600 would be better"
    assert error.startswith(f"fusefs: {mount.url}: ")


@pytest.mark.parametrize("closed", ["2>&-", "<&- >&- 2>&-"])
def test_standard_descriptors_may_be_closed(new_mount: NewMount, closed: str) -> None:
    mount = new_mount("memory://")
    without = ["bash", "-c", f'exec "$@" {closed}', "bash"]
    assert mount.run([*without, *mount.mount_command()]).returncode == 0
    assert mount.is_mounted
    assert mount.run([*without, *mount.umount_command()]).returncode == 0
    assert not mount.is_mounted


@pytest.mark.usefixtures("hangup_is_heard")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_whoever_stops_waiting_leaves_no_daemon_behind(new_mount: NewMount, number: signal.Signals) -> None:
    """The mount does not come later, by Ctrl-C, timeout(1) or the end of the terminal."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        mount = new_mount("s3://bucket", "--endpoint", endpoint)
        command = subprocess.Popen(mount.mount_command(), env=mount.environment, stderr=subprocess.PIPE)
        silent.settimeout(COMMAND_SECONDS)
        connection, _ = silent.accept()  # the daemon is asking
        with connection:
            command.send_signal(number)
            assert command.wait(COMMAND_SECONDS) == 1
            mount.wait_for_end()
        command.communicate()
    assert not mount.is_mounted


def test_ctrl_c_ends_the_wait_for_a_lease(new_mount: NewMount, tmp_path: Path) -> None:
    """In the foreground, too, it is no defect of which there would be a traceback."""
    (tmp_path / "bucket").mkdir()
    first, second = (new_mount(f"file://{tmp_path}/bucket", "--lease-term", "1 min") for _ in range(2))
    first.mount()
    first.kill()
    with subprocess.Popen(
        second.mount_command("--foreground", "--log-level", "warning"),
        env=second.environment,
        stderr=subprocess.PIPE,
        text=True,
    ) as command:
        assert command.stderr is not None
        assert "waiting for the lease" in command.stderr.readline()
        command.send_signal(signal.SIGINT)
        _, errors = command.communicate(timeout=COMMAND_SECONDS)
    assert (command.returncode, errors.split()) == (1, ["Aborted!"])


def test_a_daemon_that_is_killed_before_it_answers(new_mount: NewMount) -> None:
    """The last line says so, and the exit status is that of a mount that could not be made."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        mount = new_mount("s3://bucket", "--endpoint", endpoint)
        command = subprocess.Popen(
            mount.mount_command(), env=mount.environment, stderr=subprocess.PIPE, text=True
        )
        silent.settimeout(COMMAND_SECONDS)
        connection, _ = silent.accept()  # the daemon is asking
        with connection:
            os.kill(mount.pid, signal.SIGKILL)
            _, errors = command.communicate(timeout=COMMAND_SECONDS)
    assert command.returncode == 1
    assert errors == (
        "fusefs: the process of the mount was ended by a signal (Killed) before it answered; mount again\n"
    )
