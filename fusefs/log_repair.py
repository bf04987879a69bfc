"""What can be saved of a log that is damaged, and making a mount possible again.

A mount reads no log of which it cannot read all that counts. Here it is read batch by batch, and the first damaged
one that counts is found. What is before it can be applied. What is behind it cannot, because a batch means something
only after all before it; so it is set aside, under `.fusefs/damaged/`, for whoever can mend it, and the log ends before
it. Nothing is deleted, and nothing changed before somebody says so.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from backends.base import CREATE_ONLY, ObjectStorage
from backends.errors import PreconditionFailed
from fusefs.errors import LogDamaged
from fusefs.journal_format import JOURNAL_PREFIX, Batch, Position, batch_key, encode
from fusefs.keys import RESERVED_PREFIX
from fusefs.log_reader import NOWHERE, LogReader

DAMAGED_PREFIX: Final = f"{RESERVED_PREFIX}damaged/"
"""Where batches are put that no mount can read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """How a log stands."""

    #: Batches that a mount can apply.
    readable: int
    #: The first that it cannot, and why; "" if there is none.
    damage: str = ""
    #: The damaged one, and all that come after it.
    lost: tuple[Position, ...] = ()
    #: The first that counts of those before it.
    first: Position = NOWHERE

    def __str__(self) -> str:
        """Return one line."""
        if not self.lost:
            return f"the log is whole: {self.readable} batches"
        return (
            f"{self.damage}. {self.readable} batches before it can be applied, {len(self.lost)} from there on cannot;"
            " --set-aside puts these away, and the next mount goes on without them"
        )


class LogRepair:
    """The log in one store. Nobody may be writing it."""

    def __init__(self, storage: ObjectStorage) -> None:
        self._storage = storage
        self._reader = LogReader(storage)

    async def diagnose(self) -> Diagnosis:
        """Read the whole log. Raises what the store raises."""
        positions = await self._reader.positions()
        damage: dict[Position, str] = {}
        continued: set[Position] = set()
        cutoff = NOWHERE
        for position in positions:
            try:
                batch = await self._reader.read(position)
            except LogDamaged as error:
                damage[position] = f"{batch_key(position)!r} is damaged: {error.__cause__}"
                continue
            if batch.is_continued:
                continued.add(position)
            elif not batch.is_seal:
                cutoff = max(cutoff, batch.cutoff)
        counting = [position for position in positions if position >= cutoff]
        first_damaged = next((position for position in counting if position in damage), None)
        if first_damaged is None:
            return Diagnosis(readable=len(counting))
        readable = [position for position in counting if position < first_damaged]
        while readable and readable[-1] in continued:
            readable.pop()  # it meant something only together with what cannot be read
        lost = tuple(counting[len(readable) :])
        return Diagnosis(
            readable=len(readable),
            damage=damage[first_damaged],
            lost=lost,
            first=readable[0] if readable else lost[0],
        )

    async def set_aside(self, found: Diagnosis) -> None:
        """Move what is lost out of the log, the last first, and let the log end there. Raises what the store raises."""
        for position in reversed(found.lost):
            key = batch_key(position)
            with suppress(PreconditionFailed):  # it is there already: an earlier call did not come to its end
                await self._storage.copy(key, _aside(key), mode=CREATE_ONLY)
            await self._storage.delete(key)
        closing = Batch(position=found.lost[0], cutoff=found.first)
        await self._storage.put(batch_key(closing.position), encode(closing), mode=CREATE_ONLY)


def _aside(key: str) -> str:
    return f"{DAMAGED_PREFIX}{key.removeprefix(JOURNAL_PREFIX)}"
