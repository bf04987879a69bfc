"""Which log a disk has survives a crash of the machine, whoever was killed before while that was written down."""

from __future__ import annotations

import shutil
from contextlib import suppress
from functools import partial
from itertools import count
from pathlib import Path

import pytest

from fusefs.config import Config
from fusefs.disk_log import open_disk_log
from fusefs.stores import open_local
from tests.core.hosts import PromptDirectory
from tests.support.crashing_disk import Disk, Killed


async def identity_in(root: Path) -> str:
    """Return what a mount finds, or draws, whose cache directory is to be made below `root`."""
    config = Config.from_sources(
        url="s3://bucket",
        mountpoint=Path("/mnt"),
        flags={"cache_dir": str(root / "var" / "cache")},
        environment={},
    )
    async with open_disk_log(config) as log:
        return log.disk


async def test_an_identity_that_a_mount_has_seen_is_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lease names it then; if it were gone, the log would be taken for that of another disk."""
    monkeypatch.setattr("fusefs.disk_log.open_local", partial(open_local, kind=PromptDirectory))
    for call in count(0):
        root = tmp_path / f"{call}"
        root.mkdir()
        disk = Disk(root)
        disk.calls_left, killed = call, True
        with suppress(Killed), disk.watched(monkeypatch):
            await identity_in(root)
            killed = False
        disk.calls_left = None
        with disk.watched(monkeypatch):
            found = await identity_in(root)
        disk.image(tmp_path / "left", None)
        disk.close()
        assert await identity_in(tmp_path / "left") == found
        shutil.rmtree(tmp_path / "left")
        if not killed:
            assert call > 10
            return
