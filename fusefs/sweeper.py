"""Deletes the objects that belong to nobody any more, in the background and many with one request.

An object is deleted only as long as it is the version that we left there. What cannot be deleted stays a leftover
and is tried again; meanwhile the tree goes on without it.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import chain
from typing import Final

import trio

from backends.base import ObjectStorage
from backends.errors import AccessDenied, NotFound, PreconditionFailed, StorageError, is_outage
from fusefs.change_log import ChangeLog
from fusefs.placement import UNSEEN, Placement
from fusefs.versions import Version

_log = logging.getLogger(__name__)

RETRY_SECONDS: Final = 30.0
"""Pause after a deletion that failed for good (the store's own outages are retried in `backends.retrying`)."""

HOLD_SECONDS: Final = 1.0
"""For how long `hold_back` is good; who waits asks again whenever it is looked at."""

SHORT_SECONDS: Final = 0.001
"""Of a look through what is left over: no matter how often."""

PAUSES: Final = 10
"""How many times as long as it took to look it is not looked again."""


class Sweeper:
    """One sweep at a time; `progressed` is called when keys are free again or a failed deletion may be tried."""

    def __init__(
        self,
        storage: ObjectStorage,
        placement: Placement,
        log: ChangeLog,
        workers: int,
        progressed: Callable[[], None],
    ) -> None:
        self._log = log
        self._storage = storage
        self._placement = placement
        self._limiter = trio.CapacityLimiter(workers)
        self._progressed = progressed
        #: What has failed, until it is tried again.
        self._resting: set[Version] = set()
        #: Which of all failures was the last of what is still there, and why; outlasts the next attempt's begin.
        self._failed: dict[Version, tuple[int, Exception]] = {}
        #: How many failures there were.
        self.failure_count = 0
        #: Prefixes with which nothing is to be deleted, and until when.
        self._held_back: dict[str, float] = {}
        #: When it is looked for leftovers again, and whether it would have been looked before.
        self._looks_at = -math.inf
        self._has_put_off = False
        #: Keys that are being deleted now.
        self.busy: frozenset[str] = frozenset()

    @property
    def is_failing(self) -> bool:
        """Whether something could not be deleted and waits until it is tried again."""
        return bool(self._resting)

    def is_done(self, leftovers: Mapping[str, Version], since: int) -> bool:
        """Return whether none of these is left to be deleted, but for what rests or has failed since so many failures.

        The latter may be on its way again: of what fails at different times, something always is.
        """
        return all(
            leftovers.get(version.key) != version or self._has_failed(version, since)
            for version in self._placement.deletable(but=self._resting)
        )

    def failures(self, since: int) -> list[Exception]:
        """Return why objects could not be deleted, since so many failures, that are still there."""
        return [
            error
            for version, (_, error) in self._failed.items()
            if self._has_failed(version, since) and self._placement.is_leftover(version)
        ]

    def count(self) -> int:
        """Return the number of objects that are still to be deleted."""
        return len(self._deletable()) + len(self._resting)

    def forgive(self) -> int:
        """Let what has failed be tried again at once; return how many failures there were."""
        self._resting.clear()
        return self.failure_count

    def hold_back(self, prefix: str) -> None:
        """Begin to delete nothing with this prefix for a moment: somebody waits until nobody works there."""
        self._held_back[prefix] = trio.current_time() + HOLD_SECONDS

    def may_look(self) -> bool:
        """Return whether a sweep may begin: none is under way, and to look for what there is takes little of the time.

        Thousands of leftovers may lie where somebody's object comes soon, and are looked through in vain then.
        """
        self._has_put_off = not self.busy and trio.current_time() < self._looks_at
        return not (self.busy or self._has_put_off)

    def start(self, nursery: trio.Nursery, busy_elsewhere: set[str]) -> None:
        """Begin to delete what may be deleted now, if anything; only where one `may_look`."""
        began, now = time.perf_counter(), trio.current_time()
        self._held_back = {prefix: until for prefix, until in self._held_back.items() if until > now}
        held_back = tuple(self._held_back)
        batch = [
            version
            for version in self._deletable()
            if not _is_in_use(version.key, busy_elsewhere) and not version.key.startswith(held_back)
        ]
        if batch:
            self.busy = frozenset(version.key for version in batch)
            nursery.start_soon(self._sweep, batch, nursery)
        took = time.perf_counter() - began
        self._looks_at = now + PAUSES * took if took > SHORT_SECONDS else -math.inf

    @property
    def wakes_at(self) -> float:
        """When something may be deleted that could not be when it was looked, if nothing happens before.

        That may be past by now; infinity if there is nothing, or a sweep is under way, which tells of its end.
        """
        if self.busy:
            return math.inf
        return self._looks_at if self._has_put_off else min(self._held_back.values(), default=math.inf)

    def _has_failed(self, version: Version, since: int) -> bool:
        return version in self._failed and self._failed[version][0] > since

    def _deletable(self) -> list[Version]:
        return list(self._placement.deletable(but=self._resting))

    async def _sweep(self, batch: Sequence[Version], nursery: trio.Nursery) -> None:
        size = self._storage.limits.max_delete_batch
        try:
            await self._log.commit()  # nothing is deleted that a reader of the log would still look for
            outages: list[Exception] = []
            async with trio.open_nursery() as deletions:
                for first in range(0, len(batch), size):
                    deletions.start_soon(self._delete, batch[first : first + size], nursery, outages)
        except Exception as error:  # of any kind: nothing may end the nursery of the whole mount
            self._fail({error: batch}, nursery)
        finally:
            self.busy = frozenset()
            self._progressed()

    async def _delete(
        self, versions: Sequence[Version], nursery: trio.Nursery, outages: list[Exception]
    ) -> None:
        """`outages` is why those of the same sweep have failed that had no answer: others would wait for as long."""
        async with self._limiter:
            if outages:
                self._fail({outages[0]: versions}, nursery)
                return
            failures = await self._failures_of(versions)
            if len(failures) == len(versions) and all(map(is_outage, failures.values())):
                outages += failures.values()
        failed: dict[Exception, list[Version]] = {}
        for version in versions:
            error = failures.get(version.key)
            if error is not None and not isinstance(error, PreconditionFailed):
                failed.setdefault(error, []).append(version)
                continue
            if error is not None:
                _log.warning("%r was changed by somebody else and is not deleted", version.key)
            self._placement.forget_leftover(version)
            self._failed.pop(version, None)
        self._fail(failed, nursery)

    async def _failures_of(self, versions: Sequence[Version]) -> Mapping[str, Exception]:
        """Delete objects, each in this version only, and return what failed, by key."""
        etags = {version.key: version.etag for version in versions}
        try:
            await self._look_at_unseen(etags)
            failures = await self._delete_these(etags)
            return {key: error for key, error in failures.items() if not await self._is_gone(key, error)}
        except Exception as error:  # of any kind: nothing may end the nursery of the whole mount
            return dict.fromkeys(etags, error)

    async def _delete_these(self, etags: Mapping[str, str]) -> Mapping[str, StorageError]:
        if len(etags) > 1:
            return await self._storage.delete_many(etags, if_match=etags)
        for key, etag in etags.items():
            try:
                await self._storage.delete(key, if_match=etag)
            except (PreconditionFailed, NotFound) as conflict:
                return {key: conflict}
        return {}

    async def _is_gone(self, key: str, error: StorageError) -> bool:
        """Return whether there is nothing any more: no conflict, and maybe the work of an attempt of our own."""
        if not isinstance(error, PreconditionFailed):
            return isinstance(error, NotFound)
        try:
            await self._storage.head(key)
        except NotFound:
            return True
        except AccessDenied:
            return False
        return False

    async def _look_at_unseen(self, etags: dict[str, str]) -> None:
        """Fill in the ETags that are not known, and leave out what is not there. Raises what the store raises."""
        for key in [key for key, etag in etags.items() if etag == UNSEEN]:
            try:
                etags[key] = (await self._storage.head(key)).etag
            except NotFound:
                del etags[key]

    def _fail(self, failed: Mapping[Exception, Sequence[Version]], nursery: trio.Nursery) -> None:
        """Let versions rest that have failed, and tell each reason once."""
        for error, versions in failed.items():
            first, *others = versions
            more = f" and {len(others):,} more" if others else ""
            _log.error(
                "cannot delete %r%s, trying again in %.0f s: %s", first.key, more, RETRY_SECONDS, error
            )
            for version in versions:
                self._resting.add(version)
                self.failure_count += 1
                self._failed[version] = self.failure_count, error
        if failed:
            nursery.start_soon(self._try_again, list(chain.from_iterable(failed.values())))

    async def _try_again(self, versions: Sequence[Version]) -> None:
        await trio.sleep(RETRY_SECONDS)
        self._resting.difference_update(versions)
        for version in versions:
            if not self._placement.is_leftover(version):
                self._failed.pop(version, None)  # its key has another object now
        self._progressed()


def _is_in_use(key: str, busy: Collection[str]) -> bool:
    """Return whether somebody writes to the key or, if it is a marker's, below it: the marker goes last."""
    return key in busy or (key.endswith("/") and any(other.startswith(key) for other in busy))
