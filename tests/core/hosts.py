"""Hosts that mount one bucket one after the other as a mount does: with lease, and log in the bucket or on a disk.

    prefix = Prefix(storage, tmp_path)
    await prefix.live("a", history, act, options, call=7, death=Death.CALL_LOST, flags=DISK)
    async with prefix.mounted("b", options) as tree: ...

Every call of a mount counts, at the bucket and at the log on its disk, from the first look for the lease until that
is given back. A host has a disk of its own, which outlives its mounts; between two mounts of one host no time passes,
since each knows that the one before is dead, and others wait for the end of its term.
"""

from __future__ import annotations

import functools
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, ParamSpec

import pytest
import trio

from backends.base import GIB, ObjectStorage
from backends.directory import DirectoryStorage
from backends.directory_files import translate
from backends.intercepted import InterceptedStorage, Request, T
from backends.metered import MeteredStorage
from fusefs.committer import Committer
from fusefs.config import Config
from fusefs.keys import RESERVED_PREFIX
from fusefs.lease_record import LeaseRecord
from fusefs.log_places import old_log_parts
from fusefs.old_logs import LogPart
from fusefs.stage_budget import StageBudget
from fusefs.start_progress import StartProgress
from fusefs.stores import OpenStore, open_local
from fusefs.term import open_term
from tests.core.history import History
from tests.core.leases import record_in
from tests.core.losses import OPTIONS, PATIENCE_SECONDS, check_bucket, settle
from tests.core.mortal import READING, Death, Life, MortalStorage
from tests.core.small_parts import SmallPartsStorage
from tests.core.tree import Tree, TreeOptions, open_tree

_P = ParamSpec("_P")

DISK: Final[Mapping[str, object]] = {"ack_after_upload": False}
BUCKET: Final[Mapping[str, object]] = {}

RENEWED_SECONDS: Final = 6.0
"""Within which the lease is renewed, or a log of which nothing is needed is emptied and the lease says so."""

NEVER: Final = 1_000_000
"""A call that no mount lives long enough to make."""


class PromptDirectory(DirectoryStorage):
    """The store in a directory with no threads: while it writes, no time passes on trio's clock."""

    async def _run(self, call: Callable[_P, T], *args: _P.args, **kwargs: _P.kwargs) -> T:
        await trio.lowlevel.checkpoint()
        try:
            return call(*args, **kwargs)
        except OSError as error:
            raise translate(error, self._root) from error


class SlowStorage(InterceptedStorage):
    """Takes so long for each object of a file that the lease is renewed meanwhile."""

    async def _carry_out(self, request: Request, send: Callable[[], Awaitable[T]]) -> T:
        if request.verb not in READING and not request.key.startswith(RESERVED_PREFIX):
            await trio.sleep(RENEWED_SECONDS)
        return await send()


@dataclass
class Prefix:
    """A bucket, and the disks of all its hosts."""

    storage: SmallPartsStorage
    directory: Path
    patch: pytest.MonkeyPatch
    #: What is between a mount and the bucket, and between it and the store on its disk.
    over_bucket: Callable[[ObjectStorage], ObjectStorage] = lambda bucket: bucket
    over_disk: Callable[[ObjectStorage], ObjectStorage] = lambda disk: disk
    #: Of each host, which mounts have died there.
    _dead: dict[str, list[str]] = field(default_factory=dict)
    _mounts: int = 0

    def config(self, host: str, flags: Mapping[str, object] = BUCKET) -> Config:
        """What a mount of a host is told."""
        return Config.from_sources(
            url="s3://bucket",
            mountpoint=self.directory / "mnt",
            flags={"cache_dir": str(self.directory / host), **flags},
            environment={},
        )

    @asynccontextmanager
    async def mounted(
        self, host: str, options: TreeOptions, life: Life | None = None, flags: Mapping[str, object] = BUCKET
    ) -> AsyncIterator[Tree]:
        """Mount at a host for the block. Raises `MountError`."""
        self._mounts += 1
        mount_id = f"{host}-{self._mounts}"
        known_dead = tuple(self._dead.setdefault(host, []))
        self._dead[host].append(mount_id)
        life = life or Life()
        self.patch.setattr("fusefs.disk_log.open_local", functools.partial(self._open_disk, life))
        way = MortalStorage(self.over_bucket(self.storage), life)
        meter = MeteredStorage(way)
        async with open_term(
            self.config(host, flags),
            OpenStore(meter, meter),
            mount_id=mount_id,
            known_dead=known_dead,
            budget=StageBudget(GIB),
            progress=StartProgress(lambda line: None, trio.current_time),
        ) as term:
            assert term is not None
            options = replace(options, term=term, mount_id=mount_id)
            async with open_tree(way, self.directory / mount_id, options) as tree:
                yield tree

    @asynccontextmanager
    async def log_parts(
        self, host: str, flags: Mapping[str, object] = BUCKET
    ) -> AsyncIterator[list[LogPart]]:
        """Open the logs for the block that a mount of a host would read."""
        self.patch.setattr("fusefs.disk_log.open_local", functools.partial(self._open_disk, Life()))
        async with old_log_parts(self.config(host, flags), self.storage) as parts:
            yield parts

    def twin(self, directory: Path) -> Prefix:
        """Return another bucket, and other disks, that have what these have at this moment."""
        for host in self._dead:
            shutil.copytree(self.directory / host, directory / host)
        return replace(
            self,
            storage=self.storage.twin(),
            directory=directory,
            _dead={host: list(dead) for host, dead in self._dead.items()},
        )

    async def live(
        self,
        host: str,
        history: History,
        act: Callable[[History], Coroutine[Any, Any, None]],
        options: TreeOptions,
        *,
        call: int = NEVER,
        death: Death = Death.CALL_LOST,
        flags: Mapping[str, object] = BUCKET,
        resting_seconds: float = RENEWED_SECONDS,
    ) -> bool:
        """Let a mount die at a call; return whether it did before it had nothing more to do and ended well.

        Before it ends, it has nothing to do for `resting_seconds`.
        """
        life = Life()
        life.die_at(call, death)
        async with life.lived(), self.mounted(host, options, life, flags) as tree:
            history.attend(tree)
            with trio.fail_after(PATIENCE_SECONDS):
                await act(history)
                await tree.publish_all()
                await trio.sleep(resting_seconds)
                if isinstance(tree.log, Committer):
                    await tree.log.finish()  # as a mount does
        uploads = await self.storage.list_multipart_uploads()
        history.uploads += [(upload.key, upload.upload_id) for upload in uploads]
        return life.dead.is_set()

    async def lose(
        self,
        host: str,
        history: History,
        act: Callable[[History], Coroutine[Any, Any, None]],
        options: TreeOptions,
        flags: Mapping[str, object] = BUCKET,
    ) -> None:
        """Let a mount die when the log has all that was done."""
        life = Life()
        async with life.lived(), self.mounted(host, options, life, flags) as tree:
            history.attend(tree)
            await act(history)
            await history.commit()
            await life.end()

    async def check(self, history: History, host: str, flags: Mapping[str, object] = BUCKET) -> None:
        """The next mount shows a state that is allowed, publishes it, and leaves nothing else behind."""
        async with self.mounted(host, OPTIONS, flags=flags) as tree:
            await settle(self.storage, history, tree)
        await check_bucket(self.storage, history, self.directory / "look")
        lease = await self.lease()
        assert (lease.released, lease.logs) == (True, ())

    def _open_disk(self, life: Life, directory: Path) -> ObjectStorage:
        return MortalStorage(self.over_disk(open_local(directory, PromptDirectory)), life)

    async def lease(self) -> LeaseRecord:
        """Return what the lease says."""
        return await record_in(self.storage)
