"""A store that refuses to change some objects, for as long as one mount lives.

    refusing = Refusals(denied={"a"}, held={"b"}, unanswered={"c"})
    RefusingStorage(inner, refusing)    # nothing is written to a, b is not deleted, and of c nobody hears

What is unanswered takes effect every other time.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Set
from dataclasses import dataclass
from typing import Final

import trio

from backends.base import ObjectStorage
from backends.errors import AccessDenied, Unavailable
from backends.intercepted import InterceptedStorage, Request, T, Verb

WRITING: Final = frozenset({Verb.PUT, Verb.COPY, Verb.CREATE_MULTIPART, Verb.COMPLETE})
DELETING: Final = frozenset({Verb.DELETE, Verb.DELETE_MANY})


@dataclass(frozen=True, kw_only=True)
class Refusals:
    """Keys of objects; of those that are `denied`, nothing is written to what is below them either."""

    denied: Set[str] = frozenset()
    held: Set[str] = frozenset()
    unanswered: Set[str] = frozenset()


class RefusingStorage(InterceptedStorage):
    """One mount's way to the store."""

    def __init__(self, inner: ObjectStorage, refusals: Refusals) -> None:
        super().__init__(inner)
        self._refusals = refusals
        self._unanswered = 0

    async def _carry_out(self, request: Request, send: Callable[[], Awaitable[T]]) -> T:
        is_denied = request.verb in WRITING and request.key.partition("/")[0] in self._refusals.denied
        is_held = request.verb in DELETING and request.key in self._refusals.held
        if is_denied or is_held:
            await trio.lowlevel.checkpoint()
            raise AccessDenied(f"{request.verb} {request.key!r} is refused")
        if request.verb not in WRITING or request.key not in self._refusals.unanswered:
            return await send()
        self._unanswered += 1
        if self._unanswered % 2:
            await send()
        await trio.lowlevel.checkpoint()
        raise Unavailable(f"the answer to {request.verb} {request.key!r} is lost")
