"""What the tree, whoever publishes it and the log all name: one state of one object."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Version:
    """One immutable state of an object."""

    key: str
    etag: str
    size: int
