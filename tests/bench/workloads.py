"""What is done on every file system, by name: each workload is a function of an `Arena`.

Calls that a program makes to be sure (fsync) are checked against the loss of the host; the others against a clean
unmount, with an empty cache, and in the objects.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from tests.bench.arena import Arena
from tests.bench.commit_workloads import appends, commits, large_append
from tests.bench.file_workloads import listings, renames, small_files, tree
from tests.bench.server_workloads import git, postgresql, redis, sqlite
from tests.bench.stream_workloads import stream

WORKLOADS: Final[Mapping[str, Callable[[Arena], None]]] = {
    "commits": commits,
    "sqlite": sqlite,
    "appends": appends,
    "postgresql": postgresql,
    "redis": redis,
    "small-files": small_files,
    "stream": stream,
    "large-append": large_append,
    "tree": tree,
    "listings": listings,
    "renames": renames,
    "git": git,
}
"""What says most comes first: time may end before all is done."""

LIMITED: Final[Mapping[str, tuple[str, ...]]] = {
    "null": ("commits", "appends", "small-files", "stream"),
    "fusefs-local": ("commits", "sqlite", "redis", "postgresql"),
}
"""File systems that say something about a few of them only."""
