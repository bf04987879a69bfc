"""What the runs have shown, as JSON with every run and as Markdown with minimum, median and maximum."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from tests.bench.arena import MIB, Figure, Sizes, Span
from tests.bench.runs import Row, Run, number, rows
from tests.bench.usage import Requests
from tests.bench.verdicts import verdict_lines


def machine() -> str:
    """Describe the machine in a line."""
    processor = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1024**3
    return (
        f"{os.cpu_count()} processors ({processor[1] if processor else platform.machine()}), {memory:.0f} GiB,"
        f" Linux {platform.release()}, Python {platform.python_version()};"
        f" load average {os.getloadavg()[0]:.1f} before"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All runs of one command, and where they were made."""

    command: str
    machine: str
    sizes: Sizes
    runs: Sequence[Run]

    @classmethod
    def from_json(cls, text: str) -> Report:
        """Read what `as_json` has written."""
        content = json.loads(text)
        runs = [
            Run(**{**run, "figures": [_figure(each) for each in run["figures"]]}) for run in content["runs"]
        ]
        return cls(
            command=content["command"], machine=content["machine"], sizes=Sizes(**content["sizes"]), runs=runs
        )

    def as_json(self) -> str:
        """Return everything, each run in a line."""
        head = {"command": self.command, "machine": self.machine, "sizes": dataclasses.asdict(self.sizes)}
        runs = ",\n".join(json.dumps(dataclasses.asdict(run)) for run in self.runs)
        return f'{json.dumps(head)[:-1]},\n"runs": [\n{runs}\n]}}\n'

    def as_markdown(self) -> str:
        """Return the verdicts, and a table for each round trip."""
        sizes = ", ".join(f"{name} {value}" for name, value in dataclasses.asdict(self.sizes).items())
        lines = [
            f"    {self.command}",
            "",
            self.machine,
            "",
            f"Sizes: {sizes}",
            "",
            *verdict_lines(self.runs),
        ]
        table = list(rows(self.runs))
        for round_trip in dict.fromkeys(row.round_trip_ms for row in table):
            lines += [
                f"## {round_trip:g} ms of added round trip",
                "",
                "| work | file system | min | median | max | unit | runs | peak RSS, MiB | CPU, s "
                "| requests | MiB sent | got | |",
                "|---|---|--:|--:|--:|---|--:|--:|--:|--:|--:|--:|---|",
            ]
            lines += [_line(row) for row in table if row.round_trip_ms == round_trip]
            lines.append("")
        return "\n".join(lines)


def _figure(content: dict[str, Any]) -> Figure:
    span = content["span"]
    return Figure(**{**content, "span": Span(**{**span, "requests": Requests(**span["requests"])})})


def _line(row: Row) -> str:
    cells = [row.what if row.figures else row.workload, row.file_system]
    if row.figures:
        spans = [figure.span for figure in row.figures]
        values = row.values
        cells += [number(value) for value in (values[0], median(values), values[-1])]
        cells += [
            row.figures[0].unit,
            str(len(values)),
            f"{max(span.peak_rss_bytes for span in spans) / MIB:.0f}",
            f"{median(span.cpu_seconds for span in spans):.2f}",
            f"{median(span.requests.count for span in spans):.0f}",
            f"{median(span.requests.bytes_sent for span in spans) / MIB:.1f}",
            f"{median(span.requests.bytes_received for span in spans) / MIB:.1f}",
        ]
    else:
        cells += [""] * 10
    cells.append("; ".join(row.failures))
    return f"| {' | '.join(cells)} |"
