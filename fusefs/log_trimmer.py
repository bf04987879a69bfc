"""Deletes what nobody needs of the log, in the background, and empties it when nothing of it is needed for a while."""

from __future__ import annotations

import logging
from typing import Final

import trio

from fusefs.errors import LeaseLost
from fusefs.journal import Journal
from fusefs.lease import Lease
from fusefs.log_needs import LogNeeds
from fusefs.log_records import NOWHERE, Position
from fusefs.unlogged import Unlogged

_log = logging.getLogger(__name__)

IDLE_SECONDS: Final = 1.0
"""How long nothing may be needed of the log before it is removed."""

TRIM_BATCHES: Final = 32
"""Batches that are worth a request to delete them."""

TRIM_RETRY_SECONDS: Final = 30.0
"""Pause after some could not be deleted (the store's outages are retried below, in `backends.retrying`)."""


class LogTrimmer:
    """Trims one term's log to the last cutoff that a batch in the store names. `run` does the work.

    A cutoff only rises, and nothing is deleted that one in the store does not say is unneeded. The log is emptied only
    where there is nothing that it lacks either; and not before `restored`, since until then it is not known what is
    needed of earlier terms.
    """

    def __init__(self, journal: Journal, lease: Lease, needs: LogNeeds, unlogged: Unlogged) -> None:
        self._journal: Final = journal
        self._lease: Final = lease
        self._needs: Final = needs
        self._unlogged: Final = unlogged

        self._is_restored = False
        self._cutoff = NOWHERE
        self._wanted = trio.Event()

    @property
    def cutoff(self) -> Position:
        """What is before it counts no more, whatever happens: a batch in the store says so, or there is no log."""
        return self._cutoff

    @property
    def is_idle(self) -> bool:
        """Whether nothing is needed of the log, and nothing has to be told to it."""
        return self._is_restored and self._needs.is_empty and not len(self._unlogged)

    @property
    def is_empty(self) -> bool:
        """Whether the log is empty, and there is nothing that ought to be in it."""
        return self.is_idle and self._journal.is_empty

    def restored(self) -> None:
        """Note that the tree has all that earlier terms have left: what nobody needs of their logs can go."""
        self._is_restored = True
        self.look_for_end()

    def look_for_end(self) -> None:
        """Have the log emptied soon if it is idle by now; to be called when something was forgotten."""
        if self.is_idle:
            self._wanted.set()

    async def note_cutoff(self, sequence: int, cutoff: Position) -> None:
        """Have the log trimmed to `cutoff` when the batch that names it is in the store. Raises nothing."""
        while True:
            try:
                await self._journal.acknowledged(sequence)
                break
            except LeaseLost:
                return
            except Exception:
                continue  # it is tried again; who waits for it has the error
        self._lease.acknowledged(sequence)
        if cutoff > self._cutoff:
            self._cutoff = cutoff
            self._journal.note_unneeded(cutoff)
        if self._journal.count_before(self._cutoff) >= TRIM_BATCHES:
            self._wanted.set()

    async def finish(self, nursery: trio.Nursery) -> None:
        """Empty the log, if nothing of it is needed, but for a batch that says so. Raises what the store raises."""
        if self.is_idle:
            await self._journal.finish(nursery)
            if self._journal.is_empty:
                end = self._journal.next_position
                self._cutoff = Position(end.epoch, self._journal.last_sequence)
                if self._journal.last_sequence:
                    self._lease.acknowledged(self._journal.last_sequence, is_needed=False)

    async def run(self, nursery: trio.Nursery) -> None:
        """Trim the log when there is enough to delete, and empty it when it is idle, for ever."""
        while True:
            await self._wanted.wait()
            self._wanted = trio.Event()
            if not await self._trimmed(nursery):
                await trio.sleep(TRIM_RETRY_SECONDS)
                self._wanted.set()

    async def _trimmed(self, nursery: trio.Nursery) -> bool:
        """Delete what is not needed, and empty the log if nothing is for a while; return whether that is done."""
        if not await self._journal.trim(self._cutoff):
            return False
        if not self.is_idle:
            return True
        with trio.move_on_after(IDLE_SECONDS) as idling:
            await self._wanted.wait()
        if not idling.cancelled_caught:
            return True
        try:
            await self.finish(nursery)
        except LeaseLost:
            return True  # and nobody's from now on
        except Exception as error:  # of any kind: nothing may end the nursery of the whole mount
            _log.warning("the log is not removed: %s", error)
            return False
        return self._journal.is_empty or not self.is_idle
