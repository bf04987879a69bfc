"""Reads the log of one store: which batches of a term count, in order, and the seal that ends a term.

Of the objects below the journal's prefix not all count. Batches that are not needed any more may be there still, with
holes where others of them are deleted already; and of batches that were on their way when their writer died some may
have arrived without those before them. A *run* is a stretch without gaps. The log of a term is the last run that
reaches back to the cutoff which its own last commit names, up to that commit; what is before its cutoff, and the runs
before and behind it, are left out. So is what is behind a seal: it arrived after somebody had ended the term. And so is
a last commit that says that nothing is needed any more, not even itself.

Each batch says up to where its writer had acknowledged the log by then. What was acknowledged was there. Where it is
missing, and no commit says that it is not needed, somebody else has removed it, and the log is damaged. The lease says
the same, and is there when the last batches are not, or none. A writer never removes its last commit before its lease
says that it has no log. So the log has to reach the one that the lease tells of, unless a later term has begun one of
its own (`fusefs.old_logs`), or a seal before it says that somebody goes on without the rest.

A writer that still lives may delete meanwhile what it does not need; then it is looked at again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from backends.base import CREATE_ONLY, ObjectStorage, iterate_pages
from backends.errors import NotFound, PreconditionFailed
from fusefs.errors import BatchDamaged, BatchRemoved, LogDamaged
from fusefs.journal_format import (
    JOURNAL_PREFIX,
    SEAL_SIZES,
    DamagedBatch,
    batch_key,
    decode,
    encode,
    epoch_prefix,
    position_of,
)
from fusefs.lease_record import LogEnd
from fusefs.log_records import EVERYWHERE, NOWHERE, SEAL, Batch, Position
from fusefs.stored_lease import LEASE_KEY

LOOKS: Final = 10
"""How often a term is looked at of which batches are gone when they are to be read, or should be there and are not."""

Terms: TypeAlias = dict[int, dict[int, int]]
"""The sizes of batches, by epoch and sequence."""


@dataclass(kw_only=True)
class OldLog:
    """What one store has of earlier terms; `positions` are the batches that count, in order."""

    reader: LogReader
    positions: list[Position] = field(default_factory=list)
    #: What is before it is not needed, wherever it is.
    cutoff: Position = NOWHERE
    #: Every object below the journal's prefix, of a term before this one, but for seals that stay.
    keys: list[str] = field(default_factory=list)
    #: Those seals.
    seals: list[str] = field(default_factory=list)
    #: Bytes of the batches of the terms that were looked at.
    sizes: dict[Position, int] = field(default_factory=dict)

    def add(self, term: OldLog) -> None:
        """Add what there is of one term, which is before those that are here."""
        self.keys = list(dict.fromkeys(self.keys + term.keys))
        self.positions = term.positions + self.positions
        self.seals += term.seals
        self.sizes |= term.sizes
        self.cutoff = max(self.cutoff, term.cutoff)


class LogReader:
    """The logs in one store; `where` that is, for people, "" for the mounted one."""

    def __init__(self, storage: ObjectStorage, where: str = "") -> None:
        self.storage = storage
        self.where = where

    async def last_epoch(self) -> int:
        """Return the last term that has left anything; 0 if none has."""
        return max((position.epoch for position in await self.positions()), default=0)

    async def last_leased_epoch(self) -> int:
        """Return the last term that has left anything and had the lease; 0 if none is known to have had it."""
        unleased = 0
        for position in reversed(await self.positions()):
            if position.epoch != unleased:
                with suppress(BatchDamaged, NotFound):
                    batch = await self._read(position)
                    if batch.is_leased:
                        return position.epoch
                    if not batch.is_seal:
                        unleased = position.epoch
        return 0

    async def positions(self) -> list[Position]:
        """Return every batch that is there, whether it counts or not, in order."""
        keys = [key for key, _ in await self._objects(JOURNAL_PREFIX)]
        return sorted(filter(None, map(position_of, keys)))

    async def listed(self) -> tuple[OldLog, Terms]:
        """Return every batch that is there, as a log of which nothing counts yet, and by term."""
        objects = await self._objects(JOURNAL_PREFIX)
        return OldLog(reader=self, keys=[key for key, _ in objects]), _by_term(objects)

    async def read(self, position: Position) -> Batch:
        """Return one batch that counts. Raises `BatchDamaged`, and what the store raises."""
        try:
            return await self._read(position)
        except NotFound as error:
            raise self._damaged(position, "it is not there any more") from error

    async def _read(self, position: Position) -> Batch:
        """As `read`, where it may have been deleted. Raises `NotFound` then."""
        data = (await self.storage.get_range(batch_key(position))).data
        try:
            return decode(data, position)
        except DamagedBatch as error:
            raise self._damaged(position, str(error)) from error

    def _damaged(self, position: Position, why: str) -> BatchDamaged:
        return BatchDamaged(batch_key(position), position, why, self.where)

    async def _objects(self, prefix: str) -> list[tuple[str, int]]:
        """Return keys and sizes of batches; what else somebody has put there is not to be deleted with them."""
        pages = iterate_pages(self.storage, prefix)
        objects = [(info.key, info.size) async for page in pages for info in page.objects]
        return [(key, size) for key, size in objects if position_of(key) is not None]

    async def end(self, epoch: int, told: LogEnd | None = None) -> OldLog:
        """End a term for good, and return what counts of it; `told` is its end as the lease tells.

        For that the place behind the batches is occupied, so that a writer that still lives finds its term ended. Where
        that writer was quicker, what it has written is looked at as well.

        Raises `LogDamaged`, and what the store raises.
        """
        while True:
            log, end = await self.look(epoch, told)
            if end is None:
                return log
            if await self.seal(end):
                log.seals.append(batch_key(end))
                return log

    async def seal(self, end: Position) -> bool:
        """End the log of a term at a place, and return True; False if somebody has put something there before."""
        try:
            await self.storage.put(batch_key(end), encode(seal_at(end)), mode=CREATE_ONLY)
        except PreconditionFailed:
            return False
        return True

    async def look(
        self, epoch: int, told: LogEnd | None = None, before: Position = EVERYWHERE
    ) -> tuple[OldLog, Position | None]:
        """Return what counts of a term, and where its seal has to be; None if it has one. Raises as `end`.

        What is missing may have arrived, or be no longer needed, since its part of the listing was made: the same has
        to be missing twice.
        """
        missing: Position | None = None
        for _ in range(LOOKS):
            try:
                return await self._look_once(epoch, told, before)
            except NotFound as error:
                gone: Exception = error
            except BatchRemoved as error:
                if error.position == missing:
                    raise
                missing, gone = Position(*error.position), error
        raise LogDamaged(f"the store lists batches of epoch {epoch} that are not there: {gone}") from gone

    async def _look_once(
        self, epoch: int, told: LogEnd | None, before: Position
    ) -> tuple[OldLog, Position | None]:
        objects = await self._objects(epoch_prefix(epoch))
        sizes = {
            sequence: size
            for sequence, size in _by_term(objects).get(epoch, {}).items()
            if Position(epoch, sequence) < before
        }
        seal = await self._first_seal(epoch, sizes)
        there = [each for each in sorted(sizes) if seal is None or each < seal.position.sequence]
        newest = await self._read(Position(epoch, there[-1])) if there else None
        runs = _runs(there)
        log = OldLog(
            reader=self,
            keys=[key for key, _ in objects],
            seals=[batch_key(seal.position)] if seal is not None else [],
            sizes={Position(epoch, sequence): size for sequence, size in sizes.items()},
        )
        # Where nothing counts, nothing that arrives late may: the first place that is free, and not the last.
        end = runs[0][-1] + 1 if runs and runs[0][0] == 1 else 1
        counted = 0
        for run in reversed(runs):
            last = await self._last_commit(epoch, run, newest)
            if last is not None:
                counted = last.position.sequence
                if not _says_that_nothing_is_needed(last):
                    log.positions = [Position(epoch, each) for each in run if each <= counted]
                log.cutoff, end = last.cutoff, run[-1] + 1
                break
        if before is EVERYWHERE:
            tells_of_something = any(sizes[each] not in SEAL_SIZES for each in there)
            # Who ended the term before that knew, and goes on without the rest.
            is_cut = seal is not None and told is not None and seal.position.sequence <= told.sequence
            if told is not None and not is_cut and (told.is_needed or tells_of_something):
                self._check_end(there, counted, told)
            if tells_of_something:  # else it is not known whether that is still needed
                for witness in filter(None, (newest, seal)):
                    self._check_whole(there, counted, witness)
        return log, Position(epoch, end) if seal is None else None

    def _check_whole(self, there: Sequence[int], counted: int, witness: Batch) -> None:
        """Raise `BatchRemoved` for what is missing behind the last commit that counts, and was acknowledged."""
        present = frozenset(there)
        for sequence in range(counted + 1, witness.acknowledged + 1):
            if sequence not in present:
                raise self.removed(Position(witness.position.epoch, sequence), batch_key(witness.position))

    def _check_end(self, there: Sequence[int], counted: int, told: LogEnd) -> None:
        """Raise `BatchRemoved` unless what counts reaches the commit that the lease tells of."""
        if counted >= told.sequence:
            return
        present = frozenset(there)
        lost = told.sequence
        if counted or lost in present:  # else it is not known which of those before it were needed
            missing = (each for each in range(counted + 1, lost) if each not in present)
            lost = next(missing, lost)
        raise self.removed(Position(told.epoch, lost), LEASE_KEY)

    def removed(self, lost: Position, witness_key: str) -> BatchRemoved:
        """Return the error for a batch that is not there, and was by what another one says."""
        why = f"somebody has removed it, of which {witness_key!r} says that it was there"
        return BatchRemoved(batch_key(lost), lost, why, self.where)

    async def seals_among(self, epoch: int, sizes: Mapping[int, int]) -> list[str]:
        """Return the key of what has ended the log of a term, or of all that may have where that cannot be told."""
        bare = [batch_key(Position(epoch, each)) for each, size in sizes.items() if size in SEAL_SIZES]
        if len(bare) > 1:  # or else they would take the place of other terms' seals
            with suppress(BatchDamaged, NotFound):
                seal = await self._first_seal(epoch, sizes)
                return [batch_key(seal.position)] if seal is not None else []
        return bare

    async def _first_seal(self, epoch: int, sizes: Mapping[int, int]) -> Batch | None:
        """Return what has ended the log of a term: what arrived behind that does not count."""
        for sequence, size in sorted(sizes.items()):
            if size in SEAL_SIZES:
                batch = await self._read(Position(epoch, sequence))
                if batch.is_seal:
                    return batch
        return None

    async def _last_commit(self, epoch: int, run: Sequence[int], newest: Batch | None) -> Batch | None:
        """Return the last commit of a run, if the run has everything that it builds on; `newest` was read before."""
        for sequence in reversed(run):
            position = Position(epoch, sequence)
            batch = newest if newest and newest.position == position else await self._read(position)
            if not batch.is_continued:
                reach = batch.cutoff.sequence if batch.cutoff.epoch == epoch else 1
                return batch if reach >= run[0] else None
        return None


def seal_at(end: Position) -> Batch:
    """Return the seal that ends a log at a place before which all is there that is needed."""
    return Batch(position=end, cutoff=end, acknowledged=end.sequence - 1, flags=SEAL)


def _by_term(objects: Iterable[tuple[str, int]]) -> Terms:
    terms: Terms = {}
    for key, size in objects:
        position = position_of(key)
        if position is not None:
            terms.setdefault(position.epoch, {})[position.sequence] = size
    return terms


def _says_that_nothing_is_needed(batch: Batch) -> bool:
    return batch.cutoff == batch.position and not batch.records


def _runs(sequences: Sequence[int]) -> list[list[int]]:
    runs: list[list[int]] = []
    for sequence in sequences:
        if runs and runs[-1][-1] + 1 == sequence:
            runs[-1].append(sequence)
        else:
            runs.append([sequence])
    return runs
