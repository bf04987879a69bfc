"""The loss of a mount that recovers: at every call of its recovery, and of the publications that follow.

What is to be recovered is all in the log, and in parts of uploads that nobody has completed: the mount before has
published nothing since. Whoever comes after the one that recovers finds the same, and so does the one after that.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Final

import pytest
from trio.testing import MockClock

from tests.core.history import History
from tests.core.losses import LOG_ALONE, check, die_at_every_call, live, look, twin
from tests.core.mortal import Death, MortalStorage
from tests.core.small_parts import SmallPartsStorage
from tests.core.test_log_crash import SCENARIOS, bucket
from tests.core.tree import open_tree
from tests.support.every_call import at_every_call

pytestmark = pytest.mark.usefixtures("small_parts", "quiet")

#: Of one kind each: names, directories, bytes of all sources, objects without a name, circles.
RECOVERED: Final = (
    "replace by rename",
    "cut and grow",
    "rename a directory",
    "remove while open",
    "swap",
    "stream",
    "cut a stream",
    "stream over what is published",
    "rename a stream",
    "rename a directory above a stream",
)


async def crashed(name: str, where: Path) -> tuple[SmallPartsStorage, History]:
    """Return a bucket as a mount leaves it that has done a scenario, and was lost when the log had all of it."""
    storage, history = await bucket(SCENARIOS[name])
    mortal = MortalStorage(storage)
    async with open_tree(mortal, where, LOG_ALONE) as tree:
        history.attend(tree)
        await SCENARIOS[name].act(history)
        await history.commit()
        mortal.die()
    return storage, history


@pytest.mark.parametrize("death", [Death.CALL_LOST, Death.ANSWER_LOST])
@pytest.mark.parametrize("name", RECOVERED)
async def test_a_recovery_may_die_at_every_call(
    name: str, death: Death, tmp_path: Path, autojump_clock: MockClock
) -> None:
    lost = await crashed(name, tmp_path / "lost")
    assert await die_at_every_call(partial(twin, *lost), look, death, tmp_path) >= 3


@pytest.mark.parametrize("name", RECOVERED)
async def test_one_recovery_after_the_other_dies(
    name: str, tmp_path: Path, autojump_clock: MockClock
) -> None:
    """Each a call later than the one before, on what that one has left."""
    storage, history = await twin(*await crashed(name, tmp_path / "lost"))
    await at_every_call(
        lambda call: live(storage, history, look, call, Death.ANSWER_LOST, tmp_path / f"{call}")
    )
    await check(storage, history, tmp_path / "last")
