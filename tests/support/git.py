"""A git repository in a directory of the test's choice, without anybody's settings."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Final

from tests.support.servers import program

_SECONDS: Final = 120.0
_COMMITS: Final = """
cd "$1" || exit 1
number=0
while :; do
    number=$((number + 1))
    echo "$2 $number" >"file$((number % 5))" && git add . && git commit --quiet --message "$number" &&
        git rev-parse HEAD || exit 1
done
"""


class Repository:
    """The working tree `directory`; `home` has the user's settings, of which there are none."""

    def __init__(self, directory: Path, home: Path) -> None:
        self.directory = directory
        self._environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_AUTHOR_NAME": "a",
            "GIT_AUTHOR_EMAIL": "a@example.com",
            "GIT_COMMITTER_NAME": "a",
            "GIT_COMMITTER_EMAIL": "a@example.com",
        }

    def init(self) -> None:
        """Make the repository, and its directory."""
        self.directory.mkdir()
        self.git("init", "--quiet")

    def git(self, *arguments: str) -> str:
        """Run git to its end, and return what it says."""
        done = subprocess.run(
            [program("git"), "-C", str(self.directory), *arguments],
            capture_output=True,
            text=True,
            env=self._environment,
            check=False,
            timeout=_SECONDS,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def commit_until_killed(
        self, salt: str, count: int, kill: Callable[[Callable[[], None]], None]
    ) -> list[str]:
        """Commit changes; after `count` of them call `kill`, with what kills git. Return the commits that were done."""
        command = ["sh", "-c", _COMMITS, "sh", str(self.directory), salt]
        with subprocess.Popen(
            command,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        ) as process:
            assert process.stdout is not None
            committed = [process.stdout.readline() for _ in range(count)]
            kill(lambda: os.killpg(process.pid, signal.SIGKILL))
            committed += process.stdout
        return [line.strip() for line in committed if line.endswith("\n")]

    def remove_locks(self) -> None:
        """Remove what a git that was killed has locked, as git says one should."""
        for lock in (self.directory / ".git").rglob("*.lock"):
            lock.unlink()
