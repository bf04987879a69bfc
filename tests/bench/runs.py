"""Runs of workloads, and the rows that several runs make."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tests.bench.arena import Figure


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One workload, once, on one file system. `failure` says what was lost or refused; figures before it stay."""

    workload: str
    file_system: str
    round_trip_ms: float
    figures: Sequence[Figure]
    failure: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One figure of one file system, from all its runs."""

    workload: str
    file_system: str
    round_trip_ms: float
    what: str
    figures: Sequence[Figure]
    failures: Sequence[str]

    @property
    def values(self) -> list[float]:
        return sorted(figure.value for figure in self.figures)


def rows(runs: Sequence[Run]) -> Iterator[Row]:
    """Gather runs: in the order of round trips, then of figures as they were first told, then of file systems."""
    for round_trip in dict.fromkeys(run.round_trip_ms for run in runs):
        here = [run for run in runs if run.round_trip_ms == round_trip]
        told = dict.fromkeys((run.workload, figure.what) for run in here for figure in run.figures)
        silent = {run.workload: (run.workload, "-") for run in here if not run.figures}
        for workload, what in [*told, *(each for each in silent.values() if each not in told)]:
            for system in dict.fromkeys(run.file_system for run in here if run.workload == workload):
                mine = [run for run in here if (run.workload, run.file_system) == (workload, system)]
                found = [figure for run in mine for figure in run.figures if figure.what == what]
                failures = list(dict.fromkeys(run.failure for run in mine if run.failure))
                if found or (what == "-" and any(not run.figures for run in mine)):
                    yield Row(
                        workload=workload,
                        file_system=system,
                        round_trip_ms=round_trip,
                        what=what,
                        figures=found,
                        failures=failures,
                    )


def number(value: float) -> str:
    """Return a value with three digits that count, and none in powers of ten."""
    digits = 0 if value >= 100 else 1 if value >= 10 else 2 if value >= 1 else 3
    return f"{value:,.{digits}f}"
