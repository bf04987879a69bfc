"""A log on the local disk: its mount dies at every call, of the bucket or of the disk, and the disk survives.

The next mount of that host must show the tree as it was at one moment, not before what was acknowledged last, publish
it, and leave neither log nor trace of one. A mount that does not have the disk is refused, or there is nothing that
it would lack.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Final

import pytest
import trio
from trio.testing import MockClock

from backends.base import ObjectStorage
from backends.errors import StorageError
from fusefs.errors import MountError
from tests.core.history import History
from tests.core.hosts import BUCKET, DISK, Prefix
from tests.core.losses import OPTIONS, look
from tests.core.mortal import Death
from tests.core.test_log_crash import SCENARIOS, bucket
from tests.core.tree import bare_failures
from tests.support.every_call import at_every_call, noted
from tests.support.faulty import FaultyStorage

pytestmark = pytest.mark.usefixtures("small_parts", "quiet")

DEATHS: Final = (Death.CALL_LOST, Death.ANSWER_LOST, Death.HALF_DONE)

#: Of one kind each: a new file, bytes of all sources, names, parts of uploads.
ON_DISK: Final = ("create", "change in place", "replace by rename", "stream")


async def check_without_disk(prefix: Prefix, history: History, directory: Path) -> None:
    """A mount of another host is refused with a line that names the log, or has all that was acknowledged."""
    twin, same = prefix.twin(directory), History({})
    same.states, same.acknowledged = list(history.states), history.acknowledged
    refusal: MountError | None = None
    try:
        with bare_failures():
            await twin.live("elsewhere", same, look, OPTIONS)
    except MountError as error:
        refusal = error
    assert refusal is None or f":{prefix.directory}/a/log/" in str(refusal)


@pytest.mark.parametrize("death", DEATHS)
@pytest.mark.parametrize("name", ON_DISK)
async def test_a_mount_may_die_at_every_call(
    name: str,
    death: Death,
    tmp_path: Path,
    autojump_clock: MockClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The next one may have its log in the bucket, and die as well."""
    random = Random(name)

    async def die_twice_and_look(call: int) -> bool:
        storage, history = await bucket(SCENARIOS[name])
        prefix = Prefix(storage, tmp_path / f"{call}", monkeypatch)
        has_died = await prefix.live(
            "a", history, SCENARIOS[name].act, OPTIONS, call=call, death=death, flags=DISK
        )
        next_call, next_flags = random.randint(1, 40), random.choice([DISK, BUCKET])
        with noted(f"the next mount, with {next_flags}, has died at call {next_call}"):
            await check_without_disk(prefix, history, tmp_path / f"{call}-elsewhere")
            await prefix.live("a", history, look, OPTIONS, call=next_call, death=death, flags=next_flags)
            await check_without_disk(prefix, history, tmp_path / f"{call}-elsewhere-later")
            await prefix.check(history, "a", random.choice([DISK, BUCKET]))
        return has_died

    await at_every_call(die_twice_and_look)


class Insistent(History):
    """Asks for an fsync again that has failed, as long as it takes."""

    async def fsync(self, handle: int) -> None:
        await _until_it_succeeds(lambda: super(Insistent, self).fsync(handle))

    async def commit(self) -> None:
        await _until_it_succeeds(super().commit)


async def _until_it_succeeds(call: Callable[[], Awaitable[None]]) -> None:
    while True:
        try:
            return await call()
        except StorageError:
            await trio.sleep(1)


@dataclass
class OneFault:
    """Lets one call of a disk fail."""

    call: int
    answer_lost: bool
    disk: FaultyStorage | None = None

    def __call__(self, disk: ObjectStorage) -> ObjectStorage:
        if self.disk is not None:
            return disk
        self.disk = FaultyStorage(disk)
        self.disk.fail(StorageError, call=self.call, answer_lost=self.answer_lost)
        return self.disk


@pytest.mark.parametrize("answer_lost", [False, True], ids=["lost", "done and done again"])
@pytest.mark.parametrize("name", ["create", "change in place", "stream"])
async def test_every_call_of_the_disk_may_fail(
    name: str,
    answer_lost: bool,
    tmp_path: Path,
    autojump_clock: MockClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A mount that cannot begin says so; one that lives goes on, and what it acknowledges is there when it dies."""

    async def fail_and_look(call: int) -> bool:
        fault = OneFault(call, answer_lost)
        storage, _ = await bucket(SCENARIOS[name])
        history = Insistent(SCENARIOS[name].before)
        prefix = Prefix(storage, tmp_path / f"{call}", monkeypatch, over_disk=fault)
        with suppress(MountError), bare_failures():
            await prefix.lose("a", history, SCENARIOS[name].act, OPTIONS, DISK)
        await prefix.check(history, "a")
        assert fault.disk is not None
        return not fault.disk.faults_left

    assert await at_every_call(fail_and_look) >= 4
