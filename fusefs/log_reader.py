"""Reads the logs of earlier terms: which of their batches count, in order, and the seal that ends a term.

Of the objects below the journal's prefix not all count. Batches that are not needed any more may be there still, with
holes where others of them are deleted already; and of batches that were on their way when their writer died some may
have arrived without those before them. A *run* is a stretch without gaps. The log of a term is the last run that
reaches back to the cutoff which its own last commit names, up to that commit; what is before its cutoff, and the runs
before and behind it, are left out.

Nothing is written but seals.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from backends.base import CREATE_ONLY, ObjectStorage, iterate_pages
from backends.errors import PreconditionFailed
from fusefs.errors import LogDamaged
from fusefs.journal_format import (
    JOURNAL_PREFIX,
    SEAL,
    Batch,
    DamagedBatch,
    Position,
    batch_key,
    decode,
    encode,
    position_of,
)

NOWHERE: Final = Position(0, 0)
"""Before every batch."""


@dataclass(kw_only=True)
class OldLog:
    """What one store has of earlier terms; `positions` are the batches that count, in order."""

    reader: LogReader
    positions: list[Position] = field(default_factory=list)
    #: What is before it is not needed, wherever it is.
    cutoff: Position = NOWHERE
    #: Every object below the journal's prefix, of a term before this one.
    keys: list[str] = field(default_factory=list)


async def batches(logs: Sequence[OldLog]) -> AsyncIterator[Batch]:
    """Yield the batches that count, of logs in several stores. Raises `LogDamaged`."""
    for position, reader in places(logs):
        yield await reader.read(position)


def places(logs: Sequence[OldLog]) -> list[tuple[Position, LogReader]]:
    """Return which batches count, in order, and who reads each."""
    cutoff = max((log.cutoff for log in logs), default=NOWHERE)
    found = [(position, log.reader) for log in logs for position in log.positions if position >= cutoff]
    return sorted(found, key=lambda place: place[0])


class LogReader:
    """The logs in one store."""

    def __init__(self, storage: ObjectStorage) -> None:
        self.storage = storage

    async def last_epoch(self) -> int:
        """Return the last term that has left anything; 0 if none has."""
        return max((position.epoch for position in await self.positions()), default=0)

    async def positions(self) -> list[Position]:
        """Return every batch that is there, whether it counts or not, in order."""
        return sorted(filter(None, map(position_of, await self._keys())))

    async def find(self, *, since_epoch: int, before_epoch: int) -> OldLog:
        """Seal the logs of the terms from `since_epoch` to `before_epoch`, and return which batches count.

        Raises `LogDamaged`, and what the store raises.
        """
        found = OldLog(reader=self, keys=await self._keys())
        by_epoch: dict[int, list[int]] = {}
        for key in found.keys:
            position = position_of(key)
            if position is not None and since_epoch <= position.epoch < before_epoch:
                by_epoch.setdefault(position.epoch, []).append(position.sequence)
        for epoch, sequences in sorted(by_epoch.items()):
            run, names = await self._run_that_counts(epoch, sorted(sequences))
            found.keys.append(await self._seal(epoch, run))
            found.positions += run
            found.cutoff = max(found.cutoff, names)
        return found

    async def read(self, position: Position) -> Batch:
        """Return one batch. Raises `LogDamaged`, and what the store raises."""
        key = batch_key(position)
        data = (await self.storage.get_range(key)).data
        try:
            return decode(data, position)
        except DamagedBatch as error:
            raise LogDamaged(
                f"the log is damaged, and nothing of it was applied: {key!r}: {error};"
                " `fusefs recover` tells what can be saved"
            ) from error

    async def _keys(self) -> list[str]:
        return [
            info.key async for page in iterate_pages(self.storage, JOURNAL_PREFIX) for info in page.objects
        ]

    async def _run_that_counts(self, epoch: int, sequences: Sequence[int]) -> tuple[list[Position], Position]:
        """Return the batches of a term that count, and the cutoff that the last of them names."""
        for run in reversed(_runs(sequences)):
            for sequence in reversed(run):
                batch = await self.read(Position(epoch, sequence))
                if batch.is_continued or batch.is_seal:
                    continue
                reach = batch.cutoff.sequence if batch.cutoff.epoch == epoch else 1
                if reach < run[0]:
                    break  # what it builds on never arrived
                counting = [Position(epoch, each) for each in run if each <= sequence]
                return counting, batch.cutoff
        return [], NOWHERE

    async def _seal(self, epoch: int, run: list[Position]) -> str:
        """Occupy the place of the next batch, so that a writer that still lives finds its term ended.

        Where there is something already it is the seal of a recovery that did not come to its end, or a batch that
        means nothing without those to follow: either is as good.
        """
        position = Position(epoch, run[-1].sequence + 1 if run else 1)
        seal = encode(Batch(position=position, cutoff=position, flags=SEAL))
        with suppress(PreconditionFailed):
            await self.storage.put(batch_key(position), seal, mode=CREATE_ONLY)
        return batch_key(position)


def _runs(sequences: Sequence[int]) -> list[list[int]]:
    runs: list[list[int]] = []
    for sequence in sequences:
        if runs and runs[-1][-1] + 1 == sequence:
            runs[-1].append(sequence)
        else:
            runs.append([sequence])
    return runs
