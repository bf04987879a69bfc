"""How large each part of an object is, so that 10,000 parts reach the largest object a store takes.

Parts begin at a size that is quick to send and cheap to hold, and grow as the object does: by the same factor
after each tenth of the part numbers, the smallest factor that reaches the limit. With S3's limits and first parts of
8 MiB, 1,000 parts make 8,000 MiB, and at any place beyond, a part is one or two thousandths of what lies
before it. Sizes are multiples of the first one, so that boundaries fall where the kernel's pages end.

The sizes depend on nothing but the first one and the limits. Whoever knows these knows which bytes part k of a
streamed object holds, also in another process.
"""

from __future__ import annotations

from bisect import bisect_right
from functools import lru_cache
from itertools import accumulate, count, pairwise
from typing import Final, NamedTuple

from backends.base import S3_LIMITS, Limits
from backends.errors import EntityTooLarge

_STEPS: Final = 10


class PartRange(NamedTuple):
    """Bytes `start` up to, and not including, `end` are part `number`."""

    number: int
    start: int
    end: int


class _Step(NamedTuple):
    """A run of parts of one size: the first one's number, where it starts, and the size."""

    number: int
    start: int
    size: int


def largest_part_size(limits: Limits = S3_LIMITS) -> int:
    """Return how long a part may be planned: a remainder too small to be a part of its own has room after it."""
    return limits.max_part_size - limits.min_part_size


class PartSizes:
    """The boundaries of an object's parts; its last part ends where the object does.

    `first_part_size` is between the store's minimum and `largest_part_size`; ValueError otherwise.
    """

    def __init__(self, first_part_size: int, limits: Limits = S3_LIMITS) -> None:
        largest = largest_part_size(limits)
        if not limits.min_part_size <= first_part_size <= largest:
            raise ValueError(f"a part has {limits.min_part_size} to {largest} bytes, not {first_part_size}")
        self.first_part_size: Final = first_part_size
        self.limits: Final = limits
        self._steps = _steps(first_part_size, limits)
        self._starts = [step.start for step in self._steps]
        self._numbers = [step.number for step in self._steps]

    def size_at(self, offset: int) -> int:
        """Return how large the part that holds byte `offset` is."""
        return self._steps[bisect_right(self._starts, offset) - 1].size

    def part(self, number: int) -> PartRange:
        """Return what part `number` holds of an object that goes on beyond it. Raises `EntityTooLarge` past the last.

        Numbers are counted from 1.
        """
        if number > self.limits.max_part_number:
            raise EntityTooLarge(f"an object has at most {self.limits.max_part_number} parts")
        step = self._steps[bisect_right(self._numbers, number) - 1]
        start = step.start + (number - step.number) * step.size
        return PartRange(number, start, start + step.size)


@lru_cache(maxsize=16)
def _steps(first: int, limits: Limits) -> tuple[_Step, ...]:
    """Return the runs of parts; ValueError if no parts within the limits reach the largest object."""
    bounds = [1 + step * limits.max_part_number // _STEPS for step in range(_STEPS + 1)]
    counts = [after - number for number, after in pairwise(bounds)]
    largest = largest_part_size(limits)
    if limits.max_part_number * largest < limits.max_object_size:
        raise ValueError(f"{limits.max_part_number} parts do not reach {limits.max_object_size} bytes")
    for percent in count(100):
        sizes = [min(first * _power_rounded_up(percent, step), largest) for step in range(_STEPS)]
        starts = [0, *accumulate(size * parts for size, parts in zip(sizes, counts, strict=True))]
        if starts[-1] >= limits.max_object_size or sizes[1] == largest:
            return tuple(map(_Step, bounds, starts, sizes))
    raise AssertionError("the growth factor reaches a size that suffices")


def _power_rounded_up(percent: int, exponent: int) -> int:
    """Return (percent / 100) to the power of `exponent`, rounded up, without the error of floats."""
    numerator: int = percent**exponent
    denominator: int = 100**exponent
    return -(-numerator // denominator)
