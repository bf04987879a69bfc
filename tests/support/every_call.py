"""A scenario that is run once for each call that it makes: what may become of a call becomes of each in turn."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Final

MOST_CALLS: Final = 2_000
"""More than any scenario makes that comes to an end."""


async def at_every_call(run: Callable[[int], Awaitable[bool]]) -> int:
    """Run a scenario with its call 1, 2, 3 … as the special one, until it returns that it has not come to that one.

    Returns how many there were; that there was none is a failure, since nothing has been tried then.
    """
    for call in range(1, MOST_CALLS):
        with noted(f"at call {call}"):
            was_made = await run(call)
        if not was_made:
            assert call > 1, "the scenario has not come to its first call"
            return call - 1
    raise AssertionError("the scenario does not end, whichever of its calls is the special one")


@contextmanager
def noted(circumstances: str) -> Iterator[None]:
    """Say with whatever fails in the block what it is not to be understood without."""
    try:
        yield
    except BaseException as error:
        error.add_note(circumstances)
        raise
