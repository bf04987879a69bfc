"""Work that many tasks ask for at the same time and one of them does."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import trio

_Key = TypeVar("_Key", bound=Hashable)
_Result = TypeVar("_Result")


@dataclass(eq=False, slots=True)
class _Flight(Generic[_Result]):
    landed: trio.Event = field(default_factory=trio.Event)
    result: _Result | None = None
    failure: Exception | None = None


class SingleFlight(Generic[_Key, _Result]):
    """At most one piece of work under way for each key."""

    def __init__(self) -> None:
        self._flights: dict[_Key, _Flight[_Result]] = {}

    async def run(self, key: _Key, work: Callable[[], Awaitable[_Result]]) -> _Result | None:
        """Do the work, or wait for the task that is doing it; its failure is raised to all who waited.

        Where that task was cancelled the work is not done, and has no result: whoever needs it looks, and asks again.
        """
        flight = self._flights.get(key)
        if flight is not None:
            await flight.landed.wait()
            if flight.failure is not None:
                raise flight.failure
            return flight.result
        flight = self._flights[key] = _Flight()
        try:
            flight.result = await work()
            return flight.result
        except Exception as error:
            flight.failure = error
            raise
        finally:
            del self._flights[key]
            flight.landed.set()
