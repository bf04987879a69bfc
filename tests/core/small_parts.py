"""A store whose parts may be a thousandth of S3's: what takes parts, rounds and patches is tested with little data."""

from __future__ import annotations

from copy import copy
from dataclasses import replace
from typing import Final

import pytest

from backends import rules
from backends.base import GIB, KIB, Limits
from backends.memory import MemoryStorage
from fusefs import block_checksums, content, fetching, prefetch, staged_bytes, stream, uploads
from tests.core.tree import TreeOptions

PART: Final = 8 * KIB
LIMITS: Final = Limits(min_part_size=5 * KIB, max_copy_size=1024 * KIB, max_object_size=GIB)


class SmallPartsStorage(MemoryStorage):
    """A store in memory with `LIMITS`; it needs the fixture `small_parts`."""

    @property
    def limits(self) -> Limits:
        return LIMITS

    def snapshot(self) -> dict[str, bytes]:
        """Return the bytes of every object at this moment."""
        return {key: found.data for key, found in self._objects.items()}

    def twin(self) -> SmallPartsStorage:
        """Return another store that has what this one has at this moment."""
        twin = copy(self)
        twin._objects, twin._keys = dict(self._objects), list(self._keys)
        twin._uploads = {
            each: replace(upload, parts=dict(upload.parts)) for each, upload in self._uploads.items()
        }
        return twin


def tree_options(**changes: object) -> TreeOptions:
    """Return options of a tree over such a store."""
    return TreeOptions(**{"part_size": PART, **changes})  # type: ignore[arg-type]


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every size that goes with S3's limits smaller by the same factor."""
    monkeypatch.setattr(rules, "S3_LIMITS", LIMITS)
    monkeypatch.setattr(stream, "LAG", KIB)
    monkeypatch.setattr(uploads, "STAGED_AT_ONCE", 64 * KIB)
    monkeypatch.setattr(prefetch, "FETCH_SIZE", 4 * KIB)
    monkeypatch.setattr(content, "NEAR", 64)
    monkeypatch.setattr(fetching, "NEAR", 64)
    monkeypatch.setattr(staged_bytes, "EVICTED_AT_ONCE", 4 * KIB)
    monkeypatch.setattr(block_checksums, "BLOCK_SIZE", KIB)
