"""The loss of a mount that takes over: at every call, from the first look for the lease until it is given back.

The mount before died with a lease that is not given back, and with everything in its log. Whoever takes over waits for
the end of its term, ends its log with a seal, recovers, publishes, empties the old log, and tells the lease that there
is none any more. Wherever it dies in that, the next one finds the same tree; in the end the bucket is that tree, no
log is left, and the lease names none.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import Final

import pytest
from trio.testing import MockClock

from tests.core.history import History, State
from tests.core.hosts import BUCKET, Prefix, SlowStorage
from tests.core.losses import LOG_ALONE, OPTIONS, look
from tests.core.mortal import Death
from tests.core.test_log_crash import SCENARIOS, bucket
from tests.support.every_call import at_every_call, noted

pytestmark = pytest.mark.usefixtures("small_parts", "quiet")

#: Of one kind each: bytes alone, names, directories, several names, parts of uploads.
TAKEN_OVER: Final = (
    "change in place",
    "replace by rename",
    "rename a directory",
    "hard link",
    "rotate a stream",
)


async def crashed(
    name: str, where: Path, patch: pytest.MonkeyPatch, flags: Mapping[str, object] = BUCKET
) -> tuple[Prefix, State]:
    """Return a prefix as a mount of host `a` leaves it that was lost when the log had all of a scenario."""
    storage, history = await bucket(SCENARIOS[name])
    prefix = Prefix(storage, where, patch, over_bucket=SlowStorage)
    await prefix.lose("a", history, SCENARIOS[name].act, LOG_ALONE, flags)
    return prefix, history.states[-1]


@pytest.mark.parametrize("death", [Death.CALL_LOST, Death.ANSWER_LOST, Death.HALF_DONE])
@pytest.mark.parametrize("name", TAKEN_OVER)
async def test_a_takeover_may_die_at_every_call(
    name: str,
    death: Death,
    tmp_path: Path,
    autojump_clock: MockClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And so may the one after it, at any call of its own."""
    random = Random(name)
    lost, state = await crashed(name, tmp_path / "lost", monkeypatch)

    async def die_twice_and_look(call: int) -> bool:
        prefix, history = lost.twin(tmp_path / f"{call}"), History({})
        history.resume(state)
        has_died = await prefix.live("b", history, look, OPTIONS, call=call, death=death)
        next_call = random.randint(1, 40)
        with noted(f"the mount after the one that took over has died at call {next_call}"):
            await prefix.live("c", history, look, OPTIONS, call=next_call, death=death)
            await prefix.check(history, "d")
        return has_died

    await at_every_call(die_twice_and_look)
