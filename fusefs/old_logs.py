"""The logs of earlier terms, in all the stores that have any: which of their batches count, and reading these.

There is one decision which batches count, for mounts (`find_logs`) and for whoever asks how a log stands
(`survey_logs`). It is made for all stores together: terms are looked at from the last to the first, wherever their logs
are (`fusefs.log_reader` looks at one), and none that a later one says is not needed: whatever is left of that, it harms
nobody. The batch that the last commit names as its cutoff is there, in whatever term: a mount names none that it does
not find, and deletes nothing of earlier terms before a commit that needs none of them is there.

Nothing is written but seals, and those by `find_logs` alone. They stay when the rest of their logs is deleted: a writer
that was paused so that its clock stood still may believe for a while that it is still the only one. Its next batch has
to find its place occupied then, however long it has slept; so a term that has written nothing gets a seal, too.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import trio

from backends.base import MIB
from fusefs.errors import BatchRemoved
from fusefs.journal_format import batch_key
from fusefs.lease_record import LogEnd
from fusefs.log_reader import LogReader, OldLog
from fusefs.log_records import EVERYWHERE, NOWHERE, Batch, Position

KEPT_SEALS: Final = 16
"""Of so many terms, the last ones, the seals stay."""

READ_AT_ONCE: Final = 16
"""Batches that are asked for together: there may be very many, each no more than what one fsync had to tell."""

READ_SIZE: Final = 16 * MIB
"""Behind a batch with which there are so many bytes, no more are asked for together: they are in memory."""


@dataclass(frozen=True, slots=True)
class LogPart:
    """What one store has of a log: that of the terms from `since_epoch` on."""

    reader: LogReader
    since_epoch: int = 1
    #: Up to where it was acknowledged, as the lease tells.
    told: LogEnd | None = None


async def find_logs(parts: Sequence[LogPart], *, before_epoch: int, empty_too: bool = False) -> list[OldLog]:
    """Seal the logs of the terms before `before_epoch`, and return which batches count, of each part.

    With `empty_too`, those of which there is nothing, too: their writers may still believe that they may write.
    Raises `LogDamaged`, and what the stores raise.
    """

    async def look(part: LogPart, epoch: int) -> OldLog:
        return await part.reader.end(epoch, _told_of(part, epoch))

    logs = await _decide(parts, look, before_epoch, empty_too=empty_too)
    _check_begin(logs)
    return logs


async def survey_logs(parts: Sequence[LogPart], *, before: Position = EVERYWHERE) -> list[OldLog]:
    """Return what `find_logs` would, if there were nothing from `before` on, and write nothing. Raises the same."""

    async def look(part: LogPart, epoch: int) -> OldLog:
        log, _ = await part.reader.look(epoch, _told_of(part, epoch), before)
        return log

    logs = await _decide(parts, look, before.epoch + 1)
    try:
        _check_begin(logs)
    except BatchRemoved:
        if before is EVERYWHERE:  # a writer that lives may have deleted it since its commit was read
            logs = await _decide(parts, look, before.epoch + 1)
            _check_begin(logs)
        else:  # commits behind that may not have needed it: then their writer has deleted it
            for log in logs:
                log.positions = []
    return logs


async def _decide(
    parts: Sequence[LogPart],
    look: Callable[[LogPart, int], Awaitable[OldLog]],
    before_epoch: int,
    *,
    empty_too: bool = False,
) -> list[OldLog]:
    """Return what counts, of each part, of the terms before `before_epoch`, each of which `look` looks at."""
    listed = [await part.reader.listed() for part in parts]
    for part, (log, terms) in zip(parts, listed, strict=True):
        if part.told is not None:  # nothing may be there, and should
            terms.setdefault(part.told.epoch, {})
        ended = range(max(part.since_epoch, before_epoch - KEPT_SEALS), before_epoch) if empty_too else ()
        for begin in [Position(epoch, 1) for epoch in ended if epoch not in terms]:
            if await part.reader.seal(begin):
                log.seals.append(batch_key(begin))
            else:  # the first batch has arrived by now
                terms[begin.epoch] = {}
    cutoff = NOWHERE
    for epoch in sorted({epoch for _, terms in listed for epoch in terms}, reverse=True):
        for part, (log, terms) in zip(parts, listed, strict=True):
            if epoch in terms and max(part.since_epoch, cutoff.epoch) <= epoch < before_epoch:
                log.add(await look(part, epoch))
            elif epoch in terms:  # not looked at: what is no seal among these harms nobody
                log.seals += await part.reader.seals_among(epoch, terms[epoch])
        cutoff = max([cutoff, *(log.cutoff for log, _ in listed)])
    for log, _ in listed:
        log.positions = [position for position in log.positions if position >= cutoff]
        log.seals = sorted(log.seals)[-KEPT_SEALS:]
        log.keys = [key for key in log.keys if key not in log.seals]
    return [log for log, _ in listed]


def _check_begin(logs: Sequence[OldLog]) -> None:
    """Raise `BatchRemoved` unless the batch is there from which on the last commit needs the log, of whatever term."""
    cutoff = max(log.cutoff for log in logs)
    counting = places(logs)
    if counting and counting[0][0] != cutoff:
        (_, reader), (last, _) = counting[0], counting[-1]
        raise reader.removed(cutoff, batch_key(last))


def _told_of(part: LogPart, epoch: int) -> LogEnd | None:
    return part.told if part.told is not None and part.told.epoch == epoch else None


async def batches(logs: Sequence[OldLog]) -> AsyncIterator[Batch]:
    """Yield the batches that count, of logs in several stores. Raises `LogDamaged`, and what the stores raise.

    Several are read at once; what comes of it is the same as if each were read after the one before it.
    """
    for together in _read_together(logs):
        for batch in await _read_all(together):
            if isinstance(batch, Exception):
                raise batch
            yield batch


def places(logs: Sequence[OldLog]) -> list[tuple[Position, LogReader]]:
    """Return which batches count, in order, and who reads each."""
    found = [(position, log.reader) for log in logs for position in log.positions]
    return sorted(found, key=lambda place: place[0])


def _read_together(logs: Sequence[OldLog]) -> Iterator[list[tuple[Position, LogReader]]]:
    """Yield `places`, as many at a time as are read at once."""
    sizes = {position: size for log in logs for position, size in log.sizes.items()}
    together: list[tuple[Position, LogReader]] = []
    size = 0
    for place in places(logs):
        together.append(place)
        size += sizes[place[0]]
        if len(together) == READ_AT_ONCE or size >= READ_SIZE:
            yield together
            together, size = [], 0
    if together:
        yield together


async def _read_all(wanted: Sequence[tuple[Position, LogReader]]) -> list[Batch | Exception]:
    """Read batches at once; return each, or why it cannot be read."""
    found: dict[int, Batch | Exception] = {}

    async def read(place: int, position: Position, reader: LogReader) -> None:
        try:
            found[place] = await reader.read(position)
        except Exception as error:
            found[place] = error

    async with trio.open_nursery() as nursery:
        for place, (position, reader) in enumerate(wanted):
            nursery.start_soon(read, place, position, reader)
    return [found[place] for place in range(len(wanted))]
