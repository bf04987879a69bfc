"""Cutting one page out of the names of a store, in the order of their UTF-8 bytes; pure, and the same for all.

A page is made of *names*: a key, or the common prefix that keys with the delimiter are rolled up into. Names rise
strictly over all pages, so the last name of a page is all that the next one must know, and `start_after` and a
page's token are one and the same thing: leave out every name up to and including this one. A key inside a prefix
that was given already rolls up into that same prefix, and is left out with it.

Candidates are bytes, so that nothing here depends on how a language orders its strings.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable
from dataclasses import dataclass

from backends.errors import InvalidRequest

MAX_PAGE_SIZE = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """A request for one page, with the token resolved."""

    prefix: bytes
    delimiter: bytes
    #: Names up to and including this one are left out.
    after: bytes
    page_size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """The names of one page; the store adds what it knows of each object."""

    keys: tuple[str, ...]
    prefixes: tuple[str, ...]
    next_token: str | None


def parse_query(
    prefix: str, *, delimiter: str, start_after: str, page_token: str | None, page_size: int
) -> Query:
    """Check the arguments of `ObjectStorage.list_prefix`. Raises `InvalidRequest` for a token that is none of ours."""
    if not 1 <= page_size <= MAX_PAGE_SIZE:
        raise InvalidRequest(f"a page of {page_size} names is not between 1 and {MAX_PAGE_SIZE}")
    after = start_after.encode() if page_token is None else _decode_token(page_token)
    return Query(prefix=prefix.encode(), delimiter=delimiter.encode(), after=after, page_size=page_size)


def cut_page(candidates: Iterable[bytes], query: Query) -> Cut:
    """Take one page from `candidates`: names in rising order, with the prefix, from `query.after` on or earlier.

    A candidate may stand for a whole common prefix, if it is that prefix. No more are drawn than the page needs to
    know whether it is the last one.
    """
    keys: list[str] = []
    prefixes: list[str] = []
    last = query.after
    for candidate in candidates:
        name, is_prefix = _roll_up(candidate, query)
        if name <= last:
            continue
        if len(keys) + len(prefixes) == query.page_size:
            return Cut(keys=tuple(keys), prefixes=tuple(prefixes), next_token=_encode_token(last))
        (prefixes if is_prefix else keys).append(name.decode())
        last = name
    return Cut(keys=tuple(keys), prefixes=tuple(prefixes), next_token=None)


def _roll_up(candidate: bytes, query: Query) -> tuple[bytes, bool]:
    """Return the common prefix of a key that holds the delimiter after the prefix, or the key; and which it is."""
    found = candidate.find(query.delimiter, len(query.prefix)) if query.delimiter else -1
    return (candidate, False) if found < 0 else (candidate[: found + len(query.delimiter)], True)


def _encode_token(name: bytes) -> str:
    return base64.urlsafe_b64encode(name).decode()


def _decode_token(token: str) -> bytes:
    try:
        return base64.b64decode(token, altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidRequest(f"{token!r} is not a page token of this store") from error
