"""The right to write a prefix, as everything else in a mount sees it; one mount at a time has it.

A lease is *held*; or it has *lapsed*, because the store did not answer for too long or this process was stopped; or it
is *lost*. While it has lapsed others may take it, and if nobody has, it is held again. Once lost it stays lost.

No request that changes something of the tree is sent, for the first time or again, while it is not held
(`check_before_sending`); batches of the log are, and count for nobody until it is held again.
The limit of every lease: a request that was sent while it was held may arrive later. Whoever takes it over must make
such requests fail (the journal's seal), and writes of objects are conditional on what was there.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import Final

import trio

from backends.errors import Fenced, Suspended
from fusefs.errors import LeaseLapsed, LeaseLost
from fusefs.lease_record import LeaseRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseStatistics:
    """How a lease stands."""

    epoch: int
    is_held: bool
    #: Until it lapses unless it is renewed; 0 if it is not held.
    seconds_left: float
    renewals: int
    #: Renewals that the store did not answer, or refused.
    failures: int
    #: How often it has lapsed; counted from the beginning of each.
    lapses: int
    lost_reason: str | None


class Lease(abc.ABC):
    """The right to write, as everything else in a mount sees it."""

    @property
    @abc.abstractmethod
    def epoch(self) -> int:
        """The number of this mount's term, higher than that of any term before."""

    @property
    @abc.abstractmethod
    def previous(self) -> LeaseRecord | None:
        """What the term before has left; its `logs` are to be recovered, whether it was released or not."""

    @property
    @abc.abstractmethod
    def is_held(self) -> bool:
        """Whether nobody else can hold it at this moment, however long this process was stopped."""

    @property
    @abc.abstractmethod
    def lost_reason(self) -> str | None:
        """Why it will never be held again; None as long as it may be."""

    @property
    def trouble(self) -> str | None:
        """What the store has said to the last renewal; None if that has succeeded."""
        return None

    def check(self) -> None:
        """Raise `LeaseLost` or `LeaseLapsed` unless it is held."""
        if self.lost_reason is not None:
            raise LeaseLost(f"this mount may not write any more: {self.lost_reason}")
        if not self.is_held:
            why = f": {self.trouble}" if self.trouble else ""
            raise LeaseLapsed(f"the lease of the prefix could not be renewed in time{why}")

    @abc.abstractmethod
    async def wait_held(self, *, patience_seconds: float) -> None:
        """Wait until it is held, if it is not; it takes `run` for that.

        Raises `LeaseLost`, and `LeaseLapsed` when it was not renewed for so long: an outage without an end is no
        reason to wait without one.
        """

    @abc.abstractmethod
    def recovered(self) -> None:
        """Say that what the logs of earlier terms held is in the bucket; the next renewal forgets where they are."""

    @abc.abstractmethod
    def acknowledged(self, sequence: int, *, is_needed: bool = True) -> None:
        """Say that the log of this term is in the store up to a commit; the next renewal tells it.

        It must stay so until the lease is given back: what trims the log leaves its last commit. `is_needed` is False
        where nothing of the log is needed any more.
        """

    @abc.abstractmethod
    async def run(self) -> None:
        """Renew it until it is lost or given back."""

    @abc.abstractmethod
    async def release(self, *, clean: bool = True) -> bool:
        """Give it back, so that the next mount does not wait; it is not held from now on, whatever becomes of it.

        `clean` says that everything is published, so that no log is needed any more. Returns whether it is certain that
        the lease says so now: before that, what is left of the log must stay. Raises nothing that the store raises: a
        lease that cannot be given back ends with its term. Whoever may be cancelled meanwhile shields it. A second call
        does nothing.
        """

    @abc.abstractmethod
    def statistics(self) -> LeaseStatistics:
        """Return how it stands."""


def check_before_sending(lease: Lease) -> None:
    """Raise what a store would, `Fenced` or `Suspended`, unless it is held."""
    try:
        lease.check()
    except LeaseLost as error:
        raise Fenced(str(error)) from error
    except LeaseLapsed as error:
        raise Suspended(str(error)) from error


class NoLease(Lease):
    """Always held: a mount that was told to do without, and whose owner sees to it that there is no other.

    It writes no lease, and reads the one of an earlier mount: what that says of logs is true for it too, and its own
    term has to be later.
    """

    def __init__(self, at_least_epoch: int, *, previous: LeaseRecord | None = None) -> None:
        self._epoch: Final = max(at_least_epoch, previous.epoch + 1 if previous is not None else 1)
        self._previous: Final = previous

    @property
    def epoch(self) -> int:
        return self._epoch

    @property
    def previous(self) -> LeaseRecord | None:
        return self._previous

    @property
    def is_held(self) -> bool:
        return True

    @property
    def lost_reason(self) -> str | None:
        return None

    async def wait_held(self, *, patience_seconds: float) -> None:
        await trio.lowlevel.checkpoint()

    def recovered(self) -> None:
        """There is nobody to tell."""

    def acknowledged(self, sequence: int, *, is_needed: bool = True) -> None:
        """There is nobody to tell."""

    async def run(self) -> None:
        await trio.sleep_forever()

    async def release(self, *, clean: bool = True) -> bool:
        """As `Lease`; the one that there is stays, and whoever reads it must see that what it tells of was removed."""
        await trio.lowlevel.checkpoint()
        told = () if self._previous is None else self._previous.logs
        return clean and all(log.end is None for log in told)

    def statistics(self) -> LeaseStatistics:
        return LeaseStatistics(
            epoch=self._epoch,
            is_held=True,
            seconds_left=float("inf"),
            renewals=0,
            failures=0,
            lapses=0,
            lost_reason=None,
        )
