"""What the runs have shown, as JSON with every run and as Markdown with minimum, median and maximum."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from tests.bench.arena import MIB, Figure


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


def machine() -> str:
    """Describe the machine in a line."""
    processor = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1024**3
    return (
        f"{os.cpu_count()} processors ({processor[1] if processor else platform.machine()}), {memory:.0f} GiB,"
        f" Linux {platform.release()}, Python {platform.python_version()};"
        f" load average {os.getloadavg()[0]:.1f} at the end"
    )


def as_json(runs: Sequence[Run], *, command: str) -> str:
    content = {"command": command, "machine": machine(), "runs": [dataclasses.asdict(run) for run in runs]}
    return json.dumps(content, indent=1) + "\n"


def as_markdown(runs: Sequence[Run], *, command: str) -> str:
    """Return a table for each round trip."""
    lines = [f"    {command}", "", machine(), ""]
    table = list(rows(runs))
    for round_trip in dict.fromkeys(row.round_trip_ms for row in table):
        lines += [
            f"## {round_trip:g} ms of added round trip",
            "",
            "| work | file system | min | median | max | unit | peak RSS, MiB | CPU, s | requests | MiB sent | got | |",
            "|---|---|--:|--:|--:|---|--:|--:|--:|--:|--:|---|",
        ]
        lines += [_line(row) for row in table if row.round_trip_ms == round_trip]
        lines.append("")
    return "\n".join(lines)


def _line(row: Row) -> str:
    cells = [row.what if row.figures else row.workload, row.file_system]
    if row.figures:
        spans = [figure.span for figure in row.figures]
        values = row.values
        cells += [f"{value:,.4g}" for value in (values[0], median(values), values[-1])]
        cells += [
            row.figures[0].unit,
            f"{max(span.peak_rss_bytes for span in spans) / MIB:.0f}",
            f"{median(span.cpu_seconds for span in spans):.2f}",
            f"{median(span.requests.count for span in spans):.0f}",
            f"{median(span.requests.bytes_sent for span in spans) / MIB:.1f}",
            f"{median(span.requests.bytes_received for span in spans) / MIB:.1f}",
        ]
    else:
        cells += [""] * 9
    cells.append("; ".join(row.failures))
    return f"| {' | '.join(cells)} |"
