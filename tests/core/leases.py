"""Mounts that want to write, for the tests of the lease: names, and trio's clock in place of the host's."""

from __future__ import annotations

from typing import Any, Final

import trio

from backends.base import ObjectStorage
from fusefs.lease_acquisition import Claim, acquire
from fusefs.lease_record import Identity, LeaseRecord
from fusefs.stored_lease import StoredLease, look

TERM: Final = 30.0


class WallClock:
    """A wall clock that somebody has set."""

    def __init__(self, realtime_ns: int = 1_700_000_000_000_000_000) -> None:
        self._realtime_ns = realtime_ns

    def realtime_ns(self) -> int:
        return self._realtime_ns


def claim(name: str, **changes: Any) -> Claim:
    """Return what a mount asks for whose id is `name`."""
    identity = Identity(holder=name, host=f"host-{name}", pid=7, mountpoint=f"/mnt/{name}")
    return Claim(**{"identity": identity, "term_seconds": TERM, "log": "", **changes})


async def take(storage: ObjectStorage, name: str, **changes: Any) -> StoredLease:
    """Become the holder, by trio's clock."""
    return await acquire(storage, claim(name, **changes), clock=WallClock(), now=trio.current_time)


async def record_in(storage: ObjectStorage) -> LeaseRecord:
    """Return what the lease object says."""
    found = await look(storage)
    assert found is not None
    return found.record
