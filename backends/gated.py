"""Lets requests that change something go out only while this process may write.

It belongs below `backends.retrying`, so that an attempt that is repeated has to ask again: what waits for the end of an
outage may find that somebody else writes by then. So may what waits for a connection, or makes several requests: each
asks when it is its turn (`backends.threads`). What is on its way already is out of reach.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, TypeAlias

from backends.base import ObjectStorage
from backends.intercepted import InterceptedStorage, Request, T, Verb
from backends.threads import BEFORE_CALL

Check: TypeAlias = Callable[[], None]
"""Raises `Suspended` or `Fenced` unless this process may write at this moment."""

CHANGING: Final = frozenset(
    (
        Verb.PUT,
        Verb.COPY,
        Verb.DELETE,
        Verb.DELETE_MANY,
        Verb.CREATE_MULTIPART,
        Verb.UPLOAD_PART,
        Verb.COPY_PART,
        Verb.COMPLETE,
        # Whoever goes on may need the parts.
        Verb.ABORT,
    )
)
"""The requests that change something for others."""


class GatedStorage(InterceptedStorage):
    """A store that is asked for a change only when `check` returns."""

    def __init__(self, inner: ObjectStorage, check: Check) -> None:
        super().__init__(inner)
        self._check: Final = check

    async def _carry_out(self, request: Request, send: Callable[[], Awaitable[T]]) -> T:
        if request.verb not in CHANGING:
            return await send()
        self._check()
        token = BEFORE_CALL.set(self._check)
        try:
            return await send()
        finally:
            BEFORE_CALL.reset(token)
