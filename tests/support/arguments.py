"""What the differential test calls with: few names, which get in each other's way, and sizes beside every limit."""

from __future__ import annotations

import functools
import random
from typing import Any, Final

from hypothesis import strategies as st

MAX_HANDLES: Final = 6
MIB: Final = 1024 * 1024
MAX_SIZE: Final = 20 * MIB

WHICH = st.integers(0, MAX_HANDLES)
"""Chooses among the open files."""

#: Some are directories now and files later.
PATHS = st.sampled_from(["a", "b", "c", "d", "d/a", "d/b", "d/e", "d/e/a", "e", "e/a", "e/d", "e/d/a"])
OWNERS = st.sampled_from([-1, 0, 0, 1000])
TARGETS = st.sampled_from(["a", "b", "d", "d/a", "e", "missing"])
FILE_MODES = st.sampled_from([0o600, 0o644, 0o755, 0o640, 0o4755, 0o2710])
DIRECTORY_MODES = st.sampled_from([0o700, 0o755, 0o1777, 0o2755])

_SMALL = st.integers(0, 5_000)
_PAGES = st.sampled_from([4_095, 4_096, 4_097, 8_191, 8_192, 24_577, 65_536, 131_073])
_LARGE = st.integers(0, MAX_SIZE)
#: Beside the ends of parts: of 5 MiB on S3, of 8 MiB in a directory.
_EDGES = st.builds(
    lambda part, by: part * MIB + by, st.sampled_from([5, 8, 10, 15, 16]), st.integers(-3, 3) | st.just(4_096)
)


class Size(int):
    """A size or an offset."""


def _mostly_small(*others: st.SearchStrategy[int]) -> st.SearchStrategy[Size]:
    """Sizes and offsets: large ones cost time, and once in a while is enough."""
    return st.one_of(*[_SMALL] * 8, *[_PAGES] * 4, *others).map(Size)


def within(value: Any, limit: int | None) -> Any:
    """Return what a step is given with no size above `limit`, which is that of large files where parts are small."""
    if limit is None:
        return value
    if isinstance(value, Size):
        return Size(value % limit)
    if isinstance(value, tuple | list):
        return type(value)(within(each, limit) for each in value)
    return value


SIZES = _mostly_small(_EDGES, _LARGE)
LENGTHS = _mostly_small(st.integers(0, 300_000), st.integers(5 * MIB - 3, 7 * MIB))
BODIES = st.tuples(st.integers(0, 255), LENGTHS)
"""Seed and length of bytes; see `body`."""


@functools.lru_cache(maxsize=256)
def _block(number: int) -> bytes:
    # A prime length: what is read from a wrong offset shows.
    return random.Random(number).randbytes(4_093)


def body(seed_and_length: tuple[int, int]) -> bytes:
    """Return the bytes that a pair of `BODIES` stands for."""
    number, length = seed_and_length
    block = _block(number)
    return (block * (length // len(block) + 1))[:length]
