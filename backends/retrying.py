"""The only place that repeats a request: what failed and is `retryable` is asked again, after growing, jittered pauses.

Where a condition fails after an attempt whose answer was lost, the store is asked whether the conflict is with our
own first attempt (`backends.lost_answers`); if it is, the call has succeeded.

Where a `create_multipart` was repeated because an answer was lost, the upload of the lost one is looked for and
aborted. Limits: one that never gets an answer may leave an upload that nobody knows; the mount collects those. A call
that is cancelled during a pause may have taken effect, as a call during a crash may.

Some stores (Ceph) answer 500, which sounds like something that passes, for parts of an upload that somebody has
aborted. So when a call of an upload goes on failing, the store is asked whether the upload is still there.

An outage is logged twice, when it begins and when it has ended, however many calls wait for its end.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Final

import trio

from backends.base import (
    NO_ETAGS,
    NO_METADATA,
    OVERWRITE,
    Data,
    Metadata,
    MultipartUpload,
    ObjectStorage,
    Part,
    PutMode,
)
from backends.errors import (
    ConcurrentRequest,
    NotSent,
    PreconditionFailed,
    StorageError,
    Throttled,
    Unavailable,
    UploadNotFound,
)
from backends.intercepted import InterceptedStorage, InterceptedUpload, Request, T, Verb
from backends.lost_answers import (
    etag_of_completion,
    etag_of_copy,
    etag_of_put,
    is_deleted,
    unanswered_uploads,
)

_log = logging.getLogger(__name__)

_QUIET_SECONDS: Final = 60.0
"""At most one outage is announced in this time: a store that fails now and then must not fill the log."""

_UNANSWERED_SECONDS: Final = 30.0
"""How long what was begun without an answer may hold up a cancellation."""

_GONE_AFTER: Final = 3
"""Failures of one call of an upload before the store is asked whether it knows the upload."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How long a call is repeated, and how quickly. Pauses are drawn between 0 and a bound that grows."""

    #: From the beginning of a call to its last attempt, whose error is raised.
    timeout_seconds: float = 300.0
    #: The same for `probe`, which is where a wrong address shows: whoever mounts wants to know soon. Where an attempt
    #: of it ends later than that, because the store said nothing, it was the last.
    probe_timeout_seconds: float = 10.0
    first_pause_seconds: float = 0.1
    max_pause_seconds: float = 10.0
    #: The same two bounds for a store that asks for fewer requests.
    throttled_first_pause_seconds: float = 1.0
    throttled_max_pause_seconds: float = 30.0
    pause_growth: float = 2.0

    def longest_pause_seconds(self, error: StorageError, failures: int) -> float:
        """Return the bound of the pause after a call's `failures`-th failure, which was `error`."""
        first, longest = (
            (self.throttled_first_pause_seconds, self.throttled_max_pause_seconds)
            if isinstance(error, Throttled)
            else (self.first_pause_seconds, self.max_pause_seconds)
        )
        # A bounded exponent, because floats overflow: no pause needs as many steps to reach its limit.
        return min(longest, first * self.pause_growth ** min(failures - 1, 50))


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryStatistics:
    """What became of failures so far."""

    #: Failed attempts that were followed by another one.
    repeated: int
    #: Calls that ended with a retryable error because their time was over.
    timed_out: int
    #: Conflicts with an attempt of the same call, which had succeeded without an answer.
    found_done: int
    #: Whether the last that was heard of the store is a failure.
    unavailable: bool


class _Outage:
    """Whether the store answers, as all calls together see it, and the log's two lines about it when it does not."""

    def __init__(self) -> None:
        self._began_at: float | None = None
        self._announced = False
        self._quiet_until = -math.inf

    @property
    def is_on(self) -> bool:
        return self._began_at is not None

    def goes_on(self, request: Request, error: StorageError) -> None:
        """Note a failure."""
        now = trio.current_time()
        if self._began_at is None:
            self._began_at = now
        if not self._announced and now >= self._quiet_until:
            self._announced = True
            self._quiet_until = now + _QUIET_SECONDS
            _log.warning("the store fails and is asked again (%s %r): %s", request.verb, request.key, error)

    def over(self) -> None:
        """Note an answer."""
        if self._began_at is not None and self._announced:
            _log.warning("the store answers again after %.1f s", trio.current_time() - self._began_at)
        self._began_at = None
        self._announced = False


class _Patience:
    """The failures of one call so far, and the pauses after them."""

    def __init__(self, policy: RetryPolicy, rng: Random, request: Request) -> None:
        is_probe = request.verb is Verb.PROBE
        timeout = policy.probe_timeout_seconds if is_probe else policy.timeout_seconds
        self._policy: Final = policy
        self._rng: Final = rng
        self._is_probe: Final = is_probe
        self._deadline: Final = trio.current_time() + timeout
        self._failures = 0
        self._is_exhausted = False
        #: Whether an attempt may have taken effect, because no answer said that it has not.
        self.is_in_doubt = False

    async def wait_after(self, error: StorageError) -> bool:
        """Pause before the next attempt; return False at once if there is no time for one."""
        if self._is_exhausted or (self._is_probe and trio.current_time() >= self._deadline):
            return False
        self._failures += 1
        self.is_in_doubt = self.is_in_doubt or error.is_in_doubt
        pause = self._rng.uniform(0, self._policy.longest_pause_seconds(error, self._failures))
        next_attempt = trio.current_time() + pause
        # One more attempt at the deadline itself: by then the store may have come back.
        self._is_exhausted = next_attempt >= self._deadline
        await trio.sleep_until(min(next_attempt, self._deadline))
        return True


class RetryingStorage(InterceptedStorage):
    """A store whose passing failures are waited out: an error that it raises is final, or has lasted too long."""

    def __init__(
        self, inner: ObjectStorage, policy: RetryPolicy | None = None, *, rng: Random | None = None
    ) -> None:
        """`rng` draws the pauses."""
        super().__init__(inner)
        self._policy: Final = policy or RetryPolicy()
        self._rng: Final = rng or Random()
        self._outage: Final = _Outage()
        self._repeated = 0
        self._timed_out = 0
        self._found_done = 0

    def statistics(self) -> RetryStatistics:
        """Return the counts of this moment."""
        return RetryStatistics(
            repeated=self._repeated,
            timed_out=self._timed_out,
            found_done=self._found_done,
            unavailable=self._outage.is_on,
        )

    async def put(
        self, key: str, data: Data, *, metadata: Metadata = NO_METADATA, mode: PutMode = OVERWRITE
    ) -> str:
        return await self._repeat(
            Request(Verb.PUT, key, len(data)),
            lambda: self._inner.put(key, data, metadata=metadata, mode=mode),
            lambda: etag_of_put(self, key, data, metadata),
        )

    async def copy(
        self,
        source: str,
        target: str,
        *,
        if_match: str | None = None,
        metadata: Metadata | None = None,
        mode: PutMode = OVERWRITE,
    ) -> str:
        return await self._repeat(
            Request(Verb.COPY, target),
            lambda: self._inner.copy(source, target, if_match=if_match, metadata=metadata, mode=mode),
            lambda: etag_of_copy(self, source, target, if_match=if_match, metadata=metadata),
        )

    async def delete(self, key: str, *, if_match: str | None = None) -> None:
        async def send() -> bool:
            await self._inner.delete(key, if_match=if_match)
            return True

        await self._repeat(Request(Verb.DELETE, key), send, lambda: is_deleted(self, key))

    async def delete_many(
        self, keys: Iterable[str], *, if_match: Mapping[str, str] = NO_ETAGS
    ) -> Mapping[str, StorageError]:
        """As `ObjectStorage.delete_many`; only the keys whose failure may pass are asked for again."""
        remaining = list(keys)
        request = Request(Verb.DELETE_MANY, remaining[0] if remaining else "")
        patience = _Patience(self._policy, self._rng, request)
        final: dict[str, StorageError] = {}
        while True:
            failed = await self._carry_out(
                request, partial(self._inner.delete_many, remaining, if_match=if_match)
            )
            final |= {key: error for key, error in failed.items() if not error.retryable}
            passing = {key: error for key, error in failed.items() if error.retryable}
            if not passing or not await self._pause(request, patience, next(iter(passing.values()))):
                return final | passing
            remaining = list(passing)

    async def create_multipart(self, key: str, *, metadata: Metadata = NO_METADATA) -> MultipartUpload:
        request = Request(Verb.CREATE_MULTIPART, key)
        began_at = trio.current_time()
        in_doubt = 0

        async def send() -> MultipartUpload:
            nonlocal in_doubt
            try:
                return await self._inner.create_multipart(key, metadata=metadata)
            except StorageError as error:
                in_doubt += error.is_in_doubt
                raise

        upload = await self._carry_out(request, send)
        if in_doubt:
            await self._abort_unanswered(upload, in_doubt, trio.current_time() - began_at)
        return self._wrapped_upload(upload, metadata)

    async def _abort_unanswered(self, upload: MultipartUpload, attempts: int, seconds: float) -> None:
        """Abort what `attempts` without an answer have begun before `upload`; nothing, if there is more than that."""
        with trio.CancelScope(shield=True, deadline=trio.current_time() + _UNANSWERED_SECONDS):
            try:
                found = await unanswered_uploads(self, upload, seconds=seconds)
                if len(found) > attempts:
                    _log.warning("uploads of %r are left: some are not of this process", upload.key)
                    return
                for lost in found:
                    with suppress(UploadNotFound):
                        await self.resume_multipart(lost.key, lost.upload_id).abort()
            except StorageError as error:
                _log.warning("an upload of %r may have begun twice: %s", upload.key, error)

    async def _carry_out(self, request: Request, send: Callable[[], Awaitable[T]]) -> T:
        return await self._repeat(request, send, None)

    def _wrapped_upload(self, inner: MultipartUpload, metadata: Metadata | None) -> MultipartUpload:
        return _RetryingUpload(inner, self, metadata)

    async def _repeat(
        self,
        request: Request,
        send: Callable[[], Awaitable[T]],
        look: Callable[[], Awaitable[T | None]] | None,
    ) -> T:
        """Make a request until its end is final. `look` returns the result of an earlier attempt, if it had one.

        What is raised is in doubt if that of any attempt was, unless `look` has settled it.
        """
        patience = _Patience(self._policy, self._rng, request)
        while True:
            try:
                result = await send()
            except StorageError as error:
                if error.retryable and await self._pause(request, patience, error):
                    continue
                if not error.retryable and not isinstance(error, NotSent):
                    self._outage.over()
                is_conflict = isinstance(error, PreconditionFailed | UploadNotFound)
                if not (look and is_conflict and patience.is_in_doubt):
                    error.is_in_doubt = error.is_in_doubt or patience.is_in_doubt
                    raise
                try:
                    earlier = await look()
                except StorageError as unknown:
                    unknown.is_in_doubt = True
                    raise
                if earlier is None:
                    raise
                self._found_done += 1
                return earlier
            self._outage.over()
            return result

    async def _pause(self, request: Request, patience: _Patience, error: StorageError) -> bool:
        """Pause after a retryable failure; False if the call's time is over."""
        # A concurrent request says that the store is well, and busy with this key.
        if not isinstance(error, ConcurrentRequest | NotSent):
            self._outage.goes_on(request, error)
        if await patience.wait_after(error):
            self._repeated += 1
            return True
        self._timed_out += 1
        return False


class _RetryingUpload(InterceptedUpload):
    def __init__(self, inner: MultipartUpload, storage: RetryingStorage, metadata: Metadata | None) -> None:
        super().__init__(inner, storage)
        self._storage: Final = storage
        self._metadata: Final = metadata

    async def upload_part(self, number: int, data: Data) -> Part:
        return await self._carry_out(
            Request(Verb.UPLOAD_PART, self.key, len(data)),
            self._unless_gone(lambda: self._inner.upload_part(number, data)),
        )

    async def copy_part(
        self, number: int, source: str, start: int, length: int, *, if_match: str | None = None
    ) -> Part:
        return await self._carry_out(
            Request(Verb.COPY_PART, self.key),
            self._unless_gone(
                lambda: self._inner.copy_part(number, source, start, length, if_match=if_match)
            ),
        )

    async def complete(self, parts: Sequence[Part], *, mode: PutMode = OVERWRITE) -> str:
        return await self._storage._repeat(
            Request(Verb.COMPLETE, self.key),
            self._unless_gone(lambda: self._inner.complete(parts, mode=mode)),
            lambda: etag_of_completion(self._storage, self, parts, metadata=self._metadata, mode=mode),
        )

    def _unless_gone(self, send: Callable[[], Awaitable[T]]) -> Callable[[], Awaitable[T]]:
        """Return `send` for one call; when it goes on failing for want of the upload, that is what it raises."""
        failures = 0

        async def send_or_tell() -> T:
            nonlocal failures
            try:
                return await send()
            except Unavailable as error:
                failures += 1
                if failures >= _GONE_AFTER and await self._is_gone():
                    raise UploadNotFound(f"the upload of {self.key!r} was ended by somebody else") from error
                raise

        return send_or_tell

    async def _is_gone(self) -> bool:
        """Return whether the store answers, and knows nothing of the upload."""
        try:
            begun = await self._storage._inner.list_multipart_uploads(self.key)
        except StorageError:
            return False
        return all(upload.upload_id != self.upload_id for upload in begun)
