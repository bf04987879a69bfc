"""scripts/run does what its first lines say, asks nothing, and installs nothing twice.

What it calls outside the repository (Debian's and Python's installers, the mount itself) is replaced by small programs
that write down how they were called; .ci/run on a new machine is the test with the real ones.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

_STUBS = {
    # Every package of the list is installed, unless its name is in the file "missing".
    "dpkg-query": 'grep -qxF "${@: -1}" "$STATE/missing" && exit 1; echo installed',
    "apt-get": 'echo "apt-get ${*: -1}" >>"$STATE/calls"',
    "id": 'cat "$STATE/user"',
    "sudo": "exit 1",
    "findmnt": 'cat "$STATE/mounted" 2>/dev/null',
    # As the kernel: what it knows of a mount's root it tells without asking anybody.
    "stat": '[ "$1" != --file-system ] || ! [ -e "$STATE/dead" ]',
    "python3": """
        [ "$1" = -m ] || exit 0
        mkdir -p "${@: -1}/bin"
        cp "$STUBS/venv-python" "${@: -1}/bin/python"
        cp "$STUBS/venv-fusefs" "${@: -1}/bin/fusefs"
        echo "#!${@: -1}/bin/python" >"${@: -1}/bin/pip"
    """,
    "venv-python": '[ "$1" = -m ] && echo "pip ${*: -1}" >>"$STATE/calls"; exit 0',
    "venv-fusefs": 'echo "fusefs $*" >>"$STATE/calls"',
}


class Machine:
    """A home, a clone of the scripts, and programs that only take notes."""

    def __init__(self, place: Path) -> None:
        self.home, self.clone, self._state = place / "home", place / "clone", place / "state"
        for directory in (self.home, self.clone, self._state):
            directory.mkdir()
        shutil.copytree(ROOT / "scripts", self.clone / "scripts")
        shutil.copy(ROOT / "pyproject.toml", self.clone)
        self._stubs = place / "stubs"
        self._stubs.mkdir()
        for name, body in _STUBS.items():
            program = self._stubs / name
            program.write_text(f"#!/bin/bash\n{body}\n")
            program.chmod(0o755)
        self.set("missing", "")
        self.set("user", "0\n")

    def set(self, what: str, content: str) -> None:
        (self._state / what).write_text(content)

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {
            "PATH": f"{self._stubs}:{os.environ['PATH']}",
            "HOME": str(self.home),
            "STATE": str(self._state),
            "STUBS": str(self._stubs),
        }
        return subprocess.run(
            [self.clone / "scripts" / "run", *arguments],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def calls(self) -> list[str]:
        """Return what was called since the last time."""
        path = self._state / "calls"
        calls = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return calls


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_without_arguments_the_embedded_bucket_is_mounted(machine: Machine) -> None:
    ended = machine.run()
    assert ended.returncode == 0, ended.stderr
    bucket, mountpoint = machine.home / ".local/share/fusefs/bucket", machine.home / "fusefs"
    assert bucket.is_dir()
    assert mountpoint.is_dir()
    assert machine.calls() == [f"pip {machine.clone}", f"fusefs mount file://{bucket} {mountpoint}"]
    assert f"{machine.clone}/.venv/bin/fusefs umount {mountpoint}" in ended.stdout
    assert f"{machine.clone}/scripts/run s3://BUCKET/PREFIX MOUNTPOINT" in ended.stdout


def test_the_embedded_bucket_is_not_mounted_over_the_clone(machine: Machine) -> None:
    machine.clone = machine.clone.rename(machine.home / "fusefs")
    ended = machine.run()
    assert ended.returncode == 0, ended.stderr
    assert machine.calls()[-1].endswith(f" {machine.home}/fusefs-bucket")


def test_arguments_are_those_of_fusefs_mount(machine: Machine) -> None:
    ended = machine.run(
        "s3://bucket/prefix", str(machine.home), "--endpoint", "http://store:1", "--read-only"
    )
    assert ended.returncode == 0, ended.stderr
    command = f"fusefs mount s3://bucket/prefix {machine.home} --endpoint http://store:1 --read-only"
    assert machine.calls()[-1] == command


def test_the_second_run_installs_nothing(machine: Machine) -> None:
    machine.run()
    machine.calls()
    machine.run()
    assert [call.split()[0] for call in machine.calls()] == ["fusefs"]


def test_other_dependencies_are_installed_again(machine: Machine) -> None:
    machine.run()
    machine.calls()
    (machine.clone / "pyproject.toml").write_text("[project]\n")
    machine.run()
    assert [call.split()[0] for call in machine.calls()] == ["pip", "fusefs"]


def test_a_clone_that_was_moved_is_installed_again(machine: Machine) -> None:
    machine.run()
    machine.calls()
    machine.clone = machine.clone.rename(machine.clone.with_name("moved"))
    machine.run()
    assert [call.split()[0] for call in machine.calls()] == ["pip", "fusefs"]


def test_only_missing_packages_are_installed(machine: Machine) -> None:
    machine.set("missing", "libfuse3-dev\n")
    machine.run()
    assert machine.calls()[0] == "apt-get libfuse3-dev"


def test_a_missing_package_without_root_is_named(machine: Machine) -> None:
    machine.set("missing", "libfuse3-dev\ngcc\n")
    machine.set("user", "1000\n")
    ended = machine.run()
    assert ended.returncode == 1
    assert ended.stderr == (
        "run: these packages are missing and need root: apt-get install libfuse3-dev gcc\n"
    )
    assert machine.calls() == []


def test_what_is_mounted_already_stays(machine: Machine) -> None:
    machine.run()
    machine.calls()
    machine.set("mounted", "file:///srv/bucket\n")
    ended = machine.run()
    assert ended.returncode == 0
    assert ended.stdout.startswith(f"file:///srv/bucket is mounted on {machine.home}/fusefs already\n")
    assert machine.calls() == []


def test_the_mount_of_a_process_that_is_gone_is_left_to_the_command(machine: Machine) -> None:
    """It is removed by `fusefs mount`, which mounts in its place."""
    machine.run()
    machine.calls()
    machine.set("mounted", "file:///srv/bucket\n")
    machine.set("dead", "")
    ended = machine.run()
    assert ended.returncode == 0, ended.stderr
    [call] = machine.calls()
    assert call == f"fusefs mount file://{machine.home}/.local/share/fusefs/bucket {machine.home}/fusefs"


@pytest.mark.parametrize(
    "arguments",
    [
        ("s3://bucket",),
        ("--help",),
        ("--read-only", "s3://bucket", "/mnt"),
        ("s3://bucket", "--region", "eu-central-1"),
    ],
)
def test_arguments_that_cannot_be_meant_are_refused(machine: Machine, arguments: tuple[str, ...]) -> None:
    ended = machine.run(*arguments)
    assert ended.returncode == 1
    assert ended.stderr.startswith("run: usage: ")
    assert machine.calls() == []


@pytest.mark.parametrize(
    "script", ["scripts/setup", "scripts/run", "scripts/test", "scripts/bench", ".ci/run"]
)
def test_a_script_is_valid_bash(script: str) -> None:
    subprocess.run(["bash", "-n", ROOT / script], check=True, timeout=60)
    assert script == "scripts/setup" or os.access(ROOT / script, os.X_OK)
