"""Counts what is asked of a store: requests, failures by class, bytes and time, for each verb.

This is the only place that counts requests, so it belongs right above the store, below `backends.retrying`: an
attempt that is repeated is counted each time. A call that a store carries out in several HTTP requests (over 1,000
deletions, a long list of uploads) is counted once.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from backends.base import ObjectStorage, RangeResult
from backends.errors import NotFound, PreconditionFailed, StorageError
from backends.intercepted import InterceptedStorage, Request, T, Verb

_FINDINGS: Final = frozenset((NotFound.__name__, PreconditionFailed.__name__))


@dataclass(frozen=True, slots=True, kw_only=True)
class VerbStatistics:
    """What was asked with one verb so far. `requests` are those begun; the rest counts when they end."""

    requests: int
    #: By the name of the class in `backends.errors`.
    failures: Mapping[str, int]
    bytes_sent: int
    bytes_received: int
    #: The sum over all requests; those under way at the same time count each.
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageStatistics:
    """What was asked of a store so far; a verb that was never used is not there."""

    by_verb: Mapping[Verb, VerbStatistics]

    @property
    def requests(self) -> int:
        return sum(verb.requests for verb in self.by_verb.values())

    @property
    def failures(self) -> int:
        """Requests that failed: that there is no object, or another one, is what some of them are to find out."""
        return sum(
            count
            for verb in self.by_verb.values()
            for name, count in verb.failures.items()
            if name not in _FINDINGS
        )

    @property
    def bytes_sent(self) -> int:
        return sum(verb.bytes_sent for verb in self.by_verb.values())

    @property
    def bytes_received(self) -> int:
        return sum(verb.bytes_received for verb in self.by_verb.values())


@dataclass(slots=True)
class _Meter:
    requests: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    bytes_sent: int = 0
    bytes_received: int = 0
    seconds: float = 0.0

    def read(self) -> VerbStatistics:
        return VerbStatistics(
            requests=self.requests,
            failures=MappingProxyType(dict(self.failures)),
            bytes_sent=self.bytes_sent,
            bytes_received=self.bytes_received,
            seconds=self.seconds,
        )


class MeteredStorage(InterceptedStorage):
    """A store whose requests are counted."""

    def __init__(
        self,
        inner: ObjectStorage,
        *,
        clock: Callable[[], float] = time.perf_counter,
        observer: Callable[[Request], None] | None = None,
        counted_with: MeteredStorage | None = None,
    ) -> None:
        """`clock` tells seconds; `observer` is told of every request before it is made.

        What is asked of this store counts as asked of `counted_with`, if given, and there only.
        """
        super().__init__(inner)
        self._clock: Final = clock
        self._observer: Final = observer
        self._meters: defaultdict[Verb, _Meter] = (
            defaultdict(_Meter) if counted_with is None else counted_with._meters
        )

    def statistics(self) -> StorageStatistics:
        """Return the counts of this moment."""
        return StorageStatistics(
            by_verb=MappingProxyType({verb: meter.read() for verb, meter in self._meters.items()})
        )

    async def _carry_out(self, request: Request, send: Callable[[], Awaitable[T]]) -> T:
        if self._observer is not None:
            self._observer(request)
        meter = self._meters[request.verb]
        meter.requests += 1
        began = self._clock()
        try:
            result = await send()
        except StorageError as error:
            meter.failures[type(error).__name__] += 1
            raise
        finally:
            meter.seconds += self._clock() - began
            meter.bytes_sent += request.bytes_sent
        if isinstance(result, RangeResult):
            meter.bytes_received += memoryview(result.body).nbytes
        return result
