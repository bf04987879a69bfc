"""How a file of a known size goes up: one PUT, or parts, some of them copied from the base inside the store.

Pure decisions over byte ranges. A part that is not the last has at least the minimum size, so a small change in the
middle of an object cannot be uploaded alone: clean bytes beside it go up with it (*widening*), and a clean range
that is too short to be a part, or would be after its neighbours took from it, cannot be copied. `_choose_copies`
finds the clean ranges to copy such that the fewest bytes go up and, among equals, in the fewest requests.

Of the clean ranges only the longest are looked at, as many as 10,000 parts could copy, so the time is bounded however
fragmented a file is. Where it still needs more parts, the shortest of these are uploaded with their neighbours: how
many is found in a few trials.

A file with nothing to copy is cut as a stream is: its part k holds the bytes that `PartSizes` gives to part k.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, TypeAlias

from backends.base import S3_LIMITS, Limits
from backends.errors import EntityTooLarge
from backends.part_sizes import PartSizes
from fusefs.extents import Extent, ExtentSet


@dataclass(frozen=True, slots=True)
class UploadRange:
    """Part `number` is bytes `start` to `end` of the file, sent from here. Some may be clean (widening)."""

    number: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class CopyRange:
    """Part `number` is bytes `start` to `end` of the base, which are the same in the file."""

    number: int
    start: int
    end: int


Piece: TypeAlias = UploadRange | CopyRange


@dataclass(frozen=True, slots=True)
class SinglePut:
    """The whole file in one request."""


@dataclass(frozen=True, slots=True)
class Multipart:
    """The file in parts that tile it, in order, numbered from 1."""

    parts: tuple[Piece, ...]


Plan: TypeAlias = SinglePut | Multipart


def plan(
    size: int,
    dirty: ExtentSet,
    base_size: int | None,
    *,
    part_size: int,
    limits: Limits = S3_LIMITS,
    can_copy: bool = True,
) -> Plan:
    """Decide how a file of `size` bytes goes up.

    Bytes below `base_size` that are not dirty are the base's; None is a file without a base. `part_size` is that of
    the first part of a stream. Where parts cannot be copied (`can_copy`), all bytes go up and the clean ones have to
    be fetched; so they have for a `SinglePut`, which is the answer for less than `part_size` bytes.

    Raises ValueError if bytes are neither dirty nor the base's, or dirty beyond the end, and for a `part_size` out
    of the limits; `EntityTooLarge` for more than the store takes.
    """
    sizes = PartSizes(part_size, limits)
    if size > limits.max_object_size:
        raise EntityTooLarge(f"{size} bytes are over the limit of {limits.max_object_size}")
    base_end = min(size, base_size or 0)
    if not dirty.covers(base_end, size) or dirty.end > size:
        raise ValueError(f"dirty ranges do not fit {size} bytes over a base of {base_size}")
    if size < part_size:
        return SinglePut()
    # S3 copies ranges only out of objects larger than a minimum part ("UploadPartCopy", AWS documentation).
    if can_copy and base_end > limits.min_part_size:
        return Multipart(_patch(dirty.gaps(0, base_end), size, sizes))
    return Multipart(_stream(size, sizes))


def _stream(size: int, sizes: PartSizes) -> tuple[Piece, ...]:
    parts: list[Piece] = []
    while not parts or parts[-1].end < size:
        number, start, end = sizes.part(len(parts) + 1)
        parts.append(UploadRange(number, start, min(end, size)))
    return tuple(parts)


def _patch(clean: Sequence[Extent], size: int, sizes: PartSizes) -> tuple[Piece, ...]:
    """Return parts that copy as much of the `clean` ranges as fits into the store's number of parts."""
    limits = sizes.limits
    candidates = [extent for extent in clean if extent.length >= limits.min_part_size or extent.end == size]
    candidates.sort(key=lambda extent: extent.length, reverse=True)
    # Between two copies there is an upload.
    del candidates[limits.max_part_number // 2 + 1 :]

    def parts_copying(count: int) -> tuple[Piece, ...]:
        copies = _choose_copies(sorted(candidates[:count]), size, limits)
        return tuple(_parts_around(copies, size, sizes)) if copies else _stream(size, sizes)

    most = limits.max_part_number
    parts = parts_copying(len(candidates))
    if len(parts) <= most:
        return parts
    fitting, few = _stream(size, sizes), 0
    too_long, many = len(parts), len(candidates)
    trials = 0
    while many - few > 1:
        # The number of parts rises nearly evenly; where it does not, halving the range ends the search.
        trials += 1
        share = (most - len(fitting)) / (too_long - len(fitting)) if trials % 3 else 1 / 2
        middle = few + 1 + int(share * (many - few - 2))
        parts = parts_copying(middle)
        if len(parts) <= most:
            fitting, few = parts, middle
        else:
            too_long, many = len(parts), middle
    return fitting


class _Chain(NamedTuple):
    """A choice of clean ranges up to and including `source`, and what it costs; ordered by cost."""

    uploaded: int
    #: A copy that takes several requests counts once: one more or less there is never worth a copy and an upload more.
    parts: int
    #: Where the copy out of `source` starts; the upload before it may have taken some of it.
    start: int
    source: Extent
    #: Where the copy before this one ends.
    previous_end: int
    previous: _Chain | None


_ORIGIN: Final = _Chain(0, 0, 0, Extent(0, 0), 0, None)

_REACH: Final = 3
"""How far a chain may leap, in clean ranges. Leaving out three in a row is never best: the one in the middle could be
copied whole, because the uploads beside it are long enough with the ranges that are left out beyond."""

_ALWAYS_COPIED: Final = 3
"""How many minimum parts a clean range has that no chain leaps over. The uploads beside it lack at most one each; if
they take that from it, less goes up than all of it, and what is left is still a part and takes nothing from others."""


def _choose_copies(sources: Sequence[Extent], size: int, limits: Limits) -> list[Extent]:
    """Return the ranges to copy, each inside one of `sources`, such that the fewest bytes go up.

    For each source the chains that end there are kept if no other is both cheaper and leaves more of the source.
    """
    minimum = limits.min_part_size
    frontiers = [[_ORIGIN]]
    for source in sources:
        at_least = 1 if source.end == size else minimum
        chains = (_extended(chain, source, limits) for frontier in frontiers[-_REACH:] for chain in frontier)
        enough = [chain for chain in chains if source.end - chain.start >= at_least]
        frontier = _undominated(enough, limits)
        frontiers = (
            [frontier] if source.length >= _ALWAYS_COPIED * minimum else [*frontiers[-_REACH:], frontier]
        )
    last = min(
        (chain for frontier in frontiers[-_REACH:] for chain in frontier),
        key=lambda chain: (chain.uploaded + size - chain.source.end, chain.parts + (chain.source.end < size)),
    )
    return _copies(last)


def _extended(chain: _Chain, source: Extent, limits: Limits) -> _Chain:
    """Return the chain that copies `source` next, and uploads what lies between.

    What the upload lacks to a minimum part it takes from the copy before it, as far as that one remains long
    enough itself, and then from `source`: the total is the same, and more is left for the uploads to come. But where
    `source` is longer than one request copies, there is enough of it, and a copy less if enough is taken from it: then
    the one before it gives what spares itself a copy, or nothing.
    """
    between = source.start - chain.source.end
    lacking = max(0, limits.min_part_size - between) if between else 0
    available = chain.source.end - chain.start
    taken_before = min(lacking, max(0, available - limits.min_part_size))
    if source.length > limits.max_copy_size:
        beyond_one_less = (available - 1) % limits.max_copy_size + 1
        is_spared = available > limits.max_copy_size and beyond_one_less <= lacking
        taken_before = beyond_one_less if is_spared else 0
    return _Chain(
        uploaded=chain.uploaded + between + lacking,
        parts=chain.parts + 1 + (between > 0),
        start=source.start + lacking - taken_before,
        source=source,
        previous_end=chain.source.end - taken_before,
        previous=chain,
    )


def _undominated(chains: Sequence[_Chain], limits: Limits) -> list[_Chain]:
    if len(chains) < 2:
        return list(chains)
    if chains[0].source.length > limits.max_copy_size:
        # There is enough of the source for everybody; where some of it has gone up, it may be a copy less, and no more.
        return [min(chains, key=lambda chain: (chain.uploaded, chain.parts, -chain.start))]
    kept: list[_Chain] = []
    for chain in sorted(chains, key=lambda chain: chain[:3]):
        if not kept or chain.start < kept[-1].start:
            kept.append(chain)
    return kept


def _copies(chain: _Chain) -> list[Extent]:
    """Return what a chain copies."""
    copies: list[Extent] = []
    end = chain.source.end
    while chain.previous is not None:
        copies.append(Extent(chain.start, end))
        chain, end = chain.previous, chain.previous_end
    copies.reverse()
    return copies


def _parts_around(copies: Sequence[Extent], size: int, sizes: PartSizes) -> Iterator[Piece]:
    """Yield the parts that copy `copies` and upload the rest of the file."""
    number = 1
    position = 0
    for copied in (*copies, Extent(size, size)):
        for start, end in _upload_pieces(position, copied.start, sizes):
            yield UploadRange(number, start, end)
            number += 1
        for start, end in _copy_pieces(copied, sizes.limits.max_copy_size):
            yield CopyRange(number, start, end)
            number += 1
        position = copied.end


def _upload_pieces(start: int, end: int, sizes: PartSizes) -> Iterator[Extent]:
    """Cut as a stream is cut at this place; what would be too short for a part joins the piece before it."""
    while start < end:
        piece_end = start + sizes.size_at(start)
        if end - piece_end < sizes.limits.min_part_size:
            piece_end = end
        yield Extent(start, piece_end)
        start = piece_end


def _copy_pieces(copied: Extent, largest: int) -> Iterator[Extent]:
    """Cut into the fewest pieces of nearly the same length, so that the last one is not too short for a part."""
    pieces = -(-copied.length // largest)
    if pieces <= 1:
        return iter([copied] * pieces)
    bounds = [copied.start + copied.length * index // pieces for index in range(pieces + 1)]
    return map(Extent, bounds, bounds[1:])
