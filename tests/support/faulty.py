"""A store whose calls fail or wait as a test says.

    faulty.fail(Unavailable, call=3)                        # the third call from now on never reaches the store
    faulty.fail(Unavailable, verb=Verb.PUT, answer_lost=True)   # the next put takes effect and reports a failure
    faulty.fail(Unavailable, times=math.inf); ...; faulty.heal()    # an outage
    gate = faulty.hold(Verb.UPLOAD_PART); await gate.reached.wait(); ...; gate.open()

With `call=n` for n = 1, 2, 3 … until a scenario ends with `faulty.faults_left` a test lets every call of it fail once.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import trio

from backends.base import ObjectStorage
from backends.intercepted import InterceptedStorage, Request, T, Verb


@dataclass(slots=True)
class _Selection:
    """Which calls are meant: those of one verb or key, or all; counted from when the test said so."""

    verb: Verb | None
    key: str | None
    first: int
    times: float
    seen: int = 0

    def takes(self, request: Request) -> bool:
        if self.verb not in (None, request.verb) or self.key not in (None, request.key):
            return False
        self.seen += 1
        return self.first <= self.seen < self.first + self.times

    @property
    def is_over(self) -> bool:
        return self.seen + 1 >= self.first + self.times


@dataclass(slots=True)
class _Fault:
    selection: _Selection
    error: type[Exception]
    answer_lost: bool


@dataclass(slots=True)
class Gate:
    """Where selected calls wait, before they reach the store, until the test opens it."""

    _selection: _Selection
    reached: trio.Event = field(default_factory=trio.Event)
    _opened: trio.Event = field(default_factory=trio.Event)

    def open(self) -> None:
        """Let the calls go on that wait, and those that will come."""
        self._opened.set()

    async def pass_through(self, request: Request) -> None:
        if self._selection.takes(request):
            self.reached.set()
            await self._opened.wait()


class FaultyStorage(InterceptedStorage):
    """Passes calls on, except as it was told. `calls` are all that were made, failed ones too."""

    def __init__(self, inner: ObjectStorage) -> None:
        super().__init__(inner)
        self.calls: list[Request] = []
        self._faults: list[_Fault] = []
        self._gates: list[Gate] = []

    def fail(
        self,
        error: type[Exception],
        *,
        call: int = 1,
        times: float = 1,
        verb: Verb | None = None,
        key: str | None = None,
        answer_lost: bool = False,
    ) -> None:
        """Let `times` calls fail, beginning with the `call`-th from now on; of `verb` and `key` if these are given.

        A failing call does not reach the store, unless `answer_lost`: then it takes effect and fails nevertheless.
        """
        self._faults.append(_Fault(_Selection(verb, key, call, times), error, answer_lost))

    def hold(
        self, verb: Verb | None = None, *, key: str | None = None, call: int = 1, times: float = 1
    ) -> Gate:
        """Let calls, chosen as in `fail`, wait at a gate."""
        gate = Gate(_Selection(verb, key, call, times))
        self._gates.append(gate)
        return gate

    def heal(self) -> None:
        """Let nothing fail any more."""
        self._faults.clear()

    @property
    def faults_left(self) -> bool:
        """Whether a fault has not struck yet as often as it was to."""
        return any(not fault.selection.is_over for fault in self._faults)

    def calls_of(self, verb: Verb) -> list[Request]:
        return [request for request in self.calls if request.verb is verb]

    async def _carry_out(self, request: Request, send: Callable[[], Awaitable[T]]) -> T:
        self.calls.append(request)
        striking = [fault for fault in self._faults if fault.selection.takes(request)]
        for gate in self._gates:
            await gate.pass_through(request)
        for fault in striking:
            if not fault.answer_lost:
                await trio.lowlevel.checkpoint()
                raise fault.error(f"injected: the call {request.verb} {request.key!r} is lost")
        result = await send()
        for fault in striking:
            raise fault.error(f"injected: the answer to {request.verb} {request.key!r} is lost")
        return result
