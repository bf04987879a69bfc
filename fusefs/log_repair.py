"""What can be saved of a log that is damaged, and making a mount possible again.

A mount reads no log of which it cannot read all that counts. Here the first batch is found that it would stop at: which
batches count is decided as for a mount (`LogReader.survey`), and then anew as if there were nothing from the damaged
one on, until all that counts can be read. That can be applied. What is behind it cannot, because a batch means
something only after all before it; so it is set aside, under `.fusefs/damaged/`, for whoever can mend it, and the log
is sealed before it. Nothing is deleted, and nothing changed before somebody says so.

As good as damaged is a batch that refers to an upload which somebody has aborted: the store may do that to old ones.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from backends.base import CREATE_ONLY, ObjectStorage
from backends.errors import PreconditionFailed
from fusefs.errors import BatchDamaged
from fusefs.journal_format import JOURNAL_PREFIX, SEAL, Batch, Position, batch_key, encode
from fusefs.keys import RESERVED_PREFIX
from fusefs.log_objects import LogObjects
from fusefs.log_reader import EVERYWHERE, LogReader
from fusefs.log_uploads import LogUploads, needed_upload
from fusefs.replay import Replay

DAMAGED_PREFIX: Final = f"{RESERVED_PREFIX}damaged/"
"""Where batches are put that no mount can read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """How a log stands."""

    #: Batches that a mount can apply.
    readable: int
    #: The first that it cannot, and why; "" if there is none.
    damage: str = ""
    #: All that there are behind those, the damaged one among them.
    lost: tuple[Position, ...] = ()

    def __str__(self) -> str:
        """Return one line."""
        if not self.lost:
            return f"the log is whole: {self.readable} batches"
        return (
            f"{self.damage}. {self.readable} batches before it can be applied, {len(self.lost)} from there on cannot;"
            " --set-aside puts these away, and the next mount goes on without them"
        )


class LogRepair:
    """The log in one store, of the terms from `since_epoch` on. Nobody may be writing it."""

    def __init__(self, storage: ObjectStorage, *, since_epoch: int = 1) -> None:
        self._storage = storage
        self._since_epoch = since_epoch
        self._reader = LogReader(storage)

    async def diagnose(self) -> Diagnosis:
        """Read the whole log. Raises what the store raises, and `LogDamaged` where it cannot be told what there is."""
        damage: BatchDamaged | None = None
        while True:
            before = EVERYWHERE if damage is None else Position(*damage.position)
            try:
                log = await self._reader.survey(since_epoch=self._since_epoch, before=before)
                replay = Replay(None)
                for position in log.positions:
                    replay.apply(await self._reader.read(position))
                await self._check_uploads(replay)
            except BatchDamaged as error:
                damage = error
            else:
                break
        if damage is None:
            return Diagnosis(readable=len(log.positions))
        last = log.positions[-1] if log.positions else Position(self._since_epoch, 0)
        return Diagnosis(
            readable=len(log.positions),
            damage=f"{damage.key!r} cannot be applied: {damage.why}",
            lost=tuple(position for position in await self._reader.positions() if position > last),
        )

    async def _check_uploads(self, replay: Replay) -> None:
        """Raise `BatchDamaged` for the first batch that refers to an upload which is gone."""
        objects = LogObjects(self._storage, replay.inodes.values())
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
            raise BatchDamaged(batch_key(position), position, why)

    async def set_aside(self, found: Diagnosis) -> None:
        """Move what is lost out of the log, the last first, and let the log end there. Raises what the store raises."""
        for position in reversed(found.lost):
            key = batch_key(position)
            with suppress(PreconditionFailed):  # it is there already: an earlier call did not come to its end
                await self._storage.copy(key, _aside(key), mode=CREATE_ONLY)
            await self._storage.delete(key)
        end = found.lost[0]
        seal = encode(Batch(position=end, cutoff=end, flags=SEAL))
        await self._storage.put(batch_key(end), seal, mode=CREATE_ONLY)


def _aside(key: str) -> str:
    return f"{DAMAGED_PREFIX}{key.removeprefix(JOURNAL_PREFIX)}"
