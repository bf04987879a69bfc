"""What can be saved of a log that is damaged, and making a mount possible again.

A mount reads no log of which it cannot read all that counts. Here the first batch is found that it would stop at: which
batches count is decided as for a mount (`survey_logs`), and then anew as if there were nothing from the damaged
one on, until all that counts can be read. That can be applied. What is behind it cannot, because a batch means
something only after all before it; so it is set aside, under `.fusefs/damaged/`, for whoever can mend it, and the log
is sealed before it. Nothing is deleted, and nothing changed before somebody says so.

As good as damaged is a batch that refers to an upload which somebody has aborted: the store may do that to old ones. So
is one that somebody has removed.

A log may be in two stores, the bucket and a disk, where mounts had it here and there: it is one story, and what is
behind the damage in either is set aside, in the store that has it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from backends.base import CREATE_ONLY, ObjectStorage
from backends.errors import PreconditionFailed
from fusefs.errors import BatchDamaged
from fusefs.journal_format import JOURNAL_PREFIX, batch_key, encode
from fusefs.keys import RESERVED_PREFIX
from fusefs.log_objects import LogObjects
from fusefs.log_reader import LogReader, seal_at
from fusefs.log_records import EVERYWHERE, NOWHERE, Position
from fusefs.log_uploads import LogUploads, needed_upload
from fusefs.old_logs import LogPart, batches, places, survey_logs
from fusefs.quantities import counted
from fusefs.replay import Replay

DAMAGED_PREFIX: Final = f"{RESERVED_PREFIX}damaged/"
"""Where batches are put that no mount can read."""

_Places = Sequence[tuple[Position, LogReader]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """How a log stands."""

    #: Batches that a mount can apply.
    readable: int
    #: The first that it cannot, and why; "" if there is none.
    damage: str = ""
    #: All that there are behind those, the damaged one among them if it is there at all, and who reads each.
    behind: tuple[tuple[Position, LogReader], ...] = ()
    #: Where the log has to end so that a mount can read it, and who reads that; none if it is whole. All but the first
    #: are of later terms, of which the lease says that there is something.
    ends: tuple[tuple[Position, LogReader], ...] = ()

    @property
    def lost(self) -> tuple[Position, ...]:
        """Where those are that cannot be applied, in order."""
        return tuple(position for position, _ in self.behind)

    def __str__(self) -> str:
        """Return one line."""
        if self.is_whole:
            return f"the log is whole: {counted(self.readable, 'batch', 'batches')}"
        saved = f"{self.damage}. {counted(self.readable, 'batch', 'batches')} before it can be applied"
        if not self.lost:
            return (
                f"{saved}, and nothing is behind it; --set-aside gives up what was removed, and the next mount goes on"
                " without that"
            )
        return (
            f"{saved}, {len(self.lost)} from there on cannot;"
            " --set-aside puts these away, and the next mount goes on without them"
        )

    @property
    def is_whole(self) -> bool:
        """Whether a mount can read it."""
        return not self.damage


class LogRepair:
    """The log of a prefix in `storage`, all of whose `parts` are given. Nobody may be writing it."""

    def __init__(self, storage: ObjectStorage, parts: Sequence[LogPart] = ()) -> None:
        self._storage = storage
        self._parts = parts or [LogPart(LogReader(storage))]

    async def diagnose(self) -> Diagnosis:
        """Read the whole log. Raises what the stores raise, and `LogDamaged` where it cannot be told what there is."""
        damage: BatchDamaged | None = None
        while True:
            before = EVERYWHERE if damage is None else Position(*damage.position)
            try:
                logs = await survey_logs(self._parts, before=before)
                counting = places(logs)
                replay = Replay()
                async for batch in batches(logs):
                    replay.apply(batch)
                await self._check_uploads(replay, dict(counting))
            except BatchDamaged as error:
                damage = error
            else:
                break
        if damage is None:
            return Diagnosis(readable=len(counting))
        behind = await self._behind(counting[-1][0] if counting else NOWHERE)
        return Diagnosis(
            readable=len(counting),
            damage=f"{damage.shown} cannot be applied: {damage.why}",
            behind=tuple(behind),
            ends=tuple(self._ends(counting, behind, damage)),
        )

    async def _behind(self, last: Position) -> list[tuple[Position, LogReader]]:
        """Return all batches behind one, in order, and who reads each."""
        behind = [
            (position, part.reader)
            for part in self._parts
            for position in await part.reader.positions()
            if position > max(last, Position(part.since_epoch, 0))
        ]
        return sorted(behind, key=lambda place: place[0])

    def _ends(
        self, counting: _Places, behind: _Places, damage: BatchDamaged
    ) -> list[tuple[Position, LogReader]]:
        """Return where the log has to end, and then the ends of later terms, of which the lease tells, and which go."""
        end, reader = self._end(counting, behind, damage)
        told = [
            (Position(part.told.epoch, part.told.sequence), part.reader)
            for part in self._parts
            if part.told is not None
        ]
        later = [
            (position, other)
            for position, other in told
            if position >= end and (position.epoch, other) != (end.epoch, reader)
        ]
        return [(end, reader), *later]

    def _end(self, counting: _Places, behind: _Places, damage: BatchDamaged) -> tuple[Position, LogReader]:
        """Return where the log has to end, and in which store: behind what counts or, if nothing does, before all."""
        if counting:
            last, reader = counting[-1]
            return last._replace(sequence=last.sequence + 1), reader
        reader = next(part.reader for part in self._parts if part.reader.where == damage.where)
        return min([(Position(*damage.position), reader), *behind], key=lambda place: place[0])

    async def _check_uploads(self, replay: Replay, readers: Mapping[Position, LogReader]) -> None:
        """Raise `BatchDamaged` for the first batch that refers to an upload which is gone."""
        objects = await LogObjects.of(self._storage, replay)
        lost: list[tuple[Position, str]] = []
        for replayed in replay.inodes.values():
            if replayed.upload_since is not None and needed_upload(replayed) is not None:
                uploads = LogUploads(
                    self._storage, {replayed: await objects.find(replayed)}, replay.leftovers
                )
                why = await uploads.find_lost(replayed)
                lost += [(replayed.upload_since, why)] if why is not None else []
        if lost:
            position, why = min(lost)
            raise BatchDamaged(batch_key(position), position, why, readers[position].where)

    async def set_aside(self, found: Diagnosis) -> None:
        """Move what is lost out of the log, the last first, and let the log end there. Raises what the store raises."""
        for position, reader in reversed(found.behind):
            await set_aside(reader.storage, position)
        for end, reader in reversed(found.ends):
            await reader.storage.put(batch_key(end), encode(seal_at(end)), mode=CREATE_ONLY)


async def set_aside(storage: ObjectStorage, position: Position) -> None:
    """Move a batch out of the log. Raises what the store raises."""
    key = batch_key(position)
    with suppress(PreconditionFailed):  # it is there already: an earlier call did not come to its end
        await storage.copy(key, _aside(key), mode=CREATE_ONLY)
    await storage.delete(key)


def _aside(key: str) -> str:
    return f"{DAMAGED_PREFIX}{key.removeprefix(JOURNAL_PREFIX)}"
