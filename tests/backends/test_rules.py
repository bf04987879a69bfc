"""Limits that no test can reach with real bytes."""

from __future__ import annotations

import pytest

from backends import rules
from backends.base import GIB, MIB, TIB, Part
from backends.errors import EntityTooLarge, EntityTooSmall, InvalidKey

ETAG = "0" * 32


def test_a_put_has_five_gibibytes_at_most() -> None:
    rules.check_put_size("k", 5 * GIB)
    with pytest.raises(EntityTooLarge):
        rules.check_put_size("k", 5 * GIB + 1)


def test_a_copy_has_five_gibibytes_at_most() -> None:
    rules.check_copy_size("k", 5 * GIB)
    with pytest.raises(EntityTooLarge):
        rules.check_copy_size("k", 5 * GIB + 1)


def test_a_part_has_five_gibibytes_at_most() -> None:
    rules.check_part(10_000, 5 * GIB)
    with pytest.raises(EntityTooLarge):
        rules.check_part(1, 5 * GIB + 1)


@pytest.mark.parametrize(("last_size", "fits"), [(2 * GIB, True), (2 * GIB + 1, False)])
def test_an_object_has_five_tebibytes_at_most(last_size: int, fits: bool) -> None:
    count = (5 * TIB - 2 * GIB) // (2 * GIB)
    parts = [Part(number=number, etag=ETAG, size=2 * GIB) for number in range(1, count + 1)]
    parts.append(Part(number=count + 1, etag=ETAG, size=last_size))
    held = {part.number: part for part in parts}
    if fits:
        rules.check_completion(parts, held)
    else:
        with pytest.raises(EntityTooLarge):
            rules.check_completion(parts, held)


def test_sizes_are_those_that_the_store_holds() -> None:
    """What the caller says of its parts' sizes is not believed."""
    said = [Part(number=1, etag=ETAG, size=5 * MIB), Part(number=2, etag=ETAG, size=1)]
    held = {1: Part(number=1, etag=ETAG, size=1), 2: said[1]}
    with pytest.raises(EntityTooSmall):
        rules.check_completion(said, held)


@pytest.mark.parametrize("key", ["..", "../x", "a/../..", "a/../../b/c", "./../.."])
def test_keys_above_the_bucket_are_refused(key: str) -> None:
    with pytest.raises(InvalidKey):
        rules.check_key(key)


@pytest.mark.parametrize("key", ["a/..", "a/../b", "a/b/../../c", "...", "..a", "a..", "./.."])
def test_dots_that_stay_inside_the_bucket_are_kept(key: str) -> None:
    rules.check_key(key)


def test_an_etag_of_parts_is_the_md5_of_their_md5s() -> None:
    """The parts are `a` and `b`; the hexadecimal digits were computed apart from this program's code."""
    parts = [
        Part(number=1, etag="0cc175b9c0f1b6a831c399e269772661", size=1),
        Part(number=2, etag="92eb5ffee6ae2fec3ad71c777531578f", size=1),
    ]
    assert rules.multipart_etag(parts) == "96e024ba2074fe77e8e965ba43a704be-2"
