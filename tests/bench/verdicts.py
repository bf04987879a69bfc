"""What fusefs shall reach, as ratios to peers and limits of the same run, and whether it has."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final

from tests.bench.arena import MIB
from tests.bench.runs import Run, number

OURS: Final = "fusefs"
OURS_LOCAL: Final = "fusefs, ack_after_upload=false"
CLIENT: Final = "S3 client"
PLAIN: Final = "plain directory"
NULL: Final = "null file system"
_NO_WAY: Final = (PLAIN, NULL)
_PUT: Final = "one PUT of 8 KiB, p50"


class Unmeasured(Exception):
    """A verdict needs a figure that no run has. Raised by `Facts`; the message says which."""


class Facts:
    """The medians of all runs at one round trip, and of what sends nothing over that way."""

    def __init__(self, runs: Sequence[Run], round_trip_ms: float) -> None:
        self._runs = [run for run in runs if run.round_trip_ms == round_trip_ms or run.file_system in _NO_WAY]

    def value(self, system: str, what: str) -> float:
        """Return the median of a figure."""
        return median(self._values(system, what, lambda run: True))

    def kept(self, system: str, what: str) -> bool:
        """Whether no run with this figure has failed or lost anything."""
        return not any(run.failure for run in self._with(system, what))

    def best_peer(self, what: str) -> float:
        """Return the best median of the peers that kept the data."""
        others = {run.file_system for run in self._runs} - {OURS, OURS_LOCAL, CLIENT, PLAIN, NULL}
        peers = [each for each in others if list(self._with(each, what)) and self.kept(each, what)]
        if not peers:
            raise Unmeasured(f"{what} of a peer")
        return max(self.value(each, what) for each in peers)

    def peak_rss_mib(self, system: str, workload: str) -> float:
        """Return the most memory in any figure of a workload."""
        peaks = [
            figure.span.peak_rss_bytes
            for run in self._runs
            if (run.file_system, run.workload) == (system, workload)
            for figure in run.figures
        ]
        if not peaks:
            raise Unmeasured(workload)
        return max(peaks) / MIB

    def per_log_put(self, system: str, what: str) -> float:
        """Return how many repetitions of a figure in 1/s one PUT into the log has carried."""
        figures = [each for run in self._with(system, what) for each in run.figures if each.what == what]
        spans = [(figure.value * figure.span.seconds, figure.span.requests.log_puts) for figure in figures]
        if not spans or not all(puts for _, puts in spans):
            raise Unmeasured("PUTs into the log")
        return median(repetitions / puts for repetitions, puts in spans)

    def _with(self, system: str, what: str) -> Iterator[Run]:
        for run in self._runs:
            if run.file_system == system and any(figure.what == what for figure in run.figures):
                yield run

    def _values(self, system: str, what: str, wanted: Callable[[Run], bool]) -> list[float]:
        values = [
            figure.value
            for run in self._with(system, what)
            if wanted(run)
            for figure in run.figures
            if figure.what == what
        ]
        if not values:
            raise Unmeasured(f"{what} of {system}")
        return values


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One thing to be reached: `value` compared with `bound`, both computed from the facts of a round trip."""

    title: str
    unit: str
    value: Callable[[Facts], float]
    bound: Callable[[Facts], float]
    bound_text: str
    at_least: bool
    round_trip_ms: float = 20
    system: str = OURS
    what: str


def _own(what: str, system: str = OURS) -> Callable[[Facts], float]:
    return lambda facts: facts.value(system, what)


def _at_most(title: str, what: str, unit: str, text: str, bound: Callable[[Facts], float]) -> Target:
    return Target(
        title=title, unit=unit, value=_own(what), bound=bound, bound_text=text, at_least=False, what=what
    )


def _at_least(
    title: str,
    what: str,
    unit: str,
    text: str,
    bound: Callable[[Facts], float],
    *,
    system: str = OURS,
    round_trip_ms: float = 20,
) -> Target:
    return Target(
        title=title,
        unit=unit,
        value=_own(what, system),
        bound=bound,
        bound_text=text,
        at_least=True,
        round_trip_ms=round_trip_ms,
        system=system,
        what=what,
    )


def _put_ms(facts: Facts) -> float:
    return facts.value(CLIENT, _PUT)


_COMMIT: Final = "commit of 8 KiB, p50"
_COMMITS: Final = "commits of 144 B, clients: {}"
_SQLITE: Final = "SQLite inserts, WAL, synchronous=full"
_PGBENCH: Final = "pgbench, clients: {}"
_WRITE: Final = "sequential write, to published"
_READ: Final = "sequential read, cold"

TARGETS: Final = (
    _at_most("commit of 8 KiB, p50", _COMMIT, "ms", "1.15 x one PUT", lambda f: 1.15 * _put_ms(f)),
    _at_most("commit of 8 KiB, p99", "commit of 8 KiB, p99", "ms", "2 x one PUT", lambda f: 2 * _put_ms(f)),
    _at_least(
        "commits, 16 clients",
        _COMMITS.format(16),
        "1/s",
        "12 x one client",
        lambda f: 12 * f.value(OURS, _COMMITS.format(1)),
    ),
    Target(
        title="commits per PUT into the log, 16 clients",
        unit="",
        value=lambda f: f.per_log_put(OURS, _COMMITS.format(16)),
        bound=lambda f: 10,
        bound_text="10",
        at_least=True,
        what=_COMMITS.format(16),
    ),
    _at_most(
        "1 KiB append + fsync to a large file",
        "append of 1 KiB + fsync to a large file, p50",
        "ms",
        "1.15 x one PUT",
        lambda f: 1.15 * _put_ms(f),
    ),
    _at_least("SQLite inserts", _SQLITE, "1/s", "0.9 / one PUT", lambda f: 900 / _put_ms(f)),
    _at_least(
        "SQLite inserts, ack_after_upload=false",
        _SQLITE,
        "1/s",
        "0.5 x plain directory",
        lambda f: 0.5 * f.value(PLAIN, _SQLITE),
        system=OURS_LOCAL,
    ),
    _at_least("pgbench, 1 client", _PGBENCH.format(1), "1/s", "0.85 / one PUT", lambda f: 850 / _put_ms(f)),
    _at_least(
        "pgbench, 64 clients",
        _PGBENCH.format(64),
        "1/s",
        "20 x one client",
        lambda f: 20 * f.value(OURS, _PGBENCH.format(1)),
    ),
    _at_most("initdb", "initdb", "s", "3 x plain directory", lambda f: 3 * f.value(PLAIN, "initdb")),
    _at_least(
        "create + write + close of 4 KiB",
        "create + write + close of 4 KiB",
        "files/s",
        "1,000",
        lambda f: 1000,
    ),
    _at_least("cold read of 4 KiB files", "cold read of 4 KiB files", "files/s", "400", lambda f: 400),
    _at_least("cp -a of a source tree", "cp -a of a source tree", "files/s", "600", lambda f: 600),
    _at_least(
        "diff -r of a source tree, cold", "diff -r of a source tree, cold", "files/s", "400", lambda f: 400
    ),
    _at_least("unlink", "unlink", "files/s", "best peer", lambda f: f.best_peer("unlink")),
    _at_least(_WRITE, _WRITE, "MiB/s", "best peer", lambda f: f.best_peer(_WRITE)),
    _at_least(_READ, _READ, "MiB/s", "best peer", lambda f: f.best_peer(_READ)),
    _at_least(
        f"{_WRITE}, no added round trip",
        _WRITE,
        "MiB/s",
        "0.8 x the smaller limit",
        lambda f: 0.8 * min(f.value(CLIENT, "one PUT of the stream"), f.value(NULL, _WRITE)),
        round_trip_ms=0,
    ),
    _at_least(
        f"{_READ}, no added round trip",
        _READ,
        "MiB/s",
        "0.8 x the smaller limit",
        lambda f: 0.8 * min(f.value(CLIENT, "one GET of the stream"), f.value(NULL, _READ)),
        round_trip_ms=0,
    ),
    _at_most(
        "random read of 4 KiB, cold, p50",
        "random read of 4 KiB, cold, p50",
        "ms",
        "1.1 x one ranged GET",
        lambda f: 1.1 * f.value(CLIENT, "one GET of 4 KiB, p50"),
    ),
    _at_most("rename of a directory", "rename of a directory of many", "ms", "2 ms", lambda f: 2),
    _at_most(
        "ls -l, cold, never seen before",
        "ls -l of objects of others, cold",
        "s",
        "1.5 x the store's listing",
        lambda f: 1.5 * f.value(CLIENT, "listing of some objects"),
    ),
    _at_most(
        "ls -l, cold, known to an earlier mount",
        "ls -l of the same once more, cold",
        "s",
        "1.5 x the store's listing",
        lambda f: 1.5 * f.value(CLIENT, "listing of some objects"),
    ),
    _at_most(
        "ls of many keys, cold",
        "ls of many keys, cold",
        "s",
        "1.5 x the store's listing",
        lambda f: 1.5 * f.value(CLIENT, "listing of many objects"),
    ),
    Target(
        title="peak RSS while a stream is written and read",
        unit="MiB",
        value=lambda f: f.peak_rss_mib(OURS, "stream"),
        bound=lambda f: 200,
        bound_text="200",
        at_least=False,
        what=_WRITE,
    ),
)


def verdict(target: Target, runs: Sequence[Run]) -> tuple[str, str, str]:
    """Return what was reached, what shall be, and "reached", "missed" or why that cannot be said."""
    facts = Facts(runs, target.round_trip_ms)
    try:
        value, bound = target.value(facts), target.bound(facts)
    except Unmeasured as error:
        return "", target.bound_text, f"not measured: {error}"
    reached = value >= bound if target.at_least else value <= bound
    answer = "reached" if reached else "missed"
    if not facts.kept(target.system, target.what):
        answer = "missed: a run has failed"
    sign = ">=" if target.at_least else "<="
    return f"{number(value)} {target.unit}".strip(), f"{sign} {number(bound)} ({target.bound_text})", answer


def verdict_lines(runs: Sequence[Run]) -> list[str]:
    """Return the table of all targets."""
    lines = ["## What fusefs shall reach", "", "| work | fusefs | shall be | |", "|---|---|---|---|"]
    for target in TARGETS:
        lines.append(f"| {target.title} | {' | '.join(verdict(target, runs))} |")
    return [*lines, ""]
