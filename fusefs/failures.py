"""What the failure of an attempt means, for its inode and for all who wait.

Nothing that was written is dropped: the inode stays pending, the failure is kept in its state for the next fsync or
close, and it is tried again. Who waits for a failed attempt fails with it.

In an outage, without the lease, or where the log is denied, what has had no turn fails with the first attempt, so that
it is told once and not for every few of them; if others had an answer meanwhile, only what waits for the failed one
does. What the store refuses of one object keeps nothing back.
"""

from __future__ import annotations

import logging

from backends.errors import Fenced, StorageError, is_outage
from fusefs.change_log import ChangeLog
from fusefs.errors import FilesystemError, LeaseLapsed, LeaseLost, let_go_of_frames
from fusefs.inodes import Inode
from fusefs.placement import Placement
from fusefs.publish_queue import RETRY_SECONDS, PublishQueue
from fusefs.turns import Turns

_log = logging.getLogger(__name__)


class Failures:
    """Notes them, one after the other; `count` is how many there were."""

    def __init__(self, placement: Placement, queue: PublishQueue, turns: Turns, log: ChangeLog) -> None:
        self._log = log
        self._placement = placement
        self._queue = queue
        self._turns = turns
        self.count = 0

    def note(self, inode: Inode, target: str | None, error: Exception, *, others_had_answers: bool) -> None:
        """Note why an attempt failed, and when the next one will be; those who wait for this one fail with it.

        `others_had_answers` is whether other attempts succeeded while this one lasted.
        """
        if not isinstance(error, StorageError | FilesystemError | OSError):
            _log.error("a defect stopped the publication of %r", target, exc_info=error)
        is_away = isinstance(error, LeaseLapsed | LeaseLost | Fenced) or is_outage(error)
        if target is None and not is_away:
            _log.error("an object may be left of what was removed: %r: %s", inode.state.in_doubt, error)
            inode.state.in_doubt.clear()
            return
        storing = inode.state.storing
        is_in_doubt = isinstance(error, StorageError) and error.is_in_doubt
        if is_in_doubt and storing is not None and storing not in inode.state.in_doubt:
            inode.state.in_doubt.append(storing)
        if target is None:
            keys = [key for key, _ in inode.state.in_doubt]
            _log.error(
                "cannot look what is left under %r, trying again in %.0f s: %s", keys, RETRY_SECONDS, error
            )
        elif self._placement.target(inode) is None:
            return  # removed meanwhile
        else:
            _log.error("cannot publish %r, trying again in %.0f s: %s", target, RETRY_SECONDS, error)
        self.count += 1
        let_go_of_frames(error)
        inode.state.failure = error
        inode.state.attributes_changed = True  # what the attempt took for done is not
        self._queue.schedule_retry(inode)
        if (is_away or self._log.has_caused(error)) and not others_had_answers:
            # Every few of them would wait for as long, one after the other.
            self._queue.fail_all(error)
        else:
            # Of several new directories in each other each would fail by itself, and the first be tried again before
            # the last. What the store refuses of a directory it may take below: that is to be tried.
            # The inode itself is one of those who wait, if it was to make way on a detour.
            self._queue.fail([inode, *self._turns.waiting_for(inode, below=is_away)], error, ending=inode)
