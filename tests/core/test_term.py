"""Where terms keep their logs, and that the next one knows: in the bucket, on a disk, with a lease or not."""

from __future__ import annotations

import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import pytest
import trio

from backends.memory import MemoryStorage
from backends.metered import MeteredStorage
from fusefs.attributes import fresh
from fusefs.config import Config
from fusefs.content import Version
from fusefs.errors import MountError
from fusefs.inodes import Directory
from fusefs.log_reader import places
from fusefs.stores import OpenStore
from fusefs.term import Term, open_term
from tests.core.tree import bare_failures

DISK: Final = {"ack_after_upload": False}
UNLEASED: Final = {"lease": False}


class Bucket:
    """A bucket, and mounts of it that end without having published anything."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        meter = MeteredStorage(MemoryStorage())
        self._store = OpenStore(meter, meter)

    @asynccontextmanager
    async def term(self, host: str, **flags: object) -> AsyncIterator[Term]:
        """Be the writer, with the cache directory of a host."""
        config = Config.from_sources(
            url="s3://bucket",
            mountpoint=self._directory / "mnt",
            flags={"cache_dir": str(self._directory / host), **flags},
            environment={},
        )
        with bare_failures():
            async with (
                open_term(config, self._store, mount_id="mount", known_dead=()) as term,
                trio.open_nursery() as nursery,
            ):
                assert term is not None
                nursery.start_soon(term.committer.run)
                yield term
                nursery.cancel_scope.cancel()

    async def confirm(self, host: str, key: str, **flags: object) -> list[tuple[int, int]]:
        """Let a mount commit something; return which batches of earlier ones it had to recover."""
        async with self.term(host, **flags) as term:
            for position, _ in places(term.old):
                attributes = fresh(mode=stat.S_IFDIR | 0o755, uid=0, gid=0, now_ns=0)
                term.committer.recovered(Directory(number=2, attributes=attributes), position)
            term.committer.left_over(Version(key, "etag", 1), waits=True)
            await term.committer.commit()
            return counting(term)


def counting(term: Term) -> list[tuple[int, int]]:
    return [(position.epoch, position.sequence) for position, _ in places(term.old)]


@pytest.mark.parametrize("first", [{}, UNLEASED, DISK, {**DISK, **UNLEASED}], ids=str)
@pytest.mark.parametrize("second", [{}, UNLEASED, DISK, {**DISK, **UNLEASED}], ids=str)
@pytest.mark.parametrize("before", [False, True], ids=["new", "used before"])
async def test_no_log_is_forgotten(
    before: bool, first: dict[str, object], second: dict[str, object], tmp_path: Path
) -> None:
    """Two mounts die one after the other, each with a log that nobody else has; the third finds both."""
    bucket = Bucket(tmp_path)
    epoch = 1
    if before:
        async with bucket.term("host") as term:
            term.committer.restored()
        epoch = 2
    assert await bucket.confirm("host", "a", **first) == []
    assert await bucket.confirm("host", "b", **second) == [(epoch, 1)]
    async with bucket.term("host") as term:
        assert counting(term) == [(epoch, 1), (epoch + 1, 1)]


@pytest.mark.parametrize("first", [DISK, {**DISK, **UNLEASED}], ids=str)
async def test_a_host_without_the_disk_is_refused(first: dict[str, object], tmp_path: Path) -> None:
    """As long as the log there is needed, once a mount with a lease has seen it."""
    bucket = Bucket(tmp_path)
    await bucket.confirm("host", "a", **first)
    await bucket.confirm("host", "b")
    with pytest.raises(MountError, match=f"is in the log at .*{tmp_path}/host/log/"):
        async with bucket.term("elsewhere"):
            raise AssertionError("unreachable")
    async with bucket.term("host") as term:
        assert counting(term) == [(1, 1), (2, 1)]
